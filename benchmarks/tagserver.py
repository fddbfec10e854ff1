"""A registry on loopback that costs little and counts everything: a process of its own, for thousands of tags.

A number of repositories and of tags in each go in; every tag is an image of its own, made of four small layers that all
share and one of its own. What was asked, and when, comes out. Serves manifests, configurations and layers, to whoever
asks and over plain HTTP; neither tokens, nor tag lists, nor uploads.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["Arrivals", "TagServer", "digest_of", "image", "names", "serving"]

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_SHARED = 4
_FILES = 5


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What has come since it was last asked for.

    Attributes:
        methods: Requests by method.
        not_modified: How many of them were answered with 304.
        most: Requests for the one path that was asked for most often.
        paths: How many paths were asked for.
        times: When each came, in seconds from the first.
    """

    methods: dict[str, int]
    not_modified: int
    most: int
    paths: int
    times: list[float]


def names(repositories: int, tags: int) -> Iterator[tuple[str, str]]:
    """Repository and tag of every image."""
    for repository in range(repositories):
        for tag in range(tags):
            yield f"group{repository % 25:02d}/tool{repository:04d}", f"{tag // 10}.{tag % 10}"


def image(repository: str, tag: str) -> tuple[bytes, bytes, tuple[bytes, ...]]:
    """Manifest, configuration and layers of an image; the same in every process."""
    own = _layer({f"opt/{repository}/{number}": f"{tag} {number}\n" for number in range(_FILES)})
    layers = (*_shared(), own)
    configuration = {
        "architecture": "amd64", "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"], "Cmd": ["/bin/sh"],
            "Labels": {"org.opencontainers.image.title": repository, "org.opencontainers.image.version": tag},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
    }  # fmt: skip
    config = json.dumps(configuration).encode()
    manifest = {
        "schemaVersion": 2, "mediaType": _MANIFEST, "config": _descriptor(_CONFIG, config),
        "layers": [_descriptor(_LAYER, layer) for layer in layers],
    }  # fmt: skip
    return json.dumps(manifest).encode(), config, layers


@cache
def _shared() -> tuple[bytes, ...]:
    return tuple(
        _layer({f"usr/share/base{number}/{name}": f"{number} {name}\n" * 20 for name in range(_FILES)})
        for number in range(_SHARED)
    )


def _layer(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(text), 1_700_000_000
            tar.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


def digest_of(content: bytes) -> str:
    """As a manifest names it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


class TagServer:
    """A server that runs; see `serving`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.host = f"127.0.0.1:{self._ask()}"

    def arrivals(self) -> Arrivals:
        """What has come since this was called last."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Arrivals(**self._ask())

    def _ask(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def serving(repositories: int, tags: int, *, etags: bool = False) -> Iterator[TagServer]:
    """A server, as long as the block runs.

    Args:
        repositories: How many there are.
        tags: How many each of them has.
        etags: Whether manifests have an ETag, and a request that names it is answered with 304.
    """
    command = [sys.executable, "-m", "benchmarks.tagserver", str(repositories), str(tags), *(["--etags"] * etags)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield TagServer(process)
        finally:
            process.terminate()


class _Log:
    """What has come."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.methods: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.times = array("d")
        self.not_modified = 0

    def report(self) -> dict[str, Any]:
        """As `Arrivals` wants it."""
        first = self.times[0] if self.times else 0.0
        return {
            "methods": dict(self.methods), "not_modified": self.not_modified,
            "most": max(self.paths.values(), default=0), "paths": len(self.paths),
            "times": [round(each - first, 6) for each in self.times],
        }  # fmt: skip


class _Connection(asyncio.Protocol):
    """One connection of HTTP/1.1, kept open."""

    def __init__(self, documents: dict[str, tuple[bytes, bytes]], log: _Log, *, etags: bool) -> None:
        self._documents = documents
        self._log = log
        self._etags = etags
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        *heads, self._pending = (self._pending + data).split(b"\r\n\r\n")
        for head in heads:
            self._transport.write(self._answer(head))

    def _answer(self, head: bytes) -> bytes:
        log = self._log
        log.times.append(time.monotonic())
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        log.methods[method] += 1
        log.paths[path] += 1
        found = self._documents.get(path) or self._documents.get(f"blobs/{path.rpartition('/')[2]}")
        if found is None:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        headers, content = found
        if self._etags and b"if-none-match:" in head.lower():
            log.not_modified += 1
            return b"HTTP/1.1 304 Not Modified\r\n\r\n"
        return headers + (content if method == "GET" else b"")


def _documents(repositories: int, tags: int, *, etags: bool) -> dict[str, tuple[bytes, bytes]]:
    """Head and body of every answer, by path; those of blobs, which are in all repositories, by `blobs/<digest>`."""
    found: dict[str, tuple[bytes, bytes]] = {}
    for repository, tag in names(repositories, tags):
        manifest, config, layers = image(repository, tag)
        digest = digest_of(manifest)
        more = f'ETag: "{digest}"\r\n' if etags else ""
        head = _head(manifest, _MANIFEST, f"Docker-Content-Digest: {digest}\r\n{more}")
        for name in (tag, digest):
            found[f"/v2/{repository}/manifests/{name}"] = head, manifest
        for blob in (config, *layers):
            found.setdefault(f"blobs/{digest_of(blob)}", (_head(blob, "application/octet-stream", ""), blob))
    return found


def _head(content: bytes, media_type: str, more: str) -> bytes:
    return (f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {len(content)}\r\n{more}\r\n").encode()


async def _serve(repositories: int, tags: int, *, etags: bool) -> None:
    loop = asyncio.get_running_loop()
    documents, log = _documents(repositories, tags, etags=etags), _Log()
    server = await loop.create_server(lambda: _Connection(documents, log, etags=etags), "127.0.0.1", 0)
    _tell(server.sockets[0].getsockname()[1])
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while await commands.readline():
        _tell(log.report())
        log.clear()


def _tell(what: object) -> None:
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="benchmarks.tagserver", description="A registry that counts.")
    parser.add_argument("repositories", type=int)
    parser.add_argument("tags", type=int)
    parser.add_argument("--etags", action="store_true")
    options = parser.parse_args()
    asyncio.run(_serve(options.repositories, options.tags, etags=options.etags))


if __name__ == "__main__":
    main()
