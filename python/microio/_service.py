"""Services: threads that say when they are ready, fail where it can be seen, and stop when they are told to."""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Self

from . import _microio
from ._errors import ClosedResourceError
from ._scope import CloseScope

logger = logging.getLogger("microio")

forks = 0  # how many forks lie between this process and the one that imported this module


def forked() -> None:
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forked)


def seconds(timeout: float | None) -> float:
    """A timeout as a lock takes it: None is -1, which means for ever; what is negative is zero; nan is refused."""
    if timeout is None:
        return -1
    return min(max(_microio.seconds(timeout), 0), threading.TIMEOUT_MAX)


def _countdown(timeout: float | None) -> Callable[[], float | None]:
    """A function that tells how much is left of the timeout."""
    if timeout is None:
        return lambda: None
    end = time.monotonic() + seconds(timeout)
    return lambda: max(end - time.monotonic(), 0.0)


class ServiceThread(threading.Thread):
    """A thread with a life that others can follow.

    Its work is ``run_service()``, overridden, or ``target(service)``. It calls :meth:`started` once its resources are
    ready; whoever needs them calls :meth:`wait_started`. :meth:`stop` closes ``scope``, which the work has to look at
    (or wait for). An exception that leaves the work fails the service: ``exc``, ``scope`` and the events tell; with
    ``reraise`` it also reaches ``threading.excepthook``.

    ``ready`` is set once it is ready, has failed or has ended; ``failed`` once it has failed; ``stopped`` once it has
    ended. In a forked child a service of the parent can be read, but not waited for or started: RuntimeError.
    """

    exc: BaseException | None = None  # the first failure; of an instance once it has one: see fail()

    # What is private is named _service_*: subclasses have a lot of names of their own.

    _service_forks = 0  # until __init__ says: a subclass that forgets it gets the error of threading

    def __init__(
        self,
        *,
        name: str | None = None,
        target: Callable[["ServiceThread"], object] | None = None,
        daemon: bool = True,
        reraise: bool = False,
    ) -> None:
        if target is not None and not callable(target):
            raise TypeError(f"a function as target was expected, not {type(target).__name__}")
        super().__init__(name=name, daemon=daemon)
        self.reraise = reraise
        self.ready = threading.Event()
        self.failed = threading.Event()
        self.stopped = threading.Event()
        self.scope = CloseScope()
        self._service_target = target
        self._service_forks = forks
        # What came of the start: closed when ready; failed when it can no longer be. It is no Event, for stop() closes
        # it, and that may be called by a signal handler.
        self._service_start = CloseScope()
        self._service_groups: list[CloseScope] = []  # the ends of the groups that it is in
        self._service_logged = False  # its failure, which is enough once

    def start(self) -> None:
        """Starts the thread. If it was stopped before, it ends at once and does nothing.

        If the system gives no thread, the service has failed, with the error that is raised.
        """
        self._service_check_process()
        try:
            super().start()
        except Exception as error:
            if "scope" in self.__dict__ and self.ident is None:  # no thread, and none will be: who waits must hear of it
                self.fail(error)
                self.stopped.set()
            raise

    def run_service(self) -> None:
        """The work: to be overridden, unless there is a ``target``."""
        if self._service_target is None:
            raise NotImplementedError("override run_service() or pass target=")
        self._service_target(self)

    def run(self) -> None:
        """What the thread does: the work, and the book-keeping around it."""
        try:
            if not self.scope.closed:
                self.run_service()
        except BaseException as error:
            if self.exc is not error:  # it may have been told already
                self.fail(error)
            if self.reraise:
                raise
        finally:
            if self.scope.closed:
                self._service_tell_stop()
            elif self._service_start.closed:
                self._service_tell_groups(f"{self.name} has ended")
            else:
                self._service_tell_failure(RuntimeError(f"{self.name} exited before it was ready"))
            self.stopped.set()
            self.ready.set()

    def started(self) -> None:
        """Says that the service is ready; the service calls it. Not for signal handlers."""
        if self.scope.closed:
            self._service_tell_stop()
        else:
            self._service_start.close()
        self.ready.set()

    def fail(self, exc: BaseException) -> None:
        """Records a failure and closes ``scope`` with it. The first one counts, everywhere. Not for signal handlers."""
        if not isinstance(exc, BaseException):
            raise TypeError(f"an exception was expected, not {type(exc).__name__}")
        if self.scope.exc is not None:
            exc = self.scope.exc
        first = self.__dict__.setdefault("exc", exc)  # one atomic step
        self._service_tell_failure(first)
        self.failed.set()
        self.ready.set()

    def wait_started(self, timeout: float | None = None) -> None:
        """Blocks until the service is ready, for at most ``timeout`` seconds (None: for ever).

        RuntimeError from the cause if it has failed, before or after it was ready, and if it ended or was stopped
        before it was ready. TimeoutError if it takes too long.
        """
        self._service_check_process()
        outcome = self._service_start
        if threading.current_thread() is self and not outcome.closed:
            raise RuntimeError(f"{self.name} waits for itself to be ready")
        if not outcome.wait(timeout):
            raise TimeoutError(f"{self.name} did not become ready")
        cause = self._service_failure()
        if cause is None:
            cause = outcome.exc
        if cause is not None:
            raise RuntimeError(f"{self.name} failed") from cause

    def stop(self, reason: str | None = "stop") -> bool:
        """Tells the service to stop, by closing ``scope``; true if this call was the first. Waits for nothing.

        From any thread and from a signal handler; before :meth:`start` too, which then does nothing.
        """
        first = self.scope.close(reason)
        self._service_tell_stop()
        return first

    def join_or_log(self, timeout: float | None = None) -> bool:
        """Waits for the end of the thread, for at most ``timeout`` seconds (None: for ever). Whether it has ended.

        True if it was never started. What is wrong goes to the logger "microio", as an error: of what the service has
        failed, the first time; if it has not ended in time, its state and the place where it hangs; and if the calling
        thread is to wait for itself, which it does not.
        """
        limit = seconds(timeout)
        self._service_check_process()
        if threading.current_thread() is self:
            logger.error("thread does not wait for itself: %s", self.name)
            return False
        if self.is_alive():  # neither never started nor ended
            self.join(None if timeout is None else limit)
        if not self.is_alive():
            if self.exc is not None and not self._service_logged:
                self._service_logged = True
                logger.error("thread failed: %s", self.name, exc_info=self.exc)
            return True
        state, where = self._service_state(), "".join(self._service_where()).rstrip()
        logger.error("thread did not stop: %s (%s), it is at\n%s", self.name, state, where)
        return False

    def _service_check_process(self) -> None:
        if self._service_forks != forks:
            raise RuntimeError(f"{self.name} used after fork: make a new one in the child process")

    # Groups are told before the others: who hears of the end may stop its group for it, which must know the cause by then.

    def _service_tell_failure(self, exc: BaseException) -> None:
        for group in tuple(self._service_groups):
            group.fail(exc)
        self.scope.fail(exc)
        self._service_start.fail(exc, "failed")

    def _service_tell_stop(self) -> None:
        self._service_tell_groups(self.scope.reason, self._service_failure())
        if not self._service_start.closed:
            self._service_start.fail(ClosedResourceError(f"{self.name} was stopped before it was ready"))

    def _service_tell_groups(self, reason: str | None, exc: BaseException | None = None) -> None:
        for group in tuple(self._service_groups):
            group.close(reason, exc)

    def _service_failure(self) -> BaseException | None:
        return self.scope.exc if self.exc is None else self.exc

    def _service_where(self) -> list[str]:
        frame = sys._current_frames().get(self.ident or 0)
        return traceback.format_list(traceback.extract_stack(frame, limit=5)) if frame else ["an unknown place\n"]

    def _service_state(self) -> str:
        if self._service_failure() is not None:
            return "failed" if self.stopped.is_set() else "failing"
        if self.stopped.is_set():
            return "stopped"
        if self.scope.closed:
            return "stopping"
        if self.ident is None:
            return "new"
        return "ready" if self.ready.is_set() else "starting"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._service_state()}>"


class ServiceGroup:
    """Services that are started, waited for and stopped together. None as a service is left out.

    ``scope`` is the end of the group, for whoever waits for it: it closes when the group is stopped or does not start, and
    when one of its services is stopped, fails or ends, with that one's reason and exception. Closing it stops no service: that is for who
    waits, and then calls :meth:`stop_join`. (A member that is no ServiceThread closes nothing.)
    """

    def __init__(self, *services: Any) -> None:
        self.scope = CloseScope()
        self.services: list[Any] = []
        self.add(*services)

    def add(self, *services: Any) -> Self:
        """Adds services, which are not started by that."""
        for service in services:
            if service is None:
                continue
            self.services.append(service)
            if isinstance(service, ServiceThread):
                service._service_groups.append(self.scope)
                if service.scope.closed or service.stopped.is_set():  # it has told its groups before
                    service._service_tell_groups(service.scope.reason, service.scope.exc)
        return self

    def start(self) -> Self:
        """Starts all, in order.

        If one cannot be started, those before it are told to stop, in reverse, and its error is raised; it names the
        service.
        """
        service, begun = self, []
        try:
            for service in tuple(self.services):
                begun.append(service)
                service.start()
        except BaseException as error:
            if isinstance(error, Exception):
                del begun[-1:]  # after Ctrl-C its thread may be on its way
            self._roll_back(begun, error, service)
            raise
        return self

    def wait_started(self, timeout: float | None = None) -> Self:
        """Blocks until all are ready, for at most ``timeout`` seconds in all (None: for ever).

        If one fails, or the wait ends in any other error (TimeoutError, KeyboardInterrupt), all that were started are
        told to stop, in reverse, and that error is raised; it names the service.
        """
        service, left = self, _countdown(timeout)
        try:
            for service in tuple(self.services):
                service = self._wait_for(service, left())
                service.wait_started(timeout=left())
        except BaseException as error:
            self._roll_back([each for each in self.services if getattr(each, "ident", 0) is not None], error, service)
            raise
        return self

    def _wait_for(self, service: Any, timeout: float | None) -> Any:
        """Waits for the start of one of ours, until another has failed to start; the one to look at."""
        if isinstance(service, ServiceThread) and service is not threading.current_thread():
            service._service_start._wait_either(self.scope, timeout)
        starts = ((each, each._service_start) for each in tuple(self.services) if isinstance(each, ServiceThread))
        return next((each for each, start in starts if start.failed), service)

    def stop(self) -> Self:
        """Tells every service to stop, then raises the first error of those calls, if any."""
        self.scope.close("stop")
        error = _stop_all(self.services)
        if error is not None:
            raise error
        return self

    def join_or_log(self, timeout: float | None = None) -> bool:
        """Waits for the end of all, for at most ``timeout`` seconds in all (None: for ever). Whether all have ended.

        Those that have not are logged, each with its name, its state and the place where it hangs.
        """
        left = _countdown(timeout)
        return all([service.join_or_log(timeout=left()) for service in tuple(self.services)])

    def stop_join(self, timeout: float | None = None) -> bool:
        """:meth:`stop`, then :meth:`join_or_log`, with one ``timeout`` for both."""
        left = _countdown(timeout)
        self.stop()
        return self.join_or_log(left())

    def _roll_back(self, services: list[Any], error: BaseException, culprit: Any) -> None:
        self.scope.fail(error)  # unless a member has told why; the stops below would say less
        failure = _stop_all(services[::-1])
        name = str(getattr(culprit, "name", culprit))
        text = "".join(traceback.format_exception_only(error))  # its str() may raise
        if f": {name} " not in text and f"service: {name}" not in text:
            error.add_note(f"service: {name}")
        if isinstance(failure, Exception):
            logger.error("service could not be stopped", exc_info=failure)
        elif failure is not None:
            raise failure

    def __repr__(self) -> str:
        return f"<ServiceGroup {self.services!r}>"


def _stop_all(services: list[Any]) -> BaseException | None:
    """Tells every one; the first error."""
    first = None
    for service in tuple(services):
        try:
            service.stop()
        except BaseException as error:
            if first is None:
                first = error
            else:
                logger.error("service could not be stopped: %r", service, exc_info=error)
    return first
