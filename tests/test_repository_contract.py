"""What every backend of the port `Repository` does: one suite for the directory, the fake server, and a real one.

The real one is the repository that CVMFS_SYNC_TEST_REPOSITORY names, mounted at /cvmfs/<name>; the user who runs the
tests must own it. All names are below a directory of the test's own, which is removed at the end.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvmfs_sync.errors import InvalidImage, NoSpace, RepositoryBusy, RepositoryError, RepositoryUnavailable
from cvmfs_sync.ports import Transaction
from tests.support.commands import run
from tests.support.cvmfs import FakeCvmfs
from tests.support.places import Place, PublishingProcess, no_sleep

REAL = os.environ.get("CVMFS_SYNC_TEST_REPOSITORY", "")
KINDS = ["directory", "fake", *(["real"] if REAL else [])]


@pytest.fixture(scope="module")
def real_prefix() -> Iterator[str]:
    """A directory of the real repository that goes with the tests; and ours, if there was none before."""
    root = Path("/cvmfs") / REAL
    names = [f"cvmfs-sync-test-{secrets.token_hex(4)}", *([] if (root / ".cvmfs-sync").exists() else [".cvmfs-sync"])]
    yield f"{names[0]}/"
    run("cvmfs_server", "transaction", REAL)
    for name in names:
        shutil.rmtree(root / name, ignore_errors=True)
    run("cvmfs_server", "publish", REAL, cwd=Path("/"))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place of each kind."""
    match request.param:
        case "directory":
            return Place("directory", tmp_path / "published", tmp_path / "state", "some/where/")
        case "fake":
            fake: FakeCvmfs = request.getfixturevalue("fake_cvmfs")
            return Place("fake", fake.root, tmp_path / "state", "some/where/", fake, fake.name)
        case _:
            prefix: str = request.getfixturevalue("real_prefix")
            return Place("real", Path("/cvmfs") / REAL, tmp_path / "state", f"{prefix}{tmp_path.name}/", name=REAL)


def put_tree(transaction: Transaction, path: str, content: str) -> None:
    """A tree with one file and one directory."""
    tree = transaction.create_tree(path)
    (tree / "etc").mkdir(mode=0o755)
    (tree / "etc/name").write_text(content)
    tree.chmod(0o755)


def put_file(transaction: Transaction, path: str, content: str) -> None:
    transaction.write(path, content.encode())


def put_link(transaction: Transaction, path: str, content: str) -> None:
    transaction.link(path, content)


PUTS = {"tree": put_tree, "file": put_file, "link": put_link}


def seen(path: Path) -> str:
    """What stands at a path, as a text."""
    if path.is_symlink():
        return f"link {os.readlink(path)}"
    if path.is_dir():
        return (
            f"tree {sorted(p.relative_to(path).as_posix() for p in path.rglob('*'))} {(path / 'etc/name').read_text()}"
        )
    if path.exists():
        return f"file {path.read_text()}"
    return "nothing"


def expected(kind: str, content: str) -> str:
    """What `seen` says of what `PUTS` made."""
    return f"tree ['etc', 'etc/name'] {content}" if kind == "tree" else f"{kind} {content}"


@pytest.mark.parametrize("kind", PUTS)
def test_leaving_the_block_publishes(place: Place, kind: str) -> None:
    """Trees, files and links are there for clients when the block is left, and not before."""
    path = place.prefix + "a/b"
    with place.repository().transaction("test") as transaction:
        PUTS[kind](transaction, path, "new")
        assert seen(place.client(path)) == "nothing"
    assert seen(place.client(path)) == seen(place.root / path) == expected(kind, "new")


@pytest.mark.parametrize("after", PUTS)
@pytest.mark.parametrize("before", [*PUTS, "dangling", "directories"])
def test_what_stood_there_is_replaced(place: Place, before: str, after: str) -> None:
    """Whatever has a name gives way to what a transaction puts there, and clients see the old until then."""
    path = place.prefix + "name"
    repository = place.repository()
    with repository.transaction("before") as transaction:
        put_tree(transaction, place.prefix + "elsewhere", "untouched")
        match before:
            case "dangling":
                transaction.link(path, "not/there")
            case "directories":
                transaction.write(path + "/etc/name", b"old")
            case "link":
                transaction.link(path, "elsewhere")
            case _:
                PUTS[before](transaction, path, "old")
    old = seen(place.client(path))
    assert old != "nothing"
    with repository.transaction("after") as transaction:
        PUTS[after](transaction, path, "new")
        assert seen(place.client(path)) == old
    assert seen(place.client(path)) == expected(after, "new")
    assert seen(place.client(place.prefix + "elsewhere")) == expected("tree", "untouched")


@pytest.mark.parametrize("kind", PUTS)
def test_the_last_call_for_a_path_counts(place: Place, kind: str) -> None:
    """A path that is put twice in one transaction is what the last call made of it."""
    with place.repository().transaction("test") as transaction:
        PUTS[kind](transaction, place.prefix + "name", "first")
        PUTS[kind](transaction, place.prefix + "name", "second")
    assert seen(place.client(place.prefix + "name")) == expected(kind, "second")


@pytest.mark.parametrize("content", [b"", b"\0\xff" * 3_000_000], ids=["empty", "large"])
def test_files_have_their_content(place: Place, content: bytes) -> None:
    """A file is written whole, whatever its size."""
    with place.repository().transaction("test") as transaction:
        transaction.write(place.prefix + "file", content)
    assert place.client(place.prefix + "file").read_bytes() == content


@pytest.mark.parametrize("target", ["../x", "/absolute", "not there", "a:b@sha256:0"])
def test_links_hold_what_was_asked(place: Place, target: str) -> None:
    """A link's target is kept as it is."""
    with place.repository().transaction("test") as transaction:
        transaction.link(place.prefix + "link", target)
    assert os.readlink(place.client(place.prefix + "link")) == target


@pytest.mark.parametrize("umask", [0o077, 0o000, 0o777])
def test_modes_are_readable_whatever_the_umask(place: Place, umask: int) -> None:
    """Directories that are made on the way are 0755 and files 0644; a tree's own mode is its maker's."""
    before = os.umask(umask)
    try:
        with place.repository().transaction("test") as transaction:
            transaction.create_tree(place.prefix + "x/tree").chmod(0o711)
            transaction.write(place.prefix + "y/z/file", b"")
            transaction.link(place.prefix + "v/w/link", "target")
    finally:
        os.umask(before)
    modes = {
        path: stat.S_IMODE(place.client(place.prefix + path).lstat().st_mode)
        for path in ("x", "x/tree", "y", "y/z", "y/z/file", "v", "v/w")
    }
    assert modes == {"x": 0o755, "x/tree": 0o711, "y": 0o755, "y/z": 0o755, "y/z/file": 0o644, "v": 0o755, "v/w": 0o755}
    if place.kind == "directory":
        assert stat.S_IMODE(place.root.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "error",
    [ValueError("bug"), InvalidImage("broken"), KeyboardInterrupt(), SystemExit(3)],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_aborts(place: Place, error: BaseException) -> None:
    """Whatever ends the block early comes out as it is, nothing of the transaction is there, and the next one works."""
    repository = place.repository()
    with repository.transaction("before") as transaction:
        put_tree(transaction, place.prefix + "tree", "old")
        transaction.link(place.prefix + "link", "tree")
    with pytest.raises(type(error)) as caught, repository.transaction("fails") as transaction:  # noqa: PT012
        put_tree(transaction, place.prefix + "tree", "new")
        transaction.link(place.prefix + "link", "elsewhere")
        transaction.write(place.prefix + "deep/file", b"new")
        raise error
    assert caught.value is error
    for view in (place.client(place.prefix), place.root / place.prefix):
        assert sorted(path.name for path in view.iterdir()) == ["link", "tree"]
        assert seen(view / "tree") == expected("tree", "old")
        assert seen(view / "link") == "link tree"
    assert repository.recover() is None
    with repository.transaction("after") as transaction:
        transaction.write(place.prefix + "file", b"after")
    assert seen(place.client(place.prefix + "file")) == "file after"


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, NoSpace), (errno.EROFS, RepositoryUnavailable), (errno.EIO, RepositoryUnavailable)],
)
def test_write_errors_name_the_repository(place: Place, number: int, error: type[RepositoryError]) -> None:
    """An OSError of writing aborts and comes out as what it means, naming the repository, with exit code 3."""
    repository = place.repository()
    with pytest.raises(error, match=str(place.root)) as caught, repository.transaction("test") as transaction:  # noqa: PT012
        transaction.create_tree(place.prefix + "tree")
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 3
    assert not os.path.lexists(place.client(place.prefix + "tree"))
    assert repository.recover() is None


@pytest.mark.parametrize("kind", PUTS)
@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_what_stands_in_the_way_is_named(place: Place, kind: str, obstacle: str) -> None:
    """A path through a file or a link is refused, naming it; nothing is written elsewhere, nothing is lost."""
    repository = place.repository()
    with repository.transaction("before") as transaction:
        put_tree(transaction, place.prefix + "tree", "old")
        PUTS[obstacle](transaction, place.prefix + "in-the-way", "tree")
    with (
        pytest.raises(RepositoryUnavailable, match="in-the-way is not a directory"),
        repository.transaction("test") as transaction,
    ):
        PUTS[kind](transaction, place.prefix + "in-the-way/x", "new")
    assert seen(place.client(place.prefix + "in-the-way")) == expected(obstacle, "tree")
    assert seen(place.client(place.prefix + "tree")) == expected("tree", "old")


def test_readers_see_the_old_or_the_new(place: Place) -> None:
    """While a link, a file and a tree are replaced again and again, a reader always finds one of the versions."""
    repository = place.repository()
    contents = [f"{number}\n" * 50 for number in range(12 if place.kind == "directory" else 4)]
    errors: list[str] = []
    stop = threading.Event()

    def put(content: str) -> None:
        with repository.transaction("replace") as transaction:
            put_tree(transaction, place.prefix + "tree", content)
            put_file(transaction, place.prefix + "file", content)
            put_link(transaction, place.prefix + "link", content.strip().replace("\n", "."))

    def watch() -> None:
        looks: list[Callable[[], object]] = [
            lambda: (place.client(place.prefix + "tree") / "etc/name").read_text() in contents,
            lambda: place.client(place.prefix + "file").read_text() in contents,
            lambda: bool(os.readlink(place.client(place.prefix + "link"))),
        ]
        while not stop.is_set():
            for look in looks:
                try:
                    if not look():
                        errors.append("a mixture")
                except OSError as error:
                    errors.append(str(error))

    put(contents[0])
    if place.kind == "real":  # a reader below the repository would keep it from being published
        return
    reader = threading.Thread(target=watch)
    reader.start()
    try:
        for content in contents[1:]:
            put(content)
    finally:
        stop.set()
        reader.join()
    assert not errors


def test_a_held_repository_is_busy(place: Place) -> None:
    """Somebody else's transaction stops ours at once, with exit code 3 and who it is, and stays as it is."""
    with place.held() as release:
        with pytest.raises(RepositoryBusy) as caught, place.repository().transaction("test"):
            raise AssertionError
        release()
    assert caught.value.exit_code == 3
    assert place.name in str(caught.value)
    holder = r"process \d+" if place.kind == "directory" else r"open since \d{4}-.*Z, its lock belongs to \w+"
    assert caught.value.found
    assert re.search(holder, caught.value.found)
    assert caught.value.todo


def test_waiting_has_a_limit(place: Place) -> None:
    """No more than the limit is waited for somebody else, in pauses."""
    slept: list[float] = []
    with (
        place.held(),
        pytest.raises(RepositoryBusy),
        place.repository(wait=11, sleep=slept.append).transaction("test"),
    ):
        raise AssertionError
    assert sum(slept) == pytest.approx(11)
    assert len(slept) > 1


def test_waiting_ends_when_the_holder_has_gone(place: Place) -> None:
    """A transaction that was waited for is followed by ours."""
    with place.held() as release:
        repository = place.repository(wait=60, sleep=lambda _: release())
        with repository.transaction("test") as transaction:
            transaction.write(place.prefix + "file", b"ours")
    assert seen(place.client(place.prefix + "file")) == "file ours"


def test_the_second_process_is_refused(place: Place) -> None:
    """Of two processes, the second gets an error that says so, and the first goes on and publishes."""
    repository = place.repository()
    with PublishingProcess(place) as other:
        with repository.transaction("the first") as transaction:
            transaction.write(place.prefix + "file", b"first")
            name, code, text = json.loads(other.enter())
            assert (name, code) == ("RepositoryBusy", 3)
            assert place.name in text
        assert seen(place.client(place.prefix + "file")) == "file first"
    assert not os.path.lexists(place.client(place.prefix + "half-file"))
    assert repository.recover() is None


def test_recovering_from_nothing_is_nothing(place: Place) -> None:
    """Without an interrupted run there is nothing to recover: in a new place, after a publish, after an abort."""
    repository = place.repository()
    assert repository.recover() is None
    with repository.transaction("test") as transaction:
        transaction.write(place.prefix + "file", b"")
    assert repository.recover() is None
    with pytest.raises(ZeroDivisionError), repository.transaction("test"):
        raise ZeroDivisionError
    assert repository.recover() is None


def test_a_killed_process_leaves_nothing_for_clients(place: Place) -> None:
    """What a killed process had written is not seen, is cleaned up once, and does not stop the next transaction."""
    with PublishingProcess(place) as other:
        assert other.enter() == "inside"
        other.kill()
    repository = place.repository()
    assert not os.path.lexists(place.client(place.prefix + "tree"))
    assert repository.recover() is not None
    assert repository.recover() is None
    for view in (place.client(place.prefix), place.root / place.prefix):
        assert not os.path.lexists(view / "tree")
        assert not os.path.lexists(view / "half-file")
    with repository.transaction("after") as transaction:
        transaction.write(place.prefix + "file", b"after")
    assert seen(place.client(place.prefix + "file")) == "file after"


def test_recovering_leaves_a_running_process_alone(place: Place) -> None:
    """While another process with a state of its own is in its transaction, recovering does nothing to it."""
    other_place = Place(place.kind, place.root, place.state / "other", place.prefix, place.fake, place.name)
    with PublishingProcess(other_place) as other:
        assert other.enter() == "inside"
        assert place.repository().recover() is None
        assert other.leave() == "published"
    assert place.client(place.prefix + "half-file").read_bytes() == b"half"


def test_a_new_repository_object_sees_what_is_published(place: Place) -> None:
    """Nothing of what is published lives in the process."""
    with place.repository().transaction("test") as transaction:
        put_tree(transaction, place.prefix + "tree", "new")
    assert seen(place.repository(sleep=no_sleep).root / place.prefix / "tree") == expected("tree", "new")
