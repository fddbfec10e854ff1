"""The daemon's socket: who may talk to it, and what it does not put up with."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_sync import control
from cvmfs_sync.control import Request, Server, ask
from cvmfs_sync.errors import RepositoryBusy


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory whose path is longer than that of a socket may be."""
    path = tmp_path / ("long" * 30)
    path.mkdir()
    return path


class _Echo:
    """Answers each request with what it asked."""

    def __init__(self, home: Path) -> None:
        self.seen: list[Request] = []
        self.server = Server(home, self.submit)
        self.server.start()

    def submit(self, request: Request) -> None:
        self.seen.append(request)
        if request.content.get("sync") != ["wait"]:
            request.answer({"exit_code": 0, "asked": request.content})


@pytest.fixture
def echo(home: Path) -> Iterator[_Echo]:
    echo = _Echo(home)
    yield echo
    echo.server.close()


def _connect(home: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(20)
    descriptor = os.open(home, os.O_PATH)
    connection.connect(f"/proc/self/fd/{descriptor}/control.sock")
    os.close(descriptor)
    return connection


def test_a_request_gets_its_answer(home: Path, echo: _Echo) -> None:
    """One line each way; the socket is its owner's only, also where another process left one."""
    assert ask(home, {"sync": ["a"]}) == {"exit_code": 0, "asked": {"sync": ["a"]}}
    assert stat.S_IMODE((home / "control.sock").stat().st_mode) == 0o600
    again = _Echo(home)
    assert ask(home, {"sync": ["b"]}) == {"exit_code": 0, "asked": {"sync": ["b"]}}
    assert len(again.seen) == 1
    again.server.close()


def test_without_a_daemon_there_is_no_answer(home: Path) -> None:
    """No directory, no socket, and one that nobody listens on any more are all the same."""
    assert ask(home / "none", {}) is None
    assert ask(home, {}) is None
    _Echo(home).server.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        descriptor = os.open(home, os.O_PATH)
        left.bind(f"/proc/self/fd/{descriptor}/control.sock")
        os.close(descriptor)
    assert ask(home, {}) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\n", "not JSON"),
        (b"GET / HTTP/1.1\r\n", "not JSON"),
        (b'{"sync": []\n', "not JSON"),
        (b"[]\n", "JSON object"),
        (b'{"sync": [], "sync": ["a"]}\n', "twice"),
        (b"\xff\xfe{}\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"x" * 300_000, "at most"),
    ],
)
def test_what_is_no_request_is_refused(home: Path, echo: _Echo, line: bytes, words: str) -> None:
    """Whatever comes, its sender is told in one line, and nobody else notices."""
    with _connect(home) as connection:
        connection.sendall(line)
        answer = json.loads(connection.makefile().readline())
    assert answer["exit_code"] == 2
    assert words in answer["error"]["what"]
    assert not echo.seen
    assert ask(home, {"sync": ["a"]})


def _gone(echo: _Echo) -> bool:
    return echo.seen[0].gone


def test_who_hangs_up_is_forgotten(home: Path, echo: _Echo) -> None:
    """A request whose asker has gone is marked, so that nobody works for him."""
    with _connect(home) as connection:
        connection.sendall(b'{"sync": ["wait"]}\n')
        while not echo.seen:
            threading.Event().wait(0.01)
        assert not _gone(echo)
    for _ in range(1000):
        if _gone(echo):
            break
        threading.Event().wait(0.02)
    assert _gone(echo)


def test_many_who_only_sit_there_do_not_fill_the_daemon(
    home: Path, echo: _Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More connections than there are places are closed at once; silent ones are closed in time, and make room."""
    monkeypatch.setattr(control, "_SECONDS_TO_ASK", 1.0)
    sitting = [_connect(home) for _ in range(32)]
    with pytest.raises(RepositoryBusy, match="too many requests"):
        ask(home, {"sync": ["a"]})
    for connection in sitting:
        assert connection.recv(1) == b""
        connection.close()
    for _ in range(200):
        try:
            assert ask(home, {"sync": ["a"]})
            break
        except RepositoryBusy:
            threading.Event().wait(0.05)
    else:
        raise AssertionError("never room again")
