"""Files of ours beside others': what is written, what is left alone, and what is refused."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cvmfs_sync.errors import RepositoryBusy, RepositoryUnavailable, UsageError
from cvmfs_sync.ownfiles import MANIFEST, Written, own_files
from tests.support.retiring import fingerprints


def keep(directory: Path, contents: Mapping[str, bytes], made: list[str] | None = None) -> Written:
    """Have these files there, each made of its content; `made` is told which had to be made."""

    def make(path: str) -> Iterator[bytes]:
        if made is not None:
            made.append(path)
        yield contents[path]

    with own_files(directory, contents) as files:
        for path, content in contents.items():
            files.keep([path], content.hex(), lambda path=path: make(path))  # type: ignore[misc]
        return files.finish()


def held(directory: Path) -> dict[str, bytes]:
    """All that is there but the manifest."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_only_what_changes_is_written(tmp_path: Path) -> None:
    """A new directory is filled; then nothing is made or touched until something is to be different."""
    first = {"a": b"1", "b/c": b"2", "b/d": b"3"}
    out = tmp_path / "new" / "out"
    assert keep(out, first) == Written(3, 0, 0)
    before = fingerprints(out)
    made: list[str] = []
    assert keep(out, first, made) == Written(0, 3, 0)
    assert made == []
    assert fingerprints(out) == before
    second = {"a": b"1", "b/c": b"new", "e": b"4"}
    assert keep(out, second, made) == Written(2, 1, 1)
    assert made == ["b/c", "e"]
    assert held(out) == second


def test_what_is_made_of_other_things_may_be_the_same(tmp_path: Path) -> None:
    """It is not written again, and the next run does not even make it."""
    keep(tmp_path, {"a": b"1"})
    before = fingerprints(tmp_path / "a")
    made: list[str] = []

    def make() -> Iterator[bytes]:
        made.append("a")
        yield b"1"

    for _ in range(2):
        with own_files(tmp_path, ["a"]) as files:
            files.keep(["a"], "another text", make)
            assert files.finish() == Written(0, 1, 0)
    assert made == ["a"]
    assert fingerprints(tmp_path / "a") == before


def test_others_files_stay(tmp_path: Path) -> None:
    """What somebody adds to the directory is there as long as they like, whatever becomes of ours."""
    keep(tmp_path, {"a": b"1", "b/c": b"2"})
    for path in ("robots.txt", "b/other", "deep/er/x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("theirs")
    assert keep(tmp_path, {"a": b"1"}) == Written(0, 1, 1)
    assert held(tmp_path) == {"a": b"1", **dict.fromkeys(("robots.txt", "b/other", "deep/er/x"), b"theirs")}


def test_what_was_done_to_ours_is_undone(tmp_path: Path) -> None:
    """Files that are changed, removed, or made links are as they are to be after the next run."""
    contents = {"a": b"1", "b": b"2", "c": b"3", "d": b"4"}
    keep(tmp_path / "out", contents)
    other = tmp_path / "other"
    other.write_bytes(b"3")
    (tmp_path / "out/a").write_bytes(b"x")
    (tmp_path / "out/b").unlink()
    (tmp_path / "out/c").unlink()
    (tmp_path / "out/c").symlink_to(other)
    assert keep(tmp_path / "out", contents) == Written(3, 1, 0)
    assert held(tmp_path / "out") == contents
    assert not (tmp_path / "out/c").is_symlink()
    assert other.read_bytes() == b"3"


@pytest.mark.parametrize(
    ("path", "wanted"), [("robots.txt", "a"), ("a", "a"), ("b", "b/c"), ("b/c", "b/c")], ids=lambda each: each
)
def test_a_directory_of_others_is_refused(tmp_path: Path, path: str, wanted: str) -> None:
    """Before anything is changed: what holds files and none of ours, and what has one in our way."""
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("theirs")
    with pytest.raises(UsageError, match="ours"):
        keep(tmp_path, {wanted: b"1", "z": b"2"})
    assert held(tmp_path) == {path: b"theirs"}


@pytest.mark.parametrize("way", ["file", "link"])
def test_what_comes_into_our_way_later_is_refused(tmp_path: Path, way: str) -> None:
    """A file where a new file of ours is to be, and a link where its directory is to be."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    keep(out, {"a": b"1"})
    if way == "file":
        (out / "b").write_text("theirs")
    else:
        (out / "b").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="b is not ours"):
        keep(out, {"a": b"2", ("b" if way == "file" else "b/c"): b"3"})
    assert (out / "a").read_bytes() == b"1"
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"version": 2, "complete": true, "files": {}}', '{"version": 1, "files": {"a": 1}}']
    + [
        json.dumps({"version": 1, "complete": True, "files": {path: ["x", 1, 1]}})
        for path in ("../victim", "/etc/passwd", "a/b/c", ".hidden", "A", "a\n", "..", "a/..")
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    """Is refused, above all one that would have others' files removed."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "victim").write_text("theirs")
    (out / MANIFEST).write_text(text)
    with pytest.raises(UsageError, match="does not tell which files are ours"):
        keep(out, {"a": b"1"})
    assert (tmp_path / "victim").read_text() == "theirs"
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST]


def test_after_a_failure_all_is_looked_at(tmp_path: Path) -> None:
    """Files that were written before a run failed are known to be ours, and known by their content alone."""
    keep(tmp_path, {"a": b"1", "b": b"2"})

    def fail() -> None:
        with own_files(tmp_path, ["a", "b", "c", "d"]) as files:
            files.keep(["c"], "3", lambda: [b"3"])
            files.keep(["a"], "new", lambda: [b"new"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert held(tmp_path) == {"a": b"new", "b": b"2", "c": b"3"}
    made: list[str] = []
    assert keep(tmp_path, {"a": b"1", "b": b"2"}, made) == Written(1, 1, 1)
    assert made == ["a", "b"]
    assert held(tmp_path) == {"a": b"1", "b": b"2"}


def test_one_at_a_time(tmp_path: Path) -> None:
    """Who comes second is told so."""
    keep(tmp_path, {"a": b"1"})
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(RepositoryBusy):
            keep(tmp_path, {"a": b"2"})
    finally:
        os.close(descriptor)
    assert (tmp_path / "a").read_bytes() == b"1"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    """A file where the directory is to be, and a directory in the way of a file of ours."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryUnavailable, match="cannot write to"):
        keep(tmp_path / "file/out", {"a": b"1"})
    keep(tmp_path / "out", {"a": b"1"})
    (tmp_path / "out/a").unlink()
    (tmp_path / "out/a/theirs").mkdir(parents=True)
    with pytest.raises(RepositoryUnavailable, match="cannot write to"):
        keep(tmp_path / "out", {"a": b"1"})
    assert keep(tmp_path / "out", {"b": b"1"}) == Written(1, 0, 0)
    assert (tmp_path / "out/a/theirs").is_dir()
