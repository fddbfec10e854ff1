"""Places to publish to, for tests that hold for every backend.

A place is a backend with what only a test needs: what its clients see, somebody else who holds it, and the same
repository in another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Literal, Self

from cvmfs_sync.repository import CvmfsRepository, DirectoryRepository
from tests.support.commands import run
from tests.support.cvmfs import FakeCvmfs

__all__ = ["Place", "PublishingProcess", "no_sleep", "until"]


def no_sleep(seconds: float) -> None:
    """For repositories that must not wait."""
    raise AssertionError(f"slept {seconds} s")


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to publish to.

    Attributes:
        kind: The backend.
        root: What the publisher sees.
        state: Where the journal is.
        prefix: Below which a test makes its names, ending in a slash.
        fake: The fake server, if it is one.
        name: Of the CVMFS repository.
    """

    kind: Literal["directory", "fake", "real"]
    root: Path
    state: Path
    prefix: str = ""
    fake: FakeCvmfs | None = None
    name: str = ""

    @property
    def journal(self) -> Path:
        """Where the open transaction of cvmfs is noted."""
        return self.state / f"transaction-{self.name}.json"

    @property
    def spool(self) -> Path | None:
        """The server's spool directory, where it is not at its usual place."""
        return self.fake.spool if self.fake else None

    def repository(
        self, wait: float = 0, sleep: Callable[[float], object] = no_sleep
    ) -> CvmfsRepository | DirectoryRepository:
        """The backend, which waits so many seconds for others."""
        limit = timedelta(seconds=wait)
        if self.kind == "directory":
            return DirectoryRepository(self.root, wait=limit, sleep=sleep)
        return CvmfsRepository(
            self.name, root=self.root, spool=self.spool, journal=self.journal, wait=limit, sleep=sleep
        )

    def client(self, path: str) -> Path:
        """Where a client finds this path of what is published now."""
        if self.kind == "directory":
            return self.root / path
        if self.fake:
            return self.fake.published / path
        return Path("/var/spool/cvmfs") / self.name / "rdonly" / path

    @contextmanager
    def held(self) -> Iterator[Callable[[], object]]:
        """Somebody else has a transaction open in this block, or until the yielded function is called."""
        if self.kind == "directory":
            with PublishingProcess(self) as process:
                process.enter()
                yield process.leave
            return
        run("cvmfs_server", "transaction", self.name)
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                run("cvmfs_server", "abort", "-f", self.name, cwd=Path("/"))

        try:
            yield release
        finally:
            release()


_PROGRAM = """
import json, sys
from pathlib import Path
from tests.support.places import Place
from tests.support.cvmfs import FakeCvmfs
from cvmfs_sync.errors import CvmfsSyncError

place = json.loads(sys.argv[1])
fake = FakeCvmfs(Path(place["fake"]), place["name"]) if place["fake"] else None
place = Place(place["kind"], Path(place["root"]), Path(place["state"]), place["prefix"], fake, place["name"])
sys.stdin.readline()
if sys.argv[2] == "exclusive":
    with place.repository().exclusive():
        print("inside", flush=True)
        sys.stdin.readline()
    print("left", flush=True)
    sys.exit()
try:
    with place.repository().transaction("another process's work") as transaction:
        for name in ("tree/half", "tree/other"):
            (transaction.create_tree(place.prefix + name) / "file").write_text("half")
        transaction.write(place.prefix + "half-file", b"half")
        print("inside", flush=True)
        sys.stdin.readline()
except CvmfsSyncError as error:
    print(json.dumps([type(error).__name__, error.exit_code, str(error)]), flush=True)
else:
    print("published", flush=True)
"""


class PublishingProcess:
    """Another process that publishes to the same place, step by step; killed when the block ends.

    Args:
        place: The place.
        what: Of what it is in the middle between `enter` and `leave`; when it has left `exclusive` it says "left".
    """

    def __init__(self, place: Place, what: Literal["transaction", "exclusive"] = "transaction") -> None:
        document = {
            "kind": place.kind,
            "root": str(place.root),
            "state": str(place.state),
            "prefix": place.prefix,
            "fake": str(place.fake.home) if place.fake else None,
            "name": place.name,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(document), what],
            cwd=Path(__file__).parent.parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def enter(self) -> str:
        """Open the transaction and write something into it; what it said: "inside", or a JSON list of an error."""
        self._stream(self.process.stdin).write("\n")
        self._stream(self.process.stdin).flush()
        return self._stream(self.process.stdout).readline().strip()

    def leave(self) -> str:
        """Publish; what it said: "published", or a JSON list of an error."""
        return self.enter()

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            self._stream(stream).close()

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


def until(condition: Callable[[], bool], limit: float = 20) -> None:
    """Wait for another process to get somewhere."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
