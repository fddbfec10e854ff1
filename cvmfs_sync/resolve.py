"""From a wish to exact images: tags filtered, digests asked for, platforms chosen.

A name's digest is asked for once, and everything after that is fetched by digest: what is published is what the name
meant at that moment, even if it moves meanwhile. Choosing tags and platforms is pure; asking goes through a `Source`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cvmfs_sync.errors import ImageError, ImageNotFound, InvalidManifest
from cvmfs_sync.image import (
    MAX_DOCUMENT,
    Descriptor,
    Index,
    IndexEntry,
    Manifest,
    ResolvedImage,
    parse_config,
    parse_document,
    verify,
)
from cvmfs_sync.ports import Source
from cvmfs_sync.reference import Digest, ImageName, LayoutReference, Platform, Reference
from cvmfs_sync.tags import select

if TYPE_CHECKING:
    # It brings the validation of whole files with it, which `unpack` has no use for.
    from cvmfs_sync.imagelist import Wish

__all__ = ["Sources", "choose", "expand", "resolve", "source_digest"]

_MAX_NESTING = 4
# The variant that is meant where none is named, by architecture (containerd's platforms package has the same).
_USUAL_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class Sources:
    """One `Source` for every kind of name."""

    registry: Source[Reference]
    layout: Source[LayoutReference]

    def head(self, name: ImageName) -> Digest:
        """See `ports.Source`."""
        return self.registry.head(name) if isinstance(name, Reference) else self.layout.head(name)

    def manifest(self, name: ImageName, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        """See `ports.Source`."""
        if isinstance(name, Reference):
            return self.registry.manifest(name, digest)
        return self.layout.manifest(name, digest)

    def blob(self, name: ImageName, descriptor: Descriptor) -> Iterator[bytes]:
        """See `ports.Source`."""
        if isinstance(name, Reference):
            return self.registry.blob(name, descriptor)
        return self.layout.blob(name, descriptor)

    def local_blob(self, name: ImageName, descriptor: Descriptor) -> Path | None:
        """See `ports.Source`."""
        if isinstance(name, Reference):
            return self.registry.local_blob(name, descriptor)
        return self.layout.local_blob(name, descriptor)

    def tags(self, name: ImageName) -> Iterator[str]:
        """See `ports.Source`."""
        return self.registry.tags(name) if isinstance(name, Reference) else self.layout.tags(name)


def expand(wish: Wish, sources: Sources) -> tuple[ImageName, ...]:
    """The names that a wish means now: one, or those of its repository's tags that its filter selects.

    Raises:
        ImageNotFound: If the filter selects none.
        ImageError: If the tags can't be listed.
    """
    if wish.tags is None:
        return (wish.name,)
    selected = select(sources.tags(wish.name), wish.tags, wish.keep)
    if not selected:
        raise ImageNotFound(
            f"{wish.name}: no tag matches {wish.tags}",
            todo="compare the filter with the tags of the repository",
        )
    return tuple(replace(wish.name, tag=tag) for tag in selected)


def source_digest(name: ImageName, sources: Sources) -> Digest:
    """What the name means now. A name that is pinned to a digest costs nothing."""
    if isinstance(name, Reference) and name.digest is not None:
        return name.digest
    return sources.head(name)


def resolve(name: ImageName, digest: Digest, platform: Platform, sources: Sources) -> ResolvedImage:
    """Manifest and configuration of `name` for `platform`.

    Args:
        name: Where to ask.
        digest: What `source_digest` said.
        platform: The one to choose from an index; a manifest whose platform no index names has to be for it.
        sources: Whom to ask.

    Raises:
        InvalidManifest: Whatever is wrong with one of the documents.
        ImageNotFound: The index has no manifest for the platform.
    """
    what = str(name)
    content, _, media_type = sources.manifest(name, digest)
    document = parse_document(content, digest, media_type, what)
    offered = False
    for _ in range(_MAX_NESTING):
        if isinstance(document, Manifest):
            break
        entry = choose(document, platform, what)
        wanted, offered = entry.descriptor, entry.platform is not None
        content, _, media_type = sources.manifest(name, wanted.digest)
        if len(content) != wanted.size:
            raise InvalidManifest(
                f"{what}: manifest {wanted.digest} has another size than its index says",
                found=f"{len(content)} bytes", expected=f"{wanted.size}",
            )  # fmt: skip
        document = parse_document(content, wanted.digest, wanted.media_type, f"{what} ({platform})")
    else:
        raise InvalidManifest(f"{what}: indexes nested more than {_MAX_NESTING} deep")
    blob = _small_blob(name, document.config, sources)
    config = parse_config(blob, document, what)
    # Many builders write their own platform into the configuration: what the index says is the publisher's word.
    if not offered and not _fits(config.platform, platform):
        raise ImageNotFound(
            f"{what}: not available for {platform}",
            found=f"an image for {config.platform}",
            todo="name its platform in the list, or have it built for this one",
        )
    return ResolvedImage(name, digest, document, config)


def choose(index: Index, platform: Platform, what: str) -> IndexEntry:
    """The entry of an index for a platform: the exact variant, else the usual one, else a lower one.

    Raises:
        ImageNotFound: If there is none.
    """
    entries = [entry for entry in index.entries if not entry.attestation]
    fitting = [entry for entry in entries if entry.platform is not None and _fits(entry.platform, platform)]
    if fitting:
        return min(fitting, key=lambda entry: _distance(entry.platform, platform))
    unnamed = [entry for entry in entries if entry.platform is None]
    if len(unnamed) == 1 and len(entries) == 1:
        return unnamed[0]
    offered = sorted({str(entry.platform) for entry in entries if entry.platform is not None})
    raise ImageNotFound(
        f"{what}: not available for {platform}",
        found=f"an index for {', '.join(offered) or 'no platform'}",
        todo="name one of these platforms in the list, or have the image built for this one",
    )


def _fits(offered: Platform, wanted: Platform) -> bool:
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return False
    # A machine that is named by its variant runs what is built for a lower one; nobody else is given a higher one
    # than is usual, unless nothing else is offered.
    return wanted.variant is None or _level(offered) <= _level(wanted)


def _distance(offered: Platform | None, wanted: Platform) -> tuple[bool, int]:
    """How far an entry that fits is from what is wanted."""
    if offered is None:
        raise ValueError("only entries with a platform are compared")
    target = wanted.variant or _USUAL_VARIANT.get(wanted.architecture)
    ours = offered.variant or _USUAL_VARIANT.get(offered.architecture)
    return (ours != target, -_level(offered) if wanted.variant else _level(offered))


def _level(platform: Platform) -> int:
    variant = platform.variant or _USUAL_VARIANT.get(platform.architecture) or "v0"
    digits = "".join(c for c in variant if c.isdigit())
    return int(digits) if digits else 0


def _small_blob(name: ImageName, descriptor: Descriptor, sources: Sources) -> bytes:
    """A configuration: bounded by its descriptor's size, which `parse_config` bounds."""
    if descriptor.size > MAX_DOCUMENT:
        raise InvalidManifest(
            f"{name}: the image's configuration is too large",
            found=f"{descriptor.size} bytes", expected=f"at most {MAX_DOCUMENT}",
        )  # fmt: skip
    content = b""
    for piece in sources.blob(name, descriptor):
        content += piece
        if len(content) > descriptor.size:
            break
    if len(content) != descriptor.size:
        raise ImageError(
            f"{name}: the image's configuration has another size than its manifest says",
            found=f"{len(content)} bytes", expected=f"{descriptor.size}",
        )  # fmt: skip
    return verify(content, descriptor.digest, f"{name}: the image's configuration")
