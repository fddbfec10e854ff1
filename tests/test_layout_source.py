"""`registry.layout`: OCI layouts on disk, as tools write them and as nobody should."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, InvalidManifest
from cvmfs_sync.image import MAX_DOCUMENT, Descriptor, Index, Manifest, parse_document
from cvmfs_sync.ports import Source
from cvmfs_sync.reference import Digest, LayoutReference, Reference
from cvmfs_sync.registry import LayoutSource
from tests.fakes.scriptable_registry import OCI_INDEX, OCI_MANIFEST, FakeImage, sha256, to_json, write_layout

SOURCE = LayoutSource()
LAYER = bytes(range(256)) * 10_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a test's layout goes."""
    return tmp_path / "layout"


@pytest.fixture
def images(directory: Path) -> dict[str, FakeImage]:
    """A layout with the tags 1 and 2, of one and two layers."""
    return write_layout(directory, {"1": [LAYER], "2": [LAYER, b"more"]})


def blob_path(directory: Path, digest: str) -> Path:
    """Where a blob lies."""
    return directory / "blobs" / digest.replace(":", "/")


def edit_index(directory: Path, change: Callable[[Any], object]) -> None:
    """Change index.json."""
    path = directory / "index.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(to_json(document))


def layer_of(name: LayoutReference) -> Descriptor:
    """The descriptor of an image's first layer."""
    content, digest, media_type = SOURCE.manifest(name)
    manifest = parse_document(content, digest, media_type, str(name))
    assert isinstance(manifest, Manifest)
    return manifest.layers[0]


def test_is_a_source() -> None:
    """A layout fulfils the core's protocol."""
    checked: Source[LayoutReference] = SOURCE
    assert checked is SOURCE


def test_reads_an_image(directory: Path, images: dict[str, FakeImage]) -> None:
    """Tags, digests, manifests, blobs and the blobs' files are found by their tag."""
    for tag, image in images.items():
        name = LayoutReference(directory, tag)
        assert str(SOURCE.head(name)) == image.digest
        content, digest, media_type = SOURCE.manifest(name)
        assert (content, str(digest), media_type) == (image.manifest, image.digest, image.media_type)
        layer = layer_of(name)
        pieces = list(SOURCE.blob(name, layer))
        assert b"".join(pieces) == LAYER
        assert max(map(len, pieces)) <= 1024 * 1024
        assert SOURCE.local_blob(name, layer) == blob_path(directory, image.layers[0])
    assert list(SOURCE.tags(LayoutReference(directory))) == ["1", "2"]


def test_without_a_tag(tmp_path: Path, directory: Path, images: dict[str, FakeImage]) -> None:
    """The only image is meant, else `latest`, else the error lists the tags."""
    with pytest.raises(ImageNotFound, match=r"none tagged 'latest'; found: 1, 2; to do: name one of the tags"):
        SOURCE.head(LayoutReference(directory))
    edit_index(directory, lambda index: index["manifests"].pop(0))
    assert str(SOURCE.head(LayoutReference(directory))) == images["2"].digest
    latest = write_layout(tmp_path / "other", {"1": [LAYER], "latest": [b"x"]})["latest"]
    assert str(SOURCE.head(LayoutReference(tmp_path / "other"))) == latest.digest


def test_an_unknown_tag_lists_the_tags(directory: Path, images: dict[str, FakeImage]) -> None:
    """A readable layout without the tag is proof, and says which tags there are."""
    assert images
    with pytest.raises(ImageNotFound, match="found: 1, 2"):
        SOURCE.head(LayoutReference(directory, "3"))


def test_an_image_without_a_tag(directory: Path, images: dict[str, FakeImage]) -> None:
    """A layout need not name its only image."""
    edit_index(directory, lambda index: index["manifests"].pop(0))
    edit_index(directory, lambda index: index["manifests"][0].pop("annotations"))
    assert str(SOURCE.head(LayoutReference(directory))) == images["2"].digest
    assert list(SOURCE.tags(LayoutReference(directory))) == []
    with pytest.raises(ImageNotFound, match="no tags"):
        SOURCE.head(LayoutReference(directory, "2"))


def test_an_empty_layout(directory: Path) -> None:
    """No images is told as that."""
    write_layout(directory, {})
    with pytest.raises(ImageNotFound, match="no image"):
        SOURCE.head(LayoutReference(directory))


def test_a_tag_that_stands_twice(directory: Path, images: dict[str, FakeImage]) -> None:
    """The same image twice is one; two images at one tag are ambiguous."""
    edit_index(directory, lambda index: index["manifests"].append(index["manifests"][0]))
    assert str(SOURCE.head(LayoutReference(directory, "1"))) == images["1"].digest
    edit_index(directory, lambda index: index["manifests"][1].update(annotations=index["manifests"][0]["annotations"]))
    with pytest.raises(InvalidManifest, match="2 manifests have this tag"):
        SOURCE.head(LayoutReference(directory, "1"))


def test_a_nested_index(directory: Path, images: dict[str, FakeImage]) -> None:
    """Where an index is tagged, its digest is the tag's; its manifests are read by digest."""
    image = images["1"]
    entry = {"mediaType": OCI_MANIFEST, "digest": image.digest, "size": len(image.manifest)}
    nested = to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    blob_path(directory, sha256(nested)).write_bytes(nested)
    top = {"mediaType": OCI_INDEX, "digest": sha256(nested), "size": len(nested)}
    edit_index(directory, lambda index: index.update(manifests=[top]))
    name = LayoutReference(directory)
    assert str(SOURCE.head(name)) == sha256(nested)
    content, digest, media_type = SOURCE.manifest(name)
    index = parse_document(content, digest, media_type, str(name))
    assert isinstance(index, Index)
    assert SOURCE.manifest(name, index.entries[0].descriptor.digest)[0] == image.manifest


def test_attestations_are_no_images(directory: Path, images: dict[str, FakeImage]) -> None:
    """An attestation beside the only image does not make it ambiguous."""
    unknown = {"os": "unknown", "architecture": "unknown"}
    edit_index(directory, lambda index: index["manifests"][0].update(platform=unknown))
    assert str(SOURCE.head(LayoutReference(directory))) == images["2"].digest


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", InvalidManifest),
        (b"{", InvalidManifest),
        (b"[]", InvalidManifest),
        (b'{"manifests": []}', InvalidManifest),
        (b'{"schemaVersion": 2, "manifests": [], "manifests": []}', InvalidManifest),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', InvalidManifest),
        (b'{"schemaVersion": 2, "manifests": [{"annotations": 5}]}', InvalidManifest),
        (b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:../x", "size": 1}]}', InvalidManifest),
        (b" " * (MAX_DOCUMENT + 1), InvalidManifest),
    ],
)
def test_a_broken_index(directory: Path, content: bytes, kind: type[ImageError]) -> None:
    """An index.json that breaks the specification is refused, and named."""
    write_layout(directory, {"1": [LAYER]})
    (directory / "index.json").write_bytes(content)
    with pytest.raises(kind, match=r"index\.json"):
        SOURCE.head(LayoutReference(directory))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"imageLayoutVersion": "2.0.0"}', b'{"imageLayoutVersion": 1}', b"[" * 100_000]
)
def test_another_version(directory: Path, content: bytes) -> None:
    """Only version 1.0.0 is known."""
    gc.collect()  # else finalizers may run, and fail, where the parser has used up the stack
    write_layout(directory, {"1": [LAYER]})
    (directory / "oci-layout").write_bytes(content)
    with pytest.raises(ImageError, match=r"expected: '1\.0\.0'"):
        SOURCE.head(LayoutReference(directory))


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("", "no such directory"),
        ("oci-layout", "holds no OCI layout"),
        ("index.json", "holds no OCI layout"),
        ("blobs", "copy the image into it again"),
    ],
)
def test_what_is_missing_is_named(directory: Path, images: dict[str, FakeImage], missing: str, text: str) -> None:
    """A missing file is named with its path and what to do; it is no proof that an image is gone."""
    path = directory / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ImageError, match=text) as caught:
        SOURCE.manifest(LayoutReference(directory, "1"))
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, ImageNotFound)
    assert images


def test_a_file_in_place_of_the_layout(tmp_path: Path) -> None:
    """A file is no layout."""
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="no such directory"):
        SOURCE.head(LayoutReference(tmp_path / "file"))


def test_a_missing_blob_is_named(directory: Path, images: dict[str, FakeImage]) -> None:
    """A layout that lacks a layer names the layer's file."""
    name = LayoutReference(directory, "1")
    layer = layer_of(name)
    path = blob_path(directory, images["1"].layers[0])
    path.unlink()
    for read in (lambda: list(SOURCE.blob(name, layer)), lambda: SOURCE.local_blob(name, layer)):
        with pytest.raises(ImageError, match=f"{path}.*copy the image into it again"):
            read()


def test_a_wrong_manifest_is_refused(directory: Path, images: dict[str, FakeImage]) -> None:
    """Manifests are verified."""
    path = blob_path(directory, images["1"].digest)
    path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
    with pytest.raises(BlobMismatch):
        SOURCE.manifest(LayoutReference(directory, "1"))


def test_a_blob_of_another_size_is_refused(directory: Path, images: dict[str, FakeImage]) -> None:
    """Size is checked before the first byte is read."""
    name = LayoutReference(directory, "1")
    layer = layer_of(name)
    blob_path(directory, images["1"].layers[0]).write_bytes(LAYER[:-1])
    for read in (lambda: next(SOURCE.blob(name, layer)), lambda: SOURCE.local_blob(name, layer)):
        with pytest.raises(BlobMismatch, match=f"found: {len(LAYER) - 1} bytes; expected: {len(LAYER)} bytes"):
            read()


def _link(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _fifo(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    os.mkfifo(path)


def _directory(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.mkdir()


@pytest.mark.parametrize("replace", [_link, _fifo, _directory])
@pytest.mark.parametrize("part", ["blob", "algorithm", "blobs", "index.json", "oci-layout"])
def test_only_regular_files_are_read(
    tmp_path: Path, directory: Path, images: dict[str, FakeImage], replace: Callable[[Path, Path], None], part: str
) -> None:
    """A link, pipe or directory in a file's or directory's place is an error, wherever it leads, and does not hang."""
    blob = blob_path(directory, images["1"].digest)
    path = {"blob": blob, "algorithm": blob.parent, "blobs": blob.parent.parent}.get(part, directory / part)
    replace(path, tmp_path / "elsewhere")
    expected = "copy" if replace is not _directory or part not in ("algorithm", "blobs") else "no such file"
    with pytest.raises(ImageError, match=expected) as caught:
        SOURCE.manifest(LayoutReference(directory, "1"))
    assert not isinstance(caught.value, ImageNotFound)


def test_the_layouts_own_path_may_be_a_link(tmp_path: Path, directory: Path, images: dict[str, FakeImage]) -> None:
    """Whoever names the directory may name a link to it."""
    (tmp_path / "link").symlink_to(directory)
    assert str(SOURCE.head(LayoutReference(tmp_path / "link", "1"))) == images["1"].digest


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(directory: Path, images: dict[str, FakeImage]) -> None:
    """A file that this user may not read says so."""
    (directory / "index.json").chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        SOURCE.head(LayoutReference(directory, "1"))
    assert images


def test_no_file_stays_open(directory: Path, images: dict[str, FakeImage]) -> None:
    """Neither success nor failure leaks descriptors."""
    name = LayoutReference(directory, "1")
    layer = layer_of(name)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        SOURCE.local_blob(name, layer)
        list(SOURCE.blob(name, layer))
        with pytest.raises(ImageError):
            SOURCE.manifest(name, Digest("sha256", "0" * 64))
    assert len(os.listdir("/proc/self/fd")) == before
    assert images


def test_tags_of_a_registry_are_not_here() -> None:
    """A registry's reference is refused."""
    with pytest.raises(ImageError, match="not an OCI layout"):
        list(SOURCE.tags(Reference.parse("alpine")))


def test_against_skopeo(tmp_path: Path, directory: Path, images: dict[str, FakeImage]) -> None:
    """A layout that skopeo wrote reads the same."""
    if shutil.which("skopeo") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("skopeo is missing, and CI must have it")
        pytest.skip("skopeo is not installed")
    command = ["skopeo", "copy", "--insecure-policy", f"oci:{directory}:2", f"oci:{tmp_path}/copy:copied"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    name = LayoutReference(tmp_path / "copy", "copied")
    layer = layer_of(name)
    assert len(b"".join(SOURCE.blob(name, layer))) == layer.size
    assert list(SOURCE.tags(name)) == ["copied"]
    assert images
