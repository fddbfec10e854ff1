"""Where to ask for what is in a registry: its mirrors first, in order, and then the registry itself.

Settings and the name of a registry go in, `Endpoint`s come out. This is the only place that makes URLs of names. A
mirror is a host of its own: settings and credentials are those of its own name, never the registry's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry.auth import Target
from cvmfs_sync.registry.politeness import RegistrySettings
from cvmfs_sync.registry.urls import origin

__all__ = ["Endpoint", "Endpoints"]

_API_HOSTS = {"docker.io": "registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server that may be asked.

    Attributes:
        registry: Its name, by which settings, credentials, limits and counts are known.
        base: Scheme and host, without a final slash.
        floor: See `RegistrySettings.ratelimit_floor`.
        project: What a mirror wants before repositories' names; empty, or with a final slash.
        mirror: Whether it is a mirror: what it does not have, or does not give, proves nothing.
    """

    registry: str
    base: str
    floor: int = 0
    project: str = ""
    mirror: bool = False

    @property
    def origin(self) -> str:
        """The base's origin."""
        return origin(self.base)

    def target(self, name: Reference) -> Target:
        """What to be let in to."""
        return Target(self.registry, self.project + name.repository, self.origin)

    def manifest(self, name: Reference, digest: Digest | None = None) -> str:
        """URL of the manifest that `name` means, or of `digest` beside it."""
        return f"{self._repository(name)}/manifests/{digest or name.digest or name.tag}"

    def blob(self, name: Reference, digest: Digest) -> str:
        """URL of a blob."""
        return f"{self._repository(name)}/blobs/{digest}"

    def tags(self, name: Reference, page: int) -> str:
        """URL of the tag list's first page."""
        return f"{self._repository(name)}/tags/list?n={page}"

    def _repository(self, name: Reference) -> str:
        return f"{self.base}/v2/{quote(self.project + name.repository)}"


class Endpoints:
    """All endpoints of one configuration."""

    def __init__(self, settings: Mapping[str, RegistrySettings], default: RegistrySettings) -> None:
        """Ask nobody.

        Args:
            settings: By the registry's name as it stands in references.
            default: For all others.
        """
        self._settings = settings
        self._default = default

    def itself(self, registry: str) -> Endpoint:
        """The registry, without its mirrors."""
        own = self._of(registry)
        scheme = "http" if own.insecure else "https"
        return Endpoint(registry, f"{scheme}://{_API_HOSTS.get(registry, registry)}", own.ratelimit_floor)

    def mirrors(self, registry: str) -> Iterator[Endpoint]:
        """The registry's mirrors, in the order in which to ask them."""
        for text in self._of(registry).mirrors:
            scheme, _, place = text.rpartition("://")
            host, _, project = place.strip("/").partition("/")
            own = self._of(host)
            scheme = scheme or ("http" if own.insecure else "https")
            yield Endpoint(host, f"{scheme}://{host}", own.ratelimit_floor, f"{project}/" if project else "", True)

    def by_origin(self) -> dict[str, RegistrySettings]:
        """The settings as `Transport` wants them."""
        found = {
            endpoint.origin: self._of(endpoint.registry) for name in self._settings for endpoint in self.mirrors(name)
        }
        return found | {self.itself(name).origin: value for name, value in self._settings.items()}

    def _of(self, registry: str) -> RegistrySettings:
        return self._settings.get(registry, self._default)
