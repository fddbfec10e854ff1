"""The embedded backend: a plain directory that is published as it is, over NFS, a web server or a bind mount.

Everything of a transaction is staged below `.cvmfs-sync/staging` of the same file system and moved to its place when
the transaction is published: trees first, then files and links in the order of the calls. Each move is one rename, so
a reader sees the old or the new of each, and an interrupted publish leaves some prefix of them; callers order their
calls so that every prefix is a consistent state (tree, record, link, catalogue).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
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
    remove_empty_parents,
    sync_directory,
    sync_file_system,
    write_new,
)
from cvmfs_sync.repository.patience import pauses
from cvmfs_sync.rootfs import os_errors

__all__ = ["DirectoryRepository"]

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


class DirectoryRepository:
    """A `Repository` in a directory.

    A clone shares the files of the tree that it is made of by hard links.

    Args:
        root: Where to publish; made if it is not there.
        wait: How long to wait for another process's transaction.
    """

    # On ext4, by benchmarks.publishing.
    traits = Traits(
        Costs(clone=0.0, cloned=25e-6, removed=10e-6, made=60e-6, byte=2.0e-9),
        keeps_hard_links=True, mtime_unit=1, shares_files=True,
    )  # fmt: skip

    def __init__(
        self, root: Path, *, wait: timedelta = timedelta(0), sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.root = root
        self._wait = wait
        self._sleep = sleep
        self._own = root / OWN
        self._staging = self._own / "staging"

    @contextmanager
    def transaction(self, purpose: str, clone: Clone | None = None) -> Iterator[DirectoryTransaction]:
        """See `ports.Repository`."""
        if clone is not None:
            self._require_cloneable(clone)
        with os_errors(f"to the repository {self.root}"), self._locked(self._wait):
            staging = self._staging / secrets.token_hex(8)
            make_parents(self.root, f"{OWN}/staging/{staging.name}").mkdir(mode=0o700)
            try:
                transaction = DirectoryTransaction(self.root, staging, clone)
                log.debug("transaction for %s staged in %s", purpose, staging)
                yield transaction
                transaction.commit()
            finally:
                remove_tree(staging)
                with contextlib.suppress(OSError):
                    self._staging.rmdir()

    def remove_trees(self, paths: Sequence[str]) -> None:
        """See `ports.Repository`."""
        with os_errors(f"to the repository {self.root}"), self._locked(self._wait):
            staging = self._staging / secrets.token_hex(8)
            make_parents(self.root, f"{OWN}/staging/{staging.name}").mkdir(mode=0o700)
            try:
                for path in paths:
                    with contextlib.suppress(FileNotFoundError):
                        (self.root / path).rename(staging / secrets.token_hex(8))
                        sync_directory((self.root / path).parent)
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
        if not _is_directory(self.root / clone.source):
            raise CloneRefused(f"there is no tree to clone in {self.root}", found=f"nothing at {clone.source}")
        if os.path.lexists(self.root / clone.path):
            raise CloneRefused(f"a clone in {self.root} would replace what is there", found=clone.path)

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
        link_tree(self._root / self._clone.source, staged)
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
        """Move everything to its place. The trees' content is on disk before their names are."""
        if self._trees:
            sync_file_system(self._staging)
        for directory in self._directories:
            make_parents(self._root, f"{directory}/.")
        for staged, path in [*self._trees, *self._others]:
            final = make_parents(self._root, path)
            if staged is None:
                final.unlink(missing_ok=True)
                remove_empty_parents(self._root, path)
                continue
            # A tree of an interrupted or foreign publish, or something else where a tree or a file shall be. Without
            # an exchange there is a moment in which neither is there.
            if os.path.lexists(final) and (_is_directory(final) or _is_directory(staged)):
                if not exchange(staged, final):
                    final.rename(self._next())
                    staged.rename(final)
            else:
                staged.rename(final)
            sync_directory(final.parent)

    def _next(self) -> Path:
        return self._staging / secrets.token_hex(8)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
