"""Runs of cvmfs-sync that need not begin with a second of importing it.

A process imports all of cvmfs-sync once, and forks for each run: `Warm` talks to it. A run is a process of its own with
its own arguments, environment, working directory, exit code, and pipes for its output; what it executes is `python -m
cvmfs_sync`. What starts with the interpreter, such as `PYTHON*` variables, is the same for all of them.

`serve` is that process: JSON requests on stdin, a line each; answers on stdout.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

__all__ = ["Ended", "Warm", "serve"]

_ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended.

    Attributes:
        rc: Exit code; minus the number of the signal that killed it.
        steps: If they were counted: see `steps`.
    """

    rc: int
    stdout: str
    stderr: str
    steps: tuple[str, ...]


class Warm:
    """A process that runs cvmfs-sync as often as it is asked, one run at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.support.warm import serve; serve()"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def kill(self) -> None:
        """End it in the middle of a run."""
        self._process.kill()
        self.close()

    def run(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        environment: Mapping[str, str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        seconds: float = 0,
        kill_at: int | None = None,
    ) -> Ended:
        """Run `cvmfs-sync ARGUMENTS` to its end.

        Args:
            arguments: The command line.
            environment: All of it.
            cwd: Working directory; that of this process if None.
            seconds: Kill it after so many; 0 for never.
            kill_at: Count its steps, and kill it before that of this number; see `steps`. None to let it be.
        """
        assert self._process.stdin
        assert self._process.stdout
        request = {
            "arguments": [os.fspath(argument) for argument in arguments],
            "environment": dict(environment),
            "cwd": os.fspath(cwd or os.getcwd()),
            "seconds": seconds,
            "kill_at": kill_at,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(answer["rc"], answer["stdout"], answer["stderr"], tuple(answer["steps"]))


def _child(request: Mapping[str, Any], log: int, out: int, err: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    # As the interpreter makes them: those that were inherited are of other files.
    sys.stdin, sys.stdout = (os.fdopen(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w")))
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    code: object = 70
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        time.tzset()
        tempfile.tempdir = None  # where TMPDIR says
        sys.argv = ["cvmfs-sync", *request["arguments"]]
        if request["kill_at"] is not None:
            from tests.support import steps

            steps.count(request["kill_at"], log)
        runpy.run_module("cvmfs_sync", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 -- the process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def _wait(process: int, seconds: float, pipes: Sequence[int]) -> tuple[int, list[str]]:
    """Exit code of a child, which is killed after so many seconds, and what it has written into these pipes.

    What its own children write after its end is nobody's.
    """
    written = {pipe: bytearray() for pipe in pipes}
    deadline = time.monotonic() + seconds if seconds else None
    watched = os.pidfd_open(process)
    for pipe in pipes:
        os.set_blocking(pipe, False)
    try:
        waiting = {watched, *pipes}
        while watched in waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = select.select(waiting, [], [], left)[0]
            if not ready:
                os.kill(process, signal.SIGKILL)
                deadline = None
            if watched in ready:
                # All that it has written is there.
                waiting.remove(watched)
                ready = [pipe for pipe in pipes if pipe in waiting]
            for pipe in ready:
                if not _drain(pipe, written[pipe]):
                    waiting.remove(pipe)
    finally:
        os.close(watched)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, [bytes(each).decode(errors="replace") for each in written.values()]


def _drain(pipe: int, into: bytearray) -> bool:
    """Read what is there; whether more may come."""
    with suppress(BlockingIOError):
        while piece := os.read(pipe, 1 << 20):
            into += piece
        return False
    return True


def _import_all() -> None:
    import cvmfs_sync

    for module in pkgutil.walk_packages(cvmfs_sync.__path__, "cvmfs_sync."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    # What has been made by now is shared by all runs: a collection in one of them would copy it.
    gc.collect()
    gc.freeze()


def serve() -> None:
    """Answer requests until stdin ends."""
    _import_all()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as log:
            (out, child_out), (err, child_err) = os.pipe(), os.pipe()
            process = os.fork()
            if not process:
                _child(request, log.fileno(), child_out, child_err)
            os.close(child_out)
            os.close(child_err)
            rc, (stdout, stderr) = _wait(process, request["seconds"], (out, err))
            os.close(out)
            os.close(err)
            log.seek(0)
            steps = log.read().decode(errors="replace").splitlines()
        answer = {"rc": rc, "stdout": stdout, "stderr": stderr, "steps": steps}
        print(json.dumps(answer), flush=True)  # noqa: T201 -- the protocol
