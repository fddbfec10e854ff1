"""The state database: a cache with a memory.

What a name meant when it was last asked, which images failed and why, and what happened to each, in SQLite. The
repository is the truth: a database that is lost, damaged or of another version costs its history and a few requests,
never an image, so it is set aside and begun anew. One process uses it at a time; `locking`
sees to that.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cvmfs_sync.errors import InvalidReference, NoSpace, RepositoryUnavailable
from cvmfs_sync.reference import Digest
from cvmfs_sync.rootfs import os_errors

__all__ = ["Event", "Failure", "Orphan", "State"]

log = logging.getLogger(__name__)
_VERSION = 2
_SCHEMA = """
CREATE TABLE seen (
    name TEXT NOT NULL, platform TEXT NOT NULL, source TEXT NOT NULL, digest TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (name, platform)
) WITHOUT ROWID;
CREATE TABLE failures (
    link TEXT PRIMARY KEY, name TEXT NOT NULL, reason TEXT NOT NULL, temporary INTEGER NOT NULL, count INTEGER NOT NULL,
    since TEXT NOT NULL, last TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, link TEXT NOT NULL, name TEXT NOT NULL, event TEXT NOT NULL,
    digest TEXT, detail TEXT NOT NULL
);
CREATE INDEX events_by_link ON events (link, id);
CREATE TABLE orphans (
    path TEXT PRIMARY KEY, reason TEXT NOT NULL, since TEXT NOT NULL, seen TEXT NOT NULL, seconds REAL NOT NULL
) WITHOUT ROWID;
"""
_FROM_1 = _SCHEMA[_SCHEMA.index("CREATE TABLE orphans") :]
_COLUMNS = {
    "seen": ["name", "platform", "source", "digest", "at"],
    "failures": ["link", "name", "reason", "temporary", "count", "since", "last"],
    "events": ["id", "at", "link", "name", "event", "digest", "detail"],
    "orphans": ["path", "reason", "since", "seen", "seconds"],
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that failed when it was last tried.

    Attributes:
        count: Failures in a row.
        since: First of them, UTC.
        last: Latest of them, UTC.
    """

    name: str
    reason: str
    temporary: bool
    count: int
    since: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a link: `published`, `linked` to a tree that was there, `failed`, `recovered`."""

    at: datetime
    name: str
    event: str
    digest: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Orphan:
    """A link or a tree that nobody asks for any more.

    Attributes:
        since: When that was first seen, UTC.
        age: For how long that has been seen to be so. Less than the time since then, if nobody looked for long.
    """

    reason: str
    since: datetime
    age: timedelta


class State:
    """The database of one repository.

    Args:
        directory: Made if it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.sqlite"
        with os_errors(f"to the state directory {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
        with self._usable():
            try:
                self._database = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                self._database = self._open()

    @classmethod
    def snapshot(cls, directory: Path) -> Self:
        """A copy in memory, for those who only look: nothing is made or changed on disk.

        It is empty where there is no database, or none that this user may read.
        """
        state = cls.__new__(cls)
        state.path = directory / "state.sqlite"
        state._database = sqlite3.connect(":memory:")
        # Without `immutable`, SQLite would make files beside the database, with the owner of whoever looks.
        mode = "mode=ro" if Path(f"{state.path}-wal").exists() else "immutable=1"
        try:
            with closing(sqlite3.connect(f"{state.path.absolute().as_uri()}?{mode}", uri=True)) as stored:
                if stored.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
                    stored.backup(state._database)
        except (sqlite3.Error, OSError) as error:
            log.info("no history: %s: %s", state.path, error)
        if state._database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            state._database.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
        return state

    def close(self) -> None:
        """Release the file."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def remember(self, name: str, platform: str, source: Digest, digest: Digest, at: datetime) -> None:
        """Note that `name` meant `source`, and for this platform the manifest `digest`."""
        with self._writing() as database:
            database.execute(
                "REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", (name, platform, str(source), str(digest), at.isoformat())
            )

    def recall(self, name: str, platform: str, source: Digest) -> Digest | None:
        """The manifest that `source` held for this platform, if that was ever learnt."""
        row = self._database.execute(
            "SELECT digest FROM seen WHERE name = ? AND platform = ? AND source = ?", (name, platform, str(source))
        ).fetchone()
        with suppress(InvalidReference):
            return Digest.parse(row[0]) if row else None
        return None

    def manifests(self) -> frozenset[Digest]:
        """All that names have meant, and all that was published, as far as that is remembered."""
        rows = self._database.execute("SELECT digest FROM seen UNION SELECT digest FROM events WHERE digest NOT NULL")
        found: set[Digest] = set()
        for (digest,) in rows:
            with suppress(InvalidReference):
                found.add(Digest.parse(digest))
        return frozenset(found)

    def last_seen(self, name: str, platform: str) -> datetime | None:
        """When the registry last answered for this name."""
        row = self._database.execute("SELECT at FROM seen WHERE name = ? AND platform = ?", (name, platform)).fetchone()
        return datetime.fromisoformat(row[0]) if row else None

    def failed(self, link: str, name: str, reason: str, *, temporary: bool, at: datetime) -> None:
        """Count a failure."""
        now = at.isoformat()
        first = self.failure(link) is None
        with self._writing() as database:
            database.execute(
                "INSERT INTO failures VALUES (?, ?, ?, ?, 1, ?, ?) ON CONFLICT (link) DO UPDATE SET"
                " name = excluded.name, reason = excluded.reason, temporary = excluded.temporary,"
                " count = count + 1, last = excluded.last",
                (link, name, reason, temporary, now, now),
            )
            if first:
                self._event(database, at, link, name, "failed", None, reason)

    def succeeded(self, link: str, name: str, at: datetime) -> None:
        """Forget that it failed."""
        if self.failure(link) is not None:
            with self._writing() as database:
                database.execute("DELETE FROM failures WHERE link = ?", (link,))
                self._event(database, at, link, name, "recovered", None, "")

    def failure(self, link: str) -> Failure | None:
        """Why a link failed when it was last tried; None if it did not."""
        row = self._database.execute(
            "SELECT name, reason, temporary, count, since, last FROM failures WHERE link = ?", (link,)
        ).fetchone()
        if row is None:
            return None
        name, reason, temporary, count, since, last = row
        return Failure(
            name, reason, bool(temporary), count, datetime.fromisoformat(since), datetime.fromisoformat(last)
        )

    def failing(self) -> tuple[str, ...]:
        """The names, with their platforms, of all links that failed when they were last tried."""
        return tuple(name for (name,) in self._database.execute("SELECT name FROM failures ORDER BY name"))

    def record(self, link: str, name: str, event: str, digest: Digest | None, detail: str, at: datetime) -> None:
        """Add an event to the history."""
        with self._writing() as database:
            self._event(database, at, link, name, event, str(digest) if digest else None, detail)

    def history(self, link: str, limit: int = 20) -> tuple[Event, ...]:
        """What happened to a link, latest first."""
        rows = self._database.execute(
            "SELECT at, name, event, digest, detail FROM events WHERE link = ? ORDER BY id DESC LIMIT ?", (link, limit)
        )
        return tuple(Event(datetime.fromisoformat(at), *rest) for at, *rest in rows)

    def mark_orphans(
        self, orphans: Mapping[str, str], undecided: Collection[str], now: datetime, longest: timedelta
    ) -> Mapping[str, Orphan]:
        """Note what nobody asks for now, and forget what is asked for again.

        A grace period counts the time in which something was seen to be an orphan, again and again: neither a clock
        that jumps nor a daemon that was switched off for a year makes it pass.

        Args:
            orphans: Reasons by path.
            undecided: Paths of which nobody can tell now: what is known of them stays, and they grow no older.
            now: The time.
            longest: How much older an orphan may get from one look to the next.
        """
        with self._writing() as database:
            rows = database.execute("SELECT path, since, seen, seconds FROM orphans").fetchall()
            known = {path: (since, datetime.fromisoformat(seen), seconds) for path, since, seen, seconds in rows}
            gone = [(path,) for path in known if path not in orphans and path not in undecided]
            database.executemany("DELETE FROM orphans WHERE path = ?", gone)
            for path, reason in orphans.items():
                since, seen, seconds = known.get(path, (now.isoformat(), now, 0.0))
                older = min(longest, max(timedelta(0), now - seen)).total_seconds()
                database.execute(
                    "REPLACE INTO orphans VALUES (?, ?, ?, ?, ?)",
                    (path, reason, since, now.isoformat(), seconds + older),
                )
        return self.orphans()

    def orphans(self) -> Mapping[str, Orphan]:
        """What nobody asked for when that was last looked at, by path."""
        rows = self._database.execute("SELECT path, reason, since, seconds FROM orphans")
        return {
            path: Orphan(reason, datetime.fromisoformat(since), timedelta(seconds=seconds))
            for path, reason, since, seconds in rows
        }

    @staticmethod
    def _event(
        database: sqlite3.Connection, at: datetime, link: str, name: str, event: str, digest: str | None, detail: str
    ) -> None:
        database.execute(
            "INSERT INTO events (at, link, name, event, digest, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (at.astimezone(UTC).isoformat(), link, name, event, digest, detail),
        )

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=10)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    @staticmethod
    def _prepare(database: sqlite3.Connection) -> None:
        """See that the database is whole and has our tables; make them in an empty one."""
        verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        columns = {
            table: [column[1] for column in database.execute(f"PRAGMA table_info({table})")] for table in _COLUMNS
        }
        if version == 1 and columns == {**_COLUMNS, "orphans": []}:
            with database:
                database.executescript(f"BEGIN; {_FROM_1} PRAGMA user_version = {_VERSION}; COMMIT;")
            version, columns = _VERSION, _COLUMNS
        known = version == _VERSION and columns == _COLUMNS
        if not known and (version != 0 or database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]):
            raise sqlite3.DatabaseError(f"version {version} with other tables than those of version {_VERSION}")
        database.execute("PRAGMA journal_mode = WAL")
        # A power cut may cost the last cycle's memory; the repository has what counts.
        database.execute("PRAGMA synchronous = NORMAL")
        if known:
            return
        with database:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_suffix(".damaged")
        log.warning("the state database is damaged (%s); moved to %s, history begins anew", error, aside)
        # The log first: a new database must never meet an old one's.
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn what SQLite says into an error for a person."""
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise NoSpace(
                    f"no space left for the state database {self.path}", found=str(error), todo="free space there"
                ) from error
            raise RepositoryUnavailable(
                f"the state database {self.path} cannot be used",
                found=str(error),
                todo="see that the directory is writable and no other process holds the database; if the file is"
                " damaged, remove it: history is lost, and no image",
            ) from error
        except OSError as error:
            with os_errors(f"to the state directory {self.path.parent}"):
                raise error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One SQLite transaction."""
        with self._usable(), self._database as database:
            yield database
