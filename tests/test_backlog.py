"""What waits to be published, and since when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_sync.backlog import Backlog
from cvmfs_sync.state import State

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_what_is_made_waits_no_more(tmp_path: Path) -> None:
    """Each link waits from when it was first seen to when it is made; whoever watches sees those that are left."""
    backlog = Backlog()
    with State(tmp_path) as state:
        backlog.begin(state, ["a", "b"], [], NOW)
        assert backlog.waiting() == (NOW, NOW)
        assert backlog.made("a", NOW + HOUR) == 3600
        assert backlog.waiting() == (NOW,)
        assert backlog.made("a", NOW + HOUR) is None
        assert backlog.made("never", NOW + HOUR) is None


def test_time_goes_on_over_failures_and_restarts(tmp_path: Path) -> None:
    """A link that failed is not in the queue until it is tried again, and has waited all the time then."""
    with State(tmp_path) as state:
        backlog = Backlog()
        backlog.begin(state, ["a"], [], NOW)
        backlog.failed("a")
        assert backlog.waiting() == ()
        backlog.end(state)
    with State(tmp_path) as state:
        backlog = Backlog()
        backlog.begin(state, [], ["a", "typo"], NOW + HOUR)
        assert backlog.waiting() == ()
        backlog.begin(state, ["a", "typo"], [], NOW + 2 * HOUR)
        assert backlog.made("a", NOW + 3 * HOUR) == 3 * 3600
        assert backlog.made("typo", NOW + 3 * HOUR) == 3600


def test_what_a_killed_cycle_had_made_is_not_waited_for(tmp_path: Path) -> None:
    """A cycle that finds a link as it shall be, or no longer in the list, forgets it."""
    with State(tmp_path) as state:
        Backlog().begin(state, ["a", "b"], [], NOW)
        backlog = Backlog()
        backlog.begin(state, [], [], NOW + HOUR)
        backlog.begin(state, ["a"], [], NOW + 2 * HOUR)
        assert backlog.made("a", NOW + 2 * HOUR) == 0


def test_what_is_asked_for_in_between_changes_nothing_else(tmp_path: Path) -> None:
    """A small cycle adds what it makes, and forgets nothing of others; a clock that went back is no negative time."""
    with State(tmp_path) as state:
        Backlog().begin(state, ["a"], [], NOW)
        backlog = Backlog()
        backlog.also(state, ["b"], NOW + HOUR)
        assert backlog.made("b", NOW) == 0
        backlog.end(state)
        backlog.begin(state, ["a"], [], NOW + HOUR)
        assert backlog.made("a", NOW + HOUR) == 3600


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '{"a": 1}', '{"a": "yesterday"}', '{"a": "2026-11-20T12:00"}'])
def test_a_note_that_makes_no_sense_is_nothing(tmp_path: Path, text: str) -> None:
    """A state that is damaged costs a time, and no cycle."""
    with State(tmp_path) as state:
        state.note("waiting", text)
        backlog = Backlog()
        backlog.begin(state, ["a"], [], NOW)
        assert backlog.waiting() == (NOW,)
