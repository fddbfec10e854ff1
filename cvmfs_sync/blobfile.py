"""One blob's file: copied and verified, written under a name of its own process first, removed whatever it is.

Pieces, descriptors and paths go in; verified pieces and open files come out. Which blobs there are is the spool's to
know.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from cvmfs_sync.errors import BlobMismatch
from cvmfs_sync.image import Descriptor

__all__ = [
    "Signature",
    "checked",
    "listing",
    "new_partial",
    "remove_any",
    "remove_dead",
    "require_size",
    "signature_of",
]

_OWNER = re.compile(r"(\d+)-[0-9a-f]{16}")
Signature = tuple[int, int, int, int]


def checked(what: str, pieces: Iterable[bytes], descriptor: Descriptor) -> Iterator[bytes]:
    """The pieces of a blob, counted and hashed; never more of them than its size.

    Raises:
        BlobMismatch: Before the first piece too many, or after the last.
    """
    digest = hashlib.new(descriptor.digest.algorithm)
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > descriptor.size:
            raise BlobMismatch(
                f"{what} is larger than its manifest says",
                found=f"at least {size} bytes",
                expected=f"{descriptor.size}",
            )
        digest.update(piece)
        yield piece
    require_size(what, size, descriptor)
    if digest.hexdigest() != descriptor.digest.hex:
        raise BlobMismatch(
            f"{what} is damaged",
            found=f"{descriptor.digest.algorithm}:{digest.hexdigest()}",
            expected=str(descriptor.digest),
            todo="push the image again; if it recurs, check the registry's storage",
        )


def require_size(what: str, size: int, descriptor: Descriptor) -> None:
    """See that a blob is as large as its descriptor says.

    Raises:
        BlobMismatch: It is not.
    """
    if size == descriptor.size:
        return
    raise BlobMismatch(
        f"{what} is {'cut short' if size < descriptor.size else 'larger than its manifest says'}",
        found=f"{size} bytes",
        expected=f"{descriptor.size}",
        todo="push the image again",
    )


def signature_of(status: os.stat_result) -> Signature:
    """What a file has that changes when its content does."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def new_partial(directory: Path) -> tuple[int, Path]:
    """A file to write to, open and locked: the lock says that its process lives."""
    while True:
        path = directory / f"{os.getpid()}-{secrets.token_hex(8)}"
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(opened).st_nlink:
            return opened, path
        os.close(opened)  # another process took it for a dead one's before it was locked


def remove_dead(path: Path) -> None:
    """Remove a partial file whose process does not live any more."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError:
        remove_any(path)
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    except OSError:
        # A file system without locks: then the process's number has to do.
        owner = _OWNER.fullmatch(path.name)
        if owner is not None and Path(f"/proc/{owner[1]}").exists():
            return
    finally:
        os.close(opened)
    remove_any(path)


def remove_any(path: Path) -> None:
    """Remove whatever is there under this name."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        if path.is_symlink() or not path.is_dir():
            raise
        shutil.rmtree(path)


def listing(directory: Path) -> list[Path]:
    """What is in a directory; nothing if there is none."""
    try:
        return list(directory.iterdir())
    except OSError:
        return []
