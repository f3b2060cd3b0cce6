"""Stress: eight threads and two loops do random things with the same objects; after each round the books must balance.

Seconds in CI; MICROIO_STRESS=300 for five minutes. A failure names its seed, and MICROIO_SEED=<seed> does the same
things again (the threads may meet in another order).
"""

import asyncio
import gc
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections import Counter
from contextlib import suppress

from microio import (
    ActorCore,
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    CloseScope,
    EndOfStream,
    LoopServiceThread,
    Mailbox,
    PriorityMailbox,
    RequestRegistry,
    ScopeGroup,
    ServiceGroup,
    WorkTracker,
    checkpoint,
    create_channel,
    create_task_group,
    move_on_after,
    sleep,
)

SECONDS = float(os.environ.get("MICROIO_STRESS", "1.5"))
SEED = os.environ.get("MICROIO_SEED")
THREADS, LOOPS, STEPS = 8, 2, 40
GUARD = 60  # seconds: a request that takes so long was lost
LATE = ClosedResourceError, BrokenResourceError
SOON = [0, 0, 0.0001, 0.001]


class Item:
    """Something that is sent; each is one of its kind."""

    def __init__(self, level):
        self.level = level


class Boom(Exception):
    """What goes wrong on purpose."""


class Books:
    """What was accepted by a channel, and what came out of it. Appending is one atomic step."""

    def __init__(self, make):
        self.accepted, self.given = [], []
        self.send, self.receive = make()

    def note_send(self, send, item):
        """Sends; the item counts if the channel says that it took it."""
        with suppress(asyncio.QueueFull, *LATE):
            if send(item) is not None:
                self.accepted.append(item)

    async def note_send_async(self, item):
        with suppress(*LATE):
            if await self.send.send(item) is not None:
                self.accepted.append(item)

    def drain(self, count=None):
        self.given.extend(self.drain_nowait(count))

    def drain_nowait(self, count):
        return self.receive.drain_nowait(count)

    def get(self):
        return self.receive.receive()

    def check(self):
        self.drain()
        stats = self.send.stats()
        assert (stats.sent, stats.received, stats.queued) == (len(self.accepted), len(self.given), 0)
        assert Counter(map(id, self.accepted)) == Counter(map(id, self.given))


class Sorted(Books):
    """The books of a mailbox with a floor that moves."""

    def __init__(self):
        self.mailbox = PriorityMailbox(key=lambda item: item.level, late_send="drop")
        super().__init__(lambda: (self.mailbox.send, self.mailbox.receive))

    def drain_nowait(self, count):
        return self.mailbox.drain_nowait(count)

    def get(self):
        return self.mailbox.get()


class Loop(LoopServiceThread):
    """Receives from its channels, and answers requests."""

    def __init__(self, name, seed):
        super().__init__(name=name)
        self.draw = random.Random(f"{seed}/{name}")
        self.sorted = Sorted()
        self.books = [
            Books(create_channel),
            Books(lambda: create_channel(late_send="drop")),
            Books(lambda: create_channel(capacity=3)),
            self.sorted,
        ]
        self.actor = self.new_actor()
        self.resolved = []

    def new_actor(self):
        return ActorCore(self.handle, mailbox=Mailbox(late_send="raise"), concurrent=self.draw.random() < 0.5)

    async def handle(self, reply, release=None):
        act = self.draw.randrange(12)
        try:
            if act == 0:
                raise Boom
            if act == 4:
                await sleep(self.draw.choice(SOON))
            if release is not None and act == 5:
                release()
                await checkpoint()
            if act < 9:
                if reply.resolve(reply.key):
                    self.resolved.append(reply.key)
        finally:
            reply.fail(Boom())  # if it was not answered

    async def run_async(self):
        for books in self.books:
            for _ in range(2):
                self.task_group.start_soon(self.take, books)
        self.started()
        while not self.scope.closed:
            self.actor = self.new_actor()
            try:
                await self.actor.run()
            except (Boom, ExceptionGroup):
                pass
            finally:
                self.actor.close()
                for reply in self.actor.drain_nowait():
                    reply.fail(Boom())

    async def take(self, books):
        with suppress(EndOfStream):
            while True:
                with move_on_after(self.draw.choice(SOON)):
                    books.given.append(await books.get())
                await asyncio.sleep(self.draw.choice(SOON))


class Round:
    def __init__(self, seed):
        self.seed = seed
        self.loops = [Loop(f"loop {number}", seed) for number in range(LOOPS)]
        self.registry, self.tracker, self.scopes = RequestRegistry(), WorkTracker(), ScopeGroup()
        self.scope = CloseScope()
        self.closers = [None] * THREADS
        self.outcomes, self.errors, self.items, self.futures = {}, [], weakref.WeakSet(), []
        self.requests = 0
        self.lock = threading.Lock()

    def item(self, draw):
        item = Item(draw.randrange(3))
        self.items.add(item)
        return item

    def ask(self, draw):
        """What a request sends, and its time: too little, or more than it may take."""
        loop = draw.choice(self.loops)
        with self.lock:
            self.requests += 1
            key = self.requests
        return key, lambda reply: loop.actor.submit(reply), draw.choice([0, 0.0001, 0.002, GUARD])

    def note_answer(self, key, timeout, answer):
        """Exactly one outcome for each request."""
        assert key not in self.outcomes
        self.outcomes[key] = "value" if answer == key else type(answer).__name__
        if answer != key:
            assert isinstance(answer, (Boom, TimeoutError, asyncio.CancelledError, *LATE)), repr(answer)
            assert not (isinstance(answer, TimeoutError) and timeout == GUARD), "an answer was lost"

    # what the threads do

    def work(self, number):
        draw = random.Random(f"{self.seed}/thread {number}")
        try:
            for _ in range(STEPS):
                getattr(self, draw.choice(STEPS_OF_THREADS))(draw)
        except BaseException as error:
            self.errors.append(error)

    def do_send(self, draw):
        books = draw.choice(draw.choice(self.loops).books)
        for _ in range(draw.randrange(8)):
            books.note_send(books.send.send_nowait, self.item(draw))

    def do_drain(self, draw):
        draw.choice(draw.choice(self.loops).books).drain(draw.choice([None, 1, 3]))

    def do_floor(self, draw):
        draw.choice(self.loops).sorted.mailbox.floor = draw.choice([None, 0, 1, 2])

    def do_request(self, draw):
        key, send, timeout = self.ask(draw)
        try:
            answer = self.registry.request(key, send, timeout)
        except Exception as error:
            answer = error
        with self.lock:
            self.note_answer(key, timeout, answer)

    def do_abandon(self, draw):
        for key in list(self.registry.pending)[: draw.randrange(3)]:
            self.registry.fail(key, Boom())

    def do_track(self, draw):
        with self.tracker.track():
            self.tracker.wait_idle(0)
            assert self.tracker.busy.is_set()
            self.scope.wait(draw.choice(SOON))

    def do_interrupt(self, draw):
        self.scopes.cancel("interrupt")

    def do_call(self, draw):
        def call():
            if draw.random() < 0.3:
                raise Boom
            return threading.current_thread()

        loop = draw.choice(self.loops)
        try:
            assert loop.call_sync(call, timeout=draw.choice([0, GUARD])) is loop
        except Boom:
            pass
        except TimeoutError as error:
            assert "after 0 s" in str(error)
        except RuntimeError as error:
            assert "not running" in str(error)

    def do_submit(self, draw):
        loop = draw.choice(self.loops)
        job = getattr(self, draw.choice(JOBS))(random.Random(draw.random()), loop)
        try:
            future = loop.submit(job)
        except RuntimeError as error:
            assert "not running" in str(error)
            return
        self.futures.append(future)
        if draw.random() < 0.3:
            future.cancel()

    def do_end(self, draw):
        """Rarely: something is closed for good."""
        if draw.random() < 0.1:
            books = draw.choice(draw.choice(self.loops).books)
            draw.choice([books.send.close, lambda: books.send.fail(Boom())])()
        elif draw.random() < 0.05:
            draw.choice(self.loops).stop()

    # what they have the loops do

    async def job_group(self, draw, loop):
        async def child(depth, task_status=None):
            act = draw.randrange(6)
            if act == 0:
                raise Boom
            if task_status is not None and act > 1:
                task_status.started(act)
            if act == 2:
                await sleep(draw.choice(SOON))
            if act == 3 and depth:
                await self.job_group(draw, loop)
            if act == 4:
                tasks.cancel()
            if act == 5:
                await checkpoint()

        children = []
        try:
            async with create_task_group() as tasks:
                for _ in range(draw.randrange(4)):
                    children.append(tasks.start_soon(child, 0))
                    with suppress(Boom, RuntimeError):
                        await tasks.start(child, 0)
                    if draw.random() < 0.2:
                        raise Boom
        except* Boom:
            pass
        assert all(child.done() for child in children)

    async def job_scopes(self, draw, loop):
        with self.scopes.scope(), CancelScope() as outer, move_on_after(draw.choice(SOON)) as inner:
            if draw.random() < 0.3:
                asyncio.get_running_loop().call_soon(draw.choice([outer, inner]).cancel)
            for _ in range(draw.randrange(4)):
                await draw.choice([checkpoint, lambda: sleep(0), lambda: asyncio.sleep(0), lambda: sleep(0.001)])()
        assert not outer.active and not inner.active
        if not asyncio.current_task().cancelling():
            await checkpoint()

    async def job_send(self, draw, loop):
        books = draw.choice(draw.choice(self.loops).books[:3])
        for _ in range(draw.randrange(6)):
            with move_on_after(draw.choice([*SOON, None])), self.scopes.scope():
                await books.note_send_async(self.item(draw))

    async def job_receive(self, draw, loop):
        books = draw.choice(loop.books)
        with suppress(EndOfStream, Boom):
            for _ in range(draw.randrange(6)):
                with move_on_after(draw.choice(SOON)), self.scopes.scope():
                    books.given.append(await books.get())

    async def job_request(self, draw, loop):
        key, send, timeout = self.ask(draw)
        answer = asyncio.CancelledError()
        try:
            with move_on_after(draw.choice([0, 0.001, None])):
                answer = await self.registry.request_async(key, send, timeout)
        except asyncio.CancelledError as error:
            answer = error
            raise
        except Exception as error:
            answer = error
        finally:
            with self.lock:
                self.note_answer(key, timeout, answer)

    async def job_wait(self, draw, loop):
        with move_on_after(draw.choice([*SOON, 0.01])):
            await draw.choice([self.tracker.idle, self.scope.wait_async])()

    async def job_fail(self, draw, loop):
        await checkpoint()
        raise Boom

    # the whole

    def run(self):
        group = ServiceGroup(*self.loops)
        group.start().wait_started(GUARD)
        threads = [threading.Thread(target=self.work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GUARD)
            assert not thread.is_alive(), "a thread hangs"
        self.scope.close()
        assert group.stop_join(GUARD), "a loop hangs"
        if self.errors:
            raise self.errors[0]
        for loop in self.loops:
            assert isinstance(loop.exc, None | ExceptionGroup) and not [*unexpected(loop.exc)], repr(loop.exc)
            for books in loop.books:
                books.check()
        for future in self.futures:
            assert future.done()
            if not future.cancelled():
                assert isinstance(future.exception(), None | Boom), repr(future.exception())
        assert self.outcomes.keys() == set(range(1, self.requests + 1))
        resolved = [key for loop in self.loops for key in loop.resolved]
        assert {key for key, outcome in self.outcomes.items() if outcome == "value"} <= set(resolved)
        # Of who is cancelled in the same moment, the cancel wins; of who times out, the answer.
        assert {self.outcomes[key] for key in resolved} <= {"value", "CancelledError"}
        assert len(resolved) == len(set(resolved))
        assert len(self.registry) == 0 and self.tracker.count == 0 and not self.scopes.active
        return weakref.WeakSet([*self.loops, *self.items, self.registry, self.tracker, self.scope])


def unexpected(error):
    """What is not on purpose: only the end of a channel that was failed."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from unexpected(each)
    elif not isinstance(error, Boom | None):
        yield error


STEPS_OF_THREADS = [name for name in vars(Round) if name.startswith("do_")]
JOBS = [name for name in vars(Round) if name.startswith("job_")]


def baseline():
    """What is alive: threads, files, objects of the package."""
    gc.collect()
    types = [type(thing) for thing in gc.get_objects()]
    kinds = Counter(kind.__qualname__ for kind in types if str(kind.__module__).startswith("microio"))
    files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    return threading.active_count(), files, kinds


def test_the_books_balance_after_each_round(monkeypatch):
    monkeypatch.setattr(logging.getLogger("microio"), "disabled", True)  # pytest keeps records, and those what has failed
    first = random.randrange(2**32) if SEED is None else int(SEED)
    end, rounds = time.monotonic() + SECONDS, 0
    while rounds == 0 or time.monotonic() < end and SEED is None:
        seed = first + rounds
        before = baseline() if rounds else None  # after the first one: what is made once has been made
        switch = sys.getswitchinterval()
        sys.setswitchinterval(random.Random(seed).choice([1e-5, 1e-4, switch]))
        try:
            kept = Round(seed).run()
            after = baseline()
            assert before in (None, after) and len(kept) == 0
        except BaseException as error:
            error.add_note(f"replay with MICROIO_SEED={seed}")
            raise
        finally:
            sys.setswitchinterval(switch)
        rounds += 1
