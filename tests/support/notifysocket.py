"""A service manager's notification socket: what a daemon says with sd_notify(3), in order."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import wait_until

__all__ = ["Listener", "listening"]


class Listener:
    """The socket's end at the service manager's.

    Attributes:
        address: What NOTIFY_SOCKET says.
        heard: The datagrams that have come, each a mapping.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def listen(self) -> list[dict[str, str]]:
        """All that was said so far."""
        while True:
            try:
                text = self._socket.recv(1 << 16).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))

    def wait_for(self, condition: Callable[[dict[str, str]], bool], since: int = 0) -> int:
        """The number behind the first datagram, from `since` on, for which something holds."""
        found: list[int] = []

        def said() -> bool:
            found[:] = [number for number, each in enumerate(self.listen()[since:], start=since) if condition(each)]
            return bool(found)

        wait_until(said, lambda: f"never said: {self.heard[since:]}")
        return found[0] + 1


@contextmanager
def listening(directory: Path | None) -> Iterator[Listener]:
    """A socket in a directory, or one in the abstract namespace."""
    name = f"notify-{os.getpid()}-{secrets.token_hex(4)}"
    listener = Listener(f"@{name}" if directory is None else str(directory / "notify"))
    try:
        yield listener
    finally:
        listener.close()
