"""Running a published sandbox as its own root file system, in a user namespace or a chroot.

A real site does this with `apptainer run /cvmfs/...`. Here it is done with what a Linux has anyway: bubblewrap, or
util-linux's `unshare` and `chroot`. Whether the kernel allows it is tried out on the machine's own root directory, so
that a sandbox that does not work is not taken for a kernel that forbids.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RUN", "Ways", "find_ways"]

RUN = "/.singularity.d/actions/run"
_SECONDS = 60
_SWITCHES = {
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}


@dataclass(frozen=True, slots=True)
class Ways:
    """What this machine allows.

    Attributes:
        allowed: Command that runs another one with a directory as its root, `{}` stands for the directory; empty if
            there is none.
        refusals: Why the ways before it are not open, for people.
    """

    allowed: tuple[str, ...]
    refusals: tuple[str, ...]

    def command(self, root: Path) -> list[str]:
        """The command to run the sandbox in `root`.

        It begins with `env -i`, because the image, not this terminal, shall say what is in the environment.
        """
        return ["env", "-i", *(each.replace("{}", str(root)) for each in self.allowed), RUN]


def find_ways(sandbox: Path) -> Ways:
    """Try each way until one is open.

    Args:
        sandbox: Where the sandbox is; its file system may forbid running anything.
    """
    if os.statvfs(sandbox).f_flag & os.ST_NOEXEC:
        return Ways((), (f"{sandbox} is on a file system mounted noexec; use --keep DIR with a directory on another",))
    refusals: list[str] = []
    for way in _candidates():
        refusal = _refusal(way)
        if refusal is None:
            return Ways(way, tuple(refusals))
        refusals.append(refusal)
    if not refusals:
        refusals.append("neither bwrap, nor both unshare and chroot, are on PATH")
    return Ways((), (*refusals, *_closed_switches()))


def _candidates() -> Iterator[tuple[str, ...]]:
    """The ways, best first; an ordinary user's PATH may not have `chroot`."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    bwrap, unshare, chroot = (shutil.which(name, path=path) for name in ("bwrap", "unshare", "chroot"))
    if bwrap:
        yield (bwrap, "--ro-bind", "{}", "/", "--chdir", "/")
    if unshare and chroot:
        if os.geteuid() == 0:
            yield (unshare, "--mount", chroot, "{}")
        yield (unshare, "--user", "--map-root-user", "--mount", chroot, "{}")
    if chroot and os.geteuid() == 0:
        yield (chroot, "{}")


def _refusal(way: tuple[str, ...]) -> str | None:
    """Why this way is not open, None if it is."""
    trial = [*(each.replace("{}", "/") for each in way), "/bin/sh", "-c", ":"]
    try:
        result = subprocess.run(trial, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if result.returncode == 0:
        return None
    return result.stderr.strip() or f"{way[0]}: exit code {result.returncode}"


def _closed_switches() -> Iterator[str]:
    """Settings of the kernel that forbid user namespaces."""
    for name, closed in _SWITCHES.items():
        try:
            value = Path(name).read_text().strip()
        except OSError:
            continue
        if value == closed:
            yield f"{name} is {value}: the kernel forbids user namespaces"
