"""Which blobs a spool has, who uses them, and which have to go.

Digests and sizes go in, sums and choices come out. Knows neither files nor threads: the spool counts on it under its
own lock, and does what it says.
"""

from __future__ import annotations

from collections.abc import Iterator

from cvmfs_sync.reference import Digest

__all__ = ["Stock"]


class Stock:
    """Blobs that are there, least recently used first, and blobs that are in use, there or not."""

    def __init__(self) -> None:
        self._there: dict[Digest, int] = {}
        self._uses: dict[Digest, list[int]] = {}

    def store(self, digest: Digest, size: int) -> None:
        """A blob is there, and was used just now."""
        self._there.pop(digest, None)
        self._there[digest] = size

    def forget(self, digest: Digest) -> None:
        """A blob is not there."""
        self._there.pop(digest, None)

    def use(self, wanted: dict[Digest, int]) -> None:
        """Somebody uses these, whether they are there or not."""
        for digest, size in wanted.items():
            self._uses.setdefault(digest, []).append(size)

    def release(self, wanted: dict[Digest, int]) -> None:
        """The opposite of `use`."""
        for digest, size in wanted.items():
            self._uses[digest].remove(size)
            if not self._uses[digest]:
                del self._uses[digest]

    def in_use(self, digest: Digest) -> bool:
        """Whether somebody uses it."""
        return digest in self._uses

    def used(self) -> int:
        """Bytes that the blobs in use have, or will have."""
        return sum(map(max, self._uses.values()))

    def more(self, wanted: dict[Digest, int]) -> int:
        """By how much `used` would grow."""
        return sum(max(0, size - max(self._uses.get(digest, (0,)))) for digest, size in wanted.items())

    def idle(self) -> Iterator[Digest]:
        """The blobs that nobody uses, least recently used first."""
        return iter([digest for digest in self._there if digest not in self._uses])

    def surplus(self, limit: int) -> Iterator[Digest]:
        """Which of them have to go."""
        idle = list(self.idle())
        over = self.used() + sum(self._there[digest] for digest in idle) - limit
        for digest in idle:
            if over <= 0:
                return
            over -= self._there[digest]
            yield digest
