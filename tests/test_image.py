"""Manifests, indexes and configurations: what is read, and every kind that is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cvmfs_sync.errors import BlobMismatch, InvalidManifest
from cvmfs_sync.image import ACCEPT, Index, Manifest, parse_config, parse_document, verify
from cvmfs_sync.reference import Digest, Platform
from tests import support

IMAGE = support.Image(
    (support.layer(support.file("a", "1")), support.layer(support.file("b", "2"), compression="zstd")),
    env=("A=1", "B=x=y"), entrypoint=("/bin/sh", "-c"), cmd=("true",), labels={"l": "v"}, workdir="/w", user="u",
)  # fmt: skip
DIGEST = Digest.parse(IMAGE.digest)
OCI_INDEX, OCI_MANIFEST, _, DOCKER_MANIFEST = ACCEPT


def read(document: object, media_type: str | None = OCI_MANIFEST) -> Index | Manifest:
    """Parse a document, given as bytes or as what JSON makes of it."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_document(content, DIGEST, media_type, "reg/x:1")


def manifest(**changes: Any) -> dict[str, Any]:
    """The image's manifest with other fields; None removes one."""
    document = {**json.loads(IMAGE.manifest_bytes), **changes}
    return {key: value for key, value in document.items() if value is not None}


def layer(**changes: Any) -> dict[str, Any]:
    """A manifest whose one layer has other fields."""
    return manifest(layers=[{**json.loads(IMAGE.manifest_bytes)["layers"][0], **changes}])


@pytest.mark.parametrize("kind", ["oci", "docker"])
@pytest.mark.parametrize("media_type", ["right", None, "text/plain; charset=utf-8", "parameters"])
def test_manifests_of_both_kinds_are_read(kind: Any, media_type: str | None) -> None:
    """OCI and Docker manifests, under their own media type, with parameters, or none that says anything."""
    image = IMAGE.but(kind=kind)
    if media_type == "right":
        media_type = image.media_type
    elif media_type == "parameters":
        media_type = f"{image.media_type.upper()}; charset=utf-8"
    document = parse_document(image.manifest_bytes, DIGEST, media_type, "x")
    assert isinstance(document, Manifest)
    assert [str(each.digest) for each in document.layers] == [each.digest for each in image.layers]
    config = parse_config(image.config_bytes, document, "x")
    assert config.environment == ("A=1", "B=x=y")
    assert (config.entrypoint, config.command) == (("/bin/sh", "-c"), ("true",))
    assert (config.working_directory, config.user, config.labels) == ("/w", "u", {"l": "v"})
    assert [str(each) for each in config.diff_ids] == [each.diff_id for each in image.layers]
    assert config.platform == Platform()


def test_indexes_are_read_and_attestations_are_marked() -> None:
    """An index's entries have their platforms; BuildKit's attestation is none of them."""
    index = support.Index((IMAGE, IMAGE.but(architecture="arm64", variant="v8")), attestation=True)
    document = read(index.document, OCI_INDEX)
    assert isinstance(document, Index)
    assert [(str(e.platform), e.attestation) for e in document.entries] == [
        ("linux/amd64", False),
        ("linux/arm64/v8", False),
        ("None", True),
    ]


@pytest.mark.parametrize(
    ("entry", "platform", "attestation"),
    [
        ({}, None, False),
        ({"platform": None}, None, False),
        ({"platform": {}}, None, False),
        ({"platform": {"architecture": "amd64"}}, None, False),
        ({"platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}, "linux/arm/v7", False),
        ({"platform": {"os": "linux", "architecture": "amd64", "variant": ""}}, "linux/amd64", False),
        (
            {"platform": {"os": "windows", "architecture": "amd64", "os.version": "10.0.1", "os.features": ["x"]}},
            "windows/amd64", False,
        ),
        ({"platform": {"os": "linux", "architecture": "amd64", "os.version": 7, "features": 7}}, "linux/amd64", False),
        ({"platform": {"os": "unknown", "architecture": "unknown"}}, None, True),
        ({"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}, None, True),
        (
            {
                "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
                "platform": {"os": "linux", "architecture": "amd64"},
            },
            None, True,
        ),
        ({"annotations": None, "urls": None, "data": "aGVsbG8=", "artifactType": "x"}, None, False),
    ],
)  # fmt: skip
def test_entries_of_an_index(entry: dict[str, Any], platform: str | None, attestation: bool) -> None:
    """With and without a platform; what only Windows has is not looked at; attestations are told by either mark."""
    fields = {"mediaType": OCI_MANIFEST, "digest": str(DIGEST), "size": 1}
    document = read({"schemaVersion": 2, "manifests": [{**fields, **entry}]}, OCI_INDEX)
    assert isinstance(document, Index)
    (found,) = document.entries
    assert (str(found.platform) if found.platform else None, found.attestation) == (platform, attestation)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"size": -1}, "negative size"),
        ({"size": None}, "'size'"),
        ({"digest": "sha256:../../etc/passwd"}, "not a digest"),
        ({"digest": f"sha512:{DIGEST.hex}"}, "not a digest"),
        ({"digest": f"{DIGEST}\n"}, "not a digest"),
        ({"digest": None}, "not a digest"),
        ({"mediaType": None}, "'mediaType'"),
        ({"platform": []}, "'platform'"),
        ({"platform": {"os": 7}}, "'os'"),
        ({"platform": {"os": "linux", "architecture": "arm", "variant": 7}}, "'variant'"),
        ({"annotations": []}, "'annotations'"),
    ],
)
def test_entries_that_break_the_specification_are_refused(entry: dict[str, Any], words: str) -> None:
    """Also those of platforms that nobody asked for: an index is right or wrong for everybody."""
    fields = {"mediaType": OCI_MANIFEST, "digest": str(DIGEST), "size": 1}
    with pytest.raises(InvalidManifest) as caught:
        read({"schemaVersion": 2, "manifests": [{**fields, **entry}]}, OCI_INDEX)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", [Index, Manifest])
@pytest.mark.parametrize(
    ("content_type", "right"),
    [
        ("{}", True),
        ("{}; charset=utf-8", True),
        (" {} ;charset=utf-8; x=y", True),
        ("{upper}", True),
        ("application/json", True),
        ("", True),
        ("{other}", False),
        ("{other}; charset=utf-8", False),
    ],
)
def test_what_the_transport_says_is_held_against_the_document(kind: type, content_type: str, right: bool) -> None:
    """A type of images that is not the document's is refused, whatever its parameters; any other says nothing."""
    document = IMAGE.manifest_bytes if kind is Manifest else support.Index((IMAGE,)).document
    own, other = (OCI_MANIFEST, OCI_INDEX) if kind is Manifest else (OCI_INDEX, OCI_MANIFEST)
    media_type = content_type.replace("{}", own).replace("{upper}", own.upper()).replace("{other}", other)
    if right:
        assert isinstance(read(document, media_type), kind)
    else:
        with pytest.raises(InvalidManifest, match="media types contradict each other"):
            read(document, media_type)


def test_sha512_is_as_good_as_sha256() -> None:
    """The specification registers both: descriptors, diff_ids and the document's own digest may be either."""
    layers = [{**each, "digest": f"sha512:{DIGEST.hex * 2}"} for each in json.loads(IMAGE.manifest_bytes)["layers"]]
    document = read(manifest(layers=layers))
    assert isinstance(document, Manifest)
    assert [each.digest.algorithm for each in document.layers] == ["sha512", "sha512"]
    content = b"content"
    right = Digest("sha512", hashlib.sha512(content).hexdigest())
    assert verify(content, right, "x") == content
    with pytest.raises(BlobMismatch):
        verify(content + b"!", right, "x")


def test_a_layer_of_estargz_is_an_ordinary_one() -> None:
    """Its table of contents is an entry of the tar stream and an annotation, neither of which means anything here."""
    annotations = {"containerd.io/snapshot/stargz/toc.digest": str(DIGEST)}
    assert isinstance(read(layer(annotations=annotations)), Manifest)


def test_an_index_without_a_media_type_is_told_by_its_form() -> None:
    """The OCI specification lets `mediaType` be left out."""
    assert isinstance(read({"schemaVersion": 2, "manifests": []}, None), Index)


@pytest.mark.parametrize(
    "suffix", ["", "+gzip", "+zstd", "+zstd:chunked", ".gzip", ".zstd"]
)  # fmt: skip
def test_layers_of_all_compressions_are_read(suffix: str) -> None:
    """What the media type says of the compression is taken as it is: the blob tells."""
    for base in ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"):
        assert isinstance(read(layer(mediaType=base + suffix)), Manifest)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (json.dumps(manifest()).encode("utf-16"), "not JSON"),
        (b"\xef\xbb\xbf" + IMAGE.manifest_bytes, "not JSON"),
        (IMAGE.manifest_bytes[:-1] + b',"x":"\\ud800"}', "not JSON"),
        (b'{"size": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"schemaVersion": 2, "schemaVersion": 2}', "twice"),
        (IMAGE.manifest_bytes[:-1] + b',"x":{"y":1,"y":2}}', "twice"),
        (b" " * (4 * 1024 * 1024 + 1), "too large"),
        (manifest(schemaVersion=1), "schemaVersion 1"),
        (manifest(schemaVersion="2"), "schemaVersion '2'"),
        (manifest(schemaVersion=None), "schemaVersion None"),
        (manifest(manifests=[]), "both an index and a manifest"),
        (manifest(mediaType=DOCKER_MANIFEST), "contradict"),
        (manifest(mediaType=OCI_INDEX), "contradict"),
        (manifest(mediaType="text/html"), "contradict"),
        (manifest(mediaType=7), "'mediaType'"),
        (manifest(layers=None), "without layers"),
        (manifest(layers={}), "without layers"),
        (manifest(layers=[7]), "'layers'"),
        (manifest(layers=json.loads(IMAGE.manifest_bytes)["layers"] * 600), "too many layers"),
        (manifest(config=None), "'config'"),
        (manifest(config={"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": str(DIGEST), "size": 1}),
         "an artifact, not a container image"),
        (layer(size=-1), "negative size"),
        (layer(size=1 << 63), "size beyond 64 bits"),
        (layer(size=10**400), "size beyond 64 bits"),
        (layer(size="1"), "'size'"),
        (layer(size=True), "'size'"),
        (layer(size=1.5), "'size'"),
        (layer(size=None), "'size'"),
        (layer(digest="sha256:../../etc/passwd"), "not a digest"),
        (layer(digest=DIGEST.hex), "not a digest"),
        (layer(digest=7), "not a digest"),
        (layer(mediaType="application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "that can be read"),
        (layer(mediaType="application/vnd.oci.image.layer.v1.squashfs"), "that can be read"),
        (layer(mediaType=None), "'mediaType'"),
        (layer(urls=[1]), "'urls'"),
    ],
)  # fmt: skip
def test_manifests_that_break_the_specification_are_refused(document: object, words: str) -> None:
    """Each ends its image with a message that names the image and the part, and never with anything else."""
    with pytest.raises(InvalidManifest) as caught:
        read(document)
    assert words in str(caught.value)
    assert "reg/x:1" in caught.value.what
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rootfs": None}, "'rootfs'"),
        ({"rootfs": {"type": "x", "diff_ids": []}}, "rootfs.type"),
        ({"rootfs": {"type": "layers", "diff_ids": []}}, "0 diff_ids"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha256:x", "sha256:y"]}}, "not a digest"),
        ({"config": []}, "'config'"),
        ({"config": {"Env": "A=1"}}, "'Env'"),
        ({"config": {"Env": [1]}}, "'Env'"),
        ({"config": {"Labels": {"a": 1}}}, "Labels"),
        ({"config": {"Cmd": {}}}, "'Cmd'"),
        ({"os": 7}, "'os'"),
        ({"rootfs": {"type": "layers", "diff_ids": [str(DIGEST)] * 3}}, "3 diff_ids; expected: 2, one for each layer"),
        ({"rootfs": {"type": "layers", "diff_ids": [str(DIGEST), None]}}, "'diff_ids'; found: a list with NoneType"),
        ({"rootfs": {"type": "layers", "diff_ids": str(DIGEST)}}, "'diff_ids'"),
    ],
)
def test_configurations_that_break_the_specification_are_refused(changes: dict[str, Any], words: str) -> None:
    """Wrong types, and layers and diff_ids that do not correspond."""
    image = IMAGE.but(config=changes)
    with pytest.raises(InvalidManifest) as caught:
        parse_config(image.config_bytes, _manifest(image), "reg/x:1")
    assert words in str(caught.value)


def test_configurations_of_old_builders_are_read() -> None:
    """Null for empty lists, a bare string for a command, no platform and no configuration at all."""
    image = IMAGE.but(config={"config": {"Env": None, "Cmd": "run me", "Labels": None}, "os": "", "created": None})
    config = parse_config(image.config_bytes, _manifest(image), "x")
    assert (config.environment, config.command, config.labels, config.created) == ((), ("run me",), {}, None)
    assert config.platform == Platform()
    assert parse_config(IMAGE.but(config={"config": None}).config_bytes, _manifest(IMAGE), "x").command == ()


def test_content_with_another_digest_is_refused() -> None:
    """Nothing is read before its digest is known to be right."""
    content = b"content"
    right = Digest.parse(support.digest_of(content))
    assert verify(content, right, "x") == content
    with pytest.raises(BlobMismatch, match="not what its digest says"):
        verify(content + b"!", right, "x")


def _manifest(image: support.Image) -> Manifest:
    document = parse_document(image.manifest_bytes, DIGEST, None, "x")
    assert isinstance(document, Manifest)
    return document


def test_a_document_of_another_kind_is_no_image() -> None:
    """A media type that no image has is named in the message."""
    with pytest.raises(InvalidManifest, match="not a container image; found: media type text/html"):
        read(manifest(mediaType="text/html"), None)


def test_half_a_character_in_a_configuration_is_refused() -> None:
    """It could be written to no file, and the whole image would fail there."""
    content = IMAGE.config_bytes.replace(b'"A=1"', b'"A=\\ud800"')
    with pytest.raises(InvalidManifest, match="not JSON"):
        parse_config(content, _manifest(IMAGE), "x")
    whole = IMAGE.config_bytes.replace(b'"A=1"', b'"A=\\ud83d\\ude00"')
    assert parse_config(whole, _manifest(IMAGE), "x").environment[0] == "A=\U0001f600"
