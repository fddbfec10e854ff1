"""What published images have in common: the layers of one, and how many others have each.

The records of all images are read for that, so the counts are kept for a minute.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cvmfs_sync.errors import CvmfsSyncError
from cvmfs_sync.inventory import all_records
from cvmfs_sync.ports import Repository
from cvmfs_sync.view.documents import Layer
from cvmfs_sync.view.snapshot import bounded

__all__ = ["Sharing"]

log = logging.getLogger(__name__)
_MOST = 500
_SECONDS = 60.0


class Sharing:
    """Counts the images that have each layer; threads may share it.

    Args:
        repository: Whose records are read.
        once: Whether they are read only once, so that all answers fit together.
    """

    def __init__(self, repository: Repository, *, once: bool = False) -> None:
        self._repository = repository
        self._seconds = float("inf") if once else _SECONDS
        self._counted: tuple[float, Mapping[str, int]] | None = None

    def layers(self, record: Mapping[str, Any]) -> list[Layer]:
        """The layers in an image's record, the lowest first."""
        users = self._users()
        return [
            Layer(digest=bounded(digest), size=size, images=max(1, users.get(digest, 0)))
            for digest, size in _layers(record)
        ][:_MOST]

    def _users(self) -> Mapping[str, int]:
        if self._counted is None or time.monotonic() - self._counted[0] > self._seconds:
            counts: Counter[str] = Counter()
            try:
                counts.update(self._digests())
            except CvmfsSyncError as error:
                log.info("what images share is not known: %s", error)
            self._counted = (time.monotonic(), counts)
        return self._counted[1]

    def _digests(self) -> Iterator[str]:
        for each in all_records(self._repository, lenient=True):
            yield from {digest for digest, _ in _layers(each.record)}


def _layers(record: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Digest and size of each layer of which a record tells both."""
    for layer in record.get("layers", ()):
        if isinstance(layer, dict) and isinstance(layer.get("size"), int) and isinstance(layer.get("digest"), str):
            yield layer["digest"], layer["size"]
