"""The sink that makes a directory out of a tree while its layers are being read.

Two things keep an image inside: the safe door of `writing`; and symbolic links are made after all content has been
written.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvmfs_sync.errors import CvmfsSyncError, InvalidImage, NoSpace, RepositoryUnavailable
from cvmfs_sync.flatten import Arrangement, Placement
from cvmfs_sync.tar import Entry, Kind, Reader
from cvmfs_sync.tree import Inode, Tree, printable, split
from cvmfs_sync.writing import NEW_FILE, DirectoryWriter, Policy

__all__ = ["DirectorySink", "os_errors"]

# What a file system refuses because of the image, not because of the machine.
_IMAGE_ERRORS = frozenset({errno.EMLINK, errno.ENAMETOOLONG, errno.EILSEQ, errno.EOVERFLOW, errno.EFBIG})


@contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` of writing into an error that says what to do.

    Raises:
        NoSpace: ENOSPC, EDQUOT.
        InvalidImage: What no other machine would take either, such as too many links to one file.
        RepositoryUnavailable: EROFS, EACCES, EPERM and all else.
    """
    try:
        yield
    except CvmfsSyncError:
        raise
    except OSError as error:
        name = printable(os.fsencode(error.filename)) if isinstance(error.filename, str | bytes) else ""
        found = f"{error.strerror}{f': {name}' if name else ''}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space left to write {what}", found=found, todo="free space, then sync again") from error
        if error.errno in _IMAGE_ERRORS:
            raise InvalidImage(f"the file system refuses {what}", found=found) from error
        raise RepositoryUnavailable(
            f"cannot write {what}", found=found, todo="see that the directory is there and that this user may write it"
        ) from error


class DirectorySink(DirectoryWriter):
    """Writes a tree into an existing empty directory, which an error can leave in any state."""

    placement = Placement.ANYTIME

    def __init__(self, root: Path, policy: Policy) -> None:
        super().__init__(root, policy)
        # Files that could not be placed, or were placed wrongly, wait here for their name. The name can't be guessed.
        self._aside = b".cvmfs-sync-" + secrets.token_hex(8).encode()
        self._waiting: dict[tuple[int, int], bytes] = {}
        self._filled: dict[tuple[int, int], bytes] = {}

    def place(self, layer: int, ordinal: int, entry: Entry, content: Reader, *, certain: bool) -> bool:  # noqa: ARG002
        """See `flatten.Sink`."""
        parent, _, name = entry.path.rpartition(b"/")
        try:
            descriptor = os.open(name, NEW_FILE, 0o600, dir_fd=self._directory(parent, make=True))
        except (FileExistsError, NotADirectoryError):
            name = self._put_aside(layer, ordinal)
            descriptor = os.open(name, NEW_FILE, 0o600, dir_fd=self._directory(self._aside, make=True))
            self._write(descriptor, entry, content)
            return False
        self._write(descriptor, entry, content)
        return True

    def arrange(self, arrangement: Arrangement) -> None:
        """See `flatten.Sink`."""
        for _, inode in arrangement.misplaced:
            key = (inode.layer, inode.ordinal)
            if key not in self._waiting:
                parent, name = split(inode.entry.path)
                os.rename(
                    name, self._put_aside(*key),
                    src_dir_fd=self._directory(parent), dst_dir_fd=self._directory(self._aside, make=True),
                )  # fmt: skip
        for layer, ordinal, path in arrangement.leftovers:
            waiting = self._waiting.pop((layer, ordinal), None)
            parent, name = (self._aside, waiting) if waiting is not None else split(path)
            os.unlink(name, dir_fd=self._directory(parent))
        if arrangement.misplaced or arrangement.leftovers:
            self._remove_surplus(arrangement.tree)

    def fill(self, path: bytes, inode: Inode, content: Reader) -> None:
        """See `flatten.Sink`."""
        parent, name = split(path)
        descriptor = os.open(name, NEW_FILE, 0o600, dir_fd=self._directory(parent, make=True))
        self._write(descriptor, inode.entry, content)
        self._filled[inode.layer, inode.ordinal] = path

    def finish(self, tree: Tree) -> None:
        """See `flatten.Sink`."""
        directories: list[tuple[bytes, Inode]] = [(b"", tree.root)]
        first_name: dict[int, bytes] = {}
        links: list[tuple[bytes, bytes]] = []
        leaves: list[tuple[bytes, Inode]] = []
        for path, inode in tree.walk():
            if inode.children is not None:
                directories.append((path, inode))
                if path not in self._made:
                    self._directory(path, make=True)
                continue
            if inode.shared:
                placed_at = self._placed_name(inode)
                first = first_name.setdefault(id(inode), path if placed_at is None else placed_at)
                if path != first:
                    links.append((first, path))
                if path != first or placed_at is not None:
                    continue
            if inode.entry.kind is not Kind.FILE or inode.content is not None:
                leaves.append((path, inode))
            elif (inode.layer, inode.ordinal) in self._waiting:
                self._bring(path, inode)
        # Only now that all content is in place may the first symbolic link appear.
        for path, inode in leaves:
            self._make(path, inode)
        for first, path in links:
            self._link(first, path)
        if self._aside in self._made:
            self._forget(self._aside)
            os.rmdir(self._aside, dir_fd=self._root)
        for path, inode in reversed(directories):
            descriptor = self._directory(path)
            self._metadata(descriptor, inode.entry, self._policy.directory_mode)

    def _placed_name(self, inode: Inode) -> bytes | None:
        """The name at which the content of a file with several names is already, if it was not put aside."""
        if inode.entry.kind is not Kind.FILE or inode.content is not None:
            return None
        key = (inode.layer, inode.ordinal)
        return None if key in self._waiting else self._filled.get(key, inode.entry.path)

    def _put_aside(self, layer: int, ordinal: int) -> bytes:
        name = b"%d-%d" % (layer, ordinal)
        self._waiting[layer, ordinal] = name
        return name

    def _bring(self, path: bytes, inode: Inode) -> None:
        parent, name = split(path)
        os.rename(
            self._waiting[inode.layer, inode.ordinal], name,
            src_dir_fd=self._directory(self._aside), dst_dir_fd=self._directory(parent),
        )  # fmt: skip

    def _remove_surplus(self, tree: Tree) -> None:
        """Remove directories that were made for files which are not there after all."""
        wanted = {path for path, inode in tree.walk() if inode.children is not None}
        for path in sorted(self._made - wanted - {self._aside}, key=len, reverse=True):
            self._forget(path)
            parent, name = split(path)
            os.rmdir(name, dir_fd=self._directory(parent))
