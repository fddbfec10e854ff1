"""SIF files in registries: resolved and fetched, and not published yet."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, InvalidManifest
from cvmfs_sync.image import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, parse_artifact, parse_document
from cvmfs_sync.ports import Silent
from cvmfs_sync.reference import ArtifactReference, Digest, Platform, parse_image
from cvmfs_sync.registry import LayoutSource, RegistrySettings, RegistrySource
from cvmfs_sync.resolve import Sources, resolve, resolve_artifact, source_digest
from cvmfs_sync.spool import Spool
from tests import support
from tests.support.site import Site

SIF = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\0\x02\0" + bytes(range(256)) * 8000
SIF_LAYER = "application/vnd.sylabs.sif.layer.v1.sif"
SIF_CONFIG = "application/vnd.sylabs.sif.config.v1+json"
DIGEST = Digest("sha256", "0" * 64)


def descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    """As a manifest has it."""
    return {"mediaType": media_type, "digest": support.digest_of(content), "size": len(content)}


def manifest(content: bytes = SIF, **changes: Any) -> dict[str, Any]:
    """What `apptainer push` makes, with other fields; None removes one."""
    title = {"org.opencontainers.image.title": "x.sif"}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(SIF_CONFIG, b"{}"),
        "layers": [{**descriptor(SIF_LAYER, content), "annotations": title}],
        **changes,
    }
    return {key: value for key, value in document.items() if value is not None}


def push(registry: support.RegistryServer, repository: str, tag: str, content: bytes = SIF, **changes: Any) -> str:
    """Push a SIF file; returns its name."""
    for blob in (content, b"{}"):
        registry.push_blob(repository, support.digest_of(blob), blob)
    registry.put_manifest(repository, tag, OCI_MANIFEST, json.dumps(manifest(content, **changes)).encode())
    return f"oras://{registry.reference(repository, tag)}"


def read(document: object, media_type: str | None = OCI_MANIFEST) -> Index | Descriptor:
    """Parse a document as an artifact's."""
    return parse_artifact(json.dumps(document).encode(), DIGEST, media_type, "oras://reg/x:1")


@pytest.mark.parametrize(
    "config_type",
    [
        SIF_CONFIG, "application/vnd.oci.empty.v1+json", "application/vnd.unknown.config.v1+json",
        "application/vnd.oci.image.config.v1+json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer_type", [SIF_LAYER, "appliciation/vnd.sylabs.sif.layer.tar"])
def test_one_sif_file_is_an_artifact(config_type: str, layer_type: str) -> None:
    """Tools write configurations of many types, and Singularity 3.0 misspelt the file's; none of it matters."""
    document = manifest(config=descriptor(config_type, b"{}"), layers=[descriptor(layer_type, SIF)])
    found = read(document)
    assert isinstance(found, Descriptor)
    assert (str(found.digest), found.size) == (support.digest_of(SIF), len(SIF))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (manifest(layers=[]), "an artifact, not a SIF file; found: no layers"),
        (manifest(layers=None), "an artifact, not a SIF file"),
        (manifest(layers=[descriptor(SIF_LAYER, SIF)] * 2), "found: 2 layers of type application/vnd.sylabs"),
        (manifest(layers=[descriptor("text/plain", b"")]), "found: 1 layers of type text/plain"),
        (json.loads(support.Image((support.layer(),)).manifest_bytes), "a container image, not a SIF file"),
        (manifest(config=None), "'config'"),
        (manifest(schemaVersion=1), "schemaVersion 1"),
        (manifest(manifests=[]), "both an index and a manifest"),
        (manifest(mediaType="application/vnd.docker.distribution.manifest.v2+json"), "contradict"),
        (manifest(layers=[{**descriptor(SIF_LAYER, SIF), "size": -1}]), "negative size"),
        (manifest(layers=[{**descriptor(SIF_LAYER, SIF), "digest": "../x"}]), "not a digest"),
    ],
)
def test_other_artifacts_are_refused(document: object, words: str) -> None:
    """With what they are; a container image says to leave the prefix out."""
    with pytest.raises(InvalidManifest) as caught:
        read(document)
    assert words in str(caught.value)
    assert "oras://reg/x:1" in caught.value.what


def test_an_index_of_sif_files_is_read() -> None:
    """Tools may push one file for each platform."""
    entry = {**descriptor(OCI_MANIFEST, b"x"), "platform": {"os": "linux", "architecture": "arm64"}}
    found = read({"schemaVersion": 2, "manifests": [entry]}, OCI_INDEX)
    assert isinstance(found, Index)
    assert [entry.platform for entry in found.entries] == [Platform("linux", "arm64")]


def test_a_sif_file_without_its_prefix_says_how_to_name_it() -> None:
    """Who leaves `oras://` out is told; other artifacts are not."""
    with pytest.raises(InvalidManifest, match=r"an artifact, .*write 'oras://' before the name"):
        parse_document(json.dumps(manifest()).encode(), DIGEST, OCI_MANIFEST, "x")


def test_a_sif_file_arrives_verified_in_the_spool(tmp_path: Path, docker_registry: support.RegistryServer) -> None:
    """From a real registry: digest by HEAD, manifest, file; a damaged one does not arrive."""
    name = parse_image(push(docker_registry, "sif/spool", "1"))
    assert isinstance(name, ArtifactReference)
    registry = RegistrySource({}, default=RegistrySettings(insecure=True))
    sources = Sources(registry, LayoutSource())
    digest = source_digest(name, sources)
    found = resolve_artifact(name, digest, Platform(), sources)
    assert (found.source_digest, found.digest, found.sif.size) == (digest, digest, len(SIF))
    assert Spool(tmp_path / "spool").get(name, found.sif, sources, Silent()).read_bytes() == SIF
    assert list(sources.tags(name)) == ["1"]
    with pytest.raises(ImageError, match="a SIF file, which is there but can't be published yet") as caught:
        resolve(name, digest, Platform(), sources)
    assert caught.value.found == f"{support.digest_of(SIF)}, {len(SIF)} bytes"
    pinned = parse_image(f"oras://{docker_registry.host}/sif/spool@{digest}")
    assert source_digest(pinned, Sources(RegistrySource(), LayoutSource())) == digest
    missing = parse_image(f"oras://{docker_registry.host}/sif/spool:2")
    with pytest.raises(ImageNotFound):
        source_digest(missing, sources)
    data = docker_registry.blob_path(support.digest_of(SIF))
    data.write_bytes(SIF[:-1] + b"!")
    with pytest.raises(BlobMismatch):
        Spool(tmp_path / "other").get(name, found.sif, sources, Silent())
    data.write_bytes(SIF)
    registry.close()


def test_the_file_of_a_platform_is_chosen(docker_registry: support.RegistryServer) -> None:
    """An index of SIF files is entered like one of images."""
    entries = []
    for architecture in ("amd64", "arm64"):
        content = SIF + architecture.encode()
        push(docker_registry, "sif/index", architecture, content)
        document = json.dumps(manifest(content)).encode()
        platform = {"os": "linux", "architecture": architecture}
        entries.append({**descriptor(OCI_MANIFEST, document), "platform": platform})
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    docker_registry.put_manifest("sif/index", "1", OCI_INDEX, index)
    name = parse_image(f"oras://{docker_registry.host}/sif/index:1")
    assert isinstance(name, ArtifactReference)
    registry = RegistrySource({}, default=RegistrySettings(insecure=True))
    sources = Sources(registry, LayoutSource())
    for architecture in ("amd64", "arm64"):
        found = resolve_artifact(name, source_digest(name, sources), Platform("linux", architecture), sources)
        assert str(found.sif.digest) == support.digest_of(SIF + architecture.encode())
        assert str(found.source_digest) == support.digest_of(index)
    with pytest.raises(ImageNotFound, match="not available for linux/riscv64"):
        resolve_artifact(name, source_digest(name, sources), Platform("linux", "riscv64"), sources)
    registry.close()


def test_unpack_fetches_the_file(tmp_path: Path, docker_registry: support.RegistryServer) -> None:
    """DEST becomes the SIF file, executable as Apptainer makes it; what is there is never replaced."""
    name = push(docker_registry, "sif/unpack", "1")
    target = tmp_path / "made" / "x.sif"
    support.run_cli("unpack", "--insecure", name, target).ok()
    assert target.read_bytes() == SIF
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert list(target.parent.iterdir()) == [target]
    assert "is there already" in support.run_cli("unpack", "--insecure", name, target).ok(2).stderr
    assert "is there already" in support.run_cli("unpack", "--insecure", name, tmp_path).ok(2).stderr
    result = support.run_cli("unpack", "--insecure", "--sandbox", name, tmp_path / "y").ok(2)
    assert "leave out '--sandbox'" in result.stderr
    result = support.run_cli("squash", "--insecure", name, "-o", tmp_path / "y").ok(1)
    assert "a SIF file, which is there but can't be published yet" in result.stderr
    image = docker_registry.push("sif/image", "1", support.Image((support.layer(),)))
    result = support.run_cli("unpack", "--insecure", f"oras://{image}", tmp_path / "z" / "y").ok(1)
    assert "a container image, not a SIF file" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_what_is_no_sif_file_is_not_left_behind(tmp_path: Path, docker_registry: support.RegistryServer) -> None:
    """The manifest's word alone makes no SIF file."""
    name = push(docker_registry, "sif/fake", "1", b"#!/bin/sh\n" * 10)
    result = support.run_cli("unpack", "--insecure", name, tmp_path / "x.sif").ok(1)
    assert "not a SIF file, although its registry says so" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_check_and_sync_tell_that_it_is_not_published_yet(
    tmp_path: Path, docker_registry: support.RegistryServer
) -> None:
    """`check` warns with the line; `check --online` and `sync` tell digest and size, and the others go on."""
    name = push(docker_registry, "sif/list", "1")
    image = docker_registry.push("sif/other", "1", support.Image((support.layer(support.file("a", "1")),)))
    site = Site(tmp_path, insecure=(docker_registry.host,))
    site.wish(name, image)
    result = support.run_cli("check", tmp_path / "image-list.yaml").ok()
    assert "image-list.yaml:4: images.0: names a SIF file" in result.stdout
    assert "not be published yet" in result.stdout
    told = f"{support.digest_of(SIF)}, {len(SIF)} bytes"
    result = support.run_cli("check", "--online", "--config", site.config, tmp_path / "image-list.yaml").ok(1)
    assert told in result.stderr + result.stdout
    for command in ("plan", "sync"):
        result = site.run(command, rc=1)
        assert told in result.stderr + result.stdout
        assert "can't be published yet" in result.stderr + result.stdout
    assert site.run("where", image).stdout.strip() == str(tmp_path / "published" / image)
    assert site.run("where", name).stdout.strip() == name
    (status,) = site.run("status", "--json", name).json["images"]
    assert (status["state"], status["link"]) == ("failed", name.replace("oras://", "oras/"))
