"""How much of what is delivered is let through, and when: floods, replays, and waiting for what comes with it.

Plain values and no clock: whoever calls says what time it is, in seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from cvmfs_sync.pushes import Push

__all__ = ["Bucket", "Gathering", "Seen"]


@dataclass(slots=True)
class Bucket:
    """So many at once, and after that so many a second.

    Attributes:
        size: At once.
        rate: A second.
    """

    size: float
    rate: float
    _level: float = field(init=False)
    _at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self._level = self.size

    def take(self, now: float) -> float:
        """Let one through; 0, or seconds after which to try again."""
        self._level = min(self.size, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) / self.rate


class Seen:
    """What has been delivered before.

    Args:
        seconds: For how long it is remembered.
        most: How much; the oldest is forgotten for what is new.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._known: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, identity: str, now: float) -> bool:
        """Remember something; whether it is new."""
        while self._known and next(iter(self._known.values())) <= now - self._seconds:
            self._known.popitem(last=False)
        if identity in self._known:
            return False
        self._known[identity] = now
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return True


class Gathering:
    """Pushes on their way to the daemon: one image's tags come one after the other, and are one thing to do.

    Args:
        quiet: Seconds without another after which they go.
        longest: Seconds after the first after which they go in any case.
        most: How many there may be.
    """

    def __init__(self, quiet: float, longest: float, most: int) -> None:
        self._quiet = quiet
        self._longest = longest
        self._most = most
        self._pushes: dict[Push, None] = {}
        self._first = self._last = 0.0

    def __len__(self) -> int:
        return len(self._pushes)

    def add(self, pushes: Iterable[Push], now: float) -> int:
        """Keep these; for how many there was no room."""
        dropped = 0
        for push in pushes:
            if push not in self._pushes and len(self._pushes) >= self._most:
                dropped += 1
                continue
            if not self._pushes:
                self._first = now
            self._last = now
            self._pushes[push] = None
        return dropped

    def wait(self, now: float) -> float | None:
        """Seconds until they go; 0 if that is now, None if there are none."""
        if not self._pushes:
            return None
        return max(0.0, min(self._last + self._quiet, self._first + self._longest) - now)

    def take(self) -> tuple[Push, ...]:
        """All of them, which are no longer kept."""
        taken = tuple(self._pushes)
        self._pushes.clear()
        return taken
