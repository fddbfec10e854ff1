"""Images of the Docker or Podman engine of this machine, as a `Source`.

`docker-daemon:name[:tag]` goes in; digests, the manifests that `dockersave` makes, and blobs come out. The engine keeps
no manifest that it would hand out, but every image has an ID that changes with its content, and that is what `head`
tells: one request. Only who wants the manifest or a blob has the image exported, by ID and not by name, into a
temporary file without a name. Nothing is changed in the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from cvmfs_sync.errors import (
    AccessDenied,
    BlobMismatch,
    ImageError,
    ImageNotFound,
    InvalidManifest,
    InvalidReference,
    LimitExceeded,
    RegistryUnavailable,
)
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest, EngineReference, Reference
from cvmfs_sync.registry.archive import Kept, temporary
from cvmfs_sync.registry.dockersave import PIECE, DockerSave
from cvmfs_sync.tar import Limits

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["DEFAULT_HOST", "EngineSource"]

DEFAULT_HOST = "unix:///var/run/docker.sock"
# Seconds of silence. An engine answers at once, but may prepare an export for as long as it takes to read the image.
_ANSWER, _EXPORT = 60.0, 600.0


class EngineSource:
    """`Source[EngineReference]`. Safe for threads."""

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        limits: Limits | None = None,
        *,
        silence: tuple[float, float] = (_ANSWER, _EXPORT),
    ) -> None:
        """Connect to nobody yet.

        Args:
            directory: For exports; made when there is one.
            environment: `DOCKER_HOST`, `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH`, as Docker's own command reads them.
            limits: `bytes` of an export.
            silence: So many seconds without a byte end a question, and an export.
        """
        self._silence = silence
        self._directory = directory
        self._environment = {**environment, "DOCKER_HOST": environment.get("DOCKER_HOST") or DEFAULT_HOST}
        self._limits = limits or Limits()
        self._kept: Kept[Digest] = Kept()
        self._meant: dict[EngineReference, Digest] = {}
        self._clients: dict[float, DockerClient] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections, and all files that nobody reads."""
        self._kept.clear()
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def head(self, name: EngineReference) -> Digest:
        """The ID of the image, by one request.

        Raises:
            ImageNotFound: If the engine says that it has no such image.
            ImageError: For all else, by type.
        """
        with self._asking(name) as client:
            answer = client.api.inspect_image(f"{name.repository}:{name.tag}")
        identity = answer.get("Id") if isinstance(answer, dict) else None
        try:
            # Podman writes its IDs without the algorithm in some answers.
            return Digest.parse(identity if ":" in str(identity) else f"sha256:{identity}")
        except InvalidReference as error:
            raise InvalidManifest(
                f"{name}: the engine names no ID", found=error.found, expected=error.expected
            ) from None

    def manifest(self, name: EngineReference, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        """The manifest that is made of the image; its own digest, and its media type. Exports the image.

        Args:
            name: The image.
            digest: What `head` told; what the name means now if None.

        Raises:
            ImageNotFound: If the engine has no such image, or has it no more.
            ImageError: For all else, by type.
        """
        identity = digest or self.head(name)
        with self._lock:
            self._meant[name] = identity
        return self._archive(name, identity).manifest(None)

    def blob(self, name: EngineReference, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes in pieces of up to 1 MiB, of the image that the manifest was asked of.

        Raises:
            ImageError: If it can't be exported.
        """
        with self._lock:
            identity = self._meant.get(name)
        archive = self._archive(name, identity or self.head(name))
        archive.manifest(None)
        yield from archive.blob(descriptor)

    def local_blob(self, name: EngineReference, descriptor: Descriptor) -> Path | None:  # noqa: ARG002
        """None: the engine's files are its own business."""
        return None

    def tags(self, name: EngineReference) -> Iterator[str]:
        """The tags that the engine has of this name, each once.

        Raises:
            ImageError: If the engine does not tell.
        """
        with self._asking(name) as client:
            images = client.api.images()
        wanted = Reference.parse(name.repository).name
        names = dict.fromkeys(each for image in images or () for each in image.get("RepoTags") or ())
        for each in names:
            with suppress(InvalidReference):  # "<none>:<none>"
                reference = Reference.parse(each)
                if reference.name == wanted and reference.tag is not None:
                    yield reference.tag

    def _archive(self, name: EngineReference, identity: Digest) -> DockerSave:
        return self._kept.get(identity, lambda: self._export(name, identity))

    def _export(self, name: EngineReference, identity: Digest) -> DockerSave:
        with self._asking(name, export=True) as client:
            pieces = client.api.get_image(str(identity), chunk_size=PIECE)
            archive = DockerSave(temporary(self._bounded(pieces, name), self._directory, str(name)), str(name))
        # The ID is the configuration's digest; with containerd's image store, that of a manifest or index.
        if not archive.has(identity):
            raise BlobMismatch(
                f"{name}: the engine exported another image than it was asked for",
                expected=str(identity),
                todo="the next cycle tries again",
            )
        return archive

    def _bounded(self, pieces: Iterator[bytes], name: EngineReference) -> Iterator[bytes]:
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > self._limits.bytes:
                raise LimitExceeded(
                    f"{name}: over the limit 'bytes'",
                    found=f"an export of {size} bytes or more",
                    expected=f"at most {self._limits.bytes}",
                    todo="raise the limit 'bytes' if you trust this image",
                )
            yield piece

    @contextmanager
    def _asking(self, name: EngineReference, *, export: bool = False) -> Iterator[DockerClient]:
        """Talk to the engine; what goes wrong in the block is told as this image's."""
        # Takes longer to import than most commands take, and most lists name no such image.
        import docker  # noqa: PLC0415

        host = self._environment["DOCKER_HOST"]
        try:
            yield self._connected(docker, self._silence[export])
        except docker.errors.ImageNotFound as error:
            raise ImageNotFound(
                f"{name}: the engine has no such image",
                found=_explanation(error),
                todo="compare with 'docker images' or 'podman images' of the user whose engine it is",
            ) from None
        except docker.errors.APIError as error:
            status = error.status_code or 500
            kind = RegistryUnavailable if status >= 500 else AccessDenied if status in (401, 403) else ImageError
            raise kind(f"{name}: the engine refuses", found=f"{status}: {_explanation(error)}") from None
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise RegistryUnavailable(
                f"{name}: the engine does not answer",
                found=f"{host}: {_reason(error)}",
                todo="see that it runs and that this user may use its socket; DOCKER_HOST names another one"
                " (unix:///run/podman/podman.sock is Podman's, served by podman.socket)",
            ) from None

    def _connected(self, docker: Any, silence: float) -> DockerClient:
        with self._lock:
            client = self._clients.get(silence)
            if client is None:
                client = docker.from_env(environment=self._environment, version="auto", timeout=silence)
                self._clients[silence] = client
            return client


def _explanation(error: Any) -> str:
    return str(error.explanation or error)[:300]


def _reason(error: BaseException) -> str:
    """The innermost reason: what wraps it only says that there is one."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error))[:300]
