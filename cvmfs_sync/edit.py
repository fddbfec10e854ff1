"""Turning one tree on disk into another: carrying out a `TreeDiff`.

A directory that holds the old tree, or nothing, and the steps go in; the directory holds the new tree afterwards, or is
in any state after an error. Which content a file gets is the caller's to say, file by file, in between. The safe door
is that of `writing`, and symbolic links are made after all content has been written.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cvmfs_sync.difference import Fields, Make, Settle, TreeDiff
from cvmfs_sync.removal import remove_at
from cvmfs_sync.tar import Entry, Kind
from cvmfs_sync.tree import Tree, split
from cvmfs_sync.writing import IGNORED_XATTR_ERRORS, NEW_FILE, DirectoryWriter, FileContent, Policy

__all__ = ["TreeEditor", "wanted_files"]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_PIECE = 1 << 24


def wanted_files(difference: TreeDiff) -> Mapping[int, Mapping[int, tuple[Make, ...]]]:
    """The files that have to be read, by layer and ordinal; several where hard links are not kept."""
    wanted: dict[int, dict[int, tuple[Make, ...]]] = {}
    for make in difference.files:
        if make.inode.content is None:
            ordinals = wanted.setdefault(make.inode.layer, {})
            ordinals[make.inode.ordinal] = (*ordinals.get(make.inode.ordinal, ()), make)
    return wanted


class TreeEditor(DirectoryWriter):
    """Changes a directory step by step: `begin`, `write` for each of `wanted_files`, `finish`.

    Args:
        root: The directory.
        policy: What to keep of the metadata.
        difference: The steps.
        shared: Whether files that are there are another tree's, too: then none of them is changed, but replaced.
    """

    def __init__(self, root: Path, policy: Policy, difference: TreeDiff, *, shared: bool) -> None:
        super().__init__(root, policy)
        self._difference = difference
        self._shared = shared

    def begin(self) -> None:
        """Remove what goes, and make the directories."""
        for removal in self._difference.removals:
            parent, name = split(removal.path)
            remove_at(self._directory(parent), name)
        for make in self._difference.directories:
            parent, name = split(make.path)
            os.mkdir(name, 0o700, dir_fd=self._directory(parent))

    def write(self, makes: Iterable[Make], content: FileContent) -> None:
        """Write a file, and copy it to its further names, each a file of its own."""
        first: bytes | None = None
        for make in makes:
            parent, name = split(make.path)
            if first is None:
                first = make.path
                self._write(os.open(name, NEW_FILE, 0o600, dir_fd=self._directory(parent)), make.inode.entry, content)
            else:
                with _Opened(self, first) as source:
                    self._copy(source, make.path, make.inode.entry)

    def finish(self, tree: Tree) -> None:
        """Do all else; `tree` is the new one."""
        for make in self._difference.files:
            if make.inode.content is not None:
                self._make(make.path, make.inode)
        for make in self._difference.others:
            self._make(make.path, make.inode)
        for link in self._difference.links:
            self._link(link.target, link.path)
        names = self._names(tree)
        directories: list[Settle] = []
        touched: set[bytes] = set()
        for settle in self._difference.metadata:
            if settle.inode.children is None:
                touched |= self._settle(settle, names.get(id(settle.inode), [settle.path]))
            else:
                directories.append(settle)
        for settle in directories:
            descriptor = self._directory(settle.path)
            self._clear_xattrs(descriptor, settle.inode.entry, settle.fields)
            self._metadata(descriptor, settle.inode.entry, self._policy.directory_mode)
        for path in touched.difference(settle.path for settle in directories):
            directory = tree.find(path)
            assert directory is not None  # noqa: S101 - a name of the tree is in it
            os.utime(self._directory(path), ns=(directory.entry.mtime, directory.entry.mtime))

    def _names(self, tree: Tree) -> dict[int, list[bytes]]:
        """All names of the files that have several and other metadata now."""
        names: dict[int, list[bytes]] = {
            id(settle.inode): [] for settle in self._difference.metadata if settle.inode.shared
        }
        if names:
            for path, inode in tree.walk():
                if id(inode) in names:
                    names[id(inode)].append(path)
        return names

    def _settle(self, settle: Settle, names: Sequence[bytes]) -> set[bytes]:
        """Give a leaf its metadata; the directories whose time that has set, because names were made anew in them."""
        inode, path = settle.inode, settle.path
        if inode.entry.kind is not Kind.FILE:
            # Made anew rather than changed: opening one has effects, and it costs no content.
            self._unlink(names)
            self._make(path, inode)
        else:
            with _Opened(self, path) as descriptor:
                if not self._shared:
                    self._clear_xattrs(descriptor, inode.entry, settle.fields)
                    self._metadata(descriptor, inode.entry, self._policy.file_mode)
                    return set()
                self._unlink(names)
                self._copy(descriptor, path, inode.entry)
        for name in names:
            if name != path:
                self._link(path, name)
        return {split(name)[0] for name in names}

    def _unlink(self, names: Iterable[bytes]) -> None:
        for path in names:
            parent, name = split(path)
            os.unlink(name, dir_fd=self._directory(parent))

    def _copy(self, source: int, path: bytes, entry: Entry) -> None:
        parent, name = split(path)
        target = os.open(name, NEW_FILE, 0o600, dir_fd=self._directory(parent))
        try:
            _copy_content(source, target)
            self._metadata(target, entry, self._policy.file_mode)
        finally:
            os.close(target)

    def _clear_xattrs(self, descriptor: int, entry: Entry, fields: Fields) -> None:
        """Remove the attributes that the entry has not; only those that an image can give."""
        if Fields.XATTRS not in fields:
            return
        try:
            for name in os.listxattr(descriptor):
                encoded = os.fsencode(name)
                if encoded not in entry.xattrs and encoded.startswith(self._policy.xattrs):
                    os.removexattr(descriptor, name)
        except OSError as error:
            # As when they are set: a file system may know none, or have some of its own that nobody can remove.
            if error.errno not in IGNORED_XATTR_ERRORS:
                raise
            self.dropped_xattrs += 1


class _Opened:
    """A regular file below the editor's root, open for reading while the block lasts."""

    def __init__(self, editor: TreeEditor, path: bytes) -> None:
        parent, name = split(path)
        self._descriptor = os.open(name, _READ, dir_fd=editor._directory(parent))

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _copy_content(source: int, target: int) -> None:
    """Share the content where the file system can, else copy it without its holes."""
    with suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        return
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # nothing but a hole is left
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            moved = os.sendfile(target, source, start, min(_PIECE, end - start))
            if not moved:
                return
            start += moved
