"""The entry point: `cvmfs-sync` and `python -m cvmfs_sync`."""

from __future__ import annotations

import sys

from cvmfs_sync.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
