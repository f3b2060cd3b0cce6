"""Cancel scopes: what is cancelled, who catches it, and that nothing is left behind."""

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine

import pytest

from microio import (
    CancelScope,
    checkpoint,
    checkpoint_if_cancelled,
    current_cancel_scope,
    fail_after,
    move_on_after,
    sleep,
)


async def forever():
    await asyncio.get_running_loop().create_future()


async def nothing_pending():
    """Fails if a cancel was left in this task."""
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)
    await asyncio.sleep(0)


# Cancel


def test_a_thread_that_waits_for_the_cancel_is_woken_by_it():
    scope, results = CancelScope(), []
    assert scope.wait(0) is False
    assert scope.wait(0.01) is False
    waiters = [threading.Thread(target=lambda: results.append(scope.wait(30))) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    scope.cancel("enough")
    for waiter in waiters:
        waiter.join(30)
    assert results == [True] * 3
    assert scope.wait(0) is True, "also those that come later"
    with pytest.raises(ValueError):
        scope.wait(float("nan"))


def test_a_cell_that_blocks_its_loop_is_interrupted_by_another_thread(run):
    async def main():
        with CancelScope() as scope:
            interrupt = threading.Thread(target=scope.cancel, args=["interrupt"])
            interrupt.start()
            assert scope.wait(30) is True
            interrupt.join()
            checkpoint_if_cancelled()
        assert scope.cancelled_caught
        await nothing_pending()

    run(main())


def test_the_wait_for_a_cancel_follows_a_deadline_that_passes_elsewhere(run):
    async def main():
        with move_on_after(0.01) as scope:
            assert await asyncio.to_thread(scope.wait, 30) is True
            await forever()
        assert scope.timed_out
        with scope:
            assert scope.wait(0) is False, "entered again: a cancel to come is waited for anew"
            scope.cancel()
            assert scope.wait(0) is True
            await forever()

    run(main())


def test_cancel_stops_the_body_at_its_next_await_and_the_scope_catches(run):
    async def main():
        steps = []
        with CancelScope() as scope:
            assert scope.cancel("enough") is True
            steps.append("goes on until it awaits")
            await forever()
            steps.append("not reached")
        assert steps == ["goes on until it awaits"]
        assert (scope.cancelled, scope.cancel_called, scope.cancelled_caught) == (True, True, True)
        assert (scope.reason, scope.timed_out, scope.active) == ("enough", False, False)
        await nothing_pending()

    run(main())


def test_only_the_first_cancel_wins():
    scope = CancelScope()
    assert [scope.cancel("first"), scope.cancel("second")] == [True, False]
    assert scope.reason == "first"


def test_a_scope_that_was_cancelled_before_stops_its_body(run):
    async def main():
        scope = CancelScope()
        scope.cancel()
        with scope:
            await forever()
        assert scope.cancelled_caught

    run(main())


def test_a_scope_is_fresh_until_it_is_cancelled(run):
    async def main():
        with CancelScope() as scope:
            assert scope.active
            await asyncio.sleep(0)
        assert not (scope.active or scope.cancelled or scope.cancelled_caught or scope.timed_out)
        assert scope.reason is scope.deadline is scope.delay is None

    run(main())


def test_a_cancel_that_nobody_saw_leaves_nothing_behind(run):
    async def main():
        with CancelScope() as scope:
            scope.cancel()
        assert scope.cancelled and not scope.cancelled_caught
        await nothing_pending()

    run(main())


def test_an_error_on_the_way_out_is_not_swallowed_and_leaves_nothing_behind(run):
    async def main():
        with pytest.raises(ZeroDivisionError):
            with CancelScope() as scope:
                scope.cancel()
                try:
                    await forever()
                finally:
                    1 / 0
        await nothing_pending()

    run(main())


def test_cancel_from_a_thread_wakes_an_idle_loop(run):
    async def main():
        with CancelScope() as scope:
            threading.Thread(target=scope.cancel, args=("thread",)).start()
            await forever()
        assert scope.reason == "thread"

    run(main())


def test_cancel_from_a_signal_handler_wakes_an_idle_loop(run):
    async def main():
        with CancelScope() as scope:
            before = signal.signal(signal.SIGUSR1, lambda *_: scope.cancel("signal", wake=True))
            try:
                threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                await forever()
            finally:
                signal.signal(signal.SIGUSR1, before)
        assert scope.reason == "signal"

    run(main())


@pytest.mark.parametrize("wake", [False, True])
def test_wake_has_a_loop_woken_that_seems_to_run_a_task(wake):
    """It may be in its select all the same; where it is not, that saves a write."""

    class Loop(asyncio.SelectorEventLoop):
        wakes = 0

        def call_soon_threadsafe(self, *args, **kwargs):
            self.wakes += 1
            return super().call_soon_threadsafe(*args, **kwargs)

    async def main():
        with CancelScope() as scope:
            scope.cancel(wake=wake)
            seen.append(asyncio.get_running_loop().wakes)
            await forever()

    seen = []
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
    assert seen == [int(wake)]


def test_cancel_after_the_loop_has_closed_is_kept(loop_factory):
    scope = CancelScope()

    async def stuck():
        with scope:
            await forever()

    loop = loop_factory()
    task = loop.create_task(stuck())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert scope.cancel("late") is True
    assert scope.cancelled
    task.get_coro().close()


def test_a_cancel_racing_the_enter_is_never_lost(run):
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(300):
            scope = CancelScope()
            barrier = threading.Barrier(2)
            cancelled = loop.run_in_executor(None, lambda: (barrier.wait(), scope.cancel()))
            barrier.wait()
            with scope:
                await forever()
            await cancelled
        await nothing_pending()

    run(main())


def test_every_task_in_the_scope_is_stopped(run):
    async def main():
        scope = CancelScope()

        async def inside():
            with scope:
                await forever()
            return asyncio.current_task().cancelling()

        tasks = [asyncio.create_task(inside()) for _ in range(3)]
        await asyncio.sleep(0)
        scope.cancel()
        assert await asyncio.gather(*tasks) == [0, 0, 0]

    run(main())


def test_a_body_that_took_the_request_back_itself_keeps_its_count_right(run):
    async def main():
        with CancelScope() as scope:
            scope.cancel()
            try:
                await forever()
            except asyncio.CancelledError:
                assert asyncio.current_task().uncancel() == 0
        await nothing_pending()

    run(main())


# Whose cancellation it is


def test_the_outer_scope_catches_what_the_inner_one_did_not_ask_for(run):
    async def main():
        with CancelScope() as outer:
            with CancelScope() as inner:
                outer.cancel()
                await forever()
            pytest.fail("the inner scope swallowed it")
        assert outer.cancelled_caught and not inner.cancelled_caught
        await nothing_pending()

    run(main())


@pytest.mark.parametrize("outer_first", [True, False])
def test_of_two_cancelled_scopes_the_outermost_catches(run, outer_first):
    async def main():
        with CancelScope() as outer:
            with CancelScope() as inner:
                for scope in (outer, inner) if outer_first else (inner, outer):
                    scope.cancel()
                await forever()
            pytest.fail("the inner scope swallowed it")
        assert outer.cancelled_caught and not inner.cancelled_caught
        await nothing_pending()

    run(main())


def test_of_two_deadlines_that_passed_the_outermost_catches_and_the_inner_raises_nothing(run):
    async def main():
        with move_on_after(0) as outer:
            with fail_after(0) as inner:
                await forever()
        assert outer.cancelled_caught and inner.timed_out and not inner.cancelled_caught

    run(main())


@pytest.mark.parametrize("native_first", [True, False])
def test_a_native_cancel_beside_ours_comes_out(run, native_first):
    async def main():
        async def body():
            with scope:
                await forever()

        scope = CancelScope()
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        for cancel in (task.cancel, scope.cancel) if native_first else (scope.cancel, task.cancel):
            cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled() and task.cancelling() == 1
        assert scope.cancelled and not scope.cancelled_caught

    run(main())


def test_a_timeout_around_the_scope_gets_its_own_cancellation(run):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                with CancelScope() as scope:
                    await forever()
        assert not scope.cancelled_caught
        await nothing_pending()

    run(main())


def test_a_timeout_inside_the_scope_lets_the_scopes_cancellation_through(run):
    async def main():
        with CancelScope() as scope:
            async with asyncio.timeout(3600):
                scope.cancel()
                await forever()
        assert scope.cancelled_caught
        await nothing_pending()

    run(main())


def test_clean_up_after_a_native_cancel_can_have_a_deadline(run):
    async def main():
        async def body():
            try:
                await forever()
            finally:
                with move_on_after(0) as scope:
                    await forever()
                assert scope.cancelled_caught

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    run(main())


def test_a_scope_of_the_parent_does_not_keep_the_child_from_catching_its_own(run):
    async def main():
        async def child():
            with CancelScope() as own:
                own.cancel()
                await forever()
            return own.cancelled_caught

        with CancelScope() as scope:
            task = asyncio.create_task(child())
            scope.cancel()
            try:
                assert await task
            except asyncio.CancelledError:
                assert await task
                raise
        assert scope.cancelled_caught

    run(main())


def test_ctrl_c_under_a_scope_is_a_keyboard_interrupt(run):
    async def main():
        with CancelScope():
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await forever()

    with pytest.raises(KeyboardInterrupt):
        run(main())


# Levels and edges


def test_a_raw_await_is_interrupted_once_and_a_checkpoint_every_time(run):
    async def main():
        with CancelScope() as scope:
            scope.cancel()
            with pytest.raises(asyncio.CancelledError):
                await forever()
            await asyncio.sleep(0)
            for check in checkpoint, checkpoint, lambda: sleep(0), lambda: sleep(3600):
                with pytest.raises(asyncio.CancelledError):
                    await check()
        await checkpoint()
        await nothing_pending()

    run(main())


def test_a_checkpoint_sees_a_cancel_at_once(run):
    async def main():
        with CancelScope() as scope:
            checkpoint_if_cancelled()
            scope.cancel()
            with pytest.raises(asyncio.CancelledError):
                checkpoint_if_cancelled()
        checkpoint_if_cancelled()
        assert not scope.cancelled_caught

    run(main())


@pytest.mark.parametrize("pause", [checkpoint, lambda: sleep(0)])
def test_a_checkpoint_sees_a_cancel_that_came_while_it_waited(run, pause):
    async def main():
        with CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            with pytest.raises(asyncio.CancelledError):
                await pause()
        await nothing_pending()

    run(main())


def test_a_checkpoint_lets_others_run(run):
    async def main():
        ran = []
        asyncio.get_running_loop().call_soon(ran.append, 1)
        await checkpoint()
        assert ran == [1]

    run(main())


def test_sleep_returns_its_result_after_its_time(run):
    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await sleep(0.01, "slept") == "slept"
        assert loop.time() - began >= 0.009
        assert await sleep(0) is None
        assert await sleep(-1, 2) == 2

    run(main())


def test_a_body_that_catches_every_cancel_still_stops_at_its_next_checkpoint(run):
    async def main():
        caught = 0
        with CancelScope() as scope:
            scope.cancel()
            while caught < 10:
                try:
                    await checkpoint()
                except asyncio.CancelledError:
                    caught += 1
        assert caught == 10
        await nothing_pending()

    run(main())


def test_the_current_scope_is_the_innermost_cancelled_one(run):
    async def main():
        with CancelScope() as outer, CancelScope() as middle, CancelScope():
            assert current_cancel_scope() is None
            outer.cancel("outer")
            assert current_cancel_scope() is outer
            middle.cancel("middle")
            assert current_cancel_scope() is middle
        assert current_cancel_scope() is None

    run(main())


def test_outside_any_task_no_scope_is_current():
    assert current_cancel_scope() is None
    checkpoint_if_cancelled()


@pytest.mark.parametrize("awaitable", [checkpoint, lambda: sleep(0, 1)])
def test_awaitables_are_coroutines(run, awaitable):
    async def main():
        for wait in asyncio.create_task, asyncio.gather, lambda it: asyncio.wait_for(it, 1):
            await wait(awaitable())

    assert isinstance(it := awaitable(), Coroutine)
    it.close()
    run(main())
    run(awaitable())


# Inherited contexts


def test_a_worker_thread_sees_the_cancel_at_its_checkpoints(run):
    async def main():
        began, cancelled = threading.Event(), threading.Event()

        def work():
            checkpoint_if_cancelled()
            began.set()
            assert cancelled.wait(5)
            assert current_cancel_scope().reason == "stop"
            checkpoint_if_cancelled()

        with CancelScope() as scope:
            job = asyncio.create_task(asyncio.to_thread(work))
            await asyncio.get_running_loop().run_in_executor(None, began.wait)
            scope.cancel("stop")
            cancelled.set()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait({job})
            with pytest.raises(asyncio.CancelledError):
                await job

    run(main())


def test_a_child_task_that_inherited_the_scope_is_not_cancelled_but_sees_it_at_checkpoints(run):
    async def main():
        async def child():
            await cancelled
            assert current_cancel_scope() is scope
            with pytest.raises(asyncio.CancelledError):
                await checkpoint()
            return asyncio.current_task().cancelling()

        cancelled = asyncio.get_running_loop().create_future()
        with CancelScope() as scope:
            task = asyncio.create_task(child())
            await asyncio.sleep(0)
            scope.cancel()
            cancelled.set_result(None)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait({task})
            await asyncio.wait({task})
            assert task.result() == 0
        await nothing_pending()

    run(main())


def test_a_child_task_that_outlives_the_scope_does_not_see_it(run):
    async def main():
        async def child():
            await left
            assert current_cancel_scope() is None
            await checkpoint()

        left = asyncio.get_running_loop().create_future()
        with CancelScope() as scope:
            task = asyncio.create_task(child())
            scope.cancel()
        left.set_result(None)
        await task

    run(main())


# Deadlines


def test_move_on_after_stops_the_body_when_the_time_is_up(run):
    async def main():
        with move_on_after(0.01) as scope:
            await forever()
        assert (scope.reason, scope.timed_out, scope.cancelled_caught) == ("deadline", True, True)
        await nothing_pending()

    run(main())


def test_fail_after_raises_timeout_error_from_the_cancellation(run):
    async def main():
        with pytest.raises(TimeoutError, match="^operation timed out$") as caught:
            with fail_after(0.01) as scope:
                await forever()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert scope.cancelled_caught
        await nothing_pending()

    run(main())


def test_fail_after_that_is_cancelled_by_hand_raises_nothing(run):
    async def main():
        with fail_after(3600) as scope:
            scope.cancel()
            await forever()
        assert scope.cancelled_caught and not scope.timed_out

    run(main())


@pytest.mark.parametrize("limit", [move_on_after, fail_after])
def test_no_delay_is_no_deadline(run, limit):
    async def main():
        with limit(None) as scope:
            await asyncio.sleep(0)
        assert scope.deadline is None and not scope.cancelled

    run(main())


@pytest.mark.parametrize("delay", [0, -1])
def test_a_delay_that_is_over_beats_the_shortest_sleep(run, delay):
    async def main():
        with move_on_after(delay) as scope:
            await asyncio.sleep(0)
            pytest.fail("went on")
        assert scope.timed_out

    run(main())


def test_a_body_that_ends_in_time_is_left_alone(run):
    async def main():
        with fail_after(0.005) as scope:
            pass
        await asyncio.sleep(0.01)
        assert not scope.cancelled

    run(main())


def test_a_scope_that_is_left_in_time_leaves_no_timer(timers_left):
    async def main():
        with move_on_after(3600):
            pass
        with move_on_after(3600) as scope:
            scope.deadline += 1
        with pytest.raises(ValueError), move_on_after(3600):
            raise ValueError
        with move_on_after(3600) as scope:
            scope.cancel()
            await forever()

    assert timers_left(main()) == []


def test_a_sleep_that_is_cancelled_leaves_no_timer(timers_left):
    async def main():
        task = asyncio.create_task(sleep(3600))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await sleep(3600)

    assert timers_left(main()) == []


def test_the_deadline_is_on_the_clock_of_the_loop_and_set_on_enter(run):
    async def main():
        loop = asyncio.get_running_loop()
        scope = move_on_after(10)
        assert (scope.delay, scope.deadline) == (10, None)
        with scope:
            assert 9.9 < scope.deadline - loop.time() <= 10
        with CancelScope(deadline=loop.time()) as scope:
            await forever()
        assert scope.timed_out

    run(main())


def test_the_deadline_of_an_active_scope_can_be_moved(run):
    async def main():
        loop = asyncio.get_running_loop()
        with move_on_after(3600) as sooner:
            sooner.deadline = loop.time() + 0.005
            await forever()
        assert sooner.timed_out
        with move_on_after(0.005) as later:
            later.deadline = loop.time() + 3600
            await asyncio.sleep(0.01)
        with move_on_after(0.005) as never:
            never.deadline = None
            await asyncio.sleep(0.01)
        assert not later.cancelled and not never.cancelled

    run(main())


def test_the_deadline_can_be_moved_from_another_thread(run):
    async def main():
        def hurry():
            scope.deadline = loop.time()

        loop = asyncio.get_running_loop()
        with move_on_after(3600) as scope:
            threading.Thread(target=hurry).start()
            await forever()
        assert scope.timed_out

    run(main())


# Entering and leaving


def test_a_deadline_that_another_thread_moves_as_it_passes_does_not_cancel(run):
    async def main():
        with CancelScope(deadline=asyncio.get_running_loop().time()) as scope:  # what it calls is in the loop's queue
            mover = threading.Thread(target=setattr, args=(scope, "deadline", None))
            mover.start()
            mover.join()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not scope.cancelled

    run(main())


def test_entering_again_starts_the_delay_afresh(run):
    async def main():
        scope = move_on_after(0.01)
        for _ in range(2):
            with scope:
                await forever()
            assert scope.timed_out
        with scope:
            pass
        assert scope.cancelled_caught, "True once any entry caught"

    run(main())


def test_entering_again_keeps_an_earlier_cancel(run):
    async def main():
        scope = CancelScope()
        for _ in range(2):
            with scope:
                scope.cancel("once")
                await forever()
        assert scope.reason == "once"
        await nothing_pending()

    run(main())


def test_entering_again_keeps_an_explicit_deadline(run):
    async def main():
        scope = CancelScope(deadline=asyncio.get_running_loop().time() + 0.01)
        with scope:
            pass
        with scope:
            await forever()
        assert scope.timed_out

    run(main())


def test_a_task_may_enter_a_scope_twice(run):
    async def main():
        with CancelScope() as scope:
            with scope:
                scope.cancel()
                await forever()
            pytest.fail("the inner entry swallowed it")
        await nothing_pending()

    run(main())


def test_a_scope_is_entered_by_a_task_only(loop_factory):
    scope = CancelScope()
    with pytest.raises(RuntimeError):
        scope.__enter__()

    def callback():
        with pytest.raises(RuntimeError):
            scope.__enter__()
        assert not scope.active
        loop.stop()

    loop = loop_factory()
    loop.call_soon(callback)
    loop.run_forever()
    loop.close()
    assert not scope.active


def test_a_scope_is_left_by_the_task_that_entered_it(run):
    async def main():
        async def child():
            with pytest.raises(RuntimeError):
                scope.__exit__(None, None, None)

        with CancelScope() as scope:
            await asyncio.create_task(child())
            assert scope.active
            scope.cancel()
            await forever()

    run(main())


def test_scopes_may_be_left_out_of_turn(run):
    async def main():
        first, second = CancelScope(), CancelScope()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.cancel()
        assert current_cancel_scope() is second
        second.__exit__(None, None, None)
        first.cancel()
        assert current_cancel_scope() is None
        await nothing_pending()

    run(main())


def test_a_scope_shows_its_state():
    scope = CancelScope()
    assert repr(scope) == "<CancelScope>"
    scope.cancel("why")
    assert "cancelled" in repr(scope) and "why" in repr(scope)
