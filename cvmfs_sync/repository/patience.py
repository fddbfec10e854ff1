"""How long to wait for somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

__all__ = ["pauses"]


def pauses(limit: timedelta, step: float) -> Iterator[float]:
    """The pauses between attempts, in seconds: each `step` long, and `limit` in all."""
    left = limit.total_seconds()
    while left > 0:
        pause = min(step, left)
        yield pause
        left -= pause
