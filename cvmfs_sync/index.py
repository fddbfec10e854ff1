"""Layer indexes: what one pass over a layer tells, kept so that the pass is made once.

A layer goes in, and its entries with a digest of every regular file's content come out, as a value that can be merged,
compared, written down in a few dozen bytes an entry, and found again by the layer's diff_id. Nothing here merges
(`tree`), writes files of an image (`rootfs`), or decides whether a layer is needed.

An index is a cache: what is damaged, or of another format, is thrown away and made again. The limits of an image were
held when its layers were read; who uses an index under tighter ones has to look himself.

The digest of a sparse file is that of its logical content, holes read as zeros: what `sha256sum` says of the file that
is unpacked, sparse or not. So a file compares equal however its layer stored it, and a published one can be checked.
Hashing holes costs what reading them costs everybody later, and `Limits.bytes` bounds it.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import os
import secrets
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import zstandard

from cvmfs_sync.columns import ColumnReader, ColumnWriter
from cvmfs_sync.errors import CvmfsSyncError, InvalidReference
from cvmfs_sync.reference import Digest
from cvmfs_sync.tar import Entry, Kind, Limits, Reader
from cvmfs_sync.tar.entry import NO_XATTRS

__all__ = ["IndexCache", "LayerIndex", "OpenLayer", "UnusableIndex", "decode", "encode", "index_layer"]

FORMAT: Final = 1
"""Raised when the bytes change, and when the tar reader comes to read the same layer as other entries."""

DIGEST_SIZE: Final = 32
DEFAULT_MAXIMUM: Final = 1 << 30
_MAGIC: Final = b"\x89cvmfs-sync index\r\n"
_VERSION = struct.Struct("<H")
_LEVEL: Final = 3
_PIECE: Final = 1 << 20
_LEFTOVER_AGE: Final = 24 * 3600.0  # seconds; no write takes as long


class UnusableIndex(CvmfsSyncError):
    """Bytes are no index of this format, or damaged. The layer has to be read again."""


class OpenLayer(Protocol):
    """What a layer has to offer to be indexed; `flatten.Layer` does."""

    @property
    def diff_id(self) -> Digest:
        """Digest of the uncompressed archive."""

    @property
    def what(self) -> str:
        """Name for messages."""

    def open(self, limits: Limits) -> AbstractContextManager[Iterator[bytes]]:
        """The uncompressed archive in pieces; its digest is checked at the end."""


@dataclass(frozen=True, slots=True)
class LayerIndex:
    """What is in a layer.

    Attributes:
        diff_id: The layer's identity.
        entries: In the order of the archive, whiteouts among them: what `tree.merge` takes.
        digests: The sha256 of each regular file's content, 32 bytes each, in the order of `entries`.
        blob: Digest of the compressed blob that was read, where it is known.
    """

    diff_id: Digest
    entries: Sequence[Entry]
    digests: bytes = field(repr=False)
    blob: Digest | None = None
    _ranks: array[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # How many files stand before each entry. A digest object for each file would take three times the memory.
        files = [entry.kind is Kind.FILE for entry in self.entries]
        ranks = array("I", itertools.accumulate(files, initial=0))
        if len(self.digests) != DIGEST_SIZE * ranks[-1]:
            raise ValueError(f"{len(self.digests)} bytes of digests for {ranks[-1]} files")
        object.__setattr__(self, "_ranks", ranks)

    def digest(self, ordinal: int) -> bytes:
        """The 32 bytes of the sha256 of a regular file's content, by the position of its entry."""
        if self.entries[ordinal].kind is not Kind.FILE:
            raise ValueError(f"entry {ordinal} is no regular file")
        start = DIGEST_SIZE * self._ranks[ordinal]
        return self.digests[start : start + DIGEST_SIZE]


def index_layer(layer: OpenLayer, limits: Limits, blob: Digest | None = None) -> LayerIndex:
    """Read a layer once, to its verified end, and hash what it holds.

    Args:
        layer: The layer.
        limits: Bounds of the stream.
        blob: Digest of the compressed blob, for the index.

    Raises:
        InvalidImage: The layer breaks the specification or a limit, or has not its diff_id.
        ImageError: Its blob could not be fetched.
    """
    entries: list[Entry] = []
    digests = bytearray()
    with layer.open(limits) as chunks:
        reader = Reader(chunks, limits, what=layer.what)
        for entry in reader:
            entries.append(entry)
            if entry.kind is Kind.FILE:
                digests += content_digest(entry, reader)
    return LayerIndex(layer.diff_id, entries, bytes(digests), blob)


def content_digest(entry: Entry, content: Reader) -> bytes:
    """The sha256 of the current regular file's logical content; reads that content."""
    if entry.sparse is not None:
        return _sparse_digest(entry, content)
    if entry.size <= _PIECE:
        return hashlib.sha256(content.read()).digest()
    digest = hashlib.sha256()
    for piece in content.content():
        digest.update(piece)
    return digest.digest()


def _sparse_digest(entry: Entry, content: Reader) -> bytes:
    digest = hashlib.sha256()
    zeros = memoryview(bytes(_PIECE))

    def hole(length: int) -> None:
        while length > 0:
            digest.update(zeros[:length])
            length -= _PIECE

    position = left = 0
    segments = iter(entry.sparse or ())
    for piece in content.content():
        while len(piece):
            while not left:
                offset, left = next(segments)
                hole(offset - position)
                position = offset
            part = piece[:left]
            digest.update(part)
            position += len(part)
            left -= len(part)
            piece = piece[len(part) :]
    hole(entry.size - position)
    return digest.digest()


# --- the format -------------------------------------------------------------------------------------------------------
#
# Magic, version (2 bytes), sha256 of all that follows, and one zstd frame. In it, column after column over all entries:
# what is the same for neighbours stands together, and compresses to nearly nothing. Owners and times repeat, so they
# are positions in a table; what few entries have (links, devices, attributes, sparse maps) names its entries.


def encode(index: LayerIndex) -> bytes:
    """The index as bytes, the same for equal indexes with the same version of zstd."""
    entries = index.entries
    out = ColumnWriter()
    out.text(str(index.diff_id).encode())
    out.text(str(index.blob or "").encode())
    out.number(len(entries))
    out.text(bytes(entry.kind for entry in entries))
    out.paths([entry.path for entry in entries])
    for values in (
        [entry.mode for entry in entries],
        [entry.uid for entry in entries],
        [entry.gid for entry in entries],
        [entry.mtime for entry in entries],
    ):
        out.table(values)
    sizes = [entry.size for entry in entries]
    out.numbers(sizes)
    out.numbers(list(map(operator.sub, (entry.offset for entry in entries), _expected_offsets(entries, sizes))))
    out.texts(out.present([entry.link for entry in entries]))
    for device in out.present([entry.device if entry.device != _NO_DEVICE else None for entry in entries]):
        out.number(device[0])
        out.number(device[1])
    for xattrs in out.present([entry.xattrs for entry in entries]):
        out.texts([text for pair in xattrs.items() for text in pair])
    # An empty map is one, too: a file that is nothing but a hole.
    for (sparse,) in out.present([None if entry.sparse is None else (entry.sparse,) for entry in entries]):
        out.numbers([number for segment in sparse for number in segment])
    out.text(index.digests)
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(out.content())
    return _MAGIC + _VERSION.pack(FORMAT) + hashlib.sha256(frame).digest() + frame


def decode(data: bytes) -> LayerIndex:
    """The index that `encode` made these bytes of.

    Raises:
        UnusableIndex: They are of another format or damaged.
    """
    start = len(_MAGIC) + _VERSION.size
    body = start + DIGEST_SIZE
    if data[: len(_MAGIC)] != _MAGIC or len(data) < body:
        raise _unusable("no index", found=repr(data[: len(_MAGIC)]))
    (version,) = _VERSION.unpack(data[len(_MAGIC) : start])
    if version != FORMAT:
        raise _unusable("of another format", found=str(version), expected=str(FORMAT))
    frame = memoryview(data)[body:]
    if hashlib.sha256(frame).digest() != data[start:body]:
        raise _unusable("damaged", found="another checksum")
    try:
        return _decode(ColumnReader(zstandard.ZstdDecompressor().decompress(frame)))
    # The checksum holds, so it was written like this: by a version of this program that forgot to raise FORMAT.
    except (zstandard.ZstdError, ValueError, IndexError, struct.error, OverflowError, InvalidReference) as problem:
        raise _unusable("inconsistent", found=str(problem)) from problem


def _decode(column: ColumnReader) -> LayerIndex:
    diff_id = Digest.parse(column.text().decode())
    blob = column.text().decode()
    count = column.number()
    kinds = list(map(tuple(Kind).__getitem__, column.text()))
    if len(kinds) != count:
        raise ValueError(f"{len(kinds)} kinds for {count} entries")
    paths = column.paths()
    modes, uids, gids, mtimes = column.table(), column.table(), column.table(), column.table()
    sizes = _shared(column.numbers())
    offsets = list(itertools.accumulate(map(operator.add, column.numbers(), _steps(sizes))))
    links: list[bytes] = [b""] * count
    for ordinal, link in zip(column.present(), column.texts(), strict=True):
        links[ordinal] = link
    devices: list[tuple[int, int]] = [_NO_DEVICE] * count
    for ordinal in column.present():
        devices[ordinal] = column.number(), column.number()
    xattrs = [NO_XATTRS] * count
    for ordinal in column.present():
        texts = column.texts()
        xattrs[ordinal] = dict(zip(texts[::2], texts[1::2], strict=True))
    sparse: list[tuple[tuple[int, int], ...] | None] = [None] * count
    for ordinal in column.present():
        numbers = column.numbers()
        sparse[ordinal] = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    digests = column.text()
    column.end()
    columns = (paths, kinds, modes, uids, gids, sizes, mtimes, links, devices, xattrs, offsets, sparse)
    if any(len(each) != count for each in columns):
        raise ValueError(f"columns of {[len(each) for each in columns]} entries for {count}")
    return LayerIndex(diff_id, list(map(Entry, *columns)), digests, Digest.parse(blob) if blob else None)


def _unusable(why: str, *, found: str, expected: str | None = None) -> UnusableIndex:
    return UnusableIndex(f"a layer index is {why}", found=found, expected=expected, todo="have the layer read again")


_NO_DEVICE = (0, 0)
_BLOCK = 512


def _shared(values: Sequence[int]) -> list[int]:
    """One object for equal numbers, which take 32 bytes each."""
    objects: dict[int, int] = {}
    return [objects.setdefault(value, value) for value in values]


def _steps(sizes: Sequence[int]) -> Iterator[int]:
    """How far each entry would be from the one before, if that had one header and its content."""
    return itertools.chain((0,), [_BLOCK - (-size // _BLOCK) * _BLOCK for size in sizes])


def _expected_offsets(entries: Sequence[Entry], sizes: Sequence[int]) -> Iterator[int]:
    before = itertools.chain((0,), (entry.offset for entry in entries))
    return map(operator.add, before, _steps(sizes))


# --- the cache --------------------------------------------------------------------------------------------------------


class IndexCache:
    """Indexes in a directory, the least recently used ones removed when they become too many bytes.

    Files are `<2>/<hex>.idx`. Several processes may use one directory; a file appears under its name only when it is
    whole, and whoever misses one has to read a layer, no more.

    Args:
        directory: Made when the first index is put.
        maximum: Bytes that may stay.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, directory: Path, maximum: int = DEFAULT_MAXIMUM, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._maximum = maximum
        self._clock = clock
        self._lock = threading.Lock()
        self._used: int | None = None  # bytes; None until they have been counted

    def get(self, diff_id: Digest) -> LayerIndex | None:
        """The index of this layer, or None; a file that is no usable index of it is removed.

        Raises:
            OSError: The directory is there and can't be read.
        """
        path = self._path(diff_id)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            index = decode(data)
        except UnusableIndex:
            index = None
        if index is None or index.diff_id != diff_id:
            path.unlink(missing_ok=True)
            return None
        now = self._clock()
        with suppress(FileNotFoundError):
            os.utime(path, (now, now))
        return index

    def put(self, index: LayerIndex) -> None:
        """Keep an index; one that is larger than all that may stay is not kept.

        Raises:
            OSError: It can't be written; nothing has changed then.
        """
        data = encode(index)
        if len(data) > self._maximum:
            return
        path = self._path(index.diff_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_bytes(data)
            now = self._clock()
            os.utime(temporary, (now, now))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        with self._lock:
            # What another file of this name had is counted twice until the next count, which corrects it.
            self._used = None if self._used is None else self._used + len(data)
            if self._used is None or self._used > self._maximum:
                self._used = self._make_room(path)

    def drop(self, diff_id: Digest) -> None:
        """Forget an index."""
        self._path(diff_id).unlink(missing_ok=True)

    def _make_room(self, keep: Path) -> int:
        """Remove the files that were used longest ago until the rest fits; leftovers of killed writers, too.

        Returns:
            Bytes that are left.
        """
        found: list[tuple[float, int, Path]] = []
        for path in self._directory.glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".idx":
                    found.append((status.st_mtime, status.st_size, path))
                elif path.suffix == ".tmp" and self._clock() - status.st_mtime > _LEFTOVER_AGE:
                    path.unlink()
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= self._maximum:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                used -= size
        return used

    def _path(self, diff_id: Digest) -> Path:
        return self._directory / diff_id.hex[:2] / f"{diff_id.hex}.idx"
