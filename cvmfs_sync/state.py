"""The state database: a cache with a memory.

What a name meant when it was last asked, which images failed and why, and what happened to each, in SQLite. The
repository is the truth: a database that is lost, damaged or of another version costs its history and a few requests,
never an image, so it is set aside and begun anew. One process uses it at a time; `locking`
sees to that.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cvmfs_sync.errors import InvalidReference, NoSpace, RepositoryUnavailable
from cvmfs_sync.reference import Digest
from cvmfs_sync.rootfs import os_errors

__all__ = ["Event", "Failure", "NumberedEvent", "Orphan", "State"]

log = logging.getLogger(__name__)
_VERSION = 3
_SCHEMA = """
CREATE TABLE seen (
    name TEXT NOT NULL, platform TEXT NOT NULL, source TEXT NOT NULL, digest TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (name, platform)
) WITHOUT ROWID;
CREATE TABLE failures (
    link TEXT PRIMARY KEY, name TEXT NOT NULL, reason TEXT NOT NULL, temporary INTEGER NOT NULL, count INTEGER NOT NULL,
    since TEXT NOT NULL, last TEXT NOT NULL, next_try TEXT, source TEXT, wish TEXT
) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, link TEXT NOT NULL, name TEXT NOT NULL, event TEXT NOT NULL,
    digest TEXT, detail TEXT NOT NULL
);
CREATE INDEX events_by_link ON events (link, id);
CREATE TABLE orphans (
    path TEXT PRIMARY KEY, reason TEXT NOT NULL, since TEXT NOT NULL, seen TEXT NOT NULL, seconds REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE notes (
    key TEXT PRIMARY KEY, value TEXT NOT NULL
) WITHOUT ROWID;
"""
_COLUMNS = {
    "seen": ["name", "platform", "source", "digest", "at"],
    "failures": ["link", "name", "reason", "temporary", "count", "since", "last", "next_try", "source", "wish"],
    "events": ["id", "at", "link", "name", "event", "digest", "detail"],
    "orphans": ["path", "reason", "since", "seen", "seconds"],
    "notes": ["key", "value"],
}
_NOTES = _SCHEMA[_SCHEMA.index("CREATE TABLE notes") :]
_ORPHANS = _SCHEMA[_SCHEMA.index("CREATE TABLE orphans") : _SCHEMA.index("CREATE TABLE notes")]
_FROM_2 = f"{_NOTES} " + " ".join(f"ALTER TABLE failures ADD COLUMN {name} TEXT;" for name in _COLUMNS["failures"][7:])
_BEFORE_3 = {**_COLUMNS, "failures": _COLUMNS["failures"][:7], "notes": []}
# What older versions had, and what makes the present one of it.
_MIGRATIONS = {1: ({**_BEFORE_3, "orphans": []}, f"{_ORPHANS} {_FROM_2}"), 2: (_BEFORE_3, _FROM_2)}


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that failed when it was last tried.

    Attributes:
        count: Failures in a row.
        since: First of them, UTC.
        last: Latest of them, UTC.
        next_try: When a cycle tries it again, UTC; None for the next one.
        source: What the name meant then, as far as that was known.
        wish: By which the list's entry is known again.
    """

    name: str
    reason: str
    temporary: bool
    count: int
    since: datetime
    last: datetime
    next_try: datetime | None = None
    source: str | None = None
    wish: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a link: `published`, `linked` to a tree that was there, `failed`, `recovered`."""

    at: datetime
    name: str
    event: str
    digest: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event with its place in the history of all links.

    Attributes:
        number: Later ones have greater numbers.
        before: What the link led to, if it leads somewhere since this event and did so before.
    """

    number: int
    at: datetime
    link: str
    name: str
    event: str
    digest: str | None
    detail: str
    before: str | None


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

    _listener: Callable[[], object] | None = None
    _eventful = False

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.sqlite"
        with os_errors(f"to the state directory {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
        self._together = False
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
        state._together = False
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

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write all that the block notes in one go at its end, or nothing of it after an error.

        Thousands of notes cost little then. Nobody else uses the database meanwhile. A block inside another is a part
        of that.
        """
        if self._together:
            yield
            return
        with self._writing():
            self._together = True
            try:
                yield
            finally:
                self._together = False

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

    def sources(self) -> Mapping[tuple[str, str], tuple[str, str]]:
        """What each name, for each platform, meant when it was last asked, and the manifest which that held."""
        rows = self._database.execute("SELECT name, platform, source, digest FROM seen")
        return {(name, platform): (source, digest) for name, platform, source, digest in rows}

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

    def failed(
        self,
        link: str,
        name: str,
        reason: str,
        *,
        temporary: bool,
        at: datetime,
        next_try: datetime | None = None,
        source: Digest | None = None,
        wish: str | None = None,
    ) -> None:
        """Count a failure; see `Failure` for what is noted of it."""
        now = at.isoformat()
        first = self.failure(link) is None
        later = next_try.isoformat() if next_try else None
        with self._writing() as database:
            database.execute(
                "INSERT INTO failures VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?) ON CONFLICT (link) DO UPDATE SET"
                " name = excluded.name, reason = excluded.reason, temporary = excluded.temporary,"
                " count = count + 1, last = excluded.last, next_try = excluded.next_try, source = excluded.source,"
                " wish = excluded.wish",
                (link, name, reason, temporary, now, now, later, str(source) if source else None, wish),
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
            "SELECT name, reason, temporary, count, since, last, next_try, source, wish FROM failures WHERE link = ?",
            (link,),
        ).fetchone()
        if row is None:
            return None
        name, reason, temporary, count, since, last, next_try, source, wish = row
        return Failure(
            name, reason, bool(temporary), count, datetime.fromisoformat(since), datetime.fromisoformat(last),
            datetime.fromisoformat(next_try) if next_try else None, source, wish,
        )  # fmt: skip

    def failing(self) -> tuple[str, ...]:
        """The names, with their platforms, of all links that failed when they were last tried."""
        return tuple(name for (name,) in self._database.execute("SELECT name FROM failures ORDER BY name"))

    def note(self, key: str, value: str) -> None:
        """Keep a text under a key."""
        if self.noted(key) != value:
            with self._writing() as database:
                database.execute("REPLACE INTO notes VALUES (?, ?)", (key, value))

    def noted(self, key: str) -> str | None:
        """What is kept under a key."""
        row = self._database.execute("SELECT value FROM notes WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else None

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

    def listen(self, listener: Callable[[], object]) -> None:
        """Have this called, which must not fail, whenever events have been added and are on disk."""
        self._listener = listener

    def last_event(self) -> int:
        """The number of the latest event, 0 before the first."""
        return int(self._database.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])

    def events_since(self, number: int) -> Sequence[NumberedEvent]:
        """What happened after that event, oldest first."""
        rows = self._database.execute(
            "SELECT id, at, link, name, event, digest, detail, CASE WHEN event IN ('published', 'linked') THEN (SELECT"
            " CASE WHEN old.event IN ('published', 'linked') THEN old.digest END FROM events AS old WHERE old.link ="
            " events.link AND old.id < events.id AND old.event NOT IN ('failed', 'recovered') ORDER BY old.id DESC"
            " LIMIT 1) END FROM events WHERE id > ? ORDER BY id",
            (number,),
        )
        return [NumberedEvent(id_, datetime.fromisoformat(at), *rest) for id_, at, *rest in rows]

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
            longest: Between two looks that are further apart nobody knows what was; that time does not count.
        """
        with self._writing() as database:
            rows = database.execute("SELECT path, since, seen, seconds FROM orphans").fetchall()
            known = {path: (since, datetime.fromisoformat(seen), seconds) for path, since, seen, seconds in rows}
            gone = [(path,) for path in known if path not in orphans and path not in undecided]
            database.executemany("DELETE FROM orphans WHERE path = ?", gone)
            for path, reason in orphans.items():
                since, seen, seconds = known.get(path, (now.isoformat(), now, 0.0))
                gap = now - seen
                older = gap.total_seconds() if timedelta(0) <= gap <= longest else 0.0
                database.execute(
                    "REPLACE INTO orphans VALUES (?, ?, ?, ?, ?)",
                    (path, reason, since, now.isoformat(), seconds + older),
                )
            database.executemany(
                "UPDATE orphans SET seen = ? WHERE path = ?", [(now.isoformat(), path) for path in undecided]
            )
        return self.orphans()

    def hold_orphans(self, now: datetime) -> None:
        """Note that nobody can tell now who is an orphan: all that is known stays, and nothing grows older."""
        with self._writing() as database:
            database.execute("UPDATE orphans SET seen = ?", (now.isoformat(),))

    def inherit(self, orphans: Mapping[str, Orphan], now: datetime) -> None:
        """Note orphans that have waited with others: should their removal be interrupted, they need not wait again."""
        with self._writing() as database:
            database.executemany(
                "REPLACE INTO orphans VALUES (?, ?, ?, ?, ?)",
                [
                    (path, orphan.reason, orphan.since.isoformat(), now.isoformat(), orphan.age.total_seconds())
                    for path, orphan in orphans.items()
                ],
            )

    def orphans(self) -> Mapping[str, Orphan]:
        """What nobody asked for when that was last looked at, by path."""
        rows = self._database.execute("SELECT path, reason, since, seconds FROM orphans")
        return {
            path: Orphan(reason, datetime.fromisoformat(since), timedelta(seconds=seconds))
            for path, reason, since, seconds in rows
        }

    def _event(
        self, database: sqlite3.Connection, at: datetime, link: str, name: str, event: str, digest: str | None, why: str
    ) -> None:
        self._eventful = True
        database.execute(
            "INSERT INTO events (at, link, name, event, digest, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (at.astimezone(UTC).isoformat(), link, name, event, digest, why),
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
        before, steps = _MIGRATIONS.get(version, (None, ""))
        if columns == before:
            with database:
                database.executescript(f"BEGIN; {steps} PRAGMA user_version = {_VERSION}; COMMIT;")
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
        """One SQLite transaction, or a part of the one of `together`."""
        if self._together:
            yield self._database
            return
        with self._usable(), self._database as database:
            yield database
        if self._eventful and self._listener is not None:
            self._eventful = False
            self._listener()
