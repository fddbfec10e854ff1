"""`/activity/events`: what the daemon does, told as it changes (server-sent events of the HTML standard).

All listeners share one look at the view each second. Who has gone is noticed within that time, listeners are so many at
most, and each stream ends after an hour: browsers then ask again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

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
    """

    def __init__(self) -> None:
        self.listeners = 0
        self._looking = asyncio.Lock()
        self._looked = float("-inf")
        self._text = ""

    async def text(self, view: View) -> str:
        """The cycle's document as JSON, not older than a second."""
        async with self._looking:
            if time.monotonic() - self._looked >= _SECONDS:
                self._text = (await run_in_threadpool(view.cycle)).model_dump_json()
                self._looked = time.monotonic()
            return self._text

    async def stream(self, request: Request, view: View) -> AsyncIterator[str]:
        """Events for one listener, until it has gone."""
        self.listeners += 1
        try:
            began = spoke = time.monotonic()
            told = None
            while time.monotonic() - began < _LONGEST_SECONDS and not await request.is_disconnected():
                text = await self.text(view)
                if text != told:
                    yield f"event: cycle\ndata: {text}\n\n"
                    told, spoke = text, time.monotonic()
                elif time.monotonic() - spoke >= _SILENCE_SECONDS:
                    yield ": still here\n\n"
                    spoke = time.monotonic()
                await asyncio.sleep(_SECONDS)
        finally:
            self.listeners -= 1


def live_router(most: int = _LISTENERS) -> APIRouter:
    """The stream, for so many listeners at the same time."""
    router = APIRouter(include_in_schema=False)
    broadcast = Broadcast()

    @router.get("/activity/events")
    async def events(request: Request) -> Response:
        """What the daemon does, as it changes."""
        if broadcast.listeners >= most:
            return Response("too many listen already\n", 503, media_type="text/plain", headers={"Retry-After": "30"})
        return StreamingResponse(
            broadcast.stream(request, view_of(request)),
            media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )  # fmt: skip

    return router
