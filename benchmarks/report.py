"""Samples into a table for people and a document for programs."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cvmfs_sync
from benchmarks.contenders import FLOOR, PEER
from benchmarks.measure import Sample

__all__ = ["Row", "comparison", "document", "machine", "table"]

_MB = 1_000_000


@dataclass(slots=True)
class Row:
    """One contender's runs.

    Attributes:
        name: The contender's.
        samples: One for each run.
        entries: Names that it left, or 0 if it left no tree.
        skipped: Why there are no samples.
    """

    name: str
    samples: list[Sample] = field(default_factory=list)
    entries: int = 0
    skipped: str = ""

    @property
    def wall(self) -> float:
        """Median of the wall times."""
        return statistics.median(sample.wall for sample in self.samples)

    @property
    def cpu(self) -> float:
        """Median of the CPU times."""
        return statistics.median(sample.cpu for sample in self.samples)

    @property
    def memory(self) -> int:
        """Largest of the peaks."""
        return max(sample.memory for sample in self.samples)


def comparison(rows: Sequence[Row]) -> str:
    """The table, with each wall time's ratio to the floor's and to the peer's; the reasons of those skipped below."""
    measured = {row.name: row for row in rows if row.samples}

    def best(row: Row, reference: str) -> str:
        """The ratio of the shortest runs, which other processes have disturbed least."""
        if reference not in measured:
            return "-"
        return f"{min(s.wall for s in row.samples) / min(s.wall for s in measured[reference].samples):.2f}"

    def ratio(row: Row, reference: str) -> str:
        """The median of the ratios within each round, which share what else the machine was doing."""
        if reference not in measured:
            return "-"
        pairs = zip(row.samples, measured[reference].samples, strict=False)
        return f"{statistics.median(mine.wall / other.wall for mine, other in pairs):.2f}"

    lines = [
        (
            row.name,
            f"{row.wall:.2f}",
            f"{min(s.wall for s in row.samples):.2f}-{max(s.wall for s in row.samples):.2f}",
            f"{row.cpu:.2f}",
            f"{row.memory / _MB:.0f}",
            ratio(row, FLOOR),
            best(row, FLOOR),
            ratio(row, PEER),
            best(row, PEER),
        )
        for row in measured.values()
    ]
    header = ("registry -> files", "wall s", "min-max", "CPU s", "peak MB", "x floor", "best", f"x {PEER}", "best")
    text = table(header, lines)
    skipped = [f"skipped: {row.name}: {row.skipped}" for row in rows if row.skipped]
    return "\n".join([text, *([""] if skipped else []), *skipped])


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, padded; the first column is text, the others are numbers."""
    rows = [list(header), *(list(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def document(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows with all their samples."""
    return [
        {
            "name": row.name,
            "entries": row.entries,
            "skipped": row.skipped,
            "samples": [asdict(sample) for sample in row.samples],
        }
        | ({"wall": row.wall, "cpu": row.cpu, "memory": row.memory} if row.samples else {})
        for row in rows
    ]


def machine(*, mounted: bool) -> dict[str, Any]:
    """Where and with what all this was measured."""
    return {
        "time": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "cvmfs_sync": cvmfs_sync.__version__,
        "commit": _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg()[0],
        "file_system": "a new ext4 for each run" if mounted else "a plain directory",
        "tools": {
            name: _first_line(name, option)
            for name, option in {
                "skopeo": "--version",
                "umoci": "--version",
                "podman": "--version",
                "igzip": "--version",
                "tar": "--version",
                "curl": "--version",
                "docker-registry": "--version",
                "crane": "version",
            }.items()
        },
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _first_line(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return ""
    lines = (result.stdout or result.stderr).strip().splitlines()
    return lines[0] if lines and result.returncode == 0 else ""
