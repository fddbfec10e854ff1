"""When what has failed is tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cvmfs_sync.backoff import Backoff

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("failures", "temporary", "minutes"),
    [
        (1, True, 0), (2, True, 30), (3, True, 60), (4, True, 120), (5, True, 240), (6, True, 360), (99, True, 360),
        (1, False, 0), (2, False, 30), (6, False, 480), (7, False, 960), (8, False, 1440), (10**6, False, 1440),
    ],
)  # fmt: skip
def test_the_wait_doubles_up_to_its_limit(failures: int, minutes: int, *, temporary: bool) -> None:
    """The first failure waits for the next cycle only; six hours, or a day, is the longest that chance can choose."""
    longest = Backoff(timedelta(minutes=15), chance=lambda: 1.0)
    assert longest.next_try(failures, NOW, temporary=temporary) == NOW + timedelta(minutes=minutes)
    half = Backoff(timedelta(minutes=15), chance=lambda: 0.5)
    assert half.next_try(failures, NOW, temporary=temporary) == NOW + timedelta(minutes=minutes) / 2


def test_what_failed_together_does_not_come_back_together() -> None:
    """Full jitter: the waits are spread over all of the time."""
    waits = [Backoff().next_try(9, NOW, temporary=True) - NOW for _ in range(1000)]
    assert min(waits) < timedelta(hours=1)
    assert max(waits) > timedelta(hours=5)
    assert all(timedelta(0) <= wait <= timedelta(hours=6) for wait in waits)
