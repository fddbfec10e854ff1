"""Telling the service manager how we are: sd_notify(3), without its library.

What `$NOTIFY_SOCKET` and `$WATCHDOG_USEC` say goes in; datagrams come out. A service manager that does not listen is no
reason to fail. What counts as being well is the business of `heartbeat`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

__all__ = ["Notifier", "watchdog_seconds"]

log = logging.getLogger(__name__)


class Notifier:
    """Sends notifications; to nobody if there is no address.

    Args:
        address: A path, or a name in the abstract namespace that begins with `@`.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address or None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._complained = False

    def send(self, *assignments: str) -> None:
        """Send one datagram of assignments such as `READY=1`; never waits and never fails."""
        if self._address is None:
            return
        text = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with self._lock:
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                    self._socket.setblocking(False)
                self._socket.sendto(text.encode("utf-8", "replace"), address)
            except OSError as error:
                if not self._complained:
                    log.warning("the service manager can't be told: %s: %s", self._address, error)
                self._complained = True

    def status(self, text: str) -> None:
        """What we are doing, for `systemctl status`."""
        self.send(f"STATUS={text}")

    def ready(self) -> None:
        """We work, after a start or a reload."""
        self.send("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends that."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """We are about to end."""
        self.send("STOPPING=1", "STATUS=stopping")

    def close(self) -> None:
        """Say nothing more."""
        with self._lock:
            self._address = None
            if self._socket is not None:
                self._socket.close()

    def watch(self, seconds: float, alive: Callable[[], bool]) -> None:
        """Tell the watchdog, from a thread and twice in each of its periods, that we are alive; while that is true."""

        def tell() -> None:
            while True:
                time.sleep(seconds / 2)
                if alive():
                    self.send("WATCHDOG=1")

        threading.Thread(target=tell, name="watchdog", daemon=True).start()


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """The period of the watchdog; None if there is none, or it is another process's."""
    pid, microseconds = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000
