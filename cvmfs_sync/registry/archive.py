"""Files that `docker save` has written, as a `Source`.

`docker-archive:FILE[:tag]` goes in; digests, the manifests that `dockersave` makes, and blobs come out. A file that is
compressed with gzip or zstd is inflated once into a temporary file without a name, which is gone with the process. The
archive is looked at again when its file has changed; nothing is written beside it.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from cvmfs_sync.compression import decompress
from cvmfs_sync.errors import ImageError
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import ArchiveReference, Digest
from cvmfs_sync.registry.dockersave import DockerSave, OpenFile, changed
from cvmfs_sync.tar import Limits

__all__ = ["ArchiveSource", "Kept", "temporary"]

# Archives that stay open, with their temporary files: as many images as are flattened at a time, and some more.
KEPT = 4
_MAGIC = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_REFUSED = (b"BZh", b"\xfd7zXZ\0", b"\x04\x22\x4d\x18")  # bzip2, xz, lz4
_RESERVE = 64 << 20
Key = TypeVar("Key")


class Kept(Generic[Key]):
    """The few archives that were used last. Who still reads another one keeps that open."""

    def __init__(self) -> None:
        self._archives: OrderedDict[Key, DockerSave] = OrderedDict()
        self._turns: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], DockerSave]) -> DockerSave:
        """The archive of this key, made by the first thread that asks, while others wait for it."""
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if key in self._archives:
                    self._archives.move_to_end(key)
                    return self._archives[key]
            archive = make()
            with self._lock:
                self._archives[key] = archive
                while len(self._archives) > KEPT:
                    self._archives.popitem(last=False)
            return archive

    def clear(self) -> None:
        """Keep none any longer."""
        with self._lock:
            self._archives.clear()


class ArchiveSource:
    """`Source[ArchiveReference]`. Safe for threads."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        """Open nothing yet.

        Args:
            directory: For archives that have to be inflated; made when there is one.
            limits: `bytes` and `ratio` of these.
        """
        self._directory = directory
        self._limits = limits or Limits()
        self._kept: Kept[tuple[Path, tuple[int, ...]]] = Kept()

    def close(self) -> None:
        """Close all files that nobody reads."""
        self._kept.clear()

    def head(self, name: ArchiveReference) -> Digest:
        """The digest of the manifest that is made of the image: all headers of the archive are read.

        Raises:
            ImageNotFound: If the archive is there and the tag is not.
            ImageError: If this is no such archive, or it can't be read.
        """
        return self._open(name).manifest(name.tag)[1]

    def manifest(self, name: ArchiveReference, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        """The manifest that is made of the image, its digest and media type.

        Raises:
            ImageNotFound: If the archive is there and the tag is not.
            BlobMismatch: If the archive has changed, and now makes a manifest of another digest.
            ImageError: If this is no such archive, or it can't be read.
        """
        content, found, media_type = self._open(name).manifest(name.tag)
        if digest not in (None, found):
            raise changed(str(name))
        return content, found, media_type

    def blob(self, name: ArchiveReference, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes in pieces of up to 1 MiB.

        Raises:
            BlobMismatch: If the archive has changed.
            ImageError: If it can't be read.
        """
        archive = self._open(name)
        archive.manifest(name.tag)
        yield from archive.blob(descriptor)

    def local_blob(self, name: ArchiveReference, descriptor: Descriptor) -> Path | None:  # noqa: ARG002
        """None: no file holds a blob and nothing else."""
        return None

    def tags(self, name: ArchiveReference) -> Iterator[str]:
        """The tags of the images in the archive, each once.

        Raises:
            ImageError: If this is no such archive, or it can't be read.
        """
        yield from self._open(name).tags()

    def _open(self, name: ArchiveReference) -> DockerSave:
        what = str(ArchiveReference(name.file))
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for its writer.
            descriptor = os.open(name.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(
                f"{what}: the archive can't be read", found=error.strerror,
                todo="check the path after 'docker-archive:', and that this user may read the file",
            ) from None  # fmt: skip
        file = OpenFile(descriptor, what)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageError(f"{what} is not a regular file", todo="check the path after 'docker-archive:'")
        return self._kept.get((name.file, file.stamp), lambda: DockerSave(self._inflated(file, what), what))

    def _inflated(self, file: OpenFile, what: str) -> OpenFile:
        """The file itself, or what is in it if it is compressed."""
        start = file.read(0, 8)
        if not start.startswith(_MAGIC):
            if start.startswith(_REFUSED):
                raise ImageError(
                    f"{what}: a compression that is not read", expected="gzip, zstd, or none",
                    todo="compress it anew, with gzip",
                )  # fmt: skip
            return file
        inflated = temporary(decompress(file.pieces(), what=what, limits=self._limits), self._directory, what)
        file.require_unchanged()
        return inflated


def temporary(pieces: Iterator[bytes], directory: Path, what: str) -> OpenFile:
    """Write pieces to a file without a name.

    Raises:
        ImageError: It can't be written, or the file system has no room for it: that ends this image, not the cycle.
    """
    with _writing(directory, what):
        directory.mkdir(parents=True, exist_ok=True)
        out = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - closed below
    with out:
        # What the pieces come from may raise an `OSError` of its own.
        for piece in pieces:
            with _writing(directory, what):
                room = os.fstatvfs(out.fileno())
                if room.f_bavail * room.f_frsize < len(piece) + _RESERVE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                view = memoryview(piece)
                while view:
                    view = view[os.write(out.fileno(), view) :]
        return OpenFile(os.dup(out.fileno()), what)


@contextmanager
def _writing(directory: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ImageError(
            f"{what}: a temporary copy can't be written", found=f"{error.strerror}: {directory}",
            todo="free space there, or set spool_dir (for 'unpack' and 'squash' TMPDIR) to a larger place"
            if full else "see that this user may write there",
        ) from error  # fmt: skip
