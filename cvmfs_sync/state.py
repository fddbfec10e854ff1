"""The state database: a cache with a memory.

What a name meant when it was last asked, which images failed and why, and what happened to each, in SQLite. The
repository is the truth: a database that is lost, damaged or of another version costs its history and a few requests,
never an image, so it is set aside and begun anew. One process writes it at a time, to which `locking` sees; others may
read. How the file is opened, and made of older ones, is `database`'s business.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cvmfs_sync.database import copy_of, empty, open_database, open_readonly, usable
from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.reference import Digest
from cvmfs_sync.remembered import Event, Failure, LogLine, NumberedEvent, Orphan
from cvmfs_sync.rootfs import os_errors

__all__ = ["Event", "Failure", "LogLine", "NumberedEvent", "Orphan", "State"]

_LOG_LINES = 200
_LOG_MESSAGE = 2000
# What is gone for good leaves its events; nobody reads how it once was made.
_GONE = ("retired", "taken down")
_FAILURES = "SELECT link, name, reason, temporary, count, since, last, next_try, source, wish, kind FROM failures"
# With what the link led to before, if it leads somewhere since this event and did so before.
_EVENTS = (
    "SELECT id, at, link, name, event, digest, detail, CASE WHEN event IN ('published', 'linked') THEN (SELECT"
    " CASE WHEN old.event IN ('published', 'linked') THEN old.digest END FROM events AS old WHERE old.link ="
    " events.link AND old.id < events.id AND old.event NOT IN ('failed', 'recovered') ORDER BY old.id DESC"
    " LIMIT 1) END FROM events"
)


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
        self._database = open_database(self.path)
        self._file = _identity(self.path)

    @classmethod
    def snapshot(cls, directory: Path) -> Self:
        """A copy in memory, for those who only look: nothing is made or changed on disk.

        It is empty where there is no database, or none that this user may read.
        """
        path = directory / "state.sqlite"
        return cls._of(path, copy_of(path))

    @classmethod
    def empty(cls) -> Self:
        """One in which nothing is remembered, in memory; threads may share it."""
        return cls._of(Path(":memory:"), empty())

    @classmethod
    def open_readonly(cls, directory: Path) -> Self | None:
        """The database for another process than the one that writes it; None if there is none, or of another version.

        Nothing can be changed by it. Threads may share it, if none of them closes it while others read; each query sees
        what was committed before. A database that is set aside, or removed, is read on: see `replaced`.

        Raises:
            RepositoryUnavailable: It is there and can't be read, or only as another user.
        """
        path = directory / "state.sqlite"
        # Should it be replaced in between, `replaced` says so once too often, never once too seldom.
        file = _identity(path)
        database = open_readonly(path)
        return None if database is None else cls._of(path, database, file)

    @classmethod
    def _of(cls, path: Path, database: sqlite3.Connection, file: tuple[int, int] | None = None) -> Self:
        state = cls.__new__(cls)
        state._file = file
        state.path = path
        state._together = False
        state._database = database
        return state

    def replaced(self) -> bool:
        """Whether there is another file now, or none, where this one was opened."""
        return _identity(self.path) != self._file

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
        kind: str | None = None,
    ) -> None:
        """Count a failure; see `Failure` for what is noted of it."""
        now = at.isoformat()
        first = self.failure(link) is None
        later = next_try.isoformat() if next_try else None
        with self._writing() as database:
            database.execute(
                "INSERT INTO failures VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?) ON CONFLICT (link) DO UPDATE SET"
                " name = excluded.name, reason = excluded.reason, temporary = excluded.temporary,"
                " count = count + 1, last = excluded.last, next_try = excluded.next_try, source = excluded.source,"
                " wish = excluded.wish, kind = excluded.kind",
                (link, name, reason, temporary, now, now, later, str(source) if source else None, wish, kind),
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
        row = self._database.execute(f"{_FAILURES} WHERE link = ?", (link,)).fetchone()
        return _failure(*row[1:]) if row is not None else None

    def failing(self) -> tuple[str, ...]:
        """The names, with their platforms, of all links that failed when they were last tried."""
        return tuple(name for (name,) in self._database.execute("SELECT name FROM failures ORDER BY name"))

    def failures(self) -> Mapping[str, Failure]:
        """Why links failed when they were last tried, by link."""
        return {link: _failure(*row) for link, *row in self._database.execute(_FAILURES)}

    def checked(self) -> Mapping[tuple[str, str], datetime]:
        """When registries last answered, by name and platform."""
        rows = self._database.execute("SELECT name, platform, at FROM seen")
        return {(name, platform): datetime.fromisoformat(at) for name, platform, at in rows}

    def version(self) -> int:
        """Another number whenever another connection has changed the database."""
        return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def events_before(
        self, number: int | None, limit: int, *, link: str | None = None, event: str | None = None
    ) -> Sequence[NumberedEvent]:
        """What happened before that event, latest first; its latest if None.

        Args:
            number: Of an event.
            limit: At most so many.
            link: What happened to this link only.
            event: What is called so only.
        """
        where: dict[str, int | str | None] = {"id <": number, "link =": link, "event =": event}
        given = {condition: value for condition, value in where.items() if value is not None}
        conditions = f"WHERE {' AND '.join(f'{condition} ?' for condition in given)}" if given else ""
        rows = self._database.execute(f"{_EVENTS} {conditions} ORDER BY id DESC LIMIT ?", [*given.values(), limit])
        return [NumberedEvent(id_, datetime.fromisoformat(at), *rest) for id_, at, *rest in rows]

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
            if event in _GONE:
                database.execute("DELETE FROM log_lines WHERE link = ?", (link,))

    def keep_log(self, link: str, lines: Iterable[LogLine]) -> None:
        """Keep what was logged in the last pass of a link, instead of what was before; of too much, the latest."""
        latest = list(lines)[-_LOG_LINES:]
        with self._writing() as database:
            database.execute("DELETE FROM log_lines WHERE link = ?", (link,))
            database.executemany(
                "INSERT INTO log_lines VALUES (?, ?, ?, ?, ?)",
                [
                    (link, number, line.at.astimezone(UTC).isoformat(), line.level, line.message[:_LOG_MESSAGE])
                    for number, line in enumerate(latest)
                ],
            )

    def log_of(self, link: str) -> tuple[LogLine, ...]:
        """What was logged in the last pass of a link, oldest first."""
        rows = self._database.execute(
            "SELECT at, level, message FROM log_lines WHERE link = ? ORDER BY number", (link,)
        )
        return tuple(LogLine(datetime.fromisoformat(at), *rest) for at, *rest in rows)

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
            f"{_EVENTS} WHERE id > ? ORDER BY id",
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

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One SQLite transaction, or a part of the one of `together`."""
        if self._together:
            yield self._database
            return
        with usable(self.path), self._database as database:
            yield database
        if self._eventful and self._listener is not None:
            self._eventful = False
            self._listener()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _failure(
    name: str,
    reason: str,
    temporary: int,
    count: int,
    since: str,
    last: str,
    next_try: str | None,
    source: str | None,
    wish: str | None,
    kind: str | None,
) -> Failure:
    return Failure(
        name, reason, bool(temporary), count, datetime.fromisoformat(since), datetime.fromisoformat(last),
        datetime.fromisoformat(next_try) if next_try else None, source, wish, kind,
    )  # fmt: skip
