"""The log lines of each image's pass, collected while it is worked on, for whoever asks later why it is as it is.

Log records go in, from any thread that has the pass in its context (`passes`); what was said in one pass comes out when
it ends. Only the latest lines of a few passes are kept, without tracebacks. Nothing is written anywhere.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from cvmfs_sync.passes import current_pass
from cvmfs_sync.remembered import LogLine

__all__ = ["PassLog", "collecting"]

_LINES = 200
_MESSAGE = 2000
# One image is published, one is ready, one is prepared; whoever asks for one now has as many.
_PASSES = 8


class PassLog(logging.Handler):
    """Handles records that belong to a pass, and ignores all others. Safe for threads."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._passes: dict[str, deque[LogLine]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`, which calls it under its lock."""
        ident = current_pass()
        if not ident:
            return
        message = record.getMessage()[:_MESSAGE]
        lines = self._passes.get(ident)
        if lines is None:
            while len(self._passes) >= _PASSES:
                # It was begun and never came to its end: the cycle was stopped.
                del self._passes[next(iter(self._passes))]
            lines = self._passes[ident] = deque(maxlen=_LINES)
        at = datetime.fromtimestamp(record.created, UTC)
        lines.append(LogLine(at, record.levelname.lower(), message))

    def take(self, ident: str) -> Sequence[LogLine]:
        """What was logged in a pass, oldest first; it is forgotten here."""
        self.acquire()
        try:
            return tuple(self._passes.pop(ident, ()))
        finally:
            self.release()


@contextmanager
def collecting() -> Iterator[PassLog]:
    """Collect what this program logs in the block."""
    handler, logger = PassLog(), logging.getLogger("cvmfs_sync")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        handler.close()
