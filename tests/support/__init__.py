"""What the tests share; the fixtures in `tests/conftest.py` set it up.

Everything is importable from here, and from the module that has it: `images` builds images byte by byte, `registry`
runs a real registry, `debian` makes a real image, `trees` compares, `commands` runs cvmfs-sync and tools, `cvmfs` is
the fake server. Not from here: `dockersave` writes archives, `podman` runs an engine,
`tokens` is a token server for the registry, and makes certificates.
"""

from __future__ import annotations

from tests.support.commands import CliResult, cli_command, missing, require, require_root, run, run_cli
from tests.support.cvmfs import FakeCvmfs
from tests.support.debian import DebianImage
from tests.support.images import (
    Entry,
    Image,
    Index,
    Layer,
    device,
    digest_of,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    layer_of_tar,
    opaque,
    symlink,
    whiteout,
    write_layout,
)
from tests.support.registry import RegistryServer, start_docker_registry
from tests.support.trees import Node, assert_same_tree, differences, tree_listing, umoci_unpack

__all__ = [
    "CliResult",
    "DebianImage",
    "Entry",
    "FakeCvmfs",
    "Image",
    "Index",
    "Layer",
    "Node",
    "RegistryServer",
    "assert_same_tree",
    "cli_command",
    "device",
    "differences",
    "digest_of",
    "directory",
    "fifo",
    "file",
    "hardlink",
    "layer",
    "layer_of_tar",
    "missing",
    "opaque",
    "require",
    "require_root",
    "run",
    "run_cli",
    "start_docker_registry",
    "symlink",
    "tree_listing",
    "umoci_unpack",
    "whiteout",
    "write_layout",
]
