"""Webhooks: registries tell that something was pushed, and the daemon looks at once.

A delivery that its sender has signed, or sent with the secret, is read, and the names in it are gathered and told to
the daemon, which knows what of it is asked for. Here nobody does: the answer, and the time until it comes, are the same
for an image of the list and for any other. A delivery makes the daemon ask the registry, and can make it do nothing
else.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from cvmfs_sync.config import Webhook
from cvmfs_sync.errors import InvalidManifest
from cvmfs_sync.web.callers import Caller, Presented, SecretFile
from cvmfs_sync.web.pace import Bucket, Gathering, Seen
from cvmfs_sync.web.payloads import Delivery, parse
from cvmfs_sync.web.problems import Problem, problem

__all__ = ["Pace", "Tell", "webhook_router"]

log = logging.getLogger(__name__)
_GLANCE = 0.02
_COMPLAINT_SECONDS = 60.0
Tell: TypeAlias = Callable[[Sequence[str], Mapping[tuple[str, str], int]], None]
"""Passes on names, and how many deliveries there were by sender and result."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is taken, and how fast it goes on.

    Attributes:
        quiet: Seconds without another push after which the daemon is told.
        longest: Seconds after which it is told in any case.
        most: Names that it is told at once.
        burst: Deliveries that one webhook takes at once.
        rate: Deliveries a second that it takes after that.
        remembered: Seconds for which a delivery is known again.
        memory: Deliveries of one webhook that are.
        body_seconds: Within which a body has to come.
        bodies: That may be on their way at the same time.
    """

    quiet: float = 2.0
    longest: float = 10.0
    most: int = 1000
    burst: float = 300.0
    rate: float = 10.0
    remembered: float = 86_400.0
    memory: int = 10_000
    body_seconds: float = 10.0
    bodies: int = 64


@dataclass(slots=True)
class _Door:
    """One webhook."""

    webhook: Webhook
    caller: Caller
    bucket: Bucket
    seen: Seen


def webhook_router(
    webhooks: Sequence[Webhook],
    tell: Tell,
    pace: Pace = Pace(),
    *,
    clock: Callable[[], float] = time.monotonic,
) -> APIRouter:
    """What answers for these.

    Args:
        webhooks: At least one, each with a name of its own.
        tell: Called in a thread; deals with its own errors.
        pace: How much is taken.
        clock: Seconds that never go back.
    """
    router = APIRouter(include_in_schema=False)
    receiver = _Receiver(webhooks, tell, pace, clock)

    @router.post("/webhooks/{name}")
    async def deliver(name: str, request: Request) -> Response:
        """Take a delivery."""
        return await receiver.receive(name, request)

    return router


class _Receiver:
    def __init__(
        self,
        webhooks: Sequence[Webhook],
        tell: Tell,
        pace: Pace,
        clock: Callable[[], float],
    ) -> None:
        self._doors = {each.name: self._door(each, pace) for each in webhooks}
        # Who asks for a name that there isn't costs as much as anybody else.
        self._any = next(iter(self._doors.values()))
        self._tell = tell
        self._pace = pace
        self._clock = clock
        self._bodies = asyncio.Semaphore(pace.bodies)
        self._gathering = Gathering(pace.quiet, pace.longest, pace.most)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._counting_since = 0.0
        self._sender: asyncio.Task[None] | None = None
        self._refused: Counter[str] = Counter()
        self._complained = float("-inf")

    async def receive(self, name: str, request: Request) -> Response:
        """Take a delivery, or say no.

        Raises:
            Problem: It is not taken.
        """
        body = await self._body(request)
        door = self._doors.get(name)
        shown = Presented(dict(request.headers), request.query_params.get("secret", ""), body, time.time())
        if not await run_in_threadpool((door or self._any).caller.admits, shown) or door is None:
            self._note_refused(door)
            raise Problem(403, "no webhook takes this")
        wait = door.bucket.take(self._clock())
        if wait:
            self._count(door.webhook.kind, "flooded")
            answer = problem(429, "too many deliveries")
            answer.headers["Retry-After"] = str(math.ceil(wait))
            return answer
        return await self._take(door, request, body)

    async def _take(self, door: _Door, request: Request, body: bytes) -> Response:
        webhook = door.webhook
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            self._count(webhook.kind, "unreadable")
            raise Problem(415, "a delivery is JSON")
        try:
            delivery = await run_in_threadpool(parse, webhook.kind, webhook.registry, body)
        except InvalidManifest as error:
            log.warning("webhook %s: a delivery cannot be read: %s", webhook.name, error)
            self._count(webhook.kind, "unreadable")
            raise Problem(400, "this cannot be read") from None
        return self._accept(door, delivery, len(body))

    def _accept(self, door: _Door, delivery: Delivery, size: int) -> Response:
        now = self._clock()
        fresh = [each for each in delivery.events if each.identity is None or door.seen.add(each.identity, now)]
        replayed = len(delivery.events) - len(fresh)
        pushes = [push for event in fresh for push in event.pushes]
        dropped = self._gathering.add(pushes, now)
        log.info(
            "webhook=%s kind=%s bytes=%d pushes=%d replayed=%d skipped=%d dropped=%d",
            door.webhook.name, door.webhook.kind, size, len(pushes), replayed, delivery.skipped, dropped,
        )  # fmt: skip
        again = bool(replayed) and not fresh
        self._count(door.webhook.kind, "replayed" if again else "accepted")
        if again and not delivery.repeats:
            raise Problem(409, "this has been delivered before")
        return JSONResponse({"status": "accepted"}, 202)

    async def _send(self) -> None:
        """Tell the daemon what has been gathered, when it is time to."""
        while (wait := self._wait()) is not None:
            if wait:
                # Not longer: what is pushed meanwhile may be due before what is waited for.
                await asyncio.sleep(min(wait, max(self._pace.quiet, _GLANCE)))
                continue
            counts, self._counts = self._counts, Counter()
            await run_in_threadpool(self._tell, [str(push) for push in self._gathering.take()], counts)

    def _wait(self) -> float | None:
        """Seconds until the daemon is told; None if there is nothing to tell. Numbers alone are in no hurry."""
        wait = self._gathering.wait(self._clock())
        if wait is None and self._counts:
            return max(0.0, self._counting_since + self._pace.longest - self._clock())
        return wait

    def _count(self, sender: str, result: str) -> None:
        """Note what became of a delivery, and see that the daemon is told."""
        if not self._counts:
            self._counting_since = self._clock()
        self._counts[sender, result] += 1
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    async def _body(self, request: Request) -> bytes:
        """What was sent; read before anything else is looked at, so that every refusal costs the same.

        Raises:
            Problem: It is too large, or too slow, or there are too many others.
        """
        if self._bodies.locked():
            raise Problem(503, "too many deliveries at the same time")
        async with self._bodies:
            try:
                return await asyncio.wait_for(request.body(), self._pace.body_seconds)
            except TimeoutError:
                raise Problem(408, "the delivery is too slow") from None
            except ClientDisconnect:
                raise Problem(413, "the delivery is too large") from None

    def _note_refused(self, door: _Door | None) -> None:
        """Say so in the log, but not for each of thousands."""
        self._count(door.webhook.kind if door is not None else "unknown", "refused")
        self._refused[door.webhook.name if door is not None else "(none)"] += 1
        now = self._clock()
        if now - self._complained >= _COMPLAINT_SECONDS:
            told = " ".join(f"{name}={number}" for name, number in sorted(self._refused.items()))
            log.warning("deliveries were refused, for their secret or as there is no such webhook: %s", told)
            self._refused.clear()
            self._complained = now

    @staticmethod
    def _door(webhook: Webhook, pace: Pace) -> _Door:
        file = SecretFile(webhook.name, webhook.secret_file)
        # Said at the start, too, not only when somebody comes.
        file.read()
        return _Door(
            webhook, Caller(webhook.kind, file), Bucket(pace.burst, pace.rate), Seen(pace.remembered, pace.memory)
        )
