"""`/healthz` and `/readyz`, and the server that shows them."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.config import load
from cvmfs_sync.endpoint import Endpoint
from cvmfs_sync.health import Health, page, readable
from cvmfs_sync.heartbeat import Heartbeat
from cvmfs_sync.render import report_document
from cvmfs_sync.serving import Daemon
from tests.support import Image, file, layer, write_layout


def _get(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{endpoint.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_loop_that_is_stuck_is_told() -> None:
    """Without progress for the limit, the answer is 503; with any, it is 200 again."""
    now = 0.0
    moved = True
    health = Health(lambda: moved, {}, stuck_after=60, clock=lambda: now)
    with Endpoint("127.0.0.1", 0, {"/healthz": page(health.alive)}) as endpoint:
        assert _get(endpoint, "/healthz") == (200, b'{"alive": true, "seconds_without_progress": 0}\n')
        moved, now = False, 59.0
        assert _get(endpoint, "/healthz") == (200, b'{"alive": true, "seconds_without_progress": 59}\n')
        now = 60.0
        assert _get(endpoint, "/healthz") == (503, b'{"alive": false, "seconds_without_progress": 60}\n')
        moved = True
        assert _get(endpoint, "/healthz")[0] == 200


def test_two_may_ask_the_heartbeat() -> None:
    """What the watchdog has seen is not taken from whoever else looks."""
    heartbeat = Heartbeat()
    heartbeat.doing = "a cycle"
    first, second = heartbeat.look(), heartbeat.look()
    heartbeat.beat()
    assert first()
    assert second()
    assert heartbeat.alive()


@pytest.mark.parametrize("said", [{"list": "ok", "cycle": "ok"}, {"list": "ok", "cycle": "it was stopped"}])
def test_readiness_is_all_checks(said: Mapping[str, str]) -> None:
    """Ready is who passes each of the checks; all of them are in the answer."""
    health = Health(lambda: True, {name: lambda name=name: said[name] for name in said})  # type: ignore[misc]
    good = all(each == "ok" for each in said.values())
    with Endpoint("127.0.0.1", 0, {"/readyz": page(health.ready)}) as endpoint:
        status, content = _get(endpoint, "/readyz")
        assert (status, json.loads(content)) == (200 if good else 503, {"ready": good, "checks": dict(said)})
        assert _get(endpoint, "/readyz", "HEAD") == (200 if good else 503, b"")
        assert _get(endpoint, "/readyz", "POST")[0] == 405
        assert _get(endpoint, "/")[0] == 404


def test_a_repository_that_hangs_is_waited_for_by_one(tmp_path: Path) -> None:
    """A dead mount takes one thread, and the others are told so."""
    assert readable(lambda: tmp_path, may_be_missing=lambda: False)() == "ok"
    assert readable(lambda: tmp_path / "none", may_be_missing=lambda: True)() == "ok"
    assert readable(lambda: tmp_path / "none", may_be_missing=lambda: False)() == "not there"
    (tmp_path / "file").touch()
    assert readable(lambda: tmp_path / "file", may_be_missing=lambda: False)() == "not readable"
    dead, asked = threading.Event(), threading.Event()

    def root() -> Path:
        asked.set()
        dead.wait(60)
        return tmp_path

    check = readable(root, may_be_missing=lambda: False)
    first = threading.Thread(target=check)
    first.start()
    asked.wait(60)
    assert check() == "does not answer"
    dead.set()
    first.join()
    assert check() == "ok"


def _drained(connection: socket.socket) -> bool:
    """Whether the other side has ended it."""
    connection.settimeout(60)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def test_silent_clients_keep_nobody_out_for_long() -> None:
    """As many as there may be are hung up on after their time, though they send a byte now and then."""
    health = Health(lambda: True, {})
    pages = {"/healthz": page(health.alive)}
    with Endpoint("127.0.0.1", 0, pages, connections=4, seconds=0.5) as endpoint:
        silent = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(4)]
        for connection in silent[:2]:
            connection.sendall(b"GET /healthz HT")
        assert all(_drained(connection) for connection in silent)
        assert _get(endpoint, "/healthz")[0] == 200
        for connection in silent:
            connection.close()


def test_there_is_room_for_so_many_and_no_more() -> None:
    """A client too many is hung up on at once, and the others are served."""
    with Endpoint("127.0.0.1", 0, {"/x": page(lambda: (True, {}))}, connections=2, seconds=60) as endpoint:
        two = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(2)]
        with socket.create_connection(("127.0.0.1", endpoint.port)) as third:
            assert _drained(third)
        for connection in two:
            connection.sendall(b"GET /x HTTP/1.0\r\n\r\n")
            assert connection.makefile("rb").readline() == b"HTTP/1.0 200 OK\r\n"
            connection.close()


@pytest.mark.parametrize(
    "sent",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"\x00\xff" * 100, b"GET /" + b"a" * 70000, b"GET /x HTTP/9.9\r\n\r\n",
     b"GET /../etc/passwd HTTP/1.0\r\n\r\n", b"GET /x HTTP/1.0\r\n" + b"A: b\r\n" * 200 + b"\r\n",
     b"POST /x HTTP/1.0\r\nContent-Length: 99999999999\r\n\r\n"],
)  # fmt: skip
def test_nonsense_is_survived(sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever a client sends, the next one is served, and nothing is written to stderr."""
    with Endpoint("127.0.0.1", 0, {"/x": page(lambda: (True, {}))}) as endpoint:
        with socket.create_connection(("127.0.0.1", endpoint.port)) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert _drained(connection)
        assert _get(endpoint, "/x")[0] == 200
    assert capfd.readouterr().err == ""


def _daemon(home: Path) -> Daemon:
    (home / "cvmfs-sync.yaml").touch()
    return Daemon(lambda: load(home / "cvmfs-sync.yaml", {}), report_document)


def _ready(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_get(endpoint, "/readyz")[1])
    return found


def test_the_daemon_is_ready_after_a_cycle_that_was_not_stopped(tmp_path: Path) -> None:
    """Not before there is a list and a cycle; an image that fails changes nothing, a repository that does, does."""
    write_layout(tmp_path / "images", {"1": Image((layer(file("hello", "one")),))})
    daemon = _daemon(tmp_path)
    with Endpoint("127.0.0.1", 0, daemon._pages()) as endpoint:
        assert not _ready(endpoint)["ready"]
        daemon.cycle()
        checks = _ready(endpoint)["checks"]
        assert checks == {
            "list": "there was no valid one yet", "repository": "ok", "cycle": "there is no valid list",
        }  # fmt: skip
        (tmp_path / "image-list.yaml").write_text("version: 1\nimages: [oci:images:1, oci:images:none]\n")
        daemon.cycle()
        assert _ready(endpoint) == {"ready": True, "checks": {"list": "ok", "repository": "ok", "cycle": "ok"}}
        assert _get(endpoint, "/healthz")[0] == 200
        (tmp_path / "published").rename(tmp_path / "moved")
        (tmp_path / "published").touch()
        daemon.cycle()
        assert _ready(endpoint)["checks"] == {"list": "ok", "repository": "not readable", "cycle": "it was stopped"}
        text = _get(endpoint, "/readyz")[1].decode()
        assert os.fspath(tmp_path) not in text
