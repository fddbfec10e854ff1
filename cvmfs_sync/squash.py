"""A tree as one flat tar archive.

The sink behind `squash`: files in the order in which they are read, top layer first, then directories, links and
special files, so that nothing has to be kept and an extracting tar sets each directory's mode and time last. The same
image gives the same bytes on every run. Headers are POSIX ustar, with a PAX header (POSIX.1-2008, pax, "Extended
Header") only where a value does not fit; written here and not by `tarfile`, which takes ten times as long for each.
"""

from __future__ import annotations

from collections.abc import Mapping
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
_DEVICE = {number: b"%07o\0" % number for number in range(256)}


class OutOfOrder(InvalidImage):
    """What was written can't be taken back; `Placement.NEVER` writes this image, reading its layers twice."""


class TarSink:
    """Writes a tree to a binary stream, which the caller closes.

    Args:
        stream: Where to.
        placement: `CERTAIN` for one reading, which a few odd images defeat: see `OutOfOrder`. `NEVER` for two.
    """

    def __init__(self, stream: IO[bytes], placement: Placement = Placement.CERTAIN) -> None:
        self.placement = placement
        self._stream = stream
        self._emitted: dict[tuple[int, int], bytes] = {}

    def place(self, layer: int, ordinal: int, entry: Entry, content: Reader) -> bool:  # noqa: ARG002
        """See `flatten.Sink`. What is emitted twice under one name is so in the layer too: the last one wins."""
        self._file(entry.path, entry, content)
        return True

    def arrange(self, arrangement: Arrangement) -> None:
        """See `flatten.Sink`.

        Raises:
            OutOfOrder: If a layer holds a file and, further on, something that makes its path impossible.
        """
        for _, _, path in arrangement.leftovers:
            self._check_overwritten(arrangement.tree, path)
        for path, inode in arrangement.misplaced:
            self._check_overwritten(arrangement.tree, inode.entry.path)
            arrangement.missing.append((path, inode))

    def fill(self, path: bytes, inode: Inode, content: Reader) -> None:
        """See `flatten.Sink`."""
        self._file(path, inode.entry, content)
        self._emitted[inode.layer, inode.ordinal] = path

    def finish(self, tree: Tree) -> None:
        """See `flatten.Sink`. Ends the archive; the stream is not flushed."""
        write = self._stream.write
        first_name: dict[int, bytes] = {}
        links: list[tuple[bytes, bytes, Entry]] = []
        write(_header(b"./", tree.root.entry))
        for path, inode in tree.walk():
            entry = inode.entry
            if inode.shared:
                first = self._first(inode, path) if id(inode) not in first_name else first_name[id(inode)]
                first_name[id(inode)] = first
                if path != first:
                    links.append((path, first, entry))
                    continue
            if entry.kind is Kind.DIRECTORY:
                write(_header(path + b"/", entry))
            elif inode.content is not None:
                write(_header(path, entry))
                write(inode.content + bytes(-len(inode.content) % _BLOCK))
            elif entry.kind is not Kind.FILE:
                write(_header(path, entry, link=entry.link))
        for path, first, entry in links:
            write(_header(path, entry, kind=Kind.HARDLINK, link=first))
        write(bytes(2 * _BLOCK))

    def _first(self, inode: Inode, path: bytes) -> bytes:
        if inode.entry.kind is not Kind.FILE or inode.content is not None:
            return path
        return self._emitted.get((inode.layer, inode.ordinal), inode.entry.path)

    def _check_overwritten(self, tree: Tree, path: bytes) -> None:
        inode = tree.find(path)
        if inode is None or inode.children is not None:
            raise OutOfOrder(
                f"{printable(path)}: cannot be squashed to a pipe",
                found="layers that hold this file and then, in an unusual way, take it away",
                todo="write to a file: -o FILE",
            )

    def _file(self, path: bytes, entry: Entry, content: Reader) -> None:
        write = self._stream.write
        write(_header(path, entry))
        if entry.sparse is not None:
            _expand(self._stream, entry, content)
        elif entry.size:
            for piece in content.content():
                write(piece)
        if padding := -entry.size % _BLOCK:
            write(_ZEROS[:padding])


def _expand(stream: IO[bytes], entry: Entry, content: Reader) -> None:
    """A sparse file with its holes written out."""
    position = 0
    segments = iter(entry.sparse or ())
    left = 0
    for piece in content.content():
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
    records: dict[bytes, bytes] = {}
    prefix = b""
    name = path
    if len(path) > 100:
        prefix, name = _split_name(path)
        if not name:
            records[b"path"] = path
            prefix, name = b"", path[:100]
    if _wants_record(path):
        records[b"path"] = path
    if len(link) > 100 or _wants_record(link):
        records[b"linkpath"] = link
    if records and not all(_is_utf8(text) for text in records.values()):
        records = {b"hdrcharset": b"BINARY", **records}
    uid, gid = entry.uid, entry.gid
    if uid > _MAX_ID:
        records[b"uid"], uid = b"%d" % uid, 0
    if gid > _MAX_ID:
        records[b"gid"], gid = b"%d" % gid, 0
    if size > _MAX_SIZE:
        records[b"size"] = b"%d" % size
    if nanoseconds or not 0 <= seconds <= _MAX_SIZE:
        records[b"mtime"] = _decimal(entry.mtime)
        seconds = min(max(seconds, 0), _MAX_SIZE)
    if entry.xattrs and kind is not Kind.HARDLINK:
        for key, value in sorted(entry.xattrs.items()):
            records[b"SCHILY.xattr." + key] = value
    major, minor = entry.device
    block = b"%-100b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%-100bustar\x0000%64b%07o\0%07o\0%-155b%12b" % (
        b"", entry.mode, uid, gid, min(size, _MAX_SIZE), seconds, _TYPES[kind], b"", b"", major, minor, b"", b"",
    )  # fmt: skip
    return (_pax(records) if records else b"") + _finish(block, name, link[:100], prefix)


def _wants_record(text: bytes) -> bool:
    """Text beyond ASCII is UTF-8 in a PAX record; bytes of no encoding stay in the header as they are."""
    return not text.isascii() and _is_utf8(text)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _finish(block: bytes, name: bytes, link: bytes, prefix: bytes) -> bytes:
    """Fill the text fields, NUL-padded, and the checksum."""
    header = bytearray(block.replace(b" ", b"\0"))
    header[0:100] = name.ljust(100, b"\0")
    header[157:257] = link.ljust(100, b"\0")
    header[345:500] = prefix.ljust(155, b"\0")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


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
    body = b"".join(_record(key, value) for key, value in records.items())
    header = b"%-100b0000644\x000000000\x000000000\x00%011o\x0000000000000\0        x%-100bustar\x0000%-235b%12b" % (
        b"", len(body), b"", b"", b"",
    )  # fmt: skip
    return _finish(header, b"PaxHeaders/entry", b"", b"") + body + bytes(-len(body) % _BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """Length, a space, key, "=", value, a newline; the length counts its own digits (POSIX.1-2008, pax)."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)
