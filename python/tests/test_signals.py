"""Ctrl-C ends every blocking wait, and a signal handler may call the very object that it interrupted.

Handlers run in the main thread, between two of its bytecodes or inside a wait. Where it matters between which, a trace
function stands in for the signal: it runs at one bytecode after the other, as a handler would.
"""

import asyncio
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time

import pytest

from microio import BrokenResourceError, CloseScope, RequestRegistry, WorkTracker, create_channel

GUARD = 10  # seconds: reached only by a test that fails

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def no_deadlock():
    """A deadlock of the main thread stops no test run: it ends it, with a traceback."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def alarm():
    """`alarm(handler, after, every=0)` has a signal handler called; it returns the list of its calls so far."""
    calls = []

    def alarm(handler, after, every=0.0):
        def handle(*_):
            calls.append(time.monotonic())
            try:
                handler()
            except BaseException:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, after, every)
        return calls

    previous = signal.getsignal(signal.SIGALRM)
    yield alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


# Ctrl-C


def interrupted(wait):
    """Presses Ctrl-C while the main thread is in `wait`: whether that ended the wait, within a second."""
    pressed, ended = [], []

    def press():
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    presser = threading.Timer(0.05, press)
    with pytest.raises(KeyboardInterrupt):
        try:
            presser.start()  # on a slow machine even this may be what is interrupted
            wait()
        finally:
            ended.append(time.monotonic())
            presser.join()  # a wait that was over too early is interrupted here
    presser.join()
    return pressed[0] <= ended[0] < pressed[0] + 1


@pytest.mark.parametrize("timeout", [None, 60])
def test_ctrl_c_ends_a_wait_for_the_close(timeout):
    scope = CloseScope()
    assert interrupted(lambda: scope.wait(timeout))
    assert scope.close() is True
    assert scope.wait(timeout) is True


@pytest.mark.parametrize("timeout", [None, 60])
def test_ctrl_c_ends_a_wait_for_idleness(timeout):
    tracker = WorkTracker()
    tracker.add()
    assert interrupted(lambda: tracker.wait_idle(timeout))
    tracker.done()
    assert tracker.wait_idle(timeout) is True


@pytest.mark.parametrize("timeout", [None, 60])
def test_ctrl_c_ends_a_wait_for_work(timeout):
    tracker = WorkTracker()
    assert interrupted(lambda: tracker.busy.wait(timeout))
    tracker.add()
    assert tracker.busy.wait(timeout) is True


@pytest.mark.parametrize("timeout", [None, 60])
def test_ctrl_c_ends_a_wait_for_a_reply(timeout):
    registry = RequestRegistry()
    waiter = registry.register(1)
    assert interrupted(lambda: registry.wait(1, waiter, timeout))
    assert len(registry) == 0 and registry.resolve(1, "late") is False
    reply = registry.reply(1)
    assert interrupted(lambda: reply.wait(timeout))
    assert len(registry) == 0 and reply.resolve("late") is False


@pytest.mark.parametrize("timeout", [None, 60])
def test_ctrl_c_ends_a_request(timeout):
    registry, handles = RequestRegistry(), []
    assert interrupted(lambda: registry.request(1, handles.append, timeout))
    assert len(registry) == 0 and handles[0].resolve("late") is False
    assert registry.request(1, lambda reply: reply.resolve("reply")) == "reply"


@pytest.mark.parametrize("timeout", [None, 60])
def test_ctrl_c_ends_a_get(timeout):
    waiter = RequestRegistry().register(1)
    assert interrupted(lambda: waiter.get(timeout=timeout))
    waiter.put("for the next")
    assert waiter.get(timeout=timeout) == "for the next"


@pytest.mark.parametrize("timeout", [None, 60])
def test_ctrl_c_ends_a_put(timeout):
    waiter = RequestRegistry().register(1)
    waiter.put("first")
    assert interrupted(lambda: waiter.put("second", timeout=timeout))
    assert waiter.get_nowait() == "first"
    assert waiter.empty()


def test_ctrl_c_under_asyncio_run_ends_a_receive(loop_factory):
    _, receive = create_channel()
    ended = []

    async def main():
        try:
            await receive.receive()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    def wait():
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    assert interrupted(wait)
    assert ended == ["cancelled"]


def test_an_exception_set_from_another_thread_comes_when_the_wait_is_over():
    scope, waiting, ended = CloseScope(), threading.Event(), []

    def wait():
        try:
            waiting.set()
            scope.wait(GUARD)
            ended.append("not interrupted")
        except ZeroDivisionError:
            ended.append("interrupted")

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait(GUARD)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(ZeroDivisionError))
    scope.close()
    thread.join()
    assert ended == ["interrupted"]


# handlers during a wait


def waits():
    """Every blocking wait, each on a fresh object: its name, the wait, what it returns when nothing comes."""
    tracker = WorkTracker()
    tracker.add()
    registry = RequestRegistry()
    full = registry.register("full")
    full.put("first")
    return {
        "scope": lambda timeout: CloseScope().wait(timeout),
        "idle": lambda timeout: tracker.wait_idle(timeout),
        "busy": lambda timeout: WorkTracker().busy.wait(timeout),
        "wait": lambda timeout: registry.wait(1, registry.register(1), timeout),
        "request": lambda timeout: registry.request(2, lambda reply: None, timeout),
        "get": lambda timeout: registry.register(3).get(timeout=timeout),
        "put": lambda timeout: full.put("second", timeout=timeout),
    }


@pytest.mark.parametrize("name", waits())
def test_a_handler_that_returns_does_not_end_or_prolong_the_wait(alarm, name):
    wait = waits()[name]
    calls = alarm(lambda: None, 0.01, every=0.01)
    began = time.monotonic()
    try:
        assert wait(0.2) is False
    except Exception as error:
        assert type(error).__name__ in ("TimeoutError", "Empty", "Full")
    took = time.monotonic() - began
    assert len(calls) > 1
    assert 0.19 < took < 1


@pytest.mark.parametrize("name", waits())
def test_a_handler_that_raises_ends_the_wait(alarm, name):
    def handler():
        raise ZeroDivisionError

    alarm(handler, 0.05)
    with pytest.raises(ZeroDivisionError):
        waits()[name](None)


def test_a_handler_closes_the_scope_that_is_waited_for(alarm):
    scope = CloseScope()
    alarm(lambda: scope.fail(ValueError("terminated")), 0.05)
    assert scope.wait(GUARD) is True
    assert scope.reason == "terminated"


def test_a_handler_ends_the_work_that_is_waited_for(alarm):
    tracker = WorkTracker()
    tracker.add()
    alarm(tracker.done, 0.05)
    assert tracker.wait_idle(GUARD) is True


def test_a_handler_begins_the_work_that_is_waited_for(alarm):
    tracker = WorkTracker()
    alarm(tracker.add, 0.05)
    assert tracker.busy.wait(GUARD) is True


def test_a_handler_resolves_the_request_that_is_waited_for(alarm):
    registry = RequestRegistry()
    alarm(lambda: registry.resolve(1, "from the handler"), 0.05)
    assert registry.wait(1, registry.register(1), GUARD) == "from the handler"


def test_a_handler_fails_all_requests_with_a_keyboard_interrupt(alarm):
    registry, cause = RequestRegistry(), KeyboardInterrupt("terminated")
    alarm(lambda: registry.fail_all(cause), 0.05)
    with pytest.raises(KeyboardInterrupt) as caught:
        registry.request(1, lambda reply: None, GUARD)
    assert caught.value is cause
    assert len(registry) == 0


def test_a_handler_closes_the_registry_that_is_waited_for(alarm):
    registry, cause = RequestRegistry(), ValueError("terminated")
    alarm(lambda: registry.close(cause), 0.05)
    with pytest.raises(ValueError) as caught:
        registry.request(1, lambda reply: None, GUARD)
    assert caught.value is cause
    with pytest.raises(BrokenResourceError):
        registry.register(1)


def test_a_handler_fills_and_empties_the_waiter_that_is_waited_for(alarm):
    waiter = RequestRegistry().register(1)
    alarm(lambda: waiter.put("from the handler"), 0.05)
    assert waiter.get(timeout=GUARD) == "from the handler"
    waiter.put("first")
    alarm(waiter.get_nowait, 0.05)
    waiter.put("second", timeout=GUARD)
    assert waiter.get_nowait() == "second"


def test_a_handler_wakes_a_loop_that_sleeps(alarm, run):
    """It interrupts the loop's select: a plain `call_soon` there would wake nobody."""

    async def main():
        send, receive = create_channel()
        alarm(lambda: send.send_nowait("from the handler"), 0.05)
        assert await asyncio.wait_for(receive.receive(), GUARD) == "from the handler"
        scope = CloseScope()
        alarm(scope.close, 0.05)
        assert await asyncio.wait_for(scope.wait_async(), GUARD) is True
        tracker = WorkTracker()
        tracker.add()
        alarm(tracker.done, 0.05)
        await asyncio.wait_for(tracker.idle(), GUARD)
        registry = RequestRegistry()
        alarm(lambda: registry.resolve(1, "from the handler"), 0.05)
        assert await registry.wait_async(1, registry.register(1), GUARD) == "from the handler"

    began = time.monotonic()
    run(main())
    assert time.monotonic() - began < GUARD / 2


# handlers that re-enter


def at_every_bytecode(make, operation, handler):
    """Runs `operation(make())` again and again, with `handler` called at its first bytecode, then its second, ...

    Yields what was made after each round; in the last the handler was not called.
    """
    called, step = True, 0
    while called:
        thing, called, count = make(), False, 0

        def trace(frame, event, arg):
            nonlocal called, count
            frame.f_trace_opcodes = True
            if event == "opcode":
                count += 1
                if count > step and not called:
                    called = True
                    handler(thing)
            return trace

        sys._getframe().f_trace_opcodes = True  # 3.12 and 3.13 need to know before settrace()
        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            operation(thing)
        finally:
            sys.settrace(previous)
        yield thing
        step += 1
    assert step > 1


def busy_tracker():
    tracker = WorkTracker()
    tracker.add()
    return tracker


TRACKER = {
    "add": (WorkTracker, lambda tracker: tracker.add()),
    "done": (busy_tracker, lambda tracker: tracker.done()),
    "busy": (WorkTracker, lambda tracker: tracker.busy),
    "is_set": (WorkTracker, lambda tracker: tracker.busy.is_set()),
    "wait": (WorkTracker, lambda tracker: tracker.busy.wait(0)),
    "wait_idle": (busy_tracker, lambda tracker: tracker.wait_idle(0)),
    "repr": (busy_tracker, lambda tracker: repr(tracker.busy)),
}


@pytest.mark.parametrize("name", TRACKER)
def test_a_handler_may_add_and_end_work_at_any_point(name):
    def handler(tracker):
        before = tracker.count
        tracker.add()
        assert tracker.count == before + 1 and tracker.busy.is_set()
        tracker.done()
        assert tracker.count == before and tracker.busy.is_set() is bool(before)

    make, run = TRACKER[name]
    without = make()
    run(without)
    for tracker in at_every_bytecode(make, run, handler):
        assert tracker.count == without.count
        assert tracker.busy.is_set() is bool(tracker.count)


def test_a_handler_may_begin_the_work_at_any_point_of_the_wait_for_it():
    """Up to some point the wait sees the work; after that it is over."""

    def wait(tracker):
        tracker.waited = tracker.busy.wait(0.01)

    waited = [tracker.waited for tracker in at_every_bytecode(WorkTracker, wait, WorkTracker.add)]
    assert waited[0] is True and waited[-1] is False
    assert waited == sorted(waited, reverse=True)


def test_a_handler_may_answer_at_any_point_of_a_request():
    def run(registry):
        def send(reply):
            handles.append(reply)

        registry.handles = handles = []
        try:
            registry.answer = registry.request(1, send, 0.01)
        except TimeoutError:
            registry.answer = "timeout"

    def handler(registry):
        registry.told = registry.resolve(1, "from the handler")

    def make():
        registry = RequestRegistry()
        registry.told = None
        return registry

    outcomes = set()
    for registry in at_every_bytecode(make, run, handler):
        assert (registry.answer == "from the handler") is (registry.told is True)
        assert len(registry) == 0
        outcomes.add(registry.told)
    assert True in outcomes


def test_handlers_call_what_they_interrupt(alarm):
    """A handler every 0.2 ms does what the main thread does, to the same objects: no deadlock, nothing out of step."""
    tracker, registry, (send, receive) = WorkTracker(), RequestRegistry(), create_channel()

    def handler():
        tracker.add()
        assert tracker.busy.is_set()
        registry.reply(object()).resolve(None)
        send.send_nowait("handler")
        send.stats()
        tracker.done()

    calls = alarm(handler, 0.0002, every=0.0002)
    until, rounds = time.monotonic() + 0.5, 0
    while time.monotonic() < until:
        with tracker.track():
            assert tracker.busy.is_set()
            assert registry.request(rounds, lambda reply: reply.resolve(rounds)) == rounds
            send.send_nowait("main")
            receive.stats()
            receive.drain_nowait(1)
        tracker.wait_idle(0)
        tracker.busy.wait(0)
        rounds += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(calls) > 10
    assert tracker.count == 0 and not tracker.busy.is_set()
    assert len(registry) == 0
    stats = send.stats()
    assert stats.sent == rounds + len(calls) == stats.received + stats.queued
    assert len(receive.drain_nowait()) == stats.queued


def test_the_first_close_wins_also_against_a_handler(alarm):
    """`close()` in the main thread, `fail()` in a handler: one of them is the first, and the scope tells which."""
    scopes = [CloseScope() for _ in range(5000)]
    current, told = [scopes[0]], []

    def handler():
        told.append((current[0], current[0].fail(ValueError("handler"))))

    alarm(handler, 0.0002, every=0.0002)
    first = []
    for scope in scopes:
        current[0] = scope
        first.append(scope.close("main"))
    signal.setitimer(signal.ITIMER_REAL, 0)
    for scope, closed in zip(scopes, first, strict=True):
        assert scope.reason == ("main" if closed else "handler")
    for scope, closed in told:
        if closed:
            assert scope.reason == "handler" and scope.failed


def test_a_handler_sends_while_the_loop_is_busy(alarm, run):
    async def main():
        send, receive = create_channel()
        calls = alarm(lambda: send.send_nowait("handler"), 0.0005, every=0.0005)
        received = {"main": 0, "handler": 0}

        async def count():
            async for item in receive:
                received[item] += 1

        counting = asyncio.create_task(count())
        for round in range(3000):
            send.send_nowait("main")
            if round % 3 == 0:
                await asyncio.sleep(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send.close()
        await asyncio.wait_for(counting, GUARD)
        assert received == {"main": 3000, "handler": len(calls)}

    run(main())
