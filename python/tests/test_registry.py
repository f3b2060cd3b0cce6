"""RequestRegistry: a request is registered, sent, and answered once, from any thread."""

import asyncio
import gc
import queue
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from microio import BrokenResourceError, ClosedResourceError, ReplyHandle, RequestRegistry

GUARD = 10  # seconds: reached only by a test that fails
NEGATIVE = "^'timeout' must be a non-negative number$"


async def parked(awaitable):
    """A task that has begun to wait."""
    task = asyncio.create_task(awaitable)
    await asyncio.sleep(0)
    return task


@pytest.fixture
def registry():
    return RequestRegistry()


@pytest.fixture
def busy_threads():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


# registering


def test_a_new_registry_is_empty(registry):
    assert len(registry) == 0 and not registry
    assert registry.pending == {}
    assert 1 not in registry


def test_a_registered_key_is_pending(registry):
    waiter = registry.register(1)
    assert len(registry) == 1 and 1 in registry and registry
    assert list(registry.pending) == [1]
    assert registry.pending[1] is waiter


def test_pending_is_a_copy(registry):
    registry.register(1)
    pending = registry.pending
    assert type(pending) is dict
    pending.clear()
    assert 1 in registry and pending is not registry.pending


def test_pending_is_in_the_order_of_registration(registry):
    for key in "cab":
        registry.register(key)
    registry.pop("c")
    registry.register("c")
    assert list(registry.pending) == ["a", "b", "c"]


@pytest.mark.parametrize("key, text", [(1, "1"), ("a", "'a'"), (("a", 1), "('a', 1)"), (None, "None")])
def test_a_key_is_registered_once(registry, key, text):
    waiter = registry.register(key)
    for again in registry.register, registry.reply, lambda key: registry.request(key, pytest.fail):
        with pytest.raises(KeyError) as caught:
            again(key)
        assert caught.value.args == (f"request already pending: {text}",)
    assert registry.pending == {key: waiter}


def test_equal_keys_are_one(registry):
    registry.register(1)
    assert 1.0 in registry and True in registry
    assert registry.resolve(1.0, "reply") is True


def test_a_key_must_be_hashable(registry):
    registry.register("another")
    for call in (
        registry.register,
        registry.reply,
        registry.__contains__,
        registry.pop,
        lambda key: registry.resolve(key, 1),
        lambda key: registry.fail(key, ValueError()),
        lambda key: registry.request(key, pytest.fail),
    ):
        with pytest.raises(TypeError, match="unhashable"):
            call([])
    assert list(registry.pending) == ["another"]


def test_a_key_can_be_used_again(registry):
    for value in range(3):
        waiter = registry.register("key")
        assert registry.resolve("key", value) is True
        assert registry.wait("key", waiter) == value


# answering by key


def test_resolve_answers_and_removes(registry):
    waiter = registry.register(1)
    value = object()
    assert registry.resolve(1, value) is True
    assert len(registry) == 0
    assert registry.resolve(1, "again") is False
    assert registry.fail(1, ValueError()) is False
    assert registry.wait(1, waiter) is value


def test_an_answer_nobody_asked_for_is_refused(registry):
    assert registry.resolve("unknown", 1) is False
    assert registry.fail("unknown", ValueError()) is False


@pytest.mark.parametrize(
    "value", [None, False, (), (1, 2), ValueError("data"), ValueError, KeyboardInterrupt()], ids=repr
)
def test_any_object_is_a_value(registry, value):
    """An exception passed to `resolve` is data."""
    waiter = registry.register(1)
    assert registry.resolve(1, value) is True
    assert registry.wait(1, waiter, GUARD) is value
    assert registry.request(1, lambda reply: reply.resolve(value), GUARD) is value


@pytest.mark.parametrize("cause", [ValueError("no"), KeyboardInterrupt("stop"), SystemExit(3)], ids=repr)
def test_fail_raises_in_the_wait(registry, cause):
    waiter = registry.register(1)
    assert registry.fail(1, cause) is True
    assert len(registry) == 0
    with pytest.raises(type(cause)) as caught:
        registry.wait(1, waiter)
    assert caught.value is cause


def test_pop_takes_a_request_out(registry):
    waiter = registry.register(1)
    assert registry.pop(1) is waiter
    assert registry.pop(1) is None
    assert registry.resolve(1, "late") is False
    waiter.put("by hand")
    assert registry.wait(1, waiter, GUARD) == "by hand"


def test_pop_of_another_waiter_changes_nothing(registry):
    waiter = registry.register(1)
    other = registry.register(2)
    assert registry.pop(1, other) is None
    assert 1 in registry
    assert registry.pop(1, waiter) is waiter


# waiting


def test_an_answer_from_another_thread_wakes_the_wait(registry):
    waiter = registry.register(1)
    thread = threading.Thread(target=registry.resolve, args=(1, "reply"))
    thread.start()
    assert registry.wait(1, waiter, GUARD) == "reply"
    thread.join()


@pytest.mark.parametrize("timeout", [0, 0.01])
@pytest.mark.parametrize("key, text", [(1, "1"), ("a", "'a'")])
def test_a_timeout_removes_the_request(registry, key, text, timeout):
    waiter = registry.register(key)
    with pytest.raises(TimeoutError) as caught:
        registry.wait(key, waiter, timeout)
    assert str(caught.value) == f"timed out waiting for request {text}"
    assert len(registry) == 0
    assert registry.resolve(key, "late") is False


def test_an_answer_that_is_there_needs_no_time(registry):
    waiter = registry.register(1)
    registry.resolve(1, "reply")
    assert registry.wait(1, waiter, 0) == "reply"


@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf")])
def test_a_negative_timeout_is_refused_and_leaks_no_key(registry, timeout):
    waiter = registry.register(1)
    with pytest.raises(ValueError, match=NEGATIVE):
        registry.wait(1, waiter, timeout)
    assert len(registry) == 0
    with pytest.raises(ValueError, match=NEGATIVE):
        registry.reply(1).wait(timeout)
    assert len(registry) == 0
    with pytest.raises(ValueError, match=NEGATIVE):
        registry.request(1, lambda reply: None, timeout)
    assert len(registry) == 0


def test_not_a_number_is_refused_and_leaks_no_key(registry):
    waiter = registry.register(1)
    with pytest.raises(ValueError):
        registry.wait(1, waiter, float("nan"))
    assert len(registry) == 0
    with pytest.raises(ValueError):
        registry.request(1, lambda reply: None, float("nan"))
    assert len(registry) == 0
    with pytest.raises(TypeError):
        registry.request(1, lambda reply: None, "1")
    assert len(registry) == 0


def test_a_wait_removes_only_its_own_request(registry):
    waiter = registry.register(1)
    registry.resolve(1, "old")
    newer = registry.register(1)
    assert registry.wait(1, waiter) == "old"
    assert registry.pending == {1: newer}


def test_one_impatient_caller_harms_no_other(registry):
    patient, impatient = registry.register(1), registry.register(2)
    with pytest.raises(TimeoutError):
        registry.wait(2, impatient, 0)
    assert registry.resolve(1, "reply") is True
    assert registry.wait(1, patient) == "reply"


def test_no_entry_is_left_behind(registry):
    for key in range(1000):
        waiter = registry.register(key)
        with pytest.raises(TimeoutError):
            registry.wait(key, waiter, 0)
    assert len(registry) == 0 and registry.pending == {}


# the waiter


def test_a_waiter_has_the_methods_of_a_queue_for_one(registry):
    waiter = registry.register(1)
    assert (waiter.qsize(), waiter.empty(), waiter.full()) == (0, True, False)
    assert waiter.put("manual") is None
    assert (waiter.qsize(), waiter.empty(), waiter.full()) == (1, False, True)
    for put in waiter.put_nowait, lambda item: waiter.put(item, False), lambda item: waiter.put(item, timeout=0.01):
        with pytest.raises(queue.Full):
            put("second")
    assert waiter.get() == "manual"
    for get in waiter.get_nowait, lambda: waiter.get(False), lambda: waiter.get(block=True, timeout=0.01):
        with pytest.raises(queue.Empty):
            get()
    waiter.put_nowait("again")
    assert waiter.get_nowait() == "again"


def test_the_main_thread_is_woken_again_after_it_was_woken_for_nothing(registry):
    """Each round puts a value there and takes it away before the main thread can look."""
    waiter = registry.register("key")
    interval = sys.getswitchinterval()

    def tease():
        for _ in range(20):
            waiter.put_nowait("gone again")
            waiter.get_nowait()
            time.sleep(0.001)  # lets the main thread look, and wait again: nothing tells when it has
        waiter.put_nowait("here")

    sys.setswitchinterval(60)  # or the main thread might get what was put there for a moment
    try:
        teaser = threading.Thread(target=tease)
        teaser.start()
        begin = time.monotonic()
        assert waiter.get(timeout=20) == "here"
        assert time.monotonic() - begin < 15, "found when the time was up, not woken"
    finally:
        sys.setswitchinterval(interval)
    teaser.join()


def test_a_waiter_refuses_a_negative_timeout(registry):
    waiter = registry.register(1)
    with pytest.raises(ValueError, match=NEGATIVE):
        waiter.get(timeout=-1)
    waiter.put(1)
    with pytest.raises(ValueError, match=NEGATIVE):
        waiter.put(2, timeout=-1)
    assert waiter.get(False, -1) == 1


def test_a_value_put_by_hand_is_the_reply(registry):
    waiter = registry.register(1)
    waiter.put("manual")
    assert registry.wait(1, waiter) == "manual"
    assert len(registry) == 0


@pytest.mark.parametrize("cause", [ValueError("manual"), KeyboardInterrupt()], ids=repr)
def test_an_exception_put_by_hand_is_raised(registry, cause):
    waiter = registry.register(1)
    waiter.put(cause)
    with pytest.raises(type(cause)) as caught:
        registry.wait(1, waiter)
    assert caught.value is cause
    assert len(registry) == 0


def test_resolve_is_refused_when_a_value_was_put_by_hand(registry):
    """`resolve() is True` means that the waiter gets the value; and it never blocks."""
    waiter = registry.register(1)
    waiter.put("manual")
    assert registry.resolve(1, "reply") is False
    assert registry.wait(1, waiter) == "manual"


def test_get_gives_what_the_registry_put_there(registry):
    waiter = registry.register(1)
    registry.resolve(1, "reply")
    assert waiter.get() == "reply"
    waiter, cause = registry.register(2), ValueError("no")
    registry.fail(2, cause)
    assert waiter.get() is cause


def test_get_blocks_until_an_answer_comes(registry):
    waiter = registry.register(1)
    thread = threading.Thread(target=registry.resolve, args=(1, "reply"))
    thread.start()
    assert waiter.get(timeout=GUARD) == "reply"
    thread.join()


@pytest.mark.parametrize("makes_room", ["get", "get_nowait"])
def test_put_blocks_until_there_is_room(registry, makes_room):
    """It is woken: it does not only look again when its time is up."""
    with ThreadPoolExecutor(1) as pool:
        for key in range(20):  # in most of these rounds it has begun to wait
            waiter, begun = registry.register(key), threading.Event()
            waiter.put("first")
            second = pool.submit(lambda: (begun.set(), waiter.put("second", timeout=GUARD)))
            begun.wait(GUARD)
            begin = time.monotonic()
            assert getattr(waiter, makes_room)() == "first"
            second.result()
            assert time.monotonic() - begin < GUARD
            assert waiter.get(timeout=GUARD) == "second"


def test_a_get_that_had_to_wait_makes_room_too(registry):
    with ThreadPoolExecutor(1) as pool:
        for key in range(20):  # in most of these rounds the second put finds the place still taken
            waiter, begun = registry.register(key), threading.Event()
            got = pool.submit(lambda: (begun.set(), waiter.get(timeout=GUARD)))
            begun.wait(GUARD)
            begin = time.monotonic()
            waiter.put("first")
            waiter.put("second", timeout=GUARD)
            assert time.monotonic() - begin < GUARD
            assert got.result()[1] == "first"
            assert waiter.get_nowait() == "second"


# handles


def test_a_handle_shows_what_it_answers(registry):
    reply = registry.reply("key")
    assert isinstance(reply, ReplyHandle)
    assert reply.registry is registry and reply.key == "key"
    assert registry.pending["key"] is reply.waiter
    assert reply.key in reply.registry


def test_handles_are_compared_by_identity(registry):
    first = registry.reply(1)
    registry.pop(1)
    second = registry.reply(1)
    assert first == first and first != second
    assert len({first, second}) == 2


def test_a_handle_can_be_made_by_hand(registry):
    waiter = registry.register(1)
    reply = ReplyHandle(registry, 1, waiter)
    assert (reply.registry, reply.key, reply.waiter) == (registry, 1, waiter)
    assert reply.resolve("reply") is True
    assert registry.wait(1, waiter) == "reply"


def test_a_handle_resolves_once(registry):
    reply = registry.reply(1)
    assert reply.resolve("reply") is True
    assert reply.resolve("again") is False
    assert reply.fail(ValueError()) is False
    assert reply.wait(GUARD) == "reply"
    assert len(registry) == 0


def test_a_handle_fails_once(registry):
    reply, cause = registry.reply(1), ValueError("no")
    assert reply.fail(cause) is True
    assert reply.resolve("late") is False
    with pytest.raises(ValueError) as caught:
        reply.wait()
    assert caught.value is cause


def test_a_handle_takes_its_request_out(registry):
    reply = registry.reply(1)
    assert reply.pop() is reply.waiter
    assert reply.pop() is None
    assert reply.resolve("late") is False


def test_a_handle_waits_with_a_timeout(registry):
    with pytest.raises(TimeoutError, match="^timed out waiting for request 1$"):
        registry.reply(1).wait(0.01)
    assert len(registry) == 0


def test_a_stale_handle_never_touches_a_newer_request(registry):
    stale = registry.reply(1)
    registry.pop(1)
    newer = registry.reply(1)
    assert stale.resolve("stale") is False
    assert stale.fail(ValueError("stale")) is False
    assert stale.pop() is None
    assert newer.waiter.empty() and 1 in registry
    assert newer.resolve("reply") is True
    assert newer.wait() == "reply"


def test_a_stale_handle_that_waits_leaves_the_newer_request(registry):
    stale = registry.reply(1)
    registry.pop(1)
    registry.register(1)
    with pytest.raises(TimeoutError):
        stale.wait(0)
    assert 1 in registry


# request


def test_request_registers_sends_and_waits(registry):
    def send(reply):
        assert reply.key in registry
        thread = threading.Thread(target=reply.resolve, args=("reply",))
        thread.start()
        threads.append(thread)

    threads = []
    assert registry.request("key", send) == "reply"
    assert registry.request(key="key", send=send, timeout=GUARD) == "reply"
    assert len(registry) == 0
    for thread in threads:
        thread.join()


def test_an_answer_while_sending_counts(registry):
    assert registry.request("key", lambda reply: registry.resolve("key", "at once")) == "at once"
    with pytest.raises(ZeroDivisionError):
        registry.request("key", lambda reply: reply.fail(ZeroDivisionError()))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_a_send_that_fails_leaves_no_request(registry, error):
    def send(reply):
        raise error

    with pytest.raises(error):
        registry.request("key", send)
    assert len(registry) == 0


def test_a_request_that_times_out_is_taken_out(registry):
    handles = []
    with pytest.raises(TimeoutError, match="^timed out waiting for request 'key'$"):
        registry.request("key", handles.append, 0.01)
    assert len(registry) == 0
    assert handles[0].resolve("late") is False


def test_send_may_make_requests_of_its_own(registry):
    def send(reply):
        reply.resolve(registry.request("inner", lambda inner: inner.resolve("reply")))

    assert registry.request("outer", send) == "reply"


# failing and closing


def test_fail_all_wakes_every_waiter_with_the_same_exception(registry):
    cause, waiting = KeyboardInterrupt("stop"), threading.Barrier(5)

    def wait(key):
        waiter = registry.register(key)
        waiting.wait(GUARD)
        with pytest.raises(KeyboardInterrupt) as caught:
            registry.wait(key, waiter, GUARD)
        return caught.value

    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(wait, key) for key in range(4)]
        waiting.wait(GUARD)
        assert registry.fail_all(cause) == 4
        assert all(wait.result() is cause for wait in waits)


def test_fail_all_leaves_the_registry_usable(registry):
    registry.register(1)
    assert registry.fail_all(ValueError()) == 1
    assert registry.fail_all(ValueError()) == 0
    assert len(registry) == 0
    assert registry.request(1, lambda reply: reply.resolve("reply")) == "reply"


@pytest.mark.parametrize("cause", [None, ValueError("reader died")], ids=repr)
def test_close_wakes_every_waiter(registry, cause):
    waiters = {key: registry.register(key) for key in range(3)}
    assert registry.close(cause) == 3
    assert len(registry) == 0
    for key, waiter in waiters.items():
        with pytest.raises(type(cause) if cause else ClosedResourceError) as caught:
            registry.wait(key, waiter, GUARD)
        assert cause is None or caught.value is cause


def test_a_closed_registry_refuses_at_once(registry):
    assert registry.close() == 0
    for call in registry.register, registry.reply, lambda key: registry.request(key, pytest.fail):
        with pytest.raises(ClosedResourceError, match="closed$") as caught:
            call(1)
        assert caught.value.__cause__ is None
    assert len(registry) == 0


def test_a_failed_registry_refuses_from_the_cause(registry):
    cause = ValueError("reader died")
    assert registry.close(exc=cause) == 0
    for call in registry.register, registry.reply, lambda key: registry.request(key, pytest.fail):
        with pytest.raises(BrokenResourceError) as caught:
            call(1)
        assert caught.value.__cause__ is cause


def test_the_first_close_wins(registry):
    registry.register(1)
    assert registry.close() == 1
    assert registry.close(ValueError("later")) == 0
    with pytest.raises(ClosedResourceError):
        registry.register(1)


def test_a_closed_registry_answers_nothing_more(registry):
    reply = registry.reply(1)
    registry.close()
    assert registry.resolve(1, "late") is False
    assert reply.resolve("late") is False
    assert reply.fail(ValueError()) is False
    assert registry.fail_all(ValueError()) == 0
    assert registry.pop(1) is None and 1 not in registry


def test_a_registry_closed_while_sending_fails_the_request(registry):
    with pytest.raises(ClosedResourceError):
        registry.request(1, lambda reply: registry.close(), GUARD)
    assert len(registry) == 0


# async


def test_request_async_registers_sends_and_waits(run, registry):
    async def main():
        def send(reply):
            assert reply.key in registry
            loop.run_in_executor(None, reply.resolve, "reply")

        loop = asyncio.get_running_loop()
        assert await registry.request_async("key", send) == "reply"
        assert await registry.request_async(key="key", send=send, timeout=GUARD) == "reply"
        assert await registry.request_async("key", lambda reply: reply.resolve("at once")) == "at once"
        assert len(registry) == 0

    run(main())


def test_an_async_send_is_awaited(run, registry):
    async def main():
        async def send(reply):
            await asyncio.sleep(0)
            reply.resolve("reply")

        assert await registry.request_async("key", send, timeout=GUARD) == "reply"

        async def fail(reply):
            await asyncio.sleep(0)
            raise ZeroDivisionError

        async def hang(reply):
            await asyncio.Event().wait()

        with pytest.raises(ZeroDivisionError):
            await registry.request_async("key", fail)
        with pytest.raises(TimeoutError):
            await registry.request_async("key", hang, timeout=0.01)
        assert len(registry) == 0

    run(main())


def test_the_time_that_an_async_send_takes_is_taken_from_that_of_the_wait(run):
    class Registry(RequestRegistry):
        def wait_async(self, key, waiter, timeout=None):
            times.append(timeout)
            return super().wait_async(key, waiter, timeout)

    async def send(reply):
        await asyncio.sleep(0.02)
        reply.resolve("answer")

    times = []
    assert run(Registry().request_async("key", send, GUARD)) == "answer"
    assert times[0] == GUARD and times[1] <= GUARD - 0.01


def test_wait_async_returns_the_answer(run, registry):
    async def main():
        waiter = registry.register(1)
        registry.resolve(1, "reply")
        assert await registry.wait_async(1, waiter) == "reply"
        waiter = registry.register(1)
        task = await parked(registry.wait_async(1, waiter, GUARD))
        await asyncio.to_thread(registry.resolve, 1, "reply")
        assert await asyncio.wait_for(task, GUARD) == "reply"
        waiter = registry.register(1)
        waiter.put("manual")
        assert await registry.wait_async(1, waiter) == "manual"
        assert len(registry) == 0

    run(main())


@pytest.mark.parametrize("value", [None, (), (1, 2), ValueError("data"), StopIteration("data")], ids=repr)
def test_any_object_is_a_value_of_an_async_wait(run, registry, value):
    async def main():
        assert await registry.request_async(1, lambda reply: reply.resolve(value)) is value
        waiter = registry.register(1)
        task = await parked(registry.wait_async(1, waiter))
        registry.resolve(1, value)
        assert await task is value

    run(main())


def test_an_async_wait_raises_what_the_request_failed_with(run, registry):
    async def main():
        cause = ValueError("reader died")
        with pytest.raises(ValueError) as caught:
            await registry.request_async(1, lambda reply: reply.fail(cause))
        assert caught.value is cause
        tasks = [await parked(registry.wait_async(key, registry.register(key))) for key in range(3)]
        assert registry.fail_all(cause) == 3
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GUARD)
        assert all(end is cause for end in ends)

    run(main())


def test_close_wakes_async_waits(run, registry):
    async def main():
        task = await parked(registry.wait_async(1, registry.register(1)))
        assert registry.close() == 1
        with pytest.raises(ClosedResourceError):
            await asyncio.wait_for(task, GUARD)
        with pytest.raises(ClosedResourceError):
            await registry.request_async(2, pytest.fail)

    run(main())


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_an_async_timeout_removes_the_request(run, registry, timeout):
    async def main():
        waiter = registry.register("key")
        with pytest.raises(TimeoutError, match="^timed out waiting for request 'key'$"):
            await registry.wait_async("key", waiter, timeout)
        assert len(registry) == 0
        handles = []
        with pytest.raises(TimeoutError, match="^timed out waiting for request 'key'$"):
            await registry.request_async("key", handles.append, timeout=timeout)
        assert len(registry) == 0
        assert handles[0].resolve("late") is False

    run(main())


def test_an_async_answer_that_is_there_needs_no_time(run, registry):
    async def main():
        assert await registry.request_async(1, lambda reply: reply.resolve("reply"), 0) == "reply"

    run(main())


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_what_is_no_timeout_is_refused_by_async_waits_and_leaks_no_key(run, registry, timeout):
    async def main():
        waiter = registry.register(1)
        with pytest.raises(ValueError):
            await registry.wait_async(1, waiter, timeout)
        assert len(registry) == 0
        with pytest.raises(ValueError):
            await registry.request_async(1, lambda reply: None, timeout)
        assert len(registry) == 0

    run(main())


def test_a_cancelled_async_wait_removes_the_request(run, registry):
    async def main():
        for wait in (
            registry.wait_async(1, registry.register(1)),
            registry.request_async(2, lambda reply: None),
            registry.request_async(3, lambda reply: None, timeout=GUARD),
        ):
            task = await parked(wait)
            assert len(registry) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(registry) == 0
        assert registry.resolve(1, "late") is False

    run(main())


class Compared:
    """Equal to its like; who compares it calls ``act``."""

    def __init__(self, act=None):
        self.act = act or (lambda: None)

    def __hash__(self):
        return 1

    def __eq__(self, other):
        self.act()
        return isinstance(other, Compared)


@pytest.mark.parametrize("end", ["timeout", "async timeout", "cancel"])
def test_a_wait_that_has_ended_takes_no_answer_while_it_leaves(run, registry, end):
    """Its key is compared on the way out: an answer from in there comes too late, and is told so."""

    async def main():
        with pytest.raises(TimeoutError if end == "async timeout" else asyncio.CancelledError):
            task = await parked(registry.wait_async(key, reply.waiter, 0 if end == "async timeout" else None))
            task.cancel()
            await task

    answers = []
    reply = registry.reply(Compared(lambda: answers.append(reply.resolve("late"))))
    key = Compared()
    if end == "timeout":
        with pytest.raises(TimeoutError):
            registry.wait(key, reply.waiter, 0)
    else:
        run(main())
    assert answers[0] is False
    assert len(registry) == 0


def test_an_async_request_cancelled_before_it_began_registers_nothing(run, registry):
    async def main():
        task = asyncio.create_task(registry.request_async(1, pytest.fail))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(registry) == 0

    run(main())


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_an_async_send_that_fails_leaves_no_request(run, registry, error):
    async def main():
        def send(reply):
            raise error

        with pytest.raises(error):
            await registry.request_async("key", send)
        assert len(registry) == 0

    run(main())


def test_a_timeout_of_an_async_send_itself_comes_out_as_it_is(run, registry):
    async def send(reply):
        raise error

    async def main():
        with pytest.raises(TimeoutError) as raised:
            await registry.request_async("key", send, GUARD)
        assert raised.value is error
        assert len(registry) == 0

    error = TimeoutError("no connection")
    run(main())


def test_an_async_request_for_a_pending_key_is_refused(run, registry):
    async def main():
        waiter = registry.register(1)
        with pytest.raises(KeyError, match="request already pending: 1"):
            await registry.request_async(1, pytest.fail)
        assert registry.pending == {1: waiter}

    run(main())


def test_a_thread_and_a_task_ask_each_other(run, registry):
    """Each waits in its own way for an answer that the other side gives."""

    async def main():
        asked = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def thread():
            answer = registry.request(
                "from thread", lambda reply: loop.call_soon_threadsafe(asked.put_nowait, reply), GUARD
            )
            assert registry.resolve("from task", answer + 1)

        task = await parked(registry.wait_async("from task", registry.register("from task")))
        working = loop.run_in_executor(None, thread)
        reply = await asked.get()
        assert reply.resolve(1) is True
        assert await asyncio.wait_for(task, GUARD) == 2
        await working

    run(main())


def test_a_loop_that_was_closed_early_does_not_hinder_the_answer(loop_factory, registry):
    loop = loop_factory()
    waits = [registry.wait_async(key, registry.register(key)) for key in range(2)]
    left = [loop.create_task(wait) for wait in waits]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    for task in left:
        task._log_destroy_pending = False  # it is meant to be left behind
    registry.resolve(0, "nobody waits")
    registry.fail_all(ValueError())
    assert len(registry) == 0


# races


def test_resolve_racing_a_timeout_has_one_outcome(registry, busy_threads):
    """`resolve() is True` if and only if the waiter got the value."""
    rounds, barrier = 300, threading.Barrier(2)
    told = []

    def resolver():
        for key in range(rounds):
            barrier.wait(GUARD)
            told.append(registry.resolve(key, key))

    got = []
    with ThreadPoolExecutor(1) as pool:
        resolving = pool.submit(resolver)
        for key in range(rounds):
            waiter = registry.register(key)
            barrier.wait(GUARD)
            try:
                got.append(registry.wait(key, waiter, (key % 10) * 1e-5) == key)
            except TimeoutError:
                got.append(False)
        resolving.result()
    assert got == told
    assert len(registry) == 0


def test_resolve_racing_a_cancel_has_one_outcome(run, registry, busy_threads):
    async def main():
        loop = asyncio.get_running_loop()
        for key in range(200):
            task = await parked(registry.wait_async(key, registry.register(key)))
            resolving = loop.run_in_executor(pool, registry.resolve, key, key)
            if key % 3:
                await asyncio.sleep(0)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            assert key not in registry
            if outcome == key:
                assert await resolving is True
            else:
                assert isinstance(outcome, asyncio.CancelledError)
                await resolving

    with ThreadPoolExecutor(1) as pool:
        run(main())


def test_of_many_answers_one_is_taken(registry, busy_threads):
    barrier = threading.Barrier(5)

    def answer(number):
        barrier.wait(GUARD)
        if number == 3:
            return registry.fail(key, ValueError(number))
        return registry.resolve(key, number)

    with ThreadPoolExecutor(4) as pool:
        for key in range(50):
            waiter = registry.register(key)
            answers = [pool.submit(answer, number) for number in range(4)]
            barrier.wait(GUARD)
            try:
                winner = registry.wait(key, waiter, GUARD)
            except ValueError as error:
                winner = error.args[0]
            assert [number for number in range(4) if answers[number].result()] == [winner]


def test_close_racing_requests_answers_every_one(busy_threads):
    """Requests from four threads, answered by nobody: each is told of the close, at once or when it comes too late."""

    def requests(registry, barrier):
        barrier.wait(GUARD)
        for key in range(1000):
            try:
                registry.request((threading.get_ident(), key), lambda reply: None, GUARD)
            except ValueError:
                return "woken"
            except BrokenResourceError:
                return "refused"

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            registry, barrier = RequestRegistry(), threading.Barrier(5)
            asking = [pool.submit(requests, registry, barrier) for _ in range(4)]
            barrier.wait(GUARD)
            woken = registry.close(ValueError("reader died"))
            assert [asked.result() for asked in asking].count("woken") == woken
            assert len(registry) == 0


@pytest.mark.parametrize("end", ["answer", "cancel"])
def test_a_wait_that_ends_before_its_time_leaves_no_timer(timers_left, registry, end):
    async def main():
        waiter = registry.register(1)
        task = await parked(registry.wait_async(1, waiter, 3600))
        task.cancel() if end == "cancel" else registry.resolve(1, "in time")
        await asyncio.wait([task])

    assert timers_left(main()) == []


def test_a_wait_that_is_woken_for_nothing_has_one_timer(timers_left, registry):
    async def main():
        waiter = registry.register(1)
        task = await parked(registry.wait_async(1, waiter, 3600))
        for _ in range(3):
            waiter.put("by hand")
            waiter.get_nowait()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not task.done()
        registry.resolve(1, "in time")
        assert await task == "in time"

    assert timers_left(main()) == []


def test_a_wait_that_is_given_up_leaves_nothing_behind(run, registry):
    async def main():
        waiter = registry.register("key")
        steps = registry.wait_async("key", waiter).__await__()
        parked = weakref.ref(next(steps))
        assert parked() is not None, "the primitive keeps it while somebody waits"
        steps.close()
        gc.collect()
        assert parked() is None and len(registry) == 0

    run(main())


def test_a_wait_that_is_dropped_beside_an_exception_lets_that_pass(run, registry):
    """A list that could not be made is dropped while the reason why is on its way."""

    def waits():
        steps = registry.wait_async("key", registry.register("key")).__await__()
        next(steps)
        yield steps
        del steps
        raise ValueError("mine")

    async def main():
        with pytest.raises(ValueError, match="mine"):
            list(waits())
        assert len(registry) == 0

    run(main())


def test_sixteen_threads_each_get_their_own_answers(registry, busy_threads):
    replies = queue.SimpleQueue()

    def answer():
        while (reply := replies.get()) is not None:
            assert reply.resolve(("reply to", reply.key))

    def ask(name):
        for number in range(30):
            key = (name, number)
            assert registry.request(key, replies.put, GUARD) == ("reply to", key)

    with ThreadPoolExecutor(17) as pool:
        answering = pool.submit(answer)
        try:
            for asking in [pool.submit(ask, name) for name in range(16)]:
                asking.result()
        finally:
            replies.put(None)
        answering.result()
    assert len(registry) == 0
