"""What waits to be published, and since when it does.

What a cycle has to do goes in, and what became of it; out come the times of what is waiting now, for whoever watches,
and how long each image has waited once it is there. An image waits from the moment in which a registry first told that
its name means something new; that is remembered over failures, stopped cycles and restarts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime

from cvmfs_sync.state import State

__all__ = ["Backlog"]

_KEY = "waiting"


class Backlog:
    """The links of the list that do not lead to what they shall lead to. One thread changes it, any may read it.

    Attributes:
        total: Images that the present cycle looks at, or the last one did.
    """

    def __init__(self) -> None:
        self.total = 0
        self._results: dict[str, int] = {}
        self._since: dict[str, datetime] = {}
        self._waiting: dict[str, datetime] = {}

    def begin(self, state: State, waiting: Iterable[str], failing: Iterable[str], now: datetime) -> None:
        """A cycle has decided what becomes of all links of the list; those of which it does nothing are settled.

        Args:
            state: Where times are remembered.
            waiting: Links that it is going to make; others that waited since a cycle before do so no more.
            failing: Links that it can't make now; should one be known, its time goes on.
            now: The time.
        """
        self._since = _read(state)
        self._waiting = {link: self._since.setdefault(link, now) for link in waiting}
        known = {link: self._since[link] for link in failing if link in self._since}
        self._since = {**known, **self._waiting}
        self._write(state)

    def expect(self, total: int) -> None:
        """A cycle has begun that looks at so many images."""
        self._results = {}
        self.total = total

    def settled(self, result: str) -> None:
        """So much has become of one of them."""
        self._results = {**self._results, result: self._results.get(result, 0) + 1}

    def results(self) -> Mapping[str, int]:
        """What has become of how many."""
        return self._results

    def also(self, state: State, waiting: Iterable[str], now: datetime) -> None:
        """These wait, too; nothing is known of any other link."""
        if not self._since:
            self._since = _read(state)
        for link in waiting:
            self._waiting[link] = self._since.setdefault(link, now)
        self._write(state)

    def made(self, link: str, now: datetime) -> float | None:
        """A link is there; for how many seconds it was waited for, or None if it was not."""
        self._waiting.pop(link, None)
        since = self._since.pop(link, None)
        return None if since is None else max(0.0, (now - since).total_seconds())

    def failed(self, link: str) -> None:
        """A link could not be made; it waits for another cycle, and its time goes on."""
        self._waiting.pop(link, None)

    def end(self, state: State) -> None:
        """Remember what still waits."""
        self._write(state)

    def waiting(self) -> tuple[datetime, ...]:
        """Since when each of the links waits that the cycle has not come to yet."""
        return tuple(self._waiting.values())

    def queue(self) -> Mapping[str, datetime]:
        """The same by link, in the order in which they are to be made."""
        return dict(self._waiting)

    def _write(self, state: State) -> None:
        state.note(_KEY, json.dumps({link: since.isoformat() for link, since in self._since.items()}))


def _read(state: State) -> dict[str, datetime]:
    """What was remembered; nothing of what can't be read."""
    found: dict[str, datetime] = {}
    with suppress(ValueError, TypeError, AttributeError):
        for link, since in json.loads(state.noted(_KEY) or "{}").items():
            at = datetime.fromisoformat(since)
            if at.tzinfo is not None:
                found[link] = at
    return found
