"""Bad input: every public name is called with what it should refuse, and when and where it should not be called.

The answer is a TypeError, a ValueError or an error of the package that says what was wrong, or what the documentation
says; never a crash, a hang, a panic, or something lost. Which test covers which name is in `COVERED`.
"""

import asyncio
import copy
import gc
import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

import microio
from microio import (
    ActorCore,
    BrokenResourceError,
    CancelScope,
    ChannelStats,
    ClosedResourceError,
    CloseScope,
    EndOfStream,
    LoopServiceThread,
    Mailbox,
    ObjectReceiveChannel,
    ObjectSendChannel,
    PriorityMailbox,
    ReplyHandle,
    RequestRegistry,
    ScopeGroup,
    ServiceGroup,
    ServiceThread,
    TaskGroup,
    TaskStatus,
    WorkTracker,
    checkpoint,
    checkpoint_if_cancelled,
    create_channel,
    create_task_group,
    current_cancel_scope,
    fail_after,
    move_on_after,
    sleep,
)

COVERED = {
    "ActorCore": ["test_a_wrong_type_is_refused", "test_what_is_closed_stays_closed", "test_run_is_not_run_twice"],
    "BrokenResourceError": ["test_errors_are_exceptions_like_others"],
    "CancelScope": ["test_a_time_is_a_real_number", "test_a_scope_may_end_at_any_time", "test_weird_reasons_are_kept"],
    "ChannelStats": ["test_stats_can_be_copied"],
    "CloseScope": ["test_a_time_is_a_real_number", "test_weird_reasons_are_kept", "test_what_is_closed_stays_closed"],
    "ClosedResourceError": ["test_errors_are_exceptions_like_others"],
    "EndOfStream": ["test_errors_are_exceptions_like_others"],
    "LoopServiceThread": ["test_a_service_is_not_called_at_a_wrong_time", "test_jobs_of_a_wrong_kind_are_refused"],
    "Mailbox": ["test_a_count_is_an_integer", "test_what_is_closed_stays_closed", "test_a_bad_end_is_not_kept"],
    "ObjectReceiveChannel": ["test_a_count_is_an_integer", "test_endpoints_are_made_by_create_channel_only"],
    "ObjectSendChannel": ["test_endpoints_are_made_by_create_channel_only", "test_a_wrong_type_is_refused"],
    "PriorityMailbox": ["test_priorities_are_ordered", "test_a_gate_may_do_anything", "test_a_count_is_an_integer"],
    "ReplyHandle": ["test_a_time_is_a_real_number", "test_a_wrong_type_is_refused", "test_keys_may_misbehave"],
    "RequestRegistry": ["test_keys_may_misbehave", "test_unhashable_keys_are_refused", "test_a_key_is_pending_once"],
    "ScopeGroup": ["test_weird_reasons_are_kept", "test_scopes_are_entered_and_left_by_tasks"],
    "ServiceGroup": ["test_a_time_is_a_real_number", "test_a_group_of_anything_names_what_is_wrong"],
    "ServiceThread": ["test_names_may_be_anything", "test_a_service_is_not_called_at_a_wrong_time"],
    "TaskGroup": ["test_a_task_group_is_not_called_at_a_wrong_time", "test_names_may_be_anything"],
    "TaskStatus": ["test_started_is_called_once"],
    "WorkTracker": ["test_a_time_is_a_real_number", "test_what_is_closed_stays_closed"],
    "checkpoint": ["test_an_awaitable_is_awaited_once", "test_an_awaitable_needs_a_loop"],
    "checkpoint_if_cancelled": ["test_checks_without_a_loop_find_nothing"],
    "create_channel": ["test_a_capacity_is_a_positive_integer", "test_a_wrong_type_is_refused"],
    "create_task_group": ["test_a_task_group_is_not_called_at_a_wrong_time"],
    "current_cancel_scope": ["test_checks_without_a_loop_find_nothing"],
    "fail_after": ["test_a_time_is_a_real_number"],
    "move_on_after": ["test_a_time_is_a_real_number"],
    "sleep": ["test_a_time_is_a_real_number", "test_an_awaitable_is_awaited_once"],
}

GUARD = 30  # seconds: reached only by a test that fails

set_hypothesis_home_dir(Path(__file__).parents[2] / "target" / "hypothesis")
quickly = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_every_public_name_is_covered():
    public = {name for name, value in vars(microio).items() if name[0] != "_" and callable(value)}
    assert public == set(COVERED)
    assert [name for tests in COVERED.values() for name in tests if name not in globals()] == []


def outcome(call, *args):
    """What it returns, or the error that it raises."""
    try:
        return call(*args)
    except Exception as error:
        return error


# numbers

HUGE = [1e300, 10**400, -(10**400), 2**63, -(2**63) - 1, 2**64, 9.3e9, math.inf, -math.inf, math.nan, -0.0, 5e-324]
NUMBERS = st.one_of(
    st.sampled_from(HUGE), st.integers(), st.floats(), st.booleans(), st.fractions(), st.decimals(allow_nan=True)
)
THINGS = st.one_of(st.text(), st.binary(), st.just([]), st.just({}), st.complex_numbers(), st.builds(object))


def as_seconds(value):
    """What a time is taken for, or the type of the error."""
    if isinstance(value, str | bytes | list | dict | complex) or type(value) is object:
        return TypeError
    try:
        seconds = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except ValueError:  # a signalling nan
        return ValueError
    return ValueError if math.isnan(seconds) else seconds


def closed_scope():
    scope = CloseScope()
    scope.close()
    return scope


def cancelled_scope():
    scope = CancelScope()
    scope.cancel()
    return scope


def busy_tracker():
    tracker = WorkTracker()
    tracker.add()
    return tracker


BUSY = busy_tracker()


def answered(wait):
    """Waits, in one of its ways, for a request that is answered; nothing may be pending after that."""
    registry = RequestRegistry()
    reply = registry.reply("key")
    registry.resolve("key", "value")
    try:
        return wait(registry, reply.waiter, reply)
    finally:
        assert len(registry) == 0


async def resolve(reply):
    reply.resolve("value")


def scope_with(attribute, value):
    scope = CancelScope()
    setattr(scope, attribute, value)
    return scope


def ended_service():
    service = ServiceThread(target=lambda service: service.started())
    service.start()
    service.join()
    return service


# Each of them is over before it begins to wait: it must not matter how long it would.
TIMES = {
    "CloseScope.wait": lambda time: closed_scope().wait(time),
    "WorkTracker.wait_idle": lambda time: WorkTracker().wait_idle(time),
    "WorkTracker.busy.wait": lambda time: BUSY.busy.wait(time),
    "CancelScope.wait": lambda time: cancelled_scope().wait(time),
    "move_on_after": lambda time: move_on_after(time),
    "fail_after": lambda time: fail_after(time),
    "CancelScope(delay)": lambda time: CancelScope(delay=time),
    "CancelScope(deadline)": lambda time: CancelScope(deadline=time),
    "CancelScope.delay": lambda time: scope_with("delay", time),
    "CancelScope.deadline": lambda time: scope_with("deadline", time),
    "sleep": lambda time: sleep(time),
    "ServiceThread.wait_started": lambda time: ENDED.wait_started(time) is None,
    "ServiceThread.join_or_log": lambda time: ENDED.join_or_log(time),
    "ServiceGroup.wait_started": lambda time: ServiceGroup(ENDED).wait_started(time),
    "ServiceGroup.join_or_log": lambda time: ServiceGroup(ENDED).join_or_log(time),
    "ServiceGroup.stop_join": lambda time: ServiceGroup(ENDED).stop_join(time),
}
# As queue.Queue does, these refuse a negative timeout.
TIMEOUTS = {
    "RequestRegistry.wait": lambda time: answered(lambda registry, waiter, reply: registry.wait("key", waiter, time)),
    "RequestRegistry.wait_async": lambda time: answered(
        lambda registry, waiter, reply: asyncio.run(registry.wait_async("key", waiter, time))
    ),
    "RequestRegistry.request": lambda time: RequestRegistry().request("key", lambda reply: reply.resolve(1), time),
    "RequestRegistry.request_async": lambda time: asyncio.run(
        RequestRegistry().request_async("key", lambda reply: reply.resolve(1), time)
    ),
    "RequestRegistry.request_async, awaited send": lambda time: asyncio.run(
        RequestRegistry().request_async("key", resolve, time)
    ),
    "ReplyHandle.wait": lambda time: answered(lambda registry, waiter, reply: reply.wait(time)),
    "Waiter.get": lambda time: answered(lambda registry, waiter, reply: waiter.get(True, time)),
    "Waiter.put": lambda time: RequestRegistry().register("key").put("item", True, time) is None,
}
ENDED = ended_service()


@pytest.mark.parametrize("way", TIMES)
@quickly
@given(time=st.one_of(NUMBERS, THINGS))
def test_a_time_is_a_real_number(way, time):
    seconds, result = as_seconds(time), outcome(TIMES[way], time)
    if isinstance(seconds, type):
        assert type(result) is seconds, (time, result)
        assert "number of seconds" in str(result) or "signaling NaN" in str(result)
    else:
        assert not isinstance(result, Exception), (time, result)
        if isinstance(result, CancelScope):
            assert seconds in (result.delay, result.deadline)
            assert len(repr(result)) < 100


@pytest.mark.parametrize("way", TIMEOUTS)
@quickly
@given(time=st.one_of(NUMBERS, THINGS))
def test_a_timeout_of_a_request_is_not_negative(way, time):
    seconds, result = as_seconds(time), outcome(TIMEOUTS[way], time)
    if isinstance(seconds, type):
        assert type(result) is seconds, (time, result)
    elif seconds < 0:
        assert type(result) is ValueError and "non-negative" in str(result), (time, result)
    else:
        assert not isinstance(result, Exception), (time, result)


@pytest.mark.parametrize("time", [None, *HUGE, True, Decimal(2), Fraction(1, 2)])
def test_no_time_is_for_ever(time):
    if as_seconds(time if time is not None else math.inf) is ValueError:
        return
    for way in TIMES:
        if way not in ("sleep", *(way for way in TIMES if way.startswith("CancelScope."))) or time is not None:
            assert not isinstance(outcome(TIMES[way], time), Exception), way


@quickly
@given(time=NUMBERS.filter(lambda time: as_seconds(time) is not ValueError and as_seconds(time) <= 0))
def test_a_time_that_is_up_waits_for_nothing(time):
    """What it waits for never comes."""
    assert CloseScope().wait(time) is False
    assert CancelScope().wait(time) is False
    assert busy_tracker().wait_idle(time) is False
    assert WorkTracker().busy.wait(time) is False
    service = ServiceThread(target=print)
    with pytest.raises(TimeoutError, match="did not become ready"):
        service.wait_started(time)
    if as_seconds(time) == 0:
        registry = RequestRegistry()
        with pytest.raises(TimeoutError):
            registry.request("key", lambda reply: None, time)
        with pytest.raises(TimeoutError):
            asyncio.run(registry.request_async("key", lambda reply: None, time))
        assert len(registry) == 0


@pytest.mark.parametrize("time", [1e300, 10**400, math.inf, 2**63, 9.3e9, Decimal("1e30")])
def test_a_long_time_is_waited_in_any_thread(time):
    """Main thread and others wait in different ways; both end when what they wait for comes."""
    for in_thread in False, True:
        scope, registry = CloseScope(), RequestRegistry()
        closer = threading.Timer(0.01, lambda: (scope.close(), registry.resolve("key", "value")))
        closer.start()
        with ThreadPoolExecutor(1) as pool:
            call = (lambda *args: pool.submit(*args).result(GUARD)) if in_thread else (lambda fn, *args: fn(*args))
            assert call(scope.wait, time) is True
            assert call(registry.request, "other", lambda reply: reply.resolve("value"), time) == "value"
        closer.join()


@pytest.mark.parametrize("attribute", ["delay", "deadline", "deadline set inside"])
@quickly
@given(time=NUMBERS.filter(lambda time: as_seconds(time) is not ValueError and not 0 < as_seconds(time) < 1e6))
def test_a_scope_may_end_at_any_time(run, attribute, time):
    async def main():
        inside = attribute not in ("delay", "deadline")
        with CancelScope() if inside else CancelScope(**{attribute: time}) as scope:
            if inside:
                scope.deadline = time
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert scope.cancelled_caught is scope.timed_out is (as_seconds(time) <= 0)

    run(main())


COUNTS = st.one_of(st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, -(10**400)]), st.integers())


@quickly
@given(capacity=st.one_of(COUNTS, st.booleans()))
def test_a_capacity_is_a_positive_integer(capacity):
    result = outcome(lambda: create_channel(capacity=capacity))
    if capacity < 1:
        assert type(result) is ValueError and "capacity must be at least 1" in str(result)
        return
    send, _ = result
    for item in range(min(capacity, 3)):
        send.send_nowait(item)
    if capacity < 4:
        for item in range(capacity - min(capacity, 3)):
            send.send_nowait(item)
        with pytest.raises(asyncio.QueueFull):
            send.send_nowait(None)
    assert send.stats().queued == min(capacity, 3)


@quickly
@given(count=st.one_of(COUNTS, st.booleans()))
def test_a_count_is_an_integer(count):
    for make in Mailbox, PriorityMailbox, lambda: ActorCore(print):
        mailbox = make()
        for item in range(3):
            mailbox.submit(item)
        assert mailbox.drain_nowait(count) == list(range(3))[: max(count, 0)]
        assert mailbox.drain_nowait() == list(range(3))[max(count, 0) :]


@quickly
@given(count=st.one_of(st.floats(), st.text(), st.decimals(), st.fractions()))
def test_a_count_of_another_kind_is_refused(count):
    for call in (
        lambda: create_channel(capacity=count),
        lambda: create_channel()[1].drain_nowait(count),
        lambda: PriorityMailbox().drain_nowait(count),
        lambda: ActorCore(print).drain_nowait(count),
    ):
        with pytest.raises(TypeError):
            call()


# priorities

REALS = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.fractions(), st.sampled_from(HUGE[:5]))


@quickly
@given(priorities=st.lists(REALS, max_size=10), floor=st.none() | REALS)
def test_priorities_are_ordered(priorities, floor):
    mailbox = PriorityMailbox(key=lambda item: item[1])
    mailbox.floor = floor
    assert mailbox.floor is floor
    for item in enumerate(priorities):
        mailbox.submit(item)
    drained = mailbox.drain_nowait()
    assert sorted(drained) == list(enumerate(priorities))
    levels = [as_seconds(priority) for _, priority in drained]
    assert levels == sorted(levels, reverse=True)
    for (first, a), (second, b) in zip(drained, drained[1:]):
        assert a != b or first < second


@quickly
@given(bad=st.one_of(THINGS, st.just(math.nan), st.none(), st.decimals()), at=st.integers(0, 3))
def test_a_priority_that_is_none_consumes_its_item_only(bad, at):
    priorities = [2, 1, 3, 0]
    priorities[at] = bad
    mailbox = PriorityMailbox(key=lambda item: item[1])
    for item in enumerate(priorities):
        mailbox.submit(item)
    with pytest.raises(TypeError, match="a priority must be a real number"):
        mailbox.drain_nowait()
    drained = mailbox.drain_nowait()
    assert sorted(number for number, _ in drained) == [number for number in range(4) if number != at]
    stats = mailbox.send.stats()
    assert (stats.sent, stats.received, stats.queued) == (4, 4, 0)
    if bad is not None:
        with pytest.raises(TypeError, match="a priority must be a real number"):
            mailbox.floor = bad
        assert mailbox.floor is None


# names


@settings(quickly, max_examples=25)
@given(name=st.text() | st.sampled_from(["", "\0", "a\0b", "\udcff", "x" * 10_000]) | st.integers() | st.binary())
def test_names_may_be_anything(name):
    service = ServiceThread(name=name, target=lambda service: service.started())
    service.start()
    service.wait_started(GUARD)
    assert service.join_or_log(GUARD)
    assert service.name == str(name or service.name) and repr(service)  # nothing is no name, to threading
    with pytest.raises(RuntimeError, match="was stopped before it was ready|failed"):
        stopped = ServiceThread(name=name)
        stopped.stop()
        stopped.wait_started(0)

    async def main():
        async with create_task_group() as tasks:
            assert tasks.start_soon(asyncio.sleep, 0, name=name).get_name() == str(name)

    asyncio.run(main())


# types

WRONG = {
    "create_channel(late_send)": lambda bad: create_channel(late_send=bad),
    "ObjectSendChannel.fail": lambda bad: create_channel()[0].fail(bad),
    "ObjectReceiveChannel.fail": lambda bad: create_channel()[1].fail(bad),
    "ObjectReceiveChannel.bind": lambda bad: create_channel()[1].bind(bad),
    "Mailbox(late_send)": lambda bad: Mailbox(late_send=bad),
    "Mailbox.bind": lambda bad: Mailbox().bind(bad),
    "Mailbox.fail": lambda bad: Mailbox().fail(bad),
    "PriorityMailbox(key)": lambda bad: PriorityMailbox(key=bad),
    "PriorityMailbox(gate)": lambda bad: PriorityMailbox(gate=bad),
    "PriorityMailbox.key": lambda bad: setattr(PriorityMailbox(), "key", bad),
    "PriorityMailbox.gate": lambda bad: setattr(PriorityMailbox(), "gate", bad),
    "ActorCore(handler)": lambda bad: ActorCore(bad),
    "ActorCore.bind": lambda bad: ActorCore(print).bind(bad),
    "ActorCore.fail": lambda bad: ActorCore(print).fail(bad),
    "CancelScope(raise_timeout)": lambda bad: CancelScope(raise_timeout=bad),
    "CancelScope.cancel(wake)": lambda bad: CancelScope().cancel(wake=bad),
    "CancelScope.cancel_called": lambda bad: setattr(CancelScope(), "cancel_called", bad),
    "CloseScope.fail": lambda bad: CloseScope().fail(bad),
    "CloseScope.close(exc)": lambda bad: CloseScope().close(None, bad),
    "CloseScope()": lambda bad: CloseScope(bad),
    "WorkTracker()": lambda bad: WorkTracker(bad),
    "RequestRegistry()": lambda bad: RequestRegistry(bad),
    "RequestRegistry.wait": lambda bad: RequestRegistry().wait(1, bad),
    "RequestRegistry.wait_async": lambda bad: RequestRegistry().wait_async(1, bad),
    "RequestRegistry.request": lambda bad: RequestRegistry().request(1, bad),
    "RequestRegistry.request_async": lambda bad: asyncio.run(RequestRegistry().request_async(1, bad)),
    "RequestRegistry.fail": lambda bad: RequestRegistry().fail(1, bad),
    "RequestRegistry.fail_all": lambda bad: RequestRegistry().fail_all(bad),
    "RequestRegistry.close": lambda bad: RequestRegistry().close(bad),
    "ReplyHandle(registry)": lambda bad: ReplyHandle(bad, 1, RequestRegistry().register(1)),
    "ReplyHandle(waiter)": lambda bad: ReplyHandle(RequestRegistry(), 1, bad),
    "ReplyHandle.fail": lambda bad: RequestRegistry().reply(1).fail(bad),
    "ServiceThread(target)": lambda bad: ServiceThread(target=bad),
    "ServiceThread.fail": lambda bad: ServiceThread().fail(bad),
    "CancelScope, positional": lambda bad: CancelScope(bad),
    "ServiceThread, positional": lambda bad: ServiceThread(bad),
    "ScopeGroup, positional": lambda bad: ScopeGroup(bad),
    "TaskGroup, positional": lambda bad: TaskGroup(bad),
}


@pytest.mark.parametrize("way", WRONG)
@settings(quickly, max_examples=15)
@given(bad=st.one_of(st.integers(), st.floats(), st.binary(), st.builds(object), st.builds(list), st.decimals()))
def test_a_wrong_type_is_refused(way, bad):
    with pytest.raises(TypeError):
        WRONG[way](bad)


@given(late_send=st.text())
@quickly
def test_late_send_is_one_of_two_words(late_send):
    result = outcome(lambda: create_channel(late_send=late_send))
    assert isinstance(result, tuple) if late_send in ("raise", "drop") else type(result) is ValueError


def test_a_bad_end_is_not_kept():
    mailbox, actor = PriorityMailbox(), ActorCore(print)
    send, receive, own = mailbox.send, mailbox.receive, actor.mailbox
    for thing, attribute in (mailbox, "send"), (mailbox, "receive"), (Mailbox(), "receive"), (actor, "mailbox"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(thing, attribute, 3)
    assert (mailbox.send, mailbox.receive, actor.mailbox) == (send, receive, own)
    mailbox.submit(1)
    assert mailbox.drain_nowait() == [1]


def test_endpoints_are_made_by_create_channel_only():
    send, receive = create_channel()
    others = [RequestRegistry().register(1), receive.receive(), WorkTracker().track(), checkpoint()]
    for thing in send, receive, CloseScope(), WorkTracker(), RequestRegistry(), CancelScope(), *others:
        with pytest.raises(TypeError):
            object.__new__(type(thing))
    for thing in send, receive, *others:
        with pytest.raises(TypeError):
            type(thing)()
        with pytest.raises(TypeError):
            type(thing).__new__(type(thing))
    assert ObjectSendChannel[int] and ObjectReceiveChannel[int]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_alive_is_neither_copied_nor_pickled(protocol):
    """A copy that would be a new and open one is worse than none."""
    send, receive = create_channel()
    registry = RequestRegistry()
    things = [send, receive, CloseScope(), WorkTracker(), registry, registry.reply(1), registry.register(2)]
    for thing in *things, CancelScope(), receive.receive(), checkpoint(), WorkTracker().track():
        with pytest.raises(TypeError):
            copy.copy(thing)
        with pytest.raises(TypeError):
            copy.deepcopy(thing)
        with pytest.raises((TypeError, pickle.PicklingError)):
            pickle.loads(pickle.dumps(thing, protocol))
    for thing in Mailbox(), PriorityMailbox(), ActorCore(print), ServiceThread(), LoopServiceThread(), ServiceGroup():
        with pytest.raises(TypeError):
            copy.deepcopy(thing)
        with pytest.raises((TypeError, pickle.PicklingError)):
            pickle.loads(pickle.dumps(thing, protocol))


def test_stats_can_be_copied():
    stats = create_channel()[0].stats()
    assert stats == copy.copy(stats) == pickle.loads(pickle.dumps(stats)) == ChannelStats()


@pytest.mark.parametrize("error", [ClosedResourceError, BrokenResourceError, EndOfStream])
def test_errors_are_exceptions_like_others(error):
    for args in (), ("text",), (None,), (object(), 1):
        assert error(*args).args == args
    assert type(pickle.loads(pickle.dumps(error("text")))) is error


def test_subclasses_that_forget_their_base_say_so():
    def forgetful(base):
        return type("Forgetful", (base,), {"__init__": lambda self: None})()

    for native in CloseScope, WorkTracker, RequestRegistry, CancelScope:
        assert repr(forgetful(native))
    for thread in ServiceThread, LoopServiceThread:
        service = forgetful(thread)
        with pytest.raises(RuntimeError, match="not called"):
            service.start()
        with pytest.raises((RuntimeError, AttributeError)):
            service.wait_started(0)
        with pytest.raises(AttributeError):
            service.stop()
    for call in (
        lambda: forgetful(Mailbox).submit(1),
        lambda: forgetful(PriorityMailbox).drain_nowait(),
        lambda: forgetful(ActorCore).submit(1),
        lambda: asyncio.run(forgetful(ActorCore).run()),
        lambda: forgetful(ServiceGroup).start(),
        lambda: forgetful(ScopeGroup).cancel(),
        lambda: forgetful(TaskGroup).cancel(),
    ):
        with pytest.raises(AttributeError):
            call()


# keys


class Wild:
    """A key whose hash and comparisons do what `acts` say, in turn; tame when there is nothing left to do."""

    def __init__(self, number, acts):
        self.number, self.acts = number, acts

    def act(self, tame):
        if not self.acts:
            return tame
        act = self.acts.pop()
        return tame if act is None else act(tame)

    def __hash__(self):
        return self.act(hash(self.number))

    def __eq__(self, other):
        return self.act(self.number == getattr(other, "number", None))

    def __repr__(self):
        return f"<key {self.number}>"


class Unsure:
    def __bool__(self):
        raise ZeroDivisionError


def acts(registry, taken):
    """What a hash or a comparison may do, with its tame result."""

    def fail(tame):
        raise ZeroDivisionError

    def yield_(tame):
        time.sleep(0)
        return tame

    def register(tame):
        outcome(lambda: taken.append(registry.register(object())))
        return tame

    def take(tame):
        for key in registry.pending:
            taken.append(outcome(registry.pop, key))
        return tame

    def answer(tame):
        for key in registry.pending:
            outcome(registry.resolve, key, "answer")
        return tame

    def fail_all(tame):
        registry.fail_all(KeyError("failed by a key"))
        return tame

    def close(tame):
        registry.close(ValueError("closed by a key"))
        return tame

    def collect(tame):
        gc.collect(0)
        return tame

    def other(tame):
        return not tame if isinstance(tame, bool) else tame ^ 1

    def unsure(tame):
        return Unsure() if isinstance(tame, bool) else tame

    def text(tame):
        return "yes" if isinstance(tame, bool) else tame

    return [fail, yield_, register, take, answer, fail_all, close, collect, other, unsure, text, None, None, None]


CALLS = ["register", "reply", "resolve", "fail", "pop", "contains", "wait", "request", "wait_async", "handle"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a wait that is dropped has no caller
@settings(quickly, max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(CALLS), st.integers(0, 2), st.lists(st.integers(0, 13), max_size=4)), max_size=12
    )
)
def test_keys_may_misbehave(calls):
    """Whatever the keys do: nobody crashes or hangs, and who has registered is answered at the latest by close()."""
    registry = RequestRegistry()
    taken, waiters, waited = [], [], set()
    possible = acts(registry, taken)

    def wait(key):
        waiter = registry.register(key)
        waited.add(waiter)
        return registry.wait(key, waiter, 0)

    def wait_async(key):
        waiter = registry.register(key)
        waited.add(waiter)

        async def main():
            return await registry.wait_async(key, waiter, 0)

        return asyncio.run(main())

    def handle(key):
        reply = registry.reply(key)
        waiters.append(reply.waiter)
        assert isinstance(outcome(reply.resolve, 1), bool | ZeroDivisionError)
        taken.append(outcome(reply.pop))

    ways = {
        "register": lambda key: waiters.append(registry.register(key)),
        "reply": lambda key: waiters.append(registry.reply(key).waiter),
        "resolve": lambda key: registry.resolve(key, "value"),
        "fail": lambda key: registry.fail(key, ValueError("failed")),
        "pop": lambda key: taken.append(registry.pop(key)),
        "contains": registry.__contains__,
        "wait": wait,
        "request": lambda key: registry.request(key, lambda reply: None, 0),
        "wait_async": wait_async,
        "handle": handle,
    }
    keys = []
    expected = (ZeroDivisionError, KeyError, ValueError, TimeoutError, BrokenResourceError, ClosedResourceError)
    for call, number, chosen in calls:
        keys.append(Wild(number, [possible[act] for act in chosen]))
        result = outcome(ways[call], keys[-1])
        assert not isinstance(result, Exception) or isinstance(result, expected), repr(result)
    for key in keys:
        key.acts.clear()
    registry.close()
    assert len(registry) == 0
    lost = [waiter for waiter in waiters if waiter.empty() and waiter not in taken and waiter not in waited]
    assert lost == []


@pytest.mark.parametrize("key", [[], {}, set(), bytearray()], ids=repr)
def test_unhashable_keys_are_refused(run, key):
    registry = RequestRegistry()
    waiter = registry.register("key")
    for call in (
        registry.register,
        registry.reply,
        registry.pop,
        registry.__contains__,
        lambda key: registry.pop(key, waiter),
        lambda key: registry.resolve(key, 1),
        lambda key: registry.fail(key, ValueError()),
        lambda key: registry.request(key, pytest.fail),
        lambda key: run(registry.request_async(key, pytest.fail)),
    ):
        with pytest.raises(TypeError, match="unhashable"):
            call(key)
    assert registry.pending == {"key": waiter}


def test_a_key_is_pending_once(run):
    registry = RequestRegistry()
    waiter = registry.register(1)
    for same in 1, 1.0, True, Fraction(1), Decimal(1):
        for call in (
            registry.register,
            registry.reply,
            lambda key: registry.request(key, pytest.fail),
            lambda key: run(registry.request_async(key, pytest.fail)),
        ):
            with pytest.raises(KeyError, match="request already pending"):
                call(same)
    assert registry.pending == {1: waiter}
    assert registry.resolve(1, "first") is True
    assert registry.resolve(1, "second") is False and registry.fail(1, ValueError()) is False
    assert waiter.get_nowait() == "first"


# callbacks that call back


GATES = {
    "close": lambda mailbox, item: mailbox.close(),
    "fail": lambda mailbox, item: mailbox.fail(ValueError("failed by its gate")),
    "submit": lambda mailbox, item: mailbox.submit("more") if item == 0 else None,
    "drain": lambda mailbox, item: KEPT.extend(mailbox.drain_nowait()),
    "get": lambda mailbox, item: KEPT.append(getattr(outcome(mailbox.get().send, None), "value", None)),
    "floor": lambda mailbox, item: setattr(mailbox, "floor", -1),
    "gate": lambda mailbox, item: setattr(mailbox, "gate", None),
    "key": lambda mailbox, item: setattr(mailbox, "key", None),
    "say": lambda mailbox, item: (repr(asyncio.current_task()), repr(mailbox), mailbox.send.stats()),
    "collect": lambda mailbox, item: gc.collect(),
    "cancel": lambda mailbox, item: asyncio.current_task().cancel(),
    "bind": lambda mailbox, item: mailbox.bind(),
}
KEPT = []


@pytest.mark.parametrize("where", ["gate", "key"])
@pytest.mark.parametrize("what", GATES)
def test_a_gate_may_do_anything(run, what, where):
    """The books balance, and what it did not take itself comes out."""

    async def main():
        KEPT.clear()
        mailbox, got = PriorityMailbox(), []

        def gate(item):
            GATES[what](mailbox, item)
            return True

        setattr(mailbox, where, (lambda item: gate(item) and 0) if where == "key" else gate)
        for item in range(4):
            mailbox.submit(item)
        async def get():
            got.append(await mailbox.get())

        for _ in range(3):
            task = asyncio.create_task(get())
            await asyncio.wait([task], timeout=0.01 if what in ("drain", "get") else GUARD)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
        mailbox.gate = mailbox.key = mailbox.floor = None
        got += mailbox.drain_nowait()
        assert sorted(map(str, got + [item for item in KEPT if isinstance(item, int)]))[:4] == ["0", "1", "2", "3"]
        stats = mailbox.send.stats()
        assert stats.sent == stats.received and stats.queued == 0

    run(main())


def test_an_exception_may_end_the_scope_while_its_text_is_asked_for():
    class Talking(Exception):
        def __str__(self):
            ends.append(scope.close("by its text"))
            return "text"

    ends, scope = [], CloseScope()
    assert scope.fail(Talking()) is False
    assert ends == [True] and scope.reason == "by its text" and not scope.failed


def test_items_that_die_may_send_and_close(run):
    class Dying:
        def __init__(self, last_words):
            self.last_words = last_words

        def __del__(self):
            self.last_words()

    async def main():
        mailbox, registry = PriorityMailbox(gate=lambda item: not isinstance(item, Dying)), RequestRegistry()
        for number in range(3):
            mailbox.submit(Dying(lambda number=number: mailbox.submit(number)))
        assert [await mailbox.get() for _ in range(3)] == [0, 1, 2]
        registry.register("key").put(Dying(lambda: mailbox.submit(registry.close())))
        registry.pop("key")
        assert await mailbox.get() == 0
        mailbox.submit(Dying(mailbox.close))
        with pytest.raises(EndOfStream):
            await mailbox.get()

    run(main())


def test_a_done_callback_may_stop_the_service():
    service = LoopServiceThread()
    service.start()
    service.wait_started(GUARD)

    async def work():
        return 1

    future = service.submit(work())
    future.add_done_callback(lambda future: service.stop("by a callback"))
    assert service.join_or_log(GUARD)
    assert future.result(0) == 1 and service.scope.reason == "by a callback"


def test_a_done_callback_may_cancel_its_group(run):
    async def main():
        async with create_task_group() as tasks:
            tasks.start_soon(sleep, math.inf)
            tasks.start_soon(asyncio.sleep, 0).add_done_callback(lambda task: tasks.cancel("by a callback"))
        assert tasks.cancel_scope.reason == "by a callback"

    run(main())


# reasons


class Mute(Exception):
    """Has neither text nor repr."""

    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


REASONS = [None, "", "x" * 10**6, "\0", "\udcff", 0, object(), [], Mute(), Mute, ValueError("text"), math.nan]


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: type(reason).__name__)
def test_weird_reasons_are_kept(run, reason):
    closed, failed, by_hand, service = CloseScope(), CloseScope(), CloseScope(), ServiceThread(target=print)
    assert closed.close(reason) and closed.reason is reason
    with pytest.raises(ClosedResourceError):
        closed.raise_if_closed()
    cause = Mute()
    assert failed.fail(cause, reason) and failed.exc is cause
    with pytest.raises(BrokenResourceError) as caught:
        failed.raise_if_closed()
    assert caught.value.__cause__ is cause
    by_hand.reason = by_hand.exc = reason
    assert by_hand.close(reason) and by_hand.reason is reason and not by_hand.failed
    assert service.stop(reason) and service.scope.reason is reason and service.stop("again") is False
    with pytest.raises(RuntimeError):
        service.wait_started(0)

    async def main():
        scopes, channel = ScopeGroup(), create_channel()
        with scopes.scope() as scope:
            assert scopes.cancel(reason, latch=True) is True and scope.reason is reason
            await asyncio.sleep(0)
        assert scope.cancelled_caught
        with scopes.scope() as scope:
            assert scope.cancelled and scope.reason is reason or scope.reason == "cancelled"
            await checkpoint()
        async with create_task_group() as tasks:
            assert tasks.cancel(reason) is True and tasks.cancel() is False
            await sleep(math.inf)
        channel[0].fail(cause)
        with pytest.raises(Mute):
            await channel[1].receive()

    run(main())


def test_a_service_may_fail_with_an_exception_that_has_no_text():
    def work(service):
        raise Mute

    service = ServiceThread(target=work)
    service.start()
    with pytest.raises(RuntimeError) as caught:
        service.wait_started(GUARD)
    assert type(caught.value.__cause__) is Mute
    assert service.join_or_log(GUARD)
    with pytest.raises(RuntimeError) as caught:
        ServiceGroup(service).wait_started(GUARD)
    assert type(caught.value.__cause__) is Mute


# at a wrong time


def test_what_is_closed_stays_closed(run):
    async def main():
        send, receive = create_channel()
        mailbox, actor, scope, registry = Mailbox(late_send="raise"), ActorCore(print), CloseScope(), RequestRegistry()
        cause, tracker = ValueError("first"), WorkTracker()
        for thing in send, receive, mailbox, actor, scope, registry:
            first = thing.close()
            assert first is True or thing is receive and first is False or thing is registry and first == 0
            assert not thing.close()
            if thing is not registry:
                assert thing.fail(cause) is False
        for call in lambda: send.send_nowait(1), lambda: mailbox.submit(1), lambda: registry.register(1):
            with pytest.raises(ClosedResourceError, match="closed"):
                call()
        with pytest.raises(ClosedResourceError):
            await send.send(1)
        assert actor.submit(1) is None
        for wait in receive.receive, mailbox.get:
            for _ in range(2):
                with pytest.raises(EndOfStream):
                    await wait()
        await actor.run()
        assert receive.drain_nowait() == [] and not scope.failed and registry.fail_all(cause) == 0
        tracker.add()
        tracker.done()
        for _ in range(2):
            with pytest.raises(ValueError, match="without add"):
                tracker.done()
        assert tracker.count == 0

    run(main())


def test_run_is_not_run_twice(run):
    async def main():
        actor = ActorCore(print)
        task = asyncio.create_task(actor.run())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="running"):
            await actor.run()
        actor.close()
        await task
        with pytest.raises(TypeError, match="not callable"):
            failing = ActorCore(None)
            failing.submit(1)
            await failing.run()
        with pytest.raises(RuntimeError, match="failed"):
            await failing.run()

    run(main())


def in_thread(call):
    """What it returns, called by another thread; fails if it hangs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(outcome, call).result(GUARD)


@pytest.mark.parametrize("make", [ServiceThread, LoopServiceThread])
def test_a_service_is_not_called_at_a_wrong_time(make):
    def work(service):
        own.append(outcome(service.join))
        own.append(outcome(service.join_or_log))
        own.append(outcome(service.wait_started))
        own.append(outcome(service.start))
        service.started()
        service.started()
        own.append(outcome(service.wait_started))

    class Loop(LoopServiceThread):
        async def run_async(self):
            work(self)

    own = []
    service = make(target=work) if make is ServiceThread else Loop()
    with pytest.raises(RuntimeError, match="before it is started"):
        service.join()
    assert service.join_or_log() is True
    with pytest.raises(TimeoutError):
        service.wait_started(0)
    if make is LoopServiceThread:
        not_running(service)
    service.start()
    service.wait_started(GUARD)
    assert service.join_or_log(GUARD)
    assert [type(result) for result in own] == [RuntimeError, bool, RuntimeError, RuntimeError, type(None)]
    assert own[1] is False
    with pytest.raises(RuntimeError, match="only be started once"):
        service.start()
    assert service.stop() is True and service.stop() is False
    if make is LoopServiceThread:
        not_running(service)
    service.fail(ValueError("late"))
    assert in_thread(service.join) is None and service.scope.reason == "stop"


def not_running(service):
    async def work():
        pytest.fail("it ran")

    coro = work()
    for call in lambda: service.call_soon(print), lambda: service.call_sync(print), lambda: service.submit(coro):
        with pytest.raises(RuntimeError, match="loop is not running"):
            call()
    assert coro.cr_frame is None  # closed


def test_jobs_of_a_wrong_kind_are_refused():
    service = LoopServiceThread()
    service.start()
    service.wait_started(GUARD)
    try:
        for bad in None, 1, print, asyncio.sleep, [], object():
            with pytest.raises(TypeError, match="a coroutine object is required"):
                service.submit(bad)
        for bad in None, 1, [], object():
            with pytest.raises(TypeError, match="not callable"):
                service.call_sync(bad)
            with pytest.raises(TypeError, match="a function was expected"):
                service.call_soon(bad)
        with pytest.raises(TypeError):
            service.call_sync(int, timeout="1")
        for time in 10**400, math.inf, 1e300, None, Decimal(GUARD), Fraction(GUARD):
            assert service.call_sync(int, timeout=time) == 0
    finally:
        service.stop()
        assert service.join_or_log(GUARD)


def test_a_group_of_anything_names_what_is_wrong():
    good = ServiceThread(target=lambda service: service.started(), name="good")
    group = ServiceGroup(None, good, 3)
    with pytest.raises(AttributeError, match="'int' object has no attribute 'start'") as caught:
        group.start()
    assert caught.value.__notes__ == ["service: 3"]
    assert good.scope.closed and good.join_or_log(GUARD)
    with pytest.raises(AttributeError):
        group.stop()
    twice = ServiceThread(target=lambda service: service.started())
    with pytest.raises(RuntimeError, match="once"):
        ServiceGroup(twice, twice).start()
    assert twice.join_or_log(GUARD)
    assert ServiceGroup().start().wait_started(0).stop().stop_join(0) is True


def test_a_task_group_is_not_called_at_a_wrong_time(run):
    async def main():
        tasks = TaskGroup()

        async def refused(match):
            coro = asyncio.sleep(0)
            for call in lambda: tasks.create_task(coro), lambda: tasks.start_soon(print):
                with pytest.raises(RuntimeError, match=match):
                    call()
            assert coro.cr_frame is None
            with pytest.raises(RuntimeError, match=match):
                await tasks.start(print)

        await refused("not active")
        tasks = create_task_group()
        async with tasks:
            with pytest.raises(RuntimeError):
                await tasks.__aenter__()
            for bad in None, 1, print, []:
                with pytest.raises(TypeError, match="an awaitable was expected"):
                    tasks.create_task(bad)
                with nullcontext() if callable(bad) else pytest.raises(TypeError, match="a function was expected"):
                    tasks.start_soon(bad)
            for bad in None, 1, []:
                with pytest.raises(TypeError, match="a function was expected"):
                    await tasks.start(bad)
            error = await asyncio.to_thread(outcome, tasks.start_soon, print)
            assert isinstance(error, RuntimeError) and "another thread" in str(error)
            await tasks.start_soon(int)
        await refused("not active")
        assert tasks.cancel() is True and tasks.cancel() is False
        with pytest.raises(RuntimeError):
            await tasks.__aenter__()

    run(main())


def test_started_is_called_once(run):
    async def child(task_status):
        assert isinstance(task_status, TaskStatus)
        task_status.started("value")
        with pytest.raises(RuntimeError, match="called twice"):
            task_status.started("again")

    async def main():
        async with create_task_group() as tasks:
            assert await tasks.start(child) == "value"
            with pytest.raises(RuntimeError, match="without calling"):
                await tasks.start(lambda task_status: None)
            with pytest.raises(TypeError, match="task_status"):
                await tasks.start(lambda: None)

    run(main())


def test_scopes_are_entered_and_left_by_tasks(run):
    scope = CancelScope()
    for call in scope.__enter__, lambda: scope.__exit__(None, None, None), ScopeGroup().scope().__enter__:
        with pytest.raises(RuntimeError, match="no running event loop|is left by the task"):
            call()
    with pytest.raises(TypeError):
        scope.__exit__()
    assert not scope.active

    async def main():
        async def foreign():
            scope.__exit__(None, None, None)

        with scope:
            with pytest.raises(RuntimeError, match="is left by the task that entered it"):
                await asyncio.create_task(foreign())
            error = await asyncio.to_thread(outcome, CancelScope().__enter__)
            assert isinstance(error, RuntimeError)
            assert scope.active
        with pytest.raises(RuntimeError):
            scope.__exit__(None, None, None)
        with scope, scope:
            scope.cancel()
            await asyncio.sleep(0)
        assert not scope.active and asyncio.current_task().cancelling() == 0
        outer, inner = CancelScope(), CancelScope()
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)  # out of turn
        inner.__exit__(None, None, None)
        assert not outer.active and not inner.active and current_cancel_scope() is None

    run(main())


def test_checks_without_a_loop_find_nothing():
    assert checkpoint_if_cancelled() is None and current_cancel_scope() is None
    for call in checkpoint_if_cancelled, current_cancel_scope, checkpoint:
        with pytest.raises(TypeError):
            call(1)


# awaitables


def full_channel():
    send, receive = create_channel(capacity=1)
    send.send_nowait(0)
    full_channel.kept = receive
    return send


AWAITABLES = {
    "checkpoint": checkpoint,
    "sleep": lambda: sleep(0.001),
    "receive": lambda: create_channel()[1].receive(),
    "anext": lambda: anext(create_channel()[1]),
    "send": lambda: full_channel().send(1),
    "Mailbox.get": lambda: Mailbox().get(),
    "PriorityMailbox.get": lambda: PriorityMailbox().get(),
    "CloseScope.wait_async": lambda: CloseScope().wait_async(),
    "WorkTracker.idle": lambda: busy_tracker().idle(),
    "wait_async": lambda: RequestRegistry().wait_async(1, RequestRegistry().register(1)),
    "wait_async, timeout": lambda: RequestRegistry().wait_async(1, RequestRegistry().register(1), 60),
    "request_async": lambda: RequestRegistry().request_async(1, lambda reply: None),
}


@pytest.mark.parametrize("name", AWAITABLES)
def test_an_awaitable_is_awaited_once(run, name):
    async def main():
        awaitable = AWAITABLES[name]()
        task = asyncio.create_task(awaitable)
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already being awaited|being awaited already"):
            await awaitable
        if name not in ("checkpoint", "sleep"):
            task.cancel()
        await asyncio.wait([task], timeout=GUARD)
        assert task.cancelled() or task.result() is None  # the other one has not taken its wake away
        with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
            await awaitable

    run(main())


@pytest.mark.parametrize("name", AWAITABLES)
def test_an_awaitable_needs_a_loop(name):
    awaitable = AWAITABLES[name]()
    if name == "checkpoint":
        assert awaitable.send(None) is None
        awaitable.close()
        return
    with pytest.raises(RuntimeError, match="no running event loop"):
        awaitable.send(None)
    with pytest.raises(RuntimeError):
        awaitable.send(None)


@pytest.mark.parametrize("name", AWAITABLES)
def test_an_awaitable_that_was_not_begun_takes_no_value(name):
    awaitable = AWAITABLES[name]()
    with pytest.raises(TypeError, match="can't send non-None value"):
        awaitable.send(1)
    with pytest.raises(ZeroDivisionError):
        awaitable.throw(ZeroDivisionError)
    awaitable.close()
    awaitable.close()


@pytest.mark.parametrize("name", [name for name in AWAITABLES if name not in ("checkpoint", "sleep")])
def test_a_wait_that_was_begun_on_a_loop_that_is_gone_is_let_go(name, loop_factory):
    awaitable = AWAITABLES[name]()
    loop = loop_factory()

    async def begin():
        awaitable.send(None)

    loop.run_until_complete(begin())
    loop.close()
    awaitable.close()
    with pytest.raises(RuntimeError, match="reuse"):
        awaitable.send(None)


@pytest.mark.parametrize("end", ["close", "fail", "item"])
def test_a_channel_outlives_its_loop(loop_factory, end):
    """Who waited is gone with the loop; the channel says so to senders, and a new loop takes over."""
    send, receive = create_channel()
    loop = loop_factory()

    async def begin():
        task = asyncio.create_task(receive.receive())
        task._log_destroy_pending = False  # it is meant to be left behind
        await asyncio.sleep(0)
        return task

    task = loop.run_until_complete(begin())
    send.send_nowait("item")
    loop.close()
    with pytest.raises(BrokenResourceError, match="loop is closed"):
        send.send_nowait("late")
    assert {"close": send.close, "fail": lambda: send.fail(ValueError()), "item": lambda: True}[end]() is True
    assert asyncio.run(receive.receive()) == "item"
    del task


def test_a_channel_is_received_from_on_its_own_loop_only(run):
    async def main():
        for mailbox in Mailbox(), PriorityMailbox():
            mailbox.bind()
            error = await asyncio.to_thread(outcome, asyncio.run, wait(mailbox))
            assert isinstance(error, RuntimeError) and "another event loop" in str(error)
            error = await asyncio.to_thread(outcome, mailbox.get().send, None)
            assert isinstance(error, RuntimeError)
            mailbox.submit("item")
            assert await mailbox.get() == "item"

    async def wait(mailbox):
        return await mailbox.get()

    run(main())


def test_blocking_calls_in_a_loop_end_with_their_timeout(run):
    """They block the loop, as time.sleep() does, but not for ever."""

    async def main():
        registry, tracker = RequestRegistry(), busy_tracker()
        assert CloseScope().wait(0.001) is False and CancelScope().wait(0.001) is False
        assert tracker.wait_idle(0.001) is False and WorkTracker().busy.wait(0.001) is False
        with pytest.raises(TimeoutError):
            registry.request(1, lambda reply: None, 0.001)
        with pytest.raises(TimeoutError):
            ServiceThread(target=print).wait_started(0.001)
        assert len(registry) == 0

    run(main())
