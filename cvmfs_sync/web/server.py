"""The server process: listens, answers, and ends when it is told to or when its parent has gone.

It runs at the lowest priority that the machine has, so that visitors get what publishing leaves. How many connections
there are, and how long a slow one may take, is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from cvmfs_sync.errors import UsageError
from cvmfs_sync.units import Address

__all__ = ["serve", "step_back"]

log = logging.getLogger(__name__)
_CONNECTIONS = 200
_KEEP_ALIVE_SECONDS = 5
_END_SECONDS = 2
_GLANCE_SECONDS = 1.0
_LOWEST = 19


def serve(app: ASGIApp, address: Address, *, parent: int | None = None) -> None:
    """Answer until SIGTERM or SIGINT.

    Args:
        app: What answers.
        address: Where to listen.
        parent: A process without which this one shall not go on.

    Raises:
        UsageError: The address can't be listened on.
    """
    with _listening(address) as listener:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none", http="h11",
            limit_concurrency=_CONNECTIONS, timeout_keep_alive=_KEEP_ALIVE_SECONDS, proxy_headers=False,
            timeout_graceful_shutdown=_END_SECONDS, h11_max_incomplete_event_size=16_384,
        )  # fmt: skip
        server = uvicorn.Server(config)
        log.info("serving pages on %s", address)
        asyncio.run(_serve(server, listener, parent))


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
