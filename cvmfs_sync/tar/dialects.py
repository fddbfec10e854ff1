"""Where dialects of tar differ: v7, ustar, pax, GNU's and star's, as Go, GNU tar and Python read them.

A field that two of them would read differently is refused: `Malformed`, with what was found and expected.
"""

from __future__ import annotations

from cvmfs_sync.tar.entry import Kind
from cvmfs_sync.tar.fields import Malformed, number, show, text

__all__ = ["NO_MAGIC", "check_gnu_times", "device_number", "directory_by_slash", "long_text", "pax_size", "prefixed"]

NO_MAGIC = bytes(8)
"""Of a v7 header."""
_OCTAL_MAXIMUM = 8**11 - 1  # what a size field holds with its terminator
_STAR_PREFIX = 131


def prefixed(name: bytes, prefix: bytes, block: bytes) -> bytes:
    """A ustar name with its prefix."""
    start = text(prefix)
    if len(start) > _STAR_PREFIX and block[-4:] == b"tar\0":
        raise Malformed("a prefix that may be star's or ustar's", expected="no 'tar' at the end of a ustar header")
    return start + b"/" + name


def check_gnu_times(prefix: bytes) -> None:
    """Old GNU headers have times where ustar has the prefix; Go takes what is no number for a prefix."""
    try:
        for raw in (prefix[:12], prefix[12:24]):
            number(raw)
    except Malformed:
        raise Malformed(
            "a GNU header with a prefix",
            found=show(text(prefix)),
            expected="access and change time, or zeros",
        ) from None


def pax_size(pax: int, plain: int, raw: bytes) -> int:
    """The size that a pax header gives, where the plain header does not contradict (CVE-2025-62518).

    Writers give a pax size for what the octal field cannot hold, and put anything there. Where it could, both
    must agree.
    """
    if pax != plain and (pax <= _OCTAL_MAXIMUM or raw[0] & 0x80):
        raise Malformed("pax and plain header give different sizes", found=f"{pax} and {plain}", expected="one size")
    return pax


def directory_by_slash(flag: bytes, size: int, raw_name: bytes) -> Kind:
    """v7 had no type for directories but a slash. GNU tar extends that to type '0', Go does not.

    Neither looks where the slash is from. Python's tarfile does not count the one between prefix and name.
    """
    if flag != b"\0" or size or not raw_name[0]:
        raise Malformed(
            "a file whose name ends in '/'",
            found=f"type {flag!r}, size {size}, name {show(text(raw_name))}",
            expected="type '5' for a directory",
        )
    return Kind.DIRECTORY


def device_number(raw: bytes, magic: bytes) -> tuple[int, int]:
    """The major and minor number in these fields, of a header of this magic."""
    if magic == NO_MAGIC:
        raise Malformed("a device in a v7 header", expected="ustar or GNU, which have fields for its number")
    major, minor = number(raw[:8]), number(raw[8:])
    if not (0 <= major < 2**32 and 0 <= minor < 2**32):
        raise Malformed("a device number is out of range", found=f"{major}, {minor}", expected="0 to 2**32 - 1")
    return major, minor


def long_text(body: bytes) -> bytes:
    """The name or target in a GNU long header: not empty, and nothing behind its NUL."""
    value = text(body)
    if not value or body[len(value) :].strip(b"\0"):
        raise Malformed("a GNU long name is malformed", found=show(body), expected="a name and a NUL")
    return value
