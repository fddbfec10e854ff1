"""Published by difference or whole: the same tree, and the one that it was made of is left as it was."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings

from cvmfs_sync.diff import diff
from cvmfs_sync.errors import CloneRefused
from cvmfs_sync.flatten import flatten
from cvmfs_sync.inventory import Published
from cvmfs_sync.prepare import kept_metadata
from cvmfs_sync.repository import DirectoryRepository
from cvmfs_sync.rootfs import DirectorySink
from cvmfs_sync.sandbox import furnish
from cvmfs_sync.treeindex import read_tree, tree_id, tree_of
from cvmfs_sync.verify import verify
from cvmfs_sync.writing import SANDBOX
from tests.support import images
from tests.support.cvmfs import FakeCvmfs
from tests.support.images import MTIME, Entry, Image
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.model import file_layers, random_layers, valid_layers
from tests.support.places import Place
from tests.support.trees import Node, assert_same_tree, tree_listing
from tests.support.workshop import BY_DIFFERENCE, WHOLE, Workshop, inodes

Layers = Sequence[Sequence[Entry]]
_T = TypeVar("_T")
# --- images with all that an image can have ---------------------------------------------------------------------------

_NAMES = ("a", "b", "c", "etc", "var", "d e", "ünï", "odd-\udcff", "-n", "x\ny", " ", "...", "l" * 200)
_CONTENTS = (b"", b"x", b"y", b"xx", bytes(5_000), b"0123456789" * 500, b"large" * 14_000, b"LARGE" * 14_000)
_MODES = (0o644, 0o755, 0o000, 0o444, 0o4755, 0o2755, 0o1777, 0o600, 0o7777, 0o200)
_TIMES = (MTIME, MTIME, MTIME + 0.25, MTIME + 0.5, MTIME + 1, 0, -1)
_ATTRIBUTES: tuple[dict[str, bytes], ...] = ({}, {}, {}, {"user.a": b"1"}, {"user.a": b"2"}, {"user.b": b"3"})
_TARGETS = ("a", "../b", "/etc", "c/d", ".", "..", "/", "no/where", "../../../../etc/passwd")
_DEEP = "/".join(["deep"] * 60)


class Images:
    """Images made up with a seed: the same one gives the same images."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pair(self) -> tuple[Layers, Layers]:
        """An image, and what became of it: with a layer more, or built again."""
        old = [self.entries(25)]
        if self.random.random() < 0.3:
            old.append(self.entries(8, whiteouts=True))
        kind = self.random.choice(("update", "update", "rebuild", "rebuild", "downgrade", "other"))
        match kind:
            case "update":
                return valid_layers(old), valid_layers([*old, self.entries(10, whiteouts=True)])
            case "downgrade":
                return valid_layers([*old, self.entries(10, whiteouts=True)]), valid_layers(old)
            case "rebuild":
                return valid_layers(old), valid_layers([self.changed(each) for each in old])
            case _:
                return valid_layers(old), valid_layers([self.entries(25)])

    def entries(self, count: int, *, whiteouts: bool = False) -> list[Entry]:
        made: list[Entry] = []
        for _ in range(self.random.randint(0, count)):
            made.append(self.entry(made, whiteouts=whiteouts))
        return made

    def changed(self, entries: Sequence[Entry]) -> list[Entry]:
        """The same with a few changes, each of one thing only."""
        made: list[Entry] = []
        for entry in entries:
            changes = ("mode", "time", "attributes", "content", "gone", "new", "moved")
            match self.random.choice(("same",) * 10 + changes):
                case "mode":
                    made.append(replace(entry, mode=self.choose(_MODES)))
                case "time":
                    made.append(replace(entry, mtime=self.choose(_TIMES)))
                case "attributes":
                    made.append(replace(entry, xattrs=self.choose(_ATTRIBUTES)))
                case "content" if entry.type == images.file("x").type:
                    made.append(replace(entry, content=self.choose(_CONTENTS)))
                case "gone":
                    pass
                case "new":
                    made += [entry, self.entry(made, whiteouts=False)]
                case "moved":
                    made.append(replace(entry, path=self.path()))
                case _:
                    made.append(entry)
        return made

    def entry(self, before: Sequence[Entry], *, whiteouts: bool) -> Entry:
        path, mode, time = self.path(), self.choose(_MODES), self.choose(_TIMES)
        xattrs = self.choose(_ATTRIBUTES)
        kinds = ["file"] * 6 + ["directory"] * 3 + ["symlink"] * 2 + ["hardlink"] * 4 + ["fifo", "device", "root"]
        match self.random.choice(kinds + ["whiteout"] * 6 * whiteouts + ["opaque"] * whiteouts):
            case "file":
                uid = self.random.randrange(2_000)
                return images.file(path, self.choose(_CONTENTS), mode, mtime=time, xattrs=xattrs, uid=uid)
            case "directory":
                return images.directory(path, mode, mtime=time, xattrs=xattrs)
            case "symlink":
                return images.symlink(path, self.choose(_TARGETS), mtime=time)
            case "hardlink":
                target = self.choose([each.path for each in before]) if before else self.path()
                return images.hardlink(path, target)
            case "fifo":
                return images.fifo(path, mode, mtime=time)
            case "device":
                block = self.random.random() < 0.5
                return images.device(path, 1, self.random.randrange(9), mode, block=block, mtime=time)
            case "root":
                return images.directory("./", mode, mtime=time, xattrs=xattrs)
            case "opaque":
                return images.opaque(self.choose(("", path.rpartition("/")[0], "a")))
            case _:
                return images.whiteout(path)

    def path(self) -> str:
        if self.random.random() < 0.03:
            return f"{_DEEP}/{self.choose(_NAMES)}"
        depth = self.random.randint(1, 3)
        return "/".join(self.choose(_NAMES[: self.choose((3, 3, 6, 13))]) for _ in range(depth))

    def choose(self, options: Sequence[_T]) -> _T:
        return self.random.choice(options)


def image(layers: Layers, seed: int) -> Image:
    """No two seeds have an image in common."""
    return Image(tuple(images.layer(*each, compression="none") for each in layers), labels={"seed": str(seed)})


# --- places -----------------------------------------------------------------------------------------------------------


class Pair:
    """A repository in which trees are made of each other, and one in which each is written whole."""

    def __init__(self, home: Path, by_difference: Place, whole: Place) -> None:
        self.home = home
        self.places = by_difference, whole
        self.by_difference = Workshop(home / "difference", by_difference.repository(), BY_DIFFERENCE)
        self.whole = Workshop(home / "whole", whole.repository(), WHOLE)
        self.made_of: list[str | None] = []

    def publish(self, old: Image, new: Image) -> None:
        """Publish an image and its successor in both repositories, and see that all is as it should be."""
        first = self._put(old)
        before = self._seen(first)
        if new.digest == old.digest:
            return
        second = self._put(new, first.path)
        assert self._seen(first) == before, "the tree that another was made of has changed"
        self.made_of.append(second.record["made_of"])

    def _put(self, new: Image, replaces: str | None = None) -> Published:
        tree = self.by_difference.publish(new, replaces)
        whole = self.whole.publish(new)
        assert whole.record["made_of"] is None
        ours, theirs = (place.client(each.path) for place, each in zip(self.places, (tree, whole), strict=True))
        assert_same_tree(ours, theirs)
        return tree

    def _seen(self, tree: Published) -> tuple[dict[str, tuple[int, ...]], dict[str, Node]]:
        root = self.places[0].client(tree.path)
        # Each revision of the fake has directories of its own.
        return {} if self.places[0].fake else inodes(root), tree_listing(root)


def unpacked(home: Path, new: Image) -> Path:
    """The image as the sink of a new directory writes it, which knows nothing of differences."""
    config = Workshop(home, DirectoryRepository(home / "none")).add(new).config
    target, blobs = home / "unpacked", home / "blobs"
    for directory in (target, blobs):
        directory.mkdir()
    with DirectorySink(target, SANDBOX) as sink:
        flatten(file_layers(blobs, new.layers), sink, transform=lambda tree: furnish(tree, config))
    return target


@pytest.fixture
def directories(memory_path: Path) -> Pair:
    """Two of the backend directory."""
    one, other = (Place("directory", memory_path / name / "root", memory_path / name) for name in ("one", "other"))
    return Pair(memory_path, one, other)


@pytest.fixture
def servers(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Two repositories of one fake server."""
    places = []
    for name in ("one.example.org", "other.example.org"):
        fake = FakeCvmfs(memory_path / "publisher", name)
        fake.make()
        places.append(Place("fake", fake.root, memory_path / name, "", fake, name))
        for variable, value in fake.environment.items():
            monkeypatch.setenv(variable, value)
    return Pair(memory_path, *places)


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(6))
def test_by_difference_and_whole_are_the_same_in_a_directory(directories: Pair, block: int) -> None:
    """Type, mode, time, size, content, target, attributes and hard links; no inode of the relative is written to."""
    for seed in range(block * 50, block * 50 + 50):
        old, new = Images(seed).pair()
        directories.publish(image(old, seed), image(new, seed))
    assert sum(each is not None for each in directories.made_of) >= 40


@pytest.mark.parametrize("block", range(10 if os.environ.get("CI") == "true" else 1))
def test_by_difference_and_whole_are_the_same_on_a_server(servers: Pair, block: int) -> None:
    """The same where hard links are broken up, times are whole seconds and the clone has files of its own."""
    for seed in range(1_000 + block * 20, 1_020 + block * 20):
        old, new = Images(seed).pair()
        servers.publish(image(old, seed), image(new, seed))
    assert sum(each is not None for each in servers.made_of) >= 14


@pytest.mark.parametrize("seed", range(2_000, 2_020))
def test_a_tree_made_of_another_is_what_a_sink_writes(directories: Pair, seed: int) -> None:
    """And its index, read from the disk or kept when it was published, is that of the tree that was meant."""
    old, new = Images(seed).pair()
    directories.publish(image(old, seed), image(new, seed))
    shop = directories.by_difference
    for each in {old_or_new.digest: old_or_new for old_or_new in (image(old, seed), image(new, seed))}.values():
        home = directories.home / each.digest
        home.mkdir()
        with shop.prepare(shop.add(each)) as prepared:
            root = shop.repository.root / prepared.path
            assert_same_tree(root, unpacked(home, each), ignore=("uid", "gid"))
            kept = shop.tree_indexes.get(tree_id(prepared.path))
            assert kept is not None
            for index in (kept, read_tree(root, tree_id(prepared.path), hard_links=True)):
                tree, content = tree_of(index)
                for meant, told in ((tree, content), (prepared.tree, prepared.content)):
                    found = verify(
                        root, meant, told, metadata=kept_metadata(shop.repository.traits), hard_links=True,
                        mtime_unit=1, read=lambda path: True,
                    )  # fmt: skip
                    assert [str(each) for each in found] == []
                steps = diff(
                    tree, prepared.tree, old_content=content, new_content=prepared.content,
                    metadata=kept_metadata(shop.repository.traits),
                )  # fmt: skip
                assert steps.empty


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_layers(layers=2), random_layers(layers=2))
def test_any_two_trees(memory_path: Path, old: Layers, new: Layers) -> None:
    """Everything meets everything: links to and through directories, whiteouts of what is there and what is not."""
    home = Path(tempfile.mkdtemp(dir=memory_path))
    one, other = (Place("directory", home / name / "root", home / name) for name in ("one", "other"))
    Pair(home, one, other).publish(image(valid_layers(old), 0), image(valid_layers(new), 0))
    shutil.rmtree(home)


def test_generations_share_what_never_changed(directories: Pair) -> None:
    """Trees made of trees made of trees: each right, all others untouched, one inode for what they have in common."""
    made = Images(7)
    entries = [images.file("kept", "kept"), *made.entries(40)]
    shop = directories.by_difference
    seen: dict[Path, dict[str, tuple[int, ...]]] = {}
    kept: set[int] = set()
    replaces = None
    for number in range(12):
        tree = directories._put(image(valid_layers([entries]), number), replaces)
        root = shop.repository.root / tree.path
        assert (tree.record["made_of"] is None) is (number == 0)
        assert {each: inodes(each) for each in seen} == seen
        seen[root], replaces = inodes(root), tree.path
        kept.add((root / "kept").stat().st_ino)
        entries = [entries[0], *made.changed(entries[1:])]
    assert len(kept) == 1


def test_a_sparse_file_stays_sparse_when_only_its_time_changes(directories: Pair) -> None:
    """Its copy holds the same bytes in as few blocks, and the file that it was copied of keeps its time."""
    layers = [sparse_layer(directories.home, time) for time in (1_000, 2_000)]
    first, second = (Image((each, images.layer(images.file("a")))) for each in layers)
    directories.publish(first, second)
    assert directories.made_of[0] is not None
    root = directories.by_difference.repository.root
    before, after = (
        root.joinpath(".flat", each.digest[7:9], each.digest[7:], "sparse").stat() for each in (first, second)
    )
    assert (before.st_mtime, after.st_mtime) == (1_000, 2_000)
    assert before.st_ino != after.st_ino
    assert before.st_blocks == after.st_blocks < 3_000_000 // 512


def sparse_layer(directory: Path, time: int) -> images.Layer:
    """A layer of GNU tar with one file of a start, a middle and no end."""
    path = directory / "sparse"
    with path.open("wb") as out:
        out.write(b"start")
        out.seek(1_500_000)
        out.write(b"middle" * 1_000)
        out.truncate(3_000_000)
    os.utime(path, (time, time))
    command = ("tar", "--sparse", "-C", directory, "-cf", "-", path.name)
    return images.layer_of_tar(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EPERM, errno.EXDEV])
def test_what_cannot_be_linked_is_copied(directories: Pair, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A file that has all the names it can have, or a file system without hard links: the same tree, at more cost."""
    entries = [
        d("a", 0o750, mtime=5, xattrs={"user.a": b"1"}), f("a/b", "x", 0o4755, mtime=6.5, xattrs={"user.b": b"2"}),
        images.symlink("a/c", "/etc", mtime=7), images.fifo("a/d", 0o600, mtime=8),
    ]  # fmt: skip

    def refuse(*_: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    directories.publish(image([entries], 0), image([[*entries, f("e", "new")]], 0))
    assert directories.made_of[0] is not None


def test_a_clone_that_cannot_be_made_is_refused(directories: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tree is written whole: nothing is left of the attempt."""
    shop = directories.by_difference
    first = shop.publish(image([[f("a", "x")]], 0))
    before = sorted(shop.repository.root.rglob("*"))

    def refuse(*_: object, **more: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "a")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(CloneRefused, match="cannot be cloned; found: Input/output error"):
        shop.publish(image([[f("a", "x"), f("b")]], 0), first.path)
    assert sorted(shop.repository.root.rglob("*")) == before
