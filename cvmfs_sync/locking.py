"""Being the only one: locks that go with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvmfs_sync.errors import RepositoryBusy
from cvmfs_sync.rootfs import os_errors

__all__ = ["exclusive_lock", "instance", "locked_directory"]

_NO_LOCKS = frozenset({errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL})


@contextmanager
def instance(directory: Path) -> Iterator[None]:
    """Be the only cvmfs-sync that works with this state directory.

    Raises:
        RepositoryBusy: Another one runs.
    """
    with os_errors(f"to the state directory {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(
        directory / "lock",
        todo="wait for it to finish, or, if it is the daemon, have it do this next: 'cvmfs-sync sync --now IMAGE';"
        " 'cvmfs-sync status' shows what is published meanwhile",
    ):
        yield


@contextmanager
def exclusive_lock(path: Path, *, todo: str | None = None) -> Iterator[None]:
    """Hold flock(2) on a file, which is made if it is not there and names the process.

    Raises:
        RepositoryBusy: Another cvmfs-sync holds it.
    """
    with os_errors(f"to the lock {path}"):
        lock = path.open("a+")
    with lock:
        if not _locked(lock.fileno()):
            lock.seek(0)
            raise _busy(f"process {lock.read().strip() or 'unknown'} holds {path}", todo)
        with os_errors(f"to the lock {path}"):
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        yield


@contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Hold flock(2) on a directory, in which nothing is changed; nothing where directories can't be locked, as on NFS.

    Raises:
        RepositoryBusy: Another cvmfs-sync holds it.
    """
    with os_errors(f"to {path}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            locked = _locked(descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            locked = True
        if not locked:
            raise _busy(f"{path} is locked")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(found: str, todo: str | None = None) -> RepositoryBusy:
    return RepositoryBusy(
        "another cvmfs-sync is at work",
        found=found,
        todo=todo or "wait for it to finish; 'cvmfs-sync status' shows what is published meanwhile",
    )
