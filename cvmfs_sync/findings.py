"""What is wrong with a repository, decided from what was read of it; and what mends it.

A `Snapshot` of links, catalogue, records and the places of trees goes in; `Finding`s come out, and from those the
`Repairs`. All of it is pure: nothing is read or changed here, and whether a tree is what its index says is found out
elsewhere.

What is not ours is no finding. Ours is what the catalogue names, what has a record, and what our memory knows as a
manifest that we published or were about to; all else in the repository may be another tool's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum

from cvmfs_sync.inventory import Catalogue, CatalogueEntry, Published, derived_entry, is_link_of
from cvmfs_sync.layout import CATALOGUE, LAYOUTS, MARKER, OWN, Layout, key_of_tree, record_path

__all__ = ["Finding", "Foreign", "Kind", "Mend", "Repairs", "Snapshot", "inspect", "repairs"]


class Kind(Enum):
    """What can be wrong."""

    CATALOGUE = "catalogue"
    """`catalogue.json` is missing, or of another version or form."""
    LINE = "line"
    """A line of the catalogue does not say what link and record do."""
    MISSING_LINE = "missing line"
    """A link to a tree of ours is not in the catalogue."""
    MISSING_LINK = "missing link"
    """A line of the catalogue has no link."""
    LINK = "link"
    """A link does not lead where the catalogue says."""
    DANGLING = "dangling link"
    """A link of ours leads to nothing."""
    OBSTRUCTED = "obstructed link"
    """Where a link should be stands something else."""
    UNRECORDED = "unrecorded tree"
    """A link of ours leads to a tree without a record."""
    RECORD = "senseless record"
    """A record can't be understood, or is about another tree."""
    NO_TREE = "missing tree"
    """A record has no tree."""
    LEFTOVER = "leftover"
    """A tree of ours has no record, and no link leads to it."""
    DAMAGED = "damaged tree"
    """A tree is not what was published."""
    DIRECTORY = "missing directory"
    """A directory for trees, or a catalog marker, is not there."""


class Mend(Enum):
    """How something is mended, as a sentence for people."""

    CATALOGUE = "--repair writes it anew from links and records"
    LINE = "--repair writes its line of the catalogue from link and record"
    FORGET_LINE = "--repair removes its line of the catalogue; the next sync publishes it if the list asks for it"
    LINK = "--repair makes the link that the catalogue names"
    UNLINK = "--repair removes the link; the next sync publishes it if the list asks for it"
    FORGET_RECORD = "--repair removes the record; the next sync publishes the tree if the list asks for it"
    FORGET_TREE = (
        "--repair removes the record, and the tree if no link leads to it; the next sync writes it whole, in its place"
    )
    REMOVE_TREE = "--repair removes the tree"
    DIRECTORIES = "--repair makes it"
    SYNC = "the next sync publishes it, if the list asks for it"
    HAND = "move it away, then sync"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        path: Where, relative to the repository's root.
        tree: The tree that it is about, or that a link shall lead to.
        entry: The line that the catalogue shall have.
        rotten: Files below a damaged tree whose content differs.
    """

    kind: Kind
    path: str
    found: str
    expected: str
    mend: Mend
    tree: str | None = None
    entry: CatalogueEntry | None = None
    rotten: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something where ours would be that is not ours, as far as anybody can tell; it is left alone."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was read of a repository.

    Attributes:
        catalogue: Its lines; those that follow from links and records if `usable` is not set.
        usable: Whether `catalogue.json` was there and made sense.
        links: Every link to or into a tree, anybody's, with the tree's path.
        leads: Where links of `links` and of the catalogue lead, relative to the root if their target is relative; None
            where nothing is, an empty text where something else is.
        records: By key; a text says why one makes no sense.
        trees: What stands where trees would be; whether it is a directory.
        known: Keys that our memory knows.
        absent: Directories and markers that should be there and are not.
    """

    catalogue: Catalogue
    usable: bool
    links: Mapping[str, str]
    leads: Mapping[str, str | None]
    records: Mapping[str, Published | str]
    trees: Mapping[str, bool]
    known: Collection[str]
    absent: Sequence[str]

    def good(self, path: str | None) -> Published | None:
        """The record of a tree that is there."""
        key = key_of_tree(path) if path else None
        record = self.records.get(key) if key else None
        if isinstance(record, Published) and record.path == path and self.trees.get(path):
            return record
        return None


@dataclass(frozen=True, slots=True)
class Repairs:
    """What is done, in this order; links, records and catalogue in one transaction.

    Attributes:
        directories: Whether to make what trees are in.
        links: Trees by link.
        unlink: Links to remove.
        records: Keys of records to remove.
        lines: What the catalogue shall say of a link; None for nothing.
        catalogue: Whether it has to be written.
        trees: Trees to remove.
        done: The findings that this ends.
    """

    directories: bool
    links: Mapping[str, str]
    unlink: frozenset[str]
    records: frozenset[str]
    lines: Mapping[str, CatalogueEntry | None]
    catalogue: bool
    trees: tuple[str, ...]
    done: frozenset[Finding]


def inspect(snapshot: Snapshot, layout: Layout) -> tuple[tuple[Finding, ...], tuple[Foreign, ...]]:
    """Compare all with all; gives what is wrong, and what is not ours."""
    found: list[Finding | Foreign] = []
    if not snapshot.usable and (snapshot.records or snapshot.catalogue):
        found.append(Finding(Kind.CATALOGUE, CATALOGUE, "none, or not readable as one", "a catalogue", Mend.CATALOGUE))
    for link, line in sorted(snapshot.catalogue.items()):
        found.extend(_catalogued(snapshot, layout, link, line))
    for link, tree in sorted(snapshot.links.items()):
        if link not in snapshot.catalogue:
            found.append(_uncatalogued(snapshot, layout, link, tree))
    found.extend(_records(snapshot))
    found.extend(_trees(snapshot, layout))
    if snapshot.records:
        found.extend(_directories(snapshot, layout))
    return (
        tuple(each for each in found if isinstance(each, Finding)),
        tuple(each for each in found if isinstance(each, Foreign)),
    )


def _catalogued(snapshot: Snapshot, layout: Layout, link: str, line: CatalogueEntry) -> Iterator[Finding]:
    """A line of the catalogue, and the link that it names."""
    lead = snapshot.leads.get(link)
    there = snapshot.good(lead)
    meant = snapshot.good(line.path)
    if not _is_link_path(link):
        yield Finding(Kind.LINE, link, "no path of a link", "a path below the repository's root", Mend.FORGET_LINE)
    elif lead == "":
        yield Finding(Kind.OBSTRUCTED, link, "no symbolic link", f"a link to {line.path}", Mend.HAND)
    elif there is not None:
        entry = _corrected(layout, link, line, there)
        if line != entry:
            yield Finding(
                Kind.LINE, link, f"catalogued with {line.path}, {line.digest}, {line.size} bytes, {line.entries} names",
                f"{entry.path}, {entry.digest}, {entry.size} bytes, {entry.entries} names", Mend.LINE,
                there.path, entry,
            )  # fmt: skip
    elif meant is not None:
        kind = Kind.MISSING_LINK if lead is None else Kind.LINK
        yield Finding(kind, link, _leading(lead), f"a link to {meant.path}", Mend.LINK, meant.path)
    elif lead is None:
        yield Finding(Kind.MISSING_LINK, link, "nothing", f"a link to {line.path}", Mend.FORGET_LINE)
    elif snapshot.trees.get(lead):
        yield Finding(Kind.UNRECORDED, link, f"a link to {lead}, which has no good record", "a record", Mend.SYNC, lead)
    elif key_of_tree(lead) is not None:
        yield Finding(Kind.DANGLING, link, f"a link to {lead}, where no tree is", "a tree", Mend.UNLINK, lead)
    else:
        yield Finding(Kind.LINK, link, _leading(lead), f"a link to {line.path}", Mend.FORGET_LINE)


def _uncatalogued(snapshot: Snapshot, layout: Layout, link: str, tree: str) -> Finding | Foreign:
    """A link that the catalogue does not name."""
    lead = snapshot.leads.get(link)
    there = snapshot.good(lead)
    entry = derived_entry(layout, link, there) if there and layout.digest_of_tree(there.path) is not None else None
    if there is not None and entry is not None and is_link_of(layout, link, entry.image):
        return Finding(
            Kind.MISSING_LINE, link, f"a link to {there.path}, not in the catalogue", "a line there", Mend.LINE,
            there.path, entry,
        )  # fmt: skip
    key = key_of_tree(tree)
    if lead == tree and tree not in snapshot.trees and (key in snapshot.records or key in snapshot.known):
        return Finding(Kind.DANGLING, link, f"a link to {tree}, where no tree is", "a tree", Mend.UNLINK, tree)
    return Foreign(link, f"a link to {lead}, not in the catalogue")


def _records(snapshot: Snapshot) -> Iterator[Finding]:
    for key, record in sorted(snapshot.records.items()):
        path = record_path(key)
        if isinstance(record, str):
            tree = next((each for each in _places(key) if snapshot.trees.get(each)), None)
            yield Finding(Kind.RECORD, path, record, f"a record of {key}", Mend.FORGET_TREE, tree)
        elif not snapshot.trees.get(record.path):
            stands = "something else" if record.path in snapshot.trees else "nothing"
            yield Finding(
                Kind.NO_TREE, path, f"{stands} at {record.path}", "a tree there", Mend.FORGET_RECORD, record.path
            )


def _trees(snapshot: Snapshot, layout: Layout) -> Iterator[Finding | Foreign]:
    """Trees without a record."""
    linked = set(snapshot.links.values())
    named = {line.path for line in snapshot.catalogue.values()}
    for path, is_directory in sorted(snapshot.trees.items()):
        key = key_of_tree(path)
        record = snapshot.records.get(key) if key else None
        ours = layout.digest_of_tree(path) is not None
        if ours and (isinstance(record, str) or (record is not None and record.path == path)):
            continue
        known = key in snapshot.known or path in named
        if ours and is_directory and known and path not in linked:
            yield Finding(
                Kind.LEFTOVER, path, "a tree without a record, and no link to it",
                "a record, unless it is being published just now", Mend.REMOVE_TREE, path,
            )  # fmt: skip
        elif path not in named and not snapshot.good(path):
            yield Foreign(path, "a tree without a record" if is_directory else "no directory")


def _directories(snapshot: Snapshot, layout: Layout) -> Iterator[Finding]:
    """What trees are in; and the markers, which keep catalogs small."""
    prefixes = [path for path in snapshot.absent if not path.endswith(MARKER)]
    for path in set(snapshot.absent).difference(prefixes):
        yield Finding(Kind.DIRECTORY, path, "nothing", "the marker of a nested catalog", Mend.DIRECTORIES)
    if prefixes:
        yield Finding(
            Kind.DIRECTORY, layout.trees, f"{len(prefixes)} directories are missing, such as {prefixes[0]}",
            "all of them: a clone can only be made where its directory is published", Mend.DIRECTORIES,
        )  # fmt: skip


def _corrected(layout: Layout, link: str, line: CatalogueEntry, tree: Published) -> CatalogueEntry:
    """A line with what follows from link and record; what else it says stays, where that can be."""
    entry = derived_entry(layout, link, tree)
    if (line.digest, line.path) == (entry.digest, entry.path):
        return replace(line, size=entry.size, entries=entry.entries)
    # What has a default is what only the list knows.
    told = {each.name: getattr(line, each.name) for each in fields(line) if each.default is not MISSING}
    return replace(entry, image=line.image, **told)


def _leading(lead: str | None) -> str:
    return "nothing" if lead is None else f"a link to {lead}"


def _is_link_path(link: str) -> bool:
    """Whether a link of ours can be there: below the root, and not where our own things are."""
    parts = link.split("/")
    own = {OWN, *(Layout(name).trees for name in LAYOUTS)}
    return all(part not in ("", ".", "..") and "\0" not in part for part in parts) and parts[0] not in own


def _places(key: str) -> Iterable[str]:
    return (Layout(name).tree_of_key(key) for name in LAYOUTS)


def repairs(findings: Iterable[Finding], snapshot: Snapshot, layout: Layout) -> Repairs:
    """Decide what is done about findings. Nothing that a link leads to is removed, whosever link it is."""
    found = list(findings)
    forgotten = {each.tree for each in found if each.mend in (Mend.FORGET_TREE, Mend.FORGET_RECORD)}
    links: dict[str, str] = {}
    unlink: set[str] = set()
    lines: dict[str, CatalogueEntry | None] = {}
    records: set[str] = set()
    done: set[Finding] = set()
    for each in found:
        match each.mend:
            case Mend.LINK if each.tree is not None and each.tree not in forgotten:
                links[each.path] = each.tree
            case Mend.LINK | Mend.FORGET_LINE:
                # What has lost its record is published again, with its link, if the list asks for it.
                lines[each.path] = None
            case Mend.LINE:
                lines[each.path] = each.entry
            case Mend.UNLINK:
                unlink.add(each.path)
                lines[each.path] = None
            case Mend.FORGET_RECORD | Mend.FORGET_TREE:
                key = key_of_tree(each.tree) if each.kind is Kind.DAMAGED and each.tree else None
                records.add(key or each.path.rpartition("/")[2].removesuffix(".json"))
            case _:
                pass
    leading = {tree for link, tree in snapshot.links.items() if link not in unlink and link not in links}
    leading.update(links.values())
    trees: set[str] = set()
    for each in found:
        removable = each.tree is not None and each.tree not in leading and layout.digest_of_tree(each.tree) is not None
        if each.mend in (Mend.REMOVE_TREE, Mend.FORGET_TREE) and removable and each.tree is not None:
            trees.add(each.tree)
        kept = each.mend is Mend.FORGET_TREE and each.tree in leading
        if each.mend not in (Mend.SYNC, Mend.HAND) and not kept and (each.mend is not Mend.REMOVE_TREE or removable):
            done.add(each)
    return Repairs(
        directories=any(each.mend is Mend.DIRECTORIES for each in found),
        links=links,
        unlink=frozenset(unlink),
        records=frozenset(records),
        lines=lines,
        catalogue=bool(lines) or any(each.mend is Mend.CATALOGUE for each in found),
        trees=tuple(sorted(trees)),
        done=frozenset(done),
    )
