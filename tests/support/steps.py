"""Runs of cvmfs-sync that kill themselves at their n-th writing step, and count their steps.

A step is a call that changes something outside the process: every audit event of opening a file for writing, making,
renaming, linking and removing names, changing metadata, and starting a command (PEP 578); and, as these raise no event,
`os.write`, `os.fsync`, `os.mkfifo`, `os.mknod`, `syncfs`, `renameat2` and each statement and commit of SQLite. SIGKILL
comes *before* the step is done. Not seen: the text of lock files, which means nothing, and the inside of SQLite.
"""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from tests.support.commands import CliResult
from tests.support.warm import Warm

__all__ = ["Run", "Runs", "count"]

_EVENTS = frozenset({
    "os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.utime",
    "os.truncate", "os.setxattr", "os.removexattr", "subprocess.Popen", "sqlite3.connect",
})  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run.

    Attributes:
        rc: Exit code, -9 if it was killed.
        steps: What it did, or was about to do when it was killed, in order.
    """

    rc: int
    stdout: str
    stderr: str
    steps: tuple[str, ...]

    @property
    def cli(self) -> CliResult:
        """The same as a `CliResult`."""
        return CliResult(self.rc, self.stdout, self.stderr)


class Runs:
    """A process that runs cvmfs-sync as often as it is asked; see `warm`.

    Args:
        environment: Added to that of the tests.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **(environment or {})}
        self._warm = Warm()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._warm.close()

    def run(self, *arguments: str | os.PathLike[str], kill_at: int = 0, kill_after: float = 0) -> Run:
        """Run `cvmfs-sync ARGUMENTS` to its end.

        Args:
            *arguments: The command line.
            kill_at: Kill it before its step of this number, from 1 on.
            kill_after: Kill it after so many seconds.
        """
        ended = self._warm.run(arguments, self._environment, seconds=kill_after, kill_at=kill_at)
        return Run(ended.rc, ended.stdout, ended.stderr, ended.steps)


def count(kill_at: int, log: int) -> None:
    """Count steps in this process from now on.

    Args:
        kill_at: The step before which to die; 0 for none.
        log: Descriptor to which each is written, a line each.
    """
    write = os.write
    numbers = itertools.count(1)  # of several threads, no two get the same one

    def step(what: str) -> None:
        number = next(numbers)
        line = what.replace("\n", " ")
        write(log, f"{line}\n".encode(errors="replace"))
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            step(f"{event} {arguments[:2]!r}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            step(f"open {arguments[0]!r}")

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            step(f"{name} {arguments[0]!r}" if name != "write" else f"write {arguments[0]} {len(arguments[1])} bytes")
            return function(*arguments, **keywords)

        return call

    for name in ("write", "fsync", "mkfifo", "mknod"):
        setattr(os, name, wrapped(name, getattr(os, name)))
    from cvmfs_sync.repository import files

    for name in ("syncfs", "renameat2"):
        setattr(files._libc, name, wrapped(name, getattr(files._libc, name)))
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *more: Any) -> sqlite3.Cursor:
            if not sql.startswith("SELECT"):
                step(f"sqlite {sql[:40]}")
            return super().execute(sql, *more)

        def executescript(self, script: str) -> sqlite3.Cursor:
            step(f"sqlite {script[:40]}")
            return super().executescript(script)

        def __exit__(self, *details: Any) -> Literal[False]:  # noqa: PYI036
            step("sqlite commit")
            return super().__exit__(*details)

    sqlite3.connect = lambda *a, **k: connect(*a, factory=Connection, **k)  # type: ignore[assignment]
    sys.addaudithook(audit)
