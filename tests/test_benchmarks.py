"""The benchmarks run, measure and tell; what the numbers are is no matter for a test."""

from __future__ import annotations

import json
import os
import tarfile
from functools import partial
from pathlib import Path

import pytest

from benchmarks import images, measure, report, run, scaling
from benchmarks.contenders import CONTENDERS, FLOOR, PEER, Contender
from benchmarks.layers import LayerWriter, scan, write_difference, write_image
from benchmarks.measure import Failed, Sample
from benchmarks.report import Row
from tests.support import require, require_root
from tests.support import run as run_tool


@pytest.fixture(autouse=True)
def _own_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(images, "synthetic", partial(images.synthetic, files=600, size=8 << 20))


def test_every_contender_has_a_row_with_numbers_or_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick run without root's tools: table and document name everybody."""
    require("docker-registry")
    absent = Contender("a tool of the future", lambda _: "false", "tree", ("no-such-binary",))
    monkeypatch.setattr(run, "CONTENDERS", (*CONTENDERS, absent))
    result = tmp_path / "result.json"
    only = "cvmfs-sync,floor,tarfile,future"
    assert run.main(["--quick", "--runs", "1", "--no-mount", "--only", only, "--json", str(result)]) == 0
    table = capsys.readouterr().out
    document = json.loads(result.read_text())
    rows = {row["name"]: row for row in document["results"]}
    parts = only.split(",")
    assert set(rows) == {each.name for each in (*CONTENDERS, absent) if any(part in each.name for part in parts)}
    for name, row in rows.items():
        assert name in table
        assert bool(row["skipped"]) != bool(row["samples"])
        for sample in row["samples"]:
            assert sample["wall"] > 0
            assert sample["memory"] > 1 << 20
    assert rows[absent.name]["skipped"] == "not on PATH: no-such-binary"
    assert f"skipped: {absent.name}: not on PATH" in table
    assert rows["cvmfs-sync unpack"]["entries"] == rows["Python's tarfile"]["entries"] > 400
    assert document["machine"]["processors"] >= 1
    assert document["image"]["layers"] == 7


def test_a_failing_contender_is_told_with_its_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row has the end of what it said, and the exit code is 1."""
    require("docker-registry")
    broken = Contender("broken", lambda _: "echo out of order >&2; exit 7", "tree")
    idle = Contender("idle", lambda _: "true", "tree")
    monkeypatch.setattr(run, "CONTENDERS", (broken, idle))
    assert run.main(["--quick", "--runs", "1", "--no-mount"]) == 1
    table = capsys.readouterr().out
    assert "skipped: broken: failed: exit code 7: out of order" in table
    assert "skipped: idle: failed: it made no tree" in table


def test_ratios_are_those_within_a_round() -> None:
    """A round in which everything was slow does not count against anybody."""

    def row(name: str, *walls: float) -> Row:
        return Row(name, [Sample(wall, wall, 0, 10_000_000) for wall in walls])

    table = report.comparison([row("ours", 1, 2, 30), row(FLOOR, 1, 4, 60), row(PEER, 4, 8, 120)])
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")]
    assert cells[1:-1] == ["ours", "2.00", "1.00-30.00", "2.00", "10", "0.50", "1.00", "0.25", "0.25"]


def test_memory_is_that_of_the_whole_process_tree(tmp_path: Path) -> None:
    """A grandchild's memory counts, and its time."""
    script = "(python3 -c 'import time; x = bytearray(100 << 20); time.sleep(0.5); sum(range(10**6))'; true) | cat"
    sample = measure.run(script, tmp_path)
    assert sample.memory > 100 << 20
    assert sample.wall > 0.5
    assert sample.cpu > 0


def test_failure_says_what_the_command_said(tmp_path: Path) -> None:
    """The end of stderr is in the error; a pipe's first command counts."""
    with pytest.raises(Failed, match="exit code 3: no luck"):
        measure.run("(echo no luck >&2; exit 3) | cat", tmp_path)


def test_each_run_has_a_new_file_system() -> None:
    """Where root can mount, the directory is a mount point and gone afterwards."""
    require_root()
    if reason := measure.can_mount():
        pytest.skip(reason)
    with measure.fresh_directory(mount=True) as directory:
        assert os.path.ismount(directory)
        (directory / "file").write_text("x")
    assert not directory.exists()


def test_difference_of_two_trees(tmp_path: Path) -> None:
    """The layer holds what changed with its parents, hard links as such, and whiteouts of what is gone."""
    old, new, layout = tmp_path / "old", tmp_path / "new", tmp_path / "layout"
    for root in (old, new):
        (root / "etc/deep").mkdir(parents=True)
        (root / "etc/same").write_text("same")
        (root / "etc/deep/changed").write_text(root.name)
    (old / "gone/below").mkdir(parents=True)
    (new / "etc/first").write_text("linked")
    os.link(new / "etc/first", new / "etc/second")
    (new / "link").symlink_to("etc")
    layer = write_difference(layout, old, scan(old), new, scan(new))
    with tarfile.open(layout / "blobs/sha256" / layer.blob.digest.removeprefix("sha256:")) as tar:
        members = {member.name: member for member in tar}
    assert list(members) == ["etc", "etc/deep", "etc/deep/changed", "etc/first", "etc/second", "link", ".wh.gone"]
    assert members["etc/second"].linkname == "etc/first"
    assert members["link"].linkname == "etc"
    assert members["etc/deep/changed"].mtime == int((new / "etc/deep/changed").stat().st_mtime)
    assert layer.entries == len(members)


def test_images_are_valid(tmp_path: Path) -> None:
    """Another tool takes a layout, and its blobs have the digests that it says."""
    require("skopeo")
    with LayerWriter(tmp_path / "layout", fast=True) as writer:
        writer.file("a/b/file", b"content" * 10_000)
        writer.whiteout("a/c")
        writer.opaque("d")
    write_image(tmp_path / "layout", {"1": [writer.layer]})
    run_tool("skopeo", "--insecure-policy", "copy", f"oci:{tmp_path}/layout:1", f"dir:{tmp_path}/copy")
    assert writer.layer.entries == 6
    assert (
        tmp_path / "copy" / writer.layer.blob.digest.removeprefix("sha256:")
    ).stat().st_size == writer.layer.blob.size


def test_scaling_table_tells_growth() -> None:
    """What each entry costs beyond the smaller image is the slope, not the average."""
    rows = [
        scaling.ScaleRow("squash", "entries", amount, Sample(1 + amount * 1e-5, 1, 0, 1_000_000 + 300 * amount))
        for amount in (10_000, 100_000)
    ]
    last = [cell.strip() for cell in scaling.scale_table(rows).splitlines()[-1].split("|")]
    assert last[5:8] == ["20.00 us/entry", "10.00", "300"]
