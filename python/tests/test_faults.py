"""Every fault of every kind of service, alone and in a group: who hears of it, of which cause, and that nothing is left.

``FAULTS`` is the matrix: a row is a fault, a column a kind of service, a cell the cause that everybody hears, or what else
comes of it. ``play`` plays a cell with real threads, loops and sockets, and looks at it from every side.
"""

import asyncio
import concurrent.futures
import contextlib
import gc
import inspect
import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any

import pytest

from microio import BrokenResourceError, ClosedResourceError, CloseScope, LoopServiceThread, ServiceGroup, ServiceThread

GUARD = 10  # seconds: how long a wait may take that is expected to end at once
DEADLINE = 0.05  # seconds: for a wait that is expected to take all of its time
# Where others cannot take a port that has just become free: on Linux, a loopback address of this process's own.
HOST = socket.inet_ntoa((0x7F400000 + os.getpid()).to_bytes(4, "big")) if sys.platform == "linux" else "127.0.0.1"


# What a service does wrong


class Panic(BaseException):
    """What nobody expects, and no ``except Exception`` holds."""


class Leave(BaseException):
    """Has the work return."""


class Stubborn:
    """A wait that no cancellation ends."""

    def __init__(self, cell):
        self.cell = cell

    def wait(self, timeout):
        self.cell.release.wait(timeout)

    async def wait_async(self):
        loop, released = asyncio.get_running_loop(), asyncio.Event()
        self.cell.on_release = lambda: loop.call_soon_threadsafe(released.set)
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()


class Job:
    """A wait for a job of 60 seconds in a pool of threads."""

    def __init__(self, cell):
        self.run = lambda: cell.release.wait(60)

    def wait(self, timeout):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(self.run).result(timeout)

    async def wait_async(self):
        await asyncio.get_running_loop().run_in_executor(None, self.run)


def raises(kind, text):
    def act(cell):
        raise kind(text)

    return act


def take_a_port_that_is_taken(cell):
    socket.create_server(cell.taken)


def wait_for_the_stop(cell):
    return [cell.stop]


def ignore_the_stop(cell):
    return [Stubborn(cell)]


def never_yield(cell):
    cell.release.wait(60)


def wait_for_a_job(cell):
    return [Job(cell)]


def nothing(cell):
    return ()


# The cause that everybody hears


def itself(cell, cause):
    assert cause is cell.error


def grouped(cell, cause):
    assert isinstance(cause, BaseExceptionGroup) and cause.exceptions == (cell.error,)


def returned(cell, cause):
    assert type(cause) is RuntimeError and str(cause) == f"{cell.name} exited before it was ready"


def child_returned(cell, cause):
    [error] = cause.exceptions
    assert str(error) == "task exited without calling task_status.started()"


def stopped(cell, cause):
    assert type(cause) is ClosedResourceError and str(cause) == f"{cell.name} was stopped before it was ready"


def no_thread(cell, cause):
    assert cause is cell.error and str(cause) == "can't start new thread"


# What comes of a submitted coroutine. It is no member of its service: of what it raises hears its future.


def told(cell, future):
    assert future.exception(GUARD) is cell.error and cell.service.exc is None


def told_and_fatal(cell, future):
    assert future.exception(GUARD) is cell.error
    cell.fails(itself)


def done(cell, future):
    assert future.result(GUARD) is None


def cancelled(cell, future):
    cell.service.stop("enough")
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(GUARD)


def late(cell, future):
    with cell.taking(DEADLINE), pytest.raises(TimeoutError):
        future.result(DEADLINE)
    cancelled(cell, future)


def stuck(cell, future):
    cell.service.stop()
    with cell.taking(DEADLINE), pytest.raises(TimeoutError):
        future.result(DEADLINE)
    cell.hangs()
    concurrent.futures.wait([future], GUARD)
    assert future.done()


def let_go(cell, future):
    cell.service.stop()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(GUARD)
    cell.hangs()


def refused(cell, future):
    assert str(future) == "loop is not running" and future.__cause__ is cell.error


@dataclass(frozen=True)
class Fault:
    name: str
    when: str
    act: Any
    comes: str
    thread: Any
    main: Any
    child: Any
    submitted: Any


NEW, STARTING, RUNNING = "new", "starting", "running"
FAILS, STOPS, IS_LATE, HANGS, HAS_NO_THREAD = "fails", "stops", "is late", "hangs", "has no thread"

FAULTS = [
    Fault(*row)
    for row in [
        # while it is, it does this; then it ..., and everybody hears this cause: on a thread, of a loop's main coroutine, of
        # a task in its group; and last what comes of a coroutine that is submitted
        ("bind conflict", STARTING, take_a_port_that_is_taken, FAILS, itself, grouped, grouped, told),
        ("error before ready", STARTING, raises(ValueError, "no config"), FAILS, itself, grouped, grouped, told),
        ("panic before ready", STARTING, raises(Panic, "before"), FAILS, itself, grouped, grouped, told),
        ("exit before ready", STARTING, raises(SystemExit, "bye"), FAILS, itself, itself, itself, told_and_fatal),
        ("ctrl-c before ready", STARTING, raises(KeyboardInterrupt, "^C"), FAILS, itself, itself, itself, told_and_fatal),
        ("return before ready", STARTING, raises(Leave, ""), FAILS, returned, returned, child_returned, done),
        ("error while running", RUNNING, raises(ValueError, "lost it"), FAILS, itself, grouped, grouped, told),
        ("panic while running", RUNNING, raises(Panic, "after"), FAILS, itself, grouped, grouped, told),
        ("exit while running", RUNNING, raises(SystemExit, "bye"), FAILS, itself, itself, itself, told_and_fatal),
        ("ctrl-c while running", RUNNING, raises(KeyboardInterrupt, "^C"), FAILS, itself, itself, itself, told_and_fatal),
        ("stop before start", NEW, nothing, STOPS, stopped, stopped, stopped, refused),
        ("stop while starting", STARTING, wait_for_the_stop, STOPS, stopped, stopped, stopped, cancelled),
        ("stop while running", RUNNING, nothing, STOPS, None, None, None, cancelled),
        ("late", STARTING, wait_for_the_stop, IS_LATE, None, None, None, late),
        ("no thread", NEW, nothing, HAS_NO_THREAD, no_thread, no_thread, no_thread, refused),
        ("ignores the stop", RUNNING, ignore_the_stop, HANGS, None, None, None, stuck),
        ("never yields", RUNNING, never_yield, HANGS, None, None, None, stuck),
        ("blocking job of 60 s", RUNNING, wait_for_a_job, HANGS, None, None, None, let_go),
    ]
]


# The kinds of services, and where they stand


class Recorded:
    """Writes down when it is told to stop."""

    column = "thread"
    cell: Any = None

    ready_once = False

    def started(self):
        super().started()
        self.ready_once = True

    def stop(self, *reason):
        self.cell.stops.append(self.name)
        return super().stop(*reason)

    def start(self):
        starved = self is self.cell.service and self.cell.fault.comes == HAS_NO_THREAD
        usual = threading.stack_size(1 << 47 if starved else 0)  # more than the address space of a process
        try:
            super().start()
        except RuntimeError as error:
            self.cell.error = error
            raise
        finally:
            threading.stack_size(usual)


class Function(Recorded, ServiceThread):
    def __init__(self, **kwargs):
        super().__init__(target=lambda service: service.cell.work(service.started), **kwargs)


class Subclass(Recorded, ServiceThread):
    def run_service(self):
        self.cell.work(self.started)


class Main(Recorded, LoopServiceThread):
    column = "main"

    async def run_async(self):
        await self.cell.work_async(self.started)


class Child(Recorded, LoopServiceThread):
    column = "child"

    async def run_async(self):
        await self.task_group.start(self.child, name="the child")
        self.started()

    async def child(self, *, task_status):
        await self.cell.work_async(task_status.started)


class Host(Recorded, LoopServiceThread):
    """Its own work is well; the fault is in a coroutine that is submitted to it."""

    column = "submitted"


class Neighbour(Recorded, ServiceThread):
    def run_service(self):
        with self.cell.listen():
            self.started()
            self.scope.wait(GUARD)


class LoopNeighbour(Recorded, LoopServiceThread):
    async def run_async(self):
        with self.cell.listen():
            self.started()
            await self.scope.wait_async()


KINDS = {"function": Function, "subclass": Subclass, "main": Main, "child": Child, "submitted": Host}
PLACES = {"alone": None, "first": 0, "second": 1, "third": 2}


class Cell:
    """A cell of the matrix: the service with the fault, its neighbours, who waits for them, and what they see."""

    def __init__(self, fault, kind, place, log):
        self.fault, self.place, self.log, self.name = fault, place, log, "culprit"
        self.go, self.release, self.begun = CloseScope(), CloseScope(), threading.Event()
        self.on_release = lambda: None
        self.error, self.ports, self.stops, self.heard = None, [], [], []
        services = [LoopNeighbour(name="neighbour"), Neighbour(name="other")]
        self.service = KINDS[kind](name=self.name)
        services.insert(place or 0, self.service)
        for service in services:
            service.cell = self
        self.stop = self.service.scope if kind != "submitted" else CloseScope()  # what is submitted is cancelled only
        self.names = [service.name for service in services]
        self.group = None if place is None else ServiceGroup(*services)
        self.whole = self.service if place is None else self.group
        self.ends = [self.service.scope] if place is None else [self.service.scope, self.group.scope]
        self.expected = getattr(fault, KINDS[kind].column)
        waits = [self.wait_for_the_start, self.wait_for_the_end] * 2
        self.waiters = [threading.Thread(target=wait) for wait in waits]
        for waiter in self.waiters:
            waiter.start()

    # The work

    @contextlib.contextmanager
    def listen(self):
        with socket.create_server((HOST, 0)) as server:
            self.ports.append(server.getsockname())
            yield

    def steps(self, ready):
        """The work of the service, on a thread as on a loop: it yields what is to be waited for."""
        with self.listen():
            if self.fault.when == STARTING:
                yield from self.misbehave()
            ready()
            if self.fault.when == RUNNING:
                yield from self.misbehave()
            yield self.stop

    def misbehave(self):
        yield self.go
        self.begun.set()
        try:
            yield from self.fault.act(self) or ()
        except (GeneratorExit, Leave):
            raise
        except BaseException as error:
            self.error = error
            raise

    def work(self, ready):
        with contextlib.suppress(Leave), contextlib.closing(self.steps(ready)) as steps:
            for each in steps:
                each.wait(GUARD)

    async def work_async(self, ready):
        with contextlib.suppress(Leave), contextlib.closing(self.steps(ready)) as steps:
            for each in steps:
                await each.wait_async()

    # Who waits

    def wait_for_the_start(self):
        try:
            self.service.wait_started(GUARD)
        except RuntimeError as error:
            self.heard.append(("start", error.__cause__))

    def wait_for_the_end(self):
        assert self.service.scope.wait(GUARD)
        try:
            self.service.scope.raise_if_closed()
        except RuntimeError as error:
            self.heard.append(("end", error.__cause__))

    # What is done and seen

    def misbehaves(self):
        """Now, and not before: it waits for this."""
        self.go.close()
        assert self.begun.wait(GUARD)

    def stop_one(self):
        assert self.service.stop("enough")
        self.stops.clear()

    @contextlib.contextmanager
    def taking(self, seconds):
        begun = time.monotonic()
        try:
            yield
        finally:
            assert seconds <= time.monotonic() - begun < GUARD

    def logged(self, text):
        records = [record for record in self.log.records if record.name == "microio"]
        return [record for record in records if record.getMessage().startswith(text)]

    def fails(self, expected):
        """Everybody hears of one cause: the same object, with the same text."""
        service = self.service
        assert service.stopped.wait(GUARD)
        cause = service.scope.exc
        expected(self, cause)
        depth = len(list(traceback.walk_tb(cause.__traceback__)))
        for end in self.ends * 2:
            assert end.wait(GUARD) and end.exc is cause and end.reason == str(cause)
            with pytest.raises(BrokenResourceError) as broken:
                end.raise_if_closed()
            assert broken.value.__cause__ is cause and str(broken.value) == str(cause)
            with pytest.raises(RuntimeError, match=f"^{self.name} failed$") as failed:
                service.wait_started(GUARD)
            assert failed.value.__cause__ is cause
        self.whole.stop()
        assert self.whole.join_or_log(GUARD)
        causes = [record.exc_info[1] for record in self.logged(f"thread failed: {self.name}")]
        assert causes == [cause] and str(cause) in self.log.text if expected is not returned else causes == []
        self.all_have_heard(["end"] if service.ready_once else ["start", "end"], cause)
        assert len(list(traceback.walk_tb(cause.__traceback__))) == depth

    def all_have_heard(self, where, cause):
        for waiter in self.waiters:
            waiter.join(GUARD)
        for place in where:
            assert [each for at, each in self.heard if at == place] == [cause, cause], place

    def hangs(self):
        """The join returns by its deadline and names who is stuck; once that one ends, all is well."""
        self.whole.stop()
        for neighbour in self.group.services if self.group is not None else []:
            if neighbour is not self.service:
                neighbour.join(GUARD)
        with self.taking(DEADLINE):
            assert self.whole.join_or_log(DEADLINE) is False
        [record] = self.logged("thread did not stop")
        assert f"{self.name} (stopping), it is at" in record.getMessage()
        if self.fault.act is ignore_the_stop:
            assert "in wait" in record.getMessage()  # in which line the thread waits, or the task
        self.release.close()
        self.on_release()
        self.stop.close()
        assert self.whole.join_or_log(GUARD) and self.service.exc is None

    def rolls_back(self, error):
        """All that were started are told to stop, the last one first; the error names the culprit."""
        told = self.names if self.fault.comes != HAS_NO_THREAD else self.names[: self.place]
        if self.group is not None:
            assert self.stops == told[::-1]
            assert self.name in "".join(traceback.format_exception_only(error))
            assert self.group.join_or_log(GUARD)


def begin(cell):
    """Starts what there is to start, and has the fault happen; the error of the start, if there is one."""
    fault = cell.fault
    try:
        if (fault.when, fault.comes) == (NEW, STOPS):
            cell.stop_one()
        cell.whole.start()
        if fault.when == STARTING:
            cell.misbehaves()
        if (fault.when, fault.comes) == (STARTING, STOPS):
            cell.stop_one()
        if fault.comes == IS_LATE:
            with cell.taking(DEADLINE):
                cell.whole.wait_started(DEADLINE)
        cell.whole.wait_started(GUARD)
    except (RuntimeError, TimeoutError) as error:
        return error
    if fault.when == RUNNING:
        cell.misbehaves()


def play(cell):
    fault, error = cell.fault, begin(cell)
    if error is not None:
        cell.rolls_back(error)
    assert (error is None) == (fault.when == RUNNING)
    if fault.comes == HAS_NO_THREAD:
        assert error is cell.error
    elif fault.comes == IS_LATE:
        assert type(error) is TimeoutError and str(error) == f"{cell.name} did not become ready"
        assert cell.group is None or (cell.group.scope.exc is error and cell.group.scope.reason == str(error))
    elif error is not None:
        assert str(error) == f"{cell.name} failed"
        cell.expected(cell, error.__cause__)
    if fault.comes in (FAILS, HAS_NO_THREAD):
        cell.fails(cell.expected)
    elif fault.comes == HANGS:
        cell.hangs()
    elif fault.comes == STOPS:
        if fault.when == RUNNING:
            cell.stop_one()
        else:
            cell.all_have_heard(["start"], error.__cause__)
        assert all(end.reason == "enough" and end.exc is None for end in cell.ends)


def play_submitted(cell):
    service = cell.service
    if cell.fault.when == NEW:
        assert begin(cell) is not None
        coroutine = cell.work_async(ready=lambda: None)
        with pytest.raises(RuntimeError) as raised:
            service.submit(coroutine)
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        return cell.expected(cell, raised.value)
    cell.whole.start()
    cell.whole.wait_started(GUARD)
    future = service.submit(cell.work_async(ready=lambda: None))
    cell.misbehaves()
    cell.expected(cell, future)


def left():
    """The threads, and how many files are open."""
    return set(threading.enumerate()), len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """The garbage collector looks at what these tests make, and not at the rest each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault(fault, kind, place, caplog, capfd):
    before = left()
    with socket.create_server((HOST, 0)) as taken:
        cell = Cell(fault, kind, PLACES[place], caplog)
        cell.taken = taken.getsockname()
        (play_submitted if kind == "submitted" else play)(cell)
        cell.whole.stop()
        assert cell.whole.join_or_log(GUARD)
        for waiter in cell.waiters:
            waiter.join(GUARD)
    for port in cell.ports:
        socket.create_server(port).close()
    del cell
    gc.collect()
    assert left() == before
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []
    assert capfd.readouterr() == ("", "")
