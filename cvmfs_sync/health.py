"""Whether the daemon is well: the pages `/healthz` and `/readyz`.

What is known of the daemon goes in, by functions that are asked when somebody looks; small JSON documents come out,
with status 200, or 503 where something is wrong. They hold neither paths nor names: anybody may read them.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Health", "page", "readable"]

_OK = "ok"
# A single command of the server, in which nothing can be seen to move, may take some minutes.
_STUCK_SECONDS = 900.0
_PATIENCE_SECONDS = 2.0


class Health:
    """What the two pages tell.

    Args:
        moved: Whether the main loop is idle, or has got on since this was last called.
        checks: By name, what says in a few words why the daemon is not ready, or `ok`.
        stuck_after: Seconds without progress after which the main loop is stuck.
    """

    def __init__(
        self,
        moved: Callable[[], bool],
        checks: Mapping[str, Callable[[], str]],
        *,
        stuck_after: float = _STUCK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._moved = moved
        self._checks = checks
        self._stuck_after = stuck_after
        self._clock = clock
        self._lock = threading.Lock()
        self._moved_at = clock()

    def alive(self) -> tuple[bool, Mapping[str, object]]:
        """Whether the main loop gets on, and the document that says so."""
        with self._lock:
            now = self._clock()
            if self._moved():
                self._moved_at = now
            seconds = now - self._moved_at
        alive = seconds < self._stuck_after
        return alive, {"alive": alive, "seconds_without_progress": round(seconds)}

    def ready(self) -> tuple[bool, Mapping[str, object]]:
        """Whether the daemon does its work, and the document that says what keeps it from that."""
        found = {name: check() for name, check in self._checks.items()}
        ready = all(said == _OK for said in found.values())
        return ready, {"ready": ready, "checks": found}


def page(look: Callable[[], tuple[bool, Mapping[str, object]]]) -> WSGIApplication:
    """A page that is looked up anew for each reader."""

    def application(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        good, document = look()
        content = json.dumps(document).encode() + b"\n"
        start(
            "200 OK" if good else "503 Service Unavailable",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(content))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [] if environment.get("REQUEST_METHOD") == "HEAD" else [content]

    return application


def readable(root: Callable[[], Path], *, may_be_missing: Callable[[], bool]) -> Callable[[], str]:
    """A check that the repository can be read; one that hangs, as a dead mount does, is waited for by one thread only.

    Args:
        root: Of the repository.
        may_be_missing: Whether the root is made by the first publish.
    """
    looking = threading.Lock()

    def check() -> str:
        if not looking.acquire(timeout=_PATIENCE_SECONDS):
            return "does not answer"
        try:
            with os.scandir(root()) as entries:
                next(entries, None)
        except FileNotFoundError:
            return _OK if may_be_missing() else "not there"
        except OSError:
            return "not readable"
        finally:
            looking.release()
        return _OK

    return check
