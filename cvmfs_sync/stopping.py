"""An end in time: what SIGTERM does to a process that may be in the middle of a publish.

A request to stop goes in, from a signal handler in the main thread; an exception comes out, there and at once, so that
whatever is open is abandoned in its own way. Only the last phase of a publish, which is cheaper finished than done
again, is let go on within the limit. A thread sees to the limit: connections on which others wait are cut, and what is
not over by then ends with the process, as a crash would end it; the next run cleans up after that.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

__all__ = ["Stopping", "Terminated", "hang_up"]

log = logging.getLogger(__name__)
# Of the limit: a publish that is not through by then has to be aborted within the rest.
_TO_FINISH = 0.6
_GLANCE = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM came. For a daemon that is the usual end, for all else an interruption."""


class Stopping:
    """Whether this process shall end, and how; one for a process.

    Attributes:
        within: How long the end may take. A reload may change it.
        reason: Set once somebody has asked for it.
    """

    def __init__(self, within: timedelta = timedelta(seconds=60)) -> None:
        self.within = within
        self.reason: KeyboardInterrupt | None = None
        self._finishing = 0
        self._raised = threading.Event()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """In this block, which the main thread runs, a request to stop waits for the end of it, or for the limit.

        It raises nothing itself: what ends a transaction well must not look like a failure of it. See `check`.
        """
        self._finishing += 1
        try:
            yield
        finally:
            self._finishing -= 1

    def check(self) -> None:
        """Stop here if a request has waited.

        Raises:
            KeyboardInterrupt: The reason.
        """
        if self.reason is not None:
            self._raise()

    def request(self, reason: KeyboardInterrupt) -> None:
        """Ask for the end; to be called by a signal handler in the main thread, once.

        Raises:
            KeyboardInterrupt: The reason, unless a publish is being finished.
        """
        self.reason = reason
        seconds = self.within.total_seconds()
        threading.Thread(target=self._guard, args=(time.monotonic() + seconds,), name="stop", daemon=True).start()
        if not self._finishing:
            self._raise()
        signal.signal(signal.SIGALRM, self._too_late)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds * _TO_FINISH))

    def _too_late(self, _signal: int, _frame: object) -> None:
        if not self._raised.is_set():
            log.warning("the publish takes too long to wait for its end; it is abandoned")
            self._raise()

    def _raise(self) -> None:
        assert self.reason is not None  # noqa: S101 - callers have looked
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._raised.set()
        raise self.reason

    def _guard(self, deadline: float) -> None:
        """Cut connections as soon as nothing is to be finished; end the process at the deadline."""
        while time.monotonic() < deadline:
            if self._raised.wait(_GLANCE):
                hang_up()
                time.sleep(_GLANCE)
        log.error("not everything has ended within %s; the next run cleans up", self.within)
        os._exit(0 if isinstance(self.reason, Terminated) else 130)


def hang_up() -> None:
    """End all TCP connections of this process: who reads from one gets its end, who writes an error.

    A thread that waits for a registry can't be told otherwise, and nobody wants its answer any more.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError, ValueError):
            descriptor = int(name)
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6):
                        connection.shutdown(socket.SHUT_RDWR)
