"""WorkTracker: work is counted, its end can be waited for, `busy` follows the count."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from microio import WorkTracker

GUARD = 10  # seconds: reached only by a test that fails


async def parked(awaitable):
    """A task that has begun to wait."""
    task = asyncio.create_task(awaitable)
    await asyncio.sleep(0)
    return task


def test_a_new_tracker_is_idle():
    tracker = WorkTracker()
    assert tracker.count == 0
    assert tracker.busy.is_set() is False
    assert tracker.wait_idle() is True
    assert tracker.wait_idle(0) is True


def test_busy_follows_the_count():
    tracker = WorkTracker()
    steps = []
    for step in tracker.add, tracker.add, tracker.done, tracker.done, tracker.add:
        assert step() is None
        steps.append((tracker.count, tracker.busy.is_set()))
    assert steps == [(1, True), (2, True), (1, True), (0, False), (1, True)]


def test_busy_is_a_threading_event():
    tracker = WorkTracker()
    busy = tracker.busy
    assert isinstance(busy, threading.Event)
    assert tracker.busy is busy
    assert busy.wait(0) is False
    tracker.add()
    assert busy.wait() is True


def test_busy_can_be_read_when_its_tracker_is_gone():
    tracker = WorkTracker()
    tracker.add()
    busy = tracker.busy
    del tracker
    assert busy.wait(0) is busy.is_set()


@pytest.mark.parametrize("count", [0, 1])
def test_busy_cannot_be_set_by_hand(count):
    tracker = WorkTracker()
    for _ in range(count):
        tracker.add()
    for step in tracker.busy.set, tracker.busy.clear:
        with pytest.raises(RuntimeError):
            step()
        assert tracker.busy.is_set() is bool(count)
        assert tracker.busy.wait(0) is bool(count)


def test_the_count_never_falls_below_zero():
    tracker = WorkTracker()
    for _ in range(2):
        with pytest.raises(ValueError):
            tracker.done()
        assert tracker.count == 0 and not tracker.busy.is_set()
    tracker.add()
    assert tracker.count == 1


def test_track_counts_the_body_of_a_with():
    tracker = WorkTracker()
    with tracker.track():
        with tracker.track():
            assert tracker.count == 2
        assert tracker.count == 1 and tracker.busy.is_set()
    assert tracker.count == 0 and not tracker.busy.is_set()


def test_track_lets_exceptions_through():
    tracker = WorkTracker()
    for error in ValueError, KeyboardInterrupt, SystemExit:
        with pytest.raises(error), tracker.track():
            raise error
        assert tracker.count == 0


def test_track_counts_from_the_with_on():
    tracker = WorkTracker()
    work = tracker.track()
    assert tracker.count == 0
    with work:
        assert tracker.count == 1


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_waits_give_up_after_the_timeout(timeout):
    tracker = WorkTracker()
    assert tracker.busy.wait(timeout) is False
    tracker.add()
    assert tracker.wait_idle(timeout) is False


def test_not_a_number_is_no_timeout():
    tracker = WorkTracker()
    with pytest.raises(ValueError):
        tracker.busy.wait(float("nan"))
    tracker.add()
    with pytest.raises(ValueError):
        tracker.wait_idle(float("nan"))


def test_the_last_done_wakes_every_thread():
    tracker = WorkTracker()
    tracker.add()
    tracker.add()
    waiting = threading.Barrier(4)

    def wait():
        waiting.wait(GUARD)
        return tracker.wait_idle(GUARD)

    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(wait) for _ in range(3)]
        waiting.wait(GUARD)
        tracker.done()
        assert not any(wait.done() for wait in waits)
        tracker.done()
        assert [wait.result() for wait in waits] == [True] * 3


def test_the_first_add_wakes_who_waits_for_busy():
    tracker = WorkTracker()
    waiting = threading.Barrier(4)

    def wait():
        waiting.wait(GUARD)
        return tracker.busy.wait(GUARD)

    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(wait) for _ in range(3)]
        waiting.wait(GUARD)
        tracker.add()
        assert [wait.result() for wait in waits] == [True] * 3


def test_blocked_waits_let_other_threads_run():
    tracker = WorkTracker()
    worker = threading.Thread(target=tracker.add)
    worker.start()
    assert tracker.busy.wait(GUARD) is True
    worker.join()
    worker = threading.Thread(target=tracker.done)
    worker.start()
    assert tracker.wait_idle(GUARD) is True
    worker.join()


def test_idle_returns_at_once_without_work(run):
    run(WorkTracker().idle())


def test_the_last_done_wakes_every_task(run):
    async def main():
        tracker = WorkTracker()
        tracker.add()
        tracker.add()
        tasks = [await parked(tracker.idle()) for _ in range(3)]
        tracker.done()
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        await asyncio.to_thread(tracker.done)
        await asyncio.wait_for(asyncio.gather(*tasks), GUARD)

    run(main())


def test_a_cancelled_wait_harms_no_other(run):
    async def main():
        tracker = WorkTracker()
        tracker.add()
        cancelled, task = await parked(tracker.idle()), await parked(tracker.idle())
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tracker.idle(), 0.01)
        tracker.done()
        await asyncio.wait_for(task, GUARD)

    run(main())


def test_a_loop_that_was_closed_early_does_not_hinder_done(loop_factory):
    tracker = WorkTracker()
    tracker.add()
    loop = loop_factory()
    left = loop.create_task(tracker.idle())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    left._log_destroy_pending = False  # it is meant to be left behind
    tracker.done()
    assert tracker.wait_idle(0) is True


def test_many_threads_work_and_the_count_comes_back_to_zero():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    tracker = WorkTracker()
    busy = tracker.busy

    def work():
        for _ in range(500):
            with tracker.track():
                assert tracker.count >= 1 and busy.is_set()
            tracker.add()
            tracker.done()

    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work) for _ in range(4)]:
                tracker.wait_idle(0)
                done.result()
    finally:
        sys.setswitchinterval(interval)
    assert tracker.count == 0 and not busy.is_set()
    assert tracker.wait_idle(GUARD) is True


def test_work_handed_to_threads_is_waited_for():
    """Added before it is handed over, done by another thread: when the wait returns, all of it has been done."""
    tracker, finished = WorkTracker(), []

    def work(number):
        finished.append(number)
        tracker.done()

    with ThreadPoolExecutor(4) as pool:
        for round in range(20):
            for number in range(10):
                tracker.add()
                pool.submit(work, number)
            assert tracker.wait_idle(GUARD) is True
            assert len(finished) == 10 * (round + 1)
