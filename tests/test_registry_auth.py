"""`registry.auth` and `registry.credentials`: who gets in, and where secrets go."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import AccessDenied, ImageError, RegistryUnavailable
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry import Credential, DockerCredentials, RegistrySettings, RegistrySource, Timing
from cvmfs_sync.registry.auth import Challenge, parse_challenges
from tests.fakes.scriptable_registry import BasicAuth, ScriptableRegistry, TokenAuth, error_document
from tests.support import run

SECRET = "pl4nted-s3cret"
BODY = bytes(range(256)) * 10_000


class FixedCredentials:
    """The same credential for every registry; notes who asked."""

    def __init__(self, credential: Credential) -> None:
        self.credential = credential
        self.asked: list[str] = []

    def find(self, registry: str) -> Credential:
        """The credential."""
        self.asked.append(registry)
        return self.credential


Connect = Callable[..., RegistrySource]


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients for plain HTTP, anonymous unless told otherwise, that do not wait."""
    clients: list[RegistrySource] = []

    def make(credential: Credential | None = None, *, config: Path | None = None, **timing: Any) -> RegistrySource:
        credentials = DockerCredentials(config) if config else FixedCredentials(credential or Credential())
        settings = RegistrySettings(insecure=True)
        quick = Timing(**({"sleep": lambda _: None} | timing))
        clients.append(RegistrySource(default=settings, credentials=credentials, timing=quick))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def ref(server: ScriptableRegistry, rest: str = "org/tool:1") -> Reference:
    """A reference into the server."""
    return Reference.parse(f"{server.host}/{rest}")


def basic(user: str, password: str) -> str:
    """The header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def write_config(directory: Path, content: object) -> Path:
    """A config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_helper(directory: Path, name: str, body: str) -> Path:
    """A credential helper on its own PATH directory."""
    directory.mkdir(exist_ok=True)
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return directory


# --- challenges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Bearer realm="https://a/t",service="s"', [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('BEARER Realm = "https://a/t" , SERVICE="s"', [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('Basic realm="a, b=\\"c\\""', [("basic", {"realm": 'a, b="c"'})]),
        ("Basic realm=plain", [("basic", {"realm": "plain"})]),
        ('Basic realm=""', [("basic", {"realm": ""})]),
        ("Basic", [("basic", {})]),
        ("Negotiate, Basic", [("negotiate", {}), ("basic", {})]),
        (
            'Basic realm="x", Bearer realm="https://a",scope="repository:a:pull,push"',
            [("basic", {"realm": "x"}), ("bearer", {"realm": "https://a", "scope": "repository:a:pull,push"})],
        ),
        ('NTLM dGVzdA==, Basic realm="x"', [("ntlm", {}), ("basic", {"realm": "x"})]),
        ('Bearer realm="first",realm="second"', [("bearer", {"realm": "first"})]),
        (",, ,Basic realm=x,,", [("basic", {"realm": "x"})]),
        ('Bearer realm="unterminated', [("bearer", {})]),
        ('="x"', []),
        ("", []),
        ('"quoted"', []),
        ("Basic " + "," * 100_000, [("basic", {})]),
        ("a" * 100_000, [("a" * 16384, {})]),
    ],
)
def test_challenges(text: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """WWW-Authenticate is read by its grammar; nonsense ends the reading, not the program."""
    assert parse_challenges(text) == tuple(Challenge(scheme, parameters) for scheme, parameters in expected)


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_anonymous_token(connect: Connect, field: str) -> None:
    """A public image behind a token server needs one token, in either spelling, for pulling this repository only."""
    with ScriptableRegistry(auth=TokenAuth(field=field)) as registry:
        image = registry.add_image("org/tool", "1")
        source = connect()
        for _ in range(3):
            assert str(source.head(ref(registry))) == image.digest
        assert [r.path for r in registry.requests] == [
            "/v2/org/tool/manifests/1",
            "/token",
            *["/v2/org/tool/manifests/1"] * 3,
        ]
        token_request = registry.requests[1]
        assert token_request.query == "service=scriptable&scope=repository%3Aorg%2Ftool%3Apull"
        assert "authorization" not in token_request.headers


def test_other_repositories_need_no_other_401(connect: Connect) -> None:
    """Once the token server is known, each further repository costs its token and its HEAD."""
    with ScriptableRegistry(auth=TokenAuth()) as registry:
        source = connect()
        for number in range(5):
            registry.add_image(f"org/tool{number}", "1")
            source.head(ref(registry, f"org/tool{number}:1"))
        assert len(registry.requests) == 1 + 5 * 2


def test_token_with_a_password(connect: Connect) -> None:
    """The password goes to the token server only, the token to the registry only."""
    with ScriptableRegistry(auth=TokenAuth(users={"alice": SECRET})) as registry:
        image = registry.add_image("org/tool", "1")
        assert str(connect(Credential("alice", SECRET)).head(ref(registry))) == image.digest
        sent = [(r.path.split("/")[1], r.headers.get("authorization")) for r in registry.requests]
        token = "Bearer token-1-for-org/tool"
        assert sent == [("v2", None), ("token", basic("alice", SECRET)), ("v2", token)]


def test_identity_token(connect: Connect) -> None:
    """An identity token is exchanged by POST, in the body, with the scope of this repository."""
    with ScriptableRegistry(auth=TokenAuth(identity_tokens=(SECRET,), field="access_token")) as registry:
        image = registry.add_image("org/tool", "1")
        assert str(connect(Credential(identity_token=SECRET)).head(ref(registry))) == image.digest
        request = registry.requests[1]
        assert request.method == "POST"
        assert request.query == ""
        assert set(request.body.decode().split("&")) == {
            "grant_type=refresh_token",
            "service=scriptable",
            "scope=repository%3Aorg%2Ftool%3Apull",
            "client_id=cvmfs-sync",
            f"refresh_token={SECRET}",
        }


def test_an_expired_token_is_renewed_before_it_is_refused(connect: Connect) -> None:
    """`expires_in` is kept, with a margin."""
    now = [0.0]
    with ScriptableRegistry(auth=TokenAuth(expires_in=300)) as registry:
        registry.add_image("org/tool", "1")
        source = connect(clock=lambda: now[0])
        for now[0] in (0.0, 290.0, 296.0, 500.0):
            source.head(ref(registry))
        assert [r.path for r in registry.requests].count("/token") == 2
        assert len(registry.requests) == 1 + 4 + 2


@pytest.mark.parametrize("expires_in", [None, "soon", True, -1, 0, [], {}])
def test_without_expiry_a_token_lives_a_minute(connect: Connect, expires_in: object) -> None:
    """The specification's default holds where the answer says nothing of use."""
    now = [0.0]
    with ScriptableRegistry(auth=TokenAuth(expires_in=expires_in)) as registry:
        registry.add_image("org/tool", "1")
        source = connect(clock=lambda: now[0])
        for now[0] in (0.0, 50.0, 56.0):
            source.head(ref(registry))
        assert [r.path for r in registry.requests].count("/token") == 2


def test_a_token_refused_in_the_middle_of_a_download(connect: Connect) -> None:
    """A cut download whose token has expired meanwhile gets a new token and goes on where it was."""
    with ScriptableRegistry(auth=TokenAuth()) as registry:
        registry.add_image("org/tool", "1")
        descriptor = Descriptor("x", Digest.parse(registry.push_blob(BODY)), len(BODY))
        registry.truncate("/blobs/", len(BODY), times=1)  # the first request, a 401, uses it up
        registry.truncate("/blobs/", 1_100_000, times=1)
        source = connect()
        pieces = source.blob(ref(registry), descriptor)
        got = [next(pieces)]
        registry.revoke_tokens()
        got.extend(pieces)
        assert b"".join(got) == BODY
        ranges = [r.headers.get("range") for r in registry.requests if "/blobs/" in r.path]
        assert ranges == [None, None, "bytes=1100000-", "bytes=1100000-"]


def test_a_server_that_refuses_its_own_tokens(connect: Connect) -> None:
    """A second 401 in a row is the end, as denied access."""
    with ScriptableRegistry(auth=TokenAuth()) as registry:
        registry.fail("/v2/", status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{registry.host}/token"'})
        with pytest.raises(AccessDenied):
            connect().head(ref(registry))
        assert len(registry.requests) == 3


def test_threads_share_a_token(connect: Connect) -> None:
    """Many threads that need a repository's token at once get it with one request."""
    with ScriptableRegistry(auth=TokenAuth()) as registry:
        registry.add_image("org/tool", "1")
        source = connect()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: source.head(ref(registry)), range(32)))
        assert [r.path for r in registry.requests].count("/token") == 1


def test_threads_share_the_libraries() -> None:
    """Threads that need a library at once, and for the first time, all get the whole of it."""
    script = """
import threading
from cvmfs_sync.registry import auth, credentials
start, failed = threading.Barrier(8), []
def work():
    start.wait()
    try:
        auth._oras().auth.utils.get_basic_auth, auth._oras().auth.get_auth_backend
        credentials._docker().auth.load_config, credentials._docker().errors
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
"""
    run(sys.executable, "-c", script)


@pytest.mark.parametrize("scheme", ["token", "basic"])
def test_wrong_password(connect: Connect, scheme: str) -> None:
    """Wrong credentials are told from missing ones; the password is in no message."""
    auth = TokenAuth(users={"alice": "right"}) if scheme == "token" else BasicAuth({"alice": "right"})
    with ScriptableRegistry(auth=auth) as registry:
        registry.add_image("org/tool", "1")
        with pytest.raises(AccessDenied, match=r"with the credentials of Docker's config\.json") as caught:
            connect(Credential("alice", SECRET)).head(ref(registry))
        assert SECRET not in str(caught.value)
        with pytest.raises(AccessDenied, match="docker login"):
            connect().head(ref(registry))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_token_server_down(connect: Connect, status: int) -> None:
    """A failing token server is temporary and denies nothing."""
    with ScriptableRegistry(auth=TokenAuth()) as registry:
        registry.fail("^/token", status=status)
        with pytest.raises(RegistryUnavailable, match=str(status)):
            connect().head(ref(registry))


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"token": 5}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}', b'{"token": "\xc3\xa9"}'],
)
def test_answers_without_a_token(connect: Connect, body: bytes) -> None:
    """What can't be a token is not sent."""
    with ScriptableRegistry(auth=TokenAuth()) as registry:
        registry.fail("^/token", status=200, body=body)
        with pytest.raises(RegistryUnavailable, match="token"):
            connect().head(ref(registry))
        assert len(registry.paths()) == 1


# --- Basic ------------------------------------------------------------------------------------------------------------


def test_basic(connect: Connect) -> None:
    """A password is sent once it was asked for, and with each request from then on."""
    with ScriptableRegistry(auth=BasicAuth({"alice": "pä:ss"})) as registry:
        image = registry.add_image("org/tool", "1")
        source = connect(Credential("alice", "pä:ss"))
        assert str(source.head(ref(registry))) == image.digest
        source.manifest(ref(registry))
        sent = [r.headers.get("authorization") for r in registry.requests]
        assert sent == [None, *[basic("alice", "pä:ss")] * 2]


def test_bearer_is_preferred(connect: Connect) -> None:
    """Where a server offers both, the password goes to the token server only."""
    with ScriptableRegistry(auth=TokenAuth(users={"alice": SECRET})) as registry:
        image = registry.add_image("org/tool", "1")
        both = f'Basic realm="x", Bearer realm="http://{registry.host}/token"'
        registry.fail("/v2/", status=401, headers={"WWW-Authenticate": both}, times=1)
        assert str(connect(Credential("alice", SECRET)).head(ref(registry))) == image.digest
        sent = [r for r in registry.requests if SECRET in str(r) or basic("alice", SECRET) in str(r)]
        assert [r.path for r in sent] == ["/token"]


# --- where secrets go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["token", "basic"])
def test_other_hosts_get_no_authorization(connect: Connect, scheme: str) -> None:
    """A redirect to another host is followed without Authorization, and back again without it too."""
    auth = TokenAuth() if scheme == "token" else BasicAuth({"alice": SECRET})
    with ScriptableRegistry(auth=auth) as registry, ScriptableRegistry() as cdn:
        image = registry.add_image("org/tool", "1")
        descriptor = Descriptor("x", Digest.parse(cdn.push_blob(BODY)), len(BODY))
        source = connect(Credential("alice", SECRET))
        assert str(source.head(ref(registry))) == image.digest
        registry.redirect("/blobs/", lambda path: f"http://localhost:{cdn.port}{path}")
        assert b"".join(source.blob(ref(registry), descriptor)) == BODY
        assert registry.requests[-1].headers["authorization"]
        assert [r.headers.get("authorization") for r in cdn.requests] == [None]
        cdn.redirect("/manifests/", lambda path: f"http://{registry.host}{path}")
        registry.redirect("/manifests/", lambda path: f"http://localhost:{cdn.port}{path}")
        before = len(registry.requests)
        with pytest.raises(ImageError, match="more than 5 times"):
            source.manifest(ref(registry))
        shown = ["authorization" in r.headers for r in registry.requests[before:]]
        assert shown == [True, False, False]
        assert all("authorization" not in r.headers for r in cdn.requests)


def test_another_hosts_401_is_not_ours(connect: Connect) -> None:
    """A challenge from where a redirect led gets no credential."""
    with ScriptableRegistry() as registry, ScriptableRegistry(auth=BasicAuth({"alice": SECRET})) as thief:
        registry.redirect("", lambda path: f"http://localhost:{thief.port}{path}")
        with pytest.raises(AccessDenied):
            connect(Credential("alice", SECRET)).head(ref(registry))
        assert [r.headers.get("authorization") for r in thief.requests] == [None]


def test_the_token_server_cannot_pass_a_secret_on(connect: Connect) -> None:
    """Redirects of the token server: by GET without the password, by POST not at all."""
    with ScriptableRegistry(auth=TokenAuth()) as registry, ScriptableRegistry() as thief:
        registry.redirect("^/token", f"http://localhost:{thief.port}/token")
        for credential in (Credential("alice", SECRET), Credential(identity_token=SECRET)):
            with pytest.raises(ImageError):
                connect(credential).head(ref(registry))
        assert [(r.method, r.headers.get("authorization")) for r in thief.requests] == [("GET", None)]


@pytest.mark.parametrize(
    "realm",
    [
        "http://{host}/token",
        "ftp://{host}/",
        "//{host}/token",
        "token",
        "https://u:p@{host}/",
        "https://[",
        "https:///x",
    ],
)
def test_realms_that_must_not_be_asked(
    connect: Connect, realm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A token server is https://, unless the registry itself is plain HTTP; nothing is sent elsewhere."""
    from tests.test_registry_client import make_certificate

    files = make_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files[0]))
    with ScriptableRegistry(certificate=files) as registry, ScriptableRegistry() as thief:
        challenge = f'Bearer realm="{realm.format(host=thief.host)}"'
        registry.fail("", status=401, headers={"WWW-Authenticate": challenge})
        source = RegistrySource(credentials=FixedCredentials(Credential("alice", SECRET)))
        with pytest.raises(ImageError, match="must not be asked") as caught:
            source.head(ref(registry))
        source.close()
        assert "u:p" not in str(caught.value)
        assert thief.requests == []
        assert len(registry.requests) == 1


def test_netrc_is_not_read(connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Requests would send what ~/.netrc has, and put it in a token's place."""
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login alice password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with ScriptableRegistry(auth=TokenAuth()) as registry:
        image = registry.add_image("org/tool", "1")
        assert str(connect().head(ref(registry))) == image.digest
        assert not any("Basic" in r.headers.get("authorization", "") for r in registry.requests)


def test_no_secret_in_logs_and_messages(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """Not even a registry that repeats what it was sent brings a password or token into a message or log."""
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    encoded = basic("alice", SECRET)
    for auth, credential in (
        (BasicAuth({"alice": SECRET}), Credential("alice", SECRET)),
        (TokenAuth(users={"alice": SECRET}), Credential("alice", SECRET)),
        (TokenAuth(identity_tokens=(SECRET,)), Credential(identity_token=SECRET)),
    ):
        for path, status in itertools.product(("/manifests/", "^/token"), (400, 403, 500)):
            with ScriptableRegistry(auth=auth) as registry:
                registry.add_image("org/tool", "1")
                source = connect(credential)
                source.head(ref(registry))
                shown = registry.requests[-1].headers["authorization"]
                if path == "/manifests/":
                    plain = f"alice:{SECRET}" if shown == encoded else ""
                    echo = error_document("NO", f"you sent {shown} {plain}")
                else:
                    echo = error_document("NO", f"you sent {SECRET} {encoded}")
                    registry.revoke_tokens()
                registry.fail(path, status=status, body=echo)
                if isinstance(auth, BasicAuth) and path == "^/token":
                    continue  # never asked
                with pytest.raises(ImageError) as caught:
                    source.manifest(ref(registry))
                texts += [str(caught.value), repr(caught.value), repr(source), repr(credential)]
    text = caplog.text + "".join(texts)
    assert SECRET not in text
    assert basic("alice", SECRET).partition(" ")[2] not in text
    assert "Bearer token-" not in text
    assert "sent Basic ***" in text


# --- Docker's config.json ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://localhost:5000/v2/", "localhost:5000"),
    ],
)
def test_config_entries(tmp_path: Path, key: str, registry: str) -> None:
    """An entry is found by its registry's name in references, Docker Hub's by its odd key."""
    auth = basic("alice", SECRET).partition(" ")[2]
    config = write_config(tmp_path, {"auths": {key: {"auth": auth}, "other.example": {}}})
    credentials = DockerCredentials(config)
    assert credentials.find(registry) == Credential("alice", SECRET)
    assert credentials.find("other.example").anonymous
    assert credentials.find("elsewhere.example") == Credential()


def test_identity_tokens_of_the_config(tmp_path: Path) -> None:
    """An entry with an identity token is used for that."""
    entry = {"auth": basic("<token>", "").partition(" ")[2], "identitytoken": SECRET}
    config = write_config(tmp_path, {"auths": {"a.example": entry}})
    assert DockerCredentials(config).find("a.example") == Credential(identity_token=SECRET)


def test_docker_config_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$DOCKER_CONFIG names the directory; without it, ~/.docker is looked into; without that, nobody is known."""
    assert DockerCredentials().find("a.example") == Credential()
    auth = basic("alice", "home").partition(" ")[2]
    write_config(tmp_path / ".docker", {"auths": {"a.example": {"auth": auth}}})
    assert DockerCredentials().find("a.example") == Credential("alice", "home")
    auth = basic("alice", "elsewhere").partition(" ")[2]
    write_config(tmp_path / "elsewhere", {"auths": {"a.example": {"auth": auth}}})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "elsewhere"))
    assert DockerCredentials().find("a.example") == Credential("alice", "elsewhere")


@pytest.mark.parametrize("where", [{"credsStore": "fake"}, {"credHelpers": {"a.example": "fake"}}])
@pytest.mark.parametrize(
    ("user", "expected"), [("alice", Credential("alice", SECRET)), ("<token>", Credential(identity_token=SECRET))]
)
def test_credential_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: dict[str, Any], user: str, expected: Credential
) -> None:
    """A store or helper is asked, once, with the registry's name on its standard input."""
    answer = json.dumps({"ServerURL": "a.example", "Username": user, "Secret": SECRET})
    body = f"cat >> {tmp_path}/asked; echo ' '$1 >> {tmp_path}/asked; echo '{answer}'"
    helpers = write_helper(tmp_path / "bin", "fake", body)
    monkeypatch.setenv("PATH", f"{helpers}:/usr/bin:/bin")
    credentials = DockerCredentials(write_config(tmp_path, where))
    assert [credentials.find("a.example") for _ in range(3)] == [expected] * 3
    assert (tmp_path / "asked").read_text() == "a.example get\n"


@pytest.mark.parametrize(
    "body", [f"echo {SECRET}; exit 1", f"echo {SECRET}", "exit 0", "echo '{}'", "echo '[]'", "echo '{\"Username\": 5}'"]
)
def test_a_broken_helper_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A helper that fails leaves an anonymous client and a problem that quotes nothing of its output."""
    monkeypatch.setenv("PATH", f"{write_helper(tmp_path / 'bin', 'fake', body)}:/usr/bin:/bin")
    found = DockerCredentials(write_config(tmp_path, {"credsStore": "fake"})).find("a.example")
    assert found.anonymous
    assert found.problem is not None
    assert "docker-credential-fake" in found.problem
    assert SECRET not in found.problem


def test_a_helper_that_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry in the store is no problem."""
    body = "echo credentials not found in native keychain; exit 1"
    monkeypatch.setenv("PATH", f"{write_helper(tmp_path / 'bin', 'fake', body)}:/usr/bin:/bin")
    assert DockerCredentials(write_config(tmp_path, {"credsStore": "fake"})).find("a.example") == Credential()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "5", '"x"', '{"auths": {"a.example": {"auth": "%%%"}}}', '{"auths": {"a": "b"}}', "\xff"],
)
def test_a_broken_config_is_told(connect: Connect, tmp_path: Path, content: str) -> None:
    """A broken config.json does not stop public images, and is named when a registry wants credentials."""
    config = write_config(tmp_path, content)
    with ScriptableRegistry() as registry:
        registry.add_image("org/tool", "1")
        connect(config=config).head(ref(registry))
    with (
        ScriptableRegistry(auth=BasicAuth({"alice": SECRET})) as registry,
        pytest.raises(AccessDenied, match=r"config\.json is not a configuration file"),
    ):
        connect(config=config).head(ref(registry))


def test_a_missing_helper_is_told(connect: Connect, tmp_path: Path) -> None:
    """A helper that is configured but not installed is named when a registry wants credentials."""
    config = write_config(tmp_path, {"credHelpers": {}, "credsStore": "nowhere-to-be-found"})
    with (
        ScriptableRegistry(auth=BasicAuth({"alice": SECRET})) as registry,
        pytest.raises(AccessDenied, match="docker-credential-nowhere-to-be-found"),
    ):
        connect(config=config).head(ref(registry))


def test_the_config_is_read_only_when_asked(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that asks for nothing runs no helper."""
    helpers = write_helper(tmp_path / "bin", "fake", f"touch {tmp_path}/asked; exit 1")
    monkeypatch.setenv("PATH", f"{helpers}:/usr/bin:/bin")
    config = write_config(tmp_path, {"credsStore": "fake"})
    with ScriptableRegistry() as registry:
        registry.add_image("org/tool", "1")
        connect(config=config).head(ref(registry))
        assert not (tmp_path / "asked").exists()
        registry.auth = BasicAuth({"alice": SECRET})
        with pytest.raises(AccessDenied):
            connect(config=config).head(ref(registry))
        assert (tmp_path / "asked").exists()


def test_scopes_are_our_own(connect: Connect) -> None:
    """What a challenge asks for is not granted to it: the scope is to pull from this repository, and no more."""
    with ScriptableRegistry(auth=TokenAuth()) as registry:
        registry.add_image("org/tool", "1")
        wide = (
            f'Bearer realm="http://{registry.host}/token?a=b",scope="repository:org/tool:pull,push registry:catalog:*"'
        )
        registry.fail("/v2/", status=401, headers={"WWW-Authenticate": wide}, times=1)
        connect().head(ref(registry))
        assert registry.requests[1].query == "a=b&scope=repository%3Aorg%2Ftool%3Apull"


# --- files for single registries --------------------------------------------------------------------------------------


def auths(directory: Path, entries: dict[str, str], *, mode: int = 0o600, name: str = "login") -> Path:
    """A file with entries by registry, user alice and these passwords."""
    path = directory / name
    encoded = {host: {"auth": basic("alice", password).partition(" ")[2]} for host, password in entries.items()}
    path.write_text(json.dumps({"auths": encoded}))
    path.chmod(mode)
    return path


def source_with(files: dict[str, Path], others: Credential | None = None) -> RegistrySource:
    """A client for plain HTTP whose configuration names these files."""
    settings = {host: RegistrySettings(insecure=True, credentials=path) for host, path in files.items()}
    known = FixedCredentials(others or Credential())
    default = RegistrySettings(insecure=True)
    return RegistrySource(settings, default=default, credentials=known, timing=Timing(sleep=lambda _: None))


def test_a_file_is_for_its_registry_only(tmp_path: Path) -> None:
    """A registry's file is used for it, whatever its name ends with, and another registry's entry in it for nobody."""
    with (
        ScriptableRegistry(auth=BasicAuth({"alice": SECRET})) as one,
        ScriptableRegistry(auth=BasicAuth({"alice": SECRET})) as other,
    ):
        image = one.add_image("org/tool", "1")
        other.add_image("org/tool", "1")
        source = source_with({one.host: auths(tmp_path, {one.host: SECRET, other.host: SECRET})})
        assert str(source.head(ref(one))) == image.digest
        with pytest.raises(AccessDenied, match="without credentials"):
            source.head(ref(other))
        source.close()
        assert all("authorization" not in request.headers for request in other.requests)


def test_a_file_is_not_made_up_for(tmp_path: Path) -> None:
    """Where the file has nothing for its registry, nothing else is tried, and the message names the file."""
    with ScriptableRegistry(auth=BasicAuth({"alice": SECRET})) as registry:
        registry.add_image("org/tool", "1")
        for path, found in (
            (auths(tmp_path, {"a.example": SECRET}, name="a"), "a has no entry for"),
            (tmp_path / "none", "none cannot be read: No such file"),
            (tmp_path, "cannot be read: Is a directory"),
            (write_config(tmp_path / "b", "{"), "is not a configuration file of Docker's"),
        ):
            source = source_with({registry.host: path}, Credential("alice", SECRET))
            with pytest.raises(AccessDenied, match=found) as caught:
                source.head(ref(registry))
            source.close()
            assert SECRET not in str(caught.value)
        assert all("authorization" not in request.headers for request in registry.requests)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    """Credentials that a registry refuses are told by the file that they are from."""
    with ScriptableRegistry(auth=BasicAuth({"alice": "another"})) as registry:
        registry.add_image("org/tool", "1")
        path = auths(tmp_path, {registry.host: SECRET})
        source = source_with({registry.host: path})
        with pytest.raises(AccessDenied, match=f"with the credentials of {path}"):
            source.head(ref(registry))
        source.close()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o604, True), (0o644, True)])
def test_a_file_that_everybody_may_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, *, warned: bool
) -> None:
    """That costs a warning, once, when the registry wants credentials."""
    with ScriptableRegistry(auth=BasicAuth({"alice": SECRET})) as registry:
        registry.add_image("org/tool", "1")
        source = source_with({registry.host: auths(tmp_path, {registry.host: SECRET}, mode=mode)})
        for _ in range(3):
            source.head(ref(registry))
        source.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert SECRET not in caplog.text


def test_a_file_with_a_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry's file may name a credential helper."""
    with ScriptableRegistry(auth=BasicAuth({"alice": SECRET})) as registry:
        image = registry.add_image("org/tool", "1")
        answer = json.dumps({"ServerURL": registry.host, "Username": "alice", "Secret": SECRET})
        helpers = write_helper(tmp_path / "bin", "fake", f"cat >/dev/null; echo '{answer}'")
        monkeypatch.setenv("PATH", f"{helpers}:/usr/bin:/bin")
        path = write_config(tmp_path, {"credHelpers": {registry.host: "fake"}})
        source = source_with({registry.host: path})
        assert str(source.head(ref(registry))) == image.digest
        source.close()


def test_credentials_do_not_show() -> None:
    """No repr has a secret."""
    credential = Credential("alice", SECRET, SECRET)
    assert SECRET not in repr(credential)
