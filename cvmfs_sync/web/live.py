"""`/activity/events`: what the daemon does, told as it changes (server-sent events of the HTML standard).

All listeners share one look at the view each second. They are so many at most, and each stream ends after an hour:
browsers then ask again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from cvmfs_sync.view.queries import View
from cvmfs_sync.web.api import view_of

__all__ = ["Broadcast", "live_router"]

_LISTENERS = 50
_SECONDS = 1.0
_SILENCE_SECONDS = 15.0
_LONGEST_SECONDS = 3600.0


class Broadcast:
    """What the daemon does, for all who listen.

    Attributes:
        listeners: How many there are.
        most: How many there may be.
    """

    def __init__(self, most: int = _LISTENERS) -> None:
        self.listeners = 0
        self.most = most
        self._over = asyncio.Event()
        self._looking = asyncio.Lock()
        self._looked = float("-inf")
        self._text = ""

    def close(self) -> None:
        """End all streams: a server that ends waits for its answers."""
        self._over.set()

    @contextmanager
    def place(self) -> Iterator[bool]:
        """A place to listen from while the block lasts; False if there is none."""
        if self.listeners >= self.most:
            yield False
            return
        self.listeners += 1
        try:
            yield True
        finally:
            self.listeners -= 1

    async def text(self, view: View) -> str:
        """The cycle's document as JSON, not older than a second."""
        async with self._looking:
            if time.monotonic() - self._looked >= _SECONDS:
                self._text = (await run_in_threadpool(view.cycle)).model_dump_json()
                self._looked = time.monotonic()
            return self._text

    async def stream(self, view: View) -> AsyncIterator[str]:
        """Events for one listener."""
        began = spoke = time.monotonic()
        told = None
        while time.monotonic() - began < _LONGEST_SECONDS and not self._over.is_set():
            text = await self.text(view)
            if text != told:
                yield f"event: cycle\ndata: {text}\n\n"
                told, spoke = text, time.monotonic()
            elif time.monotonic() - spoke >= _SILENCE_SECONDS:
                yield ": still here\n\n"
                spoke = time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _SECONDS)


class _Stream(StreamingResponse):
    """A stream that has a place while it lasts, which ends when its listener has gone; or a refusal."""

    def __init__(self, broadcast: Broadcast, view: View) -> None:
        super().__init__(
            broadcast.stream(view), media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )  # fmt: skip
        self._broadcast = broadcast

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._broadcast.place() as free:
            if free:
                await super().__call__(scope, receive, send)
                return
        refusal = PlainTextResponse("too many listen already\n", 503, headers={"Retry-After": "30"})
        await refusal(scope, receive, send)


def live_router(broadcast: Broadcast | None = None) -> APIRouter:
    """The stream."""
    router = APIRouter(include_in_schema=False)
    shared = broadcast or Broadcast()

    @router.get("/activity/events")
    async def events(request: Request) -> Response:
        """What the daemon does, as it changes."""
        return _Stream(shared, view_of(request))

    return router
