"""Does a page under load slow a publish? README.md says what is measured.

    python -m benchmarks.visitors [--quick] [--runs N] [--json FILE]

`make bench` runs it, where there is wrk. One image is published again and again into a new repository: while nobody
asks for a page, while wrk asks `cvmfs-sync serve` as fast as it answers, and while wrk asks another server, which does
next to nothing for it, and not more often.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import images, report
from benchmarks.contenders import OURS
from benchmarks.measure import Failed, Sample, can_mount, fresh_directory, large_temporary, run
from benchmarks.pages import make_site, serving
from tests.support.registry import start_docker_registry

__all__ = ["NOBODY", "OTHERS", "VISITORS", "Visited", "document", "measure", "missing", "ratio", "subject", "tables"]

NOBODY, VISITORS, OTHERS = "nobody asks", "visitors of the pages", "visitors of another server"
_SITE = (1_000, 50_000)
_CONNECTIONS = 16
_LONGEST_SECONDS = 3600
_LOWEST = 19
# Visitors are there when the server has worked for so long.
_BUSY_SECONDS = 0.1
_START_SECONDS = 120.0
_REPOSITORY = "bench/image"
_PATHS = ("/", "/?q=tool+77", "/images/registry.example.org/group7/tool7:7", "/activity", "/operations",
          "/api/v1/images", "/feeds/all.atom")  # fmt: skip
_SCRIPT = """
local paths, number = {%s}, 0
request = function()
  number = number %% #paths + 1
  return wrk.format("GET", paths[number])
end
"""
# As many answers as pages have in the best case: ten times as many would measure the kernel's network.
_PAUSE = 0.1
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000


@dataclass(frozen=True, slots=True)
class Visited:
    """One publication, and what was going on meanwhile.

    Attributes:
        sample: What the publication took.
        rate: Answers that visitors got in a second.
        served: Seconds of processor time that the server took in each second of it.
    """

    who: str
    sample: Sample
    rate: float
    served: float


def missing() -> str:
    """What is needed and not there; empty if all is."""
    absent = [needed for needed in ("docker-registry", "wrk") if shutil.which(needed) is None]
    return f"not on PATH: {', '.join(absent)}" if absent else ""


def subject(*, quick: bool) -> images.Subject:
    """What is published."""
    return images.synthetic() if quick else images.synthetic(20_000, 400 << 20)


def measure(image: images.Subject, *, runs: int, mount: bool) -> list[Visited]:
    """Each of the three once in a round, in another order each time.

    Raises:
        Failed: Nothing was published, or nobody was answered.
    """
    kinds, found = [NOBODY, VISITORS, OTHERS], []
    with (
        tempfile.TemporaryDirectory(prefix="cvmfs-sync-registry-", dir=large_temporary()) as directory,
        start_docker_registry(Path(directory)) as registry,
    ):
        name = registry.push_layout(image.layout, image.tags[0], _REPOSITORY, "1")
        for number in range(runs):
            for who in kinds[number % 3 :] + kinds[: number % 3]:
                with fresh_directory(mount=mount) as home:
                    found.append(_published(home, name, registry.host, who))
                sys.stderr.write(
                    f"benchmarks: round {number + 1}: {who}: {found[-1].sample.wall:.2f} s, "
                    f"{found[-1].rate:,.0f} answers a second, load {os.getloadavg()[0]:.1f}\n"
                )
    return found


def ratio(found: Sequence[Visited], who: str, than: str) -> float:
    """How much longer a publication took: the median of the ratios within a round."""
    mine, others = ([each.sample.wall for each in found if each.who == one] for one in (who, than))
    return statistics.median(one / other for one, other in zip(mine, others, strict=True))


def tables(found: Sequence[Visited]) -> str:
    """For people."""
    rows = []
    best = min(each.sample.wall for each in found if each.who == NOBODY)
    for who in dict.fromkeys(each.who for each in sorted(found, key=lambda each: each.who != NOBODY)):
        mine = [each for each in found if each.who == who]
        walls = [each.sample.wall for each in mine]
        rows.append(
            (
                who,
                f"{statistics.median(walls):.2f}",
                f"{min(walls):.2f}-{max(walls):.2f}",
                f"{statistics.median(each.sample.cpu for each in mine):.2f}",
                f"{ratio(found, who, NOBODY):.3f}",
                f"{min(walls) / best:.3f}",
                f"{statistics.median(each.served for each in mine):.2f}",
                f"{statistics.median(each.rate for each in mine):,.0f}",
            )
        )
    head = ("publishing while", "wall s", "from-to", "CPU s", "x nobody", "best", "server's CPU", "answers a second")
    return f"{report.table(head, rows)}\n\npages : another server = {ratio(found, VISITORS, OTHERS):.3f}"


def document(found: Sequence[Visited]) -> list[dict[str, Any]]:
    """For programs."""
    return [asdict(each) for each in found]


def _published(home: Path, image: str, host: str, who: str) -> Visited:
    """One publication into a new repository that has pages and a history."""
    make_site(home, *_SITE)
    settings = {"registries": {host: {"insecure": True}}, "repository": {"root": str(home / "published")}}
    with (home / "image-list.yaml").open("a") as wishes:
        wishes.write(f"  - {image}\n")
    publish = f"exec {' '.join(OURS)} sync --config {home}/cvmfs-sync.yaml {image}"
    with serving(home, **settings) as (url, server, _), _another_server() as (other, idle):
        asked, process = (other, idle) if who == OTHERS else (url, server)
        with _visitors(home, None if who == NOBODY else asked, process) as visitors:
            before = _seconds(process)
            sample = run(publish, home)
            served = (_seconds(process) - before) / sample.wall
        rate = visitors[0] if visitors else 0.0
        if who != NOBODY and not rate:
            raise Failed(f"{who}: nobody was answered")
        if not (home / "published" / image).is_dir():
            raise Failed(f"{image} was not published")
    return Visited(who, sample, rate, served)


@contextmanager
def _visitors(home: Path, url: str | None, server: int) -> Iterator[list[float]]:
    """Ask as fast as there are answers while the block lasts; afterwards the rate is in the list.

    Raises:
        Failed: The server does not work at it, or does not answer well.
    """
    rates: list[float] = []
    if url is None:
        yield rates
        return
    script = home / "paths.lua"
    script.write_text(_SCRIPT % ", ".join(json.dumps(path) for path in _PATHS))
    command = ["nice", "-n", str(_LOWEST), "wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{_LONGEST_SECONDS}s", "-s",
               str(script), url]  # fmt: skip
    asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        before, began = _seconds(server), time.monotonic()
        while _seconds(server) - before < _BUSY_SECONDS:
            if asking.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise Failed("visitors get nothing")
            time.sleep(0.05)
        yield rates
    finally:
        # It then tells what it has seen.
        asking.send_signal(signal.SIGINT)
        said, _ = asking.communicate(timeout=60)
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    bad = re.search(r"Non-2xx or 3xx responses: \d+", said)
    if bad is not None:
        raise Failed(bad[0])
    rates.append(float(found[1]) if found else 0.0)


@contextmanager
def _another_server() -> Iterator[tuple[str, int]]:
    """Address and process of a server that gives everybody the same answer, at the lowest priority."""
    command = [sys.executable, "-m", "benchmarks.visitors", "--serve"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}", server.pid
    finally:
        server.terminate()
        server.communicate()


class _Connection(asyncio.Protocol):
    """Whatever is asked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(_PAUSE, self._transport.write, _ANSWER * data.count(b"\r\n\r\n"))


async def _serve() -> None:
    os.nice(_LOWEST)
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def _seconds(process: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.visitors", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small image")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="rounds; medians are shown (default: 5)")
    parser.add_argument("--no-mount", action="store_true", help="do without a new file system for each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all samples, and the machine")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        asyncio.run(_serve())
    mount = not options.no_mount and not can_mount()
    try:
        if absent := missing():
            raise Failed(absent)
        found = measure(subject(quick=options.quick), runs=options.runs, mount=mount)
    except Failed as problem:
        sys.stderr.write(f"benchmarks: {problem}\n")
        return 1
    sys.stdout.write(f"{tables(found)}\n")
    if options.json is not None:
        result = {"machine": report.machine(mounted=mount), "visitors": document(found)}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
