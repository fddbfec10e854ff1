"""An answer's head, or all of it, has to come within a time limit, however steadily it drips.

The read time-out of a socket counts from byte to byte: a server that sends one header byte a minute never runs into it.
Here a limit and a clock go in, and an adapter for a requests session comes out whose connections hold the whole head
against the limit, and the body if it is small. How long a large one may take is `registry.body`'s business.
"""

from __future__ import annotations

import http.client
import io
from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["AnswerTooSlowError", "DeadlineAdapter"]

_Clock = Callable[[], float]


class AnswerTooSlowError(TimeoutError):
    """Something came again and again, but never the end."""


class DeadlineAdapter(HTTPAdapter):
    """An adapter whose answers have a head within `seconds`; the socket's own time-out may be added once.

    Args:
        seconds: From when the request has been sent.
        clock: Seconds that never go back.
        whole: Whether that holds for the body, too.
        **options: See requests.
    """

    def __init__(self, seconds: float, clock: _Clock, *, whole: bool = False, **options: Any) -> None:
        self._pools = _pools(seconds, clock, whole=whole)
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """See requests."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        """See requests."""
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(seconds: float, clock: _Clock, *, whole: bool) -> dict[str, type[HTTPConnectionPool]]:
    """Connection pools by scheme, as urllib3 wants them."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(sock, *arguments, **options)
            self._watched = _Watched(self.fp.detach(), clock)
            self.fp = io.BufferedReader(self._watched)

        def begin(self) -> None:
            self._watched.deadline = clock() + seconds
            super().begin()
            if not whole:
                self._watched.deadline = None

    class Plain(HTTPConnection):
        response_class = Answer

    class Secure(HTTPSConnection):
        response_class = Answer

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class _Watched(io.RawIOBase):
    """A socket's stream that looks at the clock after each read while it has a deadline."""

    def __init__(self, raw: io.RawIOBase, clock: _Clock) -> None:
        self._raw = raw
        self._clock = clock
        self.deadline: float | None = None

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self._raw.readinto(buffer)
        if self.deadline is not None and self._clock() > self.deadline:
            raise AnswerTooSlowError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
