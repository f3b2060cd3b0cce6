"""Is it over, and is it busy: ``CloseScope`` and ``WorkTracker``."""

import threading
from typing import Any

from ._errors import BrokenResourceError, ClosedResourceError, EndOfStream
from ._microio import CloseScope, WorkTracker

__all__ = ["BrokenResourceError", "ClosedResourceError", "CloseScope", "EndOfStream", "WorkTracker"]


class Busy(threading.Event):
    """``WorkTracker.busy``: set while there is work.

    It derives its state from the count, so that the two cannot drift apart, and takes no lock that a signal handler could
    find held.
    """

    def __init__(self, work: Any) -> None:
        super().__init__()
        self._work = work
        self.is_set = work.is_set  # type: ignore[method-assign]

    def is_set(self) -> bool:
        """Whether there is work."""
        return self._work.is_set()

    def isSet(self) -> bool:
        """The old name of :meth:`is_set`."""
        return self._work.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until there is work, for at most ``timeout`` seconds. Whether there is."""
        return self._work.wait(timeout)

    def set(self) -> None:
        """Refused: the tracker decides."""
        raise RuntimeError("a WorkTracker's event follows its count: call add()")

    def clear(self) -> None:
        """Refused: the tracker decides."""
        raise RuntimeError("a WorkTracker's event follows its count: call done()")

    def __repr__(self) -> str:
        return f"<WorkTracker.busy {'set' if self.is_set() else 'unset'}>"
