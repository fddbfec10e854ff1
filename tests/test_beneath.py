"""Directories beneath a descriptor, and everything that must not lead out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvmfs_sync import beneath
from cvmfs_sync.removal import remove_tree

Opener = Callable[[int, bytes], int]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A directory with some below it, links that lead out, and one that stays in."""
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root/file").touch()
    (tmp_path / "root/out").symlink_to("../outside")
    (tmp_path / "root/host").symlink_to("/")
    (tmp_path / "root/in").symlink_to("a")
    (tmp_path / "root/magic").symlink_to("/proc/self/cwd")
    descriptor = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


OPENERS = pytest.mark.parametrize("opener", [beneath.open_directory, beneath.open_directory_stepwise])


@OPENERS
@pytest.mark.parametrize("path", [b"a", b"a/b", b"a//b", b"a/./b"])
def test_a_directory_is_opened(root: int, opener: Opener, path: bytes) -> None:
    """The descriptor is the directory's, and closes at exec."""
    descriptor = opener(root, path)
    expected = os.stat(path, dir_fd=root)
    found = os.fstat(descriptor)
    assert (found.st_dev, found.st_ino) == (expected.st_dev, expected.st_ino)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@OPENERS
@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        (b"out", {errno.ELOOP, errno.ENOTDIR}),
        (b"host/etc", {errno.ELOOP, errno.ENOTDIR}),
        (b"in", {errno.ELOOP, errno.ENOTDIR}),
        (b"in/b", {errno.ELOOP, errno.ENOTDIR}),
        (b"magic", {errno.ELOOP, errno.ENOTDIR}),
        (b"file", {errno.ENOTDIR}),
        (b"gone", {errno.ENOENT}),
        (b"..", {errno.EXDEV}),
        (b"a/../../outside", {errno.EXDEV}),
        (b"/etc", {errno.EXDEV}),
    ],
)
def test_nothing_leads_out(root: int, opener: Opener, path: bytes, numbers: set[int]) -> None:
    """No link is followed, even one that stays inside, and no descriptor is lost."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r".") as raised:
        opener(root, path)
    assert raised.value.errno in numbers
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_forbidden_openat2_is_done_without(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container whose filter refuses the call gets the same result."""
    monkeypatch.setattr(beneath, "_OPENAT2", 100_000)  # no such call: ENOSYS, as from an old kernel
    descriptor = beneath.open_directory(root, b"a/b")
    assert os.fstat(descriptor).st_ino == os.stat("a/b", dir_fd=root).st_ino
    os.close(descriptor)
    with pytest.raises(OSError, match=r"."):
        beneath.open_directory(root, b"out")


def test_paths_longer_than_the_kernel_takes_at_once(root: int) -> None:
    """A tree may be deeper than PATH_MAX; its directories are found all the same."""
    parent = os.dup(root)
    names = [b"d" * 200] * 30
    for name in names:
        os.mkdir(name, dir_fd=parent)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
        os.close(parent)
        parent = below
    descriptor = beneath.open_directory(root, b"/".join(names))
    assert os.fstat(descriptor).st_ino == os.fstat(parent).st_ino
    os.close(descriptor)
    os.close(parent)
    remove_tree(Path(f"/proc/self/fd/{root}") / os.fsdecode(names[0]))
