"""Image lists from files, URLs and git repositories."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cvmfs_sync import listsource
from cvmfs_sync.config import GitList
from cvmfs_sync.errors import ListError
from cvmfs_sync.gitlist import fetch_file
from cvmfs_sync.imagelist import Origin
from cvmfs_sync.layout import Layout
from cvmfs_sync.listsource import ListSource, known_list, read_list
from tests.support.commands import require, run

TODAY = date(2026, 11, 20)
GOOD = b"version: 1\nimages: [docker.io/library/debian:12]\n"
OTHER = b"version: 1\nimages: [docker.io/library/debian:13]\n"


class _Server(ThreadingHTTPServer):
    """Serves one document; what it is asked is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stop = threading.Event()
        self.status, self.document, self.etag = 200, GOOD, '"1"'
        self.asked: list[str | None] = []
        self.drips = ""

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
        if self.server.drips == "head":
            self._drip(b"HTTP/1.1 200 OK\r\n" + b"X-More: 1\r\n" * 1000)
            return
        self.send_response(304 if same else self.server.status)
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.drips == "body":
            self._drip(body)
        else:
            self.wfile.write(body)

    def _drip(self, content: bytes) -> None:
        """Send a byte, and the next one long before anybody's patience with a silent server ends."""
        with suppress(OSError):
            for number in range(len(content)):
                self.wfile.write(content[number : number + 1])
                self.server.stop.wait(0.05)

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
            server.stop.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[_Server]:
    """A web server with a good list."""
    with _serving() as running:
        yield running


def _names(source: ListSource, state: Path, *, lenient: bool = False) -> list[str]:
    reading = read_list(source, state, today=TODAY, lenient=lenient)
    assert reading.wishes.stale == (reading.refused is not None)
    return [str(wish) for wish in reading.wishes.wishes]


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


def test_a_list_with_two_images_under_one_link_is_refused(tmp_path: Path, server: _Server) -> None:
    """By layout osg they would stop every cycle; the good list stays. What has expired, or filters, claims nothing."""
    osg = Layout("osg")
    one, other = "docker.io/org/tool:1", "quay.io/org/tool:1"
    _names(server.url, tmp_path)
    server.document, server.etag = f"version: 1\nimages: [{one}, {other}]\n".encode(), '"2"'
    reading = read_list(server.url, tmp_path, today=TODAY, layout=osg)
    assert [str(wish) for wish in reading.wishes.wishes] == ["docker.io/library/debian:12"]
    assert "claim the link org/tool:1" in str(reading.refused)
    path = tmp_path / "image-list.yaml"
    path.write_bytes(server.document)
    for read in (read_list, known_list):
        with pytest.raises(ListError, match="claim the link"):
            read(path, tmp_path / "state", today=TODAY, layout=osg)
    server.etag = '"3"'
    expired = f"{{image: '{other}', expires: 2026-01-01}}"
    server.document = f"version: 1\nimages: [{one}, {expired}, 'quay.io/org/tool:2*']\n".encode()
    assert len(read_list(server.url, tmp_path, today=TODAY, layout=osg).wishes.wishes) == 3
    server.document, server.etag = f"version: 1\nimages: [{one}, {other}]\n".encode(), '"4"'
    assert _names(server.url, tmp_path) == [one, other]


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


def test_a_file_has_a_copy_for_whoever_goes_on_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon keeps the last good list of a file that breaks or goes, across restarts; a good one ends that."""
    path, state = tmp_path / "image-list.yaml", tmp_path / "state"
    path.write_bytes(GOOD)
    assert _names(path, state, lenient=True) == ["docker.io/library/debian:12"]
    for broken in (b"version: 1\nimages: [NO]\n", b"", None):
        path.write_bytes(broken) if broken is not None else path.unlink()
        caplog.clear()
        assert _names(path, state, lenient=True) == ["docker.io/library/debian:12"]
        assert str(path) in caplog.text
    path.write_bytes(OTHER)
    assert _names(path, state, lenient=True) == ["docker.io/library/debian:13"]


class _Repository:
    """A git repository of a list, as users have it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        run("git", "init", "--quiet", "--initial-branch=main", home)

    def commit(self, text: bytes | None, author: str = "Ann Other", path: str = "image-list.yaml") -> str:
        """Commit the list, or its end; the commit."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text) if text is not None else file.unlink()
        run("git", "-C", self.home, "add", "-A")
        identity = ["-c", f"user.name={author}", "-c", "user.email=nobody@example.org"]
        run("git", "-C", self.home, *identity, "commit", "--quiet", "--allow-empty", "-m", "list")
        return run("git", "-C", self.home, "rev-parse", "HEAD").strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Repository:
    """A repository without commits, and a git that knows nobody's settings."""
    require("git")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    return _Repository(tmp_path / "repository")


def test_a_list_from_git_knows_its_commit_and_who_asked(tmp_path: Path, repository: _Repository) -> None:
    """The branch's latest commit is read, and each entry tells who changed its line last."""
    source, state = GitList(str(repository.home)), tmp_path / "state"
    repository.commit(b"version: 1\nimages:\n- docker.io/library/debian:12\n", "Ann Other")
    both = b"version: 1\nimages:\n- docker.io/library/debian:12\n- docker.io/library/debian:13\n"
    second = repository.commit(both, "Bea Sides")
    for read in (read_list, read_list, known_list):
        wishes = read(source, state, today=TODAY).wishes
        assert wishes.commit == second
        origins = [wish.origin for wish in wishes.wishes if wish.origin]
        assert [(origin.commit, origin.author) for origin in origins] == [(second, "Ann Other"), (second, "Bea Sides")]
        assert all(origin.at and origin.at.endswith("+00:00") for origin in origins)
    third = repository.commit(OTHER, "Cyd Note")
    assert read_list(source, state, today=TODAY).wishes.commit == third


def test_history_that_is_not_there_accuses_nobody(
    tmp_path: Path, repository: _Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line older than the history that was fetched has a commit and no author: blame would name the wrong one."""
    from cvmfs_sync import gitlist

    monkeypatch.setattr(gitlist, "_DEPTH", 1)
    repository.commit(GOOD, "Ann Other")
    latest = repository.commit(GOOD, "Bea Sides")
    # By a path, git would take all of it.
    source = GitList(f"file://{repository.home}")
    (wish,) = read_list(source, tmp_path / "state", today=TODAY).wishes.wishes
    assert wish.origin == Origin(latest, None, None)


@pytest.mark.parametrize("bad", [b"version: 1\nimages: [NO]\n", None, b"x" * (17 << 20)])
def test_a_bad_commit_keeps_the_last_good_one(tmp_path: Path, repository: _Repository, bad: bytes | None) -> None:
    """An invalid list, none at all, and one that is no list in size are refused, and the good commit stays in force."""
    source, state = GitList(str(repository.home)), tmp_path / "state"
    good = repository.commit(GOOD)
    read_list(source, state, today=TODAY)
    repository.commit(bad)
    for _ in range(2):
        reading = read_list(source, state, today=TODAY)
        assert reading.refused is not None
        assert (reading.wishes.commit, reading.wishes.stale) == (good, True)
        assert [str(wish) for wish in reading.wishes.wishes] == ["docker.io/library/debian:12"]
    better = repository.commit(OTHER)
    assert read_list(source, state, today=TODAY).wishes.commit == better


def test_a_repository_that_is_gone_or_a_copy_that_is_damaged(tmp_path: Path, repository: _Repository) -> None:
    """The last good list stays while git fails; a damaged copy of the repository is made anew."""
    source, state = GitList(str(repository.home)), tmp_path / "state"
    repository.commit(GOOD)
    read_list(source, state, today=TODAY)
    away = repository.home.rename(tmp_path / "away")
    assert _names(source, state) == ["docker.io/library/debian:12"]
    away.rename(repository.home)
    read_list(source, state, today=TODAY)
    for path in (state / "image-list.git").rglob("*"):
        if path.is_file() and path.name != "HEAD":
            path.chmod(0o600)
            path.write_bytes(b"rubbish")
    repository.commit(OTHER)
    _names(source, state)
    assert _names(source, state) == ["docker.io/library/debian:13"]


def test_nothing_in_the_repository_is_run(tmp_path: Path, repository: _Repository) -> None:
    """Hooks of the copy, and submodules that name a program, are nobody's way to run something here."""
    source, state = GitList(str(repository.home)), tmp_path / "state"
    marker = tmp_path / "ran"
    modules = f'[submodule "x"]\n\tpath = x\n\turl = ext::sh -c "touch% {marker}"\n'
    repository.commit(modules.encode(), path=".gitmodules")
    repository.commit(GOOD)
    read_list(source, state, today=TODAY)
    hooks = state / "image-list.git/hooks"
    assert not hooks.exists()
    hooks.mkdir()
    for name in ("reference-transaction", "post-checkout", "pre-auto-gc", "post-merge"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (hooks / name).chmod(0o755)
    repository.commit(OTHER)
    assert _names(source, state) == ["docker.io/library/debian:13"]
    assert not marker.exists()


def test_git_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """A server that takes a connection and says nothing costs the limit, with the helpers that git has started."""
    require("git")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = GitList(f"git://127.0.0.1:{silent.getsockname()[1]}/list.git")
        with pytest.raises(ListError, match="cannot be fetched") as caught:
            fetch_file(source, tmp_path / "copy", seconds=1)
    assert "no end within 1 s" in str(caught.value)


def test_a_password_in_the_repositorys_url_is_not_shown(tmp_path: Path) -> None:
    """It is in no message; git itself asks nobody for one."""
    require("git")
    source = GitList("http://user:pl4nted@127.0.0.1:1/list.git")
    with pytest.raises(ListError) as caught:
        read_list(source, tmp_path, today=TODAY)
    assert "pl4nted" not in str(caught.value)
    assert "http://127.0.0.1:1/list.git main:image-list.yaml" in str(caught.value)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_drips_is_given_up(
    server: _Server, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However steadily it sends a byte now and then, the daemon is not held up for ever; the last good list stays."""
    monkeypatch.setattr(listsource, "_WHOLE_SECONDS", 0.3)
    assert read_list(server.url, tmp_path, today=TODAY).refused is None
    server.etag, server.document, server.drips = '"2"', OTHER * 20, part
    reading = read_list(server.url, tmp_path, today=TODAY)
    assert "cannot be downloaded" in str(reading.refused)
    assert str(reading.wishes.wishes[0].name) == "docker.io/library/debian:12"
