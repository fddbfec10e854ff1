"""Whether published trees are what was published.

Records of trees go in, findings come out, one tree at a time. A tree is compared with its index, by name, size and
metadata, and as much of the content as is asked for is read. Nothing in the repository is changed. What can't be read
ends the check: it is no proof of damage.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import date
from enum import Enum
from itertools import islice

from cvmfs_sync.difference import Content
from cvmfs_sync.errors import InvalidImage, RepositoryUnavailable
from cvmfs_sync.findings import Finding, Kind, Mend
from cvmfs_sync.index import DIGEST_SIZE, IndexCache
from cvmfs_sync.inventory import Published
from cvmfs_sync.ports import Progress, Repository
from cvmfs_sync.prepare import kept_metadata
from cvmfs_sync.relative import sketch, whole_totals
from cvmfs_sync.tar import Limits
from cvmfs_sync.tree import Inode
from cvmfs_sync.treeindex import read_tree, tree_id, tree_of
from cvmfs_sync.verify import Discrepancy, verify

__all__ = ["PARTS", "Amount", "TreeChecker"]

# A prime: checks that are any number of days apart come to all parts, unless that is a multiple of it.
PARTS = 23
_REPORTED = 3
_CONTENT = "its content"
_READABLE = "readable"
# It has been published: the limits of today are not its own.
_NO_LIMITS = Limits(**{each.name: sys.maxsize for each in fields(Limits)})


class Amount(Enum):
    """How much of the files' content is read; names, sizes and metadata are looked at in any case."""

    NONE = "none"
    SAMPLE = "sample"
    """A part that changes from day to day: daily checks read everything within as many days as there are parts."""
    FULL = "full"


@dataclass(slots=True)
class TreeChecker:
    """Compares trees with what was published.

    Attributes:
        indexes: Of trees, by `tree_id`.
        today: Chooses the sample.
        trees: How many have been compared.
        files: Of how many files the content was read.
        unindexed: Trees that were not compared, because their index was lost.
    """

    repository: Repository
    indexes: IndexCache
    progress: Progress
    today: date
    trees: int = 0
    files: int = 0
    unindexed: list[str] = field(default_factory=list)
    _bytes: int = 0

    def check(self, trees: Sequence[Published], amount: Amount) -> Iterator[Finding]:
        """What is damaged.

        Raises:
            RepositoryUnavailable: Something can't be read.
        """
        sizes = [int(tree.record.get("size", 0)) for tree in trees]
        self.progress.start(f"checking {len(trees)} trees", sum(sizes))
        read = _reading(amount, self.today)
        for tree, size in zip(trees, sizes, strict=True):
            self._bytes = 0
            found = self._compare(tree, read, thorough=amount is Amount.FULL)
            self.progress.advance(max(0, size - self._bytes))
            if found is None:
                self.unindexed.append(tree.path)
                continue
            self.trees += 1
            if found:
                yield _damaged(tree, found)

    def is_damaged(self, tree: Published, rotten: frozenset[bytes]) -> bool:
        """Look at a damaged tree again, and at the content of these of its files.

        Raises:
            RepositoryUnavailable: Something can't be read.
        """
        return bool(self._compare(tree, rotten.__contains__, thorough=True))

    def _compare(
        self, published: Published, read: Callable[[bytes], bool], *, thorough: bool
    ) -> Sequence[Discrepancy] | None:
        """Where a tree is not what was published; None if its index was lost, and `thorough` is not set."""
        identity, root = tree_id(published.path), self.repository.root / published.path
        traits = self.repository.traits
        index = self.indexes.get(identity)
        if index is None and not thorough:
            return None
        try:
            if index is None:
                return self._compare_with_record(published)
            tree, content = tree_of(index, _NO_LIMITS)
            discrepancies = verify(
                root, tree, self._counted(content), metadata=kept_metadata(traits), read=read,
                hard_links=traits.keeps_hard_links, mtime_unit=traits.mtime_unit,
            )  # fmt: skip
            found = tuple(islice(discrepancies, _REPORTED + 1))
        except OSError as error:
            found = (Discrepancy(os.fsencode(error.filename or ""), "the tree", str(error.strerror), _READABLE),)
        if not os.path.lexists(root):
            return ()  # retired meanwhile
        for each in found:
            if each.expected == _READABLE:
                raise RepositoryUnavailable(
                    f"cannot read all of {root}",
                    found=str(each),
                    todo="see that this user may read it, and that disk and mount are well; a file that is lost to the"
                    " disk may be removed, then --repair has the tree published again; nothing was repaired",
                )
        return found

    def _compare_with_record(self, published: Published) -> Sequence[Discrepancy]:
        """Read a tree from end to end; if it agrees with its record, it has an index again."""
        root, identity = self.repository.root / published.path, tree_id(published.path)
        try:
            index = read_tree(root, identity, hard_links=self.repository.traits.keeps_hard_links)
        except InvalidImage:
            return (Discrepancy(b"", "something in it", "a socket", "of a type that a layer can have"),)
        tree, content = tree_of(index, _NO_LIMITS)
        self.files += len(index.digests) // DIGEST_SIZE
        totals = whole_totals(tree)
        size, entries = totals.bytes, totals.made
        found = tuple(_against_record(published, size, entries, sketch(tree, content)))
        if not found:
            self.indexes.put(index)
        return found

    def _counted(self, content: Content) -> Content:
        """What tells a file's digest is asked once for each file that was read."""

        def counted(inode: Inode) -> bytes:
            self.files += 1
            self._bytes += inode.entry.size
            self.progress.advance(inode.entry.size)
            return content(inode)

        return counted


def _reading(amount: Amount, today: date) -> Callable[[bytes], bool]:
    """Whether to read the content of a path, the same in all trees: they may share the file."""
    if amount is Amount.SAMPLE:
        part = today.toordinal() % PARTS
        return lambda path: zlib.crc32(path) % PARTS == part
    return lambda _: amount is Amount.FULL


def _against_record(published: Published, size: int, entries: int, likeness: str) -> Iterator[Discrepancy]:
    """What a record tells of a tree: how large it is, and a sample of its files' paths and digests."""
    for name, found in (("size", size), ("entries", entries), ("sketch", likeness)):
        expected = published.record.get(name)
        if expected is not None and expected != found:
            texts = ("another", "that of the record") if name == "sketch" else (str(found), str(expected))
            yield Discrepancy(b"", f"its {name}", *texts)


def _damaged(tree: Published, found: Sequence[Discrepancy]) -> Finding:
    more = ["and more"] if len(found) > _REPORTED else []
    return Finding(
        Kind.DAMAGED, tree.path, "; ".join([*map(str, found[:_REPORTED]), *more]), "what was published",
        Mend.FORGET_TREE, tree.path, None, frozenset(each.path for each in found if each.what == _CONTENT),
    )  # fmt: skip
