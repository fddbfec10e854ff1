"""A tree, its record, its links and its lines in the catalogue, in one transaction.

A prepared image goes in; afterwards the repository has it, or is as it was. Making a tree whole is the difference from
nothing, so there is one way to make one: clone or begin empty, carry out the difference, verify all of it. The calls of
a transaction are made in the order tree, record, link, catalogue, so that a backend which can only move one thing at a
time shows a consistent state after each. A tree is published when its record is: a directory without one is nothing.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cvmfs_sync import __version__
from cvmfs_sync.diff import Make
from cvmfs_sync.edit import TreeEditor, wanted_files
from cvmfs_sync.errors import NotAsMeant
from cvmfs_sync.flatten import layers_ahead
from cvmfs_sync.imagelist import Wish
from cvmfs_sync.inventory import CATALOGUE_VERSION, Catalogue, CatalogueEntry, Published, find_tree, read_catalogue
from cvmfs_sync.layout import CATALOGUE, Layout, record_path, relative_target, tree_key
from cvmfs_sync.ports import Clone, Progress, Repository, Transaction
from cvmfs_sync.prepare import Prepared, Recipe, kept_metadata
from cvmfs_sync.reference import Digest, ImageName, Platform
from cvmfs_sync.sandbox import GENERATION
from cvmfs_sync.tar import Kind, Reader
from cvmfs_sync.verify import verify
from cvmfs_sync.writing import SANDBOX

__all__ = ["LinkChange", "LinkWish", "catalogue_entry", "put_image", "put_links", "write_catalogue"]

_RECORD_VERSION = 1
_REPORTED = 5


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link that shall lead to a published tree."""

    link: str
    tree: str
    entry: CatalogueEntry


@dataclass(frozen=True, slots=True)
class LinkWish:
    """A link that shall lead to the tree which is being published.

    Attributes:
        source: What the name meant at its registry.
    """

    link: str
    name: ImageName
    source: Digest
    wish: Wish
    platform: Platform


def put_image(
    repository: Repository,
    recipe: Recipe,
    prepared: Prepared,
    links: Sequence[LinkWish],
    now: datetime,
    progress: Progress,
) -> Published:
    """Publish a tree and the links to it.

    Args:
        repository: Where to.
        recipe: How.
        prepared: What; its blobs are on disk, because the transaction is open while they are read.
        links: The links that shall lead to it.
        now: Time of publication.
        progress: Told the bytes that are written.

    Raises:
        CloneRefused: The tree can't be made of its relative.
        NotAsMeant: The tree that was written differs from the one that was meant; the transaction has been aborted.
        ImageError: A layer is damaged; the same.
        RepositoryError: See `Repository.transaction`.
    """
    image, path, relative = prepared.image, prepared.path, prepared.choice.relative
    purpose = f"publish {image.name} ({image.digest})"
    _clear(repository, recipe.layout, prepared)
    if relative is not None and not (repository.root / path).parent.is_dir():
        with repository.transaction(f"make directories for {purpose}") as transaction:
            _make_directories(repository, recipe.layout, transaction)
    clone = None if relative is None else Clone(relative, path)
    with repository.transaction(purpose, clone) as transaction:
        root = transaction.clone() if clone else transaction.create_tree(path)
        _write(root, repository, recipe, prepared, progress)
        _require_as_meant(root, repository, prepared)
        _make_directories(repository, recipe.layout, transaction)
        record = _record(prepared, links[0].platform, now)
        transaction.write(record_path(tree_key(image.digest, GENERATION)), as_json(record))
        tree = Published(image.digest, GENERATION, path, record)
        changes = [
            LinkChange(
                each.link,
                path,
                catalogue_entry(each.name, each.source, tree, each.wish, each.platform, now.isoformat()),
            )
            for each in links
        ]
        _link(repository, recipe.layout, transaction, changes)
    return tree


def put_links(repository: Repository, layout: Layout, changes: Sequence[LinkChange]) -> None:
    """Point links at trees that are published, all in one transaction."""
    with repository.transaction(f"point {len(changes)} links at published images") as transaction:
        _link(repository, layout, transaction, changes)


def _clear(repository: Repository, layout: Layout, prepared: Prepared) -> None:
    """Remove what an interrupted publish left where a clone shall be.

    What users may be running from, because a link leads to it, is only replaced: by a tree that is written whole.
    """
    if prepared.choice.relative is None or not os.path.lexists(repository.root / prepared.path):
        return
    if find_tree(repository, layout, prepared.image.digest) is None:
        repository.remove_trees([prepared.path])


def _write(root: Path, repository: Repository, recipe: Recipe, prepared: Prepared, progress: Progress) -> None:
    """Make the new tree of what is in the directory."""
    difference = prepared.choice.difference
    wanted = wanted_files(difference)
    shared = prepared.choice.relative is not None and repository.traits.shares_files
    with TreeEditor(root, SANDBOX, difference, shared=shared) as editor:
        editor.begin()
        with closing(layers_ahead(prepared.layers, sorted(wanted, reverse=True), recipe.limits)) as opened:
            for number, chunks in opened:
                _write_files(
                    editor, Reader(chunks, recipe.limits, what=prepared.layers[number].what), wanted[number], progress
                )
        editor.finish(prepared.tree)


def _write_files(
    editor: TreeEditor, reader: Reader, wanted: Mapping[int, tuple[Make, ...]], progress: Progress
) -> None:
    """Write the files that are wanted of one layer; what comes after the last one is not read."""
    left = len(wanted)
    for ordinal, entry in enumerate(reader):
        makes = wanted.get(ordinal)
        if makes is not None:
            editor.write(makes, reader)
            progress.advance(entry.size)
            left -= 1
            if not left:
                return


def _require_as_meant(root: Path, repository: Repository, prepared: Prepared) -> None:
    """Look at every name, and at the content of what was written.

    Raises:
        NotAsMeant: The directory is not the tree.
    """
    difference, traits = prepared.choice.difference, repository.traits
    written = {make.path for make in difference.files}
    written.update(each.path for each in difference.metadata if each.inode.entry.kind is Kind.FILE)
    discrepancies = verify(
        root, prepared.tree, prepared.content,
        metadata=kept_metadata(traits), hard_links=traits.keeps_hard_links, mtime_unit=traits.mtime_unit,
        read=written.__contains__,
    )  # fmt: skip
    found = [str(each) for each in itertools.islice(discrepancies, _REPORTED)]
    if found:
        raise NotAsMeant(
            f"{prepared.image.name}: what was written differs from the image",
            found="; ".join(found),
            expected="the same tree",
            todo="check disk and file system; if it recurs, report it",
        )


def _make_directories(repository: Repository, layout: Layout, transaction: Transaction) -> None:
    """Make what trees are in, for all trees to come: a clone needs its directory to be published before."""
    for marker in layout.markers():
        if not (repository.root / marker).exists():
            transaction.write(marker, b"")
    for prefix in layout.prefixes():
        if not (repository.root / prefix).is_dir():
            transaction.make_directory(prefix)


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
    write_catalogue(transaction, catalogue)


def write_catalogue(transaction: Transaction, catalogue: Catalogue) -> None:
    """Replace `catalogue.json`."""
    document = {
        "version": CATALOGUE_VERSION,
        "generator": f"cvmfs-sync {__version__}",
        "images": {link: asdict(entry) for link, entry in sorted(catalogue.items())},
    }
    transaction.write(CATALOGUE, as_json(document))


def _record(prepared: Prepared, platform: Platform, now: datetime) -> dict[str, Any]:
    image, config, totals = prepared.image, prepared.image.config, prepared.choice.difference.totals
    return {
        "version": _RECORD_VERSION,
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
        "size": prepared.size,
        "entries": prepared.entries,
        "published_at": now.isoformat(),
        "made_of": prepared.choice.relative,
        "written": {
            "files": totals.files + totals.touched_files,
            "bytes": totals.bytes + totals.touched_bytes,
            "removed": totals.removed,
        },
        "sketch": prepared.sketch,
    }


def _readlink(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def as_json(document: object) -> bytes:
    """A document as it is kept in the repository."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
