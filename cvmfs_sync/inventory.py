"""What a repository holds, as its own files tell: links, trees, records, catalogue.

A repository goes in, values come out; nothing is changed. A tree is published when its record is: a directory without
one is nothing. Who only looks one image up gets None for what is not there; who asks for all of something gets all of
it or an error, because what can't be read may be what must not be deleted.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cvmfs_sync.errors import InvalidReference, RepositoryUnavailable
from cvmfs_sync.layout import CATALOGUE, LAYOUTS, OWN, RECORDS, Layout, key_of_tree, record_path, tree_key
from cvmfs_sync.ports import Repository
from cvmfs_sync.reference import Digest, parse_image
from cvmfs_sync.sandbox import GENERATION

__all__ = [
    "CATALOGUE_VERSION",
    "Catalogue",
    "CatalogueEntry",
    "Published",
    "all_links",
    "all_records",
    "all_trees",
    "configuration_of",
    "derived_entry",
    "find_tree",
    "is_link_of",
    "published",
    "read_catalogue",
    "read_record",
    "record_keys",
    "stored_catalogue",
]

CATALOGUE_VERSION = 1


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A link as `catalogue.json` tells it to tools and people.

    Attributes:
        source_digest: What the name itself meant at its registry: an index's digest where it is an index's.
        path: The sandbox, relative to the repository's root.
        size: Bytes of all regular files.
        published_at: When the link got its present target, ISO 8601, UTC.
        list_commit: Of the list, in which it asked for that; None if the list is in no git repository.
        requested_by: Who changed the list's entry last, before that.
        requested_at: When that was.
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
    list_commit: str | None = None
    requested_by: str | None = None
    requested_at: str | None = None


Catalogue = Mapping[str, CatalogueEntry]


@dataclass(frozen=True, slots=True)
class Published:
    """A tree that has its record."""

    digest: Digest
    generation: int
    path: str
    record: Mapping[str, Any]


def published(repository: Repository, layout: Layout, link: str) -> Published | None:
    """What a link leads to, if that is a tree with its record."""
    try:
        target = os.readlink(os.path.join(repository.root, link))
    except OSError:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
    key = layout.digest_of_tree(path)
    if key is None:
        return None
    return _by_key(repository, path, key)


def configuration_of(tree: Published) -> Digest | None:
    """The digest of the image configuration that a tree was made by, if its record tells."""
    try:
        return Digest.parse(tree.record["config"]["digest"])
    except (KeyError, TypeError, AttributeError, InvalidReference):
        return None


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
        if document["version"] == CATALOGUE_VERSION:
            lines = {link: CatalogueEntry(**entry) for link, entry in document["images"].items()}
            return lines if all(map(_is_well_typed, lines.values())) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _is_well_typed(line: CatalogueEntry) -> bool:
    texts = (line.image, line.digest, line.source_digest, line.platform, line.path, line.published_at)
    more = (line.description, line.contact, line.definition, line.list_commit, line.requested_by, line.requested_at)
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in (line.size, line.entries))
        and all(text is None or isinstance(text, str) for text in more)
    )


def _scan(repository: Repository, layout: Layout) -> Iterator[tuple[str, CatalogueEntry]]:
    """The catalogue's lines for links to published trees, without what only the list knows.

    Only for links that are where the image's name would be: another one may be somebody else's, and what is in the
    catalogue is ours to retire.
    """
    for link, _ in all_links(repository):
        tree = published(repository, layout, link)
        entry = derived_entry(layout, link, tree) if tree is not None else None
        if entry is not None and is_link_of(layout, link, entry.image):
            yield link, entry


def is_link_of(layout: Layout, link: str, image: str) -> bool:
    """Whether a link is where the image's name would be, for its first platform or another one."""
    try:
        expected = layout.link(parse_image(image))
    except InvalidReference:
        return False
    return expected == (link.split("/", 2)[2] if link.startswith(".multiarch/") else link)


def derived_entry(layout: Layout, link: str, tree: Published) -> CatalogueEntry:
    """The catalogue's line for a link to a published tree, without what only the list knows."""
    record = tree.record
    return CatalogueEntry(
        image=layout.image(link) or str(record.get("reference")),
        digest=str(tree.digest),
        source_digest=str(record.get("source_digest")),
        platform=str(record.get("platform")),
        path=tree.path,
        size=int(record.get("size", 0)),
        entries=int(record.get("entries", 0)),
        published_at=str(record.get("published_at")),
        list_commit=_text(record.get("list_commit")),
        requested_by=_text(record.get("requested_by")),
        requested_at=_text(record.get("requested_at")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def all_links(repository: Repository) -> Iterator[tuple[str, str]]:
    """Every link that leads to where a tree of any layout would be, or into it, with that path; trees are not entered.

    Anybody's: another tool's may be absolute, by whatever name the repository is mounted.

    Raises:
        RepositoryUnavailable: A directory can't be read.
    """
    own = {OWN, *(Layout(name).trees for name in LAYOUTS)}
    for directory, names, files in os.walk(repository.root, onerror=_unreadable):
        relative = os.path.relpath(directory, repository.root)
        if relative == ".":
            names[:] = [name for name in names if name not in own]
        for name in [*names, *files]:
            try:
                target = os.readlink(os.path.join(directory, name))
            except OSError as error:
                if error.errno != errno.EINVAL:  # it is no link
                    _unreadable(error)
                continue
            link = posixpath.normpath(posixpath.join(relative, name))
            path = _tree_on_the_way(posixpath.normpath(posixpath.join(posixpath.dirname(link), target)))
            if path is not None:
                yield link, path


def _tree_on_the_way(path: str) -> str | None:
    parts = path.split("/")
    starts = range(len(parts) - 2) if path.startswith("/") else (0,)
    trees = ("/".join(parts[start : start + 3]) for start in starts)
    return next((tree for tree in trees if key_of_tree(tree) is not None), None)


def all_trees(repository: Repository) -> Iterator[str]:
    """The path of everything that stands where a tree of any layout would be, published or not.

    Raises:
        RepositoryUnavailable: A directory can't be read.
    """
    for name in LAYOUTS:
        top = repository.root / Layout(name).trees
        for prefix in _names(top):
            for entry in _names(top / prefix):
                path = f"{Layout(name).trees}/{prefix}/{entry}"
                if key_of_tree(path) is not None:
                    yield path


def all_records(repository: Repository, *, lenient: bool = False) -> Iterator[Published]:
    """Every record, with the path at which its tree is or should be.

    Args:
        repository: Whose.
        lenient: Whether to leave out records that make no sense. Who deletes by what is there must not.

    Raises:
        RepositoryUnavailable: A record or a directory of records can't be read, or a record makes no sense.
    """
    for key in record_keys(repository):
        paths = [Layout(layout).tree_of_key(key) for layout in LAYOUTS]
        path = next((path for path in paths if os.path.isdir(os.path.join(repository.root, path))), paths[0])
        try:
            record = read_record(repository, path, key)
            # The layout may have been changed since, and both trees be there: the record is about the one it names.
            if record is not None and record.record.get("tree") in paths:
                record = replace(record, path=str(record.record["tree"]))
        except ValueError as error:
            if lenient:
                continue
            raise RepositoryUnavailable(
                f"a record of {repository.root} makes no sense",
                found=f"{record_path(key)}: {error}",
                todo="'cvmfs-sync fsck --repair' removes it; the next sync publishes its image anew",
            ) from error
        if record is not None:
            yield record


def record_keys(repository: Repository) -> Iterator[str]:
    """The `tree_key` of every record; other files among them are passed over.

    Raises:
        RepositoryUnavailable: A directory of records can't be read.
    """
    for prefix in _names(repository.root / RECORDS):
        for name in _names(repository.root / RECORDS / prefix):
            key, dot, _ = name.partition(".json")
            if dot and record_path(key) == f"{RECORDS}/{prefix}/{name}":
                yield key


def read_record(repository: Repository, path: str, key: str) -> Published | None:
    """A record, of which `path` is the tree; None if it is not there.

    Raises:
        RepositoryUnavailable: It can't be read.
        ValueError: It makes no sense.
    """
    try:
        return _read_record(repository, path, key)
    except OSError as error:
        _unreadable(error)
        return None
    except (KeyError, TypeError, InvalidReference) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _names(directory: Path) -> list[str]:
    """What is in a directory, sorted; nothing if it is not there."""
    try:
        return sorted(os.listdir(directory))
    except NotADirectoryError:
        return []
    except OSError as error:
        _unreadable(error)
        return []


def _unreadable(error: OSError) -> None:
    """What can't be read may hold links: leaving it out would be to say that they are gone."""
    if not isinstance(error, FileNotFoundError):
        raise RepositoryUnavailable(
            f"cannot read all of the repository: {error.filename}",
            found=error.strerror,
            todo="see that this user may read it, and that it is mounted",
        ) from error


def _by_key(repository: Repository, path: str, key: str) -> Published | None:
    try:
        found = _read_record(repository, path, key)
    except (OSError, ValueError, KeyError, TypeError, InvalidReference):
        return None
    return found if os.path.isdir(os.path.join(repository.root, path)) else None


def _read_record(repository: Repository, path: str, key: str) -> Published:
    # By the tens of thousands: a path that is an object takes longer to make than a record to read.
    with open(os.path.join(repository.root, record_path(key)), "rb") as file:
        record = json.loads(file.read())
    digest = Digest.parse(record["digest"])
    generation = int(record["generation"])
    if tree_key(digest, generation) != key:
        raise ValueError(f"it is about {digest}")
    sizes = [layer["size"] for layer in record.get("layers", ())]
    for number in (record.get("size", 0), record.get("entries", 0), *sizes):
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"{number!r} is no size")
    return Published(digest, generation, path, record)
