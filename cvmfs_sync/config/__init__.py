"""`cvmfs-sync.yaml`: what the operator decides, as one frozen value.

A file and the environment's variables go in; a `Config` with all defaults filled in and all paths absolute comes out,
or one error that lists every mistake with its line. Environment and time are passed in. Nothing here looks whether a
directory, a repository or a registry exists.
"""

from cvmfs_sync.config.changes import require_changeable
from cvmfs_sync.config.reading import load
from cvmfs_sync.config.settings import (
    Config,
    Hook,
    Limits,
    Metrics,
    RegistryOptions,
    RepositoryOptions,
    Retire,
    Sandbox,
    Schedule,
    Web,
    Webhook,
    WebhookKind,
    json_schema,
)
from cvmfs_sync.config.values import GitList

__all__ = [
    "Config",
    "GitList",
    "Hook",
    "Limits",
    "Metrics",
    "RegistryOptions",
    "RepositoryOptions",
    "Retire",
    "Sandbox",
    "Schedule",
    "Web",
    "Webhook",
    "WebhookKind",
    "json_schema",
    "load",
    "require_changeable",
]
