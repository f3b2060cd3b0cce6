"""What a type checker makes of the package. It is checked, and imported; nothing here is called.

`assert_type` says what must be found out without annotations, `type: ignore` what must be refused: one that is not needed is
an error too.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, assert_type

from microio import (
    ActorCore,
    CancelScope,
    CloseScope,
    LoopServiceThread,
    Mailbox,
    ObjectReceiveChannel,
    ObjectSendChannel,
    PriorityMailbox,
    ReplyHandle,
    RequestRegistry,
    ScopeGroup,
    ServiceGroup,
    ServiceThread,
    TaskStatus,
    WorkTracker,
    create_channel,
    create_task_group,
    current_cancel_scope,
    fail_after,
    move_on_after,
    sleep,
)


class Doubler(LoopServiceThread):
    """A service with a typed inbox."""

    def __init__(self) -> None:
        super().__init__(name="doubler", reraise=True)
        self.requests: ObjectSendChannel[ReplyHandle[int, str]]
        self.inbox: ObjectReceiveChannel[ReplyHandle[int, str]]
        self.requests, self.inbox = create_channel(capacity=10)
        self.waiting = RequestRegistry[int, str]()

    async def run_async(self) -> None:
        self.inbox.bind()
        self.started()
        async for reply in self.inbox:
            assert_type(reply, ReplyHandle[int, str])
            reply.resolve(str(2 * reply.key))
            reply.resolve(2 * reply.key)  # type: ignore[arg-type]

    def ask(self, number: int) -> str:
        return self.waiting.request(number, self.requests.send_nowait, timeout=1.0)


async def channels(numbers: tuple[ObjectSendChannel[int], ObjectReceiveChannel[int]]) -> None:
    send, receive = numbers
    assert_type(send.send_nowait(1), int | None)
    assert_type(await send.send(1), int | None)
    send.send_nowait("one")  # type: ignore[arg-type]
    assert_type(await receive.receive(), int)
    assert_type([number async for number in receive], list[int])
    assert_type(receive.drain_nowait(), list[int])
    assert_type(send.stats().queued, int)
    waiting: Coroutine[Any, Any, int] = receive.receive()
    assert_type(await asyncio.create_task(receive.receive()), int)
    assert_type(await asyncio.wait_for(waiting, 1), int)
    narrower: ObjectSendChannel[bool] = send  # whoever takes an int takes a bool
    wider: ObjectReceiveChannel[object] = receive
    narrower.send_nowait(True)
    await wider.receive()
    anything, _ = create_channel(late_send="drop")
    anything.send_nowait(object())
    create_channel(late_send="keep")  # type: ignore[arg-type]


async def requests(registry: RequestRegistry[str, bytes]) -> None:
    reply = registry.reply("key")
    assert_type(reply, ReplyHandle[str, bytes])
    assert_type(reply.key, str)
    assert_type(reply.wait(timeout=1.0), bytes)
    assert_type(reply.registry, RequestRegistry[str, bytes])
    assert_type(await registry.wait_async("key", reply.waiter), bytes)
    assert_type(await registry.request_async("key", lambda reply: reply.resolve(b"answer")), bytes)
    assert_type(registry.resolve("key", b"answer"), bool)
    registry.resolve("key", "answer")  # type: ignore[arg-type]
    registry.register(1)  # type: ignore[arg-type]
    waiter = registry.pop("key")
    if waiter is not None:
        waiter.put(b"answer")
        waiter.put(KeyboardInterrupt())
        assert_type(waiter.get_nowait(), bytes | BaseException)


async def tasks() -> None:
    async def child(port: int, *, task_status: TaskStatus) -> str:
        task_status.started(port)
        return "done"

    async def answer() -> str:
        return "forty-two"

    async with create_task_group() as tg:
        tg.start_soon(child, 1, name="child")
        assert_type(tg.create_task(answer()), asyncio.Task[str])
        await tg.start(child, 80)
        assert_type(tg.cancel("enough"), bool)


async def scopes(group: ScopeGroup) -> None:
    with move_on_after(1) as scope:
        assert_type(scope, CancelScope)
        waiting: Coroutine[Any, Any, None] = sleep(1)
        await waiting
        assert_type(await sleep(1, "result"), str)
    assert_type(scope.cancelled_caught, bool)
    with fail_after(None), group.scope() as scope:
        scope.cancel("interrupt", wake=True)
        scope.deadline = asyncio.get_running_loop().time() + 1
        scope.cancelled = True  # type: ignore[misc]
    assert_type(current_cancel_scope(), CancelScope | None)


def services(service: Doubler) -> None:
    assert_type(service.call_sync(len, "four"), int)
    assert_type(service.submit(asyncio.sleep(1, "result")), Future[str])
    thread: threading.Thread = ServiceThread(target=lambda service: service.started())
    group = ServiceGroup(service, None, thread).start().wait_started(1.0)
    assert_type(group.stop_join(1), bool)


async def ends(scope: CloseScope, work: WorkTracker) -> None:
    assert_type(scope.reason, str | None)
    assert_type(scope.wait(1.0), bool)
    await scope.wait_async()
    with work.track():
        executing: threading.Event = work.busy
        assert_type(executing.is_set(), bool)
    await work.idle()


async def actors() -> None:
    async def handle(item: Any) -> None: ...

    mailbox = PriorityMailbox(key=len, gate=bool, late_send="raise")
    mailbox.floor = 1.5
    Mailbox(late_send="sometimes")  # type: ignore[arg-type]
    actor = ActorCore(handle, mailbox=mailbox, concurrent=True)
    assert_type(actor.submit("item"), int | None)
    await actor.run(bind=False)
