"""An image made ready to be published: its tree known, what it is made of chosen, and what has to be written on disk.

A resolved image goes in; a `Prepared` comes out, with everything that needs the network or takes long done. Layers that
are known by their index are not fetched unless one of their files has to be written. Nothing is changed in the
repository, so this happens while another image is being published.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

from cvmfs_sync.difference import Content, Metadata, contents
from cvmfs_sync.edit import wanted_files
from cvmfs_sync.errors import LimitExceeded
from cvmfs_sync.extract import Extracted, extracted
from cvmfs_sync.fetch import fetching, spooled
from cvmfs_sync.flatten import Budget, Layer, no_garbage_collection
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.index import IndexCache, LayerIndex, index_layer
from cvmfs_sync.layout import Layout
from cvmfs_sync.meter import Meter
from cvmfs_sync.ports import Progress, Repository, Traits
from cvmfs_sync.reference import Digest
from cvmfs_sync.relative import Candidate, Choice, candidates, nearest, sketch, whole_difference, whole_totals
from cvmfs_sync.resolve import Sources
from cvmfs_sync.rootfs import os_errors
from cvmfs_sync.sandbox import GENERATION, furnish
from cvmfs_sync.shelf import Shelf, repository_of
from cvmfs_sync.spool import Spool
from cvmfs_sync.tar import Entry, Kind, Limits
from cvmfs_sync.tar.entry import NO_XATTRS
from cvmfs_sync.tree import Tree, merge, printable
from cvmfs_sync.treeindex import tree_id, tree_index, without_hard_links
from cvmfs_sync.writing import SANDBOX

__all__ = ["Prepared", "Preparer", "Recipe", "kept_metadata"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What of the configuration shapes a sandbox."""

    layout: Layout
    bind_points: tuple[str, ...]
    limits: Limits


@dataclass(slots=True)
class Prepared:
    """An image that can be published at once.

    Attributes:
        tree: What shall be there, as the repository keeps it.
        content: Digests of its files.
        layers: Where content comes from, bottom to top; blobs that `choice` needs are on disk.
        choice: What the tree is made of.
        path: Where the tree shall be in the repository.
        sketch: See `relative.sketch`.
        size: Bytes of its regular files, several names of one counted once.
        entries: Names in it.
        seconds: That it took, fetching included.
        fetched: Counts what came from the source.
        flattened: Counts layers that had to be read for their index, and the merging of all.
        extracted: The content of the files that `choice` needs, where it could be taken out of the layers ahead.
    """

    image: ResolvedImage
    tree: Tree
    content: Content
    layers: Sequence[Layer]
    choice: Choice
    path: str
    sketch: str
    size: int
    entries: int
    fetched: Meter
    flattened: Meter
    _resources: ExitStack = field(repr=False)
    seconds: float = 0.0
    extracted: Extracted | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the spool have its blobs back."""
        self._resources.close()

    def fetch_wanted(self) -> None:
        """Wait for the blobs that the choice needs.

        Raises:
            ImageError: One of them could not be fetched.
            NoSpace: The spool is full.
        """
        for number in wanted_files(self.choice.difference):
            self.layers[number].blob()


@dataclass(frozen=True, slots=True)
class Preparer:
    """What preparing takes; the same for all images of a cycle.

    Attributes:
        urgent_sources: For images that have no older version there: somebody waits for them.
        indexes: Indexes of layers, by diff_id.
    """

    repository: Repository
    sources: Sources
    urgent_sources: Sources
    spool: Spool
    recipe: Recipe
    indexes: IndexCache
    shelf: Shelf

    def prepare(self, image: ResolvedImage, replaces: str | None, progress: Progress) -> Prepared:
        """Make an image ready.

        Args:
            image: The image.
            replaces: The tree that its link leads to now.
            progress: Told the compressed bytes that are fetched.

        Raises:
            ImageError: The image is not what it should be, or could not be fetched.
            NoSpace: It does not fit into the spool.
        """
        started = time.monotonic()
        with ExitStack() as resources, no_garbage_collection():
            with os_errors("to the indexes in the state directory"):
                known = {diff_id: self.indexes.get(diff_id) for diff_id in image.config.diff_ids}
            unknown = {
                layer.digest: layer
                for layer, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True)
                if known[diff_id] is None
            }
            fetched, flattened = Meter(), Meter()
            sources = replace(self.urgent_sources if replaces is None else self.sources, fetched=fetched)
            blobs, owner = spooled(image, sources), object()

            def hold(digests: Collection[Digest]) -> None:
                wanted = [each for each in blobs if each.digest in digests]
                resources.enter_context(self.spool.hold(wanted, str(image.name), owner=owner))

            hold(unknown)
            layers = resources.enter_context(fetching(image, sources, self.spool, progress, ahead=tuple(unknown)))
            tree, indexes = self._tree(image, layers, known, flattened)
            content = contents(indexes)
            path = self.recipe.layout.tree(image.digest, GENERATION)
            likeness = sketch(tree, content)
            choice = self._choose(image, path, tree, content, likeness, replaces)
            totals = whole_totals(tree)
            prepared = Prepared(
                image, tree, content, layers, choice, path, likeness, totals.bytes, totals.made, fetched, flattened,
                ExitStack(),
            )  # fmt: skip
            hold({image.manifest.layers[number].digest for number in wanted_files(choice.difference)})
            prepared.fetch_wanted()
            if choice.relative is not None:
                # An image that is written whole has so much content that writing it twice costs more than it saves.
                wanted, limits = wanted_files(choice.difference), self.recipe.limits
                prepared.extracted = resources.enter_context(
                    extracted(layers, wanted, limits, self.spool, str(image.name), owner)
                )
            coming = Candidate(path, repository_of(image.name), _layer_sizes(image), likeness, "")
            self.shelf.announce(coming, tree_index(tree_id(path), tree, content))
            prepared._resources = resources.pop_all()
            prepared.seconds = time.monotonic() - started
        return prepared

    def choose_again(self, prepared: Prepared, replaces: str | None, *, whole: bool = False) -> None:
        """Choose another relative, because the one that was chosen is not there after all; or none.

        Raises:
            ImageError: What has to be written now could not be fetched.
            NoSpace: It does not fit into the spool.
        """
        prepared.extracted = None
        if whole:
            difference = whole_difference(prepared.tree, prepared.content, kept_metadata(self.repository.traits))
            prepared.choice = replace(prepared.choice, relative=None, difference=difference, cost=prepared.choice.whole)
        else:
            prepared.choice = self._choose(
                prepared.image, prepared.path, prepared.tree, prepared.content, prepared.sketch, replaces
            )
        prepared.fetch_wanted()

    def _tree(
        self,
        image: ResolvedImage,
        layers: Sequence[Layer],
        known: Mapping[Digest, LayerIndex | None],
        flattened: Meter,
    ) -> tuple[Tree, Sequence[LayerIndex]]:
        """The tree of the image as the repository will keep it, and the indexes that tell its content."""
        limits = self.recipe.limits
        indexes = dict(known)
        budget = Budget(limits)
        for layer, descriptor in zip(reversed(layers), reversed(image.manifest.layers), strict=True):
            index = indexes[layer.diff_id]
            if index is None:
                layer.blob()  # waiting for it is no reading
                with flattened.running():
                    index = index_layer(layer, limits, descriptor.digest)
                flattened.add(sum(entry.size for entry in index.entries))
                indexes[layer.diff_id] = index
                try:
                    self.indexes.put(index)
                except OSError as error:
                    # Without it the layer has to be read again the next time, no more.
                    log.warning("the index of a layer could not be kept: %s", error)
            # Now, and not when all have been read: what is too large shall not fill the memory before it is refused.
            for entry in index.entries:
                budget.charge(entry, layer)
        ordered = [found for layer in layers if (found := indexes[layer.diff_id]) is not None]
        with flattened.running():
            tree = merge([index.entries for index in ordered], limits)
            furnish(tree, image.config, bind_points=self.recipe.bind_points)
            if not self.repository.traits.keeps_hard_links:
                without_hard_links(tree)
        _require_short_paths(tree)
        return tree, ordered

    def _choose(
        self, image: ResolvedImage, path: str, tree: Tree, content: Content, likeness: str, replaces: str | None
    ) -> Choice:
        repository, layers = repository_of(image.name), _layer_sizes(image)
        near = self.shelf.near(replaces=replaces, repository=repository, layers=layers, sketch=likeness)
        ranked = candidates(
            (each for each in near if each.path != path),
            replaces=replaces, repository=repository, layers=layers, sketch=likeness,
        )  # fmt: skip
        first = ranked[0] if ranked else None
        return nearest(
            tree, content, ranked, lambda each: self.shelf.load(each.path, thorough=each is first),
            costs=self.repository.traits.costs, metadata=kept_metadata(self.repository.traits),
        )  # fmt: skip


def kept_metadata(traits: Traits) -> partial[Metadata]:
    """What of an entry's metadata comes into a repository, where `SANDBOX` is the policy."""
    return partial(_kept, unit=traits.mtime_unit)


def _kept(entry: Entry, *, unit: int) -> Metadata:
    mode = entry.mode | (SANDBOX.directory_mode if entry.kind is Kind.DIRECTORY else SANDBOX.file_mode)
    xattrs = entry.xattrs
    if xattrs:
        xattrs = {name: value for name, value in xattrs.items() if name.startswith(SANDBOX.xattrs)} or NO_XATTRS
    return Metadata(mode, 0, 0, entry.mtime // unit * unit, xattrs)


def _layer_sizes(image: ResolvedImage) -> dict[str, int]:
    """Compressed bytes of an image's layers by diff_id."""
    pairs = zip(image.config.diff_ids, image.manifest.layers, strict=True)
    return {str(diff_id): layer.size for diff_id, layer in pairs}


def _require_short_paths(tree: Tree) -> None:
    """The tar reader has looked at each path, but not where links lead it."""
    longest = tree.limits.path
    for path, _ in tree.walk():
        if len(path) > longest:
            raise LimitExceeded(
                f"{printable(path)}: over the limit 'path'",
                found=f"{len(path)} bytes, symbolic links on the way resolved",
                expected=f"at most {longest} bytes",
            )
