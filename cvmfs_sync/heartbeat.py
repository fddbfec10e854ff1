"""Whether the daemon makes progress, for a watchdog: a stuck cycle must be noticed, a long publish must not be ended.

Progress is any of: nothing is to be done; a piece of work tells that it is further; the threads that work use the
processor, as when a large tree is compared; a command that we run, such as `cvmfs_server publish`, or what it has
started, uses the processor or reads or writes. A thread that waits for ever does none of this.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from cvmfs_sync.ports import Progress, Unit

__all__ = ["Heartbeat", "Telling"]

# A thread that only looks every now and then whether something has come does not work.
_BUSY = 0.01
_TICK = os.sysconf("SC_CLK_TCK")
_WORKERS = ("MainThread", "prepare", "fetch", "ask", "inflate", "hash")


class Heartbeat:
    """What the main thread does, and whether it gets on with it. Safe for threads.

    Attributes:
        doing: In words; empty while there is nothing to do.
        others: Processes of ours whose work is no progress of it.
    """

    def __init__(self) -> None:
        self.doing = ""
        self.others: frozenset[int] = frozenset()
        self._beats = 0
        self._own = _Look(self)

    def beat(self) -> None:
        """Something is further than it was."""
        self._beats += 1

    def alive(self) -> bool:
        """Whether there was any progress since the last call; true as well while there is nothing to do."""
        return self._own.moved()

    def look(self) -> Callable[[], bool]:
        """Another `alive`, that does not know when this one was called."""
        return _Look(self).moved


class _Look:
    """What one of those who want to know has seen when he last looked."""

    def __init__(self, heart: Heartbeat) -> None:
        self._heart = heart
        self._seen = (-1, 0.0, 0)
        self._at = time.monotonic()

    def moved(self) -> bool:
        beats, cpu, children = self._heart._beats, sum(_thread_seconds()), sum(_children(self._heart.others))
        now = time.monotonic()
        worked = cpu - self._seen[1] > max(_BUSY * (now - self._at), 1.5 / _TICK)
        moved = beats != self._seen[0] or worked or children != self._seen[2]
        self._seen, self._at = (beats, cpu, children), now
        return not self._heart.doing or moved


class Telling:
    """A `Progress` that passes on what it is told, and tells what is begun."""

    def __init__(self, inner: Progress, heartbeat: Heartbeat, begun: Callable[[str], object]) -> None:
        self._inner = inner
        self._heartbeat = heartbeat
        self._begun = begun

    def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
        """See `ports.Progress`."""
        self._heartbeat.beat()
        self._begun(what)
        self._inner.start(what, total, unit)

    def advance(self, amount: int) -> None:
        """See `ports.Progress`."""
        self._heartbeat.beat()
        self._inner.advance(amount)


def _thread_seconds() -> Iterator[float]:
    """Seconds of processor time of each thread that works on images; servers and schedulers are none."""
    for thread in threading.enumerate():
        if thread.name.startswith(_WORKERS):
            with suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
                yield (int(fields[11]) + int(fields[12])) / _TICK


def _children(others: Collection[int]) -> Iterator[int]:
    """Numbers that grow while a command of ours, or one that it has started, works; commands that have ended, too."""
    ended = os.times()
    yield round((ended.children_user + ended.children_system) * _TICK)
    todo = [os.getpid()]
    while todo:
        process = todo.pop()
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(OSError):
                todo.extend({int(child) for child in children.read_text().split()} - set(others))
        if process != os.getpid():
            yield from _work_of(process)


def _work_of(process: int) -> Iterator[int]:
    """Processor time of a process, and what it has read and written if we may know that."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        yield int(fields[11]) + int(fields[12])
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process}/io").read_text().splitlines():
            yield int(line.rpartition(" ")[2])
