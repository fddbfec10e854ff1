"""Opening a directory beneath another, with no symbolic link on the way.

A descriptor and a relative path go in, a descriptor comes out. Where the kernel has openat2(2) it resolves the whole
path under RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS in one call; elsewhere, and where a container forbids that call, the
path is opened component by component with O_NOFOLLOW. The two agree on everything but speed.
"""

from __future__ import annotations

import ctypes
import errno
import os

__all__ = ["open_directory", "open_directory_stepwise"]

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# One number on all architectures: it came after the tables were unified (Linux 5.6).
_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
# The last two are about this path: longer than PATH_MAX as a whole, or a directory on it was renamed meanwhile.
_STEP_BY_STEP = frozenset({errno.ENOSYS, errno.EPERM, errno.E2BIG, errno.EINVAL, errno.ENAMETOOLONG, errno.EAGAIN})

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW = _How(_FLAGS, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
_SIZE = ctypes.c_size_t(ctypes.sizeof(_HOW))
_how = ctypes.byref(_HOW)


def open_directory(root: int, path: bytes) -> int:
    """Open the directory `path` beneath `root`; the caller closes it.

    Raises:
        OSError: ELOOP or ENOTDIR where a symbolic link or a file is on the way; ENOENT; EXDEV for a path that leads
            out.
    """
    descriptor: int = _libc.syscall(_OPENAT2, root, path, _how, _SIZE)
    if descriptor >= 0:
        return descriptor
    number = ctypes.get_errno()
    if number in _STEP_BY_STEP:
        return open_directory_stepwise(root, path)
    raise OSError(number, os.strerror(number), path)


def open_directory_stepwise(root: int, path: bytes) -> int:
    """The same without openat2."""
    if path.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    current = os.open(b".", _FLAGS, dir_fd=root)
    for name in path.split(b"/"):
        if name == b"..":
            os.close(current)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        try:
            below = os.open(name or b".", _FLAGS, dir_fd=current)
        finally:
            os.close(current)
        current = below
    return current
