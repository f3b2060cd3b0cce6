"""What waits sleeps: while nothing happens the system wakes no thread of the process. It is the system that counts."""

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import microio

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's count of context switches")

GUARD = 60  # seconds: how long a process may take to come to rest, on a machine that is busy with others

PROGRAM = """
    import asyncio, threading
    from microio import CloseScope, LoopServiceThread, RequestRegistry, ServiceGroup, ServiceThread, WorkTracker
    from microio import create_channel, create_task_group, sleep

    registry, tracker, end = RequestRegistry(), WorkTracker(), CloseScope()
    send, receive = create_channel()
    full, other = create_channel(capacity=1)
    full.send_nowait(1)
    tracker.add()

    def wait(service):
        service.started()
        service.scope.wait()

    class Receiver(LoopServiceThread):
        async def run_async(self):
            other.bind()
            async with create_task_group() as tasks:
                tasks.start_soon(registry.wait_async, 1, registry.register(1), 3600)
                tasks.start_soon(sleep, 3600)
                tasks.start_soon(tracker.idle)
                self.started()
                await receive.receive()

    class Sender(LoopServiceThread):
        async def run_async(self):
            self.started()
            await full.send(2)

    def in_thread(wait, *args):
        threading.Thread(target=wait, args=args, daemon=True).start()

    services = [ServiceThread(target=wait), ServiceThread(target=wait), LoopServiceThread(), Receiver(), Sender()]
    group = ServiceGroup(*services).start().wait_started(60)
    late, blocked = ServiceThread(), LoopServiceThread()
    blocked.start()
    blocked.wait_started()
    in_thread(late.wait_started, 3600)
    in_thread(end.wait)
    in_thread(end.wait, 3600)
    in_thread(registry.wait, 2, registry.register(2))
    in_thread(registry.wait, 3, registry.register(3), 3600)
    in_thread(tracker.wait_idle)
    in_thread(blocked.call_sync, end.wait)
    in_thread(group.join_or_log)
"""


@contextlib.contextmanager
def process(program):
    """A process of its own that has come as far as the end of the program, and waits there."""
    program = textwrap.dedent(program) + "print('ready', flush=True)\nend.wait()\n"
    path = os.pathsep.join([str(Path(microio.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "error", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


def counts(pid):
    """How often each thread has gone to sleep or was put off the processor; and the time on it of all, in ticks."""
    switches = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (line.split(":") for line in (task / "status").read_text().splitlines())
        switches[task.name] = sum(int(count) for name, count in lines if name.endswith("voluntary_ctxt_switches"))
    after_the_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return switches, int(after_the_name[11]) + int(after_the_name[12])


def at_rest(pid):
    """Its counts, once nothing has happened for a second."""
    give_up, before, now = time.monotonic() + GUARD, None, counts(pid)
    while before != now:
        assert time.monotonic() < give_up, "it does not come to rest"
        time.sleep(1)
        before, now = now, counts(pid)
    return now


def test_idle_services_and_all_who_wait_are_not_woken_in_ten_seconds():
    with process(PROGRAM) as pid:
        before = at_rest(pid)
        assert len(before[0]) == 15  # main, six services, eight threads: all are there
        time.sleep(10)
        assert counts(pid) == before


def test_a_service_that_looks_every_other_second_is_seen():
    ticks = "ServiceThread(target=lambda service: [None for _ in iter(lambda: service.scope.wait(2), True)]).start()\n"
    with process(textwrap.dedent(PROGRAM) + ticks) as pid:
        before = at_rest(pid)
        time.sleep(2)
        assert counts(pid) != before
