"""Image lists from files and URLs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cvmfs_sync.errors import ListError
from cvmfs_sync.listsource import read_list

TODAY = date(2026, 11, 20)
GOOD = b"version: 1\nimages: [docker.io/library/debian:12]\n"
OTHER = b"version: 1\nimages: [docker.io/library/debian:13]\n"


class _Server(ThreadingHTTPServer):
    """Serves one document; what it is asked is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.document, self.etag = 200, GOOD, '"1"'
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        """Where the document is."""
        return f"http://127.0.0.1:{self.server_port}/image-list.yaml"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer like a web server with ETags."""
        asked = self.headers["If-None-Match"]
        self.server.asked.append(asked)
        same = self.server.status == 200 and asked == self.server.etag
        body = b"" if same else self.server.document
        self.send_response(304 if same else self.server.status)
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay silent."""


@contextmanager
def _serving() -> Iterator[_Server]:
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[_Server]:
    """A web server with a good list."""
    with _serving() as running:
        yield running


def _names(source: Path | str, state: Path) -> list[str]:
    return [str(wish) for wish in read_list(source, state, today=TODAY).wishes]


def test_a_file_is_read_and_its_relative_layouts_start_beside_it(tmp_path: Path) -> None:
    """A path gives the list of that file."""
    path = tmp_path / "lists/image-list.yaml"
    path.parent.mkdir()
    path.write_bytes(b"version: 1\nimages: ['oci:images:1']\n")
    assert _names(path, tmp_path / "state") == [f"oci:{tmp_path}/lists/images:1"]


def test_a_broken_file_is_an_error_every_time(tmp_path: Path) -> None:
    """No copy hides that a file on this machine is broken."""
    path = tmp_path / "image-list.yaml"
    path.write_bytes(GOOD)
    assert _names(path, tmp_path)
    path.write_bytes(b"version: 1\nimages: [NO]\n")
    with pytest.raises(ListError, match=r"image-list\.yaml:2"):
        _names(path, tmp_path)


def test_an_unchanged_list_is_asked_for_by_its_etag(tmp_path: Path, server: _Server) -> None:
    """The second reading costs a 304, the third after a change the new list."""
    assert _names(server.url, tmp_path) == ["docker.io/library/debian:12"]
    assert _names(server.url, tmp_path) == ["docker.io/library/debian:12"]
    server.document, server.etag = OTHER, '"2"'
    assert _names(server.url, tmp_path) == ["docker.io/library/debian:13"]
    assert _names(server.url, tmp_path) == ["docker.io/library/debian:13"]
    assert server.asked == [None, '"1"', '"1"', '"2"']


@pytest.mark.parametrize(
    ("status", "document"),
    [(500, b"oops"), (404, b""), (200, b"version: 1\nimages: [NO]\n"), (200, b""), (200, b"<html>a portal</html>")],
)
def test_the_last_good_copy_stays_in_force(
    tmp_path: Path, server: _Server, status: int, document: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is ill or gives something else changes nothing, and says so in the log, again and again."""
    assert _names(server.url, tmp_path) == ["docker.io/library/debian:12"]
    server.status, server.document, server.etag = status, document, '"bad"'
    for _ in range(2):
        caplog.clear()
        assert _names(server.url, tmp_path) == ["docker.io/library/debian:12"]
        assert "the last good copy" in caplog.text
    server.status, server.document, server.etag = 200, OTHER, '"3"'
    assert _names(server.url, tmp_path) == ["docker.io/library/debian:13"]


def test_a_server_that_is_gone_leaves_the_copy(tmp_path: Path) -> None:
    """A refused connection is no reason to forget what was wished for."""
    with _serving() as server:
        url = server.url
        _names(url, tmp_path)
    assert _names(url, tmp_path) == ["docker.io/library/debian:12"]


def test_without_a_copy_the_reason_is_told(tmp_path: Path, server: _Server) -> None:
    """The first reading has nothing to fall back on; a copy of another URL is none."""
    _names(server.url, tmp_path)
    server.status = 503
    with pytest.raises(ListError, match="503") as raised:
        _names(server.url + "?other", tmp_path)
    assert "image_list" in str(raised.value.todo)


def test_a_secret_in_the_url_is_not_shown(tmp_path: Path, server: _Server, caplog: pytest.LogCaptureFixture) -> None:
    """User and query of the URL, which may be a password or token, are in no message and not in the state directory."""
    source = f"{server.url.replace('http://', 'http://user:pl4nted@')}?token=pl4nted"
    assert _names(source, tmp_path) == ["docker.io/library/debian:12"]
    for status, document in ((500, GOOD), (200, b"version: 1\nimages: [NO]\n")):
        server.status, server.document, server.etag = status, document, '"bad"'
        assert _names(source, tmp_path) == ["docker.io/library/debian:12"]
    assert server.url in caplog.text
    with pytest.raises(ListError, match="cannot be downloaded") as caught:
        _names("http://user:pl4nted@127.0.0.1:1/image-list.yaml?token=pl4nted", tmp_path / "empty")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "pl4nted" not in caplog.text + str(caught.value) + kept.decode()
