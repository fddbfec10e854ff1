"""A small HTTP server for pages that anybody on the machine, or its network, may read.

Pages by their path go in, each a WSGI application; they are served from threads, until `close`. Whoever connects may be
slow, or mean no good: connections are few and short, so that nobody keeps others from the pages for long, and never
those who work.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from cvmfs_sync.errors import UsageError

__all__ = ["Endpoint"]

log = logging.getLogger(__name__)
_CONNECTIONS = 16
_SECONDS = 10.0
_POLL_SECONDS = 0.5


class Endpoint:
    """A server that is listening.

    Args:
        host: A name or an address.
        port: 0 for any that is free.
        pages: WSGI applications by path.
        connections: At the same time, at most; who comes later is hung up on.
        seconds: That a connection may last.

    Attributes:
        port: On which it listens.

    Raises:
        UsageError: The address can't be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, WSGIApplication],
        *,
        connections: int = _CONNECTIONS,
        seconds: float = _SECONDS,
    ) -> None:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            kind = type("_Server6", (_Server,), {"address_family": family})
            self._server: _Server = kind((host, port), connections, seconds)
        except OSError as error:
            raise UsageError(
                f"cannot serve metrics on {host}:{port}",
                found=str(error), todo="choose another address in metrics.listen, or null for none",
            ) from error  # fmt: skip
        self._server.set_app(_dispatching(pages))
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="endpoint", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and end what is open."""
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up(older_than=0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _dispatching(pages: Mapping[str, WSGIApplication]) -> WSGIApplication:
    """The application that is all of them."""

    def application(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        page = pages.get(environment.get("PATH_INFO", ""))
        if page is None:
            start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"there are {', '.join(sorted(pages))}\n".encode()]
        if environment.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start("405 Method Not Allowed", [("Content-Type", "text/plain; charset=utf-8"), ("Allow", "GET, HEAD")])
            return [b"this is to be read only\n"]
        return page(environment, start)

    return application


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], connections: int, seconds: float) -> None:
        self._limit = connections
        self._seconds = seconds
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the name service: the base class would ask it for our own name, and wait."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def verify_request(self, request: Any, _client_address: Any) -> bool:
        """Whether there is room for one more."""
        with self._lock:
            if len(self._open) >= self._limit:
                return False
            self._open[request] = time.monotonic()
        return True

    def shutdown_request(self, request: Any) -> None:
        """A connection is over."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called again and again: a client that sends a byte now and then is not waited for beyond its time."""
        self.hang_up(older_than=self._seconds)

    def hang_up(self, *, older_than: float) -> None:
        """End connections that have lasted longer: there is room for others, and their threads end with an error."""
        now = time.monotonic()
        with self._lock:
            for connection in [each for each, since in self._open.items() if now - since >= older_than]:
                del self._open[connection]
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """A client that went away, or was sent away, is no reason to say much."""
        log.debug("a connection to the metrics failed: %r", sys.exception())


class _Handler(WSGIRequestHandler):
    timeout = _SECONDS

    def address_string(self) -> str:
        """Without the name service."""
        return str(self.client_address[0])

    def log_message(self, *_: object) -> None:
        """Whoever reads metrics does so all the time."""
