"""Layers to one tree, written once: the driver between the pure merge and a sink.

Layers are read top layer first, each inflated once, and the content of a regular file goes to the sink the moment it is
read, unless a layer above hides its path. Whether that was the right place is only known when the last layer has been
read: then `tree.merge` says exactly what the image means, and `arrange` tells the sink what to move, to drop, and what
is still missing. Ordinary images need none of the three. Images that do (a file reached through a symlinked parent, a
hard link to a file whose own name an upper layer hides) cost a second reading of the layer concerned, never a wrong
tree: correctness rests on the merge alone.

Follows the OCI image-spec, layer.md. What the sink is, a directory or a tar stream, is not known here.
"""

from __future__ import annotations

import enum
import gc
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cvmfs_sync.compression import read_layer
from cvmfs_sync.errors import LimitExceeded
from cvmfs_sync.ports import Progress, Silent
from cvmfs_sync.reference import Digest
from cvmfs_sync.shadow import Certainty, Shadow
from cvmfs_sync.tar import Entry, Kind, Limits, Reader
from cvmfs_sync.tree import WHITEOUT, Inode, Tree, merge, printable

__all__ = ["Arrangement", "Budget", "Layer", "Placement", "Sink", "flatten", "layers_ahead", "no_garbage_collection"]

Transform = Callable[[Tree], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to read.

    Attributes:
        blob: Gives the verified compressed file; may block until it has been fetched, and raise why it was not.
        diff_id: Digest that the uncompressed archive must have.
        size: Compressed bytes.
        what: Name for messages.
    """

    blob: Callable[[], Path]
    diff_id: Digest
    size: int
    what: str

    def open(self, limits: Limits) -> AbstractContextManager[Iterator[bytes]]:
        """The uncompressed archive in pieces; its digest is checked at the end."""
        return read_layer(self.blob, diff_id=self.diff_id, what=self.what, limits=limits)


@dataclass(slots=True)
class Arrangement:
    """What turns the files that were placed while reading into the files of the tree.

    Attributes:
        tree: What shall be there.
        misplaced: Files that were placed, but not at a name of theirs, each with its first name.
        leftovers: Files that were placed and are not in the tree, as (layer, ordinal, path).
        missing: Files that were not placed, each with its first name.
    """

    tree: Tree
    misplaced: list[tuple[bytes, Inode]] = field(default_factory=list)
    leftovers: list[tuple[int, int, bytes]] = field(default_factory=list)
    missing: list[tuple[bytes, Inode]] = field(default_factory=list)


class Placement(enum.Enum):
    """When a sink takes a file before the whole image is known."""

    ANYTIME = enum.auto()
    """What turns out to be wrong can be moved."""
    CERTAIN = enum.auto()
    """It can't, but most paths are known to be right when they are read."""
    NEVER = enum.auto()
    """Everything is put aside until the whole image is known."""


class Sink(Protocol):
    """Where a tree is written."""

    placement: Placement
    """When files may be placed while the layers are being read."""

    def place(self, layer: int, ordinal: int, entry: Entry, content: Reader, *, certain: bool) -> bool:
        """Write a regular file at its own path, or put its content aside and return False.

        `certain` says that the path is the right one as far as the layers read so far can tell, and always so for a
        sink that can move what it has written.
        """

    def arrange(self, arrangement: Arrangement) -> None:
        """Take back what was placed wrongly. Files put aside by `place` are known to the sink by layer and ordinal."""

    def fill(self, path: bytes, inode: Inode, content: Reader) -> None:
        """Write one of the missing files."""

    def finish(self, tree: Tree) -> None:
        """Write all else: directories, links, special and synthetic files, hard links, metadata."""


def flatten(
    layers: Sequence[Layer],
    sink: Sink,
    *,
    limits: Limits | None = None,
    transform: Transform | None = None,
    progress: Progress | None = None,
) -> Tree:
    """Write the tree that `layers`, bottom to top, mean into `sink`.

    Args:
        layers: Bottom to top.
        sink: Where to write. After an error its content is undefined and to be thrown away.
        limits: Bounds of the image.
        transform: Changes the merged tree before it is finished, in place.
        progress: Told the compressed bytes of each layer that is done.

    Raises:
        InvalidImage: A layer breaks the specification or a limit.
        BlobMismatch: A layer has not its diff_id.
    """
    with no_garbage_collection():
        return _flatten(layers, sink, limits or Limits(), transform, progress or Silent())


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Millions of entries are made and none of them is garbage: looking for some takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _flatten(
    layers: Sequence[Layer], sink: Sink, limits: Limits, transform: Transform | None, progress: Progress
) -> Tree:
    budget = Budget(limits)
    shadow = Shadow()
    indexes: list[list[Entry]] = [[] for _ in layers]
    placed = [bytearray() for _ in layers]
    clear = sink.placement is not Placement.NEVER
    with closing(layers_ahead(layers, range(len(layers) - 1, -1, -1), limits)) as opened:
        for number, chunks in opened:
            certainty = None if sink.placement is Placement.ANYTIME else Certainty(bottom=number == 0, clear=clear)
            _stream(layers[number], chunks, number, indexes[number], placed[number], sink, shadow, certainty, budget)
            if certainty is not None:
                clear = clear and certainty.whiteouts_hold
            if number:
                shadow.add(indexes[number])
            progress.advance(layers[number].size)
    tree = merge(indexes, limits)
    if transform is not None:
        transform(tree)
    arrangement = _arrange(tree, indexes, placed)
    del indexes, placed
    sink.arrange(arrangement)
    if arrangement.missing:
        _fill(layers, arrangement.missing, sink, limits)
    sink.finish(tree)
    return tree


_ASIDE, _PLACED = 1, 2


def layers_ahead(
    layers: Sequence[Layer], numbers: Sequence[int], limits: Limits
) -> Generator[tuple[int, Iterator[bytes]], None, None]:
    """Number and uncompressed pieces of these layers; the next one is being inflated while one is in use."""
    with ExitStack() as ahead:
        following = ahead.enter_context(layers[numbers[0]].open(limits)) if numbers else iter(())
        for position, number in enumerate(numbers):
            chunks = following
            with ahead.pop_all():
                if position + 1 < len(numbers):
                    following = ahead.enter_context(layers[numbers[position + 1]].open(limits))
                yield number, chunks


def _stream(
    layer: Layer,
    chunks: Iterator[bytes],
    number: int,
    index: list[Entry],
    placed: bytearray,
    sink: Sink,
    shadow: Shadow,
    certainty: Certainty | None,
    budget: Budget,
) -> None:
    """Read one layer: every entry into its index, every visible file into the sink."""
    reader = Reader(chunks, budget.limits, what=layer.what)
    for ordinal, entry in enumerate(reader):
        budget.charge(entry, layer)
        flag = 0
        if entry.kind is Kind.FILE:
            path = entry.path
            if WHITEOUT in path and path.rpartition(b"/")[2].startswith(WHITEOUT):
                if certainty is not None:
                    certainty.note_whiteout(path)
            elif path and not shadow.hides(path):
                certain = certainty is None or certainty.holds(path)
                flag = _PLACED if sink.place(number, ordinal, entry, reader, certain=certain) else _ASIDE
        elif certainty is not None:
            certainty.note(entry)
        index.append(entry)
        placed.append(flag)


def _arrange(tree: Tree, indexes: Sequence[Sequence[Entry]], placed: Sequence[bytearray]) -> Arrangement:
    """Compare what was placed with the tree; `placed` is used up."""
    arrangement = Arrangement(tree)
    shared: dict[int, tuple[Inode, list[bytes]]] = {}

    def settle(inode: Inode, names: list[bytes]) -> None:
        flag = placed[inode.layer][inode.ordinal]
        placed[inode.layer][inode.ordinal] = 0
        if not flag:
            arrangement.missing.append((names[0], inode))
        elif flag == _ASIDE or inode.entry.path not in names:
            arrangement.misplaced.append((names[0], inode))

    longest = tree.limits.path
    for path, inode in tree.walk():
        if len(path) > longest:  # the reader has looked at each path, but not where links lead it
            raise LimitExceeded(
                f"{printable(path)}: over the limit 'path'",
                found=f"{len(path)} bytes, symbolic links on the way resolved",
                expected=f"at most {longest} bytes",
            )
        if inode.entry.kind is not Kind.FILE or inode.content is not None:
            continue
        if inode.shared:
            shared.setdefault(id(inode), (inode, []))[1].append(path)
        elif placed[inode.layer][inode.ordinal] == _PLACED and inode.entry.path == path:
            placed[inode.layer][inode.ordinal] = 0
        else:
            settle(inode, [path])
    for inode, names in shared.values():
        settle(inode, names)
    for number, flags in enumerate(placed):
        if any(flags):
            arrangement.leftovers.extend(
                (number, ordinal, indexes[number][ordinal].path) for ordinal, flag in enumerate(flags) if flag
            )
    return arrangement


def _fill(layers: Sequence[Layer], missing: Sequence[tuple[bytes, Inode]], sink: Sink, limits: Limits) -> None:
    """Read the layers of missing files again."""
    wanted: dict[int, dict[int, tuple[bytes, Inode]]] = {}
    for path, inode in missing:
        wanted.setdefault(inode.layer, {})[inode.ordinal] = (path, inode)
    for number, ordinals in sorted(wanted.items()):
        with layers[number].open(limits) as chunks:
            reader = Reader(chunks, limits, what=layers[number].what)
            for ordinal, _ in enumerate(reader):
                if ordinal in ordinals:
                    path, inode = ordinals[ordinal]
                    sink.fill(path, inode, reader)


class Budget:
    """Counts what an image may have at most over all its layers."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = self.entries = self.hardlinks = 0

    def charge(self, entry: Entry, layer: Layer) -> None:
        """Count one entry of a layer.

        Raises:
            LimitExceeded: It is one too many, or its bytes are.
        """
        self.entries += 1
        self.bytes += entry.size
        if entry.kind is Kind.HARDLINK:
            self.hardlinks += 1
            if self.hardlinks > self.limits.hardlinks:
                raise _exceeded("hardlinks", self.hardlinks, self.limits.hardlinks, layer)
        if self.entries > self.limits.entries:
            raise _exceeded("entries", self.entries, self.limits.entries, layer)
        if self.bytes > self.limits.bytes:
            raise _exceeded("bytes", self.bytes, self.limits.bytes, layer)


def _exceeded(name: str, found: int, limit: int, layer: Layer) -> LimitExceeded:
    return LimitExceeded(
        f"{layer.what}: the image exceeds the limit {name!r}",
        found=f"at least {found}",
        expected=f"at most {limit}",
        todo=f"make the image smaller, or raise limits.{name} in the configuration",
    )
