"""Writing below one directory: as root and as anybody, under every policy, and removing what an image left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvmfs_sync.errors import ImageError, InvalidImage, NoSpace, RepositoryError, RepositoryUnavailable
from cvmfs_sync.flatten import flatten
from cvmfs_sync.removal import remove_tree
from cvmfs_sync.rootfs import DirectorySink, os_errors
from cvmfs_sync.tar import Limits
from cvmfs_sync.writing import EXACT, EXACT_AS_USER, SANDBOX, Policy, exact_policy
from tests.support import cli_command, images, missing, require, require_root, run, tree_listing
from tests.support.images import device, fifo
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import MemoryLayer
from tests.support.trees import Node

NOBODY = 65534
ENTRIES = [
    d("./", 0o555),
    f("plain", "plain", uid=1234, gid=2345, mtime=5),
    d("closed", 0o000),
    f("closed/in", "in", 0o000),
    d("closed/deeper", 0o000),
    f("closed/deeper/in", "in", 0o200),
    s("closed/link", "../plain"),
    h("closed/hard", "plain"),
    d("readonly", 0o555),
    f("readonly/x", "x", 0o444),
    d("readonly/sub", 0o500),
    f("readonly/sub/y", "y"),
    f("setuid", "s", 0o6755),
    d("sticky", 0o1777),
    f("attributes", "a", xattrs={"user.a": b"1", "trusted.b": b"2"}),
    f("late", "l", 0o444, xattrs={"user.a": b"1"}),
    device("null", 1, 3, 0o666),
    fifo("pipe", 0o200),
]


def unpack(target: Path, policy: Policy, *layers: list[images.Entry]) -> DirectorySink:
    target.mkdir()
    made = [MemoryLayer.of(images.layer(*each, compression="none").tar) for each in layers or [ENTRIES]]
    with DirectorySink(target, policy) as sink:
        flatten(made, sink)
    return sink


@contextmanager
def as_user() -> Iterator[Path]:
    """A directory of an ordinary user's, and that user for this process's file system calls; root needs both back."""
    home = Path(tempfile.mkdtemp(prefix="cvmfs-sync-test-", dir="/var/tmp"))
    if os.geteuid() != 0:
        yield home
        remove_tree(home)
        return
    os.chown(home, NOBODY, NOBODY)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield home
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        remove_tree(home)


def modes(listing: dict[str, Node]) -> dict[str, str]:
    return {path: oct(node.mode) for path, node in listing.items() if node.type != "symlink"}


WANTED = {
    ".": "0o555", "closed": "0o0", "closed/in": "0o0", "closed/deeper": "0o0", "closed/deeper/in": "0o200",
    "closed/hard": "0o644", "readonly": "0o555", "readonly/x": "0o444", "readonly/sub": "0o500",
    "readonly/sub/y": "0o644", "plain": "0o644", "setuid": "0o6755", "sticky": "0o1777", "attributes": "0o644",
    "late": "0o444", "null": "0o666", "pipe": "0o200",
}  # fmt: skip


def test_exact(tmp_path: Path) -> None:
    """Root writes all that the image says."""
    require_root()
    sink = unpack(tmp_path / "out", EXACT)
    found = tree_listing(tmp_path / "out")
    assert modes(found) == WANTED
    assert (found["plain"].uid, found["plain"].gid, found["plain"].mtime_ns) == (1234, 2345, 5 * 10**9)
    assert (found["null"].type, found["null"].device) == ("char", (1, 3))
    assert found["plain"].links == ("closed/hard", "plain")
    if sink.dropped_xattrs == 0:
        assert found["attributes"].xattrs == (("trusted.b", b"2"), ("user.a", b"1"))


def test_exact_as_user() -> None:
    """Anybody writes the same below directories that they close to themselves; no owners, no devices."""
    require_root()
    with as_user() as home:
        unpack(home / "out", EXACT_AS_USER)
        os.seteuid(0)
        found = tree_listing(home / "out")
        os.seteuid(NOBODY)
        assert modes(found) == WANTED
        assert {(node.uid, node.gid) for node in found.values()} == {(NOBODY, NOBODY)}
        assert (found["null"].type, found["null"].size) == ("file", 0)
        assert [name for name, _ in found["attributes"].xattrs] in (["user.a"], [])
        remove_tree(home / "out")
        assert os.listdir(home) == []


@pytest.mark.parametrize("root", [True, False])
def test_sandbox(root: bool, tmp_path: Path) -> None:
    """A sandbox is readable by all, whoever writes it, and the same for both but for its owner."""
    require_root()
    if root:
        unpack(tmp_path / "out", SANDBOX)
        found, me = tree_listing(tmp_path / "out"), os.getuid()
    else:
        with as_user() as home:
            unpack(home / "out", SANDBOX)
            found, me = tree_listing(home / "out"), NOBODY
    for path, node in found.items():
        readable = 0o705 if node.type == "directory" else 0o404
        assert node.type == "symlink" or node.mode & readable == readable, path
        assert (node.uid, node.gid) == (me, me)
    assert found["closed"].mode == 0o705
    assert found["setuid"].mode == 0o6755
    assert found["null"].type == "file"
    assert [name for name, _ in found["attributes"].xattrs] in (["user.a"], [])


def test_policy_for_this_process() -> None:
    """Root gets all, others what they may."""
    require_root()
    assert exact_policy() is EXACT
    with as_user():
        assert exact_policy() is EXACT_AS_USER


def test_the_command_as_a_user() -> None:
    """An unpack by an ordinary user into their directory works with a root of mode 0555, and leaves nothing beside."""
    require_root()
    require("setpriv")
    home = Path(tempfile.mkdtemp(prefix="cvmfs-sync-test-", dir="/var/tmp"))
    try:
        os.chown(home, NOBODY, NOBODY)
        images.write_layout(home / "layout", {"t": images.Image((images.layer(*ENTRIES),))})
        prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
        if subprocess.run([*prefix, *cli_command("--version")], cwd=home, capture_output=True, check=False).returncode:
            missing("an ordinary user cannot read this checkout or its Python")
        run(*prefix, *cli_command("unpack", f"oci:{home}/layout:t", home / "out"), cwd=home)
        assert modes(tree_listing(home / "out")) == WANTED
        assert sorted(os.listdir(home)) == ["layout", "out"]
    finally:
        remove_tree(home)


def test_deep_trees(tmp_path: Path) -> None:
    """Directories as deep as the limit allows, through more of them than descriptors are kept open."""
    deep = "d/" * 200
    wide = [f(f"w/{number}/{'e/' * 100}x", str(number)) for number in range(30)]
    unpack(tmp_path / "out", EXACT_AS_USER, [f(f"{deep}x", "deep"), *wide, h(f"{deep}y", f"{deep}x")])
    assert (tmp_path / "out" / deep / "y").read_text() == "deep"
    assert (tmp_path / "out/w/17" / ("e/" * 100) / "x").read_text() == "17"


def test_a_raised_limit_for_depth_has_no_other_below_it() -> None:
    """What an operator allows works: thousands of levels, deeper than Python's recursion and PATH_MAX."""
    deep = "d/" * 1500
    home = Path(tempfile.mkdtemp(prefix="cvmfs-sync-test-"))
    try:
        layer = MemoryLayer.of(images.layer(f(f"{deep}x", "deep"), compression="none").tar)
        with DirectorySink(home, EXACT_AS_USER) as sink:
            flatten([layer], sink, limits=Limits(depth=2000))
        found = subprocess.run(["find", ".", "-name", "x", "-printf", "%d"], cwd=home, capture_output=True, check=True)
        assert found.stdout == b"1501"
    finally:
        remove_tree(home)


def test_nothing_is_written_through_a_link_that_is_there(tmp_path: Path) -> None:
    """Links that somebody else puts into the target while it is written are not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").symlink_to(outside)
    with pytest.raises(OSError), DirectorySink(target, EXACT_AS_USER) as sink:  # noqa: PT011 - which one is the kernel's
        flatten([MemoryLayer.of(images.layer(f("a/x"), compression="none").tar)], sink)
    assert os.listdir(outside) == []


def test_refused_attributes_are_counted(tmp_path: Path) -> None:
    """An attribute that the file system refuses is dropped and counted, and the file stays."""
    sink = unpack(tmp_path / "out", EXACT, [f("x", "x", xattrs={"nonsense.name": b"1"}, uid=os.getuid())])
    assert sink.dropped_xattrs == 1
    assert (tmp_path / "out/x").read_text() == "x"


@pytest.mark.parametrize("policy", [EXACT, SANDBOX])
@pytest.mark.parametrize("number", [(4096, 0), (0, 1 << 20), (0o7777777, 0o7777777)])
def test_devices_that_linux_cannot_have_are_refused(policy: Policy, number: tuple[int, int], tmp_path: Path) -> None:
    """A number beyond 12 and 20 bits would become another device's: that image is wrong, whoever unpacks it."""
    with pytest.raises(InvalidImage, match="device number"):
        unpack(tmp_path / "out", policy, [device("x", *number)])


# --- removing ---------------------------------------------------------------------------------------------------------


def _hostile(root: Path, outside: Path) -> None:
    """Whatever an image may leave: closed directories at every level, links to outside, odd names, all types."""
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/c/file").write_text("x")
    (root / "link").symlink_to(outside)
    (root / "a/link").symlink_to(outside / "file")
    (root / "a/b/dangling").symlink_to("/no/where")
    os.mkfifo(root / "a/pipe")
    (root / "new\nline").write_text("x")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("x")
    (root / "a/b/c").chmod(0)
    (root / "a/b").chmod(0o111)
    (root / "a").chmod(0o555)
    root.chmod(0o000)


@pytest.mark.parametrize("root", [True, False])
def test_remove_tree_removes_anything_and_nothing_else(root: bool, tmp_path: Path) -> None:
    """Closed directories are no obstacle, and no link is followed."""

    def check(home: Path) -> None:
        outside = home / "outside"
        outside.mkdir()
        (outside / "file").write_text("stays")
        outside.chmod(0o500)
        before = tree_listing(outside)
        (home / "tree").mkdir()
        _hostile(home / "tree", outside)
        remove_tree(home / "tree")
        assert os.listdir(home) == ["outside"]
        assert tree_listing(outside) == before

    if root:
        check(tmp_path)
    else:
        with as_user() as home:
            check(home)


@pytest.mark.parametrize("depth", [300, 1500])
def test_remove_tree_of_any_depth(depth: int) -> None:
    """Deeper than any path can say, with as few descriptors as a daemon may have."""
    # Not below tmp_path: if this fails, pytest cannot remove it either.
    place = Path(tempfile.mkdtemp(prefix="cvmfs-sync-test-"))
    script = f"""
import os, resource
from pathlib import Path
from cvmfs_sync.removal import remove_tree
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
os.chdir({str(place)!r})
os.mkdir("tree")
os.chdir("tree")
for _ in range({depth}):
    os.mkdir("d" * 20)
    open("file", "w").close()
    os.chdir("d" * 20)
remove_tree(Path({str(place)!r}) / "tree")
"""
    try:
        run(sys.executable, "-c", script, cwd=Path.cwd())
        assert os.listdir(place) == []
    finally:
        run("rm", "-rf", place)


def test_remove_tree_of_what_is_no_directory(tmp_path: Path) -> None:
    """A file or link is removed itself; what is not there is no error."""
    (tmp_path / "target").write_text("stays")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file", "missing", "no/parent"):
        remove_tree(tmp_path / name)
    assert os.listdir(tmp_path) == ["target"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "expected", "text"),
    [
        (errno.ENOSPC, NoSpace, "no space left to write the thing"),
        (errno.EDQUOT, NoSpace, "no space left to write the thing"),
        (errno.EROFS, RepositoryUnavailable, "cannot write the thing"),
        (errno.EACCES, RepositoryUnavailable, "cannot write the thing"),
        (errno.EPERM, RepositoryUnavailable, "cannot write the thing"),
        (errno.EIO, RepositoryUnavailable, "cannot write the thing"),
        (errno.EMLINK, InvalidImage, "the file system refuses the thing"),
        (errno.ENAMETOOLONG, InvalidImage, "the file system refuses the thing"),
        (errno.EILSEQ, InvalidImage, "the file system refuses the thing"),
        (errno.EFBIG, InvalidImage, "the file system refuses the thing"),
    ],
)
def test_os_errors(number: int, expected: type[Exception], text: str) -> None:
    """Each error of the system ends what it should end: the image's own ends the image, the machine's the cycle."""
    with pytest.raises(expected) as caught, os_errors("the thing"):
        raise OSError(number, os.strerror(number), "a\nb")
    assert text in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert "a\\nb" in str(caught.value)
    assert isinstance(caught.value, ImageError) == (expected is InvalidImage)


@pytest.mark.parametrize("name", ["a", b"a", 7, None])
def test_os_errors_with_any_name(name: str | bytes | int | None) -> None:
    """Python names files as text, bytes, descriptors or not at all."""
    with pytest.raises(NoSpace), os_errors("x"):
        raise OSError(errno.ENOSPC, "full", name)


def test_os_errors_leaves_our_own_alone() -> None:
    """What already says what to do passes unchanged."""
    with pytest.raises(InvalidImage, match="mine"), os_errors("x"):
        raise InvalidImage("mine")


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    require_root()
    path.mkdir()
    try:
        run("mount", "-t", "tmpfs", *options, "tmpfs", path)
    except AssertionError as error:
        missing(f"this machine does not let tests mount: {str(error)[-200:]}")
    try:
        yield path
    finally:
        run("umount", path)


FAILURES: dict[str, tuple[tuple[str, ...], Callable[[Path], object], type[RepositoryError]]] = {
    "too many bytes": (("-o", "size=64k"), lambda p: unpack(p / "out", EXACT, [f("x", bytes(300_000))]), NoSpace),
    "too many files": (
        ("-o", "nr_inodes=20"),
        lambda p: unpack(p / "out", EXACT, [f(str(number)) for number in range(50)]),
        NoSpace,
    ),
    "read-only": (("-o", "ro"), lambda p: unpack(p / "out", EXACT, [f("x")]), RepositoryUnavailable),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_real_file_system_that_refuses(name: str, tmp_path: Path) -> None:
    """A full or read-only file system ends the cycle with what to do, not the image."""
    options, work, expected = FAILURES[name]
    with mounted(tmp_path / "mount", *options) as path, pytest.raises(expected, match="out"), os_errors("out"):
        work(path)


def test_too_many_links_to_one_file_is_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMLINK fails that image: ext4 takes 65,000 links, others more or fewer."""

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InvalidImage, match="Too many links"), os_errors("out"):
        unpack(tmp_path / "out", EXACT_AS_USER, [f("a"), h("b", "a")])


def test_descriptors_are_closed(tmp_path: Path) -> None:
    """Neither a whole run nor one that fails leaves a descriptor open."""
    before = os.listdir("/proc/self/fd")
    unpack(tmp_path / "one", EXACT_AS_USER)
    with pytest.raises(InvalidImage):
        unpack(tmp_path / "two", EXACT_AS_USER, [f("a/b/c"), h("d", "missing")])
    assert len(os.listdir("/proc/self/fd")) == len(before)
    remove_tree(tmp_path / "one")
    assert len(os.listdir("/proc/self/fd")) == len(before)
