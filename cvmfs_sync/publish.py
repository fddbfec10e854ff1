"""A tree, its record, its link and its line in the catalogue, in one transaction.

A resolved image with its fetched layers goes in; afterwards the repository has it, or is as it was. The calls of a
transaction are made in the order tree, record, link, catalogue, so that a backend which can only move one thing at a
time shows a consistent state after each. A tree is published when its record is: a directory without one is nothing.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from cvmfs_sync import __version__
from cvmfs_sync.errors import InvalidReference, RepositoryUnavailable
from cvmfs_sync.flatten import Layer, flatten
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.imagelist import Wish
from cvmfs_sync.layout import CATALOGUE, OWN, Layout, record_path, relative_target, tree_key
from cvmfs_sync.ports import Progress, Repository, Transaction
from cvmfs_sync.reference import Digest, ImageName, Platform
from cvmfs_sync.rootfs import SANDBOX, DirectorySink
from cvmfs_sync.sandbox import GENERATION, furnish
from cvmfs_sync.tar import Kind, Limits
from cvmfs_sync.tree import Tree

__all__ = [
    "Catalogue",
    "CatalogueEntry",
    "LinkChange",
    "Published",
    "Recipe",
    "catalogue_entry",
    "find_tree",
    "published",
    "put_image",
    "put_links",
    "read_catalogue",
    "stored_catalogue",
]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A link as `catalogue.json` tells it to tools and people.

    Attributes:
        source_digest: What the name itself meant at its registry: an index's digest where it is an index's.
        path: The sandbox, relative to the repository's root.
        size: Bytes of all regular files.
        published_at: When the link got its present target, ISO 8601, UTC.
    """

    image: str
    digest: str
    source_digest: str
    platform: str
    path: str
    size: int
    entries: int
    published_at: str
    description: str | None = None
    contact: str | None = None
    definition: str | None = None


Catalogue = Mapping[str, CatalogueEntry]


@dataclass(frozen=True, slots=True)
class Published:
    """A tree that has its record."""

    digest: Digest
    generation: int
    path: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What of the configuration shapes a sandbox."""

    layout: Layout
    bind_points: tuple[str, ...]
    limits: Limits


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link that shall lead to a published tree."""

    link: str
    tree: str
    entry: CatalogueEntry


def published(repository: Repository, layout: Layout, link: str) -> Published | None:
    """What a link leads to, if that is a tree with its record."""
    try:
        target = os.readlink(repository.root / link)
    except OSError:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
    key = layout.digest_of_tree(path)
    if key is None:
        return None
    return _by_key(repository, path, key)


def find_tree(repository: Repository, layout: Layout, digest: Digest) -> Published | None:
    """The tree of a manifest in the present generation, whether or not a link leads to it."""
    path = layout.tree(digest, GENERATION)
    key = layout.digest_of_tree(path)
    return None if key is None else _by_key(repository, path, key)


def read_catalogue(repository: Repository, layout: Layout) -> Catalogue:
    """`catalogue.json`; made anew from links and records if it is not there, or of another version or form."""
    stored = stored_catalogue(repository)
    return dict(_scan(repository, layout)) if stored is None else stored


def stored_catalogue(repository: Repository) -> Catalogue | None:
    """`catalogue.json`; None if it is not there, or of another version or form."""
    try:
        document = json.loads((repository.root / CATALOGUE).read_bytes())
        if document["version"] == _VERSION:
            return {link: CatalogueEntry(**entry) for link, entry in document["images"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _unreadable(error: OSError) -> None:
    """What can't be read may hold links: leaving them out of a catalogue would be to say that they are gone."""
    if not isinstance(error, FileNotFoundError):
        raise RepositoryUnavailable(
            f"cannot read {error.filename} to make the catalogue anew",
            found=error.strerror,
            todo="see that this user may read all of the repository",
        ) from error


def _scan(repository: Repository, layout: Layout) -> Iterator[tuple[str, CatalogueEntry]]:
    """All links to published trees. Trees themselves, which are large, are not entered."""
    own = {layout.tree(Digest("sha256", "00"), 1).split("/")[0], OWN}
    for directory, names, files in os.walk(repository.root, onerror=_unreadable):
        relative = os.path.relpath(directory, repository.root)
        if relative == ".":
            names[:] = [name for name in names if name not in own]
        for name in [*names, *files]:
            link = posixpath.normpath(posixpath.join(relative, name))
            tree = published(repository, layout, link)
            if tree is not None:
                record = tree.record
                yield (
                    link,
                    CatalogueEntry(
                        image=layout.image(link) or str(record.get("reference")),
                        digest=str(tree.digest),
                        source_digest=str(record.get("source_digest")),
                        platform=str(record.get("platform")),
                        path=tree.path,
                        size=int(record.get("size", 0)),
                        entries=int(record.get("entries", 0)),
                        published_at=str(record.get("published_at")),
                    ),
                )


def put_image(
    repository: Repository,
    recipe: Recipe,
    image: ResolvedImage,
    layers: Sequence[Layer],
    link: str,
    wish: Wish,
    platform: Platform,
    now: datetime,
    progress: Progress,
) -> Published:
    """Publish a tree and the link to it.

    Args:
        repository: Where to.
        recipe: How.
        image: What.
        layers: Its layers, bottom to top; their blobs must have been fetched, the transaction is open while they are
            read.
        link: The link's path.
        wish: Who asked for it.
        platform: The platform it was asked for.
        now: Time of publication.
        progress: Told the compressed bytes that are done.

    Raises:
        ImageError: The image can't be flattened; the transaction has been aborted.
        RepositoryError: See `Repository.transaction`.
    """
    path = recipe.layout.tree(image.digest, GENERATION)
    with repository.transaction(f"publish {image.name} ({image.digest})") as transaction:
        with DirectorySink(transaction.create_tree(path), SANDBOX) as sink:
            tree = flatten(
                layers, sink,
                limits=recipe.limits,
                transform=partial(furnish, config=image.config, bind_points=recipe.bind_points),
                progress=progress,
            )  # fmt: skip
        for marker in recipe.layout.markers(path):
            if not (repository.root / marker).exists():
                transaction.write(marker, b"")
        size, entries = _measure(tree)
        record = _record(image, platform, size, entries, now)
        transaction.write(record_path(tree_key(image.digest, GENERATION)), _json(record))
        tree_now = Published(image.digest, GENERATION, path, record)
        entry = catalogue_entry(image.name, image.source_digest, tree_now, wish, platform, now.isoformat())
        _link(repository, recipe.layout, transaction, [LinkChange(link, path, entry)])
    return tree_now


def put_links(repository: Repository, layout: Layout, changes: Sequence[LinkChange]) -> None:
    """Point links at trees that are published, all in one transaction."""
    with repository.transaction(f"point {len(changes)} links at published images") as transaction:
        _link(repository, layout, transaction, changes)


def catalogue_entry(
    name: ImageName, source: Digest, tree: Published, wish: Wish, platform: Platform, at: str
) -> CatalogueEntry:
    """The catalogue's line for a link of `wish` to a published tree, there since `at`."""
    return CatalogueEntry(
        image=str(name),
        digest=str(tree.digest),
        source_digest=str(source),
        platform=str(platform),
        path=tree.path,
        size=int(tree.record.get("size", 0)),
        entries=int(tree.record.get("entries", 0)),
        published_at=at,
        description=wish.description,
        contact=wish.contact,
        definition=wish.definition,
    )


def _link(repository: Repository, layout: Layout, transaction: Transaction, changes: Sequence[LinkChange]) -> None:
    catalogue = dict(read_catalogue(repository, layout))
    for change in changes:
        target = relative_target(change.link, change.tree)
        if _readlink(repository.root / change.link) != target:
            transaction.link(change.link, target)
        catalogue[change.link] = change.entry
    document = {
        "version": _VERSION,
        "generator": f"cvmfs-sync {__version__}",
        "images": {link: asdict(entry) for link, entry in sorted(catalogue.items())},
    }
    transaction.write(CATALOGUE, _json(document))


def _record(image: ResolvedImage, platform: Platform, size: int, entries: int, now: datetime) -> dict[str, Any]:
    config = image.config
    return {
        "version": _VERSION,
        "generator": f"cvmfs-sync {__version__}",
        "reference": str(image.name),
        "digest": str(image.digest),
        "source_digest": str(image.source_digest),
        "platform": str(platform),
        "generation": GENERATION,
        "config": {
            "digest": str(config.digest),
            "created": config.created,
            "environment": config.environment,
            "entrypoint": config.entrypoint,
            "command": config.command,
            "working_directory": config.working_directory,
            "user": config.user,
            "labels": dict(config.labels),
        },
        "layers": [
            {"digest": str(layer.digest), "diff_id": str(diff_id), "media_type": layer.media_type, "size": layer.size}
            for layer, diff_id in zip(image.manifest.layers, config.diff_ids, strict=True)
        ],
        "compressed_size": image.compressed_size,
        "size": size,
        "entries": entries,
        "published_at": now.isoformat(),
    }


def _measure(tree: Tree) -> tuple[int, int]:
    """Bytes of regular files, hard links counted once, and the number of names."""
    size = entries = 0
    seen: set[int] = set()
    for _, inode in tree.walk():
        entries += 1
        if inode.entry.kind is Kind.FILE and not (inode.shared and id(inode) in seen):
            size += inode.entry.size
            if inode.shared:
                seen.add(id(inode))
    return size, entries


def _by_key(repository: Repository, path: str, key: str) -> Published | None:
    try:
        record = json.loads((repository.root / record_path(key)).read_bytes())
        digest = Digest.parse(record["digest"])
        generation = int(record["generation"])
    except (OSError, ValueError, KeyError, TypeError, InvalidReference):
        return None
    if tree_key(digest, generation) != key or not (repository.root / path).is_dir():
        return None
    return Published(digest, generation, path, record)


def _readlink(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _json(document: object) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
