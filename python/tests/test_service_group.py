"""Services that are started, waited for and stopped together."""

import signal
import threading
import time

import pytest

from microio import CloseScope, LoopServiceThread, ServiceGroup, ServiceThread

GUARD = 10  # seconds: how long a wait may take that is expected to end at once


def serve(service):
    service.started()
    service.scope.wait(GUARD)


def service(name, work=serve):
    return ServiceThread(name=name, target=work)


def fail(_):
    raise ValueError("no port")


class Member:
    """One that is not ours: it writes down what is asked of it, and fails where it is told to."""

    def __init__(self, name, log, **errors):
        self.label, self.log, self.errors = name, log, errors

    def ask(self, verb, *args):
        self.log.append((verb, self.label, *args))
        if verb in self.errors:
            raise self.errors[verb]
        return True

    def start(self):
        self.ask("start")

    def wait_started(self, timeout=None):
        self.ask("wait", timeout)

    def stop(self):
        return self.ask("stop")

    def join_or_log(self, timeout=None):
        return self.ask("join", timeout)

    def __repr__(self):
        return self.label


def verbs(log, verb):
    return [name for each, name, *_ in log if each == verb]


@pytest.fixture
def hangs():
    """Makes services that are ready, ignore stop(), and end with the test."""
    go = threading.Event()
    made = []

    def make(name):
        made.append(service(name, lambda service: (service.started(), go.wait(GUARD))))
        return made[-1]

    yield make
    go.set()
    for each in made:
        if each.is_alive():
            each.join(GUARD)


# Members


def test_none_is_left_out_and_members_keep_their_order():
    a, b, c = (service(name) for name in "abc")
    group = ServiceGroup(None, a, None)
    assert group.add(b, None, c) is group
    assert group.services == [a, b, c]


def test_an_empty_group_is_at_rest():
    group = ServiceGroup(None)
    assert group.start().wait_started(0).stop() is group
    assert group.join_or_log(0) is True and group.stop_join() is True


def test_a_whole_life():
    group = ServiceGroup(service("a"), LoopServiceThread(name="b"))
    assert group.start() is group
    assert group.wait_started(GUARD) is group
    assert all(member.ready.is_set() for member in group.services)
    assert group.stop() is group
    assert group.join_or_log(GUARD) is True
    assert group.stop_join(timeout=GUARD) is True


def test_members_that_are_not_ours():
    log = []
    group = ServiceGroup(Member("a", log), Member("b", log))
    group.start().wait_started().stop()
    assert group.join_or_log() and group.stop_join()
    start, wait, stop, join = [
        [(verb, name, *arguments) for name in "ab"]
        for verb, *arguments in [("start",), ("wait", None), ("stop",), ("join", None)]
    ]
    assert log == [*start, *wait, *stop, *join, *stop, *join]


def test_a_member_whose_stop_takes_no_argument():
    class Router(ServiceThread):
        def stop(self):
            return super().stop("router")

    group = ServiceGroup(Router(name="router", target=serve)).start().wait_started(GUARD)
    assert group.stop_join(GUARD) is True
    assert group.services[0].scope.reason == "router"


def test_members_that_were_never_started():
    group = ServiceGroup(service("a"), service("b"))
    group.services[0].start()
    assert group.stop_join(GUARD) is True


def test_repr_names_the_members():
    assert repr(ServiceGroup(service("a"))) == "<ServiceGroup [<ServiceThread 'a' new>]>"


# Start


def test_a_start_that_fails_stops_those_before_it_in_reverse():
    log, error = [], OSError("no thread")
    group = ServiceGroup(Member("a", log), Member("b", log), Member("c", log, start=error), Member("d", log))
    with pytest.raises(OSError) as raised:
        group.start()
    assert raised.value is error and "c" in error.__notes__[0]
    assert verbs(log, "start") == ["a", "b", "c"] and verbs(log, "stop") == ["b", "a"]


def test_a_member_that_runs_already_is_not_stopped_by_a_failed_start():
    a, b = service("a"), service("b")
    b.start()
    with pytest.raises(RuntimeError):
        ServiceGroup(a, b).start()
    a.join(GUARD)
    assert a.scope.closed and not b.scope.closed
    b.stop()
    b.join(GUARD)


def test_an_interrupted_start_stops_the_one_whose_thread_may_be_on_its_way():
    log = []
    group = ServiceGroup(Member("a", log), Member("b", log, start=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        group.start()
    assert verbs(log, "stop") == ["b", "a"]


# Ready


def test_a_failed_member_stops_the_others_and_is_named():
    group = ServiceGroup(service("a"), service("culprit", fail), service("c")).start()
    with pytest.raises(RuntimeError, match="^culprit failed$") as raised:
        group.wait_started(GUARD)
    assert raised.value.__cause__ is group.services[1].exc
    assert all(member.scope.closed for member in group.services)
    assert group.join_or_log(GUARD) is True


def test_a_member_that_fails_is_heard_of_while_one_before_it_is_still_starting():
    """The one before may wait for what the failed one was to bring."""

    class Watched(CloseScope):
        def wait(self, *timeout):
            waits.set()
            return super().wait(*timeout)

        def _wait_either(self, *other):
            waits.set()
            return super()._wait_either(*other)

    waits = threading.Event()
    first = service("first", lambda service: service.scope.wait(GUARD))
    first._service_start = Watched()
    group = ServiceGroup(first, service("culprit", lambda service: (waits.wait(GUARD), fail(service)))).start()
    with pytest.raises(RuntimeError, match="^culprit failed$") as raised:
        group.wait_started()
    assert raised.value.__cause__ is group.services[1].exc is group.scope.exc
    assert group.join_or_log(GUARD) is True


def test_a_late_member_stops_all_and_is_named():
    group = ServiceGroup(service("a"), service("late", lambda service: service.scope.wait(GUARD)), service("c")).start()
    with pytest.raises(TimeoutError, match="^late did not become ready$"):
        group.wait_started(0.05)
    assert group.join_or_log(GUARD) is True


@pytest.mark.parametrize("error", [TimeoutError("late"), KeyboardInterrupt(), RuntimeError("failed")])
def test_any_error_out_of_the_wait_stops_all_in_reverse(error):
    log = []
    group = ServiceGroup(Member("a", log), Member("b", log, wait=error), Member("c", log)).start()
    with pytest.raises(type(error)) as raised:
        group.wait_started(GUARD)
    assert raised.value is error and "b" in error.__notes__[0]
    assert verbs(log, "wait") == ["a", "b"] and verbs(log, "stop") == ["c", "b", "a"]


def test_the_scope_of_a_group_that_was_given_up_says_why():
    late = ServiceGroup(service("a"), service("late", lambda service: service.scope.wait(GUARD))).start()
    with pytest.raises(TimeoutError) as raised:
        late.wait_started(0.01)
    assert late.scope.exc is raised.value and late.scope.reason == "late did not become ready"
    assert late.join_or_log(GUARD) is True
    error = OSError("no socket")
    foreign = ServiceGroup(service("a"), Member("b", [], start=error))
    with pytest.raises(OSError):
        foreign.start()
    assert foreign.scope.exc is error and foreign.scope.reason == "no socket"
    assert foreign.join_or_log(GUARD) is True


def test_an_error_without_a_text_is_rolled_back_and_named_like_any_other():
    class Rude(Exception):
        def __str__(self):
            raise ValueError

    log, error = [], Rude()
    group = ServiceGroup(Member("a", log), Member("b", log, wait=error)).start()
    for _ in range(2):
        with pytest.raises(Rude):
            group.wait_started()
    assert verbs(log, "stop") == ["b", "a"] * 2 and error.__notes__ == ["service: b"]


def test_ctrl_c_while_waiting_stops_all():
    def interrupt(*_):
        raise KeyboardInterrupt

    group = ServiceGroup(service("a"), service("late", lambda service: service.scope.wait(GUARD))).start()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            group.wait_started()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert group.join_or_log(GUARD) is True


def test_only_those_that_were_started_are_stopped():
    group = ServiceGroup(service("a")).start()
    late = service("late")
    group.add(late)
    with pytest.raises(TimeoutError):
        group.wait_started(0.01)
    assert group.services[0].scope.closed and not late.scope.closed
    assert group.join_or_log(GUARD) is True


def test_a_stop_that_fails_hides_neither_the_error_nor_the_others(caplog):
    log = []
    members = Member("a", log), Member("b", log, stop=KeyError("stop")), Member("c", log, wait=ValueError("wait"))
    with pytest.raises(ValueError, match="wait"):
        ServiceGroup(*members).start().wait_started()
    assert verbs(log, "stop") == ["c", "b", "a"]
    assert "KeyError" in caplog.text


def test_waiting_has_one_deadline():
    class Slow(Member):
        def wait_started(self, timeout=None):
            left.append(timeout)
            time.sleep(0.02)

    left = []
    ServiceGroup(*[Slow(name, []) for name in "abcd"]).start().wait_started(0.05)
    assert left[0] <= 0.05 and left[1] <= left[0] - 0.02 and left[3] == 0


def test_a_negative_timeout_is_zero_and_nan_is_refused():
    group = ServiceGroup(service("a")).start().wait_started(GUARD)
    assert group.wait_started(-1) is group
    for wait in group.wait_started, group.join_or_log, group.stop_join:
        with pytest.raises(ValueError):
            wait(float("nan"))
    assert not group.services[0].scope.closed
    assert group.stop_join(GUARD) is True


# Stop


def test_stop_tells_every_member_then_raises_the_first_error(caplog):
    log = []
    first, second = KeyError("first"), KeyError("second")
    group = ServiceGroup(Member("a", log, stop=first), Member("b", log, stop=second), Member("c", log))
    with pytest.raises(KeyError) as raised:
        group.stop()
    assert raised.value is first
    assert verbs(log, "stop") == ["a", "b", "c"] and "second" in caplog.text


def test_stuck_members_are_joined_for_one_deadline_and_each_is_named(hangs, caplog):
    group = ServiceGroup(hangs("x"), service("well"), hangs("y"), hangs("z")).start().wait_started(GUARD)
    begin = time.monotonic()
    assert group.stop_join(0.3) is False
    assert 0.3 <= time.monotonic() - begin < 0.9
    logged = [record.getMessage().split("\n")[0] for record in caplog.records if record.name == "microio"]
    assert logged == [f"thread did not stop: {name} (stopping), it is at" for name in "xyz"]


def test_the_time_that_telling_takes_is_taken_from_that_for_joining():
    class Slow(Member):
        def stop(self):
            time.sleep(0.02)

    log = []
    ServiceGroup(Slow("a", log)).stop_join(0.02)
    assert log == [("join", "a", 0)]


def test_a_member_that_joins_the_group_skips_itself(caplog):
    results = []

    def leave(service):
        service.started()
        service.scope.wait(GUARD)
        results.append(group.join_or_log(GUARD))

    group = ServiceGroup(service("a"), service("leaver", leave), service("c")).start().wait_started(GUARD)
    group.stop()
    group.services[1].join(GUARD)
    assert results == [False] and "leaver" in caplog.text
    assert group.join_or_log(GUARD) is True


def test_many_may_join_at_once():
    group = ServiceGroup(service("a"), LoopServiceThread(name="b")).start().wait_started(GUARD)
    results = []
    joiners = [threading.Thread(target=lambda: results.append(group.join_or_log(GUARD))) for _ in range(5)]
    for joiner in joiners:
        joiner.start()
    group.stop()
    for joiner in joiners:
        joiner.join(GUARD)
    assert results == [True] * 5 and group.join_or_log() is True


def test_stop_of_the_group_from_a_signal_handler():
    group = ServiceGroup(service("a"), LoopServiceThread(name="b")).start().wait_started(GUARD)
    before = signal.signal(signal.SIGALRM, lambda *_: group.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert group.join_or_log(GUARD) is True
    finally:
        signal.signal(signal.SIGALRM, before)


# The end of the group


def test_the_scope_ends_with_the_first_service_that_fails_and_with_its_cause(hangs):
    go = threading.Event()
    other = hangs("other")

    def lose_the_socket(service):
        service.started()
        go.wait(GUARD)
        raise OSError("lost the socket")

    group = ServiceGroup(other, service("reader", lose_the_socket)).start().wait_started(GUARD)
    assert not group.scope.closed
    go.set()
    assert group.scope.wait(GUARD)
    assert isinstance(group.scope.exc, OSError) and group.scope.exc is group.services[1].exc
    assert not other.scope.closed, "it says that it is over; stopping is for who waits for it"


def test_the_scope_ends_with_a_service_that_ends_or_is_stopped_and_with_a_stop_of_the_group():
    ended = ServiceGroup(service("short", lambda service: service.started())).start()
    assert ended.scope.wait(GUARD) and ended.scope.reason == "short has ended" and ended.scope.exc is None
    unready = ServiceGroup(service("unready", lambda service: None)).start()
    assert unready.scope.wait(GUARD) and "before it was ready" in str(unready.scope.exc)
    one = service("one")
    of_one = ServiceGroup(one, service("two"))
    one.stop("enough of one")
    assert of_one.scope.reason == "enough of one"
    assert ServiceGroup(one).scope.reason == "enough of one", "it was stopped before it came into the group"
    assert ServiceGroup(service("three")).stop().scope.closed
    loop = LoopServiceThread(name="loop")
    of_loop = ServiceGroup(loop).start().wait_started(GUARD)
    loop.stop("bye")
    assert of_loop.scope.reason == "bye"
    assert of_loop.stop_join(GUARD)


def test_the_scope_is_over_before_a_stop_of_the_group_reaches_the_members():
    class Watching(Member):
        def stop(self):
            seen.append(group.scope.closed and group.scope.reason)

    seen = []
    group = ServiceGroup(Watching("one that tells the group nothing", []))
    group.stop()
    assert seen == ["stop"]


def test_the_scope_has_the_reason_of_the_stop_however_fast_the_service_ends():
    class Scope(CloseScope):
        def close(self, reason=None, exc=None):
            first = super().close(reason, exc)
            group.services[0].join(GUARD)  # it is over before stop() goes on
            return first

    one = service("one")
    one.scope = Scope()
    group = ServiceGroup(one).start().wait_started(GUARD)
    one.stop("bye")
    assert group.scope.reason == "bye" and group.scope.exc is None


def fail_and_go_on(service):
    service.fail(ValueError("no port"))


def start_too_late(service):
    service.scope.close("enough")
    service.started()


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (fail, "no port"),
        (fail_and_go_on, "no port"),
        (lambda service: None, "culprit exited before it was ready"),
        (lambda service: service.stop("enough"), "enough"),
        (start_too_late, "enough"),
    ],
)
def test_the_scope_knows_why_before_anybody_who_waits_can_stop_the_group(work, reason):
    class Watched(CloseScope):
        """Those who wait for the start, or for the end of the service."""

        def close(self, reason=None, exc=None):
            seen.append(group.scope.closed and group.scope.reason)
            return super().close(reason, exc)

    seen, culprit = [], service("culprit", work)
    group = ServiceGroup(culprit)
    culprit._service_start = Watched()
    culprit.start()
    with pytest.raises(RuntimeError):
        group.wait_started(GUARD)
    culprit.join(GUARD)
    assert seen and set(seen) == {reason}
