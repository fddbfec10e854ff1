"""A tree, its record, its links and its lines in the catalogue, in one transaction.

A prepared image goes in; afterwards the repository has it, or is as it was. Making a tree whole is the difference from
nothing, so there is one way to make one: clone or begin empty, carry out the difference, verify all of it. The calls of
a transaction are made in the order tree, record, link, catalogue, so that a backend which can only move one thing at a
time shows a consistent state after each. A tree is published when its record is: a directory without one is nothing.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cvmfs_sync import __version__
from cvmfs_sync.catalogue import CatalogueFile, LinkWish, catalogue_entry
from cvmfs_sync.edit import TreeEditor, wanted_files
from cvmfs_sync.errors import CloneRefused, NotAsMeant
from cvmfs_sync.extract import wanted_contents
from cvmfs_sync.inventory import CatalogueEntry, Published, all_links, find_tree
from cvmfs_sync.layout import Layout, record_path, relative_target, tree_key
from cvmfs_sync.ports import Clone, Progress, Repository, Transaction
from cvmfs_sync.prepare import Prepared, Recipe, kept_metadata
from cvmfs_sync.sandbox import GENERATION
from cvmfs_sync.tar import Kind
from cvmfs_sync.tree import printable
from cvmfs_sync.verify import verify
from cvmfs_sync.writing import SANDBOX

__all__ = ["LinkChange", "put_image", "put_links"]

_RECORD_VERSION = 1
_REPORTED = 5
# What the steps of a difference meet in a directory that does not hold the tree which they begin with.
_OTHERWISE = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY, errno.EACCES}
)


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link that shall lead to a published tree."""

    link: str
    tree: str
    entry: CatalogueEntry


def put_image(
    repository: Repository,
    recipe: Recipe,
    prepared: Prepared,
    links: Sequence[LinkWish],
    catalogue: CatalogueFile,
    now: datetime,
    progress: Progress,
) -> Published:
    """Publish a tree and the links to it.

    Args:
        repository: Where to.
        recipe: How.
        prepared: What; its blobs are on disk, because the transaction is open while they are read.
        links: The links that shall lead to it.
        catalogue: Where their lines go.
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
            make_directories(repository, recipe.layout, transaction)
    clone = None if relative is None else Clone(relative, path)
    with repository.transaction(purpose, clone) as transaction:
        root = transaction.clone() if clone else transaction.create_tree(path)
        _write(root, repository, recipe, prepared, progress)
        _require_as_meant(root, repository, prepared)
        make_directories(repository, recipe.layout, transaction)
        record = _record(prepared, links[0], now)
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
        written = _link(repository, transaction, changes, catalogue)
    catalogue.published(_lines(changes), written=written)
    return tree


def put_links(repository: Repository, changes: Sequence[LinkChange], catalogue: CatalogueFile) -> None:
    """Point links at trees that are published, and bring the catalogue up to date, all in one transaction.

    Raises:
        RepositoryError: See `Repository.transaction`.
    """
    with repository.transaction(f"point {len(changes)} links at published images") as transaction:
        written = _link(repository, transaction, changes, catalogue, now=True)
    catalogue.published(_lines(changes), written=written)


def _clear(repository: Repository, layout: Layout, prepared: Prepared) -> None:
    """Remove what an interrupted publish left where a clone shall be.

    What users may be running from, because a link leads to it, is only replaced: by a tree that is written whole.

    Raises:
        CloneRefused: That is so.
    """
    if prepared.choice.relative is None or not os.path.lexists(repository.root / prepared.path):
        return
    if find_tree(repository, layout, prepared.image.digest) is None:
        if prepared.path in dict(all_links(repository)).values():
            raise CloneRefused(
                f"a clone in {repository.root} would take the place of what a link leads to", found=prepared.path
            )
        repository.remove_trees([prepared.path])


def _write(root: Path, repository: Repository, recipe: Recipe, prepared: Prepared, progress: Progress) -> None:
    """Make the new tree of what is in the directory."""
    difference = prepared.choice.difference
    wanted = wanted_files(difference)
    shared = prepared.choice.relative is not None and repository.traits.shares_files
    with TreeEditor(root, SANDBOX, difference, shared=shared) as editor:
        try:
            editor.begin()
            if prepared.extracted is not None:
                for makes, content in prepared.extracted.pieces:
                    editor.write(makes, content)
                    progress.advance(makes[0].inode.entry.size)
            else:
                with closing(wanted_contents(prepared.layers, wanted, recipe.limits, progress.advance)) as contents:
                    for makes, content in contents:
                        editor.write(makes, content)
            editor.finish(prepared.tree)
        except OSError as error:
            if prepared.choice.relative is None or error.errno not in _OTHERWISE:
                raise
            raise NotAsMeant(
                f"{prepared.image.name}: {prepared.choice.relative}, which it was to be made of, is not what it was",
                found=f"{error.strerror}: {printable(os.fsencode(error.filename or b''))}",
                todo="`cvmfs-sync fsck` tells what has become of it",
            ) from error


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


def make_directories(repository: Repository, layout: Layout, transaction: Transaction) -> None:
    """Make what trees are in, for all trees to come: a clone needs its directory to be published before."""
    for marker in layout.markers():
        if not (repository.root / marker).exists():
            transaction.write(marker, b"")
    try:
        with os.scandir(repository.root / layout.trees) as entries:
            there = {f"{layout.trees}/{entry.name}" for entry in entries if entry.is_dir()}
    except FileNotFoundError:
        there = set()
    for prefix in layout.prefixes():
        if prefix not in there:
            transaction.make_directory(prefix)


def _link(
    repository: Repository,
    transaction: Transaction,
    changes: Sequence[LinkChange],
    catalogue: CatalogueFile,
    *,
    now: bool = False,
) -> bool:
    """Make the links; whether the catalogue is written, too."""
    for change in changes:
        target = relative_target(change.link, change.tree)
        if _readlink(repository.root / change.link) != target:
            transaction.link(change.link, target)
    return catalogue.put(transaction, _lines(changes), now=now)


def _lines(changes: Sequence[LinkChange]) -> dict[str, CatalogueEntry]:
    return {change.link: change.entry for change in changes}


def _record(prepared: Prepared, first: LinkWish, now: datetime) -> dict[str, Any]:
    image, config, totals = prepared.image, prepared.image.config, prepared.choice.difference.totals
    origin = first.wish.origin
    return {
        "version": _RECORD_VERSION,
        "generator": f"cvmfs-sync {__version__}",
        "reference": str(image.name),
        "digest": str(image.digest),
        "source_digest": str(image.source_digest),
        "platform": str(first.platform),
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
        "tree": prepared.path,
        "made_of": prepared.choice.relative,
        "written": {
            "files": totals.files + totals.touched_files,
            "bytes": totals.bytes + totals.touched_bytes,
            "removed": totals.removed,
        },
        "sketch": prepared.sketch,
        "list_commit": origin.commit if origin else None,
        "requested_by": origin.author if origin else None,
        "requested_at": origin.at if origin else None,
    }


def _readlink(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def as_json(document: object) -> bytes:
    """A document as it is kept in the repository."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
