"""One `cvmfs-sync sync`, with a clock at the repository's lock; a process of its own, so that its memory can be told.

    python benchmarks/publisher.py CONFIGURATION RESULT [--whole | --cloning] [--one-by-one] [--profile FILE]

A configuration goes in, of which the image list is published; a JSON document comes out: every transaction with its
purpose and its seconds, what became of every image, and the seconds of all. Nothing is printed.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cvmfs_sync.cycle import sync
from cvmfs_sync.outcome import CycleReport
from cvmfs_sync.ports import Clone, Costs, Repository, Transaction
from cvmfs_sync.service import load_config, make_context, read_wishes

__all__ = ["Clocked", "main"]

_NEVER = Costs(clone=float("inf"), cloned=0.0, removed=0.0, made=0.0, byte=0.0)
_ALWAYS = Costs(clone=0.0, cloned=0.0, removed=0.0, made=1.0, byte=1.0)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A time in which the repository's lock was held.

    Attributes:
        start: Seconds since the beginning.
        seconds: From before the lock was taken until it was released.
    """

    purpose: str
    start: float
    seconds: float


class Clocked:
    """A `Repository` that notes when its lock was held; else the one that it is made of.

    Args:
        inner: The repository.
        costs: Instead of the repository's own.
    """

    def __init__(self, inner: Repository, costs: Costs | None = None) -> None:
        self.root = inner.root
        self.traits = inner.traits if costs is None else replace(inner.traits, costs=costs)
        self.turns: list[_Turn] = []
        self._inner = inner
        self._beginning = time.perf_counter()

    @contextmanager
    def transaction(self, purpose: str, clone: Clone | None = None) -> Iterator[Transaction]:
        """See `ports.Repository`."""
        with self._turn(purpose), self._inner.transaction(purpose, clone) as transaction:
            yield transaction

    def remove_trees(self, paths: Sequence[str]) -> None:
        """See `ports.Repository`."""
        with self._turn(f"remove {len(paths)} trees"):
            self._inner.remove_trees(paths)

    def collect_garbage(self) -> None:
        """See `ports.Repository`."""
        self._inner.collect_garbage()

    def exclusive(self) -> AbstractContextManager[None]:
        """See `ports.Repository`."""
        return self._inner.exclusive()

    def recover(self) -> str | None:
        """See `ports.Repository`."""
        return self._inner.recover()

    @contextmanager
    def _turn(self, purpose: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.turns.append(_Turn(purpose, start - self._beginning, end - start))


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish, and write down what it took; returns the worst exit code of the cycles."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("configuration", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--whole", action="store_true", help="make no tree of another one")
    parser.add_argument("--cloning", action="store_true", help="make every tree of another one if it has a file of it")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="have cProfile look at all threads")
    parser.add_argument("--one-by-one", action="store_true", help="a cycle for each image: nothing is done ahead")
    options = parser.parse_args(arguments)
    config = load_config(options.configuration)
    wishes = read_wishes(config)
    with make_context(config) as context, _profiling(options.profile):
        clocked = Clocked(context.repository, _NEVER if options.whole else _ALWAYS if options.cloning else None)
        context = replace(context, repository=clocked)
        started = time.perf_counter()
        names = [(wish.name,) for wish in wishes.wishes] if options.one_by_one else [()]
        reports = [sync(context, wishes, only) for only in names]
        seconds = time.perf_counter() - started
    document = {
        "seconds": seconds,
        "transactions": [asdict(turn) for turn in clocked.turns],
        "images": [line for report in reports for line in _lines(report)],
    }
    options.result.write_text(json.dumps(document, indent=1))
    return max((report.exit_code for report in reports), default=0)


@contextmanager
def _profiling(file: Path | None) -> Iterator[None]:
    """Write down where this thread, and those that are started meanwhile, spend their time; nothing without a file."""
    if file is None:
        yield
        return
    profiles = [cProfile.Profile()]

    def begin(*_: object) -> None:
        profiles.append(cProfile.Profile())
        profiles[-1].enable()

    # Called at the first event of each new thread, where the profiler takes its own place.
    threading.setprofile(begin)
    profiles[0].enable()
    try:
        yield
    finally:
        threading.setprofile(None)
        profiles[0].disable()
        statistics = pstats.Stats(profiles[0])
        for each in profiles[1:]:
            statistics.add(each)
        statistics.dump_stats(file)


def _lines(report: CycleReport) -> Iterator[dict[str, Any]]:
    for outcome in report.outcomes:
        if outcome.result == "failed":
            sys.stderr.write(f"{outcome.target}: {outcome.error}\n")
        yield {
            "image": str(outcome.target),
            "result": outcome.result,
            "made_of": outcome.made_of,
            "files": outcome.written_files,
            "bytes": outcome.written_bytes,
            "compressed": outcome.size,
        }


if __name__ == "__main__":
    sys.exit(main())
