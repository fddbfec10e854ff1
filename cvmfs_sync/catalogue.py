"""`catalogue.json`: keeping it in step with the links, at a cost that stays small beside that of publishing.

Links and published trees go in; lines, and the file, come out. Every line stands on a line of its own. A list of
thousands of links takes as long to write as a small image to publish: then not each transaction writes it, but as many
as take a twentieth of the time. What it lacks after an interruption the next cycle writes, for it compares each link
with its line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from cvmfs_sync import __version__
from cvmfs_sync.imagelist import Wish
from cvmfs_sync.inventory import CATALOGUE_VERSION, Catalogue, CatalogueEntry, Published, read_catalogue
from cvmfs_sync.layout import CATALOGUE, Layout
from cvmfs_sync.ports import Repository, Transaction
from cvmfs_sync.reference import Digest, ImageName, Platform

__all__ = ["CatalogueFile", "LinkWish", "catalogue_entry", "write_catalogue"]

_ALWAYS = 200  # lines that are written in a moment
_SHARE = 20


@dataclass(frozen=True, slots=True)
class LinkWish:
    """A link that shall lead to a tree.

    Attributes:
        source: What the name meant at its registry.
    """

    link: str
    name: ImageName
    source: Digest
    wish: Wish
    platform: Platform


class CatalogueFile:
    """The catalogue of a repository during one cycle, which is the only one to change it.

    Attributes:
        behind: Whether the file lacks lines that it should have.
    """

    def __init__(self, repository: Repository, layout: Layout, clock: Callable[[], float] = time.monotonic) -> None:
        self._repository = repository
        self._layout = layout
        self._clock = clock
        self._lines: dict[str, CatalogueEntry] | None = None
        self._written: tuple[float, float] | None = None  # when, and for how long
        self.behind = False

    @property
    def lines(self) -> Catalogue:
        """All lines, those of published links that are not in the file yet among them.

        Raises:
            RepositoryUnavailable: There is no file, and the links can't be read.
        """
        if self._lines is None:
            self._lines = dict(read_catalogue(self._repository, self._layout))
        return self._lines

    def put(self, transaction: Transaction, changes: Mapping[str, CatalogueEntry], *, now: bool = False) -> bool:
        """Have these lines written, by this transaction or a later one.

        Args:
            transaction: An open one; when it is published, the caller says so with `published`.
            changes: Lines by link.
            now: Whether to write in any case.

        Returns:
            Whether this transaction writes the file.
        """
        lines = {**self.lines, **changes}
        start = self._clock()
        if not (now or len(lines) < _ALWAYS or self._is_due(start)):
            return False
        write_catalogue(transaction, lines)
        end = self._clock()
        self._written = (end, end - start)
        return True

    def published(self, changes: Mapping[str, CatalogueEntry], *, written: bool) -> None:
        """The transaction that `put` was given is published."""
        self._lines = {**self.lines, **changes}
        self.behind = not written

    def _is_due(self, now: float) -> bool:
        if self._written is None:
            return True
        at, duration = self._written
        return now - at >= _SHARE * duration


def write_catalogue(transaction: Transaction, catalogue: Catalogue) -> None:
    """Replace the file."""
    head = {"version": CATALOGUE_VERSION, "generator": f"cvmfs-sync {__version__}", "images": {}}
    lines = ",\n".join(f"  {_json(link)}: {_json(_line(line))}" for link, line in sorted(catalogue.items()))
    text = json.dumps(head, indent=1, ensure_ascii=False).replace('"images": {}', f'"images": {{\n{lines}\n }}')
    transaction.write(CATALOGUE, text.encode("utf-8", "surrogatepass") + b"\n")


_json = json.JSONEncoder(ensure_ascii=False).encode
_FIELDS = tuple(field.name for field in fields(CatalogueEntry))


def _line(entry: CatalogueEntry) -> dict[str, object]:
    """What `asdict` says of values without values in them, in a tenth of its time: there are thousands."""
    return {name: getattr(entry, name) for name in _FIELDS}


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
        list_commit=wish.origin.commit if wish.origin else None,
        requested_by=wish.origin.author if wish.origin else None,
        requested_at=wish.origin.at if wish.origin else None,
    )
