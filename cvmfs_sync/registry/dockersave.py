"""What `docker save` writes: a tar archive with images, read in place.

An open file goes in; the images' tags, manifests that we make of them, and the blobs' bytes come out. Both forms are
read by their `manifest.json`: the old one with `<id>/layer.tar`, whose layers may be links to one another, and the one
of Docker 25 and of BuildKit, with `blobs/`. Nothing is unpacked: members are found by name, read by position, and a
link leads to another member or nowhere.

An archive has no manifest that a digest names, so one is made: the same bytes for the same configuration and layers,
always. A layer that is not compressed is named by its diff_id, so that it need not be read to be named; whether it is
what its name says is seen when it is fetched, as with every source.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cvmfs_sync.document import MAX_DOCUMENT, parse_json
from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, InvalidImage, InvalidManifest, LimitExceeded
from cvmfs_sync.image import DOCKER_MANIFEST, Descriptor, Manifest, parse_config, verify
from cvmfs_sync.reference import Digest
from cvmfs_sync.tar import Entry, Kind, Limits, Reader

__all__ = ["DockerSave", "OpenFile"]

PIECE = 1 << 20
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"
_COMPRESSED = {b"\x1f\x8b": ".gzip", b"\x28\xb5\x2f\xfd": ".zstd"}
_MAX_MEMBERS = 100_000
_MAX_IMAGES = 10_000
_MAX_LINKS = 8
_NAMED_BY_DIGEST = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?\Z")


class OpenFile:
    """A regular file that is read by position, by several threads at once; closed when nobody has it any more."""

    def __init__(self, descriptor: int, what: str) -> None:
        """Take over a file descriptor; `what` is the file's name for messages."""
        self._descriptor = descriptor
        self._what = what
        self._close = weakref.finalize(self, os.close, descriptor)
        self.stamp = stamp(os.fstat(descriptor))

    def read(self, start: int, count: int) -> bytes:
        """So many bytes, fewer only at the end of the file.

        Raises:
            ImageError: They can't be read.
        """
        try:
            return os.pread(self._descriptor, count, start)
        except OSError as error:
            raise ImageError(f"{self._what} can't be read", found=error.strerror) from error

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """All bytes from `start` on."""
        while piece := self.read(start, PIECE):
            start += len(piece)
            yield piece

    def require_unchanged(self) -> None:
        """Refuse what was read of a file that somebody has written to meanwhile.

        Raises:
            BlobMismatch: Size or time of the file are not what they were.
        """
        if stamp(os.fstat(self._descriptor)) != self.stamp:
            raise changed(self._what)


def stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    """What changes when a file is written to or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def changed(what: str) -> BlobMismatch:
    """The error for a file that is not what it was."""
    return BlobMismatch(
        f"{what} was changed while it was read",
        todo="write it under another name and rename it when it is whole; the next cycle tries again",
    )


@dataclass(frozen=True, slots=True)
class _Image:
    """One item of `manifest.json`."""

    config: str
    names: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """Its names without their repositories."""
        return tuple(name.rpartition(":")[2] for name in self.names if "/" not in name.rpartition(":")[2])


class DockerSave:
    """An archive. Safe for threads."""

    def __init__(self, file: OpenFile, what: str) -> None:
        """Look at all headers, and read `manifest.json`.

        Args:
            file: The archive, not compressed.
            what: Its name for messages.

        Raises:
            BlobMismatch: The file was changed meanwhile.
            InvalidImage: It is no tar archive that can be read.
            ImageError: It is not what `docker save` writes.
        """
        self.file = file
        self._what = what
        self._members: dict[bytes, Entry] = {}
        self._repeated: set[bytes] = set()
        self._lock = threading.Lock()
        self._manifests: dict[_Image, bytes] = {}
        self._blobs: dict[Digest, Entry] = {}
        try:
            self._scan()
        except InvalidImage as error:
            file.require_unchanged()
            if self._members:
                raise
            raise ImageError(
                f"{what}: not a tar archive",
                found=error.what.removeprefix(f"{what}: "),
                todo="name a file that 'docker save' has written",
            ) from error
        self._images = self._read_images()
        file.require_unchanged()

    def tags(self) -> Iterator[str]:
        """All tags, each once."""
        yield from dict.fromkeys(tag for image in self._images for tag in image.tags)

    def manifest(self, tag: str | None) -> tuple[bytes, Digest, str]:
        """The manifest made of an image, its digest and its media type.

        Args:
            tag: Of which image; the only one if None.

        Raises:
            ImageNotFound: No image has this tag.
            ImageError: Several have, or one of its parts is missing, or is none.
        """
        image = self._find(tag)
        with self._lock:
            if image not in self._manifests:
                self._manifests[image] = self._make_manifest(image)
                self.file.require_unchanged()
            content = self._manifests[image]
        return content, _sha256(content), DOCKER_MANIFEST

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob that a manifest made here names, in pieces.

        Raises:
            BlobMismatch: The file was changed, by now or while it was read.
            InvalidImage: The archive is cut off.
        """
        member = self._blobs.get(descriptor.digest)
        if member is None:
            raise changed(self._what)
        try:
            yield from self._content(member)
        except InvalidImage:
            self.file.require_unchanged()
            raise
        self.file.require_unchanged()

    def has(self, digest: Digest) -> bool:
        """Whether the archive has the content of this digest, by its name."""
        names = (f"blobs/{digest.algorithm}/{digest.hex}", f"{digest.hex}.json")
        return any(name.encode() in self._members for name in names) or any(
            image.config.removesuffix(".json").endswith(digest.hex) for image in self._images
        )

    def _scan(self) -> None:
        for entry in Reader(self.file.pieces(), Limits(), what=self._what):
            if entry.kind not in (Kind.FILE, Kind.SYMLINK, Kind.HARDLINK):
                continue
            if entry.path in self._members:
                self._repeated.add(entry.path)
            self._members[entry.path] = entry
            if len(self._members) > _MAX_MEMBERS:
                raise LimitExceeded(
                    f"{self._what}: not an archive of images",
                    found=f"more than {_MAX_MEMBERS} members",
                    todo="name an archive that 'docker save' has written, not one that 'docker export' has",
                )

    def _read_images(self) -> tuple[_Image, ...]:
        if b"manifest.json" not in self._members:
            layout = b"oci-layout" in self._members or b"index.json" in self._members
            raise ImageError(
                f"{self._what}: no manifest.json in the archive",
                found="an OCI archive" if layout else f"{len(self._members)} other members",
                expected="what 'docker save' of Docker 1.10 or a later one writes",
                todo="unpack it with tar into a directory, and name that with oci:DIR" if layout else "save it again",
            )
        what = f"{self._what}: manifest.json"
        items = parse_json(self._document("manifest.json"), what)
        if not isinstance(items, list) or len(items) > _MAX_IMAGES:
            raise InvalidManifest(what, found=type(items).__name__, expected=f"a list of at most {_MAX_IMAGES} images")
        return tuple(dict.fromkeys(_image(item, what) for item in items))

    def _find(self, tag: str | None) -> _Image:
        found = [image for image in self._images if tag is None or tag in image.tags]
        if len(found) == 1:
            return found[0]
        tags = ", ".join(sorted(self.tags()))[:500] or "no tags"
        if not self._images:
            raise ImageNotFound(f"{self._what}: the archive holds no image", todo="save an image into it")
        if not found:
            raise ImageNotFound(f"{self._what}: no image in the archive has this tag", found=tags)
        if tag is None:
            raise ImageError(
                f"{self._what}: several images in the archive, and no tag is named", found=tags,
                todo="name one of them: docker-archive:FILE:TAG",
            )  # fmt: skip
        raise ImageError(
            f"{self._what}: several images in the archive have this tag",
            found=", ".join(name for image in found for name in image.names if name.endswith(f":{tag}"))[:500],
            todo="save each of them into an archive of its own",
        )

    def _make_manifest(self, image: _Image) -> bytes:
        content = self._document(image.config)
        digest = _sha256(content)
        if named := _NAMED_BY_DIGEST.match(image.config):
            verify(content, Digest("sha256", named[1]), f"{self._what}: {image.config}")
        config = Descriptor(_CONFIG_TYPE, digest, len(content))
        members = [self._member(path) for path in image.layers]
        sizes = tuple(Descriptor(_LAYER_TYPE, digest, member.size) for member in members)
        diff_ids = parse_config(content, Manifest(digest, config, sizes), self._what).diff_ids
        layers = tuple(map(self._layer, image.layers, members, diff_ids))
        self._blobs[digest] = self._member(image.config)
        self._blobs.update(zip((layer.digest for layer in layers), members, strict=True))
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": _fields(config),
            "layers": [_fields(layer) for layer in layers],
        }
        return json.dumps(document, separators=(",", ":")).encode()

    def _layer(self, path: str, member: Entry, diff_id: Digest) -> Descriptor:
        """A layer by its diff_id, or, if it is compressed, by the digest of what is there."""
        start = next(self._content(member), b"")
        suffix = next((suffix for magic, suffix in _COMPRESSED.items() if start.startswith(magic)), None)
        if suffix is None:
            return Descriptor(_LAYER_TYPE, diff_id, member.size)
        if named := _NAMED_BY_DIGEST.match(posixpath.normpath(path)):
            digest = Digest("sha256", named[1])
        else:
            found = hashlib.sha256()
            for piece in self._content(member):
                found.update(piece)
            digest = Digest("sha256", found.hexdigest())
        return Descriptor(_LAYER_TYPE + suffix, digest, member.size)

    def _document(self, path: str) -> bytes:
        member = self._member(path)
        if member.size > MAX_DOCUMENT:
            raise InvalidManifest(
                f"{self._what}: {path[:200]} is too large", found=f"{member.size} bytes",
                expected=f"at most {MAX_DOCUMENT}",
            )  # fmt: skip
        return b"".join(self._content(member))

    def _member(self, path: str) -> Entry:
        """The regular member at a path, links followed inside the archive."""
        at = path
        for _ in range(_MAX_LINKS):
            key = os.fsencode(posixpath.normpath(at))
            entry = self._members.get(key)
            if entry is None:
                raise ImageError(
                    f"{self._what}: {_shown(path)} is missing in the archive",
                    found=None if at == path else f"a link to {_shown(at)}",
                    todo="save the image again",
                )
            if key in self._repeated:
                raise ImageError(f"{self._what}: {_shown(at)} stands twice in the archive", todo="save the image again")
            if entry.kind is Kind.FILE and entry.sparse is None:
                return entry
            if entry.kind is Kind.FILE:
                raise ImageError(f"{self._what}: {_shown(at)} is a sparse file", todo="save the image again")
            link = os.fsdecode(entry.link)
            at = link if entry.kind is Kind.HARDLINK else posixpath.join(posixpath.dirname(os.fsdecode(key)), link)
        raise ImageError(f"{self._what}: {_shown(path)} is a link without end", todo="save the image again")

    def _content(self, member: Entry) -> Iterator[bytes]:
        """A member's bytes, read from its header on."""
        reader = Reader(self.file.pieces(member.offset), Limits(), what=self._what)
        if next(iter(reader), None) is None:
            raise changed(self._what)
        for piece in reader.content():
            yield bytes(piece)


def _image(item: Any, what: str) -> _Image:
    if not isinstance(item, dict):
        raise InvalidManifest(what, found=f"a list with {type(item).__name__}", expected="a list of objects")
    config, names, layers = item.get("Config"), item.get("RepoTags") or [], item.get("Layers") or []
    if not isinstance(config, str):
        raise InvalidManifest(f"{what}: field 'Config'", found=type(config).__name__, expected="a member's name")
    for key, values in (("RepoTags", names), ("Layers", layers)):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InvalidManifest(f"{what}: field {key!r}", found=repr(values)[:200], expected="a list of text")
    return _Image(config, tuple(names), tuple(layers))


def _fields(descriptor: Descriptor) -> dict[str, str | int]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


def _sha256(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())


def _shown(path: str) -> str:
    return repr(path)[:300]
