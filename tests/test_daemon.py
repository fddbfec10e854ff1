"""`cvmfs-sync run`: when cycles happen, and what ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.triggers.base import BaseTrigger

from cvmfs_sync.daemon import Job, run_daemon, trigger
from cvmfs_sync.units import Crontab
from tests.support import Image, file, layer, write_layout
from tests.support.commands import cli_command, run_cli
from tests.support.registry import free_port

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

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        (home / "cvmfs-sync.yaml").write_text(
            f"metrics: {{listen: '127.0.0.1:{self.port}'}}\nschedule: {{sync: 1s}}\n", encoding="utf-8"
        )
        self.process = subprocess.Popen(
            cli_command("run", "--config", home / "cvmfs-sync.yaml"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        )  # fmt: skip

    def value(self, sample: str) -> float:
        """A sample of the metrics endpoint; -1 while it doesn't answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return -1
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{sample} ")), -1)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds; fails when the daemon ends or a minute has passed."""
        for _ in range(600):
            if condition():
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.1)
        raise AssertionError("never happened")

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Exit code and log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log


@contextmanager
def _running(home: Path) -> Iterator[_Daemon]:
    daemon = _Daemon(home)
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
        daemon.wait_for(lambda: hello.read_text() == "three")
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
    from cvmfs_sync.metrics import Metrics
    from cvmfs_sync.registry import RegistryMemory

    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    _write_list(tmp_path, "  - oci:images:1")
    (tmp_path / "cvmfs-sync.yaml").touch()
    monkeypatch.setattr(serving, "sync", broken)
    metrics = Metrics()
    serving._daemon_cycle(load(tmp_path / "cvmfs-sync.yaml", {}), metrics, RegistryMemory(), [])
    assert metrics.registry.get_sample_value("cvmfs_sync_cycles_total", {"result": "stopped"}) == 1
    assert "please report" in caplog.text
    assert "ZeroDivisionError" in caplog.text
