"""A day of the daemon in fast time: all that can happen to it happens, and its memory is right in the end."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.control import Request
from cvmfs_sync.registry import Timing, client
from cvmfs_sync.render import report_document
from cvmfs_sync.service import load_config
from cvmfs_sync.serving import Daemon
from cvmfs_sync.state import State
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.cvmfs import FakeCvmfs
from tests.support.site import Site

MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)
SETTINGS = {"retire": {"grace_period": "6h", "max_fraction": 1.0}, "metrics": {"listen": None}}


@pytest.fixture
def elsewhere() -> Iterator[ScriptableRegistry]:
    with ScriptableRegistry() as server:
        yield server


class _Disk:
    """This machine's disk, as far as anybody asks how full it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        usage = shutil.disk_usage
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: usage(path)._replace(free=0) if self.full else usage(path)
        )

    def fill(self) -> None:
        self.full = True

    def free(self) -> None:
        self.full = False


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits for registries and the server be short ones."""
    sleep = time.sleep

    def nap(seconds: float) -> None:
        sleep(min(seconds, 0.002))

    monkeypatch.setattr("time.sleep", nap)
    monkeypatch.setattr(client, "Timing", lambda: Timing(sleep=nap))


class _Day:
    """A site, its registry, its daemon and its time."""

    def __init__(self, site: Site, registry: ScriptableRegistry, elsewhere: ScriptableRegistry) -> None:
        self.site = site
        self.registry = registry
        self.elsewhere = elsewhere
        self.now = MIDNIGHT
        self.events: list[tuple[datetime, Callable[[], object]]] = []
        self.restart()

    def restart(self) -> None:
        """The daemon ends, and another one starts."""
        self.daemon = Daemon(lambda: load_config(self.site.config), report_document, clock=lambda: self.now)
        self.daemon.agenda.ring("cycle")

    def at(self, clock: str, event: Callable[[], object]) -> None:
        """Something happens then, in the order of the clock."""
        hours, minutes = clock.split(":")
        self.events.append((MIDNIGHT + timedelta(hours=int(hours), minutes=int(minutes)), event))

    def push(self, name: str, text: str) -> Callable[[], object]:
        """An event: a tag means another image from now on."""
        blob = support.layer(support.file("a", text)).tar
        return lambda: self._registry(name).add_image(f"org/{name}", "1", [blob])

    def wish(self, *names: str, blocked: Sequence[str] = ()) -> Callable[[], object]:
        """An event: the list asks for these, and no others, and blocks some."""
        images = [self.image(name) for name in names]
        forbidden = [{"image": self.image(name), "reason": "stolen"} for name in blocked]
        text = json.dumps({"version": 1, "images": images, "blocked": forbidden})
        return lambda: self.site.wish().write_text(text)

    def image(self, name: str) -> str:
        return f"{self._registry(name).host}/org/{name}:1"

    def _registry(self, name: str) -> ScriptableRegistry:
        return self.elsewhere if name == "e" else self.registry

    def pass_by(self) -> None:
        """Let the day happen: the list is read every five minutes, a cycle is due every fifteen, gc each hour."""
        while self.now < MIDNIGHT + timedelta(days=1):
            while self.events and self.events[0][0] <= self.now:
                self.events.pop(0)[1]()
            minutes = round((self.now - MIDNIGHT).total_seconds() / 60)
            for name, interval in (("list", 5), ("cycle", 15), ("gc", 60)):
                if minutes and minutes % interval == 0:
                    self.daemon.agenda.ring(name)
            self.daemon.agenda.run_due()
            self.now += timedelta(minutes=5)

    def history(self, name: str) -> list[tuple[str, str]]:
        """What is remembered of an image, oldest first, with the time of day."""
        with State.snapshot(self.site.home / "state") as state:
            events = state.history(self.image(name), limit=1000)
        return [(f"{event.at:%H:%M}", event.event.replace(" ", "_")) for event in reversed(events)]

    def logged(self) -> list[dict[str, Any]]:
        """The lines of the event log."""
        return [json.loads(line) for line in (self.site.home / "state/events.jsonl").read_text().splitlines()]

    def value(self, metric: str) -> float | None:
        return self.daemon.metrics.registry.get_sample_value(f"cvmfs_sync_{metric}")

    def text(self, name: str) -> str:
        return (self.site.root / self.image(name) / "a").read_text()


def test_a_day(
    memory_path: Path,
    registry: ScriptableRegistry,
    elsewhere: ScriptableRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tags move, registries fail and come back, lists break, images come and go, disks are full, daemons restart.

    In the end the state is right, and everything that happened is in history and event log once, at its time.
    """
    fake_cvmfs = FakeCvmfs(memory_path / "publisher", "unpacked.example.org")
    fake_cvmfs.make()
    for variable, value in fake_cvmfs.environment.items():
        monkeypatch.setenv(variable, value)
    site = Site(memory_path / "site", fake_cvmfs, (registry.host, elsewhere.host), dict(SETTINGS))
    day = _Day(site, registry, elsewhere)
    disk = _Disk(monkeypatch)
    for name in ("a", "b", "c", "e"):
        day.push(name, f"{name}1")()
    day.wish("a", "b", "c")()
    asked = Request({"sync": [day.image("b")]})
    seen: list[float | None] = []

    day.at("1:05", day.push("a", "a2"))
    day.at("2:05", lambda: registry.fail("/v2/", status=503))
    day.at("3:00", day.push("a", "a3"))
    day.at("4:00", day.restart)
    day.at("5:00", registry.heal)
    day.at("6:00", lambda: site.wish().write_text("version: 1\nimages: [NO]\n"))
    day.at("6:35", day.push("b", "b2"))
    day.at("7:00", day.restart)
    day.at("7:30", lambda: seen.append(day.value("list_valid")))
    day.at("8:00", day.wish("a", "b", "c", "missing"))
    day.at("9:05", day.wish("a", "b", "c", "d", "e", "missing"))
    day.at("9:05", day.push("d", "d1"))
    day.at("10:00", day.wish("a", "b", "d", "e", "missing"))
    # One registry does not answer, and the other's images are followed all the same.
    day.at("10:20", lambda: elsewhere.drop("/v2/"))
    day.at("10:35", day.push("e", "e2"))
    day.at("10:35", day.push("d", "d2"))
    day.at("11:20", elsewhere.heal)
    # The server's disk, and then this machine's.
    day.at("12:00", lambda: fake_cvmfs.switch("storage-full", "0"))
    day.at("12:05", day.push("a", "a4"))
    day.at("13:05", lambda: fake_cvmfs.unswitch("storage-full"))
    day.at("14:00", day.restart)
    day.at("15:01", day.push("b", "b3"))
    day.at("15:05", lambda: day.daemon.submit(asked))
    day.at("16:50", disk.fill)
    day.at("16:50", day.push("a", "a5"))
    day.at("17:30", disk.free)
    day.at("17:30", lambda: day.daemon.reload())  # noqa: PLW0108 -- the daemon of that time
    day.at("18:00", lambda: site.settings.update(layout="none"))
    day.at("18:00", lambda: day.daemon.reload())  # noqa: PLW0108
    day.at("18:05", day.push("d", "d3"))
    day.at("20:00", lambda: site.settings.pop("layout"))
    day.at("19:00", lambda: seen.append(day.value("config_valid")))
    day.at("20:00", lambda: day.daemon.reload())  # noqa: PLW0108
    day.at("20:05", lambda: seen.append(day.value("config_valid")))
    day.at("20:35", day.wish("a", "b", "d", "missing", blocked=["e"]))
    day.at("21:05", day.push("missing", "found"))
    day.at("23:00", day.restart)
    day.pass_by()

    assert day.history("a") == [
        ("00:00", "published"), ("01:15", "published"),
        ("02:15", "failed"), ("05:00", "recovered"), ("05:00", "published"),
        ("12:15", "failed"), ("13:15", "recovered"), ("13:15", "published"),
        ("17:00", "failed"), ("17:30", "recovered"), ("17:30", "published"),
    ]  # fmt: skip
    assert day.history("b") == [
        ("00:00", "published"), ("02:15", "failed"), ("05:00", "recovered"), ("06:45", "published"),
        ("15:05", "published"),
    ]  # fmt: skip
    assert day.history("c") == [
        ("00:00", "published"), ("02:15", "failed"), ("05:00", "recovered"), ("16:00", "retired"),
    ]  # fmt: skip
    assert day.history("d") == [("09:05", "published"), ("10:45", "published"), ("18:15", "published")]
    assert day.history("e") == [
        ("09:05", "published"), ("10:30", "failed"), ("11:30", "recovered"), ("11:30", "published"),
        ("20:35", "taken_down"),
    ]  # fmt: skip
    assert day.history("missing") == [("08:00", "failed"), ("21:15", "recovered"), ("21:15", "published")]
    _require_each_once(day)
    assert {name: day.text(name) for name in ("a", "b", "d", "missing")} == {
        "a": "a5", "b": "b3", "d": "d3", "missing": "found",
    }  # fmt: skip
    assert set(site.links()) == {day.image(name) for name in ("a", "b", "d", "missing")} == set(site.catalogue())
    answer = asked.wait(0)
    assert answer is not None
    assert answer["exit_code"] == 0
    assert not fake_cvmfs.in_transaction
    assert fake_cvmfs.run("fake-verify").returncode == 0
    assert seen == [0, 0, 1]
    assert day.value("list_valid") == 1


def _require_each_once(day: _Day) -> None:
    """The log for machines has what the history has, in its order, and nothing twice."""
    lines = day.logged()
    assert len({(line["history"], line["id"], line["event"]) for line in lines}) == len(lines)
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    for name in ("a", "b", "c", "d", "e", "missing"):
        mine = [line for line in lines if line["image"] == day.image(name) and line["event"] != "moved"]
        assert [(line["at"][11:16], line["event"]) for line in mine] == day.history(name)
    # A tag that led somewhere before has moved each time that it was published again.
    moved = Counter(line["image"] for line in lines if line["event"] == "moved")
    assert moved == {day.image("a"): 4, day.image("b"): 2, day.image("d"): 2, day.image("e"): 1}
    assert [(line["at"][11:16]) for line in lines if line["event"] == "list_refused"] == ["06:00"]
