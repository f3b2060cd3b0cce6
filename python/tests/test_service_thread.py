"""Threads that say when they are ready, fail where it can be seen, and stop when told to."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from microio import ClosedResourceError, CloseScope, ServiceThread

GUARD = 10  # seconds: how long a wait may take that is expected to end at once


def serve(service):
    service.started()
    service.scope.wait(GUARD)


@pytest.fixture
def start():
    """Starts services, and sees to it that they end."""
    begun = []

    def start(service):
        begun.append(service)
        service.start()
        return service

    yield start
    for service in begun:
        service.stop()
        service.join(GUARD)
        assert not service.is_alive()


@pytest.fixture
def alarm():
    """Runs a function in a signal handler, in the main thread, a moment from now."""
    before = signal.getsignal(signal.SIGALRM)

    def alarm(handler, delay=0.05, again=0.0):
        signal.signal(signal.SIGALRM, lambda *_: handler())
        signal.setitimer(signal.ITIMER_REAL, delay, again)

    yield alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupt():
    raise KeyboardInterrupt


# What it is


def test_it_is_a_daemon_thread_with_events_and_a_scope():
    service = ServiceThread(name="reader")
    assert isinstance(service, threading.Thread) and service.name == "reader" and service.daemon
    for event in service.ready, service.failed, service.stopped:
        assert type(event) is threading.Event and not event.is_set()
    assert isinstance(service.scope, CloseScope) and not service.scope.closed
    assert service.exc is None and service.reraise is False
    assert ServiceThread(daemon=False).daemon is False


def test_arguments_are_keywords():
    with pytest.raises(TypeError):
        ServiceThread("reader")


def test_the_target_gets_the_service(start):
    seen = []
    service = start(ServiceThread(target=lambda service: (seen.append(service), service.started())))
    service.wait_started(GUARD)
    assert seen == [service]


def test_run_service_is_overridden_and_attributes_are_set_after_init(start):
    class Reader(ServiceThread):
        def __init__(self):
            super().__init__(name="reader", reraise=True)
            self.value = 1

        def run_service(self):
            self.value += 1
            self.started()

    service = start(Reader())
    service.wait_started(GUARD)
    assert service.value == 2


def test_no_work_is_a_failure(start):
    service = start(ServiceThread())
    with pytest.raises(RuntimeError) as raised:
        service.wait_started(GUARD)
    assert type(raised.value.__cause__) is NotImplementedError


def test_private_names_leave_the_others_to_subclasses():
    own = vars(ServiceThread()).keys() - vars(threading.Thread()).keys()
    public = {name for name in own if not name.startswith("_service_")}
    assert public == {"reraise", "ready", "failed", "stopped", "scope"}


def test_repr_has_the_name_and_the_state(start):
    begin = threading.Event()
    service = ServiceThread(name="reader", target=lambda service: (begin.wait(GUARD), serve(service)))
    states = [repr(service)]
    start(service)
    states.append(repr(service))
    begin.set()
    service.wait_started(GUARD)
    states.append(repr(service))
    service.stop()
    service.join(GUARD)
    states.append(repr(service))
    assert states == [f"<ServiceThread 'reader' {state}>" for state in ("new", "starting", "ready", "stopped")]


# Ready


def test_wait_started_returns_once_it_is_ready(start):
    service = start(ServiceThread(target=serve))
    assert service.wait_started(GUARD) is None
    assert service.ready.is_set() and not service.stopped.is_set()
    assert service.wait_started() is None


def test_wait_started_times_out():
    service = ServiceThread(name="reader", target=serve)
    for timeout in 0.01, 0, -1:
        with pytest.raises(TimeoutError, match="^reader did not become ready$"):
            service.wait_started(timeout)


def test_wait_started_refuses_nan(start):
    service = start(ServiceThread(target=serve))
    with pytest.raises(ValueError):
        service.wait_started(float("nan"))


def test_a_failed_start_raises_from_its_cause(start):
    error = ValueError("no port")

    def work(service):
        raise error

    service = start(ServiceThread(name="reader", target=work))
    with pytest.raises(RuntimeError, match="^reader failed$") as raised:
        service.wait_started(GUARD)
    assert raised.value.__cause__ is service.exc is service.scope.exc is error
    assert service.scope.reason == "no port"
    assert service.failed.is_set() and service.ready.is_set()


def test_a_failed_start_is_never_taken_for_success():
    def work(service):
        raise ValueError

    for _ in range(300):
        service = ServiceThread(target=work)
        service.start()
        with pytest.raises(RuntimeError):
            service.wait_started(GUARD)


def test_started_after_a_failure_is_no_success(start):
    def work(service):
        service.fail(ValueError("first"))
        service.started()

    service = start(ServiceThread(target=work))
    service.join(GUARD)
    with pytest.raises(RuntimeError):
        service.wait_started(GUARD)


def test_a_later_failure_is_reported_too(start):
    def work(service):
        service.started()
        raise ValueError("later")

    service = start(ServiceThread(target=work))
    service.join(GUARD)
    with pytest.raises(RuntimeError) as raised:
        service.wait_started(GUARD)
    assert raised.value.__cause__ is service.exc


def test_returning_before_it_was_ready_is_an_error(start):
    service = start(ServiceThread(name="reader", target=lambda service: None))
    with pytest.raises(RuntimeError, match="^reader failed$") as raised:
        service.wait_started(GUARD)
    assert str(raised.value.__cause__) == service.scope.reason == "reader exited before it was ready"
    assert service.scope.exc is raised.value.__cause__
    assert service.exc is None and not service.failed.is_set()


def test_every_waiter_gets_the_same_cause(start):
    causes = []
    begin = threading.Barrier(5)

    def work(service):
        begin.wait(GUARD)
        raise ValueError

    def wait():
        begin.wait(GUARD)
        with pytest.raises(RuntimeError) as raised:
            service.wait_started(GUARD)
        causes.append(raised.value.__cause__)

    service = start(ServiceThread(target=work))
    waiters = [threading.Thread(target=wait) for _ in range(4)]
    for waiter in waiters:
        waiter.start()
    for waiter in waiters:
        waiter.join(GUARD)
    assert len(causes) == 4 and set(causes) == {service.exc}


def test_a_service_that_waits_for_itself_is_told(start):
    service = start(ServiceThread(target=lambda service: service.wait_started()))
    service.join(GUARD)
    assert "waits for itself" in str(service.exc)


def test_a_thread_that_the_system_does_not_give_is_a_failure_that_ends_every_wait():
    service = ServiceThread(name="reader", target=serve)
    causes = []

    def wait():
        with pytest.raises(RuntimeError, match="^reader failed$") as raised:
            service.wait_started(GUARD)
        causes.append(raised.value.__cause__)

    waiter = threading.Thread(target=wait)
    waiter.start()
    usual = threading.stack_size(1 << 47)  # more than a process can address
    try:
        with pytest.raises(RuntimeError, match="^can't start new thread$") as raised:
            service.start()
    finally:
        threading.stack_size(usual)
    waiter.join(GUARD)
    assert causes == [raised.value] and service.exc is service.scope.exc is raised.value
    assert service.failed.is_set() and service.stopped.is_set() and service.ready.is_set()
    assert service.join_or_log(0) is True


def test_a_second_start_is_refused_and_does_the_service_no_harm(start):
    service = start(ServiceThread(target=serve))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="once"):
            service.start()
        service.wait_started(GUARD)
    assert service.exc is None and service.is_alive()


# Failure


def test_the_first_failure_stays_the_cause_everywhere(start):
    first = ValueError("first")

    def work(service):
        service.fail(first)
        raise KeyError("second")

    service = start(ServiceThread(target=work))
    service.join(GUARD)
    with pytest.raises(RuntimeError) as raised:
        service.wait_started(GUARD)
    assert raised.value.__cause__ is service.exc is service.scope.exc is first


@pytest.mark.parametrize("stopped", [False, True])
def test_failures_that_race_agree_on_the_first(stopped):
    for _ in range(100):
        service = ServiceThread()
        if stopped:
            service.stop()
        begin = threading.Barrier(2)
        racers = [threading.Thread(target=lambda: (begin.wait(GUARD), service.fail(ValueError()))) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(GUARD)
        first = service.exc
        service.fail(ValueError("late"))
        assert service.exc is first is not None and service.scope.exc is (None if stopped else first)


def test_the_cause_is_there_before_the_scope_closes():
    class Scope(CloseScope):
        def fail(self, exc, reason=None):
            seen.append(service.exc)
            return super().fail(exc, reason)

    service, seen, error = ServiceThread(), [], ValueError()
    service.scope = Scope()
    service.fail(error)
    assert seen == [error]


def test_a_scope_that_was_failed_by_others_is_the_cause(start):
    error = ValueError("terminated")

    def work(service):
        service.started()
        service.scope.wait(GUARD)
        service.scope.raise_if_closed()

    service = start(ServiceThread(target=work))
    service.wait_started(GUARD)
    service.scope.fail(error)
    service.join(GUARD)
    assert service.exc is error


def test_fail_from_another_thread_wakes_who_waits_for_the_start(start):
    go = threading.Event()
    service = start(ServiceThread(target=lambda service: go.wait(GUARD)))
    error = ValueError("from outside")
    threading.Thread(target=service.fail, args=(error,)).start()
    with pytest.raises(RuntimeError) as raised:
        service.wait_started(GUARD)
    assert raised.value.__cause__ is error and not service.stopped.is_set()
    go.set()


def test_a_failure_after_stop_is_kept(start):
    def work(service):
        serve(service)
        raise ValueError("in cleanup")

    service = start(ServiceThread(target=work))
    service.wait_started(GUARD)
    service.stop("enough")
    service.join(GUARD)
    assert str(service.exc) == "in cleanup" and service.failed.is_set()
    assert service.scope.reason == "enough" and service.scope.exc is None


def test_an_error_without_a_text_is_a_failure_like_any_other(start):
    class Rude(Exception):
        def __str__(self):
            raise ValueError

    def work(service):
        raise Rude

    service = start(ServiceThread(target=work))
    with pytest.raises(RuntimeError) as raised:
        service.wait_started(GUARD)
    assert type(raised.value.__cause__) is Rude


@pytest.mark.parametrize("error", [ValueError("hook"), SystemExit(3), KeyboardInterrupt()])
def test_reraise_reaches_the_excepthook_with_this_thread(start, monkeypatch, error):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append((args.thread, args.exc_value)))

    def work(service):
        raise error

    for reraise in False, True:
        service = start(ServiceThread(target=work, reraise=reraise))
        service.join(GUARD)
        assert service.exc is error and service.stopped.is_set()
    assert seen == [(service, error)]


# Stop


def test_stop_closes_the_scope_once_with_its_reason(start):
    service = start(ServiceThread(target=serve))
    service.wait_started(GUARD)
    assert service.stop("enough") is True
    assert service.stop() is False
    assert service.scope.reason == "enough" and service.scope.exc is None
    service.join(GUARD)
    assert service.exc is None and service.stopped.is_set() and not service.failed.is_set()
    assert ServiceThread().stop() is True


def test_stop_before_start_is_kept(start):
    ran = []
    service = ServiceThread(name="reader", target=ran.append)
    service.stop()
    start(service).join(GUARD)
    assert ran == [] and service.stopped.is_set() and service.ready.is_set() and service.exc is None
    with pytest.raises(RuntimeError, match="^reader failed$") as raised:
        service.wait_started(GUARD)
    assert type(raised.value.__cause__) is ClosedResourceError


def test_who_hears_of_the_end_finds_it_ended(start):
    class Ready(threading.Event):
        def set(self):
            seen.append(service.stopped.is_set())
            super().set()

    seen = []
    service = ServiceThread()
    service.ready = Ready()
    service.stop()
    start(service).join(GUARD)
    assert seen == [True]


def test_stop_wakes_who_waits_for_the_start(start):
    go = threading.Event()
    waiting = threading.Event()
    raised = []

    def wait():
        waiting.set()
        try:
            service.wait_started(GUARD)
        except RuntimeError as error:
            raised.append(error)

    service = start(ServiceThread(target=lambda service: go.wait(GUARD)))  # which does not look at its scope
    waiter = threading.Thread(target=wait)
    waiter.start()
    waiting.wait(GUARD)
    service.stop()
    waiter.join(GUARD)
    assert type(raised[0].__cause__) is ClosedResourceError and not service.stopped.is_set()
    go.set()


def test_a_stop_before_it_was_ready_is_told_as_such_however_fast_it_ends(start):
    class Scope(CloseScope):
        def close(self, reason=None, exc=None):
            first = super().close(reason, exc)
            service.join(GUARD)  # it is over before stop() goes on
            return first

    service = ServiceThread(name="reader", target=lambda service: service.scope.wait(GUARD))
    service.scope = Scope()
    start(service).stop("enough")
    with pytest.raises(RuntimeError) as raised:
        service.wait_started(GUARD)
    assert str(raised.value.__cause__) == "reader was stopped before it was ready"


def test_started_after_stop_is_no_success(start):
    go = threading.Event()
    service = start(ServiceThread(target=lambda service: (go.wait(GUARD), service.started())))
    service.scope.close("enough")
    go.set()
    with pytest.raises(RuntimeError, match="failed"):
        service.wait_started(GUARD)


def test_stop_after_it_was_ready_leaves_the_start_a_success(start):
    service = start(ServiceThread(target=serve))
    service.wait_started(GUARD)
    service.stop()
    service.join(GUARD)
    assert service.wait_started(0) is None


# Signals


def test_stop_in_a_signal_handler_ends_the_wait_that_it_interrupted(start, alarm):
    go = threading.Event()
    service = start(ServiceThread(target=lambda service: go.wait(GUARD)))
    alarm(service.stop)
    with pytest.raises(RuntimeError, match="failed"):
        service.wait_started(GUARD)
    go.set()


def test_stop_in_a_signal_handler_may_interrupt_stop(alarm):
    services = []
    alarm(lambda: services and services[-1].stop(), 0.001, 0.0005)
    for _ in range(300):
        services.append(ServiceThread(target=serve))
        services[-1].start()
        services[-1].stop()
        services[-1].join(GUARD)
        assert services.pop().stopped.is_set()


@pytest.mark.parametrize("wait", ["wait_started", "join_or_log"])
def test_ctrl_c_ends_a_wait(start, alarm, wait):
    service = start(ServiceThread(target=lambda service: service.scope.wait(GUARD)))
    with pytest.raises(KeyboardInterrupt):
        alarm(interrupt)
        getattr(service, wait)()


# The end


def test_join_or_log_is_true_for_what_never_began_or_has_ended(start, caplog):
    assert ServiceThread(target=serve).join_or_log(0) is True
    service = start(ServiceThread(target=serve))
    service.stop()
    assert service.join_or_log() is True
    assert service.join_or_log(0) is True
    assert not caplog.records


def test_join_or_log_says_once_of_what_the_service_failed(start, caplog):
    def work(service):
        service.started()
        raise ValueError("lost the socket")

    service = start(ServiceThread(name="reader", target=work))
    assert service.join_or_log(GUARD) is True and service.join_or_log(GUARD) is True
    [record] = caplog.records
    assert record.name == "microio" and record.levelno == logging.ERROR
    assert record.getMessage() == "thread failed: reader" and record.exc_info[1] is service.exc
    assert "ValueError: lost the socket" in caplog.text


def test_join_or_log_names_the_thread_its_state_and_where_it_hangs(start, caplog):
    go = threading.Event()

    def hang_here(service):
        service.started()
        go.wait(GUARD)

    service = start(ServiceThread(name="reader", target=hang_here))
    service.wait_started(GUARD)
    service.stop()
    for timeout in 0.01, 0, -1:
        assert service.join_or_log(timeout) is False
    go.set()
    assert service.join_or_log(GUARD) is True
    assert len(caplog.records) == 3
    for record in caplog.records:
        assert record.name == "microio" and record.levelno == logging.ERROR
        assert record.getMessage().startswith("thread did not stop: reader (stopping)")
        assert "hang_here" in record.getMessage()


def test_join_or_log_refuses_nan(start):
    service = start(ServiceThread(target=serve))
    with pytest.raises(ValueError):
        service.join_or_log(float("nan"))


def test_join_or_log_takes_any_length_of_time(start):
    service = start(ServiceThread(target=serve))
    service.stop()
    assert service.join_or_log(float("inf")) is True


def test_a_thread_does_not_join_itself(start, caplog):
    results = []
    service = start(ServiceThread(name="reader", target=lambda service: results.append(service.join_or_log())))
    service.join(GUARD)
    assert results == [False] and service.exc is None
    assert "reader" in caplog.text


def test_a_service_that_ended_is_collected(start):
    def work(service):
        raise ValueError

    service = ServiceThread(target=work)
    service.start()
    service.join(GUARD)
    gone = weakref.ref(service)
    del service
    gc.collect()
    assert gone() is None


# The process


def python(program):
    """Its exit code and what it wrote to stderr. (3.12 warns of any fork beside threads.)"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


FORK = """
import os, threading
from microio import LoopServiceThread, ServiceThread

def serve(service):
    service.started()
    service.scope.wait()

def refused(fn, *args):
    try:
        fn(*args)
    except RuntimeError as error:
        assert "used after fork" in str(error), error
    else:
        raise AssertionError(fn)

async def nothing():
    pass

new, ready, looping = ServiceThread(target=serve), ServiceThread(target=serve), LoopServiceThread()
for service in ready, looping:
    service.start()
    service.wait_started(10)
pid = os.fork()
if pid == 0:
    refused(new.start)
    for service in new, ready, looping:
        refused(service.wait_started, 1)
        refused(service.join_or_log, 1)
    refused(looping.call_soon, print)
    refused(looping.call_sync, print)
    refused(looping.submit, nothing())
    assert ready.ready.is_set() and not ready.scope.closed and ready.exc is None and repr(ready)
    assert ready.stop() and looping.stop()
    for mine in ServiceThread(target=serve), LoopServiceThread():
        mine.start()
        mine.wait_started(10)
        mine.stop()
        assert mine.join_or_log(10)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert looping.call_sync(lambda: 1) == 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_waits_are_refused_and_new_services_work():
    assert python(FORK) == (0, "")


EXITS = {
    "waiting": "start(*[ServiceThread(target=wait) for _ in range(4)])",
    "polling": "start(*[ServiceThread(target=poll) for _ in range(4)])",
    "looping": "start(LoopServiceThread(), LoopServiceThread())",
    "working": "start(Working(), Working())",
    "stopping": "[service.stop() for service in start(LoopServiceThread(), ServiceThread(target=wait))]",
    "starting": "[LoopServiceThread().start() for _ in range(3)]",
    "stopped at exit": "atexit.register(ServiceGroup(*start(LoopServiceThread(), *map(waiter, range(3)))).stop)",
}
EXIT = """
import atexit
from microio import LoopServiceThread, ServiceGroup, ServiceThread, create_channel, sleep

def wait(service):
    service.started()
    service.scope.wait()

def poll(service):
    service.started()
    while not service.scope.wait(0.0005):
        pass

def waiter(number):
    return ServiceThread(target=wait)

class Working(LoopServiceThread):
    async def run_async(self):
        send, receive = create_channel()
        self.started()
        while True:
            send.send_nowait(1)
            await receive.receive()
            await sleep(0)

def start(*services):
    for service in services:
        service.start()
        service.wait_started()
    return services

"""


@pytest.mark.parametrize("kind", EXITS)
def test_exit_with_live_services_is_clean(kind):
    for _ in range(-(-int(os.environ.get("MICROIO_EXITS", "25")) // len(EXITS))):
        assert python(EXIT + EXITS[kind]) == (0, "")
