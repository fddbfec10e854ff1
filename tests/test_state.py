"""The state database: what it remembers, and what it costs to lose it. And the lock of the one process that uses it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_sync.errors import NoSpace, RepositoryBusy, RepositoryUnavailable
from cvmfs_sync.locking import instance
from cvmfs_sync.reference import Digest
from cvmfs_sync.state import Event, Failure, LogLine, State
from tests.support.commands import run_cli
from tests.support.cvmfs import FakeCvmfs
from tests.support.images import Image, file, layer, write_layout

NOW = datetime(2026, 11, 20, 12, 30, 45, 678901, tzinfo=UTC)
LATER = NOW + timedelta(hours=5)
ONE, TWO, THREE = (Digest("sha256", character * 64) for character in "123")
LINK = "docker.io/library/alpine:latest"
NAME = "docker.io/library/alpine"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_what_a_name_meant_is_remembered(home: Path) -> None:
    """The manifest behind a digest is known again, for that name, platform and digest only, until it moves."""
    with State(home) as state:
        assert state.recall(NAME, "linux/amd64", ONE) is None
        assert state.last_seen(NAME, "linux/amd64") is None
        state.remember(NAME, "linux/amd64", ONE, TWO, NOW)
    with State(home) as state:
        assert state.recall(NAME, "linux/amd64", ONE) == TWO
        assert state.recall(NAME, "linux/arm64", ONE) is None
        assert state.recall(NAME, "linux/amd64", THREE) is None
        assert state.last_seen(NAME, "linux/amd64") == NOW
        state.remember(NAME, "linux/amd64", THREE, ONE, LATER)
        assert state.recall(NAME, "linux/amd64", ONE) is None
        assert state.recall(NAME, "linux/amd64", THREE) == ONE
        assert state.last_seen(NAME, "linux/amd64") == LATER


def test_failures_are_counted_until_success(home: Path) -> None:
    """A failure keeps its first time, its latest reason and its number; a success ends it, once."""
    with State(home) as state:
        assert state.failure(LINK) is None
        state.failed(LINK, NAME, "down", temporary=True, at=NOW)
        state.failed(LINK, NAME, "gone", temporary=False, at=LATER)
    with State(home) as state:
        assert state.failure(LINK) == Failure(NAME, "gone", False, 2, NOW, LATER)
        assert state.failure("another") is None
        state.succeeded(LINK, NAME, LATER)
        state.succeeded(LINK, NAME, LATER)
        assert state.failure(LINK) is None
        assert state.history(LINK) == (
            Event(LATER, NAME, "recovered", None, ""),
            Event(NOW, NAME, "failed", None, "down"),
        )


def test_when_a_failure_is_tried_again_is_remembered(home: Path) -> None:
    """Its next try, what it was tried with and for which entry, are those of the latest failure."""
    with State(home) as state:
        state.failed(LINK, NAME, "down", temporary=True, at=NOW, next_try=LATER, source=ONE, wish="a", kind="Gone")
    with State(home) as state:
        assert state.failure(LINK) == Failure(NAME, "down", True, 1, NOW, NOW, LATER, str(ONE), "a", "Gone")
        state.failed(LINK, NAME, "gone", temporary=False, at=LATER)
        assert state.failure(LINK) == Failure(NAME, "gone", False, 2, NOW, LATER)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_database_of_an_older_version_is_taken_over(
    home: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures, history and orphans stay, and what is new begins empty; nothing is set aside."""
    with State(home) as state:
        state.failed(LINK, NAME, "down", temporary=True, at=NOW)
        if version > 1:
            state.mark_orphans({"path": "nobody asks"}, (), NOW, timedelta(days=1))
    older = ["ALTER TABLE failures DROP COLUMN kind", "DROP TABLE log_lines", "DROP INDEX events_by_event"]
    if version < 3:
        older += [f"ALTER TABLE failures DROP COLUMN {name}" for name in ("next_try", "source", "wish")]
        older += ["DROP TABLE notes"]
    older += [*(["DROP TABLE orphans"] if version == 1 else []), f"PRAGMA user_version = {version}"]
    for statement in older:
        change(home / "state.sqlite", statement)
    with State(home) as state:
        assert state.failure(LINK) == Failure(NAME, "down", True, 1, NOW, NOW)
        assert [event.event for event in state.history(LINK)] == ["failed"]
        assert list(state.orphans()) == (["path"] if version > 1 else [])
        state.note("list", "valid")
        assert state.noted("list") == "valid"
        assert state.noted("other") is None
        assert state.log_of(LINK) == ()
        state.keep_log(LINK, [LogLine(NOW, "info", "prepared")])
        state.failed(LINK, NAME, "down", temporary=True, at=NOW, kind="Gone")
        schema = tables(state)
    assert not caplog.messages
    with State(home.with_name("new")) as new:
        assert schema == tables(new)


def tables(state: State) -> set[str]:
    """Names of all tables and indexes."""
    return {name for (name,) in state._database.execute("SELECT name FROM sqlite_schema")}


def test_the_log_of_a_pass_is_kept_until_the_next(home: Path) -> None:
    """The latest lines of the last pass come back in order, bounded in number and length; retired links keep none."""
    with State(home) as state:
        state.keep_log(LINK, [LogLine(NOW, "info", f"line {number}") for number in range(300)])
        assert [line.message for line in state.log_of(LINK)] == [f"line {number}" for number in range(100, 300)]
        state.keep_log(LINK, [LogLine(NOW, "warning", "é" * 5000)])
        state.keep_log("another", [LogLine(LATER, "info", "")])
    with State(home) as state:
        assert state.log_of(LINK) == (LogLine(NOW, "warning", "é" * 2000),)
        state.record(LINK, NAME, "retired", None, "nobody asks", NOW)
        assert state.log_of(LINK) == ()
        assert state.log_of("another") == (LogLine(LATER, "info", ""),)


def test_another_process_reads_while_one_writes(home: Path) -> None:
    """A reader sees what is committed, from any thread, changes nothing, and stays in nobody's way."""
    assert State.open_readonly(home) is None
    assert not home.exists()
    with State(home) as state:
        state.record(LINK, NAME, "published", ONE, "", NOW)
    reader = State.open_readonly(home)
    assert reader is not None
    with reader, ThreadPoolExecutor(2) as threads:
        assert len(reader.history(LINK)) == 1
        for count in (2, 3):
            # The daemon opens it for each job anew.
            with State(home) as state:
                state.record(LINK, NAME, "published", TWO, "", LATER)
                assert {len(found) for found in threads.map(reader.history, [LINK] * 20)} == {count}
            assert len(reader.history(LINK)) == count
        with pytest.raises(RepositoryUnavailable, match="readonly"):
            reader.record(LINK, NAME, "published", ONE, "", NOW)
        assert not reader.replaced()
        newer(home / "state.sqlite")
        State(home).close()
        assert reader.replaced()
        assert len(reader.history(LINK)) == 3


def test_a_database_that_a_reader_can_not_use(home: Path) -> None:
    """One of another version is none; one that is damaged is an error that names it, and stays where it is."""
    State(home).close()
    newer(home / "state.sqlite")
    assert State.open_readonly(home) is None
    garbage(home / "state.sqlite")
    with pytest.raises(RepositoryUnavailable, match=r"state\.sqlite"):
        State.open_readonly(home)
    assert not (home / "state.damaged").exists()


def test_who_is_neither_the_owner_nor_root_reads_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite would make files beside the database that its owner can't write."""
    State(home).close()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(RepositoryUnavailable, match="another user"):
        State.open_readonly(home)
    assert os.listdir(home) == ["state.sqlite"]


def test_history_is_kept_latest_first(home: Path) -> None:
    """Events come back as they were, in UTC, the latest first, no more than asked for, only of that link."""
    with State(home) as state:
        for number in range(30):
            state.record(LINK, NAME, "published", ONE, f"détail {number}", NOW + timedelta(minutes=number))
        state.record("another", NAME, "linked", None, "", NOW)
    with State(home) as state:
        history = state.history(LINK)
        assert [event.detail for event in history] == [f"détail {number}" for number in range(29, 9, -1)]
        assert history[0] == Event(NOW + timedelta(minutes=29), NAME, "published", str(ONE), "détail 29")
        assert len(state.history(LINK, limit=3)) == 3
        assert [event.event for event in state.history("another")] == ["linked"]
        assert state.history("none") == ()


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database\n" * 500)


def truncated(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def scribbled(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * (size - 4096))


def newer(path: Path) -> None:
    change(path, "PRAGMA user_version = 99")


def another_schema(path: Path) -> None:
    change(path, "ALTER TABLE seen ADD COLUMN more TEXT")


def without_a_table(path: Path) -> None:
    change(path, "DROP TABLE failures")


def without_a_version(path: Path) -> None:
    change(path, "PRAGMA user_version = 0")


def somebody_elses(path: Path) -> None:
    path.unlink()
    change(path, "CREATE TABLE accounts (name TEXT)")


def change(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


DAMAGES = [garbage, truncated, scribbled, newer, another_schema, without_a_table, without_a_version, somebody_elses]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_database_is_set_aside(
    home: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be used, or is of another version, is kept under another name, with a warning, and begun anew."""
    with State(home) as state:
        state.remember(NAME, "linux/amd64", ONE, TWO, NOW)
        for number in range(200):
            state.record(LINK, NAME, "published", ONE, f"{number}" * 20, NOW)
    damage(home / "state.sqlite")
    before = (home / "state.sqlite").read_bytes()
    with State(home) as state:
        assert state.recall(NAME, "linux/amd64", ONE) is None
        assert state.history(LINK) == ()
        state.record(LINK, NAME, "published", ONE, "", NOW)
    assert (home / "state.damaged").read_bytes()[:1000] == before[:1000]
    (message,) = caplog.messages
    assert "damaged" in message
    assert str(home / "state.damaged") in message
    with State(home) as state:
        assert len(state.history(LINK)) == 1


def test_an_empty_file_is_a_new_database(home: Path) -> None:
    """What a crash at the very first step leaves is no damage."""
    home.mkdir()
    (home / "state.sqlite").touch()
    with State(home) as state:
        state.record(LINK, NAME, "published", ONE, "", NOW)
    assert not (home / "state.damaged").exists()


def test_a_database_that_is_held_is_no_damage(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of somebody else ends us with exit code 3; nothing is set aside."""
    State(home).close()
    holder = sqlite3.connect(home / "state.sqlite")
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
    with pytest.raises(RepositoryUnavailable, match=r"state\.sqlite") as caught:
        State(home)
    holder.close()
    assert caught.value.exit_code == 3
    assert not (home / "state.damaged").exists()


def test_a_state_directory_that_is_a_file(home: Path) -> None:
    """Where the directory can't be made, the error names it, with exit code 3."""
    home.write_text("")
    with pytest.raises(RepositoryUnavailable, match=str(home)) as caught:
        State(home)
    assert caught.value.exit_code == 3


def test_a_full_disk_is_told_as_that(home: Path) -> None:
    """A database that can't grow is no bug of ours: no space, exit code 3."""
    with State(home) as state:
        state._database.execute("PRAGMA max_page_count = 8")
        with pytest.raises(NoSpace, match=r"state\.sqlite") as caught:  # noqa: PT012
            for _ in range(1000):
                state.record(LINK, NAME, "published", ONE, "x" * 1000, NOW)
    assert caught.value.exit_code == 3


def test_only_one_instance(home: Path) -> None:
    """A second process is refused with exit code 3 and who is first; the lock goes with the process."""
    program = (
        "import sys; from pathlib import Path; from cvmfs_sync.locking import instance\n"
        "with instance(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"in\n"
    with pytest.raises(RepositoryBusy, match=f"process {process.pid} holds") as caught, instance(home):
        raise AssertionError
    assert caught.value.exit_code == 3
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with instance(home):
        pass
    with instance(home):
        pass


@pytest.fixture
def published(fake_cvmfs: FakeCvmfs, tmp_path: Path) -> tuple[FakeCvmfs, Path]:
    """An image that is published on the fake server, and the configuration."""
    write_layout(tmp_path / "layout", {"tag": Image((layer(file("etc/name", "1")),))})
    (tmp_path / "image-list.yaml").write_text(f"version: 1\nimages:\n  - oci:{tmp_path}/layout:tag\n")
    config = tmp_path / "cvmfs-sync.yaml"
    config.write_text(
        f"repository: {{backend: cvmfs, name: {fake_cvmfs.name}, root: {fake_cvmfs.root}, spool: {fake_cvmfs.spool}}}\n"
    )
    (outcome,) = run_cli("sync", "--json", "--config", config).ok().json["images"]
    assert outcome["result"] == "published"
    return fake_cvmfs, config


@pytest.mark.parametrize(
    "damage", [None, shutil.rmtree, *DAMAGES], ids=lambda damage: getattr(damage, "__name__", "lost")
)
def test_a_lost_database_publishes_nothing_twice(
    published: tuple[FakeCvmfs, Path], damage: Callable[[Path], None] | None
) -> None:
    """Without its database, or with a damaged one, `sync` opens no transaction; the image is known to be published."""
    fake, config = published
    database = config.parent / "state/state.sqlite"
    if damage is None:
        database.unlink()
    elif damage is shutil.rmtree:
        shutil.rmtree(database.parent)
    else:
        damage(database)
    commands = len(fake.commands())
    report = run_cli("-v", "sync", "--json", "--config", config).ok()
    assert [outcome["result"] for outcome in report.json["images"]] == ["unchanged"]
    assert len(fake.commands()) == commands
    assert ("is damaged" in report.stderr) == (damage in DAMAGES)
    (status,) = run_cli("status", "--json", "--config", config).ok().json["images"]
    assert status["state"] == "published"
