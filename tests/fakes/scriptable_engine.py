"""A stand-in for an engine's API on a unix socket, for what a real one does rarely.

It has images by name, each with an ID and the bytes of its export; a test changes them, and what is answered instead.
Only what `registry.engine` asks for is there (Docker Engine API 1.41: `/version`, `/images/json`, `/images/NAME/json`,
`/images/ID/get`). `tests/test_engine_source.py` runs the same contract against Podman.
"""

from __future__ import annotations

import json
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

__all__ = ["ScriptableEngine", "start_scriptable_engine"]


@dataclass
class ScriptableEngine:
    """What the engine has, and what it was asked.

    Attributes:
        host: Its socket, as DOCKER_HOST has it.
        images: IDs by name.
        exports: Bytes by ID.
        status: Answered to everything but `/version`, instead of what is there, if it is not 200.
        cut: So many bytes of an export are sent before the connection is closed.
        silent: Nothing but `/version` is answered until it is set.
        answer: What inspecting an image gives, if not its ID alone.
        requests: Paths without the version.
    """

    host: str
    images: dict[str, str] = field(default_factory=dict)
    exports: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    cut: int | None = None
    silent: threading.Event | None = None
    answer: Any = None
    requests: list[str] = field(default_factory=list)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    engine: ScriptableEngine

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that has read enough closes its end."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        engine = server.engine
        path = unquote(self.path.partition("?")[0])
        if path.endswith("/version"):
            self._json(200, {"ApiVersion": "1.41", "MinAPIVersion": "1.24"})
            return
        path = path.removeprefix("/v1.41")
        engine.requests.append(path)
        name = path.removeprefix("/images/").rpartition("/")[0]
        if engine.silent is not None:
            engine.silent.wait(30)
        if engine.status != 200:
            self._json(engine.status, {"message": "scripted"})
        elif path == "/images/json":
            self._json(200, [{"Id": each, "RepoTags": [name, "<none>:<none>"]} for name, each in engine.images.items()])
        elif path.endswith("/json") and name in engine.images:
            self._json(200, engine.answer if engine.answer is not None else {"Id": engine.images[name]})
        elif path.endswith("/get") and name in engine.exports:
            self._export(engine.exports[name], engine.cut)
        else:
            self._json(404, {"message": f"No such image: {name}"})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _json(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _export(self, content: bytes, cut: int | None) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(content[:cut]), 10_000):
            piece = content[:cut][at : at + 10_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if cut is None:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True


@contextmanager
def start_scriptable_engine() -> Iterator[ScriptableEngine]:
    """Serve for the length of a `with` block."""
    # Not below pytest's directory: the path of a socket has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="cvmfs-sync-engine-", dir="/tmp"))
    try:
        with _Server(str(directory / "socket"), _Handler) as server:
            server.engine = ScriptableEngine(f"unix://{directory}/socket")
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server.engine
            finally:
                server.shutdown()
                thread.join()
    finally:
        shutil.rmtree(directory)
