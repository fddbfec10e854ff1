"""When an image that has failed is tried again.

How often it has failed in a row goes in, and the next time comes out: exponential backoff with full jitter, so that a
thousand images which failed together do not come back together. Clock and chance are passed in; what is remembered of
a failure is `state`'s business.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["Backoff"]

_TEMPORARY = timedelta(hours=6)
_PERMANENT = timedelta(hours=24)
_DOUBLINGS = 20


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait.

    Attributes:
        interval: Between two cycles. The first failure is tried again in the next of them.
        temporary: The longest wait after an error that may pass by itself.
        permanent: The longest wait after one that somebody has to mend.
        chance: A number from 0 to 1.
    """

    interval: timedelta = timedelta(minutes=15)
    temporary: timedelta = _TEMPORARY
    permanent: timedelta = _PERMANENT
    chance: Callable[[], float] = random.random

    def next_try(self, failures: int, now: datetime, *, temporary: bool) -> datetime:
        """When to try again after so many failures in a row.

        The wait that full jitter chooses from doubles with each failure; the first one costs no wait beyond the next
        cycle, for most errors pass by then, and whoever mends his image at once need not know of this.
        """
        if failures <= 1:
            return now
        longest = self.temporary if temporary else self.permanent
        ceiling = min(longest.total_seconds(), self.interval.total_seconds() * 2.0 ** min(failures - 1, _DOUBLINGS))
        return now + timedelta(seconds=ceiling * self.chance())
