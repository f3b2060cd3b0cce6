"""Cancel scopes and checkpoints that are not cancelled: what the good path pays."""

import asyncio
import sys
from contextlib import nullcontext
from functools import partial

from . import Case, now, per_op


async def enter(library, name, args, n):
    make = getattr(__import__(library), name)
    start = now()
    for _ in range(n):
        with make(*args):
            pass
    return per_op(start, n)


async def enter_timeout(delay, n):
    timeout = asyncio.timeout
    start = now()
    for _ in range(n):
        async with timeout(delay):
            pass
    return per_op(start, n)


async def check(n):
    from microio import CancelScope, checkpoint_if_cancelled

    with CancelScope(), CancelScope(), CancelScope():
        start = now()
        for _ in range(n):
            checkpoint_if_cancelled()
        return per_op(start, n)


async def checkpoints(contender, n):
    match contender:
        case "microio":
            from microio import CancelScope as scope
            from microio import checkpoint
        case "anyio":
            from anyio import CancelScope as scope
            from anyio.lowlevel import checkpoint
        case _:
            scope, checkpoint = nullcontext, partial(asyncio.sleep, 0)

    async def work():
        with scope(), scope(), scope():
            for _ in range(n // 50):
                await checkpoint()

    start = now()
    await asyncio.gather(*[work() for _ in range(50)])
    return per_op(start, n)


Case("scope.enter", "with CancelScope()", n=40_000, noted=3.5, target=4 if sys.version_info >= (3, 12) else 3.5, runs={
    "microio": partial(enter, "microio", "CancelScope", ()),
    "anyio": partial(enter, "anyio", "CancelScope", ()),
    "asyncio.timeout(None)": partial(enter_timeout, None),
})
Case("scope.move_on_after", "with move_on_after(10)", n=20_000, noted=10.6, target=1.6, fixed=True, runs={
    "microio": partial(enter, "microio", "move_on_after", (10,)),
    "anyio": partial(enter, "anyio", "move_on_after", (10,)),
    "asyncio.timeout(10)": partial(enter_timeout, 10),
})
Case("scope.check", "checkpoint_if_cancelled() under 3 scopes", n=200_000, noted=0.65, target=20,
     runs={"microio": check})
Case("scope.checkpoint", "checkpoint() under 3 scopes, 50 tasks", n=50_000, noted=2.8, target=3,
     runs={who: partial(checkpoints, who) for who in ("microio", "anyio", "asyncio.sleep(0)")},
     limits=("asyncio.sleep(0)",))
