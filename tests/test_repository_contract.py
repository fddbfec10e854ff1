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
from contextlib import suppress
from pathlib import Path

import pytest

from cvmfs_sync.errors import (
    CloneRefused,
    InvalidImage,
    NoSpace,
    RepositoryBusy,
    RepositoryError,
    RepositoryUnavailable,
)
from cvmfs_sync.ports import Clone, Transaction
from tests.support.commands import run
from tests.support.cvmfs import FakeCvmfs
from tests.support.places import Place, PublishingProcess, no_sleep
from tests.support.trees import assert_same_tree, tree_listing

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


# --- clones ---


def rich_tree(transaction: Transaction, path: str) -> None:
    """A tree with one of everything that an ordinary image has, and odd names."""
    tree = transaction.create_tree(path)
    (tree / "etc").mkdir()
    (tree / "etc/name").write_text("old")
    (tree / "etc/second").hardlink_to(tree / "etc/name")
    (tree / "closed/in").mkdir(parents=True)
    (tree / "closed/in/file").write_text("x")
    (tree / "closed/in/file").chmod(0o400)
    (tree / "bin").symlink_to("etc")
    (tree / "dangling").symlink_to("/not/there")
    for name in ("a b", "$(odd);*", "a:b=c", "umlaut \udcfc", "-d"):
        (tree / name).write_text(name, errors="surrogateescape")
    (tree / "tool").write_text("#!")
    (tree / "tool").chmod(0o4755)
    os.mkfifo(tree / "fifo")
    for name in ("etc/name", "closed/in", "etc"):
        os.utime(tree / name, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    (tree / "closed/in").chmod(0o500)
    tree.chmod(0o755)


def with_trees(place: Place, *names: str) -> None:
    """Publish a `rich_tree` for each name."""
    with place.repository().transaction("before") as transaction:
        for name in names:
            rich_tree(transaction, place.prefix + name)


def cloned(place: Place, source: str, path: str) -> Clone:
    return Clone(place.prefix + source, place.prefix + path)


def test_a_clone_is_the_same_tree(place: Place) -> None:
    """Content, types, modes, times and hard links of a clone are those of its source, which keeps all of its own."""
    with_trees(place, "trees/one")
    before = tree_listing(place.client(place.prefix + "trees/one"))
    with place.repository().transaction("clone", cloned(place, "trees/one", "trees/two")) as transaction:
        here = transaction.clone()
        assert (place.kind == "directory") != (here == place.root / place.prefix / "trees/two")
    for view in (place.client(place.prefix), place.root / place.prefix):
        assert_same_tree(view / "trees/one", before)
        assert_same_tree(view / "trees/two", before)


def test_changing_a_clone_leaves_its_source(place: Place) -> None:
    """Whatever is removed, added, replaced or given other metadata in a clone, the source has none of it."""
    with_trees(place, "trees/one")
    before = tree_listing(place.client(place.prefix + "trees/one"))
    repository = place.repository()
    with repository.transaction("clone", cloned(place, "trees/one", "trees/two")) as transaction:
        tree = transaction.clone()
        (tree / "etc/name").unlink()
        (tree / "etc/name").write_text("new")
        (tree / "etc/added").write_text("new")
        (tree / "etc").chmod(0o711)
        (tree / "bin").unlink()
        (tree / "bin").mkdir()
        (tree / "closed/in").chmod(0o700)
        (tree / "closed/in/file").unlink()
        (tree / "closed/in").rmdir()
        (tree / "tool").rename(tree / "tool2")
        if not repository.traits.shares_files:
            (tree / "etc/second").write_text("written to")
            (tree / "a b").chmod(0o600)
        assert_same_tree(place.client(place.prefix + "trees/one"), before)
    for view in (place.client(place.prefix), place.root / place.prefix):
        assert_same_tree(view / "trees/one", before)
        tree = view / "trees/two"
        assert (tree / "etc/name").read_text() == "new"
        assert (tree / "etc/added").read_text() == "new"
        assert stat.S_IMODE((tree / "etc").stat().st_mode) == 0o711
        assert list((tree / "bin").iterdir()) == list((tree / "closed").iterdir()) == []
        assert (tree / "etc/second").read_text() == ("old" if repository.traits.shares_files else "written to")
        assert not (tree / "tool").exists()
    # And the other way round: the clone does not need its source.
    after = tree_listing(place.client(place.prefix + "trees/two"))
    repository.remove_trees([place.prefix + "trees/one"])
    assert_same_tree(place.client(place.prefix + "trees/two"), after)


@pytest.mark.parametrize("source", ["trees/none", "none/none", "file", "link"])
def test_a_clone_of_nothing_is_refused(place: Place, source: str) -> None:
    """Where there is no directory to clone, nothing is opened, and nothing has changed."""
    with_trees(place, "trees/one")
    with place.repository().transaction("before") as transaction:
        transaction.write(place.prefix + "file", b"")
        transaction.link(place.prefix + "link", "trees/one")
    assert_refused(place, cloned(place, source, "trees/two"))


@pytest.mark.parametrize("path", ["trees/one", "trees/two", "file", "dangling", "none/two"])
def test_a_clone_in_the_way_is_refused(place: Place, path: str) -> None:
    """A clone replaces nothing, whatever stands there, and makes no directory to be in; nothing has changed."""
    with_trees(place, "trees/one", "trees/two")
    with place.repository().transaction("before") as transaction:
        transaction.write(place.prefix + "file", b"")
        transaction.link(place.prefix + "dangling", "not/there")
    assert_refused(place, cloned(place, "trees/one", path))


def assert_refused(place: Place, clone: Clone) -> None:
    """It is, and afterwards everything is as before."""
    before = tree_listing(place.client(place.prefix))
    with pytest.raises(CloneRefused) as caught, place.repository().transaction("clone", clone):
        raise AssertionError
    assert caught.value.exit_code == 3
    assert_same_tree(place.client(place.prefix), before)
    assert_same_tree(place.root / place.prefix, before)
    assert place.repository().recover() is None
    with place.repository().transaction("after") as transaction:
        transaction.write(place.prefix + "after", b"")


def test_an_aborted_clone_is_gone(place: Place) -> None:
    """After an error in the transaction nobody sees the clone any more, and the next one may have its path."""
    with_trees(place, "trees/one")
    repository, clone = place.repository(), cloned(place, "trees/one", "trees/two")
    with pytest.raises(ZeroDivisionError), repository.transaction("clone", clone) as transaction:  # noqa: PT012
        (transaction.clone() / "added").write_text("")
        raise ZeroDivisionError
    for view in (place.client(place.prefix), place.root / place.prefix):
        assert not os.path.lexists(view / "trees/two")
    with repository.transaction("clone", clone) as transaction:
        assert not (transaction.clone() / "added").exists()
    assert_same_tree(place.client(place.prefix + "trees/one"), place.client(place.prefix + "trees/two"))


def test_the_traits_are_true(place: Place) -> None:
    """What the backend says of times, hard links and shared files is what is found in what it has published."""
    with_trees(place, "trees/one")
    repository = place.repository()
    traits, tree = repository.traits, place.client(place.prefix + "trees/one")
    mtime = 1_700_000_000_123_456_789
    assert (tree / "etc/name").stat().st_mtime_ns == mtime // traits.mtime_unit * traits.mtime_unit
    assert (tree / "etc").stat().st_mtime_ns == mtime // traits.mtime_unit * traits.mtime_unit
    assert tree.joinpath("etc/name").samefile(tree / "etc/second") == traits.keeps_hard_links
    with repository.transaction("clone", cloned(place, "trees/one", "trees/two")) as transaction:
        here = transaction.clone()
        source = place.root / place.prefix / "trees/one"
        assert (here / "etc/name").samefile(source / "etc/name") == traits.shares_files
        assert not here.samefile(source)


# --- directories, and what goes ---


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_directories_are_made(place: Place, umask: int) -> None:
    """A directory is 0755 whatever the umask, its parents, too; one that is there stays as it is."""
    repository = place.repository()
    before = os.umask(umask)
    try:
        with repository.transaction("test") as transaction:
            transaction.make_directory(place.prefix + "a/b/c")
            put_tree(transaction, place.prefix + "tree", "old")
        with repository.transaction("again") as transaction:
            transaction.make_directory(place.prefix + "a/b")
            transaction.make_directory(place.prefix + "tree")
    finally:
        os.umask(before)
    for path in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE(place.client(place.prefix + path).lstat().st_mode) == 0o755
    assert seen(place.client(place.prefix + "tree")) == expected("tree", "old")


def test_directories_do_not_replace_anything(place: Place) -> None:
    """A file where a directory should be is named, and stays."""
    repository = place.repository()
    with repository.transaction("before") as transaction:
        transaction.write(place.prefix + "in-the-way", b"file")
    with (
        pytest.raises(RepositoryUnavailable, match="in-the-way is not a directory"),
        repository.transaction("test") as transaction,
    ):
        transaction.make_directory(place.prefix + "in-the-way")
    assert seen(place.client(place.prefix + "in-the-way")) == "file file"


def test_files_and_links_are_removed(place: Place) -> None:
    """They go with the directories that are empty then, when the transaction is published; all else stays."""
    repository = place.repository()
    with repository.transaction("before") as transaction:
        for path in ("a/b/file", "a/link", "c/d/e/dangling", "c/stays", "f/one", "f/two"):
            transaction.link(place.prefix + path, "c") if "link" in path or "dangling" in path else transaction.write(
                place.prefix + path, b"x"
            )
        put_tree(transaction, place.prefix + "tree", "old")
        transaction.link(place.prefix + "to-tree", "tree")
    before = tree_listing(place.client(place.prefix))
    with repository.transaction("remove") as transaction:
        for path in ("a/b/file", "a/link", "c/d/e/dangling", "f/one", "to-tree", "none", "no/such/name", "c/stays/x"):
            transaction.remove(place.prefix + path)
        assert_same_tree(place.client(place.prefix), before)
    for view in (place.client(place.prefix), place.root / place.prefix):
        assert {path.relative_to(view).as_posix() for path in view.rglob("*")} == {
            "c", "c/stays", "f", "f/two", "tree", "tree/etc", "tree/etc/name",
        }  # fmt: skip


def test_calls_count_in_their_order(place: Place) -> None:
    """What is removed can be put again in the same transaction, and the other way round, beside others or alone."""
    repository = place.repository()
    with repository.transaction("before") as transaction:
        transaction.write(place.prefix + "a/b/file", b"old")
        transaction.write(place.prefix + "c/d/file", b"old")
    with repository.transaction("test") as transaction:
        transaction.remove(place.prefix + "a/b/file")
        transaction.write(place.prefix + "a/b/file", b"new")
        transaction.write(place.prefix + "c/d/file", b"new")
        transaction.remove(place.prefix + "c/d/file")
        transaction.write(place.prefix + "e/f/file", b"new")
        transaction.remove(place.prefix + "e/f/file")
    assert seen(place.client(place.prefix + "a/b/file")) == "file new"
    assert [path.name for path in place.client(place.prefix).iterdir()] == ["a"]


def test_whole_trees_are_removed(place: Place) -> None:
    """Trees go whole, whatever is in them; those that are not there are no mistake; their neighbours stay."""
    with_trees(place, "trees/one", "trees/two", "trees/three", "other/one")
    repository = place.repository()
    kept = tree_listing(place.client(place.prefix + "trees/two"))
    names = ["trees/one", "trees/none", "no/such", "trees/three", "trees/one"]
    repository.remove_trees([place.prefix + name for name in names])
    for view in (place.client(place.prefix), place.root / place.prefix):
        assert sorted(path.relative_to(view).as_posix() for path in view.glob("*/*")) == ["other/one", "trees/two"]
        assert_same_tree(view / "trees/two", kept)
    assert repository.recover() is None
    assert not (place.root / ".cvmfs-sync/staging").exists()


@pytest.mark.parametrize("paths", [[], ["trees/none", "no/such"]])
def test_removing_nothing_does_nothing(place: Place, paths: list[str]) -> None:
    """Without a tree that is there the repository is not even opened: somebody else may be at work."""
    with_trees(place, "trees/one")
    with place.held():
        place.repository().remove_trees([place.prefix + path for path in paths])
    assert os.path.lexists(place.client(place.prefix + "trees/one"))


def test_many_trees_are_removed(place: Place) -> None:
    """More trees than the names of which fit into one argument of a command."""
    names = [f"{number:0200d}" for number in range(700)]
    with place.repository().transaction("before") as transaction:
        for name in names:
            transaction.create_tree(f"{place.prefix}trees/{name}")
        transaction.create_tree(f"{place.prefix}trees/stays")
    place.repository().remove_trees([f"{place.prefix}trees/{name}" for name in names])
    assert [path.name for path in place.client(place.prefix + "trees").iterdir()] == ["stays"]


def test_removing_trees_waits_for_somebody_else(place: Place) -> None:
    """While somebody else holds the repository nothing goes; waiting for them has a limit."""
    with_trees(place, "trees/one")
    path = place.prefix + "trees/one"
    slept: list[float] = []
    with place.held() as release:
        with pytest.raises(RepositoryBusy):
            place.repository(wait=11, sleep=slept.append).remove_trees([path])
        assert sum(slept) == pytest.approx(11)
        assert os.path.lexists(place.client(path))
        place.repository(wait=60, sleep=lambda _: release()).remove_trees([path])
    assert not os.path.lexists(place.client(path))


NO_PLAIN_PATHS = [
    "", ".", "..", "name", "/", "/trees/one", "trees/", "trees//one", "trees/./one", "trees/../one", "../trees/one",
    "trees/one/", "trees/one\n", "trees one/x", "trees/one:trees/two", "trees/a=b", "trees/$(id)", "trees/`id`",
    "trees/a;id", "trees/*", "trees/~", "~/one", "-d/one", "trees/-d", "trees/a\\b", "trees/\u00fc", "trees/'a'",
    "a|b/c",
]  # fmt: skip


@pytest.mark.parametrize("path", NO_PLAIN_PATHS)
def test_paths_that_a_shell_would_not_take_for_one(place: Place, path: str) -> None:
    """Only plain paths are cloned or removed, on every backend alike; nothing happens for any other."""
    with_trees(place, "trees/one")
    repository = place.repository()
    before = tree_listing(place.client(place.prefix))
    with pytest.raises(ValueError, match="no path"):
        repository.remove_trees([place.prefix + "trees/one", path])
    for clone in (Clone(path, place.prefix + "trees/two"), Clone(place.prefix + "trees/one", path)):
        with pytest.raises(ValueError, match="no path"), repository.transaction("clone", clone):
            raise AssertionError
    assert_same_tree(place.client(place.prefix), before)
    assert repository.recover() is None


def test_collecting_garbage_loses_nothing(place: Place) -> None:
    """What is published stays; a repository without garbage collection is told as that."""
    repository = place.repository()
    for number in range(3):
        with repository.transaction("test") as transaction:
            put_tree(transaction, place.prefix + "tree", str(number))
    if place.fake:
        with pytest.raises(RepositoryUnavailable, match="without garbage collection") as caught:
            repository.collect_garbage()
        assert "retire.repository_gc" in (caught.value.todo or "")
        text = place.fake.server_conf.read_text()
        place.fake.server_conf.write_text(text.replace("GARBAGE_COLLECTION=false", "GARBAGE_COLLECTION=true"))
    # A real repository may have been made without.
    with suppress(*((RepositoryUnavailable,) if place.kind == "real" else ())):
        repository.collect_garbage()
    assert seen(place.client(place.prefix + "tree")) == expected("tree", "2")


def test_being_the_only_one(place: Place) -> None:
    """One at a time, in this process or another; the lock goes with the process that holds it, however it ends."""
    with place.repository().transaction("before") as transaction:
        transaction.write(place.prefix + "file", b"")
    other_place = Place(place.kind, place.root, place.state / "other", place.prefix, place.fake, place.name)
    with (
        place.repository().exclusive(),
        pytest.raises(RepositoryBusy, match="another cvmfs-sync is at work") as caught,
        other_place.repository().exclusive(),
    ):
        raise AssertionError
    assert caught.value.exit_code == 3
    with PublishingProcess(other_place, "exclusive") as other:
        assert other.enter() == "inside"
        with pytest.raises(RepositoryBusy), place.repository().exclusive():
            raise AssertionError
        assert other.leave() == "left"
        with place.repository().exclusive():
            pass
    with PublishingProcess(other_place, "exclusive") as other:
        assert other.enter() == "inside"
        other.kill()
        with place.repository().exclusive(), place.repository().transaction("after") as transaction:
            transaction.write(place.prefix + "file", b"after")
    assert seen(place.client(place.prefix + "file")) == "file after"
