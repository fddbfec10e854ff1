"""pax extended headers: records, and what they say about the entry after them.

The body of a header goes in, a `Pax` comes out, or `Malformed`. Specification: POSIX.1-2017, pax, "pax
Extended Header"; the keys GNU.sparse.* are GNU tar's ("Storing Sparse Files"), SCHILY.xattr.* star's. Other
keys, among them LIBARCHIVE.* and SCHILY.acl.*, say nothing that GNU tar, Go and this project all understand,
and are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cvmfs_sync.tar.entry import Limits
from cvmfs_sync.tar.fields import MAX_ID, Malformed, TooLarge, decimal, show

__all__ = ["Pax", "PaxSparse", "check_global", "parse_pax"]

_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
# What these say, this reader returns.
_UNDERSTOOD = frozenset({b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid"})
_CHARSETS = frozenset({b"BINARY", b"ISO-IR 10646 2000 UTF-8"})
# Fields that C programs end at a NUL and others do not.
_TEXTS = frozenset({b"path", b"linkpath", b"uname", b"gname", _SPARSE + b"name"})
# Most headers in the layers of Docker and BuildKit, read in a third of the time.
_ONLY_MTIME = re.compile(rb"(\d\d) mtime=(\d{1,12})\.(\d{1,9})\n\Z")
_LENGTH_DIGITS = 10
_NANOSECONDS = 10**9


@dataclass(slots=True)
class PaxSparse:
    """The GNU.sparse.* records of a header.

    Attributes:
        keys: Those that stand once, without the prefix.
        pairs: The values of `offset` and `numbytes`, which version 0.0 repeats.
    """

    keys: dict[bytes, bytes] = field(default_factory=dict)
    pairs: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Pax:
    """What an extended header overrides; None where it says nothing."""

    path: bytes | None = None
    linkpath: bytes | None = None
    size: int | None = None
    mtime: int | None = None
    uid: int | None = None
    gid: int | None = None
    xattrs: Mapping[bytes, bytes] | None = None
    sparse: PaxSparse | None = None


def parse_pax(body: bytes, limits: Limits) -> Pax:
    """Read an extended header of the next entry (type 'x')."""
    simple = _ONLY_MTIME.match(body)
    if simple is not None and int(simple[1]) == len(body):
        return Pax(mtime=int(simple[2]) * _NANOSECONDS + int(simple[3].ljust(9, b"0")))
    pax = Pax()
    records, pairs = _records(body)
    xattrs: dict[bytes, bytes] = {}
    sparse: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key == b"mtime":
            pax.mtime = _time(value)
        elif key in _UNDERSTOOD:
            _set(pax, key, value)
        elif key.startswith(_XATTR):
            name = key[len(_XATTR) :]
            if not name or b"%3D" in name or b"%25" in name:
                # GNU tar decodes these escapes, Go takes them as they stand.
                raise Malformed("the name of an extended attribute is ambiguous", found=show(name))
            if value:  # an empty value deletes the record (POSIX, and Go; GNU tar would set an empty attribute)
                xattrs[name] = value
        elif key.startswith(_SPARSE):
            sparse[key[len(_SPARSE) :]] = value
        elif key == b"hdrcharset" and value not in _CHARSETS:
            raise Malformed("names have an unknown character set", found=show(value), expected="UTF-8 or BINARY")
        elif key == b"SCHILY.realsize":
            raise Malformed("a sparse file of star", expected="GNU.sparse records: GNU tar and Go read no others")
    if xattrs:
        used = sum(map(len, xattrs)) + sum(map(len, xattrs.values()))
        if used > limits.xattrs:
            raise TooLarge("xattrs", used, limits.xattrs)
        pax.xattrs = xattrs
    if sparse or pairs:
        pax.sparse = PaxSparse(sparse, pairs)
        # Instead of the plain name, or of the record `path`, both of which are made up for such a file.
        pax.path = sparse.get(b"name", pax.path)
    return pax


def check_global(body: bytes) -> None:
    """Check a global header (type 'g'), of which nothing is kept.

    GNU tar applies its records to all entries that follow; Go, and with it umoci and Docker, to none. So a
    record that would matter is refused; in practice there is only the comment that git writes.
    """
    records, pairs = _records(body)
    for key in records:
        if key in _UNDERSTOOD or key.startswith((_XATTR, _SPARSE)):
            raise Malformed(
                "a global header changes all entries after it",
                found=show(key),
                expected="only comments and the like",
            )
    if pairs:
        raise Malformed("a global header holds a sparse map")


def _records(body: bytes) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Split a body into its records, and the values of the two keys that GNU sparse 0.0 repeats."""
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    at, end = 0, len(body)
    while at < end:
        space = body.find(b" ", at, at + _LENGTH_DIGITS + 1)
        length = body[at:space] if space > at else b""
        stop = at + int(length) if length.isdigit() else 0
        # Every round takes at least a digit, a blank and a newline: a length of 0 must not loop (CVE-2025-8194).
        if not at < space < stop <= end or body[stop - 1] != 0x0A:
            raise _malformed_record(body[at : at + 40])
        key, equals, value = body[space + 1 : stop - 1].partition(b"=")
        at = stop
        if not equals or not key:
            raise _malformed_record(key)
        if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            if (len(pairs) % 2 == 0) is not (key == b"GNU.sparse.offset"):
                raise Malformed("the sparse map is out of order", found=show(key))
            pairs.append(value)
        elif records.setdefault(key, value) != value:
            raise Malformed("a pax header says two things", found=f"{show(key)} twice", expected="each keyword once")
    if b"\0" in body:
        for key, value in records.items():
            if b"\0" in key or (key in _TEXTS and b"\0" in value):
                raise Malformed("a pax record holds a NUL", found=show(key + b"=" + value))
    return records, pairs


def _set(pax: Pax, key: bytes, value: bytes) -> None:
    """Set one of the keys that are not `mtime`."""
    if not value:
        # POSIX and Go fall back to the plain header, GNU tar takes the empty value.
        raise Malformed("a pax record is empty", found=show(key), expected="a value")
    match key:
        case b"path":
            pax.path = value
        case b"linkpath":
            pax.linkpath = value
        case b"size":
            pax.size = decimal(value, "size")
        case b"uid":
            pax.uid = decimal(value, "uid", MAX_ID)
        case b"gid":
            pax.gid = decimal(value, "gid", MAX_ID)


def _time(value: bytes) -> int:
    """Seconds with an optional fraction, in nanoseconds. Further digits are cut off, as Go does."""
    seconds, _, fraction = value.partition(b".")
    negative = seconds[:1] == b"-"
    digits = seconds[1:] if negative else seconds
    if not digits.isdigit() or len(digits) > 20 or not (fraction.isdigit() or not fraction):
        raise Malformed("mtime is no time", found=show(value), expected="seconds, with or without a fraction")
    time = int(digits) * _NANOSECONDS
    if fraction:
        time += int(fraction[:9].ljust(9, b"0"))
    return -time if negative else time


def _malformed_record(found: bytes) -> Malformed:
    return Malformed(
        "a pax record is malformed", found=show(found), expected="'<length> <keyword>=<value>' and a newline"
    )
