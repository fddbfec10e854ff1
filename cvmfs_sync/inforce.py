"""The image list in force: the present one, or the last good one while that can't be used.

A configuration goes in at each reading; the wishes to act upon come out. Whatever is wrong is logged, counted and
remembered here, and raised by nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from cvmfs_sync.config import Config
from cvmfs_sync.errors import CvmfsSyncError, ListError, RepositoryError
from cvmfs_sync.eventlog import Document
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.layout import Layout
from cvmfs_sync.listsource import name_of, read_list
from cvmfs_sync.metrics import Metrics
from cvmfs_sync.service import note_list, open_state

__all__ = ["ListInForce"]

log = logging.getLogger(__name__)


class ListInForce:
    """Keeps it.

    Args:
        metrics: Which count the readings.
        tell: Told when a list is refused, and when it is valid again.
        clock: The time, UTC.

    Attributes:
        wishes: The list; None before there was a valid one.
    """

    def __init__(self, metrics: Metrics, tell: Callable[[Document], None], clock: Callable[[], datetime]) -> None:
        self.wishes: ImageList | None = None
        self._metrics = metrics
        self._tell = tell
        self._clock = clock

    def read(self, config: Config) -> ListError | None:
        """Bring the list in force up to date, or note that it can't be; why it is not in force."""
        at = self._clock()
        refused: ListError | None
        try:
            reading = read_list(
                config.image_list, config.state_dir, today=at.date(), layout=Layout(config.layout), lenient=True
            )
            self.wishes, refused = reading.wishes, reading.refused
        except CvmfsSyncError as error:
            what = f"{name_of(config.image_list)}: the image list cannot be kept"
            refused = error if isinstance(error, ListError) else ListError(what, found=str(error))
            if self.wishes is not None:
                self.wishes = replace(self.wishes, stale=True)
        self._metrics.list_read(at, valid=refused is None)
        if refused is not None:
            what = "the last good one stays" if self.wishes is not None else "waiting"
            log.error("the image list is not valid, %s: %s", what, refused)
        try:
            with open_state(config, self._tell) as state:
                note_list(config, state, refused, at)
        except RepositoryError as error:
            log.error("what became of the image list is not remembered: %s", error)
        return refused
