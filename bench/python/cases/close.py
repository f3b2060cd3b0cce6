"""The stop state and the work counter: nanoseconds, so `timeit` measures (it turns the collector off meanwhile)."""

from functools import partial
from timeit import timeit

from . import Case


def each(statement, setup, n):
    return timeit(statement, setup, number=n) / n * 1e6


Case("close.make", "CloseScope() and close()", n=50_000, noted=2.7, target=25, runs={
    "microio": partial(each, "CloseScope().close()", "from microio import CloseScope"),
    "threading.Event": partial(each, "Event().set()", "from threading import Event"),
})
Case("close.closed", "scope.closed", n=1_000_000, noted=0.061, target=2.3, runs={
    "microio": partial(each, "scope.closed", "from microio import CloseScope; scope = CloseScope()"),
    "threading.Event": partial(each, "event.is_set()", "from threading import Event; event = Event()"),
})
Case("close.track", "with WorkTracker.track()", n=50_000, noted=2.1, target=2, runs={
    "microio": partial(each, "with tracker.track(): pass", "from microio import WorkTracker; tracker = WorkTracker()"),
})
