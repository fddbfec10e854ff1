"""What we are about to do with a transaction, on disk before it is done.

One small file for each repository. A run that was killed leaves it, and the next one reads what it may call its own.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cvmfs_sync.repository.files import sync_directory, write_new
from cvmfs_sync.rootfs import os_errors

__all__ = ["Journal", "LockId", "Note", "lock_id"]

log = logging.getLogger(__name__)
_VERSION = 1
State = Literal["opening", "open", "publishing"]
_STATES: tuple[State, ...] = ("opening", "open", "publishing")

LockId = tuple[int, int]
"""Inode and time of a lock file: a lock that was released and taken again has another."""


@dataclass(frozen=True, slots=True)
class Note:
    """One transaction of ours.

    Attributes:
        identity: Random; the first thing that is written into the transaction.
        state: How far we had got; the note is written before the step that it names, `open` right after it. An `ingest`
            is `opening` to its end: nothing is ever written into its transaction.
        purpose: For people.
        started: When the latest attempt to open it began, in seconds since the epoch.
        before: The server's lock that was there before that attempt: somebody else's.
        lock: The server's lock of our open transaction.
    """

    identity: str
    state: State
    purpose: str
    started: float
    before: LockId | None = None
    lock: LockId | None = None


def lock_id(path: Path) -> LockId | None:
    """The identity of a lock file, or None if it is not there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


class Journal:
    """The file.

    Args:
        path: Its directory is made when it is needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, note: Note) -> None:
        """Replace the note: the old one or the new one is on disk, never half of one."""
        fresh = self.path.with_name(f"{self.path.name}.new")
        with os_errors(f"to the journal {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            write_new(fresh, json.dumps({"version": _VERSION, **asdict(note)}).encode())
            fresh.rename(self.path)
            sync_directory(self.path.parent)

    def read(self) -> Note | None:
        """The note; None if there is none. One that can't be read is put aside: it proves nothing."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            with os_errors(f"to the journal {self.path}"):
                raise error
        note = _parse(content)
        if note is None:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            log.warning("the journal %s is damaged and proves nothing; moved to %s", self.path, aside)
            with os_errors(f"to the journal {self.path}"):
                self.path.rename(aside)
        return note

    def forget(self) -> None:
        """Nothing of ours is open."""
        with os_errors(f"to the journal {self.path}"):
            self.path.unlink(missing_ok=True)
            self.path.with_name(f"{self.path.name}.new").unlink(missing_ok=True)


def _parse(content: bytes) -> Note | None:
    try:
        document = json.loads(content)
        if document["version"] != _VERSION or document["state"] not in _STATES:
            return None
        identity, purpose = document["identity"], document["purpose"]
        if not (isinstance(identity, str) and len(identity) >= 32 and isinstance(purpose, str)):
            return None
        return Note(
            identity, document["state"], purpose, float(document["started"]),
            _lock(document["before"]), _lock(document["lock"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None


def _lock(value: object) -> LockId | None:
    match value:
        case [int(inode), int(time)]:
            return inode, time
        case None:
            return None
        case _:
            raise TypeError(value)
