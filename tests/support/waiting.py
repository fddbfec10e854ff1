"""Waiting for what other processes and threads do: until it is so, however slow this machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["wait_until"]

_GLANCE = 0.05


def wait_until(
    condition: Callable[[], object], why: Callable[[], object] = lambda: "it never happened", *, seconds: float = 120
) -> None:
    """Wait until something holds.

    Args:
        condition: Asked again and again.
        why: What to say if it never does.
        seconds: Then it is hanging; no test depends on how long it takes.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(_GLANCE)
