"""Running commands: the tests' tools, and cvmfs-sync itself."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.warm import Warm

__all__ = ["CliResult", "cli_command", "missing", "require", "require_root", "run", "run_cli", "stop"]


def missing(reason: str) -> NoReturn:
    """Skip the running test with this reason; with `CI=true`, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (a failure, not a skip, because CI=true)", pytrace=False)
    pytest.skip(reason)


def require(*binaries: str) -> None:
    """Go on only where all of these commands are on PATH; else see `missing`."""
    absent = [binary for binary in binaries if shutil.which(binary) is None]
    if absent:
        missing(f"not on PATH: {', '.join(absent)}; see tests/debian-packages.txt")


def require_root() -> None:
    """Go on only as root; else see `missing`."""
    if os.geteuid() != 0:
        missing("only root may do this")


def run(
    *command: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: bytes | None = None,  # noqa: A002
    timeout: float = 240,
) -> str:
    """Run a tool of the test and return its stdout.

    Args:
        *command: Program and arguments.
        env: Added to the environment.
        cwd: Working directory.
        input: For stdin, which is empty else.
        timeout: In seconds.

    Raises:
        AssertionError: With both streams, if it fails.
    """
    result = subprocess.run(
        [os.fspath(each) for each in command],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        input=input or b"",
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    stdout, stderr = result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")
    if result.returncode:
        text = " ".join(os.fspath(each) for each in command)
        raise AssertionError(f"exit code {result.returncode}: {text}\n--- stdout\n{stdout}--- stderr\n{stderr}")
    return stdout


@dataclass(frozen=True, slots=True)
class CliResult:
    """What a run of cvmfs-sync left."""

    rc: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Stdout, which must be one JSON document."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            raise AssertionError(f"no JSON on stdout: {self}") from None

    def ok(self, rc: int = 0) -> CliResult:
        """This result, if its exit code is `rc`; else an AssertionError with both streams."""
        assert self.rc == rc, f"exit code {self.rc}, not {rc}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}"
        return self


def cli_command(*args: str | os.PathLike[str]) -> Sequence[str]:
    """The argv that runs cvmfs-sync with the Python of the tests, for tests that start it themselves."""
    return [sys.executable, "-m", "cvmfs_sync", *(os.fspath(each) for each in args)]


def run_cli(
    *args: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 240,
) -> CliResult:
    """Run cvmfs-sync as a process of its own, as a user would; never raises for its exit code.

    It is forked from one that has imported cvmfs-sync before (`warm`), which takes a tenth of the time of a new one.

    Args:
        *args: After `cvmfs-sync`.
        env: Added to the environment.
        cwd: Working directory.
        timeout: In seconds, after which it is killed.
    """
    # Tracebacks and tables must not depend on the terminal that the tests run in.
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **(env or {})}
    try:
        warm = _idle.pop()
    except IndexError:
        warm = Warm()
    try:
        ended = warm.run(args, environment, cwd=cwd, seconds=timeout)
    except BaseException:
        warm.kill()
        raise
    _idle.append(warm)
    return CliResult(ended.rc, ended.stdout, ended.stderr)


# Those that nobody uses now; several threads may want one at the same time.
_idle: list[Warm] = []


@atexit.register
def _close() -> None:
    for warm in _idle:
        warm.close()


def stop(process: subprocess.Popen[Any], patience: float = 10) -> None:
    """End a server of the tests: by SIGTERM, or SIGKILL after so many seconds."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
