"""The loops that every asynchronous test runs on, and the signals."""

import asyncio
import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what it starts in the background

LOOPS = {"asyncio": asyncio.new_event_loop}
try:
    import uvloop
except ImportError:
    pass
else:
    LOOPS["uvloop"] = uvloop.new_event_loop


@pytest.fixture(params=LOOPS)
def loop_factory(request):
    """Makes a loop: once per kind of loop that this machine has."""
    return LOOPS[request.param]


@pytest.fixture
def run(loop_factory):
    """Runs a coroutine to its end, as ``asyncio.run`` does, on each kind of loop."""

    def run(coroutine):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(coroutine)

    return run


@pytest.fixture
def timers_left():
    """Runs a coroutine, and gives the timers of the loop that nobody has cancelled."""

    class Loop(asyncio.SelectorEventLoop):
        def __init__(self):
            super().__init__()
            self.timers = []

        def call_at(self, *args, **kwargs):
            self.timers.append(super().call_at(*args, **kwargs))
            return self.timers[-1]

    def timers_left(coroutine):
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(coroutine)
            timers = runner.get_loop().timers
            assert timers
            return [timer for timer in timers if not timer.cancelled()]

    return timers_left
