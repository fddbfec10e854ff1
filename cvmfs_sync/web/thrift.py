"""Leaving the processors to whoever publishes: how much of them answers may take.

The lowest priority alone is not enough: two processes on two processors still share caches, memory and whatever the
machine below them shares. So visitors get a part of one processor over time, after a burst that no person exceeds, and
wait for it in the order in which they came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from cvmfs_sync.web.problems import problem

__all__ = ["Allowance", "Thrift"]

_WAITING = 50
_RETRY_SECONDS = 5
# What is not worth waiting for.
_MOMENT = 0.001


class Allowance:
    """Seconds of processor time that this process may take.

    Args:
        share: Of one processor, over time.
        burst: Seconds that are saved up at most.
        debt: Seconds that are owed at most: making what is shown takes longer, and nobody waits for all of that.
        clock: Seconds that never go back.
        spent: Seconds of processor time that this process has taken.
    """

    def __init__(
        self,
        share: float = 0.1,
        burst: float = 0.5,
        debt: float = 0.3,
        *,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.process_time,
    ) -> None:
        self._share = share
        self._burst = burst
        self._debt = debt
        self._clock = clock
        self._spent = spent
        self._at, self._spent_then = clock(), spent()
        self._left = burst

    def wait(self) -> float:
        """Seconds until there is something left; 0 if there is now."""
        now, spent = self._clock(), self._spent()
        earned = (now - self._at) * self._share
        left = self._left + earned - (spent - self._spent_then)
        self._left = max(-self._debt, min(self._burst, left))
        self._at, self._spent_then = now, spent
        wait = -self._left / self._share
        return wait if wait > _MOMENT else 0.0


class Thrift:
    """ASGI middleware: answers wait until there is processor time for them.

    Args:
        app: What answers.
        allowance: How much it may take.
        most: How many may wait at the same time; more are told to come again.
        sleep: Waits.
    """

    def __init__(
        self,
        app: ASGIApp,
        allowance: Allowance,
        *,
        most: int = _WAITING,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._app = app
        self._allowance = allowance
        self._most = most
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer when it is the request's turn."""
        if scope["type"] == "http":
            if self._waiting >= self._most:
                answer = problem(503, "too many ask at the same time")
                answer.headers["Retry-After"] = str(_RETRY_SECONDS)
                await answer(scope, receive, send)
                return
            self._waiting += 1
            try:
                async with self._turn:
                    while wait := self._allowance.wait():
                        await self._sleep(wait)
            finally:
                self._waiting -= 1
        await self._app(scope, receive, send)
