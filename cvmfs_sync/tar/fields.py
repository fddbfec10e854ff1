"""Numbers, names and checksums of a 512-byte header.

Raw bytes of a field go in, a value comes out, or `Malformed` with what was found and expected. Where in the
stream that was, the reader knows and adds. Specification: POSIX.1-2017, pax, "ustar Interchange Format";
base-256 numbers are GNU's ("Basic Tar Format").
"""

from __future__ import annotations

import re
from zlib import adler32

from cvmfs_sync.tar.entry import Limits

__all__ = [
    "Checksums",
    "Malformed",
    "Numbers",
    "Owners",
    "PathRule",
    "TooLarge",
    "checksum_holds",
    "decimal",
    "number",
    "owner",
    "show",
    "text",
]

MAX_ID = 2**32 - 2  # chown takes 2**32 - 1, which is -1, for "leave it"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*\Z")
_SHOWN = 200
_MEMORY = 4096  # different raw fields remembered; bounds what a hostile stream can make us keep


class Malformed(Exception):
    """A part of an entry is not what the specification says, or readers disagree on it."""

    def __init__(self, reason: str, *, found: str | None = None, expected: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.found = found
        self.expected = expected


class TooLarge(Malformed):
    """A part of an entry exceeds a limit."""

    def __init__(self, limit: str, value: int, maximum: int, *, unit: str = "bytes") -> None:
        super().__init__(f"over the limit '{limit}'", found=f"{value} {unit}", expected=f"at most {maximum} {unit}")
        self.limit = limit


def show(raw: bytes) -> str:
    """Bytes for a message: quoted, escaped and cut."""
    start = raw[:_SHOWN]
    try:
        shown = repr(start.decode())
    except UnicodeDecodeError:
        shown = repr(start)[1:]
    return shown if len(raw) <= _SHOWN else f"{shown}... ({len(raw)} bytes)"


def text(raw: bytes) -> bytes:
    """A text field: all of it, or what stands before the first NUL."""
    return raw.partition(b"\0")[0]


def number(raw: bytes) -> int:
    """A numeric field, octal or base-256. A blank one is 0.

    Digits after a NUL, or a NUL before digits, are refused: Go, GNU tar and Python read them differently. So
    are base-256 numbers that start with anything but 0x80 and 0xff, which Go alone takes.
    """
    first = raw[0]
    if first == 0x80:
        return int.from_bytes(raw[1:], "big")
    if first == 0xFF:
        return int.from_bytes(raw, "big", signed=True)
    match = _OCTAL.match(raw)
    if match is None:
        if raw.strip(b"\0") == b"":
            return 0
        raise Malformed("a numeric field is malformed", found=repr(raw), expected="octal digits or base-256")
    return int(match[1] or b"0", 8)


def decimal(raw: bytes, key: str, maximum: int = 2**63 - 1) -> int:
    """A number of a pax record or sparse map: digits only, although some readers take signs and blanks."""
    if not raw.isdigit() or len(raw) > 20 or (value := int(raw)) > maximum:
        raise Malformed(f"{key} is no number", found=show(raw), expected=f"decimal digits, at most {maximum}")
    return value


class Numbers(dict[bytes, int]):
    """Numeric fields by their bytes: entries of a layer share most, and a look-up is faster than parsing."""

    def __missing__(self, raw: bytes) -> int:
        value = number(raw)
        if len(self) >= _MEMORY:
            self.clear()
        self[raw] = value
        return value


class Owners(dict[bytes, tuple[int, int, int]]):
    """The adjacent fields mode, uid and gid by their 24 bytes."""

    def __missing__(self, raw: bytes) -> tuple[int, int, int]:
        value = number(raw[:8]) & 0o7777, owner(number(raw[8:16]), "uid"), owner(number(raw[16:]), "gid")
        if len(self) >= _MEMORY:
            self.clear()
        self[raw] = value
        return value


def owner(value: int, field: str) -> int:
    """A uid or gid that `chown` can set."""
    if not 0 <= value <= MAX_ID:
        raise Malformed(f"{field} is out of range", found=str(value), expected=f"0 to {MAX_ID}")
    return value


class Checksums(dict[bytes, int]):
    """What `adler32` of a plain header must have in its low half, by the bytes of the checksum field.

    The low half is 1 and the sum of all bytes, modulo 65521. The field itself counts as eight blanks.
    """

    def __missing__(self, raw: bytes) -> int:
        try:
            value = 1 + number(raw) - 8 * 0x20 + sum(raw)
        except Malformed:
            value = -1  # no header has it
        if len(self) >= _MEMORY:
            self.clear()
        self[raw] = value
        return value


def checksum_holds(block: bytes, expected: int) -> bool:
    """Whether the checksum of a header holds, exactly.

    Args:
        block: The header.
        expected: From `Checksums`.
    """
    # Sums of 512 ASCII bytes stay below adler32's modulus, so for them the fast way is exact. For others the
    # sum is taken of unsigned bytes, as POSIX has it, or of signed ones, as some ancient writers did and GNU
    # tar and Go accept.
    if block.isascii():
        return adler32(block) & 0xFFFF == expected
    unsigned = sum(block) + 1
    return expected in (unsigned, unsigned - 256 * sum(byte > 0x7F for byte in block))


class PathRule:
    """Brings paths to one form and holds their limits."""

    __slots__ = ("_limits", "_short")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # No path of at most so many bytes can exceed the limits of length, component or depth.
        self._short = min(limits.path, limits.name, 2 * limits.depth - 1)

    def __call__(self, raw: bytes) -> bytes:
        """Normalise a path.

        Raises:
            Malformed: For a '..' component; resolving it depends on links that are not known here.
            TooLarge: For a path, name or depth beyond the limits.
        """
        path = raw[2:] if raw[:2] == b"./" else raw
        if path[-1:] == b"/":
            path = path[:-1]
        # An empty path also takes the slow way: every bytes object contains b"".
        if path[:1] in b"/." or b"//" in raw or b"/." in path or len(raw) > self._short:
            return self._slow(raw)
        return path

    def _slow(self, raw: bytes) -> bytes:
        limits = self._limits
        if len(raw) > limits.path:
            raise TooLarge("path", len(raw), limits.path)
        parts = [part for part in raw.split(b"/") if part and part != b"."]
        if b".." in parts:
            raise Malformed("a path leads upwards", found=show(raw), expected="no '..'")
        if len(parts) > limits.depth:
            raise TooLarge("depth", len(parts), limits.depth, unit="components")
        longest = max(map(len, parts), default=0)
        if longest > limits.name:
            raise TooLarge("name", longest, limits.name)
        return b"/".join(parts)
