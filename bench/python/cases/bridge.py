"""From a plain thread into a loop that runs in another one."""

import asyncio
from _thread import allocate_lock
from collections import deque
from contextlib import contextmanager

from . import BOTH, Case, now, p50, per_op, place, threads


def answer():
    return 1


async def answer_async():
    return 1


@contextmanager
def service():
    from microio import LoopServiceThread

    class Service(LoopServiceThread):
        async def run_async(self):
            place()
            self.started()
            await asyncio.Event().wait()

    thread = Service(name="bench")
    thread.start()
    thread.wait_started()
    yield thread
    thread.stop()
    thread.join()


@contextmanager
def plain_loop():
    loop = asyncio.new_event_loop()
    with threads(loop.run_forever):
        yield loop
        loop.call_soon_threadsafe(loop.stop)
    loop.close()


def call_sync(n):
    with service() as thread:
        return p50(n, lambda: thread.call_sync(answer))


def submit(n):
    with service() as thread:
        return p50(n, lambda: thread.submit(answer_async()).result())


def raw_call(n):
    def call():
        done, box = allocate_lock(), []
        done.acquire()
        loop.call_soon_threadsafe(lambda: (box.append(answer()), done.release()))
        done.acquire()
        return box[0]

    with plain_loop() as loop:
        return p50(n, call)


def raw_submit(n):
    def call():
        done, box = allocate_lock(), []
        done.acquire()

        async def job():
            box.append(await answer_async())
            done.release()

        loop.call_soon_threadsafe(lambda: loop.create_task(job()))
        done.acquire()
        return box[0]

    with plain_loop() as loop:
        return p50(n, call)


def send_calls(n, call):
    done = allocate_lock()
    done.acquire()
    start = now()
    for _ in range(n):
        call(answer)
    call(done.release)
    done.acquire()
    return per_op(start, n)


def call_soon(n):
    with service() as thread:
        return send_calls(n, thread.call_soon)


def coalesced(n):
    jobs, idle = deque(), True

    def run():
        nonlocal idle
        idle = True
        while jobs:
            jobs.popleft()()

    def call(job):
        nonlocal idle
        jobs.append(job)
        if idle:
            idle = False
            loop.call_soon_threadsafe(run)

    with plain_loop() as loop:
        return send_calls(n, call)


Case("bridge.call_sync", "call_sync, p50", n=6_000, noted=21, target=1.2, placements=BOTH,
     runs={"microio": call_sync, "raw lock": raw_call})
Case("bridge.submit", "submit(coro).result(), p50", n=6_000, noted=34, target=1.2, placements=BOTH,
     runs={"microio": submit, "raw lock": raw_submit})
Case("bridge.call_soon", "call_soon, sent and run", n=50_000, noted=3.9, target=25, placements=BOTH, judged=("cross",),
     runs={"microio": call_soon, "coalesced deque": coalesced})
