"""The tar reader: every dialect comes out as what was written, and everything ambiguous is refused with its reason."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmfs_sync.errors import InvalidImage, LimitExceeded
from cvmfs_sync.tar import Entry, Kind, Limits, Reader

END = bytes(1024)
DEFAULT = Limits()


# --- writing streams byte by byte -------------------------------------------------------------------------------------


def header(name: bytes = b"f", **fields: bytes) -> bytes:
    """A ustar header with some fields replaced by raw bytes; the checksum is right unless it is given."""
    layout = [
        ("name", 100, name),
        ("mode", 8, b"0000644\0"),
        ("uid", 8, b"0001750\0"),
        ("gid", 8, b"0001751\0"),
        ("size", 12, b"00000000000\0"),
        ("mtime", 12, b"00000000001\0"),
        ("checksum", 8, b" " * 8),
        ("type", 1, b"0"),
        ("link", 100, b""),
        ("magic", 8, b"ustar\x0000"),
        ("user", 32, b""),
        ("group", 32, b""),
        ("major", 8, b"0000000\0"),
        ("minor", 8, b"0000000\0"),
        ("prefix", 155, b""),
        ("rest", 12, b""),
    ]
    unknown = fields.keys() - {field for field, _, _ in layout}
    assert not unknown, unknown
    block = b"".join(fields.get(field, value).ljust(width, b"\0") for field, width, value in layout)
    assert len(block) == 512
    if "checksum" not in fields:
        block = block[:148] + b"%06o\0 " % sum(block) + block[156:]
    return block


def octal(value: int) -> bytes:
    return b"%011o\0" % value


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def file(name: bytes, content: bytes, **fields: bytes) -> bytes:
    return header(name, **{"size": octal(len(content)), **fields}) + padded(content)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    return file(b"pax", b"".join(record(*each) for each in records), type=kind)


def raw_pax(body: bytes) -> bytes:
    return file(b"pax", body, type=b"x")


def long(kind: bytes, text: bytes) -> bytes:
    return file(b"././@LongLink", text, type=kind, magic=b"ustar  \0")


def gnu_sparse(pairs: bytes, *, real: int, stored: int, extended: bytes = b"\0") -> bytes:
    """An old GNU sparse header with up to four raw pairs."""
    block = header(b"s", type=b"S", magic=b"ustar  \0", size=octal(stored))
    block = block[:386] + pairs.ljust(96, b"\0") + extended + octal(real) + block[495:]
    return block[:148] + b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:]) + block[156:]


def pair(offset: int, length: int) -> bytes:
    return octal(offset) + octal(length)


# --- reading them -----------------------------------------------------------------------------------------------------


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes | Iterable[bytes], limits: Limits = DEFAULT, *, size: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    """All entries with their content."""
    reader = Reader(chunked(data, size) if isinstance(data, bytes) else data, limits)
    return [(entry, b"".join(reader.content())) for entry in reader]


def one(data: bytes) -> Entry:
    ((entry, _),) = read(data)
    return entry


def unfold(entry: Entry, stored: bytes) -> bytes:
    """The content of a file with its holes."""
    if entry.sparse is None:
        return stored
    whole = bytearray(entry.size)
    for offset, length in entry.sparse:
        whole[offset : offset + length], stored = stored[:length], stored[length:]
    assert not stored
    return bytes(whole)


X = pax((b"path", b"x"))
GLOBAL = pax((b"comment", b"0123abcd"), kind=b"g")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        # headers
        (header(checksum=b"0000000\0") + END, "checksum is wrong"),
        (header(checksum=b"9999999\0") + END, "checksum is wrong"),
        (b"\1" + header()[1:] + END, "checksum is wrong"),
        (header(magic=b"ustar \0\0") + END, "unknown format"),
        (header(magic=b"garbage!") + END, "unknown format"),
        (header(magic=b"", prefix=b"p") + END, "unknown format"),
        (header(prefix=b"p" * 155, rest=b"\0" * 8 + b"tar\0") + END, "star's or ustar's"),
        (header(magic=b"ustar  \0", prefix=b"dir/name") + END, "GNU header with a prefix"),
        # numbers
        (header(mode=b"000x644\0") + END, "numeric field"),
        (header(mode=b"0000648\0") + END, "numeric field"),
        (header(uid=b"00\x0001\0\0\0") + END, "numeric field"),
        (header(uid=b"\x000001\0\0\0") + END, "numeric field"),
        (header(uid=b"0o1\0\0\0\0\0") + END, "numeric field"),
        (header(uid=b"1_0\0\0\0\0\0") + END, "numeric field"),
        (header(uid=b"+10\0\0\0\0\0") + END, "numeric field"),
        (header(uid=b"-10\0\0\0\0\0") + END, "numeric field"),
        (header(uid=b"\x90\0\0\0\0\0\0\1") + END, "numeric field"),
        (header(uid=b"\xff" * 8) + END, "uid is out of range"),
        (header(gid=b"\x80\0\0\0\xff\xff\xff\xff") + END, "gid is out of range"),
        (header(size=b"\xff" * 12) + END, "size is negative"),
        (header(size=b"\xff" * 12, type=b"5") + END, "size is negative"),
        (header(size=b"\xff" * 12, type=b"x") + END, "size is negative"),
        (header(mtime=b"\x80" + b"\x7f" * 11) + END, "mtime is out of range"),
        (header(mtime=b"\xff\x80" + b"\0" * 10) + END, "mtime is out of range"),
        # types
        *[(header(type=kind) + END, "refused type") for kind in (b"A", b"D", b"E", b"I", b"M", b"N", b"V", b"X")],
        (header(type=b"Z") + END, "refused type"),
        (header(type=b"8") + END, "refused type"),
        (header(type=b"1", link=b"a", size=octal(1)) + bytes(512) + END, "without content has a size"),
        (header(type=b"2", link=b"a", size=octal(1)) + bytes(512) + END, "without content has a size"),
        (header(type=b"3", size=octal(1)) + bytes(512) + END, "without content has a size"),
        (header(type=b"6", size=octal(1)) + bytes(512) + END, "without content has a size"),
        (header(type=b"3", magic=b"") + END, "device in a v7 header"),
        (header(type=b"3", major=b"\x80\0\0\1\0\0\0\0") + END, "device number"),
        (header(b"d/") + END, "ends in '/'"),
        (header(b"d/", type=b"7") + END, "ends in '/'"),
        (file(b"d/", b"x", type=b"\0") + END, "ends in '/'"),
        # names
        (header(b"") + END, "no name"),
        (header(b"../f") + END, "leads upwards"),
        (header(b"a/../f") + END, "leads upwards"),
        (header(b"/..") + END, "leads upwards"),
        (header(b"f", prefix=b"..") + END, "leads upwards"),
        (pax((b"path", b"a/..")) + header() + END, "leads upwards"),
        (long(b"L", b"../x\0") + header() + END, "leads upwards"),
        (header(b"f", type=b"1", link=b"../etc/passwd") + END, "leads upwards"),
        (header(b"f", type=b"1") + END, "no target"),
        (header(b"f", type=b"1", link=b"/") + END, "no target"),
        (header(b"f", type=b"2") + END, "no target"),
        (header(b".", type=b"2", link=b"/etc") + END, "root is not a directory"),
        (header(b"/") + END, "ends in '/'"),
        (header(b"./.", type=b"1", link=b"a") + END, "root is not a directory"),
        # long names
        (long(b"L", b"a\0") + long(b"L", b"b\0") + header() + END, "two long names"),
        (long(b"K", b"a\0") + long(b"K", b"b\0") + header() + END, "two long link targets"),
        (long(b"L", b"a\0") + X + header() + END, "two long names"),
        (X + long(b"L", b"a\0") + header() + END, "two long names"),
        (long(b"L", b"a\0b\0") + header() + END, "long name is malformed"),
        (long(b"L", b"") + header() + END, "long name is malformed"),
        (long(b"L", b"\0") + header() + END, "long name is malformed"),
        (long(b"L", b"a\0") + END, "without an entry"),
        (long(b"L", b"a\0"), "without an entry"),
        # pax
        (X + X + header() + END, "two pax headers"),
        (X + END, "without an entry"),
        (X, "without an entry"),
        (X + GLOBAL + header() + END, "global header between"),
        (long(b"L", b"a\0") + GLOBAL + header() + END, "global header between"),
        (raw_pax(b"9 path=x\n9 path=\n") + header() + END, "record is malformed"),
        (raw_pax(b"8 path=x\n") + header() + END, "record is malformed"),
        (raw_pax(b"11 path=x\n") + header() + END, "record is malformed"),
        (raw_pax(b"9 path=xy") + header() + END, "record is malformed"),
        (raw_pax(b"9 path=x\n\0\0") + header() + END, "record is malformed"),
        (raw_pax(b" 9 path=x\n") + header() + END, "record is malformed"),
        (raw_pax(b"+9 path=x\n") + header() + END, "record is malformed"),
        (raw_pax(b"-1 path=x\n") + header() + END, "record is malformed"),
        (raw_pax(b"0 path=x\n") + header() + END, "record is malformed"),
        (raw_pax(b"9" * 5000 + b" path=x\n") + header() + END, "record is malformed"),
        (raw_pax(b"5 ab\n") + header() + END, "record is malformed"),
        (raw_pax(b"5 =b\n") + header() + END, "record is malformed"),
        (raw_pax(b"2 \n") + header() + END, "record is malformed"),
        (raw_pax(b"1\n") + header() + END, "record is malformed"),
        (pax((b"path", b"a"), (b"path", b"b")) + header() + END, "says two things"),
        (pax((b"size", b"0"), (b"size", b"1")) + header() + END, "says two things"),
        (pax((b"path", b"")) + header() + END, "record is empty"),
        (pax((b"path", b"a\0b")) + header() + END, "holds a NUL"),
        (pax((b"linkpath", b"a\0b")) + header(type=b"2") + END, "holds a NUL"),
        (pax((b"k\0", b"v")) + header() + END, "holds a NUL"),
        (pax((b"size", b"1x")) + header() + END, "size is no number"),
        (pax((b"size", b"-1")) + header() + END, "size is no number"),
        (pax((b"size", b"+1")) + header() + END, "size is no number"),
        (pax((b"size", b"1" * 5000)) + header() + END, "size is no number"),
        (pax((b"uid", b" 1")) + header() + END, "uid is no number"),
        (pax((b"gid", b"4294967295")) + header() + END, "gid is no number"),
        (pax((b"mtime", b"1e3")) + header() + END, "mtime is no time"),
        (pax((b"mtime", b"1.-5")) + header() + END, "mtime is no time"),
        (pax((b"mtime", b".5")) + header() + END, "mtime is no time"),
        (pax((b"mtime", b"")) + header() + END, "mtime is no time"),
        (pax((b"mtime", b"99999999999")) + header() + END, "mtime is out of range"),
        (pax((b"hdrcharset", b"EBCDIC")) + header() + END, "character set"),
        (pax((b"SCHILY.xattr.", b"v")) + header() + END, "extended attribute"),
        (pax((b"SCHILY.xattr.user.a%3Db", b"v")) + header() + END, "extended attribute"),
        (pax((b"SCHILY.realsize", b"5")) + header() + END, "sparse file of star"),
        # CVE-2025-62518: which of two sizes says where the next header is
        (pax((b"size", b"0")) + file(b"f", b"x" * 512) + END, "different sizes"),
        (pax((b"size", b"512")) + header() + header(b"inner") + END, "different sizes"),
        (pax((b"size", b"8589934592")) + header(size=b"\x80" + bytes(10) + b"\1") + END, "different sizes"),
        # global headers
        *[
            (pax((key, b"1"), kind=b"g") + header() + END, "changes all entries")
            for key in (
                b"path",
                b"linkpath",
                b"size",
                b"mtime",
                b"uid",
                b"gid",
                b"SCHILY.xattr.user.a",
                b"GNU.sparse.map",
            )
        ],
        (pax((b"GNU.sparse.offset", b"1"), kind=b"g") + header() + END, "sparse map"),
        # sparse maps
        (gnu_sparse(pair(0, 1), real=9, stored=2) + padded(b"ab") + END, "does not fit"),
        (gnu_sparse(pair(4, 1) + pair(0, 1), real=9, stored=2) + padded(b"ab") + END, "inconsistent"),
        (gnu_sparse(pair(0, 2) + pair(1, 1), real=9, stored=3) + padded(b"abc") + END, "inconsistent"),
        (gnu_sparse(pair(8, 2), real=9, stored=2) + padded(b"ab") + END, "inconsistent"),
        (gnu_sparse(b"\xff" * 24, real=9, stored=2) + padded(b"ab") + END, "inconsistent"),
        (gnu_sparse(bytes(24) + pair(0, 2), real=9, stored=2) + padded(b"ab") + END, "has a gap"),
        (gnu_sparse(octal(1) + bytes(12), real=9, stored=0) + END, "has a gap"),
        (gnu_sparse(b"", real=9, stored=0, extended=b"\1") + bytes(512) + END, "after its end"),
        (gnu_sparse(pair(0, 0) * 4, real=9, stored=0, extended=b"\1"), "cut off"),
        (header(type=b"S") + END, "header of another format"),
        (
            pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"0")) + header() + END,
            "another length",
        ),
        (
            pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.map", b"0,0"))
            + header()
            + END,
            "another length",
        ),
        (pax((b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"0,0")) + header() + END, "one real size"),
        (pax((b"GNU.sparse.offset", b"1"), (b"GNU.sparse.offset", b"1")) + header() + END, "out of order"),
        (pax((b"GNU.sparse.numbytes", b"1")) + header() + END, "out of order"),
        (pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.size", b"1")) + header() + END, "unknown version"),
        (
            pax((b"GNU.sparse.size", b"2")) + gnu_sparse(pair(0, 1), real=9, stored=1) + padded(b"a") + END,
            "two maps",
        ),
        (pax((b"GNU.sparse.new", b"2")) + header() + END, "unknown kind"),
        (pax((b"GNU.sparse.size", b"2")) + header(b"d", type=b"5") + END, "no file"),
        (
            pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"1"))
            + header()
            + END,
            "no name",
        ),
        *[
            (
                pax(
                    (b"GNU.sparse.major", b"1"),
                    (b"GNU.sparse.minor", b"0"),
                    (b"GNU.sparse.realsize", b"9"),
                    (b"GNU.sparse.name", b"s"),
                )
                + file(b"s", body)
                + END,
                reason,
            )
            for body, reason in [
                (b"", "no end"),
                (padded(b"2\n0\n1\n"), "sparse map"),
                (b"1" * 512, "no end"),
                (padded(b"1\n-1\n1\n"), "no number"),
                (padded(b"1\n8\n2\n") + b"ab", "inconsistent"),
                (padded(b"1\n0\n2\n") + b"abc", "does not fit"),
            ]
        ],
        # the end
        (file(b"f", b"x") + END + b"x", "after the end"),
        (file(b"f", b"x") + bytes(512) + header(), "after the end"),
        (file(b"f", b"x") + bytes(700) + b"x", "after the end"),
        (file(b"f", b"x")[:-1], "cut off"),
        (file(b"f", b"x" * 600)[:1000], "cut off"),
        (header(size=octal(1)), "cut off"),
        (header()[:511], "cut off"),
        (b"not a tar at all", "cut off"),
        (b"not a tar at all" * 100, "checksum"),
        (X[:700], "cut off"),
    ],
)
def test_hostile_streams_are_refused_with_their_reason(data: bytes, reason: str) -> None:
    """Each attack and each ambiguity is an InvalidImage that says why, at every chunk size."""
    for size in (1, 512, 1 << 20):
        with pytest.raises(InvalidImage) as caught:
            read(data, size=size)
        assert reason in caught.value.what
        assert not isinstance(caught.value, LimitExceeded)


@pytest.mark.parametrize(
    ("limits", "data", "name"),
    [
        (Limits(path=10), header(b"a/" * 5 + b"b") + END, "path"),
        (Limits(name=3), header(b"aa/bbbb/c") + END, "name"),
        (Limits(), pax((b"path", b"x" * 256)) + header() + END, "name"),
        (Limits(depth=3), header(b"a/b/c/d") + END, "depth"),
        (Limits(link=3), header(type=b"2", link=b"aaaa") + END, "link"),
        (Limits(path=3), header(type=b"1", link=b"aaaa") + END, "path"),
        (Limits(xattrs=9), pax((b"SCHILY.xattr.user.a", b"1234")) + header() + END, "xattrs"),
        (Limits(header=99), pax((b"path", b"x" * 100)) + header() + END, "header"),
        (Limits(), header(b"x", type=b"x", size=octal((1 << 20) + 1)), "header"),
        (Limits(), header(b"x", type=b"L", size=octal(1 << 32)), "header"),
        (Limits(entries=2), header() * 3 + END, "entries"),
        (Limits(bytes=2048), file(b"a", b"x" * 2000) + END, "bytes"),
        (Limits(bytes=5000), gnu_sparse(b"", real=5001, stored=0) + END, "bytes"),
        (Limits(sparse=3), gnu_sparse(pair(0, 0) * 4, real=9, stored=0, extended=b"\1") + bytes(512) + END, "sparse"),
        (
            Limits(sparse=3),
            pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"4"), (b"GNU.sparse.map", b"0,0,0,0,0,0,0,0"))
            + header()
            + END,
            "sparse",
        ),
        (
            Limits(),
            pax(
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.realsize", b"9"),
                (b"GNU.sparse.name", b"s"),
            )
            + file(b"s", padded(b"9999999999\n"))
            + END,
            "sparse",
        ),
    ],
)
def test_limits(limits: Limits, data: bytes, name: str) -> None:
    """What is over a limit is refused with the limit's name, both numbers and the stream's name."""
    with pytest.raises(LimitExceeded) as caught:
        list(Reader([data], limits, what="layer 3"))
    assert f"over the limit '{name}'" in caught.value.what
    assert caught.value.what.startswith("layer 3: ")
    assert caught.value.found
    assert caught.value.expected


def test_a_refusal_says_where() -> None:
    """The message names the stream, the entry and the offset of its header."""
    with pytest.raises(InvalidImage, match=r"sha256:12: entry 'dir/na\\nme\\xff' at byte 1024: .*cut off"):
        list(Reader([file(b"a", b"x") + header(b"dir/na\nme\xff", size=octal(9))], what="sha256:12"))


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"a/b", b"a/b"),
        (b"/a/b", b"a/b"),
        (b"./a", b"a"),
        (b".//./a//b/./c", b"a/b/c"),
        (b"a/.hidden/..b", b"a/.hidden/..b"),
        (b"...", b"..."),
        (b"\xff\\\n\x01 \xc3", b"\xff\\\n\x01 \xc3"),
        (b"a\0garbage", b"a"),
    ],
)
def test_names_are_normalised_and_otherwise_kept(raw: bytes, path: bytes) -> None:
    """Leading './' and '/', '//' and '/./' go; every other byte than NUL is a byte of the name."""
    assert one(header(raw) + END).path == path
    assert one(header(raw, type=b"1", link=raw) + END).link == path


@pytest.mark.parametrize("raw", [b".", b"./", b"/", b"//.", b"./."])
def test_the_root_has_the_empty_path(raw: bytes) -> None:
    """Every spelling of the root directory is b''."""
    assert one(header(raw, type=b"5") + END).path == b""


def test_all_fields_of_an_entry() -> None:
    """A pax entry with everything comes out complete."""
    data = GLOBAL + pax(
        (b"hdrcharset", b"BINARY"),
        (b"path", b"./d/\xfe"),
        (b"mtime", b"-1.25"),
        (b"uid", b"3000000"),
        (b"gid", b"4294967294"),
        (b"SCHILY.xattr.user.a", b"x\0\ny"),
        (b"SCHILY.xattr.user.empty", b""),
        (b"LIBARCHIVE.xattr.user.a", b"eAAKeQ"),
        (b"atime", b"junk"),
        (b"vendor.key", b""),
    )
    entry = one(data + header(b"other", mode=b"0104755\0", type=b"3", major=b"0000010\0", minor=b"0000377\0") + END)
    assert entry == Entry(
        path=b"d/\xfe",
        kind=Kind.CHARACTER,
        mode=0o4755,
        uid=3000000,
        gid=4294967294,
        size=0,
        mtime=-1_250_000_000,
        link=b"",
        device=(8, 255),
        xattrs={b"user.a": b"x\0\ny"},
        offset=len(GLOBAL),
        sparse=None,
    )


@pytest.mark.parametrize(
    ("text", "mtime"),
    [
        (b"0", 0),
        (b"5.", 5 * 10**9),
        (b"1700000000.123456789", 1700000000123456789),
        (b"1.1234567899", 1123456789),
        (b"1.5", 1500000000),
        (b"-0.5", -500000000),
        (b"-2", -2000000000),
    ],
)
def test_pax_times_are_exact_to_the_nanosecond(text: bytes, mtime: int) -> None:
    """No float comes near a time."""
    assert one(pax((b"mtime", text)) + header() + END).mtime == mtime


@pytest.mark.parametrize(
    ("field", "value"),
    [(b"0000017\0", 15), (b"00000017", 15), (b"     17 ", 15), (b"17 \0\0\0\0\0", 15), (b"", 0), (b" " * 8, 0)],
)
def test_spellings_of_octal(field: bytes, value: int) -> None:
    """Padded in front or behind, with and without a terminator; blank is 0."""
    assert one(header(uid=field) + END).uid == value


def test_base_256_numbers() -> None:
    """Large and negative numbers in GNU's binary form."""
    entry = one(header(uid=b"\x80\0\0\0\0\x2d\xc6\xc0", mtime=b"\xff" * 11 + b"\xfe") + END)
    assert (entry.uid, entry.mtime) == (3000000, -2 * 10**9)


def test_checksums_of_signed_bytes() -> None:
    """The sum that ancient writers took of signed bytes holds too; no third one does."""
    block = header(b"\xff\xfe")
    total = int(block[148:154], 8)
    for wrong, accepted in ((0, True), (512, True), (256, False), (65521, False)):
        changed = block[:148] + b"%06o\0 " % (total - wrong if wrong < 60000 else total + wrong) + block[156:]
        if accepted:
            assert one(changed + END).path == b"\xff\xfe"
        else:
            with pytest.raises(InvalidImage, match="checksum"):
                one(changed + END)


@pytest.mark.parametrize("ending", [b"", bytes(512), bytes(1024), bytes(1025), bytes(10240), bytes(3 << 20)])
def test_endings_that_other_readers_take(ending: bytes) -> None:
    """No, one or two zero blocks, and any number of zeros after them."""
    for size in (1000, 1 << 20):
        assert [(e.path, c) for e, c in read(file(b"f", b"abc") + ending, size=size)] == [(b"f", b"abc")]
        assert read(ending, size=size) == []


def test_an_archive_of_a_global_header_only() -> None:
    """What git makes of an empty tree holds no entry."""
    assert read(GLOBAL + END) == []


def test_v7_directories_and_sizes_of_directories() -> None:
    """A trailing slash makes a directory where there was no type; a directory's size is a hint without content."""
    assert one(header(b"d/", type=b"\0", magic=b"") + END).kind is Kind.DIRECTORY
    entries = [e for e, _ in read(header(b"d/", type=b"5", size=octal(4096)) + header(b"f") + END)]
    assert [(e.path, e.kind, e.size) for e in entries] == [(b"d", Kind.DIRECTORY, 0), (b"f", Kind.FILE, 0)]


def test_old_gnu_headers_with_times_have_no_prefix() -> None:
    """Where ustar has the prefix, old GNU headers have access and change time."""
    assert one(header(b"f", magic=b"ustar  \0", prefix=octal(5) + octal(6)) + END).path == b"f"


@pytest.mark.parametrize("plain", [b"", b"7" * 11 + b"\0", b"\x80" + bytes(6) + b"\2" + bytes(4)])
def test_pax_sizes_beyond_the_octal_field(plain: bytes) -> None:
    """A size over 8 GiB counts whatever the octal field says; nothing is allocated for it."""
    reader = Reader([pax((b"size", b"8589934592")) + header(size=plain)])
    assert next(iter(reader)).size == 8589934592


def test_a_pax_size_that_agrees() -> None:
    """Writers that always give a pax size are read."""
    assert read(pax((b"size", b"3")) + file(b"f", b"abc") + END)[0][1] == b"abc"


def test_content_that_was_not_read_is_skipped() -> None:
    """Advancing after no, some or all content finds the next entry; an old iterator gives nothing of it."""
    data = b"".join(file(b"%d" % n, bytes([n]) * 1500) for n in range(4)) + END
    for size in (7, 512, 1 << 20):
        reader = Reader(chunked(data, size))
        entries = iter(reader)
        assert next(entries).path == b"0"
        content = reader.content()
        assert set(next(content)) == {0}
        assert next(entries).path == b"1"
        assert list(content) == []
        assert next(entries).path == b"2"
        assert reader.read() == b"\2" * 1500
        assert reader.read() == b""
        assert next(entries).path == b"3"
        with pytest.raises(StopIteration):
            next(entries)


def test_content_is_not_copied() -> None:
    """Pieces are views of the chunks."""
    chunk = file(b"f", b"x" * 5000) + END
    reader = Reader([chunk])
    next(iter(reader))
    (piece,) = reader.content()
    assert piece.obj is chunk


def test_truncation_while_reading_content() -> None:
    """A stream that ends inside a file raises from content() and from read()."""
    for take in (lambda reader: list(reader.content()), Reader.read):
        reader = Reader([file(b"f", b"x" * 5000)[:3000]])
        next(iter(reader))
        with pytest.raises(InvalidImage, match="'f' at byte 0: the stream is cut off"):
            take(reader)


def test_a_sparse_map_over_many_extension_blocks() -> None:
    """Old GNU maps go on in blocks of 21 segments."""
    count = 4 + 21 + 3
    pairs = [pair(n * 100, 1) for n in range(count)]
    data = (
        gnu_sparse(b"".join(pairs[:4]), real=10_000, stored=count, extended=b"\1")
        + (b"".join(pairs[4:25]) + b"\1").ljust(512, b"\0")
        + b"".join(pairs[25:]).ljust(512, b"\0")
        + padded(b"x" * count)
        + END
    )
    for size in (1, 512, 1 << 20):
        ((entry, stored),) = read(data, size=size)
        assert entry.sparse == tuple((n * 100, 1) for n in range(count))
        assert (entry.size, stored) == (10_000, b"x" * count)


# --- other writers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree with every kind of file that an ordinary user can make, long names among them."""
    root = tmp_path_factory.mktemp("tree")
    (root / "plain").write_bytes(b"hello")
    (root / "empty").touch()
    (root / "dir" / ("d" * 60) / ("e" * 60)).mkdir(parents=True)
    (root / "dir" / ("d" * 60) / ("e" * 60) / "deep").write_bytes(b"deep" * 1000)
    (root / "link").symlink_to("../outside")
    os.link(root / "plain", root / "zz-hard")
    os.mkfifo(root / "fifo")
    (root / "plain").chmod(0o4711)
    os.utime(root / "plain", ns=(0, 1_600_000_000_123_456_789))
    return root


def gnu_tar(root: Path, *options: str) -> bytes:
    return subprocess.run(
        ["tar", "-C", root, "--sort=name", *options, "-cf", "-", "."], check=True, capture_output=True
    ).stdout


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes(tree: Path, form: str) -> None:
    """Each format of GNU tar gives the tree back, as far as it can hold it."""
    options = [f"--format={form}"]
    if form == "v7":
        options += ["--exclude=fifo", f"--exclude={'e' * 60}"]
    found = {entry.path: (entry, content) for entry, content in read(gnu_tar(tree, *options))}
    expected = {b""} | {os.fsencode(path.relative_to(tree)) for path in tree.rglob("*")}
    if form == "v7":
        expected = {path for path in expected if path != b"fifo" and b"e" * 60 not in path}
    assert found.keys() == expected
    for path, (entry, content) in found.items():
        source = tree / os.fsdecode(path)
        status = source.lstat()
        assert (entry.mode, entry.uid, entry.gid) == (status.st_mode & 0o7777, status.st_uid, status.st_gid)
        assert entry.mtime == (status.st_mtime_ns if form == "posix" else int(status.st_mtime) * 10**9)
        if entry.kind is Kind.FILE:
            assert content == source.read_bytes()
            assert entry.size == status.st_size
    assert found[b"link"][0].kind is Kind.SYMLINK
    assert found[b"link"][0].link == b"../outside"
    assert found[b"zz-hard"][0].kind is Kind.HARDLINK
    assert found[b"zz-hard"][0].link == b"plain"


def test_long_names_and_links_of_gnu_tar(tmp_path: Path) -> None:
    """Names and targets of 1 KiB survive both ways of writing them."""
    deep = Path(*["n" * 200] * 4)
    (tmp_path / deep).mkdir(parents=True)
    (tmp_path / "a").symlink_to("t" * 1000)
    for form in ("gnu", "posix"):
        found = {entry.path: entry for entry, _ in read(gnu_tar(tmp_path, f"--format={form}"))}
        assert os.fsencode(deep) in found
        assert found[b"a"].link == b"t" * 1000


@pytest.mark.parametrize(
    "options",
    [
        ["--format=oldgnu"],
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
)
def test_sparse_files_of_gnu_tar(tmp_path: Path, options: list[str]) -> None:
    """Every sparse format unfolds to the file: some segments, many, only a hole, a hole at the end."""
    step = 1 << 16
    for name, segments in {"few": 3, "many": 60, "none": 0}.items():
        with (tmp_path / name).open("wb") as file_:
            file_.truncate(step * (segments + 1))
            for n in range(segments):
                file_.seek(n * step + 4096)
                file_.write(b"%d" % n * 1000)
    data = gnu_tar(tmp_path, "--sparse", *options)
    assert len(data) < 1 << 20, "tar found no holes"
    whole = read(data)
    assert read(data, size=1000) == whole
    for entry, stored in whole:
        if entry.kind is Kind.FILE:
            content = (tmp_path / os.fsdecode(entry.path)).read_bytes()
            assert entry.sparse is not None
            assert entry.size == len(content)
            assert unfold(entry, stored) == content


def test_xattrs_of_gnu_tar(tmp_path: Path) -> None:
    """Extended attributes come out with their bytes."""
    (tmp_path / "f").touch()
    try:
        os.setxattr(tmp_path / "f", "user.key", b"va\0lue")
    except OSError:
        pytest.skip("no user extended attributes on this file system")
    data = gnu_tar(tmp_path, "--xattrs", "--format=posix")
    assert {e.path: dict(e.xattrs) for e, _ in read(data)} == {b"": {}, b"f": {b"user.key": b"va\0lue"}}


TARFILE_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.FIFO,
}


def tarfile_view(data: bytes) -> list[tuple[object, ...]]:
    """What Python's own reader makes of a stream, in this reader's terms."""
    view: list[tuple[object, ...]] = []
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        for member in archive:
            taken = archive.extractfile(member) if member.isreg() else None
            path = os.fsencode(member.name).removeprefix(b"./").strip(b"/")
            link = os.fsencode(member.linkname) if member.issym() or member.islnk() else b""
            view.append(
                (
                    b"" if path == b"." else path,
                    TARFILE_KINDS[member.type],
                    member.mode,
                    member.uid,
                    member.gid,
                    int(member.mtime),
                    link.removeprefix(b"./") if member.islnk() else link,
                    taken.read() if taken else b"",
                )
            )
    return view


def own_view(data: bytes, size: int = 1 << 20) -> list[tuple[object, ...]]:
    return [
        (e.path, e.kind, e.mode, e.uid, e.gid, e.mtime // 10**9, e.link, content)
        for e, content in read(data, size=size)
    ]


@pytest.mark.parametrize("form", ["gnu", "ustar", "posix"])
def test_a_real_tree_reads_as_with_tarfile(form: str) -> None:
    """Python's standard library, packed by GNU tar, is the same for both readers."""
    data = gnu_tar(Path(os.__file__).parent / "email", f"--format={form}")
    assert own_view(data) == tarfile_view(data)


names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
        lambda part: part not in {".", ".."} and len(part.encode()) <= 255
    ),
    min_size=1,
    max_size=4,
).map("/".join)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    """One member of any type that tarfile can write."""
    info = tarfile.TarInfo(draw(names))
    info.type = draw(st.sampled_from(list(TARFILE_KINDS)))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 0o7777777))
    info.gid = draw(st.integers(0, 0o7777777))
    info.mtime = draw(st.integers(0, 8**11 - 1))
    content = b""
    if info.islnk() or info.issym():
        info.linkname = draw(names)
    if info.isreg():
        content = draw(st.binary(max_size=1200))
        info.size = len(content)
    if info.isdev() and not info.isfifo():
        info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 0o7777777))
    return info, content


@settings(max_examples=120, deadline=None)
@given(
    st.lists(members(), max_size=5),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from([1, 3, 511, 512, 513, 4096]),
)
def test_what_tarfile_writes_comes_back(
    written: list[tuple[tarfile.TarInfo, bytes]], form: Literal[0, 1, 2], size: int
) -> None:
    """Random entries, in all three formats and all chunk sizes, come back as they were written."""
    buffer = io.BytesIO()
    kept = []
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in written:
            try:
                info.tobuf(format=form)
            except ValueError:
                continue  # too long for ustar
            archive.addfile(info, io.BytesIO(content))
            device = (info.devmajor, info.devminor) if info.ischr() or info.isblk() else (0, 0)
            head = (info.name.encode(), TARFILE_KINDS[info.type], info.mode, info.uid, info.gid)
            kept.append((*head, int(info.mtime), info.linkname.encode(), device, content))
    data = buffer.getvalue()
    for pieces in (1 << 20, size):
        assert [
            (e.path, e.kind, e.mode, e.uid, e.gid, e.mtime // 10**9, e.link, e.device, content)
            for e, content in read(data, size=pieces)
        ] == kept


SAMPLES = file(b"a", b"x" * 700) + pax((b"path", b"p" * 200), (b"mtime", b"1.5")) + file(b"b", b"y" * 1025) + END


@given(st.lists(st.integers(0, len(SAMPLES)), max_size=30))
def test_chunk_borders_make_no_difference(cuts: list[int]) -> None:
    """The same bytes in any chunks, empty ones too, are the same entries."""
    borders = [0, *sorted(cuts), len(SAMPLES)]
    chunks = [SAMPLES[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    assert read(chunks) == read(SAMPLES)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SAMPLES) - 1025), st.integers(0, 255))
def test_damage_never_escapes_as_another_error(at: int, value: int) -> None:
    """A stream with any byte changed is read or refused, nothing else."""
    with contextlib.suppress(InvalidImage):
        read(SAMPLES[:at] + bytes([value]) + SAMPLES[at + 1 :])


@given(st.binary(max_size=1500))
def test_pax_bodies_of_any_bytes(body: bytes) -> None:
    """Whatever stands in an extended header, the reader reads or refuses."""
    with contextlib.suppress(InvalidImage):
        read(raw_pax(body) + header() + END)


def test_kinds_are_stable() -> None:
    """Indexes on disk hold these numbers."""
    assert [kind.value for kind in Kind] == list(range(7))
