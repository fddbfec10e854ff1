"""Answers that need not be sent again: ETag and If-None-Match (RFC 9110)."""

from __future__ import annotations

import hashlib

from fastapi import Request
from fastapi.responses import Response

__all__ = ["cached"]


def cached(request: Request, content: bytes, media_type: str, *, seconds: int = 0) -> Response:
    """An answer with this content, or 304 if the client has it already.

    Args:
        request: What was asked.
        content: Of the answer.
        media_type: Of the content.
        seconds: For how long it may be shown without asking again.
    """
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": f"max-age={seconds}" if seconds else "no-cache"}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
