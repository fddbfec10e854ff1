"""The stream of events: who may listen, for how long, and what ends it."""

from __future__ import annotations

import http.client
import itertools
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest

from cvmfs_sync.view.documents import Cycle
from cvmfs_sync.view.queries import View
from cvmfs_sync.web import live
from cvmfs_sync.web.app import make_app
from cvmfs_sync.web.live import Broadcast, live_router
from tests.support.places import until
from tests.support.shown import answering, view_of
from tests.support.site import Site
from tests.test_web import free_port, serve, wait_for

_SECONDS = 60


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    """Of a site at which nothing has happened."""
    site = Site(tmp_path)
    site.wish()
    with view_of(site) as opened:
        yield opened


class Listener:
    """One connection that listens; a context manager."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=_SECONDS)
        self._connection.request("GET", "/activity/events")
        self._answer = self._connection.getresponse()
        self.status, self.headers = self._answer.status, self._answer.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        """The lines, as they come."""
        return (line.decode().rstrip("\n") for line in self._answer)

    def close(self) -> None:
        """Go away."""
        self._answer.close()
        self._connection.close()


def test_one_too_many_is_told_when_to_come_again(view: View) -> None:
    """The fifty-first gets 503 and Retry-After, also when all come at once; a place that is left is another's."""
    broadcast = Broadcast()
    with answering(make_app(view, [live_router(broadcast)])) as address, ThreadPoolExecutor(60) as threads:
        answers = list(threads.map(Listener, [address] * 60))
        heard = [each for each in answers if each.status == 200]
        refused = [each for each in answers if each.status == 503]
        assert (len(heard), len(refused)) == (50, 10)
        assert all(each.headers["retry-after"] == "30" for each in refused)
        assert all(next(iter(each)) == "event: cycle" for each in heard)
        heard.pop().close()
        until(lambda: broadcast.listeners == 49, _SECONDS)
        with Listener(address) as another:
            assert next(iter(another)) == "event: cycle"
        for each in answers:
            each.close()
        until(lambda: broadcast.listeners == 0, _SECONDS)


def test_a_listener_hears_changes_only(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event for each change, with the whole cycle; while there is none, a comment, so that proxies keep the line."""
    monkeypatch.setattr(live, "_SECONDS", 0.01)
    monkeypatch.setattr(live, "_SILENCE_SECONDS", 0.0)
    cycle = view.cycle()
    now = [cycle]
    monkeypatch.setattr(view, "cycle", lambda: now[0])
    with answering(make_app(view, [live_router()])) as address, Listener(address) as stream:
        assert stream.headers["cache-control"] == "no-store"
        heard = iter(stream)
        assert list(itertools.islice(heard, 5))[2:] == ["", ": still here", ""]
        now[0] = cycle.model_copy(update={"running": True, "doing": "a cycle"})
        assert next(line for line in heard if line and not line.startswith(":")) == "event: cycle"
        assert Cycle.model_validate_json(next(heard).removeprefix("data: ")) == now[0]


def test_a_stream_ends_in_time(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long somebody listens: the browser asks again, and is heard."""
    monkeypatch.setattr(live, "_LONGEST_SECONDS", 0.05)
    monkeypatch.setattr(live, "_SECONDS", 0.01)
    with answering(make_app(view, [live_router()])) as address:
        for _ in range(2):
            with Listener(address) as stream:
                assert list(stream)[:1] == ["event: cycle"]


def test_streams_end_with_the_server(tmp_path: Path) -> None:
    """SIGTERM ends them in an orderly way, and nothing is said of it that would look like trouble."""
    site, port = Site(tmp_path), free_port()
    site.wish()
    process = serve(site, port)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/v1/cycle")
        with Listener(f"127.0.0.1:{port}") as stream:
            heard = iter(stream)
            assert next(heard) == "event: cycle"
            process.send_signal(signal.SIGTERM)
            assert list(heard)[-1] == ""
        _, said = process.communicate(timeout=_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0
    assert b"error" not in said.lower()
