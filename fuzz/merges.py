"""What must hold for any layers that are merged.

Bytes stand for layers over a few names, so that entries meet: `layers` reads them, `written` writes them. `check` is
the property: the model's tree, inode for inode, and the invariants of a tree. Nothing here needs a fuzzer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from cvmfs_sync.diff import apply, diff
from cvmfs_sync.errors import InvalidImage
from cvmfs_sync.tar import Kind, Limits
from cvmfs_sync.tree import Inode, Tree, merge, printable
from tests.support import images
from tests.support.model import Refused, entries_of, listing, model

__all__ = ["check", "layers", "seeds", "written"]

_NAMES = ("a", "b", "c")
_PATHS = tuple("/".join(parts) for depth in (1, 2, 3) for parts in itertools.product(_NAMES, repeat=depth))
_TARGETS = (".", "..", "/", "../../..", "a/..", "b/../c", "./a//b", "/a", "/b", "/b/c", "../a", "../../c", *_PATHS)
_END = 255  # of a layer
_ENTRIES = 40  # in all; the model is slow
_LIMITS = Limits(depth=64)


def layers(data: bytes) -> list[list[images.Entry]]:
    """Three bytes an entry: what it is, its path, its target or further choices."""
    result: list[list[images.Entry]] = [[]]
    at = count = 0
    while at < len(data) and count < _ENTRIES:
        if data[at] == _END:
            result.append([])
            at += 1
            continue
        kind, place, other = (*data[at : at + 3], 0, 0)[:3]
        result[-1].append(_entry(kind, place, other))
        at += 3
        count += 1
    return result


def _entry(kind: int, place: int, other: int) -> images.Entry:
    path = _PATHS[place % len(_PATHS)]
    match kind % 10:
        case 0 | 1:
            return images.file(path, "x" * (other % 5), 0o600 + other)
        case 2:
            return images.directory(path, 0o700 + other % 0o77)
        case 3 | 4:
            return images.symlink(path, _TARGETS[other % len(_TARGETS)])
        case 5:
            return images.hardlink(path, _PATHS[other % len(_PATHS)])
        case 6:
            return images.whiteout(path)
        case 7:
            return images.opaque(path if other % 4 else "")
        case 8:
            return images.fifo(path)
        case _:
            odd = ("./", ".wh.", "a/.wh..", "b/.wh...", ".wh.a/b", ".wh..wh.plnk/1", "a/.wh.b/c", "./a/")
            name = odd[other % len(odd)]
            return images.directory(name) if name.endswith("/") else images.file(name)


def check(data: bytes) -> bool:
    """Merge the layers that these bytes stand for, and turn the tree without the last one into that.

    Returns:
        Whether they mean anything.

    Raises:
        AssertionError: A property does not hold.
    """
    entries = [entries_of(layer) for layer in layers(data)]
    try:
        expected = model(entries)
    except Refused as refused:
        try:
            merged = merge(entries, _LIMITS)
        except InvalidImage:
            return False
        raise AssertionError(f"the model refuses: {refused}; merged: {listing(merged)}") from None
    before = [list(layer) for layer in entries]
    merged = merge(entries, _LIMITS)
    assert entries == before, "merging changed its input"
    shown = listing(merged)
    assert shown == expected, f"the model says {expected}, merged: {shown}"
    _check_tree(merged)
    base = merge(entries[:-1], _LIMITS)
    for one, other in ((base, merged), (merged, base)):
        made = apply(one, diff(one, other, old_content=_content, new_content=_content))
        assert diff(made, other, old_content=_content, new_content=_content).empty, "a difference is not applied"
        assert _groups(made) == _groups(other), "a difference loses hard links"
    return True


def _content(inode: Inode) -> bytes:
    return b"%d" % inode.entry.size


def _groups(tree: Tree) -> set[tuple[bytes, ...]]:
    names: dict[int, list[bytes]] = {}
    for path, inode in tree.walk():
        names.setdefault(id(inode), []).append(path)
    return {tuple(group) for group in names.values()}


def _check_tree(tree: Tree) -> None:
    """No whiteouts, parents are directories, names in order, and only what is shared has several."""
    parents: set[bytes] = {b""}
    seen: dict[int, Inode] = {}
    last: list[bytes] = []
    for path, inode in tree.walk():
        parent, _, name = path.rpartition(b"/")
        assert not name.startswith(b".wh."), f"a whiteout stayed: {printable(path)}"
        assert name not in (b"", b".", b".."), f"no name: {path!r}"
        assert parent in parents, f"{printable(path)} is below no directory"
        assert last < path.split(b"/"), f"{printable(path)} is out of order"
        last = path.split(b"/")
        assert (inode.children is not None) is (inode.entry.kind is Kind.DIRECTORY), f"children of {printable(path)}"
        assert inode.entry.kind is not Kind.HARDLINK, f"a hard link stayed: {printable(path)}"
        if inode.children is not None:
            parents.add(path)
        assert id(inode) not in seen or inode.shared, f"{printable(path)} is shared and does not say so"
        seen[id(inode)] = inode


def written(layers: Iterable[Iterable[images.Entry]]) -> bytes:
    """Bytes that stand for these layers, as far as bytes can."""
    wanted = [list(layer) for layer in layers]
    result = bytearray()
    for number, layer in enumerate(wanted):
        if number:
            result.append(_END)
        for entry in layer:
            result += _bytes(entry)
    return bytes(result)


def _bytes(entry: images.Entry) -> bytes:
    for kind, place, other in itertools.product(range(10), range(len(_PATHS)), range(len(_TARGETS))):
        found = _entry(kind, place, other)
        if (found.path, found.type, found.link) == (entry.path, entry.type, entry.link):
            return bytes((kind, place, other))
    raise ValueError(f"no bytes stand for {entry}")


def seeds() -> Iterator[tuple[str, bytes]]:
    """Names and bytes: each rule of the specification once."""
    file, whiteout, link, hard = images.file, images.whiteout, images.symlink, images.hardlink
    for name, each in {
        "whiteout": [[file("a/b"), file("a/c")], [whiteout("a/b")]],
        "own-whiteout": [[file("a")], [whiteout("a"), file("a")]],
        "opaque": [[file("a/b/c")], [images.opaque("a"), file("a/c")], [images.opaque("")]],
        "types": [[file("a/b"), file("b")], [file("a"), images.directory("b"), images.fifo("c")]],
        "hard": [[file("a"), hard("b", "a"), hard("c/a", "b")], [whiteout("a"), file("b")], [hard("a", "c/a")]],
        "linked-parent": [[file("a/b"), link("b", "/a"), link("c", "../a")], [file("b/c"), whiteout("c/b")]],
        "circle": [[link("a", "/b"), link("b", "../a")], [whiteout("a/b"), file("a/c")]],
        "up": [[link("a", "b/../c"), file("b/a")], [file("a/b")]],
    }.items():
        yield name, written(each)
