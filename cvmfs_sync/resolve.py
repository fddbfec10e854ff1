"""From a wish to exact images: tags filtered, digests asked for, platforms chosen.

A name's digest is asked for once, and everything after that is fetched by digest: what is published is what the name
meant at that moment, even if it moves meanwhile. Choosing tags and platforms is pure; asking goes through a `Source`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, assert_never

from cvmfs_sync.errors import ImageError, ImageNotFound, InvalidManifest, NotForPlatform
from cvmfs_sync.image import (
    MAX_DOCUMENT,
    Descriptor,
    Index,
    IndexEntry,
    ResolvedArtifact,
    ResolvedImage,
    parse_artifact,
    parse_config,
    parse_document,
    verify,
)
from cvmfs_sync.meter import Meter
from cvmfs_sync.ports import Partial, Source
from cvmfs_sync.reference import (
    ArchiveReference,
    ArtifactReference,
    Digest,
    EngineReference,
    ImageName,
    LayoutReference,
    Platform,
    Reference,
)
from cvmfs_sync.tags import TagFilter, select

if TYPE_CHECKING:
    # It brings the validation of whole files with it, which `unpack` has no use for.
    from cvmfs_sync.imagelist import Wish

__all__ = ["Sources", "choose", "expand", "resolve", "resolve_artifact", "selected", "source_digest"]

Leaf = TypeVar("Leaf")
Parser: TypeAlias = Callable[[bytes, Digest, str | None, str], Index | Leaf]

_MAX_NESTING = 4
# The variant that is meant where none is named, by architecture (containerd's platforms package has the same).
_USUAL_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class Sources:
    """One `Source` for every kind of name. A SIF file is its registry's; a kind without a source fails its images.

    Attributes:
        fetched: Counts the blobs that are asked for.
    """

    registry: Source[Reference]
    layout: Source[LayoutReference]
    archive: Source[ArchiveReference] | None = None
    engine: Source[EngineReference] | None = None
    fetched: Meter = field(default_factory=Meter, compare=False)

    def head(self, name: ImageName) -> Digest:
        """See `ports.Source`."""
        source, asked = self._source(name)
        return source.head(asked)

    def manifest(self, name: ImageName, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        """See `ports.Source`."""
        source, asked = self._source(name)
        return source.manifest(asked, digest)

    def blob(self, name: ImageName, descriptor: Descriptor) -> Iterator[bytes]:
        """See `ports.Source`."""
        source, asked = self._source(name)
        return self.fetched.measured(source.blob(asked, descriptor))

    def local_blob(self, name: ImageName, descriptor: Descriptor) -> Path | None:
        """See `ports.Source`."""
        source, asked = self._source(name)
        return source.local_blob(asked, descriptor)

    def part(self, name: ImageName, descriptor: Descriptor, offset: int, length: int) -> bytes | None:
        """So many bytes of a blob, not verified; None where its source gives no parts, or it can't be read."""
        source, asked = self._source(name)
        if isinstance(source, Partial):
            return source.part(asked, descriptor, offset, length)
        try:
            path = source.local_blob(asked, descriptor)
            if path is None:
                return None
            with path.open("rb") as stream:
                stream.seek(offset)
                content = stream.read(length)
        except (ImageError, OSError):
            return None
        return content if len(content) == length else None

    def tags(self, name: ImageName) -> Iterator[str]:
        """See `ports.Source`."""
        source, asked = self._source(name)
        return source.tags(asked)

    def _source(self, name: ImageName) -> tuple[Source[Any], ImageName]:
        match name:
            case Reference():
                return self.registry, name
            case LayoutReference():
                return self.layout, name
            case ArtifactReference():
                return self.registry, name.reference
            case ArchiveReference() if self.archive is not None:
                return self.archive, name
            case EngineReference() if self.engine is not None:
                return self.engine, name
            case ArchiveReference() | EngineReference():
                raise ImageError(f"{name}: images of this kind can't be read here")
            case _:
                assert_never(name)


def expand(wish: Wish, sources: Sources) -> tuple[ImageName, ...]:
    """The names that a wish means now: one, or those of its repository's tags that its filter selects.

    Raises:
        ImageNotFound: If the filter selects none.
        ImageError: If the tags can't be listed.
    """
    return (wish.name,) if wish.tags is None else selected(wish, wish.tags, sources.tags(wish.name))


def selected(wish: Wish, tag_filter: TagFilter, tags: Iterable[str]) -> tuple[ImageName, ...]:
    """The names that a filtering wish means, by all tags of its repository.

    Raises:
        ImageNotFound: If the filter selects none.
    """
    chosen = select(tags, tag_filter, wish.keep)
    if not chosen:
        raise ImageNotFound(
            f"{wish.name}: no tag matches {tag_filter}",
            todo="compare the filter with the tags of the repository",
        )
    return tuple(replace(wish.name, tag=tag) for tag in chosen)


def source_digest(name: ImageName, sources: Sources) -> Digest:
    """What the name means now. A name that is pinned to a digest costs nothing."""
    if isinstance(name, Reference | ArtifactReference) and name.digest is not None:
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
        NotForPlatform: The index has no manifest for the platform, or the manifest is for another one.
        ImageError: It is a SIF file, whose digest and size the message tells.
    """
    what = str(name)
    if isinstance(name, ArtifactReference):
        sif = resolve_artifact(name, digest, platform, sources).sif
        raise ImageError(
            f"{what}: a SIF file, which is there but can't be published yet",
            found=f"{sif.digest}, {sif.size} bytes",
            todo=f"fetch the file with 'cvmfs-sync unpack {what} FILE', or ask for an image that is no SIF file",
        )
    manifest, _, offered = _enter(name, digest, platform, sources, parse_document)
    blob = _small_blob(name, manifest.config, sources)
    config = parse_config(blob, manifest, what)
    # Many builders write their own platform into the configuration: what the index says is the publisher's word.
    if not offered and not _fits(config.platform, platform):
        todo = "name its platform in the list, or have it built for this one"
        raise _not_for(what, platform, f"an image for {config.platform}", todo, (str(config.platform),))
    return ResolvedImage(name, digest, manifest, config)


def resolve_artifact(name: ArtifactReference, digest: Digest, platform: Platform, sources: Sources) -> ResolvedArtifact:
    """The SIF file that `name` means; arguments and errors are those of `resolve`."""
    sif, manifest, _ = _enter(name, digest, platform, sources, parse_artifact)
    return ResolvedArtifact(name, digest, manifest, sif)


def _enter(
    name: ImageName, digest: Digest, platform: Platform, sources: Sources, parse: Parser[Leaf]
) -> tuple[Leaf, Digest, bool]:
    """Go through indexes to what is for the platform: that, its digest, and whether an index named its platform."""
    what = str(name)
    # A source that makes manifests, because the engine behind it keeps none, says which one belongs to the digest.
    content, found, media_type = sources.manifest(name, digest)
    document = parse(content, found, media_type, what)
    offered = False
    for _ in range(_MAX_NESTING):
        if not isinstance(document, Index):
            return document, found, offered
        entry = choose(document, platform, what)
        wanted, offered = entry.descriptor, entry.platform is not None
        content, found, media_type = sources.manifest(name, wanted.digest)
        if len(content) != wanted.size:
            raise InvalidManifest(
                f"{what}: manifest {wanted.digest} has another size than its index says",
                found=f"{len(content)} bytes", expected=f"{wanted.size}",
            )  # fmt: skip
        # The document must be what the index says, and what the transport says.
        for said in filter(None, (media_type, wanted.media_type)):
            document = parse(content, found, said, f"{what} ({platform})")
    raise InvalidManifest(f"{what}: indexes nested more than {_MAX_NESTING} deep")


def choose(index: Index, platform: Platform, what: str) -> IndexEntry:
    """The entry of an index for a platform: the exact variant, else the usual one, else a lower one.

    Raises:
        NotForPlatform: If there is none.
    """
    entries = [entry for entry in index.entries if not entry.attestation]
    fitting = [entry for entry in entries if entry.platform is not None and _fits(entry.platform, platform)]
    if fitting:
        return min(fitting, key=lambda entry: _distance(entry.platform, platform))
    unnamed = [entry for entry in entries if entry.platform is None]
    if len(unnamed) == 1 and len(entries) == 1:
        return unnamed[0]
    offered = tuple(sorted({str(entry.platform) for entry in entries if entry.platform is not None}))
    todo = "name one of these platforms in the list, or have the image built for this one"
    raise _not_for(what, platform, f"an index for {', '.join(offered) or 'no platform'}", todo, offered)


def _not_for(what: str, platform: Platform, found: str, todo: str, offered: tuple[str, ...]) -> NotForPlatform:
    error = NotForPlatform(f"{what}: not available for {platform}", found=found, todo=todo)
    error.offered = offered
    return error


def _fits(offered: Platform, wanted: Platform) -> bool:
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return False
    # A machine that is named by its variant runs what is built for a lower one; nobody else is given a higher one
    # than is usual, unless nothing else is offered.
    return wanted.variant is None or _level(offered) <= _level(wanted)


def _distance(offered: Platform | None, wanted: Platform) -> tuple[bool, float]:
    """How far an entry that fits is from what is wanted."""
    if offered is None:
        raise ValueError("only entries with a platform are compared")
    target = wanted.variant or _USUAL_VARIANT.get(wanted.architecture)
    ours = offered.variant or _USUAL_VARIANT.get(offered.architecture)
    return (ours != target, -_level(offered) if wanted.variant else _level(offered))


def _level(platform: Platform) -> float:
    """A variant's number, so that they can be compared: 8.1 of `v8.1`."""
    found = re.search(r"\d+(\.\d+)?", platform.variant or _USUAL_VARIANT.get(platform.architecture, ""))
    return float(found[0]) if found else 0


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
