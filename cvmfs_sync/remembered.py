"""What is remembered of an image: failures, events, log lines, and for how long nobody has asked for it.

Values only; `state` keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["Event", "Failure", "LogLine", "NumberedEvent", "Orphan"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that failed when it was last tried.

    Attributes:
        count: Failures in a row.
        since: First of them, UTC.
        last: Latest of them, UTC.
        next_try: When a cycle tries it again, UTC; None for the next one.
        source: What the name meant then, as far as that was known.
        wish: By which the list's entry is known again.
        kind: The class of `errors` that it failed with, as far as that is known.
    """

    name: str
    reason: str
    temporary: bool
    count: int
    since: datetime
    last: datetime
    next_try: datetime | None = None
    source: str | None = None
    wish: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a link: `published`, `linked` to a tree that was there, `failed`, `recovered`."""

    at: datetime
    name: str
    event: str
    digest: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event with its place in the history of all links.

    Attributes:
        number: Later ones have greater numbers.
        before: What the link led to, if it leads somewhere since this event and did so before.
    """

    number: int
    at: datetime
    link: str
    name: str
    event: str
    digest: str | None
    detail: str
    before: str | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """Something that was logged while an image was worked on."""

    at: datetime
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class Orphan:
    """A link or a tree that nobody asks for any more.

    Attributes:
        since: When that was first seen, UTC.
        age: For how long that has been seen to be so. Less than the time since then, if nobody looked for long.
    """

    reason: str
    since: datetime
    age: timedelta
