"""Commands and URLs that are told what happens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvmfs_sync.config import Hook, load
from cvmfs_sync.errors import ConfigurationError
from cvmfs_sync.eventlog import EVENTS
from cvmfs_sync.hooks import Hooks
from cvmfs_sync.render import report_document
from cvmfs_sync.serving import Daemon
from tests.support import Image, file, layer, run_cli, write_layout
from tests.support.waiting import wait_until

SECRET = "s3cret"


def _hooks(home: Path, *hooks: dict[str, object]) -> tuple[Hook, ...]:
    (home / "cvmfs-sync.yaml").write_text(yaml.safe_dump({"hooks": list(hooks)}))
    return load(home / "cvmfs-sync.yaml", {}).hooks


def _script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


class _Web:
    """A server that keeps what it gets.

    Attributes:
        status: That it answers with.
        go: It answers while this is set.
        drips: Whether its answer comes byte by byte.
    """

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.status = 204
        self.go = threading.Event()
        self.go.set()
        self.drips = False
        self.stop = threading.Event()
        web = self

        class _Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                web.got.append((dict(self.headers), json.loads(content)))
                web.go.wait(60)
                with suppress(OSError):
                    while web.drips and not web.stop.wait(0.05):
                        self.wfile.write(b"X")
                self.send_response(web.status)
                self.send_header("Location", f"/elsewhere/{SECRET}")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def web() -> Iterator[_Web]:
    """A server on loopback."""
    server = _Web()
    yield server
    server.go.set()
    server.stop.set()
    server.server.shutdown()
    server.server.server_close()


def test_a_command_gets_what_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event on stdin, in order, those that it asks for only; without our environment, and without a shell."""
    monkeypatch.setenv("TOKEN", SECRET)
    script = _script(
        tmp_path / "hook", f"cat >> {tmp_path}/events", f'env > {tmp_path}/env; echo "$1" > {tmp_path}/arg'
    )
    hooks = Hooks(_hooks(tmp_path, {"on": ["failed", "moved"], "command": [script, "$HOME; a b"]}))
    for number, event in enumerate(("failed", "published", "moved")):
        hooks.tell({"event": event, "id": number, "detail": "ä\n"})
    hooks.close(60)
    got = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [each["id"] for each in got] == [0, 2]
    assert got[0]["detail"] == "ä\n"
    assert hooks.counts == {"ok": 2}
    assert SECRET not in (tmp_path / "env").read_text()
    assert (tmp_path / "arg").read_text() == "$HOME; a b\n"


def test_a_url_gets_headers_of_a_file(tmp_path: Path, web: _Web) -> None:
    """By POST, as JSON, with headers that are read for each event."""
    (tmp_path / "headers").write_text(f"Authorization: Bearer {SECRET}\n\nX-Other:1\n")
    hooks = Hooks(_hooks(tmp_path, {"on": ["failed"], "url": web.url, "header_file": "headers"}))
    hooks.tell({"event": "failed", "id": 1})
    wait_until(lambda: hooks.counts["ok"] == 1)
    (tmp_path / "headers").write_text("Authorization: Bearer new\n")
    hooks.tell({"event": "failed", "id": 2})
    hooks.close(60)
    assert [content for _, content in web.got] == [{"event": "failed", "id": 1}, {"event": "failed", "id": 2}]
    assert [headers["Authorization"] for headers, _ in web.got] == [f"Bearer {SECRET}", "Bearer new"]
    assert web.got[0][0]["Content-Type"] == "application/json"
    assert web.got[0][0]["X-Other"] == "1"


def test_failures_are_logged_once_and_counted(tmp_path: Path, web: _Web, caplog: pytest.LogCaptureFixture) -> None:
    """Until it works again; neither the URL nor a header is in the log, and a redirect is not followed."""
    caplog.set_level("INFO", "cvmfs_sync")
    (tmp_path / "headers").write_text(f"Authorization: Bearer {SECRET}\n")
    hooks = Hooks(_hooks(tmp_path, {"on": ["failed"], "url": web.url, "header_file": "headers"}))
    for status in (500, 302, 404):
        web.status = status
        before = hooks.counts["failed"]
        hooks.tell({"event": "failed"})
        wait_until(lambda: hooks.counts["failed"] > before)  # noqa: B023 - called at once
    web.status = 200
    hooks.tell({"event": "failed"})
    hooks.close(60)
    assert hooks.counts == {"failed": 3, "ok": 1}
    assert len(web.got) == 4
    assert caplog.text.count("fails, which is not said again") == 1
    assert "hook 1 (127.0.0.1) works again" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("text", [f"no colon {SECRET}\n", f": {SECRET}\n", f"Bad\x00Name: {SECRET}\n", None])
def test_headers_that_make_no_sense_are_a_failure(
    tmp_path: Path, web: _Web, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is wrong, or not there, is told without what it holds."""
    if text is not None:
        (tmp_path / "headers").write_text(text)
    hooks = Hooks(_hooks(tmp_path, {"on": ["failed"], "url": web.url, "header_file": "headers"}))
    hooks.tell({"event": "failed"})
    hooks.close(60)
    assert hooks.counts == {"failed": 1}
    assert SECRET not in caplog.text


@pytest.mark.parametrize("lines", [["exit 3"], ["kill -9 $$"], ["sleep 600 & sleep 600"], None])
def test_a_command_that_fails_is_counted(tmp_path: Path, lines: list[str] | None) -> None:
    """By an exit code, a signal, its timeout, or because it is not there."""
    script = _script(tmp_path / "hook", *lines) if lines else str(tmp_path / "none")
    hooks = Hooks(_hooks(tmp_path, {"on": ["failed"], "command": [script], "timeout": "1s"}))
    hooks.tell({"event": "failed"})
    hooks.close(60)
    assert hooks.counts == {"failed": 1}


@pytest.mark.parametrize("drips", [False, True])
def test_a_url_that_takes_too_long_is_counted(tmp_path: Path, web: _Web, drips: bool) -> None:
    """A server that says nothing, and one whose answer never ends, are given up after the hook's timeout."""
    if drips:
        web.drips = True
    else:
        web.go.clear()
    hooks = Hooks(_hooks(tmp_path, {"on": ["failed"], "url": web.url, "timeout": "1s"}))
    hooks.tell({"event": "failed"})
    wait_until(lambda: hooks.counts["failed"] == 1)
    hooks.close(60)
    assert hooks.counts == {"failed": 1}


def test_a_slow_target_keeps_nobody_waiting(tmp_path: Path, web: _Web) -> None:
    """What does not fit into its queue is dropped, and the other target gets all."""
    web.go.clear()
    script = _script(tmp_path / "hook", f"cat >> {tmp_path}/events")
    slow: dict[str, object] = {"on": ["failed"], "url": web.url, "timeout": "1m"}
    hooks = Hooks(_hooks(tmp_path, slow, {"on": ["failed"], "command": [script]}), queue_size=3)
    hooks.tell({"event": "failed", "id": 0})
    wait_until(lambda: len(web.got) == 1)
    for number in range(1, 6):
        hooks.tell({"event": "failed", "id": number})
        wait_until(lambda: hooks.counts["ok"] == number + 1)  # noqa: B023 - called at once
    assert hooks.counts["dropped"] == 2
    web.go.set()
    hooks.close(60)
    assert [content["id"] for _, content in web.got] == [0, 1, 2, 3]
    assert len((tmp_path / "events").read_text().splitlines()) == 6
    hooks.tell({"event": "failed", "id": 9})
    assert hooks.counts == {"ok": 10, "dropped": 2}


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"on": ["failed"]}, "expected one of 'command' and 'url'"),
        ({"on": ["failed"], "command": ["/a"], "url": "http://a"}, "expected one of 'command' and 'url'"),
        ({"on": ["failed"], "command": ["a"]}, "an absolute path"),
        ({"on": ["failed"], "command": ["/a"], "header_file": "b"}, "no 'header_file'"),
        ({"on": ["failed"], "command": []}, "must not be empty"),
        ({"on": [], "command": ["/a"]}, "must not be empty"),
        ({"on": ["fails"], "command": ["/a"]}, "expected 'published'"),
        ({"command": ["/a"]}, "the key 'on' is missing"),
        ({"on": ["failed"], "url": f"ftp://host/{SECRET}"}, "expected a URL"),
        ({"on": ["failed"], "url": f"https://user:{SECRET}@host/"}, "without a user"),
        ({"on": ["failed"], "command": ["/a"], "timeout": "0s"}, "longer than 0s"),
        ({"on": ["failed"], "command": ["/a"], "shell": True}, "unknown key"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, hook: dict[str, object], message: str) -> None:
    """Each with its place; what may be a secret is not shown."""
    with pytest.raises(ConfigurationError) as raised:
        _hooks(tmp_path, hook)
    assert message in str(raised.value)
    assert SECRET not in str(raised.value)


def test_every_event_can_be_asked_for(tmp_path: Path) -> None:
    """The configuration knows the events of the log."""
    (hook,) = _hooks(tmp_path, {"on": list(EVENTS), "command": ["/a"]})
    assert hook.on == EVENTS


def test_sync_and_daemon_tell(tmp_path: Path) -> None:
    """Both tell what they publish, and a reload changes who is told."""
    first, second = (_script(tmp_path / name, f"cat >> {tmp_path}/{name}.got") for name in ("first", "second"))
    write_layout(tmp_path / "images", {"1": Image((layer(file("hello", "one")),))})
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: [oci:images:1]\n")
    _hooks(tmp_path, {"on": ["published", "moved"], "command": [first]})
    run_cli("sync", "--config", tmp_path / "cvmfs-sync.yaml").ok()
    assert json.loads((tmp_path / "first.got").read_text())["event"] == "published"
    (tmp_path / "first.got").unlink()
    daemon = Daemon(lambda: load(tmp_path / "cvmfs-sync.yaml", dict[str, str]()), report_document)
    for text, name in (("two", "first"), ("three", "second")):
        write_layout(tmp_path / "images", {"1": Image((layer(file("hello", text)),))})
        daemon.cycle()
        got = tmp_path / f"{name}.got"
        wait_until(lambda: got.exists() and got.read_text().count("\n") == 2)  # noqa: B023 - called at once
        assert [json.loads(line)["event"] for line in got.read_text().splitlines()] == ["moved", "published"]
        _hooks(tmp_path, {"on": ["published", "moved"], "command": [second]})
        daemon.reload()
    value = daemon.metrics.registry.get_sample_value("cvmfs_sync_hook_events_total", {"result": "ok"})
    assert value == 4
