"""A registry on loopback whose faults a test scripts: what real registries do rarely, on demand.

A real HTTP server (OCI distribution-spec, pull half) on a free port, contents in memory. Every request is recorded.
`127.0.0.1` and `localhost` are two hosts to a client, so one server serves as its own CDN or token server, too.

    with ScriptableRegistry() as registry:
        image = registry.add_image("org/tool", "1.0", layers=[tar_bytes])
        registry.fail(r"/blobs/", status=503, headers={"Retry-After": "7"}, times=2)
        ...  # ask f"{registry.host}/org/tool:1.0", with insecure=True
        assert registry.paths("GET") == [...]

Faults are tried in the order in which they were scripted; the first that matches method and path, and has `times` left,
applies. What it does not do: pushes, referrers, deleting.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import io
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_TRICKLE = 1024
_TRICKLE_SECONDS = 0.25


@dataclass(frozen=True)
class RecordedRequest:
    """What a client asked. `headers` has lower-case names."""

    method: str
    path: str
    query: str
    host: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class FakeImage:
    """An image that was added: digests as text, documents as bytes."""

    digest: str
    manifest: bytes
    media_type: str
    config_digest: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class TokenAuth:
    """Bearer tokens from the server's own `/token`.

    Attributes:
        users: Who gets tokens by Basic; without any, everybody gets one anonymously.
        identity_tokens: What the POST grant takes.
        realm: Another realm than the server's own; `{port}` is replaced.
        field: The answer's key.
        expires_in: As the answer says; None leaves it out.
    """

    users: Mapping[str, str] = field(default_factory=dict)
    identity_tokens: tuple[str, ...] = ()
    realm: str | None = None
    field: str = "token"
    expires_in: Any = 300


@dataclass(frozen=True)
class BasicAuth:
    """Basic with these users."""

    users: Mapping[str, str]


@dataclass
class _Fault:
    pattern: re.Pattern[str]
    method: str | None
    times: int | None
    act: Callable[[_Handler], bool]
    """Does something to the answer; True if the request is thereby answered."""

    def applies(self, method: str, path: str) -> bool:
        if self.times == 0 or (self.method or method) != method or not self.pattern.search(path):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class ScriptableRegistry:
    """The server; a context manager.

    Attributes:
        port: The free port that was found.
        requests: All requests so far, in the order in which they came.
        connections: How many connections were made.
        content_digest: Whether answers have Docker-Content-Digest.
        etags: Whether manifests have an ETag, and If-None-Match is answered with 304 where it fits.
        headers: Further headers of all answers.
        ranges: Whether Range is answered with 206; else with 200 and everything.
        page_size: Tags in a page, whatever the client asks for; None for all.
        link: What goes around the next page's path and query in Link; `{host}` is replaced.
    """

    def __init__(
        self,
        *,
        auth: TokenAuth | BasicAuth | None = None,
        page_size: int | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """Listen, but serve only inside the `with` block.

        Args:
            auth: What clients must show; nothing if None.
            page_size: See the class.
            certificate: PEM files of certificate and key, to speak HTTPS.
        """
        self.auth = auth
        self.page_size = page_size
        self.content_digest = True
        self.etags = False
        self.headers: dict[str, str] = {}
        self.ranges = True
        self.link = '<{next}>; rel="next"'
        self.requests: list[RecordedRequest] = []
        self.connections = 0
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.lock = threading.Lock()
        self.faults: list[_Fault] = []
        self.tokens: dict[str, str] = {}
        self._issued = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.registry = self
        self.port: int = self._server.server_address[1]
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and close the port and all connections."""
        self._server.shutdown()
        self._server.server_close()
        self._server.drop_connections()
        self._thread.join()

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`, a registry's name in references."""
        return f"127.0.0.1:{self.port}"

    @property
    def alias(self) -> str:
        """`localhost:PORT`: the same server under another host's name."""
        return f"localhost:{self.port}"

    def paths(self, method: str | None = None) -> list[str]:
        """Paths of the requests so far, token requests left out."""
        return [r.path for r in self.requests if r.path != "/token" and method in (None, r.method)]

    def push_blob(self, content: bytes) -> str:
        """Add a blob to all repositories; returns its digest."""
        digest = sha256(content)
        self.blobs[digest] = content
        return digest

    def put_manifest(self, repository: str, tag: str | None, content: bytes, media_type: str = OCI_MANIFEST) -> str:
        """Add a document as it is, well-formed or not; returns its digest."""
        digest = sha256(content)
        for name in (digest, tag):
            if name is not None:
                self.manifests[repository, name] = (content, media_type)
        return digest

    def add_image(
        self,
        repository: str,
        tag: str | None,
        layers: Sequence[bytes] = (),
        *,
        config: Mapping[str, Any] | None = None,
        platform: str = "linux/amd64",
        docker: bool = False,
        diff_ids: Sequence[str] | None = None,
    ) -> FakeImage:
        """Add an image.

        Args:
            repository: Name without the host.
            tag: Its tag, or None.
            layers: Blobs, bottom to top: tar, plain or compressed with gzip or zstd.
            config: Put into the configuration document; `config`, the inner object, is where Env and Cmd go.
            platform: For the configuration.
            docker: With Docker's media types, not OCI's.
            diff_ids: Instead of the right ones; needed for zstd.
        """
        configuration = to_json(
            {
                **_platform(platform),
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(_diff_id, layers))},
                **(config or {}),
            }
        )
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        manifest = to_json(
            {
                "schemaVersion": 2,
                "mediaType": media_type,
                "config": self._descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, configuration),
                "layers": [self._descriptor(_layer_type(layer, docker=docker), layer) for layer in layers],
            }
        )
        return FakeImage(
            digest=self.put_manifest(repository, tag, manifest, media_type),
            manifest=manifest,
            media_type=media_type,
            config_digest=sha256(configuration),
            layers=tuple(map(sha256, layers)),
        )

    def add_index(self, repository: str, tag: str | None, images: Mapping[str, FakeImage]) -> str:
        """Tag an index of images by platform; returns its digest."""
        entries = []
        for platform, image in images.items():
            descriptor = {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest)}
            entries.append({**descriptor, "platform": _platform(platform)})
        content = to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
        return self.put_manifest(repository, tag, content, OCI_INDEX)

    def delete(self, repository: str, tag: str) -> None:
        """Forget a tag or, by digest, a manifest."""
        del self.manifests[repository, tag]

    def tags(self, repository: str) -> list[str]:
        """Tags of a repository, sorted."""
        return sorted(tag for name, tag in self.manifests if name == repository and ":" not in tag)

    def revoke_tokens(self) -> None:
        """Let all tokens that were given out be expired."""
        self.tokens.clear()

    def fail(
        self,
        path_regex: str,
        *,
        status: int = 503,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        times: int | None = None,
        method: str | None = None,
    ) -> None:
        """Answer with this status, these headers and this body (for 2xx too: whatever is to be said)."""
        self._script(path_regex, times, method, lambda handler: handler.answer(status, body, headers or {}))

    def redirect(
        self,
        path_regex: str,
        location: str | Callable[[str], str],
        *,
        status: int = 307,
        times: int | None = None,
        method: str | None = None,
    ) -> None:
        """Redirect to a URL, or to what a function makes of the path."""

        def act(handler: _Handler) -> bool:
            target = location if isinstance(location, str) else location(handler.path)
            return handler.answer(status, b"", {"Location": target})

        self._script(path_regex, times, method, act)

    def truncate(self, path_regex: str, after: int, *, times: int | None = None) -> None:
        """Promise the whole body, send so many bytes of it, and cut the connection."""

        def act(handler: _Handler) -> bool:
            handler.cut_after = after
            return False

        self._script(path_regex, times, "GET", act)

    def corrupt(self, path_regex: str, *, times: int | None = None) -> None:
        """Send a body of the right length with one bit changed."""

        def act(handler: _Handler) -> bool:
            handler.corrupted = True
            return False

        self._script(path_regex, times, "GET", act)

    def drop(self, path_regex: str, *, times: int | None = None, method: str | None = None) -> None:
        """Close the connection without an answer."""

        def act(handler: _Handler) -> bool:
            handler.hang_up()
            return True

        self._script(path_regex, times, method, act)

    def delay(self, path_regex: str, seconds: float, *, times: int | None = None) -> None:
        """Wait before answering."""

        def act(handler: _Handler) -> bool:
            time.sleep(seconds)
            return False

        self._script(path_regex, times, None, act)

    def drip(self, path_regex: str, seconds: float, *, head: bool, times: int | None = None) -> None:
        """Send the body, or head and body, byte by byte, so many seconds apart, until the client hangs up."""

        def act(handler: _Handler) -> bool:
            handler.pause = seconds
            if head:
                handler.wfile = _Dripping(handler.wfile, handler)
            return False

        self._script(path_regex, times, None, act)

    def hold(self, path_regex: str, *stops: int) -> tuple[threading.Event, ...]:
        """Send the body so far, and then next to nothing, until the event that comes back for the stop is set."""
        held = tuple((stop, threading.Event()) for stop in stops)

        def act(handler: _Handler) -> bool:
            handler.held = held
            return False

        self._script(path_regex, None, "GET", act)
        return tuple(event for _, event in held)

    def before(self, path_regex: str, action: Callable[[], object], *, times: int | None = None) -> None:
        """Do something else when a request comes, then answer it as usual."""

        def act(handler: _Handler) -> bool:
            action()
            return False

        self._script(path_regex, times, None, act)

    def heal(self) -> None:
        """Forget all scripted faults."""
        self.faults.clear()

    def issue_token(self, repository: str) -> str:
        """A new token for one repository."""
        self._issued += 1
        token = f"token-{self._issued}-for-{repository}"
        self.tokens[token] = repository
        return token

    def _script(self, path_regex: str, times: int | None, method: str | None, act: Callable[[_Handler], bool]) -> None:
        self.faults.append(_Fault(re.compile(path_regex), method, times, act))

    def _descriptor(self, media_type: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": self.push_blob(content), "size": len(content)}


class _Dripping(io.BufferedIOBase):
    """A stream that takes its time."""

    def __init__(self, stream: io.BufferedIOBase, handler: _Handler) -> None:
        self.stream = stream
        self._handler = handler

    def write(self, content: Any) -> int:
        """Byte by byte."""
        for byte in content:
            self.stream.write(bytes([byte]))
            self.stream.flush()
            time.sleep(self._handler.pause)
        return len(content)


class _Server(http.server.ThreadingHTTPServer):
    registry: ScriptableRegistry
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._sockets: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.registry.lock:
            self.registry.connections += 1
            self._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.registry.lock:
            self._sockets.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        with self.registry.lock:
            sockets = list(self._sockets)
        for connection in sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # already gone

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of tests hang up."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    cut_after: int | None = None
    corrupted = False
    pause = 0.0
    held: tuple[tuple[int, threading.Event], ...] = ()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *_: Any) -> None:
        """Keep test output clean."""

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bool:
        """Send it all; with the scripted damage."""
        sent = bytes([body[0] ^ 1]) + body[1:] if self.corrupted and body else body
        self.send_response(status)
        lower = {name.lower() for name in headers or {}}
        if not lower & {"content-length", "transfer-encoding"}:
            self.send_header("Content-Length", str(len(body)))
        for name, value in {**self.server.registry.headers, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return True
        if self.cut_after is not None and self.cut_after < len(sent):
            self.wfile.write(sent[: self.cut_after])
            self.hang_up()
        else:
            sent = self._hold(sent)
            (_Dripping(self.wfile, self) if self.pause else self.wfile).write(sent)
            if "content-length" in lower or "transfer-encoding" in lower:
                self.close_connection = True  # whoever sets the length himself may be lying
        return True

    def hang_up(self) -> None:
        """Close the connection now."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _hold(self, body: bytes) -> bytes:
        """Send what is held at stops; the rest of the body."""
        sent = 0
        for stop, event in self.held:
            self.wfile.write(body[sent:stop])
            sent = max(sent, stop)
            # A little goes on coming, or the client would take the connection for dead.
            while not event.wait(_TRICKLE_SECONDS):
                self.wfile.write(body[sent : sent + _TRICKLE])
                sent += _TRICKLE
        return body[sent:]

    def _serve(self) -> None:
        registry = self.server.registry
        self.cut_after, self.corrupted, self.pause, self.held = None, False, 0.0, ()
        while isinstance(self.wfile, _Dripping):
            self.wfile = self.wfile.stream
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with registry.lock:
            registry.requests.append(
                RecordedRequest(
                    self.command,
                    url.path,
                    url.query,
                    self.headers.get("Host", ""),
                    {name.lower(): value for name, value in self.headers.items()},
                    body,
                )
            )
            fault = next((fault for fault in registry.faults if fault.applies(self.command, self.path)), None)
        if fault is not None and fault.act(self):
            return
        if url.path == "/token":
            self._token(parse_qs(url.query), body)
        elif self._authorized(url.path):
            self._content(url.path, url.query)

    def _authorized(self, path: str) -> bool:
        registry = self.server.registry
        shown = self.headers.get("Authorization", "")
        match = re.match(r"/v2/(.+)/(?:manifests|blobs|tags)/", path)
        repository = match[1] if match else ""
        auth = registry.auth
        if auth is None:
            return True
        if isinstance(auth, BasicAuth):
            challenge = 'Basic realm="a realm, with a comma"'
            good = _basic_user(shown) in auth.users.items()
        else:
            realm = (auth.realm or f"{registry.scheme}://127.0.0.1:{{port}}/token").format(port=registry.port)
            scope = f"repository:{repository}:pull"
            challenge = f'Bearer realm="{realm}",service="scriptable",scope="{scope}"'
            good = shown.startswith("Bearer ") and registry.tokens.get(shown[7:]) == repository
        if not good:
            self.answer(401, error_document("UNAUTHORIZED", "authentication required"), {"WWW-Authenticate": challenge})
        return good

    def _token(self, query: Mapping[str, list[str]], body: bytes) -> None:
        registry = self.server.registry
        auth = registry.auth
        if not isinstance(auth, TokenAuth):
            self.answer(404)
            return
        if self.command == "POST":
            query = parse_qs(body.decode())
            good = query.get("refresh_token", [""])[0] in auth.identity_tokens
        else:
            good = not auth.users or _basic_user(self.headers.get("Authorization", "")) in auth.users.items()
        match = re.fullmatch(r"repository:(.+):pull", query.get("scope", [""])[0])
        if not good or match is None:
            self.answer(401, error_document("UNAUTHORIZED", "wrong credentials"))
            return
        with registry.lock:
            document: dict[str, Any] = {auth.field: registry.issue_token(match[1])}
        if auth.expires_in is not None:
            document["expires_in"] = auth.expires_in
        self.answer(200, to_json(document), {"Content-Type": "application/json"})

    def _content(self, path: str, query: str) -> None:
        registry = self.server.registry
        if match := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            found = registry.manifests.get((match[1], match[2]))
            if found is None:
                self.answer(404, error_document("MANIFEST_UNKNOWN", "manifest unknown"), _JSON)
                return
            content, media_type = found
            headers = {"Content-Type": media_type}
            if registry.content_digest:
                headers["Docker-Content-Digest"] = sha256(content)
            if registry.etags:
                headers["ETag"] = f'"{sha256(content)}"'
                if self.headers.get("If-None-Match") == headers["ETag"]:
                    self.answer(304, b"", {"ETag": headers["ETag"]})
                    return
            self._document(content, headers)
        elif match := re.fullmatch(r"/v2/(.+)/blobs/([^/]+)", path):
            blob = registry.blobs.get(match[2])
            if blob is None:
                self.answer(404, error_document("BLOB_UNKNOWN", "blob unknown to registry"), _JSON)
            else:
                self._blob(blob)
        elif match := re.fullmatch(r"/v2/(.+)/tags/list", path):
            self._tags(match[1], parse_qs(query))
        else:
            self.answer(200 if path == "/v2/" else 404)

    def _document(self, content: bytes, headers: Mapping[str, str]) -> None:
        if self.command == "HEAD":
            headers = {**headers, "Content-Length": str(len(content))}
        self.answer(200, content, headers)

    def _blob(self, blob: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None or not self.server.registry.ranges:
            self._document(blob, headers)
            return
        start = int(match[1])
        if start >= len(blob):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(blob)}"})
            return
        end = min(int(match[2]) + 1, len(blob)) if match[2] else len(blob)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(blob)}"
        self.answer(206, blob[start:end], headers)

    def _tags(self, repository: str, query: Mapping[str, list[str]]) -> None:
        registry = self.server.registry
        tags = registry.tags(repository)
        if not any(name == repository for name, _ in registry.manifests):
            self.answer(404, error_document("NAME_UNKNOWN", "repository name not known to registry"), _JSON)
            return
        if last := query.get("last", [""])[0]:
            tags = [tag for tag in tags if tag > last]
        headers = dict(_JSON)
        size = registry.page_size
        if size is not None and len(tags) > size:
            tags = tags[:size]
            following = f"/v2/{repository}/tags/list?last={tags[-1]}&n={size}"
            headers["Link"] = registry.link.format(next=following, host=registry.host)
        self.answer(200, to_json({"name": repository, "tags": tags}), headers)


_JSON = {"Content-Type": "application/json"}


def sha256(content: bytes) -> str:
    """The digest as registries write it."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def to_json(document: object) -> bytes:
    """A document's bytes."""
    return json.dumps(document).encode()


def error_document(code: str, message: str) -> bytes:
    """An error as the distribution-spec wants it."""
    return to_json({"errors": [{"code": code, "message": message}]})


def chunked(pieces: Sequence[bytes]) -> bytes:
    """A body for `Transfer-Encoding: chunked`, without the last, empty chunk that ends it."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def write_layout(directory: Path, tags: Mapping[str, Sequence[bytes]]) -> dict[str, FakeImage]:
    """Write images, given as layers by tag, as an OCI layout instead of serving them."""
    with ScriptableRegistry() as registry:
        images = {tag: registry.add_image("x", tag, layers) for tag, layers in tags.items()}
    directory.mkdir(parents=True, exist_ok=True)
    for content in (*registry.blobs.values(), *(image.manifest for image in images.values())):
        path = directory / "blobs" / sha256(content).replace(":", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    entries = [
        {
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": len(image.manifest),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }
        for tag, image in images.items()
    ]
    (directory / "index.json").write_bytes(to_json({"schemaVersion": 2, "manifests": entries}))
    (directory / "oci-layout").write_bytes(to_json({"imageLayoutVersion": "1.0.0"}))
    return images


def _platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def _diff_id(layer: bytes) -> str:
    return sha256(gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer)


def _layer_type(layer: bytes, *, docker: bool) -> str:
    base = DOCKER_LAYER if docker else OCI_LAYER
    if layer.startswith(b"\x1f\x8b"):
        return base + (".gzip" if docker else "+gzip")
    return base + ("+zstd" if layer.startswith(b"\x28\xb5\x2f\xfd") and not docker else "")


def _basic_user(header: str) -> tuple[str, str]:
    """User and password that an Authorization header shows."""
    try:
        user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
    except ValueError:
        return "", ""
    return user, password
