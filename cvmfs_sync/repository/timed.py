"""A repository that tells how long its lock is held.

Any `Repository` goes in; one that behaves like it comes out, and after each transaction somebody is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cvmfs_sync.ports import Clone, Repository, Traits, Transaction

__all__ = ["TimedRepository"]


class TimedRepository:
    """A `Repository`.

    Args:
        inner: The one that works.
        held: Told, from the moment in which a transaction was open to that in which it was over, the seconds, and
            whether it was published. Opening is not counted: it may wait for somebody else.
    """

    def __init__(self, inner: Repository, held: Callable[[float, bool], object]) -> None:
        self._inner = inner
        self._held = held
        self.root: Path = inner.root

    @property
    def traits(self) -> Traits:
        """See `ports.Repository`."""
        return self._inner.traits

    @contextmanager
    def transaction(self, purpose: str, clone: Clone | None = None) -> Iterator[Transaction]:
        """See `ports.Repository`."""
        started: float | None = None
        published = False
        try:
            with self._inner.transaction(purpose, clone) as transaction:
                started = time.monotonic()
                yield transaction
            published = True
        finally:
            if started is not None:
                self._held(time.monotonic() - started, published)

    def remove_trees(self, paths: Sequence[str]) -> None:
        """See `ports.Repository`."""
        self._inner.remove_trees(paths)

    def collect_garbage(self) -> None:
        """See `ports.Repository`."""
        self._inner.collect_garbage()

    def exclusive(self) -> AbstractContextManager[None]:
        """See `ports.Repository`."""
        return self._inner.exclusive()

    def recover(self) -> str | None:
        """See `ports.Repository`."""
        return self._inner.recover()
