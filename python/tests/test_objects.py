"""Objects that misbehave and objects that go: user code at odd moments, cycles, subclasses, tracebacks, noise."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import microio
from microio import (
    ActorCore,
    BrokenResourceError,
    CancelScope,
    CloseScope,
    Mailbox,
    PriorityMailbox,
    ReplyHandle,
    RequestRegistry,
    WorkTracker,
    create_channel,
    move_on_after,
)

GUARD = 10  # seconds: reached only by a test that fails


async def parked(awaitable):
    """A task that has begun to wait."""
    task = asyncio.create_task(awaitable)
    await asyncio.sleep(0)
    return task


class Node:
    """An object that can refer to others, and be referred to weakly."""


class Dying:
    """An object that calls `last_words` when it goes."""

    def __init__(self, last_words):
        self.last_words = last_words

    def __del__(self):
        self.last_words()


class Key:
    """Equal to all keys of the same name; calls `on_eq` of both when they are compared."""

    def __init__(self, name, on_eq=lambda: None):
        self.name, self.on_eq = name, on_eq

    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        self.on_eq()
        other.on_eq()
        return self.name == other.name


# keys


def test_a_hash_that_raises_leaves_the_registry_as_it_was():
    class Bad:
        def __hash__(self):
            raise ZeroDivisionError

    registry = RequestRegistry()
    waiter = registry.register("good")
    for call in (
        registry.register,
        registry.reply,
        registry.__contains__,
        registry.pop,
        lambda key: registry.pop(key, waiter),
        lambda key: registry.resolve(key, 1),
        lambda key: registry.fail(key, ValueError()),
        lambda key: registry.request(key, pytest.fail),
    ):
        with pytest.raises(ZeroDivisionError):
            call(Bad())
    assert registry.pending == {"good": waiter}
    assert registry.resolve("good", "reply") is True


def test_an_eq_that_raises_leaves_the_registry_as_it_was():
    def fail():
        raise ZeroDivisionError

    registry = RequestRegistry()
    good = Key("key")
    waiter = registry.register(good)
    for call in (
        registry.register,
        registry.reply,
        registry.__contains__,
        registry.pop,
        lambda key: registry.pop(key, waiter),
        lambda key: registry.resolve(key, 1),
        lambda key: registry.fail(key, ValueError()),
        lambda key: registry.request(key, pytest.fail),
    ):
        with pytest.raises(ZeroDivisionError):
            call(Key("key", fail))
    assert len(registry) == 1 and waiter.empty()
    assert registry.resolve(good, "reply") is True


def test_an_eq_may_call_the_registry():
    def reenter():
        registry.register("other")
        assert "other" in registry and len(registry) == 2
        assert registry.resolve("other", 1)
        assert registry.pending and repr(registry)

    registry = RequestRegistry()
    waiter = registry.register(Key("key"))
    assert registry.resolve(Key("key", reenter), "reply") is True
    assert registry.wait(Key("key"), waiter) == "reply"
    assert len(registry) == 0


def test_an_eq_may_let_another_thread_call_the_registry():
    """It waits for the other thread: a lock held around the comparison would be a deadlock."""
    registry = RequestRegistry()

    def let_run():
        thread = threading.Thread(target=lambda: done.append(registry.request("other", lambda reply: reply.resolve(1))))
        thread.start()
        thread.join(GUARD)

    for call in lambda key: registry.resolve(key, 1), registry.__contains__, registry.pop:
        done = []
        registry.register(Key("key"))
        call(Key("key", let_run))
        assert done[:1] == [1]
        registry.pop(Key("key"))


def test_an_eq_may_take_the_request_that_is_looked_up():
    def take():
        taken.append(registry.pop(key))

    registry, taken = RequestRegistry(), []
    key = Key("key")
    waiter = registry.register(key)
    registry.resolve(Key("key", take), "reply")
    assert taken[0] is waiter or waiter.get_nowait() == "reply"
    assert len(registry) == 0


@pytest.mark.parametrize("comparison", [1, 2])
def test_an_eq_that_uses_the_key_again_does_not_lose_the_newer_request(comparison):
    """While a wait that timed out takes its request out, the key is answered and used again: the newer one stays."""
    registry, key, newer, comparisons = RequestRegistry(), Key("key"), [], 0

    def use_again():
        nonlocal comparisons
        comparisons += 1
        if comparisons == comparison:
            registry.pop(key)
            newer.append(registry.register(key))

    waiter = registry.register(key)
    with pytest.raises(TimeoutError):
        registry.wait(Key("key", use_again), waiter, 0)
    assert list(registry.pending.values()) == newer


def test_an_eq_that_closes_the_registry_ends_the_registration():
    cause = ValueError("reader died")
    registry = RequestRegistry()
    registry.register(Key("key"))
    with pytest.raises((BrokenResourceError, KeyError)):
        registry.register(Key("key", lambda: registry.close(cause)))
    assert len(registry) == 0


def test_a_key_whose_repr_raises_is_taken_out_all_the_same():
    class Bad:
        def __repr__(self):
            raise ZeroDivisionError

    registry = RequestRegistry()
    key = Bad()
    waiter = registry.register(key)
    with pytest.raises(ZeroDivisionError):
        registry.register(key)
    assert registry.pending == {key: waiter}
    with pytest.raises(ZeroDivisionError):
        registry.wait(key, waiter, 0)
    assert len(registry) == 0


def test_keys_and_values_that_die_may_call_the_registry():
    def reenter():
        deaths.append(len(registry))
        registry.request(object(), lambda reply: reply.resolve(1))

    registry, deaths = RequestRegistry(), []
    registry.register(Dying(reenter))
    registry.fail_all(ValueError())
    registry.resolve("unknown", Dying(reenter))
    waiter = registry.register("key")
    registry.resolve("key", Dying(reenter))
    del waiter
    waiter = registry.register("key")
    waiter.put(Dying(reenter))
    registry.pop("key")
    del waiter
    with pytest.raises(TimeoutError):
        registry.request(Dying(reenter), lambda reply: None, 0)
    gc.collect()
    assert deaths == [0] * 5
    assert len(registry) == 0


# items


def test_items_that_die_may_call_the_channel():
    def reenter():
        deaths.append(send.stats().queued)
        if len(deaths) < 10:
            send.send_nowait("last words")
        receive.drain_nowait(1)
        repr(send)

    deaths = []
    send, receive = create_channel()
    for _ in range(3):
        send.send_nowait(Dying(reenter))
    receive.drain_nowait()
    assert len(deaths) == 3
    stats = send.stats()
    assert stats.sent == 6 == stats.received + stats.queued


def test_items_of_a_dropped_channel_may_still_send():
    class Item:
        def __init__(self, send):
            self.send = send

        def __del__(self):
            counts.append(self.send.send_nowait("last words"))

    counts = []
    send, receive = create_channel()
    for _ in range(3):
        send.send_nowait(Item(send))
    del receive, send
    gc.collect()
    assert counts == [4, 5, 6]


def test_a_late_item_that_dies_may_call_the_channel():
    deaths = []
    send, _ = create_channel(late_send="drop")
    send.close()
    send.send_nowait(Dying(lambda: deaths.append((send.send_nowait(1), send.stats().dropped))))
    assert deaths[0][0] is None
    assert send.stats().dropped == 2


def test_an_eq_of_items_is_never_called(run):
    class Bad:
        def __eq__(self, other):
            raise ZeroDivisionError

        def __bool__(self):
            raise ZeroDivisionError

        __hash__ = None

    async def main():
        send, receive = create_channel()
        item = Bad()
        send.send_nowait(item)
        assert await receive.receive() is item
        task = await parked(receive.receive())
        send.send_nowait(item)
        assert await task is item
        send.send_nowait(item)
        async for received in receive:
            assert received is item
            break
        registry = RequestRegistry()
        assert registry.request(1, lambda reply: reply.resolve(item)) is item

    run(main())


def test_reasons_that_die_may_call_the_scope():
    deaths = []
    scope = CloseScope()
    scope.reason = Dying(lambda: deaths.append(scope.closed))
    scope.close("bye")
    scope.exc = Dying(lambda: deaths.append(scope.reason))
    scope.exc = None
    assert deaths == [True, "bye"]


def test_a_reason_that_dies_in_a_cancel_may_call_the_scope():
    deaths = []
    scope = CancelScope()
    scope.reason = Dying(lambda: deaths.append((scope.cancelled, scope.reason, scope.cancel())))
    assert scope.cancel("bye") is True
    assert deaths == [(True, "bye", False)]


def test_a_floor_that_dies_may_call_the_mailbox():
    class Floor(float):
        def __del__(self):
            deaths.append((mailbox.floor, mailbox.drain_nowait(0)))

    deaths = []
    mailbox = PriorityMailbox()
    mailbox.floor = Floor(1)
    mailbox.floor = 2
    assert deaths == [(2, [])]


# loops that look at what they are called for


STORY_OF_A_LOOP = """
import asyncio
from microio import *

look = None

class Curious(asyncio.SelectorEventLoop):
    def call_soon(self, *args, **kwargs):
        if look is not None:
            looks.append(look())
        return super().call_soon(*args, **kwargs)

    call_soon_threadsafe = call_soon

async def inside(scope):
    with scope:
        await asyncio.get_running_loop().create_future()

async def main():
    global look
    {begin}
    waiting = asyncio.create_task({wait})
    await asyncio.sleep(0)
    look = lambda: {look}
    {wake}
    look = None
    assert looks and all(looks), looks
    await waiting

looks = []
with asyncio.Runner(loop_factory=Curious) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize(
    ("begin", "wait", "wake", "look"),
    [
        (
            "send, receive = create_channel()",
            "receive.receive()",
            "send.send_nowait(1)",
            "receive.drain_nowait(0) == []",
        ),
        (
            "mailbox = PriorityMailbox(); mailbox.floor = 0; mailbox.submit(1)",
            "mailbox.get()",
            "mailbox.floor = None",
            "mailbox.floor is None and mailbox.drain_nowait(0) == []",
        ),
        (
            "registry = RequestRegistry(); waiter = registry.register(1)",
            "registry.wait_async(1, waiter)",
            "registry.resolve(1, 2)",
            "waiter.full() and 1 not in registry and not registry.resolve(1, 3)",
        ),
        ("scope = CloseScope()", "scope.wait_async()", "scope.close('why')", "scope.closed and scope.reason == 'why'"),
        ("tracker = WorkTracker(); tracker.add()", "tracker.idle()", "tracker.done()", "tracker.count == 0"),
        (
            "scope = CancelScope()",
            "inside(scope)",
            "scope.cancel('why')",
            "scope.cancelled and scope.reason == 'why' and not scope.cancel()",
        ),
    ],
    ids=["send", "floor", "reply", "close", "idle", "cancel"],
)
def test_a_loop_may_use_what_wakes_a_task(begin, wait, wake, look):
    """It finds it as it is from then on. In a program of its own: a deadlock of the main thread would keep the GIL."""
    story = STORY_OF_A_LOOP.format(begin=begin, wait=wait, wake=wake, look=look)
    path = os.pathsep.join([str(Path(microio.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", story], env={**os.environ, "PYTHONPATH": path}, check=True, timeout=60)


# reference cycles


def collected(make):
    """Whether what `make()` returns weak references to is gone after a collection."""
    references = make()
    gc.collect()
    return [reference() for reference in references] == [None] * len(references)


def test_a_cycle_through_an_item_is_collected():
    def make():
        node = Node()
        node.ends = send, receive = create_channel()
        send.send_nowait(node)
        return weakref.ref(node), weakref.ref(send), weakref.ref(receive)

    assert collected(make)


def test_a_cycle_through_the_failure_of_a_channel_is_collected():
    def make():
        node, cause = Node(), ValueError("reader died")
        cause.node = node
        node.ends = send, _ = create_channel()
        send.fail(cause)
        return weakref.ref(node), weakref.ref(send)

    assert collected(make)


def test_a_cycle_through_an_attribute_is_collected():
    def make():
        things = [CloseScope(), WorkTracker(), RequestRegistry(), RequestRegistry().reply(1)]
        for thing in things:
            thing.itself = thing
        return [weakref.ref(thing) for thing in things]

    assert collected(make)


def test_a_cycle_through_a_close_scope_is_collected():
    def make():
        by_reason, by_exc = CloseScope(), CloseScope()
        by_reason.close([by_reason])
        by_exc.fail(ValueError(by_exc))
        return weakref.ref(by_reason), weakref.ref(by_exc)

    assert collected(make)


def test_a_cycle_through_busy_is_collected():
    def make():
        tracker = WorkTracker()
        tracker.add()
        tracker.busy.tracker = tracker
        return weakref.ref(tracker), weakref.ref(tracker.busy)

    assert collected(make)


def test_cycles_through_a_registry_are_collected():
    """Through a key, an unread value, an unread failure, a handle, the cause of the close."""

    def make():
        nodes = [Node() for _ in range(5)]
        for node in nodes:
            node.registry = RequestRegistry()
        key, value, failure, handle, closed = nodes
        key.registry.register(key)
        value.waiter = value.registry.register(1)
        value.registry.resolve(1, value)
        failure.waiter, cause = failure.registry.register(1), ValueError("no")
        cause.node = failure
        failure.registry.fail(1, cause)
        handle.reply = handle.registry.reply(handle)
        cause = ValueError("reader died")
        cause.node = closed
        closed.registry.close(cause)
        return [weakref.ref(node) for node in nodes] + [weakref.ref(node.registry) for node in nodes]

    assert collected(make)


def test_a_cycle_through_a_bound_loop_is_collected(loop_factory):
    def make():
        loop = loop_factory()
        send, receive = create_channel()
        receive.bind(loop)
        send.send_nowait(loop)
        send.send_nowait(receive)
        loop.run_until_complete(receive.receive())
        send.send_nowait(loop)
        loop.close()
        return weakref.ref(send), weakref.ref(receive), weakref.ref(loop)

    assert collected(make)


def test_a_task_that_waits_is_kept_by_what_it_waits_for(run):
    """Nobody else refers to it: a collection must not take it away."""

    async def main():
        send, receive = create_channel()
        full, other = create_channel(capacity=1)
        full.send_nowait(0)
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        tracker.add()
        ended = []

        async def wait(awaitable):
            ended.append(await awaitable)

        for awaitable in (
            *(receive.receive() for _ in range(8)),
            anext(receive),
            full.send(1),
            scope.wait_async(),
            tracker.idle(),
            registry.wait_async(1, registry.register(1)),
            registry.request_async(2, lambda reply: None),
        ):
            asyncio.create_task(wait(awaitable))  # that nobody refers to it is the story
        del awaitable, receive
        await asyncio.sleep(0)
        gc.collect()
        for item in range(9):
            send.send_nowait(item)
        assert other.drain_nowait() == [0]
        scope.close()
        tracker.done()
        registry.resolve(1, "reply")
        registry.resolve(2, "answer")
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(ended) == 14
        assert {*range(9), True, "reply", "answer"} <= set(ended)

    run(main())


def test_a_task_that_waits_for_nothing_any_more_is_collected(loop_factory):
    """What it waits for is referred to by the task alone: a cycle, and garbage, like a task that waits for a future."""

    def make():
        loop = loop_factory()
        local = Node()

        async def wait(awaitable, kept):
            await awaitable

        _, receive = create_channel()
        tracker, registry = WorkTracker(), RequestRegistry()
        tracker.add()
        waits = [receive.receive(), CloseScope().wait_async(), tracker.idle()]
        waits.append(registry.wait_async(1, registry.register(1)))
        tasks = [loop.create_task(wait(awaitable, local)) for awaitable in waits]
        for task in tasks:
            task._log_destroy_pending = False  # it is meant to be left behind
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        return [weakref.ref(local), weakref.ref(loop)] + [weakref.ref(task) for task in tasks]

    assert collected(make)


# subclasses, attributes, weak references


def test_subclasses_may_have_constructors_of_their_own():
    class Scope(CloseScope):
        def __init__(self, name, *, level=0):
            super().__init__()
            self.name, self.level = name, level

        def close(self, reason=None, exc=None):
            self.closes = getattr(self, "closes", 0) + 1
            return super().close(reason, exc)

    class Tracker(WorkTracker):
        def __init__(self, limit):
            super().__init__()
            self.limit = limit

        def add(self):
            if self.count >= self.limit:
                raise OverflowError
            super().add()

    class Registry(RequestRegistry):
        def __init__(self, *names, **options):
            super().__init__()
            self.names, self.options = names, options

        def register(self, key):
            return super().register((key, *self.names))

    scope = Scope("name", level=3)
    assert (scope.name, scope.level, scope.close(), scope.close(), scope.closes) == ("name", 3, True, False, 2)
    tracker = Tracker(1)
    tracker.add()
    with pytest.raises(OverflowError):
        tracker.add()
    registry = Registry("a", "b", option=1)
    registry.register(1)
    assert (1, "a", "b") in registry and registry.options == {"option": 1}


def test_a_subclass_need_not_call_the_constructor():
    class Scope(CloseScope):
        def __init__(self, name):
            self.name = name

    scope = Scope("name")
    assert scope.close("bye") and scope.reason == "bye" and scope.wait(0)


def test_a_handle_may_be_subclassed():
    class Reply(ReplyHandle):
        def resolve(self, value):
            return super().resolve(("wrapped", value))

    registry = RequestRegistry()
    reply = Reply(registry, 1, registry.register(1))
    assert reply.resolve("value") is True
    assert reply.wait() == ("wrapped", "value")


def test_everything_takes_attributes_and_weak_references():
    send, receive = create_channel()
    registry = RequestRegistry()
    for thing in send, receive, CloseScope(), WorkTracker(), registry, registry.reply(1):
        thing.extra = "attribute"
        assert thing.extra == "attribute" and vars(thing)["extra"] == "attribute"
        assert weakref.ref(thing)() is thing
    for thing in registry.register(2), receive.receive():
        assert weakref.ref(thing)() is thing


def test_the_ends_of_a_channel_are_hashable_and_distinct():
    send, receive = create_channel()
    assert len({send, receive, *create_channel()}) == 4
    assert send == send and send != receive and bool(send) and bool(receive)


# exceptions that are raised again and again


def depth(error):
    return len(traceback.extract_tb(error.__traceback__))


def failures(cause):
    """Ways to raise one failure several times, each with a key of its own."""
    send, receive = create_channel()
    send.fail(cause)
    scope, failed, closed, by_hand = CloseScope(), RequestRegistry(), RequestRegistry(), RequestRegistry()
    scope.fail(cause)
    failing = [failed.register(key) for key in range(4)]
    failed.fail_all(cause)
    closing = [closed.register(key) for key in range(4)]
    closed.close(cause)
    waiters = [by_hand.register(key) for key in range(4)]
    for waiter in waiters:
        waiter.put(cause)
    return {
        "receive": lambda key: receive.receive(),
        "anext": lambda key: anext(receive),
        "send_nowait": lambda key: send.send_nowait(key),
        "send": lambda key: send.send(key),
        "fail_all": lambda key: failed.wait(key, failing[key]),
        "fail_all, async": lambda key: failed.wait_async(key, failing[key]),
        "close": lambda key: closed.wait(key, closing[key]),
        "register": lambda key: closed.register(key),
        "request": lambda key: closed.request(key, pytest.fail),
        "request_async": lambda key: closed.request_async(key, pytest.fail),
        "put": lambda key: by_hand.wait(key, waiters[key]),
        "scope": lambda key: scope.raise_if_closed(),
    }


@pytest.mark.parametrize("way", failures(ValueError()))
def test_a_failure_raised_again_and_again_keeps_its_traceback_short(run, way):
    """The same instance each time, and no longer traceback than the first time."""

    async def main():
        cause = ValueError("reader died")
        fail = failures(cause)[way]
        depths = []
        for key in range(4):
            with pytest.raises((ValueError, RuntimeError)) as caught:
                await fail(key)
            assert cause in (caught.value, caught.value.__cause__)
            depths.append((depth(caught.value), depth(cause)))
        assert len(set(depths)) == 1, depths

    run(main())


def test_a_failure_in_several_threads_keeps_its_traceback_short():
    cause, registry = ValueError("reader died"), RequestRegistry()
    barrier = threading.Barrier(9)

    def wait(key):
        waiter = registry.register(key)
        barrier.wait(GUARD)
        with pytest.raises(ValueError):
            registry.wait(key, waiter, GUARD)

    with ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(wait, key) for key in range(8)]
        barrier.wait(GUARD)
        registry.fail_all(cause)
        for waited in waits:
            waited.result()
    assert depth(cause) < 8


def test_a_failure_remembers_where_it_was_raised(run):
    def the_origin():
        raise ValueError("reader died")

    async def main():
        try:
            the_origin()
        except ValueError as error:
            cause = error
        send, receive = create_channel()
        send.fail(cause)
        for _ in range(2):
            with pytest.raises(ValueError) as caught:
                await receive.receive()
            assert "the_origin" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        registry = RequestRegistry()
        for _ in range(2):
            with pytest.raises(ValueError) as caught:
                registry.request(1, lambda reply: reply.fail(cause))
            assert "the_origin" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]

    run(main())


def test_an_exception_that_is_an_item_is_not_touched(run):
    async def main():
        send, receive = create_channel()
        item = ValueError("data")
        for _ in range(3):
            send.send_nowait(item)
            assert await receive.receive() is item
        assert item.__traceback__ is None and item.__context__ is None

    run(main())


# noise


@pytest.fixture
def quiet(run):
    """Runs a coroutine; fails if there is a warning, an error told to the loop, or one that cannot be raised."""

    def quiet(main):
        noise = []

        async def watched():
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context))
            await main()
            for _ in range(3):
                await asyncio.sleep(0)
            gc.collect()

        hook = sys.unraisablehook
        sys.unraisablehook = noise.append
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run(watched())
                gc.collect()
        finally:
            sys.unraisablehook = hook
        assert noise == []
        assert [str(warning.message) for warning in caught] == []

    return quiet


def test_awaitables_that_are_never_awaited_are_quiet(quiet):
    async def main():
        send, receive = create_channel(capacity=1)
        registry = RequestRegistry()
        receive.receive()
        anext(receive)
        send.send(1)
        CloseScope().wait_async()
        WorkTracker().idle()
        registry.wait_async(1, registry.register(1))
        assert receive.drain_nowait() == []

    quiet(main)


def test_cancelled_waits_are_quiet(quiet):
    async def main():
        send, receive = create_channel()
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        tracker.add()
        for wait in (
            receive.receive(),
            anext(receive),
            scope.wait_async(),
            tracker.idle(),
            registry.wait_async(1, registry.register(1)),
            registry.request_async(2, lambda reply: None, 60),
        ):
            task = await parked(wait)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        send.fail(ValueError())
        scope.fail(ValueError())
        tracker.done()
        registry.fail_all(ValueError())

    quiet(main)


def test_a_failure_and_a_cancel_in_the_same_turn_are_quiet(quiet):
    async def main():
        send, receive = create_channel()
        registry = RequestRegistry()
        tasks = [await parked(receive.receive()), await parked(anext(receive))]
        tasks.append(await parked(registry.wait_async(1, registry.register(1), 60)))
        tasks.append(await parked(registry.request_async(2, lambda reply: None)))
        send.fail(ValueError())
        registry.fail_all(ValueError())
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, ValueError | asyncio.CancelledError)

    quiet(main)


def test_failures_that_nobody_waits_for_are_quiet(quiet):
    async def main():
        send, _ = create_channel()
        send.fail(ValueError())
        registry = RequestRegistry()
        registry.register(1)
        registry.fail_all(ValueError())
        registry.reply(2).fail(ValueError())
        registry.register(3)
        registry.close(ValueError())
        CloseScope().fail(ValueError())

    quiet(main)


def test_timed_out_waits_are_quiet(quiet):
    async def main():
        _, receive = create_channel()
        registry = RequestRegistry()
        for wait in receive.receive(), CloseScope().wait_async(), registry.request_async(1, lambda reply: None):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait, 0.001)
        with pytest.raises(TimeoutError):
            await registry.request_async(1, lambda reply: None, 0.001)

    quiet(main)


def test_tasks_that_the_runner_cancels_at_its_end_are_quiet(quiet):
    kept = []

    async def main():
        send, receive = create_channel()
        scope, registry = CloseScope(), RequestRegistry()
        kept.extend((send, scope, registry))
        for wait in receive.receive(), scope.wait_async(), registry.wait_async(1, registry.register(1)):
            await parked(wait)

    quiet(main)
    kept[0].close()
    kept[1].close()
    assert len(kept[2]) == 0


def test_tasks_that_are_collected_with_their_loop_are_quiet(monkeypatch):
    """One that leaves the line wakes the next one, by way of a loop that has lost its attributes."""
    noise = []
    monkeypatch.setattr(sys, "unraisablehook", noise.append)
    for make in create_channel()[1].receive, Mailbox().get, PriorityMailbox().get:
        loop = asyncio.new_event_loop()

        async def begin():
            for task in [await parked(make()) for _ in range(5)]:
                task._log_destroy_pending = False  # they are meant to be left behind

        loop.run_until_complete(begin())
        loop.close()
        del loop, make
        gc.collect()
    assert noise == []


# what the collector sees of an object that is being made

MAKERS = {
    "channel": create_channel,
    "mailbox": Mailbox,
    "priority mailbox": PriorityMailbox,
    "actor": lambda: ActorCore(print),
    "close scope": CloseScope,
    "tracker": WorkTracker,
    "registry": RequestRegistry,
    "reply": lambda: RequestRegistry().reply("key"),
    "cancel scope": lambda: move_on_after(1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_collection_may_come_while_an_object_is_made(name):
    """On 3.11 it finds objects that are still empty."""
    make, before = MAKERS[name], gc.get_threshold()
    gc.set_threshold(1)
    try:
        kept = [make() for _ in range(300)]
        for class_ in {type(part) for made in kept for part in (made if isinstance(made, tuple) else (made,))}:
            if class_ in (CloseScope, WorkTracker, RequestRegistry, CancelScope):
                subclass = type("Subclass", (class_,), {"__init__": lambda self, *args: None})
                kept.extend(subclass(1) for _ in range(300))
    finally:
        gc.set_threshold(*before)
