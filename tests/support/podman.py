"""Podman's engine as a process of the tests: what docker-py talks to, on a unix socket, with a storage of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.commands import missing, require, run, stop

__all__ = ["PodmanEngine", "start_podman"]


class PodmanEngine:
    """A running engine.

    Attributes:
        host: Its socket, as DOCKER_HOST has it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.host = f"unix://{directory}/podman.sock"

    @property
    def environment(self) -> Mapping[str, str]:
        """What leads docker-py to it."""
        return {"DOCKER_HOST": self.host}

    @property
    def command(self) -> list[str]:
        """`podman` with its storage."""
        root, state = self._directory / "root", self._directory / "run"
        # vfs needs no overlay mounts, which a container may not have; no test starts a container.
        return [
            "podman", "--root", str(root), "--runroot", str(state), "--storage-driver", "vfs",
            "--cgroup-manager", "cgroupfs",
        ]  # fmt: skip

    def podman(self, *arguments: str | Path) -> str:
        """Run podman on the engine's storage; returns its stdout."""
        return run(*self.command, *arguments)

    def answers(self) -> bool:
        """Whether somebody listens on the socket."""
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(self.host.removeprefix("unix://"))
            except OSError:
                return False
            return True


@contextmanager
def start_podman() -> Iterator[PodmanEngine]:
    """Run an engine of one's own for the length of a `with` block."""
    require("podman")
    # Not below pytest's directory: the path of a socket has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="cvmfs-sync-podman-", dir="/tmp"))
    engine = PodmanEngine(directory)
    log = directory / "log"
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*engine.command, "system", "service", "--time", "0", engine.host],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 30
            while not engine.answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    missing(f"podman's engine does not start here: {log.read_text(errors='replace')[-500:]}")
                time.sleep(0.05)
            yield engine
        finally:
            stop(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
