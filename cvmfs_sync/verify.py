"""Whether a directory holds just what a tree says.

A directory, a tree and what tells the content of its files go in; where the two differ comes out. Nothing is changed,
no symbolic link is followed, and what is not readable counts as different.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cvmfs_sync.beneath import open_directory
from cvmfs_sync.difference import Content, Metadata
from cvmfs_sync.tar import Entry, Kind
from cvmfs_sync.tree import Inode, Tree, printable

__all__ = ["Discrepancy", "file_digest", "verify"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 20
# What ext4 and XFS begin with, and older XFS ends with, in nanoseconds since the epoch.
_EARLIEST, _LATEST = -(1 << 31) * 1_000_000_000, ((1 << 31) - 1) * 1_000_000_000
_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FIFO: stat.S_IFIFO,
}


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One thing that is not as it should be.

    Attributes:
        path: Where, below the directory; empty for itself.
        what: Of what aspect.
    """

    path: bytes
    what: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{printable(self.path) or '.'}: {self.what} is {self.found}, expected {self.expected}"


def verify(
    root: Path,
    tree: Tree,
    content: Content,
    *,
    metadata: Callable[[Entry], Metadata],
    hard_links: bool,
    mtime_unit: int,
    read: Callable[[bytes], bool],
) -> Iterator[Discrepancy]:
    """Compare a directory with a tree, name by name; the iterator may be left after the first discrepancies.

    Args:
        root: The directory.
        tree: What shall be there.
        content: Digests of its files.
        metadata: What of an entry's metadata comes there. Owners and extended attributes are not looked at.
        hard_links: Whether several names of a file have to be names of one.
        mtime_unit: See `ports.Traits`.
        read: Says of a regular file's path whether its content shall be read; of all others only the size is compared.

    Raises:
        OSError: The directory itself can't be opened.
    """
    check = _Check(content, metadata, mtime_unit, read, hard_links=hard_links)
    top = os.open(root, _DIRECTORY)
    try:
        yield from check.inode(b"", os.fstat(top), tree.root, top, b"")
        stack: list[tuple[bytes, Inode]] = [(b"", tree.root)]
        while stack:
            path, inode = stack.pop()
            yield from check.directory(top, path, inode, stack)
    finally:
        os.close(top)


class _Check:
    """What stays the same for all names of a tree."""

    def __init__(
        self,
        content: Content,
        metadata: Callable[[Entry], Metadata],
        mtime_unit: int,
        read: Callable[[bytes], bool],
        *,
        hard_links: bool,
    ) -> None:
        self._content = content
        self._metadata = metadata
        self._unit = mtime_unit
        self._read = read
        self._hard_links = hard_links
        self._found: dict[int, tuple[int, int]] = {}  # by id() of what has several names
        self._taken: dict[tuple[int, int], int] = {}

    def directory(self, top: int, path: bytes, inode: Inode, stack: list[tuple[bytes, Inode]]) -> Iterator[Discrepancy]:
        """The names in a directory; directories that are there are put on the stack."""
        wanted = inode.children or {}
        prefix = path + b"/" if path else b""
        try:
            descriptor = open_directory(top, path) if path else os.dup(top)
        except OSError as error:
            yield Discrepancy(path, "the directory", f"unreadable ({error.strerror})", "readable")
            return
        try:
            there = set(map(os.fsencode, os.listdir(descriptor)))
            for name in sorted(there - wanted.keys()):
                yield Discrepancy(prefix + name, "the name", "there", "not there")
            for name, child in wanted.items():
                if name not in there:
                    yield Discrepancy(prefix + name, "the name", "not there", child.entry.kind.name.lower())
                    continue
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                yield from self.inode(prefix + name, status, child, descriptor, name)
                if child.children is not None and stat.S_ISDIR(status.st_mode):
                    stack.append((prefix + name, child))
        except OSError as error:
            yield Discrepancy(path, "the directory", f"unreadable ({error.strerror})", "readable")
        finally:
            os.close(descriptor)

    def inode(
        self, path: bytes, status: os.stat_result, inode: Inode, descriptor: int, name: bytes
    ) -> Iterator[Discrepancy]:
        """One name; `descriptor` is the directory it is in."""
        entry = inode.entry
        if stat.S_IFMT(status.st_mode) != _TYPES[entry.kind]:
            yield Discrepancy(path, "its type", stat.filemode(status.st_mode)[0], entry.kind.name.lower())
            return
        wanted = self._metadata(entry)
        if entry.kind is not Kind.SYMLINK and stat.S_IMODE(status.st_mode) != wanted.mode:
            yield Discrepancy(path, "its mode", f"{stat.S_IMODE(status.st_mode):o}", f"{wanted.mode:o}")
        if status.st_mtime_ns // self._unit != entry.mtime // self._unit and not _clamped(status.st_mtime_ns, entry):
            yield Discrepancy(path, "its time", f"{status.st_mtime_ns}", f"{entry.mtime}")
        if inode.shared and self._hard_links:
            yield from self._names(path, status, inode)
        match entry.kind:
            case Kind.SYMLINK:
                target = os.fsencode(os.readlink(name, dir_fd=descriptor))
                if target != entry.link:
                    yield Discrepancy(path, "its target", printable(target), printable(entry.link))
            case Kind.FILE:
                yield from self._file(path, status, inode, descriptor, name)
            case Kind.CHARACTER | Kind.BLOCK:
                device = os.major(status.st_rdev), os.minor(status.st_rdev)
                if device != entry.device:
                    yield Discrepancy(path, "its device", str(device), str(entry.device))

    def _file(
        self, path: bytes, status: os.stat_result, inode: Inode, descriptor: int, name: bytes
    ) -> Iterator[Discrepancy]:
        if status.st_size != inode.entry.size:
            yield Discrepancy(path, "its size", str(status.st_size), str(inode.entry.size))
        elif self._read(path):
            try:
                digest = file_digest(descriptor, name)
            except OSError as error:
                yield Discrepancy(path, "its content", f"unreadable ({error.strerror})", "readable")
                return
            wanted = self._content(inode)
            if digest != wanted:
                yield Discrepancy(path, "its content", f"sha256:{digest.hex()}", f"sha256:{wanted.hex()}")

    def _names(self, path: bytes, status: os.stat_result, inode: Inode) -> Iterator[Discrepancy]:
        identity = (status.st_dev, status.st_ino)
        if self._found.setdefault(id(inode), identity) != identity:
            yield Discrepancy(path, "the file", "another one", "the same under all its names")
        elif self._taken.setdefault(identity, id(inode)) != id(inode):
            yield Discrepancy(path, "the file", "one with a name that is another file's", "one of its own")


def _clamped(found: int, entry: Entry) -> bool:
    """Whether a time is the nearest to an entry's that the file system has, which is what utimensat(2) sets."""
    return entry.mtime < found == _EARLIEST or entry.mtime > found == _LATEST


def file_digest(directory: int, name: bytes) -> bytes:
    """The sha256 of a regular file's content, by its name in a directory.

    Raises:
        OSError: It can't be read.
    """
    descriptor = os.open(name, _READ, dir_fd=directory)
    try:
        size = os.fstat(descriptor).st_size
        piece = os.read(descriptor, min(size + 1, _PIECE))
        if len(piece) == size:
            return hashlib.sha256(piece).digest()
        digest = hashlib.sha256()
        while piece:
            digest.update(piece)
            piece = os.read(descriptor, _PIECE)
        return digest.digest()
    finally:
        os.close(descriptor)
