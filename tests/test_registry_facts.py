"""What registries do to a polling client, from the wire to the resolved image: names, tag lists, documents.

Polling, rate limits, tokens, redirects and downloads are in the other `test_registry_*`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard

from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, InvalidManifest
from cvmfs_sync.image import ACCEPT, MAX_DOCUMENT, ResolvedImage
from cvmfs_sync.reference import Digest, Platform, Reference
from cvmfs_sync.registry import LayoutSource, RegistrySettings, RegistrySource, Timing
from cvmfs_sync.registry.endpoints import Endpoints
from cvmfs_sync.resolve import Sources, resolve
from cvmfs_sync.tags import Globs, select
from tests.fakes.scriptable_registry import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    FakeImage,
    ScriptableRegistry,
    sha256,
    to_json,
)
from tests.support.pulling import Nobody

TAR = bytes(10240)
ZERO = "sha256:" + "0" * 64


@pytest.fixture
def source() -> Iterator[RegistrySource]:
    """A client for plain HTTP that does not wait."""
    client = RegistrySource(
        default=RegistrySettings(insecure=True), credentials=Nobody(), timing=Timing(sleep=lambda _: None)
    )
    yield client
    client.close()


def resolved(source: RegistrySource, registry: ScriptableRegistry, platform: str = "linux/amd64") -> ResolvedImage:
    """What `org/tool:1` is, asked for as a cycle asks."""
    name = Reference.parse(f"{registry.host}/org/tool:1")
    return resolve(name, source.head(name), Platform.parse(platform), Sources(source, LayoutSource()))


def changed(image: FakeImage, **changes: Any) -> bytes:
    """The image's manifest with other fields; None takes one out."""
    document = json.loads(image.manifest) | changes
    return to_json({key: value for key, value in document.items() if value is not None})


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "debian:12",
        "library/debian:12",
        "docker.io/debian:12",
        "docker.io/library/debian:12",
        "index.docker.io/library/debian:12",
        "registry.hub.docker.com/library/debian:12",
        "registry-1.docker.io/library/debian:12",
    ],
)
def test_docker_hub_has_many_names(text: str) -> None:
    """All of them are one registry and one repository, asked at one host."""
    name = Reference.parse(text)
    endpoint = Endpoints({}, RegistrySettings()).itself(name.registry)
    assert endpoint.manifest(name) == "https://registry-1.docker.io/v2/library/debian/manifests/12"
    assert endpoint.target(name).registry == "docker.io"


# --- polling ----------------------------------------------------------------------------------------------------------


def test_every_question_has_the_same_accept_list(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Tag and digest, HEAD and GET, index and manifest are asked for with one list: the answer depends on it."""
    image = registry.add_image("org/tool", None, [TAR])
    registry.add_index("org/tool", "1", {"linux/amd64": image})
    assert str(resolved(source, registry).digest) == image.digest
    asked = [request for request in registry.requests if "/manifests/" in request.path]
    assert [request.method for request in asked] == ["HEAD", "GET", "GET"]
    assert {request.headers["accept"] for request in asked} == {", ".join(ACCEPT)}


def test_schema_1_is_refused(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """What an old registry sends to those who ask for nothing better is no image of ours."""
    old = {"schemaVersion": 1, "name": "org/tool", "tag": "1", "fsLayers": [{"blobSum": ZERO}], "history": []}
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    registry.put_manifest("org/tool", "1", to_json(old), kind)
    with pytest.raises(InvalidManifest, match="unsupported version; found: schemaVersion 1"):
        resolved(source, registry)


# --- tag lists --------------------------------------------------------------------------------------------------------


def test_ten_thousand_tags_in_pages(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A repository with 10,000 tags is listed by relative links, whatever size of page the registry prefers."""
    for number in range(10_000):
        registry.manifests["org/tool", f"v{number:05}"] = b"{}", OCI_MANIFEST
    registry.page_size = 333
    name = Reference.parse(f"{registry.host}/org/tool:1")
    assert list(source.tags(name)) == [f"v{number:05}" for number in range(10_000)]
    assert len(registry.requests) == 31
    assert {request.host for request in registry.requests} == {registry.host}


def test_signatures_are_no_images(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A `*` takes no signature, attestation or bill of materials that is tagged beside the images."""
    for tag in ("1", "2", *(f"sha256-{'0' * 64}{end}" for end in ("", ".sig", ".att", ".sbom"))):
        registry.put_manifest("org/tool", tag, b"{}")
    name = Reference.parse(f"{registry.host}/org/tool:1")
    assert sorted(select(source.tags(name), Globs.parse(["*"]))) == ["1", "2"]


# --- documents --------------------------------------------------------------------------------------------------------


def layer_with(**changes: Any) -> dict[str, Any]:
    """One layer, as a manifest has it."""
    return {"layers": [{"mediaType": OCI_LAYER, "digest": ZERO, "size": 1} | changes]}


TWICE = b'{"schemaVersion": 2, "schemaVersion": 2}'
BROKEN: dict[str, tuple[Any, str, str]] = {
    "both an index and a manifest": ({"manifests": []}, OCI_MANIFEST, "both an index and a manifest"),
    "another type than Content-Type": ({}, OCI_INDEX, "media types contradict each other"),
    "another type, with a parameter": ({}, f"{DOCKER_MANIFEST}; charset=utf-8", "media types contradict each other"),
    "a negative size": (layer_with(size=-1), OCI_MANIFEST, "negative size"),
    "a path for a digest": (layer_with(digest="sha256:../../../../etc/passwd"), OCI_MANIFEST, "digest"),
    "a short digest": (layer_with(digest=ZERO[:-1]), OCI_MANIFEST, "digest"),
    "capitals": (layer_with(digest=f"sha256:{'A' * 64}"), OCI_MANIFEST, "digest"),
    "another algorithm": (layer_with(digest=f"md5:{'0' * 32}"), OCI_MANIFEST, "digest"),
    "a key that stands twice": (TWICE, OCI_MANIFEST, "a key stands twice"),
    "over 4 MiB": (b" " * (MAX_DOCUMENT + 1), OCI_MANIFEST, "too large"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_documents_that_are_refused(source: RegistrySource, registry: ScriptableRegistry, case: str) -> None:
    """What readers have disagreed about, or what becomes a path, is refused before anything is downloaded."""
    changes, content_type, words = BROKEN[case]
    image = registry.add_image("org/tool", "1", [TAR])
    content = changes if isinstance(changes, bytes) else changed(image, **changes)
    registry.put_manifest("org/tool", "1", content, content_type)
    with pytest.raises(InvalidManifest, match=words):
        resolved(source, registry)
    assert not any("/blobs/" in request.path for request in registry.requests)


@pytest.mark.parametrize("content_type", [f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST.upper(), "application/json"])
def test_parameters_of_a_content_type_are_ignored(
    source: RegistrySource, registry: ScriptableRegistry, content_type: str
) -> None:
    """A charset, capitals or no particular type at all contradict nothing."""
    image = registry.add_image("org/tool", "1", [TAR])
    registry.put_manifest("org/tool", "1", image.manifest, content_type)
    assert str(resolved(source, registry).digest) == image.digest


def test_another_body_than_its_digest(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A body whose digest is not the one that HEAD named is refused."""
    registry.add_image("org/tool", "1", [TAR])
    registry.corrupt("/manifests/")
    with pytest.raises(BlobMismatch, match="not what its digest says"):
        resolved(source, registry)


def test_another_configuration_than_its_digest(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A configuration whose digest is not the manifest's is refused."""
    registry.add_image("org/tool", "1", [TAR])
    registry.corrupt("/blobs/")
    with pytest.raises(ImageError, match=r"not what its digest says|damaged"):
        resolved(source, registry)


def test_indexes_nest_and_have_attestations(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """An entry may be an index, have no platform, or be an attestation, told by platform or annotation: no image."""
    image = registry.add_image("org/tool", None, [TAR])
    other = registry.add_image("org/tool", None, [TAR], config={"comment": "an attestation"})

    def entry(of: FakeImage, **more: Any) -> dict[str, Any]:
        return {"mediaType": of.media_type, "digest": of.digest, "size": len(of.manifest), **more}

    unknown = {"os": "unknown", "architecture": "unknown"}
    amd64 = {"os": "linux", "architecture": "amd64"}
    entries = [
        entry(other, platform=unknown),
        entry(other, platform=amd64, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
    ]
    for found in (entry(image, platform=amd64), entry(image)):
        inner = to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, found]})
        digest = registry.put_manifest("org/tool", None, inner, OCI_INDEX)
        nested = {"mediaType": OCI_INDEX, "digest": digest, "size": len(inner)}
        outer = to_json({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [*entries, nested]})
        registry.put_manifest("org/tool", "1", outer, DOCKER_LIST)
        assert str(resolved(source, registry).digest) == image.digest
    with pytest.raises(ImageNotFound, match="not available for linux/arm64"):
        resolved(source, registry, "linux/arm64")


@pytest.mark.parametrize("docker", [False, True])
def test_layers_of_all_kinds(source: RegistrySource, registry: ScriptableRegistry, *, docker: bool) -> None:
    """Uncompressed, gzip and zstd layers are an image, and come as they are stored."""
    layers = [TAR, gzip.compress(TAR), zstandard.compress(TAR)][: 2 if docker else 3]
    diff_ids = [sha256(TAR)] * len(layers)
    image = registry.add_image("org/tool", "1", layers, diff_ids=diff_ids, docker=docker)
    found = resolved(source, registry)
    assert str(found.digest) == image.digest
    assert [str(digest) for digest in found.config.diff_ids] == diff_ids
    assert [b"".join(source.blob(found.name, layer)) for layer in found.manifest.layers] == layers  # type: ignore[arg-type]


def test_diff_ids_belong_to_layers(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A configuration with another number of diff_ids than the manifest has layers is refused."""
    registry.add_image("org/tool", "1", [TAR], diff_ids=[ZERO, ZERO])
    with pytest.raises(InvalidManifest, match="2 diff_ids; expected: 1"):
        resolved(source, registry)


def test_a_head_names_what_is_fetched(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """What is fetched is what the HEAD named, also if the tag moves meanwhile."""
    image = registry.add_image("org/tool", "1", [TAR])
    registry.before("/blobs/|/manifests/sha256", lambda: registry.add_image("org/tool", "1", [TAR, TAR]))
    found = resolved(source, registry)
    assert (str(found.source_digest), found.digest) == (image.digest, Digest.parse(image.digest))
