"""Where images come from: registries, layouts, archives, local engines. All are `Source`s of `cvmfs_sync.ports`."""

from __future__ import annotations

from cvmfs_sync.registry.archive import ArchiveSource
from cvmfs_sync.registry.client import RegistrySource
from cvmfs_sync.registry.credentials import Credential, DockerCredentials
from cvmfs_sync.registry.engine import EngineSource
from cvmfs_sync.registry.layout import LayoutSource
from cvmfs_sync.registry.ledger import REQUEST_RESULTS, RateLimit, RegistryMemory, Validator
from cvmfs_sync.registry.politeness import Patience, RegistrySettings, Timing

__all__ = [
    "REQUEST_RESULTS",
    "ArchiveSource",
    "Credential",
    "DockerCredentials",
    "EngineSource",
    "LayoutSource",
    "Patience",
    "RateLimit",
    "RegistryMemory",
    "RegistrySettings",
    "RegistrySource",
    "Timing",
    "Validator",
]
