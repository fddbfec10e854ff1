"""What a directory costs: the constants of `ports.Costs`, fitted to publications on this machine.

Made-up images are published whole and as differences, each pair on a new file system, and the seconds in which the
repository's lock was held are explained by how much was cloned, removed, made and written, and by a constant that every
transaction costs, which no choice depends on. No constant is below zero, and each measurement counts by its relative
error, so that small publications are explained as well as large ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from benchmarks.measure import fresh_directory
from benchmarks.places import directory_place
from benchmarks.report import table
from benchmarks.successors import tree_images
from cvmfs_sync.ports import Costs

__all__ = ["Observation", "fit", "fit_table", "observe"]

Amounts = Mapping[str, tuple[int, int]]
_PASSES = 20_000


@dataclass(frozen=True, slots=True)
class Observation:
    """One publication.

    Attributes:
        what: For tables.
        factors: How much of each of `Costs` it had: clones, names cloned, names removed, names made, bytes.
        seconds: How long the lock was held.
    """

    what: str
    factors: tuple[float, float, float, float, float]
    seconds: float


_TREES: Mapping[str, Amounts] = {
    # Names are counted with their directories when they are measured.
    "2,000 small files": {"small": (2_000, 100)},
    "20,000 small files": {"small": (20_000, 100)},
    "60,000 small files": {"small": (60_000, 100)},
    "10,000 files of 20 kB": {"medium": (10_000, 20_000)},
    "400 files of 1 MB": {"large": (400, 1_000_000)},
    "60 files of 10 MB": {"huge": (60, 10_000_000)},
    "60,000 small files in two halves": {"one": (30_000, 100), "two": (30_000, 100)},
    "half of those": {"one": (30_000, 100)},
    "60,000 small files, 100 more": {"small": (60_000, 100), "more": (100, 1_000)},
    "20,000 small files, 100 more": {"small": (20_000, 100), "more": (100, 1_000)},
    "2,000 small files, 100 more": {"small": (2_000, 100), "more": (100, 1_000)},
    "20,000 small files, 5,000 more": {"small": (20_000, 100), "more": (5_000, 1_000)},
    "60,000 small files, 20 large": {"small": (60_000, 100), "huge": (20, 10_000_000)},
}
_PAIRS = (
    ("", "2,000 small files"),
    ("", "20,000 small files"),
    ("", "60,000 small files"),
    ("", "10,000 files of 20 kB"),
    ("", "400 files of 1 MB"),
    ("", "60 files of 10 MB"),
    ("2,000 small files", "2,000 small files, 100 more"),
    ("20,000 small files", "20,000 small files, 100 more"),
    ("60,000 small files", "60,000 small files, 100 more"),
    ("20,000 small files", "20,000 small files, 5,000 more"),
    ("60,000 small files", "60,000 small files, 20 large"),
    ("60,000 small files in two halves", "half of those"),
    ("20,000 small files", "2,000 small files"),
)


def observe(*, runs: int, mount: bool, scale: int = 1) -> Iterator[Observation]:
    """Publish each pair; the shortest of several runs, which other processes have disturbed least.

    Args:
        runs: How often.
        mount: Whether each run has a file system of its own.
        scale: Divides numbers of files and sizes, for a test.

    Raises:
        Failed: Something could not be published.
    """
    trees = {
        name: {
            directory: (max(60, count // scale), max(10, size // scale)) for directory, (count, size) in each.items()
        }
        for name, each in _TREES.items()
    }
    tags = {name: str(number) for number, name in enumerate(trees)}
    layout = tree_images("fit", {tags[name]: each for name, each in trees.items()})
    for before, after in _PAIRS:
        seconds = []
        factors = (0.0, 0.0, 0.0, 0.0, 0.0)
        for _ in range(runs):
            with fresh_directory(mount=mount) as base:
                place = directory_place(base, "127.0.0.1")
                if before:
                    place.publish("fit", "before", [f"oci:{layout}:{tags[before]}"])
                options = ("--cloning",) if before else ()
                done = place.publish("fit", "after", [f"oci:{layout}:{tags[after]}"], *options)
            old, new = _names(trees[before]) if before else 0, _names(trees[after])
            shared = _names(_common(trees[before], trees[after])) if before else 0
            factors = (float(bool(before)), old, max(0, old - shared), max(0, new - shared), done.written)
            seconds.append(done.locked)
        yield Observation(f"{before or 'nothing'} -> {after}", factors, min(seconds))


def fit(observations: Sequence[Observation]) -> tuple[Costs, float]:
    """The constants, and that of every transaction, with the least sum of squares of relative errors; none is negative.

    Coordinate descent on the normal equations: the problem is convex, and small.
    """
    rows = [[factor / each.seconds for factor in (*each.factors, 1.0)] for each in observations]
    count = len(rows[0])
    # Columns of like size converge soon.
    scales = [sum(row[column] ** 2 for row in rows) ** 0.5 or 1.0 for column in range(count)]
    rows = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    products = [[sum(row[i] * row[j] for row in rows) for j in range(count)] for i in range(count)]
    wanted = [sum(row[i] for row in rows) for i in range(count)]
    found = [0.0] * count
    for _ in range(_PASSES):
        for i in range(count):
            if products[i][i]:
                rest = wanted[i] - sum(products[i][j] * found[j] for j in range(count) if j != i)
                found[i] = max(0.0, rest / products[i][i])
    *costs, constant = (value / scale for value, scale in zip(found, scales, strict=True))
    return Costs(*costs), constant


def fit_table(observations: Sequence[Observation], fitted: tuple[Costs, float], present: Costs) -> str:
    """What was measured beside what both models say, and the constants."""
    costs, constant = fitted
    lines = [
        (
            each.what,
            f"{each.seconds:.3f}",
            f"{_seconds(each, costs) + constant:.3f}",
            f"{_seconds(each, present) + constant:.3f}",
        )
        for each in observations
    ]
    parts = [table(("published", "measured s", "fitted s", "present s"), lines)]
    for name, model in (("fitted", costs), ("present", present)):
        errors = [abs((_seconds(each, model) + constant) / each.seconds - 1) for each in observations]
        values = ", ".join(f"{each.name}={getattr(model, each.name):.2g}" for each in fields(Costs))
        parts.append(
            f"{name}: Costs({values}), and {constant:.2g} for every transaction; "
            f"off by {100 * statistics.median(errors):.0f} % in the median, {100 * max(errors):.0f} % at most"
        )
    return "\n\n".join(parts)


def _seconds(observation: Observation, costs: Costs) -> float:
    return sum(
        factor * float(getattr(costs, each.name))
        for factor, each in zip(observation.factors, fields(Costs), strict=True)
    )


def _common(one: Amounts, other: Amounts) -> Amounts:
    """The directories that both have, with as many files as are in both."""
    return {name: min(one[name], other[name]) for name in one if name in other}


def _names(tree: Amounts) -> int:
    """Files, with the directories in which `successors` puts them."""
    return sum(count + -(-count // 50) + -(-count // 2_500) + 1 for count, _ in tree.values())
