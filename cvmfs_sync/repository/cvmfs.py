"""The CernVM-FS backend: `cvmfs_server transaction`, writes below `/cvmfs/<name>`, `cvmfs_server publish`.

What keeps an operator's transaction safe from us, and ours from a crash, is proof of ownership: a journal in the state
directory is written before a transaction is opened, names the server's lock as soon as it is, and has an id that is
the first thing written into the transaction. Only a transaction with that lock, or whose scratch area holds that id,
is ever published or aborted, with one exception that can lose nothing: an untouched transaction that appeared within a
minute of our own interrupted `cvmfs_server transaction`.

Every known failure is told by command, exit code and the text of both streams: see `failures`.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_sync.errors import RepositoryBusy, RepositoryError, RepositoryUnavailable
from cvmfs_sync.layout import OWN
from cvmfs_sync.locking import exclusive_lock
from cvmfs_sync.ports import Clone, Costs, Traits
from cvmfs_sync.removal import remove_tree
from cvmfs_sync.repository.commands import Completed, run, still_running
from cvmfs_sync.repository.failures import failure_of
from cvmfs_sync.repository.files import make_parents, remove_empty_parents, write_new
from cvmfs_sync.repository.journal import Journal, LockId, Note, lock_id
from cvmfs_sync.repository.patience import pauses
from cvmfs_sync.rootfs import os_errors

__all__ = ["CvmfsRepository"]

log = logging.getLogger(__name__)

ID_FILE = f"{OWN}/transaction"
"""Names the last transaction of ours; published with it."""
_CONFIGURATION = Path("/etc/cvmfs/repositories.d")
_POLL_SECONDS = 5.0
_ORPHAN_POLL_SECONDS = 0.25
_OPENING_WINDOW_SECONDS = 60.0
# What cvmfs_server's shell takes for nothing but a path. `ingest -d` splits at ':', `transaction -T` at '='.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9.][A-Za-z0-9._-]*(?:/[A-Za-z0-9.][A-Za-z0-9._-]*)+")
# A file's time is that of the last tick of the kernel's clock.
_TICK_SECONDS = 0.1


class CvmfsRepository:
    """A `Repository` on this machine's stratum 0.

    Args:
        name: The repository's fully qualified name.
        root: Where it is mounted; `/cvmfs/<name>` if None.
        spool: The server's spool directory; told by server.conf, else `/var/spool/cvmfs/<name>`, if None.
        journal: File that remembers our open transaction.
        wait: How long to wait, for each command, for what may pass by itself.
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
    ) -> None:
        self.name = name
        self.root = root or Path("/cvmfs") / name
        self._spool = spool or _spool_of(name)
        self._lock = self._spool / "in_transaction.lock"
        self._scratch = self._spool / "scratch/current"
        self._rdonly = self._spool / "rdonly"
        self._journal = Journal(journal)
        self._wait = wait
        self._sleep = sleep

    @contextmanager
    def transaction(self, purpose: str, clone: Clone | None = None) -> Iterator[CvmfsTransaction]:
        """See `ports.Repository`."""
        template = () if clone is None else ("-T", f"{_plain(clone.source)}={_plain(clone.path)}")
        note = self._open(Note(secrets.token_hex(16), "opening", purpose, time.time()), "transaction", template)
        note = replace(note, lock=self._lock_id())
        try:
            with os_errors(f"to the repository {self.root}"):
                note = self._claim(note)
                yield CvmfsTransaction(self.root, clone)
            if self._sees_spool() and not self._is_ours(note):
                raise RepositoryUnavailable(
                    f"the transaction on {self.name} was ended by somebody else while cvmfs-sync was writing",
                    found=self._holder() or "no transaction is open",
                    todo="find out who ran `cvmfs_server abort` or `publish`, then sync again",
                )
            note = replace(note, state="publishing")
            self._journal.write(note)
            self._server("publish", note)
        except BaseException as error:
            self._discard(note, error, opened=True)
            if not (note.state == "publishing" and isinstance(error, RepositoryError) and self._published(note)):
                raise
            log.warning("clients see the revision all the same: %s", error)
            return
        self._journal.forget()

    def remove_trees(self, paths: Sequence[str]) -> None:
        """See `ports.Repository`. By `ingest -d`: at the level of catalogs, without a transaction of its own."""
        there = [path for path in paths if os.path.lexists(self.root / _plain(path))]
        if not there:
            return
        purpose = f"remove {len(there)} trees"
        note = Note(secrets.token_hex(16), "opening", purpose, time.time())
        note = self._open(note, "ingest", ("-d", ":".join(there)))
        self._journal.forget()
        left = [path for path in there if os.path.lexists(self.root / path)]
        if left:
            raise RepositoryUnavailable(
                f"trees of {self.name} were not removed although cvmfs_server says so",
                found=f"{len(left)} of {len(there)}, such as {left[0]}",
                todo=f"`cvmfs_server check {self.name}`",
            )

    def collect_garbage(self) -> None:
        """See `ports.Repository`. Auto tags keep what they name for as long as the server's configuration says."""
        self._server("gc", None, options=("-f",))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `ports.Repository`. Where the spool is not this user's to write, the state directory's lock must do."""
        if not os.access(self._spool, os.W_OK):
            yield
            return
        with exclusive_lock(self._spool / "cvmfs-sync.lock"):
            yield

    def recover(self) -> str | None:
        """See `ports.Repository`."""
        note = self._journal.read()
        if note is None:
            return None
        self._wait_for_orphan(note)
        if self._sees_spool():
            return self._settle(note)
        return self._settle_blindly(note)

    def _open(self, note: Note, command: str, options: tuple[str, ...]) -> Note:
        """Run a command that takes the server's lock, the journal telling of each attempt.

        `ingest` releases it before it returns, unless it fails.
        """

        def attempt() -> None:
            nonlocal note
            note = replace(note, started=time.time(), before=self._lock_id())
            self._journal.write(note)

        try:
            self._server(command, note, attempt, options=options)
        except RepositoryBusy as error:
            if holder := self._holder():
                error.found = f"{error.found}; {holder}"
            self._journal.forget()
            raise
        except BaseException as error:
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
        if self._scratch.is_dir() and _id_in(self._scratch / ID_FILE) != note.identity:
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()
            raise RepositoryUnavailable(
                f"{self.root} is not the repository's writable mount",
                found=f"what is written there does not appear in {self._scratch}",
                todo=f"check `mount` and repository.root; `cvmfs_server mount {self.name}` mounts it again",
            )
        return note

    def _discard(self, note: Note, error: BaseException, *, opened: bool) -> None:
        """End our transaction after an error, if it is still there.

        If that fails the journal stays, the next start tries again, and the error says so.
        """
        try:
            if self._sees_spool():
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
        ours = self._is_ours(note)
        if ours:
            self._abort()
        # A publish that had got as far as the signature has happened, whatever became of its transaction.
        if self._published(note):
            self._journal.forget()
            return f"the last transaction on {self.name} had been published before we were interrupted"
        if ours:
            return f"aborted our interrupted transaction on {self.name}"
        self._journal.forget()
        return None if self._lock_id() is None else f"left a transaction on {self.name} alone that is not ours"

    def _settle_blindly(self, note: Note) -> str | None:
        """Without a view of the spool, an id at the root proves an open transaction only before its publish began."""
        if _id_in(self.root / ID_FILE) != note.identity:
            self._journal.forget()
            return None
        if note.state == "publishing":
            raise RepositoryUnavailable(
                f"a publish of {self.name} was interrupted, and whether it is still open cannot be seen",
                found=f"no spool directory {self._spool}",
                expected="the server's spool directory",
                todo=f"set repository.spool; or `cvmfs_server abort -f {self.name}` and remove {self._journal.path}",
            )
        self._abort()
        return f"aborted our interrupted transaction on {self.name}"

    def _is_ours(self, note: Note) -> bool:
        """Whether a transaction is open and is provably the note's."""
        lock = self._lock_id()
        if lock is None:
            return False
        if lock == note.lock:
            return True
        if _id_in(self._scratch / ID_FILE) == note.identity and not self._published(note):
            return True
        return note.state == "opening" and lock != note.before and self._untouched_since(note.started)

    def _untouched_since(self, started: float) -> bool:
        """Whether the open transaction began when ours would have, and nobody has written anything into it."""
        try:
            began = self._lock.lstat().st_mtime
        except FileNotFoundError:
            return False
        if not started - _TICK_SECONDS <= began <= started + _OPENING_WINDOW_SECONDS:
            return False
        return not _differs(self._scratch, self._rdonly)

    def _published(self, note: Note) -> bool:
        """Whether the mounted revision, or without a view of it the root, is that of the note's transaction."""
        published = self._rdonly if self._sees_spool() else self.root
        return _id_in(published / ID_FILE) == note.identity

    def _sees_spool(self) -> bool:
        return self._spool.is_dir()

    def _lock_id(self) -> LockId | None:
        with os_errors(f"to the spool {self._spool}"):
            return lock_id(self._lock)

    def _abort(self) -> None:
        """Discard our transaction, whose ownership the caller has proved."""
        try:
            self._server("abort", None, options=("-f",))
        except RepositoryError as error:
            if "is not in a transaction" not in str(error):
                raise
        self._journal.forget()

    def _wait_for_orphan(self, note: Note) -> None:
        """Wait for a command that a killed run of ours left running: only its end tells what it did."""
        waiting = pauses(self._wait, _ORPHAN_POLL_SECONDS)
        while (process := still_running(note.identity)) is not None:
            pause = next(waiting, None)
            if pause is None:
                raise RepositoryBusy(
                    f"cvmfs_server still runs for an interrupted cvmfs-sync on {self.name}",
                    found=f"process {process}, {note.state} '{note.purpose}'",
                    todo="wait for it to finish, then sync again",
                )
            log.info("process %d of an interrupted run still works on %s; waiting", process, self.name)
            self._sleep(pause)

    def _server(
        self,
        command: str,
        note: Note | None,
        before: Callable[[], None] = lambda: None,
        *,
        options: tuple[str, ...] = (),
    ) -> Completed:
        """Run one subcommand, waiting for what may pass by itself.

        Args:
            command: The subcommand.
            note: The transaction that it works for, by which it is known if we are killed meanwhile.
            before: Called before each attempt.
            options: Of the subcommand.

        Raises:
            RepositoryError: The `Failure` that its exit code and streams tell.
        """
        waiting = pauses(self._wait, _POLL_SECONDS)
        while True:
            before()
            completed = run(["cvmfs_server", command, *options, self.name], mark=note.identity if note else None)
            if completed.code == 0:
                log.info("cvmfs_server %s %s: %.1f s", command, self.name, completed.seconds)
                return completed
            failure = failure_of(command, completed)
            if failure is None:
                raise RepositoryUnavailable(
                    f"cvmfs_server {command} of {self.name} failed",
                    found=str(completed),
                    expected="exit code 0",
                    todo=f"`cvmfs_server check {self.name}` finds damage; the text above is the server's",
                )
            pause = next(waiting, None) if failure.busy else None
            if pause is None:
                raise failure.error(
                    failure.message.format(name=self.name),
                    found=str(completed),
                    todo=failure.todo.format(name=self.name),
                )
            log.info("%s; waiting", failure.message.format(name=self.name))
            self._sleep(pause)

    def _holder(self) -> str:
        """Since when a transaction is open and whose it is, as far as the lock and the scratch area tell."""
        try:
            since = datetime.fromtimestamp(self._lock.lstat().st_mtime, UTC)
            who = self._lock.owner()
        except (OSError, KeyError):
            return ""
        text = f"the transaction is open since {since:%Y-%m-%d %H:%M:%S}Z, its lock belongs to {who}"
        path = self._scratch / ID_FILE
        # An emulated or fuse-overlayfs scratch area may show what is published, too.
        if _id_in(path) in (None, _id_in(self._rdonly / ID_FILE)):
            return text
        with suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()[1:]
            text += "; it says: " + re.sub(r"[^ -~]", "?", ", ".join(lines))[:300]
        return text


class CvmfsTransaction:
    """A `Transaction` that writes into the mounted repository: the server makes it atomic."""

    def __init__(self, root: Path, clone: Clone | None) -> None:
        self._root = root
        self._clone = clone

    def create_tree(self, path: str) -> Path:
        """See `ports.Transaction`."""
        final = make_parents(self._root, path)
        remove_tree(final)
        final.mkdir(mode=0o700)
        return final

    def clone(self) -> Path:
        """See `ports.Transaction`. The server made it when the transaction was opened."""
        assert self._clone is not None  # noqa: S101 - the caller opened the transaction with one
        return self._root / self._clone.path

    def make_directory(self, path: str) -> None:
        """See `ports.Transaction`."""
        make_parents(self._root, f"{path}/.")

    def remove(self, path: str) -> None:
        """See `ports.Transaction`."""
        (self._root / path).unlink(missing_ok=True)
        remove_empty_parents(self._root, path)

    def write(self, path: str, content: bytes) -> None:
        """See `ports.Transaction`."""
        write_new(self._clear(path), content)

    def link(self, path: str, target: str) -> None:
        """See `ports.Transaction`."""
        self._clear(path).symlink_to(target)

    def _clear(self, path: str) -> Path:
        final = make_parents(self._root, path)
        remove_tree(final)
        return final


def _plain(path: str) -> str:
    """A path that cvmfs_server's shell changes nothing of.

    Raises:
        ValueError: It is none.
    """
    if not _PLAIN_PATH.fullmatch(path) or ".." in path.split("/"):
        raise ValueError(f"not to be handed to a shell: {path!r}")
    return path


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
