"""URLs and statuses as messages may show them: never a path, a query or a user, for some hold a secret."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

__all__ = ["describe", "host_of", "origin"]

_DEFAULT_PORTS = {"https": 443, "http": 80}


def origin(url: str) -> str:
    """Scheme, host and, unless it is the scheme's own, port."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    suffix = "" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host}{suffix}"


def host_of(url: str) -> str:
    """The origin, without the scheme where that is what everybody expects."""
    return origin(url).removeprefix("https://")


def describe(status: int) -> str:
    """`404 Not Found`. The phrase is the standard's, since a server may put anything there."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
