"""Scope groups: one interrupt for the work that runs now, and with the latch for what comes next."""

import asyncio
import os
import signal
import threading

import pytest

from microio import CancelScope, ScopeGroup, checkpoint


async def forever():
    await asyncio.get_running_loop().create_future()


def test_cancel_stops_every_scope_and_says_that_there_was_one(run):
    async def main():
        async def work():
            with group.scope() as scope:
                await forever()
            return scope.cancelled_caught, scope.reason

        group = ScopeGroup()
        tasks = [asyncio.create_task(work()) for _ in range(3)]
        await asyncio.sleep(0)
        assert group.active
        assert group.cancel("interrupt") is True
        assert await asyncio.gather(*tasks) == [(True, "interrupt")] * 3
        assert not group.active

    run(main())


def test_without_a_scope_there_is_nothing_to_cancel(run):
    async def main():
        group = ScopeGroup()
        unused = group.scope()
        assert (group.active, group.cancel(), group.cancelling) == (False, False, False)
        with unused as scope:
            assert isinstance(scope, CancelScope) and not scope.cancelled
            await checkpoint()
        assert group.cancel() is False

    run(main())


def test_cancelling_again_is_true_and_keeps_the_first_reason(run):
    async def main():
        group = ScopeGroup()
        with group.scope() as scope:
            assert [group.cancel("first"), group.cancel("second")] == [True, True]
            assert scope.reason == "first"
            await forever()

    run(main())


def test_without_the_latch_later_scopes_are_free(run):
    async def main():
        group = ScopeGroup()
        with group.scope():
            group.cancel()
            with group.scope() as later:
                assert not later.cancelled and not group.cancelling

    run(main())


def test_under_the_latch_scopes_are_born_cancelled_until_it_is_cleared(run):
    async def main():
        group = ScopeGroup()
        assert group.cancel("interrupt", latch=True) is False, "nothing was running"
        assert group.cancelling is True
        for _ in range(2):
            with group.scope() as born:
                assert born.cancelled and born.reason == "interrupt"
                await forever()
            assert born.cancelled_caught
        assert group.clear() is None
        assert group.cancelling is False
        with group.scope() as free:
            await checkpoint()
        assert not free.cancelled

    run(main())


def test_the_latch_can_be_set_and_read_by_hand(run):
    async def main():
        group = ScopeGroup()
        group.cancelling = True
        with group.scope() as scope:
            assert scope.cancelled and scope.reason == "cancelled"
        group.cancelling = False
        with group.scope() as scope:
            assert not scope.cancelled

    run(main())


def test_clearing_leaves_what_was_cancelled_cancelled(run):
    async def main():
        group = ScopeGroup()
        with group.scope() as scope:
            group.cancel(latch=True)
            group.clear()
            assert scope.cancelled and group.active
            await forever()
        assert scope.cancelled_caught

    run(main())


def test_clearing_forgets_the_reason_of_the_latch(run):
    async def main():
        group = ScopeGroup()
        group.cancel("interrupt", latch=True)
        group.clear()
        group.cancelling = True
        with group.scope() as scope:
            assert scope.reason == "cancelled"

    run(main())


def test_an_error_leaves_the_group_empty(run):
    async def main():
        group = ScopeGroup()
        with pytest.raises(ZeroDivisionError):
            with group.scope():
                1 / 0
        assert not group.active

    run(main())


def test_outside_a_task_no_scope_is_entered_and_none_is_left_behind():
    group = ScopeGroup()
    with pytest.raises(RuntimeError):
        with group.scope():
            pass
    assert not group.active


def test_cancel_from_a_signal_handler_stops_the_idle_loop(run):
    async def main():
        def interrupt(*_):
            answers.append(group.cancel("interrupt", wake=True, latch=True))

        group = ScopeGroup()
        before = signal.signal(signal.SIGUSR1, interrupt)
        with group.scope() as scope:
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            await forever()
        signal.signal(signal.SIGUSR1, before)
        assert scope.reason == "interrupt" and group.cancelling

    answers = []
    run(main())
    assert answers == [True]


@pytest.mark.parametrize("wake", [False, True])
def test_wake_reaches_every_scope(monkeypatch, run, wake):
    class Scope(CancelScope):
        def cancel(self, reason=None, *, wake=False):
            told.append(wake)
            return super().cancel(reason, wake=wake)

    async def main():
        with group.scope(), group.scope():
            group.cancel(wake=wake)
            await checkpoint()

    told, group = [], ScopeGroup()
    monkeypatch.setattr("microio._task.CancelScope", Scope)
    run(main())
    assert told == [wake, wake]


def test_a_scope_that_is_entered_in_the_middle_of_a_latched_cancel_is_cancelled(monkeypatch, run):
    class Scope(CancelScope):
        def cancel(self, reason=None, *, wake=False):
            if not entered:
                entered.append(self)
                with group.scope() as scope:
                    entered.append(scope.cancelled)
            return super().cancel(reason, wake=wake)

    async def main():
        with group.scope():
            group.cancel(latch=True)

    entered, group = [], ScopeGroup()
    monkeypatch.setattr("microio._task.CancelScope", Scope)
    run(main())
    assert entered[1] is True


def test_a_scope_that_is_born_cancelled_has_the_reason_from_the_first_moment(run):
    class Group(ScopeGroup):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if asyncio._get_running_loop() is not None:  # here a signal handler may come
                with self.scope() as scope:
                    seen.append((scope.cancelled, scope.reason))

    async def main():
        group.cancel("interrupt", latch=True)

    seen, group = [], Group()
    run(main())
    assert seen == [(False, None), (True, "interrupt")]


def test_a_latched_cancel_racing_a_new_scope_is_never_lost(run):
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(100):
            group = ScopeGroup()
            barrier = threading.Barrier(2)
            cancelled = loop.run_in_executor(None, lambda: (barrier.wait(), group.cancel(latch=True)))
            barrier.wait()
            with group.scope():
                await forever()
            await cancelled

    run(main())


def test_a_group_shows_its_state(run):
    async def main():
        group = ScopeGroup()
        with group.scope():
            group.cancel(latch=True)
            assert repr(group) == "<ScopeGroup active=1 cancelling>"
        group.clear()
        assert repr(group) == "<ScopeGroup active=0>"

    run(main())
