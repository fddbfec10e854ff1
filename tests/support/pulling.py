"""What tests of the registry client say again and again."""

from __future__ import annotations

from cvmfs_sync.reference import Reference
from cvmfs_sync.registry import Credential
from tests.fakes.scriptable_registry import ScriptableRegistry

__all__ = ["Nobody", "ref"]


class Nobody:
    """Credentials of a user who has none."""

    def find(self, registry: str) -> Credential:
        """Nothing, whoever asks."""
        return Credential()


def ref(server: ScriptableRegistry, rest: str = "org/tool:1") -> Reference:
    """A reference into the server."""
    return Reference.parse(f"{server.host}/{rest}")
