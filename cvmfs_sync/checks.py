"""What registries say was pushed, from when somebody tells the daemon until it looks.

Requests of the control socket go in, from any thread, and are answered at once; the main thread looks later, at what of
it the list asks for. Nothing of this is kept over a restart: a daemon that starts looks at everything.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from cvmfs_sync.errors import UsageError
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.outcome import CycleReport, PublishNow
from cvmfs_sync.pushes import DELIVERY_RESULTS, SENDERS, Push, concerned

__all__ = ["MOST_NAMES", "Checks"]

log = logging.getLogger(__name__)
MOST_NAMES = 1000
"""In one request."""
_MOST = 10_000


class Checks:
    """What is to be looked at.

    Args:
        clock: The time, UTC.
        count: Told of deliveries to webhooks: sender, result, and how many there were.
        most: How many pushes are kept. More change nothing: by its schedule the daemon looks at all images.
    """

    def __init__(
        self, clock: Callable[[], datetime], count: Callable[[str, str, int], None], most: int = _MOST
    ) -> None:
        self._clock = clock
        self._count = count
        self._most = most
        self._lock = threading.Lock()
        # In the order in which they came.
        self._waiting: dict[Push, None] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def hear(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take a request; its answer, which is the same whether or not the list asks for any of it.

        Raises:
            UsageError: It is none.
        """
        names = content.get("check")
        if set(content) - {"deliveries"} != {"check"} or not isinstance(names, list) or len(names) > MOST_NAMES:
            raise UsageError('a request is {"check": [NAME, ...]}', expected=f"at most {MOST_NAMES} names")
        if not all(isinstance(name, str) for name in names):
            raise UsageError("a name is text")
        pushes = [Push.parse(name) for name in names]
        for sender, result, number in _deliveries(content.get("deliveries", [])):
            self._count(sender, result, number)
        dropped = self._add(pushes)
        if dropped:
            log.warning("too much is to be checked: %d names are left to the schedule", dropped)
        return {"exit_code": 0}

    def carry_out(self, wishes: ImageList | None, publish: PublishNow) -> CycleReport | None:
        """Look at all that was pushed and is asked for; None if there is nothing of that kind.

        Without a list there is nothing to do: the first cycle looks at everything.

        Raises:
            CvmfsSyncError: See `plan`.
        """
        pushes = self._take()
        if not pushes or wishes is None:
            return None
        names = concerned(wishes.wished_on(self._clock().date()).wishes, pushes)
        log.info("pushed: names=%d asked_for=%d", len(pushes), len(names))
        if not names:
            return None
        report = publish(wishes, names, insist=False)
        log.info("checked %s seconds=%.1f", report.tally, report.seconds)
        return report

    def _add(self, pushes: Iterable[Push]) -> int:
        """Keep these; how many there was no room for."""
        with self._lock:
            dropped = 0
            for push in pushes:
                if push in self._waiting or len(self._waiting) < self._most:
                    self._waiting[push] = None
                else:
                    dropped += 1
            return dropped

    def _take(self) -> tuple[Push, ...]:
        with self._lock:
            taken = tuple(self._waiting)
            self._waiting.clear()
            return taken


def _deliveries(told: object) -> list[tuple[str, str, int]]:
    """What webhooks have got: sender, result and number of each kind.

    Raises:
        UsageError: It is of another form.
    """
    if isinstance(told, list) and all(isinstance(each, list) and len(each) == 3 for each in told):
        found = [(sender, result, number) for sender, result, number in told]
        if all(s in SENDERS and r in DELIVERY_RESULTS and type(n) is int and n >= 0 for s, r, n in found):
            return found
    raise UsageError("deliveries are [[SENDER, RESULT, NUMBER], ...]")
