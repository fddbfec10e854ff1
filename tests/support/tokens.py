"""A token server as `docker-registry` trusts it, and certificates made at test time.

Docker's token authentication: JWTs signed with RS256 by the key of a certificate that the registry has been given, the
certificate in the header's `x5c`. Keys and signatures are openssl's.
"""

from __future__ import annotations

import base64
import http.server
import json
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.commands import require, run

__all__ = ["TokenServer", "make_ca", "make_certificate"]


def make_ca(directory: Path) -> tuple[Path, Path]:
    """PEM files of a CA's certificate and key."""
    require("openssl")
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / "ca.pem", directory / "ca.key"
    names = ["-subj", "/CN=CA of the tests", "-addext", "keyUsage=critical,keyCertSign,digitalSignature"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files)
    return certificate, key


def make_certificate(directory: Path, ca: tuple[Path, Path], name: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """PEM files of a server's certificate, signed by the CA, and its key; `name` as in subjectAltName."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key, request, names = (directory / f"server.{end}" for end in ("pem", "key", "csr", "txt"))
    names.write_text(f"subjectAltName={name}\n")
    run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=server", "-out", request, "-keyout", key)
    signer = ["-CA", str(ca[0]), "-CAkey", str(ca[1]), "-CAcreateserial", "-days", "2"]
    run("openssl", "x509", "-req", "-in", request, *signer, "-extfile", names, "-out", certificate)
    return certificate, key


class TokenServer:
    """The server; a context manager.

    Attributes:
        users: Who gets tokens by Basic; without any, everybody gets one anonymously.
        grants: Repositories that tokens are given for; None for all.
        field: The answer's key.
        ages: How many seconds ago the next tokens shall have expired, one each; tokens after that are good.
        requests: Queries of the requests so far.
        issued: All tokens so far.
    """

    issuer = "tests"
    service = "registry of the tests"

    def __init__(self, directory: Path, users: Mapping[str, str] | None = None) -> None:
        """Listen, but serve only inside the `with` block; `directory` is for key and certificate."""
        self.certificate, self._key = make_ca(directory)
        self.users = dict(users or {})
        self.grants: set[str] | None = None
        self.field = "token"
        self.ages: list[float] = []
        self.requests: list[Mapping[str, list[str]]] = []
        self.issued: list[str] = []
        pem = self.certificate.read_text().split("-----")[2]
        self._chain = ["".join(pem.split())]
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.tokens = self
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def section(self) -> dict[str, str]:
        """What a registry has to be told to trust it."""
        own = {"realm": self.realm, "service": self.service, "issuer": self.issuer}
        return own | {"rootcertbundle": str(self.certificate)}

    def token(self, repository: str) -> str:
        """A signed token to pull from one repository."""
        now = time.time()
        end = now - self.ages.pop(0) if self.ages else now + 300
        allowed = self.grants is None or repository in self.grants
        access = [{"type": "repository", "name": repository, "actions": ["pull"]}] if allowed else []
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": "somebody",
            "aud": self.service,
            "jti": str(now),
            "access": access,
        }
        claims |= {"exp": int(end), "nbf": int(now - 86400), "iat": int(now)}
        signed = ".".join(map(_encode, ({"typ": "JWT", "alg": "RS256", "x5c": self._chain}, claims)))
        command = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True, timeout=60).stdout
        self.issued.append(f"{signed}.{_base64(signature)}")
        return self.issued[-1]


class _Server(http.server.ThreadingHTTPServer):
    tokens: TokenServer
    daemon_threads = True


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        tokens = self.server.tokens
        query = parse_qs(urlsplit(self.path).query)
        tokens.requests.append(query)
        kind, _, rest = query.get("scope", [""])[0].partition(":")
        repository, _, action = rest.rpartition(":")
        if not self._known() or (kind, action) != ("repository", "pull"):
            self.send_response(401)
            self.end_headers()
            return
        body = json.dumps({tokens.field: tokens.token(repository), "expires_in": 300}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def _known(self) -> bool:
        users = self.server.tokens.users
        shown = self.headers.get("Authorization", "").removeprefix("Basic ")
        user, _, password = base64.b64decode(shown).decode().partition(":")
        return not users or users.get(user) == password

    def log_message(self, *_: Any) -> None:
        """Keep test output clean."""


def _encode(part: object) -> str:
    return _base64(json.dumps(part).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
