"""Requests and their replies, on one thread and across two."""

import queue
import statistics
from _thread import allocate_lock
from concurrent.futures import Future
from functools import partial

from . import BOTH, Case, now, p50, per_op, pin, threads


class RawLockDict:
    """What one writes by hand: a dictionary of locks. No timeout, no clean-up on errors, no check of stale replies."""

    def __init__(self):
        self.pending = {}

    def register(self, key):
        slot = self.pending[key] = [allocate_lock(), None]
        slot[0].acquire()
        return slot

    def resolve(self, key, value):
        slot = self.pending.pop(key)
        slot[1] = value
        slot[0].release()

    def wait(self, key, slot):
        slot[0].acquire()
        return slot[1]

    def request(self, key, send):
        slot = self.pending[key] = [allocate_lock(), None]
        slot[0].acquire()
        send(key)
        slot[0].acquire()
        return slot[1]

    def fail_all(self, error):
        pending, self.pending = self.pending, {}
        for slot in pending.values():
            slot[1] = error
            slot[0].release()


def microio():
    from microio import RequestRegistry

    return RequestRegistry()


def steps(make, n):
    requests = make()
    start = now()
    for key in range(n):
        waiter = requests.register(key)
        requests.resolve(key, key)
        requests.wait(key, waiter)
    return per_op(start, n)


def futures(n):
    pending = {}
    start = now()
    for key in range(n):
        future = pending[key] = Future()
        pending.pop(key).set_result(key)
        future.result()
    return per_op(start, n)


def request(make, resolve, n):
    requests = make()
    send = partial(resolve, requests)
    start = now()
    for key in range(n):
        requests.request(key, send)
    return per_op(start, n)


def fail_all(make, n):
    requests = make()
    waiters = [requests.register(key) for key in range(n)]  # held: as blocked callers would
    start = now()
    requests.fail_all(ConnectionError("the reader died"))
    return per_op(start, len(waiters))


def across(make, resolve, requesters, n):
    """One thread answers what comes out of a SimpleQueue. Several requesters share the first CPU."""
    requests, wire, medians = make(), queue.SimpleQueue(), []

    def respond():
        while (asked := wire.get()) is not None:
            resolve(requests, asked)

    def work(keys):
        medians.append(p50(len(keys), lambda keys=iter(keys): requests.request(next(keys), wire.put)))

    with threads(respond):
        if requesters == 1:
            work(range(n))
        else:
            with threads(*[partial(work, range(i, n, requesters)) for i in range(requesters)], at=partial(pin, 0)):
                pass
        wire.put(None)
    return statistics.median(medians)


def by_handle(requests, reply):
    reply.resolve(1)


def by_key(requests, key):
    requests.resolve(key, 1)


Case("registry.steps", "register + resolve + wait", n=20_000, noted=8.6, target=35,
     runs={"microio": partial(steps, microio), "raw-lock dict": partial(steps, RawLockDict), "cf.Future": futures})
Case("registry.request", "request(), answered inside send", n=20_000, noted=7.6, target=35, runs={
    "microio": partial(request, microio, by_handle), "raw-lock dict": partial(request, RawLockDict, by_key)})
Case("registry.fail_all", "fail_all, per waiter", n=20_000, noted=0.95, target=15,
     runs={"microio": partial(fail_all, microio), "raw-lock dict": partial(fail_all, RawLockDict)})
for requesters, noted, goal in (1, 64, {"level": 1.1}), (16, 499, {"target": 1.7}):
    Case(f"registry.across-{requesters}", f"across threads, {requesters} requester(s), p50", 8_000, noted, runs={
        "microio": partial(across, microio, by_handle, requesters),
        "raw-lock dict": partial(across, RawLockDict, by_key, requesters),
    }, placements=BOTH, **goal)
