"""The numbers that Prometheus sees."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from cvmfs_sync.cycle import RESULTS, CycleReport, Outcome
from cvmfs_sync.errors import ImageError, RepositoryBusy, UsageError
from cvmfs_sync.imagelist import parse
from cvmfs_sync.metrics import CYCLE_RESULTS, Metrics
from cvmfs_sync.reference import Platform
from cvmfs_sync.registry import REQUEST_RESULTS, RegistryMemory
from cvmfs_sync.survey import Target
from tests.support import require

DOCUMENT = Path(__file__).parent.parent / "docs/metrics.md"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


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
    assert _value(metrics, "cvmfs_sync_last_success_timestamp_seconds") == 0
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
    assert success == (NOW.timestamp() if result == "ok" else 0)


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
    assert all(f"`{result}`" in text for result in (*RESULTS, *CYCLE_RESULTS, *REQUEST_RESULTS))


def test_promtool_finds_nothing_to_improve() -> None:
    """Names, units and help follow Prometheus's conventions."""
    require("promtool")
    metrics = _after_a_cycle()
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True, check=False
    )
    # Its one complaint about the client library's `_created` series is not about us.
    complaints = [line for line in result.stderr.decode().splitlines() if line and "_created" not in line]
    assert not complaints


def test_metrics_are_served_and_a_taken_address_is_a_clear_error() -> None:
    """Prometheus gets the text over HTTP; a second daemon on the same port is told what to change."""
    metrics = Metrics()
    server, port = metrics.serve("127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"cvmfs_sync_build_info" in answer.read()
        with pytest.raises(UsageError, match=f"cannot serve metrics on 127.0.0.1:{port}") as raised:
            Metrics().serve("127.0.0.1", port)
        assert "metrics.listen" in str(raised.value.todo)
    finally:
        server.shutdown()
        server.server_close()
