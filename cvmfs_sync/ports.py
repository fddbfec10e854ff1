"""What the core needs of the outside world: where images come from, and where they are published.

Adapters in `registry` and `repository` fulfil these protocols; the command line wires them in. Nothing here does
anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest, ImageName

__all__ = ["Progress", "Repository", "Silent", "Source", "Transaction"]

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

        The content's digest is verified.
        """

    def blob(self, name: Name, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes in pieces, not yet verified: `fetch` does that for every source alike."""

    def local_blob(self, name: Name, descriptor: Descriptor) -> Path | None:
        """A file that already holds the blob, where the source has one on this machine."""

    def tags(self, name: Name) -> Iterator[str]:
        """All tags of the repository, following its pages."""


class Transaction(Protocol):
    """One atomic change of a repository: readers see all of it or nothing. Paths are relative, `/`-separated."""

    def create_tree(self, path: str) -> Path:
        """An empty directory, to be filled before the next call, that becomes `path`; what stood there is replaced."""

    def write(self, path: str, content: bytes) -> None:
        """A file with this content, replacing what stood there, its parents made as needed."""

    def link(self, path: str, target: str) -> None:
        """A symbolic link, replacing one that stood there, its parents made as needed."""


class Repository(Protocol):
    """A place that publishes trees for clients to run."""

    root: Path
    """What clients see, readable at any time."""

    def transaction(self, purpose: str) -> AbstractContextManager[Transaction]:
        """Open a transaction; leaving the block publishes it, an exception in the block aborts it.

        Args:
            purpose: Why, for the log and for whoever finds the transaction open.

        Raises:
            RepositoryError: When it can't be opened or published. The repository shows the old state then, and no
                transaction of ours is left open unless the message says so.
        """

    def recover(self) -> str | None:
        """Clean up what a killed run of ours left; say in one sentence what was found, or None.

        A transaction that is not provably ours is left alone.
        """


class Progress(Protocol):
    """Somebody who wants to know how far a long piece of work is."""

    def start(self, what: str, total: int) -> None:
        """A new piece of work of `total` bytes begins."""

    def advance(self, amount: int) -> None:
        """So many bytes more are done."""


class Silent:
    """The `Progress` of nobody."""

    def start(self, what: str, total: int) -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""
