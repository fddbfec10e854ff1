"""The CernVM-FS backend: `cvmfs_server transaction`, writes below `/cvmfs/<name>`, `cvmfs_server publish`.

What keeps an operator's transaction safe from us, and ours from a crash, is proof of ownership: a journal in the state
directory is written before a transaction is opened, and the same id is the first thing written into the transaction.
Only a transaction whose scratch area holds the journal's id is ever aborted, with one exception that can lose nothing:
an untouched transaction that appeared within a minute of our own interrupted `cvmfs_server transaction`.

Every known failure is told by command, exit code and the text of both streams: see `FAILURES`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cvmfs_sync.errors import (
    CvmfsSyncError,
    NoSpace,
    NotOwner,
    RepositoryBusy,
    RepositoryError,
    RepositoryUnavailable,
)
from cvmfs_sync.layout import OWN
from cvmfs_sync.repository.commands import Completed, run
from cvmfs_sync.repository.files import make_parents, sync_directory, write_new
from cvmfs_sync.rootfs import os_errors, remove_tree

__all__ = ["FAILURES", "CvmfsRepository", "Failure"]

log = logging.getLogger(__name__)

ID_FILE = f"{OWN}/transaction"
"""Names the last transaction of ours; published with it."""
_CONFIGURATION = Path("/etc/cvmfs/repositories.d")
_POLL_SECONDS = 5.0
_OPENING_WINDOW_SECONDS = 60.0


class CvmfsRepository:
    """A `Repository` on this machine's stratum 0.

    Args:
        name: The repository's fully qualified name.
        root: Where it is mounted; `/cvmfs/<name>` if None.
        spool: The server's spool directory; told by server.conf, else `/var/spool/cvmfs/<name>`, if None.
        journal: File that remembers our open transaction.
        wait: How long to wait for what may pass by itself.
    """

    def __init__(
        self,
        name: str,
        *,
        journal: Path,
        root: Path | None = None,
        spool: Path | None = None,
        wait: timedelta = timedelta(minutes=5),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self.root = root or Path("/cvmfs") / name
        self._spool = spool or _spool_of(name)
        self._journal = journal
        self._wait = wait
        self._sleep = sleep

    @contextmanager
    def transaction(self, purpose: str) -> Iterator[CvmfsTransaction]:
        """See `ports.Repository`."""
        identity = secrets.token_hex(16)
        self._note(identity, "opening", purpose)
        try:
            self._server("transaction")
        except CvmfsSyncError as error:
            # The command has ended, so nothing of ours is open.
            self._forget()
            if error.found is not None and (holder := self._scratch_note()):
                error.found += f"; its scratch area says: {holder}"
            raise
        try:
            with os_errors(f"to the repository {self.root}"):
                self._claim(identity, purpose)
                yield CvmfsTransaction(self.root)
            self._note(identity, "publishing", purpose)
            self._server("publish")
        except BaseException:
            self._abort()
            raise
        self._forget()

    def recover(self) -> str | None:
        """See `ports.Repository`."""
        note = self._read_journal()
        if note is None:
            return None
        identity, state = str(note.get("id")), note.get("state")
        if not self._spool.is_dir():
            return self._recover_blindly(identity, state)
        if _id_in(self._spool / "rdonly" / ID_FILE) == identity:
            self._forget()
            return f"the last transaction on {self.name} had been published before we were interrupted"
        lock = self._spool / "in_transaction.lock"
        if not lock.exists():
            self._forget()
            return None
        if _id_in(self._spool / "scratch/current" / ID_FILE) == identity or (
            state == "opening" and self._untouched_since(lock, note)
        ):
            self._abort()
            return f"aborted our interrupted transaction on {self.name}"
        self._forget()
        return f"left a transaction on {self.name} alone that is not ours"

    def _recover_blindly(self, identity: str, state: object) -> str | None:
        """Without a view of the spool, an id at the root proves an open transaction only before its publish began."""
        if state == "open" and _id_in(self.root / ID_FILE) == identity:
            self._abort()
            return f"aborted our interrupted transaction on {self.name}"
        if state == "publishing" and _id_in(self.root / ID_FILE) == identity:
            raise RepositoryUnavailable(
                f"a publish of {self.name} was interrupted, and whether it is still open cannot be seen",
                found=f"no spool directory {self._spool}",
                expected="the server's spool directory",
                todo=f"set repository.spool; or `cvmfs_server abort -f {self.name}` and remove {self._journal}",
            )
        self._forget()
        return None

    def _claim(self, identity: str, purpose: str) -> None:
        """Write our id into the transaction, and see that it landed in the scratch area and not below the mount."""
        path = make_parents(self.root, ID_FILE)
        path.unlink(missing_ok=True)
        who = f"{identity}\n{purpose}\ncvmfs-sync, process {os.getpid()} on {socket.gethostname()}\n"
        write_new(path, who.encode())
        scratch = self._spool / "scratch/current"
        if scratch.is_dir() and _id_in(scratch / ID_FILE) != identity:
            path.unlink()
            raise RepositoryUnavailable(
                f"{self.root} is not the repository's writable mount",
                found=f"what is written there does not appear in {scratch}",
                todo=f"check `mount` and repository.root; `cvmfs_server mount {self.name}` mounts it again",
            )
        self._note(identity, "open", purpose)

    def _untouched_since(self, lock: Path, note: dict[str, Any]) -> bool:
        """Whether the open transaction began when ours would have, and nobody has written anything into it."""
        started = float(note.get("started", 0))
        if not started - 1 <= lock.stat().st_mtime <= started + _OPENING_WINDOW_SECONDS:
            return False
        return not _differs(self._spool / "scratch/current", self._spool / "rdonly")

    def _abort(self) -> None:
        """Discard our transaction; if that fails the journal stays, and the next start tries again."""
        try:
            self._server("abort", "-f")
        except RepositoryError as error:
            if "is not in a transaction" not in str(error):
                log.error("our transaction on %s is still open: %s", self.name, error)
                raise
        self._forget()

    def _server(self, command: str, *options: str) -> Completed:
        """Run one subcommand, waiting for what may pass by itself.

        Raises:
            RepositoryError: The `Failure` that its exit code and streams tell.
        """
        deadline = time.monotonic() + self._wait.total_seconds()
        while True:
            completed = run(["cvmfs_server", command, *options, self.name])
            if completed.code == 0:
                log.info("cvmfs_server %s %s: %.1f s", command, self.name, completed.seconds)
                return completed
            failure = next(
                (f for f in FAILURES if command in f.commands and f.text in completed.out + completed.err), None
            )
            if failure is None:
                raise RepositoryUnavailable(
                    f"cvmfs_server {command} of {self.name} failed",
                    found=str(completed),
                    expected="exit code 0",
                    todo=f"`cvmfs_server check {self.name}` finds damage; the text above is the server's",
                )
            if not failure.busy or time.monotonic() >= deadline:
                raise failure.error(
                    failure.message.format(name=self.name),
                    found=str(completed),
                    todo=failure.todo.format(name=self.name),
                )
            log.info("%s; waiting", failure.message.format(name=self.name))
            self._sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def _note(self, identity: str, state: str, purpose: str) -> None:
        """Write the journal: the old one or the new one is on disk, never half of one."""
        document = {"version": 1, "id": identity, "state": state, "purpose": purpose, "started": time.time()}
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._journal.with_suffix(f".{identity[:8]}")
        write_new(fresh, json.dumps(document).encode())
        fresh.rename(self._journal)
        sync_directory(self._journal.parent)

    def _read_journal(self) -> dict[str, Any] | None:
        try:
            document = json.loads(self._journal.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            document = None
        if not isinstance(document, dict) or document.get("version") != 1:
            log.warning("the journal %s is not readable and is ignored", self._journal)
            self._forget()
            return None
        return document

    def _forget(self) -> None:
        self._journal.unlink(missing_ok=True)

    def _scratch_note(self) -> str:
        try:
            lines = (self._spool / "scratch/current" / ID_FILE).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return re.sub(r"[^ -~]", "?", ", ".join(lines[1:]))[:300]


class CvmfsTransaction:
    """A `Transaction` that writes into the mounted repository: the server makes it atomic."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def create_tree(self, path: str) -> Path:
        """See `ports.Transaction`."""
        final = make_parents(self._root, path)
        if final.is_symlink():
            final.unlink()
        else:
            remove_tree(final)
        final.mkdir()
        return final

    def write(self, path: str, content: bytes) -> None:
        """See `ports.Transaction`."""
        final = self._clear(path)
        write_new(final, content)

    def link(self, path: str, target: str) -> None:
        """See `ports.Transaction`."""
        self._clear(path).symlink_to(target)

    def _clear(self, path: str) -> Path:
        final = make_parents(self._root, path)
        if final.is_dir() and not final.is_symlink():
            remove_tree(final)
        else:
            final.unlink(missing_ok=True)
        return final


def _spool_of(name: str) -> Path:
    """CVMFS_SPOOL_DIR of the repository's server.conf, else its default."""
    try:
        text = (_CONFIGURATION / name / "server.conf").read_text(errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^\s*(?:export\s+)?CVMFS_SPOOL_DIR=[\"']?([^\"'\s]+)", text, re.MULTILINE)
    return Path(match[1]) if match else Path("/var/spool/cvmfs") / name


def _id_in(path: Path) -> str | None:
    try:
        with path.open(errors="replace") as stream:
            return stream.readline().strip() or None
    except OSError:
        return None


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
