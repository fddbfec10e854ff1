"""A tree as one flat tar archive.

The sink behind `squash`: files in the order in which they are read, top layer first, so that nothing has to be kept;
then directories, each with the links and special files in it before the next one. That order matters to GNU tar, which
sets a directory's time when it comes to an entry outside it, and makes links that lead outside only at its end. One
image gives the same bytes on every run. Headers are POSIX ustar, with a PAX header (POSIX.1-2008, pax, "Extended
Header") only where a value does not fit; written here and not by `tarfile`, which takes ten times as long for each.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

from cvmfs_sync.errors import InvalidImage
from cvmfs_sync.flatten import Arrangement, Placement
from cvmfs_sync.tar import Entry, Kind, Reader
from cvmfs_sync.tree import Inode, Tree, printable

__all__ = ["OutOfOrder", "TarSink"]

_BLOCK = 512
_TYPES = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_SECOND = 1_000_000_000
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777
_ZEROS = bytes(1 << 16)
_MAGIC = b"ustar\x0000" + bytes(64)
_NO_DEVICE = b"0000000\x000000000\0"
_BLANK_CHECKSUM = 8 * ord(" ")
_PIECE = 1 << 20


class OutOfOrder(InvalidImage):
    """What was written can't be taken back. `Placement.NEVER` writes this image, keeping all its content aside."""


class TarSink:
    """Writes a tree to a binary stream, which the caller closes.

    Args:
        stream: Where to.
        aside: An empty file for the content of files whose path is not certain when they are read; closed by the
            caller. In ordinary images there are none.
        placement: `CERTAIN`, which a few odd images defeat: see `OutOfOrder`; or `NEVER`.
    """

    def __init__(self, stream: IO[bytes], aside: IO[bytes], placement: Placement = Placement.CERTAIN) -> None:
        self.placement = placement
        self._stream = stream
        self._aside = aside
        self._aside_size = 0
        self._waiting: dict[tuple[int, int], int] = {}
        self._emitted: dict[tuple[int, int], bytes] = {}

    def place(self, layer: int, ordinal: int, entry: Entry, content: Reader, *, certain: bool) -> bool:
        """See `flatten.Sink`. What is emitted twice under one name is so in the layer too: the last one wins."""
        if certain:
            self._file(entry.path, entry, content.content())
            return True
        self._waiting[layer, ordinal] = self._aside_size
        for piece in content.content():
            self._aside.write(piece)
            self._aside_size += len(piece)
        return False

    def arrange(self, arrangement: Arrangement) -> None:
        """See `flatten.Sink`.

        Raises:
            OutOfOrder: If a layer holds a file and, further on, something that makes its path impossible.
        """
        for layer, ordinal, path in arrangement.leftovers:
            if (layer, ordinal) not in self._waiting:
                self._check_overwritten(arrangement.tree, path)
        self._aside.flush()
        for path, inode in arrangement.misplaced:
            start = self._waiting.get((inode.layer, inode.ordinal))
            if start is None:
                self._check_overwritten(arrangement.tree, inode.entry.path)
                arrangement.missing.append((path, inode))
            else:
                self._file(path, inode.entry, self._brought(inode.entry, start))
                self._emitted[inode.layer, inode.ordinal] = path

    def _brought(self, entry: Entry, start: int) -> Iterator[memoryview]:
        """Content that was put aside."""
        left = entry.size if entry.sparse is None else sum(length for _, length in entry.sparse)
        while left:
            piece = os.pread(self._aside.fileno(), min(left, _PIECE), start)
            if not piece:
                raise AssertionError("what was put aside is gone")
            yield memoryview(piece)
            start += len(piece)
            left -= len(piece)

    def fill(self, path: bytes, inode: Inode, content: Reader) -> None:
        """See `flatten.Sink`."""
        self._file(path, inode.entry, content.content())
        self._emitted[inode.layer, inode.ordinal] = path

    def finish(self, tree: Tree) -> None:
        """See `flatten.Sink`. Ends the archive; the stream is not flushed."""
        write = self._stream.write
        first_name: dict[int, bytes] = {}
        write(_header(b"./", tree.root.entry))
        for path, inode in tree.walk():
            entry = inode.entry
            if inode.shared:
                first = first_name.setdefault(id(inode), self._first(inode, path))
                if path != first:
                    write(_header(path, entry, kind=Kind.HARDLINK, link=first))
                    continue
            if entry.kind is Kind.DIRECTORY:
                write(_header(path + b"/", entry))
            elif inode.content is not None:
                write(_header(path, entry))
                write(inode.content + bytes(-len(inode.content) % _BLOCK))
            elif entry.kind is not Kind.FILE:
                write(_header(path, entry, link=entry.link))
        write(bytes(2 * _BLOCK))

    def _first(self, inode: Inode, path: bytes) -> bytes:
        if inode.entry.kind is not Kind.FILE or inode.content is not None:
            return path
        return self._emitted.get((inode.layer, inode.ordinal), inode.entry.path)

    def _check_overwritten(self, tree: Tree, path: bytes) -> None:
        inode: Inode | None = tree.root
        for name in path.split(b"/"):  # as it stands in the archive: `find` would follow links
            inode = (inode.children or {}).get(name) if inode is not None else None
        if inode is None or inode.children is not None:
            raise OutOfOrder(
                f"{printable(path)}: cannot be squashed to a pipe",
                found="layers that hold this file and then, in an unusual way, take it away",
                todo="write to a file: -o FILE",
            )

    def _file(self, path: bytes, entry: Entry, content: Iterator[memoryview]) -> None:
        write = self._stream.write
        write(_header(path, entry))
        if entry.sparse is not None:
            _expand(self._stream, entry, content)
        elif entry.size:
            for piece in content:
                write(piece)
        if padding := -entry.size % _BLOCK:
            write(_ZEROS[:padding])


def _expand(stream: IO[bytes], entry: Entry, content: Iterator[memoryview]) -> None:
    """A sparse file with its holes written out."""
    position = 0
    segments = iter(entry.sparse or ())
    left = 0
    for piece in content:
        while len(piece):
            while not left:
                offset, left = next(segments)
                _write_zeros(stream, offset - position)
                position = offset
            part = piece[:left]
            stream.write(part)
            position += len(part)
            left -= len(part)
            piece = piece[len(part) :]
    _write_zeros(stream, entry.size - position)


def _write_zeros(stream: IO[bytes], count: int) -> None:
    while count > 0:
        count -= stream.write(_ZEROS[: min(count, len(_ZEROS))])


def _header(path: bytes, entry: Entry, *, kind: Kind | None = None, link: bytes = b"") -> bytes:
    """One entry's header blocks."""
    kind = entry.kind if kind is None else kind
    size = entry.size if kind is Kind.FILE else 0
    seconds, nanoseconds = divmod(entry.mtime, _SECOND)
    uid, gid = entry.uid, entry.gid
    prefix = b""
    name = path
    if len(path) > 100:
        prefix, name = _split_name(path)
    if (
        nanoseconds
        or entry.xattrs
        or not name
        or len(link) > 100
        or not path.isascii()
        or not link.isascii()
        or uid > _MAX_ID
        or gid > _MAX_ID
        or size > _MAX_SIZE
        or not 0 <= seconds <= _MAX_SIZE
    ):
        extended = _pax(_records(path, entry, kind, link, size, fits=bool(name)))
        name = name or path[:100]
        uid, gid = uid if uid <= _MAX_ID else 0, gid if gid <= _MAX_ID else 0
        seconds = min(max(seconds, 0), _MAX_SIZE)
    else:
        extended = b""
    return extended + _ustar(
        name, prefix, link[:100], _TYPES[kind], entry.mode, (uid, gid), min(size, _MAX_SIZE), seconds, entry.device
    )


def _records(path: bytes, entry: Entry, kind: Kind, link: bytes, size: int, *, fits: bool) -> dict[bytes, bytes]:
    """The PAX records of what a ustar header can't say."""
    records: dict[bytes, bytes] = {}
    if not fits or _wants_record(path):
        records[b"path"] = path
    if len(link) > 100 or _wants_record(link):
        records[b"linkpath"] = link
    if not all(_is_utf8(text) for text in records.values()):
        records = {b"hdrcharset": b"BINARY", **records}
    if entry.uid > _MAX_ID:
        records[b"uid"] = b"%d" % entry.uid
    if entry.gid > _MAX_ID:
        records[b"gid"] = b"%d" % entry.gid
    if size > _MAX_SIZE:
        records[b"size"] = b"%d" % size
    if entry.mtime % _SECOND or not 0 <= entry.mtime // _SECOND <= _MAX_SIZE:
        records[b"mtime"] = _decimal(entry.mtime)
    if kind is not Kind.HARDLINK:
        for key, value in sorted(entry.xattrs.items()):
            records[b"SCHILY.xattr." + key] = value
    return records


def _ustar(
    name: bytes,
    prefix: bytes,
    link: bytes,
    flag: bytes,
    mode: int,
    owner: tuple[int, int],
    size: int,
    seconds: int,
    device: tuple[int, int],
) -> bytes:
    """A ustar header block (POSIX.1-2008, pax, "ustar Interchange Format"); every value fits."""
    head = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, *owner, size, seconds)
    tail = b"%b%b%b%b%b" % (flag, link.ljust(100, b"\0"), _MAGIC, _device(device), prefix.ljust(167, b"\0"))
    # The checksum is the sum of all bytes, its own field taken as spaces. The lower half of Adler-32 is that sum plus
    # one modulo 65521, which is exact while no byte is above 127.
    if head.isascii() and tail.isascii():
        checksum = (zlib.adler32(tail, zlib.adler32(head)) - 1 & 0xFFFF) + _BLANK_CHECKSUM
    else:
        checksum = sum(head) + sum(tail) + _BLANK_CHECKSUM
    return b"%b%06o\0 %b" % (head, checksum, tail)


def _device(numbers: tuple[int, int]) -> bytes:
    return _NO_DEVICE if numbers == (0, 0) else b"%07o\0%07o\0" % numbers


def _wants_record(text: bytes) -> bool:
    """Text beyond ASCII is UTF-8 in a PAX record; bytes of no encoding stay in the header as they are."""
    return not text.isascii() and _is_utf8(text)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _split_name(path: bytes) -> tuple[bytes, bytes]:
    """The ustar prefix and name, or two empty ones where no slash divides the path suitably."""
    at = path.rfind(b"/", 0, 156)
    if len(path) > 256 or at <= 0 or not 0 < len(path) - at - 1 <= 100:
        return b"", b""
    return path[:at], path[at + 1 :]


def _decimal(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), _SECOND)
    return sign + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")


def _pax(records: Mapping[bytes, bytes]) -> bytes:
    """A PAX header with its records; nothing for none."""
    if not records:
        return b""
    body = b"".join(_record(key, value) for key, value in records.items())
    header = _ustar(b"PaxHeaders/entry", b"", b"", b"x", 0o644, (0, 0), len(body), 0, (0, 0))
    return header + body + bytes(-len(body) % _BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """Length, a space, key, "=", value, a newline; the length counts its own digits (POSIX.1-2008, pax)."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)
