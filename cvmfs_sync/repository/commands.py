"""The one place that runs external commands.

An argument list goes in; exit code and both streams come out, and are logged with the command and its time. What an
exit code means is the caller's business.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvmfs_sync.errors import RepositoryUnavailable

__all__ = ["Completed", "run", "still_running"]

log = logging.getLogger(__name__)
_GRACE_SECONDS = 120.0
_MARK = "CVMFSSYNC_COMMAND"
# The command, and the programs that do its work and may outlive it.
_PROGRAMS = (b"cvmfs_server", b"cvmfs_publish", b"cvmfs_swissknife")


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended.

    Attributes:
        code: Exit code; negative for a signal.
    """

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        streams = [
            f"{name}: {text.strip()[-2000:]!r}"
            for name, text in (("stdout", self.out), ("stderr", self.err))
            if text.strip()
        ]
        return "; ".join([f"{shlex.join(self.argv)} -> {self.code}", *streams])


def run(argv: Sequence[str], *, mark: str | None = None) -> Completed:
    """Run a command to its end, without standard input, in `/`, in a session of its own.

    A session of its own, because Ctrl-C on a terminal must not kill `cvmfs_server` halfway: an interrupt ends it with
    SIGTERM, which it survives in a state that can be aborted, and waits for it.

    Args:
        argv: The command.
        mark: By which `still_running` finds it if we are killed while it runs.

    Raises:
        RepositoryUnavailable: The command does not exist.
    """
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            argv, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, errors="replace", text=True,
            env={**os.environ, _MARK: mark} if mark else None,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise RepositoryUnavailable(
            f"{argv[0]} is not installed",
            found=f"no such command in PATH={os.environ.get('PATH', '')}",
            todo="install the CernVM-FS server package on this machine, or use 'backend: directory'",
        ) from error
    except PermissionError as error:
        raise RepositoryUnavailable(f"{argv[0]} may not be run by this user", found=str(error)) from error
    try:
        out, err = process.communicate()
    except BaseException:
        _end(process)
        raise
    completed = Completed(tuple(argv), process.returncode, out, err, time.monotonic() - started)
    log.debug("%s, %.2f s", completed, completed.seconds)
    return completed


def still_running(mark: str) -> int | None:
    """The process of a `cvmfs_server` that was started with this mark and runs still, as far as /proc shows.

    Daemons that it has started have its environment, too, but not its name.
    """
    wanted = f"{_MARK}={mark}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # gone, or another user's
        if wanted in environment and any(argument.endswith(_PROGRAMS) for argument in arguments[:3]):
            return int(directory.name)
    return None


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
