"""The numbers of runs that end, in a file for node_exporter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import Image, file, layer, require, run_cli, write_layout


def _values(path: Path) -> dict[str, float]:
    """Samples by name and labels."""
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A configuration with a textfile, and an image to publish."""
    write_layout(tmp_path / "images", {"1": Image((layer(file("hello", "one")),))})
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: [oci:images:1]\n")
    (tmp_path / "cvmfs-sync.yaml").write_text("metrics: {textfile: numbers.prom}\n")
    return tmp_path


def test_runs_go_on_where_the_last_one_ended(home: Path) -> None:
    """Counters and histograms grow over runs; gauges are of the latest run that knows them."""
    config, path = home / "cvmfs-sync.yaml", home / "numbers.prom"
    run_cli("sync", "--config", config).ok()
    first = _values(path)
    assert first["cvmfs_sync_published_images_total"] == 1
    assert first["cvmfs_sync_images result=published"] == 1
    assert first["cvmfs_sync_update_delay_seconds_count"] == 1
    run_cli("gc", "--config", config).ok()
    second = _values(path)
    assert second["cvmfs_sync_gc_runs_total result=ok"] == 1
    assert second["cvmfs_sync_gc_last_success_timestamp_seconds"] > 0
    for name in ("published_images_total", "images result=published", "last_success_timestamp_seconds", "list_valid"):
        assert second[f"cvmfs_sync_{name}"] == first[f"cvmfs_sync_{name}"]
    run_cli("sync", "--config", config).ok()
    third = _values(path)
    assert third["cvmfs_sync_cycles_total result=ok"] == 2
    assert third["cvmfs_sync_cycle_duration_seconds_count"] == 2
    assert third["cvmfs_sync_published_images_total"] == 1
    assert third["cvmfs_sync_images result=published"] == 0
    assert third["cvmfs_sync_images result=unchanged"] == 1
    assert third["cvmfs_sync_state_bytes"] > 0
    assert not [name for name in third if "_created" in name]
    assert [each.name for each in home.glob("*.prom*")] == ["numbers.prom"]


def test_a_run_without_a_list_is_counted(home: Path) -> None:
    """A list that was never valid ends the run, and the file says so; what was known of images stays."""
    config, path = home / "cvmfs-sync.yaml", home / "numbers.prom"
    run_cli("sync", "--config", config).ok()
    (home / "state").rename(home / "lost")
    (home / "image-list.yaml").write_text("version: 1\nimages: [NO IMAGE]\n")
    run_cli("sync", "--config", config).ok(2)
    values = _values(path)
    assert values["cvmfs_sync_list_valid"] == 0
    assert values["cvmfs_sync_cycles_total result=list_invalid"] == 1
    assert values["cvmfs_sync_images result=published"] == 1
    assert values["cvmfs_sync_state_bytes"] > 0


@pytest.mark.parametrize("text", [b"", b"nonsense {\n", b"\xff\xfe", b'cvmfs_sync_cycles_total{result="ok"} much\n'])
def test_a_damaged_file_begins_anew(home: Path, text: bytes) -> None:
    """Whatever stands there, the run writes its own numbers."""
    (home / "numbers.prom").write_bytes(text)
    run_cli("sync", "--config", home / "cvmfs-sync.yaml").ok()
    assert _values(home / "numbers.prom")["cvmfs_sync_cycles_total result=ok"] == 1


def test_a_histogram_with_other_buckets_begins_anew(home: Path) -> None:
    """Counts of buckets that this version does not have would make nonsense of those that it has."""
    config, path = home / "cvmfs-sync.yaml", home / "numbers.prom"
    run_cli("sync", "--config", config).ok()
    text = path.read_text()
    bucket = 'cvmfs_sync_cycle_duration_seconds_bucket{le="15.0"}'
    assert text.count(bucket) == 1
    path.write_text(text.replace(bucket, bucket.replace("15.0", "17.0")))
    run_cli("sync", "--config", config).ok()
    values = _values(path)
    assert values["cvmfs_sync_cycle_duration_seconds_count"] == 1
    assert values["cvmfs_sync_cycle_duration_seconds_bucket le=+Inf"] == 1
    assert values["cvmfs_sync_gc_duration_seconds_count"] == 0
    assert values["cvmfs_sync_resolve_duration_seconds_count what=name"] == 2


def test_a_file_that_cannot_be_written_fails_nothing(home: Path) -> None:
    """The images are published, and the log has the reason."""
    (home / "cvmfs-sync.yaml").write_text("metrics: {textfile: nowhere/numbers.prom}\n")
    result = run_cli("sync", "--config", home / "cvmfs-sync.yaml").ok()
    assert "nowhere/numbers.prom" in result.stderr
    assert (home / f"published/oci{home}/images:1/hello").read_text() == "one"


def test_promtool_takes_the_file(home: Path) -> None:
    """What is written after several runs is what Prometheus reads."""
    require("promtool")
    for command in ("sync", "gc", "sync"):
        run_cli(command, "--config", home / "cvmfs-sync.yaml").ok()
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=(home / "numbers.prom").read_bytes(), capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, b"")
