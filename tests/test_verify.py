"""Comparing a directory with a tree: each discrepancy is found, nothing else is, and no more is read than is asked."""

# ruff: noqa: E501 -- a table is read line by line
from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync import verify as verifying
from cvmfs_sync.difference import exact_metadata
from cvmfs_sync.flatten import flatten
from cvmfs_sync.rootfs import DirectorySink
from cvmfs_sync.tree import SYNTHETIC, Inode, Tree
from cvmfs_sync.verify import Discrepancy, verify
from cvmfs_sync.writing import EXACT, EXACT_AS_USER, Policy
from tests.support import images, require_root
from tests.support.images import directory as d
from tests.support.images import fifo
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import MemoryLayer

TIME = 1_000.25
ENTRIES = [
    d("./", mtime=TIME), d("a", 0o750, mtime=TIME), f("a/b", "content", 0o640, mtime=TIME), f("a/empty", mtime=TIME),
    s("a/link", "b", mtime=TIME), h("a/hard", "a/b"), fifo("a/pipe", 0o600, mtime=TIME), d("a/c", mtime=TIME),
    f("a/c/large", b"large" * 500_000, mtime=TIME), f("a/c/same", "content", 0o640, mtime=TIME),
]  # fmt: skip


class Written:
    """A tree on disk, and what it was made of."""

    def __init__(self, root: Path, entries: list[images.Entry], policy: Policy = EXACT_AS_USER) -> None:
        self.root = root
        self.entries = entries
        root.mkdir()
        with DirectorySink(root, policy) as sink:
            self.tree: Tree = flatten([MemoryLayer.of(images.layer(*entries, compression="none").tar)], sink)

    def content(self, inode: Inode) -> bytes:
        content = inode.content or b"" if inode.layer == SYNTHETIC else self.entries[inode.ordinal].content
        return bytes.fromhex(images.digest_of(content)[7:])

    def verify(
        self, *, read: Callable[[bytes], bool] = lambda path: True, hard_links: bool = True, unit: int = 1
    ) -> list[Discrepancy]:
        return list(
            verify(
                self.root, self.tree, self.content, metadata=exact_metadata, hard_links=hard_links, mtime_unit=unit,
                read=read,
            )
        )  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A small tree."""
    return Written(tmp_path / "root", ENTRIES)


def keeping_times(root: Path, change: Callable[[Path], object]) -> None:
    """Change something, and nobody's time."""
    before = {path: path.lstat() for path in [root, *root.rglob("*")]}
    change(root)
    for path, status in before.items():
        if os.path.lexists(path):
            os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)


def set_time(path: Path, seconds: float) -> None:
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def replace_by(path: Path, make: Callable[[Path], object]) -> None:
    """Something else at a path."""
    if path.is_dir() and not path.is_symlink():
        for below in path.iterdir():
            below.unlink()
        path.rmdir()
    else:
        path.unlink()
    make(path)
    set_time(path, TIME)


def a_file(text: str, mode: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.write_text(text)
        path.chmod(mode)

    return make


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


# What is done, and what is told of it.
DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "an extra name": (lambda root: (root / "a/c/new").touch(), ["a/c/new: the name is there, expected not there"]),
    "an extra directory": (lambda root: (root / "new/er").mkdir(parents=True), ["new: the name is there, expected not there"]),
    "a missing file": (lambda root: (root / "a/empty").unlink(), ["a/empty: the name is not there, expected file"]),
    "a missing link": (lambda root: (root / "a/link").unlink(), ["a/link: the name is not there, expected symlink"]),
    "a missing directory": (lambda root: _remove(root / "a/c"), ["a/c: the name is not there, expected directory"]),
    "a mode": (lambda root: (root / "a/empty").chmod(0o600), ["a/empty: its mode is 600, expected 644"]),
    "a setuid bit": (lambda root: (root / "a/empty").chmod(0o4644), ["a/empty: its mode is 4644, expected 644"]),
    "a directory's mode": (lambda root: (root / "a").chmod(0o700), ["a: its mode is 700, expected 750"]),
    "the root's mode": (lambda root: root.chmod(0o700), [".: its mode is 700, expected 755"]),
    "a pipe's mode": (lambda root: (root / "a/pipe").chmod(0o644), ["a/pipe: its mode is 644, expected 600"]),
    "a size": (lambda root: (root / "a/empty").write_text("x"), ["a/empty: its size is 1, expected 0"]),
    "a content": (lambda root: (root / "a/c/same").write_text("CONTENT"), ["a/c/same: its content is sha256:"]),
    "the last byte of a large file": (lambda root: _last_byte(root / "a/c/large"), ["a/c/large: its content is sha256:"]),
    "a content with two names": (lambda root: (root / "a/b").write_text("CONTENT"), ["a/b: its content is sha256:", "a/hard: its content is sha256:"]),
    "a target": (lambda root: replace_by(root / "a/link", lambda path: path.symlink_to("c")), ["a/link: its target is c, expected b"]),
    "a file for a link": (lambda root: replace_by(root / "a/link", lambda path: path.touch()), ["a/link: its type is -, expected symlink"]),
    "a link for a file": (lambda root: replace_by(root / "a/empty", lambda path: path.symlink_to("b")), ["a/empty: its type is l, expected file"]),
    "a link for a directory": (lambda root: replace_by(root / "a/c", lambda path: path.symlink_to("/etc")), ["a/c: its type is l, expected directory"]),
    "a directory for a file": (lambda root: replace_by(root / "a/empty", lambda path: path.mkdir()), ["a/empty: its type is d, expected file"]),
    "a socket for a file": (lambda root: replace_by(root / "a/empty", a_socket), ["a/empty: its type is s, expected file"]),
    "a pipe for a file": (lambda root: replace_by(root / "a/empty", os.mkfifo), ["a/empty: its type is p, expected file"]),
    "a hard link that was broken": (lambda root: replace_by(root / "a/hard", a_file("content", 0o640)), ["a/hard: the file is another one, expected the same under all its names"]),
}  # fmt: skip


def _remove(path: Path) -> None:
    for below in path.iterdir():
        below.unlink()
    path.rmdir()


def _last_byte(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES.keys())
def test_each_discrepancy_is_found_and_nothing_else(
    written: Written, damage: Callable[[Path], object], expected: list[str]
) -> None:
    """What differs is named with what was found and expected."""
    assert written.verify() == []
    keeping_times(written.root, damage)
    found = [str(each) for each in written.verify()]
    assert len(found) == len(expected)
    for line, start in zip(sorted(found), sorted(expected), strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("path", ["", "a", "a/b", "a/link", "a/pipe", "a/c"])
@pytest.mark.parametrize(
    ("seconds", "unit", "differs"),
    [(TIME + 0.5, 1, True), (TIME + 0.5, 10**9, False), (TIME + 1, 10**9, True), (TIME - 1, 1, True)],
)
def test_times_are_compared_in_the_unit_of_the_repository(
    written: Written, path: str, seconds: float, unit: int, differs: bool
) -> None:
    """Of directories, links and pipes, too; what the repository does not keep does not differ."""
    set_time(written.root / path, seconds)
    names = {"a/b": ["a/b", "a/hard"]}.get(path, [path])
    found = written.verify(unit=unit)
    assert sorted(each.path.decode() for each in found) == (names if differs else [])
    assert all(each.what == "its time" for each in found)


def test_devices_are_compared(tmp_path: Path) -> None:
    """By type and number."""
    require_root()
    written = Written(
        tmp_path / "root", [images.device("a", 1, 3, mtime=TIME), images.device("b", 7, 300_000, block=True)], EXACT
    )
    assert written.verify() == []
    entry = written.tree.root.children[b"a"].entry  # type: ignore[index]
    written.tree.root.children[b"a"].entry = replace(entry, device=(1, 5))  # type: ignore[index]
    assert [str(each) for each in written.verify()] == ["a: its device is (1, 3), expected (1, 5)"]


def test_files_that_became_one_are_found(tmp_path: Path) -> None:
    """Two groups of names that are all of one file, though all else is right."""
    entries = [f("a", "x"), h("b", "a"), f("c", "x"), h("d", "c")]
    written = Written(tmp_path / "root", entries)
    assert written.verify() == []
    for name in ("c", "d"):
        (written.root / name).unlink()
        (written.root / name).hardlink_to(written.root / "a")
    set_time(written.root, written.tree.root.entry.mtime / 1e9)
    found = [str(each) for each in written.verify()]
    assert found == [
        f"{name}: the file is one with a name that is another file's, expected one of its own" for name in "cd"
    ]


def test_hard_links_need_not_be_kept(written: Written) -> None:
    """Where the repository breaks them up, their names are files of the same content."""
    keeping_times(written.root, lambda root: replace_by(root / "a/hard", a_file("content", 0o640)))
    assert written.verify(hard_links=False) == []


def test_only_what_is_asked_for_is_read(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damage of content elsewhere stays unseen, and nothing elsewhere is opened; a wrong size is seen without."""
    keeping_times(written.root, lambda root: (root / "a/c/same").write_text("CONTENT"))
    keeping_times(written.root, lambda root: (root / "a/empty").write_text("x"))
    opened: list[bytes] = []
    digest = verifying.file_digest

    def noted(directory: int, name: bytes) -> bytes:
        opened.append(name)
        return digest(directory, name)

    monkeypatch.setattr(verifying, "file_digest", noted)
    assert [str(each) for each in written.verify(read={b"a/b", b"a/empty"}.__contains__)] == [
        "a/empty: its size is 1, expected 0"
    ]
    assert opened == [b"b"]
    assert [each.path for each in written.verify(read={b"a/c/same"}.__contains__)] == [b"a/empty", b"a/c/same"]


@pytest.mark.parametrize("call", ["open", "listdir"])
def test_what_cannot_be_read_differs(written: Written, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A directory or a file that refuses is a discrepancy, and the rest is looked at."""
    original = getattr(os, call)
    refused = os.stat(written.root / ("a/c/large" if call == "open" else "a/c"))

    def forbidden(path: Any, *args: Any, **more: Any) -> object:
        status = os.stat(path, **more) if call == "open" and b"large" in os.fsencode(path) else None
        status = os.fstat(path) if isinstance(path, int) else status
        if status is not None and os.path.samestat(status, refused):
            raise PermissionError(13, "Permission denied")
        return original(path, *args, **more)

    (written.root / "a/empty").write_text("x")
    set_time(written.root / "a/empty", TIME)
    monkeypatch.setattr(os, call, forbidden)
    found = {each.path.decode(): each.found for each in written.verify()}
    where = "a/c/large" if call == "open" else "a/c"
    assert found == {where: "unreadable (Permission denied)", "a/empty": "1"}


def test_an_image_of_another_century_is_as_it_was_meant(tmp_path: Path) -> None:
    """The nearest time that the file system has counts; another one does not."""
    year = 365.2425 * 24 * 3600
    written = Written(tmp_path / "root", [f("a", mtime=-100 * year), f("b", mtime=-60 * year)])
    assert written.verify() == []
    set_time(written.root / "b", -(2.0**31))
    assert [each.path for each in written.verify()] == [b"b"]


def test_a_directory_that_is_not_there_is_an_error(written: Written) -> None:
    """Nothing can be said of it; a link to one is none."""
    written.root.rename(written.root.with_name("moved"))
    with pytest.raises(FileNotFoundError):
        written.verify()
    written.root.symlink_to("moved")
    with pytest.raises(NotADirectoryError):
        written.verify()
