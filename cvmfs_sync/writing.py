"""Making files, links and directories below one directory, whatever an image says: the safe door.

Entries and content go in, inodes come out. Every system call names one component relative to a directory descriptor on
whose way there was no link (`beneath`), and metadata is set through descriptors, never through a path that could be a
link. In which order a tree is made is not known here: `rootfs` makes a new one, `edit` changes one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from cvmfs_sync.beneath import open_directory
from cvmfs_sync.tar import Entry, Kind
from cvmfs_sync.tree import Inode, printable, split

__all__ = [
    "EXACT",
    "EXACT_AS_USER",
    "IGNORED_XATTR_ERRORS",
    "NEW_FILE",
    "SANDBOX",
    "DirectoryWriter",
    "FileContent",
    "Policy",
    "exact_policy",
]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# More than twice the deepest path, so that a call that needs two descriptors keeps both.
_OPEN_DIRECTORIES = 600
# Up to this size a file is written from one piece.
_SMALL = 1 << 16
IGNORED_XATTR_ERRORS = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL})


class FileContent(Protocol):
    """The stored bytes of one regular file: of a sparse one those of its segments, one after another."""

    def read(self) -> bytes:
        """What is left of them, at once."""

    def content(self) -> Iterator[memoryview]:
        """What is left of them, in pieces."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How an image's metadata becomes a file's.

    Attributes:
        owner: Whether to keep numeric owners.
        devices: Whether to make devices; else they become empty files.
        xattrs: Prefixes of the extended attributes to keep.
        file_mode: Bits added to every regular file's mode.
        directory_mode: Bits added to every directory's mode.
    """

    owner: bool
    devices: bool
    xattrs: tuple[bytes, ...]
    file_mode: int = 0
    directory_mode: int = 0


EXACT = Policy(owner=True, devices=True, xattrs=(b"",))
"""All that an image says; only root can write it."""
EXACT_AS_USER = Policy(owner=False, devices=False, xattrs=(b"user.",))
SANDBOX = Policy(owner=False, devices=False, xattrs=(b"user.",), file_mode=0o404, directory_mode=0o705)
"""What an ordinary user can run from a read-only, nosuid, nodev mount."""


def exact_policy() -> Policy:
    """`EXACT` for root; for others what they may do of it."""
    return EXACT if os.geteuid() == 0 else EXACT_AS_USER


class DirectoryWriter:
    """Makes what an image says below an existing directory.

    Args:
        root: The directory. Nothing is written outside it.
        policy: What to keep of the metadata.

    Attributes:
        dropped_xattrs: How many extended attributes the file system refused.
    """

    def __init__(self, root: Path, policy: Policy) -> None:
        self._policy = policy
        self._root = os.open(root, _DIRECTORY)
        self._given = _given_owner(self._root) if policy.owner else (-1, -1)
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._made: set[bytes] = set()
        self.dropped_xattrs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        os.close(self._root)

    def _make(self, path: bytes, inode: Inode) -> None:
        """A leaf that is no file of a layer."""
        parent, name = split(path)
        directory = self._directory(parent)
        entry = inode.entry
        match entry.kind:
            case Kind.FILE:
                self._new(name, directory, entry, inode.content or b"")
            case Kind.SYMLINK:
                os.symlink(entry.link, name, dir_fd=directory)
                if self._policy.owner:
                    os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
                os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)
            case Kind.FIFO:
                os.mkfifo(name, 0o600, dir_fd=directory)
                self._special(name, directory, entry)
            case Kind.CHARACTER | Kind.BLOCK if self._policy.devices:
                kind = stat.S_IFCHR if entry.kind is Kind.CHARACTER else stat.S_IFBLK
                os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=directory)
                self._special(name, directory, entry)
            case Kind.CHARACTER | Kind.BLOCK:
                self._new(name, directory, entry, b"")
            case _:
                raise AssertionError(f"{printable(path)}: a leaf of kind {entry.kind!r}")

    def _new(self, name: bytes, directory: int, entry: Entry, content: bytes) -> None:
        descriptor = os.open(name, NEW_FILE, 0o600, dir_fd=directory)
        try:
            _write_all(descriptor, content)
            self._metadata(descriptor, entry, self._policy.file_mode)
        finally:
            os.close(descriptor)

    def _special(self, name: bytes, directory: int, entry: Entry) -> None:
        """Metadata of a fifo or device just made: opening one has effects, so its name is used."""
        if self._policy.owner:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        os.chmod(name, entry.mode | self._policy.file_mode, dir_fd=directory)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)

    def _write(self, descriptor: int, entry: Entry, content: FileContent) -> None:
        """Content and metadata of a file; closes the descriptor."""
        try:
            if entry.sparse is not None:
                _write_sparse(descriptor, entry, content)
            elif entry.size <= _SMALL:
                if entry.size:
                    _write_all(descriptor, content.read())
            else:
                for piece in content.content():
                    _write_all(descriptor, piece)
            self._metadata(descriptor, entry, self._policy.file_mode)
        finally:
            os.close(descriptor)

    def _metadata(self, descriptor: int, entry: Entry, mode: int) -> None:
        # Ownership first: chown clears setuid bits and capabilities.
        if self._policy.owner and (entry.uid, entry.gid) != self._given:
            os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode | mode)
        if entry.xattrs:
            for name, value in entry.xattrs.items():
                if name.startswith(self._policy.xattrs):
                    try:
                        os.setxattr(descriptor, name, value)
                    except OSError as error:
                        if error.errno not in IGNORED_XATTR_ERRORS:
                            raise
                        self.dropped_xattrs += 1
        os.utime(descriptor, ns=(entry.mtime, entry.mtime))

    def _link(self, first: bytes, path: bytes) -> None:
        first_parent, first_name = split(first)
        parent, name = split(path)
        os.link(
            first_name, name,
            src_dir_fd=self._directory(first_parent), dst_dir_fd=self._directory(parent), follow_symlinks=False,
        )  # fmt: skip

    def _directory(self, path: bytes, *, make: bool = False) -> int:
        """A descriptor of a directory, valid until the next call but a few."""
        if not path:
            return self._root
        descriptor = self._open.get(path)
        if descriptor is not None:
            self._open.move_to_end(path)
            return descriptor
        missing = []
        above = path if make else b""
        while above and above not in self._made:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        for directory in reversed(missing):
            parent, _, name = directory.rpartition(b"/")
            os.mkdir(name, 0o700, dir_fd=self._directory(parent))
            self._made.add(directory)
        descriptor = open_directory(self._root, path)
        self._open[path] = descriptor
        if len(self._open) > _OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _forget(self, path: bytes) -> None:
        self._made.discard(path)
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)


def _given_owner(root: int) -> tuple[int, int]:
    """The owner and group that whatever is made below `root` has without asking (mkdir(2), "BUGS" and S_ISGID)."""
    status = os.fstat(root)
    group = os.getegid()
    return (os.geteuid(), group if status.st_gid == group and not status.st_mode & stat.S_ISGID else -1)


def _write_all(descriptor: int, piece: bytes | memoryview) -> None:
    written = os.write(descriptor, piece)
    while written < len(piece):
        piece = memoryview(piece)[written:]
        written = os.write(descriptor, piece)


def _write_sparse(descriptor: int, entry: Entry, content: FileContent) -> None:
    """Data segments at their offsets, holes between them."""
    segments = iter(entry.sparse or ())
    left = 0
    for piece in content.content():
        while len(piece):
            while not left:
                offset, left = next(segments)
                os.lseek(descriptor, offset, os.SEEK_SET)
            _write_all(descriptor, piece[:left])
            piece, left = piece[left:], max(0, left - len(piece))
    os.ftruncate(descriptor, entry.size)
