"""What something cost: seconds and bytes, measured while several threads may be at it.

Whoever does the work tells a `Meter`; whoever accounts for it takes an `Effort` from it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Effort", "Meter"]


@dataclass(frozen=True, slots=True)
class Effort:
    """What it cost.

    Attributes:
        seconds: In which at least one thread was at it.
        bytes: That all of them went through.
    """

    seconds: float = 0.0
    bytes: int = 0


class Meter:
    """Counts; safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        self._since = 0.0
        self._seconds = 0.0
        self._bytes = 0

    @property
    def effort(self) -> Effort:
        """So far."""
        with self._lock:
            now = self._clock() - self._since if self._running else 0.0
            return Effort(self._seconds + now, self._bytes)

    def add(self, amount: int) -> None:
        """So many bytes more."""
        with self._lock:
            self._bytes += amount

    @contextmanager
    def running(self) -> Iterator[None]:
        """A thread is at it; what others do at the same time is not counted twice."""
        with self._lock:
            if not self._running:
                self._since = self._clock()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._seconds += self._clock() - self._since

    def measured(self, pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
        """The pieces, counted as they come; runs from the first that is asked for to the end, or to `close`."""
        try:
            with self.running():
                for piece in pieces:
                    self.add(len(piece))
                    yield piece
        finally:
            if isinstance(pieces, Generator):
                pieces.close()
