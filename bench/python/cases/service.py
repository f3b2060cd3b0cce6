"""A service's whole life, and what the import costs."""

import asyncio
import subprocess
import sys
import threading
from functools import partial

from . import Case, repeat


def life(make):
    service = make()
    service.start()
    service.wait_started()
    service.stop()
    service.join()


def microio_thread(n):
    from microio import ServiceThread

    def serve(service):
        service.started()
        service.scope.wait()

    return repeat(n, partial(life, partial(ServiceThread, target=serve)))


def microio_loop(n):
    from microio import LoopServiceThread

    class Service(LoopServiceThread):
        async def run_async(self):
            self.started()
            await asyncio.Event().wait()

    return repeat(n, partial(life, partial(Service, name="bench")))


def plain_thread(n):
    def live():
        ready, stop = threading.Event(), threading.Event()
        thread = threading.Thread(target=lambda: (ready.set(), stop.wait()))
        thread.start()
        ready.wait()
        stop.set()
        thread.join()

    return repeat(n, live)


def plain_loop(n):
    def live():
        ready, opened = threading.Event(), []

        async def serve():
            stop = asyncio.Event()
            opened[:] = asyncio.get_running_loop(), stop
            ready.set()
            await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        ready.wait()
        opened[0].call_soon_threadsafe(opened[1].set)
        thread.join()

    return repeat(n, live)


def fresh(module, n):
    return repeat(n, lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True))


Case("service.thread", "ServiceThread: start, ready, stop, join", n=1_500, noted=64, target=0.95,
     runs={"microio": microio_thread, "plain thread": plain_thread})
Case("service.loop", "LoopServiceThread: start, ready, stop, join", n=500, noted=288, target=0.95,
     runs={"microio": microio_loop, "thread + asyncio.run": plain_loop})
Case("service.import", "import, in a fresh interpreter", n=5, noted=57_000, target=1.1, fixed=True, limits=("asyncio",),
     runs={"microio": partial(fresh, "microio"), "asyncio": partial(fresh, "asyncio")})
