"""What all answers have in common, and which requests are not heard at all.

An ASGI application goes in, and one comes out that adds headers by which a browser runs and loads nothing but what is
ours, that refuses requests which are too large before anything of them is read, and that tells nobody but the log what
went wrong where the program has a defect.
"""

from __future__ import annotations

import json
import logging

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CONTENT_SECURITY_POLICY", "Guard"]

log = logging.getLogger(__name__)
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_DEFECT = {
    "type": "about:blank", "title": "Internal Server Error", "status": 500,
    "detail": "a defect of cvmfs-sync; its log tells more",
}  # fmt: skip
_LONGEST_TARGET = 8192
_LARGEST_BODY = 1 << 20


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, largest_body: int = _LARGEST_BODY) -> None:
        self._app = app
        self._largest_body = largest_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, if it is one that can be heard."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > _LONGEST_TARGET:
            await _refuse(guarded, 414, b"the address is too long\n")
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self._largest_body:
            await _refuse(guarded, 413, b"the request is too large\n")
            return
        heard = 0

        async def bounded() -> Message:
            nonlocal heard
            message = await receive()
            heard += len(message.get("body", b""))
            if heard > self._largest_body:
                # What reads the body ends as if the client had gone.
                return {"type": "http.disconnect"}
            return message

        try:
            await self._app(scope, bounded, guarded)
        except Exception:
            log.exception("a request met a defect of cvmfs-sync; please report this")
            if not begun:
                await _answer(guarded, 500, b"application/problem+json", json.dumps(_DEFECT).encode())


async def _refuse(send: Send, status: int, text: bytes) -> None:
    await _answer(send, status, b"text/plain; charset=utf-8", text)


async def _answer(send: Send, status: int, media_type: bytes, text: bytes) -> None:
    headers = [(b"content-type", media_type), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
