"""Changes of a mounted repository within an open transaction: the server makes them atomic.

Calls of a `Transaction` go in, and are carried out below the mount at once. Opening, publishing and aborting are not
done here.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cvmfs_sync.ports import Clone
from cvmfs_sync.removal import remove_tree
from cvmfs_sync.repository.files import make_parents, remove_empty_parents, write_new

__all__ = ["CvmfsTransaction"]


class CvmfsTransaction:
    """A `Transaction` that writes into the mounted repository."""

    def __init__(self, root: Path, clone: Clone | None) -> None:
        self._root = root
        self._clone = clone

    def create_tree(self, path: str) -> Path:
        """See `ports.Transaction`."""
        final = make_parents(self._root, path)
        remove_tree(final)
        final.mkdir(mode=0o700)
        return final

    def clone(self) -> Path:
        """See `ports.Transaction`. The server made it when the transaction was opened."""
        assert self._clone is not None  # noqa: S101 - the caller opened the transaction with one
        return self._root / self._clone.path

    def make_directory(self, path: str) -> None:
        """See `ports.Transaction`."""
        make_parents(self._root, f"{path}/.")

    def remove(self, path: str) -> None:
        """See `ports.Transaction`."""
        with suppress(FileNotFoundError, NotADirectoryError):
            (self._root / path).unlink()
        remove_empty_parents(self._root, path)

    def write(self, path: str, content: bytes) -> None:
        """See `ports.Transaction`."""
        write_new(self._clear(path), content)

    def link(self, path: str, target: str) -> None:
        """See `ports.Transaction`."""
        self._clear(path).symlink_to(target)

    def _clear(self, path: str) -> Path:
        final = make_parents(self._root, path)
        remove_tree(final)
        return final
