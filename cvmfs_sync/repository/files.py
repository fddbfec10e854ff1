"""Small changes to a repository's own files, for both backends: all names here are cvmfs-sync's, none an image's."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import tempfile
from pathlib import Path

from cvmfs_sync.errors import RepositoryUnavailable

__all__ = [
    "exchange", "make_parents", "mtime_unit", "plain_path", "remove_empty_parents", "sync_directory",
    "sync_file_system", "write_new",
]  # fmt: skip

# Those of file systems that Linux mounts: most; NTFS and SMB; exFAT; ext4 with inodes of 128 bytes; FAT.
_TIME_UNITS = (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000)
_ODD_TIME = 1_000_000_001_123_456_789
_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
# What cvmfs_server's shell takes for nothing but a path. `ingest -d` splits at ':', `transaction -T` at '='.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9.][A-Za-z0-9._-]*(?:/[A-Za-z0-9.][A-Za-z0-9._-]*)+", re.ASCII)


def plain_path(path: str) -> str:
    """The path of a tree, if a shell changes nothing of it and it leads nowhere else; a tree has a directory above it.

    Raises:
        ValueError: It is no such path.
    """
    if not _PLAIN_PATH.fullmatch(path) or not {".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(f"no path for a tree to clone or remove: {path!r}")
    return path


def make_parents(root: Path, path: str, *, durable: bool = False) -> Path:
    """The absolute path of `path`, its parents made with mode 0755 whatever the umask.

    Args:
        root: The repository's.
        path: Relative to it.
        durable: Whether the names of those that are made are on disk when this returns.

    Raises:
        RepositoryUnavailable: If something that is no directory stands in the way.
    """
    current = root
    *parents, name = path.split("/")
    for parent in parents:
        current = current / parent
        try:
            current.mkdir()
            current.chmod(0o755)
            if durable:
                sync_directory(current.parent)
        except FileExistsError:
            if not current.is_dir() or current.is_symlink():
                raise RepositoryUnavailable(
                    f"cannot make {path}", found=f"{current} is not a directory", todo="move it out of the way"
                ) from None
    return current / name


def remove_empty_parents(root: Path, path: str) -> None:
    """Remove the directories above `path`, up to the root, that have nothing in them; survives a power cut."""
    directory = (root / path).parent
    removed = False
    while directory != root:
        try:
            directory.rmdir()
            removed = True
        except FileNotFoundError:
            pass
        except OSError:
            break
        directory = directory.parent
    if removed:
        sync_directory(directory)


def write_new(path: Path, content: bytes) -> None:
    """A new file of mode 0644, on disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fchmod(descriptor, 0o644)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Swap what two names mean in one step, whatever they are; False where the file system can't, such as NFS.

    See renameat2(2), RENAME_EXCHANGE.
    """
    renameat2 = getattr(_libc, "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def mtime_unit(directory: Path) -> int:
    """What modification times are rounded down to in a directory, in nanoseconds; 1 where that can't be tried.

    A directory that is not there yet will be on the file system of what is above it. The file that it is tried with has
    no name, or not for long.
    """
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            os.utime(probe.fileno(), ns=(_ODD_TIME, _ODD_TIME))
            found = os.fstat(probe.fileno()).st_mtime_ns
    except OSError:
        return 1
    return next((unit for unit in _TIME_UNITS if _ODD_TIME // unit * unit == found), 1)


def sync_directory(path: Path) -> None:
    """Make renames in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """syncfs(2): everything written to the file system of `path` is on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
