"""A strict, fast reader of tar streams.

Chunks of a decompressed stream go in, entries and their content come out, in the stream's order and without
copying what lies inside one chunk. All dialects that layers come in are read: v7, ustar, GNU (long names,
sparse, base-256) and pax. What two well-known readers (GNU tar, Go's archive/tar, which umoci and Docker use)
take for different trees is refused with its reason, never guessed.

Nothing here writes a file, merges layers or knows of whiteouts, and nothing inflates: see
`cvmfs_sync.compression`.

Specification: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic
    Tar Format" and "Storing Sparse Files"; OCI image-spec, layer.md.
"""

from cvmfs_sync.tar.entry import Entry, Kind, Limits
from cvmfs_sync.tar.reader import Reader

__all__ = ["Entry", "Kind", "Limits", "Reader"]
