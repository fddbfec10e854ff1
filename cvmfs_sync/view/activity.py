"""What a running daemon says of itself when it is asked, as a value."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from cvmfs_sync.view.documents import Cycle, Document, Registry, Storage

__all__ = ["Activity", "Waiting"]


class Waiting(Document):
    """One link that waits to be published."""

    name: str
    link: str
    since: datetime


class Activity(Document):
    """All of it, at one moment."""

    at: datetime
    cycle: Cycle
    queue: list[Waiting] = Field(description="In the order of publishing.")
    registries: list[Registry]
    spool: Storage | None = None
    state: Storage | None = None
