"""One handler, one item at a time."""

import asyncio
from functools import partial

from . import BOTH, Case, now, per_op, threads


def handle(item):
    pass


async def handle_async(item):
    pass


def open_actor(handler):
    from microio import ActorCore

    actor = ActorCore(handler)
    actor.bind(asyncio.get_running_loop())
    return actor


async def preloaded(handler, n):
    """The mailbox is filled first: what is measured is receiving and handling."""
    actor = open_actor(handler)
    for i in range(n):
        actor.submit(i)
    actor.close()
    start = now()
    await actor.run()
    return per_op(start, n)


async def queue_loop(handler, n):
    queue, end = asyncio.Queue(), object()
    for i in range(n):
        queue.put_nowait(i)
    queue.put_nowait(end)
    start = now()
    while (item := await queue.get()) is not end:
        if handler is handle:
            handler(item)
        else:
            await handler(item)
    return per_op(start, n)


async def from_thread(n):
    actor = open_actor(handle)

    def produce():
        for i in range(n):
            actor.submit(i)
        actor.close()

    start = now()
    with threads(produce):
        await actor.run()
        return per_op(start, n)


async def priority(n):
    from microio import PriorityMailbox

    mailbox = PriorityMailbox(key=lambda item: item % 100)
    mailbox.bind()
    start = now()
    for i in range(n):
        mailbox.submit(i)
    for _ in range(n):
        await mailbox.get()
    return per_op(start, n)


async def culsans_priority(n):
    import culsans

    mailbox = culsans.PriorityQueue()
    put, get = mailbox.sync_q.put, mailbox.async_q.get
    start = now()
    for i in range(n):
        put((i % 100, i))
    for _ in range(n):
        await get()
    return per_op(start, n)


for label, handler, noted in ("sync", handle, 1.7), ("async", handle_async, 1.5):
    Case(f"actor.{label}", f"{label} handler", n=100_000, noted=noted, target=6,
         runs={"microio": partial(preloaded, handler), "asyncio.Queue loop": partial(queue_loop, handler)})
Case("actor.thread", "sync handler, from a thread", n=50_000, noted=5.3, target=7, placements=BOTH,
     judged=("cross",), runs={"microio": from_thread})
Case("actor.priority", "PriorityMailbox, 200k in, then out", n=200_000, noted=6.2, target=8, fixed=True,
     runs={"microio": priority, "culsans": culsans_priority})
