"""Seconds and bytes of what several threads do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from cvmfs_sync.meter import Effort, Meter


class _Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_overlapping_work_counts_once() -> None:
    """Seconds are those in which at least one was at it; a look in the middle sees what has been so far."""
    clock = _Clock()
    meter = Meter(clock)
    assert meter.effort == Effort()
    with meter.running():
        clock.now += 2
        with meter.running():
            clock.now += 3
            assert meter.effort.seconds == 5
    clock.now += 50
    with suppress(ZeroDivisionError), meter.running():
        clock.now += 1
        raise ZeroDivisionError
    meter.add(7)
    assert meter.effort == Effort(6, 7)


def test_pieces_are_counted_as_they_come() -> None:
    """Bytes and seconds of a stream, to its end or to where it was left, and then the stream is closed."""
    clock = _Clock()
    meter = Meter(clock)
    closed = []

    def pieces() -> Iterator[bytes]:
        try:
            for size in (3, 4, 5):
                clock.now += 1
                yield b"x" * size
        finally:
            closed.append(True)

    assert [len(piece) for piece in meter.measured(pieces())] == [3, 4, 5]
    assert meter.effort == Effort(3, 12)
    left = meter.measured(pieces())
    next(left)
    left.close()
    assert meter.effort == Effort(4, 15)
    assert closed == [True, True]
    meter.measured(iter([b"x"])).close()
    assert meter.effort == Effort(4, 15)
