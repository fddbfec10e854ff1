"""An OCI image layout on disk as a `Source` (OCI image-spec 1.1, image-layout.md).

`oci:DIR[:tag]` goes in; digests, verified manifests and the blobs' files come out. The tag is the annotation
`org.opencontainers.image.ref.name` in `index.json`. Below DIR only regular files in real directories are read, so that
a layout from elsewhere cannot name other files of this machine. Nothing is written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, InvalidManifest
from cvmfs_sync.image import MAX_DOCUMENT, OCI_INDEX, Descriptor, Index, parse_document, verify
from cvmfs_sync.reference import DEFAULT_TAG, Digest, LayoutReference, Reference

__all__ = ["LayoutSource"]

VERSION = "1.0.0"
REF_NAME = "org.opencontainers.image.ref.name"
PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    tag: str | None
    descriptor: Descriptor


class LayoutSource:
    """`Source[LayoutReference]`. Safe for threads: it has no state, and `index.json` is read at each question."""

    def head(self, name: LayoutReference) -> Digest:
        """The digest that `index.json` gives for the tag: an index's where an index is tagged.

        Raises:
            ImageNotFound: If the layout is there and the tag is not.
            ImageError: If this is no layout, or it can't be read.
        """
        return self._find(name).digest

    def manifest(self, name: LayoutReference, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        """Content, digest and, where `index.json` has it, media type of what `name` means, or of `digest` beside it.

        Raises:
            ImageNotFound: If the layout is there and the tag is not.
            BlobMismatch: If the content has another digest.
            InvalidManifest: If it is larger than 4 MiB.
            ImageError: If a file is missing or can't be read.
        """
        media_type: str | None = None
        if digest is None:
            descriptor = self._find(name)
            digest, media_type = descriptor.digest, descriptor.media_type
        content = _read(name, *_blob_parts(digest))
        return verify(content, digest, f"{name}: blob"), digest, media_type

    def blob(self, name: LayoutReference, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes in pieces of up to 1 MiB.

        Raises:
            BlobMismatch: If the file has another size.
            ImageError: If it is missing or can't be read.
        """
        with self._open_blob(name, descriptor) as file:
            while True:
                try:
                    piece = file.read(PIECE)
                except OSError as error:
                    raise _unreadable(name, _blob_parts(descriptor.digest), error) from None
                if not piece:
                    return
                yield piece

    def local_blob(self, name: LayoutReference, descriptor: Descriptor) -> Path:
        """The blob's file.

        Raises:
            BlobMismatch: If it has another size.
            ImageError: If it is missing or can't be read.
        """
        self._open_blob(name, descriptor).close()
        return name.directory.joinpath(*_blob_parts(descriptor.digest))

    def tags(self, name: LayoutReference | Reference) -> Iterator[str]:
        """The tags in `index.json`, each once.

        Raises:
            ImageError: If this is no layout, or it can't be read.
        """
        if not isinstance(name, LayoutReference):
            raise ImageError(f"{name} is not an OCI layout", expected="oci:DIR")
        yield from dict.fromkeys(entry.tag for entry in _entries(name) if entry.tag is not None)

    def _find(self, name: LayoutReference) -> Descriptor:
        entries = _entries(name)
        if name.tag is not None:
            found = [entry for entry in entries if entry.tag == name.tag]
        elif len(entries) == 1:
            found = entries
        else:
            found = [entry for entry in entries if entry.tag == DEFAULT_TAG]
        tags = ", ".join(sorted({entry.tag for entry in entries if entry.tag is not None}))[:500] or "no tags"
        match {entry.descriptor for entry in found}:
            case matching if len(matching) == 1:
                return matching.pop()
            case matching if matching:
                raise InvalidManifest(
                    f"{name}: {len(matching)} manifests have this tag",
                    expected="one, which is an image index where there are several platforms",
                    todo="write the layout again",
                )
        raise ImageNotFound(
            f"{name}: " + ("no such tag in the layout" if name.tag else "several images, none tagged 'latest'")
            if entries
            else f"{name}: the layout holds no image",
            found=tags,
            todo=f"name one of the tags: oci:{name.directory}:TAG" if entries else "copy an image into it",
        )

    def _open_blob(self, name: LayoutReference, descriptor: Descriptor) -> BinaryIO:
        file = _open(name, *_blob_parts(descriptor.digest))
        size = os.fstat(file.fileno()).st_size
        if size != descriptor.size:
            file.close()
            raise BlobMismatch(
                f"{name}: blob {descriptor.digest} has another size",
                found=f"{size} bytes",
                expected=f"{descriptor.size} bytes",
                todo="copy the image into the layout again",
            )
        return file


def _blob_parts(digest: Digest) -> tuple[str, str, str]:
    return "blobs", digest.algorithm, digest.hex


def _entries(name: LayoutReference) -> list[_Entry]:
    """What `index.json` offers, without attestations."""
    _check_version(name)
    content = _read(name, "index.json")
    what = f"{name}: index.json"
    digest = Digest("sha256", hashlib.sha256(content).hexdigest())
    index = parse_document(content, digest, OCI_INDEX, what)
    if not isinstance(index, Index):
        raise InvalidManifest(f"{what}: a manifest", expected="an index")
    # `Index` has no annotations, which mean nothing but here; the document has been found well-formed.
    names = [(item.get("annotations") or {}).get(REF_NAME) for item in json.loads(content).get("manifests") or []]
    return [
        _Entry(tag if isinstance(tag, str) else None, entry.descriptor)
        for tag, entry in zip(names, index.entries, strict=True)
        if not entry.attestation
    ]


def _check_version(name: LayoutReference) -> None:
    try:
        document = json.loads(_read(name, "oci-layout"))
        version = document["imageLayoutVersion"]
    except (ValueError, RecursionError, KeyError, TypeError):
        version = None
    if version != VERSION:
        raise ImageError(
            f"{name}: not an OCI layout that we know",
            found=f"imageLayoutVersion {version!r}"[:200],
            expected=f"{VERSION!r} in the file oci-layout",
            todo="write it with a current tool, for example 'skopeo copy ... oci:DIR:TAG'",
        )


def _read(name: LayoutReference, *parts: str) -> bytes:
    with _open(name, *parts) as file:
        try:
            content = file.read(MAX_DOCUMENT + 1)
        except OSError as error:
            raise _unreadable(name, parts, error) from None
    if len(content) > MAX_DOCUMENT:
        raise InvalidManifest(f"{name}: {'/'.join(parts)} is too large", expected=f"at most {MAX_DOCUMENT} bytes")
    return content


def _open(name: LayoutReference, *parts: str) -> BinaryIO:
    """Open a regular file below the layout, following no symbolic link but in the layout's own path.

    Raises:
        ImageError: If there is none, or it can't be read.
    """
    descriptor = -1
    try:
        descriptor = os.open(name.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for depth, part in enumerate(parts, 1):
            # Without O_NONBLOCK, opening a named pipe would wait for its writer.
            kind = os.O_DIRECTORY if depth < len(parts) else os.O_NONBLOCK
            parent = descriptor
            descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=parent)
            os.close(parent)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        raise OSError(errno.EINVAL, "not a regular file")
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise _unreadable(name, parts, error) from None


def _unreadable(name: LayoutReference, parts: tuple[str, ...], error: OSError) -> ImageError:
    path = name.directory.joinpath(*parts)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR if not name.directory.is_dir():
            found, todo = "no such directory", "check the path after 'oci:'"
        case errno.ENOENT if parts[0] == "blobs":
            found, todo = "no such file", "the layout is incomplete: copy the image into it again"
        case errno.ENOENT:
            found, todo = "no such file", "check the path after 'oci:'; this directory holds no OCI layout"
        case errno.ELOOP | errno.ENOTDIR | errno.EINVAL | errno.ENXIO:
            found, todo = "not a regular file in a real directory", "copy the layout with its links followed (cp -rL)"
        case _:
            found, todo = error.strerror or str(error), "see that this user may read the layout"
    return ImageError(f"{name}: {path} can't be read", found=found, todo=todo)
