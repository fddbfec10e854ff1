"""One cycle over several images against a cycle for each of them, from a registry behind a narrow line.

Images that have nothing in common go in; how long both ways took comes out, and how long the repository's lock was held
meanwhile. The line is a proxy on loopback that lets so many bytes a second through, all connections together.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import fresh_directory
from benchmarks.places import directory_place
from benchmarks.report import table
from benchmarks.successors import distinct
from tests.support.registry import RegistryServer

__all__ = ["Line", "measure", "narrow", "pipeline_table"]

IMAGES = 5
RATE = 20_000_000
"""Bytes a second: fetching takes about as long as publishing then, which is where there is most to gain."""
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Line:
    """One way of publishing all the images.

    Attributes:
        way: "one by one" or "one cycle".
        wall: Seconds of the cycles.
        locked: Seconds in which the repository's lock was held.
        first: Seconds until it was held first.
        compressed: Bytes that were fetched.
    """

    way: str
    wall: float
    locked: float
    first: float
    compressed: int


def measure(registry: RegistryServer, *, files: int, size: int, mount: bool) -> list[Line]:
    """Publish images of so many files and bytes both ways.

    Raises:
        Failed: One could not be published.
    """
    layout = distinct(IMAGES, files, size)
    for number in range(IMAGES):
        registry.push_layout(layout, str(number), f"bench/distinct-{number}", "1")
    lines = []
    for way, options in (("one by one", ("--one-by-one",)), ("one cycle", ())):
        with narrow(registry.host, RATE) as host, fresh_directory(mount=mount) as base:
            names = [f"{host}/bench/distinct-{number}:1" for number in range(IMAGES)]
            document, _, _ = directory_place(base, host).measured(names, *options)
            lines.append(_line(way, document))
    return lines


def _line(way: str, document: dict[str, Any]) -> Line:
    turns = document["transactions"]
    return Line(
        way, document["seconds"], sum(turn["seconds"] for turn in turns), turns[0]["start"],
        sum(each["compressed"] for each in document["images"]),
    )  # fmt: skip


def pipeline_table(lines: list[Line]) -> str:
    """Both ways, and what was gained of what could be."""
    rows = []
    for line in lines:
        fetching = line.wall - line.locked
        rows.append(
            (
                f"{IMAGES} images, {line.compressed / 1e6:.0f} MB at {RATE / 1e6:.0f} MB/s: {line.way}",
                f"{line.wall:.2f}",
                f"{line.locked:.2f}",
                f"{fetching:.2f}",
                f"{line.first:.2f}",
                f"{lines[0].wall / line.wall:.2f}",
            )
        )
    header = ("registry -> directory", "wall s", "locked s", "not locked s", "before the first s", "one by one : this")
    return table(header, rows)


@contextmanager
def narrow(host: str, rate: int) -> Iterator[str]:
    """`127.0.0.1:PORT` of a proxy to a server that lets so many bytes a second of its answers through."""
    name, _, port = host.rpartition(":")
    bucket = _Bucket(rate)
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection((name, int(port))) as server:
            connections.extend((client, server))
            asking = threading.Thread(target=_copy, args=(client, server, None))
            asking.start()
            _copy(server, client, bucket)
            asking.join()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=relay, args=(client,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Closing alone does not wake whoever is waiting.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for each in connections:
            _shut_down(each)
        for thread in threads:
            thread.join()


class _Bucket:
    """Bytes that may pass: what was not used within a moment is lost."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def take(self, amount: int) -> None:
        """Wait until so many may pass."""
        with self._lock:
            self._free = max(self._free, time.monotonic() - 0.01) + amount / self._rate
            pause = self._free - time.monotonic()
        if pause > 0:
            time.sleep(pause)


def _copy(source: socket.socket, target: socket.socket, bucket: _Bucket | None) -> None:
    """Until one of them ends; then both do."""
    try:
        while piece := source.recv(_PIECE):
            if bucket is not None:
                bucket.take(len(piece))
            target.sendall(piece)
    except OSError:
        pass
    _shut_down(source)
    _shut_down(target)


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
