"""Pages and API over ten thousand images and a million events; README.md says what is measured.

    python -m benchmarks.pages [--quick] [--json FILE]

`make bench` runs it. A repository and a state database of that size are made; `cvmfs-sync serve` answers from them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests

from benchmarks import report
from benchmarks.contenders import OURS
from benchmarks.measure import Failed, large_temporary
from cvmfs_sync.catalogue import write_catalogue
from cvmfs_sync.inventory import CatalogueEntry
from cvmfs_sync.layout import Layout, relative_target
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.repository import DirectoryRepository
from cvmfs_sync.state import State
from tests.support.registry import free_port

__all__ = ["FULL", "QUICK", "Answer", "Served", "document", "make_site", "measure", "serving", "tables"]

FULL = (10_000, 1_000_000)
QUICK = (200, 5_000)
_SECONDS = 120.0
_LOAD_SECONDS = 5
_TIMES = 40
# In which a server saves up processor time for as many answers: see `cvmfs_sync.web.thrift`.
_REST_SECONDS = 8.0
_START = datetime(2026, 1, 1, tzinfo=UTC)
_ADDRESSES = {
    "catalogue, first page": "/api/v1/images",
    "search": "/api/v1/images?q=tool+77",
    "filter and sort": "/api/v1/images?state=published&sort=-published&offset=5000",
    "one image": "/api/v1/image?image=registry.example.org/group7/tool7:7",
    "events, first page": "/api/v1/events",
    "events of one image": "/api/v1/events?link=registry.example.org/group7/tool7:7",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one address took, as a client on loopback sees it; milliseconds.

    Attributes:
        rate: Answers a second to eight connections at once; None without wrk.
    """

    what: str
    median: float
    p99: float
    size: int
    rate: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """All of it.

    Attributes:
        start: Seconds until the first answer.
        memory: Bytes, the most that the process ever had in memory.
    """

    images: int
    events: int
    start: float
    memory: int
    answers: tuple[Answer, ...]


def measure(images: int, events: int) -> Served:
    """Make a site of that size and ask for each address forty times.

    Raises:
        Failed: There is no answer, or a wrong one.
    """
    with tempfile.TemporaryDirectory(prefix="cvmfs-sync-pages-", dir=large_temporary()) as directory:
        home = Path(directory)
        make_site(home, images, events)
        with serving(home) as (url, process, start):
            answers = [_asked(what, url + address) for what, address in _ADDRESSES.items()]
            total = requests.get(f"{url}/api/v1/images", timeout=_SECONDS).json()["total"]
            if total != images:
                raise Failed(f"{total} images are shown, not {images}")
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
            return Served(images, events, start, int(peak[1]) * 1024 if peak else 0, tuple(answers))


def _asked(what: str, url: str) -> Answer:
    times, size = [], 0
    time.sleep(_REST_SECONDS)
    with requests.Session() as session:
        for _ in range(_TIMES):
            before = time.perf_counter()
            answer = session.get(url, timeout=_SECONDS)
            times.append((time.perf_counter() - before) * 1000)
            if answer.status_code != requests.codes.ok:
                raise Failed(f"{url}: {answer.status_code} {answer.text[:200]}")
            size = len(answer.content)
    times.sort()
    return Answer(what, statistics.median(times), times[max(0, int(_TIMES * 0.99) - 1)], size, _load(url))


def tables(served: Served) -> str:
    """For people."""
    rows = [
        [each.what, f"{each.median:.1f}", f"{each.p99:.1f}", f"{each.size / 1000:,.1f}",
         "-" if each.rate is None else f"{each.rate:,.0f}"]
        for each in served.answers
    ]  # fmt: skip
    head = [f"{served.images:,} images, {served.events:,} events", "median ms", "p99 ms", "kB", "a second, 8 at once"]
    return (
        f"{report.table(head, rows)}\n\nfirst answer after {served.start:.1f} s, {served.memory / 1e6:.0f} MB at most"
    )


def document(served: Served) -> dict[str, Any]:
    """For programs."""
    return asdict(served)


def make_site(home: Path, images: int, events: int) -> None:
    """A repository's links and catalogue, a list, and a history, all without any image."""
    layout, root = Layout(), home / "published"
    root.mkdir()
    lines: dict[str, CatalogueEntry] = {}
    for number in range(images):
        name = Reference("registry.example.org", f"group{number % 100}/tool{number}", str(number))
        digest = Digest.parse(f"sha256:{hashlib.sha256(str(name).encode()).hexdigest()}")
        link, tree = layout.link(name), layout.tree(digest, 1)
        path = root / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(relative_target(link, tree))
        at = (_START + timedelta(minutes=number)).isoformat()
        lines[link] = CatalogueEntry(
            str(name), str(digest), str(digest), "linux/amd64", tree, 500_000_000 + number, 20_000, at,
            f"Tool number {number}", "someone@example.org",
        )  # fmt: skip
    with DirectoryRepository(root).transaction("the catalogue") as transaction:
        write_catalogue(transaction, lines)
    wishes = "".join(f"  - {line.image}\n" for line in lines.values())
    (home / "image-list.yaml").write_text(f"version: 1\nimages:\n{wishes}")
    State(home / "state").close()
    links = list(lines)
    with closing(sqlite3.connect(home / "state/state.sqlite")) as database, database:
        database.executemany(
            "INSERT INTO events (at, link, name, event, digest, detail) VALUES (?, ?, ?, ?, ?, '1.0 s')",
            (
                ((_START + timedelta(seconds=number)).isoformat(), link, lines[link].image,
                 "published" if number % 3 else "failed", lines[link].digest)
                for number in range(events)
                for link in [links[number * 7919 % images]]
            ),
        )  # fmt: skip


@contextmanager
def serving(home: Path, **settings: Any) -> Iterator[tuple[str, int, float]]:
    """Address and process of a server, and how long it took to answer; `settings` are those of its configuration."""
    port = free_port()
    (home / "cvmfs-sync.yaml").write_text(json.dumps({"web": {"listen": f"127.0.0.1:{port}"}, **settings}))
    before = time.monotonic()
    process = subprocess.Popen([*OURS, "serve", "--config", str(home / "cvmfs-sync.yaml")])
    try:
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}/api/v1/cycle", timeout=_SECONDS)
                break
            except requests.ConnectionError:
                if process.poll() is not None or time.monotonic() - before > _SECONDS:
                    raise Failed("the server does not answer") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", process.pid, time.monotonic() - before
    finally:
        process.terminate()
        process.wait()


def _load(url: str) -> float | None:
    """Answers a second to eight connections."""
    if shutil.which("wrk") is None:
        return None
    command = ["wrk", "-t1", "-c8", f"-d{_LOAD_SECONDS}s", url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", out)
    return float(found[1]) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.pages", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small site")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers, and the machine")
    options = parser.parse_args(arguments)
    try:
        served = measure(*(QUICK if options.quick else FULL))
    except Failed as problem:
        sys.stderr.write(f"benchmarks: {problem}\n")
        return 1
    sys.stdout.write(f"{tables(served)}\n")
    if options.json is not None:
        result = {"machine": report.machine(mounted=False), "pages": document(served)}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
