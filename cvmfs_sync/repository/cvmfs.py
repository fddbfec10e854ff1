"""The CernVM-FS backend: `cvmfs_server transaction`, writes below `/cvmfs/<name>`, `cvmfs_server publish`.

What keeps an operator's transaction safe from us, and ours from a crash, is proof of ownership: a journal in the state
directory is written before a transaction is opened, names the server's lock as soon as it is, and has an id that is
the first thing written into the transaction. Only a transaction with that lock, or whose scratch area holds that id,
is ever published or aborted, with one exception that can lose nothing: an untouched transaction that appeared within a
minute of our own interrupted `cvmfs_server transaction` or `ingest`. See `evidence`.

Every known failure is told by command, exit code and the text of both streams: see `failures`.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from cvmfs_sync.errors import RepositoryBusy, RepositoryError, RepositoryUnavailable
from cvmfs_sync.locking import exclusive_lock
from cvmfs_sync.ports import Clone, Costs, Traits
from cvmfs_sync.repository.evidence import ID_FILE, Evidence, id_in, spool_of
from cvmfs_sync.repository.failures import Failure
from cvmfs_sync.repository.files import make_parents, plain_path, write_new
from cvmfs_sync.repository.journal import Journal, Note
from cvmfs_sync.repository.mounted import CvmfsTransaction
from cvmfs_sync.repository.server import Server
from cvmfs_sync.repository.surroundings import require_outside, require_shared_mounts
from cvmfs_sync.rootfs import os_errors

__all__ = ["CvmfsRepository"]

log = logging.getLogger(__name__)
# Trees in one `ingest -d`, whose paths are one argument of a command: 128 KiB is the longest that Linux takes.
_REMOVED_AT_ONCE = 500


class CvmfsRepository:
    """A `Repository` on this machine's stratum 0.

    Args:
        name: The repository's fully qualified name.
        root: Where it is mounted; `/cvmfs/<name>` if None.
        spool: The server's spool directory; told by server.conf, else `/var/spool/cvmfs/<name>`, if None.
        journal: File that remembers our open transaction.
        wait: How long to wait, for each command, for what may pass by itself.
        finishing: A block around the last phase of a publish, in which a request to stop can wait for its end.
    """

    # Fitted to what a server 2.12 took on two cores: publishing is bound by compressing and hashing; a clone reads no
    # content.
    traits = Traits(
        Costs(clone=0.7, cloned=20e-6, removed=150e-6, made=300e-6, byte=38e-9),
        keeps_hard_links=False, mtime_unit=1_000_000_000, shares_files=False,
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        journal: Path,
        root: Path | None = None,
        spool: Path | None = None,
        wait: timedelta = timedelta(minutes=5),
        sleep: Callable[[float], object] = time.sleep,
        finishing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.name = name
        self._finishing = finishing
        self.root = root or Path("/cvmfs") / name
        self._evidence = Evidence(spool or spool_of(name), self.root)
        self._journal = Journal(journal)
        self._server = Server(name, wait, sleep)

    @contextmanager
    def transaction(self, purpose: str, clone: Clone | None = None) -> Iterator[CvmfsTransaction]:
        """See `ports.Repository`."""
        template = () if clone is None else ("-T", f"{plain_path(clone.source)}={plain_path(clone.path)}")
        note = self._open(purpose, "transaction", template)
        note = replace(note, lock=self._evidence.lock())
        try:
            with os_errors(f"to the repository {self.root}"):
                note = self._claim(note)
                yield CvmfsTransaction(self.root, clone)
            if self._evidence.seen() and not self._evidence.is_ours(note):
                raise RepositoryUnavailable(
                    f"the transaction on {self.name} was ended by somebody else while cvmfs-sync was writing",
                    found=self._evidence.holder() or "no transaction is open",
                    todo="find out who ran `cvmfs_server abort` or `publish`, then sync again",
                )
            note = replace(note, state="publishing")
            self._journal.write(note)
            with self._finishing():
                self._server.run("publish", note=note)
        except BaseException as error:
            self._discard(note, error, opened=True)
            publishing = note.state == "publishing" and isinstance(error, RepositoryError)
            if not (publishing and self._evidence.published(note)):
                raise
            log.warning("clients see the revision all the same: %s", error)
            return
        self._journal.forget()

    def remove_trees(self, paths: Sequence[str]) -> None:
        """See `ports.Repository`. By `ingest -d`: at the level of catalogs, without a transaction of its own."""
        self._mount_again()
        there = [path for path in paths if os.path.lexists(self.root / plain_path(path))]
        for start in range(0, len(there), _REMOVED_AT_ONCE):
            self._remove(there[start : start + _REMOVED_AT_ONCE])

    def _remove(self, paths: Sequence[str]) -> None:
        self._open(f"remove {len(paths)} trees", "ingest", ("-d", ":".join(paths)))
        self._journal.forget()
        left = [path for path in paths if os.path.lexists(self.root / path)]
        if left:
            raise RepositoryUnavailable(
                f"trees of {self.name} were not removed although cvmfs_server says so",
                found=f"{len(left)} of {len(paths)}, such as {left[0]}",
                todo=f"`cvmfs_server check {self.name}`",
            )

    def collect_garbage(self) -> None:
        """See `ports.Repository`. Auto tags keep what they name for as long as the server's configuration says."""
        self._server.run("gc", "-f")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `ports.Repository`. Where the spool is not this user's to write, the state directory's lock must do."""
        if not os.access(self._evidence.spool, os.W_OK):
            yield
            return
        with exclusive_lock(self._evidence.spool / "cvmfs-sync.lock"):
            yield

    def recover(self) -> str | None:
        """See `ports.Repository`."""
        found = None
        note = self._journal.read()
        if note is not None:
            self._server.wait_for_orphan(note)
            found = self._settle(note) if self._evidence.seen() else self._settle_blindly(note)
        self._mount_again()
        return found

    def _mount_again(self) -> None:
        """Mount a repository that a reboot has left unmounted, before anybody takes it for empty.

        Not within a transaction: it is somebody else's, and theirs to mount.
        """
        if self._evidence.lock() is None and self._evidence.unmounted():
            log.warning("%s is not mounted: mounting it again", self.name)
            self._server.run("mount")

    def _open(self, purpose: str, command: str, options: tuple[str, ...]) -> Note:
        """Run a command that takes the server's lock, the journal telling of each attempt.

        `ingest` releases it before it returns, unless it fails; then its transaction is aborted here.
        """
        require_outside(self.root, self.name)
        require_shared_mounts(self.name)
        note = Note(secrets.token_hex(16), "opening", purpose, time.time())

        def attempt() -> None:
            nonlocal note
            note = replace(note, started=time.time(), before=self._evidence.lock(), lock=None)
            self._journal.write(note)

        def clean_up(failure: Failure) -> None:
            nonlocal note
            if command != "ingest" or not failure.left_open:
                return
            # The next attempt would find its predecessor's transaction, and take it for somebody else's.
            if not self._evidence.seen() or self._evidence.is_ours(note):
                note = replace(note, lock=self._evidence.lock())
                self._journal.write(note)
                self._abort()
                note = replace(note, lock=None)

        try:
            self._server.run(command, *options, note=note, before=attempt, after=clean_up)
        except BaseException as error:
            if isinstance(error, RepositoryBusy) and note.lock is None:
                if holder := self._evidence.holder():
                    error.found = f"{error.found}; {holder}"
                self._journal.forget()
            else:
                self._discard(note, error, opened=False)
            raise
        return note

    def _claim(self, note: Note) -> Note:
        """Write our id into the transaction, and see that it landed in the scratch area and not below the mount.

        The journal has the lock's identity before anything is written: half an id proves nothing.
        """
        note = replace(note, state="open")
        self._journal.write(note)
        path = make_parents(self.root, ID_FILE)
        path.unlink(missing_ok=True)
        who = f"{note.identity}\n{note.purpose}\nopened by cvmfs-sync\n"
        write_new(path, who.encode())
        scratch = self._evidence.scratch
        if scratch.is_dir() and id_in(scratch / ID_FILE) != note.identity:
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()
            raise RepositoryUnavailable(
                f"{self.root} is not the repository's writable mount",
                found=f"what is written there does not appear in {scratch}",
                todo=f"check `mount` and repository.root; `cvmfs_server mount {self.name}` mounts it again",
            )
        return note

    def _discard(self, note: Note, error: BaseException, *, opened: bool) -> None:
        """End our transaction after an error, if it is still there.

        If that fails the journal stays, the next start tries again, and the error says so.
        """
        try:
            if self._evidence.seen():
                self._settle(note)
            elif opened:
                self._abort()
            else:
                self._journal.forget()
        except RepositoryError as failure:
            log.error("our transaction on %s is still open: %s", self.name, failure)
            left = f"our transaction on {self.name} is still open; the next sync aborts it"
            if isinstance(error, RepositoryError):
                error.found = f"{error.found}; {left}: {failure.what}"
            elif isinstance(error, Exception):
                failure.found = f"{failure.found}; {left}"
                raise failure from error

    def _settle(self, note: Note) -> str | None:
        """Abort the open transaction if it is the note's; say what was found."""
        ours = self._evidence.is_ours(note)
        if ours:
            self._abort()
        # A publish that had got as far as the signature has happened, whatever became of its transaction.
        if self._evidence.published(note):
            self._journal.forget()
            return f"the last transaction on {self.name} had been published before we were interrupted"
        if ours:
            return f"aborted our interrupted transaction on {self.name}"
        self._journal.forget()
        return None if self._evidence.lock() is None else f"left a transaction on {self.name} alone that is not ours"

    def _settle_blindly(self, note: Note) -> str | None:
        """Without a view of the spool, an id at the root proves an open transaction only before its publish began."""
        if id_in(self.root / ID_FILE) != note.identity:
            self._journal.forget()
            return None
        if note.state == "publishing":
            raise RepositoryUnavailable(
                f"a publish of {self.name} was interrupted, and whether it is still open cannot be seen",
                found=f"no spool directory {self._evidence.spool}",
                expected="the server's spool directory",
                todo=f"set repository.spool; or `cvmfs_server abort -f {self.name}` and remove {self._journal.path}",
            )
        self._abort()
        return f"aborted our interrupted transaction on {self.name}"

    def _abort(self) -> None:
        """Discard our transaction, whose ownership the caller has proved."""
        try:
            self._server.run("abort", "-f")
        except RepositoryError as error:
            if "is not in a transaction" not in str(error):
                raise
        self._journal.forget()
