"""Task groups: starting children, readiness, and what the exit of one child costs beside many others."""

import asyncio
import random
from functools import partial

from . import Case, now, per_op


def group(library):
    return __import__(library).create_task_group()


def soon(group, fn, *args):
    group.start_soon(fn, *args)


def task(group, fn, *args):  # the standard library's verb
    group.create_task(fn(*args))


MICROIO, ANYIO, STDLIB = (partial(group, "microio"), soon), (partial(group, "anyio"), soon), (asyncio.TaskGroup, task)


async def spawn(open_group, start, children, n):
    async def child():
        pass

    begin = now()
    for _ in range(n // children):
        async with open_group() as group:
            for _ in range(children):
                start(group, child)
    return per_op(begin, n)


async def readiness(open_group, start, n):
    async def child(*, task_status):
        task_status.started(1)

    async with open_group() as group:
        begin = now()
        for _ in range(n):
            await group.start(child)
        return per_op(begin, n)


async def leave(open_group, start, n):
    """Per child: n of them wait side by side, then all leave in no order."""
    gates = [asyncio.get_running_loop().create_future() for _ in range(n)]

    async def child(gate):
        await gate

    async with open_group() as group:
        for gate in gates:
            start(group, child, gate)
        await asyncio.sleep(0)
        random.Random(1).shuffle(gates)
        begin = now()
        for gate in gates:
            gate.set_result(None)
    return per_op(begin, n)


def growth(open_group, start, n):
    few = min(asyncio.run(leave(open_group, start, n // 10)) for _ in range(3))
    return asyncio.run(leave(open_group, start, n)) / few


ALL = {"microio": MICROIO, "asyncio.TaskGroup": STDLIB, "anyio": ANYIO}
Case("group.one", "start_soon, 1 group x 100k", n=100_000, noted=12.8, target=1.4, fixed=True, shares={"anyio": 0.25},
     runs={who: lambda n, how=how: spawn(*how, n, n) for who, how in ALL.items()})
Case("group.many", "start_soon, 500 groups x 100", n=50_000, noted=7.8, target=1.7,
     runs={who: partial(spawn, *how, 100) for who, how in ALL.items()})
Case("group.start", "await start()", n=20_000, noted=11, target=1.4,
     runs={"microio": partial(readiness, *MICROIO), "anyio": partial(readiness, *ANYIO)})
Case("group.exit", "exit per child: n of 100k / n of 10k, a ratio", n=100_000, noted=0, level=1.3, fixed=True,
     shares={"original": 0.1},  # there it does grow: with all of them a repetition takes minutes
     runs={"microio": partial(growth, *MICROIO), "asyncio.TaskGroup": partial(growth, *STDLIB)})
