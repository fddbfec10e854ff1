"""Trees of files as values, and what differs between two of them."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from tests.support.commands import require, require_root, run

__all__ = ["ATTRIBUTES", "Node", "assert_same_tree", "differences", "tree_listing", "umoci_unpack"]

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One path of a tree.

    Attributes:
        type: file, directory, symlink, char, block, fifo or socket.
        mode: Permission bits with setuid, setgid and sticky; 0o777 for symbolic links.
        size: In bytes; 0 for everything but files.
        digest: sha256 of a file's content, "" for the others.
        link: A symbolic link's target.
        device: Major and minor number of a device.
        links: All paths of the tree that are this very file, sorted; empty where there is only one.
    """

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    digest: str
    link: str
    device: tuple[int, int]
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...]


ATTRIBUTES = frozenset(field.name for field in fields(Node))


def tree_listing(root: Path) -> dict[str, Node]:
    """Every path below `root`, relative to it, with "." for itself.

    Names that are not UTF-8 come with surrogate escapes, as Python has them.
    """
    found: dict[str, os.stat_result] = {".": root.lstat()}
    pending = [("", root)]
    while pending:
        prefix, directory = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                found[prefix + entry.name] = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append((f"{prefix}{entry.name}/", Path(entry.path)))
    groups: dict[tuple[int, int], list[str]] = {}
    for path, status in sorted(found.items()):
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            groups.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {
        path: _node(root / path, status, groups.get((status.st_dev, status.st_ino), ()))
        for path, status in sorted(found.items())
    }


def _node(path: Path, status: os.stat_result, group: Collection[str]) -> Node:
    kind = _TYPES[stat.S_IFMT(status.st_mode)]
    digest = ""
    if kind == "file":
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return Node(
        type=kind,
        mode=0o777 if kind == "symlink" else stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind == "file" else 0,
        mtime_ns=status.st_mtime_ns,
        digest=digest,
        link=os.readlink(path) if kind == "symlink" else "",
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in {"char", "block"} else (0, 0),
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
        links=tuple(group) if len(group) > 1 else (),
    )


def differences(
    a: Path | Mapping[str, Node],
    b: Path | Mapping[str, Node],
    ignore: Collection[str] = (),
    ignore_paths: Collection[str] = (),
) -> list[str]:
    """One line for each path that differs, sorted; see `assert_same_tree`."""
    unknown = set(ignore) - ATTRIBUTES
    if unknown:
        raise ValueError(f"no attributes of a Node: {sorted(unknown)}; there are {sorted(ATTRIBUTES)}")
    compared = [name for name in Node.__dataclass_fields__ if name not in ignore]
    left, right = (tree_listing(each) if isinstance(each, Path) else each for each in (a, b))
    lines = []
    for path in sorted({*left, *right}):
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in ignore_paths):
            continue
        one, other = left.get(path), right.get(path)
        if one is None or other is None:
            kind = (one or other or left["."]).type
            lines.append(f"{path!r}: {kind} only in {'the second' if one is None else 'the first'}")
            continue
        changed = [name for name in compared if getattr(one, name) != getattr(other, name)]
        if changed:
            lines.append(f"{path!r}: " + ", ".join(f"{n} {_show(n, one)} != {_show(n, other)}" for n in changed))
    return lines


def assert_same_tree(
    a: Path | Mapping[str, Node],
    b: Path | Mapping[str, Node],
    ignore: Collection[str] = (),
    ignore_paths: Collection[str] = (),
) -> None:
    """Fail with a readable list if two trees differ.

    Args:
        a: A directory, or what `tree_listing` gave for it.
        b: The other.
        ignore: Names of `Node`'s attributes that may differ.
        ignore_paths: Shell patterns (`*` matches `/`, too) of relative paths that may differ or be missing.
    """
    lines = differences(a, b, ignore, ignore_paths)
    shown = "\n".join(lines[:40]) + (f"\n... and {len(lines) - 40} more" if len(lines) > 40 else "")
    assert not lines, f"{len(lines)} paths differ:\n{shown}"


def _show(name: str, node: Node) -> str:
    value = getattr(node, name)
    return oct(value) if name == "mode" else repr(value)


def umoci_unpack(layout: Path, tag: str, destination: Path) -> Path:
    """Unpack an image of an OCI layout with umoci, as root: the reference for what a tree should be.

    Args:
        layout: The layout's directory.
        tag: Its tag there.
        destination: Made anew; its parent must exist.

    Returns:
        The root file system, below `destination`.
    """
    require("umoci")
    require_root()
    if destination.exists():
        shutil.rmtree(destination)
    run("umoci", "unpack", "--image", f"{layout}:{tag}", destination)
    return destination / "rootfs"
