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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from cvmfs_sync.errors import RepositoryBusy
from cvmfs_sync.layout import OWN
from cvmfs_sync.repository.files import exchange, make_parents, sync_directory, sync_file_system, write_new
from cvmfs_sync.repository.patience import pauses
from cvmfs_sync.rootfs import os_errors, remove_tree

__all__ = ["DirectoryRepository"]

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


class DirectoryRepository:
    """A `Repository` in a directory.

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

    @contextmanager
    def transaction(self, purpose: str) -> Iterator[DirectoryTransaction]:
        """See `ports.Repository`."""
        with os_errors(f"to the repository {self.root}"), self._locked(self._wait):
            staging = self._staging / secrets.token_hex(8)
            make_parents(self.root, f"{OWN}/staging/{staging.name}").mkdir(mode=0o700)
            try:
                transaction = DirectoryTransaction(self.root, staging)
                log.debug("transaction for %s staged in %s", purpose, staging)
                yield transaction
                transaction.commit()
            finally:
                remove_tree(staging)
                with contextlib.suppress(OSError):
                    self._staging.rmdir()

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
        path = make_parents(self.root, f"{OWN}/lock") if self.root.is_dir() else self._create()
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

    def _create(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        return make_parents(self.root, f"{OWN}/lock")


class DirectoryTransaction:
    """A `Transaction` that stages every change until `commit`."""

    def __init__(self, root: Path, staging: Path) -> None:
        self._root = root
        self._staging = staging
        self._trees: list[tuple[Path, str]] = []
        self._others: list[tuple[Path, str]] = []

    def create_tree(self, path: str) -> Path:
        """See `ports.Transaction`."""
        staged = self._next()
        staged.mkdir(mode=0o700)
        self._trees.append((staged, path))
        return staged

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
        for staged, path in [*self._trees, *self._others]:
            final = make_parents(self._root, path)
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
