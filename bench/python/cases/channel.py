"""One receiver on a loop: items from threads, from the loop itself, and one item there and back."""

import asyncio
import queue
from _thread import allocate_lock
from functools import partial

from . import BOTH, Case, now, p50, per_op, threads

# What a contender brings: opened on the loop, it gives (put, callable from any thread; get, awaited on the loop).


def microio():
    from microio import create_channel

    send, receive = create_channel()
    receive.bind()
    return send.send_nowait, receive.receive


def aiologic():
    from aiologic import SimpleQueue

    pipe = SimpleQueue()
    return pipe.put, pipe.async_get


def two_faces(library):
    pipe = __import__(library).Queue()
    return pipe.sync_q.put, pipe.async_q.get


def asyncio_queue():
    pipe = asyncio.Queue()
    return pipe.put_nowait, pipe.get


janus, culsans = partial(two_faces, "janus"), partial(two_faces, "culsans")


def producers(count, n, put):
    def produce():
        for i in range(n // count):
            put(i)

    return threads(*[produce] * count)


async def drain(count, ends, n):
    put, get = ends()
    start = now()
    with producers(count, n, put):
        for _ in range(n // count * count):
            await get()
        return per_op(start, n)


async def drain_for(count, n):
    from microio import create_channel

    send, receive = create_channel()
    receive.bind()
    left = n // count * count
    start = now()
    with producers(count, n, send.send_nowait):
        async for _ in receive:
            left -= 1
            if not left:
                return per_op(start, n)


async def drain_portal(count, n):
    from anyio import create_memory_object_stream
    from anyio.from_thread import BlockingPortal

    send, receive = create_memory_object_stream(float("inf"))
    async with BlockingPortal() as portal, send, receive:
        start = now()
        with producers(count, n, partial(portal.call, send.send_nowait)):
            for _ in range(n // count * count):
                await receive.receive()
            return per_op(start, n)


def drain_blocking(count, n):
    pipe = queue.SimpleQueue()
    start = now()
    with producers(count, n, pipe.put):
        for _ in range(n // count * count):
            pipe.get()
        return per_op(start, n)


for count, noted in (1, 8.8), (4, 7.5):
    Case(f"channel.thread-{count}", f"thread -> loop, {count} producer(s), async for", n=100_000, noted=noted, runs={
        "microio": partial(drain_for, count),
        "aiologic": partial(drain, count, aiologic),
        "janus": partial(drain, count, janus),
        "culsans": partial(drain, count, culsans),
        "anyio portal": partial(drain_portal, count),
        "SimpleQueue, blocking": partial(drain_blocking, count),
    }, target=40, placements=BOTH, judged=("cross",), fixed=True,
         shares={"anyio portal": 0.02}, limits=("SimpleQueue, blocking",))


async def burst(ends, n):
    put, get = ends()
    start = now()
    for i in range(n):
        put(i)
    for _ in range(n):
        await get()
    return per_op(start, n)


async def alternating(ends, n):
    put, get = ends()
    start = now()
    for i in range(n):
        put(i)
        await get()
    return per_op(start, n)


async def ping_pong(ends, n):
    """A round trip of two tasks, each parked while the other runs."""
    put, get = ends()
    answer, answered = ends()

    async def echo():
        for _ in range(n):
            answer(await get())

    task = asyncio.create_task(echo())
    start = now()
    for i in range(n):
        put(i)
        await answered()
    took = per_op(start, n)
    await task
    return took


for kind, n, noted, target in (burst, 50_000, 4.2, 25), (alternating, 20_000, 14, 40), (ping_pong, 10_000, 28, 4):
    Case(f"channel.{kind.__name__}", f"same loop, {kind.__name__}", n=n, noted=noted, target=target,
         runs={"microio": partial(kind, microio), "asyncio.Queue": partial(kind, asyncio_queue)})


def round_trip(ends, n):
    """A thread sends one item to an idle loop and waits on a raw lock, which the receiving task releases."""
    ready, done = allocate_lock(), allocate_lock()
    ready.acquire(), done.acquire()
    opened = []

    async def serve():
        opened[:] = put, get = ends()
        ready.release()
        while await get():
            done.release()

    with threads(lambda: asyncio.run(serve())):
        ready.acquire()
        put = opened[0]
        took = p50(n, lambda: (put(True), done.acquire()))
        put(False)
    return took


Case("channel.round-trip", "idle loop, there and back, p50", n=4_000, noted=78, runs={
    "microio": partial(round_trip, microio),
    "aiologic": partial(round_trip, aiologic),
    "janus": partial(round_trip, janus),
    "culsans": partial(round_trip, culsans),
}, target=1.2, level=1.1, placements=BOTH)
