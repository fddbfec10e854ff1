"""The embedded backend: a plain directory that is published as it is, over NFS, a web server or a bind mount.

Everything of a transaction is staged below `.cvmfs-sync/staging` of the same file system and moved to its place when
the transaction is published: trees first, then files and links in the order of the calls. Each move is one rename, so
a reader sees the old or the new of each, and an interrupted publish leaves some prefix of them; callers order their
calls so that every prefix is a consistent state (tree, record, link, catalogue).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from cvmfs_sync.errors import CloneRefused, RepositoryBusy
from cvmfs_sync.layout import OWN
from cvmfs_sync.locking import locked_directory
from cvmfs_sync.ports import Clone, Costs, Traits
from cvmfs_sync.removal import remove_tree
from cvmfs_sync.repository.cloning import link_tree
from cvmfs_sync.repository.files import (
    exchange,
    make_parents,
    mtime_unit,
    plain_path,
    remove_empty_parents,
    sync_directory,
    sync_file_system,
    write_new,
)
from cvmfs_sync.repository.patience import pauses
from cvmfs_sync.rootfs import os_errors

__all__ = ["COSTS", "DirectoryRepository"]

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
COSTS = Costs(clone=0.01, cloned=20e-6, removed=5e-6, made=45e-6, byte=5e-9)
"""On ext4 and two cores, by `python -m benchmarks.publishing --fit`. What is removed is cloned before, but need not be
verified."""


class DirectoryRepository:
    """A `Repository` in a directory.

    A clone shares the files of the tree that it is made of by hard links.

    Args:
        root: Where to publish; made if it is not there.
        wait: How long to wait for another process's transaction.
    """

    def __init__(
        self, root: Path, *, wait: timedelta = timedelta(0), sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.root = root
        self._wait = wait
        self._sleep = sleep
        self._own = root / OWN
        self._staging = self._own / "staging"

    @cached_property
    def traits(self) -> Traits:
        """See `ports.Repository`. How exact times are is tried out when somebody first asks."""
        return Traits(COSTS, keeps_hard_links=True, mtime_unit=mtime_unit(self.root), shares_files=True)

    @contextmanager
    def transaction(self, purpose: str, clone: Clone | None = None) -> Iterator[DirectoryTransaction]:
        """See `ports.Repository`."""
        if clone is not None:
            self._require_cloneable(clone)
        with self._staged() as staging:
            if clone is not None:
                self._require_cloneable(clone)  # again: nobody changes anything from here on
            transaction = DirectoryTransaction(self.root, staging, clone)
            log.debug("transaction for %s staged in %s", purpose, staging)
            yield transaction
            transaction.commit()

    def remove_trees(self, paths: Sequence[str]) -> None:
        """See `ports.Repository`. Each has gone from its name, in one step, before anything of it is removed."""
        there = [path for path in paths if os.path.lexists(self.root / plain_path(path))]
        if not there:
            return
        with self._staged() as staging:
            for path in there:
                with contextlib.suppress(FileNotFoundError):
                    _move_away(self.root / path, staging / secrets.token_hex(8))
                    sync_directory((self.root / path).parent)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A new directory on the repository's file system, under the lock; it is gone afterwards with all in it."""
        with os_errors(f"to the repository {self.root}"), self._locked(self._wait):
            staging = self._staging / secrets.token_hex(8)
            make_parents(self.root, f"{OWN}/staging/{staging.name}").mkdir(mode=0o700)
            try:
                yield staging
            finally:
                remove_tree(staging)
                with contextlib.suppress(OSError):
                    self._staging.rmdir()

    def collect_garbage(self) -> None:
        """See `ports.Repository`: a directory has nothing but what is in it."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `ports.Repository`."""
        if not self.root.is_dir():
            # Nothing to be alone with yet; and each transaction has the other lock.
            yield
            return
        with locked_directory(self.root):
            yield

    def _require_cloneable(self, clone: Clone) -> None:
        if not _is_directory(self.root / plain_path(clone.source)):
            raise CloneRefused(f"there is no tree to clone in {self.root}", found=f"nothing at {clone.source}")
        if os.path.lexists(self.root / plain_path(clone.path)):
            raise CloneRefused(f"a clone in {self.root} would replace what is there", found=clone.path)
        if not _is_directory((self.root / clone.path).parent):
            raise CloneRefused(f"a clone in {self.root} has no directory to be in", found=f"nothing above {clone.path}")

    def recover(self) -> str | None:
        """See `ports.Repository`. Whoever holds the lock is alive, so without it nothing here is a leftover."""
        if not self._staging.is_dir():
            return None
        with os_errors(f"to the repository {self.root}"):
            try:
                with self._locked(timedelta(0)):
                    leftovers = list(self._staging.iterdir())
                    for leftover in leftovers:
                        remove_tree(leftover)
                    self._staging.rmdir()
            except RepositoryBusy:
                return None
        return f"removed what {len(leftovers)} interrupted transaction(s) had staged" if leftovers else None

    @contextmanager
    def _locked(self, wait: timedelta) -> Iterator[None]:
        if not self.root.is_dir():
            self._create()
        path = make_parents(self.root, f"{OWN}/lock")
        waiting = pauses(wait, _POLL_SECONDS)
        with path.open("a+") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pause = next(waiting, None)
                    if pause is None:
                        lock.seek(0)
                        raise RepositoryBusy(
                            f"somebody else is publishing to {self.root}",
                            found=f"the lock {path} is held by process {lock.read().strip() or 'unknown'}",
                            todo="wait for it to finish, then sync again",
                        ) from None
                    self._sleep(pause)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def _create(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)


class DirectoryTransaction:
    """A `Transaction` that stages every change until `commit`."""

    def __init__(self, root: Path, staging: Path, clone: Clone | None) -> None:
        self._root = root
        self._staging = staging
        self._clone = clone
        self._directories: list[str] = []
        self._trees: list[tuple[Path, str]] = []
        self._others: list[tuple[Path | None, str]] = []

    def create_tree(self, path: str) -> Path:
        """See `ports.Transaction`."""
        staged = self._next()
        staged.mkdir(mode=0o700)
        self._trees.append((staged, path))
        return staged

    def clone(self) -> Path:
        """See `ports.Transaction`."""
        assert self._clone is not None  # noqa: S101 - the caller opened the transaction with one
        staged = self.create_tree(self._clone.path)
        try:
            link_tree(self._root / self._clone.source, staged)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CloneRefused(
                f"{self._clone.source} in {self._root} cannot be cloned", found=f"{error.strerror}: {error.filename!r}"
            ) from error
        return staged

    def make_directory(self, path: str) -> None:
        """See `ports.Transaction`."""
        self._directories.append(path)

    def remove(self, path: str) -> None:
        """See `ports.Transaction`."""
        self._others.append((None, path))

    def write(self, path: str, content: bytes) -> None:
        """See `ports.Transaction`."""
        staged = self._next()
        write_new(staged, content)
        self._others.append((staged, path))

    def link(self, path: str, target: str) -> None:
        """See `ports.Transaction`."""
        staged = self._next()
        staged.symlink_to(target)
        self._others.append((staged, path))

    def commit(self) -> None:
        """Move everything to its place. The trees' content is on disk before their names are.

        So are the directories that names are in: syncing one does not put its own name on disk.
        """
        for path in [*(f"{directory}/." for directory in self._directories), *(path for _, path in self._trees)]:
            make_parents(self._root, path)
        if self._trees or self._directories:
            sync_file_system(self._staging)
        for staged, path in [*self._trees, *self._others]:
            if staged is None:
                self._remove(path)
                continue
            final = make_parents(self._root, path, durable=True)
            # A tree of an interrupted or foreign publish, or something else where a tree or a file shall be. Without
            # an exchange there is a moment in which neither is there.
            if os.path.lexists(final) and (_is_directory(final) or _is_directory(staged)):
                if not exchange(staged, final):
                    final.rename(self._next())
                    staged.rename(final)
            else:
                staged.rename(final)
            sync_directory(final.parent)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self._root / path).unlink()
            sync_directory((self._root / path).parent)
        remove_empty_parents(self._root, path)

    def _next(self) -> Path:
        return self._staging / secrets.token_hex(8)


def _move_away(path: Path, target: Path) -> None:
    """Rename a directory that its owner may not write: moving one changes what is above it."""
    try:
        path.rename(target)
    except PermissionError:
        if not _is_directory(path):
            raise
        path.chmod(0o700)
        path.rename(target)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
