"""What makes publishing to CernVM-FS impossible from where this process stands.

Nothing goes in but what /proc tells of the process; an error comes out that says so before a transaction is opened,
where the server would say something else, later, or nothing.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from cvmfs_sync.errors import RepositoryBusy, RepositoryUnavailable

__all__ = ["private_directory", "require_outside", "require_shared_mounts"]

_MOUNTS = Path("/proc/self/mountinfo")
_PRIVATE = re.compile(r"/systemd-private-[0-9a-f]+-([^/]+)/")


def require_outside(root: Path, name: str) -> None:
    """Refuse to work where we keep ourselves from publishing: with the working directory below the mount.

    Leaving it would not help: whoever has started us there is still in it.

    Raises:
        RepositoryBusy: The working directory is in the repository.
    """
    with suppress(OSError):
        here = Path.cwd()
        if here.is_relative_to(os.path.realpath(root)):
            raise RepositoryBusy(
                f"cvmfs-sync was started inside the repository {name}, which can't be published then",
                found=f"working directory {here}",
                todo="leave the directory (`cd`), then sync again",
            )


def require_shared_mounts(name: str) -> None:
    """Refuse to work in a mount namespace of a service's own: the server's remounts would not be seen outside.

    Raises:
        RepositoryUnavailable: The service manager has given this process a /tmp of its own.
    """
    try:
        mounts = _MOUNTS.read_text(errors="replace")
    except OSError:
        return
    found = private_directory(mounts)
    if found is not None:
        directory, unit = found
        raise RepositoryUnavailable(
            f"{name} can't be published from a mount namespace of its own",
            found=f"a {directory} of its own, made for {unit}",
            expected="the mounts of the machine",
            todo=f"set PrivateTmp=no, and nothing else that makes a mount namespace, in {unit}",
        )


def private_directory(mounts: str) -> tuple[str, str] | None:
    """The directory, and the unit that it was made for, which systemd's PrivateTmp= has mounted.

    Args:
        mounts: See proc(5), mountinfo: the fourth field is what is mounted, the fifth is where.
    """
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[4] in ("/tmp", "/var/tmp") and (match := _PRIVATE.search(f"{fields[3]}/")):  # noqa: S108
            return fields[4], re.sub(r"-[A-Za-z0-9]{6}$", "", match[1])
    return None
