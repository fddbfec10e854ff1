"""Removing what an image may have filled: any modes, any depth, no link followed.

A directory or a name goes in and is gone afterwards. Every system call names one component relative to a descriptor, so
nothing outside is reached, whatever symbolic links say.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

__all__ = ["remove_at", "remove_tree"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Deeper than any image may be, and within what a process may have open.
_MAX_LEVELS = 400
# A directory that is being emptied: its descriptor, its name in the directory above, that one's descriptor, names left.
_Level = tuple[int, bytes, int, list[bytes]]


def remove_tree(path: Path) -> None:
    """Remove a directory that an image may have filled: any modes, any depth, no link followed. Absence is fine."""
    try:
        parent = os.open(path.parent, _DIRECTORY & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        remove_at(parent, os.fsencode(path.name))
    finally:
        os.close(parent)


def remove_at(parent: int, name: bytes) -> None:
    """Remove `name` in the directory `parent`, whatever it is; absence is fine.

    Iterative in depth, by descriptors of the directories on the way.
    """
    stack: list[_Level] = []
    try:
        _unlink_or_open(parent, name, stack)
    except FileNotFoundError:
        return
    while stack:
        descriptor, directory_name, above, names = stack[-1]
        if names:
            _unlink_or_open(descriptor, names.pop(), stack)
        else:
            stack.pop()
            os.close(descriptor)
            os.rmdir(directory_name, dir_fd=above)


def _unlink_or_open(parent: int, name: bytes, stack: list[_Level]) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    if len(stack) >= _MAX_LEVELS:
        # Nearer to the root, where it is reached with fewer descriptors; the name can't be there.
        top, _, _, names = stack[0]
        moved = b".cvmfs-sync-" + secrets.token_hex(8).encode()
        os.chmod(name, 0o700, dir_fd=parent)
        os.rename(name, moved, src_dir_fd=parent, dst_dir_fd=top)
        names.append(moved)
        return
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    if os.geteuid() != 0:
        os.fchmod(descriptor, 0o700)
    stack.append((descriptor, name, parent, [os.fsencode(entry) for entry in os.listdir(descriptor)]))
