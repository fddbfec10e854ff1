"""Adapters that publish: a plain directory, and CernVM-FS through `cvmfs_server`."""

from __future__ import annotations

from cvmfs_sync.repository.cvmfs import CvmfsRepository
from cvmfs_sync.repository.directory import DirectoryRepository
from cvmfs_sync.repository.timed import TimedRepository

__all__ = ["CvmfsRepository", "DirectoryRepository", "TimedRepository"]
