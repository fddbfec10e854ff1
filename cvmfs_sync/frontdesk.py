"""The process that shows pages: started, watched, started again, ended.

A command goes in. It runs beside the daemon, and whatever becomes of it is logged and is no reason to do anything else
but to start it again, later and later. It ends with the daemon: it is told to, and looks for itself whether the daemon
is still there.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

__all__ = ["FrontDesk"]

log = logging.getLogger(__name__)
_END_SECONDS = 5.0
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
# A process that has run for so long did start.
_SETTLED_SECONDS = 60.0


class FrontDesk:
    """One command that is to run all the time. `open` and `close` may be called from any thread.

    Args:
        command: What to run.
        first_pause: Seconds before it is started again, which double each time.
    """

    def __init__(self, command: Sequence[str], *, first_pause: float = _FIRST_PAUSE) -> None:
        self._command = command
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._ending: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def open(self, *, wanted: bool, told: Callable[[int | None], object]) -> None:
        """Start it, or end what runs and start it anew.

        Args:
            wanted: Whether it is to run at all.
            told: Of the process that runs, and that none does.
        """
        with self._lock:
            self._end()
            if wanted:
                self._ending = threading.Event()
                self._thread = threading.Thread(
                    target=self._keep, args=(self._ending, told), name="frontdesk", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._ending is not None and self._thread is not None:
            self._ending.set()
            self._thread.join(2 * _END_SECONDS)
        self._ending = self._thread = None

    def _keep(self, ending: threading.Event, told: Callable[[int | None], object]) -> None:
        pause = self._first_pause
        while not ending.is_set():
            started = time.monotonic()
            try:
                process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
            except OSError as error:
                log.error("pages are not shown: %s", error)
            else:
                told(process.pid)
                try:
                    self._watch(process, ending)
                finally:
                    told(None)
                if ending.is_set():
                    return
                log.error("the process that shows pages has ended: exit code %d", process.returncode)
            if time.monotonic() - started > _SETTLED_SECONDS:
                pause = self._first_pause
            log.info("pages are shown again in %.0f s", pause)
            ending.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @staticmethod
    def _watch(process: subprocess.Popen[bytes], ending: threading.Event) -> None:
        """Wait until it ends, or is to end."""
        while process.poll() is None and not ending.wait(0.2):
            pass
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
