"""How large layers are unpacked, told from a few bytes."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest
from cvmfs_sync.sizes import Estimate, Ratios, unpacked

TAR = b"".join(bytes([number % 7]) * 511 + b"\n" for number in range(2000))
NOISE = random.Random(1).randbytes(100_000)
TYPE = "application/vnd.oci.image.layer.v1.tar"
FRAME = b"\x28\xb5\x2f\xfd"
GIB = 1 << 30


def described(blob: bytes | int, media_type: str) -> Descriptor:
    """A layer of these bytes, or of this size."""
    size = blob if isinstance(blob, int) else len(blob)
    return Descriptor(media_type, Digest("sha256", "0" * 64), size)


def reading(blob: bytes, asked: list[tuple[int, int]]) -> Callable[[int, int], bytes | None]:
    """A way to read parts of a blob, which notes them."""

    def read(offset: int, length: int) -> bytes | None:
        asked.append((offset, length))
        return blob[offset : offset + length]

    return read


def framed(content: bytes) -> bytes:
    """One zstd frame that says how much is in it."""
    return zstandard.ZstdCompressor().compress(content)


def streamed(content: bytes) -> bytes:
    """One zstd frame as it is written by who does not know how much will come."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(content) + compressor.flush()


BLOBS: dict[str, tuple[str, bytes, int | None]] = {
    "plain": (TYPE, TAR, len(TAR)),
    "gzip": (f"{TYPE}+gzip", gzip.compress(TAR), len(TAR)),
    "gzip by Docker's name": ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.compress(TAR), len(TAR)),
    "gzip that is called plain": (TYPE, gzip.compress(TAR), len(TAR)),
    "gzip of what does not shrink": (f"{TYPE}+gzip", gzip.compress(NOISE), len(NOISE)),
    "gzip of several members": (f"{TYPE}+gzip", gzip.compress(NOISE) + gzip.compress(b"x"), None),
    "zstd": (f"{TYPE}+zstd", framed(TAR), len(TAR)),
    "zstd of which the length was not known": (f"{TYPE}+zstd", streamed(TAR), None),
    "zstd of several frames": (f"{TYPE}+zstd", framed(NOISE[:1000]) + framed(NOISE), None),
    "zstd behind what is to be skipped": (f"{TYPE}+zstd", b"\x50\x2a\x4d\x18\x02\0\0\0xx" + framed(TAR), None),
    "zstd, damaged": (f"{TYPE}+zstd", b"\x28\xb5\x2f\xfd" + b"\xff" * 30, None),
    "tiny": (TYPE, b"x" * 10, 10),
}


@pytest.mark.parametrize(("media_type", "blob", "size"), BLOBS.values(), ids=BLOBS)
def test_layers(media_type: str, blob: bytes, size: int | None) -> None:
    """A layer's length is told by a few of its bytes, or nothing is told: never that of a part for the whole."""
    asked: list[tuple[int, int]] = []
    found = unpacked(described(blob, media_type), reading(blob, asked))
    assert found == (None if size is None else Estimate.known(size))
    assert sum(length for _, length in asked) <= 22
    assert len(asked) <= (2 if media_type == TYPE else 1)


LENGTHS = {
    # Compressed bytes, what the trailer says, and what it may mean.
    "far below 4 GiB": (30 << 20, 90 << 20, Estimate.known(90 << 20)),
    "ratio of a bomb": (1 << 20, GIB, Estimate.known(GIB)),
    "once over 4 GiB": (2 * GIB, 1 * GIB, Estimate(5 * GIB, 5 * GIB, 21 * GIB)),
    "or not over it": (GIB, 3 * GIB, Estimate(3 * GIB, 3 * GIB, 11 * GIB)),
    "shorter than its compression": (30 << 20, 5 << 20, None),
    "footer of an eStargz": (30 << 20, 0, None),
}


@pytest.mark.parametrize(("size", "trailer", "expected"), LENGTHS.values(), ids=LENGTHS)
def test_what_a_gzip_trailer_may_mean(size: int, trailer: int, expected: Estimate | None) -> None:
    """The trailer counts modulo 4 GiB: all lengths that are plausible bound the estimate, the usual ratio chooses."""
    layer = described(size, f"{TYPE}+gzip")
    assert unpacked(layer, lambda _offset, _length: trailer.to_bytes(4, "little")) == expected


def test_what_cannot_be_read_is_not_known() -> None:
    """A registry that gives no parts makes no layer empty."""
    for media_type in (TYPE, f"{TYPE}+gzip", f"{TYPE}+zstd"):
        assert unpacked(described(1000, media_type), lambda _offset, _length: None) is None


def test_ratios_come_from_enough_images() -> None:
    """Nine of ten images lie between the bounds; a few images, or broken records, tell nothing."""
    images = [(100, 100 * ratio) for ratio in range(1, 21)]
    ratios = Ratios.of([*images, (0, 5), (5, 0)])
    assert ratios is not None
    assert ratios.low <= 2
    assert 10 <= ratios.likely <= 11
    assert ratios.high >= 19
    assert ratios.estimate(1000) == Estimate(int(1000 * ratios.low), int(1000 * ratios.likely), int(1000 * ratios.high))
    assert Ratios.of(images[:9]) is None
    assert Ratios.of([]) is None


def test_estimates_add_up() -> None:
    """An image is estimated if one of its layers is."""
    total = Estimate.known(5) + Estimate(1, 2, 3)
    assert (total, total.exact) == (Estimate(6, 7, 8), False)
    assert (Estimate.known(5) + Estimate.known(1)).exact


@given(
    st.integers(0, 1 << 63) | st.integers(0, 1 << 40),
    st.sampled_from(["", "+gzip", "+zstd", ".gzip", "+other"]),
    st.binary(min_size=18, max_size=18) | st.binary(min_size=14, max_size=14).map(FRAME.__add__),
)
def test_whatever_a_registry_sends(size: int, suffix: str, content: bytes) -> None:
    """Any size and any bytes give an estimate in order, or none, at once."""
    layer = described(size, TYPE + suffix)
    found = unpacked(layer, lambda offset, length: content[:length] if offset == 0 else content[-length:])
    assert found is None or found.low <= found.likely <= found.high


@given(st.integers(18, 20 << 30), st.integers(100, 1100))
def test_the_length_of_an_ordinary_layer_is_among_the_plausible_ones(size: int, percent: int) -> None:
    """A stream of one to eleven times its compression lies within the bounds, and is one of those that fit."""
    stream = size * percent // 100
    trailer = (stream % (1 << 32)).to_bytes(4, "little")
    found = unpacked(described(size, f"{TYPE}+gzip"), lambda _offset, _length: trailer)
    assert found is not None
    assert found.low <= stream <= found.high
    assert (stream - found.low) % (1 << 32) == (found.likely - found.low) % (1 << 32) == 0
