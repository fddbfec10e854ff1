"""Inflating: both formats in every shape come out whole and bounded, damage is refused, and threads never outlive."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_sync.compression import decompress, read_layer
from cvmfs_sync.errors import BlobMismatch, ImageError, InvalidImage, LimitExceeded
from cvmfs_sync.reference import Digest
from cvmfs_sync.tar import Limits

MIB = 1 << 20
DEFAULT = Limits()
TEXT = b"".join(b"%d %d\n" % (n, n * n) for n in range(200_000))
SKIPPABLE = b"\x5e\x2a\x4d\x18" + struct.pack("<I", 5) + b"extra"


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


def inflate(blob: bytes, *, size: int = MIB, limits: Limits = DEFAULT) -> bytes:
    chunks = (blob[at : at + size] for at in range(0, len(blob), size))
    pieces = list(decompress(chunks, what="layer", limits=limits))
    assert all(0 < len(piece) <= MIB for piece in pieces)
    return b"".join(pieces)


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


WHOLE = {
    "plain": TEXT,
    "empty": b"",
    "one byte": b"x",
    "gzip": gzip.compress(TEXT),
    "gzip of nothing": gzip.compress(b""),
    "gzip members": gzip.compress(TEXT[:1000]) + gzip.compress(b"") + gzip.compress(TEXT[1000:]),
    "zstd": zstd(TEXT),
    "zstd of nothing": zstd(b""),
    "zstd with checksum": zstd(TEXT, write_checksum=True),
    "zstd without size": zstd(TEXT, write_content_size=False),
    "zstd frames": zstd(TEXT[:1000]) + zstd(b"") + zstd(TEXT[1000:], write_checksum=True),
    "zstd:chunked": SKIPPABLE
    + zstd(TEXT[:1000])
    + SKIPPABLE
    + zstd(TEXT[1000:])
    + SKIPPABLE[:4]
    + bytes(4)
    + SKIPPABLE,
}


def content_of(name: str) -> bytes:
    return {"empty": b"", "one byte": b"x", "gzip of nothing": b"", "zstd of nothing": b""}.get(name, TEXT)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("size", [1, 1000, MIB])
def test_whole_streams(name: str, size: int) -> None:
    """Each format, in one part or several, comes out whole whatever the chunks."""
    blob = WHOLE[name]
    if size == 1:
        size = max(1, len(blob) // 5_000)
    assert inflate(blob, size=size) == content_of(name)


DAMAGED = {
    "gzip cut in the header": gzip.compress(TEXT)[:7],
    "gzip cut in the data": gzip.compress(TEXT)[:1000],
    "gzip cut in the trailer": gzip.compress(TEXT)[:-1],
    "gzip second member cut": gzip.compress(b"a") + gzip.compress(TEXT)[:-1],
    "gzip followed by bytes": gzip.compress(TEXT) + b"garbage",
    "gzip followed by one byte of a magic": gzip.compress(TEXT) + b"\x1f",
    "gzip followed by zeros": gzip.compress(TEXT) + bytes(512),
    "gzip followed by zstd": gzip.compress(b"a") + zstd(b"b"),
    "gzip checksum": gzip.compress(TEXT)[:-8] + b"\0\0\0\0" + gzip.compress(TEXT)[-4:],
    "gzip length": gzip.compress(TEXT)[:-4] + b"\0\0\0\0",
    "gzip method": b"\x1f\x8b\x07" + gzip.compress(TEXT)[3:],
    "gzip data": gzip.compress(TEXT)[:20] + b"\xff" * 50 + gzip.compress(TEXT)[70:],
    "zstd cut in the magic of the second frame": zstd(b"a") + zstd(TEXT)[:3],
    "zstd cut in the header": zstd(TEXT)[:5],
    "zstd cut in the data": zstd(TEXT)[:1000],
    "zstd cut before the last byte": zstd(TEXT)[:-1],
    "zstd cut in the checksum": zstd(TEXT, write_checksum=True)[:-1],
    "zstd cut in a skippable frame": zstd(TEXT) + SKIPPABLE[:-1],
    "zstd followed by bytes": zstd(TEXT) + b"garbage",
    "zstd followed by zeros": zstd(TEXT) + bytes(512),
    "zstd followed by gzip": zstd(b"a") + gzip.compress(b"b"),
    "zstd checksum": zstd(TEXT, write_checksum=True)[:-4] + b"\0\0\0\0",
    "zstd data": zstd(TEXT, write_checksum=True)[:50] + b"\xff" * 50 + zstd(TEXT, write_checksum=True)[100:],
    "zstd window of 2 GiB": b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00",
    "zstd reserved block type": b"\x28\xb5\x2f\xfd\x00\x58\x07\x00\x00",
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("size", [7, 1000, MIB])
def test_damaged_streams(name: str, size: int) -> None:
    """What is damaged, cut off or followed by anything is refused, naming the layer."""
    with pytest.raises(InvalidImage, match=r"^layer: the (gzip|zstd) stream is damaged") as caught:
        inflate(DAMAGED[name], size=max(size, len(DAMAGED[name]) // 5000))
    assert not isinstance(caught.value, LimitExceeded)


@pytest.mark.parametrize(("name", "blob"), [("bzip2", bz2.compress(b"a")), ("xz", lzma.compress(b"a"))])
def test_other_compressions_are_named(name: str, blob: bytes) -> None:
    """A compression that images may not have is refused by its name."""
    with pytest.raises(InvalidImage) as caught:
        inflate(blob)
    assert caught.value.found == name


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_bombs_stop_at_the_ratio(compress: Callable[[bytes], bytes]) -> None:
    """A stream may grow beyond the floor only in proportion; no piece is large on the way."""
    bomb = compress(bytes(64 * MIB))
    limits = Limits(ratio=100, ratio_floor=8 * MIB)
    pieces: list[int] = []
    with pytest.raises(LimitExceeded, match=r"^layer: over the limit 'ratio'.*100 to 1"):
        pieces.extend(len(piece) for piece in decompress([bomb], what="layer", limits=limits))
    assert max(pieces, default=0) <= MIB
    assert len(inflate(bomb)) == 64 * MIB


@pytest.mark.parametrize("name", ["plain", "gzip", "zstd"])
def test_the_limit_of_bytes(name: str) -> None:
    """A stream over the limit ends with the limit's name and value."""
    with pytest.raises(LimitExceeded, match=r"^layer: over the limit 'bytes'.*at most 1000000"):
        inflate(WHOLE[name], limits=Limits(bytes=1_000_000))
    assert inflate(WHOLE[name], limits=Limits(bytes=len(TEXT))) == TEXT


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50), st.booleans())
def test_members_and_chunks_make_no_difference(parts: list[bytes], size: int, use_zstd: bool) -> None:
    """However content is divided into members and these into chunks, it is the same content."""
    compress = zstd if use_zstd else gzip.compress
    assert inflate(b"".join(map(compress, parts)), size=size) == b"".join(parts)


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_magic(rest: bytes) -> None:
    """Whatever follows a magic number is inflated or refused."""
    for magic in (b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", SKIPPABLE):
        with contextlib.suppress(InvalidImage):
            inflate(magic + rest, limits=Limits(bytes=64 * MIB))


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    """Every test leaves as many threads as it found."""
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(gzip.compress(TEXT * 6, 1))
    return path


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_layer_with_its_diff_id(blob: Path, algorithm: str) -> None:
    """The right layer comes out whole."""
    diff_id = digest_of(TEXT * 6, algorithm)
    with read_layer(blob, diff_id=diff_id, what="layer", limits=Limits()) as pieces:
        assert b"".join(pieces) == TEXT * 6


def test_a_layer_with_another_diff_id(blob: Path) -> None:
    """At the end of a wrong layer both digests are named."""
    wrong = digest_of(b"other")
    with (
        read_layer(blob, diff_id=wrong, what="layer", limits=Limits()) as pieces,
        pytest.raises(InvalidImage, match=rf"found: {digest_of(TEXT * 6)}; expected: {wrong}"),
    ):
        list(pieces)


def test_errors_reach_the_caller(blob: Path, tmp_path: Path) -> None:
    """Damage, limits and a file that cannot be read are raised where the pieces are read."""
    blob.write_bytes(blob.read_bytes()[:-1])
    diff_id = digest_of(TEXT * 6)
    for path, limits, error in [
        (blob, Limits(), InvalidImage),
        (blob, Limits(bytes=MIB), LimitExceeded),
        (tmp_path / "missing", Limits(), ImageError),
        (tmp_path, Limits(), ImageError),
    ]:
        with read_layer(path, diff_id=diff_id, what="layer", limits=limits) as pieces, pytest.raises(error):
            list(pieces)


@pytest.mark.parametrize("taken", [0, 1, 10])
def test_a_caller_who_stops_early(blob: Path, taken: int) -> None:
    """Leaving the context ends both threads; reading on after it is an error, not a short layer."""
    with read_layer(blob, diff_id=digest_of(b""), what="layer", limits=Limits()) as pieces:
        for _ in range(taken):
            next(pieces)
    with pytest.raises(ValueError, match="after its context ended"):
        next(pieces)


def test_a_caller_who_raises(blob: Path) -> None:
    """The caller's own exception passes, and the threads end."""
    layer = read_layer(blob, diff_id=digest_of(b""), what="layer", limits=Limits())
    with pytest.raises(ZeroDivisionError), layer as pieces:
        assert 1 // len(next(pieces)[:0])


def test_a_blob_that_is_waited_for(blob: Path) -> None:
    """What gives the blob's path is called beside the caller, its errors arrive, and nobody waits for it in vain."""
    diff_id = digest_of(TEXT * 6)
    there = threading.Event()

    def wait() -> Path:
        there.wait()
        return blob

    def fail() -> Path:
        raise BlobMismatch("the download failed")

    with read_layer(wait, diff_id=diff_id, what="layer", limits=Limits()) as pieces:
        there.set()
        assert b"".join(pieces) == TEXT * 6
    with read_layer(fail, diff_id=diff_id, what="layer", limits=Limits()) as pieces, pytest.raises(BlobMismatch):
        list(pieces)
    there.clear()
    with read_layer(wait, diff_id=diff_id, what="layer", limits=Limits()):
        pass  # not hanging here is the point
    there.set()
    while any(thread.name.endswith(" layer") for thread in threading.enumerate()):
        time.sleep(0.01)
