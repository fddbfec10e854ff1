"""What publishing took, as values and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.measure import Sample
from benchmarks.report import table

__all__ = ["DIFFERENCE", "WHOLE", "Publication", "counted", "timed"]

WHOLE = "whole"
DIFFERENCE = "difference"
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Publication:
    """An image that was published once.

    Attributes:
        case: Which image, after which.
        backend: Where to: "directory", "fake" or a repository's name.
        how: `WHOLE`, `DIFFERENCE`, or the name of another tool.
        sample: What the process took; nothing is known of the transactions of another tool's.
        prepare: Seconds until the first transaction: resolving, fetching, indexing, comparing.
        locked: Seconds in which the repository's lock was held.
        transactions: How many there were.
        files: Written to the transaction, those included whose metadata alone had changed.
        written: Their bytes.
        changed: Bytes of files whose content is another than before, or that were not there; 0 if that is not known.
        processed_files: What the server looked at when publishing.
        processed: Their bytes.
        relative: The tree it was made of; empty for none.
    """

    case: str
    backend: str
    how: str
    sample: Sample
    prepare: float = 0.0
    locked: float = 0.0
    transactions: int = 0
    files: int = 0
    written: int = 0
    changed: int = 0
    processed_files: int = 0
    processed: int = 0
    relative: str = ""


def timed(publications: Sequence[Publication]) -> str:
    """Seconds of each case and way, medians, with the ratio of the shortest run of writing whole to that of each."""
    lines = []
    shortest = {key: min(each.sample.wall for each in group) for key, group in _groups(publications)}
    for (case, how), group in _groups(publications):
        last = group[-1]
        ours = bool(last.transactions)
        lines.append(
            (
                f"{case}: {how}",
                _seconds(each.sample.wall for each in group),
                _seconds(each.prepare for each in group) if ours else "-",
                _seconds(each.locked for each in group) if ours else "-",
                _seconds(each.sample.cpu for each in group),
                f"{max(each.sample.memory for each in group) / _MB:.0f}",
                f"{last.transactions}" if ours else "-",
                f"{last.files:,}" if ours else "-",
                f"{last.written / _MB:,.3f}" if ours else "-",
                _ratio(last.written, last.changed) if how == DIFFERENCE else "-",
                f"{shortest[case, WHOLE] / shortest[case, how]:.1f}" if (case, WHOLE) in shortest else "-",
            )
        )
    header = (
        "registry -> repository", "wall s", "prepare s", "locked s", "CPU s", "peak MB", "transactions",
        "files", "MB written", ": changed", "whole : this",
    )  # fmt: skip
    return table(header, lines)


def counted(publications: Sequence[Publication]) -> str:
    """What was written and what the server had to process, with the ratio of the bytes processed for the whole."""
    lines = []
    processed = {key: group[-1].processed for key, group in _groups(publications)}
    for (case, how), group in _groups(publications):
        last = group[-1]
        lines.append(
            (
                f"{case}: {how}",
                f"{last.transactions}",
                f"{last.files:,}",
                f"{last.written / _MB:,.3f}",
                f"{last.processed_files:,}",
                f"{last.processed / _MB:,.3f}",
                _ratio(processed.get((case, WHOLE), 0), last.processed),
            )
        )
    header = (
        "counted by the fake server", "transactions", "files written", "MB written", "files processed",
        "MB processed", "whole : this",
    )  # fmt: skip
    return table(header, lines)


def _groups(publications: Sequence[Publication]) -> list[tuple[tuple[str, str], list[Publication]]]:
    groups: dict[tuple[str, str], list[Publication]] = {}
    for each in publications:
        groups.setdefault((each.case, each.how), []).append(each)
    return list(groups.items())


def _seconds(values: Iterable[float]) -> str:
    return f"{statistics.median(values):.2f}"


def _ratio(one: int, other: int) -> str:
    return f"{one / other:,.2f}" if other else "-"
