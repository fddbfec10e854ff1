"""One image is prepared while another one is published.

Jobs go in, in the order in which they are to be published; each comes out when it is ready, or with why it is not, and
by then the next is being prepared in a thread. At most one is ahead, so at most three images' blobs are in the spool:
one that is published, one that is ready, one that is fetched.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.passes import in_pass, new_pass
from cvmfs_sync.ports import Progress, Unit
from cvmfs_sync.prepare import Prepared, Preparer

__all__ = ["Job", "pipeline"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """An image to be published.

    Attributes:
        what: Its name for a person.
        replaces: The tree that its link leads to now.
        pass_id: See `passes`.
    """

    what: str
    image: ResolvedImage
    replaces: str | None
    pass_id: str = field(default_factory=new_pass)


def pipeline(
    preparer: Preparer, jobs: Sequence[Job], progress: Progress
) -> Generator[tuple[Job, Prepared | Exception], None, None]:
    """Prepare the jobs; close the iterator to stop.

    A `Prepared` is closed when the next one is asked for, if it has not been before.

    Args:
        preparer: How.
        jobs: What.
        progress: Told how far the fetching of a job is while somebody waits for it.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as executor:
        ahead: Future[Prepared] | None = None
        fetched: _Behind | None = None
        try:
            for number, job in enumerate(jobs):
                if ahead is None or fetched is None:
                    fetched = _Behind(progress, job, stopped)
                    ahead = executor.submit(_prepare, preparer, job, fetched)
                fetched.show()
                ready = _result(ahead)
                ahead = None
                if number + 1 < len(jobs):
                    following = jobs[number + 1]
                    fetched = _Behind(progress, following, stopped)
                    ahead = executor.submit(_prepare, preparer, following, fetched)
                try:
                    yield job, ready
                finally:
                    if isinstance(ready, Prepared):
                        ready.close()
        finally:
            stopped.set()
            if ahead is not None and not ahead.cancel() and isinstance(left := _result(ahead), Prepared):
                left.close()


def _prepare(preparer: Preparer, job: Job, progress: Progress) -> Prepared:
    with in_pass(job.pass_id):
        prepared = preparer.prepare(job.image, job.replaces, progress)
        fetched, flattened = prepared.fetched.effort, prepared.flattened.effort
        log.info(
            "prepared image=%s digest=%s tree_bytes=%d made_of=%s fetched_bytes=%d fetch_seconds=%.2f"
            " flattened_bytes=%d flatten_seconds=%.2f seconds=%.2f",
            job.what, job.image.digest, prepared.size, prepared.choice.relative or "nothing",
            fetched.bytes, fetched.seconds, flattened.bytes, flattened.seconds, prepared.seconds,
        )  # fmt: skip
        return prepared


def _result(future: Future[Prepared]) -> Prepared | Exception:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 - handed on as a value
        return error


class _Stopped(Exception):
    """Nobody waits for this image any more."""


class _Behind:
    """The progress of a job that nobody looks at until it is the only one at work."""

    def __init__(self, progress: Progress, job: Job, stopped: threading.Event) -> None:
        self._progress = progress
        self._job = job
        self._stopped = stopped
        self._lock = threading.Lock()
        self._done = 0
        self._shown = False

    def show(self) -> None:
        """Somebody waits for it."""
        with self._lock:
            self._shown = True
            self._progress.start(f"fetching {self._job.what}", self._job.image.compressed_size)
            self._progress.advance(self._done)

    def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
        """See `ports.Progress`."""

    def advance(self, amount: int) -> None:
        """See `ports.Progress`; a download calls it with each piece, so here it is stopped."""
        if self._stopped.is_set():
            raise _Stopped
        with self._lock:
            self._done += amount
            if self._shown:
                self._progress.advance(amount)
