"""Trees as indexes and back, and trees read from a directory."""

# ruff: noqa: E501 -- a table is read line by line
from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from cvmfs_sync.diff import diff
from cvmfs_sync.difference import Content, contents
from cvmfs_sync.errors import InvalidImage
from cvmfs_sync.flatten import flatten
from cvmfs_sync.image import ImageConfig
from cvmfs_sync.index import LayerIndex, decode, encode, index_layer
from cvmfs_sync.reference import Digest, Platform
from cvmfs_sync.rootfs import DirectorySink
from cvmfs_sync.sandbox import furnish
from cvmfs_sync.tar import Entry, Kind, Limits
from cvmfs_sync.tree import Tree, merge
from cvmfs_sync.treeindex import read_tree, tree_id, tree_index, tree_of, without_hard_links
from cvmfs_sync.writing import EXACT
from tests.support import images, require_root
from tests.support.images import device, fifo
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import MemoryLayer, entries_of, random_layers

IDENTITY = tree_id(".flat/aa/aa")
ENTRIES = [
    d("./", 0o711, mtime=9), d("a", 0o2750, mtime=1.5), f("a/b", "content", 0o4755, mtime=-1, uid=3, gid=4),
    f("a/empty", xattrs={"user.x": b"1", "security.y": b"2"}), s("a/link", "../b"), h("a/hard", "a/b"), h("Z", "a/b"),
    h("linked", "a/link"), fifo("a/pipe", 0o600), h("pipe", "a/pipe"), device("null", 1, 3), device("sda", 8, 0, block=True),
    f("odd-\udcff\n", "x"), f("b/c/d/e", b"large" * 20_000), d("closed", 0o000), f("closed/x", "x", 0o000),
]  # fmt: skip


def tree_and_content(layers: Sequence[Sequence[images.Entry]]) -> tuple[Tree, Content]:
    """What the layers mean, and the digests of their files."""
    indexes = [index_layer(MemoryLayer.of(images.layer(*each, compression="none").tar), Limits()) for each in layers]
    return merge([each.entries for each in indexes]), contents(indexes)


def seen(tree: Tree, content: Content) -> Mapping[bytes, tuple[object, ...]]:
    """All that a tree says, path by path."""
    names: dict[int, list[bytes]] = {}
    for path, inode in tree.walk():
        names.setdefault(id(inode), []).append(path)
    return {
        path: (
            replace(inode.entry, path=b"", offset=0, sparse=None, xattrs=dict(inode.entry.xattrs)),
            content(inode) if inode.entry.kind is Kind.FILE else None,
            names.get(id(inode)),
        )
        for path, inode in [(b"", tree.root), *tree.walk()]
    }


def test_all_that_a_tree_says_comes_back() -> None:
    """Every type, hard links of every type, modes, owners, times, attributes, odd names, and the digests of content."""
    tree, content = tree_and_content([ENTRIES])
    index = decode(encode(tree_index(IDENTITY, tree, content)))
    assert index.diff_id == IDENTITY
    again = tree_of(index)
    assert seen(*again) == seen(tree, content)
    assert tree_index(IDENTITY, *again) == index
    assert diff(tree, again[0], old_content=content, new_content=again[1]).empty


def test_a_furnished_tree_comes_back() -> None:
    """What no layer holds is in the index like all else."""
    tree, content = tree_and_content([ENTRIES])
    furnish(tree, ImageConfig(Digest.parse(images.digest_of(b"")), Platform(), ()))
    again = tree_of(decode(encode(tree_index(IDENTITY, tree, content))))
    assert seen(*again) == seen(tree, content)


@given(random_layers())
def test_any_tree_comes_back(layers: list[list[images.Entry]]) -> None:
    """Whatever layers mean."""
    try:
        merge([entries_of(each) for each in layers])
    except InvalidImage:
        return
    tree, content = tree_and_content(layers)
    index = decode(encode(tree_index(IDENTITY, tree, content)))
    assert seen(*tree_of(index)) == seen(tree, content)


def test_a_deep_tree_comes_back_whatever_the_limits_are_now() -> None:
    """What is published was within the limits of its day."""
    deep = "/".join(["d"] * 300)
    indexes = [index_layer(MemoryLayer.of(images.layer(f(f"{deep}/x", "x")).tar), Limits(depth=400))]
    tree = merge([indexes[0].entries], Limits(depth=400))
    again, _ = tree_of(tree_index(IDENTITY, tree, contents(indexes)))
    assert again.find(f"{deep}/x".encode()) is not None
    with pytest.raises(InvalidImage, match="too deep"):
        tree_of(tree_index(IDENTITY, tree, contents(indexes)), Limits())


def test_names_come_in_the_order_of_a_walk_and_the_first_of_a_file_has_its_content() -> None:
    """So that equal trees have equal indexes, however they came about."""
    tree, content = tree_and_content([[d("b"), f("b/x", "1"), h("a", "b/x")], [f("c")]])
    other, other_content = tree_and_content([[f("a", "1"), f("c"), d("b"), h("b/x", "a")]])
    one, two = tree_index(IDENTITY, tree, content), tree_index(IDENTITY, other, other_content)
    assert [(each.path, each.kind, each.link) for each in one.entries] == [
        (b"", Kind.DIRECTORY, b""), (b"a", Kind.FILE, b""), (b"b", Kind.DIRECTORY, b""),
        (b"b/x", Kind.HARDLINK, b"a"), (b"c", Kind.FILE, b""),
    ]  # fmt: skip
    assert one == two


def test_identities_are_of_paths() -> None:
    """Each path its own, each time the same."""
    assert tree_id(".flat/aa/aa") == IDENTITY != tree_id(".images/aa/aa")


def test_without_hard_links() -> None:
    """Each name an inode of its own, with the same metadata and content; those with one name stay."""
    tree, content = tree_and_content([ENTRIES])
    before = seen(tree, content)
    alone = tree.find(b"b/c/d/e")
    without_hard_links(tree)
    after = seen(tree, content)
    assert {path: told[:2] for path, told in after.items()} == {path: told[:2] for path, told in before.items()}
    assert all(path == b"" or told[2] == [path] for path, told in after.items())
    assert tree.find(b"b/c/d/e") is alone
    assert not any(inode.shared for _, inode in tree.walk())
    assert Kind.HARDLINK not in {each.kind for each in tree_index(IDENTITY, tree, content).entries}


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_tree_is_read_from_a_directory(tmp_path: Path, hard_links: bool) -> None:
    """Its index is that of the tree that was written there, owners left out."""
    require_root()
    stream = images.layer(*ENTRIES, compression="none").tar
    (tmp_path / "root").mkdir()
    with DirectorySink(tmp_path / "root", EXACT) as sink:
        flatten([MemoryLayer.of(stream)], sink)
    tree, content = tree_and_content([ENTRIES])
    if not hard_links:
        without_hard_links(tree)
    found = read_tree(tmp_path / "root", IDENTITY, hard_links=hard_links)
    assert _unowned(found.entries) == _unowned(tree_index(IDENTITY, tree, content).entries)
    assert found.digests == tree_index(IDENTITY, tree, content).digests
    assert decode(encode(found)) == found


def _unowned(entries: Sequence[Entry]) -> list[Entry]:
    return [
        replace(
            each, uid=0, gid=0, mode=0 if each.kind is Kind.SYMLINK or each.link else each.mode,
            mtime=0 if each.link and each.kind is Kind.HARDLINK else each.mtime,
            xattrs={name: value for name, value in each.xattrs.items() if name.startswith(b"user.")},
        )
        for each in entries
    ]  # fmt: skip


def test_what_no_image_has_cannot_be_read(tmp_path: Path) -> None:
    """A socket, and a name that would hide another, are errors of that tree and of nothing else."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    with pytest.raises(OSError, match="socket") as raised:
        read_tree(tmp_path, IDENTITY, hard_links=True)
    assert raised.value.errno == errno.EINVAL
    (tmp_path / "socket").unlink()
    (tmp_path / ".wh..").touch()
    with pytest.raises(InvalidImage, match="whiteout"):
        read_tree(tmp_path, IDENTITY, hard_links=True)
    with pytest.raises(FileNotFoundError):
        read_tree(tmp_path / "gone", IDENTITY, hard_links=True)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        read_tree(tmp_path / "link", IDENTITY, hard_links=True)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Neither by reading a tree nor by failing to."""
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/a/b/c").write_text("x")
    before = os.listdir("/proc/self/fd")
    assert isinstance(read_tree(tmp_path / "root", IDENTITY, hard_links=True), LayerIndex)
    (tmp_path / "root/a/b/.wh..").touch()
    with pytest.raises(InvalidImage):
        read_tree(tmp_path / "root", IDENTITY, hard_links=True)
    assert os.listdir("/proc/self/fd") == before
