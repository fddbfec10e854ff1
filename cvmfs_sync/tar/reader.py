"""The reader: a chunked stream in, entries and their content out.

What it decides where the specifications leave room, or readers differ, is said at the place. The order of the
checks is that of the stream: header, extension headers, names, numbers, content. It does not know of layers:
whiteouts, missing parents and repeated paths are for the flattening.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NoReturn

from cvmfs_sync.errors import InvalidImage, LimitExceeded
from cvmfs_sync.tar.dialects import (
    NO_MAGIC,
    check_gnu_times,
    device_number,
    directory_by_slash,
    long_text,
    pax_size,
    prefixed,
)
from cvmfs_sync.tar.entry import NO_XATTRS, Entry, Kind, Limits
from cvmfs_sync.tar.fields import (
    Checksums,
    Malformed,
    Numbers,
    Owners,
    PathRule,
    TooLarge,
    checksum_holds,
    show,
    text,
)
from cvmfs_sync.tar.pax import Pax, PaxSparse, check_global, parse_pax
from cvmfs_sync.tar.sparse import Segments, check_segments, read_old_gnu_map, read_pax_map
from cvmfs_sync.tar.stream import BLOCK, Stream

__all__ = ["Reader"]

# name, mode+uid+gid, size, mtime, checksum, type, link, magic+version, (user, group,) devices, prefix, (rest)
_HEADER = struct.Struct("100s24s12s12s8sc100s8s64x16s155s12x")
_USTAR = b"ustar\0"
_GNU = b"ustar  \0"
_NO_PREFIX = bytes(155)
_ZEROS = bytes(BLOCK)
_NO_DEVICE = (0, 0)
_DEFAULT_LIMITS = Limits()
_NANOSECONDS = 10**9
_EARLIEST, _LATEST = -(2**63), 2**63 - 1
_FILE, _HARDLINK, _SYMLINK = Kind.FILE, Kind.HARDLINK, Kind.SYMLINK
_DIRECTORY, _FIFO = Kind.DIRECTORY, Kind.FIFO
_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,  # contiguous: nobody makes a difference
    b"S": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_REFUSED = {
    b"A": "Solaris access control list",
    b"D": "GNU incremental dump directory",
    b"E": "Solaris extended attribute file",
    b"I": "star inode metadata",
    b"M": "continuation of a multi-volume archive",
    b"N": "old GNU long names",
    b"V": "GNU volume label",
    b"X": "Solaris extended header",
}


class _Extensions:
    """What the extension headers before an entry say about it."""

    __slots__ = ("link", "name", "pax")

    def __init__(self) -> None:
        self.pax: Pax | None = None
        self.name: bytes | None = None
        self.link: bytes | None = None

    def set_name(self, name: bytes) -> None:
        """Take the name; of two, GNU tar and Go choose differently."""
        if self.name is not None:
            raise Malformed("two long names for one entry", found=f"{show(self.name)} and {show(name)}")
        self.name = name

    def set_link(self, link: bytes) -> None:
        """Take the link target, likewise."""
        if self.link is not None:
            raise Malformed("two long link targets for one entry", found=f"{show(self.link)} and {show(link)}")
        self.link = link


class Reader:
    """Reads one tar stream, once, in order.

    Iterating yields entries; advancing skips what is left of the current entry's content. The stream's
    iterator is the caller's to close.
    """

    def __init__(self, chunks: Iterable[bytes], limits: Limits = _DEFAULT_LIMITS, *, what: str = "layer") -> None:
        """Read from an iterable of chunks of any size.

        Args:
            chunks: The decompressed stream.
            limits: What is too large.
            what: Name of the stream for messages.
        """
        self._stream = Stream(chunks, limits.bytes)
        self._limits = limits
        self._what = what
        self._normalise = PathRule(limits)
        self._checksums = Checksums()
        self._owners = Owners()
        self._numbers = Numbers()
        self._entries = 0
        self._bytes = 0
        # Of the current entry: stored bytes not yet read, padding after them, and its raw name for messages.
        self._left = 0
        self._padding = 0
        self._name = b""
        self._offset = 0  # also of whatever else is being read

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries.

        Raises:
            InvalidImage: The stream breaks the specification, is cut off, is followed by other bytes, or
                means different things to different readers. Says the entry and where it starts.
            LimitExceeded: The stream exceeds a limit.
        """
        stream = self._stream
        try:
            while True:
                if skipped := self._left + self._padding:
                    self._left = self._padding = 0
                    stream.skip(skipped)
                self._offset = stream.base + stream.at
                self._name = b""
                block = stream.block()
                if not block or block == _ZEROS:
                    self._end(bool(block))
                    return
                if (entry := self._entry(block)) is not None:
                    yield entry
        except Malformed as problem:
            self._refuse(problem)

    def content(self) -> Iterator[memoryview]:
        """Yield the stored bytes of the current FILE entry, in pieces that are not copied.

        Of a sparse file these are the bytes of its segments, one after another. Yields nothing for other
        kinds, nor once the reader has advanced. Each piece keeps a whole chunk in memory.

        Raises:
            InvalidImage: The stream is cut off.
        """
        current = self._entries
        while self._left and self._entries == current:
            try:
                piece = self._stream.some(self._left)
            except Malformed as problem:
                self._refuse(problem)
            self._left -= len(piece)
            yield piece

    def read(self) -> bytes:
        """Return what is left of the current FILE entry's stored bytes; of any size, so look at that first.

        Raises:
            InvalidImage: The stream is cut off.
        """
        left, self._left = self._left, 0
        try:
            return self._stream.take(left)
        except Malformed as problem:
            self._refuse(problem)

    def _entry(self, block: bytes) -> Entry | None:
        """Read an entry from its first header on; None when that is a global header."""
        extensions: _Extensions | None = None
        while True:
            raw_name, raw_owner, raw_size, raw_mtime, raw_sum, flag, raw_link, magic, devices, prefix = _HEADER.unpack(
                block
            )
            self._name = name = raw_name.partition(b"\0")[0]
            if not checksum_holds(block, self._checksums[raw_sum]):
                raise Malformed("a header's checksum is wrong", found=show(raw_sum))
            size = self._numbers[raw_size]
            if size < 0:
                raise Malformed("a size is negative", found=str(size))
            kind = _KINDS.get(flag)
            if kind is not None:
                break
            if flag == b"g":
                self._global(size, extensions)
                return None
            extensions = self._extend(flag, size, extensions or _Extensions())
            block = self._stream.block()
            if not block or block == _ZEROS:
                raise Malformed("an extension header without an entry after it")

        if magic[:6] == _USTAR:
            if prefix[0]:
                self._name = name = prefixed(name, prefix, block)
        elif magic == _GNU:
            if prefix != _NO_PREFIX:
                check_gnu_times(prefix)
        elif magic != NO_MAGIC or prefix[0]:
            # Readers differ on what else makes a ustar header, and Python's reads a prefix in any.
            raise Malformed("a header of an unknown format", found=repr(magic), expected="v7, ustar or GNU")
        mode, uid, gid = self._owners[raw_owner]
        mtime = self._numbers[raw_mtime] * _NANOSECONDS
        xattrs = NO_XATTRS
        sparse_keys: PaxSparse | None = None
        if extensions is not None:
            if extensions.name is not None:
                if flag == b"\0" and name.endswith(b"/") is not extensions.name.endswith(b"/"):
                    # Whether a v7 header is a directory's, Go tells from the one name, Python's tarfile from the other.
                    raise Malformed(
                        "a file or a directory, by which name?", found=f"{show(name)} and {show(extensions.name)}"
                    )
                name = extensions.name
            if extensions.link is not None:
                raw_link = extensions.link
            if (pax := extensions.pax) is not None:
                mtime = mtime if pax.mtime is None else pax.mtime
                uid = uid if pax.uid is None else pax.uid
                gid = gid if pax.gid is None else pax.gid
                if pax.size is not None:
                    if flag == b"S":
                        # Stored or real: Python's tarfile takes it for the real size, which the map has, too.
                        raise Malformed("a size in a pax header before an old GNU sparse file", found=str(pax.size))
                    size = pax_size(pax.size, size, raw_size)
                xattrs = pax.xattrs or NO_XATTRS
                sparse_keys = pax.sparse
            self._name = name
        if not _EARLIEST <= mtime <= _LATEST:
            raise Malformed("mtime is out of range", found=f"{mtime} ns", expected="a time in 1678 to 2262")
        if not name:
            raise Malformed("an entry has no name")
        path = self._normalise(name)

        link = b""
        device = _NO_DEVICE
        segments: Segments | None = None
        stored = 0
        if kind is _FILE:
            if name[-1:] == b"/":
                kind = directory_by_slash(flag, size, raw_name)
            else:
                stored = size
        elif kind is not _DIRECTORY:
            if size:
                # GNU tar passes over content here when listing but not when extracting, libarchive after hard
                # links, others never. For directories all agree that the size is a hint and no content
                # follows.
                raise Malformed("an entry without content has a size", found=str(size), expected="0")
            if kind is _SYMLINK:
                link = self._symlink_target(raw_link)
            elif kind is _HARDLINK:
                link = self._hardlink_target(raw_link)
            elif kind is not _FIFO:
                device = device_number(devices, magic)
        if not path and kind is not _DIRECTORY:
            raise Malformed("the root is not a directory", found=kind.name.lower(), expected="a directory")

        size = stored
        if flag == b"S" or sparse_keys is not None:
            size, segments = self._sparse(block, flag, magic, sparse_keys, kind, stored)
            stored = sum(length for _, length in segments)
        self._count(size)
        self._left = stored
        self._padding = -stored % BLOCK
        return Entry(path, kind, mode, uid, gid, size, mtime, link, device, xattrs, self._offset, segments)

    def _count(self, size: int) -> None:
        """Count an entry of `size` bytes against the limits of the image."""
        self._entries += 1
        self._bytes += size
        if self._entries > self._limits.entries:
            raise TooLarge("entries", self._entries, self._limits.entries, unit="entries")
        if self._bytes > self._limits.bytes:
            raise TooLarge("bytes", self._bytes, self._limits.bytes)

    def _extend(self, flag: bytes, size: int, extensions: _Extensions) -> _Extensions:
        """Read an extension header that the entry after it obeys. All readers apply one of each kind."""
        match flag:
            case b"x":
                if extensions.pax is not None:
                    raise Malformed("two pax headers for one entry")
                extensions.pax = pax = parse_pax(self._body(size), self._limits)
                if pax.path is not None:
                    extensions.set_name(pax.path)
                if pax.linkpath is not None:
                    extensions.set_link(pax.linkpath)
            case b"L":
                extensions.set_name(long_text(self._body(size)))
            case b"K":
                extensions.set_link(long_text(self._body(size)))
            case _:
                kind = _REFUSED.get(flag, "unknown type")
                raise Malformed(
                    "an entry of a refused type",
                    found=f"{flag!r} ({kind})",
                    expected="'0' to '7', g, x, K, L, S",
                )
        return extensions

    def _global(self, size: int, extensions: _Extensions | None) -> None:
        """Read a global header."""
        if extensions is not None:
            # Go forgets the extension, GNU tar keeps it.
            raise Malformed("a global header between an extension header and its entry")
        check_global(self._body(size))

    def _body(self, size: int) -> bytes:
        """Read the content of an extension header."""
        if size > self._limits.header:
            raise TooLarge("header", size, self._limits.header)
        padded = self._stream.take(size + -size % BLOCK)
        if padded[size:].strip(b"\0"):
            # Python's tarfile reads names and records on into the padding, GNU tar and Go do not.
            raise Malformed("the padding of an extension header holds something", expected="zeros")
        return padded[:size]

    def _symlink_target(self, raw: bytes) -> bytes:
        target = text(raw)
        if not target:
            raise Malformed("a symbolic link has no target")
        if len(target) > self._limits.link:
            raise TooLarge("link", len(target), self._limits.link)
        return target

    def _hardlink_target(self, raw: bytes) -> bytes:
        target = self._normalise(text(raw))
        if not target:
            raise Malformed("a hard link has no target", found=show(text(raw)), expected="a path below the root")
        return target

    def _sparse(
        self, block: bytes, flag: bytes, magic: bytes, keys: PaxSparse | None, kind: Kind, stored: int
    ) -> tuple[int, Segments]:
        """Read a sparse map, of either family. Returns the real size and the segments."""
        if kind is not _FILE:
            raise Malformed("a sparse map on something that is no file", found=kind.name.lower())
        taken = 0
        if keys is None:
            if magic != _GNU:
                raise Malformed("an old GNU sparse file in a header of another format", found=repr(magic))
            size, raw = read_old_gnu_map(block, self._stream, self._limits)
        elif flag == b"S":
            raise Malformed("a sparse file has two maps", found="type 'S' and GNU.sparse records")
        else:
            size, raw, taken = read_pax_map(keys, self._stream, stored, self._limits)
        return size, check_segments(raw, size=size, stored=stored - taken)

    def _end(self, marked: bool) -> None:
        """Check that nothing follows the end of the archive.

        POSIX ends a stream with two zero blocks. One of them, or none, is taken too, as GNU tar and Go do;
        the layer's digest tells whether bytes are missing.
        """
        if marked and not self._stream.only_zeros_remain():
            self._offset = self._stream.position
            raise Malformed("bytes after the end of the archive", expected="only zeros")

    def _refuse(self, problem: Malformed) -> NoReturn:
        thing = f"entry {show(self._name)}" if self._name else "header"
        what = f"{self._what}: {thing} at byte {self._offset}: {problem.reason}"
        if isinstance(problem, TooLarge):
            raise LimitExceeded(
                what,
                found=problem.found,
                expected=problem.expected,
                todo=f"raise the limit '{problem.limit}' if you trust this image",
            ) from problem
        raise InvalidImage(
            what,
            found=problem.found,
            expected=problem.expected,
            todo="have the image rebuilt with a current tool",
        ) from problem
