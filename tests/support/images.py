r"""Container images built byte by byte, without any tool.

Descriptions of files go in, layers, images and indexes come out as frozen values whose bytes and digests are the same
in every run with the same Python. `write_layout` puts them into an OCI layout on disk; `RegistryServer.push` into a
registry. Paths, sizes and types are written as given, so hostile images are as easy as good ones.

    base = layer(directory("etc"), file("etc/motd", "hello\n"), compression="zstd")
    first = Image((base,), entrypoint=("/bin/sh",))
    write_layout(tmp_path / "layout", {"1": first, "stable": first})
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, assert_never

import zstandard

__all__ = [
    "MEDIA_TYPES",
    "Compression",
    "Entry",
    "Image",
    "Index",
    "Layer",
    "device",
    "digest_of",
    "directory",
    "fifo",
    "file",
    "hardlink",
    "layer",
    "layer_of_tar",
    "opaque",
    "symlink",
    "whiteout",
    "write_layout",
]

MTIME = 1_700_000_000
Compression: TypeAlias = Literal["none", "gzip", "zstd"]
Kind: TypeAlias = Literal["oci", "docker"]

MEDIA_TYPES: dict[Kind, dict[str, str]] = {
    "oci": {
        "index": "application/vnd.oci.image.index.v1+json",
        "manifest": "application/vnd.oci.image.manifest.v1+json",
        "config": "application/vnd.oci.image.config.v1+json",
        "none": "application/vnd.oci.image.layer.v1.tar",
        "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
        "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    },
    "docker": {
        "index": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifest": "application/vnd.docker.distribution.manifest.v2+json",
        "config": "application/vnd.docker.container.image.v1+json",
        "none": "application/vnd.docker.image.rootfs.diff.tar",
        "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
    },
}


def digest_of(content: bytes) -> str:
    """`sha256:...` of these bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a layer's tar stream; the path is written as it stands, whatever it is."""

    path: str
    type: bytes = tarfile.REGTYPE
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = MTIME
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    def info(self) -> tarfile.TarInfo:
        """The entry as tarfile wants it."""
        info = tarfile.TarInfo(self.path)
        info.type = self.type
        info.size = len(self.content)
        info.mode, info.uid, info.gid, info.linkname = self.mode, self.uid, self.gid, self.link
        # tarfile writes a PAX record for every float, whole or not.
        info.mtime = int(self.mtime) if self.mtime == int(self.mtime) else self.mtime
        info.devmajor, info.devminor = self.device
        info.pax_headers = {
            f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in self.xattrs.items()
        }
        return info


def file(path: str, content: bytes | str = b"", mode: int = 0o644, **attributes: Any) -> Entry:
    """A regular file; `attributes` as in `Entry`: uid, gid, mtime, xattrs."""
    return Entry(path, content=content.encode() if isinstance(content, str) else content, mode=mode, **attributes)


def directory(path: str, mode: int = 0o755, **attributes: Any) -> Entry:
    """A directory."""
    return Entry(path, tarfile.DIRTYPE, mode=mode, **attributes)


def symlink(path: str, target: str, **attributes: Any) -> Entry:
    """A symbolic link."""
    return Entry(path, tarfile.SYMTYPE, mode=0o777, link=target, **attributes)


def hardlink(path: str, target: str, **attributes: Any) -> Entry:
    """A hard link to `target`, which is a path from the root of the image."""
    return Entry(path, tarfile.LNKTYPE, link=target, **attributes)


def device(path: str, major: int, minor: int, mode: int = 0o600, *, block: bool = False, **attributes: Any) -> Entry:
    """A character or block device."""
    kind = tarfile.BLKTYPE if block else tarfile.CHRTYPE
    return Entry(path, kind, mode=mode, device=(major, minor), **attributes)


def fifo(path: str, mode: int = 0o644, **attributes: Any) -> Entry:
    """A named pipe."""
    return Entry(path, tarfile.FIFOTYPE, mode=mode, **attributes)


def whiteout(path: str) -> Entry:
    """What hides `path` of the layers below (OCI image-spec, layer.md, "Whiteouts")."""
    parent, slash, name = path.rstrip("/").rpartition("/")
    return Entry(f"{parent}{slash}.wh.{name}", mode=0)


def opaque(path: str) -> Entry:
    """What hides everything that the layers below have in the directory `path`; "" is the root."""
    prefix = f"{path.rstrip('/')}/" if path else ""
    return Entry(f"{prefix}.wh..wh..opq", mode=0)


@dataclass(frozen=True)
class Layer:
    """A layer: its tar stream, and the blob that holds it."""

    tar: bytes
    blob: bytes
    compression: Compression

    @cached_property
    def diff_id(self) -> str:
        """Digest of the tar stream."""
        return digest_of(self.tar)

    @cached_property
    def digest(self) -> str:
        """Digest of the blob."""
        return digest_of(self.blob)


def layer(*entries: Entry, compression: Compression = "gzip", format: int = tarfile.PAX_FORMAT) -> Layer:  # noqa: A002
    """A layer with these entries in this order.

    Args:
        *entries: May be empty; several may have one path.
        compression: Of the blob.
        format: tarfile's USTAR_FORMAT, GNU_FORMAT or PAX_FORMAT.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format, errors="surrogateescape") as tar:
        for entry in entries:
            tar.addfile(entry.info(), io.BytesIO(entry.content))
    return layer_of_tar(stream.getvalue(), compression)


def layer_of_tar(tar: bytes, compression: Compression = "gzip") -> Layer:
    """A layer with this tar stream, be it valid or not."""
    match compression:
        case "none":
            blob = tar
        case "gzip":
            # zlib writes a header without time, name and operating system of this machine.
            compressor = zlib.compressobj(6, wbits=31)
            blob = compressor.compress(tar) + compressor.flush()
        case "zstd":
            blob = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(tar)
        case _:
            assert_never(compression)
    return Layer(tar, blob, compression)


@dataclass(frozen=True)
class Image:
    """An image for one platform.

    Attributes:
        layers: Bottom to top.
        config: Merged over the whole configuration document, to say what the other attributes can't.
        manifest: Merged over the manifest document.
    """

    layers: tuple[Layer, ...] = ()
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    architecture: str = "amd64"
    os: str = "linux"
    variant: str = ""
    created: str = "2023-11-14T22:13:20Z"
    kind: Kind = "oci"
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Image:
        """The same image with other attributes."""
        return replace(self, **changes)

    @cached_property
    def config_bytes(self) -> bytes:
        """The configuration document."""
        inner: dict[str, Any] = {
            "Cmd": list(self.cmd),
            "Entrypoint": list(self.entrypoint),
            "Env": list(self.env),
            "Labels": dict(self.labels),
            "User": self.user,
            "WorkingDir": self.workdir,
        }
        document: dict[str, Any] = {
            "created": self.created,
            **self.platform,
            "config": {key: value for key, value in inner.items() if value},
            "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in self.layers]},
            "history": [{"created": self.created, "created_by": "tests"} for _ in self.layers],
        }
        return _json({**document, **self.config})

    @cached_property
    def manifest_bytes(self) -> bytes:
        """The manifest document."""
        types = MEDIA_TYPES[self.kind]
        document = {
            "schemaVersion": 2,
            "mediaType": types["manifest"],
            "config": _descriptor(types["config"], self.config_bytes),
            "layers": [_descriptor(types[each.compression], each.blob) for each in self.layers],
        }
        return _json({**document, **self.manifest})

    @property
    def media_type(self) -> str:
        """Of the manifest."""
        return MEDIA_TYPES[self.kind]["manifest"]

    @property
    def platform(self) -> dict[str, str]:
        """As an index and a configuration say it."""
        platform = {"architecture": self.architecture, "os": self.os}
        return {**platform, "variant": self.variant} if self.variant else platform

    @property
    def document(self) -> bytes:
        """The manifest, as `Index.document` is the index."""
        return self.manifest_bytes

    @cached_property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest_of(self.manifest_bytes)

    def blobs(self) -> dict[str, bytes]:
        """Configuration and layers by digest."""
        return {digest_of(self.config_bytes): self.config_bytes} | {each.digest: each.blob for each in self.layers}

    def manifests(self) -> dict[str, tuple[str, bytes]]:
        """Media type and content of all manifests by digest, children first."""
        return {self.digest: (self.media_type, self.manifest_bytes)}


@dataclass(frozen=True)
class Index:
    """Images for several platforms under one name.

    Attributes:
        attestation: Add an entry such as BuildKit's, whose platform is unknown/unknown; it refers to the first image.
        index: Merged over the index document.
    """

    images: tuple[Image, ...]
    kind: Kind = "oci"
    attestation: bool = False
    index: Mapping[str, Any] = field(default_factory=dict)

    @property
    def media_type(self) -> str:
        """Of the index."""
        return MEDIA_TYPES[self.kind]["index"]

    @cached_property
    def document(self) -> bytes:
        """The index document."""
        entries = [{**_descriptor(i.media_type, i.manifest_bytes), "platform": i.platform} for i in self.images]
        if self.attestation:
            note = {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": self.images[0].digest,
            }
            entries.append(
                {
                    **_descriptor(self._attestation.media_type, self._attestation.manifest_bytes),
                    "platform": {"architecture": "unknown", "os": "unknown"},
                    "annotations": note,
                }
            )
        document = {"schemaVersion": 2, "mediaType": self.media_type, "manifests": entries}
        return _json({**document, **self.index})

    @cached_property
    def digest(self) -> str:
        """The index's digest."""
        return digest_of(self.document)

    @cached_property
    def _attestation(self) -> Image:
        return Image((layer(file("attestation.json", "{}")),), architecture="unknown", os="unknown")

    def blobs(self) -> dict[str, bytes]:
        """Configurations and layers of all images by digest."""
        images = (*self.images, self._attestation) if self.attestation else self.images
        return {digest: content for each in images for digest, content in each.blobs().items()}

    def manifests(self) -> dict[str, tuple[str, bytes]]:
        """Media type and content of all manifests by digest, children first."""
        images = (*self.images, self._attestation) if self.attestation else self.images
        children = {digest: document for each in images for digest, document in each.manifests().items()}
        return {**children, self.digest: (self.media_type, self.document)}


def write_layout(directory: Path, tags: Mapping[str, Image | Index]) -> Path:
    """Write an OCI layout, or add tags to one and move the tags that it has (OCI image-spec, image-layout.md).

    Blobs that are there already are left alone, so a test may damage one and add a tag.

    Returns:
        The directory.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    index_path = directory / "index.json"
    entries = json.loads(index_path.read_bytes())["manifests"] if index_path.exists() else []
    name = "org.opencontainers.image.ref.name"
    for tag, image in tags.items():
        documents = {digest: content for digest, (_, content) in image.manifests().items()}
        for digest, content in {**image.blobs(), **documents}.items():
            path = blobs / digest.removeprefix("sha256:")
            if not path.exists():
                path.write_bytes(content)
        entries = [entry for entry in entries if entry.get("annotations", {}).get(name) != tag]
        entries.append({**_descriptor(image.media_type, image.document), "annotations": {name: tag}})
    document = {"schemaVersion": 2, "mediaType": MEDIA_TYPES["oci"]["index"], "manifests": entries}
    index_path.write_bytes(_json(document))
    return directory


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
