"""Services with an event loop of their own. The others are in ``_service``."""

import asyncio
import traceback
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, TypeVar

from . import _service
from ._service import ServiceGroup, ServiceThread, seconds
from ._task import TaskGroup, create_task_group

__all__ = ["LoopServiceThread", "ServiceGroup", "ServiceThread"]

T = TypeVar("T")


class _Job:
    """Work for the loop. It is run, or withdrawn: whoever gets hold of ``claim`` first does one of the two."""

    def __init__(self) -> None:
        self.claim = allocate_lock()

    def __call__(self) -> None:
        if self.claim.acquire(False):
            self.run()

    def withdraw(self) -> bool:
        """Sees to it that it does not run; False if it has begun, or was withdrawn before."""
        if not self.claim.acquire(False):
            return False
        self.drop()
        return True

    def run(self) -> None:
        raise NotImplementedError

    def drop(self) -> None:
        raise NotImplementedError


class _Call(_Job):
    """A call that another thread waits for: until ``done`` can be had."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.work = fn, args, kwargs
        self.done = allocate_lock()
        self.done.acquire()
        self.ran = False
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        fn, args, kwargs = self.work
        try:
            self.value = fn(*args, **kwargs)
        except BaseException as error:
            self.error = error
        self.ran = True
        self.done.release()

    def drop(self) -> None:
        self.done.release()


class _Submission(_Job):
    """A coroutine that becomes a task, and the future that its submitter has; ``futures`` holds those of live tasks."""

    def __init__(self, coro: Coroutine[Any, Any, Any], futures: set[Future[Any]]) -> None:
        super().__init__()
        self.coro, self.futures = coro, futures
        self.future: Future[Any] = Future()

    def run(self) -> None:
        if self.future.cancelled():
            return self.drop()
        self.loop = asyncio.get_running_loop()
        try:
            self.task = self.loop.create_task(self.coro)
        except BaseException as error:  # a task factory of the user's
            self.coro.close()
            if self.future.set_running_or_notify_cancel():
                self.future.set_exception(error)
            return
        self.futures.add(self.future)
        self.task.add_done_callback(self.finish)
        self.future.add_done_callback(self.cancel)

    def finish(self, task: asyncio.Task[Any]) -> None:
        self.futures.discard(self.future)
        if task.cancelled():
            self.future.cancel()
        if self.future.set_running_or_notify_cancel():
            error = task.exception()
            if error is None:
                self.future.set_result(task.result())
            else:
                self.future.set_exception(error)

    def cancel(self, future: Future[Any]) -> None:
        if future.cancelled() and not self.task.done():
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self.task.cancel)

    def drop(self) -> None:
        self.coro.close()
        _cancel(self.future)


def _cancel(future: Future[Any]) -> None:
    if future.cancel():
        future.set_running_or_notify_cancel()


class LoopServiceThread(ServiceThread):
    """A service that owns an event loop: ``run_async()``, overridden, runs in it, in a task of ``task_group``.

    ``loop`` and ``task_group`` are None while there is none. The service ends when ``run_async()`` and the other
    children of the group have ended; :meth:`stop` cancels them. A failure of one of them stops the others and comes out
    as an ``ExceptionGroup``.

    At the end asyncio closes the loop: it cancels what was submitted, and waits for it; then for running jobs of the
    loop's default executor (``asyncio.to_thread``), for ever on Python 3.11, for five minutes on later ones. Who waits
    in :meth:`call_sync`, or for a submitted coroutine, is let go before that.
    """

    def __init__(self, *, name: str | None = None, daemon: bool = True, reraise: bool = False) -> None:
        super().__init__(name=name, daemon=daemon, reraise=reraise)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task_group: TaskGroup | None = None
        # Jobs for the loop; one wake serves all that are queued. Whoever adds one looks at ``loop`` again; the thread
        # takes ``loop`` away, then empties the queue: no job stays.
        self._service_jobs: deque[tuple[Context, Callable[..., object], tuple[Any, ...]]] = deque()
        self._service_woken = False
        self._service_futures: set[Future[Any]] = set()
        self._service_loop: asyncio.AbstractEventLoop | None = None  # until it is closed, and later than ``loop``

    async def run_async(self) -> None:
        """The work: to be overridden. This one is ready at once and waits until it is stopped."""
        self.started()
        await self.scope.wait_async()

    def run(self) -> None:
        """What the thread does."""
        try:
            super().run()
        finally:
            # Again, for a subclass with a run_service() of its own; and for tasks that a dying loop forgot.
            self.loop = self._service_loop = None
            self._service_drop_jobs()
            while self._service_futures:
                _cancel(self._service_futures.pop())

    def run_service(self) -> None:
        """Runs ``run_async()`` in a loop of its own."""
        with asyncio.Runner() as runner:
            self.loop = self._service_loop = runner.get_loop()
            try:
                runner.run(self._service_main())
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and self.scope.closed:
                    return
                self.fail(error)  # now: closing the runner may take long, or fail as well
                raise
            finally:
                self.loop = None
                self._service_drop_jobs()

    async def _service_main(self) -> None:
        try:
            async with create_task_group() as group:
                self.task_group = group
                if self.scope.closed:  # read after the group was shown, as stop() looks for the group after closing
                    group.cancel(self.scope.reason)
                group.start_soon(self.run_async, name=f"{self.name}-main")
        except (KeyboardInterrupt, SystemExit) as error:
            self.fail(error)  # asyncio has raised it out of the loop already, and would once more while closing it
        finally:
            self.task_group = None

    def stop(self, reason: str | None = "stop") -> bool:
        """As :meth:`ServiceThread.stop`; and cancels the task group, at its next await."""
        first = super().stop(reason)
        group = self.task_group
        if group is not None and self._service_forks == _service.forks:
            group.cancel(reason)
        return first

    def call_soon(self, fn: Callable[..., object], *args: Any) -> None:
        """Has the loop call ``fn(*args)``, in a copy of the caller's context. From any thread.

        Calls keep their order. What they raise goes to the loop's exception handler. What is still queued when the loop
        ends is dropped, as asyncio does. RuntimeError if there is no loop.
        """
        if not callable(fn):
            raise TypeError(f"a function was expected, got {fn!r}")
        loop = self.loop
        if loop is None or self._service_forks != _service.forks:
            raise self._service_no_loop()
        self._service_jobs.append((copy_context(), fn, args))
        if not self._service_woken:
            self._service_woken = True
            try:
                loop.call_soon_threadsafe(self._service_run_jobs)
            except BaseException:
                self._service_woken = False
                if not loop.is_closed():
                    raise
                self._service_drop_jobs()
                raise self._service_no_loop() from None
        if self.loop is not loop:
            self._service_drop_jobs()

    def call_sync(self, fn: Callable[..., T], *args: Any, timeout: float | None = None, **kwargs: Any) -> T:
        """Calls ``fn(*args, **kwargs)`` on the loop's thread and returns what it returns, or raises what it raises.

        On that loop itself it is a plain call. A coroutine is returned as it is: use :meth:`submit` to run one.
        TimeoutError after ``timeout`` seconds (None: never): ``fn`` will not be called any more, unless the message
        says that it had begun; the same holds after Ctrl-C. RuntimeError from the cause if there is no loop, or if it
        ends before the call begins.
        """
        loop = self.loop
        if loop is not None and asyncio._get_running_loop() is loop:
            return fn(*args, **kwargs)
        limit = seconds(timeout)
        call = _Call(fn, args, kwargs)
        try:
            LoopServiceThread.call_soon(self, call)  # which a subclass may have overridden
            if not call.done.acquire(True, limit):
                if call.withdraw():
                    raise TimeoutError(f"call_sync() timed out after {timeout} s: the call will not run")
                if not call.done.acquire(False):
                    raise TimeoutError(f"call_sync() timed out after {timeout} s: the call has begun, and goes on")
        except BaseException:
            call.withdraw()
            raise
        if not call.ran:
            raise self._service_no_loop()
        if call.error is None:
            return call.value
        error, call.error = call.error, None
        try:
            raise error
        finally:
            del error  # or its traceback would keep it alive

    def submit(self, coro: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine as a task of the loop, in a copy of the caller's context. From any thread.

        It is no child of ``task_group``: what it raises goes to the future only. Cancelling the future cancels the
        task. The future always ends: when the loop does, it is cancelled. RuntimeError if there is no loop; the
        coroutine is closed.
        """
        if not asyncio.iscoroutine(coro):
            raise TypeError("a coroutine object is required")
        job = _Submission(coro, self._service_futures)
        try:
            LoopServiceThread.call_soon(self, job)
        except BaseException:
            job.withdraw()
            raise
        return job.future

    def _service_run_jobs(self) -> None:
        self._service_woken = False  # before the queue is looked at, as it is read after a job was added
        loop, jobs = self.loop, self._service_jobs
        if loop is None:
            return self._service_drop_jobs()
        for _ in range(len(jobs)):  # what comes in meanwhile has a wake of its own: others have their turn before
            context, fn, args = jobs.popleft()
            try:
                if args:
                    context.run(fn, *args)
                else:  # three times as fast
                    context.run(fn)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                message = f"exception in a callback of {self.name}"
                loop.call_exception_handler({"message": message, "exception": error, "callback": fn})

    def _service_drop_jobs(self) -> None:
        with suppress(IndexError):  # several threads may be at it
            while True:
                _, job, _ = self._service_jobs.popleft()
                if isinstance(job, _Job):
                    job.withdraw()

    def _service_where(self) -> list[str]:
        loop, where = self.loop or self._service_loop, super()._service_where()
        tasks = [] if loop is None else sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
        for task in tasks[:8]:
            coro: Any = task.get_coro()
            frames: list[traceback.FrameSummary] = []
            while frame := getattr(coro, "cr_frame", None):
                frames += traceback.extract_stack(frame, limit=1)
                coro = coro.cr_await
            where += [f"and its task {task.get_name()!r} at\n", *traceback.format_list(frames[-5:])]
        return where

    def _service_no_loop(self) -> RuntimeError:
        self._service_check_process()
        error = RuntimeError("loop is not running")
        error.__cause__ = self._service_failure()
        return error
