"""Carrying out a difference on disk: each kind of step, what is shared, what is hostile."""

# ruff: noqa: E501 -- a table is read line by line
from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cvmfs_sync import edit
from cvmfs_sync.diff import diff
from cvmfs_sync.difference import Content, TreeDiff
from cvmfs_sync.edit import TreeEditor, wanted_files
from cvmfs_sync.flatten import flatten
from cvmfs_sync.repository.cloning import link_tree
from cvmfs_sync.rootfs import DirectorySink
from cvmfs_sync.tar import Limits, Reader
from cvmfs_sync.tree import SYNTHETIC, Inode, Tree, merge
from cvmfs_sync.treeindex import without_hard_links
from cvmfs_sync.writing import EXACT_AS_USER
from tests.support import images
from tests.support.images import directory as d
from tests.support.images import fifo
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import MemoryLayer, entries_of
from tests.support.trees import assert_same_tree, tree_listing
from tests.support.workshop import inodes

Entries = Sequence[images.Entry]
IGNORED = ("uid", "gid")


def stream(entries: Entries) -> bytes:
    return images.layer(*entries, compression="none").tar


def write(root: Path, entries: Entries) -> Tree:
    """Write a tree the usual way."""
    root.mkdir()
    with DirectorySink(root, EXACT_AS_USER) as sink:
        return flatten([MemoryLayer.of(stream(entries))], sink)


def steps(old: Entries, new: Entries, *, hard_links: bool = True) -> tuple[TreeDiff, Tree]:
    """The difference, and the new tree with the ordinals of its layer."""
    trees = [merge([entries_of(each)]) for each in (old, new)]
    if not hard_links:
        for tree in trees:
            without_hard_links(tree)
    return diff(*trees, old_content=content(old), new_content=content(new)), trees[1]


def content(entries: Entries) -> Content:
    def told(inode: Inode) -> bytes:
        return inode.content or b"" if inode.layer == SYNTHETIC else entries[inode.ordinal].content

    return told


def carry_out(root: Path, difference: TreeDiff, tree: Tree, entries: Entries, *, shared: bool) -> int:
    """Edit a directory; how many files were read from the layer."""
    wanted = wanted_files(difference)
    read = 0
    with TreeEditor(root, EXACT_AS_USER, difference, shared=shared) as editor:
        editor.begin()
        reader = Reader([stream(entries)], Limits())
        for ordinal, _ in enumerate(reader):
            if makes := wanted.get(0, {}).get(ordinal):
                editor.write(makes, reader)
                read += 1
        editor.finish(tree)
    return read


# Old tree, new tree, how many files have to be read.
CASES: dict[str, tuple[Entries, Entries, int]] = {
    "nothing": ([f("a", "x")], [f("a", "x")], 0),
    "from nothing": ([], [d("./", 0o700), d("a", 0o500), f("a/b", "x"), s("a/c", "b"), h("a/d", "a/b"), fifo("a/e")], 1),
    "to nothing": ([d("a", 0o500), f("a/b", "x"), s("a/c", "b"), h("a/d", "a/b"), fifo("a/e")], [], 0),
    "added below what cannot be written": ([d("a", 0o555)], [d("a", 0o555), f("a/b", "x"), d("a/c", 0o000, mtime=5)], 1),
    "another content": ([d("a", mtime=5), f("a/b", "x"), f("a/c", "c")], [d("a", mtime=5), f("a/b", "y"), f("a/c", "c")], 1),
    "a large file": ([f("a", "x")], [f("a", b"large" * 100_000)], 1),
    "only the mode": ([d("a", mtime=5), f("a/b", "x")], [d("a", mtime=5), f("a/b", "x", 0o4755)], 0),
    "only the time": ([d("a", mtime=5), f("a/b", "x", mtime=1)], [d("a", mtime=5), f("a/b", "x", mtime=1.25)], 0),
    "only attributes": ([f("a", "x", xattrs={"user.a": b"1", "user.b": b"2"})], [f("a", "x", xattrs={"user.b": b"3", "user.c": b"4"})], 0),
    "only attributes of a directory": ([d("a", xattrs={"user.a": b"1"})], [d("a", xattrs={"user.b": b"1"})], 0),
    "only a directory's mode and time": ([d("a", mtime=1), f("a/b")], [d("a", 0o700, mtime=2), f("a/b")], 0),
    "only the root's": ([d("./", mtime=1), f("b")], [d("./", 0o700, mtime=2), f("b")], 0),
    "only a link's time": ([d("a", mtime=5), s("a/b", "x", mtime=1)], [d("a", mtime=5), s("a/b", "x", mtime=2)], 0),
    "only a pipe's mode": ([d("a", mtime=5), fifo("a/b")], [d("a", mtime=5), fifo("a/b", 0o600)], 0),
    "only the mode, with several names": ([d("a", mtime=5), f("a/b", "x"), d("c", mtime=6), h("c/d", "a/b")], [d("a", mtime=5), f("a/b", "x", 0o600), d("c", mtime=6), h("c/d", "a/b")], 0),
    "only a pipe's mode, with several names": ([d("a", mtime=5), fifo("a/b"), d("c", mtime=6), h("c/d", "a/b")], [d("a", mtime=5), fifo("a/b", 0o600), d("c", mtime=6), h("c/d", "a/b")], 0),
    "mode and a further name": ([d("a", mtime=5), f("a/b", "x"), d("c", mtime=6)], [d("a", mtime=5), f("a/b", "x", 0o600), d("c", mtime=6), h("c/d", "a/b")], 0),
    "mode and a name less": ([f("a", "x"), h("b", "a"), h("c", "a")], [f("b", "x", 0o600), h("c", "b")], 0),
    "a pipe's mode and a further name": ([fifo("a")], [fifo("a", 0o600), h("b/c", "a")], 0),
    "links that are linked": ([s("a", "x", mtime=1), h("b", "a")], [s("a", "x", mtime=2), h("b", "a"), h("c", "a")], 0),
    "a link is broken": ([f("a", "x"), h("b", "a")], [f("a", "x"), f("b", "x")], 1),
    "two files become one": ([f("a", "x"), f("b", "x")], [f("a", "x"), h("b", "a")], 0),
    "groups are dealt anew": ([f("a", "x"), h("b", "a"), f("c", "y"), h("d", "c")], [f("a", "x"), h("d", "a"), f("c", "y"), h("b", "c")], 0),
    "a file becomes a directory": ([f("a", "x")], [d("a"), f("a/b", "y")], 1),
    "a directory becomes a file": ([d("a", 0o000), f("a/b/c", "y")], [f("a", "x")], 1),
    "a link becomes a directory": ([s("a", "/etc")], [d("a"), f("a/passwd", "y")], 1),
    "a directory becomes a link": ([d("a"), f("a/passwd", "y")], [s("a", "/etc")], 0),
    "a link to a directory becomes one, and that a link": ([d("a"), f("a/x", "1"), s("b", "a")], [d("b"), f("b/x", "1"), s("a", "b")], 1),
    "a pipe becomes a file": ([fifo("a")], [f("a", "x")], 1),
    "setuid, and mode 0000": ([f("a", "x"), f("b", "x", 0o4755)], [f("a", "x", 0o4755), f("b", "x", 0o000)], 0),
    "odd names": ([f("\udcff/ \n", "x"), f("-n")], [f("\udcff/ \n", "y"), s("-n", "\udcfe")], 1),
    "empty files": ([f("a"), f("b", "x")], [f("a", mtime=1), f("b")], 1),
    "sixty deep": ([f("/".join(["d"] * 60), "x")], [f("/".join(["d"] * 60), "y"), f("/".join(["d"] * 59 + ["e"]), "x")], 2),
}  # fmt: skip


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(("old", "new", "read"), CASES.values(), ids=CASES.keys())
def test_steps(tmp_path: Path, old: Entries, new: Entries, read: int, shared: bool) -> None:
    """The directory holds the new tree, as if it had been written whole; a tree that shares its files stays as it is."""
    write(tmp_path / "old", old)
    before = tree_listing(tmp_path / "old"), inodes(tmp_path / "old")
    root = tmp_path / "old"
    if shared:
        root = tmp_path / "clone"
        root.mkdir()
        link_tree(tmp_path / "old", root)
    difference, tree = steps(old, new)
    assert carry_out(root, difference, tree, new, shared=shared) == read
    write(tmp_path / "new", new)
    assert_same_tree(root, tmp_path / "new", IGNORED)
    if shared:
        assert (tree_listing(tmp_path / "old"), inodes(tmp_path / "old")) == before


def test_without_hard_links_each_name_gets_a_file(tmp_path: Path) -> None:
    """The content is read once, and copied to the other names with metadata and all."""
    new = [f("a", "x" * 100_000, 0o4555, mtime=5), h("b/c", "a"), h("d", "a")]
    (tmp_path / "root").mkdir()
    difference, tree = steps([], new, hard_links=False)
    assert carry_out(tmp_path / "root", difference, tree, new, shared=False) == 1
    write(tmp_path / "new", new)
    assert_same_tree(tmp_path / "root", tmp_path / "new", (*IGNORED, "links"))
    assert len({(tmp_path / "root" / name).stat().st_ino for name in ("a", "b/c", "d")}) == 3


# --- copies -----------------------------------------------------------------------------------------------------------

HOLE, DATA = 1 << 20, b"data" * 1024
LAYOUTS = {
    "empty": [],
    "data": [DATA],
    "a hole": [HOLE],
    "a hole at the end": [DATA, HOLE],
    "a hole at the beginning": [HOLE, DATA],
    "several": [HOLE, DATA, HOLE, DATA, DATA, HOLE],
    "large": [b"0123456789" * 2_000_000],
}


@pytest.mark.parametrize("reflink", ["as it is", "refused", "of another file system"])
@pytest.mark.parametrize("parts", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_copies_are_equal_and_as_sparse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[int | bytes], reflink: str
) -> None:
    """Whether or not blocks can be shared: the same bytes, the same size, no more blocks."""
    if reflink != "as it is":
        number = errno.EOPNOTSUPP if reflink == "refused" else errno.EXDEV

        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "ioctl", refuse)
    source = tmp_path / "source"
    with source.open("wb") as out:
        for part in parts:
            if isinstance(part, int):
                out.seek(part, os.SEEK_CUR)
            else:
                out.write(part)
        out.truncate(sum(part if isinstance(part, int) else len(part) for part in parts))
    with source.open("rb") as ours, (tmp_path / "target").open("wb") as theirs:
        edit._copy_content(ours.fileno(), theirs.fileno())
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert (tmp_path / "target").stat().st_blocks <= source.stat().st_blocks


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("call", ["listxattr", "removexattr"])
def test_attributes_that_cannot_be_removed_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A file system that knows none, or does not let them go, is no reason to fail: it would not have set them either."""
    old, new = [f("a", "x", xattrs={"user.a": b"1"})], [f("a", "x", 0o600)]
    write(tmp_path / "root", old)
    difference, tree = steps(old, new)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    carry_out(tmp_path / "root", difference, tree, new, shared=False)
    assert (tmp_path / "root/a").stat().st_mode & 0o777 == 0o600


# --- hostile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["../outside", "/proc/self/cwd", "ABSOLUTE"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([f("a/b/c", "x")], [f("a/b/c", "y")]),
        ([f("a/b/c", "x")], [f("a/b/c", "x", 0o777)]),
        ([f("a/b/c", "x")], [d("a/b")]),
        ([f("a/b/c", "x")], [f("a/b/c", "x"), d("a/b/d")]),
        ([f("a/b/c", "x")], [f("a/b/c", "x"), s("a/b/d", "x")]),
        ([f("a/b/c", "x")], [f("a/b/c", "x"), h("a/b/d", "a/b/c")]),
        ([f("a/b/c", "x")], [f("a/b/c", "x"), h("d", "a/b/c")]),
        ([f("a/b/c", "x")], [d("a/b", 0o777), f("a/b/c", "x")]),
    ],
    ids=["content", "mode", "removed", "directory", "link", "hard link to", "hard link from", "directory's mode"],
)
def test_a_link_on_the_way_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: Entries, new: Entries, target: str
) -> None:
    """Where a directory of the tree was replaced by a link, nothing is written, removed or read behind it."""
    write(tmp_path / "root", old)
    write(tmp_path / "outside", [f("c", "precious"), f("b/c", "precious")])
    monkeypatch.chdir(tmp_path / "outside")
    (tmp_path / "root/a/b").rename(tmp_path / "moved")
    (tmp_path / "root/a/b").symlink_to(str(tmp_path / "outside") if target == "ABSOLUTE" else f"{target}")
    before = tree_listing(tmp_path / "outside"), inodes(tmp_path / "outside")
    difference, tree = steps(old, new)
    with pytest.raises(OSError, match=r"Errno (20|40)"):
        carry_out(tmp_path / "root", difference, tree, new, shared=False)
    assert (tree_listing(tmp_path / "outside"), inodes(tmp_path / "outside")) == before


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    """Neither when its metadata is to be set nor when it is to be copied."""
    old, new = [f("a", "x")], [f("a", "x", 0o777)]
    (tmp_path / "outside").write_text("precious")
    before = inodes(tmp_path, but=(".", "root", "root/a"))
    difference, tree = steps(old, new)
    write(tmp_path / "root", old)
    for shared in (True, False):
        (tmp_path / "root/a").unlink()
        (tmp_path / "root/a").symlink_to("../outside")
        with pytest.raises(OSError, match="Errno 40"):
            carry_out(tmp_path / "root", difference, tree, new, shared=shared)
    assert inodes(tmp_path, but=(".", "root", "root/a")) == before
