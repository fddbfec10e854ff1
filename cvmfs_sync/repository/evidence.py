"""Whose transaction is it: what the server's spool directory tells of the one that is open.

A note of the journal and the spool directory go in; whether the open transaction is the note's, whether it has been
published, and who else holds it come out. Nothing is changed here.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cvmfs_sync.layout import OWN
from cvmfs_sync.repository.journal import LockId, Note, lock_id
from cvmfs_sync.rootfs import os_errors

__all__ = ["ID_FILE", "Evidence", "id_in", "spool_of"]

ID_FILE = f"{OWN}/transaction"
"""Names the last transaction of ours; published with it."""
_CONFIGURATION = Path("/etc/cvmfs/repositories.d")
_OPENING_WINDOW_SECONDS = 60.0
# A file's time is that of the last tick of the kernel's clock.
_TICK_SECONDS = 0.1
# A mounted client has it at its root.
_ROOT_HASH = "user.root_hash"
_NO_ATTRIBUTE = frozenset({errno.ENODATA, errno.ENOENT, errno.ENOTSUP})


class Evidence:
    """What the spool directory of a repository shows.

    Args:
        spool: The directory.
        root: The repository's mount, for what can be seen without it.
    """

    def __init__(self, spool: Path, root: Path) -> None:
        self.spool = spool
        self._root = root
        self._lock = spool / "in_transaction.lock"
        self.scratch = spool / "scratch/current"
        self._rdonly = spool / "rdonly"

    def seen(self) -> bool:
        """Whether there is anything to see: without the spool directory, only an id at the root proves anything."""
        return self.spool.is_dir()

    def unmounted(self) -> bool:
        """Whether it is plain to see that the repository is not mounted: then it looks as if nothing were published."""
        if not self.seen() or self._rdonly.is_mount():
            return False
        try:
            os.getxattr(self._rdonly, _ROOT_HASH)
        except OSError as error:
            return error.errno in _NO_ATTRIBUTE
        return False

    def lock(self) -> LockId | None:
        """The identity of the open transaction's lock."""
        with os_errors(f"to the spool {self.spool}"):
            return lock_id(self._lock)

    def is_ours(self, note: Note) -> bool:
        """Whether a transaction is open and is the note's."""
        lock = self.lock()
        if lock is None:
            return False
        if lock == note.lock:
            return True
        if id_in(self.scratch / ID_FILE) == note.identity and not self.published(note):
            return True
        return note.state == "opening" and lock != note.before and self._untouched_since(note.started)

    def published(self, note: Note) -> bool:
        """Whether the mounted revision, or without a view of it the root, is that of the note's transaction."""
        published = self._rdonly if self.seen() else self._root
        return id_in(published / ID_FILE) == note.identity

    def _untouched_since(self, started: float) -> bool:
        """Whether the open transaction began when ours would have, as this user's, and nobody has written into it."""
        try:
            status = self._lock.lstat()
        except FileNotFoundError:
            return False
        began = status.st_mtime
        if status.st_uid != os.geteuid() or started < _booted() <= began:
            return False
        if not started - _TICK_SECONDS <= began <= started + _OPENING_WINDOW_SECONDS:
            return False
        return not _differs(self.scratch, self._rdonly)

    def holder(self) -> str:
        """Since when a transaction is open and whose it is, as far as the lock and the scratch area tell."""
        try:
            since = datetime.fromtimestamp(self._lock.lstat().st_mtime, UTC)
            who = self._lock.owner()
        except (OSError, KeyError):
            return ""
        text = f"the transaction is open since {since:%Y-%m-%d %H:%M:%S}Z, its lock belongs to {who}"
        path = self.scratch / ID_FILE
        # An emulated or fuse-overlayfs scratch area may show what is published, too.
        if id_in(path) in (None, id_in(self._rdonly / ID_FILE)):
            return text
        with suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()[1:]
            text += "; it says: " + re.sub(r"[^ -~]", "?", ", ".join(lines))[:300]
        return text


def spool_of(name: str) -> Path:
    """CVMFS_SPOOL_DIR of the repository's server.conf, else its default."""
    try:
        text = (_CONFIGURATION / name / "server.conf").read_text(errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^\s*(?:export\s+)?CVMFS_SPOOL_DIR=[\"']?([^\"'\s]+)", text, re.MULTILINE)
    return Path(match[1]) if match else Path("/var/spool/cvmfs") / name


def id_in(path: Path) -> str | None:
    """The first line of an id file."""
    try:
        with path.open(errors="replace") as stream:
            return stream.readline().strip() or None
    except OSError:
        return None


def _booted() -> float:
    """When this machine was started, in seconds since the epoch; see proc(5), btime. 0 if that can't be told."""
    with suppress(OSError):
        match = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
        if match:
            return float(match[1])
    return 0.0


def _differs(scratch: Path, published: Path) -> bool:
    """Whether a scratch area holds anything that is not published just so. An unreadable one counts as different."""

    def unreadable(error: OSError) -> None:
        raise error

    try:
        for directory, names, files in os.walk(scratch.resolve(), onerror=unreadable):
            relative = os.path.relpath(directory, scratch.resolve())
            for name in [*names, *files]:
                ours, theirs = os.lstat(Path(directory, name)), os.lstat(published / relative / name)
                if (ours.st_mode, ours.st_size, ours.st_mtime_ns) != (
                    theirs.st_mode,
                    theirs.st_size,
                    theirs.st_mtime_ns,
                ):
                    return True
    except OSError:
        return True
    return False
