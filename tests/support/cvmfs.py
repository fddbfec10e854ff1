"""The fake `cvmfs_server` of `tests/fakes`, with one repository; the top of that program says what it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FAKES", "FakeCvmfs"]

FAKES = Path(__file__).parent.parent / "fakes"


@dataclass(frozen=True, slots=True)
class FakeCvmfs:
    """One emulated publisher with one repository.

    Attributes:
        home: What stands for `/`: FAKE_CVMFS_ROOT.
        name: The repository's fully qualified name.
    """

    home: Path
    name: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find the fake instead of a real server."""
        # The fake starts with `env python3`, which should be this one: another may be a slow wrapper.
        first = [str(FAKES), str(Path(sys.executable).parent)]
        path = ":".join([*first, *(p for p in os.environ.get("PATH", "/usr/bin:/bin").split(":") if p not in first)])
        return {"PATH": path, "FAKE_CVMFS_ROOT": str(self.home)}

    @property
    def root(self) -> Path:
        """Stands for /cvmfs/NAME: what the publisher sees and writes to in a transaction."""
        return self.home / "cvmfs" / self.name

    @property
    def spool(self) -> Path:
        """Stands for /var/spool/cvmfs/NAME: locks, scratch, rdonly."""
        return self.home / "var/spool/cvmfs" / self.name

    @property
    def server_conf(self) -> Path:
        """Stands for /etc/cvmfs/repositories.d/NAME/server.conf."""
        return self.home / "etc/cvmfs/repositories.d" / self.name / "server.conf"

    @property
    def published(self) -> Path:
        """The tree of the latest revision, as clients see it; read-only."""
        return self.home / "srv/cvmfs" / self.name / "revisions" / str(self.revision)

    @property
    def revision(self) -> int:
        """The number that clients see."""
        manifest = (self.home / "srv/cvmfs" / self.name / ".cvmfspublished").read_bytes()
        return next(int(line[1:]) for line in manifest.split(b"\n") if line.startswith(b"S"))

    @property
    def in_transaction(self) -> bool:
        """Whether its lock is there."""
        return (self.spool / "in_transaction.lock").exists()

    def commands(self) -> list[dict[str, Any]]:
        """What was run, oldest first: argv, rc, numbers."""
        log = self.home / "var/log/cvmfs_server.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()]

    def switch(self, name: str, content: str = "") -> Path:
        """Turn on `webserver-down`, `storage-full`, ... or set the rules of `kill`, `sleep` or `fail`."""
        switches = self.home / "switches"
        switches.mkdir(exist_ok=True)
        path = switches / name
        path.write_text(content)
        return path

    def unswitch(self, name: str) -> None:
        """Turn it off."""
        (self.home / "switches" / name).unlink(missing_ok=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `cvmfs_server ARGUMENTS NAME`, stdin empty; the caller looks at the exit code."""
        return subprocess.run(
            [FAKES / "cvmfs_server", *arguments, self.name],
            env={**os.environ, **self.environment},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
            check=False,
        )

    def make(self) -> None:
        """Make the repository.

        Raises:
            AssertionError: If it can't be made.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        result = self.run("mkfs")
        assert result.returncode == 0, f"cvmfs_server mkfs: {result}"
