"""The server process: listens, answers, and ends when it is told to or when its parent has gone.

It runs at the lowest priority that the machine has, so that visitors get what publishing leaves. How many connections
there are, and how long a slow one may take, is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from cvmfs_sync.errors import UsageError
from cvmfs_sync.units import Address

__all__ = ["serve", "step_back"]

log = logging.getLogger(__name__)
_CONNECTIONS = 200
_KEEP_ALIVE_SECONDS = 5
# From the beginning of a connection, or the end of an answer, until a request has arrived.
_REQUEST_SECONDS = 5.0
_END_SECONDS = 2
_GLANCE_SECONDS = 1.0
_LOWEST = 19


def serve(
    app: ASGIApp, address: Address, *, parent: int | None = None, ending: Callable[[], object] = lambda: None
) -> None:
    """Answer until SIGTERM or SIGINT.

    Args:
        app: What answers.
        address: Where to listen.
        parent: A process without which this one shall not go on.
        ending: Called when the end begins, before answers that are under way are waited for.

    Raises:
        UsageError: The address can't be listened on.
    """
    with _listening(address) as listener:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none", http=_Impatient,
            limit_concurrency=_CONNECTIONS, timeout_keep_alive=_KEEP_ALIVE_SECONDS, proxy_headers=False,
            timeout_graceful_shutdown=_END_SECONDS, h11_max_incomplete_event_size=16_384,
        )  # fmt: skip
        server = _Server(config, ending)
        log.info("serving pages on %s", address)
        asyncio.run(_serve(server, listener, parent))


class _Server(uvicorn.Server):
    """Tells that it ends."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], object]) -> None:
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._ending()
        await super().shutdown(sockets)


class _Impatient(H11Protocol):
    """Hangs up on whoever does not ask: uvicorn itself waits for a request's head for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection begins."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Some of a request, or all of it."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer has been given."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection is over."""
        self._disarm()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Wait for a request, but for so long only; not while one is answered."""
        cycle: RequestResponseCycle | None = self.cycle  # before the first request there is none
        if cycle is not None and not cycle.response_complete:
            self._disarm()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_REQUEST_SECONDS, self.transport.close)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


async def _serve(server: uvicorn.Server, listener: socket.socket, parent: int | None) -> None:
    watch = asyncio.create_task(_end_with(parent, server)) if parent is not None else None
    try:
        await server.serve(sockets=[listener])
    finally:
        if watch is not None:
            watch.cancel()


async def _end_with(parent: int, server: uvicorn.Server) -> None:
    while os.getppid() == parent:
        await asyncio.sleep(_GLANCE_SECONDS)
    log.info("process %d has ended: so does this one", parent)
    server.should_exit = True


def step_back() -> None:
    """Let everybody else on this machine go first.

    Not `SCHED_IDLE`: a publisher that is busy for hours would show no pages for hours.
    """
    with suppress(OSError):
        os.nice(_LOWEST - os.nice(0))


def _listening(address: Address) -> socket.socket:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot serve pages on {address}",
            found=error.strerror or str(error),
            todo="choose another address in web.listen, or end what listens there",
        ) from error
    return listener
