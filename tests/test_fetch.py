"""Blobs into verified files: what is wrong never gets a name in the spool, and one failure stops the rest."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, InvalidManifest, NoSpace, RegistryUnavailable
from cvmfs_sync.fetch import Spool, fetching
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


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_layers_that_the_registry_does_not_keep_are_refused(tmp_path: Path, media_type: str) -> None:
    """Nobody follows the URLs of a foreign layer; the message says what such an image needs."""
    image, _, _ = layers(b"x", media_type=media_type, urls=("https://example.org/x",))
    source, blobs = sources({})
    with (
        pytest.raises(InvalidManifest, match="not kept by the registry"),
        fetching(image, source, Spool(tmp_path)),
    ):
        pass
    assert blobs.asked == []
