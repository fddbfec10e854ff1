"""Floods, replays, and waiting for what comes with it; time is what the test says."""

from __future__ import annotations

import pytest

from cvmfs_sync.pushes import Push
from cvmfs_sync.web.pace import Bucket, Gathering, Seen

ONE, TWO, THREE = (Push("quay.io", "org/tool", tag) for tag in ("1", "2", "3"))


def test_a_bucket_lets_a_burst_through_and_then_so_many_a_second() -> None:
    """And says when there is one more; a long silence makes no larger burst."""
    bucket = Bucket(3, 0.5)
    assert [bucket.take(100.0) for _ in range(4)] == [0, 0, 0, 2.0]
    assert bucket.take(101.0) == 1.0
    assert bucket.take(102.0) == 0
    assert bucket.take(102.0) == 2.0
    assert [bucket.take(1e9) for _ in range(4)] == [0, 0, 0, 2.0]


def test_what_was_seen_is_known_again_for_a_time() -> None:
    """Seeing it again makes the time no longer."""
    seen = Seen(10, 100)
    assert seen.add("a", 0)
    assert not seen.add("a", 9)
    assert seen.add("b", 9)
    assert seen.add("a", 10)
    assert not seen.add("b", 18)
    assert seen.add("b", 19)


def test_what_is_remembered_has_bounds() -> None:
    """The oldest is forgotten first."""
    seen = Seen(10, 3)
    assert all(seen.add(str(number), number / 1000) for number in range(5))
    assert len(seen) == 3
    assert not seen.add("4", 0.01)
    assert seen.add("0", 0.01)
    assert seen.add("later", 100)
    assert len(seen) == 1


def test_pushes_go_when_it_has_been_quiet() -> None:
    """Each one more puts it off, up to a limit; the same push twice is one."""
    gathering = Gathering(2, 5, 100)
    assert gathering.wait(0) is None
    gathering.add([ONE], 10)
    assert gathering.wait(10) == 2
    gathering.add([TWO, ONE], 11.5)
    assert gathering.wait(12) == 1.5
    gathering.add([THREE], 13.4)
    gathering.add([THREE], 14.9)
    assert gathering.wait(14.9) == pytest.approx(0.1)
    assert gathering.wait(15) == 0
    assert gathering.take() == (ONE, TWO, THREE)
    assert gathering.wait(15) is None
    gathering.add([ONE], 15)
    assert gathering.wait(15) == 2


def test_so_many_are_gathered_and_no_more() -> None:
    """What there is no room for is told; what is there already needs none."""
    gathering = Gathering(2, 5, 2)
    assert gathering.add([ONE, TWO, THREE, ONE], 0) == 1
    assert gathering.take() == (ONE, TWO)
