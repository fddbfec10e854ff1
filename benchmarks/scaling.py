"""Whether time and memory grow as they should: with entries, and with bytes not at all or linearly.

Made-up images of two series, one of tiny files and one of large ones, are squashed and unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.contenders import CONTENDERS, Target
from benchmarks.measure import Sample, fresh_directory, run
from benchmarks.report import table

__all__ = ["ENTRIES", "SIZES", "ScaleRow", "measure", "scale_table"]

ENTRIES = (10_000, 100_000, 1_000_000)
"""Of images with files of 16 bytes."""
SIZES = (100_000_000, 1_000_000_000, 4_000_000_000)
"""Of images with 400 files."""
_COMMANDS = ("cvmfs-sync squash, pipe", "cvmfs-sync unpack")


@dataclass(frozen=True, slots=True)
class ScaleRow:
    """One run.

    Attributes:
        command: What was run.
        series: "entries" or "bytes".
        amount: How many.
        sample: What it took.
    """

    command: str
    series: str
    amount: int
    sample: Sample


def measure(target: Target, series: str, amount: int, *, mount: bool) -> Iterator[ScaleRow]:
    """Run both commands on one image."""
    for contender in CONTENDERS:
        if contender.name in _COMMANDS:
            with fresh_directory(mount=mount) as directory:
                yield ScaleRow(contender.name, series, amount, run(contender.script(target), directory))


def scale_table(rows: list[ScaleRow]) -> str:
    """Time for each entry or byte, and its growth against the row above; memory likewise."""
    lines = []
    above: dict[tuple[str, str], ScaleRow] = {}
    for row in sorted(rows, key=lambda each: (each.series, each.command, each.amount)):
        before = above.get((row.series, row.command))
        above[row.series, row.command] = row
        unit, factor = ("us/entry", 1e6) if row.series == "entries" else ("ns/byte", 1e9)
        each = row.sample.wall * factor / row.amount
        growth, memory = "-", "-"
        if before is not None:
            more = row.amount - before.amount
            growth = f"{(row.sample.wall - before.sample.wall) * factor / more:.2f}"
            if row.series == "entries":
                memory = f"{(row.sample.memory - before.sample.memory) / more:.0f}"
        lines.append(
            (
                f"{row.command}: {row.amount:,} {row.series}",
                f"{row.sample.wall:.2f}",
                f"{row.sample.cpu:.2f}",
                f"{row.sample.memory / 1e6:.0f}",
                f"{each:.2f} {unit}",
                growth,
                memory,
            )
        )
    return table(("image", "wall s", "CPU s", "peak MB", "on average", "each more", "bytes/entry more"), lines)
