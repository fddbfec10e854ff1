"""Manifests, indexes and image configurations as values.

Bytes from a registry or layout go in, frozen values come out, or `InvalidManifest`. Follows the OCI image-spec 1.1
(manifest.md, image-index.md, config.md) and Docker's image manifest version 2, schema 2. What the specification leaves
open and readers have disagreed about is refused: duplicate keys, both `layers` and `manifests`, a media type that
contradicts the transport's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvmfs_sync.document import MAX_DOCUMENT, field_of, list_of, parse_object
from cvmfs_sync.errors import BlobMismatch, InvalidManifest, InvalidReference
from cvmfs_sync.reference import ArtifactReference, Digest, ImageName, Platform

__all__ = [
    "ACCEPT",
    "MAX_DOCUMENT",
    "Descriptor",
    "ImageConfig",
    "Index",
    "IndexEntry",
    "Manifest",
    "ResolvedArtifact",
    "ResolvedImage",
    "parse_artifact",
    "parse_config",
    "parse_document",
    "verify",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
# The digest that a registry answers depends on this list: it is sent whole and in this order with every request.
ACCEPT = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
_INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
_MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

CONFIG_TYPES = frozenset({"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"})
# Layer media types without their compression suffix, and what may follow; the compression itself is told by the blob's
# first bytes. Anything else behind them, such as "+encrypted", is not for us.
_LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_LAYER_TYPE = re.compile(f"({'|'.join(map(re.escape, _LAYER_TYPES))})([+.](gzip|zstd|zstd:chunked))?\\Z")
MAX_LAYERS = 1024
MAX_SIZE = (1 << 63) - 1  # bytes of a blob: the specification's sizes are int64
_ATTESTATION = "vnd.docker.reference.type"
# The second is what Singularity 3.0 wrote, misspelt as it is.
_SIF = "application/vnd.sylabs.sif.layer.v1.sif"
_SIF_TYPES = frozenset({_SIF, "appliciation/vnd.sylabs.sif.layer.tar"})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob by digest and size in bytes (OCI image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()

    @property
    def foreign(self) -> bool:
        """Whether it is a layer that a registry need not keep, since it is to be had elsewhere."""
        return bool(self.urls) and ("nondistributable" in self.media_type or "foreign" in self.media_type)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One manifest that an index offers; `platform` is None where the index names none."""

    descriptor: Descriptor
    platform: Platform | None
    attestation: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """An OCI image index or Docker manifest list."""

    digest: Digest
    entries: tuple[IndexEntry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """An OCI image manifest or Docker schema 2 manifest; layers bottom to top."""

    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image configuration says about running it (OCI image-spec, config.md).

    Attributes:
        diff_ids: Digests of the uncompressed layers, bottom to top.
        environment: `NAME=value` in order.
    """

    digest: Digest
    platform: Platform
    diff_ids: tuple[Digest, ...]
    environment: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = ""
    user: str = ""
    created: str | None = None


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What a name means now, down to the last byte.

    Attributes:
        source_digest: What the registry answers for the name itself: an index's digest where the name is an index's.
        manifest: The platform's manifest. Its digest is the image's identity.
    """

    name: ImageName
    source_digest: Digest
    manifest: Manifest
    config: ImageConfig

    @property
    def digest(self) -> Digest:
        """The platform manifest's digest."""
        return self.manifest.digest

    @property
    def compressed_size(self) -> int:
        """Bytes of all layers as they are transferred."""
        return sum(layer.size for layer in self.manifest.layers)


@dataclass(frozen=True, slots=True)
class ResolvedArtifact:
    """What a name of a SIF file means now.

    Attributes:
        source_digest: What the registry answers for the name itself.
        digest: The artifact manifest's.
        sif: The file.
    """

    name: ArtifactReference
    source_digest: Digest
    digest: Digest
    sif: Descriptor


def verify(content: bytes, digest: Digest, what: str) -> bytes:
    """Return `content` if it has this digest.

    Raises:
        BlobMismatch: If not.
    """
    found = hashlib.new(digest.algorithm, content).hexdigest()
    if found != digest.hex:
        raise BlobMismatch(
            f"{what} is not what its digest says", found=f"{digest.algorithm}:{found}", expected=str(digest)
        )
    return content


def parse_document(content: bytes, digest: Digest, media_type: str | None, what: str) -> Index | Manifest:
    """Read a manifest or index whose digest has been verified.

    Args:
        content: The document.
        digest: Its digest.
        media_type: The transport's Content-Type or the descriptor's mediaType; parameters are ignored.
        what: Name for messages.

    Raises:
        InvalidManifest: See the module.
    """
    document, kind = _document(content, media_type, what)
    return _index(document, digest, what) if kind in _INDEX_TYPES else _manifest(document, digest, what)


def parse_artifact(content: bytes, digest: Digest, media_type: str | None, what: str) -> Index | Descriptor:
    """Read the manifest of a SIF artifact, or an index of such, whose digest has been verified.

    The configuration means nothing and is not looked at: tools write types of their own, or empty ones.

    Args:
        content: The document.
        digest: Its digest.
        media_type: As for `parse_document`.
        what: Name for messages.

    Returns:
        The SIF file's descriptor, or the index.

    Raises:
        InvalidManifest: See the module; or it is no artifact that holds one SIF file and nothing else.
    """
    document, kind = _document(content, media_type, what)
    if kind in _INDEX_TYPES:
        return _index(document, digest, what)
    config = _descriptor(field_of(document, "config", dict, what), what)
    layers = [_descriptor(item, what) for item in list_of(document, "layers", dict, what)]
    if len(layers) == 1 and layers[0].media_type in _SIF_TYPES:
        return layers[0]
    image = config.media_type in CONFIG_TYPES
    types = ", ".join(sorted({layer.media_type[:200] for layer in layers})[:3])
    raise InvalidManifest(
        f"{what}: {'a container image' if image else 'an artifact'}, not a SIF file",
        found=f"{len(layers)} layers of type {types}" if layers else "no layers",
        expected=f"one of {_SIF}",
        todo="name it without 'oras://'" if image else "have the SIF file pushed by 'apptainer push FILE oras://...'",
    )


def _document(content: bytes, media_type: str | None, what: str) -> tuple[Mapping[str, Any], str]:
    """A manifest's or index's fields, and which of the two it is, by media type."""
    document = parse_object(content, what)
    outer = (media_type or "").partition(";")[0].strip().lower()
    inner = field_of(document, "mediaType", str, what, default="")
    known = _INDEX_TYPES | _MANIFEST_TYPES
    if inner and outer in known and inner != outer:
        raise InvalidManifest(f"{what}: media types contradict each other", found=inner, expected=outer)
    kind = inner or (outer if outer in known else "")
    if document.get("schemaVersion") != 2:
        raise InvalidManifest(
            f"{what}: manifest of an unsupported version",
            found=f"schemaVersion {document.get('schemaVersion')!r}",
            expected="2",
            todo="push the image again with a current tool",
        )
    if "manifests" in document and ("layers" in document or "config" in document):
        raise InvalidManifest(f"{what}: both an index and a manifest", expected="either 'manifests' or 'layers'")
    if not kind:
        kind = OCI_INDEX if "manifests" in document else OCI_MANIFEST
    if kind in known:
        return document, kind
    raise InvalidManifest(
        f"{what}: not a container image", found=f"media type {kind[:200]}", expected=", ".join(ACCEPT)
    )


def parse_config(content: bytes, manifest: Manifest, what: str) -> ImageConfig:
    """Read the image configuration of `manifest`, whose digest has been verified.

    Raises:
        InvalidManifest: If a field has the wrong type or the number of diff_ids is not the number of layers.
    """
    document = parse_object(content, what)
    rootfs = field_of(document, "rootfs", dict, what)
    if rootfs.get("type") != "layers":
        raise InvalidManifest(f"{what}: rootfs.type", found=repr(rootfs.get("type"))[:100], expected="'layers'")
    diff_ids = tuple(_digest(text, f"{what}: rootfs.diff_ids") for text in list_of(rootfs, "diff_ids", str, what))
    if len(diff_ids) != len(manifest.layers):
        raise InvalidManifest(
            f"{what}: configuration and manifest disagree",
            found=f"{len(diff_ids)} diff_ids",
            expected=f"{len(manifest.layers)}, one for each layer",
        )
    inner = field_of(document, "config", dict, what, default={})
    labels = field_of(inner, "Labels", dict, what, default={})
    if not all(isinstance(value, str) for value in labels.values()):
        raise InvalidManifest(f"{what}: config.Labels", found="a value that is no text", expected="text to text")
    entrypoint, command = inner.get("Entrypoint"), inner.get("Cmd")
    return ImageConfig(
        digest=manifest.config.digest,
        platform=_platform(document, what) or Platform(),
        diff_ids=diff_ids,
        environment=list_of(inner, "Env", str, what),
        # Old builders wrote a bare string for what is a list.
        entrypoint=(entrypoint,) if isinstance(entrypoint, str) else list_of(inner, "Entrypoint", str, what),
        command=(command,) if isinstance(command, str) else list_of(inner, "Cmd", str, what),
        labels=labels,
        working_directory=field_of(inner, "WorkingDir", str, what, default=""),
        user=field_of(inner, "User", str, what, default=""),
        created=field_of(document, "created", str, what, default="") or None,
    )


def _index(document: Mapping[str, Any], digest: Digest, what: str) -> Index:
    entries = []
    for item in list_of(document, "manifests", dict, what):
        annotations = field_of(item, "annotations", dict, what, default={})
        platform = field_of(item, "platform", dict, what, default={})
        attestation = _ATTESTATION in annotations or platform.get("os") == "unknown"
        entries.append(
            IndexEntry(
                _descriptor(item, what),
                None if attestation or not platform else _platform(platform, what),
                attestation,
            )
        )
    return Index(digest, tuple(entries))


def _manifest(document: Mapping[str, Any], digest: Digest, what: str) -> Manifest:
    if not isinstance(document.get("layers"), list):
        raise InvalidManifest(f"{what}: manifest without layers", expected="a list 'layers'")
    config = _descriptor(field_of(document, "config", dict, what), what)
    if config.media_type not in CONFIG_TYPES:
        sif = any(layer.get("mediaType") in _SIF_TYPES for layer in list_of(document, "layers", dict, what))
        raise InvalidManifest(
            f"{what}: an artifact, not a container image",
            found=f"config of type {config.media_type[:200]}",
            expected=" or ".join(sorted(CONFIG_TYPES)),
            todo="write 'oras://' before the name: it is a SIF file" if sif else None,
        )
    layers = tuple(_descriptor(item, what) for item in list_of(document, "layers", dict, what))
    if len(layers) > MAX_LAYERS:
        raise InvalidManifest(f"{what}: too many layers", found=str(len(layers)), expected=f"at most {MAX_LAYERS}")
    for layer in layers:
        if not _LAYER_TYPE.match(layer.media_type):
            raise InvalidManifest(
                f"{what}: layer {layer.digest} is not a file system layer that can be read",
                found=layer.media_type[:200],
                expected=f"{' or '.join(_LAYER_TYPES)}, as it is or with gzip or zstd",
            )
    return Manifest(digest, config, layers)


def _descriptor(item: Mapping[str, Any], what: str) -> Descriptor:
    size = field_of(item, "size", int, what)
    if not 0 <= size <= MAX_SIZE:
        wrong = "negative size" if size < 0 else "size beyond 64 bits"
        raise InvalidManifest(f"{what}: {wrong}", found=str(size)[:100], expected=f"at most {MAX_SIZE}")
    return Descriptor(
        field_of(item, "mediaType", str, what),
        _digest(item.get("digest"), f"{what}: descriptor"),
        size,
        list_of(item, "urls", str, what),
    )


def _platform(item: Mapping[str, Any], what: str) -> Platform | None:
    os_name = field_of(item, "os", str, what, default="")
    architecture = field_of(item, "architecture", str, what, default="")
    if not os_name or not architecture:
        return None
    return Platform(os_name, architecture, field_of(item, "variant", str, what, default="") or None)


def _digest(text: object, what: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidReference as error:
        raise InvalidManifest(f"{what}: {error.what}", found=error.found, expected=error.expected) from None
