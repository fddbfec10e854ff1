"""All that a cycle works with, put together by the command line and handed down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from cvmfs_sync.backlog import Backlog
from cvmfs_sync.backoff import Backoff
from cvmfs_sync.index import IndexCache
from cvmfs_sync.passlog import PassLog
from cvmfs_sync.ports import Progress, Repository, Silent
from cvmfs_sync.prepare import Recipe
from cvmfs_sync.resolve import Sources
from cvmfs_sync.spool import Spool
from cvmfs_sync.state import State

__all__ = ["Asked", "Context"]

Asked: TypeAlias = Literal["tags", "name", "image"]
"""What a registry can be asked for while planning: which tags there are, what a name means, and manifest and
configuration of an image."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where images come from and go to, and what is remembered of them.

    Attributes:
        urgent_sources: The same for images that somebody waits for: registries that allow few more pulls keep the last
            ones for these.
        layer_indexes: Of layers, by diff_id.
        tree_indexes: Of published trees, by `treeindex.tree_id`.
        now: The time, UTC.
        backoff: When what has failed is tried again.
        backlog: What waits to be published.
        pass_log: What was logged in the passes that are under way.
        asked: Told how many seconds each question took; from any thread.
    """

    repository: Repository
    sources: Sources
    recipe: Recipe
    state: State
    spool: Spool
    layer_indexes: IndexCache
    tree_indexes: IndexCache
    now: Callable[[], datetime]
    urgent_sources: Sources
    progress: Progress = field(default_factory=Silent)
    backoff: Backoff = field(default_factory=Backoff)
    backlog: Backlog = field(default_factory=Backlog)
    pass_log: PassLog = field(default_factory=PassLog)
    asked: Callable[[Asked, float], object] = lambda _what, _seconds: None

    @contextmanager
    def asking(self, what: Asked) -> Iterator[None]:
        """A question that is being asked, whatever the answer."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.asked(what, time.monotonic() - started)
