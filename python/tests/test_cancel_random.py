"""Random programs of scopes, deadlines, timeouts, groups and cancels: nothing is swallowed, left behind or let out.

``MICROIO_RANDOM_ROUNDS`` sets how many programs run on each kind of loop, ``MICROIO_RANDOM_SEED`` the first seed.
"""

import asyncio
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

import microio

ROUNDS = int(os.environ.get("MICROIO_RANDOM_ROUNDS", 300))
SEED = int(os.environ.get("MICROIO_RANDOM_SEED", 0))
LONGEST = 0.004  # seconds that a program runs
EAGER = [False, True] if hasattr(asyncio, "eager_task_factory") else [False]


class Oops(Exception):
    pass


class Program:
    """One random program. ``chain``: what may cancel the code that runs, the innermost last; each gives its verdict."""

    def __init__(self, seed, threads):
        self.random = Random(seed)
        self.threads = threads
        self.loop = asyncio.get_running_loop()
        self.interrupts = microio.ScopeGroup()
        self.scopes = []
        self.entered = defaultdict(list)  # scopes by task, the innermost last
        self.racing = set()  # scopes that another thread may be cancelling right now
        self.tasks = set()  # those that may get a native cancel
        self.native = Counter()  # native cancels by task
        self.wrong = []

    def check(self, holds, what):
        if not holds:
            self.wrong.append(what)

    async def run(self):
        task = asyncio.current_task()
        with microio.move_on_after(LONGEST) as scope:
            self.entered[task].append(scope)
            await self.top(3, [lambda: scope.cancelled])
        self.check(not self.native[task], "swallowed by the outermost scope")
        await asyncio.sleep(0)

    async def top(self, depth, chain):
        """The code of one task: what came out of it must have a reason, and what went in must come out."""
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            await self.block(depth, chain)
            self.tasks.discard(task)
            self.check(not self.native[task], "swallowed by a task")
            await asyncio.sleep(0)  # here a cancel that was left behind would come out
        except asyncio.CancelledError:
            self.check(self.native[task] or any(cancelled() for cancelled in chain), "escaped from a task")
            raise
        finally:
            self.tasks.discard(task)
            if not any(cancelled() for cancelled in chain):
                self.check(task.cancelling() == self.native[task], "requests left in a task")

    async def block(self, depth, chain):
        for _ in range(self.random.randint(1, 3)):
            kinds = [self.pause, self.cancel_scope, self.cancel_task]
            if depth:
                kinds += [self.scope, self.scope, self.timeout, self.group, self.group, self.cleanup]
            await self.random.choice(kinds)(depth - 1, chain)
        if self.random.random() < 0.03:
            raise Oops

    async def pause(self, depth, chain):
        cancelled = any(scope.cancelled and scope not in self.racing for scope in self.entered[asyncio.current_task()])
        delay = self.random.choice([0, 0, 0, 0.0005, 0.001, 3600])
        await self.random.choice([asyncio.sleep, asyncio.sleep, microio.sleep, lambda _: microio.checkpoint()])(delay)
        self.check(not cancelled, "went on in a cancelled scope")

    async def cleanup(self, depth, chain):
        try:
            await self.block(depth, chain)
        except asyncio.CancelledError:
            await self.tidy(chain)
            raise
        await self.tidy(chain)  # not after an error: behind one, asyncio's group repeats a native cancel

    async def tidy(self, chain):
        """A deadline works also while an earlier cancellation is on its way out."""
        task = asyncio.current_task()
        natives = self.native[task]
        try:
            with microio.move_on_after(0.0003):
                await asyncio.sleep(3600)
        except asyncio.CancelledError:
            reason = self.native[task] > natives or any(cancelled() for cancelled in chain)
            self.check(reason, "escaped from a clean-up")
            raise

    async def cancel_scope(self, depth, chain):
        if not self.scopes:
            return
        scope = self.random.choice(self.scopes)
        match self.random.randrange(4):
            case 0:
                scope.cancel()
            case 1:
                self.loop.call_soon(scope.cancel)
            case 2:
                self.racing.add(scope)
                self.threads.submit(scope.cancel)
            case 3:
                self.interrupts.cancel()

    async def cancel_task(self, depth, chain):
        """Only from a callback: there every task is suspended, so that the request is delivered where it was made."""

        def cancel():
            if task in self.tasks and task.cancel():
                self.native[task] += 1

        task = self.random.choice([*self.tasks, None, None, None])
        self.loop.call_soon(cancel)

    def some_scope(self):
        delay = self.random.choice([-1, 0, 0.0003, 0.001, None, None])
        match self.random.randrange(6):
            case 0:
                return microio.CancelScope()
            case 1:
                return microio.move_on_after(delay)
            case 2:
                return microio.fail_after(delay)
            case 3:
                return microio.CancelScope(deadline=self.loop.time() + self.random.choice([0, 0.0005]))
            case 4:
                return self.interrupts.scope()
            case 5 if self.scopes:
                return self.random.choice(self.scopes)  # several entries, also of several tasks
        return microio.CancelScope()

    async def scope(self, depth, chain):
        task = asyncio.current_task()
        natives = self.native[task]
        outer = False
        try:
            with self.some_scope() as scope:
                self.scopes.append(scope)
                self.entered[task].append(scope)
                try:
                    await self.block(depth, [*chain, lambda: scope.cancelled])
                except asyncio.CancelledError:
                    outer = any(scope.cancelled for scope in self.entered[task][:-1])
                    raise
                finally:
                    self.entered[task].pop()
        except TimeoutError:
            self.check(scope.raise_timeout and scope.timed_out, "a timeout for no reason")
        except asyncio.CancelledError:
            self.check(self.native[task] or any(cancelled() for cancelled in chain), "escaped from a scope")
            raise
        self.check(self.native[task] == natives, "swallowed by a scope")
        self.check(not outer, "caught inside a scope that was cancelled as well")

    async def timeout(self, depth, chain):
        try:
            async with asyncio.timeout(self.random.choice([0, 0.0003, 0.001])) as timeout:
                await self.block(depth, [*chain, timeout.expired])
        except TimeoutError:
            pass

    async def group(self, depth, chain):
        broken = False
        owner = asyncio.current_task()

        def stopped():
            return broken or tasks.cancel_scope.cancelled or self.native[owner]

        async def child(task_status=None):
            nonlocal broken
            task = asyncio.current_task()
            try:
                if task_status is not None:
                    await asyncio.sleep(0)
                    task_status.started()
                await self.top(depth, [*chain, stopped])
            except Exception:
                broken = True
                raise

        async with microio.TaskGroup() as tasks:
            self.scopes.append(tasks.cancel_scope)
            self.entered[owner].append(tasks.cancel_scope)
            try:
                for _ in range(self.random.randint(0, 3)):
                    match self.random.randrange(3):
                        case 0:
                            self.tasks.add(task := tasks.start_soon(child))
                        case 1:
                            self.tasks.add(task := tasks.create_task(child()))
                        case 2:
                            await tasks.start(child)
                    if self.random.random() < 0.1:
                        break
                await self.block(depth, [*chain, stopped])
            except BaseException:
                broken = broken or not tasks.cancel_scope.cancelled
                raise
            finally:
                self.entered[owner].pop()


async def run_program(seed, threads):
    """What was wrong with one program."""
    program = Program(seed, threads)
    task = asyncio.create_task(program.run())
    await asyncio.wait({task}, timeout=10)
    if not task.done():
        return ["hangs"]
    if task.cancelled():
        program.check(program.native[task], "let out")
    elif error := task.exception():
        program.check(not isinstance(error, ExceptionGroup) or not error.split((Oops, ExceptionGroup))[1], repr(error))
    program.check(task.cancelling() == program.native[task], "requests left behind")
    program.check(asyncio.all_tasks() == {asyncio.current_task()}, "tasks left behind")
    return program.wrong


def eager_task(loop, coroutine, *, eager_start=True, **how):
    return asyncio.Task(coroutine, loop=loop, eager_start=True, **how)


@pytest.mark.parametrize("eager", EAGER)
def test_nothing_is_swallowed_left_behind_or_let_out(loop_factory, eager):
    with ThreadPoolExecutor(1) as threads, asyncio.Runner(loop_factory=loop_factory) as runner:
        if eager:
            runner.get_loop().set_task_factory(eager_task)
        for seed in range(SEED, SEED + ROUNDS):
            assert not runner.run(run_program(seed, threads)), f"seed {seed}"
