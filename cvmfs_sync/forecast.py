"""What publishing an image would take: bytes compressed and unpacked, and what of it is published already.

A plan goes in; a `Forecast` for each of its links comes out. Registries are asked for a few bytes of layers that are
not known yet, never for whole ones. What can't be known is None, and never 0: a check of a pull request mostly runs
where nothing is published.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add

from cvmfs_sync.context import Context
from cvmfs_sync.image import Descriptor, ResolvedImage
from cvmfs_sync.inventory import Published, all_records, find_tree
from cvmfs_sync.plan import Plan, Publish, Relink, Unchanged
from cvmfs_sync.reference import Digest, ImageName
from cvmfs_sync.sizes import Estimate, Ratios, unpacked
from cvmfs_sync.survey import ask_each
from cvmfs_sync.tar import Kind

__all__ = ["Forecast", "Shared", "forecast"]

log = logging.getLogger(__name__)
# Requests of one run; it is pull requests that are checked, and who checks thousands of images needs no more.
_ASKED = 2000


@dataclass(frozen=True, slots=True)
class Shared:
    """What of an image's layers is published already.

    Attributes:
        layers: How many.
        bytes: Of these, compressed.
        relative: The published image that has most of it; None if none has anything.
    """

    layers: int
    bytes: int
    relative: str | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """About one image.

    Attributes:
        compressed: Bytes of its layers as they are transferred.
        to_fetch: Of these, of layers that no index is kept of.
        unpacked: Bytes of regular files, where the image is published; else of all its uncompressed layers, of which
            the image's files are a little less. None if not known.
        at_least: Bytes that its uncompressed layers have in any case.
        shared: None if it is not known what is published, or the image itself is.
        published: Whether the image itself is, so that `unpacked` is no estimate.
    """

    compressed: int
    to_fetch: int
    unpacked: Estimate | None
    at_least: int
    shared: Shared | None
    published: bool = False


def forecast(context: Context, decided: Plan, *, told: bool) -> Mapping[str, Forecast]:
    """Look at each image of a plan that does not fail.

    Args:
        context: Nothing in it is changed.
        decided: The plan.
        told: Whether the repository can tell what is published.

    Returns:
        By link.

    Raises:
        RepositoryUnavailable: The records can't be read.
    """
    shelf = _Stock(all_records(context.repository, lenient=True) if told else ())
    coming = [step for step in decided.steps if isinstance(step, Publish)]
    layers = _layers(context, [step.image for step in coming], shelf.ratios)
    found: dict[str, Forecast] = {}
    for step in decided.steps:
        match step:
            case Publish():
                shared = shelf.shared(step.image) if told else None
                found[step.target.link] = _coming(step.image, layers, shared)
            case Unchanged(digest=digest) | Relink(digest=digest):
                tree = find_tree(context.repository, context.recipe.layout, digest)
                if tree is not None:
                    found[step.target.link] = _there(tree)
    for step in decided.steps:
        # Its tree comes for another link of the same plan.
        if isinstance(step, Relink) and step.image is not None and step.target.link not in found:
            shared = shelf.shared(step.image) if told else None
            found[step.target.link] = _coming(step.image, layers, shared)
    return found


@dataclass(frozen=True, slots=True)
class _Layer:
    """What is known of a layer's size.

    Attributes:
        kept: Whether its index is, so that it need not be fetched.
    """

    size: Estimate | None
    kept: bool = False


def _layers(context: Context, images: Iterable[ResolvedImage], ratios: Ratios | None) -> Mapping[Digest, _Layer]:
    """The sizes of all layers by diff_id: of those whose index is kept, else asked for, else by experience."""
    found: dict[Digest, _Layer] = {}
    unknown: dict[Digest, tuple[ImageName, Descriptor]] = {}
    for image in images:
        for descriptor, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True):
            if diff_id in found or diff_id in unknown:
                continue
            size = _kept_size(context, diff_id)
            if size is None:
                unknown[diff_id] = image.name, descriptor
            else:
                found[diff_id] = _Layer(Estimate.known(size), kept=True)
    asked = list(unknown.items())[:_ASKED]
    context.progress.start("asking for sizes", len(asked))

    def ask(item: tuple[Digest, tuple[ImageName, Descriptor]]) -> Estimate | None:
        name, descriptor = item[1]
        try:
            return unpacked(descriptor, partial(context.sources.part, name, descriptor))
        finally:
            context.progress.advance(1)

    sizes = dict(zip((item[0] for item in asked), ask_each(asked, lambda item: item[1][0], ask), strict=True))
    for diff_id, (_, descriptor) in unknown.items():
        size_asked = sizes.get(diff_id)
        by_experience = ratios.estimate(descriptor.size) if ratios is not None else None
        found[diff_id] = _Layer(size_asked or by_experience)
    return found


def _kept_size(context: Context, diff_id: Digest) -> int | None:
    """Bytes of a layer's files, if its index is kept where we may read it."""
    try:
        index = context.layer_indexes.get(diff_id)
    except OSError as error:
        log.debug("no index of %s: %s", diff_id, error)
        return None
    return None if index is None else sum(entry.size for entry in index.entries if entry.kind is Kind.FILE)


def _coming(image: ResolvedImage, layers: Mapping[Digest, _Layer], shared: Shared | None) -> Forecast:
    pairs = [
        (descriptor.size, layers[diff_id])
        for descriptor, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True)
    ]
    sizes = [layer.size for _, layer in pairs if layer.size is not None]
    return Forecast(
        image.compressed_size,
        sum(size for size, layer in pairs if not layer.kept),
        reduce(add, sizes, Estimate.known(0)) if len(sizes) == len(pairs) else None,
        # By experience is not in any case: what is not known is as large as it is compressed.
        sum(layer.size.low if layer.size is not None and layer.size.exact else size for size, layer in pairs),
        shared,
    )


def _there(tree: Published) -> Forecast:
    record = tree.record
    compressed, size = int(record.get("compressed_size") or 0), int(record.get("size") or 0)
    return Forecast(compressed, 0, Estimate.known(size), size, None, published=True)


class _Stock:
    """The layers of all published images.

    Args:
        records: Of all of them.
    """

    def __init__(self, records: Iterable[Published]) -> None:
        self._images: list[tuple[str, str]] = []
        self._by_layer: dict[str, list[int]] = {}
        sizes: list[tuple[int, int]] = []
        for number, each in enumerate(records):
            record = each.record
            self._images.append((str(record.get("published_at")), str(record.get("reference"))))
            layers = record.get("layers")
            for diff_id in {str(layer.get("diff_id")) for layer in layers} if isinstance(layers, list) else ():
                self._by_layer.setdefault(diff_id, []).append(number)
            sizes.append((int(record.get("compressed_size") or 0), int(record.get("size") or 0)))
        self.ratios = Ratios.of(sizes)

    def shared(self, image: ResolvedImage) -> Shared:
        """What of an image is published, and with which image it has most in common, the latest of several."""
        sizes = dict(zip(map(str, image.config.diff_ids), (each.size for each in image.manifest.layers), strict=True))
        common: Counter[int] = Counter()
        for diff_id, size in sizes.items():
            for number in self._by_layer.get(diff_id, ()):
                common[number] += size
        if not common:
            return Shared(0, 0, None)
        known = [size for diff_id, size in sizes.items() if diff_id in self._by_layer]
        nearest = max(common, key=lambda number: (common[number], *self._images[number]))
        return Shared(len(known), sum(known), self._images[nearest][1])
