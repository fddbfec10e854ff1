"""Differences of trees: their steps, that applying them gives the new tree, and that nothing is named in vain."""

# ruff: noqa: E501 -- a table is read line by line
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import pytest
from hypothesis import event, given, settings

from cvmfs_sync.diff import apply, diff
from cvmfs_sync.difference import Fields, Metadata, Totals, TreeDiff, contents, exact_metadata
from cvmfs_sync.image import ImageConfig
from cvmfs_sync.index import LayerIndex, index_layer
from cvmfs_sync.reference import Platform
from cvmfs_sync.sandbox import furnish
from cvmfs_sync.tar import Entry, Kind, Limits
from cvmfs_sync.tree import SYNTHETIC, Inode, Tree, directory, file, merge, symlink
from tests.support import images
from tests.support.images import hardlink
from tests.support.model import MemoryLayer, entries_of, random_layers, valid_layers

Layers = Sequence[Sequence[images.Entry]]
f, d, s, h = images.file, images.directory, images.symlink, hardlink


class Side:
    """A tree, and the content of its files."""

    def __init__(self, layers: Layers, offset: int = 0) -> None:
        """Merge layers; their numbers begin at `offset`, so that the inodes of two sides are told apart."""
        self.layers: list[Sequence[images.Entry]] = [[]] * offset + list(layers)
        self.tree = merge([entries_of(layer) for layer in self.layers])

    def content(self, inode: Inode) -> bytes:
        if inode.layer == SYNTHETIC:
            return inode.content or b""
        return self.layers[inode.layer][inode.ordinal].content


def _compare(old: Layers, new: Layers, **options: Any) -> TreeDiff:
    one, other = Side(old), Side(new)
    return diff(one.tree, other.tree, old_content=one.content, new_content=other.content, **options)


def _lines(difference: TreeDiff) -> list[str]:
    """The steps in their order, in a form to compare with; settled directories without a change are left out."""
    return [
        *(f"- {_name(each.path)}{f' ({each.entries})' if each.entries > 1 else ''}" for each in difference.removals),
        *(f"d {_name(each.path)}: {each.change.value}" for each in difference.directories),
        *(f"f {_name(each.path)}: {each.change.value}" for each in difference.files),
        *(f"o {_name(each.path)}: {each.change.value}" for each in difference.others),
        *(f"l {_name(each.path)} = {_name(each.target)}: {each.change.value}" for each in difference.links),
        *(f"m {_name(each.path)}: {_fields(each.fields)}" for each in difference.metadata if each.fields),
    ]


def _name(path: bytes) -> str:
    return path.decode() or "."


def _fields(fields: Fields) -> str:
    return " ".join(str(each.name).lower() for each in Fields if each in fields)


# Old layers, new layers, the steps.
CASES: dict[str, tuple[Layers, Layers, list[str]]] = {
    "nothing": ([[f("a"), d("b")]], [[f("a"), d("b")]], []),
    "the same of other layers": ([[f("a", "x")], [d("b")]], [[d("b"), f("a", "y")], [f("a", "x")]], []),
    # names
    "added": ([[f("a")]], [[f("a"), f("b", "x")]], ["f b: added"]),
    "an added tree": ([[]], [[d("a", mtime=1), f("a/b/c"), s("a/l", "b")]], ["d a: added", "d a/b: added", "f a/b/c: added", "o a/l: added"]),
    "removed": ([[f("a"), f("b")]], [[f("a")]], ["- b"]),
    "a removed tree is named once": ([[f("a/b/c"), f("a/d")]], [[]], ["- a (4)"]),
    "removed below what stays": ([[d("a"), f("a/b/c")]], [[d("a")]], ["- a/b (2)"]),
    "moved is removed and added": ([[f("a", "x")]], [[f("b", "x")]], ["- a", "f b: added"]),
    # content
    "a changed file alone": ([[d("a"), f("a/b", "1"), f("a/c")]], [[d("a"), f("a/b", "2"), f("a/c")]], ["- a/b", "f a/b: content"]),
    "another size": ([[f("a", "1")]], [[f("a", "11")]], ["- a", "f a: content"]),
    "content and mode": ([[f("a", "1")]], [[f("a", "2", 0o600)]], ["- a", "f a: content"]),
    "another target": ([[s("a", "x")]], [[s("a", "y")]], ["- a", "o a: content"]),
    "another device": ([[images.device("a", 1, 3)]], [[images.device("a", 1, 5)]], ["- a", "o a: content"]),
    # metadata
    "mode": ([[f("a", "1")]], [[f("a", "1", 0o600)]], ["m a: mode"]),
    "mode of a directory": ([[d("a"), f("a/b")]], [[d("a", 0o700), f("a/b")]], ["m a: mode"]),
    "owner and group": ([[f("a"), f("b")]], [[f("a", uid=1), f("b", gid=1)]], ["m b: owner", "m a: owner"]),
    "time": ([[f("a", mtime=1)]], [[f("a", mtime=1.5)]], ["m a: mtime"]),
    "attributes": ([[f("a")]], [[f("a", xattrs={"user.x": b"1"})]], ["m a: xattrs"]),
    "all": ([[d("a")]], [[d("a", 0o700, uid=1, mtime=1, xattrs={"user.x": b"1"})]], ["m a: mode owner mtime xattrs"]),
    "time of a link": ([[s("a", "x")]], [[s("a", "x", mtime=1)]], ["m a: mtime"]),
    "mode of a fifo": ([[images.fifo("a")]], [[images.fifo("a", 0o600)]], ["m a: mode"]),
    "the root": ([[d("./")]], [[d("./", 0o700)]], ["m .: mode"]),
    "children before parents": ([[d("a"), d("a/b"), f("a/b/c")]], [[d("a", 0o700), d("a/b", 0o700), f("a/b/c", mode=0o600)]], ["m a/b/c: mode", "m a/b: mode", "m a: mode"]),
    # types
    "a directory becomes a file": ([[f("a/b"), f("a/c")]], [[f("a")]], ["- a (3)", "f a: type"]),
    "a file becomes a directory": ([[f("a")]], [[f("a/b")]], ["- a", "d a: type", "f a/b: added"]),
    "a directory becomes a link": ([[f("lib/x")]], [[s("lib", "usr/lib"), f("usr/lib/x")]], ["- lib (2)", "d usr: added", "d usr/lib: added", "f usr/lib/x: added", "o lib: type"]),
    "a link becomes a directory": ([[s("a", "b")]], [[d("a")]], ["- a", "d a: type"]),
    "a file becomes a link": ([[f("a")]], [[s("a", "b")]], ["- a", "o a: type"]),
    "a fifo becomes a device": ([[images.fifo("a")]], [[images.device("a", 1, 3)]], ["- a", "o a: type"]),
    "another kind of device": ([[images.device("a", 1, 3)]], [[images.device("a", 1, 3, block=True)]], ["- a", "o a: type"]),
    # hard links
    "the same hard links": ([[f("a", "x"), h("b", "a")]], [[f("b", "x"), h("a", "b")]], []),
    "a further name": ([[f("a", "x")]], [[f("a", "x"), h("b", "a")]], ["l b = a: added"]),
    "a further name, the first one": ([[f("b", "x")]], [[f("b", "x"), h("a", "b")]], ["l a = b: added"]),
    "a name less": ([[f("a", "x"), h("b", "a"), h("c", "a")]], [[f("a", "x"), h("c", "a")]], ["- b"]),
    "the last other name goes": ([[f("a", "x"), h("b", "a")]], [[f("a", "x")]], ["- b"]),
    "the first name goes": ([[f("a", "x"), h("b", "a")]], [[f("b", "x")]], ["- a"]),
    "a link is broken": ([[f("a", "x"), h("b", "a")]], [[f("a", "x"), f("b", "x")]], ["- b", "f b: names"]),
    "a link is broken by other content": ([[f("a", "x"), h("b", "a")]], [[f("a", "y"), f("b", "x")]], ["- a", "f a: content"]),
    "a link is broken by other metadata": ([[f("a", "x"), h("b", "a")]], [[f("a", "x", 0o600), f("b", "x")]], ["- a", "f a: names"]),
    "two files become one": ([[f("a", "x"), f("b", "x")]], [[f("a", "x"), h("b", "a")]], ["- b", "l b = a: names"]),
    "two files become one, content kept": ([[f("a", "x"), f("b", "y")]], [[f("a", "y"), h("b", "a")]], ["- a", "l a = b: content"]),
    "new content for all names": ([[f("a", "x"), h("b", "a")]], [[f("a", "y"), h("b", "a")]], ["- a", "- b", "f a: content", "l b = a: content"]),
    "new metadata is set once": ([[f("a", "x"), h("b", "a")]], [[f("a", "x", 0o600), h("b", "a")]], ["m a: mode"]),
    "most names are kept": (
        [[f("a", "x"), f("b", "x"), h("c", "b"), h("d", "b")]], [[f("a", "x"), h("b", "a"), h("c", "a"), h("d", "a")]],
        ["- a", "l a = b: names"],
    ),
    "groups are dealt anew": (
        [[f("a", "x"), h("b", "a"), f("c", "x"), h("d", "c")]], [[f("a", "x"), h("c", "a"), f("b", "x"), h("d", "b")]],
        ["- b", "- c", "l b = d: names", "l c = a: names"],
    ),
    "a new group": ([[]], [[f("a", "x"), h("b/c", "a")]], ["d b: added", "f a: added", "l b/c = a: added"]),
    "a name in a tree that goes": ([[f("a/b", "x"), h("c", "a/b")]], [[f("c", "x")]], ["- a (2)"]),
    "linked symbolic links": ([[s("a", "x")]], [[s("a", "x"), h("b", "a")]], ["l b = a: added"]),
    "a name becomes a directory": ([[f("a", "x"), h("b", "a")]], [[f("a", "x"), d("b")]], ["- b", "d b: type"]),
    "a directory becomes a name": ([[f("a", "x"), d("b")]], [[f("a", "x"), h("b", "a")]], ["- b", "l b = a: type"]),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CASES.values(), ids=CASES.keys())
def test_steps(old: Layers, new: Layers, expected: list[str]) -> None:
    """Each kind of change gives its steps and no others; the steps give the new tree."""
    assert _lines(_compare(old, new)) == expected
    _check(Side(old), Side(new, offset=len(old)))


def test_touched_directories_are_settled() -> None:
    """Directories in which names come or go, and new ones, are named last, children first, so that times can be set."""
    old = [[f("a/b/x"), f("c/y"), d("d"), f("e/f", "1"), h("g/h", "e/f")]]
    new = [[f("a/b/x"), f("a/b/z"), d("c"), d("d"), f("e/f", "1"), d("g"), f("n/m/o")]]
    assert [(_name(each.path), each.fields) for each in _compare(old, new).metadata] == [
        ("n/m", Fields.NONE),
        ("n", Fields.NONE),
        ("g", Fields.MTIME),
        ("c", Fields.MTIME),
        ("a/b", Fields.NONE),
        (".", Fields.NONE),
    ]


def test_totals() -> None:
    """What a difference costs, and what a clone saves, is counted in names and bytes."""
    old = [[d("a"), f("a/x", "1"), f("a/y", "22"), f("b/c/d"), f("e", "333"), h("g", "e")]]
    new = [[d("a", 0o700), f("a/x", "1"), f("a/y", "4444"), f("n/o", "55555"), f("e", "333"), h("g", "e"), h("h", "e")]]
    assert _compare(old, new).totals == Totals(removed=4, made=4, changed=1, unchanged=3, files=2, bytes=9)


def test_metadata_that_is_lost_makes_no_difference() -> None:
    """Where owners are not kept, another owner is no change; where bits are added, their absence is none."""

    def kept(entry: Entry) -> Metadata:
        return exact_metadata(entry)._replace(uid=0, gid=0, mode=entry.mode | 0o404)

    old, new = [[f("a", uid=1), f("b", mode=0o600)]], [[f("a", uid=2), f("b", mode=0o604)]]
    assert _lines(_compare(old, new)) == ["m b: mode", "m a: owner"]
    assert _compare(old, new, metadata=kept).empty


def test_content_is_not_asked_for_in_vain() -> None:
    """Digests of files whose size differs, or that are empty, or in only one of the trees, are not needed."""
    asked: list[bytes] = []

    def content(inode: Inode) -> bytes:
        asked.append(inode.entry.path)
        return b""

    old, new = Side([[f("a", "1"), f("b", "1"), f("c"), f("d")]]), Side([[f("a", "1"), f("b", "22"), f("c"), f("e")]])
    diff(old.tree, new.tree, old_content=content, new_content=content)
    assert asked == [b"a", b"a"]


def test_contents_are_told_by_digest() -> None:
    """Files of layers and synthetic ones are compared with each other by the sha256 of their bytes."""
    stream = images.layer(d("etc"), f("etc/hosts", "x"), compression="none").tar
    index = index_layer(MemoryLayer.of(stream), Limits())
    tree = merge([index.entries])
    tree.root.children[b"new"] = file(b"x")  # type: ignore[index]
    told = contents([index])
    digests = {path: told(inode) for path, inode in tree.walk() if inode.entry.kind is Kind.FILE}
    assert digests == dict.fromkeys((b"etc/hosts", b"new"), hashlib.sha256(b"x").digest())


def test_furnished_trees_differ_in_what_their_configuration_says() -> None:
    """Of two images with the same layers, only the scripts that hold the configuration are written."""
    index = LayerIndex(index_layer(MemoryLayer.of(images.layer(f("a")).tar), Limits()).diff_id, [], b"")
    trees = [merge([index.entries]) for _ in range(2)]
    for tree, environment in zip(trees, (("PATH=/bin",), ("PATH=/usr/bin",)), strict=True):
        furnish(tree, ImageConfig(index.diff_id, Platform(), (), environment=environment))
    difference = diff(trees[0], trees[1], old_content=contents([index]), new_content=contents([index]))
    assert _lines(difference) == [
        "- .singularity.d/env/10-docker2singularity.sh",
        "f .singularity.d/env/10-docker2singularity.sh: content",
    ]


def test_a_difference_fits_its_own_tree_only() -> None:
    """Steps that name what is not there, or make what is, are refused."""
    difference = _compare([[f("a"), f("b/c")]], [[f("d/e"), f("b/c")]])
    others: list[Layers] = [[[f("b/c")]], [[f("a"), f("b/c"), f("d")]], [[]]]
    for other in others:
        with pytest.raises(ValueError, match="does not fit"):
            apply(merge([entries_of(layer) for layer in other]), difference)
    below = TreeDiff(files=_compare([[d("x")]], [[d("x"), f("x/y")]]).files)
    with pytest.raises(ValueError, match="is no directory"):
        apply(merge([entries_of([f("x")])]), below)


# --- properties -------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What can be seen at a path.

    Attributes:
        what: Metadata, and a target or device.
        content: Of a file; None for all else.
        names: All paths that are this very thing.
    """

    what: tuple[object, ...]
    content: bytes | None
    names: tuple[bytes, ...]


_Listing: TypeAlias = Mapping[bytes, Seen]


def _seen(side: Side, tree: Tree | None = None) -> _Listing:
    """All that can be seen of a tree: comparing two of these path by path is the naive way."""
    tree = tree or side.tree
    names: dict[int, list[bytes]] = {}
    for path, inode in tree.walk():
        names.setdefault(id(inode), []).append(path)
    listing = {}
    for path, inode in [(b"", tree.root), *tree.walk()]:
        entry = inode.entry
        mode = entry.mode if entry.kind is not Kind.SYMLINK else 0
        listing[path] = Seen(
            (entry.kind, mode, entry.uid, entry.gid, entry.mtime, dict(entry.xattrs), entry.link, entry.device),
            side.content(inode) if entry.kind is Kind.FILE else None,
            tuple(names.get(id(inode), ())),
        )
    return listing


class Both(Side):
    """The content of the files of two sides, for a tree that is made of both."""

    def __init__(self, old: Side, new: Side) -> None:
        self.layers = [*old.layers, *new.layers[len(old.layers) :]]
        self.tree = old.tree


def _check(old: Side, new: Side) -> TreeDiff:
    """All that must hold for a difference; layers of the two sides have different numbers."""
    before, after = _seen(old), _seen(new)
    difference = diff(old.tree, new.tree, old_content=old.content, new_content=new.content)
    both = Both(old, new)
    made = apply(old.tree, difference)
    assert _seen(both, made) == after
    assert (_seen(old), _seen(new)) == (before, after), "the trees that were compared have changed"
    assert diff(made, new.tree, old_content=both.content, new_content=new.content).empty
    assert difference.empty is (before == after)
    _check_minimal(difference, before, after)
    _check_totals(difference, before, after)
    return difference


def _check_minimal(difference: TreeDiff, before: _Listing, after: _Listing) -> None:
    """Nothing is named that a comparison path by path finds unchanged."""
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    removed = {path for path in before for each in difference.removals if _is_in(path, each.path)}
    made = {each.path for each in (*difference.directories, *difference.files, *difference.others)}
    made |= {each.path for each in difference.links}
    settled = {each.path for each in difference.metadata if each.fields}
    assert removed | made | settled <= changed
    assert before.keys() - after.keys() <= removed
    assert after.keys() - before.keys() <= made
    for path in changed - removed - made - settled:
        # It stays, and its other names have changed, or its metadata is set by one of those.
        assert before[path].content == after[path].content
        assert before[path].what == after[path].what or settled.intersection(after[path].names)
    for each in difference.files:
        # No other name of it had this content in the old tree, or that goes on as another file.
        was = before.get(each.path)
        if was is not None and len(was.names) == len(after[each.path].names) == 1:
            assert was.content != after[each.path].content


def _is_in(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def _check_totals(difference: TreeDiff, before: _Listing, after: _Listing) -> None:
    totals = difference.totals
    assert totals.removed + totals.changed + totals.unchanged == len(before) - 1
    assert totals.made + totals.changed + totals.unchanged == len(after) - 1


def _sides(old: Layers, new: Layers) -> tuple[Side, Side]:
    return Side(valid_layers(old)), Side(valid_layers(new), offset=len(old))


@settings(max_examples=200)
@given(random_layers(layers=2), random_layers(layers=2))
def test_the_difference_of_any_two_trees_applied_is_the_new_tree(old: Layers, new: Layers) -> None:
    """Whatever the trees, hard links among them: the steps give the new one and name no more than they must."""
    _check(*_sides(old, new))


@settings(max_examples=150)
@given(random_layers(layers=3), random_layers(layers=1, entries=4))
def test_an_update_applied_is_the_new_tree(base: Layers, update: Layers) -> None:
    """A tree and the same tree with a layer more, in both directions."""
    old, new = _sides(base, [*base, *update])
    difference = _check(old, new)
    event(f"hard links: {bool(difference.links)}")
    _check(*_sides([*base, *update], base))


@given(random_layers())
def test_a_tree_does_not_differ_from_itself(layers: Layers) -> None:
    """No steps, no cost, whether it is the same object or merged again."""
    one, other = _sides(layers, layers)
    for new in (one, other):
        difference = diff(one.tree, new.tree, old_content=one.content, new_content=new.content)
        names = sum(1 for _ in one.tree.walk())
        assert (difference.empty, difference.totals) == (True, Totals(unchanged=names))


@given(random_layers(layers=3))
def test_from_and_to_nothing(layers: Layers) -> None:
    """Against an empty tree all is added, and all is removed by naming the top."""
    nothing, all_ = _sides([], layers)
    difference = _check(nothing, all_)
    assert not difference.removals
    difference = diff(all_.tree, nothing.tree, old_content=all_.content, new_content=nothing.content)
    assert [each.path for each in difference.removals] == sorted(all_.tree.root.children or ())


def test_deep_trees_are_compared_without_recursion() -> None:
    """A thousand directories in each other are no problem."""
    one, other = Tree(Limits()), Tree(Limits())
    for tree, leaf in ((one, b"1"), (other, b"2")):
        at = tree.root
        for _ in range(2_000):
            below = directory()
            assert at.children is not None
            at.children[b"d"] = below
            at = below
        assert at.children is not None
        at.children[b"leaf"] = symlink(leaf)
    difference = diff(one, other, old_content=bytes, new_content=bytes)  # type: ignore[arg-type]
    assert len(difference.removals) == len(difference.others) == 1
    assert diff(apply(one, difference), other, old_content=bytes, new_content=bytes).empty  # type: ignore[arg-type]


def test_entries_are_not_shared_with_what_was_applied() -> None:
    """Changing the result of `apply` leaves both trees alone."""
    old, new = Side([[f("a", "1")]]), Side([[f("a", "1", 0o600), f("b")]], offset=1)
    made = apply(old.tree, diff(old.tree, new.tree, old_content=old.content, new_content=new.content))
    for path, inode in made.walk():
        inode.entry = replace(inode.entry, uid=77)
        assert new.tree.find(path) is not inode
    assert all(inode.entry.uid == 0 for tree in (old.tree, new.tree) for _, inode in tree.walk())
