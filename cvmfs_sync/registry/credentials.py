"""Docker's config.json as the one place that credentials come from.

A registry's name goes in, a `Credential` comes out, empty where there is none. All the reading is docker-py's
(`auths`, `credsStore`, `credHelpers`, identity tokens, Docker Hub's odd key, $DOCKER_CONFIG); own is only what a daemon
needs on top: a broken file or a missing helper is told and not silently passed over, does not stop public images, and
never puts a helper's output into a message. Nothing is written, and nobody is asked for a password.
"""

from __future__ import annotations

import json
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Credential", "DockerCredentials"]


@dataclass(frozen=True, slots=True)
class Credential:
    """What to show a registry: a user name with its password, or an identity token, or nothing.

    Attributes:
        problem: Why there is nothing although the configuration wants there to be something.
    """

    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    identity_token: str | None = field(default=None, repr=False)
    problem: str | None = None

    @property
    def anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return self.identity_token is None and (self.username is None or self.password is None)


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
        # All of docker-py comes with it, and a registry that asks for no credentials needs none of it.
        import docker.auth  # noqa: PLC0415
        import docker.errors  # noqa: PLC0415
        from docker.utils.config import find_config_file  # noqa: PLC0415

        file = find_config_file(str(self._config) if self._config else None)
        if file is None:
            return Credential()
        try:
            # docker-py takes a file that is not JSON for an empty one in an older format.
            content = json.loads(Path(file).read_text()) if file.endswith(".json") else None
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
