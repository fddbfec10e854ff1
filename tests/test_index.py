"""Layer indexes: what indexing a layer tells, the bytes that keep it, and the directory that keeps those."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmfs_sync import index as index_module
from cvmfs_sync.columns import ColumnReader, ColumnWriter
from cvmfs_sync.errors import InvalidImage, LimitExceeded
from cvmfs_sync.index import IndexCache, LayerIndex, UnusableIndex, decode, encode, index_layer
from cvmfs_sync.reference import Digest
from cvmfs_sync.tar import Entry, Kind, Limits, Reader
from cvmfs_sync.tree import merge
from fuzz import archives
from tests.support import images
from tests.support.images import directory, file, hardlink, symlink, whiteout
from tests.support.model import MemoryLayer, file_layers, listing

A, B = (Digest.parse(f"sha256:{letter * 64}") for letter in "ab")
LONG = Digest.parse("sha512:" + "c" * 128)
_Int64 = st.integers(-(2**63), 2**63 - 1)
_Sizes = st.integers(0, 2**63 - 1)
_Entries = st.builds(
    Entry,
    path=st.binary(max_size=12) | st.sampled_from([b"usr/lib/a", b"usr/lib/b", b"usr"]),
    kind=st.sampled_from(Kind),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    size=_Sizes,
    mtime=_Int64,
    link=st.binary(max_size=5),
    device=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    xattrs=st.dictionaries(st.binary(max_size=5), st.binary(max_size=5), max_size=3),
    offset=_Sizes,
    sparse=st.none() | st.lists(st.tuples(_Sizes, _Sizes), max_size=3).map(tuple),
)


def _indexed(entries: list[Entry], diff_id: Digest = A, blob: Digest | None = None) -> LayerIndex:
    """An index with some digest for each file."""
    files = sum(entry.kind is Kind.FILE for entry in entries)
    return LayerIndex(diff_id, entries, b"".join(hashlib.sha256(b"%d" % at).digest() for at in range(files)), blob)


def _of(*entries: images.Entry, limits: Limits | None = None) -> LayerIndex:
    stream = images.layer(*entries, compression="none").tar
    return index_layer(MemoryLayer.of(stream), limits or Limits())


# --- one pass over a layer --------------------------------------------------------------------------------------------


def test_indexing_gives_entries_and_digests() -> None:
    """Each regular file has the sha256 of its content, in the order of the archive; whiteouts are files, too."""
    found = _of(directory("d"), file("d/a", "one"), symlink("l", "d"), whiteout("w"), file("b", "two" * 700_000))
    assert [entry.path for entry in found.entries] == [b"d", b"d/a", b"l", b".wh.w", b"b"]
    assert [found.digest(at) for at in (1, 3, 4)] == [
        hashlib.sha256(content).digest() for content in (b"one", b"", b"two" * 700_000)
    ]
    assert len(found.digests) == 3 * 32


def test_what_is_no_file_has_no_digest() -> None:
    """Asking for the digest of a directory is a mistake of the caller."""
    with pytest.raises(ValueError, match="no regular file"):
        _of(directory("d")).digest(0)


def test_an_index_has_a_digest_for_each_file() -> None:
    """An index with too few or too many digests can't be made."""
    with pytest.raises(ValueError, match="digests for 1 files"):
        LayerIndex(A, _of(file("a")).entries, b"")


def test_an_index_merges_like_its_layer() -> None:
    """Entries that were written and read merge to the same tree."""
    lower = _of(directory("d"), file("d/a", "1"), hardlink("b", "d/a"))
    upper = _of(whiteout("d/a"), symlink("c", "/d"))
    again = [decode(encode(each)).entries for each in (lower, upper)]
    assert listing(merge(again)) == listing(merge([lower.entries, upper.entries]))


@pytest.mark.parametrize("name", ["sparse-0.0", "sparse-0.1", "sparse-1.0", "sparse-gnu"])
def test_a_sparse_file_has_the_digest_of_its_logical_content(name: str) -> None:
    """Holes count as zeros, in each dialect: the same file stored whole compares equal."""
    found = index_layer(MemoryLayer.of(dict(archives.seeds())[name]), Limits())
    (entry,) = found.entries
    assert entry.sparse is not None
    content = bytearray(entry.size)
    for offset, length in entry.sparse:
        content[offset : offset + length] = b"x" * length
    assert found.digest(0) == hashlib.sha256(content).digest()


def test_a_file_that_is_one_hole() -> None:
    """A sparse file without data is hashed as zeros, piece by piece."""
    entry = replace(_of(file("a")).entries[0], size=5 << 20, sparse=())
    reader = Reader([], Limits())
    assert index_module.content_digest(entry, reader) == hashlib.sha256(bytes(5 << 20)).digest()


def test_indexing_verifies_the_diff_id(tmp_path: Path) -> None:
    """An archive with another digest than the configuration says gives no index."""
    (layer,) = file_layers(tmp_path, [images.layer(file("a", "x"))])
    assert index_layer(layer, Limits(), blob=B).blob == B
    with pytest.raises(InvalidImage, match="another digest"):
        index_layer(replace(layer, diff_id=A), Limits())


def test_indexing_holds_the_limits() -> None:
    """A limit of the archive is one of the index."""
    with pytest.raises(LimitExceeded):
        _of(file("a"), file("b"), limits=Limits(entries=1))


# --- the bytes --------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.lists(_Entries, max_size=8), st.sampled_from([A, LONG]), st.sampled_from([None, B, LONG]))
def test_any_index_comes_back(entries: list[Entry], diff_id: Digest, blob: Digest | None) -> None:
    """Every field of every entry, whatever its bytes."""
    index = _indexed(entries, diff_id, blob)
    data = encode(index)
    again = decode(data)
    assert again == index
    assert encode(again) == data


@given(st.lists(st.integers(), max_size=5))
def test_any_numbers_come_back(values: list[int]) -> None:
    """A column holds numbers of any size, although no archive has such."""
    writer = ColumnWriter()
    writer.numbers(values)
    writer.table(values)
    reader = ColumnReader(writer.content())
    assert [list(reader.numbers()), reader.table()] == [values, values]
    reader.end()


@pytest.mark.parametrize(
    "values", [[0, 255], [256], [2**32], [2**64 - 1], [2**64], [-1, 127], [-1, 128], [-(2**63)], [-(2**63) - 1], []]
)
def test_columns_at_the_limits_of_their_types(values: list[int]) -> None:
    """The narrowest type that is chosen holds the values."""
    writer = ColumnWriter()
    writer.numbers(values)
    assert list(ColumnReader(writer.content()).numbers()) == values


def test_equal_values_are_one_object() -> None:
    """Times and sizes that repeat take their memory once."""
    again = decode(encode(_of(*(file(f"f{at}", "x" * 1000, mtime=1_700_000_000.5) for at in range(3)))))
    assert len({id(entry.mtime) for entry in again.entries}) == 1
    assert len({id(entry.size) for entry in again.entries}) == 1


def test_an_index_is_small() -> None:
    """An entry of an ordinary layer takes fewer than 60 bytes, 32 of them its digest."""
    entries = [file(f"usr/lib/python3/package{at // 20}/module{at}.py", f"{at}", mtime=at // 20) for at in range(2_000)]
    assert len(encode(_of(*entries))) < 60 * 2_000


_SAMPLE = encode(_indexed(list(_of(directory("d"), file("d/a", "x"), symlink("l", "d")).entries)))


@given(st.integers(0, len(_SAMPLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(at: int, change: int) -> None:
    """Whatever byte is damaged, no index comes of it."""
    damaged = bytearray(_SAMPLE)
    damaged[at] ^= change
    with pytest.raises(UnusableIndex):
        decode(bytes(damaged))


def test_a_cut_or_extended_index_is_noticed() -> None:
    """Every beginning of an index is none, and neither is one with something after it."""
    for data in [*(_SAMPLE[:length] for length in range(len(_SAMPLE))), _SAMPLE + b"\0"]:
        with pytest.raises(UnusableIndex):
            decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_index(data: bytes) -> None:
    """Bytes of another origin are refused and nothing else happens, even below a right header."""
    for content in (data, _packed(data), _packed(zstandard.compress(data))):
        with pytest.raises(UnusableIndex):
            decode(content)


def _packed(frame: bytes) -> bytes:
    head = index_module._MAGIC + index_module._VERSION.pack(index_module.FORMAT)
    return head + hashlib.sha256(frame).digest() + frame


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_contradictions_below_a_right_checksum_are_noticed_or_harmless(at: int, change: int) -> None:
    """What another version wrote and did not say gives an error of this kind or a consistent index, never another."""
    frame = _SAMPLE[len(index_module._MAGIC) + 2 + 32 :]
    content = bytearray(zstandard.decompress(frame))
    content[at % len(content)] ^= change
    try:
        found = decode(_packed(zstandard.compress(bytes(content))))
    except UnusableIndex:
        return
    assert len(found.digests) == 32 * sum(entry.kind is Kind.FILE for entry in found.entries)


def test_another_format_says_so() -> None:
    """An index of a later version is told from a damaged one."""
    version = len(index_module._MAGIC)
    with pytest.raises(UnusableIndex, match="another format") as caught:
        decode(_SAMPLE[:version] + b"\x63\0" + _SAMPLE[version + 2 :])
    assert caught.value.found == "99"


# --- the cache --------------------------------------------------------------------------------------------------------


class Clock:
    """A time that a test sets."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A time that does not pass by itself."""
    return Clock()


def _numbered(number: int) -> LayerIndex:
    return _indexed([], Digest.parse(f"sha256:{number:064x}"))


def _names(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_the_cache_gives_what_it_was_given(tmp_path: Path) -> None:
    """An index is found by its layer's diff_id, under its name and no other."""
    cache = IndexCache(tmp_path / "indexes")
    assert cache.get(A) is None
    index = _indexed(list(_of(file("a", "x")).entries))
    cache.put(index)
    assert cache.get(A) == index
    assert cache.get(B) is None
    assert _names(tmp_path) == [f"indexes/aa/{A.hex}.idx"]
    cache.put(index)
    assert cache.get(A) == index


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:40] + b"!" + data[41:],
        lambda data: encode(_indexed([], B)),
    ],
    ids=["empty", "cut", "damaged", "of another layer"],
)
def test_the_cache_removes_what_is_unusable(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """A spoiled file is a miss and gone afterwards, so the layer is indexed again."""
    cache = IndexCache(tmp_path)
    cache.put(_indexed([]))
    path = tmp_path / "aa" / f"{A.hex}.idx"
    path.write_bytes(spoil(path.read_bytes()))
    assert cache.get(A) is None
    assert not path.exists()
    cache.put(_indexed([]))
    assert cache.get(A) is not None


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path: Path, clock: Clock) -> None:
    """Above its bound it removes the least recently used indexes; reading one is using it."""
    size = len(encode(_numbered(0)))
    cache = IndexCache(tmp_path, 3 * size + size // 2, clock=clock)
    for number in range(3):
        clock.now += 1
        cache.put(_numbered(number))
    clock.now += 1
    assert cache.get(_numbered(0).diff_id) is not None
    clock.now += 1
    cache.put(_numbered(3))
    assert [cache.get(_numbered(number).diff_id) is not None for number in range(4)] == [True, False, True, True]


def test_the_cache_keeps_to_its_bound_whatever_was_there(tmp_path: Path, clock: Clock) -> None:
    """A cache of an earlier run counts, and the new index stays though its time is not the latest."""
    size = len(encode(_numbered(0)))
    for number in range(6):
        clock.now += 1
        IndexCache(tmp_path, clock=clock).put(_numbered(number))
    clock.now -= 100
    IndexCache(tmp_path, 2 * size, clock=clock).put(_numbered(9))
    assert len(_names(tmp_path)) <= 2
    assert IndexCache(tmp_path).get(_numbered(9).diff_id) is not None


def test_an_index_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    """It would make everything else go for nothing."""
    cache = IndexCache(tmp_path, 10)
    cache.put(_indexed([]))
    assert cache.get(A) is None
    assert _names(tmp_path) == []


def test_leftovers_of_killed_writers_go(tmp_path: Path, clock: Clock) -> None:
    """A day-old temporary file is removed, one that may be in use is not."""
    (tmp_path / "aa").mkdir()
    for name, age in (("old", 90_000), ("new", 60)):
        path = tmp_path / "aa" / f".{name}.tmp"
        path.write_bytes(b"x")
        os.utime(path, (clock.now - age,) * 2)
    IndexCache(tmp_path, clock=clock).put(_indexed([]))
    assert _names(tmp_path) == ["aa/.new.tmp", f"aa/{A.hex}.idx"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be renamed to its place is removed, and the caller hears of it."""
    cache = IndexCache(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        cache.put(_indexed([]))
    assert _names(tmp_path) == []
