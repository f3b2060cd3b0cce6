"""Load: a great many of everything. What each one costs must not grow with their number, and letting go of them must
not use up the stack.

Small in CI; with MICROIO_LOAD=1000000 that many of each, and a table (run pytest with -s).
"""

import asyncio
import gc
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import microio
from microio import (
    CancelScope,
    CloseScope,
    LoopServiceThread,
    PriorityMailbox,
    RequestRegistry,
    ScopeGroup,
    ServiceGroup,
    ServiceThread,
    WorkTracker,
    checkpoint,
    create_channel,
    create_task_group,
    current_cancel_scope,
)

LOAD = int(os.environ.get("MICROIO_LOAD", "0"))
MANY = LOAD or 1_600
GROWTH = 16
WORSE = 8  # a cost that is quadratic would be GROWTH times as large
GUARD = 120  # seconds: reached only by a test that fails

# Each load says what it does next: `step(name)`. So each step is timed by itself; the last is what comes of the end of
# its frame, where everything is dropped.


def items(many, step):
    send, receive = create_channel()
    step("send")
    for item in range(many):
        send.send_nowait(item)
    step("drain")
    assert receive.drain_nowait() == list(range(many))
    for item in range(many):
        send.send_nowait(item)
    step("close, drop")
    send.close()


def received_items(many, step):
    send, receive = create_channel()
    for item in range(many):
        send.send_nowait(item)
    send.close()

    async def main():
        assert [item async for item in receive] == list(range(many))

    step("receive")
    asyncio.run(main(), debug=False)


def sorted_items(many, step):
    mailbox = PriorityMailbox(key=lambda item: item % 7)
    step("submit")
    for item in range(many):
        mailbox.submit(item)
    step("drain half")
    assert len(mailbox.drain_nowait(many // 2)) == many // 2
    step("drop")


def pending_requests(many, step):
    registry = RequestRegistry()
    for end in "resolve", "fail_all", "close":
        step("register")
        waiters = [registry.register(key) for key in range(many)]
        step(end)
        if end == "resolve":
            assert all(registry.resolve(key, key) for key in range(many))
        else:
            assert getattr(registry, end)(ValueError("the end")) == many
        step("drop answers")
        assert len(registry) == 0
        del waiters
    registry = RequestRegistry()
    for key in range(many):
        registry.register(key)
    step("drop")
    del registry


def waits(many, step, wait, **ends):
    """That many tasks wait, and all are woken; cancelled; and dropped with their loop."""

    async def begin():
        tasks = [asyncio.create_task(wait(number)) for number in range(many)]
        await asyncio.sleep(0)
        return tasks

    async def join():
        await asyncio.wait(tasks)
        return sum(not task.cancelled() and (task.exception() or True) is not None for task in tasks)

    loop = asyncio.new_event_loop()
    loop.set_debug(False)  # which remembers where each callback comes from
    for name, end in ends.items():
        step("wait")
        tasks = loop.run_until_complete(begin())
        step(name)
        end()
        step(f"{name}: join")
        assert loop.run_until_complete(join()) == many
    step("wait")
    tasks = loop.run_until_complete(begin())
    step("cancel")
    for task in tasks:
        task.cancel()
    step("cancel: join")
    assert loop.run_until_complete(join()) == 0
    tasks = loop.run_until_complete(begin())
    for task in tasks:
        task._log_destroy_pending = False  # they are meant to be left behind
    loop.close()
    step("drop")


def one_after_another(make):
    """What was made last, and a function that ends it by `end` and makes the next one."""
    things = [make()]

    def end(how):
        how(things[-1])
        things.append(make())

    return things, end


def waits_for_the_end(many, step):
    scopes, end = one_after_another(CloseScope)
    waits(many, step, lambda number: scopes[-1].wait_async(), close=lambda: end(CloseScope.close))


def waits_for_idle(many, step):
    def busy():
        tracker = WorkTracker()
        tracker.add()
        return tracker

    trackers, end = one_after_another(busy)
    waits(many, step, lambda number: trackers[-1].idle(), done=lambda: end(WorkTracker.done))


def waits_for_replies(many, step):
    registry = RequestRegistry()
    waits(
        many,
        step,
        lambda number: registry.wait_async(number, registry.register(number)),
        resolve=lambda: [registry.resolve(number, number) for number in range(many)],
        fail_all=lambda: registry.fail_all(ValueError()),
    )


def waits_for_items(many, step):
    send, receive = create_channel()
    waits(many, step, lambda number: receive.receive(), send=lambda: [send.send_nowait(n) for n in range(many)])


def waits_of_a_mailbox(many, step):
    mailbox = PriorityMailbox()
    waits(many, step, lambda number: mailbox.get(), submit=lambda: [mailbox.submit(n) for n in range(many)])


def waits_for_a_place(many, step):
    def full():
        send, receive = create_channel(capacity=1)
        send.send_nowait(0)
        return send, receive

    async def send_one(number):
        send, receive = channels[-1]
        await send.send(number)
        assert len(receive.drain_nowait()) == 1

    channels, end = one_after_another(full)
    waits(
        many,
        step,
        send_one,
        close=lambda: end(lambda ends: ends[0].close()),
        drain=lambda: end(lambda ends: ends[1].drain_nowait()),
    )


def children(many, step):
    async def main():
        async with create_task_group() as tasks:
            step("start")
            for _ in range(many):
                tasks.start_soon(asyncio.sleep, math.inf)
            await asyncio.sleep(0)
            step("cancel")
            tasks.cancel()
            step("join")

    asyncio.run(main(), debug=False)


def scopes_deep(many, step):
    async def main():
        scopes = [CancelScope() for _ in range(many)]
        step("enter")
        for scope in scopes:
            scope.__enter__()
        step("look")
        scopes[0].cancel()
        assert current_cancel_scope() is scopes[0]
        with pytest.raises(asyncio.CancelledError):
            await checkpoint()
        step("leave")
        for scope in reversed(scopes):
            scope.__exit__(None, None, None)
        step("enter again, cancel each")
        for scope in scopes[1:]:
            scope.__enter__()
        for scope in scopes:
            scope.cancel()
        step("drop")

    asyncio.run(main(), debug=False)


def scopes_of_a_group(many, step):
    async def main():
        scopes = ScopeGroup()

        async def work():
            with scopes.scope():
                await asyncio.sleep(math.inf)

        step("enter")
        tasks = [asyncio.create_task(work()) for _ in range(many)]
        await asyncio.sleep(0)
        step("cancel")
        assert scopes.cancel() is True
        step("leave")
        await asyncio.wait(tasks)
        assert not scopes.active

    asyncio.run(main(), debug=False)


def tasks_in_a_scope(many, step):
    async def main():
        scope = CancelScope()

        async def work():
            with scope:
                await asyncio.sleep(math.inf)

        step("enter")
        tasks = [asyncio.create_task(work()) for _ in range(many)]
        await asyncio.sleep(0)
        step("cancel")
        scope.cancel()
        step("leave")
        await asyncio.wait(tasks)
        assert not scope.active and scope.cancelled_caught

    asyncio.run(main(), debug=False)


def measure(load, many):
    """What each step costs for each one: the least of some runs, in seconds of this process."""
    least = {}
    for _ in range(1 if LOAD else 2):
        marks = []
        load(many, lambda name: marks.append((name, time.process_time())))
        gc.collect()
        marks.append((None, time.process_time()))
        for (name, begin), (_, end) in zip(marks, marks[1:]):
            least[name] = min(least.get(name, math.inf), (end - begin) / many)
    return least


LOADS = [
    items,
    received_items,
    sorted_items,
    pending_requests,
    waits_for_the_end,
    waits_for_idle,
    waits_for_replies,
    waits_for_items,
    waits_of_a_mailbox,
    waits_for_a_place,
    children,
    scopes_deep,
    scopes_of_a_group,
    tasks_in_a_scope,
]


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
def test_the_cost_of_each_does_not_grow_with_their_number(load):
    gc.collect()
    gc.freeze()
    gc.disable()  # it comes when we say so, and looks at what is new
    try:
        few, many = measure(load, MANY // GROWTH), measure(load, MANY)
    finally:
        gc.enable()
        gc.unfreeze()
    for step in many:
        if LOAD:
            print(f"{load.__name__:24}{step:28}{few[step] * 1e6:10.2f}{many[step] * 1e6:10.2f} us each")
        # Beside the cost of the least thing that a clock can see.
        assert many[step] < WORSE * (few[step] + 1e-6), (step, few[step], many[step])


def test_many_services_start_and_stop():
    """Each has a thread, some have a loop; they end in one deadline, and nothing is left of them."""
    threads, loops = (1000, 200) if LOAD else (100, 10)

    def work(service):
        service.started()
        service.scope.wait()

    group = ServiceGroup(*(ServiceThread(target=work) for _ in range(threads)))
    group.add(*(LoopServiceThread() for _ in range(loops)))
    group.start().wait_started(GUARD)
    assert group.stop_join(GUARD) is True
    assert [service for service in group.services if service.is_alive() or service.exc] == []


# deep: one holds the next, which holds the next

CHAINS = {
    "received channels": "ends = create_channel(); ends[0].send_nowait(last); last = ends[1]",
    "sending channels": "ends = create_channel(); ends[0].send_nowait(last); last = ends[0]",
    "lists in channels": "ends = create_channel(); ends[0].send_nowait([last]); last = [ends[1]]",
    "mailboxes": "box = PriorityMailbox(); box.submit(last); last = box",
    "close scopes": "scope = CloseScope(); scope.close(last); last = scope",
    "cancel scopes": "scope = CancelScope(); scope.cancel(last); last = scope",
    "attributes": "tracker = WorkTracker(); tracker.next = last; last = tracker",
    "waiters": "waiter = RequestRegistry().register(1); waiter.put(last); last = waiter",
    "keys": "registry = RequestRegistry(); registry.register(last); last = registry",
    "handles": "last = ReplyHandle(RequestRegistry(), last, RequestRegistry().register(1))",
    "failures": "send, _ = create_channel(); send.fail(ValueError(last)); last = send",
    "sleeps": "last = sleep(1, last)",
    "sends": "send, _ = create_channel(capacity=1); last = send.send(last)",
    "subclasses": "scope = Scope(); scope.close(last); last = scope",
    "garbage": "scope = CloseScope(); scope.itself = scope; scope.close(last); last = scope",
}
DEEP = """
import gc, sys, threading
from microio import *

class Scope(CloseScope):
    pass

def drop():
    last = None
    for _ in range({deep}):
        {link}
    del last
    gc.collect()

gc.disable()
threading.stack_size(256 * 1024)
thread = threading.Thread(target=drop)
thread.start()
thread.join()
print("dropped")
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="it is about the stack of CPython")
@pytest.mark.skipif(".abi3." in microio._microio.__file__, reason="the stable ABI has no slot to bound how deep objects are freed")
@pytest.mark.parametrize("chain", CHAINS)
def test_a_long_chain_is_dropped_on_a_small_stack(chain):
    """In a program of its own, since it would crash."""
    path = os.pathsep.join([str(Path(microio.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", DEEP.format(deep=LOAD or 5_000, link=CHAINS[chain])],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "dropped\n", "")
