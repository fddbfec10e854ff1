"""A real image of several layers: a minimal Debian from the machine's own package sources, changed with buildah.

Made once a week and machine, and kept in `${XDG_CACHE_HOME:-~/.cache}/cvmfs-sync-tests`. What is there is read-only for
tests.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import missing, require, require_root, run
from tests.support.images import digest_of

__all__ = ["DebianImage", "debian_layout", "debian_rootfs", "python_rootfs"]

TAGS = ("1", "2", "env")
_SETTINGS = {
    "--env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 'GREETING=it\'s "here" & there'],
    "--entrypoint": ['["/usr/local/bin/hello"]'],
    "--cmd": ["world"],
    "--label": ["org.opencontainers.image.title=test", "maintainer=tests of cvmfs-sync"],
    "--workingdir": ["/srv/work"],
}


@dataclass(frozen=True, slots=True)
class DebianImage:
    """Three images that differ little, in a registry and in an OCI layout.

    Attributes:
        host: The registry.
        repository: In the registry.
        layout: OCI layout with the tags "1", "2" and "env"; read-only.
        first: Reference of the image.
        moved: What a later build of it would be: one small layer more.
        env: The first with one environment variable more, and else the same.
    """

    host: str
    repository: str
    layout: Path
    first: str
    moved: str
    env: str


def debian_rootfs() -> Path:
    """A tar file with Debian's essential packages, without `/dev`."""
    return _rootfs("rootfs")


def python_rootfs() -> Path:
    """The same with Debian's Python, what makes virtual environments, and CA certificates."""
    return _rootfs("python", "--include=python3,python3-venv,ca-certificates")


def _rootfs(name: str, *more: str) -> Path:
    require("mmdebstrap")
    require_root()
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release.get("VERSION_CODENAME", "stable").strip('"')
    week = dt.datetime.now(tz=dt.UTC).strftime("%G-%V")

    def make(path: Path) -> None:
        sources = [Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources")]
        present = [str(path) for path in sources if path.exists() and path.stat().st_size]
        options = ["--mode=root", "--variant=essential", "--format=tar", "--quiet", "--skip=output/dev", *more]
        # The machine's package sources may be a snapshot.
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
        try:
            run("mmdebstrap", *options, suite, path, *present, timeout=900)
        except AssertionError as error:
            missing(f"mmdebstrap cannot make a root file system: {str(error)[-2000:]}")

    return _cached(f"{name}-{suite}", f"{week}.tar", make)


def debian_layout(rootfs: Path) -> Path:
    """An OCI layout with the images of `DebianImage` as tags "1", "2" and "env", made with buildah from `rootfs`."""
    require("buildah")
    require_root()
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]

    def make(layout: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="cvmfs-sync-buildah-") as directory:
            _build(Path(directory), rootfs, layout)
        _with_environment(layout, "1", "env", "FLAVOUR=vanilla")

    return _cached("layout", f"{rootfs.parent.name}-{rootfs.stem}-{source}", make)


def _build(work: Path, rootfs: Path, layout: Path) -> None:
    private = ("--root", work / "root", "--runroot", work / "run", "--storage-driver", "vfs")

    def buildah(command: str, *arguments: str | Path) -> str:
        # Without TMPDIR it would leave its large files in /var/tmp.
        environment = {"TMPDIR": str(work), "BUILDAH_ISOLATION": "chroot"}
        return run("buildah", *private, command, *arguments, env=environment, timeout=600).strip()

    base = buildah("from", "scratch")
    buildah("add", "--quiet", base, rootfs, "/")
    for name, values in _SETTINGS.items():
        for value in values:
            buildah("config", name, value, base)
    buildah("commit", "--quiet", "--rm", base, "layer-1")
    steps: list[tuple[str, Callable[[Path], None]]] = [
        ("layer-2", _change),
        ("layer-3", _replace),
        ("layer-4", _update),
    ]
    below = "layer-1"
    for name, step in steps:
        container = buildah("from", "--pull-never", f"localhost/{below}")
        step(Path(buildah("mount", container)))
        buildah("umount", container)
        buildah("commit", "--quiet", "--rm", container, name)
        below = name
    for image, tag in (("layer-3", "1"), ("layer-4", "2")):
        buildah("push", "--quiet", f"localhost/{image}", f"oci:{layout}:{tag}")


def _change(root: Path) -> None:
    """The second layer: new files of all kinds, attributes, hard links, deletions."""
    hello = root / "usr/local/bin/hello"
    hello.write_text('#!/bin/sh\necho "hello ${1:-nobody} from Debian $(cat /etc/debian_version)"\n')
    hello.chmod(0o755)
    (root / "srv/work").mkdir(parents=True)
    share = root / "usr/local/share/test"
    share.mkdir(parents=True)
    for index in range(50):
        (share / f"file-{index:02}").write_text(f"content {index}\n" * index)
    (share / "a name with spaces, ünïcödé and\nnewline").write_text("name\n")
    (share / ("long-" * 40)).write_text("longer than ustar's 100 characters\n")
    os.link(share / "file-10", share / "linked-10")
    os.link(share / "file-10", root / "srv/linked-10")
    (share / "link").symlink_to("file-01")
    (share / "absolute").symlink_to("/etc/debian_version")
    (share / "dangling").symlink_to("../nowhere/at/all")
    os.mkfifo(share / "fifo", 0o640)
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("secret", 0o600), ("nothing", 0o000)):
        (share / name).write_text(name)
        (share / name).chmod(mode)
    (share / "closed").mkdir()
    (share / "closed/inside").write_text("below a directory that its owner cannot read\n")
    (share / "closed").chmod(0o300)
    (share / "sticky").mkdir()
    (share / "sticky").chmod(0o1777)
    os.chown(share / "file-20", 1000, 1001)
    (share / "capable").write_bytes(b"\x7fELF")
    try:
        # cap_net_raw+ep (vfs_cap_data, revision 2).
        os.setxattr(share / "capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    except OSError:
        print("the file system keeps no capabilities: the image has none")  # noqa: T201
    (root / "etc/issue").unlink()
    shutil.rmtree(root / "usr/share/doc")


def _replace(root: Path) -> None:
    """The third layer: overwriting, one type for another, a directory removed and made again."""
    share = root / "usr/local/share/test"
    (share / "file-02").write_text("overwritten\n")
    (share / "file-03").unlink()
    (share / "file-03").mkdir()
    (share / "file-03/was-a-file").write_text("")
    shutil.rmtree(share / "sticky")
    (share / "sticky").symlink_to("closed")
    (share / "link").unlink()
    (share / "link").write_text("was a symbolic link\n")
    (share / "linked-10").unlink()
    os.link(share / "file-11", share / "linked-11")
    (share / "setuid").chmod(0o755)
    licenses = root / "usr/share/common-licenses"
    shutil.rmtree(licenses)
    licenses.mkdir()
    (licenses / "ONLY").write_text("nothing of the lower layer may be here\n")
    (root / "etc/issue").write_text("back again\n")


def _update(root: Path) -> None:
    """The layer by which the moved tag differs."""
    share = root / "usr/local/share/test"
    (share / "file-04").write_text("version 2\n")
    (share / "new-in-2").write_text("new\n")
    (share / "file-05").unlink()


def _with_environment(layout: Path, source: str, tag: str, variable: str) -> None:
    """Add an image to a layout that differs from `source` by one environment variable, and by no layer."""
    index = json.loads((layout / "index.json").read_bytes())
    name = "org.opencontainers.image.ref.name"
    (entry,) = (each for each in index["manifests"] if each["annotations"][name] == source)
    blobs = layout / "blobs/sha256"

    def read(digest: str) -> dict[str, dict[str, list[str]]]:
        document: dict[str, dict[str, list[str]]] = json.loads((blobs / digest.removeprefix("sha256:")).read_bytes())
        return document

    def write(document: object) -> dict[str, str | int]:
        content = json.dumps(document).encode()
        (blobs / digest_of(content).removeprefix("sha256:")).write_bytes(content)
        return {"digest": digest_of(content), "size": len(content)}

    manifest = read(entry["digest"])
    config = read(str(manifest["config"]["digest"]))
    config["config"]["Env"] = [*config["config"]["Env"], variable]
    changed = {**manifest, "config": {**manifest["config"], **write(config)}}
    index["manifests"].append({**entry, **write(changed), "annotations": {name: tag}})
    (layout / "index.json").write_text(json.dumps(index))


def _cached(name: str, version: str, make: Callable[[Path], None]) -> Path:
    """The file or directory that `make` makes, from the cache if it has this version; other versions are deleted."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvmfs-sync-tests" / name
    home.mkdir(parents=True, exist_ok=True)
    final = home / version
    with _locked(home / ".lock"):
        if not final.exists():
            for old in home.iterdir():
                if old.name != ".lock":
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            fresh = home / f"making-{version}"
            make(fresh)
            fresh.rename(final)
    return final


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
