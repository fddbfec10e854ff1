"""What the daemon does at this moment, for whoever asks while it works.

The main thread notes what it begins and how far it is; other threads get all of it as an `Activity`. Nothing here waits
for anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cvmfs_sync.backlog import Backlog
from cvmfs_sync.config import Config
from cvmfs_sync.diskuse import size_below
from cvmfs_sync.ports import Progress, Unit
from cvmfs_sync.view import documents
from cvmfs_sync.view.activity import Activity, Waiting

__all__ = ["Live"]

# A directory of thousands of files takes a moment to look through, and anybody may ask at any time.
_SIZES_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Work:
    """A piece of work that is under way."""

    what: str
    total: int
    unit: Unit
    since: datetime


class Live:
    """One daemon's present.

    Args:
        clock: The time, UTC.

    Attributes:
        doing: In words; empty while there is nothing to do.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.doing = ""
        self._clock = clock
        self._since: datetime | None = None
        self._work: _Work | None = None
        self._done = 0
        self._last: tuple[datetime, str, float | None] | None = None
        self._sizes: tuple[float, int, int] = (-_SIZES_SECONDS, 0, 0)

    @contextmanager
    def cycle(self) -> Iterator[None]:
        """A cycle runs while the block lasts."""
        self._since = self._clock()
        try:
            yield
        finally:
            self._since = self._work = None

    def ended(self, result: str, seconds: float | None) -> None:
        """A cycle has ended so; after so many seconds, if it came as far as to have a report."""
        self._last = (self._clock(), result, seconds)

    def watched(self, progress: Progress) -> Progress:
        """A `Progress` that passes on what it is told, and notes it here."""
        return _Watched(self, progress)

    def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
        """See `ports.Progress`."""
        self._done = 0
        self._work = _Work(what, total, unit, self._clock())

    def advance(self, amount: int) -> None:
        """See `ports.Progress`."""
        self._done += amount

    def activity(
        self,
        backlog: Backlog,
        requests: Mapping[tuple[str, str], int],
        limits: Mapping[str, _RateLimit],
        config: Config,
        *,
        next_at: datetime | None,
    ) -> Activity:
        """All that is known; from any thread.

        Args:
            backlog: What waits, and what has become of the others.
            requests: How many there were, by registry and result.
            limits: What registries said last of their rate limits.
            config: Where spool and state are.
            next_at: When the next cycle is due.
        """
        now, work, since, last = self._clock(), self._work, self._since, self._last
        spool, state = self._measured(config.spool_dir, config.state_dir)
        return Activity(
            at=now,
            cycle=documents.Cycle(
                running=True,
                doing=self.doing,
                since=since,
                progress=None
                if work is None
                else documents.Progress(
                    what=work.what, done=self._done, total=work.total, unit=work.unit, since=work.since
                ),
                total=backlog.total,
                results=dict(backlog.results()) if since is not None else {},
                last_ended=last[0] if last else None,
                last_result=last[1] if last else None,
                last_seconds=last[2] if last else None,
                next_at=next_at,
            ),
            queue=[Waiting(name=link, link=link, since=at) for link, at in backlog.queue().items()],
            registries=_registries(requests, limits, now.timestamp()),
            spool=documents.Storage(used=spool, limit=config.spool_limit, free=_free(config.spool_dir)),
            state=documents.Storage(used=state, limit=None, free=_free(config.state_dir)),
        )

    def _measured(self, spool: Path, state: Path) -> tuple[int, int]:
        at, *sizes = self._sizes
        if time.monotonic() - at > _SIZES_SECONDS:
            sizes = [size_below(spool), size_below(state)]
            self._sizes = (time.monotonic(), sizes[0], sizes[1])
        return sizes[0], sizes[1]


class _Watched:
    """See `Live.watched`."""

    def __init__(self, live: Live, inner: Progress) -> None:
        self._live = live
        self._inner = inner

    def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
        """See `ports.Progress`."""
        self._live.start(what, total, unit)
        self._inner.start(what, total, unit)

    def advance(self, amount: int) -> None:
        """See `ports.Progress`."""
        self._live.advance(amount)
        self._inner.advance(amount)


class _RateLimit(Protocol):
    """What a registry said of its rate limit."""

    @property
    def limit(self) -> int | None:
        """So many pulls are allowed."""

    def left(self, now: float) -> int | None:
        """So many are left; None if that is not known any longer."""


def _registries(
    requests: Mapping[tuple[str, str], int], limits: Mapping[str, _RateLimit], now: float
) -> list[documents.Registry]:
    """One for each host that was asked; it is well as long as not all that it is asked fails."""
    by_host: dict[str, dict[str, int]] = {}
    for (host, result), count in requests.items():
        by_host.setdefault(host, {})[result] = count
    return [
        documents.Registry(
            host=host,
            requests=counts,
            limit=limits[host].limit if host in limits else None,
            remaining=limits[host].left(now) if host in limits else None,
            healthy=not counts.get("error") or any(counts.get(good) for good in ("ok", "not_modified", "not_found")),
        )
        for host, counts in sorted(by_host.items())
    ]


def _free(directory: Path) -> int | None:
    with suppress(OSError):
        status = os.statvfs(directory)
        return status.f_bavail * status.f_frsize
    return None
