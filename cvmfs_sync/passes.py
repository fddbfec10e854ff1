"""The pass of one image through a cycle: an id that ties its log lines together, whichever thread they come from."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["current_pass", "in_pass", "new_pass"]

_current: ContextVar[str] = ContextVar("pass", default="")


def new_pass() -> str:
    """An id: 8 hexadecimal digits."""
    return secrets.token_hex(4)


@contextmanager
def in_pass(ident: str) -> Iterator[None]:
    """What is logged in this block belongs to that pass; threads that it starts have to be given its context."""
    token = _current.set(ident)
    try:
        yield
    finally:
        _current.reset(token)


def current_pass() -> str:
    """The id, or nothing outside of a pass."""
    return _current.get()
