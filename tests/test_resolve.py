"""From a name to one exact image: platforms are chosen, indexes entered, documents held against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, InvalidManifest
from cvmfs_sync.image import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, IndexEntry, ResolvedImage
from cvmfs_sync.imagelist import parse as parse_list
from cvmfs_sync.reference import Digest, LayoutReference, Platform, parse_image
from cvmfs_sync.registry import LayoutSource, RegistrySettings, RegistrySource
from cvmfs_sync.resolve import Sources, choose, expand, resolve, source_digest
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry

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
        (["linux/amd64"], "linux/amd64/v3", 0),
        (["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", 1),
        (["linux/amd64", "linux/amd64/v4", "linux/amd64/v3"], "linux/amd64/v3", 2),
        (["linux/amd64", "linux/amd64/v4"], "linux/amd64/v3", 0),
        (["linux/arm64", "linux/arm64/v8"], "linux/arm64/v8", 0),
        (["linux/arm64/v9", "linux/arm64/v8"], "linux/arm64", 1),
        (["linux/arm64/v8.2", "linux/arm64/v8"], "linux/arm64/v9", 0),
        (["linux/arm64/v8.2", "linux/arm64/v8.1"], "linux/arm64/v8.1", 1),
        (["linux/arm/v6", "linux/arm64/v8"], "linux/arm/v7", 0),
        (["linux/arm", "linux/arm/v5"], "linux/arm/v7", 0),
        (["linux/arm/v5", "linux/arm"], "linux/arm/v6", 0),
        (["linux/ppc64le", "linux/s390x"], "linux/s390x", 1),
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
        (["linux/amd64/v4", "linux/arm64"], "linux/amd64/v3", "linux/amd64/v4, linux/arm64"),
        (["linux/arm64/v8.2"], "linux/arm64/v8.1", "linux/arm64/v8.2"),
        (["linux/arm"], "linux/arm/v6", "linux/arm"),
        (["linux/arm64/v8"], "linux/arm/v7", "linux/arm64/v8"),
        (["freebsd/amd64"], "linux/amd64", "freebsd/amd64"),
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


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("linux/amd64", "amd64"), ("linux/amd64/v3", "amd64"), ("linux/amd64/v4", "amd64/v4"),
        ("linux/arm64", "arm64/v8"), ("linux/arm64/v8", "arm64/v8"), ("linux/arm", "arm/v7"),
        ("linux/arm/v6", "arm/v6"),
    ],
)  # fmt: skip
def test_each_platform_of_a_wish_gets_its_image(tmp_path: Path, wanted: str, chosen: str) -> None:
    """From one index, whose digest is the source digest of all of them."""
    offered = ("amd64", "amd64/v4", "arm64/v8", "arm/v6", "arm/v7")
    images = {
        each: AMD.but(architecture=each.partition("/")[0], variant=each.partition("/")[2], env=(f"P={each}",))
        for each in offered
    }
    both = support.Index(tuple(images.values()), attestation=True)
    image = resolved(tmp_path, both, wanted)
    assert (str(image.digest), str(image.source_digest)) == (images[chosen].digest, both.digest)


def test_a_single_manifest_may_be_for_a_lower_variant(tmp_path: Path) -> None:
    """Who asks for v3 can run what is built for every amd64; not the other way round."""
    assert str(resolved(tmp_path / "a", AMD, "linux/amd64/v3").digest) == AMD.digest
    newer = AMD.but(variant="v4")
    with pytest.raises(ImageNotFound, match="found: an image for linux/amd64/v4"):
        resolved(tmp_path / "b", newer, "linux/amd64/v3")


def test_an_index_may_name_what_is_not_there(tmp_path: Path) -> None:
    """Engines and mirrors keep the manifests of one platform only; the others fail for who asks for them."""
    layout = support.write_layout(tmp_path / "layout", {"1": support.Index((AMD, ARM))})
    (layout / "blobs/sha256" / ARM.digest.removeprefix("sha256:")).unlink()
    name = LayoutReference(layout, "1")
    assert str(resolve(name, source_digest(name, SOURCES), Platform(), SOURCES).digest) == AMD.digest
    with pytest.raises(ImageError):
        resolve(name, source_digest(name, SOURCES), Platform.parse("linux/arm64"), SOURCES)


def test_a_manifest_of_an_index_has_the_digest_that_names_it(tmp_path: Path) -> None:
    """Its bytes are held against the index's word, like those of the name itself."""
    layout = support.write_layout(tmp_path / "layout", {"1": support.Index((AMD,))})
    path = layout / "blobs/sha256" / AMD.digest.removeprefix("sha256:")
    path.write_bytes(path.read_bytes().replace(b"gzip", b"zstd"))
    name = LayoutReference(layout, "1")
    with pytest.raises(BlobMismatch, match="not what its digest says"):
        resolve(name, source_digest(name, SOURCES), Platform(), SOURCES)


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


class Looping:
    """A source whose one index names itself, which no honest digest can."""

    def __init__(self) -> None:
        entry = {"mediaType": OCI_INDEX, "digest": str(DIGEST), "size": 1000, "platform": AMD.platform}
        self.content = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode().ljust(1000)
        self.asked = 0

    def head(self, name: LayoutReference) -> Digest:
        return DIGEST

    def manifest(self, name: LayoutReference, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        self.asked += 1
        return self.content, DIGEST, OCI_INDEX

    def blob(self, name: LayoutReference, descriptor: Descriptor) -> Iterator[bytes]:
        raise AssertionError

    def local_blob(self, name: LayoutReference, descriptor: Descriptor) -> Path | None:
        return None

    def tags(self, name: LayoutReference) -> Iterator[str]:
        return iter(())


def test_an_index_that_names_itself_ends() -> None:
    """Whatever a source gives, the number of questions is bounded."""
    looping = Looping()
    sources = Sources(RegistrySource(), looping)
    with pytest.raises(InvalidManifest, match="nested more than 4 deep"):
        resolve(LayoutReference(Path("/x")), DIGEST, Platform(), sources)
    assert looping.asked == 5


@pytest.mark.parametrize(
    ("content_type", "said"),
    [(OCI_MANIFEST, OCI_INDEX), (OCI_INDEX, OCI_MANIFEST), ("application/json", OCI_INDEX)],
)
def test_what_an_index_says_of_a_manifest_is_held_against_it(content_type: str, said: str) -> None:
    """The manifest must be of the type that the index names, and of the one that the registry answers."""
    with ScriptableRegistry() as registry:
        entry = {"mediaType": said, "digest": AMD.digest, "size": len(AMD.document), "platform": AMD.platform}
        index = support.Index((AMD,), index={"manifests": [entry]})
        registry.put_manifest("org/name", None, AMD.document, content_type)
        registry.put_manifest("org/name", None, index.document, OCI_INDEX)
        name = parse_image(f"{registry.host}/org/name@{index.digest}")
        source = RegistrySource({}, default=RegistrySettings(insecure=True))
        sources = Sources(source, LayoutSource())
        with pytest.raises(InvalidManifest, match="media types contradict each other"):
            resolve(name, source_digest(name, sources), Platform(), sources)
        source.close()
