"""Docker's config.json, and files in its form for single registries: where credentials come from.

A registry's name goes in, a `Credential` comes out, empty where there is none. All the reading is docker-py's
(`auths`, `credsStore`, `credHelpers`, identity tokens, Docker Hub's odd key, $DOCKER_CONFIG); own is only what a daemon
needs on top: a broken file or a missing helper is told and not silently passed over, does not stop public images, and
never puts a helper's output into a message. Nothing is written, and nobody is asked for a password.
"""

from __future__ import annotations

import json
import logging
import stat
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Credential", "CredentialSource", "DockerCredentials", "FileCredentials"]

_log = logging.getLogger(__name__)
_importing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Credential:
    """What to show a registry: a user name with its password, or an identity token, or nothing.

    Attributes:
        problem: Why there is nothing although the configuration wants there to be something.
        source: Where it comes from, for messages.
    """

    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    identity_token: str | None = field(default=None, repr=False)
    problem: str | None = None
    source: str = "Docker's config.json"

    @property
    def anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return self.identity_token is None and (self.username is None or self.password is None)


class CredentialSource(Protocol):
    """Whoever knows credentials."""

    def find(self, registry: str) -> Credential:
        """The credential for a registry by its name in references."""


class DockerCredentials:
    """Looks credentials up when a registry first asks for them, and remembers them for its own lifetime.

    Safe for threads. A daemon that makes a new one for each cycle sees a new `docker login` in the next.
    """

    def __init__(self, config: Path | None = None) -> None:
        """Read nothing yet.

        Args:
            config: The file; None for $DOCKER_CONFIG/config.json, else ~/.docker/config.json.
        """
        self._config = config
        self._known: dict[str, Credential] = {}
        self._lock = threading.Lock()

    def find(self, registry: str) -> Credential:
        """The credential for a registry by its name in references; runs a credential helper if one is configured."""
        with self._lock:
            if registry not in self._known:
                self._known[registry] = self._read(registry)
            return self._known[registry]

    def _read(self, registry: str) -> Credential:
        file = _docker().utils.config.find_config_file(str(self._config) if self._config else None)
        if file is None:
            return Credential()
        # docker-py takes a file that is not JSON for an empty one in an older format.
        return _entry(file, registry, json_only=file.endswith(".json"))


class FileCredentials:
    """Files of the configuration for the registries that they are for, and for all others another source.

    A registry with a file has what that file says and nothing else, also if that is nothing. Safe for threads.
    """

    def __init__(self, files: Mapping[str, Path], others: CredentialSource) -> None:
        """Read nothing yet.

        Args:
            files: By the registry's name in references.
            others: For registries without a file.
        """
        self._files = files
        self._others = others
        self._known: dict[str, Credential] = {}
        self._lock = threading.Lock()

    def find(self, registry: str) -> Credential:
        """The credential for a registry by its name in references."""
        file = self._files.get(registry)
        if file is None:
            return self._others.find(registry)
        with self._lock:
            if registry not in self._known:
                self._known[registry] = self._read(registry, file)
            return self._known[registry]

    def _read(self, registry: str, file: Path) -> Credential:
        try:
            mode = file.stat().st_mode
        except OSError as error:
            return Credential(problem=f"{file} cannot be read: {error.strerror}")
        if mode & stat.S_IROTH:
            _log.warning("%s holds credentials for %s, and everybody may read it; 'chmod o-r' it", file, registry)
        found = _entry(str(file), registry, json_only=True)
        if found.anonymous and found.problem is None:
            return Credential(problem=f"{file} has no entry for {registry}")
        return replace(found, source=str(file))


def _docker() -> Any:
    """The library, imported when it is first needed: a registry that asks for no credentials needs none of it.

    One thread at a time: another that came while it is being imported would get a part of it.
    """
    with _importing:
        import docker.auth  # noqa: PLC0415
        import docker.errors  # noqa: PLC0415
        import docker.utils.config  # noqa: PLC0415
    return docker


def _entry(file: str, registry: str, *, json_only: bool) -> Credential:
    """What a file in the form of Docker's config.json says about a registry; asks the helper that it names."""
    docker = _docker()
    try:
        content = json.loads(Path(file).read_text()) if json_only else None
        config = docker.auth.load_config(file, content)
    except OSError as error:
        return Credential(problem=f"{file} cannot be read: {error.strerror}")
    except (docker.errors.DockerException, ValueError, AttributeError, TypeError):
        return Credential(problem=f"{file} is not a configuration file of Docker's")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing helper; `problem` tells it
            entry = docker.auth.resolve_authconfig(config, registry) or {}
    except (docker.errors.DockerException, ValueError, KeyError, TypeError):
        helper = config.get_credential_store(registry)
        return Credential(problem=f"docker-credential-{helper} (of {file}) failed")
    # docker-py writes the keys in lower case for entries of the file, capitalised for a helper's.
    found = {key.lower(): value for key, value in entry.items() if isinstance(value, str) and value}
    return Credential(found.get("username"), found.get("password"), found.get("identitytoken"))
