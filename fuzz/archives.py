"""What must hold for any bytes that are taken for a tar stream.

`check` is the property; `mutate` changes a stream so that more of it than its first checksum is reached; `seeds` are
streams to begin with. Nothing here needs a fuzzer: the tests run the kept cases through `check`.
"""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Callable, Iterator
from itertools import zip_longest

from cvmfs_sync.errors import InvalidImage
from cvmfs_sync.tar import Entry, Kind, Limits, Reader
from tests.support import images

__all__ = ["LIMITS", "check", "mutate", "seeds"]

BLOCK = 512
LIMITS = Limits(
    bytes=1 << 22, entries=2_000, path=600, depth=40, link=600, xattrs=4_096, header=1 << 16, sparse=200, hardlinks=100
)
_CHECKSUM = slice(148, 156)
_MAGIC = slice(257, 263)
_GNU_MAGIC = slice(257, 265)
_GNU_TIMES = slice(345, 369)
_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.GNUTYPE_SPARSE: Kind.FILE,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.FIFO,
}
# Name, kind, size and digest, of content or link target.
_Seen = tuple[bytes, Kind, int, bytes]


def check(data: bytes) -> bool:
    """Read a stream whole and in small pieces, and as Python's tarfile reads it.

    Returns:
        Whether the stream was taken for an archive.

    Raises:
        AssertionError: A property does not hold.
    """
    whole = _read([data])
    pieces = _read(data[at : at + 100] for at in range(0, len(data), 100))
    assert whole == pieces, f"chunks matter: {whole} and {pieces}"
    if isinstance(whole, str):
        return False
    theirs, complete = _tarfile(data)
    for our, their in zip_longest(whole, theirs) if complete else zip(whole, theirs, strict=False):
        assert our == their, f"tarfile disagrees: {our} and {their}"
    return True


def _read(chunks: Iterator[bytes] | list[bytes]) -> list[_Seen] | str:
    """What the stream holds, or why it was refused."""
    seen: list[_Seen] = []
    reader = Reader(chunks, LIMITS)
    try:
        for entry in reader:
            _check_entry(entry)
            what = hashlib.sha256()
            if entry.kind is Kind.FILE:
                stored = sum(length for _, length in entry.sparse) if entry.sparse is not None else entry.size
                content = reader.read()
                assert len(content) == stored, f"{len(content)} bytes of {stored}"
                what.update(_unfolded(entry, content))
            else:
                what.update(entry.link)
            seen.append((entry.path, entry.kind, entry.size, what.digest()))
    except InvalidImage as refusal:
        return str(refusal)
    return seen


def _check_entry(entry: Entry) -> None:
    """Every entry keeps what `Entry` promises, and the limits."""
    parts = entry.path.split(b"/") if entry.path else []
    assert not {b"", b".", b".."} & {*parts}, f"not normalised: {entry.path!r}"
    assert b"\0" not in entry.path + entry.link, f"NUL: {entry}"
    assert len(parts) <= LIMITS.depth and len(entry.path) <= LIMITS.path, f"over a limit: {entry.path!r}"  # noqa: PT018
    assert all(len(part) <= LIMITS.name for part in parts), f"over a limit: {entry.path!r}"
    assert len(entry.link) <= max(LIMITS.link, LIMITS.path), f"over a limit: {entry.link!r}"
    assert 0 <= entry.mode <= 0o7777, f"mode {entry.mode}"
    assert 0 <= entry.size <= LIMITS.bytes, f"size {entry.size}"
    assert -(2**63) <= entry.mtime < 2**63, f"mtime {entry.mtime}"
    assert all(0 <= value < 2**32 for value in (entry.uid, entry.gid, *entry.device)), f"numbers: {entry}"
    assert entry.offset % BLOCK == 0, f"offset {entry.offset}"
    assert sum(len(name) + len(value) for name, value in entry.xattrs.items()) <= LIMITS.xattrs, "xattrs"
    if entry.kind is not Kind.FILE:
        assert entry.size == 0, f"size of {entry}"
        assert entry.sparse is None, f"map of {entry}"
        assert bool(entry.link) == (entry.kind in (Kind.SYMLINK, Kind.HARDLINK)), f"link of {entry}"
    end = 0
    for offset, length in entry.sparse or ():
        assert offset >= end, f"map of {entry}"
        assert length > 0, f"map of {entry}"
        end = offset + length
    assert end <= entry.size, f"map of {entry}"


def _unfolded(entry: Entry, content: bytes) -> bytes:
    if entry.sparse is None:
        return content
    result = bytearray(entry.size)
    at = 0
    for offset, length in entry.sparse:
        result[offset : offset + length] = content[at : at + length]
        at += length
    return bytes(result)


def _tarfile(data: bytes) -> tuple[list[_Seen], bool]:
    """What Python's tarfile sees, and whether that is all: it stops at what it refuses, mostly without a word."""
    seen: list[_Seen] = []
    if any(
        data[at : at + BLOCK][_GNU_MAGIC] == b"ustar  \0" and data[at : at + BLOCK][_GNU_TIMES].strip(b"\0")
        for at in _headers(data)
    ):
        return seen, False  # it takes access and change times for a prefix, GNU tar and Go know better
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                if member.type not in _KINDS:
                    return seen, False
                kind = _KINDS[member.type]
                what = hashlib.sha256()
                if kind is Kind.FILE and (content := tar.extractfile(member)) is not None:
                    what.update(content.read())
                elif kind is Kind.HARDLINK:
                    what.update(_normal(member.linkname))
                elif kind is Kind.SYMLINK:
                    what.update(member.linkname.encode("utf-8", "surrogateescape"))
                size = member.size if kind is Kind.FILE else 0
                seen.append((_normal(member.name), kind, size, what.digest()))
            complete = not data[tar.offset : tar.offset + BLOCK].strip(b"\0")
    # It lets errors of all kinds through.
    except (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, EOFError, OSError):
        return seen, False
    return seen, complete


def _normal(name: str) -> bytes:
    parts = name.encode("utf-8", "surrogateescape").split(b"/")
    return b"/".join(part for part in parts if part not in (b"", b"."))


# --- mutation ---------------------------------------------------------------------------------------------------------

# Field of a ustar header, and texts to put there.
_FIELDS = (
    (slice(0, 100), (b"a", b"a/", b"./", b"/", b"..", b"a/../b", b".wh.a", b"\xff", b"x" * 100)),
    (slice(100, 108), (b"0000644\0", b"\x80\0\0\0\0\0\1\0", b"7777777\0", b"       \0", b"-1\0")),
    (slice(108, 116), (b"\x80\0\0\0\xff\xff\xff\xff", b"\xff" * 8, b"0000000\0")),
    (
        slice(124, 136),
        (b"00000000000\0", b"00000000001\0", b"00000001000\0", b"\x80" + bytes(10) + b"\5", b"\xff" * 12),
    ),
    (slice(136, 148), (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0", bytes(12))),
    (slice(156, 157), tuple(bytes((flag,)) for flag in b"01234567xgLKSVMDNXAE\0")),
    (slice(157, 257), (b"a", b"/", b"../x", b"", b"\xff")),
    (slice(257, 265), (b"ustar\x0000", b"ustar  \0", bytes(8), b"ustar\x0099")),
    (slice(329, 345), (b"0000001\x000000003\0", bytes(16), b"\x80" * 16)),
    (slice(345, 500), (b"p", b"p/q", b"", b"0" * 12 + b"\0" + b"0" * 11 + b"\0")),
    (slice(482, 483), (b"\1", b"\0")),
    (slice(483, 495), (b"00000002000\0", b"\x80" + b"\x7f" * 11)),
    (slice(386, 410), (b"00000000000\x0000000001000\0", b"00000001000\x0000000000000\0", bytes(24))),
)
_RECORDS = (
    b"path=b", b"path=", b"path=a/../b", b"linkpath=a", b"size=0", b"size=1", b"size=512", b"size=99999999999",
    b"mtime=1.5", b"mtime=-1.5", b"mtime=.5", b"uid=5", b"gid=-1", b"hdrcharset=BINARY", b"hdrcharset=x",
    b"SCHILY.xattr.user.a=b", b"SCHILY.xattr.user.a=", b"SCHILY.realsize=9", b"GNU.sparse.major=1",
    b"GNU.sparse.minor=0", b"GNU.sparse.name=n", b"GNU.sparse.realsize=1024", b"GNU.sparse.size=1024",
    b"GNU.sparse.numblocks=1", b"GNU.sparse.map=0,512", b"GNU.sparse.offset=0", b"GNU.sparse.numbytes=512",
    b"comment=x", b"path=\0",
)  # fmt: skip


def mutate(data: bytes, maximum: int, seed: int, havoc: Callable[[bytes, int], bytes]) -> bytes:
    """A stream like this one.

    Args:
        data: A stream.
        maximum: Bytes that the result may have.
        seed: Of the choices.
        havoc: Changes bytes without knowing what they are.
    """
    choice = random.Random(seed)
    match choice.randrange(5):
        case 0:
            data = havoc(data, maximum)
        case 1 | 2:
            data = _change_field(data, choice)
        case 3:
            data = _change_blocks(data, choice)
        case _:
            data = _insert_pax(data, choice)
    # Now and then checksums stay wrong.
    return (_with_checksums(data) if choice.randrange(16) else data)[:maximum]


def _headers(data: bytes) -> list[int]:
    return [at for at in range(0, len(data) - BLOCK + 1, BLOCK) if data[at : at + BLOCK][_MAGIC].startswith(b"ustar")]


def _change_field(data: bytes, choice: random.Random) -> bytes:
    at = choice.choice(_headers(data) or [0])
    field, values = choice.choice(_FIELDS)
    value = choice.choice(values).ljust(field.stop - field.start, b"\0")
    return data[: at + field.start] + value + data[at + field.stop :]


def _change_blocks(data: bytes, choice: random.Random) -> bytes:
    """Repeat, remove, move or cut blocks, or put in empty ones."""
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    at, length, to = choice.randrange(len(blocks) + 1), choice.randrange(1, 4), choice.randrange(len(blocks) + 1)
    some = blocks[at : at + length]
    match choice.randrange(5):
        case 0:
            blocks[to:to] = some
        case 1:
            del blocks[at : at + length]
        case 2:
            del blocks[at : at + length]
            blocks[to:to] = some
        case 3:
            blocks[to:to] = [bytes(BLOCK)] * length
        case _:
            del blocks[at:]
    return b"".join(blocks)


def _insert_pax(data: bytes, choice: random.Random) -> bytes:
    at = choice.choice(_headers(data) or [0])
    records = choice.choices(_RECORDS, k=choice.randrange(1, 6))
    body = b"".join(_record(record) for record in records)
    info = tarfile.TarInfo("pax")
    info.type = choice.choice((b"x", b"x", b"x", b"g"))
    info.size = len(body)
    return data[:at] + info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % BLOCK) + data[at:]


def _record(record: bytes) -> bytes:
    length = len(record) + 3
    while len(str(length)) + len(record) + 2 != length:
        length += 1
    return b"%d %b\n" % (length, record)


def _with_checksums(data: bytes) -> bytes:
    result = bytearray(data)
    for at in _headers(data):
        header = result[at : at + BLOCK]
        header[_CHECKSUM] = b" " * 8
        result[at + _CHECKSUM.start : at + _CHECKSUM.stop] = b"%06o\0 " % sum(header)
    return bytes(result)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Names and streams: one of each kind of entry, in each dialect that the image builder writes."""
    plain = (
        images.directory("./"),
        images.file("a/b", "content", mtime=1.5, xattrs={"user.x": b"y"}),
        images.hardlink("a/c", "a/b"),
        images.symlink("l", "a"),
        images.device("d", 1, 3),
        images.fifo("p"),
        images.whiteout("a/w"),
        images.opaque("o"),
    )
    long = (images.file("n" * 90 + "/" + "m" * 90, "x"), images.symlink("l", "t" * 120), images.file("é", "x" * 600))
    for name, dialect in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        yield name, images.layer(*plain, compression="none", format=dialect).tar
        yield (
            f"{name}-long",
            images.layer(
                *(long if dialect != tarfile.USTAR_FORMAT else long[:1]), compression="none", format=dialect
            ).tar,
        )
    one = (b"GNU.sparse.size=1024", b"GNU.sparse.numblocks=1")
    yield "sparse-0.0", _sparse((*one, b"GNU.sparse.offset=0", b"GNU.sparse.numbytes=512"), b"x" * BLOCK)
    yield "sparse-0.1", _sparse((*one, b"GNU.sparse.map=512,512", b"GNU.sparse.name=s"), b"x" * BLOCK)
    keys = (b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=s", b"GNU.sparse.realsize=1024")
    yield "sparse-1.0", _sparse(keys, b"1\n512\n512\n".ljust(BLOCK, b"\0") + b"x" * BLOCK)
    header = bytearray(_sparse((), b"x" * BLOCK))
    for field, value in (
        (slice(156, 157), b"S"),
        (slice(257, 265), b"ustar  \0"),
        (slice(386, 410), b"00000001000\x0000000001000\0"),
        (slice(483, 495), b"00000002000\0"),
    ):
        header[field] = value
    yield "sparse-gnu", _with_checksums(bytes(header))


def _sparse(records: tuple[bytes, ...], content: bytes) -> bytes:
    entry = images.layer(images.file("f", content), compression="none", format=tarfile.USTAR_FORMAT).tar
    if not records:
        return entry
    body = b"".join(map(_record, records))
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % BLOCK) + entry
