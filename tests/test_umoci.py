"""`unpack` gives what umoci gives: for each rule, for all that an image can hold, and for a real Debian."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cvmfs_sync.cli import main
from cvmfs_sync.removal import remove_tree
from tests.support import (
    Image,
    Node,
    assert_same_tree,
    cli_command,
    images,
    missing,
    require,
    require_root,
    run,
    run_cli,
    tree_listing,
    umoci_unpack,
    write_layout,
)
from tests.support.images import device, fifo, opaque, whiteout
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.test_tree import RULES, WRONG

NOBODY = 65534
Layers = list[list[images.Entry]]

# What the tree of `test_tree.py` does not show: metadata, and names.
MORE: dict[str, Layers] = {
    "modes": [
        [
            f(f"mode-{mode:o}", "x", mode)
            for mode in (0, 0o1, 0o400, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711)
        ]
    ],
    "modes of directories": [[d(f"mode-{mode:o}", mode) for mode in (0, 0o111, 0o300, 0o555, 0o700, 0o1777, 0o2755)]],
    "below closed directories": [[d("a", 0), d("a/b", 0), f("a/b/c", "x", 0)], [f("a/b/d"), whiteout("a/b/c")]],
    "owners": [
        [
            f("a", uid=1, gid=2),
            d("b", uid=3, gid=4),
            s("c", "x", uid=5, gid=6),
            fifo("d", uid=7, gid=8),
            f("e", uid=4_000_000),
        ]
    ],
    "setuid of another owner": [[f("a", "x", 0o6755, uid=1000, gid=1000)]],
    "times": [
        [
            f("a", mtime=0),
            f("b", mtime=1.5),
            f("c", mtime=2_000_000_000.25),
            s("l", "a", mtime=77),
            fifo("p", mtime=78),
            d("d", mtime=79),
        ]
    ],
    "time of a directory that is changed later": [[d("d", mtime=5), f("d/x")], [f("d/y", mtime=6)], [whiteout("d/x")]],
    "metadata of a directory named again": [[d("d", 0o700, mtime=5, uid=1), f("d/x")], [d("d", 0o755, mtime=6, uid=2)]],
    "root": [[d("./", 0o750, mtime=99, uid=3)], [f("x")]],
    "attributes": [
        [f("a", "x", xattrs={"user.one": b"1", "user.two": "ü\n".encode()}), d("d", xattrs={"user.d": b"3"})]
    ],
    "attributes of a directory named again": [[d("d", xattrs={"user.a": b"1"})], [d("d", xattrs={"user.b": b"2"})]],
    "capability": [[f("a", "x", 0o755, xattrs={"security.capability": b"\x01\0\0\x02\0\x20\0\0" + bytes(12)})]],
    "capability of another owner": [
        [f("a", "x", 0o4755, uid=5, xattrs={"security.capability": b"\x01\0\0\x02\0\x20\0\0" + bytes(12)})]
    ],
    "devices": [
        [
            device("null", 1, 3, 0o666),
            device("sda", 8, 0, 0o660, block=True, gid=6),
            device("big", 259, 70_000),
            device("d/zero", 1, 5),
        ]
    ],
    "device replaced": [[device("a", 1, 3), device("b", 1, 3)], [f("a", "x"), whiteout("b")]],
    "fifo": [[fifo("a", 0o640), fifo("d/b", 0o4600)]],
    "links": [
        [
            s("abs", "/etc/passwd"),
            s("rel", "../../x"),
            s("dot", "."),
            s("long", "x/" * 1000),
            s("odd", "a\nb\x1b \udcff"),
        ]
    ],
    "names": [
        [
            f("with space"),
            f("new\nline"),
            f("bytes-\udcff\udcfe"),
            f("ünïcödé"),
            f("-dash"),
            f("tab\t"),
            f("x" * 255),
            f("back\\slash"),
            f("d/" * 60 + "deep"),
        ]
    ],
    "contents": [
        [f("empty"), f("one", "x"), f("block", bytes(512)), f("odd", bytes(513)), f("large", bytes(range(256)) * 9_000)]
    ],
    "hard links in order": [
        [f("b", "B", mtime=3), h("a", "b"), h("z", "a"), h("d/n", "b")],
        [f("b", "B2"), h("y", "z")],
    ],
    "hard linked link": [[s("l", "t", mtime=9), h("m", "l")]],
    "hard linked fifo": [[fifo("p", mtime=9), h("q", "p")]],
    "hard linked device": [[device("n", 1, 3, mtime=9), h("m", "n")]],
    "everything at one path": [
        [f("a", "1")],
        [d("a"), f("a/b")],
        [s("a", "b")],
        [fifo("a")],
        [d("a"), f("a/c")],
        [f("a", "2")],
    ],
    "whiteouts of all kinds": [
        [f("a"), d("b"), f("b/x"), s("c", "a"), fifo("d"), f("e"), h("e2", "e")],
        [whiteout(n) for n in "abcde"],
    ],
    "opaque over opaque": [
        [f("d/1"), f("d/s/1")],
        [opaque("d"), f("d/2"), f("d/s/2")],
        [opaque("d/s"), f("d/s/3")],
        [opaque("d"), f("d/4")],
    ],
    "opaque and a link": [[f("d/x"), s("l", "d")], [opaque("l"), f("l/y"), f("d/z")]],
    "implicit parents through links": [[d("r/s"), s("l", "r")], [f("l/s/t/u")], [d("l/s/t", 0o711, mtime=4)]],
    "nothing": [[]],
}
# umoci takes these and we do not, each for a reason that stands in test_tree.py; all else it refuses, too.
WE_REFUSE = {
    "below a whiteout", "below AUFS's directory", "through a link below a whiteout",
    "up from nowhere", "a whiteout up from nowhere", "a hard link up from nowhere",
}  # fmt: skip
# It removes what is in the directory after it has set its time.
LOSES_TIME = {"a whiteout and its own layer's directory": {"a"}}
# A directory that is named through a link: umoci's time of those above is the clock's.
NAMED_OTHERWISE = {"implicit parents through links": {".", "r", "r/s", "r/s/t/u"}}
IMAGES: dict[str, Layers] = {name: layers for name, (layers, _) in RULES.items()} | MORE
TAGS = {name: str(number) for number, name in enumerate(IMAGES)}


@dataclass(frozen=True)
class Unpacked:
    """All cases, each in a directory named by its tag, by both tools."""

    mine: Path
    theirs: Path


def _image(layers: Layers) -> Image:
    return Image(tuple(images.layer(*each) for each in layers))


@pytest.fixture(scope="module")
def as_root(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """All cases unpacked by root."""
    return _unpack_all(tmp_path_factory.mktemp("rules"), [])


@pytest.fixture(scope="module")
def as_user() -> Iterator[Unpacked]:
    """All cases unpacked by an ordinary user."""
    with _everybodys() as home:
        yield _unpack_all(home, _become_nobody(home), "--rootless")


def _unpack_all(home: Path, prefix: Sequence[str], *options: str) -> Unpacked:
    """One process for all cases of ours, and one for each of umoci's."""
    require("umoci")
    require_root()
    layout = write_layout(home / "layout", {TAGS[name]: _image(layers) for name, layers in IMAGES.items()})
    result = Unpacked(home / "mine", home / "theirs")
    for path in (result.mine, result.theirs):
        path.mkdir()
        shutil.chown(path, NOBODY if prefix else 0)
    environment = {**os.environ, "HOME": str(home)}

    def command(*arguments: str) -> None:
        done = subprocess.run(
            [*prefix, *arguments], env=environment, cwd=home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"

    with ThreadPoolExecutor(2) as pool:
        pending = [
            pool.submit(command, "umoci", "unpack", *options, "--image", f"{layout}:{tag}", f"{result.theirs}/{tag}")
            for tag in TAGS.values()
        ]
        command(sys.executable, "-c", _ALL_OF_OURS, str(layout), str(result.mine), *TAGS.values())
        for each in pending:
            each.result()
    return result


_ALL_OF_OURS = """
import sys
from cvmfs_sync.cli import main
layout, target, *tags = sys.argv[1:]
for tag in tags:
    code = main(["unpack", f"oci:{layout}:{tag}", f"{target}/{tag}"])
    if code:
        sys.exit(f"{tag}: exit code {code}")
"""


def _become_nobody(home: Path) -> list[str]:
    """What to write before a command to run it as an ordinary user; skips where that one cannot read the project."""
    require("setpriv")
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    if subprocess.run([*prefix, *cli_command("--version")], capture_output=True, cwd=home, check=False).returncode:
        missing("an ordinary user cannot read this checkout or its Python")
    return prefix


@contextmanager
def _everybodys() -> Iterator[Path]:
    """A directory of nobody, below directories that everybody may pass."""
    require_root()
    path = Path(tempfile.mkdtemp(prefix="cvmfs-sync-test-", dir="/var/tmp"))
    os.chown(path, NOBODY, NOBODY)
    try:
        yield path
    finally:
        remove_tree(path)


def without_notes(path: Path) -> dict[str, Node]:
    """A tree of umoci's without the attribute in which it notes, rootless, what owner a file should have had."""
    return {
        name: replace(node, xattrs=tuple(each for each in node.xattrs if each[0] != "user.rootlesscontainers"))
        for name, node in tree_listing(path).items()
    }


def assert_equal(name: str, unpacked: Unpacked) -> None:
    """Same trees, but for mode and time of directories that no layer names: umoci takes the clock's and the umask's."""
    layers = IMAGES[name]
    left = tree_listing(unpacked.mine / TAGS[name])
    right = without_notes(unpacked.theirs / TAGS[name] / "rootfs")
    named = {e.path.strip("/").removeprefix("./") or "." for layer in layers for e in layer if e.type == b"5"}
    named -= LOSES_TIME.get(name, set())
    if name in NAMED_OTHERWISE:
        named = left.keys() - NAMED_OTHERWISE[name]
    for path, node in left.items():
        if node.type == "directory" and path not in named:
            for listing in (left, right):
                if path in listing:
                    listing[path] = replace(listing[path], mtime_ns=0, mode=0)
    assert_same_tree(left, right)


@pytest.mark.parametrize("name", IMAGES)
def test_same_as_umoci(name: str, as_root: Unpacked) -> None:
    """As root: paths, types, modes, owners, sizes, times, contents, links, attributes, devices."""
    assert_equal(name, as_root)


@pytest.mark.parametrize("name", IMAGES)
def test_same_as_umoci_rootless(name: str, as_user: Unpacked) -> None:
    """As an ordinary user: devices are empty files, owners are the user's, attributes are those that a user may set."""
    assert_equal(name, as_user)


@pytest.mark.parametrize("name", WRONG)
def test_what_umoci_refuses_is_refused(name: str, tmp_path: Path) -> None:
    """Nothing that umoci refuses is taken; what it takes and we refuse is listed."""
    require("umoci")
    require_root()
    layout = write_layout(tmp_path / "layout", {"t": _image(WRONG[name][0])})
    assert main(["unpack", f"oci:{layout}:t", str(tmp_path / "mine")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]
    theirs = ["umoci", "unpack", "--image", f"{layout}:t", str(tmp_path / "theirs")]
    assert (subprocess.run(theirs, capture_output=True, check=False).returncode == 0) == (name in WE_REFUSE)


def test_debian_as_root(debian_layout: Path, tmp_path: Path) -> None:
    """A real image of several layers, bit for bit."""
    run_cli("unpack", f"oci:{debian_layout}:2", tmp_path / "mine").ok()
    theirs = umoci_unpack(debian_layout, "2", tmp_path / "theirs")
    assert_same_tree(tmp_path / "mine", theirs)


def test_debian_as_a_user(debian_layout: Path) -> None:
    """The same image for an ordinary user, bit for bit what `umoci --rootless` makes."""
    with _everybodys() as home:
        prefix = _become_nobody(home)
        shutil.copytree(debian_layout, home / "layout")
        environment = {"HOME": str(home)}
        ours: list[str | os.PathLike[str]] = [*prefix, *cli_command("unpack", f"oci:{home}/layout:1", home / "mine")]
        run(*ours, env=environment, cwd=home)
        run(*prefix, "umoci", "unpack", "--rootless", "--image", f"{home}/layout:1", home / "theirs", env=environment)
        assert_same_tree(tree_listing(home / "mine"), without_notes(home / "theirs/rootfs"))
