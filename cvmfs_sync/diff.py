"""What turns one tree into another.

Two trees go in, with what tells the content of their files, and a `TreeDiff` comes out: every step that makes the new
tree of the old one, in phases in which they can be carried out, and what that costs. Both trees stay as they are. Steps
are values; who carries them out on a directory is not known here, `apply` does it on a tree.

Names are compared with the same name only: a file that was moved is one removed and one added. What stays in place is
never written again: of a group of hard links, the file that has most of its names already is kept, and the others are
linked to it.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from cvmfs_sync.index import LayerIndex
from cvmfs_sync.tar import Entry, Kind
from cvmfs_sync.tree import SYNTHETIC, Inode, Tree, printable, split

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
    "apply",
    "contents",
    "diff",
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


def diff(
    old: Tree,
    new: Tree,
    *,
    old_content: Content,
    new_content: Content,
    metadata: Callable[[Entry], Metadata] = exact_metadata,
) -> TreeDiff:
    """Compare two trees.

    Args:
        old: What is there.
        new: What shall be there.
        old_content: For the files of `old`; asked only about files whose size does not tell.
        new_content: For the files of `new`.
        metadata: What of an entry's metadata comes to the place where both trees are written. Something that is lost
            there makes no difference.
    """
    return _Comparison(old, new, old_content, new_content, metadata).result()


_Pair: TypeAlias = tuple[bytes, Inode | None, Inode]


class _Comparison:
    """One comparison: collects the steps while it walks through both trees at once."""

    def __init__(
        self, old: Tree, new: Tree, old_content: Content, new_content: Content, metadata: Callable[[Entry], Metadata]
    ) -> None:
        self._old_content = old_content
        self._new_content = new_content
        self._metadata = metadata
        self._removals: list[Removal] = []
        self._made: list[Make] = []
        self._links: list[Link] = []
        self._settled: dict[bytes, Settle] = {}
        self._changed = self._unchanged = 0
        # Names of things that have several in one of the trees: decided on when all of them are known.
        self._postponed: list[_Pair] = []
        self._directories: dict[bytes, Inode] = {}
        self._compare_metadata(b"", old.root, new.root, names=0)
        self._walk(old, new)
        self._settle_shared()

    def result(self) -> TreeDiff:
        made = sorted(self._made, key=_walk_order)
        files = tuple(each for each in made if each.inode.entry.kind is Kind.FILE)
        touched = [each for each in self._settled.values() if each.fields and each.inode.entry.kind is Kind.FILE]
        return TreeDiff(
            removals=tuple(sorted(self._removals, key=_walk_order)),
            directories=tuple(each for each in made if each.inode.children is not None),
            files=files,
            others=tuple(
                each for each in made if each.inode.children is None and each.inode.entry.kind is not Kind.FILE
            ),
            links=tuple(sorted(self._links, key=_walk_order)),
            metadata=tuple(sorted(self._settled.values(), key=_walk_order, reverse=True)),
            totals=Totals(
                removed=sum(each.entries for each in self._removals),
                made=len(made) + len(self._links),
                changed=self._changed,
                unchanged=self._unchanged,
                files=len(files),
                bytes=sum(each.inode.entry.size for each in files),
                touched_files=len(touched),
                touched_bytes=sum(each.inode.entry.size for each in touched),
            ),
        )

    def _walk(self, old: Tree, new: Tree) -> None:
        stack: list[_Pair] = [(b"", old.root, new.root)]
        while stack:
            directory, before, after = stack.pop()
            self._directories[directory] = after
            there = (before.children if before else None) or {}
            wanted = after.children or {}
            prefix = directory + b"/" if directory else b""
            touched = before is None
            for name, inode in there.items():
                if name not in wanted:
                    self._remove(prefix + name, inode, replaced=False)
                    touched = True
            for name, inode in wanted.items():
                path = prefix + name
                was = there.get(name)
                if inode.children is not None:
                    if was is None or was.children is None:
                        if was is not None:
                            self._remove(path, was, replaced=True)
                        self._made.append(Make(path, inode, Change.ADDED if was is None else Change.TYPE))
                        stack.append((path, None, inode))
                        touched = True
                    else:
                        self._compare_metadata(path, was, inode)
                        stack.append((path, was, inode))
                elif inode.shared or (was is not None and was.shared):
                    self._postponed.append((path, was, inode))
                elif was is not None and self._same(was, inode):
                    self._compare_metadata(path, was, inode)
                else:
                    self._make(path, was, inode)
                    touched = True
            if touched:
                self._touch(directory)

    def _settle_shared(self) -> None:
        """Find for each thing with several names the one of the old tree that is kept for it, if any."""
        names: dict[int, list[_Pair]] = {}
        common: dict[tuple[int, int], list[_Pair]] = {}
        for pair in sorted(self._postponed, key=lambda pair: pair[0].split(b"/")):
            _, was, inode = pair
            names.setdefault(id(inode), []).append(pair)
            if was is not None:
                common.setdefault((id(was), id(inode)), []).append(pair)
        kept: dict[int, Inode] = {}
        taken: set[int] = set()
        for pairs in sorted(common.values(), key=self._preference):
            path, was, inode = pairs[0]
            if was is not None and id(was) not in taken and id(inode) not in kept and self._same(was, inode):
                taken.add(id(was))
                kept[id(inode)] = was
                self._compare_metadata(path, was, inode, names=len(pairs))
        for inode_id, pairs in names.items():
            stays = kept.get(inode_id)
            target = next((path for path, was, _ in pairs if was is stays), None) if stays else None
            for path, was, inode in pairs:
                if stays is not None and was is stays:
                    continue
                if target is None:
                    target = path
                    self._make(path, was, inode)
                else:
                    self._links.append(Link(path, target, self._replace(path, was, inode)))
                self._touch(split(path)[0])

    def _preference(self, pairs: list[_Pair]) -> tuple[int, bool, list[bytes]]:
        """Most common names first; of equally many, where the metadata needs no change; then the first name."""
        path, was, inode = pairs[0]
        return -len(pairs), was is None or bool(self._differing(was.entry, inode.entry)), path.split(b"/")

    def _same(self, was: Inode, inode: Inode) -> bool:
        """Whether nothing but the metadata can differ. Not asked about two directories."""
        before, after = was.entry, inode.entry
        if before.kind is not after.kind:
            return False
        match after.kind:
            case Kind.FILE:
                return before.size == after.size and (
                    not after.size or self._old_content(was) == self._new_content(inode)
                )
            case Kind.SYMLINK:
                return before.link == after.link
            case _:
                return before.device == after.device

    def _make(self, path: bytes, was: Inode | None, inode: Inode) -> None:
        self._made.append(Make(path, inode, self._replace(path, was, inode)))

    def _replace(self, path: bytes, was: Inode | None, inode: Inode) -> Change:
        """Free the name for what is not a directory, and say why."""
        if was is None:
            return Change.ADDED
        self._remove(path, was, replaced=True)
        if was.entry.kind is not inode.entry.kind:
            return Change.TYPE
        return Change.NAMES if self._same(was, inode) else Change.CONTENT

    def _remove(self, path: bytes, was: Inode, *, replaced: bool) -> None:
        self._removals.append(Removal(path, _count(was), replaced))

    def _compare_metadata(self, path: bytes, was: Inode, inode: Inode, names: int = 1) -> None:
        fields = self._differing(was.entry, inode.entry)
        if fields:
            self._changed += names
            self._settled[path] = Settle(path, inode, fields)
        else:
            self._unchanged += names

    def _differing(self, before: Entry, after: Entry) -> Fields:
        if before is after or (
            before.mode == after.mode
            and before.uid == after.uid
            and before.gid == after.gid
            and before.mtime == after.mtime
            and before.xattrs == after.xattrs
        ):
            return Fields.NONE
        one, other = self._metadata(before), self._metadata(after)
        fields = Fields.NONE
        if one.mode != other.mode and after.kind is not Kind.SYMLINK:
            fields |= Fields.MODE
        if (one.uid, one.gid) != (other.uid, other.gid):
            fields |= Fields.OWNER
        if one.mtime != other.mtime:
            fields |= Fields.MTIME
        if one.xattrs != other.xattrs:
            fields |= Fields.XATTRS
        return fields

    def _touch(self, path: bytes) -> None:
        """A name comes or goes in this directory of the new tree."""
        self._settled.setdefault(path, Settle(path, self._directories[path], Fields.NONE))


def _walk_order(step: Removal | Make | Link | Settle) -> list[bytes]:
    return step.path.split(b"/") if step.path else []


def _count(inode: Inode) -> int:
    """How many names go with this one."""
    count = 1
    stack = [inode]
    while stack:
        children = stack.pop().children
        if children:
            count += len(children)
            stack.extend(children.values())
    return count


def apply(old: Tree, difference: TreeDiff) -> Tree:
    """Carry out the steps on a copy of `old`.

    What stays keeps the layer and ordinal that it has in `old`; what is made has those of the new tree.

    Raises:
        ValueError: The difference is one of another tree.
    """
    tree = _copy(old)
    for removal in difference.removals:
        parent, name = _place(tree, removal.path)
        if parent.pop(name, None) is None:
            raise _misfit(removal.path, "is not there")
    for make in (*difference.directories, *difference.files, *difference.others):
        _name(tree, make.path, Inode(make.inode.entry, make.inode.layer, make.inode.ordinal, make.inode.content))
    for link in difference.links:
        inode = _inode(tree, link.target)
        inode.shared = True
        _name(tree, link.path, inode)
    for settle in difference.metadata:
        inode, wanted = _inode(tree, settle.path), settle.inode.entry
        inode.entry = replace(
            inode.entry,
            mode=wanted.mode,
            uid=wanted.uid,
            gid=wanted.gid,
            mtime=wanted.mtime,
            xattrs=wanted.xattrs,
        )
    return tree


def _copy(tree: Tree) -> Tree:
    result = Tree(tree.limits)
    result.root = _alone(tree.root)
    shared: dict[int, Inode] = {}
    stack = [(tree.root, result.root)]
    while stack:
        source, target = stack.pop()
        assert target.children is not None  # noqa: S101 - only directories are put on the stack
        for name, inode in (source.children or {}).items():
            child = shared.get(id(inode)) or _alone(inode)
            if inode.shared:
                shared[id(inode)] = child
            target.children[name] = child
            if inode.children:
                stack.append((inode, child))
    return result


def _alone(inode: Inode) -> Inode:
    """A copy without children."""
    copy = Inode(inode.entry, inode.layer, inode.ordinal, inode.content)
    copy.shared = inode.shared
    return copy


def _place(tree: Tree, path: bytes) -> tuple[dict[bytes, Inode], bytes]:
    """The names in the directory of `path`, and the name in it; no link is followed."""
    parent, name = split(path)
    children = _inode(tree, parent).children
    if children is None:
        raise _misfit(parent, "is no directory")
    return children, name


def _inode(tree: Tree, path: bytes) -> Inode:
    inode: Inode | None = tree.root
    for name in path.split(b"/") if path else ():
        inode = (inode.children or {}).get(name) if inode else None
    if inode is None:
        raise _misfit(path, "is not there")
    return inode


def _name(tree: Tree, path: bytes, inode: Inode) -> None:
    children, name = _place(tree, path)
    if children.setdefault(name, inode) is not inode:
        raise _misfit(path, "is there already")


def _misfit(path: bytes, why: str) -> ValueError:
    return ValueError(f"a difference does not fit: {printable(path)} {why}")
