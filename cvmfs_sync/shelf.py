"""The published trees that new ones can be made of, with what is known of their content.

Records of a repository and a cache of tree indexes go in; candidates and their trees come out. A tree whose index was
lost is read from the repository itself. Safe for threads: one image is prepared while another one is published.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from itertools import islice

from cvmfs_sync.difference import Content
from cvmfs_sync.errors import InvalidImage, InvalidReference
from cvmfs_sync.index import IndexCache, LayerIndex
from cvmfs_sync.inventory import Published, all_records
from cvmfs_sync.ports import Repository
from cvmfs_sync.reference import ImageName, parse_image, without_tag
from cvmfs_sync.relative import Candidate, smallest
from cvmfs_sync.tree import Tree
from cvmfs_sync.treeindex import read_tree, tree_id, tree_of

__all__ = ["Shelf", "candidate_of", "repository_of"]

log = logging.getLogger(__name__)
_OF_EACH = 16  # candidates for each thing in common


class Shelf:
    """All trees of a repository.

    Args:
        repository: Its records are read once, when they are first needed.
        indexes: Indexes of trees, by `tree_id`.
    """

    def __init__(self, repository: Repository, indexes: IndexCache) -> None:
        self._repository = repository
        self._indexes = indexes
        self._lock = threading.RLock()
        self._candidates: dict[str, Candidate] | None = None
        # Paths of candidates by what they may have in common with a new tree: comparing it with each of thousands would
        # take longer than publishing it.
        self._by_trait: dict[str, dict[str, None]] = {}
        self._coming: dict[str, LayerIndex] = {}
        self.quiet = threading.Lock()
        """Held by who publishes, and by who reads published trees: an open file below it stops a server's publish."""

    def near(self, *, replaces: str | None, repository: str, layers: Mapping[str, int], sketch: str) -> list[Candidate]:
        """The trees, published or coming, that have anything in common with a new one that the records tell.

        Args:
            replaces: The tree that its link leads to now.
            repository: The image's name without tag and digest.
            layers: Compressed bytes of its layers by diff_id.
            sketch: See `relative.sketch`.

        Raises:
            RepositoryUnavailable: The records can't be read.
        """
        with self._lock:
            everything = self._all()
            # Of the many that share a small base layer, the latest must do.
            found: dict[str, None] = {}
            if replaces is not None and replaces in everything:
                found[replaces] = None
            for trait in [*sorted(layers, key=lambda layer: -layers[layer]), *smallest(sketch), repository]:
                found.update(dict.fromkeys(islice(reversed(self._by_trait.get(trait, {})), _OF_EACH)))
            return [everything[path] for path in found]

    def _all(self) -> dict[str, Candidate]:
        if self._candidates is None:
            self._candidates = {}
            published = (candidate_of(each) for each in all_records(self._repository, lenient=True))
            for candidate in sorted(published, key=lambda each: each.published_at):
                self._add(candidate)
        return self._candidates

    def _add(self, candidate: Candidate) -> None:
        self._remove(candidate.path)
        self._all()[candidate.path] = candidate
        for trait in _traits(candidate):
            self._by_trait.setdefault(trait, {})[candidate.path] = None

    def _remove(self, path: str) -> None:
        candidate = self._all().pop(path, None)
        for trait in _traits(candidate) if candidate else ():
            self._by_trait.get(trait, {}).pop(path, None)

    def load(self, path: str, *, thorough: bool) -> tuple[Tree, Content] | None:
        """A tree and the digests of its files; None if that can't be had.

        Args:
            path: Where it is in the repository.
            thorough: Whether to read the tree itself where its index was lost.
        """
        identity = tree_id(path)
        try:
            index = self._coming.get(path) or self._indexes.get(identity)
            if index is None and thorough:
                log.info("reading %s again: its index was lost", path)
                hard_links = self._repository.traits.keeps_hard_links
                with self.quiet:
                    index = read_tree(self._repository.root / path, identity, hard_links=hard_links)
                self._keep(index)
            return None if index is None else tree_of(index)
        except (OSError, InvalidImage) as error:
            # Then the new tree is made of another one.
            log.warning("%s cannot be read: %s", path, error)
            return None

    def _keep(self, index: LayerIndex) -> None:
        """Put an index into the cache; without it the tree has to be read again, no more."""
        try:
            self._indexes.put(index)
        except OSError as error:
            log.warning("the index of a tree could not be kept: %s", error)

    def announce(self, candidate: Candidate, index: LayerIndex) -> None:
        """A tree is going to be published: whoever is prepared next may be made of it."""
        with self._lock:
            self._add(candidate)
            self._coming[candidate.path] = index
        # Now, while another image is published: an index says what a tree of this name is, whether or not it comes.
        self._keep(index)

    def is_published(self, path: str) -> bool:
        """Whether a tree is there, and not only going to be."""
        with self._lock:
            return path not in self._coming and path in self._all()

    def published(self, path: str) -> None:
        """A tree that was announced is there."""
        with self._lock:
            self._coming.pop(path, None)

    def discard(self, path: str) -> None:
        """A tree that was announced will not come, or one that was there has gone."""
        with self._lock:
            self._coming.pop(path, None)
            self._remove(path)


def _traits(candidate: Candidate) -> tuple[str, ...]:
    return (*candidate.layers, *smallest(candidate.sketch), candidate.repository)


def candidate_of(tree: Published) -> Candidate:
    """What a record tells of a tree."""
    record = tree.record
    sizes: dict[str, int] = {}
    layers = record.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, Mapping):
            sizes[str(layer.get("diff_id"))] = int(layer.get("size") or 0)
    return Candidate(
        tree.path, _repository(str(record.get("reference"))), sizes, str(record.get("sketch") or ""),
        str(record.get("published_at")),
    )  # fmt: skip


def repository_of(name: ImageName) -> str:
    """An image's name without tag and digest."""
    return str(without_tag(name))


def _repository(reference: str) -> str:
    try:
        return repository_of(parse_image(reference))
    except InvalidReference:
        return reference
