"""What somebody asks the running daemon for, from when the control socket takes it until it is answered.

Requests come from any thread and wait in a queue; the main thread carries them out between two jobs, and, where that
can be done without harm, between two images of a cycle. Whoever asks gets an answer, an error included.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Mapping
from typing import Any

from cvmfs_sync.console import document
from cvmfs_sync.control import Request
from cvmfs_sync.errors import CvmfsSyncError, UsageError
from cvmfs_sync.reference import ImageName, parse_image

__all__ = ["Errands", "images_of", "reply"]

log = logging.getLogger(__name__)
_MAX_NAMES = 1000


class Errands:
    """Requests that wait for the main thread. Those for a whole cycle wait until none is going on."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._parked: list[Request] = []

    def __bool__(self) -> bool:
        return bool(self._parked) or self.pressing

    @property
    def pressing(self) -> bool:
        """Whether there are any that nobody has looked at yet."""
        return not self._waiting.empty()

    def take(self, request: Request) -> None:
        """Keep a request, from any thread."""
        self._waiting.put(request)

    def next(self) -> Request:
        """The next one, when nothing else is going on."""
        return self._waiting.get() if self.pressing else self._parked.pop(0)

    def next_between(self) -> Request | None:
        """The next one that can be carried out between two images of a cycle; None where it has to wait for its end."""
        request = self._waiting.get()
        if request.content.get("sync") == []:
            self._parked.append(request)
            return None
        return request


def images_of(request: Request) -> list[ImageName]:
    """The images that are to be synced now; none of them for all of the list.

    Raises:
        UsageError: It is no such request.
    """
    names = request.content.get("sync")
    if set(request.content) != {"sync"} or not isinstance(names, list) or len(names) > _MAX_NAMES:
        raise UsageError('a request is {"sync": [IMAGE, ...]}', expected=f"at most {_MAX_NAMES} images")
    if not all(isinstance(name, str) for name in names):
        raise UsageError("an image's name is text")
    return [parse_image(name) for name in names]


def reply(request: Request, do: Callable[[], Mapping[str, Any]]) -> None:
    """Answer with what this returns, or with why there is no such answer."""
    try:
        request.answer(do())
    except CvmfsSyncError as error:
        request.answer({"exit_code": error.exit_code, "error": document(error)})
    except Exception as error:
        log.exception("what was asked for ended by a defect of cvmfs-sync; please report this")
        request.answer({"exit_code": 70, "error": {"type": "Exception", "what": f"a defect of cvmfs-sync: {error}"}})
