"""How large a layer is unpacked, told from a few bytes of it, or from what others have come to.

A descriptor and a way to read parts of the blob go in, an `Estimate` comes out. What it is about is the layer's
uncompressed stream, headers and padding included: no file system holds more of it, and what upper layers hide counts.
Nothing is verified, for nothing is decided by it.

- Uncompressed layers say it by their size.
- gzip ends with the length of its last member modulo 2^32 (RFC 1952, 2.3.1), and a layer mostly is one member.
- A zstd frame may begin with the length of its content (RFC 8878, 3.1.1.1.4), and a layer may be one frame.

A stream is hardly shorter than its compression (what does not shrink grows by 5 bytes in 64 KiB, and headers): a length
that is shorter by more than a hundredth is that of one member of several, or has gone over 2^32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import zstandard

from cvmfs_sync.image import Descriptor

__all__ = ["Estimate", "Ratios", "unpacked"]

Read: TypeAlias = Callable[[int, int], bytes | None]
"""So many bytes of a blob from an offset on; None if they can't be had."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes((0x50 + number, 0x2A, 0x4D, 0x18)) for number in range(16))
_HEAD = 18  # bytes of the longest header of a zstd frame
_TAIL = 4
_WRAP = 1 << 32
# Layers are packed two to six times; beyond this a length that went over 2^32 less often is the likelier one.
_PLAUSIBLE = 12
_USUAL = 3
_ENOUGH = 10  # images, before their ratios are taken for the usual ones


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of bytes, and between which two it is; all three are the same where it is known."""

    low: int
    likely: int
    high: int

    @classmethod
    def known(cls, size: int) -> Estimate:
        """A number that is no estimate."""
        return cls(size, size, size)

    @property
    def exact(self) -> bool:
        """Whether it is known."""
        return self.low == self.high

    def __add__(self, other: Estimate) -> Estimate:
        """Of both together."""
        return Estimate(self.low + other.low, self.likely + other.likely, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Ratios:
    """How many times larger than their layers published images are: nine of ten lie between `low` and `high`."""

    low: float
    likely: float
    high: float

    @classmethod
    def of(cls, images: Iterable[tuple[int, int]]) -> Ratios | None:
        """What images have come to.

        Args:
            images: Compressed and unpacked bytes of each.

        Returns:
            None if they are too few to tell.
        """
        found = sorted(size / compressed for compressed, size in images if compressed > 0 and size > 0)
        if len(found) < _ENOUGH:
            return None
        last = len(found) - 1
        return cls(found[math.floor(last * 0.05)], found[last // 2], found[math.ceil(last * 0.95)])

    def estimate(self, compressed: int) -> Estimate:
        """Of a layer of which nothing else is known."""
        return Estimate(int(compressed * self.low), int(compressed * self.likely), int(compressed * self.high))


def unpacked(layer: Descriptor, read: Read) -> Estimate | None:
    """The length of a layer's uncompressed stream; None if that can't be told.

    Args:
        layer: Its media type says where to look first, its bytes what it is.
        read: Called once, for layers whose media type does not say that they are gzip sometimes twice.
    """
    if layer.size < _HEAD:
        return Estimate.known(layer.size)
    if not layer.media_type.endswith("gzip"):
        head = read(0, _HEAD)
        if head is None or head.startswith(_ZSTD_SKIPPABLE):
            return None
        if head.startswith(_ZSTD):
            return _zstd(head, layer.size)
        if not head.startswith(_GZIP):
            return Estimate.known(layer.size)
    tail = read(layer.size - _TAIL, _TAIL)
    return None if tail is None else _gzip(int.from_bytes(tail, "little"), layer.size)


def _zstd(head: bytes, size: int) -> Estimate | None:
    try:
        content = zstandard.get_frame_parameters(head).content_size
    except zstandard.ZstdError:
        return None
    unknown = content in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR)
    return None if unknown or content < size - size // 100 else Estimate.known(content)


def _gzip(length: int, size: int) -> Estimate | None:
    """The streams whose length modulo 2^32 this is, as far as they are plausible."""
    # In whole numbers and without a list: a manifest may claim any size.
    least = size - size // 100
    first = length + max(0, -((length - least) // _WRAP)) * _WRAP
    most = size * _PLAUSIBLE
    if first > most:
        return Estimate.known(length) if length >= least else None
    last = first + (most - first) // _WRAP * _WRAP
    below = max(first, first + (size * _USUAL - first) // _WRAP * _WRAP)
    near = (below, min(below + _WRAP, last))
    likely = min(near, key=lambda each: max(each, size * _USUAL) / max(1, min(each, size * _USUAL)))
    return Estimate(first, likely, last)
