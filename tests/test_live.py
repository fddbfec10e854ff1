"""What the daemon tells of itself while it works, and the process that shows it."""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
import requests

from cvmfs_sync.backlog import Backlog
from cvmfs_sync.config import load
from cvmfs_sync.control import ask
from cvmfs_sync.frontdesk import FrontDesk
from cvmfs_sync.heartbeat import Heartbeat, Telling
from cvmfs_sync.live import Live
from cvmfs_sync.ports import Silent, Unit
from cvmfs_sync.registry import RegistryMemory
from cvmfs_sync.state import State
from cvmfs_sync.view.activity import Activity
from tests.support.images import Image, file, layer, write_layout
from tests.support.registry import free_port
from tests.support.waiting import wait_until
from tests.test_daemon import _running as running

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def activity_of(live: Live, backlog: Backlog, home: Path, memory: RegistryMemory | None = None) -> Activity:
    (home / "cvmfs-sync.yaml").touch()
    config, known = load(home / "cvmfs-sync.yaml", {}), memory or RegistryMemory()
    return live.activity(backlog, known.requests(), known.rate_limits(), config, next_at=None)


def test_a_piece_of_work_is_seen_while_it_lasts(tmp_path: Path) -> None:
    """What is done, how far it is, and what has become of the others; afterwards how the cycle ended."""
    live, backlog = Live(lambda: NOW), Backlog()
    progress = live.watched(Silent())
    with State(tmp_path / "state") as state, live.cycle():
        live.doing = "a cycle"
        backlog.expect(3)
        backlog.begin(state, ["b", "a"], [], NOW)
        backlog.settled("unchanged")
        progress.start("publishing b", 100)
        progress.advance(30)
        progress.advance(12)
        seen = activity_of(live, backlog, tmp_path)
    assert seen.cycle.running
    assert (seen.cycle.doing, seen.cycle.since, seen.cycle.total) == ("a cycle", NOW, 3)
    assert seen.cycle.results == {"unchanged": 1}
    assert seen.cycle.progress is not None
    assert (seen.cycle.progress.what, seen.cycle.progress.done, seen.cycle.progress.total) == ("publishing b", 42, 100)
    assert [each.link for each in seen.queue] == ["b", "a"]
    assert seen.state is not None
    assert seen.state.used > 0
    live.ended("ok", 1.5)
    seen = activity_of(live, backlog, tmp_path)
    assert seen.cycle.progress is None
    assert (seen.cycle.last_result, seen.cycle.last_seconds) == ("ok", 1.5)


def test_it_is_known_what_is_counted(tmp_path: Path) -> None:
    """Registries are asked for images, all else is bytes."""
    live, backlog = Live(lambda: NOW), Backlog()
    progress = Telling(live.watched(Silent()), Heartbeat(), lambda _what: None)
    seen = []
    with live.cycle():
        for unit in get_args(Unit):
            progress.start("working", 3, unit)
            seen.append(activity_of(live, backlog, tmp_path).cycle.progress)
    assert [each.unit for each in seen if each is not None] == ["bytes", "images"]


def test_registries_are_told_with_their_limits(tmp_path: Path) -> None:
    """Requests by result; one that never answers well is not healthy."""
    memory = RegistryMemory()
    for host, status in (("good", 200), ("good", 500), ("bad", None), ("bad", 503)):
        memory.count(host, status)
    memory.hear("good", {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76"}, NOW.timestamp())
    bad, good = activity_of(Live(lambda: NOW), Backlog(), tmp_path, memory).registries
    assert (good.host, good.limit, good.remaining, good.healthy) == ("good", 100, 76, True)
    assert (bad.host, bad.limit, bad.healthy, bad.requests["error"]) == ("bad", None, False, 2)


def test_the_daemon_shows_pages_and_what_it_does(tmp_path: Path) -> None:
    """Its child answers, is there again after it was killed, and is gone with the daemon, even one that is killed."""
    write_layout(tmp_path / "images", {"1": Image((layer(file("a")),))})
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: ['oci:images:1']\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/v1"
    settings = {"schedule": {"sync": "1h"}, "web": {"listen": f"127.0.0.1:{port}"}}

    def answer(path: str) -> dict[str, object]:
        try:
            document: dict[str, object] = requests.get(f"{url}{path}", timeout=30).json()
        except requests.RequestException:
            return {}
        return document

    with running(tmp_path, settings) as daemon:
        daemon.wait_for(lambda: answer("/cycle").get("last_result") == "ok")
        cycle = answer("/cycle")
        assert cycle["running"] is True
        assert cycle["next_at"] is not None
        assert cycle["doing"] == ""
        daemon.wait_for(lambda: (answer("/images").get("states") or {}) == {"published": 1})
        told = ask(tmp_path / "state", {"show": "activity"})
        assert told is not None
        assert Activity.model_validate(told["activity"]).cycle.last_result == "ok"
        (child,) = children(daemon.process.pid)
        os.kill(child, signal.SIGKILL)
        daemon.wait_for(lambda: children(daemon.process.pid) not in ([], [child]) and bool(answer("/cycle")))
        daemon.process.kill()
        daemon.process.communicate()
        wait_until(lambda: not answer("/cycle"))


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def test_pages_that_cannot_be_shown_hinder_nothing(tmp_path: Path) -> None:
    """A port in use: the cycle runs, the log says why there are no pages, and SIGTERM ends all of it."""
    write_layout(tmp_path / "images", {"1": Image((layer(file("a")),))})
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: ['oci:images:1']\n")
    metrics = free_port()
    with running(tmp_path, {"schedule": {"sync": "1h"}, "web": {"listen": f"127.0.0.1:{metrics}"},
                            "metrics": {"listen": f"127.0.0.1:{metrics}"}}) as daemon:  # fmt: skip
        daemon.port = metrics
        daemon.wait_for(lambda: daemon.value("cvmfs_sync_last_success_timestamp_seconds") > 0)
        seen: set[int] = set()

        def second_try() -> bool:
            seen.update(children(daemon.process.pid))
            return len(seen) >= 2

        daemon.wait_for(second_try)
        rc, log = daemon.stop(signal.SIGTERM)
    assert rc == 0
    assert "cannot serve pages" in log


def test_a_command_is_started_again_and_again(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Each time later than before; an end is an end, also while it waits, and of a process that will not go."""
    marks = tmp_path / "marks"
    desk = FrontDesk([sys.executable, "-c", f"open({str(marks)!r}, 'a').write('x')"], first_pause=0.01)
    told: list[int | None] = []
    desk.open(wanted=True, told=told.append)
    wait_until(lambda: marks.exists() and len(marks.read_text()) >= 3)
    desk.close()
    assert told[-1] is None
    assert "exit code 0" in caplog.text
    count = len(told)
    desk.open(wanted=False, told=told.append)
    desk.close()
    assert len(told) == count
    missing = FrontDesk(["/nowhere/at/all"], first_pause=0.01)
    missing.open(wanted=True, told=told.append)
    wait_until(lambda: "pages are not shown" in caplog.text)
    missing.close()
