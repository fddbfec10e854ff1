"""The log of events, for machines."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.config import load
from cvmfs_sync.eventlog import EVENTS, Document, EventLog
from cvmfs_sync.reference import Digest
from cvmfs_sync.render import report_document
from cvmfs_sync.serving import Daemon
from cvmfs_sync.state import State
from tests.support import Image, file, layer, run_cli, write_layout

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ONE, TWO = Digest.parse("sha256:" + "1" * 64), Digest.parse("sha256:" + "2" * 64)
PAGE = Path(__file__).parent.parent / "docs/events.md"


def _lines(directory: Path) -> list[dict[str, Any]]:
    """All that the log has, oldest first."""
    files = sorted(directory.glob("events.jsonl*"), key=lambda path: path.name, reverse=True)
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def _events(directory: Path) -> list[tuple[str, str | None]]:
    return [(line["event"], line["link"]) for line in _lines(directory)]


def _happen(state: State) -> None:
    """A few events of every kind that has a line of its own."""
    state.record("a", "image a", "published", ONE, "1.0 s", NOW)
    state.failed("a", "image a", "down: ☹", temporary=True, at=NOW)
    state.failed("a", "image a", "down", temporary=True, at=NOW)
    state.succeeded("a", "image a", NOW)
    state.record("a", "image a", "published", TWO, "1.0 s", NOW)
    state.record("b", "image b", "linked", TWO, "", NOW)
    state.record("b", "image b", "linked", TWO, "", NOW)
    state.record("b", "image b", "retired", None, "why", NOW)
    state.record("b", "image b", "published", ONE, "", NOW)
    state.record("b", "image b", "taken down", None, "why", NOW)
    state.record("", "list.yaml", "list_refused", None, "line 3", NOW)


HAPPENED = [
    ("published", "a"), ("failed", "a"), ("recovered", "a"), ("moved", "a"), ("published", "a"), ("linked", "b"),
    ("linked", "b"), ("retired", "b"), ("published", "b"), ("taken_down", "b"), ("list_refused", None),
]  # fmt: skip


def test_each_event_is_written_once_and_told(tmp_path: Path) -> None:
    """A line is there as soon as its event is; another process that follows writes nothing again."""
    told: list[Document] = []
    with State(tmp_path) as state:
        EventLog(tmp_path, told=told.append).follow(state)
        _happen(state)
        assert _events(tmp_path) == HAPPENED
        assert {event for event, _ in HAPPENED} == set(EVENTS)
    with State(tmp_path) as state:
        EventLog(tmp_path, told=told.append).follow(state)
    lines = _lines(tmp_path)
    assert told == lines
    assert lines[3] == {
        "at": NOW.isoformat(), "event": "moved", "image": "image a", "link": "a", "digest": str(TWO),
        "detail": f"from {ONE}", "id": 4, "history": lines[0]["history"],
    }  # fmt: skip
    assert len({(line["id"], line["event"]) for line in lines}) == len(lines)


def test_what_is_taken_back_is_never_written(tmp_path: Path) -> None:
    """Events that are noted together are written when all of them are true, and not before."""
    with State(tmp_path) as state:
        EventLog(tmp_path).follow(state)
        with suppress(ZeroDivisionError), state.together():
            state.record("a", "a", "published", ONE, "", NOW)
            raise ZeroDivisionError
        with state.together():
            state.record("b", "b", "published", ONE, "", NOW)
            assert not (tmp_path / "events.jsonl").exists()
        assert _events(tmp_path) == [("published", "b")]


def test_a_kill_at_any_byte_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Wherever writing has stopped, the next start cuts off what is torn and writes the rest."""
    with State(tmp_path) as state:
        log = EventLog(tmp_path)
        log.follow(state)
        begun = state.noted("event log")
        assert begun is not None
        _happen(state)
        whole = log.path.read_bytes()
        for end in range(len(whole)):
            log.path.write_bytes(whole[:end])
            state.note("event log", begun)
            told: list[Document] = []
            EventLog(tmp_path, told=told.append).follow(state)
            assert log.path.read_bytes() == whole
            assert len(told) == whole[end:].count(b"\n")


def test_the_file_is_rotated(tmp_path: Path) -> None:
    """Files are bounded in size and number, and no event is lost or written twice at the border."""
    with State(tmp_path) as state:
        log = EventLog(tmp_path, size=1000, files=3)
        log.follow(state)
        for number in range(40):
            state.record(f"link{number}", "name", "published", ONE, "", NOW + timedelta(minutes=number))
            if number % 7 == 0:
                EventLog(tmp_path, size=1000, files=3).follow(state)
    names = sorted(path.name for path in tmp_path.glob("events*"))
    assert names == ["events.jsonl", "events.jsonl.1", "events.jsonl.2"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names)
    links = [line["link"] for line in _lines(tmp_path)]
    assert links == [f"link{number}" for number in range(40 - len(links), 40)]


def test_a_kill_while_rotating_repeats_nothing(tmp_path: Path) -> None:
    """When the new file has not been begun yet, the older one tells how far the log is."""
    with State(tmp_path) as state:
        EventLog(tmp_path).follow(state)
        begun = state.noted("event log")
        assert begun is not None
        _happen(state)
        state.note("event log", begun)
        (tmp_path / "events.jsonl").rename(tmp_path / "events.jsonl.1")
        EventLog(tmp_path).follow(state)
        assert _events(tmp_path) == HAPPENED


def test_a_log_that_cannot_be_written_is_caught_up_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing fails by it; what is missing comes later."""
    with State(tmp_path) as state:
        log = EventLog(tmp_path)
        log.follow(state)
        log.path.mkdir()
        state.record("a", "a", "published", ONE, "", NOW)
        assert "is behind" in caplog.text
        log.path.rmdir()
        state.record("b", "b", "published", ONE, "", NOW)
    assert _events(tmp_path) == [("published", "a"), ("published", "b")]


def test_a_new_history_goes_on_in_the_same_file(tmp_path: Path) -> None:
    """A database that was lost begins to count anew; what is deleted of the log does not come back."""
    with State(tmp_path) as state:
        EventLog(tmp_path).follow(state)
        state.record("a", "a", "published", ONE, "", NOW)
    for path in tmp_path.glob("state.sqlite*"):
        path.unlink()
    with State(tmp_path) as state:
        EventLog(tmp_path).follow(state)
        state.record("b", "b", "published", ONE, "", NOW)
        lines = _lines(tmp_path)
        assert [(line["id"], line["link"]) for line in lines] == [(1, "a"), (1, "b")]
        assert lines[0]["history"] != lines[1]["history"]
        (tmp_path / "events.jsonl").unlink()
        state.record("c", "c", "published", ONE, "", NOW)
    assert _events(tmp_path) == [("published", "c")]


@pytest.mark.parametrize("text", ["nonsense\n", "\n", '{"id": 1}\n', "[]\n", "null\n"])
def test_a_line_that_is_not_ours_is_passed_over(tmp_path: Path, text: str) -> None:
    """Somebody has written into the file; that costs nothing."""
    with State(tmp_path) as state:
        log = EventLog(tmp_path)
        log.follow(state)
        state.record("a", "a", "published", ONE, "", NOW)
        with log.path.open("a") as output:
            output.write(text)
        state.record("b", "b", "published", ONE, "", NOW)
        assert [line for line in log.path.read_text().splitlines(keepends=True) if line != text][-1].count('"b"') == 2


def test_page_has_all_events_and_fields(tmp_path: Path) -> None:
    """docs/events.md tells what a run of the program writes."""
    write_layout(tmp_path / "images", {"1": Image((layer(file("hello", "one")),))})
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: [oci:images:1, oci:images:none]\n")
    (tmp_path / "cvmfs-sync.yaml").touch()
    run_cli("sync", "--config", tmp_path / "cvmfs-sync.yaml").ok(1)
    write_layout(tmp_path / "images", {"1": Image((layer(file("hello", "two")),))})
    run_cli("sync", "--config", tmp_path / "cvmfs-sync.yaml").ok(1)
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: [NO]\n")
    daemon = Daemon(lambda: load(tmp_path / "cvmfs-sync.yaml", {}), report_document)
    for _ in range(2):
        daemon.read_list()
    lines = _lines(tmp_path / "state")
    assert [line["event"] for line in lines] == ["failed", "published", "moved", "published", "list_refused"]
    text = PAGE.read_text()
    first = [row.split("|")[1].strip() for row in text.splitlines() if row.startswith("| `")]
    assert first == [f"`{name}`" for name in (*lines[0], *first_events(text))]
    assert set(first_events(text)) == set(EVENTS)


def first_events(text: str) -> list[str]:
    """The events of the page's second table."""
    table = text[text.index("| event | meaning |") :]
    return [row.split("`")[1] for row in table.splitlines() if row.startswith("| `")]
