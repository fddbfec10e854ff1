"""What a sandbox gets beyond its image, looked up inside the image, and scripts that shells really run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cvmfs_sync.flatten import flatten
from cvmfs_sync.image import ImageConfig
from cvmfs_sync.reference import Digest, Platform
from cvmfs_sync.rootfs import DirectorySink
from cvmfs_sync.sandbox import CATALOG_MARKER, furnish
from cvmfs_sync.tar import Kind
from cvmfs_sync.tree import Tree, merge
from cvmfs_sync.writing import SANDBOX
from tests.support import Image, images, require, run_cli, tree_listing, write_layout
from tests.support.images import device, fifo
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import MemoryLayer, entries_of

SHELLS = [shell for shell in ("dash", "bash", "busybox", "mksh") if shutil.which(shell)]
SCRIPTS = [f"actions/{name}" for name in ("exec", "run", "shell", "start", "test")]
ENVIRONMENT = ["01-base", "10-docker2singularity", "90-environment", "95-apps", "99-base", "99-runtimevars"]
DIRECTORIES = {
    "dev": 0o755,
    "proc": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
    "root": 0o755,
    "home": 0o755,
}
LINKS = {
    "singularity": ".singularity.d/runscript",
    ".run": ".singularity.d/actions/run",
    ".exec": ".singularity.d/actions/exec",
    ".shell": ".singularity.d/actions/shell",
    ".test": ".singularity.d/actions/test",
    "environment": ".singularity.d/env/90-environment.sh",
}


def configuration(
    env: Sequence[str] = (),
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> ImageConfig:
    return ImageConfig(
        digest=Digest("sha256", "0" * 64),
        platform=Platform(),
        diff_ids=(),
        environment=tuple(env),
        entrypoint=tuple(entrypoint),
        command=tuple(cmd),
        labels=labels or {},
    )


def furnished(*entries: images.Entry, config: ImageConfig | None = None, bind_points: Sequence[str] = ()) -> Tree:
    tree = merge([entries_of(entries)])
    furnish(tree, config or configuration(), bind_points=bind_points)
    return tree


def content(tree: Tree, path: str) -> bytes:
    inode = tree.find(path.encode())
    assert inode is not None, path
    assert inode.content is not None, path
    return inode.content


def kinds(tree: Tree) -> dict[str, str]:
    """What is not below `.singularity.d`: its kind, and a link's target."""
    return {
        path.decode(): f"-> {inode.entry.link.decode()}" if inode.entry.link else inode.entry.kind.name.lower()
        for path, inode in tree.walk()
        if not path.startswith(b".singularity.d/")
    }


BARE = kinds(furnished())


def test_an_empty_image_gets_everything() -> None:
    """All directories, files, links and scripts of the facts about sandboxes, with modes, and times of the epoch."""
    tree = furnished(bind_points=["/cvmfs", "/srv", "/deep/er/mount"])
    found = {path.decode(): inode.entry for path, inode in tree.walk()}
    for path, mode in {**DIRECTORIES, "etc": 0o755, "cvmfs": 0o755, "srv": 0o755, "deep/er/mount": 0o755}.items():
        assert (found[path].kind, found[path].mode) == (Kind.DIRECTORY, mode), path
    for path in ("etc/hosts", "etc/resolv.conf", ".cvmfscatalog"):
        assert (found[path].kind, found[path].mode, found[path].size) == (Kind.FILE, 0o644, 0), path
    for path, target in LINKS.items():
        assert (found[path].kind, found[path].link.decode()) == (Kind.SYMLINK, target)
    scripts = [*SCRIPTS, *(f"env/{name}.sh" for name in ENVIRONMENT), "runscript", "startscript"]
    for path in scripts:
        entry = found[f".singularity.d/{path}"]
        assert (entry.kind, entry.mode) == (Kind.FILE, 0o755), path
        assert content(tree, f".singularity.d/{path}").startswith(b"#!/bin/sh\n"), path
    assert found[".singularity.d/libs"].kind is Kind.DIRECTORY
    assert found[".singularity.d/labels.json"].mode == 0o644
    assert {path for path in found if path.startswith(".singularity.d/")} == {
        *(f".singularity.d/{path}" for path in (*scripts, "labels.json", "libs", "actions", "env"))
    }
    assert all((entry.mtime, entry.uid, entry.gid) == (0, 0, 0) for entry in found.values())


def test_furnishing_twice_changes_nothing() -> None:
    """An image that was made from a sandbox gets what an image gets."""
    tree = furnished(config=configuration(["A=b"]), bind_points=["/cvmfs"])
    before = [(path, inode.entry, inode.content) for path, inode in tree.walk()]
    furnish(tree, configuration(["A=b"]), bind_points=["/cvmfs"])
    assert [(path, inode.entry, inode.content) for path, inode in tree.walk()] == before


# Entries of the image; what is there afterwards that an empty image has not, or has otherwise.
KEPT: dict[str, tuple[list[images.Entry], dict[str, str]]] = {
    "a file named singularity": ([f("singularity", "mine")], {"singularity": "file"}),
    "a directory named environment": ([f("environment/x")], {"environment": "directory", "environment/x": "file"}),
    "a link named .run": ([s(".run", "x")], {".run": "-> x"}),
    "a file named .exec": ([f(".exec")], {".exec": "file"}),
    "hosts": ([f("etc/hosts", "127.0.0.1 localhost")], {}),
    "hosts is a link to a file": (
        [f("run/hosts"), s("etc/hosts", "../run/hosts")],
        {"run": "directory", "run/hosts": "file", "etc/hosts": "-> ../run/hosts"},
    ),
    "hosts is an absolute link to a file": (
        [f("run/hosts"), s("etc/hosts", "/run/hosts")],
        {"run": "directory", "run/hosts": "file", "etc/hosts": "-> /run/hosts"},
    ),
    "resolv.conf is a link into nowhere": ([s("etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf")], {}),
    "resolv.conf is a link to the host's": ([s("etc/resolv.conf", "../../../../etc/passwd")], {}),
    "resolv.conf is a link in a circle": ([s("etc/resolv.conf", "resolv.conf")], {}),
    "resolv.conf is a link to a directory": ([d("x"), s("etc/resolv.conf", "../x")], {"x": "directory"}),
    "resolv.conf is a directory": ([d("etc/resolv.conf")], {"etc/resolv.conf": "directory"}),
    "etc is a link": (
        [d("x"), s("etc", "x")],
        {
            "etc": "-> x",
            "x": "directory",
            "x/hosts": "file",
            "x/resolv.conf": "file",
            "etc/hosts": "",
            "etc/resolv.conf": "",
        },
    ),
    "etc is an absolute link into nowhere": (
        [s("etc", "/x/y")],
        {
            "etc": "-> /x/y",
            "x": "directory",
            "x/y": "directory",
            "x/y/hosts": "file",
            "x/y/resolv.conf": "file",
            "etc/hosts": "",
            "etc/resolv.conf": "",
        },
    ),
    "etc is a link beyond the root": (
        [s("etc", "../../x")],
        {
            "etc": "-> ../../x",
            "x": "directory",
            "x/hosts": "file",
            "x/resolv.conf": "file",
            "etc/hosts": "",
            "etc/resolv.conf": "",
        },
    ),
    "etc is a link to the root": (
        [s("etc", "/")],
        {"etc": "-> /", "hosts": "file", "resolv.conf": "file", "etc/hosts": "", "etc/resolv.conf": ""},
    ),
    "etc is a file": ([f("etc")], {"etc": "file", "etc/hosts": "", "etc/resolv.conf": ""}),
    "etc is a link in a circle": ([s("etc", "etc")], {"etc": "-> etc", "etc/hosts": "", "etc/resolv.conf": ""}),
    "tmp is a link": ([s("tmp", "/var/tmp")], {"tmp": "-> /var/tmp"}),
    "tmp is a link into nowhere": (
        [s("tmp", "../../host/tmp")],
        {"tmp": "-> ../../host/tmp", "host": "directory", "host/tmp": "directory"},
    ),
    "tmp is a file": ([f("tmp")], {"tmp": "file"}),
    "var is a link": ([s("var", "x")], {"var": "-> x", "x": "directory", "x/tmp": "directory", "var/tmp": ""}),
    "dev is a link to itself": ([s("dev", "/../../dev")], {"dev": "-> /../../dev"}),
    "dev is a link to elsewhere": ([s("dev", "/x")], {"dev": "-> /x", "x": "directory"}),
    "home is a link": ([s("home", "usr/home")], {"home": "-> usr/home", "usr": "directory", "usr/home": "directory"}),
    "proc is a fifo": ([fifo("proc")], {"proc": "fifo"}),
    "the metadata is a link": ([s(".singularity.d", "/tmp")], {}),
    "the metadata is a file": ([f(".singularity.d")], {}),
    "the metadata is another's": ([f(".singularity.d/runscript", "x"), f(".singularity.d/other")], {}),
    "the marker is a link": ([s(".cvmfscatalog", "/etc/passwd")], {}),
    "the marker is a directory": ([f(".cvmfscatalog/x")], {}),
    "the marker is a hard link": ([f("x"), h(".cvmfscatalog", "x")], {"x": "file"}),
    "the marker is a device": ([device(".cvmfscatalog", 1, 3)], {}),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_the_image_has_stays(name: str) -> None:
    """All paths are looked up inside the image; only `.singularity.d`, the marker and broken links make way."""
    entries, difference = KEPT[name]
    tree = furnished(*entries)
    expected = {path: kind for path, kind in {**BARE, **difference}.items() if kind}
    assert kinds(tree) == expected
    assert content(tree, ".cvmfscatalog") == b""
    assert content(tree, ".singularity.d/runscript") == content(furnished(), ".singularity.d/runscript")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([s("cvmfs", "/x")], {"cvmfs": "-> /x", "x": "directory", "x/a": "directory"}),
        (
            [s("cvmfs", "../../../cvmfs2")],
            {"cvmfs": "-> ../../../cvmfs2", "cvmfs2": "directory", "cvmfs2/a": "directory"},
        ),
        ([f("cvmfs")], {"cvmfs": "file"}),
        ([d("cvmfs", 0o700)], {"cvmfs": "directory", "cvmfs/a": "directory"}),
        ([s("cvmfs", "cvmfs")], {"cvmfs": "-> cvmfs"}),
    ],
)
def test_bind_points(entries: list[images.Entry], expected: dict[str, str]) -> None:
    """Bind points are made where the image's links lead, inside the image, and replace nothing."""
    tree = furnished(*entries, bind_points=["/cvmfs/a"])
    assert kinds(tree) == {**BARE, **expected}
    kept = tree.find(b"cvmfs")
    assert kept is not None
    if kept.entry.mode == 0o700:
        assert kept.layer == 0, "an existing directory keeps its metadata"


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"a": "b", "org.label-schema.build": "x"},
        {"quotes": "\"'`$(id)", "newline": "a\nb", "nul": "\0", "ünïcödé": "✓", "": ""},
        {"half": "\ud800", "other half": "\udc80"},
        {f"label-{number}": "x" * 1000 for number in range(200)},
    ],
)
def test_labels_are_json(labels: Mapping[str, str]) -> None:
    """The image's labels come out of labels.json, whatever they hold; half a surrogate pair as U+FFFD, as Go does."""
    found = json.loads(content(furnished(config=configuration(labels=labels)), ".singularity.d/labels.json").decode())
    assert found == {
        key: value.replace("\ud800", "\ufffd").replace("\udc80", "\ufffd") for key, value in labels.items()
    }


# --- scripts, run -----------------------------------------------------------------------------------------------------


def sandbox(target: Path, config: ImageConfig) -> Path:
    """A sandbox of an empty image on disk."""
    target.mkdir()
    with DirectorySink(target, SANDBOX) as sink:
        flatten([MemoryLayer.of(bytes(1024))], sink, transform=lambda tree: furnish(tree, config))
    return target


def run_inside(
    root: Path, shell: str, *command: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command below `root` with the host's /usr and nothing else of it; /bin/sh is `shell`."""
    require("bwrap")
    binary = shutil.which(shell)
    assert binary is not None
    (root / "bin").mkdir(exist_ok=True)
    for link, target in ((root / "bin/sh", binary), (root / "lib", "usr/lib"), (root / "lib64", "usr/lib64")):
        if not link.is_symlink():
            link.symlink_to(target)
    mounts = ["--bind", str(root), "/", "--ro-bind", "/usr", "/usr"]
    given = [part for name, value in (env or {}).items() for part in ("--setenv", name, value)]
    return subprocess.run(
        ["bwrap", *mounts, "--clearenv", *given, "--chdir", "/", *command],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=60,
    )


def environment_of(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert result.returncode == 0, result
    return dict(item.split("=", 1) for item in result.stdout.split("\0") if item)


AWKWARD = [
    "PATH=/opt/it's here/bin:/usr/bin",
    "PLAIN=value",
    "EMPTY=",
    "QUOTES=it's \"quoted\" and 'so on'",
    "DOLLAR=$HOME ${PATH} $(touch /tmp/evil) `touch /tmp/evil` \\$ \\",
    "NEWLINES=one\ntwo\n\nthree\n",
    "EQUALS=a=b=c",
    "ÜNICODE=not a name",
    "VALUE=ünïcödé \u2028 \x1b[31m \x7f",
    "GLOB=* ? [a] ~ ~root {a,b} !x #y",
    "TRAILING=x ",
    "with-dash=1",
    "with.dot=1",
    "1digit=1",
    "=1",
    "a b=1",
    "$(touch /tmp/evil)=1",
    "x;touch /tmp/evil;=1",
    "NL\ntouch /tmp/evil\n=1",
    "lower_case=1",
    "_under=1",
    "NO_EQUALS",
    "LD_LIBRARY_PATH=/opt/lib",
    "IMAGE_SAYS=image",
    "EMPTY_WINS=image",
]


@pytest.mark.parametrize("shell", SHELLS)
def test_environment_is_the_images(shell: str, tmp_path: Path) -> None:
    """PATH is overwritten, all else set unless the user has; values arrive byte for byte, and none is executed."""
    root = sandbox(tmp_path / "root", configuration(AWKWARD))
    given = {"PATH": "/usr/sbin:/usr/bin", "IMAGE_SAYS": "user", "EMPTY_WINS": "", "USERS_OWN": "kept"}
    found = environment_of(run_inside(root, shell, "/.singularity.d/actions/exec", "/usr/bin/env", "-0", env=given))
    images_own = [item.partition("=") for item in AWKWARD]
    expected = {name: value for name, _, value in images_own if name.isidentifier() and name.isascii()}
    expected |= {
        "IMAGE_SAYS": "user", "EMPTY_WINS": "", "USERS_OWN": "kept", "LD_LIBRARY_PATH": "/opt/lib:/.singularity.d/libs",
        "PS1": "Apptainer> ",
    }  # fmt: skip
    shells_own = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert {name: value for name, value in found.items() if name not in shells_own} == expected
    assert sorted(os.listdir(root / "tmp")) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_path_of_the_user(shell: str, tmp_path: Path) -> None:
    """What the runtime hands over of the user's wishes for PATH goes before, behind or instead of the image's."""
    root = sandbox(tmp_path / "root", configuration(["PATH=/image:/usr/bin"]))
    for given, expected in (
        ({}, "/image:/usr/bin"),
        ({"SING_USER_DEFINED_PREPEND_PATH": "/a"}, "/a:/image:/usr/bin"),
        ({"SING_USER_DEFINED_APPEND_PATH": "/b"}, "/image:/usr/bin:/b"),
        ({"SING_USER_DEFINED_PREPEND_PATH": "/a", "SING_USER_DEFINED_APPEND_PATH": "/b"}, "/a:/image:/usr/bin:/b"),
        ({"SING_USER_DEFINED_PATH": "/c"}, "/c"),
    ):
        found = environment_of(run_inside(root, shell, "/.exec", "/usr/bin/env", "-0", env={"PATH": "/host", **given}))
        assert found["PATH"] == expected
        assert not [name for name in found if name.startswith("SING_USER")]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("entrypoint", "cmd", "arguments", "expected"),
    [
        (["printf", "<%s>"], ["a", "b c"], [], ["a", "b c"]),
        (["printf", "<%s>"], ["a", "b c"], ["d"], ["d"]),
        (["printf", "<%s>"], [], ["d", "e f", ""], ["d", "e f", ""]),
        (["printf", "<%s>", "x"], ["y"], [], ["x", "y"]),
        (["printf", "<%s>", "x"], ["y"], ["z"], ["x", "z"]),
        ([], ["printf", "<%s>", "a"], [], ["a"]),
        ([], ["false"], ["printf", "<%s>", "d"], ["d"]),
        ([], [], ["printf", "<%s>", "d"], ["d"]),
        (
            ["printf", "<%s>"],
            ["$HOME", "`id`", "it's", 'a"b', "\n", "*", "\\", "", "~", "-n", "--"],
            [],
            ["$HOME", "`id`", "it's", 'a"b', "\n", "*", "\\", "", "~", "-n", "--"],
        ),
        (
            ["printf", "<%s>"],
            ["x"],
            ["$HOME", "`id`", "it's", "\n", "*", "-n"],
            ["$HOME", "`id`", "it's", "\n", "*", "-n"],
        ),
        (["sh", "-c", 'printf "<%s>" "$0" "$@"'], ["zero", "one"], [], ["zero", "one"]),
        (["/bin/sh", "-c"], ['printf "<%s>" $((1+1))'], [], ["2"]),
        ([], ["sh", "-c", 'printf "<%s>" "$X"'], [], ["a b"]),
    ],
)
def test_run_is_docker_run(
    shell: str, entrypoint: list[str], cmd: list[str], arguments: list[str], expected: list[str], tmp_path: Path
) -> None:
    """Entrypoint and Cmd give what `docker run IMAGE [ARGUMENTS]` gives, with the image's environment."""
    root = sandbox(tmp_path / "root", configuration(["PATH=/usr/bin:/bin", "X=a b"], entrypoint, cmd))
    for command in ("/.singularity.d/actions/run", "/.run"):
        result = run_inside(root, shell, command, *arguments, env={"PATH": "/nowhere"})
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == "".join(f"<{argument}>" for argument in expected)
    assert os.readlink(root / "singularity") == ".singularity.d/runscript"


@pytest.mark.parametrize("shell", SHELLS)
def test_other_actions(shell: str, tmp_path: Path) -> None:
    """Exit codes pass through; the shell is the user's, the image's, or an error; test and start do no harm."""
    root = sandbox(tmp_path / "root", configuration(["PATH=/usr/bin:/bin"]))

    def code(*command: str, **env: str) -> int:
        return run_inside(root, shell, *command, env=env).returncode

    assert code("/.exec", "sh", "-c", "exit 42") == 42
    assert code("/.run", "sh", "-c", "exit 43") == 43
    assert code("/.shell", "-c", "exit 44") == 44
    assert code("/.shell", "-c", "exit 45", SINGULARITY_SHELL="/bin/sh") == 45
    assert code("/.shell", "-c", "exit 46", SINGULARITY_SHELL="/not/there") == 46
    assert code("/.test") == 0
    assert code("/.singularity.d/actions/start") == 0
    assert run_inside(root, shell, "/.exec", "printf", "%s", "$@", "`").stdout == "$@`"


# --- through the command ----------------------------------------------------------------------------------------------


def test_unpack_with_sandbox(tmp_path: Path) -> None:
    """The option adds it all, makes everything readable, and changes what a nodev, nosuid mount cannot hold."""
    layers = (
        images.layer(
            f("secret", "x", 0o000), d("closed", 0o000), f("closed/in", "y", 0o4711), d("ro", 0o555), f("ro/x"),
            device("null", 1, 3), fifo("pipe", 0o200), f("owned", uid=12345, gid=54321), d("drop", 0o1733),
            f("attributes", xattrs={"user.a": b"1", "security.capability": b"\x01\x00\x00\x02" + bytes(16)}),
            s("etc", "/ho/st"),
        ),
    )  # fmt: skip
    layout = write_layout(tmp_path / "layout", {"t": Image(layers, env=("A=b",), labels={"l": "m"})})
    run_cli("unpack", "--sandbox", f"oci:{layout}:t", tmp_path / "out").ok()
    found = tree_listing(tmp_path / "out")
    assert {path: oct(found[path].mode) for path in ("secret", "closed", "closed/in", "ro", "pipe", "drop")} == {
        "secret": "0o404", "closed": "0o705", "closed/in": "0o4715", "ro": "0o755", "pipe": "0o604", "drop": "0o1737",
    }  # fmt: skip
    assert (found["null"].type, found["null"].size) == ("file", 0)
    assert {(node.uid, node.gid) for node in found.values()} == {(os.geteuid(), os.getegid())}
    assert found["attributes"].xattrs in {(("user.a", b"1"),), ()}
    assert found["ho/st/hosts"].type == "file"
    assert found[CATALOG_MARKER.decode()].size == 0
    assert json.loads((tmp_path / "out/.singularity.d/labels.json").read_bytes()) == {"l": "m"}
    for path, node in found.items():
        readable = 0o705 if node.type == "directory" else 0o404
        assert node.type == "symlink" or node.mode & readable == readable, path
