"""What the core needs of the outside world: where images come from, and where they are published.

Adapters in `registry` and `repository` fulfil these protocols; the command line wires them in. Nothing here does
anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest, ImageName

__all__ = ["Clone", "Costs", "Partial", "Progress", "Repository", "Silent", "Source", "Traits", "Transaction", "Unit"]

Unit: TypeAlias = Literal["bytes", "images"]
Name = TypeVar("Name", bound=ImageName, contravariant=True)


class Source(Protocol[Name]):
    """Where manifests and blobs come from. Every method raises `ImageError`s and nothing else."""

    def head(self, name: Name) -> Digest:
        """The digest that `name` means now, at the least cost the source offers; counts as no pull.

        Raises:
            ImageNotFound: On proof that it is not there.
        """

    def manifest(self, name: Name, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        """Content, digest and media type of the manifest or index that `name` means, or of `digest` in its repository.

        The content has the digest that is returned. It is the one that was asked for, but where `head` tells another
        thing's because nobody keeps manifests there: an engine's image has an identity, and its manifest is made.
        """

    def blob(self, name: Name, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes in pieces, not yet verified: `fetch` does that for every source alike."""

    def local_blob(self, name: Name, descriptor: Descriptor) -> Path | None:
        """A file that already holds the blob, where the source has one on this machine."""

    def tags(self, name: Name) -> Iterator[str]:
        """All tags of the repository, following its pages."""


@runtime_checkable
class Partial(Protocol[Name]):
    """A `Source` that can give parts of a blob that is not on this machine."""

    def part(self, name: Name, descriptor: Descriptor, offset: int, length: int) -> bytes | None:
        """So many of the blob's bytes, not verified; None if they can't be had, for whatever reason."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What publishing costs in a repository, in seconds: a model, fitted to measurements.

    Attributes:
        clone: Beginning with a clone at all.
        cloned: Each name of the clone.
        removed: Each name that is removed from it.
        made: Each name that is made, or whose file has to be written again.
        byte: Each byte of these.
    """

    clone: float
    cloned: float
    removed: float
    made: float
    byte: float


@dataclass(frozen=True, slots=True)
class Traits:
    """What becomes of a tree in a repository.

    Attributes:
        costs: What publishing takes.
        keeps_hard_links: Whether several names of a file stay names of one; else each gets a file of its own.
        mtime_unit: What modification times are rounded down to, in nanoseconds.
        shares_files: Whether a clone's files are those of the tree that it was made of, so that a change of one has to
            be made to a copy.
    """

    costs: Costs
    keeps_hard_links: bool
    mtime_unit: int
    shares_files: bool


@dataclass(frozen=True, slots=True)
class Clone:
    """A published tree to begin with, and the path of the tree that shall be made of it."""

    source: str
    path: str


class Transaction(Protocol):
    """One atomic change of a repository: readers see all of it or nothing. Paths are relative, `/`-separated."""

    def create_tree(self, path: str) -> Path:
        """An empty directory, to be filled before the next call, that becomes `path`; what stood there is replaced."""

    def clone(self) -> Path:
        """The clone that the transaction was opened with, to be changed before the next call.

        Its files are not to be written to where `Traits.shares_files` says so.
        """

    def write(self, path: str, content: bytes) -> None:
        """A file with this content, replacing what stood there, its parents made as needed."""

    def link(self, path: str, target: str) -> None:
        """A symbolic link, replacing one that stood there, its parents made as needed."""

    def make_directory(self, path: str) -> None:
        """A directory of mode 0755, if it is not there, its parents made as needed."""

    def remove(self, path: str) -> None:
        """Nothing at `path`, and no directory above it that is empty then; absence is fine. For files and links."""


class Repository(Protocol):
    """A place that publishes trees for clients to run."""

    root: Path
    """What clients see, readable at any time."""

    @property
    def traits(self) -> Traits:
        """What becomes of trees here."""

    def transaction(self, purpose: str, clone: Clone | None = None) -> AbstractContextManager[Transaction]:
        """Open a transaction; leaving the block publishes it, an exception in the block aborts it.

        Args:
            purpose: Why, for the log and for whoever finds the transaction open.
            clone: A published tree to begin with. Its new path is free, and the directory above that is there. Others
                may see the clone there before it has been changed.

        Raises:
            CloneRefused: There is no such tree, or its new path is not free; nothing has happened.
            RepositoryError: When it can't be opened or published. The repository shows the old state then, and no
                transaction of ours is left open unless the message says so.
        """

    def remove_trees(self, paths: Sequence[str]) -> None:
        """Remove whole trees in one go, outside of any transaction; those that are not there are no mistake.

        Args:
            paths: Trees that no link leads to, by paths of nothing but letters, digits, '.', '-' and '/'.

        Raises:
            RepositoryError: Some of them may still be there.
        """

    def collect_garbage(self) -> None:
        """Have the storage of what no revision names any more freed, where the repository has such a thing.

        Raises:
            RepositoryError: It can't be done; nothing is lost.
        """

    def exclusive(self) -> AbstractContextManager[None]:
        """Be the only cvmfs-sync that works on this repository while the block lasts.

        Raises:
            RepositoryBusy: Another one does.
        """

    def recover(self) -> str | None:
        """Clean up what a killed run of ours left; say in one sentence what was found, or None.

        A transaction that is not provably ours is left alone.
        """


class Progress(Protocol):
    """Somebody who wants to know how far a long piece of work is."""

    def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
        """A new piece of work of so many bytes, or images, begins."""

    def advance(self, amount: int) -> None:
        """So many more are done."""


class Silent:
    """The `Progress` of nobody."""

    def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""
