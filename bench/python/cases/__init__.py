"""The cases, one file per concept. A case is a row of the table: `runs` maps a contender to a function that runs one
repetition of n operations and returns, or is a coroutine that returns, microseconds per operation: the mean for
throughput, the median for latency.

The contender "microio" stands for both, the package and the original: the very same function runs in either
environment. So nothing is imported at the top that only one of them has.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

CASES: list["Case"] = []
CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
BOTH = ("same", "cross")  # two threads on one CPU, or on two
placement = "same"
now = time.perf_counter


@dataclass
class Case:
    name: str
    what: str
    n: int  # operations per repetition
    noted: float  # what the original took when the target was set, microseconds
    runs: dict[str, Callable]
    target: float = 0  # at least so many times faster than the original
    level: float = 0  # at most so many times the best peer (both may be asked)
    placements: tuple[str, ...] = ("same",)
    judged: tuple[str, ...] = BOTH  # the placements for which the target was set
    shares: dict[str, float] = field(default_factory=dict)  # of n, for slow contenders
    limits: tuple[str, ...] = ()  # no abstraction at all: shown, not compared with
    fixed: bool = False  # the figure depends on n: --quick does not shrink it

    def __post_init__(self):
        CASES.append(self)


def pin(cpu: int) -> None:
    if CPUS:
        os.sched_setaffinity(0, {CPUS[cpu]})  # 0 is the calling thread, not the process


def place() -> None:
    """Called first by every thread but the worker's main one, which sits on the first CPU."""
    pin(1 if placement == "cross" else 0)


@contextmanager
def threads(*bodies: Callable[[], object], at: Callable[[], None] = place):
    """Runs each body in a placed thread of its own; joins them on the way out."""
    started = [threading.Thread(target=lambda body=body: (at(), body())) for body in bodies]
    for thread in started:
        thread.start()
    yield
    for thread in started:
        thread.join()


def per_op(start: float, n: int) -> float:
    return (now() - start) / n * 1e6


def repeat(n: int, op: Callable[[], object]) -> float:
    """The mean time of one call, for what takes so long that the loop does not show."""
    start = now()
    for _ in range(n):
        op()
    return per_op(start, n)


def p50(n: int, op: Callable[[], object]) -> float:
    """The median time of one call."""
    samples = []
    for _ in range(n):
        start = now()
        op()
        samples.append(now() - start)
    return statistics.median(samples) * 1e6


def load() -> dict[str, Case]:
    from . import channel, registry, bridge, group, scope, close, actor, service  # registered in the order of the table

    return {case.name: case for case in CASES}
