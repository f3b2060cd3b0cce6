"""The interpreter exits, or a loop is closed, while something still waits: exit code 0, nothing on stderr."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import microio

PRELUDE = """
import asyncio, atexit, gc, logging, sys, threading, time
from microio import BrokenResourceError, CloseScope, RequestRegistry, WorkTracker, create_channel

logging.getLogger("asyncio").setLevel(logging.ERROR)  # a slow machine is no failure


def in_daemon(wait):
    '''Starts a daemon thread and returns when it is about to wait.'''
    waiting = threading.Event()

    def run():
        waiting.set()
        wait()

    threading.Thread(target=run, daemon=True).start()
    waiting.wait(10)


class Slow:
    '''Takes its time to die; as an attribute of sys it does so at the interpreter's end, while other threads run.'''

    def __del__(self, sleep=time.sleep):
        sleep(0.2)


def left_behind(task):
    '''A task that is meant to be pending when its loop is closed.'''
    task._log_destroy_pending = False
    return task
"""


def run_script(script):
    """Runs it as a program of its own, with all warnings on; what it printed."""
    package = str(Path(microio.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", PRELUDE + textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_exit_after_import():
    run_script("")


WAITS = """
    scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
    busy, waiter, full = WorkTracker().busy, registry.register(1), registry.register(2)
    tracker.add()
    full.put("first")
    for wait in (scope.wait, tracker.wait_idle, busy.wait, waiter.get,
                 lambda scope=scope: scope.wait(3600),
                 lambda full=full: full.put("second"),
                 lambda registry=registry: registry.wait(3, registry.register(3)),
                 lambda registry=registry: registry.request(4, lambda reply: None)):
        in_daemon(wait)
"""


def test_exit_while_daemon_threads_wait():
    run_script(WAITS)


def test_exit_while_daemon_threads_wait_for_what_is_dropped():
    run_script(WAITS + "    del scope, tracker, registry, busy, waiter, full, wait\n")


def test_exit_while_daemon_threads_work():
    """They are stopped wherever they happen to be."""
    run_script("""
        sys.setswitchinterval(1e-5)
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        send, receive = create_channel()

        def forever(work):
            while True:
                work()

        def track():
            with tracker.track():
                scope.wait(0)

        for work in (
            lambda: (send.send_nowait(object()), receive.drain_nowait()),
            send.stats,
            lambda: registry.request(object(), lambda reply: reply.resolve(1)),
            lambda: WorkTracker().busy.is_set(),
            track,
        ):
            in_daemon(lambda work=work: forever(work))
        sys.slow = Slow()
    """)


def test_exit_while_daemon_threads_compare_keys():
    """The keys' own `__hash__` and `__eq__` run inside the registry's calls."""
    run_script("""
        class Key:
            def __hash__(self):
                return 1

            def __eq__(self, other):
                return isinstance(other, Key)

        def forever(work):
            while True:
                work()

        sys.setswitchinterval(1e-5)
        registry = RequestRegistry()
        waiter, other = registry.register(Key()), RequestRegistry().register(Key())
        for work in (
            lambda: Key() in registry,
            lambda: registry.pop(Key(), other),
            lambda: RequestRegistry().reply(Key()).resolve(1),
            lambda: registry.pending,
        ):
            in_daemon(lambda work=work: forever(work))
        sys.slow = Slow()
    """)


def test_exit_while_loops_in_daemon_threads_work():
    run_script("""
        sys.setswitchinterval(1e-5)

        async def main():
            async def answer():
                async for reply in receive:
                    reply.resolve(reply.key)

            send, receive = create_channel()
            registry = RequestRegistry()
            tasks = [asyncio.create_task(answer()) for _ in range(2)]
            working.wait(10)
            while True:
                reply = registry.reply(object())
                await send.send(reply)
                await registry.wait_async(reply.key, reply.waiter, 60)

        working = threading.Barrier(3)
        for _ in range(2):
            in_daemon(lambda: asyncio.run(main()))
        working.wait(10)
        sys.slow = Slow()
    """)


def test_exit_with_items_and_requests_left():
    run_script("""
        send, receive = create_channel()
        for item in None, [send, receive], ValueError("data"), lambda: send:
            send.send_nowait(item)
        registry = RequestRegistry()
        registry.register(registry)
        handle = registry.reply("key")
        handle.waiter.put(handle)
        scope = CloseScope()
        scope.fail(ValueError(scope))
        tracker = WorkTracker()
        tracker.add()
        tracker.busy
    """)


def test_exit_handlers_may_use_everything():
    out = run_script("""
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        send, receive = create_channel()
        reply = registry.reply("key")

        def goodbye():
            send.send_nowait("item")
            tracker.add()
            print(scope.close("exit"), scope.wait(0), receive.drain_nowait(), tracker.wait_idle(0.01), reply.resolve(1))

        atexit.register(goodbye)
    """)
    assert out == "True True ['item'] False True\n"


def test_an_exit_handler_releases_a_thread_that_waits():
    """`threading` joins its threads first: one that is not a daemon must be told before, from the main thread's end."""
    out = run_script("""
        scope = CloseScope()
        thread = threading.Thread(target=lambda: print(scope.wait(), scope.reason))
        threading._register_atexit(scope.close, "exit")
        thread.start()
    """)
    assert out == "True exit\n"


def test_an_object_that_dies_last_may_use_everything():
    """`__del__` at the end of the interpreter."""
    run_script("""
        class Goodbye:
            def __init__(self):
                self.scope, self.tracker, self.registry = CloseScope(), WorkTracker(), RequestRegistry()
                self.send, self.receive = create_channel()
                self.waiter = self.registry.register(self)
                self.send.send_nowait(self)

            def __del__(self):
                self.send.send_nowait(1)
                self.receive.drain_nowait()
                self.send.stats()
                self.scope.close()
                self.scope.wait(0)
                self.tracker.add()
                self.tracker.wait_idle(0)
                self.registry.fail_all(ValueError())
                self.send.close()

        sys.goodbye = Goodbye()
        goodbye = Goodbye()
    """)


@pytest.mark.parametrize("leave", ["return", "sys.exit(0)", "raise SystemExit"])
def test_exit_out_of_a_loop_with_waiting_tasks(leave):
    run_script(f"""
        async def main():
            send, receive = create_channel()
            tracker = WorkTracker()
            tracker.add()
            registry = RequestRegistry()
            waits = [receive.receive(), anext(receive), CloseScope().wait_async(), tracker.idle(),
                     registry.wait_async(1, registry.register(1)), registry.request_async(2, lambda reply: None)]
            tasks = [asyncio.create_task(wait) for wait in waits]
            await asyncio.sleep(0)
            {leave}

        asyncio.run(main())
    """)


def test_exit_with_a_loop_that_was_closed_early():
    """Its tasks still wait, and what they wait for comes afterwards."""
    out = run_script("""
        send, receive = create_channel()
        full, other = create_channel(capacity=1)
        full.send_nowait(1)
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        tracker.add()
        waiters = [registry.register(key) for key in range(2)]

        async def main():
            for wait in (receive.receive(), full.send(2), scope.wait_async(), tracker.idle(),
                         registry.wait_async(0, waiters[0]), registry.wait_async(1, waiters[1], 3600)):
                tasks.append(left_behind(asyncio.create_task(wait)))
            await asyncio.sleep(0)

        tasks = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        try:
            send.send_nowait(1)
        except BrokenResourceError:
            print("broken")
        print(scope.close(), scope.closed)
        tracker.done()
        print(tracker.count, other.drain_nowait())
        registry.resolve(0, "late")
        registry.close(ValueError("late"))
        print(len(registry), send.close())
        assert not any(task.done() for task in tasks)
    """)
    assert out == "broken\nTrue True\n0 [1]\n0 True\n"


def test_tasks_of_a_loop_that_was_closed_early_are_collected():
    out = run_script("""
        import weakref

        class Local:
            pass

        async def wait(awaitable):
            local = Local()
            locals_.add(local)
            await awaitable

        locals_ = weakref.WeakSet()
        send, receive = create_channel()
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        tracker.add()

        async def main():
            for awaitable in (receive.receive(), scope.wait_async(), tracker.idle(),
                              registry.wait_async(1, registry.register(1))):
                left_behind(asyncio.get_running_loop().create_task(wait(awaitable)))
            await asyncio.sleep(0)
            print(len(locals_))

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        scope.close()
        tracker.done()
        registry.fail_all(ValueError())
        send.close()
        del loop, send, receive, scope, tracker, registry
        gc.collect()
        print(len(locals_))
    """)
    assert out == "4\n0\n"


def test_exit_while_a_loop_runs_in_a_daemon_thread():
    run_script("""
        send, receive = create_channel()
        registry = RequestRegistry()

        async def main():
            asyncio.create_task(asyncio.sleep(3600))
            async for item in receive:
                item.resolve("reply")

        in_daemon(lambda: asyncio.run(main()))
        assert registry.request(1, send.send_nowait, 10) == "reply"
    """)


def test_exit_while_daemon_threads_poll():
    """Waits that end all the time, also while the interpreter does."""
    run_script("""
        scope, tracker, waiter = CloseScope(), WorkTracker(), RequestRegistry().register(1)

        def poll():
            while not scope.wait(0.0001) and not tracker.busy.wait(0.0001):
                try:
                    waiter.get(timeout=0.0001)
                except Exception:
                    pass

        for _ in range(4):
            in_daemon(poll)
    """)


def test_exit_while_another_thread_waits_for_the_gil():
    """Waits end after the main thread has begun to take the interpreter down."""
    run_script("""
        scope, waiter, tracker = CloseScope(), RequestRegistry().register(1), WorkTracker()
        for _ in range(4):
            in_daemon(scope.wait)
            in_daemon(lambda: scope.wait(0.1))
            in_daemon(lambda: waiter.get(timeout=0.1))
            in_daemon(lambda: tracker.busy.wait(0.1))
        sys.slow = Slow()
        sys.setswitchinterval(1e-5)
        scope.close()
    """)


def test_exit_while_a_daemon_thread_runs_code_that_we_called():
    """A request is being sent when the main thread takes the interpreter down."""
    run_script("""
        registry = RequestRegistry()

        def send(reply):
            while True:
                time.sleep(0.01)

        in_daemon(lambda: registry.request(1, send))
        sys.slow = Slow()
    """)
