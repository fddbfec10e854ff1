"""Writing below one directory, whatever the image says.

The sink that makes a directory out of a tree, and the removal of such a directory. Two things keep an image inside:
every system call names one component relative to a directory descriptor on whose way there was no link (`beneath`); and
symbolic links are made after all content has been written. Metadata is set through descriptors, never through a path
that could be a link.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cvmfs_sync.beneath import open_directory
from cvmfs_sync.errors import CvmfsSyncError, InvalidImage, NoSpace, RepositoryUnavailable
from cvmfs_sync.flatten import Arrangement, Placement
from cvmfs_sync.tar import Entry, Kind, Reader
from cvmfs_sync.tree import Inode, Tree, printable, split

__all__ = ["EXACT", "SANDBOX", "DirectorySink", "Policy", "exact_policy", "os_errors", "remove_tree"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# More than twice the deepest path, so that a call that needs two descriptors keeps both.
_OPEN_DIRECTORIES = 600
# Up to this size a file is written from one piece.
_SMALL = 1 << 16
# What a file system refuses because of the image, not because of the machine.
_IMAGE_ERRORS = frozenset({errno.EMLINK, errno.ENAMETOOLONG, errno.EILSEQ, errno.EOVERFLOW, errno.EFBIG})
_IGNORED_XATTR_ERRORS = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL})


@dataclass(frozen=True, slots=True)
class Policy:
    """How an image's metadata becomes a file's.

    Attributes:
        owner: Whether to keep numeric owners.
        devices: Whether to make devices; else they become empty files.
        xattrs: Prefixes of the extended attributes to keep.
        file_mode: Bits added to every regular file's mode.
        directory_mode: Bits added to every directory's mode.
    """

    owner: bool
    devices: bool
    xattrs: tuple[bytes, ...]
    file_mode: int = 0
    directory_mode: int = 0


EXACT = Policy(owner=True, devices=True, xattrs=(b"",))
"""All that an image says; only root can write it."""
EXACT_AS_USER = Policy(owner=False, devices=False, xattrs=(b"user.",))
SANDBOX = Policy(owner=False, devices=False, xattrs=(b"user.",), file_mode=0o404, directory_mode=0o705)
"""What an ordinary user can run from a read-only, nosuid, nodev mount."""


def exact_policy() -> Policy:
    """`EXACT` for root; for others what they may do of it."""
    return EXACT if os.geteuid() == 0 else EXACT_AS_USER


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


class DirectorySink:
    """Writes a tree into an existing empty directory.

    Args:
        root: The directory. Nothing is written outside it. It can be left in any state by an error.
        policy: What to keep of the metadata.

    Attributes:
        dropped_xattrs: How many extended attributes the file system refused.
    """

    placement = Placement.ANYTIME

    def __init__(self, root: Path, policy: Policy) -> None:
        self._policy = policy
        self._root = os.open(root, _DIRECTORY)
        self._given = _given_owner(self._root) if policy.owner else (-1, -1)
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._made: set[bytes] = set()
        # Files that could not be placed, or were placed wrongly, wait here for their name. The name can't be guessed.
        self._aside = b".cvmfs-sync-" + secrets.token_hex(8).encode()
        self._waiting: dict[tuple[int, int], bytes] = {}
        self._filled: dict[tuple[int, int], bytes] = {}
        self.dropped_xattrs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        os.close(self._root)

    def place(self, layer: int, ordinal: int, entry: Entry, content: Reader, *, certain: bool) -> bool:  # noqa: ARG002
        """See `flatten.Sink`."""
        parent, _, name = entry.path.rpartition(b"/")
        try:
            descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=self._directory(parent, make=True))
        except (FileExistsError, NotADirectoryError):
            name = self._put_aside(layer, ordinal)
            descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=self._directory(self._aside, make=True))
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
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=self._directory(parent, make=True))
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

    def _make(self, path: bytes, inode: Inode) -> None:
        """A leaf that is no file of a layer."""
        parent, name = split(path)
        directory = self._directory(parent)
        entry = inode.entry
        match entry.kind:
            case Kind.FILE:
                self._new(name, directory, entry, inode.content or b"")
            case Kind.SYMLINK:
                os.symlink(entry.link, name, dir_fd=directory)
                if self._policy.owner:
                    os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
                os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)
            case Kind.FIFO:
                os.mkfifo(name, 0o600, dir_fd=directory)
                self._special(name, directory, entry)
            case Kind.CHARACTER | Kind.BLOCK if self._policy.devices:
                kind = stat.S_IFCHR if entry.kind is Kind.CHARACTER else stat.S_IFBLK
                os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=directory)
                self._special(name, directory, entry)
            case Kind.CHARACTER | Kind.BLOCK:
                self._new(name, directory, entry, b"")
            case _:
                raise AssertionError(f"{printable(path)}: a leaf of kind {entry.kind!r}")

    def _new(self, name: bytes, directory: int, entry: Entry, content: bytes) -> None:
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            _write_all(descriptor, content)
            self._metadata(descriptor, entry, self._policy.file_mode)
        finally:
            os.close(descriptor)

    def _special(self, name: bytes, directory: int, entry: Entry) -> None:
        """Metadata of a fifo or device just made: opening one has effects, so its name is used."""
        if self._policy.owner:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        os.chmod(name, entry.mode | self._policy.file_mode, dir_fd=directory)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)

    def _write(self, descriptor: int, entry: Entry, content: Reader) -> None:
        """Content and metadata of a file; closes the descriptor."""
        try:
            if entry.sparse is not None:
                _write_sparse(descriptor, entry, content)
            elif entry.size <= _SMALL:
                if entry.size:
                    _write_all(descriptor, content.read())
            else:
                for piece in content.content():
                    _write_all(descriptor, piece)
            self._metadata(descriptor, entry, self._policy.file_mode)
        finally:
            os.close(descriptor)

    def _metadata(self, descriptor: int, entry: Entry, mode: int) -> None:
        # Ownership first: chown clears setuid bits and capabilities.
        if self._policy.owner and (entry.uid, entry.gid) != self._given:
            os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode | mode)
        if entry.xattrs:
            for name, value in entry.xattrs.items():
                if name.startswith(self._policy.xattrs):
                    try:
                        os.setxattr(descriptor, name, value)
                    except OSError as error:
                        if error.errno not in _IGNORED_XATTR_ERRORS:
                            raise
                        self.dropped_xattrs += 1
        os.utime(descriptor, ns=(entry.mtime, entry.mtime))

    def _link(self, first: bytes, path: bytes) -> None:
        first_parent, first_name = split(first)
        parent, name = split(path)
        os.link(
            first_name, name,
            src_dir_fd=self._directory(first_parent), dst_dir_fd=self._directory(parent), follow_symlinks=False,
        )  # fmt: skip

    def _remove_surplus(self, tree: Tree) -> None:
        """Remove directories that were made for files which are not there after all."""
        wanted = {path for path, inode in tree.walk() if inode.children is not None}
        for path in sorted(self._made - wanted - {self._aside}, key=len, reverse=True):
            self._forget(path)
            parent, name = split(path)
            os.rmdir(name, dir_fd=self._directory(parent))

    def _directory(self, path: bytes, *, make: bool = False) -> int:
        """A descriptor of a directory, valid until the next call but a few."""
        if not path:
            return self._root
        descriptor = self._open.get(path)
        if descriptor is not None:
            self._open.move_to_end(path)
            return descriptor
        missing = []
        above = path if make else b""
        while above and above not in self._made:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        for directory in reversed(missing):
            parent, _, name = directory.rpartition(b"/")
            os.mkdir(name, 0o700, dir_fd=self._directory(parent))
            self._made.add(directory)
        descriptor = open_directory(self._root, path)
        self._open[path] = descriptor
        if len(self._open) > _OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _forget(self, path: bytes) -> None:
        self._made.discard(path)
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)


def _given_owner(root: int) -> tuple[int, int]:
    """The owner and group that whatever is made below `root` has without asking (mkdir(2), "BUGS" and S_ISGID)."""
    status = os.fstat(root)
    group = os.getegid()
    return (os.geteuid(), group if status.st_gid == group and not status.st_mode & stat.S_ISGID else -1)


def _write_all(descriptor: int, piece: bytes | memoryview) -> None:
    written = os.write(descriptor, piece)
    while written < len(piece):
        piece = memoryview(piece)[written:]
        written = os.write(descriptor, piece)


def _write_sparse(descriptor: int, entry: Entry, content: Reader) -> None:
    """Data segments at their offsets, holes between them."""
    segments = iter(entry.sparse or ())
    left = 0
    for piece in content.content():
        while len(piece):
            while not left:
                offset, left = next(segments)
                os.lseek(descriptor, offset, os.SEEK_SET)
            _write_all(descriptor, piece[:left])
            piece, left = piece[left:], max(0, left - len(piece))
    os.ftruncate(descriptor, entry.size)


# Deeper than any image may be, and within what a process may have open.
_MAX_LEVELS = 400
# A directory that is being emptied: its descriptor, its name in the directory above, that one's descriptor, names left.
_Level = tuple[int, bytes, int, list[bytes]]


def remove_tree(path: Path) -> None:
    """Remove a directory that an image may have filled: any modes, any depth, no link followed. Absence is fine."""
    try:
        parent = os.open(path.parent, _DIRECTORY & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        _remove(parent, os.fsencode(path.name))
    finally:
        os.close(parent)


def _remove(parent: int, name: bytes) -> None:
    """Remove `name` in `parent`, whatever it is. Iterative in depth by descriptors of the directories on the way."""
    stack: list[_Level] = []
    try:
        _unlink_or_open(parent, name, stack)
    except FileNotFoundError:
        return
    while stack:
        descriptor, directory_name, above, names = stack[-1]
        if names:
            _unlink_or_open(descriptor, names.pop(), stack)
        else:
            stack.pop()
            os.close(descriptor)
            os.rmdir(directory_name, dir_fd=above)


def _unlink_or_open(parent: int, name: bytes, stack: list[_Level]) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    if len(stack) >= _MAX_LEVELS:
        # Nearer to the root, where it is reached with fewer descriptors; the name can't be there.
        top, _, _, names = stack[0]
        moved = b".cvmfs-sync-" + secrets.token_hex(8).encode()
        os.chmod(name, 0o700, dir_fd=parent)
        os.rename(name, moved, src_dir_fd=parent, dst_dir_fd=top)
        names.append(moved)
        return
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    if os.geteuid() != 0:
        os.fchmod(descriptor, 0o700)
    stack.append((descriptor, name, parent, [os.fsencode(entry) for entry in os.listdir(descriptor)]))
