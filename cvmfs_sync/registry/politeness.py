"""How often, how many at once, and how long in vain this client asks one host.

Settings and times go in, waits come out. Nothing here knows HTTP: `transport` asks before it sends, and reports how it
went. All times come from a `Timing`, so that a test never waits.
"""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

__all__ = ["Breaker", "Pace", "Patience", "RegistrySettings", "Slots", "Timing", "backoff", "retry_after"]

MAX_RETRY_AFTER = 60.0
MAX_BACKOFF = 8.0
# Docker Hub has answered Retry-After with the time itself instead of a distance: no wait is thirty years long.
_EPOCH = 1e9
FAILURES_TO_OPEN = 3


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """How to talk to one registry.

    Attributes:
        insecure: Plain HTTP instead of HTTPS.
        requests_per_second: At most so many requests start in a second; None for no limit.
        concurrency: At most so many requests, downloads included, are under way.
        credentials: A file in the form of Docker's config.json whose entry for this registry is used, and no other.
        ca_file: PEM file of the only CAs that may vouch for this host; None for those of the system.
        mirrors: Pull-through caches to ask first, in order: `host[:port]` or URL, each with `/project` if it wants one
            before repositories' names.
        ratelimit_floor: With so many pulls left or fewer, only what somebody waits for is pulled.
        foreign_layers: Whether layers that the registry does not keep are fetched from the URLs that manifests name.
    """

    insecure: bool = False
    requests_per_second: float | None = None
    concurrency: int = 4
    credentials: Path | None = None
    ca_file: Path | None = None
    mirrors: tuple[str, ...] = ()
    ratelimit_floor: int = 0
    foreign_layers: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for others, in seconds.

    Attributes:
        connect: For a connection.
        read: For the next bytes.
        answer: For an answer's whole head.
        exchange: No new try starts later than that after the first; also for the whole of a document.
        window: For so long, a body may be slower than 1 KiB/s.
        discard: For the rest of a body that nobody wants.
    """

    connect: float = 10.0
    read: float = 60.0
    answer: float = 60.0
    exchange: float = 180.0
    window: float = 60.0
    discard: float = 5.0


@dataclass(frozen=True, slots=True)
class Timing:
    """The outside world's time and chance.

    Attributes:
        clock: Seconds that never go back.
        wall_clock: Seconds since 1970.
        sleep: Waits for so many seconds.
        chance: A number from 0 to below 1.
        patience: How long others may take.
    """

    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random
    patience: Patience = Patience()


def backoff(attempt: int, chance: float) -> float:
    """Seconds to wait after failure number `attempt`: exponential, with full jitter against marching in step."""
    return chance * min(MAX_BACKOFF, 0.5 * 2.0**attempt)


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds to wait, from 0 to 60, in all forms that registries use; None if `text` says nothing.

    Args:
        text: The header: seconds, possibly with a fraction; an HTTP date; or a time since the epoch.
        now: Seconds since the epoch.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(text)
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now
    else:
        if not math.isfinite(seconds):
            return None
        if seconds > _EPOCH:
            seconds -= now
    return min(MAX_RETRY_AFTER, max(0.0, seconds))


class Pace:
    """Spaces requests evenly; also keeps away from a host that asked to wait. Safe for threads."""

    def __init__(self, per_second: float | None, timing: Timing) -> None:
        self._interval = 1.0 / per_second if per_second else 0.0
        self._timing = timing
        self._next = -math.inf
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Sleep until the next request may start."""
        with self._lock:
            now = self._timing.clock()
            start = max(now, self._next)
            self._next = start + self._interval
        if start > now:
            self._timing.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Let no request start within so many seconds."""
        with self._lock:
            self._next = max(self._next, self._timing.clock() + seconds)


class Slots:
    """At most so many threads at once.

    A thread that already has a slot gets in again without waiting: one that asks for a manifest while it reads a blob
    would otherwise wait for itself.
    """

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._holders: dict[int, int] = {}
        self._changed = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot inside the block."""
        # A generator may be closed by another thread than the one that took the slot: remember whose it was.
        holder = threading.get_ident()
        with self._changed:
            while holder not in self._holders and len(self._holders) >= self._limit:
                self._changed.wait()
            self._holders[holder] = self._holders.get(holder, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._holders[holder] -= 1
                if not self._holders[holder]:
                    del self._holders[holder]
                    self._changed.notify()


class Breaker:
    """Remembers that a host is dead, so that a cycle pays for one time-out and not for one per image.

    Attributes:
        reason: Why the host is given up; None while it is worth asking.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._first: str | None = None
        self._failures = 0
        self._lock = threading.Lock()

    def failed(self, reason: str) -> None:
        """No answer came."""
        with self._lock:
            self._failures += 1
            self._first = self._first or reason
            if self._failures >= FAILURES_TO_OPEN:
                self.reason = self._first

    def answered(self) -> None:
        """An answer came, whatever it says."""
        with self._lock:
            self._failures, self._first, self.reason = 0, None, None
