"""What Apptainer and CernVM-FS need of a tree beyond the image.

A merged tree and an image's configuration go in; the same tree with `.singularity.d`, the directories and files that a
container start mounts over, and the marker of a nested catalog comes out. All of it is looked up inside the tree, so an
image whose `/etc` is a link to the host's changes nothing but itself. Modes are not changed here: `rootfs.SANDBOX` adds
what a reader needs when the tree is written.

What an image brings itself stays, except `.singularity.d`, which describes the image as it was converted here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from cvmfs_sync.image import ImageConfig
from cvmfs_sync.tar import Kind
from cvmfs_sync.tree import Inode, Tree, directory, file, symlink

__all__ = ["CATALOG_MARKER", "GENERATION", "furnish"]

GENERATION = 1
"""Number of this recipe: raised when a change to it has to reach trees that are published already."""

CATALOG_MARKER = b".cvmfscatalog"

_DIRECTORIES = {
    b"dev": 0o755,
    b"proc": 0o755,
    b"sys": 0o755,
    b"tmp": 0o1777,
    b"var/tmp": 0o1777,
    b"root": 0o755,
    b"home": 0o755,
    b"etc": 0o755,
}
_MOUNTED_FILES = (b"etc/hosts", b"etc/resolv.conf")
_LINKS = {
    b"singularity": b".singularity.d/runscript",
    b".run": b".singularity.d/actions/run",
    b".exec": b".singularity.d/actions/exec",
    b".shell": b".singularity.d/actions/shell",
    b".test": b".singularity.d/actions/test",
    b"environment": b".singularity.d/env/90-environment.sh",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def furnish(tree: Tree, config: ImageConfig, *, bind_points: Sequence[str] = ()) -> None:
    """Add to `tree`, in place, what a sandbox needs.

    Args:
        tree: The merged tree of the image.
        config: Its configuration.
        bind_points: Absolute paths that sites without overlay or underlay mount over.
    """
    root = tree.root.children
    assert root is not None  # noqa: S101 - the root is a directory
    _replace_devices(tree)
    root[b".singularity.d"] = _metadata(config)
    for path, mode in _DIRECTORIES.items():
        _ensure_directory(tree, path, mode)
    for point in bind_points:
        _ensure_directory(tree, point.strip("/").encode(), 0o755)
    for path in _MOUNTED_FILES:
        _ensure_file(tree, path)
    for name, target in _LINKS.items():
        root.setdefault(name, symlink(target))
    root[CATALOG_MARKER] = file(b"")


def _replace_devices(tree: Tree) -> None:
    """Empty files for devices: nobody could open one on a nodev mount, and only root could make it."""
    files: dict[int, Inode] = {}
    stack = [tree.root]
    while stack:
        children = stack.pop().children or {}
        for name, inode in children.items():
            if inode.children is not None:
                stack.append(inode)
            elif inode.entry.kind in (Kind.CHARACTER, Kind.BLOCK):
                entry = replace(inode.entry, kind=Kind.FILE, size=0, device=(0, 0))
                made = files.setdefault(id(inode), Inode(entry, content=b""))
                made.shared = inode.shared
                children[name] = made


def _ensure_directory(tree: Tree, path: bytes, mode: int) -> None:
    if tree.resolve(path) is None and (made := tree.make_directory(path)) is not None:
        made.entry = directory(mode).entry


def _ensure_file(tree: Tree, path: bytes) -> None:
    """A regular file that a mount can cover: one that is there, behind a link too, else an empty one."""
    found = tree.resolve(path)
    if found is not None and found.entry.kind is Kind.FILE:
        return
    parent, _, name = path.rpartition(b"/")
    above = tree.make_directory(parent)
    if above is not None and above.children is not None:
        there = above.children.get(name)
        if there is None or there.entry.kind is Kind.SYMLINK:
            above.children[name] = file(b"")


def _metadata(config: ImageConfig) -> Inode:
    """The directory `.singularity.d`."""
    top = directory()
    for name, content in (
        ("actions/exec", _ACTION + 'exec "$@"\n'),
        ("actions/run", _ACTION + 'exec /.singularity.d/runscript "$@"\n'),
        ("actions/shell", _ACTION + _ACTION_SHELL),
        ("actions/start", _ACTION + 'exec /.singularity.d/startscript "$@"\n'),
        ("actions/test", _ACTION + _ACTION_TEST),
        ("env/01-base.sh", _SHEBANG + "# Nothing is set before the image's own environment.\n"),
        ("env/10-docker2singularity.sh", _environment(config.environment)),
        ("env/90-environment.sh", _SHEBANG + "# The image's own changes to the environment would stand here.\n"),
        ("env/95-apps.sh", _SHEBANG + "# The image has no SCIF applications.\n"),
        ("env/99-base.sh", _BASE),
        ("env/99-runtimevars.sh", _RUNTIME_VARIABLES),
        ("runscript", _runscript(config)),
        ("startscript", _SHEBANG + "# Container images have no command of their own for instances.\n"),
    ):
        _put(top, name, file(_utf8(content), 0o755))
    labels = json.dumps(dict(config.labels), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    _put(top, "labels.json", file(_utf8(labels)))
    _put(top, "libs", directory())
    return top


def _utf8(text: str) -> bytes:
    """JSON can hold halves of a surrogate pair, UTF-8 cannot; Go, and so Docker, reads them as U+FFFD."""
    return _SURROGATE.sub("\ufffd", text).encode()


def _put(top: Inode, path: str, inode: Inode) -> None:
    *parents, name = path.encode().split(b"/")
    for parent in parents:
        assert top.children is not None  # noqa: S101 - built here from directories
        top = top.children.setdefault(parent, directory())
    assert top.children is not None  # noqa: S101 - built here from directories
    top.children[name] = inode


_SHEBANG = "#!/bin/sh\n"

_ACTION = (
    _SHEBANG
    + """for cvmfs_sync_script in /.singularity.d/env/*.sh; do
    if [ -f "$cvmfs_sync_script" ]; then
        . "$cvmfs_sync_script"
    fi
done
unset cvmfs_sync_script
"""
)
_ACTION_SHELL = """for shell in "${SINGULARITY_SHELL:-}" /bin/bash /bin/sh; do
    if [ -n "$shell" ] && [ -x "$shell" ]; then
        exec "$shell" "$@"
    fi
done
echo "this image has no shell" >&2
exit 127
"""
_ACTION_TEST = """if [ -x /.singularity.d/test ]; then
    exec /.singularity.d/test "$@"
fi
echo "this image has no test" >&2
"""
_BASE = (
    _SHEBANG
    + """# Libraries that the runtime brings from the host, such as a GPU driver's, are found last.
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
PS1="Apptainer> "
export LD_LIBRARY_PATH PS1
"""
)
_RUNTIME_VARIABLES = (
    _SHEBANG
    + """# What the user asked for on the command line comes before what the image says.
if [ -n "${SING_USER_DEFINED_PREPEND_PATH:-}" ]; then
    PATH="$SING_USER_DEFINED_PREPEND_PATH:$PATH"
fi
if [ -n "${SING_USER_DEFINED_APPEND_PATH:-}" ]; then
    PATH="$PATH:$SING_USER_DEFINED_APPEND_PATH"
fi
if [ -n "${SING_USER_DEFINED_PATH:-}" ]; then
    PATH="$SING_USER_DEFINED_PATH"
fi
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH
export PATH
"""
)


def _environment(environment: Sequence[str]) -> str:
    """PATH as the image says, all else unless the user has set it."""
    lines = [_SHEBANG.rstrip("\n")]
    for item in environment:
        name, _, value = item.partition("=")
        if not _NAME.match(name) or "\0" in value:
            lines.append("# left out, because no shell can export its name: " + json.dumps(name))
        elif name == "PATH":
            lines.append(f"export PATH={shlex.quote(value)}")
        else:
            lines.append(f'[ -n "${{{name}+set}}" ] || export {name}={shlex.quote(value)}')
    return "\n".join(lines) + "\n"


def _runscript(config: ImageConfig) -> str:
    """Entrypoint and Cmd as `docker run` combines them: arguments replace Cmd."""
    entrypoint = shlex.join(config.entrypoint)
    command = shlex.join(config.command)
    lines = [_SHEBANG.rstrip("\n")]
    if command or not entrypoint:
        lines += ["if [ $# -eq 0 ]; then", f"    set -- {command or '/bin/sh'}", "fi"]
    lines.append(f'exec {entrypoint} "$@"' if entrypoint else 'exec "$@"')
    return "\n".join(lines) + "\n"
