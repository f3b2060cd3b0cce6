"""Task groups: joining, failing, being cancelled, and children that say when they are ready."""

import asyncio
import contextvars
import functools
import gc
import os
import signal
import threading

import pytest

import microio
from microio import CancelScope, TaskGroup, checkpoint, create_task_group, current_cancel_scope, move_on_after


async def forever():
    await asyncio.get_running_loop().create_future()


async def value(it=None):
    return it


async def fail(error=ZeroDivisionError):
    raise error


def eager_task(loop, coroutine, *, eager_start=True, **how):
    return asyncio.Task(coroutine, loop=loop, eager_start=True, **how)


def eager(loop):
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("needs eager tasks (3.12)")
    loop.set_task_factory(eager_task)


async def nothing_pending():
    """Fails if a cancel was left in this task."""
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)
    await asyncio.sleep(0)


# Children


def test_the_block_waits_for_every_child(run):
    async def main():
        done = []

        async def child(n):
            for _ in range(n):
                await asyncio.sleep(0)
            done.append(n)

        async with create_task_group() as tg:
            for n in range(3):
                tg.start_soon(child, n)
            assert done == []
        assert done == [0, 1, 2]

    run(main())


def test_start_soon_calls_whatever_can_be_called_and_awaits_whatever_can_be_awaited(run):
    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return "awaited"

    class Callable:
        async def __call__(self):
            return "called"

    async def main():
        future = asyncio.get_running_loop().create_future()
        future.set_result("future")
        async with TaskGroup() as tg:
            tasks = [
                tg.start_soon(value, 1),
                tg.start_soon(value, it=2),
                tg.start_soon(functools.partial(value, 3)),
                tg.start_soon(lambda: "sync"),
                tg.start_soon(Callable()),
                tg.start_soon(Awaitable),
                tg.start_soon(lambda: future),
                tg.start_soon(microio.sleep, 0, "slept"),
            ]
        results = [task.result() for task in tasks]
        assert results == [1, 2, 3, "sync", "called", "awaited", "future", "slept"]

    run(main())


def test_fn_is_called_in_the_child_and_its_error_is_the_childs(run):
    async def main():
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as tg:
                task = tg.start_soon(value, 1, 2, 3)
                assert not task.done()
                await forever()
        assert [type(error) for error in caught.value.exceptions] == [TypeError]

    run(main())


def test_a_child_has_the_name_it_was_given_or_one_from_asyncio(run):
    async def main():
        async with TaskGroup() as tg:
            named = tg.start_soon(value, name="mine"), tg.create_task(value(), name="mine")
            unnamed = tg.start_soon(value), tg.create_task(value())

            async def child(task_status):
                task_status.started(asyncio.current_task().get_name())

            assert await tg.start(child, name="mine") == "mine"
        assert {task.get_name() for task in named} == {"mine"}
        assert all(task.get_name().startswith("Task-") for task in unnamed)

    run(main())


def test_create_task_takes_a_context_and_any_awaitable(run):
    variable = contextvars.ContextVar("variable")

    async def main():
        async def read():
            return variable.get()

        context = contextvars.copy_context()
        context.run(variable.set, "given")
        future = asyncio.get_running_loop().create_future()
        future.set_result("future")
        async with TaskGroup() as tg:
            assert await tg.create_task(read(), context=context) == "given"
            assert await tg.create_task(future) == "future"
            assert await tg.create_task(microio.sleep(0, "slept")) == "slept"
            with pytest.raises(TypeError):
                tg.create_task(5)

    run(main())


def test_a_child_may_start_children_while_the_group_is_being_left(run):
    async def main():
        async def child(depth):
            await asyncio.sleep(0)
            if depth:
                tasks.append(tg.start_soon(child, depth - 1))

        tasks = []
        async with TaskGroup() as tg:
            tg.start_soon(child, 3)
        assert len(tasks) == 3 and all(task.done() for task in tasks)

    run(main())


def test_eager_children_work(run):
    async def main():
        eager(asyncio.get_running_loop())

        async def child(task_status=None):
            if task_status is not None:
                task_status.started("at once")
            await asyncio.sleep(0)
            return "later"

        async with TaskGroup() as tg:
            assert tg.start_soon(value, "at once").result() == "at once"
            assert await tg.start(child) == "at once"
            assert await tg.create_task(child()) == "later"
            with pytest.raises(ZeroDivisionError):
                await tg.start(lambda task_status: 1 / 0)
            tg.start_soon(forever)
            tg.cancel()
            await forever()

    run(main())


# Failures


def test_all_failures_come_out_in_one_group_and_stop_the_others(run):
    async def main():
        async def stubborn():
            try:
                await forever()
            finally:
                raise KeyError("cleanup")

        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as tg:
                other = tg.start_soon(forever)
                tg.start_soon(stubborn)
                await asyncio.sleep(0)
                tg.start_soon(fail)
                await forever()
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError, KeyError]
        assert other.cancelled()
        await nothing_pending()

    run(main())


def test_an_error_of_the_body_stops_the_children(run):
    async def main():
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as tg:
                child = tg.start_soon(forever)
                await asyncio.sleep(0)
                1 / 0
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        assert child.cancelled()

    run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_comes_out_bare(run, error):
    async def main():
        with pytest.raises(error):
            async with TaskGroup() as tg:
                tg.start_soon(forever)
                await asyncio.sleep(0)
                raise error

    run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_a_child_comes_out_bare_and_leaves_no_request(loop_factory, error):
    """The loop raises it at once; when it runs again, so does the group."""
    caught = []

    async def main():
        try:
            async with TaskGroup() as tg:
                tg.start_soon(fail, error)
        except BaseException as out:
            caught.append((type(out), asyncio.current_task().cancelling()))

    loop = loop_factory()
    task = loop.create_task(main())
    with pytest.raises(error):
        loop.run_until_complete(task)
    loop.run_until_complete(task)
    loop.close()
    assert caught == [(error, 0)]


def test_a_child_that_fails_while_the_group_is_being_left_leaves_no_request(run):
    async def main():
        async def child():
            await asyncio.sleep(0)
            1 / 0

        with CancelScope() as scope:
            with pytest.raises(ExceptionGroup):
                async with TaskGroup() as tg:
                    tg.start_soon(child)
            await nothing_pending()
            scope.cancel()
            await forever()
        assert scope.cancelled_caught, "it took its own cancel for a foreign one"

    run(main())


def test_an_eager_child_that_fails_at_once_leaves_no_request(run):
    async def main():
        eager(asyncio.get_running_loop())
        with pytest.raises(ExceptionGroup):
            async with TaskGroup() as tg:
                tg.start_soon(fail)
                1 / 0
        await nothing_pending()

    run(main())


@pytest.mark.parametrize("leaving", [True, False])
def test_a_native_cancel_while_a_failing_group_is_being_left_is_still_counted(run, leaving):
    async def main():
        async def slow():
            try:
                await forever()
            finally:
                await cleaned

        async def body():
            async with TaskGroup() as tg:
                tg.start_soon(slow)
                tg.start_soon(fail)
                await (value() if leaving else forever())

        cleaned = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(body())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        cleaned.set_result(None)
        await asyncio.wait({task})
        assert task.cancelling() == 1

    run(main())


# Cancel


def test_cancel_stops_the_body_and_the_children_and_nothing_comes_out(run):
    async def main():
        async with TaskGroup() as tg:
            child = tg.start_soon(forever)
            await asyncio.sleep(0)
            assert [tg.cancel("done"), tg.cancel("again")] == [True, False]
            await forever()
            pytest.fail("the body went on")
        assert child.cancelled() and child.cancelling() == 0
        assert tg.cancel_scope.cancelled_caught and tg.cancel_scope.reason == "done"
        await nothing_pending()

    run(main())


def test_cancel_by_a_child_stops_the_body_and_its_siblings(run):
    async def main():
        async def child():
            await asyncio.sleep(0)
            tg.cancel()
            return "ended by itself"

        async with TaskGroup() as tg:
            sibling = tg.start_soon(forever)
            ending = tg.start_soon(child)
            await forever()
        assert sibling.cancelled() and ending.result() == "ended by itself"
        await nothing_pending()

    run(main())


def test_cancel_while_the_group_is_being_left_reaches_each_child_once(run):
    async def main():
        async def child():
            nonlocal requests
            try:
                await forever()
            except asyncio.CancelledError:
                requests += 1
                for _ in range(5):
                    await asyncio.sleep(0)
                raise

        requests = 0
        asyncio.get_running_loop().call_later(0.01, lambda: tg.cancel())
        async with TaskGroup() as tg:
            tasks = [tg.start_soon(child) for _ in range(3)]
        assert requests == 3 and all(task.cancelled() for task in tasks)
        await nothing_pending()

    run(main())


def test_cancel_from_a_thread(run):
    async def main():
        async with TaskGroup() as tg:
            child = tg.start_soon(forever)
            threading.Thread(target=tg.cancel, args=("thread",)).start()
        assert child.cancelled() and tg.cancel_scope.reason == "thread"

    run(main())


def test_cancel_from_a_signal_handler(run):
    async def main():
        async with TaskGroup() as tg:
            before = signal.signal(signal.SIGUSR1, lambda *_: tg.cancel("signal"))
            tg.start_soon(forever)
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        signal.signal(signal.SIGUSR1, before)
        assert tg.cancel_scope.reason == "signal"

    run(main())


def test_a_group_that_was_cancelled_before_it_is_entered_stops_its_body(run):
    async def main():
        tg = TaskGroup()
        tg.cancel()
        async with tg:
            await forever()

    run(main())


def test_the_reason_reaches_every_child(run):
    async def main():
        async def child():
            try:
                await forever()
            finally:
                reasons.append(current_cancel_scope().reason)

        reasons = []
        async with TaskGroup() as tg:
            tg.start_soon(child)
            tg.start_soon(child)
            await asyncio.sleep(0)
            tg.cancel("why")
        assert reasons == ["why", "why"]

    run(main())


def test_children_of_a_cancelled_group_stop_at_every_checkpoint(run):
    async def main():
        async def child():
            for _ in range(3):
                with pytest.raises(asyncio.CancelledError):
                    await checkpoint()
            return "ended"

        async with TaskGroup() as tg:
            tg.cancel_scope.deadline = asyncio.get_running_loop().time() + 3600
            task = tg.start_soon(lambda: (tg.cancel(), child())[1])
        assert task.result() == "ended"

    run(main())


def test_a_child_that_never_began_does_not_run(run):
    async def main():
        ran = []
        async with TaskGroup() as tg:
            tasks = [tg.start_soon(ran.append, 1), tg.create_task(forever())]
            tg.cancel()
        assert ran == [] and all(task.cancelled() for task in tasks)

    run(main())
    gc.collect()


def test_a_cancelled_group_still_takes_children_and_runs_none(run):
    async def main():
        ran = []
        async with TaskGroup() as tg:
            tg.cancel()
            tasks = [tg.start_soon(ran.append, 1), tg.create_task(forever())]
            with pytest.raises(asyncio.CancelledError):
                await tg.start(ran.append)
            await asyncio.sleep(0)
        assert ran == [] and all(task.cancelled() for task in tasks)
        await nothing_pending()

    run(main())
    gc.collect()


def test_a_child_that_is_cancelled_alone_before_it_began_closes_its_coroutine(run):
    async def main():
        async with TaskGroup() as tg:
            task = tg.create_task(forever())
            task.cancel()
        assert task.cancelled() and not tg.cancel_scope.cancelled

    run(main())
    gc.collect()


def test_a_native_cancel_of_the_owner_comes_out_of_the_group(run):
    async def main():
        async def body():
            async with TaskGroup() as tg:
                children.append(tg.start_soon(forever))
                await forever()

        children = []
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() and children[0].cancelled()

    run(main())


@pytest.mark.parametrize("native_first", [True, False])
def test_a_native_cancel_beside_ours_comes_out_of_the_group(run, native_first):
    async def main():
        async def body():
            async with tg:
                await forever()

        tg = TaskGroup()
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        for cancel in (task.cancel, tg.cancel) if native_first else (tg.cancel, task.cancel):
            cancel()
        await asyncio.wait({task})
        assert task.cancelled() and task.cancelling() == 1

    run(main())


def test_a_native_cancel_while_a_cancelled_group_is_being_left_comes_out(run):
    async def main():
        async def slow():
            try:
                await forever()
            finally:
                await asyncio.sleep(0.01)

        async def body():
            async with TaskGroup() as tg:
                tg.start_soon(slow)
                await asyncio.sleep(0)
                tg.cancel()
                await forever()

        task = asyncio.create_task(body())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    run(main())


def test_a_scope_around_the_group_stops_the_children_too(run):
    async def main():
        with move_on_after(0.01) as scope:
            async with TaskGroup() as tg:
                child = tg.start_soon(forever)
        assert scope.cancelled_caught and child.cancelled() and not tg.cancel_scope.cancelled
        await nothing_pending()

    run(main())


def test_errors_of_children_come_out_of_a_cancelled_group(run):
    async def main():
        async def child():
            try:
                await forever()
            finally:
                1 / 0

        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as tg:
                tg.start_soon(child)
                await asyncio.sleep(0)
                tg.cancel()
                await forever()
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        await nothing_pending()

    run(main())


def test_the_group_can_have_a_deadline(run):
    async def main():
        async with TaskGroup() as tg:
            tg.cancel_scope.deadline = asyncio.get_running_loop().time() + 0.01
            child = tg.start_soon(forever)
        assert child.cancelled() and tg.cancel_scope.timed_out

    run(main())


def test_a_delay_of_the_group_counts_from_its_beginning(run):
    async def main():
        async def relay(times):
            deadlines.add(tg.cancel_scope.deadline)
            await asyncio.sleep(0.001)
            if times:
                tg.start_soon(relay, times - 1)

        deadlines = set()
        tg = TaskGroup()
        tg.cancel_scope.delay = 3600
        async with tg:
            tg.start_soon(relay, 3)
        assert len(deadlines) == 1

    run(main())


def test_a_group_whose_deadline_is_an_error_joins_its_children_first(run):
    async def main():
        tg = TaskGroup()
        tg.cancel_scope.delay, tg.cancel_scope.raise_timeout = 0.01, True
        with pytest.raises(ExceptionGroup) as caught:
            async with tg:
                child = tg.start_soon(forever)
                await forever()
        assert [type(error) for error in caught.value.exceptions] == [TimeoutError]
        assert child.cancelled()

    run(main())


# When a group takes no children


def refusals(tg, match):
    for begin in tg.start_soon, tg.create_task:
        coroutine = forever()
        with pytest.raises(RuntimeError, match=match):
            begin(coroutine if begin == tg.create_task else forever)
        if begin == tg.create_task:
            assert coroutine.cr_frame is None, "it was not closed"
        coroutine.close()


def test_a_group_that_was_not_entered_or_has_ended_takes_no_children(run):
    async def main():
        tg = TaskGroup()
        refusals(tg, "^TaskGroup is not active$")
        async with tg:
            pass
        refusals(tg, "^TaskGroup is not active$")
        with pytest.raises(RuntimeError, match="^TaskGroup is not active$"):
            await tg.start(forever)

    run(main())


def test_a_failing_group_takes_no_children(run):
    async def main():
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as tg:
                tg.start_soon(fail)
                try:
                    await forever()
                finally:
                    refusals(tg, "shutting down")
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]

    run(main())


def test_another_thread_is_told_of_submit(run):
    async def main():
        async with TaskGroup() as tg:
            await asyncio.to_thread(refusals, tg, r"submit\(\)")

    run(main())


def test_a_group_is_entered_once(run):
    async def main():
        tg = TaskGroup()
        async with tg:
            with pytest.raises(RuntimeError):
                await tg.__aenter__()
            await tg.start_soon(value)
        with pytest.raises(RuntimeError):
            await tg.__aenter__()

    run(main())


def test_a_group_shows_its_state(run):
    async def main():
        tg = TaskGroup()
        states = [repr(tg)]
        async with tg:
            states.append(repr(tg))
            tg.cancel()
            states.append(repr(tg))
        states.append(repr(tg))
        assert states == [f"<TaskGroup {state}>" for state in ("new", "open", "open cancelled", "ended cancelled")]

    run(main())


# Readiness


def test_start_returns_what_the_child_is_started_with_while_the_child_goes_on(run):
    async def main():
        async def child(base, *, task_status, more=0):
            await asyncio.sleep(0)
            assert not task_status.started_called
            task_status.started(base + more)
            assert task_status.started_called
            await go
            return "ended"

        go = asyncio.get_running_loop().create_future()
        async with TaskGroup() as tg:
            assert await tg.start(child, 1, more=2) == 3
            go.set_result(None)

    run(main())


def test_start_takes_a_sync_function(run):
    async def main():
        async with TaskGroup() as tg:
            assert await tg.start(lambda task_status: task_status.started("ready")) == "ready"

    run(main())


def test_an_error_before_ready_is_raised_by_start_only(run):
    async def main():
        async def child(task_status):
            await asyncio.sleep(0)
            raise OSError("address in use")

        async with TaskGroup() as tg:
            sibling = tg.start_soon(asyncio.sleep, 0.01)
            with pytest.raises(OSError, match="address in use"):
                await tg.start(child)
        assert not sibling.cancelled()

    run(main())


def test_an_error_after_ready_is_the_groups(run):
    async def main():
        async def child(task_status):
            task_status.started()
            1 / 0

        with pytest.raises(ExceptionGroup):
            async with TaskGroup() as tg:
                await tg.start(child)
                await forever()

    run(main())


def test_a_child_that_returns_without_being_ready_is_an_error(run):
    async def main():
        async with TaskGroup() as tg:
            with pytest.raises(RuntimeError, match=r"^task exited without calling task_status.started\(\)$"):
                await tg.start(lambda task_status: None)

    run(main())


def test_a_child_is_started_once(run):
    async def main():
        async def child(task_status):
            task_status.started(1)
            with pytest.raises(RuntimeError, match=r"^task_status.started\(\) called twice$"):
                task_status.started(2)
            return repr(task_status)

        async with TaskGroup() as tg:
            assert await tg.start(child) == 1

    run(main())


@pytest.mark.parametrize("begun", [True, False])
def test_cancelling_the_group_stops_a_child_that_is_starting(run, begun):
    async def main():
        async def child(task_status):
            nonlocal ran
            ran = True
            await forever()

        ran = False
        async with TaskGroup() as tg:
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, tg.cancel) if begun else loop.call_soon(tg.cancel)
            with pytest.raises(asyncio.CancelledError):
                await tg.start(child)
            raise asyncio.CancelledError
        assert tg.cancel_scope.cancelled_caught
        await nothing_pending()

    run(main())


def test_cancelling_the_group_under_a_shielded_start_does_not_hang(run):
    async def main():
        async with TaskGroup() as tg:
            starting = asyncio.ensure_future(tg.start(lambda task_status: forever()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            tg.cancel()
            await asyncio.shield(starting)
        await asyncio.wait({starting})
        assert starting.cancelled()

    run(main())


def test_a_child_that_is_cancelled_before_it_is_ready_cancels_start(run):
    async def main():
        async def child(task_status):
            asyncio.current_task().cancel()
            await forever()

        async with TaskGroup() as tg:
            with pytest.raises(asyncio.CancelledError):
                await tg.start(child)
            await nothing_pending()

    run(main())


def test_a_start_that_is_cancelled_cancels_its_child_only(run):
    async def main():
        async def child(task_status):
            try:
                await forever()
            except asyncio.CancelledError:
                stopped.append(asyncio.current_task())
                task_status.started("too late")
                with pytest.raises(RuntimeError):
                    task_status.started("too late")
                raise

        stopped = []
        async with TaskGroup() as tg:
            other = tg.start_soon(asyncio.sleep, 0.02)
            with move_on_after(0.01):
                await tg.start(child)
            await asyncio.sleep(0)
            assert len(stopped) == 1
        assert stopped[0].cancelled() and not other.cancelled()

    run(main())


def test_an_error_of_a_child_whose_start_was_cancelled_goes_to_the_group(run):
    async def main():
        async def child(task_status):
            try:
                await forever()
            finally:
                1 / 0

        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as tg:
                with move_on_after(0.01):
                    await tg.start(child)
                await forever()
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        await nothing_pending()

    run(main())


def test_a_start_that_is_cancelled_in_the_moment_of_the_childs_error_logs_nothing(run):
    async def main():
        async def child(task_status):
            asyncio.get_running_loop().call_soon(starting.cancel)  # before the error wakes it
            1 / 0

        async with TaskGroup() as tg:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
            starting = asyncio.ensure_future(tg.start(child))
            await asyncio.wait({starting})
            assert starting.cancelled()
        del starting
        gc.collect()

    logged = []
    run(main())
    assert logged == []


def test_children_may_start_children(run):
    async def main():
        async def inner(task_status):
            task_status.started("inner")

        async def outer(task_status):
            task_status.started("outer " + await tg.start(inner))

        async with TaskGroup() as tg:
            assert await tg.start(outer) == "outer inner"

    run(main())
