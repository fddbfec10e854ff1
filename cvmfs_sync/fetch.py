"""Blobs into verified files.

Descriptors go in, files whose size and digest have been checked come out. A blob is written under a temporary name and
gets its own when it is whole and right, so a crash leaves nothing that anybody would read; an image's layers arrive in
parallel, top layer first, which is the order in which flattening wants them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cvmfs_sync.errors import BlobMismatch, ImageError, InvalidManifest, NoSpace
from cvmfs_sync.flatten import Layer
from cvmfs_sync.image import Descriptor, ResolvedImage
from cvmfs_sync.ports import Progress, Silent
from cvmfs_sync.reference import Digest, ImageName
from cvmfs_sync.resolve import Sources
from cvmfs_sync.rootfs import os_errors

__all__ = ["Spool", "fetching"]

_PIECE = 1 << 20
_RESERVE = 64 << 20
_PARALLEL = 3


class Spool:
    """A directory of verified blobs, `blobs/<algorithm>/<hex>`, shared by the images of a cycle."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs"
        self._partial = directory / "partial"

    def get(self, name: ImageName, descriptor: Descriptor, sources: Sources, progress: Progress) -> Path:
        """A file with the blob's bytes, verified.

        Raises:
            BlobMismatch: Size or digest are not the descriptor's.
            NoSpace: The file system can't hold it.
            ImageError: The source failed.
        """
        what = f"{name}: blob {descriptor.digest}"
        local = sources.local_blob(name, descriptor)
        if local is not None:
            try:
                with local.open("rb") as stream:
                    _check(what, iter(lambda: stream.read(_PIECE), b""), descriptor, None, progress)
            except OSError as error:
                raise ImageError(f"{what} can't be read", found=f"{error.strerror}: {local}") from error
            return local
        final = self._blobs / descriptor.digest.algorithm / descriptor.digest.hex
        if final.is_file() and final.stat().st_size == descriptor.size:
            progress.advance(descriptor.size)
            return final
        with os_errors(f"to the spool {self.directory}"):
            self._partial.mkdir(parents=True, exist_ok=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._partial).free
            if free < descriptor.size + _RESERVE:
                raise NoSpace(
                    f"no space left in the spool for {what}",
                    found=f"{free} bytes free in {self.directory}",
                    expected=f"at least {descriptor.size + _RESERVE} bytes: the blob's size and {_RESERVE} in reserve",
                    todo="free space there, or set spool_dir to a larger file system",
                )
            unfinished = self._partial / f"{os.getpid()}-{secrets.token_hex(8)}"
            descriptor_out = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(descriptor_out, "wb", buffering=0) as out:
                    _check(what, sources.blob(name, descriptor), descriptor, out.fileno(), progress)
                unfinished.rename(final)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
        return final

    def drop(self, digest: Digest) -> None:
        """Remove a blob that no image of this cycle needs any more."""
        (self._blobs / digest.algorithm / digest.hex).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all blobs, and what interrupted runs left; the caller is the spool's only user."""
        shutil.rmtree(self._blobs, ignore_errors=True)
        shutil.rmtree(self._partial, ignore_errors=True)


@contextmanager
def fetching(
    image: ResolvedImage, sources: Sources, spool: Spool, progress: Progress | None = None
) -> Iterator[tuple[Layer, ...]]:
    """Fetch an image's layers in the background; yields them bottom to top.

    A layer's `blob` waits for its file. Leaving the block early, and the first failure, stop all other downloads.
    """
    downloads = _Downloads(progress or Silent())
    blobs: dict[Digest, Future[Path]] = {}
    for layer in image.manifest.layers:
        if layer.urls and ("nondistributable" in layer.media_type or "foreign" in layer.media_type):
            raise InvalidManifest(
                f"{image.name}: layer {layer.digest} is not kept by the registry",
                found="a non-distributable layer with 'urls'",
                todo="build the image on a base whose layers may be distributed",
            )
    executor = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch")
    try:
        for layer in reversed(image.manifest.layers):
            if layer.digest not in blobs:
                blobs[layer.digest] = executor.submit(downloads.run, spool, image.name, layer, sources)
        yield tuple(
            Layer(
                partial(downloads.result, blobs[layer.digest]),
                diff_id,
                layer.size,
                f"{image.name}: layer {number} ({str(layer.digest)[:19]})",
            )
            for number, (layer, diff_id) in enumerate(
                zip(image.manifest.layers, image.config.diff_ids, strict=True), start=1
            )
        )
    finally:
        downloads.stopped.set()
        executor.shutdown(cancel_futures=True)


def _check(what: str, pieces: Iterator[bytes], descriptor: Descriptor, out: int | None, progress: Progress) -> None:
    """Copy a blob to the descriptor `out`, counting and hashing; no more than its size is ever written."""
    digest = hashlib.new(descriptor.digest.algorithm)
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > descriptor.size:
            raise BlobMismatch(
                f"{what} is larger than its manifest says",
                found=f"at least {size} bytes",
                expected=f"{descriptor.size}",
            )
        digest.update(piece)
        if out is not None:
            view = memoryview(piece)
            while view:
                view = view[os.write(out, view) :]
        progress.advance(len(piece))
    if size != descriptor.size:
        raise BlobMismatch(
            f"{what} is cut short", found=f"{size} bytes", expected=f"{descriptor.size}", todo="push the image again"
        )
    if digest.hexdigest() != descriptor.digest.hex:
        raise BlobMismatch(
            f"{what} is damaged",
            found=f"{descriptor.digest.algorithm}:{digest.hexdigest()}",
            expected=str(descriptor.digest),
            todo="push the image again; if it recurs, check the registry's storage",
        )


class _Stopped(Exception):
    """The rest of this download is of no use to anybody."""


class _Downloads:
    """The downloads of one image, and a `Progress` that several of them may tell.

    Attributes:
        stopped: Set to end all of them at their next piece.
    """

    def __init__(self, progress: Progress) -> None:
        self.stopped = threading.Event()
        self._failure: BaseException | None = None
        self._progress = progress
        self._lock = threading.Lock()

    def run(self, spool: Spool, name: ImageName, descriptor: Descriptor, sources: Sources) -> Path:
        """One download, in a thread of its own."""
        try:
            self.advance(0)
            return spool.get(name, descriptor, sources, self)
        except _Stopped:
            raise
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self.stopped.set()
            raise

    def result(self, download: Future[Path]) -> Path:
        """The file, when it is there; the first failure of all downloads if it is not."""
        try:
            return download.result()
        except (_Stopped, CancelledError):
            if self._failure is None:
                raise
            raise self._failure from None

    def start(self, what: str, total: int) -> None:
        """See `ports.Progress`."""
        with self._lock:
            self._progress.start(what, total)

    def advance(self, amount: int) -> None:
        """See `ports.Progress`; a download calls it with each piece, so here it is stopped."""
        if self.stopped.is_set():
            raise _Stopped
        with self._lock:
            self._progress.advance(amount)
