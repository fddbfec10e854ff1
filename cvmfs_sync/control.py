"""Talking to the daemon: one request and one answer, each a line of JSON, through a socket in the state directory.

Only the daemon's own user, and root, may connect. Whoever does is heard in a thread of its own, with bounds on number,
size and time, so nobody can hold the daemon up; what he asks for is put before `submit`, and the answer waits for
whoever does it. What can be asked for, and what an answer means, is the business of `serving` and the command line.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cvmfs_sync.document import parse_json
from cvmfs_sync.errors import InvalidManifest, RepositoryBusy, RepositoryUnavailable
from cvmfs_sync.rootfs import os_errors

__all__ = ["Request", "Server", "ask"]

log = logging.getLogger(__name__)
_NAME = "control.sock"
_MAX_REQUEST = 256 * 1024
_MAX_ANSWER = 256 * 1024 * 1024
_SECONDS_TO_ASK = 10.0
_SECONDS_TO_LISTEN = 30.0
_GLANCE = 0.5
_CONNECTIONS = 32


class Request:
    """One that waits for its answer.

    Attributes:
        content: What was asked, a JSON object.
        gone: Whether nobody waits for the answer any more.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.gone = False
        self._answer: Mapping[str, Any] | None = None
        self._answered = threading.Event()

    def answer(self, content: Mapping[str, Any]) -> None:
        """Be done with it."""
        self._answer = content
        self._answered.set()

    def wait(self, seconds: float) -> Mapping[str, Any] | None:
        """The answer, if it has come by then."""
        return self._answer if self._answered.wait(seconds) else None


class Server:
    """Listens until the process ends.

    Args:
        directory: Where the socket is made; what is there under its name is replaced.
        submit: Told of each request, in a thread of its own.

    Raises:
        RepositoryUnavailable: The socket can't be made.
    """

    def __init__(self, directory: Path, submit: Callable[[Request], None]) -> None:
        self._submit = submit
        self._places = threading.BoundedSemaphore(_CONNECTIONS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with os_errors(f"to the control socket {directory / _NAME}"), _reachable(directory) as address:
            with suppress(FileNotFoundError):
                os.unlink(address)
            before = os.umask(0o177)
            try:
                self._listener.bind(address)
            finally:
                os.umask(before)
        self._listener.listen(_CONNECTIONS)
        self._path = directory / _NAME

    def start(self) -> None:
        """Begin to hear requests."""
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Hear no more; those who wait see the connection end."""
        self._path.unlink(missing_ok=True)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._converse, args=(connection,), name="control", daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                connection.settimeout(_SECONDS_TO_ASK)
                request = _heard(connection)
                answer: Mapping[str, Any] | None
                if isinstance(request, str):
                    answer = {"exit_code": 2, "error": {"type": "UsageError", "what": request}}
                else:
                    self._submit(request)
                    while (answer := request.wait(_GLANCE)) is None:
                        if _has_gone(connection):
                            request.gone = True
                            return
                connection.settimeout(_SECONDS_TO_LISTEN)
                connection.sendall(json.dumps(answer).encode() + b"\n")
        except Exception:
            # Whatever somebody says to us, it ends this conversation only.
            log.exception("a request to the control socket met a defect of cvmfs-sync; please report this")
        finally:
            self._places.release()


def ask(directory: Path, content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Ask the daemon and wait for its answer; None if there is no daemon.

    Raises:
        RepositoryUnavailable: It may not be asked.
        RepositoryBusy: It ended, or was asked too much, before it answered.
    """
    path = directory / _NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        try:
            with _reachable(directory) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        except OSError as error:
            raise RepositoryUnavailable(
                f"the daemon cannot be asked: {path}",
                found=error.strerror or str(error),
                todo="run this command as the user that the daemon runs as",
            ) from None
        text = b""
        try:
            connection.sendall(json.dumps(content).encode() + b"\n")
            while not text.endswith(b"\n") and len(text) < _MAX_ANSWER and (piece := connection.recv(1 << 16)):
                text += piece
            answer = json.loads(text)
        except (OSError, ValueError):
            raise RepositoryBusy(
                "the daemon ended, or had too many requests, before it answered",
                todo="ask again; 'cvmfs-sync status' shows what is published meanwhile",
            ) from None
    assert isinstance(answer, dict)  # noqa: S101 - it is our own daemon's
    return answer


def _heard(connection: socket.socket) -> Request | str:
    """The request that comes from a connection, or what is wrong with it.

    Raises:
        OSError: Nothing comes.
    """
    text = b""
    while b"\n" not in text:
        if len(text) > _MAX_REQUEST:
            return f"a request has at most {_MAX_REQUEST} bytes"
        piece = connection.recv(1 << 16)
        if not piece:
            raise ConnectionResetError
        text += piece
    try:
        content = parse_json(text.partition(b"\n")[0], "the request")
    except InvalidManifest as error:
        return str(error)
    return Request(content) if isinstance(content, dict) else "a request is a JSON object"


def _has_gone(connection: socket.socket) -> bool:
    """Whether the other side has hung up."""
    try:
        return not connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextmanager
def _reachable(directory: Path) -> Iterator[str]:
    """The socket's path in a form that is short however long that of the directory is: unix(7) takes 107 bytes."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_NAME}"
    finally:
        os.close(descriptor)
