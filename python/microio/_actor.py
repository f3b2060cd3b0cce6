"""Mailboxes, and the loop that hands their items to one handler."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Literal

from ._errors import EndOfStream
from ._microio import CloseScope, ObjectReceiveChannel, ObjectSendChannel, PriorityReceiver, create_channel
from ._task import TaskGroup


class Mailbox:
    """A channel in one object: ``submit`` from any thread, ``get`` on the loop.

    ``late_send`` says what a submit after ``close()`` or ``fail()`` does: ``"drop"`` counts the item and returns None,
    ``"raise"`` raises ClosedResourceError.
    """

    def __init__(self, *, late_send: Literal["raise", "drop"] = "drop") -> None:
        self.send, self.receive = create_channel(late_send=late_send)

    @property
    def send(self) -> ObjectSendChannel[Any]:
        """The sending end. It may be replaced, together with ``receive``, before the first use."""
        return self._send

    @send.setter
    def send(self, send: ObjectSendChannel[Any]) -> None:
        _shorten(self, Mailbox, submit=send.send_nowait, put=send.send_nowait)
        self._send = send

    @property
    def receive(self) -> ObjectReceiveChannel[Any]:
        """The receiving end."""
        return self._receive

    @receive.setter
    def receive(self, receive: ObjectReceiveChannel[Any]) -> None:
        _shorten(self, Mailbox, get=receive.receive)
        self._receive = receive

    def submit(self, item: Any) -> int | None:
        """Queues ``item``; the count of accepted items, or None if it was dropped. From any thread, before any loop."""
        return self.send.send_nowait(item)

    put = submit

    def get(self) -> Awaitable[Any]:
        """Awaits the next item; if cancelled, loses none. EndOfStream after ``close()``, the error of ``fail()``."""
        return self.receive.receive()

    def __aiter__(self) -> AsyncIterator[Any]:
        """The items, to the end of the stream."""
        return _Items(self) if type(self).get is not Mailbox.get else self.receive.__aiter__()

    def bind(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Binds the receiving side to ``loop``, by default the running one. A second time does nothing."""
        self.receive.bind(loop)

    def close(self) -> bool:
        """Ends the stream behind what is queued; true if this call ended it."""
        return self.send.close()

    def fail(self, exc: BaseException) -> bool:
        """Ends the stream behind what is queued, with ``exc`` for who receives; true if this call ended it."""
        return self.send.fail(exc)

    def drain_nowait(self, max_items: int | None = None) -> list[Any]:
        """Takes out what is queued now."""
        return self.receive.drain_nowait(max_items)

    def __repr__(self) -> str:
        stats = self.send.stats()
        return f"<{type(self).__name__} {'closed' if stats.closed else 'open'} queued={stats.queued}>"


class PriorityMailbox(Mailbox):
    """A mailbox that gives out the item with the largest ``key(item)`` first, and equal ones as they came.

    ``gate(item)`` sees each item once, as it comes out of the channel and in the order in which it was sent; a false
    answer consumes the item. Both run on the receiving side and may submit. Without a key all items are equal.
    """

    def __init__(
        self, key: Callable[[Any], float] | None = None, gate: Callable[[Any], Any] | None = None, **kw: Any
    ) -> None:
        self._sorting = key, gate
        super().__init__(**kw)

    @property
    def receive(self) -> ObjectReceiveChannel[Any]:
        """The receiving end, before the sorting."""
        return self._receive

    @receive.setter
    def receive(self, receive: ObjectReceiveChannel[Any]) -> None:
        self._ordered = PriorityReceiver(receive, *self._sorting)
        self._receive = receive
        _shorten(self, PriorityMailbox, get=self._ordered.get)

    @property
    def key(self) -> Callable[[Any], float] | None:
        """An item's priority, a real number."""
        return self._ordered.key

    @key.setter
    def key(self, key: Callable[[Any], float] | None) -> None:
        self._ordered.key = key

    @property
    def gate(self) -> Callable[[Any], Any] | None:
        """Whether an item comes in."""
        return self._ordered.gate

    @gate.setter
    def gate(self, gate: Callable[[Any], Any] | None) -> None:
        self._ordered.gate = gate

    @property
    def floor(self) -> float | None:
        """Only items above it are given out; None: all. The others wait. May be set from any thread."""
        return self._ordered.floor

    @floor.setter
    def floor(self, floor: float | None) -> None:
        self._ordered.floor = floor

    def get(self) -> Awaitable[Any]:
        """Awaits the best item above the floor. EndOfStream after ``close()`` when nothing above it is left."""
        return self._ordered.get()

    def __aiter__(self) -> AsyncIterator[Any]:
        """The items above the floor, to the end of the stream."""
        return _Items(self) if type(self).get is not PriorityMailbox.get else self._ordered.__aiter__()

    def drain_nowait(self, max_items: int | None = None) -> list[Any]:
        """Takes out what is queued now, whatever the floor, in the order of priority."""
        return self._ordered.drain_nowait(max_items)


def _shorten(owner: Any, cls: type, **ways: Callable[..., Any]) -> None:
    """Lets the calls that are made most go straight to where they end, unless a subclass has its own."""
    for name, way in ways.items():
        if getattr(type(owner), name) is getattr(cls, name):
            setattr(owner, name, way)


class _Items:
    """Iterates through ``get()``, for a mailbox that has its own."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._mailbox.get()
        except EndOfStream:
            raise StopAsyncIteration from None


class ActorCore:
    """Hands the items of a mailbox to ``handler``, one at a time, in the task and on the thread of ``run()``.

    The handler is sync or async. With ``concurrent`` it is called as ``handler(item, release)``, each item in a task and
    a context of its own, and the next item waits until the handler calls ``release()`` (from any thread, any number of
    times) or returns.

    A handler that raises ends the actor: the mailbox fails with that exception, and what is queued stays for
    ``drain_nowait()``.
    """

    def __init__(
        self, handler: Callable[..., Any] | None, *, mailbox: Mailbox | None = None, concurrent: bool = False
    ) -> None:
        if handler is not None and not callable(handler):
            raise TypeError(f"a function as handler was expected, not {type(handler).__name__}")
        self.handler: Any = handler
        self.concurrent = concurrent
        self.mailbox = Mailbox() if mailbox is None else mailbox  # not `or`: one of a user's own may have a length
        self._run_state = "idle"
        self._left: list[Any] = []  # received while a handler failed, and handled by nobody

    @property
    def mailbox(self) -> Mailbox:
        """Where the items come from."""
        return self._mailbox

    @mailbox.setter
    def mailbox(self, mailbox: Mailbox) -> None:
        _shorten(self, ActorCore, submit=mailbox.submit)
        self._mailbox = mailbox

    async def handle(self, item: Any) -> None:
        """Handles one item. May be overridden instead of passing a handler, if not ``concurrent``."""
        result = self.handler(item)
        if isawaitable(result):
            await result

    async def run(self, *, bind: bool = True) -> None:
        """Handles items until the mailbox is closed and empty.

        Raises what the handler raised (in an ExceptionGroup, as a task group does, if ``concurrent``), or what the
        mailbox failed with. Cancelling it stops the handlers and leaves the mailbox open. RuntimeError if it runs
        already, or has failed.
        """
        if self._run_state != "idle":
            raise RuntimeError(f"run() of an actor that is {self._run_state}")
        if bind:
            self.mailbox.bind()
        self._run_state = "running"
        try:
            await (self._run_concurrent() if self.concurrent else self._run())
        except (asyncio.CancelledError, GeneratorExit):
            self._run_state = "idle"
            raise
        except BaseException as error:
            self._run_state = "failed"
            self.mailbox.fail(error)
            raise
        self._run_state = "idle"

    async def _run(self) -> None:
        own = getattr(self.handle, "__func__", None) is not ActorCore.handle
        async for item in _iterate(self.mailbox):
            result = self.handle(item) if own else self.handler(item)
            if result is not None and (type(result) is CoroutineType or isawaitable(result)):
                await result

    async def _run_concurrent(self) -> None:
        failure = None

        async def attend(item: Any, release: Callable[[], bool]) -> None:
            nonlocal failure
            try:
                result = self.handler(item, release)
                if isawaitable(result):
                    await result
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                failure = failure or error
                self.mailbox.fail(error)
                raise
            finally:
                release()

        async with TaskGroup() as tasks:
            try:
                async for item in _iterate(self.mailbox):
                    if failure is not None:  # of a handler, while this item was on its way
                        self._left.append(item)
                        break
                    turn = CloseScope()
                    tasks.start_soon(attend, item, turn.close)
                    await turn.wait_async()
                    if failure is not None:
                        break
            except BaseException as error:
                if error is not failure:
                    raise

    def bind(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """As :meth:`Mailbox.bind`."""
        self.mailbox.bind(loop)

    def submit(self, item: Any) -> int | None:
        """As :meth:`Mailbox.submit`."""
        return self.mailbox.submit(item)

    def close(self) -> bool:
        """As :meth:`Mailbox.close`: ``run()`` handles what is queued, and returns."""
        return self.mailbox.close()

    def fail(self, exc: BaseException) -> bool:
        """As :meth:`Mailbox.fail`: ``run()`` handles what is queued, and raises ``exc``."""
        return self.mailbox.fail(exc)

    def drain_nowait(self, max_items: int | None = None) -> list[Any]:
        """Takes out what is queued and was not handled."""
        if not self._left or max_items is not None and max_items < 1:
            return self.mailbox.drain_nowait(max_items)
        return [self._left.pop(), *self.mailbox.drain_nowait(max_items and max_items - 1)]

    def __repr__(self) -> str:
        name = getattr(self.handler, "__qualname__", repr(self.handler))
        return f"<{type(self).__name__} {name} {self._run_state} {self.mailbox!r}>"


def _iterate(mailbox: Any) -> AsyncIterator[Any]:
    return mailbox if hasattr(mailbox, "__aiter__") else _Items(mailbox)
