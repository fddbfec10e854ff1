"""`cvmfs-sync run`: when cycles happen, and what ends them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.triggers.base import BaseTrigger

from cvmfs_sync.daemon import Agenda, Job, run_daemon, trigger
from cvmfs_sync.units import Crontab
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support import Image, file, layer, write_layout
from tests.support.commands import cli_command, run_cli
from tests.support.cvmfs import FakeCvmfs
from tests.support.notifysocket import listening
from tests.support.registry import free_port
from tests.support.waiting import wait_until

START = datetime(2026, 11, 20, 12, 0, 30, tzinfo=UTC)  # a Friday


class _Stop(Exception):
    """Ends the daemon of a test."""


def _next(one: BaseTrigger, count: int) -> list[str]:
    times: list[str] = []
    previous, now = None, START
    for _ in range(count):
        previous = one.get_next_fire_time(previous, now)
        now = previous + timedelta(seconds=1)
        times.append(previous.strftime("%a %d %H:%M"))
    return times


@pytest.mark.parametrize(
    ("line", "times"),
    [
        ("30 3 * * *", ["Sat 21 03:30", "Sun 22 03:30"]),
        ("*/20 * * * *", ["Fri 20 12:20", "Fri 20 12:40", "Fri 20 13:00"]),
        ("0 6 * * 1", ["Mon 23 06:00", "Mon 30 06:00"]),
        ("0 0 21 * 1", ["Sat 21 00:00", "Mon 23 00:00"]),
    ],
)
def test_a_crontab_line_means_what_cron_says(line: str, times: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weekdays count from Sunday, and a day and a weekday are alternatives."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert _next(trigger(Crontab.parse(line)), len(times)) == times


def test_a_cycle_runs_at_once_and_then_by_the_schedule() -> None:
    """The first cycle doesn't wait for the first interval, and the next ones come."""
    cycles: list[int] = []

    def cycle() -> None:
        cycles.append(len(cycles))
        if len(cycles) == 3:
            raise _Stop

    with pytest.raises(_Stop):
        run_daemon(Job("cycle", timedelta(seconds=0.05), cycle, at_once=True))
    assert cycles == [0, 1, 2]


def test_due_times_during_a_cycle_become_one_cycle(caplog: pytest.LogCaptureFixture) -> None:
    """While a slow cycle runs, one more is kept waiting, and the times that are due after that are dropped."""
    caplog.set_level("INFO", "cvmfs_sync")
    cycles: list[int] = []

    def cycle() -> None:
        cycles.append(len(cycles))
        if len(cycles) == 2:
            raise _Stop
        for _ in range(600):
            if caplog.text.count("a cycle is due while one is waiting") >= 3:
                return
            time.sleep(0.05)
        raise AssertionError("due times pile up")

    with pytest.raises(_Stop):
        run_daemon(Job("cycle", timedelta(seconds=0.05), cycle, at_once=True))
    assert cycles == [0, 1]


class _Daemon:
    """A running `cvmfs-sync run` in a directory of its own."""

    def __init__(self, home: Path, settings: Mapping[str, Any] | None = None, **environment: str) -> None:
        self.home = home
        self.port = free_port()
        self.config = home / "cvmfs-sync.yaml"
        self.configure(settings or {"schedule": {"sync": "1s"}})
        self.process = subprocess.Popen(
            cli_command("run", "--config", self.config), env={**os.environ, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the configuration."""
        fresh = self.home / "fresh.yaml"
        given = {"metrics": {"listen": f"127.0.0.1:{self.port}"}, "web": {"listen": None}, **settings}
        fresh.write_text(json.dumps(given), encoding="utf-8")
        fresh.rename(self.config)

    def value(self, sample: str) -> float:
        """A sample of the metrics endpoint; -1 while it doesn't answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return -1
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{sample} ")), -1)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds; fails when the daemon ends."""

        def happened() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, self.process.communicate()
            return False

        wait_until(happened)

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Exit code and log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log


@contextmanager
def _running(home: Path, settings: Mapping[str, Any] | None = None, **environment: str) -> Iterator[_Daemon]:
    daemon = _Daemon(home, settings, **environment)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.communicate()


def _write_list(home: Path, *lines: str) -> None:
    fresh = home / "fresh"
    fresh.write_text("\n".join(["version: 1", "images:", *lines]) + "\n", encoding="utf-8")
    fresh.rename(home / "image-list.yaml")


def _image(text: str) -> Image:
    return Image((layer(file("hello", text)),), cmd=("/bin/sh",))


def test_the_daemon_follows_a_tag_and_keeps_the_last_good_list(tmp_path: Path) -> None:
    """A moved tag is published without anybody asking; a broken list changes nothing but a metric."""
    write_layout(tmp_path / "images", {"1": _image("one")})
    _write_list(tmp_path, "  - oci:images:1")
    hello = tmp_path / f"published/oci{tmp_path}/images:1/hello"
    with _running(tmp_path) as daemon:
        daemon.wait_for(lambda: daemon.value("cvmfs_sync_last_success_timestamp_seconds") > 0)
        assert hello.read_text() == "one"
        write_layout(tmp_path / "images", {"1": _image("two")})
        daemon.wait_for(lambda: hello.read_text() == "two")
        _write_list(tmp_path, "  - NOT AN IMAGE")
        daemon.wait_for(lambda: daemon.value("cvmfs_sync_list_valid") == 0)
        write_layout(tmp_path / "images", {"1": _image("three")})
        daemon.wait_for(lambda: daemon.value("cvmfs_sync_published_images_total") == 3)
        assert hello.read_text() == "three"
        code, log = daemon.stop(signal.SIGTERM)
    assert code == 0, log
    assert "the last good one stays" in log
    assert log.count("published image=") == 3


def test_a_daemon_without_a_valid_list_waits_for_one(tmp_path: Path) -> None:
    """A list that is wrong from the beginning is counted and logged, and taken up once it is right."""
    write_layout(tmp_path / "images", {"1": _image("one")})
    _write_list(tmp_path, "  - 'two words'")
    with _running(tmp_path) as daemon:
        daemon.wait_for(lambda: daemon.value('cvmfs_sync_cycles_total{result="list_invalid"}') > 0)
        _write_list(tmp_path, "  - oci:images:1")
        daemon.wait_for(lambda: daemon.value('cvmfs_sync_cycles_total{result="ok"}') > 0)
        code, _ = daemon.stop(signal.SIGINT)
    assert code == 130


def test_sync_beside_the_daemon_is_told_who_is_at_work(tmp_path: Path) -> None:
    """Two writers never work with one state directory; the second says who the first is."""
    write_layout(tmp_path / "images", {"1": _image("one")})
    _write_list(tmp_path, "  - oci:images:1")
    with _running(tmp_path) as daemon:
        daemon.wait_for(lambda: daemon.value('cvmfs_sync_cycles_total{result="ok"}') > 0)
        result = run_cli("sync", "--config", tmp_path / "cvmfs-sync.yaml").ok(3)
        assert f"process {daemon.process.pid} holds" in result.stderr
        status = run_cli("status", "--json", "--config", tmp_path / "cvmfs-sync.yaml").ok()
        assert json.loads(status.stdout)["images"][0]["state"] == "published"


def test_a_defect_in_one_cycle_leaves_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody expected is logged with its traceback and counted, and the daemon lives."""
    from cvmfs_sync import serving
    from cvmfs_sync.config import load
    from cvmfs_sync.render import report_document

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    _write_list(tmp_path, "  - oci:images:1")
    (tmp_path / "cvmfs-sync.yaml").touch()
    monkeypatch.setattr(serving, "sync", broken)
    daemon = serving.Daemon(lambda: load(tmp_path / "cvmfs-sync.yaml", {}), report_document)
    daemon.cycle()
    assert daemon.metrics.registry.get_sample_value("cvmfs_sync_cycles_total", {"result": "stopped"}) == 1
    assert "please report" in caplog.text
    assert "ZeroDivisionError" in caplog.text


IDLE = {"schedule": {"sync": "1h", "list": "1h"}}


def _is_waiting(said: Mapping[str, str]) -> bool:
    return said == {"STATUS": "waiting for the next cycle"}


def _ready(said: Mapping[str, str]) -> bool:
    return said == {"READY": "1"}


def test_jitter_is_added_and_stays_small() -> None:
    """A job falls due later than its schedule says by up to the jitter, or a tenth of its interval, never earlier."""
    for schedule, jitter, most in (
        (timedelta(minutes=15), timedelta(seconds=10), 10.0),
        (timedelta(seconds=10), timedelta(seconds=10), 1.0),
        (timedelta(seconds=10), timedelta(0), 0.0),
    ):
        one = trigger(schedule, jitter)
        now = datetime.now(UTC)
        late = [(one.get_next_fire_time(now, now) - now - schedule).total_seconds() for _ in range(200)]
        assert all(-1e-3 <= each <= most + 1e-3 for each in late)
        assert max(late) >= most / 2


def test_what_is_urgent_goes_before_what_is_due() -> None:
    """Between two jobs, those who can't wait are served, however many jobs are due."""
    done: list[str] = []
    asked = ["now"]

    def stop() -> None:
        done.append("second")
        raise _Stop

    agenda = Agenda(
        [
            Job("first", timedelta(hours=1), lambda: done.append("first"), at_once=True),
            Job("second", timedelta(hours=1), stop, at_once=True),
        ],
        urgent=lambda: done.append(asked.pop()) if asked else None,
    )
    agenda.wake()
    with pytest.raises(_Stop):
        agenda.run()
    assert done == ["now", "first", "second"]


def test_a_changed_list_begins_a_cycle(tmp_path: Path) -> None:
    """The list is read by itself: an image that is asked for need not wait for the next cycle's time."""
    write_layout(tmp_path / "images", {"1": _image("one"), "2": _image("two")})
    _write_list(tmp_path, "  - oci:images:1")
    with _running(tmp_path, {"schedule": {"sync": "1h", "list": "1s"}}) as daemon:
        daemon.wait_for((tmp_path / f"published/oci{tmp_path}/images:1/hello").exists)
        _write_list(tmp_path, "  - oci:images:1", "  - oci:images:2")
        daemon.wait_for((tmp_path / f"published/oci{tmp_path}/images:2/hello").exists)
        code, log = daemon.stop(signal.SIGTERM)
    assert code == 0
    assert log.count("the image list has changed") == 1


def test_the_service_manager_hears_of_all(tmp_path: Path) -> None:
    """Ready, what is being done, a reload, the watchdog, and the end: in this order, to a real socket."""
    write_layout(tmp_path / "images", {"1": _image("one")})
    _write_list(tmp_path, "  - oci:images:1")
    with (
        listening(tmp_path) as manager,
        _running(tmp_path, IDLE, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="1000000") as daemon,
    ):
        number = manager.wait_for(_ready)
        number = manager.wait_for(lambda said: "publishing" in said.get("STATUS", ""), number)
        number = manager.wait_for(_is_waiting, number)
        manager.wait_for(lambda said: said == {"WATCHDOG": "1"}, number)
        daemon.process.send_signal(signal.SIGHUP)
        number = manager.wait_for(lambda said: said.keys() == {"RELOADING", "MONOTONIC_USEC"}, number)
        number = manager.wait_for(_ready, number)
        manager.wait_for(_is_waiting, number)
        code, _ = daemon.stop(signal.SIGTERM)
        manager.wait_for(lambda said: said.get("STOPPING") == "1", number)
    assert code == 0


def test_sighup_takes_a_new_configuration_or_none_of_it(tmp_path: Path) -> None:
    """A good one holds from the next job on; a bad one, or one that needs a restart, is refused with its reasons."""
    write_layout(tmp_path / "images", {"1": _image("one"), "2": _image("two")})
    _write_list(tmp_path, "  - oci:images:1")
    (tmp_path / "other.yaml").write_text("version: 1\nimages: ['oci:images:2']\n")
    second = tmp_path / f"published/oci{tmp_path}/images:2/hello"
    with listening(tmp_path) as manager, _running(tmp_path, IDLE, NOTIFY_SOCKET=manager.address) as daemon:

        def reload(settings: Mapping[str, Any], valid: int) -> None:
            daemon.configure({**IDLE, **settings})
            number = len(manager.listen())
            daemon.process.send_signal(signal.SIGHUP)
            number = manager.wait_for(_ready, number)
            manager.wait_for(_is_waiting, number)
            assert daemon.value("cvmfs_sync_config_valid") == valid

        manager.wait_for(_is_waiting)
        reload({"image_list": "other.yaml", "no_such_key": 1}, 0)
        reload({"image_list": "other.yaml", "layout": "osg", "state_dir": "elsewhere"}, 0)
        assert not second.exists()
        reload({"image_list": "other.yaml"}, 1)
        assert second.read_text() == "two"
        code, log = daemon.stop(signal.SIGTERM)
    assert code == 0
    assert "no_such_key" in log
    assert "layout: unpacked is to become osg; state_dir: " in log
    assert "restart the daemon" in log


def test_sync_now_is_done_by_the_daemon(tmp_path: Path) -> None:
    """The image is published at once, the answer and exit code are those of `sync`; nonsense is refused as there."""
    write_layout(tmp_path / "images", {"1": _image("one")})
    _write_list(tmp_path, "  - oci:images:1", "  - oci:images:3")
    name, config = f"oci:{tmp_path}/images:1", tmp_path / "cvmfs-sync.yaml"
    with listening(tmp_path) as manager, _running(tmp_path, IDLE, NOTIFY_SOCKET=manager.address) as daemon:
        manager.wait_for(_is_waiting)
        write_layout(tmp_path / "images", {"1": _image("two")})
        now = run_cli("sync", "--now", "--json", "--config", config, name).ok().json
        assert [(each["image"], each["result"]) for each in now["images"]] == [(name, "published")]
        assert (tmp_path / f"published/oci{tmp_path}/images:1/hello").read_text() == "two"
        text = run_cli("sync", "--now", "--config", config, name).ok()
        assert "1 unchanged" in text.stdout
        missing = run_cli("sync", "--now", "--config", config, f"oci:{tmp_path}/images:3").ok(1)
        assert "1 failed" in missing.stdout
        unlisted = run_cli("sync", "--now", "--config", config, "alpine").ok(2)
        refused = run_cli("sync", "--config", config, "alpine").ok(3)
        assert "sync --now IMAGE" in refused.stderr
        everything = run_cli("sync", "--now", "--json", "--config", config).ok(1).json
        assert [each["result"] for each in everything["images"]] == ["unchanged", "failed"]
        daemon.stop(signal.SIGTERM)
    assert run_cli("sync", "--now", "--config", config, "alpine").ok(2).stderr == unlisted.stderr
    assert "docker.io/library/alpine:latest is not in the image list" in unlisted.stderr
    alone = run_cli("sync", "--now", "--json", "--config", config, name).ok().json
    assert [each["result"] for each in alone["images"]] == ["unchanged"]


class _Publisher:
    """A daemon's home with the fake server, and a tag that can mean any number of images."""

    def __init__(self, home: Path, fake: FakeCvmfs | None) -> None:
        self.home = home
        self.fake = fake
        self.number = 0
        repository: dict[str, Any] = {"wait": "5s"}
        if fake:
            repository |= {"backend": "cvmfs", "name": fake.name, "root": str(fake.root), "spool": str(fake.spool)}
        self.settings: dict[str, Any] = {"repository": repository, **IDLE, "stop_within": "30s"}
        _write_list(home, "  - oci:images:1")

    @property
    def root(self) -> Path:
        """What clients see."""
        return self.fake.published if self.fake else self.home / "published"

    def move(self) -> None:
        """Let the tag mean another image."""
        self.number += 1
        files = (file(f"d{number}/f", f"{self.number}") for number in range(20))
        write_layout(self.home / "images", {"1": Image((layer(file("hello", f"{self.number}"), *files),))})

    def hello(self) -> str:
        """What the published image says, in each of its files."""
        tree = self.root / f"oci{self.home}/images:1"
        (text,) = {path.read_text() for path in [tree / "hello", *(tree / f"d{n}/f" for n in range(20))]}
        return text

    def require_whole(self) -> None:
        """A run finds nothing half done, and brings what is missing."""
        (image,) = run_cli("sync", "--json", "--config", self.home / "cvmfs-sync.yaml").ok().json["images"]
        assert image["result"] in ("published", "linked", "unchanged")
        assert self.hello() == str(self.number)
        if self.fake:
            assert not self.fake.in_transaction
            assert self.fake.run("fake-verify").returncode == 0


@pytest.fixture(params=["directory", "cvmfs"])
def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> _Publisher:
    """One with either backend."""
    return _Publisher(tmp_path, request.getfixturevalue("fake_cvmfs") if request.param == "cvmfs" else None)


@pytest.mark.timeout(1800)
def test_sigterm_at_random_moments(publisher: _Publisher) -> None:
    """Whenever it comes, the daemon ends in time with 0, clients see a whole image, and the next run is a good one.

    Half of the moments are counted from when the image begins to be published, however long it takes to come so far.
    """
    chance = random.Random(7)
    old = "0"
    for _ in range(50 if os.environ.get("CI") == "true" else 3):
        publisher.move()
        with (
            listening(None) as manager,
            _running(publisher.home, publisher.settings, NOTIFY_SOCKET=manager.address) as daemon,
        ):
            number = manager.wait_for(_ready)
            if chance.random() < 0.5:
                manager.wait_for(lambda said: "publishing" in said.get("STATUS", ""), number)
            time.sleep(chance.uniform(0, 0.7))
            code, log = daemon.stop(signal.SIGTERM)
        assert code == 0, log
        assert "Traceback" not in log
        assert "not everything has ended" not in log
        if publisher.number > 1:
            assert publisher.hello() in (old, str(publisher.number))
        publisher.require_whole()
        old = str(publisher.number)


def test_a_publish_in_its_last_phase_is_finished(tmp_path: Path, fake_cvmfs: FakeCvmfs) -> None:
    """What `cvmfs_server publish` has begun is let end within the limit; doing it again would cost more."""
    publisher = _Publisher(tmp_path, fake_cvmfs)
    publisher.move()
    fake_cvmfs.switch("sleep", "publish:hashing:2")
    with _running(tmp_path, publisher.settings) as daemon:
        daemon.wait_for((fake_cvmfs.spool / "is_publishing.lock").exists)
        code, log = daemon.stop(signal.SIGTERM)
    assert code == 0
    assert "published image=" in log
    assert publisher.hello() == "1"


def test_a_publish_that_takes_too_long_is_abandoned(tmp_path: Path, fake_cvmfs: FakeCvmfs) -> None:
    """Beyond its part of the limit it is ended and aborted, and the daemon has ended within the limit."""
    publisher = _Publisher(tmp_path, fake_cvmfs)
    publisher.move()
    fake_cvmfs.switch("sleep", "publish:hashing:60")
    with _running(tmp_path, {**publisher.settings, "stop_within": "4s"}) as daemon:
        daemon.wait_for((fake_cvmfs.spool / "is_publishing.lock").exists)
        code, log = daemon.stop(signal.SIGTERM)
    assert code == 0
    assert "it is abandoned" in log
    assert "published image=" not in log
    fake_cvmfs.unswitch("sleep")
    publisher.require_whole()


def test_a_registry_that_says_nothing_does_not_hold_the_end_up(tmp_path: Path) -> None:
    """A thread that waits for a registry's bytes is no progress for the watchdog, and is cut off, not waited for."""
    with ScriptableRegistry() as registry:
        registry.add_image("org/tool", "1", [layer(file("a", "1")).tar])
        asked = threading.Event()
        release = threading.Event()

        def hold() -> None:
            asked.set()
            release.wait(120)

        registry.before("/blobs/", hold)
        _write_list(tmp_path, f"  - {registry.host}/org/tool:1")
        settings = {**IDLE, "registries": {registry.host: {"insecure": True}}}
        with (
            listening(tmp_path) as manager,
            _running(tmp_path, settings, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000") as daemon,
        ):
            daemon.wait_for(asked.is_set)
            # It is as alive as its last progress; after that the watchdog hears nothing more.
            heard = -1
            while heard != len(manager.listen()):
                heard = len(manager.listen())
                time.sleep(3)
            code, log = daemon.stop(signal.SIGTERM)
        release.set()
    assert code == 0
    assert "stopped by SIGTERM" in log
    assert "not everything has ended" not in log
    assert "Traceback" not in log


def test_a_registry_that_drips_does_not_hold_the_end_up(tmp_path: Path) -> None:
    """A layer that comes byte by byte, and would for an hour, is given up at once, and nothing of it stays."""
    with ScriptableRegistry() as registry:
        image = registry.add_image("org/tool", "1", [layer(file("a", random.Random(1).randbytes(30_000))).tar])
        registry.drip(f"/blobs/{image.layers[0]}", 0.1, head=False)
        _write_list(tmp_path, f"  - {registry.host}/org/tool:1")
        settings = {**IDLE, "registries": {registry.host: {"insecure": True}}}
        partial = tmp_path / "spool/partial"
        with _running(tmp_path, settings) as daemon:
            daemon.wait_for(lambda: partial.is_dir() and any(each.stat().st_size for each in partial.iterdir()))
            code, log = daemon.stop(signal.SIGTERM)
    assert code == 0
    assert "stopped by SIGTERM" in log
    assert "not everything has ended" not in log
    assert "Traceback" not in log
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert not (tmp_path / f"published/{registry.host}").exists()
