"""Which published tree a new one is made of: the one whose difference costs least, or none.

Records of published trees and a new tree go in. First `candidates` ranks the trees that are likely to be near, by what
their records tell; then `nearest` compares the new tree with those, and says what to clone and what to change, or that
writing the tree whole costs less. Nothing is read or written here: the caller brings a candidate's tree when asked.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cvmfs_sync.diff import diff
from cvmfs_sync.difference import Content, Metadata, Totals, TreeDiff
from cvmfs_sync.ports import Costs
from cvmfs_sync.tar import Entry, Kind
from cvmfs_sync.tree import Tree

__all__ = [
    "Candidate",
    "Choice",
    "candidates",
    "cost",
    "names_in",
    "nearest",
    "similarity",
    "sketch",
    "smallest",
    "whole_difference",
    "whole_totals",
]

_SKETCH = 64  # hashes: an estimate of likeness within some 6 %
_HASH_BYTES = 6
_CANDIDATES = 4
# A candidate whose difference costs no more than this part of the whole is taken without a look at the others.
_NEAR_ENOUGH = 0.05
# A tree of which the records tell less in common than this is not compared: reading its index costs, too.
_LIKENESS = 0.05

Metadatas: TypeAlias = Callable[[Entry], Metadata]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tree that is published, or will be before the new one is.

    Attributes:
        path: Where it is in the repository.
        repository: The image's name without tag and digest.
        layers: Compressed bytes of its layers by diff_id.
        sketch: What `sketch` said of it; empty where that is not known.
        published_at: ISO 8601, UTC.
    """

    path: str
    repository: str
    layers: Mapping[str, int]
    sketch: str
    published_at: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What a new tree is made of.

    Attributes:
        relative: The path of the tree to clone; None to begin with nothing.
        difference: The steps from there.
        cost: Seconds, as the model says.
        whole: Seconds that beginning with nothing would cost.
    """

    relative: str | None
    difference: TreeDiff
    cost: float
    whole: float


def sketch(tree: Tree, content: Content) -> str:
    """The smallest hashes of the tree's files and links, path and content, in hexadecimal: a bottom-k sketch.

    Two trees' sketches tell how much the trees have in common without a look at either (Broder 1997).
    """
    hashes = heapq.nsmallest(_SKETCH, _hashes(tree, content))
    return b"".join(sorted(hashes)).hex()


def _hashes(tree: Tree, content: Content) -> Iterable[bytes]:
    for path, inode in tree.walk():
        kind = inode.entry.kind
        if kind is Kind.FILE:
            yield hashlib.blake2b(path + b"\0" + content(inode), digest_size=_HASH_BYTES).digest()
        elif kind is Kind.SYMLINK:
            yield hashlib.blake2b(path + b"\1" + inode.entry.link, digest_size=_HASH_BYTES).digest()


def smallest(text: str) -> tuple[str, ...]:
    """The first hashes of a sketch. Trees that have much in common share some of these."""
    step = 2 * _HASH_BYTES
    return tuple(text[start : start + step] for start in range(0, min(len(text) - step + 1, 16 * step), step))


def similarity(one: str, other: str) -> float:
    """Estimate from two sketches of how much of both trees is in either: 0 nothing, 1 all."""
    ours, theirs = _parts(one), _parts(other)
    smallest = set(heapq.nsmallest(_SKETCH, ours | theirs))
    return len(smallest & ours & theirs) / len(smallest) if smallest else 0.0


def _parts(text: str) -> set[str]:
    step = 2 * _HASH_BYTES
    return {text[start : start + step] for start in range(0, len(text) - step + 1, step)}


def candidates(
    published: Iterable[Candidate], *, replaces: str | None, repository: str, layers: Mapping[str, int], sketch: str
) -> tuple[Candidate, ...]:
    """The trees that are likely to be near, best first; no more than are worth comparing.

    What the link leads to now comes first, for a tag mostly moves to a rebuild of what it was; then whoever has most
    bytes of layers or most files in common; then the latest of the same repository.

    Args:
        published: All there are.
        replaces: The tree that the new one's link leads to now.
        repository: The new image's name without tag and digest.
        layers: Sizes of the new image's layers by diff_id.
        sketch: Of the new tree.
    """
    total = sum(layers.values()) or 1

    def rank(candidate: Candidate) -> tuple[bool, float, bool, str, str]:
        shared = sum(size for layer, size in layers.items() if layer in candidate.layers) / total
        likeness = max(shared, similarity(sketch, candidate.sketch))
        same = candidate.repository == repository
        return candidate.path == replaces, likeness, same, candidate.published_at, candidate.path

    ranked = sorted(((rank(each), each) for each in published), key=lambda pair: pair[0], reverse=True)
    return tuple(each for key, each in ranked if key[0] or key[1] >= _LIKENESS or key[2])[:_CANDIDATES]


def names_in(tree: Tree) -> int:
    """How many names a tree has, the root's not counted."""
    return sum(1 for _ in tree.walk())


def cost(difference: TreeDiff, cloned: int | None, costs: Costs) -> float:
    """Seconds that carrying out a difference takes.

    Args:
        difference: The steps.
        cloned: Names of the tree that is cloned; None if none is.
        costs: Of the repository.
    """
    totals = difference.totals
    seconds = totals.removed * costs.removed
    seconds += (totals.made + totals.touched_files) * costs.made
    seconds += (totals.bytes + totals.touched_bytes) * costs.byte
    return seconds if cloned is None else seconds + costs.clone + cloned * costs.cloned


def nearest(
    new: Tree,
    content: Content,
    ranked: Sequence[Candidate],
    load: Callable[[Candidate], tuple[Tree, Content] | None],
    *,
    costs: Costs,
    metadata: Metadatas,
) -> Choice:
    """Compare a new tree with the candidates, and choose.

    Args:
        new: The tree as it shall be in the repository.
        content: Digests of its files.
        ranked: What `candidates` said.
        load: Gives a candidate's tree; None if it can't be had.
        costs: Of the repository.
        metadata: What of an entry's metadata comes there.
    """
    whole = cost(TreeDiff(totals=whole_totals(new)), None, costs)
    best: Choice | None = None
    for candidate in ranked:
        loaded = load(candidate)
        if loaded is None:
            continue
        old, old_content = loaded
        difference = diff(old, new, old_content=old_content, new_content=content, metadata=metadata)
        seconds = cost(difference, names_in(old), costs)
        if seconds < (whole if best is None else best.cost):
            best = Choice(candidate.path, difference, seconds, whole)
        if best is not None and best.cost <= _NEAR_ENOUGH * whole:
            break
    return best or Choice(None, whole_difference(new, content, metadata), whole, whole)


def whole_difference(new: Tree, content: Content, metadata: Metadatas) -> TreeDiff:
    """The steps from nothing."""
    return diff(Tree(new.limits), new, old_content=content, new_content=content, metadata=metadata)


def whole_totals(tree: Tree) -> Totals:
    """What making a tree of nothing costs: all of its names, and its files, of several names once."""
    made = files = size = 0
    seen: set[int] = set()
    for _, inode in tree.walk():
        made += 1
        if inode.entry.kind is Kind.FILE and id(inode) not in seen:
            files += 1
            size += inode.entry.size
            if inode.shared:
                seen.add(id(inode))
    return Totals(made=made, files=files, bytes=size)
