"""A registry's own words about an error, fit to be shown.

A response goes in, one short printable line comes out: the status and, where the body is the distribution-spec's error
document, its codes and messages. What the request carried as a secret is struck out, for some servers repeat it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

import requests

from cvmfs_sync.registry.body import BodyCutError, read_body
from cvmfs_sync.registry.politeness import Timing
from cvmfs_sync.registry.urls import describe

__all__ = ["explain"]

MAX_LINE = 300
MAX_BODY = 64 * 1024


def explain(response: requests.Response, timing: Timing) -> str:
    """`403 Forbidden (DENIED: requested access to the resource is denied)`."""
    status = describe(response.status_code)
    words = "; ".join(_messages(_beginning(response, timing)))
    for secret in _secrets(response.request.headers.get("Authorization")):
        words = words.replace(secret, "***")
    words = "".join(c if c.isprintable() else " " for c in words)
    return f"{status} ({words[:MAX_LINE]})" if words.strip() else status


def _beginning(response: requests.Response, timing: Timing) -> bytes:
    content = b""
    try:
        for piece in read_body(response, timing, within=timing.patience.discard):
            content += piece
            if len(content) >= MAX_BODY:
                break
    except BodyCutError:
        pass  # the status says enough
    return content[:MAX_BODY]


def _messages(content: bytes) -> Iterator[str]:
    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError):
        return
    errors = document.get("errors") if isinstance(document, dict) else None
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict):
            parts = [part for part in (error.get("code"), error.get("message")) if isinstance(part, str) and part]
            if parts:
                yield ": ".join(parts)


def _secrets(authorization: str | bytes | None) -> Iterator[str]:
    if not authorization:
        return
    text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization
    scheme, _, value = text.partition(" ")
    if not value:
        return
    yield value
    if scheme == "Basic":
        try:
            pair = base64.b64decode(value).decode()
        except (binascii.Error, UnicodeDecodeError):
            return
        yield pair
        password = pair.partition(":")[2]
        if password:
            yield password
