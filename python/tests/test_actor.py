"""The actor: items of a mailbox, one at a time, to one handler."""

import asyncio
import contextvars
import threading

import pytest

from microio import ActorCore, ClosedResourceError, EndOfStream, Mailbox, PriorityMailbox


async def forever():
    await asyncio.get_running_loop().create_future()


def filled(handler, *items, close=True, **how):
    """An actor that has ``items`` to handle."""
    actor = ActorCore(handler, **how)
    for item in items:
        actor.submit(item)
    if close:
        actor.close()
    return actor


# One at a time


def test_a_sync_handler_gets_every_item_in_order(run):
    handled = []
    actor = filled(handled.append, 1, 2, 3)
    assert run(actor.run()) is None
    assert handled == [1, 2, 3]


def test_an_async_handler_ends_before_the_next_item(run):
    async def handle(item):
        log.append(("begin", item))
        await asyncio.sleep(0)
        log.append(("end", item))

    log = []
    run(filled(handle, 1, 2).run())
    assert log == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]


def test_a_handler_may_return_any_awaitable(run):
    async def work(item):
        log.append(("begin", item))
        await asyncio.sleep(0)
        log.append(("end", item))

    log = []
    run(filled(lambda item: asyncio.ensure_future(work(item)), 1, 2).run())
    assert log == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]


def test_items_may_come_from_other_threads_while_it_runs(run):
    async def main():
        def work():
            for item in range(100):
                actor.submit(item)
            actor.close()

        handled = []
        actor = ActorCore(handled.append)
        actor.bind()
        thread = threading.Thread(target=work)
        thread.start()
        await actor.run()
        thread.join()
        assert handled == list(range(100))

    run(main())


def test_handlers_run_in_the_task_and_on_the_thread_of_run(run):
    async def main():
        def handle(item):
            seen.append((asyncio.current_task(), threading.current_thread()))

        seen = []
        await filled(handle, 1).run()
        assert seen == [(asyncio.current_task(), threading.current_thread())]

    run(main())


def test_without_binding_run_still_receives(run):
    handled = []
    run(filled(handled.append, 1).run(bind=False))
    assert handled == [1]


def test_handle_may_be_overridden_and_extended(run):
    class Doubling(ActorCore):
        async def handle(self, item):
            await super().handle(item * 2)

    class Own(ActorCore):
        def handle(self, item):
            handled.append(item)

    async def handle(item):
        handled.append(item)

    handled = []
    for actor in Doubling(handle), Own(None):
        actor.submit(1)
        actor.close()
        run(actor.run())
    assert handled == [2, 1]


def test_the_handler_may_be_replaced_between_two_items(run):
    def first(item):
        actor.handler = handled.append

    handled = []
    actor = filled(first, 1, 2)
    run(actor.run())
    assert handled == [2]


def test_an_actor_takes_a_mailbox_of_any_kind(run):
    class Empty(Mailbox):
        def __len__(self):
            return 0

    class Minimal:
        """Has only what an actor needs."""

        def __init__(self):
            self.items = []

        def bind(self, loop=None):
            self.bound = True

        def submit(self, item):
            self.items.append(item)

        async def get(self):
            if not self.items:
                raise EndOfStream
            return self.items.pop(0)

    async def main(mailbox):
        handled = []
        actor = ActorCore(handled.append, mailbox=mailbox)
        assert actor.mailbox is mailbox
        actor.submit(1)
        actor.submit(2)
        if isinstance(mailbox, Mailbox):
            actor.close()
        await actor.run()
        assert isinstance(mailbox, Mailbox) or mailbox.bound
        return handled

    assert run(main(PriorityMailbox(lambda item: item))) == [2, 1]
    assert run(main(Empty())) == [1, 2]
    assert run(main(Minimal())) == [1, 2]


def test_submit_close_fail_and_drain_are_those_of_the_mailbox():
    actor = ActorCore(print)
    assert [actor.submit(1), actor.submit(2), actor.drain_nowait(1)] == [1, 2, [1]]
    assert [actor.close(), actor.close(), actor.fail(ValueError())] == [True, False, False]
    assert actor.submit(3) is None
    assert actor.drain_nowait() == [2]
    assert (actor.handler, actor.concurrent) == (print, False)


def test_the_mailbox_may_be_replaced():
    actor, mailbox = ActorCore(print), Mailbox()
    actor.mailbox = mailbox
    actor.submit(1)
    assert mailbox.drain_nowait() == [1]


def test_a_submit_of_ones_own_is_called():
    class Own(ActorCore):
        def submit(self, item):
            return super().submit(item * 10)

    actor = Own(print)
    actor.submit(1)
    assert actor.drain_nowait() == [10]


def test_an_actor_shows_its_state(run):
    actor = filled(print)
    assert repr(actor) == "<ActorCore print idle <Mailbox closed queued=0>>"


# How it ends


def test_a_handler_that_raises_fails_the_mailbox_and_leaves_the_rest_to_a_drain(run):
    async def main():
        actor = filled(lambda item: 1 // item, 1, 0, 5, close=False)
        with pytest.raises(ZeroDivisionError) as caught:
            await actor.run()
        assert actor.submit(6) is None
        assert actor.drain_nowait() == [5]
        with pytest.raises(ZeroDivisionError) as received:
            await actor.mailbox.get()
        assert received.value is caught.value
        with pytest.raises(RuntimeError, match="failed"):
            await actor.run()

    run(main())


def test_who_submits_after_a_failure_may_be_told_the_cause(run):
    actor = filled(lambda item: 1 // item, 0, close=False, mailbox=Mailbox(late_send="raise"))
    with pytest.raises(ZeroDivisionError) as caught:
        run(actor.run())
    with pytest.raises(ClosedResourceError) as late:
        actor.submit(1)
    assert late.value.__cause__ is caught.value


def test_a_mailbox_that_fails_is_emptied_and_its_error_raised(run):
    handled = []
    actor = filled(handled.append, 1, close=False)
    actor.fail(KeyError("why"))
    with pytest.raises(KeyError, match="why"):
        run(actor.run())
    assert handled == [1]


def test_a_gate_that_raises_ends_the_actor_and_keeps_the_other_items(run):
    mailbox = PriorityMailbox(gate=lambda item: 1 // item)
    actor = filled(print, 0, 1, close=False, mailbox=mailbox)
    with pytest.raises(ZeroDivisionError):
        run(actor.run())
    assert actor.drain_nowait() == [1]
    assert actor.submit(1) is None


@pytest.mark.parametrize("concurrent", [False, True])
def test_cancelling_run_stops_the_handler_and_leaves_the_mailbox_open(run, concurrent):
    async def main():
        async def handle(item, release=None):
            try:
                await forever()
            except asyncio.CancelledError:
                stopped.append(item)
                raise

        stopped = []
        actor = filled(handle, 1, 2, close=False, concurrent=concurrent)
        running = asyncio.create_task(actor.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert stopped == [1] and running.cancelling() == 1
        assert actor.submit(3) == 3
        assert actor.drain_nowait() == [2, 3]

    run(main())


def test_run_may_go_on_after_it_was_cancelled_but_not_run_twice_at_once(run):
    async def main():
        handled = []
        actor = ActorCore(handled.append)
        running = asyncio.create_task(actor.run())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="running"):
            await actor.run()
        running.cancel()
        await asyncio.wait({running})
        actor.submit(1)
        actor.close()
        await actor.run()
        await actor.run()
        assert handled == [1]

    run(main())


# Concurrent


def test_the_next_item_begins_when_the_handler_releases(run):
    async def main():
        async def handle(item, release):
            log.append(("begin", item))
            await asyncio.sleep(0)
            log.append(("release", item))
            release()
            release()
            await asyncio.sleep(0)
            await gate.wait()
            log.append(("end", item))
            release()

        log, gate = [], asyncio.Event()
        running = asyncio.create_task(filled(handle, 1, 2, concurrent=True).run())
        while len(log) < 4:
            await asyncio.sleep(0)
        gate.set()
        await running
        assert log[:4] == [("begin", 1), ("release", 1), ("begin", 2), ("release", 2)]
        assert sorted(log[4:]) == [("end", 1), ("end", 2)]

    run(main())


def test_a_handler_that_returns_has_released(run):
    async def handle(item, release):
        log.append(("begin", item))
        await asyncio.sleep(0)
        log.append(("end", item))

    log = []
    run(filled(handle, 1, 2, concurrent=True).run())
    assert log == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]


def test_a_sync_handler_works_concurrently_too(run):
    log = []
    run(filled(lambda item, release: log.append(item), 1, 2, concurrent=True).run())
    assert log == [1, 2]


def test_each_item_has_a_task_and_a_context_of_its_own(run):
    variable = contextvars.ContextVar("variable", default="fresh")

    async def handle(item, release):
        seen.append((item, variable.get()))
        tasks.add(asyncio.current_task())
        variable.set(item)

    seen, tasks = [], set()
    run(filled(handle, 1, 2, concurrent=True).run())
    assert seen == [(1, "fresh"), (2, "fresh")]
    assert len(tasks) == 2


def test_release_may_be_called_from_another_thread(run):
    async def main():
        async def handle(item, release):
            log.append(item)
            if item == 1:
                threading.Thread(target=release).start()
                await second
            else:
                second.set_result(None)

        log, second = [], asyncio.get_running_loop().create_future()
        await filled(handle, 1, 2, concurrent=True).run()
        assert log == [1, 2]

    run(main())


def test_release_may_be_called_after_the_handler_the_run_and_the_loop(run):
    releases = []
    run(filled(lambda item, release: releases.append(release), 1, 2, concurrent=True).run())
    for release in releases:
        release()
        threading.Thread(target=release).start()


def test_close_waits_for_the_handlers_that_run(run):
    async def main():
        async def handle(item, release):
            release()
            await gate.wait()
            ended.append(item)

        gate, ended = asyncio.Event(), []
        actor = filled(handle, 1, 2, concurrent=True)
        asyncio.get_running_loop().call_later(0.01, gate.set)
        await actor.run()
        assert ended == [1, 2]

    run(main())


def test_a_concurrent_handler_that_raises_stops_the_others_and_fails_the_mailbox(run):
    async def main():
        async def handle(item, release):
            release()
            try:
                await (forever() if item else fail.wait())
                1 / 0
            except asyncio.CancelledError:
                stopped.append(item)
                assert actor.submit("late") is None
                raise

        fail, stopped = asyncio.Event(), []
        actor = filled(handle, 1, 0, 2, close=False, concurrent=True)
        running = asyncio.create_task(actor.run())
        for _ in range(10):
            await asyncio.sleep(0)
        fail.set()
        with pytest.raises(ExceptionGroup) as caught:
            await running
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        assert sorted(stopped) == [1, 2] and running.cancelling() == 0
        with pytest.raises(ZeroDivisionError):
            await actor.mailbox.get()

    run(main())


@pytest.mark.parametrize("ticks", range(6))
def test_an_item_that_arrives_while_a_handler_fails_is_handled_or_handed_back(run, ticks):
    async def main():
        async def handle(item, release):
            handled.append(item)
            release()
            if item == 1:
                for _ in range(3):
                    await asyncio.sleep(0)
                1 / 0

        handled = []
        actor = filled(handle, 1, close=False, concurrent=True)
        running = asyncio.create_task(actor.run())
        for _ in range(ticks):
            await asyncio.sleep(0)
        accepted = [item for item in (2, 3) if actor.submit(item)]
        await asyncio.wait({running})
        assert actor.drain_nowait(0) == []
        first = actor.drain_nowait(1)
        assert len(first) <= 1
        assert handled + first + actor.drain_nowait() == [1, *accepted]
        assert actor.drain_nowait() == []
        assert isinstance(running.exception(), ExceptionGroup)

    run(main())


def test_items_behind_a_failing_handler_stay_for_a_drain(run):
    def handle(item, release):
        handled.append(item)
        1 / 0

    handled = []
    actor = filled(handle, 1, 2, 3, close=False, concurrent=True)
    with pytest.raises(ExceptionGroup) as caught:
        run(actor.run())
    assert len(caught.value.exceptions) == 1 and actor.mailbox.send.stats().queued == 2
    assert (handled, actor.drain_nowait(1), actor.drain_nowait()) == ([1], [2], [3])


def test_a_mailbox_that_fails_stops_the_concurrent_handlers(run):
    async def main():
        async def handle(item, release):
            release()
            await forever()

        actor = filled(handle, 1, close=False, concurrent=True)
        asyncio.get_running_loop().call_later(0.01, actor.fail, KeyError("why"))
        with pytest.raises(ExceptionGroup) as caught:
            await actor.run()
        assert [type(error) for error in caught.value.exceptions] == [KeyError]

    run(main())
