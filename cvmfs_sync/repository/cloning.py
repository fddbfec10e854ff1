"""A second tree with the files of a first: directories made anew, all else linked.

Two directories go in; the second, which is empty, is a copy of the first afterwards. No content is read. No file may be
written to later, because it is the first tree's, too; directories are the copy's own.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from cvmfs_sync.beneath import open_directory

__all__ = ["link_tree"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A file has as many names as it can, or a file system that knows no hard links.
_NO_LINK = frozenset({errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EXDEV})


def link_tree(source: Path, target: Path) -> None:
    """Make `target`, an empty directory, a copy of `source` that shares its files.

    Raises:
        OSError: Anything can't be read or made; `target` is in any state then.
    """
    old = os.open(source, _DIRECTORY)
    try:
        new = os.open(target, _DIRECTORY)
        try:
            made = [b""]
            for directory in made:
                made.extend(_link_names(old, new, directory))
            # Children first: making names sets a directory's time.
            for directory in reversed(made):
                _copy_metadata(old, new, directory)
        finally:
            os.close(new)
    finally:
        os.close(old)


def _link_names(old: int, new: int, directory: bytes) -> list[bytes]:
    """Link all files of one directory, and make its directories; gives their paths."""
    directories: list[bytes] = []
    source = open_directory(old, directory) if directory else os.dup(old)
    try:
        target = open_directory(new, directory) if directory else os.dup(new)
        try:
            with os.scandir(source) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        os.mkdir(name, 0o700, dir_fd=target)
                        directories.append(directory + b"/" + name if directory else name)
                    else:
                        _link(source, target, name)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return directories


def _link(source: int, target: int, name: bytes) -> None:
    try:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(source, target, name)


def _copy(source: int, target: int, name: bytes) -> None:
    """What can't be linked is copied; its further names in the same tree become files of their own."""
    ours, theirs = f"/proc/self/fd/{source}/{os.fsdecode(name)}", f"/proc/self/fd/{target}/{os.fsdecode(name)}"
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISFIFO(status.st_mode):
        os.mkfifo(name, 0o600, dir_fd=target)
        shutil.copystat(ours, theirs, follow_symlinks=False)
    else:
        shutil.copy2(ours, theirs, follow_symlinks=False)


def _copy_metadata(old: int, new: int, directory: bytes) -> None:
    source = open_directory(old, directory) if directory else os.dup(old)
    try:
        target = open_directory(new, directory) if directory else os.dup(new)
        try:
            status = os.fstat(source)
            for name in _attributes(source):
                os.setxattr(target, name, os.getxattr(source, name))
            os.fchmod(target, stat.S_IMODE(status.st_mode))
            os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _attributes(descriptor: int) -> list[str]:
    """The extended attributes that an image can have given; none where the file system knows none."""
    try:
        return [name for name in os.listxattr(descriptor) if name.startswith("user.")]
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []
