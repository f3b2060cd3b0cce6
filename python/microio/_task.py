"""Task groups with readiness and cancellation, and groups of scopes."""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context
from inspect import isawaitable
from threading import get_ident
from types import CoroutineType, TracebackType, coroutine
from typing import Any, Self, TypeVar

from ._microio import (
    CancelScope,
    checkpoint,
    checkpoint_if_cancelled,
    current_cancel_scope,
    fail_after,
    move_on_after,
    sleep,
)

__all__ = [
    "CancelScope",
    "ScopeGroup",
    "TaskGroup",
    "TaskStatus",
    "checkpoint",
    "checkpoint_if_cancelled",
    "create_task_group",
    "current_cancel_scope",
    "fail_after",
    "move_on_after",
    "sleep",
]

T = TypeVar("T")


class TaskStatus:
    """What a child that is begun with :meth:`TaskGroup.start` reports to: it calls :meth:`started` once it is ready."""

    def __init__(self, fut: asyncio.Future[Any]) -> None:
        self._fut = fut
        self.started_called = False

    def started(self, value: Any = None) -> None:
        """Lets ``start()`` return ``value``. Has no effect if ``start()`` was cancelled. A second call is an error."""
        if self.started_called:
            raise RuntimeError("task_status.started() called twice")
        self.started_called = True
        if not self._fut.done():
            self._fut.set_result(value)

    def __repr__(self) -> str:
        return f"<TaskStatus {'started' if self.started_called else 'starting'}>"


class TaskGroup:
    """``asyncio.TaskGroup`` with one cancel scope over the body and all children, and with readiness.

    Leaving the ``async with`` block waits for every child. The first failure cancels the others, and all failures come
    out as one ``ExceptionGroup``. ``cancel()`` is normal shutdown: it stops the body and the children, and nothing
    comes out. A group is entered once.
    """

    def __init__(self) -> None:
        self.cancel_scope = CancelScope()
        self._group = asyncio.TaskGroup()
        self._thread: int | None = None  # that of the loop, while open
        self._state = "new"

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self.cancel_scope.__enter__()
        self.cancel_scope.delay = None  # it is the deadline now: a child that is alone inside must not start it afresh
        self._thread, self._state = get_ident(), "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        # The body leaves the scope before the join: a cancel during the join is the children's, and reaches them once.
        try:
            ours = self.cancel_scope.__exit__(kind, error, trace)
        except BaseException as own:  # the TimeoutError that the scope was asked for
            ours, kind, error, trace = False, type(own), own, own.__traceback__
        if ours:
            kind = error = trace = None
        try:
            return await _join(self._group, kind, error, trace) or ours
        finally:
            self._thread, self._state = None, "ended"

    def cancel(self, reason: str | None = None) -> bool:
        """Stops the body, at its next await, and the children; true if this call was the first.

        From any thread and from a signal handler. Children that it stops end cancelled; one that has not begun yet
        never runs.
        """
        return self.cancel_scope.cancel(reason)

    def create_task(
        self, coro: Awaitable[T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """Runs a coroutine, or any other awaitable, as a child. See :meth:`start_soon`."""
        close = coro.close if asyncio.iscoroutine(coro) else None
        if close is None and not isawaitable(coro):
            raise TypeError(f"an awaitable was expected, got {coro!r}")
        try:
            task = self._spawn(_same, (coro,), {}, None, name, context)
        except BaseException:
            if close is not None:
                close()
            raise
        if close is not None:
            task.add_done_callback(lambda _: close())  # for a child that was cancelled before its first step
        return task

    def start_soon(
        self, fn: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any
    ) -> asyncio.Task[Any]:
        """Calls ``fn(*args, **kwargs)`` in a child task and awaits what it returns, if that is awaitable.

        In a group that was cancelled but has not ended, the task ends cancelled and ``fn`` is not called. RuntimeError
        outside the ``async with`` block, after a failure in the group, and on another thread than the loop's.
        """
        return self._spawn(fn, args, kwargs, None, name)

    async def start(self, fn: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        """Starts a child and waits until it calls ``task_status.started(value)``; returns the value.

        The child gets ``task_status`` as a keyword. What it raises before ``started()`` is raised here, and only here;
        if it returns without, RuntimeError. CancelledError if the child is cancelled first. If this call is cancelled,
        so is the child.
        """
        ready = asyncio.get_running_loop().create_future()
        kwargs["task_status"] = TaskStatus(ready)
        child = self._spawn(fn, args, kwargs, ready, name)
        child.add_done_callback(lambda _: ready.cancel())  # a child that was cancelled before it was ready
        try:
            return await ready
        except asyncio.CancelledError:
            child.cancel()
            raise

    def _spawn(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ready: asyncio.Future[Any] | None,
        name: str | None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        if self._thread != get_ident():
            if self._thread is None:
                raise RuntimeError("TaskGroup is not active")
            raise RuntimeError("TaskGroup belongs to another thread: use submit() of its service")
        if not callable(fn):
            raise TypeError(f"a function was expected, got {fn!r}: create_task() takes coroutines")
        child = self._run(fn, args, kwargs, ready)
        try:
            return self._group.create_task(child, name=name, context=context)
        except BaseException:
            child.close()
            raise

    async def _run(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ready: asyncio.Future[Any] | None,
    ) -> Any:
        scope = self.cancel_scope
        if scope.cancelled:
            raise asyncio.CancelledError
        scope.__enter__()
        try:
            result = fn(*args, **kwargs)
            if type(result) is CoroutineType or isawaitable(result):
                result = await result
            if ready is not None and not ready.done():
                raise RuntimeError("task exited without calling task_status.started()")
            return result
        except Exception as error:
            if ready is None or ready.done():
                raise
            ready.set_exception(error)
        finally:
            scope.__exit__(None, None, None)  # swallows nothing: a child that is stopped ends cancelled

    def __repr__(self) -> str:
        return f"<TaskGroup {self._state}{' cancelled' if self.cancel_scope.cancelled else ''}>"


def create_task_group() -> TaskGroup:
    """A new :class:`TaskGroup`, for ``async with``."""
    return TaskGroup()


def _same(coro: T) -> T:
    return coro


@coroutine
def _join(group: asyncio.TaskGroup, *error: Any) -> Generator[Any, Any, bool | None]:
    """Awaits ``group.__aexit__(*error)`` and leaves the task's count of cancel requests right.

    When a child fails during the join, asyncio cancels the joining task. On 3.11 and 3.12, and on any version for a
    KeyboardInterrupt, it never takes that request back, and every enclosing scope or timeout would then take its own
    cancellation for a foreign one. If asyncio does take it back, it is in its last step. On 3.12 a request that was
    taken back is still delivered if the task was running, as it is when an eager child fails in the body: it ends here.
    """
    owner: Any = asyncio.current_task()
    requested = getattr(group, "_parent_cancel_requested", False)
    join: Any = group.__aexit__(*error)
    resume, value = join.send, None
    while True:
        requests = owner.cancelling()
        try:
            awaited = resume(value)
        except StopIteration as end:
            return end.value
        except BaseException:
            asked = not requested and getattr(group, "_parent_cancel_requested", False)
            if asked and owner.cancelling() == requests:
                owner.uncancel()
            if not owner.cancelling() and getattr(owner, "_must_cancel", False):
                try:
                    yield
                except asyncio.CancelledError:
                    pass
            raise
        try:
            resume, value = join.send, (yield awaited)
        except BaseException as error:
            resume, value = join.throw, error


class ScopeGroup:
    """The scopes of the work that one interrupt stops. From any thread and from a signal handler."""

    def __init__(self) -> None:
        self.cancelling = False  # the latch: while it is true, scopes are born cancelled
        self._reason: str | None = None
        self._scopes: dict[CancelScope, None] = {}  # each use is one atomic step

    @property
    def active(self) -> bool:
        """True while a scope of this group is entered."""
        return bool(self._scopes)

    @contextmanager
    def scope(self) -> Iterator[CancelScope]:
        """A context manager: enters a new scope of this group, born cancelled while ``cancelling`` is true."""
        with CancelScope() as scope:
            self._scopes[scope] = None
            try:
                if self.cancelling:  # read after the scope was added, as cancel() writes it before it looks
                    scope.cancel(self._reason or "cancelled")
                yield scope
            finally:
                self._scopes.pop(scope, None)

    def cancel(self, reason: str | None = None, *, wake: bool = False, latch: bool = False) -> bool:
        """Cancels the scopes that are entered now; with ``latch`` also later ones, until :meth:`clear`.

        True if there was any, cancelled already or not. ``wake`` as in :meth:`CancelScope.cancel`.
        """
        if latch:
            self._reason = reason
            self.cancelling = True
        scopes = tuple(self._scopes)
        for scope in scopes:
            scope.cancel(reason, wake=wake)
        return bool(scopes)

    def clear(self) -> None:
        """Ends the latch. Scopes that were cancelled stay cancelled."""
        self.cancelling, self._reason = False, None

    def __repr__(self) -> str:
        return f"<ScopeGroup active={len(self._scopes)}{' cancelling' if self.cancelling else ''}>"
