"""Who is measured: each is a shell script that makes something of an image in a registry.

Every script runs in an empty directory, which is also TMPDIR and HOME, and finds the registry in the page cache.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONTENDERS", "FLOOR", "OURS", "PEER", "Contender", "Target"]

FLOOR = "floor: curl, igzip, tar"
PEER = "skopeo + umoci"
OURS = (sys.executable, "-m", "cvmfs_sync")


@dataclass(frozen=True, slots=True)
class Target:
    """An image in a registry.

    Attributes:
        host: `127.0.0.1:<port>`.
        repository: Its name there.
        tag: Its tag.
        layers: Digests of the layers, bottom to top.
        command: What runs cvmfs-sync.
    """

    host: str
    repository: str
    tag: str
    layers: tuple[str, ...]
    command: tuple[str, ...] = OURS

    @property
    def reference(self) -> str:
        """As tools want it."""
        return f"{self.host}/{self.repository}:{self.tag}"

    @property
    def base(self) -> str:
        """The repository's URL."""
        return f"http://{self.host}/v2/{self.repository}"

    def ours(self, *arguments: str) -> str:
        """A cvmfs-sync command line."""
        return shlex.join([*self.command, *arguments])


@dataclass(frozen=True, slots=True)
class Contender:
    """One way from a registry to files.

    Attributes:
        name: In tables.
        script: Makes the script.
        result: What the script leaves, below its directory: a directory or a file; empty if it leaves nothing.
        binaries: What it needs on PATH.
        root: Whether only root can do it.
    """

    name: str
    script: Callable[[Target], str]
    result: str
    binaries: tuple[str, ...] = ()
    root: bool = False

    def missing(self) -> str:
        """Why it can't run here; empty if it can."""
        absent = [binary for binary in self.binaries if shutil.which(binary) is None]
        if absent:
            return f"not on PATH: {', '.join(absent)}"
        if self.root and os.geteuid() != 0:
            return "only root can do this"
        return ""


def _unpack(target: Target) -> str:
    return f"exec {target.ours('unpack', '--insecure', target.reference, 'tree')}"


def _squash(target: Target) -> str:
    return f"{target.ours('squash', '--insecure', target.reference)} | cat >/dev/null"


def _squash_to_file(target: Target) -> str:
    return f"exec {target.ours('squash', '--insecure', '-o', 'flat.tar', target.reference)}"


def _skopeo_umoci(target: Target) -> str:
    rootless = "" if os.geteuid() == 0 else "--rootless"
    return f"""
        skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://{target.reference} oci:layout:it
        umoci unpack {rootless} --image layout:it bundle
    """


def _podman(target: Target) -> str:
    # In a mount namespace of its own nothing stays mounted. cp copies what Apptainer would: everything.
    commands = f"""
        podman() {{ command podman --root "$PWD/storage" --runroot "$PWD/run" --storage-driver overlay "$@"; }}
        podman pull --quiet --tls-verify=false {target.reference}
        mounted=$(podman image mount {target.reference})
        cp --archive "$mounted" tree
        podman image unmount {target.reference}
    """
    return f"exec unshare --mount bash -euo pipefail -c {shlex.quote(commands)}"


def _tarfile(target: Target) -> str:
    naive = str(Path(__file__).with_name("naive.py"))
    return f"exec {shlex.join([sys.executable, naive, target.base, target.tag, 'tree'])}"


def _crane(target: Target) -> str:
    return f"mkdir tree; crane export --insecure {target.reference} - | tar -x -p --numeric-owner -C tree"


def _floor(target: Target) -> str:
    """Verifies nothing and takes whiteouts for files: no tool that does its work can be much faster this way."""
    lines = [
        f"curl --silent --fail {target.base}/blobs/{digest} | igzip -d -c | tar -x -p --numeric-owner -C tree"
        for digest in target.layers
    ]
    return "\n".join(["mkdir tree", *lines])


CONTENDERS: tuple[Contender, ...] = (
    Contender("cvmfs-sync unpack", _unpack, "tree"),
    Contender("cvmfs-sync squash, pipe", _squash, ""),
    Contender("cvmfs-sync squash -o FILE", _squash_to_file, "flat.tar"),
    Contender(FLOOR, _floor, "tree", ("curl", "igzip", "tar")),
    Contender(PEER, _skopeo_umoci, "bundle/rootfs", ("skopeo", "umoci")),
    Contender("podman pull, mount, cp", _podman, "tree", ("podman", "unshare"), root=True),
    Contender("crane export, tar", _crane, "tree", ("crane", "tar")),
    Contender("Python's tarfile", _tarfile, "tree"),
)
