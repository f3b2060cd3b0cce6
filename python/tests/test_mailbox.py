"""Mailboxes: submit from anywhere, get on the loop, with or without priorities."""

import asyncio
import fractions
import gc
import threading
import weakref

import pytest

import microio
from microio import CancelScope, ClosedResourceError, EndOfStream, Mailbox, PriorityMailbox

KINDS = [Mailbox, PriorityMailbox]


async def items(mailbox):
    return [item async for item in mailbox]


# Both kinds


@pytest.mark.parametrize("kind", KINDS)
def test_items_come_in_the_order_in_which_they_were_submitted(run, kind):
    async def main():
        mailbox = kind()
        assert [mailbox.submit("a"), mailbox.put("b"), mailbox.submit("c")] == [1, 2, 3]
        assert [await mailbox.get(), await mailbox.get()] == ["a", "b"]
        assert mailbox.drain_nowait() == ["c"]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_submit_wakes_a_get_from_another_thread(run, kind):
    async def main():
        mailbox = kind()
        mailbox.bind()
        threading.Thread(target=mailbox.submit, args=("hello",)).start()
        assert await mailbox.get() == "hello"

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_close_lets_what_is_queued_through(run, kind):
    async def main():
        mailbox = kind()
        mailbox.submit(1)
        mailbox.submit(2)
        assert [mailbox.close(), mailbox.close(), mailbox.fail(ValueError())] == [True, False, False]
        assert await mailbox.get() == 1
        assert await items(mailbox) == [2]
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await mailbox.get()

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_fail_lets_what_is_queued_through_and_then_raises_for_everybody(run, kind):
    async def main():
        mailbox, error = kind(), ValueError("why")
        mailbox.submit(1)
        assert [mailbox.fail(error), mailbox.close()] == [True, False]
        assert await mailbox.get() == 1
        for wait in mailbox.get, lambda: items(mailbox):
            with pytest.raises(ValueError) as caught:
                await wait()
            assert caught.value is error

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_submit_is_dropped_and_counted(kind):
    mailbox = kind()
    mailbox.submit(1)
    mailbox.close()
    assert mailbox.submit(2) is None
    stats = mailbox.send.stats()
    assert (stats.sent, stats.queued, stats.dropped, stats.closed) == (1, 1, 1, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_submit_raises_if_asked_for(kind):
    mailbox, error = kind(late_send="raise"), ValueError("why")
    mailbox.fail(error)
    with pytest.raises(ClosedResourceError) as caught:
        mailbox.submit(1)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("kind", KINDS)
def test_other_options_are_refused(kind):
    with pytest.raises(ValueError):
        kind(late_send="keep")
    with pytest.raises(TypeError):
        kind(capacity=1)


@pytest.mark.parametrize("kind", KINDS)
def test_drain_works_before_there_is_a_loop_and_takes_at_most_what_it_is_told(kind):
    mailbox = kind()
    for item in range(4):
        mailbox.submit(item)
    assert mailbox.drain_nowait(0) == []
    assert mailbox.drain_nowait(3) == [0, 1, 2]
    assert mailbox.drain_nowait() == [3]
    assert mailbox.drain_nowait() == []
    stats = mailbox.receive.stats()
    assert (stats.sent, stats.received, stats.queued) == (4, 4, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_endpoints_are_real(run, kind):
    async def main():
        mailbox = kind()
        mailbox.send.send_nowait("by the endpoint")
        assert isinstance(mailbox.send, microio.ObjectSendChannel)
        assert isinstance(mailbox.receive, microio.ObjectReceiveChannel)
        mailbox.receive.close()
        assert mailbox.send.closed
        assert await items(mailbox) == ["by the endpoint"]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_object_is_an_item_like_any_other(run, kind):
    async def main():
        mailbox, error = kind(), ValueError()
        mailbox.submit(error)
        assert await mailbox.get() is error

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_get_that_is_cancelled_loses_nothing(run, kind):
    async def main():
        mailbox = kind()
        waiting = asyncio.create_task(mailbox.get())
        await asyncio.sleep(0)
        mailbox.submit("item")
        waiting.cancel()
        await asyncio.wait({waiting})
        got = [] if waiting.cancelled() else [waiting.result()]
        assert got + mailbox.drain_nowait() == ["item"]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_get_in_a_cancelled_scope_takes_nothing(run, kind):
    async def main():
        mailbox = kind()
        mailbox.submit("item")
        with CancelScope() as scope:
            scope.cancel()
            await mailbox.get()
        assert scope.cancelled_caught
        assert await mailbox.get() == "item"

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mailbox_is_true_and_has_no_length(kind):
    assert kind()
    assert not hasattr(kind, "__len__") and not hasattr(kind, "__bool__")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mailbox_shows_its_state(kind):
    mailbox = kind()
    mailbox.submit(1)
    assert repr(mailbox) == f"<{kind.__name__} open queued=1>"
    mailbox.close()
    assert repr(mailbox) == f"<{kind.__name__} closed queued=1>"


@pytest.mark.parametrize("kind", KINDS)
def test_a_delivered_item_is_let_go(run, kind):
    class Item:
        pass

    async def main():
        mailbox = kind()
        mailbox.submit(item := Item())
        it = weakref.ref(item)
        del item
        assert await mailbox.get() is it()
        gc.collect()
        assert it() is None

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_cycle_through_an_item_is_collected(kind):
    class Item:
        pass

    item, mailbox = Item(), kind()
    item.mailbox = mailbox
    mailbox.submit(item)
    it = weakref.ref(item)
    del item, mailbox
    gc.collect()
    assert it() is None


# Subclasses


@pytest.mark.parametrize("kind", KINDS)
def test_a_submit_of_ones_own_is_called_and_put_is_not_it(kind):
    class Own(kind):
        def submit(self, item):
            return super().submit(item * 10)

    mailbox = Own()
    mailbox.submit(1)
    mailbox.put(2)
    assert mailbox.drain_nowait() == [10, 2]
    assert Mailbox.put is Mailbox.submit


@pytest.mark.parametrize("kind", KINDS)
def test_a_get_of_ones_own_is_what_iteration_uses(run, kind):
    class Own(kind):
        async def get(self):
            return (await super().get()) * 10

    async def main():
        mailbox = Own()
        mailbox.submit(1)
        mailbox.close()
        assert await items(mailbox) == [10]

    run(main())


# Priorities


def test_larger_priorities_come_first_and_equal_ones_as_they_came(run):
    async def main():
        mailbox = PriorityMailbox(lambda item: item[0])
        for item in (1, "a"), (5, "b"), (1, "c"), (-2.5, "d"), (5, "e"), (fractions.Fraction(3, 2), "f"), (True, "g"):
            mailbox.submit(item)
        assert "".join([(await mailbox.get())[1] for _ in range(7)]) == "befacgd"

    run(main())


def test_key_and_gate_are_attributes_and_may_be_replaced(run):
    async def main():
        key, gate = abs, bool
        mailbox = PriorityMailbox(key, gate)
        assert (mailbox.key, mailbox.gate) == (key, gate)
        mailbox.key, mailbox.gate = (lambda item: -item), None
        for item in 0, 2, 1:
            mailbox.submit(item)
        mailbox.close()
        assert await items(mailbox) == [0, 1, 2]

    run(main())


def test_key_and_gate_run_when_items_come_out_in_the_order_of_arrival():
    def key(item):
        seen.append(("key", item))
        return item

    def gate(item):
        seen.append(("gate", item))
        return item != 2

    seen = []
    mailbox = PriorityMailbox(key, gate)
    for item in 1, 2, 3:
        mailbox.submit(item)
    assert seen == []
    assert mailbox.drain_nowait() == [3, 1]
    assert seen == [("gate", 1), ("key", 1), ("gate", 2), ("gate", 3), ("key", 3)]
    stats = mailbox.receive.stats()
    assert (stats.sent, stats.received, stats.queued) == (3, 3, 0), "what the gate consumed counts as received"


def test_a_gate_may_submit_drain_and_move_the_floor(run):
    async def main():
        def gate(item):
            if item == "fence":
                mailbox.floor = None
                mailbox.submit("answer")
                drained.extend(mailbox.drain_nowait())
            return item != "fence"

        drained = []
        mailbox = PriorityMailbox(gate=gate)
        mailbox.floor = 1
        for item in "before", "fence", "behind":
            mailbox.submit(item)
        mailbox.close()
        assert await items(mailbox) == []
        assert drained == ["before", "behind"]

    run(main())


@pytest.mark.parametrize("place", ["key", "gate"])
def test_a_key_or_gate_that_raises_consumes_the_offending_item_only(run, place):
    async def main():
        def fussy(item):
            return 10 // item

        mailbox = PriorityMailbox(**{place: fussy})
        for item in 5, 0, 1, 2:
            mailbox.submit(item)
        with pytest.raises(ZeroDivisionError):
            await mailbox.get()
        assert sorted(mailbox.drain_nowait()) == [1, 2, 5]
        stats = mailbox.receive.stats()
        assert (stats.sent, stats.received, stats.queued) == (4, 4, 0)

    run(main())


@pytest.mark.parametrize("priority", [None, "high", 1j, float("nan")])
def test_a_priority_that_is_no_real_number_is_a_type_error(run, priority):
    async def main():
        mailbox = PriorityMailbox(lambda item: priority)
        mailbox.submit(1)
        with pytest.raises(TypeError):
            await mailbox.get()
        assert mailbox.drain_nowait() == []

    run(main())


def test_the_floor_holds_back_what_is_not_above_it(run):
    async def main():
        mailbox = PriorityMailbox(lambda item: item)
        assert mailbox.floor is None
        for item in 1, 3, 2:
            mailbox.submit(item)
        before, mailbox.floor = mailbox.floor, 2
        assert mailbox.floor == 2
        assert await mailbox.get() == 3
        waiting = asyncio.create_task(mailbox.get())
        await asyncio.sleep(0)
        assert not waiting.done(), "strictly above"
        mailbox.floor = before
        assert await waiting == 2
        assert await mailbox.get() == 1

    run(main())


def test_lifting_the_floor_from_another_thread_wakes_who_waits(run):
    async def main():
        def lift():
            mailbox.floor = 0.5

        mailbox = PriorityMailbox(lambda item: item)
        mailbox.floor = 10
        mailbox.submit(1)
        waiting = asyncio.create_task(mailbox.get())
        await asyncio.sleep(0)
        threading.Thread(target=lift).start()
        assert await waiting == 1
        assert mailbox.send.stats().sent == 1, "setting the floor is no send"

    run(main())


def test_a_floor_that_the_collector_lifts_in_the_middle_of_a_get_is_seen(run):
    """Before 3.12 any allocation may collect: also that of what a task is parked on, when all was below the floor."""

    class Lifts:
        def __del__(self):
            mailbox.floor = None

    async def main():
        mailbox.bind()
        mailbox.submit("first")
        assert await mailbox.get() == "first"  # what the first one allocates is there
        mailbox.floor = 10
        mailbox.submit("below")
        steps = mailbox.get().__await__()
        gc.collect()
        garbage = Lifts()
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
        if parked is not None:  # or it asks for another turn
            woken = asyncio.Event()
            parked.add_done_callback(lambda _: woken.set())
            await asyncio.wait_for(woken.wait(), 10)
        with pytest.raises(StopIteration) as end:
            next(steps)
        return end.value.value

    mailbox = PriorityMailbox()
    gc.disable()
    try:
        assert run(main()) == "below"
    finally:
        gc.enable()


def test_a_drain_ignores_the_floor():
    mailbox = PriorityMailbox(lambda item: item)
    mailbox.floor = 10
    for item in 1, 3, 2:
        mailbox.submit(item)
    assert mailbox.drain_nowait(2) == [3, 2]
    assert mailbox.drain_nowait() == [1]


def test_after_close_what_is_under_the_floor_waits_for_a_drain_or_a_lower_floor(run):
    async def main():
        mailbox = PriorityMailbox(lambda item: item)
        mailbox.floor = 2
        for item in 1, 3, 2:
            mailbox.submit(item)
        mailbox.close()
        assert await items(mailbox) == [3]
        with pytest.raises(EndOfStream):
            await mailbox.get()
        assert mailbox.send.stats().queued == 2
        mailbox.floor = 1
        assert await items(mailbox) == [2]
        assert mailbox.drain_nowait() == [1]

    run(main())


def test_a_fence_that_is_submitted_after_a_drain_comes_behind_all_before_it(run):
    async def main():
        mailbox = PriorityMailbox(lambda item: 0)
        for item in range(3):
            mailbox.submit(item)
        assert mailbox.drain_nowait() == [0, 1, 2]
        mailbox.submit("fence")
        mailbox.submit("after")
        assert [await mailbox.get(), await mailbox.get()] == ["fence", "after"]

    run(main())


@pytest.mark.parametrize("kind", [Mailbox, PriorityMailbox])
def test_the_ends_may_be_replaced(run, kind):
    """By a subclass that wants another answer to a late submit, for example."""

    class Own(kind):
        def __init__(self):
            super().__init__()
            self.send, self.receive = microio.create_channel(late_send="raise")

    async def main():
        mailbox = Own()
        mailbox.submit(1)
        mailbox.put(2)
        mailbox.close()
        assert await mailbox.get() == 1
        assert [item async for item in mailbox] == [2]
        with pytest.raises(ClosedResourceError):
            mailbox.submit(3)

    run(main())
