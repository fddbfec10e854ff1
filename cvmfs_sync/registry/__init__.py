"""Where images come from: registries over HTTP, and OCI layouts on disk. Both are `Source`s of `cvmfs_sync.ports`."""

from __future__ import annotations

from cvmfs_sync.registry.client import RegistrySource
from cvmfs_sync.registry.credentials import Credential, DockerCredentials
from cvmfs_sync.registry.layout import LayoutSource
from cvmfs_sync.registry.politeness import RegistrySettings, Timing

__all__ = ["Credential", "DockerCredentials", "LayoutSource", "RegistrySettings", "RegistrySource", "Timing"]
