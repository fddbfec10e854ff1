"""The difference of two trees, as values: every step that makes the new one of the old one, and what that costs.

The steps are found by `diff` and carried out on a directory by `edit`. Here they are only described, with what two
trees are compared by: the content of files, and what of their metadata is kept.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from cvmfs_sync.index import LayerIndex
from cvmfs_sync.tar import Entry
from cvmfs_sync.tree import SYNTHETIC, Inode

__all__ = [
    "Change",
    "Content",
    "Fields",
    "Link",
    "Make",
    "Metadata",
    "Removal",
    "Settle",
    "Totals",
    "TreeDiff",
    "contents",
    "exact_metadata",
]

Content: TypeAlias = Callable[[Inode], bytes]
"""Gives what is the same for two regular files if and only if their bytes are, such as a digest."""


class Metadata(NamedTuple):
    """What an inode has besides its kind, content, target and number. The mode of a symbolic link says nothing."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: Mapping[bytes, bytes]


def exact_metadata(entry: Entry) -> Metadata:
    """All that the image says."""
    return Metadata(entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs)


def contents(indexes: Sequence[LayerIndex]) -> Content:
    """The digests of the files of a tree that was merged from these layers, bottom to top."""

    def content(inode: Inode) -> bytes:
        if inode.layer == SYNTHETIC:
            return hashlib.sha256(inode.content or b"").digest()
        return indexes[inode.layer].digest(inode.ordinal)

    return content


class Change(enum.Enum):
    """Why something is made at a name."""

    ADDED = "added"
    """Nothing was there."""
    TYPE = "type"
    """Something of another kind was there."""
    CONTENT = "content"
    """A file with other bytes was there, a link with another target, or a device with another number."""
    NAMES = "names"
    """The same was there, but as a name of something that goes on under other names, or with other names."""


class Fields(enum.Flag):
    """What of the metadata differs; nothing where a change below makes it necessary to set it again."""

    NONE = 0
    MODE = enum.auto()
    OWNER = enum.auto()
    MTIME = enum.auto()
    XATTRS = enum.auto()


@dataclass(frozen=True, slots=True)
class Removal:
    """A name that goes, with all that is below it.

    Attributes:
        path: Its name in the old tree.
        entries: How many names go, itself and those below.
        replaced: Whether something is made at the same name.
    """

    path: bytes
    entries: int
    replaced: bool


@dataclass(frozen=True, slots=True)
class Make:
    """Something that is made at a name which is free once the removals are done.

    Attributes:
        path: Its name.
        inode: What it becomes; the new tree's, so its layer and ordinal are those of the new image.
        change: Why.
    """

    path: bytes
    inode: Inode
    change: Change


@dataclass(frozen=True, slots=True)
class Link:
    """A further name of something that stays or was made before.

    Attributes:
        path: The name, free once the removals are done.
        target: The other name, its parents no symbolic links.
        change: Why.
    """

    path: bytes
    target: bytes
    change: Change


@dataclass(frozen=True, slots=True)
class Settle:
    """Metadata that is set when all else is done.

    Attributes:
        path: A name; of several only the first one that stays. Empty for the root.
        inode: The new tree's.
        fields: What differs from the old tree. `Fields.NONE` for a directory that was made, or in which a name came or
            went: making names sets its time.
    """

    path: bytes
    inode: Inode
    fields: Fields


@dataclass(frozen=True, slots=True)
class Totals:
    """What it costs, in names but the root's.

    Attributes:
        removed: Names of the old tree that go; those at which something else is made, too.
        made: Names of the new tree that are made: directories, files, links of both kinds, special files.
        changed: Names that stay, with other metadata.
        unchanged: Names that stay as they are. They are what a clone saves.
        files: Regular files that are written.
        bytes: Their bytes, with holes.
        touched_files: Regular files that stay, with other metadata. Where files are shared or a layer of another file
            system is written to, they are written, too.
        touched_bytes: Their bytes, with holes.
    """

    removed: int = 0
    made: int = 0
    changed: int = 0
    unchanged: int = 0
    files: int = 0
    bytes: int = 0
    touched_files: int = 0
    touched_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TreeDiff:
    """The steps, phase by phase in this order; within a phase in the order of `Tree.walk`, unless said otherwise.

    Attributes:
        removals: None below another one.
        directories: Parents first.
        files: Regular files, to be written with their metadata. Each has a name of its own.
        others: Symbolic links, devices and fifos, with their metadata. After the files, so that no link is on the way
            of a write that was not there before.
        links: Further names.
        metadata: Children before their directories, because setting a child's may change a directory's time.
        totals: What all of it costs.
    """

    removals: tuple[Removal, ...] = ()
    directories: tuple[Make, ...] = ()
    files: tuple[Make, ...] = ()
    others: tuple[Make, ...] = ()
    links: tuple[Link, ...] = ()
    metadata: tuple[Settle, ...] = ()
    totals: Totals = Totals()

    @property
    def empty(self) -> bool:
        """Whether the trees are the same."""
        return not (self.removals or self.directories or self.files or self.others or self.links or self.metadata)
