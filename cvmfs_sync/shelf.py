"""The published trees that new ones can be made of, with what is known of their content.

Records of a repository and a cache of tree indexes go in; candidates and their trees come out. A tree whose index was
lost is read from the repository itself. Safe for threads: one image is prepared while another one is published.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from cvmfs_sync.diff import Content
from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.index import IndexCache, LayerIndex
from cvmfs_sync.inventory import Published, all_records
from cvmfs_sync.ports import Repository
from cvmfs_sync.reference import ImageName, Reference, parse_image
from cvmfs_sync.relative import Candidate
from cvmfs_sync.tree import Tree
from cvmfs_sync.treeindex import read_tree, tree_id, tree_of

__all__ = ["Shelf", "candidate_of", "repository_of"]

log = logging.getLogger(__name__)


class Shelf:
    """All trees of a repository.

    Args:
        repository: Its records are read once, when they are first needed.
        indexes: Indexes of trees, by `tree_id`.
    """

    def __init__(self, repository: Repository, indexes: IndexCache) -> None:
        self._repository = repository
        self._indexes = indexes
        self._lock = threading.Lock()
        self._published: dict[str, Candidate] | None = None
        self._coming: dict[str, LayerIndex] = {}

    def candidates(self) -> tuple[Candidate, ...]:
        """All trees that are published or coming.

        Raises:
            RepositoryUnavailable: The records can't be read.
        """
        with self._lock:
            if self._published is None:
                self._published = {each.path: candidate_of(each) for each in all_records(self._repository)}
            return tuple(self._published.values())

    def load(self, path: str, *, thorough: bool) -> tuple[Tree, Content] | None:
        """A tree and the digests of its files; None if that can't be had.

        Args:
            path: Where it is in the repository.
            thorough: Whether to read the tree itself where its index was lost.
        """
        identity = tree_id(path)
        index = self._coming.get(path) or self._indexes.get(identity)
        if index is None and thorough:
            log.info("reading %s again: its index was lost", path)
            try:
                hard_links = self._repository.traits.keeps_hard_links
                index = read_tree(self._repository.root / path, identity, hard_links=hard_links)
            except OSError as error:
                log.warning("%s cannot be read: %s", path, error)
                return None
            self._indexes.put(index)
        return None if index is None else tree_of(index)

    def announce(self, candidate: Candidate, index: LayerIndex) -> None:
        """A tree is going to be published: whoever is prepared next may be made of it."""
        self.candidates()
        with self._lock:
            assert self._published is not None  # noqa: S101 - set by the call before
            self._published[candidate.path] = candidate
            self._coming[candidate.path] = index

    def is_published(self, path: str) -> bool:
        """Whether a tree is there, and not only going to be."""
        with self._lock:
            return path not in self._coming and self._published is not None and path in self._published

    def published(self, path: str) -> None:
        """A tree that was announced is there."""
        with self._lock:
            index = self._coming.pop(path, None)
        if index is not None:
            self._indexes.put(index)

    def discard(self, path: str) -> None:
        """A tree that was announced will not come, or one that was there has gone."""
        with self._lock:
            self._coming.pop(path, None)
            if self._published is not None:
                self._published.pop(path, None)


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
    return name.name if isinstance(name, Reference) else str(name).rpartition(":")[0] if name.tag else str(name)


def _repository(reference: str) -> str:
    try:
        return repository_of(parse_image(reference))
    except InvalidReference:
        return reference
