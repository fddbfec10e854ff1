"""How much a directory holds."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["size_below"]


def size_below(directory: Path) -> int:
    """Bytes of the files below a directory, as far as they can be seen; they come and go meanwhile."""
    size = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                size += os.lstat(f"{parent}/{name}").st_size
    return size
