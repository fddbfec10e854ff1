"""The client against Debian's `docker-registry`: tokens, TLS with a private CA, conditional requests, mirrors."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_sync.errors import AccessDenied, ImageError
from cvmfs_sync.image import Manifest, parse_document
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry import Credential, RegistryMemory, RegistrySettings, RegistrySource
from tests.support import Image, file, layer, run_cli, start_docker_registry
from tests.support.registry import RegistryServer
from tests.support.tokens import TokenServer, make_ca, make_certificate

INSECURE = RegistrySettings(insecure=True, requests_per_second=1000)
IMAGE = Image((layer(file("content", random.Random(3).randbytes(3_000_000))),))


class Known:
    """One credential for everybody."""

    def __init__(self, credential: Credential) -> None:
        self.credential = credential

    def find(self, registry: str) -> Credential:
        """The credential."""
        return self.credential


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A registry's directory with one image in it, `org/tool:1`."""
    with start_docker_registry(tmp_path / "registry") as server:
        server.push("org/tool", "1", IMAGE)
    return tmp_path / "registry"


@pytest.fixture
def token_server(tmp_path: Path) -> Iterator[TokenServer]:
    """A token server with one user."""
    with TokenServer(tmp_path / "tokens", {"alice": "pässword:1"}) as server:
        yield server


def name_in(server: RegistryServer) -> Reference:
    """The image."""
    return Reference.parse(server.reference("org/tool", "1"))


def pull(source: RegistrySource, name: Reference) -> list[bytes]:
    """All layers of an image."""
    content, digest, media_type = source.manifest(name, source.head(name))
    manifest = parse_document(content, digest, media_type, str(name))
    assert isinstance(manifest, Manifest)
    return [b"".join(source.blob(name, blob)) for blob in manifest.layers]


def blobs() -> list[bytes]:
    """The layers that were pushed."""
    document = json.loads(IMAGE.document)
    return [IMAGE.blobs()[blob["digest"]] for blob in document["layers"]]


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_tokens(stored: Path, token_server: TokenServer, field: str) -> None:
    """Behind a real registry's token authentication, one token serves for all of a repository."""
    token_server.field = field
    with start_docker_registry(stored, token=token_server.section) as server:
        source = RegistrySource(default=INSECURE, credentials=Known(Credential("alice", "pässword:1")))
        assert pull(source, name_in(server)) == blobs()
        source.close()
    scope = {"service": [token_server.service], "scope": ["repository:org/tool:pull"]}
    assert token_server.requests == [scope]


def test_anonymous_tokens(stored: Path, token_server: TokenServer) -> None:
    """A public repository behind a token server needs a token, and no user."""
    token_server.users.clear()
    with start_docker_registry(stored, token=token_server.section) as server:
        source = RegistrySource(default=INSECURE, credentials=Known(Credential()))
        assert pull(source, name_in(server)) == blobs()
        source.close()
    assert len(token_server.requests) == 1


def test_a_token_that_expires(stored: Path, token_server: TokenServer) -> None:
    """A token that the real registry takes for expired is renewed, and the work goes on; two in a row are the end."""
    # The registry's leeway is 60 seconds, so this one is good for some more.
    token_server.ages = [50]
    credentials = Known(Credential("alice", "pässword:1"))
    with start_docker_registry(stored, token=token_server.section) as server:
        source = RegistrySource(default=INSECURE, credentials=credentials)
        source.head(name_in(server))
        shown = {"Authorization": f"Bearer {token_server.issued[0]}"}
        while server.request("GET", "/v2/org/tool/tags/list", headers=shown)[0] == 200:
            time.sleep(0.2)
        assert pull(source, name_in(server)) == blobs()
        source.close()
        assert len(token_server.requests) == 2
        token_server.ages = [3600, 3600]
        source = RegistrySource(default=INSECURE, credentials=credentials)
        with pytest.raises(AccessDenied):
            source.head(name_in(server))
        source.close()


@pytest.mark.parametrize("credential", [Credential(), Credential("alice", "wr0ng-secret")])
def test_no_token_without_the_password(stored: Path, token_server: TokenServer, credential: Credential) -> None:
    """A token server that refuses is denied access, without the password in the message."""
    with start_docker_registry(stored, token=token_server.section) as server:
        source = RegistrySource(default=INSECURE, credentials=Known(credential))
        with pytest.raises(AccessDenied, match="refuses access") as caught:
            source.head(name_in(server))
        source.close()
    assert "wr0ng" not in str(caught.value)


def test_a_token_that_allows_nothing(stored: Path, token_server: TokenServer) -> None:
    """A token without access to the repository ends as denied access, not as a missing image."""
    token_server.grants = {"org/other"}
    with start_docker_registry(stored, token=token_server.section) as server:
        source = RegistrySource(default=INSECURE, credentials=Known(Credential("alice", "pässword:1")))
        with pytest.raises(AccessDenied):
            source.head(name_in(server))
        source.close()


def test_a_private_ca(stored: Path, tmp_path: Path) -> None:
    """`ca_file` lets its CA's certificates in, and those of no other."""
    ca = make_ca(tmp_path / "ca")
    certificate = make_certificate(tmp_path / "tls", ca)
    other, _ = make_ca(tmp_path / "other")
    with start_docker_registry(stored, certificate=certificate) as server:
        for file_, good in ((ca[0], True), (other, False), (None, False)):
            source = RegistrySource({server.host: RegistrySettings(ca_file=file_)}, credentials=Known(Credential()))
            if good:
                assert pull(source, name_in(server)) == blobs()
            else:
                with pytest.raises(ImageError, match=r"certificate .* is not to be trusted.*ca_file"):
                    source.head(name_in(server))
            source.close()


def test_ca_file_outranks_the_environment(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUESTS_CA_BUNDLE adds nothing where a CA is named: neither does it let one in, nor keep one out."""
    ca, other = make_ca(tmp_path / "ca"), make_ca(tmp_path / "other")
    with start_docker_registry(stored, certificate=make_certificate(tmp_path / "tls", ca)) as server:
        for bundle, named, good in ((other, ca, True), (ca, other, False)):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle[0]))
            settings = {server.host: RegistrySettings(ca_file=named[0])}
            source = RegistrySource(settings, credentials=Known(Credential()))
            if good:
                source.head(name_in(server))
            else:
                with pytest.raises(ImageError, match="certificate"):
                    source.head(name_in(server))
            source.close()


def test_a_certificate_for_another_host(stored: Path, tmp_path: Path) -> None:
    """A trusted CA's certificate for another name is not to be trusted."""
    ca = make_ca(tmp_path / "ca")
    certificate = make_certificate(tmp_path / "tls", ca, "DNS:other.example.org")
    with start_docker_registry(stored, certificate=certificate) as server:
        settings = {server.host: RegistrySettings(ca_file=ca[0])}
        source = RegistrySource(settings, credentials=Known(Credential()))
        with pytest.raises(ImageError, match=r"not to be trusted; found: .*127\.0\.0\.1"):
            source.head(name_in(server))
        source.close()


def test_etags(docker_registry: RegistryServer) -> None:
    """A real registry answers the second HEAD with 304, and with the new digest when the tag has moved."""
    name = Reference.parse(docker_registry.push("etags/tool", "1", IMAGE))
    memory = RegistryMemory()
    heads: list[Digest] = []
    for _ in range(2):
        source = RegistrySource(default=INSECURE, credentials=Known(Credential()), memory=memory)
        heads.append(source.head(name))
        source.close()
    docker_registry.push("etags/tool", "1", Image((layer(file("other", b"x")),)))
    source = RegistrySource(default=INSECURE, credentials=Known(Credential()), memory=memory)
    heads.append(source.head(name))
    source.close()
    assert heads[0] == heads[1] != heads[2]
    assert str(heads[2]) == docker_registry.digest("etags/tool", "1")
    assert memory.requests()[docker_registry.host, "not_modified"] == 1
    assert memory.requests()[docker_registry.host, "ok"] == 2


def test_through_the_command_line(stored: Path, tmp_path: Path, token_server: TokenServer) -> None:
    """`credentials` and `ca_file` let a cycle publish from registries with tokens and TLS; without, it does not."""
    # The token server speaks plain HTTP, which a registry with TLS must not send anybody to: so one after the other.
    ca = make_ca(tmp_path / "ca")
    (tmp_path / "ca.pem").write_bytes(ca[0].read_bytes())
    certificate = make_certificate(tmp_path / "tls", ca)
    for tls in (True, False):
        section = None if tls else token_server.section
        with start_docker_registry(stored, certificate=certificate if tls else None, token=section) as server:
            (tmp_path / "image-list.yaml").write_text(f"version: 1\nimages: ['{server.host}/org/tool:1']\n")
            entry = {"auth": base64.b64encode("alice:pässword:1".encode()).decode()}
            (tmp_path / "login.json").write_text(json.dumps({"auths": {server.host: entry}}))
            (tmp_path / "login.json").chmod(0o600)
            config = tmp_path / "cvmfs-sync.yaml"
            options = {"ca_file": "ca.pem"} if tls else {"insecure": True, "credentials": "login.json"}
            config.write_text(json.dumps({"registries": {server.host: options}}))
            run_cli("sync", cwd=tmp_path).ok()
            config.write_text(json.dumps({"registries": {server.host: {"insecure": not tls}}}))
            failed = run_cli("plan", cwd=tmp_path).ok(1)
            assert ("ca_file" if tls else "refuses access") in failed.stdout + failed.stderr
            assert (tmp_path / "published" / server.host / "org/tool:1/content").exists()
