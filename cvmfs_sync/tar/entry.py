"""The values of a tar stream: what an entry is, and how large anything may be.

Plain values: nothing here reads or checks a stream.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["NO_XATTRS", "Entry", "Kind", "Limits"]

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Kind(enum.IntEnum):
    """What an entry makes. The numbers are stored in indexes: never renumber."""

    FILE = 0
    HARDLINK = 1
    SYMLINK = 2
    CHARACTER = 3
    BLOCK = 4
    DIRECTORY = 5
    FIFO = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large an image may be; exceeding one limit fails that image.

    Attributes:
        bytes: Uncompressed bytes of one layer's stream, and of the content of one image's files with holes
            unfolded.
        entries: Entries of an image.
        path: Bytes of a path.
        name: Bytes of one component of a path.
        depth: Components of a path.
        link: Bytes of a symbolic link's target.
        xattrs: Bytes of the names and values of all extended attributes of one entry.
        header: Bytes of one pax header, or GNU long name or link.
        sparse: Segments of one file's sparse map.
        ratio: Uncompressed bytes for each compressed byte, looked at beyond `ratio_floor` uncompressed bytes.
        ratio_floor: Uncompressed bytes that any stream may have, whatever its ratio.
        hardlinks: Hard links of an image.
    """

    bytes: int = 256 << 30
    entries: int = 10_000_000
    path: int = 4096
    name: int = 255
    depth: int = 256
    link: int = 4096
    xattrs: int = 128 << 10
    header: int = 1 << 20
    sparse: int = 65_536
    ratio: int = 1_000
    ratio_floor: int = 64 << 20
    hardlinks: int = 1_000_000


# Not frozen, although nobody changes one: a frozen dataclass takes three times as long to make.
@dataclass(slots=True)
class Entry:
    """One entry of a tar stream.

    Attributes:
        path: Normalised: no leading or trailing '/', no '//', '.' or '..'. Empty for the root directory.
        kind: What it makes.
        mode: Permissions with set-id and sticky bits, at most 0o7777.
        uid: Owner.
        gid: Group.
        size: Bytes of content with holes unfolded; 0 for everything but a FILE.
        mtime: Nanoseconds since the epoch, within 64 bits; negative before it.
        link: A SYMLINK's target as it stands; a HARDLINK's, normalised like a path; otherwise empty.
        device: Major and minor number of a device; otherwise zeros.
        xattrs: Extended attributes by their full name (`user.x`, `security.capability`).
        offset: Where the entry's first header starts in the uncompressed stream.
        sparse: Offset and length of each data segment of a sparse file, ascending and none empty; None for
            others.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    device: tuple[int, int]
    xattrs: Mapping[bytes, bytes]
    offset: int
    sparse: tuple[tuple[int, int], ...] | None
