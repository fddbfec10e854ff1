"""Maps of sparse files, in the four forms that GNU tar has written.

The map's raw form goes in, checked segments come out. Specification: GNU tar manual, "Storing Sparse Files":
the old GNU format (type 'S'), and pax versions 0.0, 0.1 and 1.0. Nothing here reads a file's content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cvmfs_sync.tar.entry import Limits
from cvmfs_sync.tar.fields import Malformed, TooLarge, decimal, number, show
from cvmfs_sync.tar.pax import PaxSparse
from cvmfs_sync.tar.stream import BLOCK, Stream

__all__ = ["Segments", "check_segments", "read_old_gnu_map", "read_pax_map"]

Segments = tuple[tuple[int, int], ...]

_PAIR = 24
_OLD_IN_HEADER = slice(386, 386 + 4 * _PAIR)
_OLD_EXTENDED = 482
_OLD_REAL_SIZE = slice(483, 495)
_OLD_IN_EXTENSION = slice(0, 21 * _PAIR)
_OLD_EXTENSION_EXTENDED = 504
_NUMBER_DIGITS = 20
_PAX_KEYS = frozenset({b"major", b"minor", b"name", b"size", b"realsize", b"numblocks", b"map"})


def check_segments(raw: Iterable[tuple[int, int]], *, size: int, stored: int) -> Segments:
    """Check that a map fits the file that it stands for.

    Args:
        raw: Offset and length of each segment.
        size: Bytes of the file with its holes.
        stored: Bytes that the stream holds.

    Returns:
        The segments that are not empty.
    """
    segments: list[tuple[int, int]] = []
    end = total = 0
    for offset, length in raw:
        if offset < end or length < 0 or offset + length > size:
            raise Malformed(
                "the sparse map is inconsistent",
                found=f"{length} bytes at {offset}",
                expected=f"segments in order, apart, and within {size} bytes",
            )
        end = offset + length
        total += length
        if length:
            segments.append((offset, length))
    if total != stored:
        raise Malformed(
            "the sparse map does not fit the stored bytes", found=f"{stored} bytes", expected=f"{total} bytes"
        )
    return tuple(segments)


def read_old_gnu_map(header: bytes, stream: Stream, limits: Limits) -> tuple[int, list[tuple[int, int]]]:
    """Read the map of a type 'S' header and of the extension blocks after it.

    Returns:
        The real size, and the segments as they stand.
    """
    segments: list[tuple[int, int]] = []
    more = _old_gnu_pairs(header[_OLD_IN_HEADER], segments)
    extended = header[_OLD_EXTENDED]
    while extended:
        if not more:
            raise Malformed("the sparse map goes on after its end")
        block = stream.take(BLOCK)
        more = _old_gnu_pairs(block[_OLD_IN_EXTENSION], segments)
        extended = block[_OLD_EXTENSION_EXTENDED]
        if len(segments) > limits.sparse:
            raise TooLarge("sparse", len(segments), limits.sparse, unit="segments")
    return number(header[_OLD_REAL_SIZE]), segments


def _old_gnu_pairs(raw: bytes, segments: list[tuple[int, int]]) -> bool:
    """Append the pairs; False when the list ends before the space for it does."""
    for at in range(0, len(raw), _PAIR):
        offset, length = raw[at : at + 12], raw[at + 12 : at + _PAIR]
        if not offset[0] or not length[0]:
            # Go ends the map at an empty offset, GNU tar at an empty length.
            if raw[at:].strip(b"\0"):
                raise Malformed("the sparse map has a gap", found=repr(raw[at : at + _PAIR]))
            return False
        segments.append((number(offset), number(length)))
    return True


def read_pax_map(
    sparse: PaxSparse, stream: Stream, stored: int, limits: Limits
) -> tuple[int, list[tuple[int, int]], int]:
    """Read a pax sparse map; version 1.0 has it in front of the content.

    Returns:
        The real size, the segments as they stand, and how many of the `stored` bytes the map took from the
        stream.
    """
    keys, pairs = sparse.keys, sparse.pairs
    if unknown := keys.keys() - _PAX_KEYS:
        raise Malformed("a sparse file of an unknown kind", found=show(min(unknown)))
    sizes = {keys[key] for key in (b"size", b"realsize") if key in keys}
    if len(sizes) != 1:
        raise Malformed("a sparse file needs one real size", found=f"{len(sizes)} sizes")
    size = decimal(sizes.pop(), "GNU.sparse.size")
    match keys.get(b"major"), keys.get(b"minor"):
        case b"1", b"0":
            if b"map" in keys or pairs:
                raise Malformed("a sparse file has two maps", expected="version 1.0 has it in the content")
            if not keys.get(b"name"):
                raise Malformed("a sparse file has no name", expected="GNU.sparse.name")
            lines = _MapLines(stream, stored)
            count = _checked_count(lines.number(), limits)
            segments = [(lines.number(), lines.number()) for _ in range(count)]
            return size, segments, lines.taken
        case (None, None) | (b"0", b"0" | b"1"):
            if b"map" in keys:
                if pairs:
                    raise Malformed("a sparse file has two maps")
                pairs = keys[b"map"].split(b",", 2 * limits.sparse + 1)
            count = _checked_count(decimal(keys.get(b"numblocks", b""), "GNU.sparse.numblocks"), limits)
            # Go takes a file without segments for one that is not sparse.
            if not count or len(pairs) != 2 * count:
                raise Malformed(
                    "the sparse map has another length",
                    found=f"{len(pairs)} numbers",
                    expected=f"{2 * count}, not 0",
                )
            numbers = [decimal(value, "GNU.sparse.map") for value in pairs]
            return size, list(zip(numbers[::2], numbers[1::2], strict=True)), 0
        case major, minor:
            raise Malformed("a sparse file of an unknown version", found=f"{major!r}.{minor!r}", expected="0.0 to 1.0")


def _checked_count(count: int, limits: Limits) -> int:
    if count > limits.sparse:
        raise TooLarge("sparse", count, limits.sparse, unit="segments")
    return count


class _MapLines:
    """The numbers of a version 1.0 map: one a line, in whole blocks at the start of the content."""

    def __init__(self, stream: Stream, stored: int) -> None:
        self._numbers = self._read(stream, stored)
        self.taken = 0

    def number(self) -> int:
        return next(self._numbers)

    def _read(self, stream: Stream, stored: int) -> Iterator[int]:
        rest = b""
        while True:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield decimal(line, "the sparse map")
            if len(rest) > _NUMBER_DIGITS or self.taken + BLOCK > stored:
                raise Malformed("the sparse map has no end", found=show(rest), expected="lines of digits")
            rest += stream.take(BLOCK)
            self.taken += BLOCK
