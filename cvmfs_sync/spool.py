"""Verified blobs on disk, shared by all images of a cycle and bounded.

Descriptors go in, files whose size and digest have been checked come out. A blob is written under a temporary name and
gets its own when it is whole and right. What an earlier process left is read once before it is trusted: after a power
cut, a file with the right name and size may hold anything. Which blobs an image needs, and in which order, is not known
here.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvmfs_sync.blobfile import (
    Signature,
    checked,
    listing,
    new_partial,
    remove_any,
    remove_dead,
    require_size,
    signature_of,
)
from cvmfs_sync.errors import BlobChanged, BlobMismatch, ImageError, InvalidReference, LimitExceeded, NoSpace
from cvmfs_sync.image import Descriptor
from cvmfs_sync.ports import Progress
from cvmfs_sync.reference import Digest, ImageName
from cvmfs_sync.resolve import Sources
from cvmfs_sync.rootfs import os_errors
from cvmfs_sync.stock import Stock

__all__ = ["Spool"]

_PIECE = 1 << 20
_RESERVE = 64 << 20
# A source that gives other bytes each time it is asked is not asked for ever.
_STARTS = 8
# A thread that waits for another's download looks so often whether its own image still wants the blob.
_GLANCE = 0.2


class Spool:
    """A directory of verified blobs, `blobs/<algorithm>/<hex>`. Safe for threads; one process uses it at a time.

    Blobs that nobody holds are evicted, least recently used first, when the limit or the file system leaves no room
    for others.
    """

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        """Touch nothing yet.

        Args:
            directory: Made when the first blob comes.
            limit: Bytes of blobs that may be there; None for as many as the file system holds.
        """
        self.directory = directory
        self._limit = limit
        self._blobs = directory / "blobs"
        self._partial = directory / "partial"
        self._changed = threading.Condition()
        self._stock = Stock()
        self._verified: dict[tuple[Path, Digest], Signature] = {}
        self._unwritten: dict[Digest, int] = {}
        self._turns: set[Digest | Path] = set()
        self._queue: list[object] = []
        self._holders: dict[object, tuple[object, dict[Digest, int]]] = {}
        self._opened = False

    def get(self, name: ImageName, descriptor: Descriptor, sources: Sources, progress: Progress) -> Path:
        """A file with the blob's bytes, verified. Threads that want the same blob share one download.

        A download that fails, or is stopped, ends for its own image only; another that waits for it takes it over.
        Outside of `hold` and `pin`, the next call of anybody may evict the file.

        Raises:
            BlobMismatch: Size or digest are not the descriptor's.
            LimitExceeded: It is larger than the spool may be.
            NoSpace: The file system does not leave room for it.
            ImageError: The source failed.
        """
        what = f"{name}: blob {descriptor.digest}"
        local = sources.local_blob(name, descriptor)
        if local is not None:
            with self._turn(local, progress):
                self._check_local(what, local, descriptor, progress)
            return local
        final = self._path(descriptor.digest)
        if self._limit is not None and descriptor.size > self._limit:
            raise _too_large(what, descriptor.size, self._limit)
        with self._turn(descriptor.digest, progress), self._using(descriptor):
            if self._is_there(what, final, descriptor, progress):
                progress.advance(descriptor.size)
            else:
                with os_errors(f"to the spool {self.directory}"):
                    self._download(what, name, descriptor, sources, progress)
            with self._changed:
                self._stock.store(descriptor.digest, descriptor.size)
        return final

    @contextmanager
    def hold(
        self, descriptors: Iterable[Descriptor], what: str = "an image", *, owner: object = None
    ) -> Iterator[None]:
        """Keep room for these blobs, and those of them that are there, until the block ends.

        Waits while others hold the room, first come, first served; so a thread takes all that it needs at once.

        Args:
            descriptors: The blobs. Those that a source has on this machine need no room here: `fetch.spooled`.
            what: Who needs them, to begin messages with.
            owner: Whose all is that has to fit together; the thread's if None. For who takes room in one thread and
                gives it back in another.

        Raises:
            LimitExceeded: They do not fit into the limit together with what the owner holds already: this image can't
                be published here, others can.
        """
        wanted = _sizes(descriptors)
        ticket = object()
        owner = threading.get_ident() if owner is None else owner
        with self._changed:
            self._open()
            self._require_possible(what, wanted, owner)
            self._queue.append(ticket)
            try:
                while not self._may_enter(ticket, wanted):
                    self._changed.wait()
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
            self._stock.use(wanted)
            self._holders[ticket] = (owner, wanted)
        try:
            with self._changed:
                self._trim()
            yield
        finally:
            with self._changed:
                del self._holders[ticket]
                self._release(wanted)

    @contextmanager
    def pin(self, descriptor: Descriptor) -> Iterator[None]:
        """Keep one blob until the block ends, without waiting for room: for who holds others, and would wait for ever.

        So what is pinned and not held may exceed the limit.
        """
        wanted = {descriptor.digest: descriptor.size}
        with self._changed:
            self._open()
            self._stock.use(wanted)
        try:
            yield
        finally:
            with self._changed:
                self._release(wanted)

    def drop(self, digest: Digest) -> None:
        """Remove a blob, unless somebody holds it."""
        with self._changed:
            if not self._stock.in_use(digest):
                self._remove(digest)

    def clear(self) -> None:
        """Remove what interrupted runs left, and all blobs that nobody holds."""
        with self._changed:
            self._opened = False
            self._open()
            for digest in self._stock.idle():
                self._remove(digest)
            for directory in (*listing(self._blobs), self._blobs, self._partial):
                with suppress(OSError):
                    directory.rmdir()

    def _path(self, digest: Digest) -> Path:
        return self._blobs / digest.algorithm / digest.hex

    def _open(self) -> None:
        """Take stock, once, of what is there; called with the lock."""
        if self._opened:
            return
        self._opened = True
        for path in listing(self._partial):
            remove_dead(path)
        found: list[tuple[int, Digest, int]] = []
        for directory in listing(self._blobs):
            for path in listing(directory):
                try:
                    status = path.lstat()
                    digest = Digest.parse(f"{directory.name}:{path.name}")
                except (InvalidReference, FileNotFoundError):
                    continue
                found.append((status.st_mtime_ns, digest, status.st_size))
        for _, digest, size in sorted(found, key=lambda item: item[0]):
            if not self._stock.in_use(digest):
                self._stock.store(digest, size)
        self._trim()

    def _require_possible(self, what: str, wanted: dict[Digest, int], owner: object) -> None:
        if self._limit is None:
            return
        together = dict(wanted)
        for other, held in self._holders.values():
            if other == owner:
                together |= held
        if (size := sum(together.values())) > self._limit:
            raise _too_large(f"{what}: {len(together)} layers together", size, self._limit)

    def _may_enter(self, ticket: object, wanted: dict[Digest, int]) -> bool:
        more = self._stock.more(wanted)
        if self._limit is None or not more:
            return True
        return self._queue[0] is ticket and self._stock.used() + more <= self._limit

    @contextmanager
    def _using(self, descriptor: Descriptor) -> Iterator[None]:
        """Pin a blob, evicting others for it; leaving evicts nothing, so that the caller finds what it was given."""
        wanted = {descriptor.digest: descriptor.size}
        with self._changed:
            self._open()
            self._stock.use(wanted)
            self._trim()
        try:
            yield
        finally:
            with self._changed:
                self._stock.release(wanted)
                self._changed.notify_all()

    def _release(self, wanted: dict[Digest, int]) -> None:
        self._stock.release(wanted)
        self._trim()
        self._changed.notify_all()

    def _trim(self) -> None:
        """Evict what is over the limit; called with the lock."""
        if self._limit is not None:
            for digest in self._stock.surplus(self._limit):
                self._remove(digest)

    def _remove(self, digest: Digest) -> None:
        path = self._path(digest)
        self._verified.pop((path, digest), None)
        with os_errors(f"to the spool {self.directory}"):
            remove_any(path)
        self._stock.forget(digest)

    @contextmanager
    def _turn(self, what: Digest | Path, progress: Progress) -> Iterator[None]:
        """Be the only thread that works on a blob."""
        while True:
            with self._changed:
                if what not in self._turns:
                    self._turns.add(what)
                    break
                self._changed.wait(_GLANCE)
            progress.advance(0)
        try:
            yield
        finally:
            with self._changed:
                self._turns.discard(what)
                self._changed.notify_all()

    def _check_local(self, what: str, path: Path, descriptor: Descriptor, progress: Progress) -> None:
        """Verify a source's own file, unless it is the same as last time."""
        try:
            with path.open("rb") as stream:
                signature = signature_of(os.fstat(stream.fileno()))
                if self._verified.get((path, descriptor.digest)) == signature:
                    require_size(what, signature[2], descriptor)
                    progress.advance(descriptor.size)
                    return
                pieces = iter(lambda: stream.read(_PIECE), b"")
                for piece in checked(what, pieces, descriptor):
                    progress.advance(len(piece))
        except OSError as error:
            raise ImageError(f"{what} can't be read", found=f"{error.strerror}: {path}") from error
        self._verified[path, descriptor.digest] = signature

    def _is_there(self, what: str, final: Path, descriptor: Descriptor, progress: Progress) -> bool:
        """Whether the blob is there and right. One that is not is removed, unless it is the descriptor that lies.

        Raises:
            BlobMismatch: The blob has been verified, and has another size than the descriptor says.
        """
        try:
            opened = os.open(final, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            with self._changed:
                self._stock.forget(descriptor.digest)
            return False
        except OSError:
            pass  # a link, or not to be read
        else:
            try:
                status = os.fstat(opened)
                signature = signature_of(status)
                if self._verified.get((final, descriptor.digest)) == signature:
                    require_size(what, status.st_size, descriptor)
                    return True
                if stat.S_ISREG(status.st_mode) and status.st_size == descriptor.size:
                    with suppress(BlobMismatch, OSError):
                        for _ in checked(what, iter(lambda: os.read(opened, _PIECE), b""), descriptor):
                            progress.advance(0)
                        self._verified[final, descriptor.digest] = signature
                        return True
            finally:
                os.close(opened)
        with self._changed:
            self._remove(descriptor.digest)
        return False

    def _download(
        self, what: str, name: ImageName, descriptor: Descriptor, sources: Sources, progress: Progress
    ) -> None:
        final = self._path(descriptor.digest)
        with self._changed:
            self._partial.mkdir(parents=True, exist_ok=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            self._require_space(what, descriptor)
            self._unwritten[descriptor.digest] = descriptor.size
        try:
            for start in range(1, _STARTS + 1):
                try:
                    self._write(what, name, descriptor, sources, progress)
                    return
                except BlobChanged:
                    if start == _STARTS:
                        raise
                    self._unwritten[descriptor.digest] = descriptor.size
        finally:
            with self._changed:
                del self._unwritten[descriptor.digest]

    def _write(self, what: str, name: ImageName, descriptor: Descriptor, sources: Sources, progress: Progress) -> None:
        """One download from the beginning."""
        final = self._path(descriptor.digest)
        opened, unfinished = new_partial(self._partial)
        pieces = sources.blob(name, descriptor)
        try:
            with os.fdopen(opened, "wb", buffering=0) as out:
                for piece in checked(what, pieces, descriptor):
                    view = memoryview(piece)
                    while view:
                        view = view[out.write(view) :]
                    self._unwritten[descriptor.digest] -= len(piece)
                    progress.advance(len(piece))
                signature = signature_of(os.fstat(opened))
                unfinished.rename(final)
                self._verified[final, descriptor.digest] = signature
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        finally:
            if isinstance(pieces, Generator):
                # Whoever keeps an error keeps its frames, and a source that is not closed keeps its connection.
                pieces.close()

    def _require_space(self, what: str, descriptor: Descriptor) -> None:
        """See that the file system holds what is being written and this, evicting what nobody holds."""
        needed = descriptor.size + _RESERVE
        while True:
            free = shutil.disk_usage(self._partial).free - sum(self._unwritten.values())
            if free >= needed:
                return
            victim = next(self._stock.idle(), None)
            if victim is None:
                break
            self._remove(victim)
        raise NoSpace(
            f"no space left in the spool for {what}",
            found=f"{max(0, free)} bytes free in {self.directory}",
            expected=f"at least {needed} bytes: the blob's size and {_RESERVE} in reserve",
            todo="free space there, or set spool_dir to a larger file system",
        )


def _sizes(descriptors: Iterable[Descriptor]) -> dict[Digest, int]:
    sizes: dict[Digest, int] = {}
    for descriptor in descriptors:
        sizes[descriptor.digest] = max(descriptor.size, sizes.get(descriptor.digest, 0))
    return sizes


def _too_large(what: str, size: int, limit: int) -> LimitExceeded:
    return LimitExceeded(
        f"{what}: larger than the spool may be",
        found=f"{size} bytes",
        expected=f"at most {limit}",
        todo="raise spool_limit",
    )
