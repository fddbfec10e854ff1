"""Container images byte by byte: descriptions of files go in, an OCI image layout on disk comes out.

No tool is needed, and the same files make the same digests in every run. A real site gets its images from a registry;
for cvmfs-sync a layout is one more place to find them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "ARCHITECTURE",
    "Entry",
    "Image",
    "Layer",
    "file",
    "hardlink",
    "layer",
    "opaque",
    "symlink",
    "tag",
    "whiteout",
]

_CREATED = "2023-11-14T22:13:20Z"
_MTIME = 1_700_000_000  # the same moment
_MEDIA_TYPE = "application/vnd.oci.image.{}"
_REF_NAME = "org.opencontainers.image.ref.name"
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}
ARCHITECTURE = _GO_NAMES.get(os.uname().machine, os.uname().machine)
"""This machine's, with Go's name for it, which is what images use."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a layer's tar stream."""

    path: str
    type: bytes = tarfile.REGTYPE
    content: bytes = b""
    mode: int = 0o644
    target: str = ""


def file(path: str, content: str | bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, content=content.encode() if isinstance(content, str) else content, mode=mode)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, tarfile.SYMTYPE, mode=0o777, target=target)


def hardlink(path: str, target: str) -> Entry:
    """A second name of the file `target`, which is a path from the root of the image."""
    return Entry(path, tarfile.LNKTYPE, target=target)


def whiteout(path: str) -> Entry:
    """What removes `path` of the layers below (OCI image-spec, layer.md, "Whiteouts")."""
    parent, _, name = path.rpartition("/")
    return Entry(f"{parent}/.wh.{name}")


def opaque(path: str) -> Entry:
    """What removes all that the layers below have in the directory `path`."""
    return Entry(f"{path}/.wh..wh..opq")


@dataclass(frozen=True)
class Layer:
    """A layer: its tar stream, and the compressed blob that holds it."""

    tar: bytes
    blob: bytes


def layer(entries: Iterable[Entry]) -> Layer:
    """A layer with these entries, sorted, and the directories above them."""
    by_path = {entry.path: entry for entry in entries}
    for path in list(by_path):
        for parent in [str(each) for each in PurePosixPath(path).parents][:-1]:
            by_path.setdefault(parent, Entry(parent, tarfile.DIRTYPE, mode=0o755))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        # A hard link comes after the file that it names.
        for entry in sorted(by_path.values(), key=lambda each: (each.type == tarfile.LNKTYPE, each.path)):
            tar.addfile(_tar_info(entry), io.BytesIO(entry.content))
    content = stream.getvalue()
    # Unlike the module gzip, zlib writes no time into the header.
    compressor = zlib.compressobj(1, wbits=31)
    return Layer(content, compressor.compress(content) + compressor.flush())


def _tar_info(entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(entry.path)
    info.type, info.mode, info.linkname = entry.type, entry.mode, entry.target
    info.size, info.mtime = len(entry.content), _MTIME
    return info


@dataclass(frozen=True)
class Image:
    """An image for this machine; layers from bottom to top."""

    layers: tuple[Layer, ...]
    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]
    labels: Mapping[str, str]

    @cached_property
    def config(self) -> bytes:
        """The configuration document (OCI image-spec, config.md)."""
        return _json(
            {
                "created": _CREATED,
                "os": "linux",
                "architecture": ARCHITECTURE,
                "config": {
                    "Env": [f"{name}={value}" for name, value in self.environment.items()],
                    "Entrypoint": list(self.entrypoint),
                    "Labels": dict(self.labels),
                },
                "rootfs": {"type": "layers", "diff_ids": [_digest(each.tar) for each in self.layers]},
            }
        )

    @cached_property
    def manifest(self) -> bytes:
        """The manifest document (OCI image-spec, manifest.md)."""
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": _MEDIA_TYPE.format("manifest.v1+json"),
                "config": _descriptor("config.v1+json", self.config),
                "layers": [_descriptor("layer.v1.tar+gzip", each.blob) for each in self.layers],
            }
        )

    @property
    def digest(self) -> str:
        """What the image is called for ever, whatever its tag means later."""
        return _digest(self.manifest)


def tag(layout: Path, name: str, image: Image) -> None:
    """Write an image into an OCI layout, made if it is not there, and let this tag mean it (image-layout.md)."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for content in (image.manifest, image.config, *(each.blob for each in image.layers)):
        blob = blobs / _digest(content).removeprefix("sha256:")
        if not blob.exists():
            blob.write_bytes(content)
    (layout / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    index = layout / "index.json"
    known = json.loads(index.read_bytes())["manifests"] if index.exists() else []
    others = [each for each in known if each["annotations"][_REF_NAME] != name]
    entry = {**_descriptor("manifest.v1+json", image.manifest), "annotations": {_REF_NAME: name}}
    index.write_bytes(_json({"schemaVersion": 2, "manifests": [*others, entry]}))


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": _MEDIA_TYPE.format(kind), "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
