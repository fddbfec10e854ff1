"""What turns one tree into another.

Two trees go in, with what tells the content of their files, and a `TreeDiff` comes out: every step that makes the new
tree of the old one, in phases in which they can be carried out, and what that costs. Both trees stay as they are. Steps
are values; who carries them out on a directory is not known here, `apply` does it on a tree.

Names are compared with the same name only: a file that was moved is one removed and one added. What stays in place is
never written again: of a group of hard links, the file that has most of its names already is kept, and the others are
linked to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from cvmfs_sync.difference import (
    Change,
    Content,
    Fields,
    Link,
    Make,
    Metadata,
    Removal,
    Settle,
    Totals,
    TreeDiff,
    exact_metadata,
)
from cvmfs_sync.tar import Entry, Kind
from cvmfs_sync.tree import Inode, Tree, printable, split

__all__ = ["apply", "diff"]


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
