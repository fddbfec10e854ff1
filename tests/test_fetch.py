"""Blobs into verified files: what is wrong never gets a name in the spool, and one failure stops the rest."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, InvalidManifest, NoSpace, RegistryUnavailable
from cvmfs_sync.fetch import Spool, fetching, spooled
from cvmfs_sync.image import Descriptor, ImageConfig, Manifest, ResolvedImage
from cvmfs_sync.ports import Silent
from cvmfs_sync.reference import Digest, Platform, parse_image
from cvmfs_sync.registry import LayoutSource
from cvmfs_sync.resolve import Sources
from tests import support

NAME = parse_image("registry.invalid/x:1")
CONTENT = b"0123456789" * 300_000
DESCRIPTOR = Descriptor(
    "application/vnd.oci.image.layer.v1.tar", Digest.parse(support.digest_of(CONTENT)), len(CONTENT)
)


class Blobs:
    """A source that answers with what a test gives it, by digest."""

    def __init__(self, answers: dict[Digest, Any]) -> None:
        self.answers = answers
        self.asked: list[Digest] = []

    def blob(self, _name: object, descriptor: Descriptor) -> Iterator[bytes]:
        """What the test wants; an error is raised after the pieces before it."""
        self.asked.append(descriptor.digest)
        answer = self.answers[descriptor.digest]
        for piece in answer() if callable(answer) else answer:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def local_blob(self, _name: object, _descriptor: Descriptor) -> None:
        """Nothing is on this machine."""


def sources(answers: dict[Digest, Any]) -> tuple[Sources, Blobs]:
    """Sources with such a registry."""
    blobs = Blobs(answers)
    return Sources(blobs, LayoutSource()), blobs  # type: ignore[arg-type]


def files(spool: Path) -> list[str]:
    """All files of a spool."""
    return sorted(str(path.relative_to(spool)) for path in spool.rglob("*") if path.is_file())


def test_a_blob_gets_its_name_when_it_is_right(tmp_path: Path) -> None:
    """A verified blob is a file under its digest; asking again asks no source."""
    spool = Spool(tmp_path)
    source, blobs = sources({DESCRIPTOR.digest: [CONTENT[:7], b"", CONTENT[7:]]})
    path = spool.get(NAME, DESCRIPTOR, source, Silent())
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == [f"blobs/sha256/{DESCRIPTOR.digest.hex}"]
    assert spool.get(NAME, DESCRIPTOR, source, Silent()) == path
    assert len(blobs.asked) == 1
    spool.drop(DESCRIPTOR.digest)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        ([CONTENT[:-1]], BlobMismatch, "cut short; found: 2999999 bytes; expected: 3000000"),
        ([], BlobMismatch, "cut short; found: 0 bytes"),
        ([CONTENT, b"x"], BlobMismatch, "larger than its manifest says"),
        ([CONTENT[:-1], b"x"], BlobMismatch, "is damaged"),
        ([CONTENT[:9], RegistryUnavailable("down")], RegistryUnavailable, "down"),
        ([CONTENT[:9], OSError(28, "No space left on device")], NoSpace, "no space left"),
    ],
)
def test_a_wrong_blob_leaves_nothing(tmp_path: Path, pieces: list[Any], error: type[Exception], words: str) -> None:
    """Cut, too long, changed, or broken off: the error says which, and no file stays under any name."""
    source, _ = sources({DESCRIPTOR.digest: pieces})
    with pytest.raises(error, match=words):
        Spool(tmp_path).get(NAME, DESCRIPTOR, source, Silent())
    assert files(tmp_path) == []


def test_a_file_of_another_size_is_not_trusted(tmp_path: Path) -> None:
    """What a crash left under a blob's name is fetched again."""
    source, _ = sources({DESCRIPTOR.digest: [CONTENT]})
    final = tmp_path / "blobs/sha256" / DESCRIPTOR.digest.hex
    final.parent.mkdir(parents=True)
    final.write_bytes(b"")
    assert Spool(tmp_path).get(NAME, DESCRIPTOR, source, Silent()).read_bytes() == CONTENT


def test_what_cannot_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the download, not after: the message says how much is free, how much is needed, and what to set."""
    source, blobs = sources({DESCRIPTOR.digest: [CONTENT]})
    usage = shutil.disk_usage(tmp_path)._replace(free=DESCRIPTOR.size + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(NoSpace, match="spool_dir") as caught:
        Spool(tmp_path).get(NAME, DESCRIPTOR, source, Silent())
    assert f"{DESCRIPTOR.size + 1000} bytes free" in str(caught.value)
    assert str(DESCRIPTOR.digest) in caught.value.what
    assert blobs.asked == []


def test_clearing_removes_what_killed_runs_left(tmp_path: Path) -> None:
    """Blobs and halves of blobs go; a spool that is not there is no error."""
    spool = Spool(tmp_path / "spool")
    spool.clear()
    (tmp_path / "spool/partial").mkdir(parents=True)
    (tmp_path / "spool/partial/1-x").write_bytes(b"half")
    (tmp_path / "spool/other").write_bytes(b"not ours")
    spool.clear()
    assert files(tmp_path / "spool") == ["other"]


def test_a_layouts_blobs_are_verified_where_they_are(tmp_path: Path) -> None:
    """Nothing is copied, and a damaged one is found before anybody reads it."""
    image = support.Image((support.layer(support.file("a", "1")),))
    name = parse_image(f"oci:{support.write_layout(tmp_path / 'layout', {'1': image})}:1")
    source = Sources(LayoutSource(), LayoutSource())  # type: ignore[arg-type]
    blob = image.layers[0]
    descriptor = Descriptor("x", Digest.parse(blob.digest), len(blob.blob))
    path = Spool(tmp_path / "spool").get(name, descriptor, source, Silent())
    assert path == tmp_path / "layout/blobs/sha256" / descriptor.digest.hex
    path.write_bytes(blob.blob[:-1] + b"x")
    with pytest.raises(BlobMismatch, match="is damaged"):
        Spool(tmp_path / "spool").get(name, descriptor, source, Silent())
    assert not (tmp_path / "spool").exists()


class Layers(NamedTuple):
    """An image of some layers."""

    image: ResolvedImage
    digests: list[Digest]
    contents: list[bytes]


def layers(*contents: bytes, media_type: str = DESCRIPTOR.media_type, urls: tuple[str, ...] = ()) -> Layers:
    """An image with such layers, bottom to top."""
    digests = [Digest.parse(support.digest_of(content)) for content in contents]
    descriptors = tuple(Descriptor(media_type, d, len(c), urls) for d, c in zip(digests, contents, strict=True))
    manifest = Manifest(DESCRIPTOR.digest, replace(DESCRIPTOR), descriptors)
    config = ImageConfig(DESCRIPTOR.digest, Platform(), tuple(digests))
    return Layers(ResolvedImage(NAME, DESCRIPTOR.digest, manifest, config), digests, list(contents))


def test_layers_come_in_order_and_each_once(tmp_path: Path) -> None:
    """They are given bottom to top, and a layer that stands twice is fetched once."""
    image, digests, contents = layers(b"bottom", b"twice", b"twice", b"top")
    source, blobs = sources({digest: [content] for digest, content in zip(digests, contents, strict=True)})
    with fetching(image, source, Spool(tmp_path)) as fetched:
        assert [layer.blob().read_bytes() for layer in fetched] == contents
    assert len(blobs.asked) == 3


def test_the_first_failure_is_the_one_that_is_told(tmp_path: Path) -> None:
    """A layer that fails stops the downloads of the others, and whoever waits for any of them is told why."""
    image, digests, _ = layers(b"b" * 100, b"top")
    failed = threading.Event()

    def slow() -> Iterator[bytes]:
        assert failed.wait(60)
        yield from (b"b",) * 100

    def broken() -> Iterator[bytes]:
        yield b"t"
        raise RegistryUnavailable("the top layer is not there")

    source, _ = sources({digests[0]: slow, digests[1]: broken})
    with fetching(image, source, Spool(tmp_path)) as fetched:
        with pytest.raises(ImageError, match="the top layer is not there"):
            fetched[1].blob()
        failed.set()
        with pytest.raises(ImageError, match="the top layer is not there"):
            fetched[0].blob()
    assert files(tmp_path) == []


def test_leaving_early_stops_the_downloads(tmp_path: Path) -> None:
    """Ctrl-C does not wait for the end of a large download, and leaves none of it."""
    image, digests, _ = layers(b"x" * 10)
    begun, left = threading.Event(), threading.Event()

    def endless() -> Iterator[bytes]:
        begun.set()
        yield b"x"
        assert left.wait(60)
        yield b"x"
        raise AssertionError("asked for more after the end")

    source, _ = sources({digests[0]: endless})

    def interrupted() -> None:
        with fetching(image, source, Spool(tmp_path)):
            assert begun.wait(60)
            threading.Timer(0.05, left.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(tmp_path) == []


def test_layers_that_are_not_ahead_wait_until_they_are_wanted(tmp_path: Path) -> None:
    """Only those named are fetched at once; another one comes when somebody reads it, once, also for two readers."""
    image, digests, contents = layers(b"bottom", b"middle", b"top")
    source, blobs = sources({digest: [content] for digest, content in zip(digests, contents, strict=True)})
    with fetching(image, source, Spool(tmp_path), ahead={digests[1]}) as fetched:
        assert fetched[1].blob().read_bytes() == b"middle"
        assert blobs.asked == [digests[1]]
        with ThreadPoolExecutor(4) as readers:
            read = list(readers.map(lambda _: fetched[0].blob().read_bytes(), range(4)))
        assert read == [b"bottom"] * 4
        assert blobs.asked == [digests[1], digests[0]]
    with fetching(image, source, Spool(tmp_path), ahead=()) as fetched:
        assert fetched[1].blob().read_bytes() == b"middle"
    assert blobs.asked == [digests[1], digests[0]], "fetched again, or fetched unasked"


def test_a_layer_that_fails_when_it_is_wanted(tmp_path: Path) -> None:
    """Its error reaches whoever wanted it, each time, and the others are stopped with it."""
    image, digests, _ = layers(b"bottom", b"top")
    source, blobs = sources({digests[0]: [RegistryUnavailable("no bottom")], digests[1]: [b"top"]})
    with fetching(image, source, Spool(tmp_path), ahead=[]) as fetched:
        for layer in (fetched[0], fetched[0], fetched[1]):
            with pytest.raises(RegistryUnavailable, match="no bottom"):
                layer.blob()
    assert blobs.asked == [digests[0]]


def test_an_images_layers_stay_while_it_is_worked_on(tmp_path: Path) -> None:
    """What was handed out is there until the block ends, however little the limit leaves; then the limit is kept."""
    image, digests, contents = layers(b"a" * 10, b"b" * 10, b"c" * 10)
    other = layers(b"d" * 10)
    answers = {digest: [content] for digest, content in zip(digests, contents, strict=True)}
    source, _ = sources({**answers, other.digests[0]: other.contents})
    spool = Spool(tmp_path, limit=20)
    with fetching(image, source, spool) as fetched:
        paths = [layer.blob() for layer in fetched]
        with fetching(other.image, source, spool) as others:
            assert others[0].blob().read_bytes() == other.contents[0]
        assert [path.read_bytes() for path in paths] == contents
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 20


def test_what_needs_room_in_the_spool(tmp_path: Path) -> None:
    """A registry's layers do, each once; those of a layout are read where they are."""
    image, digests, _ = layers(b"one", b"one", b"two")
    source, _ = sources({})
    assert [layer.digest for layer in spooled(image, source)] == [digests[0], digests[2]]
    local = support.Image((support.layer(support.file("a", "1")),))
    name = parse_image(f"oci:{support.write_layout(tmp_path / 'layout', {'1': local})}:1")
    blob = local.layers[0]
    descriptor = Descriptor("x", Digest.parse(blob.digest), len(blob.blob))
    in_layout = replace(image, name=name, manifest=replace(image.manifest, layers=(descriptor,)))
    assert spooled(in_layout, Sources(LayoutSource(), LayoutSource())) == ()  # type: ignore[arg-type]


def test_layers_that_the_registry_need_not_keep_come_first(tmp_path: Path) -> None:
    """If the configuration does not allow them, no other layer has been fetched in vain."""
    image, digests, _ = layers(b"base", b"1", b"2", b"3", b"4")
    media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    base = replace(image.manifest.layers[0], media_type=media_type, urls=("https://example.org/x",))
    image = replace(image, manifest=replace(image.manifest, layers=(base, *image.manifest.layers[1:])))
    told = threading.Event()

    def after() -> Iterator[bytes]:
        assert told.wait(60)
        yield b""

    source, blobs = sources({digests[0]: [InvalidManifest("not allowed")], **dict.fromkeys(digests[1:], after)})
    with fetching(image, source, Spool(tmp_path)) as fetched:
        try:
            with pytest.raises(InvalidManifest, match="not allowed"):
                fetched[0].blob()
        finally:
            told.set()
    assert set(blobs.asked) <= {digests[0], *digests[3:]}
    assert files(tmp_path) == []
