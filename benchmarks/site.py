"""The static site of ten thousand images: whole, again, and after one has moved; README.md says what is measured.

    python -m benchmarks.site [--quick] [--json FILE]

`make bench` runs it, over the repository of `pages`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import pages, report
from benchmarks.contenders import OURS
from benchmarks.measure import Failed, Sample, large_temporary, run
from cvmfs_sync.catalogue import write_catalogue
from cvmfs_sync.inventory import Catalogue, read_catalogue
from cvmfs_sync.layout import Layout, record_path, relative_target
from cvmfs_sync.reference import Digest, ImageName, parse_image
from cvmfs_sync.repository import DirectoryRepository
from cvmfs_sync.state import State

__all__ = ["Run", "document", "measure", "tables"]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `site`.

    Attributes:
        what: Had happened before.
        files: That it has written.
    """

    what: str
    files: int
    unchanged: int
    sample: Sample


def measure(images: int, events: int) -> list[Run]:
    """Make a repository of that size, and write its site three times.

    Raises:
        Failed: The command fails, or writes what has not changed.
    """
    with tempfile.TemporaryDirectory(prefix="cvmfs-sync-site-", dir=large_temporary()) as directory:
        home = Path(directory)
        pages.make_site(home, images, events)
        lines = _publish_all(home / "published")
        (home / "cvmfs-sync.yaml").write_text("{}")
        runs = [_written(home, "nothing was there"), _written(home, "nothing has changed")]
        if runs[-1].files:
            raise Failed(f"{runs[-1].files} files are written though nothing has changed")
        _move(home, lines)
        return [*runs, _written(home, "one image has moved")]


def tables(runs: Sequence[Run]) -> str:
    """For people."""
    rows = [
        [each.what, f"{each.files:,}", f"{each.unchanged:,}", f"{each.sample.wall:.2f}", f"{each.sample.cpu:.2f}",
         f"{each.sample.memory / 1e6:.0f}"]
        for each in runs
    ]  # fmt: skip
    return report.table(["before it", "written", "unchanged", "wall s", "CPU s", "peak MB"], rows)


def document(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For programs."""
    return [asdict(each) for each in runs]


def _written(home: Path, what: str) -> Run:
    command = shlex.join([*OURS, "site", "-c", "cvmfs-sync.yaml", "--out", "site", "--json"])
    sample = run(f"{command} > report.json", home)
    told = json.loads((home / "report.json").read_text())
    return Run(what, told["written"], told["unchanged"], sample)


def _move(home: Path, lines: Catalogue) -> None:
    """Have one tag mean another image."""
    layout, root = Layout(), home / "published"
    link = sorted(lines)[len(lines) // 2]
    name = parse_image(lines[link].image)
    digest = Digest.parse(f"sha256:{hashlib.sha256(b'moved').hexdigest()}")
    tree, at = layout.tree(digest, 1), datetime(2027, 1, 1, tzinfo=UTC)
    _publish(root, name, tree, digest)
    (root / link).unlink()
    (root / link).symlink_to(relative_target(link, tree))
    moved = replace(lines[link], digest=str(digest), path=tree, published_at=at.isoformat())
    with DirectoryRepository(root).transaction("the catalogue") as transaction:
        write_catalogue(transaction, {**lines, link: moved})
    with State(home / "state") as state:
        state.record(link, str(name), "published", digest, "1.0 s", at)


def _publish_all(root: Path) -> Catalogue:
    """Have what the links lead to; returns the catalogue."""
    lines = read_catalogue(DirectoryRepository(root), Layout())
    for line in lines.values():
        _publish(root, parse_image(line.image), line.path, Digest.parse(line.digest))
    return lines


def _publish(root: Path, name: ImageName, tree: str, digest: Digest) -> None:
    """An empty tree with a record as real ones are: of ten layers, of which hundreds of images have the lower ones."""
    (root / tree).mkdir(parents=True)
    layers = [f"base {len(str(name)) % 7} {number}" for number in range(6)]
    layers += [f"{name} {number}" for number in range(4)]
    record = {
        "version": 1, "reference": str(name), "digest": str(digest), "source_digest": str(digest), "generation": 1,
        "platform": "linux/amd64", "size": 500_000_000, "entries": 20_000, "compressed_size": 200_000_000,
        "config": {
            "digest": str(digest), "environment": [f"VARIABLE_{number}=value" for number in range(12)],
            "entrypoint": ["/usr/bin/tini", "--"], "command": ["bash"], "user": "1000", "working_directory": "/srv",
            "labels": {f"org.example.label{number}": f"value {number}" for number in range(8)},
        },
        "layers": [
            {"digest": f"sha256:{hashlib.sha256(layer.encode()).hexdigest()}", "size": 20_000_000} for layer in layers
        ],
    }  # fmt: skip
    path = root / record_path(digest.hex)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.site", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small site")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers, and the machine")
    options = parser.parse_args(arguments)
    try:
        runs = measure(*(pages.QUICK if options.quick else pages.FULL))
    except Failed as problem:
        sys.stderr.write(f"benchmarks: {problem}\n")
        return 1
    sys.stdout.write(f"{tables(runs)}\n")
    if options.json is not None:
        result = {"machine": report.machine(mounted=False), "site": document(runs)}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
