"""One run of `sync` or `gc`, measured: what it did is written to a file where the configuration names one.

A configuration goes in; a `Context` comes out, whose numbers are kept. The file is written whether the run ends well or
by an error of ours, and not when it is interrupted. A file that can't be written is no reason to fail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Self

from cvmfs_sync.backlog import Backlog
from cvmfs_sync.collection import CollectionReport
from cvmfs_sync.config import Config
from cvmfs_sync.context import Context
from cvmfs_sync.errors import CvmfsSyncError, ListError, RepositoryError
from cvmfs_sync.hooks import Hooks
from cvmfs_sync.metrics import Metrics
from cvmfs_sync.outcome import CycleReport
from cvmfs_sync.registry import RegistryMemory
from cvmfs_sync.service import make_context, now
from cvmfs_sync.textfile import add_to_textfile

__all__ = ["Measured"]

log = logging.getLogger(__name__)
_HOOK_SECONDS = 60.0
_OF_CYCLES = {"cvmfs_sync_images", "cvmfs_sync_waiting_images", "cvmfs_sync_oldest_waiting_age_seconds"}
_OF_STATE = {"cvmfs_sync_state_bytes", "cvmfs_sync_orphans"}
_OF_LIST = {"cvmfs_sync_list_valid"}


class Measured:
    """A run that is under way.

    Args:
        config: Its `metrics.textfile` is where the numbers go.
        failed: Told how a run ended that has no report: `Metrics.cycle_failed` or `Metrics.collection_failed`.
        clock: The time, UTC.
    """

    def __init__(
        self, config: Config, failed: Callable[[Metrics, str, datetime], None], *, clock: Callable[[], datetime] = now
    ) -> None:
        self.metrics = Metrics()
        self._config = config
        self._failed = failed
        self._clock = clock
        self._memory = RegistryMemory()
        self._backlog = Backlog()
        self._hooks = Hooks(config.hooks)
        self._unknown = _OF_CYCLES | _OF_STATE | _OF_LIST
        self.metrics.watch_registries(self._memory.requests, self._memory.rate_limits)
        self.metrics.watch_backlog(self._backlog.waiting, clock)
        self.metrics.watch_hooks(lambda: self._hooks.counts)
        self.metrics.watch_spool(lambda: config.spool_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, CvmfsSyncError):
            return
        if isinstance(error, ListError):
            self.list_read(valid=False)
            self._failed(self.metrics, "list_invalid", self._clock())
        elif isinstance(error, RepositoryError):
            self._failed(self.metrics, "stopped", self._clock())
        path = self._config.metrics.textfile
        if path is not None:
            try:
                add_to_textfile(path, self.metrics.registry, self._unknown)
            except OSError as failure:
                log.error("the metrics cannot be written to %s: %s", path, failure)

    @contextmanager
    def context(self) -> Iterator[Context]:
        """All that the run works with."""
        try:
            with make_context(
                self._config, memory=self._memory, clock=self._clock, backlog=self._backlog, held=self.metrics.held,
                told=self._hooks.tell, asked=self.metrics.asked,
            ) as context:  # fmt: skip
                yield context
                self.metrics.stored(self._config.state_dir, len(context.state.orphans()))
                self._unknown -= _OF_STATE
        finally:
            self._hooks.close(_HOOK_SECONDS)

    def list_read(self, *, valid: bool) -> None:
        """The image list has been read."""
        self.metrics.list_read(self._clock(), valid=valid)
        self._unknown -= _OF_LIST

    def ended(self, report: CycleReport | CollectionReport) -> None:
        """The run has its report."""
        if isinstance(report, CollectionReport):
            self.metrics.collection_ended(report, self._clock())
        else:
            self.metrics.cycle_ended(report, self._clock())
            self._unknown -= _OF_CYCLES
