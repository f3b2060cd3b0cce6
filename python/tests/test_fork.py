"""After `fork`: waits in the child raise a typed error instead of hanging, reads work, new objects work.

Each story is a program of its own, since a test run has threads.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import microio

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PRELUDE = """
import asyncio, logging, os, signal, sys, threading, traceback
from microio import CloseScope, RequestRegistry, WorkTracker, create_channel

logging.getLogger("asyncio").setLevel(logging.ERROR)  # a slow machine is no failure


def in_child(story):
    '''Runs it after a fork. A child that fails says so on stderr; one that hangs is ended.'''
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            story()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        sys.exit(f"the child ended with {status}")


def refused(wait):
    '''Whether it raises what a wait raises after a fork.'''
    try:
        wait()
    except RuntimeError as error:
        return "used after fork" in str(error)
    return False
"""


def run_script(script, *options):
    package = str(Path(microio.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", *options, "-c", PRELUDE + textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_blocking_waits_are_refused_in_the_child():
    run_script("""
        scope, tracker, idle = CloseScope(), WorkTracker(), WorkTracker()
        tracker.add()
        busy = idle.busy
        registry = RequestRegistry()
        waiter, reply, full = registry.register(1), registry.reply(2), registry.register(3)
        full.put("first")

        def story():
            for wait in (
                scope.wait,
                tracker.wait_idle,
                busy.wait,
                waiter.get,
                lambda: full.put("second"),
                lambda: registry.wait(1, waiter),
                reply.wait,
                lambda: registry.request(4, lambda reply: None),
                lambda: scope.wait(1),
            ):
                assert refused(wait), wait

        in_child(story)
    """)


def test_async_waits_are_refused_in_the_child():
    run_script("""
        send, receive = create_channel()
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        tracker.add()
        waiter = registry.register(1)

        def story():
            for wait in (
                receive.receive,
                lambda: anext(receive),
                scope.wait_async,
                tracker.idle,
                lambda: registry.wait_async(1, waiter),
                lambda: registry.request_async(2, lambda reply: None),
            ):
                async def main():
                    await asyncio.wait_for(wait(), 5)

                assert refused(lambda: asyncio.run(main())), wait

        in_child(story)
    """)


def test_reads_work_in_the_child():
    run_script("""
        send, receive = create_channel()
        send.send_nowait("item")
        opened, closed, tracker, registry = CloseScope(), CloseScope(), WorkTracker(), RequestRegistry()
        closed.close("bye")
        tracker.add()
        waiter = registry.register("key")
        waiter.put("manual")

        def story():
            stats = receive.stats()
            assert (stats.sent, stats.queued, send.closed, receive.closed) == (1, 1, False, False)
            assert not opened.closed and closed.closed and closed.reason == "bye" and not closed.failed
            assert tracker.count == 1 and tracker.busy.is_set()
            assert len(registry) == 1 and "key" in registry and registry.pending == {"key": waiter}
            assert waiter.full() and waiter.qsize() == 1
            for thing in send, receive, opened, closed, tracker, tracker.busy, registry, waiter:
                repr(thing)

        in_child(story)
    """)


def test_objects_made_in_the_child_work():
    run_script("""
        parents = CloseScope(), WorkTracker(), RequestRegistry(), create_channel()

        def story():
            scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
            thread = threading.Thread(target=scope.close)
            thread.start()
            assert scope.wait(5)
            thread.join()
            tracker.add()
            thread = threading.Thread(target=tracker.done)
            thread.start()
            assert tracker.wait_idle(5)
            thread.join()
            with tracker.track():
                assert tracker.busy.wait(5)

            def send(reply):
                thread = threading.Thread(target=reply.resolve, args=("reply",))
                thread.start()
                threads.append(thread)

            threads = []
            assert registry.request(1, send, 5) == "reply"
            threads[0].join()

            async def main():
                sender, receive = create_channel()
                task = asyncio.create_task(receive.receive())
                await asyncio.sleep(0)
                await asyncio.to_thread(sender.send_nowait, "item")
                assert await asyncio.wait_for(task, 5) == "item"
                assert await registry.request_async(1, send, 5) == "reply"

            asyncio.run(main())

        in_child(story)
    """)


def test_the_parent_goes_on():
    """What the child does to its copies is nothing to the parent."""
    run_script("""
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        send, receive = create_channel()
        reply = registry.reply(1)
        send.send_nowait("before")

        def story():
            for act in (scope.close, tracker.add, lambda: reply.resolve("child"), receive.drain_nowait, send.close):
                try:
                    act()
                except RuntimeError as error:
                    assert "used after fork" in str(error)

        in_child(story)
        assert not scope.closed and tracker.count == 0 and 1 in registry and not send.closed
        thread = threading.Thread(target=lambda: (reply.resolve("parent"), scope.close()))
        thread.start()
        assert reply.wait(5) == "parent" and scope.wait(5)
        thread.join()
        assert asyncio.run(receive.receive()) == "before"
    """)


def test_a_fork_in_the_middle_of_other_threads_work_leaves_no_lock_held():
    run_script(
        """
        sys.setswitchinterval(1e-5)
        scope, tracker, registry = CloseScope(), WorkTracker(), RequestRegistry()
        send, receive = create_channel()
        waiter = registry.register("key")
        stop = False

        def work():
            while not stop:
                send.send_nowait(1)
                receive.drain_nowait(1)
                tracker.add()
                tracker.done()
                registry.request(threading.get_ident(), lambda reply: reply.resolve(1))
                scope.wait(0)

        def story():
            send.stats(), receive.closed, scope.closed, scope.reason, tracker.count, tracker.busy.is_set()
            len(registry), "key" in registry, registry.pending, waiter.empty()
            assert refused(scope.wait) and refused(waiter.get)
            assert CloseScope().close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                in_child(story)
        finally:
            stop = True
            for thread in threads:
                thread.join()
        """,
        "-W",
        "ignore::DeprecationWarning",  # from 3.12 on fork() warns when there are threads
    )


def test_the_thread_that_forked_gets_the_signals_of_the_child():
    run_script("""
        import time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside other threads

        class Interrupted(Exception):
            pass

        def interrupt(number, frame):
            raise Interrupted

        def story():
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            begin = time.monotonic()
            try:
                CloseScope().wait(10)
            except Interrupted:
                assert time.monotonic() - begin < 8, "the wait has slept through the signal"

        forker = threading.Thread(target=in_child, args=[story])
        forker.start()
        forker.join()
    """)


def test_every_other_wait_is_refused_in_the_child():
    """Of mailboxes, actors, full channels, cancel scopes and services: what was made before the fork."""
    run_script(
        """
        from microio import *

        mailbox, ordered, actor, scope = Mailbox(), PriorityMailbox(), ActorCore(print), CancelScope()
        full, _ = create_channel(capacity=1)
        full.send_nowait(0)
        registry = RequestRegistry()
        new, loop = ServiceThread(target=print), LoopServiceThread()
        running = ServiceThread(target=lambda it: it.scope.wait())
        running.start()
        loop.start()
        loop.wait_started(10)

        def story():
            for wait in (
                scope.wait,
                lambda: scope.wait(0),
                new.start,
                *(service.wait_started for service in (new, running, loop)),
                *(service.join_or_log for service in (new, running, loop)),
                lambda: ServiceGroup(new).start(),
                lambda: ServiceGroup(running).wait_started(),
                lambda: ServiceGroup(running, loop).stop_join(),
                lambda: loop.call_soon(print),
                lambda: loop.call_sync(print),
                lambda: loop.submit(sleep(1)),
                lambda: registry.register(1),
                lambda: registry.reply(1),
            ):
                assert refused(wait), wait
            for wait in mailbox.get, ordered.get, lambda: anext(aiter(ordered)), actor.run, lambda: full.send(1):
                async def main():
                    await asyncio.wait_for(wait(), 5)

                assert refused(lambda: asyncio.run(main())), wait

        in_child(story)
        running.stop()
        loop.stop()
        assert running.join_or_log(10) and loop.join_or_log(10)
        """,
        "-W",
        "ignore::DeprecationWarning",  # from 3.12 on fork() warns when there are threads
    )


def test_telling_and_reading_work_in_the_child():
    """They wait for nobody, and hang on nothing that a thread of the parent holds."""
    run_script(
        """
        from microio import *

        mailbox, ordered, actor, scopes = Mailbox(), PriorityMailbox(), ActorCore(print), ScopeGroup()
        scope = CancelScope()
        service, loop = ServiceThread(target=lambda it: (it.started(), it.scope.wait())), LoopServiceThread()
        group = ServiceGroup(service, loop)
        group.start().wait_started(10)

        def story():
            for box in mailbox, ordered, actor:
                assert box.submit("item") == 1 and box.drain_nowait() == ["item"] and box.close() is True
            assert scope.cancel("child") is True and scope.reason == "child" and scopes.cancel() is False
            for thing in mailbox, ordered, actor, scope, scopes, service, loop, group:
                assert repr(thing)
            assert service.stop() is True and loop.stop() is True and service.scope.closed
            group.stop()

            async def main():
                async with create_task_group() as tasks:
                    tasks.start_soon(sleep, 0)
                with scope:  # cancelled above, as in any process
                    await checkpoint()
                with move_on_after(0):
                    await sleep(60)
                return True

            assert asyncio.run(main())

        in_child(story)
        assert not scope.cancelled and not service.scope.closed and mailbox.submit(1) == 1
        assert group.stop_join(10)
        """,
        "-W",
        "ignore::DeprecationWarning",  # from 3.12 on fork() warns when there are threads
    )
