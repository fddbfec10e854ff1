"""The numbers that Prometheus sees."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from cvmfs_sync.collection import CollectionReport
from cvmfs_sync.collectors import HOOK_RESULTS
from cvmfs_sync.endpoint import Endpoint
from cvmfs_sync.errors import ImageError, RepositoryBusy, UsageError
from cvmfs_sync.imagelist import parse
from cvmfs_sync.meter import Effort
from cvmfs_sync.metrics import (
    ASKED,
    CYCLE_RESULTS,
    GC_RESULTS,
    HOWS,
    KINDS,
    TRANSACTION_RESULTS,
    Metrics,
)
from cvmfs_sync.outcome import RESULTS, CycleReport, Outcome
from cvmfs_sync.pushes import DELIVERY_RESULTS, SENDERS
from cvmfs_sync.reference import Platform
from cvmfs_sync.registry import REQUEST_RESULTS, RegistryMemory
from cvmfs_sync.repository import DirectoryRepository, TimedRepository
from cvmfs_sync.retire import Retirement, RetirePlan
from cvmfs_sync.survey import Target
from tests.support import require

DOCUMENT = Path(__file__).parent.parent / "docs/metrics.md"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
GONE = (
    Retirement("a/b:1", ".flat/ab/abcd", "docker.io/a/b:1", "nobody asks for it", NOW, NOW),
    Retirement(".flat/ab/abcd", None, None, "no link leads to it", NOW, NOW),
)
CLOSED_SETS = {
    *RESULTS, *CYCLE_RESULTS, *REQUEST_RESULTS, *GC_RESULTS, *HOOK_RESULTS, *TRANSACTION_RESULTS, *HOWS, *KINDS,
    *ASKED, *SENDERS, *DELIVERY_RESULTS,
}  # fmt: skip


def _target() -> Target:
    wish = parse("version: 1\nimages: [debian:12]\n", base=Path("/")).wishes[0]
    return Target(wish, wish.name, Platform(), "docker.io/library/debian:12")


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def _after_a_cycle() -> Metrics:
    """Metrics that know a registry, too."""
    memory = RegistryMemory()
    memory.count("docker.io", 200)
    memory.hear("docker.io", {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "7;w=21600"}, NOW.timestamp())
    metrics = Metrics()
    metrics.watch_registries(memory.requests, memory.rate_limits)
    metrics.watch_backlog(lambda: (), lambda: NOW)
    metrics.watch_hooks(dict)
    metrics.cycle_ended(CycleReport((), 1.0), NOW)
    return metrics


def test_registries_are_seen_as_they_are_now() -> None:
    """Requests are counted by host and result, each host with all results; rate limits are those last heard of."""
    memory = RegistryMemory()
    metrics = Metrics()
    metrics.watch_registries(memory.requests, memory.rate_limits)
    name = "cvmfs_sync_registry_requests_total"
    assert _value(metrics, name, host="a.example", result="ok") is None
    for status in (200, 206, 304, 404, 401, 403, 429, 500, 302, None):
        memory.count("a.example", status)
    assert [_value(metrics, name, host="a.example", result=result) for result in REQUEST_RESULTS] == [2, 1, 1, 2, 1, 3]
    memory.count("b.example", 200)
    assert [_value(metrics, name, host="b.example", result=result) for result in REQUEST_RESULTS] == [1, 0, 0, 0, 0, 0]
    memory.hear("a.example", {"ratelimit-remaining": "5"}, 0.0)
    memory.hear("b.example", {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "7;w=21600"}, 0.0)
    memory.hear("b.example", {"unrelated": "5"}, 1.0)
    for host, limit, remaining in (("a.example", None, 5), ("b.example", 100, 7)):
        assert _value(metrics, "cvmfs_sync_registry_ratelimit_limit", host=host) == limit
        assert _value(metrics, "cvmfs_sync_registry_ratelimit_remaining", host=host) == remaining


def test_a_report_becomes_numbers() -> None:
    """Results are counted by kind, bytes and seconds are those of the published images."""
    metrics = Metrics()
    outcomes = (
        Outcome(_target(), "published", seconds=2.0, size=100),
        Outcome(_target(), "published", seconds=3.0, size=50),
        Outcome(_target(), "unchanged"),
        Outcome(_target(), "failed", error=ImageError("x")),
    )
    metrics.cycle_ended(CycleReport(outcomes, 7.0), NOW)
    assert [_value(metrics, "cvmfs_sync_images", result=result) for result in RESULTS] == [2, 0, 1, 1, 0]
    assert _value(metrics, "cvmfs_sync_published_compressed_bytes_total") == 150
    assert _value(metrics, "cvmfs_sync_publish_duration_seconds_sum") == 5.0
    assert _value(metrics, "cvmfs_sync_cycle_duration_seconds_sum") == 7.0
    assert _value(metrics, "cvmfs_sync_cycles_total", result="image_failed") == 1
    assert _value(metrics, "cvmfs_sync_last_success_timestamp_seconds") == NOW.timestamp()
    assert _value(metrics, "cvmfs_sync_last_cycle_timestamp_seconds") == NOW.timestamp()


@pytest.mark.parametrize(
    ("report", "result"),
    [
        (CycleReport((), 1.0), "ok"),
        (CycleReport((Outcome(_target(), "failed", error=ImageError("x")),), 1.0), "image_failed"),
        (CycleReport((), 1.0, stopped=RepositoryBusy("x")), "stopped"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cycle_has_one_result(report: CycleReport, result: str) -> None:
    """Each way in which a cycle can end counts under its own label and no other."""
    metrics = Metrics()
    metrics.cycle_ended(report, NOW)
    assert {r: _value(metrics, "cvmfs_sync_cycles_total", result=r) for r in CYCLE_RESULTS} == {
        r: float(r == result) for r in CYCLE_RESULTS
    }
    success = _value(metrics, "cvmfs_sync_last_success_timestamp_seconds")
    assert success == (0 if result == "stopped" else NOW.timestamp())


def test_documentation_and_metrics_are_equal() -> None:
    """Every metric is in docs/metrics.md with its type and labels, and nothing else is."""
    rows = re.findall(r"^\| `(cvmfs_sync_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    metrics = _after_a_cycle()
    real = set()
    for family in metrics.registry.collect():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = "gauge" if family.type == "info" else family.type
        labels = {tuple(sorted(set(sample.labels) - {"le"})) for sample in family.samples}
        assert len(labels) == 1
        real.add((family.name + suffix, kind, labels.pop()))
    assert documented == real
    text = DOCUMENT.read_text()
    assert all(f"`{result}`" in text for result in CLOSED_SETS)


def test_promtool_finds_nothing_to_improve() -> None:
    """Names, units and help follow Prometheus's conventions."""
    require("promtool")
    metrics = _after_a_cycle()
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, b"")


def test_metrics_are_served_and_a_taken_address_is_a_clear_error() -> None:
    """Prometheus gets the text over HTTP; a second daemon on the same port is told what to change."""
    metrics = Metrics()
    with Endpoint("127.0.0.1", 0, {"/metrics": metrics.page()}) as endpoint:
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics") as answer:
            assert b"cvmfs_sync_build_info" in answer.read()
        with pytest.raises(UsageError, match=f"cannot serve metrics on 127.0.0.1:{endpoint.port}") as raised:
            Endpoint("127.0.0.1", endpoint.port, {})
        assert "metrics.listen" in str(raised.value.todo)


def test_what_publishing_took_and_saved_is_counted() -> None:
    """Trees by how they were made, bytes written and not written, and for how long the image was waited for."""
    metrics = Metrics()
    outcomes = (
        Outcome(_target(), "published", written_files=3, written_bytes=100, tree_bytes=100, prepare_seconds=4.0),
        Outcome(
            _target(), "published", made_of=".flat/ab/abcd", written_files=1, written_bytes=10, tree_bytes=1000,
            prepare_seconds=1.0, waited=90.0,
        ),
        Outcome(_target(), "linked", waited=30.0),
        Outcome(_target(), "failed", error=ImageError("x"), written_bytes=7),
    )  # fmt: skip
    metrics.cycle_ended(CycleReport(outcomes, 7.0, taken_down=GONE, plan_seconds=2.0), NOW)
    expected = {
        "prepare_duration_seconds_sum": 5.0, "publish_written_bytes_sum": 110, "written_files_total": 4,
        "saved_bytes_total": 990, "update_delay_seconds_sum": 120.0, "update_delay_seconds_count": 2,
        "plan_duration_seconds_sum": 2.0,
    }  # fmt: skip
    assert {name: _value(metrics, f"cvmfs_sync_{name}") for name in expected} == expected
    assert [_value(metrics, "cvmfs_sync_published_trees_total", how=how) for how in HOWS] == [1, 1]
    assert [_value(metrics, "cvmfs_sync_taken_down_total", kind=kind) for kind in KINDS] == [1, 1]


def test_what_getting_an_image_took_is_counted() -> None:
    """Fetching and flattening in seconds and bytes, for each image that was published, and what was there already."""
    metrics = Metrics()
    outcomes = (
        Outcome(_target(), "published", size=1000, fetched=Effort(4.0, 600), flattened=Effort(2.0, 3000)),
        Outcome(_target(), "published", size=500),
        Outcome(_target(), "failed", error=ImageError("x"), size=100),
    )
    metrics.cycle_ended(CycleReport(outcomes, 7.0), NOW)
    expected = {
        "fetch_duration_seconds_sum": 4.0, "fetch_bytes_sum": 600, "fetch_saved_bytes_total": 900,
        "flatten_duration_seconds_sum": 2.0, "flatten_bytes_sum": 3000,
        **{f"{name}_count": 2 for name in (
            "fetch_duration_seconds", "fetch_bytes", "flatten_duration_seconds", "flatten_bytes"
        )},
    }  # fmt: skip
    assert {name: _value(metrics, f"cvmfs_sync_{name}") for name in expected} == expected


def test_questions_are_timed_by_what_was_asked() -> None:
    """Each kind of question has its series from the beginning, and none but these can be asked."""
    metrics = Metrics()
    metrics.asked("name", 2.0)
    metrics.asked("name", 1.0)
    metrics.asked("image", 4.0)
    name = "cvmfs_sync_resolve_duration_seconds"
    assert [_value(metrics, f"{name}_count", what=what) for what in ASKED] == [0, 2, 1]
    assert [_value(metrics, f"{name}_sum", what=what) for what in ASKED] == [0, 3, 4]


def test_what_waits_is_seen_as_it_is_now() -> None:
    """The number of links that wait, and the age of the oldest."""
    waiting: list[datetime] = []
    metrics = Metrics()
    metrics.watch_backlog(lambda: tuple(waiting), lambda: NOW)
    names = ("cvmfs_sync_waiting_images", "cvmfs_sync_oldest_waiting_age_seconds")
    assert [_value(metrics, name) for name in names] == [0, 0]
    waiting += [NOW - timedelta(hours=1), NOW - timedelta(days=1)]
    assert [_value(metrics, name) for name in names] == [2, 86400]
    waiting[:] = [NOW + timedelta(hours=1)]
    assert [_value(metrics, name) for name in names] == [1, 0]


@pytest.mark.parametrize(
    ("report", "result"),
    [
        (CollectionReport(RetirePlan(), GONE, 2.0), "ok"),
        (CollectionReport(RetirePlan(refused="too many"), (), 2.0), "refused"),
        (CollectionReport(RetirePlan(), (), 2.0, RepositoryBusy("x")), "stopped"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_collection_has_one_result(report: CollectionReport, result: str) -> None:
    """Each way in which a garbage collection can end counts under its own label; what has gone is counted."""
    metrics = Metrics()
    metrics.collection_ended(report, NOW)
    assert {r: _value(metrics, "cvmfs_sync_gc_runs_total", result=r) for r in GC_RESULTS} == {
        r: float(r == result) for r in GC_RESULTS
    }
    success = _value(metrics, "cvmfs_sync_gc_last_success_timestamp_seconds")
    assert success == (NOW.timestamp() if result == "ok" else 0)
    count = 1 if result == "ok" else 0
    assert [_value(metrics, "cvmfs_sync_retired_total", kind=kind) for kind in KINDS] == [count, count]


def test_directories_are_measured(tmp_path: Path) -> None:
    """The spool's size is that of now, the state's that of the end of a cycle; what is not there has none."""
    metrics = Metrics()
    metrics.watch_spool(lambda: tmp_path / "spool")
    assert _value(metrics, "cvmfs_sync_spool_bytes") == 0
    (tmp_path / "spool/deep").mkdir(parents=True)
    (tmp_path / "spool/deep/blob").write_bytes(b"12345")
    metrics.stored(tmp_path, 3)
    (tmp_path / "spool/other").write_bytes(b"123")
    assert _value(metrics, "cvmfs_sync_spool_bytes") == 8
    assert _value(metrics, "cvmfs_sync_state_bytes") == 5
    assert _value(metrics, "cvmfs_sync_orphans") == 3


def test_transactions_are_timed(tmp_path: Path) -> None:
    """A transaction is told once, with whether it was published; one that could not be opened was not held."""
    held: list[bool] = []
    repository = TimedRepository(DirectoryRepository(tmp_path / "r"), lambda _, published: held.append(published))
    with repository.transaction("a test") as transaction:
        transaction.write("a", b"")
        with pytest.raises(RepositoryBusy), repository.transaction("another"):
            pass
    with pytest.raises(ZeroDivisionError), repository.transaction("a test"):
        raise ZeroDivisionError
    assert held == [True, False]
    assert (repository.root / "a").exists()
    metrics = Metrics()
    metrics.held(2.0, published=True)
    assert _value(metrics, "cvmfs_sync_transaction_held_seconds_sum", result="published") == 2.0
