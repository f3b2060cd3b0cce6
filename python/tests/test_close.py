"""CloseScope: the durable end of a service, with its reason and its cause."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from microio import BrokenResourceError, ClosedResourceError, CloseScope

GUARD = 10  # seconds: reached only by a test that fails


async def parked(awaitable):
    """A task that has begun to wait."""
    task = asyncio.create_task(awaitable)
    await asyncio.sleep(0)
    return task


def test_a_new_scope_is_open():
    scope = CloseScope()
    assert scope.closed is False and scope.failed is False
    assert scope.reason is None and scope.exc is None
    assert scope.raise_if_closed() is None
    assert scope.wait(0) is False


def test_the_first_close_wins():
    scope = CloseScope()
    assert scope.close("bye") is True
    assert scope.close("again", ValueError()) is False
    assert scope.fail(ValueError()) is False
    assert scope.closed is True and scope.failed is False
    assert scope.reason == "bye" and scope.exc is None


def test_the_first_failure_wins():
    scope, cause = CloseScope(), ValueError("reader died")
    assert scope.fail(cause) is True
    assert scope.fail(KeyError()) is False
    assert scope.close("bye") is False
    assert scope.closed is True and scope.failed is True
    assert scope.reason == "reader died" and scope.exc is cause


def test_a_failure_may_have_a_reason_of_its_own():
    scope = CloseScope()
    scope.fail(ValueError("reader died"), reason="no reader")
    assert scope.reason == "no reader"


def test_close_may_carry_an_exception():
    scope, cause = CloseScope(), ValueError("reader died")
    assert scope.close(reason="no reader", exc=cause) is True
    assert scope.failed and scope.exc is cause and scope.reason == "no reader"


def test_closing_without_a_reason_leaves_none():
    scope = CloseScope()
    scope.close()
    assert scope.closed and scope.reason is None


@pytest.mark.parametrize("reason, text", [("bye", "bye"), (None, "closed"), ("", "closed")])
def test_raise_if_closed_says_why(reason, text):
    scope = CloseScope()
    scope.close(reason)
    for _ in range(2):
        with pytest.raises(ClosedResourceError) as caught:
            scope.raise_if_closed()
        assert str(caught.value) == text and caught.value.__cause__ is None


@pytest.mark.parametrize("reason, text", [("no reader", "no reader"), (None, "reader died"), ("", "reader died")])
def test_raise_if_closed_raises_from_the_cause(reason, text):
    scope, cause = CloseScope(), ValueError("reader died")
    scope.close(reason, cause)
    for _ in range(2):
        with pytest.raises(BrokenResourceError) as caught:
            scope.raise_if_closed()
        assert str(caught.value) == text and caught.value.__cause__ is cause


def test_reason_and_exc_can_be_assigned():
    scope, cause = CloseScope(), ValueError("reader died")
    scope.exc = cause
    assert scope.failed and not scope.closed and scope.raise_if_closed() is None
    scope.close("bye", cause)
    scope.reason = "no reader"
    with pytest.raises(BrokenResourceError, match="^no reader$"):
        scope.raise_if_closed()
    scope.exc = None
    assert not scope.failed
    with pytest.raises(ClosedResourceError, match="^no reader$"):
        scope.raise_if_closed()


def test_closed_and_failed_cannot_be_assigned():
    scope = CloseScope()
    for name in "closed", "failed":
        with pytest.raises(AttributeError):
            setattr(scope, name, True)


def test_a_base_exception_is_a_cause_like_any_other():
    scope, cause = CloseScope(), KeyboardInterrupt("stop")
    scope.fail(cause)
    with pytest.raises(BrokenResourceError) as caught:
        scope.raise_if_closed()
    assert caught.value.__cause__ is cause


def test_wait_on_a_closed_scope_returns_at_once():
    scope = CloseScope()
    scope.close()
    assert scope.wait() is True
    assert scope.wait(0) is True
    assert scope.wait(timeout=float("inf")) is True


@pytest.mark.parametrize("timeout", [0, -1, -1e300, 0.01])
def test_wait_on_an_open_scope_gives_up_after_the_timeout(timeout):
    assert CloseScope().wait(timeout) is False


def test_not_a_number_is_no_timeout():
    with pytest.raises(ValueError):
        CloseScope().wait(float("nan"))
    with pytest.raises(TypeError):
        CloseScope().wait("1")


def test_close_wakes_every_blocked_thread():
    scope = CloseScope()
    waiting = threading.Barrier(5)

    def wait():
        waiting.wait(GUARD)
        return scope.wait(GUARD), scope.reason

    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(wait) for _ in range(4)]
        waiting.wait(GUARD)
        scope.close("bye")
        assert [wait.result() for wait in waits] == [(True, "bye")] * 4


def test_a_blocked_wait_lets_other_threads_run():
    """The wait would deadlock if it held the GIL: the thread that closes could not run."""
    scope = CloseScope()
    closer = threading.Thread(target=scope.close)
    closer.start()
    assert scope.wait(GUARD) is True
    closer.join()


def test_one_of_many_threads_closes():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                scope, barrier = CloseScope(), threading.Barrier(8)

                def close(name, scope=scope, barrier=barrier):
                    barrier.wait(GUARD)
                    return scope.close(name), name, scope.reason

                outcomes = list(pool.map(close, "abcdefgh"))
                (winner,) = [name for first, name, _ in outcomes if first]
                assert {reason for *_, reason in outcomes} == {winner}
    finally:
        sys.setswitchinterval(interval)


def test_who_sees_it_closed_sees_why():
    scope, seen = CloseScope(), []

    def watch():
        while not scope.closed:
            pass
        seen.append((scope.reason, scope.exc))

    watcher = threading.Thread(target=watch)
    watcher.start()
    cause = ValueError("reader died")
    scope.fail(cause)
    watcher.join()
    assert seen == [("reader died", cause)]


def test_wait_async_on_a_closed_scope(run):
    scope = CloseScope()
    scope.close()
    assert run(scope.wait_async()) is True


def test_close_wakes_every_task(run):
    async def main():
        scope = CloseScope()
        tasks = [await parked(scope.wait_async()) for _ in range(3)]
        assert scope.close()
        assert await asyncio.wait_for(asyncio.gather(*tasks), GUARD) == [True] * 3

    run(main())


def test_a_thread_wakes_the_task(run):
    async def main():
        scope = CloseScope()
        task = await parked(scope.wait_async())
        await asyncio.to_thread(scope.fail, ValueError("reader died"))
        assert await asyncio.wait_for(task, GUARD) is True
        assert scope.failed

    run(main())


def test_a_cancelled_wait_harms_no_other(run):
    async def main():
        scope = CloseScope()
        cancelled, task = await parked(scope.wait_async()), await parked(scope.wait_async())
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scope.wait_async(), 0.01)
        scope.close()
        assert await asyncio.wait_for(task, GUARD) is True

    run(main())


def test_tasks_on_two_loops_wait_for_one_scope(run, loop_factory):
    scope = CloseScope()
    waiting = threading.Event()

    def elsewhere():
        async def wait():
            task = await parked(scope.wait_async())
            waiting.set()
            return await asyncio.wait_for(task, GUARD)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(wait())

    async def main():
        other = asyncio.get_running_loop().run_in_executor(pool, elsewhere)
        task = await parked(scope.wait_async())
        await asyncio.to_thread(waiting.wait, GUARD)
        scope.close()
        assert await asyncio.wait_for(asyncio.gather(task, other), GUARD) == [True, True]

    with ThreadPoolExecutor(1) as pool:
        run(main())


def test_a_loop_that_was_closed_early_does_not_hinder_the_close(loop_factory):
    scope = CloseScope()
    loop = loop_factory()
    left = loop.create_task(scope.wait_async())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    left._log_destroy_pending = False  # it is meant to be left behind
    assert scope.close("bye") is True
    assert scope.wait(0) is True


def test_fail_goes_through_an_overridden_close():
    class Logged(CloseScope):
        def close(self, reason=None, exc=None):
            self.log = reason, exc
            return super().close(reason, exc)

    scope, cause = Logged(), ValueError("reader died")
    assert scope.fail(cause)
    assert scope.log == ("reader died", cause)
    assert scope.closed and scope.exc is cause
