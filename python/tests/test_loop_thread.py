"""Services that own an event loop, and the ways into it from other threads."""

import asyncio
import collections
import concurrent.futures
import contextlib
import contextvars
import gc
import inspect
import logging
import os
import signal
import sys
import threading
import time
import weakref

import pytest

from microio import LoopServiceThread, ServiceThread, create_channel

GUARD = 10  # seconds: how long a wait may take that is expected to end at once


@pytest.fixture(autouse=True)
def kind_of_loop(loop_factory, monkeypatch):
    """Every test runs with each kind of loop: asyncio.Runner makes it."""
    monkeypatch.setattr(asyncio.events, "new_event_loop", loop_factory)
    monkeypatch.setattr(OwnLoop, "factory", staticmethod(loop_factory))


@pytest.fixture
def start():
    """Starts services, and sees to it that they end."""
    begun = []

    def start(service):
        begun.append(service)
        service.start()
        return service

    yield start
    for service in begun:
        service.stop()
        service.join(GUARD)
        assert not service.is_alive()


@pytest.fixture
def service(start):
    """One that is ready."""
    service = start(LoopServiceThread(name="loop"))
    service.wait_started(GUARD)
    return service


class Blocked:
    """Keeps a loop busy while in the ``with`` block."""

    def __init__(self, service):
        self.service, self.entered, self.leave = service, threading.Event(), threading.Event()

    def block(self):
        self.entered.set()
        assert self.leave.wait(GUARD)

    def __enter__(self):
        self.service.call_soon(self.block)
        assert self.entered.wait(GUARD)

    def __exit__(self, *_):
        self.leave.set()


class OwnLoop(LoopServiceThread):
    """A subclass that runs a loop in a way of its own."""

    factory = staticmethod(asyncio.new_event_loop)

    def run_service(self):
        self.loop = self.factory()
        self.loop.call_soon(self.started)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()


async def forever(entered=None, left=None):
    try:
        if entered is not None:
            entered.set()
        await asyncio.Event().wait()
    finally:
        if left is not None:
            left.set()


def nothing():
    pass


# Life


def test_arguments():
    service = LoopServiceThread(name="loop", daemon=False, reraise=True)
    assert isinstance(service, ServiceThread)
    assert (service.name, service.daemon, service.reraise) == ("loop", False, True)
    with pytest.raises(TypeError):
        LoopServiceThread(target=nothing)


def test_without_run_async_it_is_ready_and_waits_for_stop(service):
    assert service.ready.is_set() and service.is_alive()
    assert service.stop("enough") is True and service.stop() is False
    service.join(GUARD)
    assert service.exc is None and service.scope.reason == "enough" and service.stopped.is_set()


def test_without_run_async_it_ends_with_its_scope(service):
    service.scope.close()
    service.join(GUARD)
    assert service.stopped.is_set() and service.exc is None


def test_loop_and_task_group_are_there_while_it_runs(start):
    seen = []

    class Service(LoopServiceThread):
        async def run_async(self):
            task = asyncio.current_task()
            seen.append((self.loop is asyncio.get_running_loop(), self.task_group is not None, task.get_name()))
            self.started()

    service = Service(name="loop")
    assert service.loop is None and service.task_group is None
    start(service).join(GUARD)
    assert seen == [(True, True, "loop-main")]
    assert service.loop is None and service.task_group is None and service.exc is None


def test_it_ends_when_the_last_child_ends(start):
    ended = threading.Event()

    class Service(LoopServiceThread):
        async def run_async(self):
            self.task_group.start_soon(self.child)
            self.started()

        async def child(self):
            await asyncio.sleep(0)
            ended.set()

    start(Service()).join(GUARD)
    assert ended.is_set()


def test_a_subclass_may_set_its_loop_and_use_any_name(start):
    names = """
        sent enqueued dropped waiters pending requests ids socket sock outbox handler session context addr q client
        poll_ms target jobs futures queue bridge _jobs _loop _lock _queue _task _context
    """.split()

    class Service(LoopServiceThread):
        def __init__(self):
            super().__init__(name="loop")
            self.loop = None
            for name in names:
                setattr(self, name, name)

        async def run_async(self):
            self.loop = asyncio.get_running_loop()
            self.started()
            await forever()

    service = start(Service())
    service.wait_started(GUARD)
    assert service.call_sync(lambda: 1, timeout=GUARD) == 1
    assert service.submit(asyncio.sleep(0, 2)).result(GUARD) == 2
    assert [getattr(service, name) for name in names] == names


def test_a_failed_start_raises_from_an_exception_group(start):
    error = ValueError("no port")

    class Service(LoopServiceThread):
        async def run_async(self):
            raise error

    service = start(Service(name="loop"))
    with pytest.raises(RuntimeError, match="^loop failed$") as raised:
        service.wait_started(GUARD)
    assert type(service.exc) is ExceptionGroup and service.exc.exceptions == (error,)
    assert raised.value.__cause__ is service.exc is service.scope.exc


@pytest.mark.parametrize("end", [None, asyncio.CancelledError("mine")])
def test_ending_before_it_was_ready_is_an_error(start, end):
    class Service(LoopServiceThread):
        async def run_async(self):
            if end:
                raise end

    service = start(Service(name="loop"))
    with pytest.raises(RuntimeError, match="^loop failed$") as raised:
        service.wait_started(GUARD)
    assert "exited before it was ready" in str(raised.value.__cause__)


def test_a_child_that_fails_ends_the_service(service):
    async def fail():
        raise ValueError("child")

    service.call_sync(lambda: service.task_group.start_soon(fail))
    service.join(GUARD)
    assert [str(error) for error in service.exc.exceptions] == ["child"]
    with pytest.raises(RuntimeError, match="failed"):
        service.wait_started(GUARD)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_in_a_child_ends_the_service_and_closes_the_loop_quietly(caplog, kind):
    async def fail():
        raise kind("child")

    service, cleaned = LoopServiceThread(), threading.Event()
    service.start()
    service.wait_started(GUARD)
    future = service.submit(forever(left=cleaned))
    service.call_soon(lambda: service.task_group.start_soon(fail))
    service.join(GUARD)
    assert type(service.exc) is kind and cleaned.is_set() and future.cancelled()
    del service, future
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_reraise_reaches_the_excepthook_with_this_thread(start, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append((args.thread, args.exc_value)))

    class Service(LoopServiceThread):
        async def run_async(self):
            raise ValueError

    service = start(Service(reraise=True))
    service.join(GUARD)
    assert seen == [(service, service.exc)]


def test_a_foreign_cancel_of_the_whole_is_a_failure(service):
    def cancel():
        for task in asyncio.all_tasks():
            task.cancel()

    service.call_soon(cancel)
    service.join(GUARD)
    assert isinstance(service.exc, asyncio.CancelledError)


def test_a_foreign_cancel_beside_stop_is_none(service):
    def cancel():
        service.stop()
        for task in asyncio.all_tasks():
            task.cancel()

    service.call_soon(cancel)
    service.join(GUARD)
    assert service.stopped.is_set() and service.exc is None


# Stop


def test_stop_before_start_is_kept(start):
    ran = []

    class Service(LoopServiceThread):
        async def run_async(self):
            ran.append(self)
            await forever()

    service = Service(name="loop")
    service.stop()
    start(service).join(GUARD)
    assert ran == [] and service.stopped.is_set() and service.exc is None
    with pytest.raises(RuntimeError, match="failed"):
        service.wait_started(GUARD)


def test_stop_right_after_start_is_kept(start):
    for _ in range(100):
        service = LoopServiceThread()
        service.start()
        service.stop()
        service.join(GUARD)
        assert service.stopped.is_set() and service.exc is None


def test_stop_before_there_is_a_group_is_kept(start):
    class Service(LoopServiceThread):
        def run_service(self):
            self.stop()
            super().run_service()

        async def run_async(self):
            await forever()

    service = start(Service())
    service.join(GUARD)
    assert service.stopped.is_set() and service.exc is None


def test_stop_cancels_the_children_and_waits_for_their_cleanup(service):
    left = [threading.Event(), threading.Event()]
    entered = threading.Event()
    service.call_sync(lambda: service.task_group.start_soon(forever, None, left[0]))
    service.call_sync(lambda: service.task_group.start_soon(forever, entered, left[1]))
    assert entered.wait(GUARD)
    service.stop()
    service.join(GUARD)
    assert left[0].is_set() and left[1].is_set()


def test_a_service_may_stop_itself(start):
    send, receive = create_channel()

    class Worker(LoopServiceThread):
        async def run_async(self):
            self.started()
            async for item in receive:
                if item == "stop":
                    self.stop()

    worker = start(Worker())
    worker.wait_started(GUARD)
    send.send_nowait("hello")
    send.send_nowait("stop")
    assert worker.join_or_log(GUARD) and worker.exc is None


def test_a_failure_in_the_cleanup_after_stop_is_kept(start):
    class Service(LoopServiceThread):
        async def run_async(self):
            self.started()
            try:
                await forever()
            finally:
                raise ValueError("cleanup")

    service = start(Service())
    service.wait_started(GUARD)
    service.stop()
    service.join(GUARD)
    assert service.failed.is_set() and str(service.exc.exceptions[0]) == "cleanup"
    assert service.scope.exc is None and service.scope.reason == "stop"


def test_stop_from_a_signal_handler(service):
    before = signal.signal(signal.SIGALRM, lambda *_: service.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        service.join(GUARD)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert service.stopped.is_set()


def test_stop_while_other_threads_want_the_gil(start):
    go = threading.Event()

    def busy():
        while not go.is_set():
            pass

    rivals = [threading.Thread(target=busy) for _ in range(2)]
    for rival in rivals:
        rival.start()
    try:
        service = start(LoopServiceThread())
        service.wait_started(GUARD)
        service.stop()
        assert service.join_or_log(GUARD)
    finally:
        go.set()
        for rival in rivals:
            rival.join(GUARD)


def test_an_idle_service_does_not_wake_up(service):
    status = f"/proc/self/task/{service.native_id}/status"
    if not os.path.exists(status):
        pytest.skip("needs /proc")

    def switches():
        with open(status) as file:
            return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))

    before = switches()
    time.sleep(0.3)
    assert switches() <= before + 1  # once more if it was still on its way to sleep


# call_soon


def test_call_soon_keeps_the_order(service):
    seen = []
    for number in range(1000):
        service.call_soon(seen.append, number)
    service.call_sync(nothing, timeout=GUARD)
    assert seen == list(range(1000))


def test_call_soon_copies_the_context_of_each_call(service):
    variable = contextvars.ContextVar("variable")
    seen = []

    def call():
        seen.append(variable.get())
        variable.set("spoilt")

    with Blocked(service):
        for value in "abc":
            variable.set(value)
            service.call_soon(call)
        assert service.call_soon(call) is None
    service.call_sync(nothing, timeout=GUARD)
    assert seen == ["a", "b", "c", "c"] and variable.get() == "c"


@pytest.mark.parametrize("error", [ValueError("callback"), asyncio.CancelledError("callback")])
def test_a_callback_that_raises_goes_to_the_exception_handler_and_stops_no_other(service, error):
    handled, seen = [], []

    def fail():
        raise error

    service.call_sync(lambda: service.loop.set_exception_handler(lambda loop, context: handled.append(context)))
    with Blocked(service):
        service.call_soon(seen.append, 1)
        service.call_soon(fail)
        service.call_soon(seen.append, 2)
    service.call_sync(nothing, timeout=GUARD)
    assert seen == [1, 2] and [context["exception"] for context in handled] == [error]
    assert service.exc is None


def test_the_default_exception_handler_logs_a_callback(service, caplog):
    service.call_soon(lambda: 1 / 0)
    service.call_sync(nothing, timeout=GUARD)
    assert "loop" in caplog.text and "ZeroDivisionError" in caplog.text


def test_an_exit_in_a_callback_ends_the_service(service):
    def leave():
        raise SystemExit(4)

    service.call_soon(leave)
    service.join(GUARD)
    assert isinstance(service.exc, SystemExit)


def test_calls_that_call_again_leave_the_others_their_turn(service):
    others = threading.Event()

    def again():
        if not others.is_set():
            service.call_soon(again)

    service.call_soon(again)
    service.loop.call_soon_threadsafe(lambda: service.loop.call_soon(others.set))
    assert others.wait(GUARD)


def test_many_calls_share_one_wake(service):
    if not isinstance(service.loop, asyncio.BaseEventLoop):
        pytest.skip("such a loop cannot be counted on")
    wakes, wake = [], service.loop.call_soon_threadsafe

    def counted(*args, **kwargs):
        wakes.append(args)
        return wake(*args, **kwargs)

    with Blocked(service):
        service.loop.call_soon_threadsafe = counted
        for _ in range(100):
            service.call_soon(nothing)
    service.call_sync(nothing, timeout=GUARD)
    assert len(wakes) <= 2


def test_an_interrupted_call_soon_does_not_lose_the_wake(service):
    if not isinstance(service.loop, asyncio.BaseEventLoop):
        pytest.skip("such a loop cannot be interrupted at will")

    def interrupted(*args, **kwargs):
        del service.loop.call_soon_threadsafe
        raise KeyboardInterrupt

    service.loop.call_soon_threadsafe = interrupted
    with pytest.raises(KeyboardInterrupt):
        service.call_soon(nothing)
    assert service.call_sync(lambda: 1, timeout=GUARD) == 1


def test_an_overridden_call_soon_is_not_in_the_way_of_the_others(start):
    class Service(LoopServiceThread):
        def call_soon(self, fn, *args):
            raise NotImplementedError

    service = start(Service())
    service.wait_started(GUARD)
    assert service.call_sync(lambda: 1, timeout=GUARD) == service.submit(asyncio.sleep(0, 1)).result(GUARD) == 1


# No loop


def test_without_a_loop_every_way_in_is_refused(start):
    service = LoopServiceThread(name="loop")
    for _ in range(2):
        for call in service.call_soon, service.call_sync:
            with pytest.raises(RuntimeError, match="^loop is not running$"):
                call(nothing)
        coro = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="^loop is not running$"):
            service.submit(coro)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        service.stop()
        if not service.stopped.is_set():
            start(service).join(GUARD)


def test_a_refusal_names_the_cause(start):
    class Service(LoopServiceThread):
        async def run_async(self):
            raise ValueError

    service = start(Service())
    service.join(GUARD)
    with pytest.raises(RuntimeError, match="^loop is not running$") as raised:
        service.call_sync(nothing)
    assert raised.value.__cause__ is service.exc


# call_sync


def test_call_sync_runs_on_the_loop_thread_and_returns(service):
    assert service.call_sync(threading.get_ident, timeout=GUARD) == service.ident
    assert service.call_sync(lambda *args, **kwargs: (args, kwargs), 1, key=2) == ((1,), {"key": 2})


def test_call_sync_on_its_own_loop_is_a_plain_call(service):
    assert service.call_sync(lambda: service.call_sync(lambda: 1, timeout=0)) == 1


def test_call_sync_from_another_loop(service, start):
    other = start(LoopServiceThread())
    other.wait_started(GUARD)
    assert other.call_sync(lambda: service.call_sync(threading.get_ident)) == service.ident


@pytest.mark.parametrize("kind", [ValueError, StopIteration, asyncio.CancelledError, SystemExit, KeyboardInterrupt])
def test_call_sync_raises_the_same_object_and_the_service_goes_on(service, kind):
    error = kind("mine")

    def fail():
        raise error

    with pytest.raises(kind) as raised:
        service.call_sync(fail, timeout=GUARD)
    assert raised.value is error
    assert service.call_sync(lambda: 1, timeout=GUARD) == 1 and service.exc is None


def test_what_call_sync_raised_goes_with_its_last_reference(service):
    class Mine(Exception):
        pass

    def fail():
        raise Mine

    gc.collect()
    gc.disable()
    try:
        try:
            service.call_sync(fail)
        except Mine as error:
            gone = weakref.ref(error)
        service.call_sync(nothing)
        assert gone() is None
    finally:
        gc.enable()


def test_call_sync_has_the_context_of_its_caller(service):
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("mine")
    assert service.call_sync(variable.get) == "mine"
    service.call_sync(variable.set, "theirs")
    assert variable.get() == "mine"


def test_call_sync_hands_a_coroutine_over_as_it_is(service):
    coro = service.call_sync(asyncio.sleep, 0, "slept")
    assert service.submit(coro).result(GUARD) == "slept"


@pytest.mark.parametrize("timeout", [0.01, 0, -1])
def test_a_call_that_timed_out_does_not_run_later(service, timeout):
    ran = []
    with Blocked(service):
        with pytest.raises(TimeoutError, match="will not run"):
            service.call_sync(ran.append, 1, timeout=timeout)
    service.call_sync(nothing, timeout=GUARD)
    assert ran == []


def test_a_call_that_had_begun_says_so_when_it_times_out(service):
    go, ended = threading.Event(), threading.Event()
    with pytest.raises(TimeoutError, match="has begun"):
        service.call_sync(lambda: (go.wait(GUARD), ended.set()), timeout=0.5)
    go.set()
    assert ended.wait(GUARD)


def test_call_sync_refuses_nan_and_takes_any_length_of_time(service):
    with pytest.raises(ValueError):
        service.call_sync(nothing, timeout=float("nan"))
    assert service.call_sync(lambda: 1, timeout=float("inf")) == 1


def test_ctrl_c_ends_call_sync_and_the_call_does_not_run_later(service):
    ran = []

    def interrupt(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Blocked(service):
            with pytest.raises(KeyboardInterrupt):
                # Again and again: a wait does not see a signal that comes in the moment before it begins.
                signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
                service.call_sync(ran.append, 1)
    finally:
        signal.signal(signal.SIGALRM, before)
    service.call_sync(nothing, timeout=GUARD)
    assert ran == []


# submit


def test_submit_gives_a_future_of_the_result(service):
    assert service.submit(asyncio.sleep(0, "slept")).result(GUARD) == "slept"


def test_submit_takes_our_own_awaitables(service):
    send, receive = create_channel()
    future = service.submit(receive.receive())
    send.send_nowait("item")
    assert future.result(GUARD) == "item"


def test_what_a_submitted_coroutine_raises_goes_to_its_future_only(service):
    error = ValueError("mine")

    async def fail():
        raise error

    assert service.submit(fail()).exception(GUARD) is error
    assert service.is_alive() and service.exc is None


def test_submit_has_the_context_of_its_caller(service):
    variable = contextvars.ContextVar("variable", default="unset")

    async def get():
        return variable.get()

    variable.set("mine")
    assert service.submit(get()).result(GUARD) == "mine"


def test_submit_takes_coroutines_only(service):
    with pytest.raises(TypeError, match="coroutine"):
        service.submit(nothing)


def test_cancelling_the_future_cancels_the_task(service):
    entered, left = threading.Event(), threading.Event()
    future = service.submit(forever(entered, left))
    assert entered.wait(GUARD)
    assert future.cancel()
    assert left.wait(GUARD)
    assert service.is_alive()


def test_a_submission_that_was_cancelled_before_it_began_never_runs(service):
    entered = threading.Event()
    coro = forever(entered)
    with Blocked(service):
        assert service.submit(coro).cancel()
    service.call_sync(nothing, timeout=GUARD)
    assert not entered.is_set() and inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def test_a_task_that_is_cancelled_cancels_its_future(service):
    async def leave():
        raise asyncio.CancelledError

    with pytest.raises(concurrent.futures.CancelledError):
        service.submit(leave()).result(GUARD)


# The loop ends


def test_stop_cancels_what_was_submitted(service):
    entered, left = threading.Event(), threading.Event()
    future = service.submit(forever(entered, left))
    assert entered.wait(GUARD)
    service.stop()
    done, _ = concurrent.futures.wait([future], GUARD)
    assert done == {future} and future.cancelled() and left.is_set()


@pytest.mark.parametrize("kind", [LoopServiceThread, OwnLoop])
def test_calls_that_have_not_begun_when_the_loop_ends_get_the_cause(start, kind):
    service = start(kind())
    service.wait_started(GUARD)
    outcomes, ran, coro = [], [], forever()
    queued = threading.Event()

    class Queue(collections.deque):
        def append(self, job):
            super().append(job)
            if len(self) == 3:
                queued.set()

    def leave():
        raise SystemExit(4)

    def call():
        try:
            service.call_sync(ran.append, 1)
        except RuntimeError as error:
            outcomes.append(error)

    caller = threading.Thread(target=call)
    with Blocked(service):
        service._service_jobs = Queue()
        service.call_soon(leave)
        future = service.submit(coro)
        caller.start()
        assert queued.wait(GUARD)
    caller.join(GUARD)
    assert str(outcomes[0]) == "loop is not running" and outcomes[0].__cause__ is service.exc
    assert concurrent.futures.wait([future], GUARD).done and future.cancelled()
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED and ran == []


def test_who_is_let_go_before_the_loop_is_closed_is_not_taken_in_again(service):
    def leave():
        asyncio.get_running_loop().run_in_executor(None, go.wait, 2 * GUARD)  # while that lasts, it is not closed
        raise SystemExit(4)

    def again(_):
        try:
            service.call_soon(nothing)
        except RuntimeError as error:
            refused.append(str(error))
        told.set()

    go, told, refused = threading.Event(), threading.Event(), []
    with Blocked(service):
        service.call_soon(leave)
        service.submit(forever()).add_done_callback(again)
    assert told.wait(GUARD) and not service.stopped.is_set()
    go.set()
    assert refused == ["loop is not running"]


def test_a_call_in_the_moment_in_which_the_loop_ends_is_refused(service):
    class Queue(collections.deque):
        def append(self, job):
            service.stop()
            service.join(GUARD)
            super().append(job)

    service._service_jobs = Queue()
    service._service_woken = True  # by another call, a moment ago
    with pytest.raises(RuntimeError, match="loop is not running"):
        service.call_sync(nothing, timeout=GUARD)


def test_everything_ends_when_calls_race_with_stop():
    for _ in range(30):
        service = LoopServiceThread()
        service.start()
        service.wait_started(GUARD)
        begin, futures = threading.Barrier(5), []

        def call():
            begin.wait(GUARD)
            with contextlib.suppress(RuntimeError):
                while True:
                    futures.append(service.submit(asyncio.sleep(0)))
                    service.call_soon(nothing)
                    service.call_sync(nothing)

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        begin.wait(GUARD)
        service.stop()
        for caller in callers:
            caller.join(GUARD)
            assert not caller.is_alive()
        service.join(GUARD)
        assert not concurrent.futures.wait(futures, GUARD).not_done


@pytest.mark.parametrize("submitted", [False, True])
def test_a_task_that_ignores_its_cancel_is_named_with_its_place(service, caplog, submitted):
    let_go, entered = asyncio.Event(), threading.Event()

    async def ignore_it_here():
        asyncio.current_task().set_name("stubborn")
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                entered.set()
                await let_go.wait()

    async def work():
        await ignore_it_here()

    if submitted:
        service.submit(work())
    else:
        service.call_sync(lambda: service.task_group.start_soon(work))
    assert entered.wait(GUARD)
    loop = service.loop
    service.stop()
    assert service.join_or_log(0.05) is False
    assert "and its task 'stubborn' at" in caplog.text and "in ignore_it_here" in caplog.text
    loop.call_soon_threadsafe(let_go.set)
    assert service.join_or_log(GUARD) is True


def test_a_blocking_job_of_the_executor_keeps_no_caller_waiting(start, caplog):
    go, entered = threading.Event(), threading.Event()

    def hang():
        entered.set()
        go.wait(GUARD)

    class Service(LoopServiceThread):
        async def run_async(self):
            asyncio.get_running_loop().run_in_executor(None, hang)
            self.started()
            await forever()

    service = start(Service(name="loop"))
    service.wait_started(GUARD)
    assert entered.wait(GUARD)
    future = service.submit(forever())
    service.stop()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(GUARD)
    with pytest.raises(RuntimeError, match="loop is not running"):
        service.call_sync(nothing, timeout=GUARD)
    assert service.join_or_log(0.05) is False
    assert "loop (stopping)" in caplog.text and "runners.py" in caplog.text
    go.set()
    assert service.join_or_log(GUARD) is True


def test_a_failure_is_told_before_the_loop_is_closed(start):
    go = threading.Event()

    class Service(LoopServiceThread):
        async def run_async(self):
            asyncio.get_running_loop().run_in_executor(None, go.wait, GUARD)
            raise ValueError

    service = start(Service(name="loop"))
    with pytest.raises(RuntimeError, match="^loop failed$"):
        service.wait_started(GUARD)
    assert not service.stopped.is_set()
    go.set()


def test_a_subclass_that_runs_a_loop_of_its_own_is_served_too(start):
    service = start(OwnLoop())
    service.wait_started(GUARD)
    assert service.call_sync(lambda: 1, timeout=GUARD) == 1
    loop, future = service.loop, service.submit(asyncio.sleep(0, 1))
    assert future.result(GUARD) == 1
    loop.call_soon_threadsafe(loop.stop)
    service.join(GUARD)
    with pytest.raises(RuntimeError, match="loop is not running"):
        service.call_soon(nothing)


def test_what_a_dying_loop_forgot_is_cancelled(caplog):
    entered, service = threading.Event(), OwnLoop()
    service.start()
    service.wait_started(GUARD)
    future = service.submit(forever(entered))
    assert entered.wait(GUARD)
    service.call_soon(service.loop.stop)
    assert concurrent.futures.wait([future], GUARD).done and future.cancelled()
    service.join(GUARD)
    del service, future
    gc.collect()
    assert "Task was destroyed but it is pending" in caplog.text  # asyncio says so, and is right


def test_a_loop_that_is_closed_refuses(loop_factory):
    other = LoopServiceThread()
    other.loop = loop_factory()
    other.loop.close()
    coro = asyncio.sleep(0)
    for call in lambda: other.call_soon(nothing), lambda: other.call_sync(nothing), lambda: other.submit(coro):
        with pytest.raises(RuntimeError, match="loop is not running"):
            call()
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_a_loop_that_is_closed_keeps_nothing_of_what_it_refused(loop_factory):
    class Thing:
        pass

    other, thing = LoopServiceThread(), Thing()
    other.loop = loop_factory()
    other.loop.close()
    gone = weakref.ref(thing)
    with pytest.raises(RuntimeError, match="loop is not running"):
        other.call_soon(id, thing)
    del thing
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_finished_calls_leave_nothing_behind(service):
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    service.call_soon(id, thing)
    service.call_sync(id, thing)
    service.submit(asyncio.sleep(0, thing)).result(GUARD)
    del thing
    service.call_sync(nothing)
    service.call_sync(nothing)
    gc.collect()
    assert gone() is None


def test_a_task_factory_that_fails_fails_the_submission(service):
    def factory(loop, coro, **kwargs):
        raise ValueError("no tasks today")

    async def work():
        pytest.fail("it must not run")

    service.call_sync(service.loop.set_task_factory, factory)
    with pytest.raises(ValueError, match="no tasks today"):
        service.submit(work()).result(10)
    service.call_sync(service.loop.set_task_factory, None)


def test_fail_is_told_of_one_failure_once(start):
    class Logged(LoopServiceThread):
        failures = 0

        def fail(self, exc):
            self.failures += 1
            super().fail(exc)

        async def run_async(self):
            raise ValueError("no")

    service = start(Logged(name="logged"))
    service.join(10)
    assert service.failures == 1


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with 3.12")
def test_a_submission_that_is_done_eagerly_has_its_result(service, loop_factory):
    async def work():
        return "done"

    if loop_factory is not asyncio.new_event_loop:
        pytest.skip("uvloop takes no eager tasks")
    service.call_sync(service.loop.set_task_factory, asyncio.eager_task_factory)
    assert service.submit(work()).result(10) == "done"
    service.call_sync(service.loop.set_task_factory, None)
