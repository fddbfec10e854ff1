"""Flattening: both sinks give the tree that the model says, each file once, and nothing that a layer hides."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import event, example, given, settings

from cvmfs_sync import tree
from cvmfs_sync.errors import InvalidImage, LimitExceeded
from cvmfs_sync.flatten import Arrangement, Layer, Placement, Sink, flatten
from cvmfs_sync.ports import Unit
from cvmfs_sync.removal import remove_tree
from cvmfs_sync.rootfs import DirectorySink
from cvmfs_sync.sandbox import furnish
from cvmfs_sync.squash import OutOfOrder, TarSink
from cvmfs_sync.tar import Entry, Kind, Limits, Reader
from cvmfs_sync.writing import EXACT, EXACT_AS_USER, exact_policy
from tests.support import Image, assert_same_tree, images, require_root, run, run_cli, tree_listing, write_layout
from tests.support.images import Compression, fifo, opaque, whiteout
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import (
    MemoryLayer,
    Refused,
    Shown,
    entries_of,
    file_layers,
    model,
    random_layers,
    strict_untar,
)
from tests.support.trees import Node

Layers = list[list[images.Entry]]
PATHS_ONLY = {"uid", "gid", "mode", "mtime_ns"}


def _memory() -> Path | None:
    path = Path("/dev/shm")
    return path if os.access(path, os.W_OK) else None


def in_memory(layers: Layers, openings: list[str] | None = None) -> list[Layer]:
    made = [images.layer(*each, compression="none") for each in layers]
    return [MemoryLayer.of(each.tar, openings, str(number)) for number, each in enumerate(made)]


def unpacked(layers: Sequence[Layer], target: Path) -> tree.Tree:
    target.mkdir()
    with DirectorySink(target, exact_policy()) as sink:
        return flatten(layers, sink)


def squashed_as(layers: Sequence[Layer], placement: Placement) -> bytes:
    stream = io.BytesIO()
    with tempfile.TemporaryFile(dir=_memory()) as aside:
        flatten(layers, TarSink(stream, aside, placement))
    return stream.getvalue()


def squashed(layers: Sequence[Layer]) -> bytes:
    """As the command does for a file."""
    try:
        return squashed_as(layers, Placement.CERTAIN)
    except OutOfOrder:
        return squashed_as(layers, Placement.NEVER)


def read(stream: bytes) -> Iterator[tuple[Entry, bytes]]:
    reader = Reader([stream])
    return ((entry, b"".join(reader.content())) for entry in reader)


def expected_nodes(shown: dict[str, Shown], layers: Layers) -> dict[str, Node]:
    """The model's tree as `tree_listing` shows it on disk."""
    nodes = {}
    for path, thing in shown.items():
        layer, ordinal = thing.source
        entry = images.directory("made") if layer < 0 else layers[layer][ordinal]
        content = entry.content if thing.kind is Kind.FILE else b""
        nodes[path] = Node(
            type=thing.kind.name.lower(),
            mode=0o777 if thing.kind is Kind.SYMLINK else entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            size=len(content),
            mtime_ns=0 if layer < 0 else int(entry.mtime * 10**9),
            digest=hashlib.sha256(content).hexdigest() if thing.kind is Kind.FILE else "",
            link=entry.link if thing.kind is Kind.SYMLINK else "",
            device=(0, 0),
            xattrs=(),
            links=thing.names,
        )
    return nodes


class Recorder:
    """A sink that writes down what it is given."""

    def __init__(self, placement: Placement = Placement.ANYTIME) -> None:
        self.placement = placement
        self.placed: list[str] = []
        self.aside: list[str] = []
        self.filled: list[str] = []
        self.content: dict[str, bytes] = {}
        self.arrangement: Arrangement | None = None
        self.finished: tree.Tree | None = None

    def place(self, layer: int, ordinal: int, entry: Entry, content: Reader, *, certain: bool) -> bool:
        name = f"{layer}.{ordinal} {entry.path.decode()}"
        (self.placed if certain else self.aside).append(name)
        self.content[name] = b"".join(content.content())
        return certain

    def arrange(self, arrangement: Arrangement) -> None:
        self.arrangement = arrangement

    def fill(self, path: bytes, inode: tree.Inode, content: Reader) -> None:
        name = f"{inode.layer}.{inode.ordinal} {path.decode()}"
        self.filled.append(name)
        self.content[name] = b"".join(content.content())

    def finish(self, tree: tree.Tree) -> None:
        self.finished = tree


def recorded(layers: Layers, placement: Placement = Placement.ANYTIME) -> tuple[Recorder, list[str]]:
    openings: list[str] = []
    sink = Recorder(placement)
    flatten(in_memory(layers, openings), sink)
    return sink, openings


# --- what is read and written, and how often --------------------------------------------------------------------------

ORDINARY: dict[str, tuple[Layers, list[str]]] = {
    "one layer": ([[d("a"), f("a/x"), f("b")]], ["0.1 a/x", "0.2 b"]),
    "top first": ([[f("a")], [f("b")], [f("c")]], ["2.0 c", "1.0 b", "0.0 a"]),
    "replaced": ([[f("a"), f("b")], [f("a")]], ["1.0 a", "0.1 b"]),
    "whiteout": ([[f("a"), f("b/c"), f("d")], [whiteout("a"), whiteout("b")]], ["0.2 d"]),
    "opaque": ([[f("a/x"), f("a/y/z"), f("b")], [opaque("a"), f("a/n")]], ["1.1 a/n", "0.2 b"]),
    "opaque root": ([[f("a"), f("b")], [f("c"), opaque("")]], ["1.0 c"]),
    "file over directory": ([[f("a/x"), f("a/y")], [f("a")]], ["1.0 a"]),
    "link over directory": ([[f("a/x"), f("b/y")], [s("a", "b")]], ["0.1 b/y"]),
    "directory over file": ([[f("a"), f("b")], [d("a")]], ["0.1 b"]),
    "directory over directory": ([[f("a/x")], [d("a")]], ["0.0 a/x"]),
    "three deep": ([[f("a"), f("b")], [f("a"), f("c")], [whiteout("a"), f("d")]], ["2.1 d", "1.1 c", "0.1 b"]),
    "removed, then made again": ([[f("a")], [whiteout("a")], [f("a")]], ["2.0 a"]),
    "hard links": ([[f("a"), h("b", "a")], [h("c", "b")]], ["0.0 a"]),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_layers_are_read_once_and_hidden_files_never_reach_the_sink(name: str) -> None:
    """Each layer is opened once, top first; the sink is given every visible file once, and nothing else."""
    layers, expected = ORDINARY[name]
    sink, openings = recorded(layers)
    assert sink.placed == expected
    assert openings == [str(number) for number in reversed(range(len(layers)))]
    assert sink.arrangement is not None
    assert (sink.arrangement.misplaced, sink.arrangement.leftovers, sink.arrangement.missing) == ([], [], [])
    assert sink.finished is sink.arrangement.tree


# Layers; misplaced with the name to go to; left over; missing with the name to go to; layers read again.
ODD: dict[str, tuple[Layers, list[str], list[str], list[str], list[str]]] = {
    "through a linked parent": ([[d("d"), s("a", "d")], [f("a/x")]], ["d/x 1.0"], [], [], []),
    "hidden through a linked parent": ([[f("d/x"), s("a", "d")], [f("a/x")]], ["d/x 1.0"], ["0.0 d/x"], [], []),
    "hidden name only": ([[f("d/x"), s("a", "d")], [whiteout("a/x")]], [], ["0.0 d/x"], [], []),
    "the last of duplicates": ([[f("a"), f("a")]], [], ["0.0 a"], [], []),
    "a hard link outlives its file": ([[f("a"), h("b", "a")], [whiteout("a")]], [], [], ["b 0.0"], ["0"]),
    "a hard link outlives, replaced": ([[f("a"), h("b", "a")], [f("a")]], [], [], ["b 0.0"], ["0"]),
    "two outlive": ([[f("a"), h("b", "a"), f("c"), h("d", "c")], [f("a"), f("c")]], [], [], ["b 0.0", "d 0.2"], ["0"]),
    "in two layers": (
        [[f("a"), h("b", "a")], [f("c"), h("d", "c")], [whiteout("a"), whiteout("c")]],
        [], [], ["b 0.0", "d 1.0"], ["0", "1"],
    ),
    "in the same layer": ([[f("a"), h("b", "a"), f("a")]], ["b 0.0"], [], [], []),
    "renamed": ([[f("a")], [h("b", "a"), whiteout("a")]], [], [], ["b 0.0"], ["0"]),
    "hidden by what is a link": ([[f("d/x"), d("e")], [s("d", "e")], [f("d/x")]], ["e/x 2.0"], [], [], []),
    "directory, then file": ([[f("a/b"), f("a")]], [], ["0.0 a/b"], [], []),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_layers_are_arranged_and_read_again_only_where_a_file_is_missing(name: str) -> None:
    """What was placed wrongly is moved or dropped; only a file that was not placed costs a second reading."""
    layers, misplaced, leftovers, missing, again = ODD[name]
    sink, openings = recorded(layers)
    found = sink.arrangement
    assert found is not None

    def shown(items: Iterable[tuple[bytes, tree.Inode]]) -> list[str]:
        return sorted(f"{path.decode()} {inode.layer}.{inode.ordinal}" for path, inode in items)

    # A sink that says "placed" for two files at one path has the last; the flatten driver cannot tell.
    assert shown(found.misplaced) == misplaced
    assert sorted(f"{layer}.{ordinal} {path.decode()}" for layer, ordinal, path in found.leftovers) == leftovers
    assert shown(found.missing) == missing
    assert openings[: len(layers)] == [str(number) for number in reversed(range(len(layers)))]
    assert openings[len(layers) :] == again
    assert len(sink.filled) == len(missing)


@pytest.mark.parametrize("name", [*ORDINARY, *ODD])
@pytest.mark.parametrize("order", ["directory", "tar", "tar, all aside"])
def test_both_sinks_write_the_models_tree(name: str, order: str, tmp_path: Path) -> None:
    """Whatever had to be arranged, the result is the model's, with contents, links and metadata."""
    require_root()
    table: dict[str, Layers] = {key: value[0] for key, value in ORDINARY.items()} | {
        key: value[0] for key, value in ODD.items()
    }
    layers = [
        [
            replace(each, content=f"{at} {each.path}".encode(), uid=at) if each.type == b"0" else each
            for at, each in enumerate(layer)
        ]
        for layer in table[name]
    ]
    expected = expected_nodes(model([entries_of(each) for each in layers]), layers)
    if order == "directory":
        unpacked(in_memory(layers), tmp_path / "out")
        assert_same_tree(tmp_path / "out", expected)
        return
    stream = squashed(in_memory(layers)) if order == "tar" else squashed_as(in_memory(layers), Placement.NEVER)
    assert_same_tree(strict_untar(read(stream)), expected)


def test_never_placing_puts_everything_aside() -> None:
    """`Placement.NEVER` reads each layer once, and the sink may write nothing before the whole image is known."""
    sink, openings = recorded([[f("a"), f("b")], [f("a")], [d("c")]], Placement.NEVER)
    assert sink.placed == []
    assert sink.aside == ["1.0 a", "0.1 b"]
    assert openings == ["2", "1", "0"]


@pytest.mark.parametrize(
    ("layers", "placed", "aside"),
    [
        # Parents of the upper layer are named: certain.
        ([[f("a/x")], [d("a"), f("a/y")]], ["1.1 a/y", "0.0 a/x"], []),
        # They are not: a lower layer may have a link there.
        ([[f("a/x")], [f("a/y")]], ["0.0 a/x"], ["1.0 a/y"]),
        ([[s("a", "b")], [f("a/y"), f("z")]], ["1.1 z"], ["1.0 a/y"]),
        ([[f("a/b/x")], [d("a/b"), f("a/b/y")]], ["0.0 a/b/x"], ["1.1 a/b/y"]),
        # A whiteout behind what may be a link: nothing below is certain any more.
        ([[f("d/x"), s("a", "d")], [whiteout("a/x"), f("y")]], ["1.1 y"], ["0.0 d/x"]),
        ([[f("a/x"), f("a/z")], [d("a"), whiteout("a/x")]], ["0.1 a/z"], []),
        ([[f("a/x"), f("b")], [whiteout("a")]], ["0.1 b"], []),
        # The bottom layer's own links are known when it says them before what is below.
        ([[d("d"), s("a", "d"), f("a/x"), f("d/y")]], ["0.3 d/y"], ["0.2 a/x"]),
    ],
)
def test_certain_placement(layers: Layers, placed: list[str], aside: list[str]) -> None:
    """A sink that cannot take back is told what can be nowhere else; no layer is read again for the rest."""
    sink, openings = recorded(layers, Placement.CERTAIN)
    assert sink.placed == placed
    assert sink.aside == aside
    assert len(openings) == len(layers)


UNTAKEABLE: dict[str, Layers] = {
    "a directory that becomes a link": [[d("z"), f("a/b"), s("a", "z")]],
    "a directory that becomes a link to the same name": [[f("z/b", "Z"), f("a/b", "A"), s("a", "z")]],
    "a directory that becomes a file": [[f("a/b"), f("a")]],
    "a file that becomes a directory": [[f("a"), d("a")]],
    "only as a hard link": [[f("a/x"), h("b", "a/x"), f("a")]],
}


@pytest.mark.parametrize("name", UNTAKEABLE)
def test_out_of_order(name: str, tmp_path: Path) -> None:
    """What a pipe cannot take back is an error that says what to do, and works when read twice."""
    layers = UNTAKEABLE[name]
    with pytest.raises(OutOfOrder, match="-o FILE"):
        squashed_as(in_memory(layers), Placement.CERTAIN)
    stream = squashed_as(in_memory(layers), Placement.NEVER)
    unpacked(in_memory(layers), tmp_path / "out")
    ignore = () if os.geteuid() == 0 else {"uid", "gid"}
    assert_same_tree(strict_untar(read(stream)), tmp_path / "out", ignore=ignore)


@pytest.mark.parametrize("name", UNTAKEABLE)
def test_squash_of_out_of_order_layers(name: str, tmp_path: Path) -> None:
    """The command starts again for a file, and for a pipe fails with what to do."""
    layout = write_layout(tmp_path / "layout", {"t": Image(tuple(images.layer(*each) for each in UNTAKEABLE[name]))})
    to_pipe = run_cli("squash", f"oci:{layout}:t").ok(1)
    assert "-o FILE" in to_pipe.stderr
    run_cli("squash", f"oci:{layout}:t", "-o", tmp_path / "flat.tar").ok()
    (tmp_path / "out").mkdir()
    run("tar", "-xpf", tmp_path / "flat.tar", "-C", tmp_path / "out")
    run_cli("unpack", f"oci:{layout}:t", tmp_path / "unpacked").ok()
    assert_same_tree(tmp_path / "out", tmp_path / "unpacked")


# --- everything at once -----------------------------------------------------------------------------------------------

SPARSE = 3_000_000


def sparse_layers() -> list[images.Layer]:
    """Layers by GNU tar with a sparse file in each of its formats."""
    made = []
    for form in ("gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, f"sparse-{form[-3:]}")
            with path.open("wb") as out:
                out.write(b"start")
                out.seek(SPARSE // 2)
                out.write(b"middle" * 1000)
                out.truncate(SPARSE)
            os.utime(path, (1_000, 1_000))
            command = ("tar", "--sparse", *f"--format={form}".split(), "-C", name, "-cf", "-", path.name)
            made.append(images.layer_of_tar(run_bytes(*command)))
    return made


def run_bytes(*command: str | Path) -> bytes:
    return subprocess.run([os.fspath(each) for each in command], check=True, capture_output=True).stdout


def everything() -> Image:
    """Layers with all that an image can hold, in all three compressions."""
    long = "/".join(["a-rather-long-directory-name"] * 8)
    below = images.layer(
        d("./", 0o751, mtime=77),
        d("etc"), f("etc/motd", "hello\n", mtime=1_600_000_000.123456789), f("etc/shadow", "x", 0o000),
        h("etc/hard", "etc/motd"), f("bin/su", "\x7fELF", 0o6755), f("owned", "o", uid=4_000_000, gid=3_000_000_000),
        f(f"{long}/ünïcödé and a\nnewline", "deep"), s(f"{long}/link", "x" * 300), s("absolute", "/etc/motd"),
        f("odd-\udcff\udcfe", "bytes"), s("odd-link", "to-\udcff"), h("odd-hard\udcff", "etc/motd"),
        fifo("pipe", 0o640), images.device("null", 1, 3, 0o666), images.device("disk", 259, 70_000, 0o660, block=True),
        images.device("gone", 1, 5), d("closed", 0o000), f("closed/in", "side"),
        d("readonly", 0o555), f("readonly/x", "r"),
        d("tmp", 0o1777), f("old", "before the epoch", mtime=-5),
        f("attributes", "x", xattrs={"user.b": b"2", "user.a": b"1\n\xc3\xbc"}),
        f("empty"), f("block", bytes(512)), f("big", bytes(range(256)) * 20_000), f("hidden/a"), f("removed"),
    )  # fmt: skip
    above = images.layer(
        opaque("hidden"), f("hidden/b", "b"), whiteout("removed"), whiteout("gone"), f("etc/motd", "new\n"),
        h("second", "etc/hard"),
        d("closed", 0o000, mtime=99), compression="none",
    )  # fmt: skip
    return Image((below, images.layer(f("etc/zstd", "z" * 9_999), compression="zstd"), above, *sparse_layers()))


def test_squash_extracted_equals_unpack(tmp_path: Path) -> None:
    """Times to the nanosecond, modes, owners, hard links, attributes, holes, devices and pipes: all the same."""
    require_root()
    layout = write_layout(tmp_path / "layout", {"t": everything()})
    run_cli("unpack", f"oci:{layout}:t", tmp_path / "unpacked").ok()
    run_cli("squash", f"oci:{layout}:t", "-o", tmp_path / "flat.tar").ok()
    (tmp_path / "out").mkdir()
    options = ("--xattrs", "--xattrs-include=*", "--numeric-owner")
    run("tar", *options, "-xpf", tmp_path / "flat.tar", "-C", tmp_path / "out")
    assert_same_tree(tmp_path / "out", tmp_path / "unpacked")
    found = tree_listing(tmp_path / "unpacked")
    assert found["etc/shadow"].mode == 0
    assert found["bin/su"].mode == 0o6755
    assert found["owned"].gid == 3_000_000_000
    assert found["disk"].device == (259, 70_000)
    assert found["old"].mtime_ns == -5 * 10**9
    assert found["etc/hard"].mtime_ns % 10**9 != 0
    assert found["etc/hard"].links == ("etc/hard", "odd-hard\udcff", "second")
    assert found["attributes"].xattrs == (("user.a", b"1\n\xc3\xbc"), ("user.b", b"2"))
    assert "gone" not in found
    assert {path for path in found if path.startswith("hidden")} == {"hidden", "hidden/b"}
    sparse = [path for path in found if path.startswith("sparse-")]
    assert len(sparse) == 4
    for path in sparse:
        assert found[path].size == SPARSE
        assert (tmp_path / "unpacked" / path).stat().st_blocks * 512 < SPARSE // 2, f"{path} has lost its holes"


def test_squash_reads_as_its_own_single_layer() -> None:
    """A squashed image is a valid layer: flattening it again gives the same tree and the same bytes."""
    layers = [MemoryLayer.of(each.tar) for each in everything().layers]
    once = squashed(layers)
    twice = squashed([MemoryLayer.of(once)])
    assert strict_untar(read(once)) == strict_untar(read(twice))
    assert squashed([MemoryLayer.of(twice)]) == squashed([MemoryLayer.of(squashed([MemoryLayer.of(twice)]))])


def test_same_image_same_bytes(tmp_path: Path) -> None:
    """Squash gives the same bytes in every run, whatever the hash seed, and to a pipe the same as to a file."""
    layout = write_layout(tmp_path / "layout", {"t": everything()})
    digests = set()
    for seed in ("0", "1", "4242"):
        run_cli("squash", f"oci:{layout}:t", "-o", tmp_path / seed, env={"PYTHONHASHSEED": seed}).ok()
        digests.add(hashlib.sha256((tmp_path / seed).read_bytes()).hexdigest())
    command = [sys.executable, "-m", "cvmfs_sync", "squash", f"oci:{layout}:t"]
    digests.add(hashlib.sha256(run_bytes(*command)).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_layers_of_every_compression(compression: Compression, tmp_path: Path) -> None:
    """Real blobs go through the whole pipeline, and the tree is the same."""
    entries = [[f("a", "A" * 3_000_000), f("b")], [f("b", "B")]]
    layers = [images.layer(*each, compression=compression) for each in entries]
    unpacked(file_layers(tmp_path, layers), tmp_path / "out")
    assert (tmp_path / "out/a").read_bytes() == b"A" * 3_000_000
    assert (tmp_path / "out/b").read_bytes() == b"B"


def test_another_diff_id_is_refused(tmp_path: Path) -> None:
    """A layer that is not what the configuration says fails, although its blob is verified."""
    good, other = images.layer(f("a", "A")), images.layer(f("a", "B"))
    (layer,) = file_layers(tmp_path, [good])
    wrong = Layer(layer.blob, file_layers(tmp_path, [other])[0].diff_id, layer.size, "layer 7")
    with pytest.raises(InvalidImage, match=r"layer 7.*digest"):
        unpacked([wrong], tmp_path / "out")


@pytest.mark.parametrize(
    ("layers", "limits", "name"),
    [
        ([[f("a"), f("b")], [f("c")]], Limits(entries=2), "entries"),
        ([[f("a", "x" * 600)], [f("b", "x" * 600)]], Limits(bytes=10_300), ""),
        ([[f("a", "x" * 6000)], [f("b", "x" * 6000)]], Limits(bytes=10_300), "bytes"),
        ([[f("a"), h("b", "a")], [h("c", "a")]], Limits(hardlinks=1), "hardlinks"),
    ],
)
def test_limits_hold_for_the_image_not_for_each_layer(layers: Layers, limits: Limits, name: str) -> None:
    """What the layers have together is counted, and the message names limit, value and layer."""
    openings: list[str] = []
    work = partial(flatten, in_memory(layers, openings), Recorder(), limits=limits)
    if not name:
        work()
        return
    with pytest.raises(LimitExceeded) as caught:
        work()
    assert name in str(caught.value)
    assert "found: " in str(caught.value)
    assert str(caught.value).startswith("0: ")
    assert openings == ["1", "0"]


def test_a_path_through_links_is_held_to_the_limits() -> None:
    """Links must not lead to paths longer than any that could be written down."""
    long = "/".join(["x" * 200] * 10)
    layers = [[d(long), s("a", long)], [d(f"a/{long}"), s("b", f"a/{long}")], [f("b/" + "y" * 200 + "/z")]]
    with pytest.raises(LimitExceeded, match="path"):
        flatten(in_memory(layers), Recorder())


def test_progress_counts_compressed_bytes() -> None:
    """Each layer that is done advances by its size."""
    advanced: list[int] = []

    class Counter:
        def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
            raise AssertionError("the caller starts")

        def advance(self, amount: int) -> None:
            advanced.append(amount)

    layers = in_memory([[f("a")], [f("b", "x" * 9_000)]])
    flatten(layers, Recorder(), progress=Counter())
    assert advanced == [layers[1].size, layers[0].size]


def test_a_transform_may_hide_what_was_placed(tmp_path: Path) -> None:
    """What a transform takes out of the tree or puts in place of a file ends as the tree says."""
    layers = [[f(".singularity.d/runscript", "evil"), f("keep/x", "x"), f(".cvmfscatalog/y", "y"), s("etc", "keep")]]
    config = Image().config_bytes  # of nothing

    def transform(merged: tree.Tree) -> None:
        from cvmfs_sync.image import ImageConfig
        from cvmfs_sync.reference import Digest, Platform

        furnish(merged, ImageConfig(Digest.parse(images.digest_of(config)), Platform(), ()))

    (tmp_path / "out").mkdir()
    with DirectorySink(tmp_path / "out", EXACT_AS_USER) as sink:
        flatten(in_memory(layers), sink, transform=transform)
    assert "evil" not in (tmp_path / "out/.singularity.d/runscript").read_text()
    assert (tmp_path / "out/.cvmfscatalog").read_bytes() == b""
    assert (tmp_path / "out/keep/hosts").is_file()


# --- anything ---------------------------------------------------------------------------------------------------------


@settings(max_examples=800)
@given(random_layers())
@example([[f("z/b", "Z"), f("a/b", "A"), s("a", "z")]])
@example([[f("d/x"), s("a", "d")], [f("a/x", "1"), h("y", "a/x")], [f("d/x", "2")]])
def test_any_layers_unpack_to_what_the_model_says(layers: Layers) -> None:
    """Arbitrary layers, written as a directory: paths, types, modes, owners, times, contents, hard links."""
    require_root()
    try:
        expected = expected_nodes(model([entries_of(each) for each in layers]), layers)
    except Refused:
        event("refused")
        expected = {}
    with tempfile.TemporaryDirectory(dir=_memory()) as work:
        target = Path(work, "out")
        if not expected:
            with pytest.raises(InvalidImage):
                unpacked(in_memory(layers), target)
        else:
            unpacked(in_memory(layers), target)
            assert_same_tree(target, expected)
        remove_tree(target)
        assert os.listdir(work) == []


@settings(max_examples=1_000)
@given(random_layers())
@example([[f("z/b", "Z"), f("a/b", "A"), s("a", "z")]])
def test_any_layers_squash_to_what_the_model_says(layers: Layers) -> None:
    """Arbitrary layers as a flat archive, which a tar without cleverness extracts to the model's tree."""
    try:
        expected = expected_nodes(model([entries_of(each) for each in layers]), layers)
    except Refused:
        with pytest.raises(InvalidImage):
            squashed(in_memory(layers))
        return
    stream = squashed(in_memory(layers))
    assert_same_tree(strict_untar(read(stream)), expected)


@settings(max_examples=400)
@given(random_layers())
def test_any_squashed_layers_are_extracted_by_gnu_tar(layers: Layers) -> None:
    """GNU tar agrees with the strict reading of the archive, and has nothing to complain about."""
    require_root()
    try:
        stream = squashed(in_memory(layers))
    except InvalidImage:
        return
    with tempfile.TemporaryDirectory(dir=_memory()) as work:
        run("tar", "--numeric-owner", "-xpf", "-", "-C", work, input=stream)
        assert_same_tree(Path(work), strict_untar(read(stream)))
        for path in Path(work).iterdir():
            remove_tree(path)


def test_sinks_are_sinks() -> None:
    """Both sinks are what `flatten` asks for."""
    sinks: list[type[Sink]] = [DirectorySink, TarSink]
    assert [sink.__name__ for sink in sinks] == ["DirectorySink", "TarSink"]
    assert EXACT.owner
