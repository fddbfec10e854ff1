"""The files of layers that a difference needs, taken out of the layers before the repository's lock is held.

Layers and the files that are wanted of them go in; their content comes out of one local file, in the order in which it
is written. Where there is no room for that file, or it would be too large, there is none, and the layers are read while
the transaction is open. That what is read is the right content is seen when it has been written (`verify`).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from cvmfs_sync.difference import Make
from cvmfs_sync.errors import InvalidImage, LimitExceeded
from cvmfs_sync.flatten import Layer, layers_ahead
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest
from cvmfs_sync.spool import Spool
from cvmfs_sync.tar import Entry, Limits, Reader
from cvmfs_sync.tree import printable
from cvmfs_sync.writing import FileContent

__all__ = ["Extracted", "Wanted", "extracted", "wanted_contents"]

log = logging.getLogger(__name__)
Wanted = Mapping[int, Mapping[int, tuple[Make, ...]]]
"""What `edit.wanted_files` says."""
_MOST = 256 << 20  # bytes; more takes longer to write twice than inflating takes
_RESERVE = 64 << 20
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Piece:
    """The stored bytes of one wanted file: where they begin in the file that holds all, and how many there are."""

    file: BinaryIO
    start: int
    length: int

    def read(self) -> bytes:
        """See `writing.FileContent`."""
        return b"".join(self.content())

    def content(self) -> Iterator[memoryview]:
        """See `writing.FileContent`."""
        at, end = self.start, self.start + self.length
        while at < end:
            piece = os.pread(self.file.fileno(), min(_PIECE, end - at), at)
            if not piece:
                raise EOFError("a file of the spool without a name has become shorter")
            at += len(piece)
            yield memoryview(piece)


@dataclass(frozen=True, slots=True)
class Extracted:
    """The content of the wanted files, in the order of `wanted_contents`; to be read as often as one likes."""

    pieces: Sequence[tuple[tuple[Make, ...], FileContent]]


@contextmanager
def extracted(
    layers: Sequence[Layer], wanted: Wanted, limits: Limits, spool: Spool, what: str, owner: object
) -> Iterator[Extracted | None]:
    """Take the wanted files out; the file that holds them has no name, so a kill leaves nothing. None if that can't be.

    Args:
        layers: Of the image, bottom to top; blobs of those that are needed are on disk.
        wanted: What of them.
        limits: Bounds of the layers.
        spool: Where to put the file; it counts for its limit.
        what: Whose files, for messages.
        owner: See `Spool.hold`.

    Raises:
        InvalidImage: A layer is damaged, or not the one that its index was made of.
    """
    size = sum(_stored(makes[0].inode.entry) for ordinals in wanted.values() for makes in ordinals.values())
    with ExitStack() as stack:
        yield _take_out(stack, layers, wanted, limits, spool, what, owner, size) if wanted and size <= _MOST else None


def _take_out(
    stack: ExitStack,
    layers: Sequence[Layer],
    wanted: Wanted,
    limits: Limits,
    spool: Spool,
    what: str,
    owner: object,
    size: int,
) -> Extracted | None:
    room = Descriptor("", Digest("sha256", secrets.token_hex(32)), size)
    try:
        stack.enter_context(spool.hold([room], what, owner=owner))
        spool.directory.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(spool.directory).free < size + _RESERVE:
            return None
        file = stack.enter_context(tempfile.TemporaryFile(dir=spool.directory, buffering=0))  # noqa: SIM115
        pieces: list[tuple[tuple[Make, ...], FileContent]] = []
        start = 0
        for makes, content in wanted_contents(layers, wanted, limits, lambda _: None):
            length = 0
            for piece in content.content():
                left = memoryview(piece)
                while left:
                    left = left[file.write(left) :]
                length += len(piece)
            pieces.append((makes, _Piece(file, start, length)))
            start += length
    except LimitExceeded as problem:
        log.debug("files of %s are not taken out ahead: %s", what, problem)
        return None
    except OSError as problem:
        # Then its layers are read while the transaction is open, which takes longer and nothing else.
        log.warning("files of %s could not be taken out ahead: %s", what, problem)
        return None
    return Extracted(pieces)


def _stored(entry: Entry) -> int:
    """Bytes that a file has in its layer."""
    return entry.size if entry.sparse is None else sum(length for _, length in entry.sparse)


def wanted_contents(
    layers: Sequence[Layer], wanted: Wanted, limits: Limits, done: Callable[[int], object]
) -> Generator[tuple[tuple[Make, ...], FileContent], None, None]:
    """Read the wanted files out of their layers, top layer first; each content is read before the next is asked for.

    What comes after the last wanted file of a layer is not read.

    Args:
        layers: Bottom to top.
        wanted: What of them.
        limits: Bounds of the layers.
        done: Told the size of each file that has been read.

    Raises:
        InvalidImage: A layer is damaged, or not the one that its index was made of.
    """
    with closing(layers_ahead(layers, sorted(wanted, reverse=True), limits)) as opened:
        for number, chunks in opened:
            yield from _of_layer(layers[number].what, chunks, limits, wanted[number], done)


def _of_layer(
    what: str,
    chunks: Iterable[bytes],
    limits: Limits,
    wanted: Mapping[int, tuple[Make, ...]],
    done: Callable[[int], object],
) -> Iterator[tuple[tuple[Make, ...], FileContent]]:
    left = dict(wanted)
    reader = Reader(chunks, limits, what=what)
    for ordinal, entry in enumerate(reader):
        makes = left.get(ordinal)
        if makes is not None:
            if entry != makes[0].inode.entry:
                break
            yield makes, reader
            done(entry.size)
            del left[ordinal]
            if not left:
                return
    path = next(iter(left.values()))[0].inode.entry.path
    raise InvalidImage(
        f"{what}: not the layer that its diff_id names",
        found=f"something else at {printable(path)}",
        expected="what the layer of that diff_id has there",
    )
