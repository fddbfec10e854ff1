"""Runs one command on a fresh file system, and says what it took.

A shell script goes in, a `Sample` comes out. The file system is a new ext4 in a loop mount of a sparse file: ext4
avoids inodes that were freed within the last minutes, so extracting again where a tree has been deleted measures that
search. Making, mounting and unmounting are not measured, nor is writing back what is dirty at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = [
    "Failed",
    "Sample",
    "cache",
    "can_mount",
    "count_entries",
    "fresh_directory",
    "large_temporary",
    "run",
]

_INTERVAL = 0.05
_SIZE = 64 << 30
_INODES = 4_000_000


def cache() -> Path:
    """Where images, and what else later runs can use, are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvmfs-sync-bench"


def large_temporary() -> str:
    """Where gigabytes can be put: /tmp may be memory."""
    return os.environ.get("TMPDIR", "/var/tmp")


class Failed(Exception):
    """A measured command failed; says what it said."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run took.

    Attributes:
        wall: Seconds.
        user: Seconds of the whole process tree in user space.
        system: The same in the kernel; not what kernel threads do for it, such as writing back.
        memory: Peak of the sum of the proportional set sizes (PSS) of the process tree, in bytes: all that its
            processes have mapped, shared libraries too, shared pages counted once; not the page cache. Looked at every
            50 ms.
    """

    wall: float
    user: float
    system: float
    memory: int

    @property
    def cpu(self) -> float:
        """User and system time."""
        return self.user + self.system


def run(script: str, directory: Path, timeout: float = 3600) -> Sample:
    """Run a bash script in `directory`.

    Raises:
        Failed: With the end of what it wrote to stderr.
    """
    environment = {
        # PYTHONPATH stays, to measure another checkout.
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "TMPDIR": str(directory),
        "HOME": str(directory),
        "LC_ALL": "C.UTF-8",
        # As installed: with bytecode.
        "PYTHONPYCACHEPREFIX": str(cache() / "bytecode"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as messages:
        start = time.perf_counter()
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages,
        )  # fmt: skip
        with _Memory(process.pid) as memory:
            killer = threading.Timer(timeout, process.kill)
            killer.start()
            _, status, usage = os.wait4(process.pid, 0)
            killer.cancel()
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            messages.seek(max(0, messages.tell() - 2000))
            text = messages.read().decode(errors="replace").strip()
            raise Failed(f"exit code {process.returncode}: {text or 'and not a word'}")
    return Sample(wall, usage.ru_utime, usage.ru_stime, memory.peak)


class _Memory:
    """Watches the memory of a process and its descendants in a thread."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            self.peak = max(self.peak, sum(_proportional(process) for process in _tree(self._process)))


def _tree(process: int) -> Iterator[int]:
    pending = [process]
    while pending:
        each = pending.pop()
        yield each
        try:
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/children") as children:
                    pending.extend(int(child) for child in children.read().split())
        except OSError:
            continue  # it has ended


def _proportional(process: int) -> int:
    """The proportional set size in bytes; 0 of what has ended."""
    try:
        with open(f"/proc/{process}/smaps_rollup", "rb") as rollup:
            for line in rollup:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def can_mount() -> str:
    """Why no file system can be mounted here; empty if it can."""
    if os.geteuid() != 0:
        return "only root can mount"
    absent = [tool for tool in ("mkfs.ext4", "mount", "umount") if _tool(tool) is None]
    if absent:
        return f"not on PATH: {', '.join(absent)}"
    try:
        with tempfile.TemporaryDirectory(dir=large_temporary()) as directory, _mounted(Path(directory)):
            return ""
    except Failed as problem:
        return str(problem)


@contextmanager
def fresh_directory(*, mount: bool) -> Iterator[Path]:
    """An empty directory, gone at the end with all that is mounted below it.

    With `mount` on a new file system, and dirty pages of whatever ran before are written back first, so that no run
    pays for another.
    """
    with tempfile.TemporaryDirectory(prefix="cvmfs-sync-bench-", dir=large_temporary()) as directory:
        if not mount:
            yield Path(directory)
            return
        with _mounted(Path(directory)) as mounted:
            yield mounted


@contextmanager
def _mounted(directory: Path) -> Iterator[Path]:
    image, point = directory / "ext4", directory / "mounted"
    point.mkdir()
    with image.open("xb") as file:
        file.truncate(_SIZE)
    # Without initialised inode tables it is made at once; and the kernel shall not make up for it while we measure.
    _command("mkfs.ext4", "-q", "-F", "-N", str(_INODES), "-E", "lazy_itable_init=1,lazy_journal_init=1", str(image))
    _command("mount", "-o", "loop,noinit_itable,noatime", str(image), str(point))
    try:
        os.sync()
        yield point
    finally:
        _command("umount", "--recursive", str(point))


def _tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _command(name: str, *arguments: str) -> None:
    result = subprocess.run([_tool(name) or name, *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failed(f"{name} {' '.join(arguments)}: {result.stderr.strip()}")


def count_entries(root: Path) -> int:
    """How many names there are below `root`, as a check that a tool did something."""
    count = 0
    pending = [str(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return count
