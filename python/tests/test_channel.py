"""The channel: thread-safe sends into a loop, an explicit end, nothing lost."""

import asyncio
import collections.abc
import contextvars
import dataclasses
import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import microio
from microio import (
    BrokenResourceError,
    CancelScope,
    ChannelStats,
    ClosedResourceError,
    EndOfStream,
    LoopServiceThread,
    ObjectReceiveChannel,
    ObjectSendChannel,
    create_channel,
)

GUARD = 10  # seconds: reached only by a test that fails


async def parked(awaitable):
    """A task that has begun to wait."""
    task = asyncio.create_task(awaitable)
    await asyncio.sleep(0)
    return task


async def collect(receive):
    return [item async for item in receive]


@pytest.fixture
def busy_threads():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


# sending


def test_create_channel_returns_a_sender_and_a_receiver():
    pair = create_channel()
    assert type(pair) is tuple
    assert [type(end) for end in pair] == [ObjectSendChannel, ObjectReceiveChannel]


@pytest.mark.parametrize("late_send", ["", "Raise", "ignore"])
def test_late_send_is_raise_or_drop(late_send):
    with pytest.raises(ValueError, match="late_send"):
        create_channel(late_send=late_send)


def test_send_nowait_returns_the_running_count():
    send, _ = create_channel()
    assert [send.send_nowait(None) for _ in range(3)] == [1, 2, 3]


def test_a_send_after_close_raises():
    send, _ = create_channel()
    send.close()
    with pytest.raises(ClosedResourceError, match="^send on closed channel$") as caught:
        send.send_nowait(1)
    assert caught.value.__cause__ is None


def test_a_send_after_fail_raises_from_the_cause():
    send, _ = create_channel()
    cause = ValueError("reader died")
    send.fail(cause)
    with pytest.raises(ClosedResourceError, match="^send on closed channel$") as caught:
        send.send_nowait(1)
    assert caught.value.__cause__ is cause


def test_a_late_send_is_dropped_where_that_was_asked_for():
    send, receive = create_channel(late_send="drop")
    send.send_nowait("in time")
    send.close()
    assert send.send_nowait("late") is None
    assert receive.stats() == ChannelStats(sent=1, received=0, dropped=1, queued=1, closed=True)


def test_a_refused_send_counts_as_dropped_too():
    send, _ = create_channel()
    send.close()
    with pytest.raises(ClosedResourceError):
        send.send_nowait(1)
    assert send.stats() == ChannelStats(sent=0, received=0, dropped=1, queued=0, closed=True)


@pytest.mark.parametrize("late_send", ["raise", "drop"])
def test_a_send_after_the_loop_was_closed_is_late(run, late_send):
    send, receive = create_channel(late_send=late_send)

    async def main():
        receive.bind()
        send.send_nowait("in time")

    run(main())
    if late_send == "raise":
        with pytest.raises(BrokenResourceError):
            send.send_nowait("late")
    else:
        assert send.send_nowait("late") is None
    assert send.stats() == ChannelStats(sent=1, received=0, dropped=1, queued=1, closed=False)
    assert receive.drain_nowait() == ["in time"]


@pytest.mark.parametrize("late_send", ["raise", "drop"])
def test_an_awaited_send_after_the_loop_was_closed_is_late(run, late_send):
    send, receive = create_channel(late_send=late_send)

    async def bind():
        receive.bind()

    async def late():
        if late_send == "raise":
            with pytest.raises(BrokenResourceError):
                await send.send("late")
        else:
            assert await send.send("late") is None

    run(bind())
    run(late())
    assert send.stats() == ChannelStats(sent=0, received=0, dropped=1, queued=0, closed=False)


STORY_OF_A_LOOP = """
import asyncio
from microio import create_channel

send, receive = create_channel(capacity=1)

class Curious(asyncio.SelectorEventLoop):
    def call_soon(self, *args, **kwargs):
        assert receive.drain_nowait(0) == []
        return super().call_soon(*args, **kwargs)

async def main():
    receive.bind()
    send.send_nowait(1)
    sending = asyncio.create_task(send.send(2))
    await asyncio.sleep(0)
    received = [await receive.receive()]
    await sending
    assert received + receive.drain_nowait() == [1, 2]

with asyncio.Runner(loop_factory=Curious) as runner:
    runner.run(main())
"""


def test_a_loop_may_use_the_channel_as_a_sender_that_waited_is_woken():
    """In a program of its own: who waits for a lock of its own thread keeps the GIL, too."""
    path = os.pathsep.join([str(Path(microio.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", STORY_OF_A_LOOP], env={**os.environ, "PYTHONPATH": path}, check=True, timeout=60)


def test_a_thread_wakes_the_parked_receiver(run):
    send, receive = create_channel()

    async def main():
        task = await parked(receive.receive())
        await asyncio.to_thread(send.send_nowait, "hello")
        return await asyncio.wait_for(task, GUARD)

    assert run(main()) == "hello"


def test_items_arrive_in_the_order_of_each_sender(run, busy_threads):
    send, receive = create_channel()

    def produce(name):
        for number in range(500):
            send.send_nowait((name, number))

    async def main():
        receive.bind()
        with ThreadPoolExecutor(4) as pool:
            producers = asyncio.gather(
                *(asyncio.get_running_loop().run_in_executor(pool, produce, i) for i in range(4))
            )
            producers.add_done_callback(lambda _: send.close())
            return await asyncio.wait_for(collect(receive), GUARD)

    items = run(main())
    assert len(items) == 2000
    for name in range(4):
        assert [number for sender, number in items if sender == name] == list(range(500))


# what an item may be


ITEMS = [
    None,
    False,
    (),
    (1,),
    (1, 2),
    ValueError("data"),
    asyncio.CancelledError("data"),
    KeyboardInterrupt("data"),
    StopIteration("data"),
    StopAsyncIteration("data"),
    EndOfStream("data"),
    EndOfStream,
    StopIteration,
    asyncio.Queue,
]


@pytest.mark.parametrize("item", ITEMS, ids=repr)
def test_any_object_is_an_item(run, item):
    """Exceptions, tuples and None included: whatever was sent comes out, the very same object, by each way out."""

    async def main():
        send, receive = create_channel()
        for _ in range(4):
            send.send_nowait(item)
        assert await receive.receive() is item
        assert await anext(receive) is item
        async for received in receive:
            assert received is item
            break
        (drained,) = receive.drain_nowait()
        assert drained is item
        for awaitable in receive.receive(), anext(receive):
            task = await parked(awaitable)
            send.send_nowait(item)
            assert await task is item

    run(main())


@pytest.mark.parametrize("item", ITEMS, ids=repr)
def test_a_coroutine_driven_by_hand_ends_with_the_item(run, item):
    async def main():
        send, receive = create_channel()
        send.send_nowait(item)
        with pytest.raises(StopIteration) as caught:
            receive.receive().send(None)
        assert caught.value.value is item

    run(main())


def test_a_wake_before_the_task_has_asked_for_it_is_kept(run):
    async def main():
        send, receive = create_channel()
        steps = receive.receive().__await__()
        parked = next(steps)
        send.send_nowait(1)  # between the task's yield and its `add_done_callback`
        woken = asyncio.Event()
        parked.add_done_callback(lambda _: woken.set())
        await asyncio.wait_for(woken.wait(), 10)
        with pytest.raises(StopIteration) as end:
            next(steps)
        return end.value.value

    assert run(main()) == 1


def test_an_item_that_the_collector_sends_in_the_middle_of_a_receive_is_seen(run):
    """Before 3.12 any allocation may collect: also that of what a task is parked on, when the channel was found empty."""

    class Sends:
        def __del__(self):
            send.send_nowait("from __del__")

    async def main():
        receive.bind()
        send.send_nowait("first")
        assert await receive.receive() == "first"  # what the first one allocates is there
        steps = receive.receive().__await__()
        gc.collect()
        garbage = Sends()
        garbage.itself = garbage
        del garbage
        thresholds = gc.get_threshold()
        gc.set_threshold(1)
        gc.enable()
        try:
            parked = next(steps)
        except StopIteration as end:
            return end.value
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        woken = asyncio.Event()
        parked.add_done_callback(lambda _: woken.set())
        await asyncio.wait_for(woken.wait(), 10)
        with pytest.raises(StopIteration) as end:
            next(steps)
        return end.value.value

    send, receive = create_channel()
    gc.disable()
    try:
        assert run(main()) == "from __del__"
    finally:
        gc.enable()


def test_a_delivered_item_is_let_go_of(run):
    class Item:
        pass

    async def main():
        send, receive = create_channel()
        seen = []
        send.send_nowait(Item())
        seen.append(weakref.ref(await receive.receive()))
        send.send_nowait(Item())
        async for item in receive:
            seen.append(weakref.ref(item))
            del item
            break
        task = await parked(receive.receive())
        send.send_nowait(Item())
        seen.append(weakref.ref(await task))
        del task
        await asyncio.sleep(0)  # the loop lets go of the task, and so of its result
        send.send_nowait(Item())
        seen.append(weakref.ref(receive.drain_nowait()[0]))
        gc.collect()
        assert [ref() for ref in seen] == [None] * 4

    run(main())


@pytest.mark.parametrize("way", ["receive", "__anext__"])
def test_a_channel_that_was_received_from_goes_with_its_last_end(run, way):
    """No cycle is left behind by a receive: what is still queued does not have to wait for the collector."""

    class Item:
        pass

    async def main():
        send, receive = create_channel()
        send.send_nowait("received")
        assert await getattr(receive, way)() == "received"
        item = Item()
        send.send_nowait(item)
        return weakref.ref(item)

    gc.disable()
    try:
        assert run(main())() is None
    finally:
        gc.enable()


# the end


@pytest.mark.parametrize("end", [0, 1], ids=["send", "receive"])
def test_either_end_closes_both_once(end):
    pair = create_channel()
    assert not pair[0].closed and not pair[1].closed
    assert pair[end].close() is True
    assert pair[0].closed and pair[1].closed
    assert pair[0].close() is False and pair[1].close() is False
    assert pair[0].fail(ValueError()) is False and pair[1].fail(ValueError()) is False


@pytest.mark.parametrize("end", [0, 1], ids=["send", "receive"])
def test_either_end_fails_both_once(end):
    pair = create_channel()
    assert pair[end].fail(ValueError()) is True
    assert pair[0].closed and pair[1].closed
    assert pair[0].fail(ValueError()) is False and pair[1].fail(ValueError()) is False
    assert pair[0].close() is False and pair[1].close() is False


def test_closed_cannot_be_assigned():
    for end in create_channel():
        with pytest.raises(AttributeError):
            end.closed = True


def test_queued_items_come_before_the_end_of_stream(run):
    async def main():
        send, receive = create_channel()
        send.send_nowait(1)
        send.send_nowait(2)
        send.close()
        assert [await receive.receive(), await receive.receive()] == [1, 2]
        for _ in range(3):
            with pytest.raises(EndOfStream):
                await receive.receive()

    run(main())


def test_queued_items_come_before_the_failure(run):
    async def main():
        send, receive = create_channel()
        cause = ValueError("reader died")
        send.send_nowait(1)
        send.fail(cause)
        assert await receive.receive() == 1
        for _ in range(3):
            with pytest.raises(ValueError) as caught:
                await receive.receive()
            assert caught.value is cause

    run(main())


def test_async_for_ends_when_the_channel_is_closed(run):
    async def main():
        send, receive = create_channel()
        send.send_nowait(1)
        send.close()
        assert await collect(receive) == [1]
        assert await collect(receive) == []
        assert await anext(receive, "default") == "default"
        with pytest.raises(StopAsyncIteration):
            await anext(receive)

    run(main())


def test_async_for_raises_what_the_channel_failed_with(run):
    async def main():
        send, receive = create_channel()
        cause = ValueError("reader died")
        send.send_nowait(1)
        send.fail(cause)
        items = []
        for _ in range(2):
            with pytest.raises(ValueError) as caught:
                async for item in receive:
                    items.append(item)
            assert caught.value is cause
        assert items == [1]

    run(main())


@pytest.mark.parametrize("cause", [KeyboardInterrupt("stop"), asyncio.CancelledError("gone")], ids=repr)
def test_a_base_exception_is_a_failure_like_any_other(run, cause):
    async def main():
        send, receive = create_channel()
        send.fail(cause)
        with pytest.raises(type(cause)) as caught:
            await receive.receive()
        assert caught.value is cause

    run(main())


def test_the_receiver_is_its_own_iterator():
    _, receive = create_channel()
    assert aiter(receive) is receive


def test_close_wakes_every_receiver(run):
    async def main():
        send, receive = create_channel()
        tasks = [await parked(receive.receive()) for _ in range(3)]
        loop_over = await parked(collect(receive))
        send.close()
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD)
        assert [type(end) for end in ends] == [EndOfStream] * 3
        assert await asyncio.wait_for(loop_over, GUARD) == []

    run(main())


def test_fail_wakes_every_receiver(run):
    async def main():
        send, receive = create_channel()
        tasks = [await parked(receive.receive()) for _ in range(3)]
        cause = ValueError("reader died")
        await asyncio.to_thread(send.fail, cause)
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD)
        assert ends == [cause] * 3

    run(main())


def test_close_never_overtakes_an_accepted_send(run, busy_threads):
    """Eight senders, one of which closes: the sum of what they were told equals what is received."""

    async def one_round():
        send, receive = create_channel()
        barrier = threading.Barrier(8)

        def sender(closes):
            barrier.wait(GUARD)
            accepted = 0
            with suppress(ClosedResourceError):
                while True:
                    send.send_nowait(accepted)
                    accepted += 1
                    if closes and accepted == 20:
                        send.close()
            return accepted

        receive.bind()
        loop = asyncio.get_running_loop()
        senders = [loop.run_in_executor(pool, sender, number == 0) for number in range(8)]
        received = len(await asyncio.wait_for(collect(receive), GUARD))
        assert sum(await asyncio.gather(*senders)) == received
        assert send.stats() == ChannelStats(received, received, 8, 0, True)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            run(one_round())


# draining


def test_drain_sees_what_was_sent_before_bind():
    send, receive = create_channel()
    send.send_nowait(1)
    send.send_nowait(2)
    assert receive.drain_nowait() == [1, 2]
    assert receive.drain_nowait() == []
    assert receive.stats() == ChannelStats(sent=2, received=2)


def test_drain_takes_at_most_max_items():
    send, receive = create_channel()
    for item in range(5):
        send.send_nowait(item)
    assert receive.drain_nowait(0) == []
    assert receive.drain_nowait(-1) == []
    assert receive.drain_nowait(2) == [0, 1]
    assert receive.drain_nowait(max_items=1) == [2]
    assert receive.drain_nowait(max_items=None) == [3, 4]


def test_drain_leaves_the_end_in_place(run):
    async def main():
        send, receive = create_channel()
        send.send_nowait(1)
        send.close()
        assert receive.drain_nowait() == [1]
        assert receive.drain_nowait() == []
        with pytest.raises(EndOfStream):
            await receive.receive()

    run(main())


def test_drain_of_a_failed_channel_gives_the_items_and_leaves_the_failure(run):
    async def main():
        send, receive = create_channel()
        send.send_nowait(1)
        send.fail(ValueError("reader died"))
        assert receive.drain_nowait() == [1]
        with pytest.raises(ValueError):
            await receive.receive()

    run(main())


def test_a_fence_sent_after_a_drain_comes_before_nothing_older(run, busy_threads):
    """`drain_nowait(); send(fence)` in the loop: what was sent before the drain never comes out after the fence."""

    async def main():
        send, receive = create_channel()
        receive.bind()
        sent = 0

        def sender():
            nonlocal sent
            for number in range(1, 3000):
                send.send_nowait(number)
                sent = number
            send.close()

        with ThreadPoolExecutor(1) as pool:
            sending = asyncio.get_running_loop().run_in_executor(pool, sender)
            while not sending.done():
                before = sent
                receive.drain_nowait()
                with suppress(ClosedResourceError):
                    send.send_nowait("fence")
                async for item in receive:
                    if item == "fence":
                        break
                    assert item > before
                await asyncio.sleep(0)
            await sending

    run(main())


def test_a_drain_in_another_thread_and_a_receiver_share_the_items(run, busy_threads):
    async def main():
        send, receive = create_channel()
        receive.bind()

        def work():
            drained = []
            for number in range(2000):
                send.send_nowait(number)
                drained += receive.drain_nowait(1)
            send.close()
            return drained

        with ThreadPoolExecutor(1) as pool:
            working = asyncio.get_running_loop().run_in_executor(pool, work)
            received = await asyncio.wait_for(collect(receive), GUARD)
            drained = await working
        assert sorted(received + drained) == list(range(2000))
        assert receive.stats() == ChannelStats(2000, 2000, 0, 0, True)

    run(main())


# stats


def test_stats_are_a_mutable_dataclass_with_defaults():
    assert dataclasses.is_dataclass(ChannelStats)
    assert dataclasses.asdict(ChannelStats()) == {
        "sent": 0,
        "received": 0,
        "dropped": 0,
        "queued": 0,
        "closed": False,
    }
    stats = ChannelStats(1, 2, 3, 4, True)
    stats.sent = 9
    assert stats == ChannelStats(sent=9, received=2, dropped=3, queued=4, closed=True)


def test_both_ends_give_the_same_stats_a_new_object_each_time():
    send, receive = create_channel()
    send.send_nowait(1)
    stats = send.stats()
    stats.sent = 100
    assert receive.stats() == send.stats() == ChannelStats(sent=1, queued=1)


def test_items_in_flight_are_counted(run):
    """Between a send and the wake of its receiver the item is queued."""

    async def main():
        send, receive = create_channel()
        task = await parked(receive.receive())
        send.send_nowait(1)
        assert send.stats() == ChannelStats(sent=1, received=0, queued=1)
        await task
        assert send.stats() == ChannelStats(sent=1, received=1, queued=0)

    run(main())


def test_stats_add_up_at_every_instant(run, busy_threads):
    async def main():
        send, receive = create_channel()
        receive.bind()

        def sender():
            for number in range(1000):
                send.send_nowait(number)

        def watcher():
            while not (stats := send.stats()).closed:
                assert stats.sent == stats.received + stats.queued
                assert stats.queued >= 0

        with ThreadPoolExecutor(3) as pool:
            loop = asyncio.get_running_loop()
            watching = loop.run_in_executor(pool, watcher)
            sending = asyncio.gather(*(loop.run_in_executor(pool, sender) for _ in range(2)))
            sending.add_done_callback(lambda _: send.close())
            received = await asyncio.wait_for(collect(receive), GUARD)
            await asyncio.gather(watching, sending)
        assert receive.stats() == ChannelStats(2000, len(received), 0, 0, True)

    run(main())


# loops


def test_bind_needs_a_loop():
    _, receive = create_channel()
    with pytest.raises(RuntimeError, match="no running event loop"):
        receive.bind()
    with pytest.raises(RuntimeError, match="no running event loop"):
        receive.receive().send(None)


def test_a_second_bind_changes_nothing(run):
    async def main():
        send, receive = create_channel()
        loop = asyncio.get_running_loop()
        other = asyncio.new_event_loop()
        assert receive.bind() is None
        assert receive.bind() is None
        assert receive.bind(loop) is None
        assert receive.bind(other) is None
        other.close()
        send.send_nowait(1)
        assert await receive.receive() == 1

    run(main())


def test_a_loop_can_be_bound_before_it_runs(loop_factory):
    send, receive = create_channel()
    loop = loop_factory()
    receive.bind(loop)
    send.send_nowait(1)
    assert loop.run_until_complete(receive.receive()) == 1
    loop.close()
    with pytest.raises(BrokenResourceError):
        send.send_nowait(2)


def test_receive_on_another_open_loop_raises_and_takes_nothing(loop_factory):
    send, receive = create_channel()
    send.send_nowait(1)
    send.send_nowait(2)
    first, second = loop_factory(), loop_factory()

    async def main():
        awaitables = receive.receive(), anext(receive)
        for awaitable in awaitables:
            with pytest.raises(RuntimeError, match="loop"):
                await awaitable

    assert first.run_until_complete(receive.receive()) == 1  # binds
    second.run_until_complete(main())
    assert first.run_until_complete(receive.receive()) == 2
    first.close()
    second.close()


def test_queued_items_move_to_the_next_loop(run):
    send, receive = create_channel()

    async def first():
        receive.bind()
        send.send_nowait(1)
        send.send_nowait(2)
        return await receive.receive()

    async def second():
        receive.bind()
        send.send_nowait(3)
        return [await receive.receive(), await receive.receive()]

    assert run(first()) == 1
    assert run(second()) == [2, 3]


def test_receive_binds_to_a_new_loop_when_the_old_one_is_closed(run):
    send, receive = create_channel()
    send.send_nowait(1)
    assert run(receive.receive()) == 1

    async def main():
        task = await parked(receive.receive())
        send.send_nowait(2)
        return await task

    assert run(main()) == 2


def test_a_receiver_left_on_a_closed_loop_takes_nothing(loop_factory):
    send, receive = create_channel()
    first, second = loop_factory(), loop_factory()
    left = first.create_task(receive.receive())
    first.run_until_complete(asyncio.sleep(0))
    first.close()
    left._log_destroy_pending = False  # it is meant to be left behind

    async def main():
        task = await parked(receive.receive())
        send.send_nowait(1)
        return await asyncio.wait_for(task, GUARD)

    assert second.run_until_complete(main()) == 1
    second.close()


# several receivers, cancellation


def test_receivers_are_served_in_the_order_they_came(run):
    async def main():
        send, receive = create_channel()
        tasks = [await parked(receive.receive()) for _ in range(3)]
        for item in "abc":
            send.send_nowait(item)
        assert await asyncio.wait_for(asyncio.gather(*tasks), GUARD) == ["a", "b", "c"]

    run(main())


def test_each_item_goes_to_one_of_several_loops_over_the_channel(run):
    async def main():
        send, receive = create_channel()
        tasks = [await parked(collect(receive)) for _ in range(3)]
        for item in range(300):
            send.send_nowait(item)
            if item % 7 == 0:
                await asyncio.sleep(0)
        send.close()
        shares = await asyncio.wait_for(asyncio.gather(*tasks), GUARD)
        assert sorted(item for share in shares for item in share) == list(range(300))
        assert all(share == sorted(share) for share in shares)

    run(main())


def test_a_cancelled_receiver_takes_nothing(run):
    async def main():
        send, receive = create_channel()
        task = await parked(receive.receive())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        send.send_nowait(1)
        assert await asyncio.wait_for(receive.receive(), GUARD) == 1

    run(main())


@pytest.mark.parametrize("cancel_first", [False, True])
def test_an_item_survives_a_cancel_in_the_same_turn(run, cancel_first):
    async def main():
        send, receive = create_channel()
        task = await parked(receive.receive())
        if cancel_first:
            task.cancel()
            send.send_nowait(1)
        else:
            send.send_nowait(1)
            task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert ([outcome] if outcome == 1 else receive.drain_nowait()) == [1]

    run(main())


@pytest.mark.parametrize("cancel_first", [False, True])
def test_an_item_survives_the_cancel_of_a_scope_in_the_same_turn(run, cancel_first):
    async def main():
        send, receive = create_channel()
        scope, received = CancelScope(), []

        async def receiver():
            with scope:
                received.append(await receive.receive())

        task = await parked(receiver())
        if cancel_first:
            scope.cancel()
            send.send_nowait(1)
        else:
            send.send_nowait(1)
            scope.cancel()
        await asyncio.wait_for(task, GUARD)
        assert received + receive.drain_nowait() == [1]

    run(main())


def test_a_receiver_in_a_cancelled_scope_takes_nothing(run):
    async def main():
        send, receive = create_channel()
        send.send_nowait(1)
        with CancelScope() as scope:
            scope.cancel()
            for _ in range(2):
                with pytest.raises(asyncio.CancelledError):
                    await receive.receive()
            with pytest.raises(asyncio.CancelledError):
                await anext(receive)
        assert receive.drain_nowait() == [1]

    run(main())


def test_a_cancelled_receiver_passes_its_wake_on(run):
    async def main():
        send, receive = create_channel()
        first, second = await parked(receive.receive()), await parked(receive.receive())
        send.send_nowait(1)
        first.cancel()
        assert await asyncio.wait_for(second, GUARD) == 1
        with pytest.raises(asyncio.CancelledError):
            await first

    run(main())


def test_a_timed_out_receive_loses_nothing(run):
    """A timeout strikes while the item is being sent, over and over: each item comes out once."""

    async def main():
        send, receive = create_channel()
        received = []

        def sender():
            for number in range(300):
                send.send_nowait(number)
            send.close()

        with ThreadPoolExecutor(1) as pool:
            sending = asyncio.get_running_loop().run_in_executor(pool, sender)
            while True:
                try:
                    async with asyncio.timeout(0):
                        received.append(await receive.receive())
                except TimeoutError:
                    await asyncio.sleep(0)
                except EndOfStream:
                    break
            await sending
        assert received == list(range(300))

    run(main())


def test_a_receiver_that_always_finds_items_lets_others_run(run):
    async def main():
        send, receive = create_channel()
        for number in range(50_000):
            send.send_nowait(number)
        send.close()
        turns = 0

        def turn():
            nonlocal turns
            turns += 1
            handle[0] = loop.call_soon(turn)

        loop = asyncio.get_running_loop()
        handle = [loop.call_soon(turn)]
        for way in "async for", "receive":
            before = turns
            if way == "async for":
                async for number in receive:
                    if number == 25_000:
                        break
            else:
                with suppress(EndOfStream):
                    while True:
                        await receive.receive()
            assert turns > before, way
        handle[0].cancel()

    run(main())


def test_a_receiver_that_always_finds_items_can_be_cancelled(run):
    async def main():
        send, receive = create_channel()
        send.send_nowait(0)

        async def feed_itself():
            async for number in receive:
                send.send_nowait(number + 1)

        task = await parked(feed_itself())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stats = send.stats()
        assert stats.sent == stats.received + stats.queued

    run(main())


# the awaitables


def test_what_receive_returns_is_a_coroutine():
    _, receive = create_channel()
    for awaitable in receive.receive(), anext(receive):
        assert isinstance(awaitable, collections.abc.Coroutine)
        awaitable.close()


def test_receive_can_be_run_as_the_main_coroutine(run):
    send, receive = create_channel()
    send.send_nowait(1)
    assert run(receive.receive()) == 1


def test_gather_awaits_each_receive_by_itself(run):
    """`gather` awaits equal objects once: two calls of `receive()` must not be one object."""

    async def main():
        send, receive = create_channel()
        send.send_nowait(1)
        send.send_nowait(2)
        assert await asyncio.gather(receive.receive(), receive.receive()) == [1, 2]
        later = asyncio.gather(receive.receive(), receive.receive())
        await asyncio.sleep(0)
        send.send_nowait(3)
        send.send_nowait(4)
        assert await later == [3, 4]

    run(main())


def test_receive_from_another_thread_through_its_loop(run):
    async def main():
        send, receive = create_channel()
        loop = asyncio.get_running_loop()

        def elsewhere():
            future = asyncio.run_coroutine_threadsafe(receive.receive(), loop)
            send.send_nowait("hello")
            return future.result(GUARD)

        assert await asyncio.to_thread(elsewhere) == "hello"

    run(main())


def test_a_coroutine_that_was_closed_cannot_be_awaited(run):
    async def main():
        send, receive = create_channel()
        send.send_nowait(1)
        coroutine = receive.receive()
        coroutine.close()
        coroutine.close()
        with pytest.raises(RuntimeError):
            await coroutine
        assert receive.drain_nowait() == [1]

    run(main())


def test_a_coroutine_raises_what_is_thrown_in(run):
    async def main():
        send, receive = create_channel()
        error = ValueError("thrown")
        with pytest.raises(ValueError) as caught:
            receive.receive().throw(error)
        assert caught.value is error
        waiting = receive.receive()
        waiting.send(None)
        with pytest.raises(ValueError) as caught:
            waiting.throw(error)
        assert caught.value is error
        send.send_nowait(1)
        assert await receive.receive() == 1

    run(main())


def test_a_task_that_receives_can_be_shown(run):
    async def main():
        _, receive = create_channel()
        task = await parked(receive.receive())
        assert "receive" in repr(task)
        task.get_stack()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_a_task_written_in_python_can_receive(run):
    async def main():
        send, receive = create_channel()
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **kw: asyncio.tasks._PyTask(coro, loop=loop, **kw))
        task = await parked(receive.receive())
        send.send_nowait(1)
        assert await asyncio.wait_for(task, GUARD) == 1
        task = await parked(receive.receive())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_an_eager_task_can_receive(run):
    async def main():
        send, receive = create_channel()
        loop = asyncio.get_running_loop()
        send.send_nowait(1)
        ready, waiting = (asyncio.Task(receive.receive(), loop=loop, eager_start=True) for _ in range(2))
        assert ready.done() and ready.result() == 1
        send.send_nowait(2)
        assert await asyncio.wait_for(waiting, GUARD) == 2

    run(main())


# bounded


def test_a_full_channel_refuses_send_nowait(run):
    async def main():
        send, receive = create_channel(capacity=2)
        assert [send.send_nowait(1), send.send_nowait(2)] == [1, 2]
        with pytest.raises(asyncio.QueueFull):
            send.send_nowait(3)
        assert send.stats().sent == 2 and send.stats().queued == 2
        assert await receive.receive() == 1
        assert send.send_nowait(3) == 3
        assert receive.drain_nowait() == [2, 3]

    run(main())


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_is_at_least_one(capacity):
    with pytest.raises(ValueError):
        create_channel(capacity=capacity)


def test_send_waits_for_room(run):
    async def main():
        send, receive = create_channel(capacity=1)
        await send.send(1)
        task = await parked(send.send(2))
        assert not task.done()
        assert send.stats() == ChannelStats(sent=1, queued=1)
        assert await receive.receive() == 1
        await asyncio.wait_for(task, GUARD)
        assert await receive.receive() == 2

    run(main())


def test_send_does_not_wait_on_an_unbounded_channel(run):
    async def main():
        send, receive = create_channel()
        for item in range(3):
            await send.send(item)
        assert receive.drain_nowait() == [0, 1, 2]

    run(main())


def test_waiting_senders_are_served_in_the_order_they_came(run):
    async def main():
        send, receive = create_channel(capacity=1)
        send.send_nowait(0)
        tasks = [await parked(send.send(item)) for item in (1, 2, 3)]
        assert [await receive.receive() for _ in range(4)] == [0, 1, 2, 3]
        await asyncio.wait_for(asyncio.gather(*tasks), GUARD)

    run(main())


def test_a_drain_makes_room_for_waiting_senders(run):
    async def main():
        send, receive = create_channel(capacity=2)
        send.send_nowait(0)
        send.send_nowait(1)
        tasks = [await parked(send.send(item)) for item in (2, 3)]
        assert receive.drain_nowait() == [0, 1]
        await asyncio.wait_for(asyncio.gather(*tasks), GUARD)
        assert receive.drain_nowait() == [2, 3]

    run(main())


def test_a_cancelled_sender_has_sent_nothing(run):
    async def main():
        send, receive = create_channel(capacity=1)
        send.send_nowait(0)
        task = await parked(send.send("cancelled"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert receive.drain_nowait() == [0]
        send.send_nowait(1)
        assert receive.drain_nowait() == [1]

    run(main())


def test_a_cancelled_sender_passes_its_room_on(run):
    async def main():
        send, receive = create_channel(capacity=1)
        send.send_nowait(0)
        first, second = await parked(send.send(1)), await parked(send.send(2))
        assert receive.drain_nowait(1) == [0]
        first.cancel()
        (outcome,) = await asyncio.gather(first, return_exceptions=True)
        if isinstance(outcome, BaseException):
            await asyncio.wait_for(second, GUARD)
            assert receive.drain_nowait() == [2]
        else:
            assert await receive.receive() == 1
            await asyncio.wait_for(second, GUARD)
            assert await receive.receive() == 2

    run(main())


@pytest.mark.parametrize("cause", [None, ValueError("reader died")], ids=repr)
def test_the_end_wakes_waiting_senders(run, cause):
    async def main():
        send, receive = create_channel(capacity=1)
        send.send_nowait(0)
        tasks = [await parked(send.send(item)) for item in (1, 2)]
        assert receive.close() if cause is None else receive.fail(cause)
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD)
        assert [type(end) for end in ends] == [ClosedResourceError] * 2
        assert [end.__cause__ for end in ends] == [cause] * 2
        with pytest.raises(ClosedResourceError):
            await send.send(3)
        assert receive.drain_nowait() == [0]
        stats = send.stats()
        assert stats.sent == 1 and stats.queued == 0

    run(main())


def test_a_late_send_to_a_bounded_channel_is_dropped_where_that_was_asked_for(run):
    async def main():
        send, _ = create_channel(late_send="drop", capacity=1)
        send.send_nowait(0)
        task = await parked(send.send(1))
        send.close()
        assert await asyncio.wait_for(task, GUARD) is None
        assert await send.send(2) is None
        assert send.send_nowait(3) is None

    run(main())


def test_a_sender_on_another_loop_waits_for_room(run, loop_factory):
    send, receive = create_channel(capacity=2)

    def elsewhere():
        async def produce():
            for number in range(300):
                await send.send(number)
            send.close()

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(produce())

    async def main():
        producing = asyncio.get_running_loop().run_in_executor(pool, elsewhere)
        received = await asyncio.wait_for(collect(receive), GUARD)
        await producing
        return received

    with ThreadPoolExecutor(1) as pool:
        assert run(main()) == list(range(300))


@pytest.mark.parametrize("late_send", ["raise", "drop"])
@pytest.mark.parametrize("bound", ["before", "meanwhile", "closed"])
def test_a_send_that_waits_ends_when_the_loop_of_the_receiver_is_closed(run, loop_factory, late_send, bound):
    send, receive = create_channel(capacity=1, late_send=late_send)
    other = loop_factory()

    async def bind():
        receive.bind()

    async def main():
        send.send_nowait(1)
        if bound == "before":
            await asyncio.to_thread(other.run_until_complete, bind())
        tasks = [await parked(send.send(item)) for item in (2, 3)]
        if bound == "meanwhile":
            await asyncio.to_thread(other.run_until_complete, bind())
            await asyncio.sleep(0)
        other.close()
        receive.bind(other)
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD)
        assert [type(end) for end in ends] == [BrokenResourceError if late_send == "raise" else type(None)] * 2
        assert send.stats() == ChannelStats(sent=1, queued=1, dropped=2)

    run(main())
    assert receive.drain_nowait() == [1]


def test_a_send_that_waits_for_a_service_ends_with_it(run):
    send, receive = create_channel(capacity=1)

    class Reader(LoopServiceThread):
        async def run_async(self):
            receive.bind()
            send.send_nowait(1)
            self.started()
            await self.scope.wait_async()

    reader = Reader()
    reader.start()
    reader.wait_started(GUARD)

    async def main():
        task = await parked(send.send(2))
        reader.stop()
        with pytest.raises(BrokenResourceError, match="loop is closed"):
            await asyncio.wait_for(task, GUARD)

    run(main())
    assert reader.join_or_log(GUARD)


def test_a_loop_whose_senders_wait_elsewhere_keeps_one_timer_and_nothing_of_theirs(run):
    class Mine:
        pass

    variable, other = contextvars.ContextVar("variable"), asyncio.new_event_loop()

    async def drain(receives):
        await asyncio.sleep(0)
        return [receive.drain_nowait() for receive in receives]

    async def main():
        variable.set(Mine())
        ends = [create_channel(capacity=1) for _ in range(5)]
        for send, receive in ends:
            receive.bind(other)
            send.send_nowait(1)
        tasks = [await parked(send.send(2)) for send, _ in ends]
        await asyncio.to_thread(other.run_until_complete, drain([receive for _, receive in ends]))
        assert await asyncio.wait_for(asyncio.gather(*tasks), GUARD) == [2] * 5
        return weakref.ref(variable.get())

    gone = run(main())
    gc.collect()
    assert len(other._scheduled) == 1 and gone() is None
    other.close()


def test_a_bounded_channel_never_holds_more_than_its_capacity(run, busy_threads):
    send, receive = create_channel(capacity=3)

    def sender():
        refused = 0
        for number in range(1000):
            try:
                send.send_nowait(number)
            except asyncio.QueueFull:
                refused += 1
            assert send.stats().queued <= 3
        return 1000 - refused

    async def main():
        receive.bind()
        sending = asyncio.gather(*(asyncio.get_running_loop().run_in_executor(pool, sender) for _ in range(2)))
        sending.add_done_callback(lambda _: send.close())
        received = await asyncio.wait_for(collect(receive), GUARD)
        assert sum(await sending) == len(received)

    with ThreadPoolExecutor(2) as pool:
        run(main())


def test_a_receive_that_was_begun_and_dropped_does_not_stand_in_the_way(run):
    async def main():
        send, receive = create_channel()
        begun = receive.receive()
        begun.send(None)
        del begun
        send.send_nowait(1)
        assert await anext(receive) == 1

    run(main())
