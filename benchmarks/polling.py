"""A cycle over thousands of tags in which nothing has changed, and a first population; README.md says what is measured.

    python -m benchmarks.polling [--quick] [--runs N] [--json FILE]
    python -m benchmarks.polling --profile         # where the time of a cycle goes

`make bench` runs the first. A registry that counts is started; tables come out.
"""

from __future__ import annotations

import argparse
import json
import pstats
import shlex
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import measure, report
from benchmarks.contenders import OURS
from benchmarks.measure import Failed, Sample, large_temporary
from benchmarks.tagserver import Arrivals, TagServer, digest_of, image, names, serving
from cvmfs_sync.catalogue import write_catalogue
from cvmfs_sync.inventory import find_tree, stored_catalogue
from cvmfs_sync.layout import Layout, record_path, relative_target, tree_key
from cvmfs_sync.publish import as_json
from cvmfs_sync.reference import Digest
from cvmfs_sync.repository import DirectoryRepository
from cvmfs_sync.sandbox import GENERATION

__all__ = [
    "FULL",
    "QUICK",
    "Growth",
    "Polled",
    "cycles",
    "document",
    "main",
    "measure_all",
    "populate",
    "prefill",
    "site",
    "tables",
]

_UNLIMITED = 1e6
_MB = 1_000_000
_TOP = 45
_PEER_THREADS = 8
_TAGS = 20
_PARTS = 10
_LIMIT = 200.0
_LEAST = 200
QUICK = (10, 100)
FULL = (500, 2000)
"""Repositories, and images of the first population."""


@dataclass(frozen=True, slots=True)
class Polled:
    """What asking for all tags once took.

    Attributes:
        case: What was measured.
        sample: What the process took, its start included.
        tags: How many there are.
        seconds: From the first request to the last.
        requests: By method.
        not_modified: How many of them were answered with 304.
        most: Requests for the one tag that was asked for most often.
        limit: Requests in a second that are allowed; None for all.
    """

    case: str
    sample: Sample
    tags: int
    seconds: float
    requests: dict[str, int]
    not_modified: int
    most: int
    limit: float | None = None

    @property
    def rate(self) -> float:
        """Requests in a second, from the first to the last."""
        return (sum(self.requests.values()) - 1) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Growth:
    """A first population.

    Attributes:
        sample: What the process took.
        milliseconds: Medians of the time from one image to the next, over equal parts of the population.
        images: How many there were.
    """

    sample: Sample
    milliseconds: list[float]
    images: int


def site(home: Path, server: TagServer, wishes: Sequence[tuple[str, str]], rate: float | None = None) -> Path:
    """A configuration and its image list, with `wishes` by repository and tag; at most `rate` requests in a second."""
    home.mkdir(parents=True, exist_ok=True)
    entries = [f"{server.host}/{repository}:{tag}" for repository, tag in wishes]
    (home / "image-list.yaml").write_text(
        "version: 1\nimages:\n" + "".join(f"  - {entry}\n" for entry in entries), encoding="utf-8"
    )
    registry = {"insecure": True, "requests_per_second": rate or _UNLIMITED}
    path = home / "cvmfs-sync.yaml"
    path.write_text(
        json.dumps({"repository": {"root": str(home / "published")}, "registries": {server.host: registry}})
    )
    return path


class _Plain:
    """A transaction that writes at once, and to the page cache: nobody reads meanwhile."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: str, content: bytes) -> None:
        """See `ports.Transaction`."""
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        (self._root / path).write_bytes(content)

    def link(self, path: str, target: str) -> None:
        """See `ports.Transaction`."""
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        (self._root / path).symlink_to(target)

    def create_tree(self, path: str) -> Path:
        """See `ports.Transaction`."""
        (self._root / path).mkdir(parents=True)
        return self._root / path

    def clone(self) -> Path:
        """See `ports.Transaction`: nothing is cloned here."""
        raise NotImplementedError

    def make_directory(self, path: str) -> None:
        """See `ports.Transaction`."""
        (self._root / path).mkdir(parents=True, exist_ok=True)

    def remove(self, path: str) -> None:
        """See `ports.Transaction`."""
        (self._root / path).unlink()


def prefill(home: Path, server: TagServer, wishes: Sequence[tuple[str, str]]) -> None:
    """Make the repository of `site` look as if all had been published.

    The first image is published; record, link and line of the others are made of its, and their trees hold one file.
    """
    first, *others = wishes
    configuration = site(home, server, [first])
    measure.run(shlex.join([*OURS, "sync", "--config", str(configuration)]), home)
    layout, repository = Layout(), DirectoryRepository(home / "published")
    transaction = _Plain(repository.root)
    lines = dict(stored_catalogue(repository) or {})
    ((_, line),) = lines.items()
    template = find_tree(repository, layout, Digest.parse(line.digest))
    assert template is not None
    for name, tag in others:
        manifest, _, _ = image(name, tag)
        digest = Digest.parse(digest_of(manifest))
        reference, tree = f"{server.host}/{name}:{tag}", layout.tree(digest, GENERATION)
        (transaction.create_tree(tree) / "file").touch()
        record = {**template.record, "reference": reference, "digest": str(digest), "source_digest": str(digest)}
        transaction.write(record_path(tree_key(digest, GENERATION)), as_json(record))
        transaction.link(reference, relative_target(reference, tree))
        lines[reference] = replace(line, image=reference, digest=str(digest), source_digest=str(digest), path=tree)
    write_catalogue(transaction, lines)
    site(home, server, wishes)


def cycles(home: Path, configuration: Path, number: int, profile: Path | None = None) -> tuple[Sample, list[Any]]:
    """Cycles in one process: what it took, and what it says of each."""
    result = home / "result.json"
    command = [sys.executable, "-m", "benchmarks.poller", str(configuration), str(result), "--cycles", str(number)]
    sample = measure.run(shlex.join([*command, *(["--profile", str(profile)] if profile else [])]), home)
    return sample, json.loads(result.read_text())


def measure_all(*, runs: int, repositories: int, population: int) -> tuple[list[Polled], Growth]:
    """Everything that `make bench` shows of polling.

    Args:
        runs: Rounds of those without a limit.
        repositories: How many there are, of 20 tags each; with a limit, a fifth of the tags, or 200, is asked for.
        population: How many images the first population has, in tens.

    Raises:
        Failed: A cycle failed, or did not do what it should.
    """
    tags = _TAGS
    found: list[Polled] = []
    for etags in (False, True):
        with _prefilled(repositories, tags, etags=etags) as (home, server, configuration):
            wishes = list(names(repositories, tags))
            for _ in range(runs):
                found.append(_polled(home, server, configuration, len(wishes), etags=etags))
                if not etags:
                    found.append(_peer(home, server, repositories, tags))
            if not etags:
                some = wishes[: max(_LEAST, len(wishes) // 5)]
                limited = site(home, server, some, _LIMIT)
                found.append(_polled(home, server, limited, len(some), limit=_LIMIT))
    return found, populate(population)


@contextmanager
def _prefilled(repositories: int, tags: int, *, etags: bool = False) -> Iterator[tuple[Path, TagServer, Path]]:
    wishes = list(names(repositories, tags))
    with (
        tempfile.TemporaryDirectory(prefix="cvmfs-sync-bench-", dir=large_temporary()) as directory,
        serving(repositories, tags, etags=etags) as server,
    ):
        home = Path(directory)
        prefill(home, server, wishes)
        configuration = home / "cvmfs-sync.yaml"
        cycles(home, configuration, 1)  # which fills the memory of what names meant
        server.arrivals()
        yield home, server, configuration


def _polled(
    home: Path, server: TagServer, configuration: Path, tags: int, *, etags: bool = False, limit: float | None = None
) -> Polled:
    """One cycle by the command line; or, to have something to confirm, the second one of a process."""
    if etags:
        sample, (_, second) = cycles(home, configuration, 2)
        arrivals = server.arrivals()
        sample = replace(sample, wall=second["wall"], user=second["cpu"], system=0.0)
        times = arrivals.times[tags:]
        halved = {method: number // 2 for method, number in arrivals.methods.items()}
        return Polled(
            "304 by ETag, second cycle",
            sample,
            tags,
            times[-1] - times[0],
            halved,
            arrivals.not_modified,
            arrivals.most // 2,
        )
    output = home / "report.json"
    command = [*OURS, "sync", "--json", "--config", str(configuration)]
    sample = measure.run(f"{shlex.join(command)} > {shlex.quote(str(output))}", home)
    results = [each["result"] for each in json.loads(output.read_text())["images"]]
    if results != ["unchanged"] * tags:
        raise Failed(f"not everything was unchanged: {len(results)} results")
    name = "cycle" if limit is None else f"cycle, {limit:g} a second allowed"
    return _counted(name, sample, tags, server.arrivals(), limit)


def _peer(home: Path, server: TagServer, repositories: int, tags: int) -> Polled:
    arguments = [server.host, str(repositories), str(tags), str(_PEER_THREADS)]
    sample = measure.run(shlex.join([sys.executable, "-m", "benchmarks.heads", *arguments]), home)
    return _counted(f"requests, {_PEER_THREADS} threads", sample, repositories * tags, server.arrivals())


def _counted(case: str, sample: Sample, tags: int, arrivals: Arrivals, limit: float | None = None) -> Polled:
    return Polled(case, sample, tags, arrivals.times[-1], arrivals.methods, arrivals.not_modified, arrivals.most, limit)


def populate(number: int) -> Growth:
    """Publish so many images of 25 small files into an empty repository.

    Raises:
        Failed: Not all of them are there.
    """
    repositories = max(1, number // 10)
    wishes = list(names(repositories, 10))
    with (
        tempfile.TemporaryDirectory(prefix="cvmfs-sync-bench-", dir=large_temporary()) as directory,
        serving(repositories, 10) as server,
    ):
        home = Path(directory)
        sample, (cycle,) = cycles(home, site(home, server, wishes), 1)
        if cycle["results"] != {"published": len(wishes)}:
            raise Failed(f"not everything was published: {cycle['results']}")
        with closing(sqlite3.connect(home / "state/state.sqlite")) as database:
            rows = database.execute("SELECT at FROM events WHERE event = 'published' ORDER BY id")
            times = [datetime.fromisoformat(at) for (at,) in rows]
    steps = [(after - before).total_seconds() * 1000 for before, after in zip(times, times[1:], strict=False)]
    size = len(steps) // _PARTS
    medians = [statistics.median(steps[start : start + size]) for start in range(0, size * _PARTS, size)]
    return Growth(sample, medians, len(wishes))


def tables(found: Sequence[Polled], growth: Growth) -> str:
    """Both tables."""
    lines = [
        (
            each.case, f"{each.tags:,}", f"{each.sample.wall:.2f}", f"{each.sample.cpu:.2f}",
            f"{each.sample.memory / _MB:.0f}", f"{each.requests.get('HEAD', 0):,}",
            f"{sum(each.requests.values()) - each.requests.get('HEAD', 0)}", f"{each.most}",
            f"{each.not_modified:,}", f"{each.rate:,.0f}" if each.limit is None else f"{each.rate:.1f}",
            "-" if each.limit is None else f"{100 * (each.rate / each.limit - 1):+.1f} %",
        )
        for each in found
    ]  # fmt: skip
    header = (
        "no change", "tags", "wall s", "CPU s", "peak MB", "HEAD", "others", "most for one", "304", "a second",
        "off the limit",
    )  # fmt: skip
    parts = [f"{value:.1f}" for value in growth.milliseconds]
    first = f"{growth.images:,} images, {growth.sample.wall:.0f} s, {growth.sample.memory / _MB:.0f} MB"
    population = report.table(
        (first, *(f"part {number}" for number in range(1, len(parts) + 1))), [("ms for each, median", *parts)]
    )
    return f"{report.table(header, lines)}\n\n{population}"


def document(found: Sequence[Polled], growth: Growth) -> dict[str, Any]:
    """All numbers, for programs."""
    return {"cycles": [{**asdict(each), "rate": each.rate} for each in found], "population": asdict(growth)}


def _profile(repositories: int, population: int) -> None:
    """Print where a cycle without changes, and a population, spend their time: the main thread's."""
    with _prefilled(repositories, _TAGS) as (home, _, configuration):
        cycles(home, configuration, 1, home / "profile")
        _statistics(home / "profile")
    with (
        tempfile.TemporaryDirectory(prefix="cvmfs-sync-bench-", dir=large_temporary()) as directory,
        serving(population // 10, 10) as server,
    ):
        home = Path(directory)
        cycles(home, site(home, server, list(names(population // 10, 10))), 1, home / "profile")
        _statistics(home / "profile")


def _statistics(file: Path) -> None:
    for order in ("cumulative", "tottime"):
        pstats.Stats(str(file), stream=sys.stdout).sort_stats(order).print_stats(_TOP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.polling", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument("--quick", action="store_true", help="200 tags and 100 images instead of 10,000 and 2,000")
    parser.add_argument("--repositories", type=int, metavar="N", help="so many repositories of 20 tags each")
    parser.add_argument("--population", type=int, metavar="N", help="so many images in the first population")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers, and the machine")
    parser.add_argument("--profile", action="store_true", help="show where the time goes instead")
    options = parser.parse_args(arguments)
    repositories, population = QUICK if options.quick else FULL
    repositories = repositories if options.repositories is None else options.repositories
    population = population if options.population is None else options.population
    if options.runs < 1 or repositories < 1 or population < 2 * _PARTS:
        parser.error(f"--runs and --repositories: at least 1; --population: at least {2 * _PARTS}")
    if options.profile:
        _profile(repositories, population)
        return 0
    try:
        found, growth = measure_all(runs=options.runs, repositories=repositories, population=population)
    except Failed as failure:
        sys.stderr.write(f"benchmarks: {failure}\n")
        return 1
    sys.stdout.write(f"{tables(found, growth)}\n")
    if options.json:
        machine = report.machine(mounted=False)
        options.json.write_text(json.dumps({"machine": machine, **document(found, growth)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
