"""Debian's `docker-registry` (CNCF Distribution) as a process of the tests, on loopback.

`start_docker_registry()` starts one and stops it; what the tests push goes over HTTP byte by byte, so digests stay what
the image builder made them. To one that wants tokens or speaks TLS nothing is pushed: push to a plain one in the same
directory first.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.commands import require, run, stop
from tests.support.images import MEDIA_TYPES, Image, Index

__all__ = ["RegistryServer", "start_docker_registry"]

_ACCEPT = ", ".join(types[name] for types in MEDIA_TYPES.values() for name in ("index", "manifest"))


class RegistryServer:
    """A running registry.

    Attributes:
        host: `127.0.0.1:<port>`, as it stands in references.
        storage: Where it keeps its files, for tests that damage them.
        log: Its output, for a failing test to show.
        credentials: User and password where it wants some.
        tls: Whether it speaks HTTPS.
    """

    def __init__(
        self, host: str, storage: Path, log: Path, credentials: tuple[str, str] | None = None, *, tls: bool = False
    ) -> None:
        self.host = host
        self.storage = storage
        self.log = log
        self.credentials = credentials
        self.tls = tls

    def reference(self, repository: str, tag: str) -> str:
        """`HOST/repository:tag`, or `HOST/repository@sha256:...` if `tag` is a digest."""
        return f"{self.host}/{repository}{'@' if ':' in tag else ':'}{tag}"

    def push(self, repository: str, tag: str, image: Image | Index) -> str:
        """Push an image, or move `tag` to it; return its reference."""
        for digest, content in image.blobs().items():
            self.push_blob(repository, digest, content)
        for digest, (media_type, content) in image.manifests().items():
            self.put_manifest(repository, digest, media_type, content)
        self.put_manifest(repository, tag, image.media_type, image.document)
        return self.reference(repository, tag)

    def push_layout(self, layout: Path, source: str, repository: str, tag: str) -> str:
        """Push the image that the OCI layout calls `source`, with its children; return its reference."""
        entries = json.loads((layout / "index.json").read_bytes())["manifests"]
        name = "org.opencontainers.image.ref.name"
        (entry,) = (each for each in entries if each.get("annotations", {}).get(name) == source)
        self._push_descriptor(layout, repository, entry)
        self.retag(repository, entry["digest"], tag)
        return self.reference(repository, tag)

    def retag(self, repository: str, source: str, tag: str) -> str:
        """Let `tag` mean what the tag or digest `source` means; return the reference."""
        media_type, content = self.manifest(repository, source)
        self.put_manifest(repository, tag, media_type, content)
        return self.reference(repository, tag)

    def manifest(self, repository: str, tag: str) -> tuple[str, bytes]:
        """Media type and content of what a tag or digest means."""
        status, headers, body = self.request("GET", f"/v2/{repository}/manifests/{tag}", headers={"Accept": _ACCEPT})
        self._expect(status == 200, f"GET manifest {repository}:{tag}", status, body)
        return headers["content-type"], body

    def digest(self, repository: str, tag: str) -> str:
        """What the registry answers for a tag."""
        status, headers, body = self.request("HEAD", f"/v2/{repository}/manifests/{tag}", headers={"Accept": _ACCEPT})
        self._expect(status == 200, f"HEAD manifest {repository}:{tag}", status, body)
        return headers["docker-content-digest"]

    def delete(self, repository: str, digest: str) -> None:
        """Delete a manifest, and with it every tag that means it."""
        status, _, body = self.request("DELETE", f"/v2/{repository}/manifests/{digest}")
        self._expect(status == 202, f"DELETE {repository}@{digest}", status, body)

    def put_manifest(self, repository: str, tag: str, media_type: str, content: bytes) -> None:
        """Push one manifest whose blobs and children are there."""
        path = f"/v2/{repository}/manifests/{tag}"
        status, _, body = self.request("PUT", path, content, {"Content-Type": media_type})
        self._expect(status == 201, f"PUT {path}", status, body)

    def blob_path(self, digest: str) -> Path:
        """The file in which the registry keeps a blob or manifest."""
        algorithm, _, hexdigits = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / hexdigits[:2] / hexdigits / "data"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request; status, headers by lower-case name, and body come back."""
        sent = dict(headers or {})
        if self.credentials:
            sent["Authorization"] = "Basic " + base64.b64encode(":".join(self.credentials).encode()).decode()
        connection = http.client.HTTPConnection(self.host, timeout=60)
        if self.tls:
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(self.host, timeout=60, context=context)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            content = response.read()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, content
        finally:
            connection.close()

    def _push_descriptor(self, layout: Path, repository: str, descriptor: Mapping[str, Any]) -> None:
        content = _layout_blob(layout, descriptor["digest"])
        document = json.loads(content)
        for child in document.get("manifests", ()):
            self._push_descriptor(layout, repository, child)
        for blob in (*document.get("layers", ()), *([document["config"]] if "config" in document else [])):
            self.push_blob(repository, blob["digest"], _layout_blob(layout, blob["digest"]))
        self.put_manifest(repository, descriptor["digest"], descriptor["mediaType"], content)

    def push_blob(self, repository: str, digest: str, content: bytes) -> None:
        """Push one blob, if it is not there."""
        if self.request("HEAD", f"/v2/{repository}/blobs/{digest}")[0] == 200:
            return
        status, headers, body = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        self._expect(status == 202, f"POST upload to {repository}", status, body)
        location = headers["location"].split(self.host, 1)[-1]
        path = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        status, _, body = self.request("PUT", path, content, {"Content-Type": "application/octet-stream"})
        self._expect(status == 201, f"PUT blob {digest}", status, body)

    def _expect(self, condition: bool, what: str, status: int, body: bytes) -> None:
        assert condition, f"{what}: {status} {body[:500]!r}\n{self.tail()}"

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


@contextmanager
def start_docker_registry(
    directory: Path,
    htpasswd: tuple[str, str] | None = None,
    *,
    certificate: tuple[Path, Path] | None = None,
    token: Mapping[str, str] | None = None,
    endpoint: Mapping[str, Any] | None = None,
) -> Iterator[RegistryServer]:
    """Run a registry of one's own for the length of a `with` block.

    Args:
        directory: For its storage, configuration and log; made if missing. What an earlier one stored is kept.
        htpasswd: User and password without which it answers 401.
        certificate: PEM files of certificate and key, to speak HTTPS.
        token: Its `auth.token` section: whose tokens it wants (`TokenServer.section`).
        endpoint: One of its `notifications.endpoints`: whom it tells what is pushed.
    """
    require("docker-registry", *(["htpasswd"] if htpasswd else []))
    directory.mkdir(parents=True, exist_ok=True)
    storage, log = directory / "storage", directory / "registry.log"
    last = ""
    for _ in range(5):
        # Another process may take the port between here and the start of the registry: then with another one.
        host = f"127.0.0.1:{free_port()}"
        configuration = directory / "config.json"  # YAML is a superset
        content = _configuration(directory, host, storage, htpasswd, certificate, token)
        if endpoint:
            content["notifications"] = {"endpoints": [dict(endpoint)]}
        configuration.write_text(json.dumps(content))
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["docker-registry", "serve", configuration],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={"PATH": "/usr/bin:/bin", "HOME": str(directory)},
            )
        server = RegistryServer(host, storage, log, htpasswd, tls=certificate is not None)
        try:
            if _answers(server, process):
                yield server
                return
            last = server.tail()
        finally:
            stop(process)
    raise AssertionError(f"docker-registry does not start:\n{last}")


def _configuration(
    directory: Path,
    host: str,
    storage: Path,
    htpasswd: tuple[str, str] | None,
    certificate: tuple[Path, Path] | None,
    token: Mapping[str, str] | None,
) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": host, "secret": "of no use to anybody"},
    }
    if htpasswd:
        passwords = directory / "htpasswd"
        passwords.write_text(run("htpasswd", "-Bbn", "-C", "4", *htpasswd))
        configuration["auth"] = {"htpasswd": {"realm": "tests", "path": str(passwords)}}
    if certificate:
        configuration["http"]["tls"] = {"certificate": str(certificate[0]), "key": str(certificate[1])}
    if token:
        configuration["auth"] = {"token": dict(token)}
    return configuration


def _answers(server: RegistryServer, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it answers; False if it has ended or does not answer for 20 seconds."""
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        try:
            status, headers, _ = server.request("GET", "/v2/")
        except OSError:
            time.sleep(0.02)
            continue
        return status in (200, 401) and "docker-distribution-api-version" in headers and process.poll() is None
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _layout_blob(layout: Path, digest: str) -> bytes:
    algorithm, _, hexdigits = digest.partition(":")
    return (layout / "blobs" / algorithm / hexdigits).read_bytes()
