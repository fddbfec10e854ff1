"""The index of a whole tree: that of the one layer which would hold it.

A `Tree` with what tells its content goes in and a `LayerIndex` comes out, and the other way round; and the index of a
tree that is there, read from its directory, for when all else is lost. Entries stand in the order of `Tree.walk`, the
root first; the second and further names of a file are hard links to its first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

from cvmfs_sync.beneath import open_directory
from cvmfs_sync.difference import Content, contents
from cvmfs_sync.index import LayerIndex
from cvmfs_sync.reference import Digest
from cvmfs_sync.tar import Entry, Kind, Limits
from cvmfs_sync.tar.entry import NO_XATTRS
from cvmfs_sync.tree import Inode, Tree, merge
from cvmfs_sync.verify import file_digest

__all__ = ["read_tree", "tree_id", "tree_index", "tree_of", "without_hard_links"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LIMITS = Limits(**{each.name: sys.maxsize for each in fields(Limits)})
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFIFO: Kind.FIFO,
}


def tree_id(path: str) -> Digest:
    """What the index of the tree at this path in the repository is kept under."""
    return Digest("sha256", hashlib.sha256(path.encode()).hexdigest())


def tree_index(identity: Digest, tree: Tree, content: Content) -> LayerIndex:
    """The tree as an index."""
    entries: list[Entry] = []
    digests = bytearray()
    first: dict[int, bytes] = {}

    def add(path: bytes, inode: Inode) -> None:
        entry = inode.entry
        if inode.shared and (target := first.setdefault(id(inode), path)) != path:
            entries.append(replace(entry, path=path, kind=Kind.HARDLINK, link=target, size=0, offset=0, sparse=None))
            return
        # Not by `replace`, which takes three times as long, and this is done for every name of every image.
        entries.append(
            Entry(
                path, entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime, entry.link, entry.device,
                entry.xattrs, 0, None,
            )
        )  # fmt: skip
        if entry.kind is Kind.FILE:
            digests.extend(content(inode))

    add(b"", tree.root)
    for path, inode in tree.walk():
        add(path, inode)
    return LayerIndex(identity, entries, bytes(digests))


def tree_of(index: LayerIndex, limits: Limits | None = None) -> tuple[Tree, Content]:
    """The tree that an index of `tree_index` holds, and what tells its content.

    Args:
        index: The index.
        limits: Of the tree; none if None, for it was within those of its day when it was published.

    Raises:
        InvalidImage: No image has such a tree: somebody has changed the directory that the index was read from.
    """
    return merge([index.entries], limits or _NO_LIMITS), contents([index])


def without_hard_links(tree: Tree) -> None:
    """Give each name an inode of its own, in place: what a repository that keeps no hard links makes of the tree."""
    stack = [tree.root]
    while stack:
        children = stack.pop().children or {}
        for name, inode in children.items():
            if inode.children is not None:
                stack.append(inode)
            elif inode.shared:
                children[name] = Inode(inode.entry, inode.layer, inode.ordinal, inode.content)


def read_tree(root: Path, identity: Digest, *, hard_links: bool) -> LayerIndex:
    """The index of the tree that stands in a directory: all of its content is read.

    Args:
        root: The directory.
        identity: What the index is to be kept under.
        hard_links: Whether names of one file there are meant to be so.

    Raises:
        OSError: Something can't be read, or is what no image can hold.
        InvalidImage: A name means something else in an image.
    """
    entries: list[Entry] = []
    digests = bytearray()
    first: dict[tuple[int, int], bytes] = {}
    top = os.open(root, _DIRECTORY)
    try:
        entries.append(_entry(b"", os.fstat(top), top, b""))
        for path, directory, name, status in _walk(top):
            entry = _entry(path, status, directory, name)
            if hard_links and status.st_nlink > 1 and entry.kind is not Kind.DIRECTORY:
                target = first.setdefault((status.st_dev, status.st_ino), path)
                if target != path:
                    entries.append(replace(entry, kind=Kind.HARDLINK, link=target, size=0))
                    continue
            entries.append(entry)
            if entry.kind is Kind.FILE:
                digests += file_digest(directory, name)
    finally:
        os.close(top)
    # Once more, in the order of all others.
    return tree_index(identity, *tree_of(LayerIndex(identity, entries, bytes(digests))))


def _walk(top: int) -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
    """Path, descriptor of the directory, name in it, and status of every name: parents before children."""
    stack = [b""]
    while stack:
        path = stack.pop()
        descriptor = open_directory(top, path) if path else os.dup(top)
        try:
            for name in sorted(map(os.fsencode, os.listdir(descriptor))):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                below = path + b"/" + name if path else name
                yield below, descriptor, name, status
                if stat.S_ISDIR(status.st_mode):
                    stack.append(below)
        finally:
            os.close(descriptor)


def _entry(path: bytes, status: os.stat_result, directory: int, name: bytes) -> Entry:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise OSError(errno.EINVAL, "is a socket, which no image has", path)
    device = (0, 0)
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        device = os.major(status.st_rdev), os.minor(status.st_rdev)
    return Entry(
        path=path, kind=kind, mode=stat.S_IMODE(status.st_mode), uid=0, gid=0,
        size=status.st_size if kind is Kind.FILE else 0, mtime=status.st_mtime_ns,
        link=os.fsencode(os.readlink(name, dir_fd=directory)) if kind is Kind.SYMLINK else b"",
        device=device, xattrs=_xattrs(kind, directory, name), offset=0, sparse=None,
    )  # fmt: skip


def _xattrs(kind: Kind, directory: int, name: bytes) -> Mapping[bytes, bytes]:
    """The attributes that an image could have given; few file systems have any, and some don't know of them."""
    if kind not in (Kind.FILE, Kind.DIRECTORY):
        return NO_XATTRS
    path = b"/proc/self/fd/%d/%s" % (directory, name)
    try:
        names = [key for key in map(os.fsencode, os.listxattr(path, follow_symlinks=False)) if key.startswith(b"user.")]
        return {key: os.getxattr(path, key, follow_symlinks=False) for key in names} or NO_XATTRS
    except OSError:
        return NO_XATTRS
