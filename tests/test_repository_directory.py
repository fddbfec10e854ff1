"""The directory backend: staging, the order of what reaches the disk, leftovers, and targets that refuse."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import NoSpace, RepositoryBusy, RepositoryUnavailable
from cvmfs_sync.repository import DirectoryRepository, directory, files
from tests.support import images
from tests.support.commands import require, require_root, run
from tests.support.images import Image
from tests.support.places import Place, PublishingProcess
from tests.support.workshop import Workshop


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "published"


def publish(root: Path, content: str = "new") -> None:
    """A tree, a file and a link, in the order in which an image is published."""
    with DirectoryRepository(root).transaction("test") as transaction:
        tree = transaction.create_tree("trees/one")
        tree.chmod(0o755)
        (tree / "file").write_text(content)
        transaction.write("records/one.json", content.encode())
        transaction.link("links/one", "../trees/one")


def inside(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def test_everything_is_staged_out_of_sight(root: Path) -> None:
    """Until the end all is below one directory that nobody else may enter, on the file system of the target."""
    publish(root, "old")
    before = inside(root)
    with DirectoryRepository(root).transaction("test") as transaction:
        tree = transaction.create_tree("trees/two")
        transaction.write("records/two.json", b"")
        transaction.link("links/two", "x")
        (staging,) = (root / ".cvmfs-sync/staging").iterdir()
        assert stat.S_IMODE(staging.stat().st_mode) == 0o700
        assert tree.parent == staging
        assert len(list(staging.iterdir())) == 3
        names = {name for name in inside(root) if not name.startswith(".cvmfs-sync/staging")}
        assert names == before
    assert inside(root) - before == {"trees/two", "records/two.json", "links/two"}


_PUBLISH = (
    "import sys; from pathlib import Path; from tests.test_repository_directory import DirectoryRepository, publish; "
)


def traced(tmp_path: Path, root: Path, code: str = "publish(root)") -> list[str]:
    """The system calls of a publication, or other code, that change names or reach the disk, in their order."""
    require("strace")
    calls = "syncfs,fsync,rename,renameat,renameat2,symlink,symlinkat,mkdir,unlink,unlinkat,rmdir"
    log = tmp_path / "strace"
    command = f"{_PUBLISH} root = Path(sys.argv[1]); {code}"
    result = subprocess.run(
        ["strace", "-f", "-y", "-s", "300", "-e", f"trace={calls}", "-o", log, sys.executable, "-c", command, root],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [line for line in log.read_text().splitlines() if str(root) in line]


def where(calls: list[str], pattern: str) -> int:
    """The place of the only call that matches."""
    found = [number for number, call in enumerate(calls) if re.search(pattern, call)]
    assert len(found) == 1, (pattern, found, calls)
    return found[0]


@pytest.mark.parametrize("again", [False, True])
def test_content_is_on_disk_before_its_name_is(tmp_path: Path, root: Path, again: bool) -> None:
    """Real system calls: syncfs, tree, record, link; the directory of each is synced before the next gets its name."""
    if again:
        publish(root, "old")
    calls = traced(tmp_path, root)
    synced = where(calls, r"syncfs\(.*staging")
    flushed = [n for n, call in enumerate(calls) if re.search(r"fsync\(.*staging/\w+/\w+>", call)]
    tree = where(calls, r"rename.*trees/one\"(, (0|RENAME_EXCHANGE))?\)")
    record = where(calls, r"rename.*records/one\.json\"\)?")
    link = where(calls, r"rename.*links/one\"\)?")
    assert len(flushed) == 1
    assert max(synced, *flushed) < tree < record < link
    assert ("RENAME_EXCHANGE" in calls[tree]) == again
    for begin, end, name in ((tree, record, "trees"), (record, link, "records"), (link, len(calls), "links")):
        assert any(re.search(rf"fsync\(\d+<{root}/{name}>\)", call) for call in calls[begin:end])


def test_directories_are_on_disk_before_what_is_in_them(tmp_path: Path, root: Path) -> None:
    """A directory that is made for a name has its own name on disk before that name is there, and so on upwards."""
    publish(root)
    code = "t = DirectoryRepository(root).transaction('x'); w = t.__enter__(); w.create_tree('a/b/tree');"
    code += " w.make_directory('c/d'); w.write('e/f/file', b''); t.__exit__(None, None, None)"
    calls = traced(tmp_path, root, code)
    synced = where(calls, r"syncfs\(")
    for made in ("a", "a/b", "c", "c/d"):
        assert where(calls, rf"mkdir\(\"{root}/{made}\".* = 0") < synced
    assert synced < where(calls, r"rename.*a/b/tree\"")
    for above, below in (("", "/e"), ("/e", "/e/f")):
        begun = where(calls, rf"mkdir\(\"{root}{below}\".* = 0")
        flushed = next(
            n for n, call in enumerate(calls) if n > begun and f"<{root}{above}>" in call and "fsync" in call
        )
        assert flushed < where(calls, r"rename.*e/f/file\"")


def test_removals_are_on_disk_in_their_order(tmp_path: Path, root: Path) -> None:
    """What is removed is so on disk before what is written after it; a tree is gone before its content is."""
    publish(root)
    code = "t = DirectoryRepository(root).transaction('x'); w = t.__enter__(); w.remove('links/one');"
    code += " w.remove('records/one.json'); w.write('catalogue', b''); t.__exit__(None, None, None);"
    code += " DirectoryRepository(root).remove_trees(['trees/one'])"
    calls = traced(tmp_path, root, code)
    link, record = where(calls, r"unlink.*links/one\""), where(calls, r"unlink.*records/one\.json\"")
    catalogue, tree = where(calls, r"rename.*\"\S*/catalogue\""), where(calls, r"rename\(\"\S*trees/one\"")
    content = where(calls, r"unlinkat.*\"file\"")
    assert link < record < catalogue < tree < content
    for begin, end, name in ((link, record, "links"), (record, catalogue, "records"), (tree, content, "trees")):
        assert any(re.search(rf"fsync\(\d+<{root}/{name}>\)", call) for call in calls[begin:end])


def test_removing_as_an_ordinary_user(memory_path: Path) -> None:
    """Directories that their owner may not write, the tree's own among them, are removed like any other."""
    require_root()
    root = memory_path / "published"
    root.mkdir()
    process = os.fork()
    if not process:
        code = 1
        try:
            os.chown(memory_path, 4711, 4711)
            os.chown(root, 4711, 4711)
            os.setgid(4711)
            os.setuid(4711)
            with DirectoryRepository(root).transaction("test") as transaction:
                tree = transaction.create_tree("trees/one")
                (tree / "in").mkdir()
                (tree / "in/file").write_text("x")
                (tree / "in").chmod(0o500)
            (root / "trees/one").chmod(0o500)
            DirectoryRepository(root).remove_trees(["trees/one"])
            code = int(any((root / "trees").iterdir()) or (root / ".cvmfs-sync/staging").exists())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_a_tree_is_never_missing_while_it_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange puts the new tree in the place of the old in one step."""
    publish(root, "old")
    seen = []

    def watched(one: Path, other: Path) -> bool:
        seen.append((other / "file").read_text())
        done = files.exchange(one, other)
        seen.append((other / "file").read_text())
        return done

    monkeypatch.setattr(directory, "exchange", watched)
    publish(root, "new")
    assert seen == ["old", "new"]


def test_without_an_exchange_two_renames_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that can't exchange, such as NFS, is published to all the same, and nothing is left over."""
    publish(root, "old")
    monkeypatch.setattr(directory, "exchange", lambda one, other: False)
    publish(root, "new")
    assert (root / "links/one/file").read_text() == "new"
    assert not (root / ".cvmfs-sync/staging").exists()


def test_an_exchange_swaps_anything(tmp_path: Path) -> None:
    """A directory and a dangling link change places; a name that is not there is an error."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    assert files.exchange(tmp_path / "directory", tmp_path / "link")
    assert (tmp_path / "link").is_dir()
    assert os.readlink(tmp_path / "directory") == "nowhere"
    with pytest.raises(FileNotFoundError):
        files.exchange(tmp_path / "link", tmp_path / "not there")


def test_an_exchange_that_the_file_system_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EINVAL and a C library without the call mean no; they are no errors."""
    monkeypatch.setattr(files._libc, "renameat2", None, raising=False)
    assert not files.exchange(tmp_path, tmp_path)
    monkeypatch.setattr(files._libc, "renameat2", lambda *_: -1, raising=False)
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EINVAL)
    assert not files.exchange(tmp_path, tmp_path)


def test_leftovers_are_cleaned_up_whatever_is_in_them(root: Path) -> None:
    """What killed runs had staged is removed, with unreadable directories and links that lead outside."""
    publish(root)
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("stays")
    for number in range(3):
        deep = root / f".cvmfs-sync/staging/{number}/tree/deep"
        deep.mkdir(parents=True)
        (deep / "link").symlink_to(outside)
        deep.chmod(0)
    before = inside(root)
    assert DirectoryRepository(root).recover() == "removed what 3 interrupted transaction(s) had staged"
    assert DirectoryRepository(root).recover() is None
    assert inside(root) == {name for name in before if not name.startswith(".cvmfs-sync/staging")}
    assert (outside / "file").read_text() == "stays"


def test_a_killed_run_holds_no_lock(root: Path, tmp_path: Path) -> None:
    """The lock goes with its process; its file stays, and says nothing."""
    with PublishingProcess(Place("directory", root, tmp_path)) as process:
        assert process.enter() == "inside"
        assert (root / ".cvmfs-sync/lock").read_text() == str(process.process.pid)
        with pytest.raises(RepositoryBusy, match=f"process {process.process.pid}"):
            publish(root)
    publish(root)
    assert (root / ".cvmfs-sync/lock").exists()


def test_staging_of_a_running_process_is_no_leftover(root: Path, tmp_path: Path) -> None:
    """Recovering while another process publishes removes nothing, and needs no wait."""
    with PublishingProcess(Place("directory", root, tmp_path)) as process:
        assert process.enter() == "inside"
        assert DirectoryRepository(root, wait=timedelta(hours=1)).recover() is None
        assert process.leave() == "published"
    assert (root / "tree/half/file").read_text() == "half"


def test_a_failing_commit_is_a_prefix(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fails in the middle, what came first is there and what came later is the old; staging is gone."""
    publish(root, "old")
    sync = files.sync_directory
    calls = []

    def failing(path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        sync(path)

    monkeypatch.setattr(directory, "sync_directory", failing)
    with pytest.raises(RepositoryUnavailable, match=str(root)):
        publish(root, "new")
    assert (root / "trees/one/file").read_text() == "new"
    assert (root / "records/one.json").read_text() == "new"
    assert not (root / ".cvmfs-sync/staging").exists()


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[Path]:
    """A small file system, where root may mount."""
    require_root()
    path.mkdir()
    try:
        run("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)
    except AssertionError as error:
        pytest.skip(f"cannot mount: {error}")
    try:
        yield path
    finally:
        run("umount", path)


def test_a_full_disk(tmp_path: Path) -> None:
    """A tree that does not fit leaves the old one, and the space that it had taken is free again."""
    with tmpfs(tmp_path / "small", "size=2m") as root:
        publish(root, "old")
        repository = DirectoryRepository(root)
        before = os.statvfs(root).f_bfree
        with pytest.raises(NoSpace, match=f"no space left to write to the repository {root}") as caught:
            publish(root, "x" * (4 << 20))
        assert caught.value.exit_code == 3
        assert (root / "links/one/file").read_text() == "old"
        assert os.statvfs(root).f_bfree == before
        assert repository.recover() is None
        publish(root, "fits")


def test_no_inodes_left(tmp_path: Path) -> None:
    """A file system without room for one more name is full, too, at whatever step that is found."""
    refused = 0
    for inodes in range(4, 24, 2):
        with tmpfs(tmp_path / f"small-{inodes}", f"nr_inodes={inodes}") as root:
            try:
                publish(root)
            except NoSpace:
                refused += 1
                assert not (root / "links/one").is_symlink() or (root / "links/one/file").exists()
                assert not (root / ".cvmfs-sync/staging").exists() or DirectoryRepository(root).recover() is None
    assert refused


def test_a_read_only_target(tmp_path: Path) -> None:
    """A target that can't be written is named, with exit code 3; recovering there is no problem of anybody."""
    with tmpfs(tmp_path / "target", "size=2m") as root:
        publish(root, "old")
        run("mount", "-o", "remount,ro", root)
        with pytest.raises(RepositoryUnavailable, match=f"cannot write to the repository {root}") as caught:
            publish(root, "new")
        assert caught.value.exit_code == 3
        assert "Read-only" in str(caught.value)
        assert DirectoryRepository(root).recover() is None
        assert (root / "links/one/file").read_text() == "old"


def test_a_target_that_is_no_directory(root: Path) -> None:
    """A file where the target should be is named."""
    root.write_text("")
    with pytest.raises(RepositoryUnavailable, match=str(root)):
        publish(root)
    assert root.read_text() == ""


def test_opening_changes_nothing(root: Path) -> None:
    """Making the object, and recovering from nothing, does not even make the directory."""
    assert DirectoryRepository(root).recover() is None
    assert not root.exists()


@pytest.mark.parametrize("unit", [1, 100, 1_000_000_000, 2_000_000_000])
def test_how_exact_times_are_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int) -> None:
    """A tree is published, and found to be as it was meant, where a file system keeps whole seconds only."""
    exact = os.utime

    def coarse(path: Any, times: Any = None, *, ns: tuple[int, int] | None = None, **more: Any) -> None:
        if ns is None:
            exact(path, times, **more)
        else:
            exact(path, ns=(ns[0], ns[1] // unit * unit), **more)

    monkeypatch.setattr(os, "utime", coarse)
    repository = DirectoryRepository(tmp_path / "not" / "there" / "yet")
    assert repository.traits.mtime_unit == unit
    image = Image((images.layer(images.file("a", "1", mtime=1_234_567_891.123456789)),))
    shop = Workshop(tmp_path, repository)
    tree = shop.publish(image)
    assert (repository.root / tree.path / "a").stat().st_mtime_ns % unit == 0


def test_times_that_cannot_be_tried_count_as_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory that may only be read nothing is tried, and nothing fails for it."""

    def refuse(*_: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert DirectoryRepository(tmp_path).traits.mtime_unit == 1
