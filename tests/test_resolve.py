"""From a name to one exact image: platforms are chosen, indexes entered, documents held against each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, InvalidManifest
from cvmfs_sync.image import Descriptor, Index, IndexEntry, ResolvedImage
from cvmfs_sync.imagelist import parse as parse_list
from cvmfs_sync.reference import Digest, LayoutReference, Platform, parse_image
from cvmfs_sync.registry import LayoutSource, RegistrySource
from cvmfs_sync.resolve import Sources, choose, expand, resolve, source_digest
from tests import support

SOURCES = Sources(RegistrySource(), LayoutSource())
AMD = support.Image((support.layer(support.file("a", "1")),))
ARM = AMD.but(architecture="arm64", variant="v8")
DIGEST = Digest("sha256", "0" * 64)


def resolved(tmp_path: Path, image: support.Image | support.Index, platform: str = "linux/amd64") -> ResolvedImage:
    """Write a layout with one image and resolve it."""
    name = LayoutReference(support.write_layout(tmp_path / "layout", {"1": image}), "1")
    return resolve(name, source_digest(name, SOURCES), Platform.parse(platform), SOURCES)


def index(*platforms: str | None, attestation: bool = False) -> Index:
    """An index whose entries' digests end in their number."""
    entries = [
        IndexEntry(Descriptor("x", replace(DIGEST, hex=f"{number:064x}"), 1), Platform.parse(p) if p else None)
        for number, p in enumerate(platforms)
    ]
    if attestation:
        entries.append(IndexEntry(Descriptor("x", replace(DIGEST, hex="f" * 64), 1), None, attestation=True))
    return Index(DIGEST, tuple(entries))


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/amd64"], "linux/amd64", 0),
        (["linux/arm64", "linux/amd64"], "linux/amd64", 1),
        (["windows/amd64", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], "linux/amd64", 2),
        (["linux/amd64/v3", "linux/amd64/v2"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64/v2", "linux/amd64/v3"], "linux/amd64/v2", 1),
        (["linux/amd64", "linux/amd64/v3"], "linux/amd64/v2", 0),
        (["linux/arm64"], "linux/arm64/v8", 0),
        (["linux/arm64/v8"], "linux/arm64", 0),
        (["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm", 2),
        (["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm/v6", 1),
        (["linux/arm/v5", "linux/arm/v7"], "linux/arm/v6", 0),
        ([None], "linux/amd64", 0),
        ([None, "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
    ],
)
def test_the_right_entry_is_chosen(offered: list[str | None], wanted: str, chosen: int) -> None:
    """The exact variant, else the usual one, else a lower one that runs there; attestations never."""
    for attestation in (False, True):
        entry = choose(index(*offered, attestation=attestation), Platform.parse(wanted), "x")
        assert int(entry.descriptor.digest.hex, 16) == chosen


@pytest.mark.parametrize(
    ("offered", "wanted", "found"),
    [
        ([], "linux/amd64", "no platform"),
        (["linux/arm64", "windows/amd64"], "linux/amd64", "linux/arm64, windows/amd64"),
        (["linux/arm/v7"], "linux/arm/v6", "linux/arm/v7"),
        (["linux/amd64/v3"], "linux/amd64/v2", "linux/amd64/v3"),
        ([None, None], "linux/amd64", "no platform"),
    ],
)
def test_a_platform_that_is_not_offered_is_not_guessed(offered: list[str | None], wanted: str, found: str) -> None:
    """The message names the platforms that there are."""
    with pytest.raises(ImageNotFound, match=f"not available for {wanted}") as caught:
        choose(index(*offered, attestation=True), Platform.parse(wanted), "reg/x:1")
    assert found in str(caught.value)


def test_an_index_leads_to_the_platforms_manifest(tmp_path: Path) -> None:
    """The image's identity is the manifest's digest; the index's is kept beside it."""
    both = support.Index((AMD, ARM), attestation=True)
    image = resolved(tmp_path, both, "linux/arm64")
    assert (str(image.digest), str(image.source_digest)) == (ARM.digest, both.digest)
    assert str(resolved(tmp_path, both).digest) == AMD.digest


def test_indexes_may_nest_but_not_for_ever(tmp_path: Path) -> None:
    """An index in an index is entered; a chain of them ends with an error, not with a loop."""
    name = LayoutReference(tmp_path, "1")
    content: support.Image | support.Index = support.Index((AMD,))
    support.write_layout(tmp_path, {"1": content})
    for depth in range(1, 8):
        inner = {
            "mediaType": content.media_type, "digest": support.digest_of(content.document),
            "size": len(content.document), "platform": AMD.platform,
        }  # fmt: skip
        content = support.Index((AMD,), index={"manifests": [inner]})
        support.write_layout(tmp_path, {"1": content})
        if depth < 3:
            assert str(resolve(name, source_digest(name, SOURCES), Platform(), SOURCES).digest) == AMD.digest
    with pytest.raises(InvalidManifest, match="nested more than 4 deep"):
        resolve(name, source_digest(name, SOURCES), Platform(), SOURCES)


def test_a_single_manifest_has_to_be_for_the_platform(tmp_path: Path) -> None:
    """Nobody gets an arm64 image under a name that means amd64; the message says what it is."""
    assert str(resolved(tmp_path, ARM, "linux/arm64").digest) == ARM.digest
    with pytest.raises(ImageNotFound, match="not available for linux/amd64; found: an image for linux/arm64/v8"):
        resolved(tmp_path, ARM)


def test_an_index_is_believed_before_a_configuration(tmp_path: Path) -> None:
    """Builders often write their own platform into the configuration of what they build for another one."""
    entry = {"mediaType": AMD.media_type, "digest": AMD.digest, "size": len(AMD.document), "platform": ARM.platform}
    mislabelled = support.Index((AMD,), index={"manifests": [entry]})
    assert str(resolved(tmp_path, mislabelled, "linux/arm64").digest) == AMD.digest


def test_documents_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """Sizes and digests of manifests and configurations are held against what names them."""
    entry = {"mediaType": AMD.media_type, "digest": AMD.digest, "size": 7, "platform": AMD.platform}
    with pytest.raises(InvalidManifest, match="another size"):
        resolved(tmp_path / "a", support.Index((AMD,), index={"manifests": [entry]}))
    large = AMD.but(manifest={"config": {**json.loads(AMD.manifest_bytes)["config"], "size": 5 << 20}})
    with pytest.raises(InvalidManifest, match="configuration is too large"):
        resolved(tmp_path / "b", large)
    wrong = AMD.but(manifest={"config": {**json.loads(AMD.manifest_bytes)["config"], "size": 3}})
    with pytest.raises(ImageError, match="another size"):
        resolved(tmp_path / "c", wrong)
    resolved(tmp_path / "d", AMD)
    config = tmp_path / "d/layout/blobs/sha256" / support.digest_of(AMD.config_bytes).removeprefix("sha256:")
    config.write_bytes(AMD.config_bytes.replace(b"linux", b"LINUX"))
    with pytest.raises(BlobMismatch, match="configuration"):
        resolved(tmp_path / "d", AMD)


def test_a_pinned_name_asks_nobody() -> None:
    """The digest of `name@digest` is known: no registry is asked what it means."""
    name = parse_image(f"registry.invalid/x@{DIGEST}")
    assert source_digest(name, SOURCES) == DIGEST


def test_a_wish_for_tags_is_all_that_its_filter_selects(tmp_path: Path) -> None:
    """Globs, exclusions and `keep` name the newest tags; none at all is proof and says so."""
    support.write_layout(tmp_path, dict.fromkeys(("1.0", "1.1", "1.2-rc1", "1.2", "2.0", "latest"), AMD))
    text = (
        f'version: 1\nimages:\n- {{image: "oci:{tmp_path}", tags: ["1.*", "!*-rc*"], keep: 2}}\n- "oci:{tmp_path}:9*"\n'
    )
    wishes = parse_list(text, base=tmp_path).require_valid().wishes
    assert [name.tag for name in expand(wishes[0], SOURCES)] == ["1.2", "1.1"]
    with pytest.raises(ImageNotFound, match="no tag matches"):
        expand(wishes[1], SOURCES)
