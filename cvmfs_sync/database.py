"""The file of the state database: its tables, its versions, and how it is opened.

A path goes in, a connection comes out: to a database that is whole and has the tables of this version. One of an older
version is taken over; one that is damaged, or of another version, is set aside and begun anew. What the tables mean is
the business of `state`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from cvmfs_sync.errors import NoSpace, RepositoryUnavailable
from cvmfs_sync.rootfs import os_errors

__all__ = ["copy_of", "empty", "open_database", "open_readonly", "usable"]

log = logging.getLogger(__name__)
_VERSION = 4
_SCHEMA = """
CREATE TABLE seen (
    name TEXT NOT NULL, platform TEXT NOT NULL, source TEXT NOT NULL, digest TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (name, platform)
) WITHOUT ROWID;
CREATE TABLE failures (
    link TEXT PRIMARY KEY, name TEXT NOT NULL, reason TEXT NOT NULL, temporary INTEGER NOT NULL, count INTEGER NOT NULL,
    since TEXT NOT NULL, last TEXT NOT NULL, next_try TEXT, source TEXT, wish TEXT, kind TEXT
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
CREATE INDEX events_by_event ON events (event, id);
CREATE TABLE log_lines (
    link TEXT NOT NULL, number INTEGER NOT NULL, at TEXT NOT NULL, level TEXT NOT NULL, message TEXT NOT NULL,
    PRIMARY KEY (link, number)
) WITHOUT ROWID;
"""
_COLUMNS = {
    "seen": ["name", "platform", "source", "digest", "at"],
    "failures": ["link", "name", "reason", "temporary", "count", "since", "last", "next_try", "source", "wish", "kind"],
    "events": ["id", "at", "link", "name", "event", "digest", "detail"],
    "orphans": ["path", "reason", "since", "seen", "seconds"],
    "notes": ["key", "value"],
    "log_lines": ["link", "number", "at", "level", "message"],
}
# What came with each version, as SQL.
_NEW_IN_4 = _SCHEMA[_SCHEMA.index("CREATE INDEX events_by_event") :]
_NOTES = _SCHEMA[_SCHEMA.index("CREATE TABLE notes") : _SCHEMA.index(_NEW_IN_4)]
_ORPHANS = _SCHEMA[_SCHEMA.index("CREATE TABLE orphans") : _SCHEMA.index("CREATE TABLE notes")]


def _columns_added(names: list[str]) -> str:
    return " ".join(f"ALTER TABLE failures ADD COLUMN {name} TEXT;" for name in names)


_FROM_3 = f"{_columns_added(['kind'])} {_NEW_IN_4}"
_FROM_2 = f"{_NOTES} {_columns_added(['next_try', 'source', 'wish'])} {_FROM_3}"
_IN_3 = {**_COLUMNS, "failures": _COLUMNS["failures"][:10], "log_lines": []}
_IN_2 = {**_IN_3, "failures": _COLUMNS["failures"][:7], "notes": []}
# What older versions had, and what makes the present one of it.
_MIGRATIONS = {
    1: ({**_IN_2, "orphans": []}, f"{_ORPHANS} {_FROM_2}"),
    2: (_IN_2, _FROM_2),
    3: (_IN_3, _FROM_3),
}


def open_database(path: Path) -> sqlite3.Connection:
    """The database for the one who writes it; made if it is not there.

    Raises:
        RepositoryError: It can't be used.
    """
    with usable(path):
        try:
            return _opened(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            _set_aside(path, error)
            return _opened(path)


def open_readonly(path: Path) -> sqlite3.Connection | None:
    """The database for those who read it while another process writes; None if there is none, or of another version.

    Threads may share the connection. Each query sees what was committed before it.

    Raises:
        RepositoryUnavailable: It is there and can't be read.
    """
    with usable(path):
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        if os.geteuid() not in (0, status.st_uid) and os.access(path.parent, os.W_OK):
            # Who reads makes files beside the database that whoever writes needs; SQLite gives root's to the owner.
            raise RepositoryUnavailable(
                f"the state database {path} belongs to another user",
                found=f"user {os.geteuid()}", expected=f"user {status.st_uid}",
                todo="run this as the user that the daemon runs as",
            )  # fmt: skip
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10, check_same_thread=False)
        try:
            version = database.execute("PRAGMA user_version").fetchone()[0]
        except BaseException:
            database.close()
            raise
        if version == _VERSION:
            return database
        database.close()
        log.info("the state database %s is of version %d, not %d", path, version, _VERSION)
        return None


def copy_of(path: Path) -> sqlite3.Connection:
    """A copy in memory; an empty one if there is no database, or none that this user may read. Nothing is made."""
    copy = empty()
    # Without `immutable`, SQLite would make files beside the database, with the owner of whoever looks.
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as stored:
            if stored.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
                stored.backup(copy)
    except (sqlite3.Error, OSError) as error:
        log.info("no history: %s: %s", path, error)
        copy.close()
        return empty()
    return copy


def empty() -> sqlite3.Connection:
    """A database in memory in which nothing is remembered; threads may share it."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
    return database


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn what SQLite says of the database into an error for a person.

    Raises:
        RepositoryError: In place of SQLite's errors and those of the operating system.
    """
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise NoSpace(
                f"no space left for the state database {path}", found=str(error), todo="free space there"
            ) from error
        raise RepositoryUnavailable(
            f"the state database {path} cannot be used",
            found=str(error),
            todo="see that the directory is writable and no other process holds the database; if the file is"
            " damaged, remove it: history is lost, and no image",
        ) from error
    except OSError as error:
        with os_errors(f"to the state directory {path.parent}"):
            raise error


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=10)
    try:
        _prepare(database)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection) -> None:
    """See that the database is whole and has our tables; make them in an empty one."""
    verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    version = database.execute("PRAGMA user_version").fetchone()[0]
    columns = {table: [column[1] for column in database.execute(f"PRAGMA table_info({table})")] for table in _COLUMNS}
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


def _set_aside(path: Path, error: sqlite3.DatabaseError) -> None:
    aside = path.with_suffix(".damaged")
    log.warning("the state database is damaged (%s); moved to %s, history begins anew", error, aside)
    # The log first: a new database must never meet an old one's.
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
