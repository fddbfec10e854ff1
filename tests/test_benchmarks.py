"""The benchmarks run, measure and tell; what the numbers are is no matter for a test."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks import (
    fitting,
    images,
    measure,
    pages,
    pipelining,
    places,
    publications,
    publishing,
    report,
    run,
    scaling,
    site,
    successors,
    visitors,
)
from benchmarks.contenders import CONTENDERS, FLOOR, PEER, Contender
from benchmarks.layers import Layer, LayerWriter, scan, write_difference, write_image
from benchmarks.measure import Failed, Sample
from benchmarks.publications import DIFFERENCE, WHOLE, Publication
from benchmarks.report import Row
from cvmfs_sync.ports import Costs
from tests.support import require, require_root, start_docker_registry
from tests.support import run as run_tool


@pytest.fixture(autouse=True)
def _own_directories(monkeypatch: pytest.MonkeyPatch, memory_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(memory_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(memory_path))
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
    assert run.main(["--quick", "--runs", "1", "--no-mount", "--only", "broken,idle"]) == 1
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


def test_publishing_is_counted_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each case is published whole and as a difference, to a directory and to the fake; the latter at its own cost."""
    require("docker-registry")
    result = tmp_path / "result.json"
    arguments = ["--quick", "--runs", "1", "--no-mount", "--only", "publishing", "--json", str(result)]
    assert run.main(arguments) == 0
    table = capsys.readouterr().out
    document = json.loads(result.read_text())["publishing"]
    rows = {(each["backend"], each["case"], each["how"]): each for each in document["images"]}
    cases = list(dict.fromkeys(case for _, case, _ in rows))
    assert len(cases) == 3
    for backend in ("directory", "fake"):
        for case in cases:
            whole, difference = rows[backend, case, WHOLE], rows[backend, case, DIFFERENCE]
            assert (whole["relative"], whole["transactions"]) == ("", 1)
            assert difference["relative"]
            assert difference["transactions"] == 1
            assert 0 < difference["written"] < whole["written"]
            assert 0 < difference["files"] < whole["files"]
            if backend == "fake":
                assert difference["processed"] < whole["processed"]
            else:
                assert 0 < difference["changed"] <= difference["written"] <= 1.2 * difference["changed"]
                assert 0 < difference["locked"] < difference["sample"]["wall"]
            assert f"{case}: {DIFFERENCE}" in table
    ways = {each["way"]: each for each in document["pipeline"]}
    assert list(ways) == ["one by one", "one cycle"]
    for each in ways.values():
        assert 0 < each["locked"] < each["wall"]
        assert each["compressed"] > 1_000_000


def test_what_was_published_to_be_measured_is_removed_again(tmp_path: Path) -> None:
    """A repository that is not new for each run has nothing of it afterwards: neither trees nor links nor records."""
    require("docker-registry")
    subject = images.synthetic()
    with start_docker_registry(tmp_path / "registry") as registry:
        place = places.fake_place(tmp_path / "place", registry.host)
        image = registry.push_layout(subject.layout, "1", "bench/image", "latest")
        done = place.publish("case", WHOLE, [image], "--whole")
        assert done.files == done.processed_files - 5  # record, catalogue, two markers, the transaction's own name
        assert place.site.trees()
        place.take_down([image.rpartition(":")[0]])
        assert not place.site.trees()
        assert not place.site.links()
        assert not place.site.catalogue()


def test_changed_bytes_are_those_of_other_content(tmp_path: Path) -> None:
    """A linked or equal file counts nothing, one that differs or is new counts once with all its names."""
    old, new = tmp_path / "old", tmp_path / "new"
    for root in (old, new):
        (root / "etc").mkdir(parents=True)
        (root / "etc/same").write_text("same")
        (root / "etc/changed").write_text(root.name)
        (root / "etc/type").symlink_to("same")
    os.link(old / "etc/same", new / "etc/linked")
    (new / "etc/new").write_text("12345")
    os.link(new / "etc/new", new / "etc/again")
    (new / "etc/type").unlink()
    (new / "etc/type").write_text("1234567")
    assert publishing._changed(old, new) == len("new") + 4 + 5 + 7


def test_the_rebuilt_image_differs_in_every_layer(tmp_path: Path) -> None:
    """No layer of the rebuild is one of the image's, few files are others, and the based image keeps two layers."""
    subject = images.synthetic()
    layout = successors.relatives(subject)
    assert successors.relatives(subject) == layout
    before = successors._layers(subject.layout, "1")
    rebuilt, based = (successors._layers(layout, tag) for tag in (successors.REBUILT, successors.BASED))
    assert len(rebuilt) == len(before)
    assert not {layer.diff_id for layer in rebuilt} & {layer.diff_id for layer in before}
    assert [layer.diff_id for layer in based[:2]] == [layer.diff_id for layer in before[:2]]
    assert len(based) == 3
    changed = same = 0
    for one, other in zip(before, rebuilt, strict=True):
        was, now = _files(subject.layout, one), _files(layout, other)
        assert now.keys() - was.keys() <= {f"usr/share/build/layer-{number}" for number in range(len(before))}
        assert not was.keys() - now.keys()
        changed += sum(was[name] != now[name] for name in was)
        same += sum(was[name] == now[name] for name in was)
    assert 0 < changed < same / 25


def _files(layout: Path, layer: Layer) -> dict[str, bytes]:
    with tarfile.open(layout / "blobs" / layer.blob.digest.replace(":", "/")) as tar:
        return {
            member.name: content.read()
            for member in tar
            if member.isreg() and (content := tar.extractfile(member)) is not None
        }


def test_fitting_finds_the_constants_that_explain_the_times() -> None:
    """From times that a model made, the model comes back; what was never measured costs nothing."""
    model, constant = Costs(clone=0.2, cloned=3e-5, removed=0.0, made=1e-4, byte=2e-9), 0.05
    factors = [
        (0.0, 0, 0, 1_000, 10**6), (0.0, 0, 0, 50_000, 10**7), (0.0, 0, 0, 100, 10**9), (1.0, 60_000, 0, 100, 10**5),
        (1.0, 1_000, 0, 10, 10**4), (1.0, 20_000, 0, 5_000, 10**8),
    ]  # fmt: skip
    observations = [fitting.Observation("", each, fitting._seconds(fitting.Observation("", each, 0), model) + constant)
                    for each in factors]  # fmt: skip
    fitted, found = fitting.fit(observations)
    assert found == pytest.approx(constant, rel=0.01)
    for name in ("clone", "cloned", "removed", "made", "byte"):
        assert getattr(fitted, name) == pytest.approx(getattr(model, name), rel=0.01, abs=1e-12)
    assert "off by 0 %" in fitting.fit_table(observations, (fitted, found), model)


def test_costs_are_fitted_to_publications(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quick fit publishes every pair as it is meant, and prints the constants."""
    result = tmp_path / "result.json"
    assert publishing.main(["--fit", "--quick", "--runs", "1", "--no-mount", "--json", str(result)]) == 0
    text = capsys.readouterr().out
    assert "fitted: Costs(clone=" in text
    assert "present: Costs(clone=" in text
    for each in json.loads(result.read_text())["fit"]:
        clones, cloned, removed, made, written = each["factors"]
        assert bool(clones) == bool(cloned) == (not each["what"].startswith("nothing"))
        assert removed >= 0
        assert made > 0 or written == 0 or removed


def test_publishing_tables_tell_ratios() -> None:
    """Whole against difference by the shortest runs, written against changed bytes, and nothing of another tool's."""

    def row(how: str, *walls: float) -> list[Publication]:
        return [Publication("case", "directory", how, Sample(wall, wall, 0, 10_000_000)) for wall in walls]

    whole = [replace(each, transactions=1, files=1_000, written=50_000_000, processed=50_000_000)
             for each in row(WHOLE, 12, 10)]  # fmt: skip
    difference = [replace(each, transactions=1, files=3, written=1_100_000, changed=1_000_000, processed=2_000_000)
                  for each in row(DIFFERENCE, 2, 5)]  # fmt: skip
    rows = [*whole, *difference, *row("a tool", 20)]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in publications.timed(rows).splitlines()[2:]]
    assert [each[0] for each in cells] == ["case: whole", "case: difference", "case: a tool"]
    assert cells[1][1] == "3.50"
    assert [each[-1] for each in cells] == ["1.0", "5.0", "0.5"]
    assert [each[-2] for each in cells] == ["-", "1.10", "-"]
    assert cells[2][2:4] == ["-", "-"]
    counted = [[cell.strip() for cell in line.split("|")[1:-1]] for line in publications.counted(rows).splitlines()[2:]]
    assert counted[1] == ["case: difference", "1", "3", "1.100", "0", "2.000", "25.00"]


def test_a_narrow_line_lets_everything_through(tmp_path: Path) -> None:
    """What comes through the proxy is what the server sent."""
    require("docker-registry")
    with start_docker_registry(tmp_path / "registry") as registry:
        content = os.urandom(300_000)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        registry.push_blob("some/image", digest, content)
        with pipelining.narrow(registry.host, 1_000_000) as host:
            response = urllib.request.urlopen(f"http://{host}/v2/some/image/blobs/{digest}")
            assert response.read() == content


def test_pages_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address has an answer, and the table a line for each."""
    monkeypatch.setattr(pages, "_LOAD_SECONDS", 1)
    monkeypatch.setattr(pages, "_TIMES", 3)
    monkeypatch.setattr(pages, "_REST_SECONDS", 0.0)
    monkeypatch.setattr(
        pages, "_ADDRESSES", {each: pages._ADDRESSES[each] for each in ("search", "events, first page")}
    )
    served = pages.measure(20, 200)
    assert (served.images, served.events) == (20, 200)
    assert served.memory > 1 << 20
    assert [each.size > 0 for each in served.answers] == [True, True]
    assert "events, first page" in pages.tables(served)


def test_publishing_is_measured_while_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three publishes, visitors get answers, and the table tells who was slowed by how much."""
    require("docker-registry", "wrk")
    monkeypatch.setattr(visitors, "_SITE", (20, 200))
    found = visitors.measure(visitors.subject(quick=True), runs=1, mount=False)
    assert [each.who for each in found] == [visitors.NOBODY, visitors.VISITORS, visitors.OTHERS]
    assert [each.rate > 0 for each in found] == [False, True, True]
    walls = [each.sample.wall for each in found]
    assert visitors.ratio(found, visitors.VISITORS, visitors.NOBODY) == walls[1] / walls[0]
    assert f"{walls[1] / walls[2]:.3f}" in visitors.tables(found)


def test_the_static_site_is_measured() -> None:
    """Written whole, then not at all, then where one image has moved: a few files."""
    whole, again, moved = site.measure(20, 200)
    assert whole.unchanged == again.files == 0
    assert whole.files == again.unchanged == moved.files + moved.unchanged
    assert 0 < moved.files < 10
    assert all(each.sample.memory > 1 << 20 for each in (whole, again, moved))
    assert "one image has moved" in site.tables([whole, again, moved])
