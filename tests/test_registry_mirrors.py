"""`registry.endpoints`: mirrors are asked first, prove nothing, and never see the registry's credentials."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cvmfs_sync.errors import ImageNotFound, RegistryUnavailable
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest
from cvmfs_sync.registry import Credential, RegistryMemory, RegistrySettings, RegistrySource, Timing
from cvmfs_sync.registry.endpoints import Endpoints
from tests.fakes.scriptable_registry import BasicAuth, FakeImage, ScriptableRegistry, TokenAuth
from tests.support.pulling import ref

BIG = random.Random(4).randbytes(3_000_000)
SECRET = "pl4nted-s3cret"


class ByHost:
    """Credentials by the registry's name; nobody else has some."""

    def __init__(self, known: dict[str, Credential]) -> None:
        self.known = known

    def find(self, registry: str) -> Credential:
        """The credential."""
        return self.known.get(registry, Credential())


@pytest.fixture
def registry() -> Iterator[ScriptableRegistry]:
    """The registry itself, with an image of one layer."""
    with ScriptableRegistry() as server:
        server.add_image("org/tool", "1", [BIG])
        yield server


@pytest.fixture
def mirror() -> Iterator[ScriptableRegistry]:
    """A mirror that has the same image."""
    with ScriptableRegistry() as server:
        server.add_image("org/tool", "1", [BIG])
        yield server


Connect = Callable[..., RegistrySource]


@pytest.fixture
def connect(registry: ScriptableRegistry) -> Iterator[Connect]:
    """Makes clients whose `registry` has these mirrors."""
    clients: list[RegistrySource] = []

    def make(*mirrors: str, credentials: dict[str, Credential] | None = None, **more: Any) -> RegistrySource:
        settings = {registry.host: RegistrySettings(insecure=True, mirrors=mirrors)}
        quick = Timing(sleep=lambda _: None)
        known = ByHost(credentials or {})
        default = RegistrySettings(insecure=True)
        clients.append(RegistrySource(settings, default=default, credentials=known, timing=quick, **more))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def blob_of(image: FakeImage) -> Descriptor:
    """The image's only layer."""
    return Descriptor("application/octet-stream", Digest.parse(image.layers[0]), len(BIG))


def image_of(server: ScriptableRegistry) -> FakeImage:
    """The image again, as it was added."""
    return server.add_image("org/tool", "1", [BIG])


def ask_all(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """HEAD, manifest and blob, all of them right."""
    image = image_of(registry)
    assert str(source.head(ref(registry))) == image.digest
    assert source.manifest(ref(registry))[0] == image.manifest
    assert b"".join(source.blob(ref(registry), blob_of(image))) == BIG


@pytest.mark.parametrize("form", ["{host}", "http://{host}", "http://{host}/"])
def test_a_mirror_is_asked_first(
    connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry, form: str
) -> None:
    """What a mirror has, the registry is not asked for."""
    ask_all(connect(form.format(host=mirror.host)), registry)
    assert [request.method for request in mirror.requests] == ["HEAD", "GET", "GET"]
    assert registry.requests == []


def test_a_mirror_with_a_project(connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry) -> None:
    """A mirror that has many registries gets its project before the repository's name, in the token's scope, too."""
    mirror.auth = TokenAuth()
    mirror.add_image("hub/cache/org/tool", "1", [BIG])
    ask_all(connect(f"{mirror.host}/hub/cache"), registry)
    assert registry.requests == []
    assert {path.partition("/tool/")[0] for path in mirror.paths()} == {"/v2/hub/cache/org"}
    (token,) = (request for request in mirror.requests if request.path == "/token")
    assert "scope=repository%3Ahub%2Fcache%2Forg%2Ftool%3Apull" in token.query


def test_mirrors_are_asked_in_order(connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry) -> None:
    """The first that has it answers; one that does not have it is no reason to give up, and none to wait."""
    with ScriptableRegistry() as empty:
        ask_all(connect(empty.host, mirror.host), registry)
        assert [request.method for request in empty.requests] == ["HEAD", "GET", "GET"]
    assert [request.method for request in mirror.requests] == ["HEAD", "GET", "GET"]
    assert registry.requests == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500, 503])
def test_a_mirror_that_refuses_is_passed_over(
    connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry, status: int
) -> None:
    """Whatever a mirror says instead of giving it, the registry is asked, and the mirror only once for each thing."""
    mirror.fail("", status=status)
    ask_all(connect(mirror.host), registry)
    assert len(mirror.requests) == 3
    assert len(registry.requests) == 3


def test_a_dead_mirror(connect: Connect, registry: ScriptableRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A mirror that does not answer costs nothing but its time-out, and is told once, as a warning."""
    caplog.set_level(logging.WARNING)
    source = connect("127.0.0.1:1")
    for _ in range(3):
        ask_all(source, registry)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the mirror 127.0.0.1:1" in caplog.text


def test_a_mirror_with_a_wrong_manifest(
    connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry
) -> None:
    """A mirror whose bytes are others is passed over: by digest, its word is not enough."""
    mirror.corrupt("/manifests/")
    image = image_of(registry)
    source = connect(mirror.host)
    assert source.manifest(ref(registry), Digest.parse(image.digest))[0] == image.manifest
    assert len(registry.requests) == 1


def test_a_mirror_with_a_blob_of_another_size(
    connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry
) -> None:
    """A blob whose length is wrong is taken from the registry, from its first byte on."""
    image = image_of(registry)
    mirror.blobs[image.layers[0]] = BIG[:-1]
    assert b"".join(connect(mirror.host).blob(ref(registry), blob_of(image))) == BIG
    assert [request.headers.get("range") for request in registry.requests] == [None]


def test_a_blob_that_a_mirror_cuts(connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry) -> None:
    """What a mirror began, the registry ends, from the cut on."""
    mirror.truncate("/blobs/", 1_500_000, times=1)
    assert b"".join(connect(mirror.host).blob(ref(registry), blob_of(image_of(registry)))) == BIG
    assert [request.headers.get("range") for request in registry.requests] == ["bytes=1500000-"]


def test_a_mirrors_404_proves_nothing(
    connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry
) -> None:
    """Only the registry's own answer says that an image is gone; while it is silent, nobody knows."""
    source = connect(mirror.host)
    with pytest.raises(ImageNotFound, match=registry.host):
        source.head(ref(registry, "org/tool:2"))
    registry.fail("", status=503)
    with pytest.raises(RegistryUnavailable, match=registry.host):
        source.head(ref(registry, "org/tool:2"))


def test_tag_lists_are_the_registrys(
    connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry
) -> None:
    """A mirror may know only the tags that it was asked for: its list would make the others look gone."""
    registry.add_image("org/tool", "2")
    assert list(connect(mirror.host).tags(ref(registry))) == ["1", "2"]
    assert mirror.requests == []


def test_credentials_stay_with_their_host(
    connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry
) -> None:
    """A mirror that wants a password gets its own or none, never the registry's, and the other way round."""
    mirror.auth, registry.auth = BasicAuth({"m": "mirror's"}), BasicAuth({"r": SECRET})
    source = connect(mirror.host, credentials={registry.host: Credential("r", SECRET)})
    ask_all(source, registry)
    assert all("authorization" not in request.headers for request in mirror.requests)
    before = len(registry.requests)
    both = {registry.host: Credential("r", SECRET), mirror.host: Credential("m", "mirror's")}
    ask_all(connect(mirror.host, credentials=both), registry)
    assert len(registry.requests) == before
    assert mirror.requests[-1].headers["authorization"]


def test_a_mirrors_limit_is_its_own(connect: Connect, registry: ScriptableRegistry, mirror: ScriptableRegistry) -> None:
    """Rate limits and counts are kept for each host; a mirror at its floor is passed over."""
    mirror.headers = {"ratelimit-limit": "10;w=60", "ratelimit-remaining": "0;w=60"}
    memory = RegistryMemory()
    source = connect(mirror.host, memory=memory)
    ask_all(source, registry)
    assert [request.method for request in mirror.requests] == ["HEAD"]
    assert [request.method for request in registry.requests] == ["GET", "GET"]
    assert list(source.rate_limits()) == [mirror.host]
    assert (memory.requests()[mirror.host, "ok"], memory.requests()[registry.host, "ok"]) == (1, 2)


def test_endpoints() -> None:
    """A mirror has its own settings: its scheme is the URL's, else that of its entry; the registry comes by itself."""
    settings = {
        "docker.io": RegistrySettings(
            mirrors=("a.example", "b.example:5000/p", "http://c.example", "https://d.example")
        ),
        "b.example:5000": RegistrySettings(insecure=True, ratelimit_floor=3),
        "d.example": RegistrySettings(insecure=True),
    }
    endpoints = Endpoints(settings, RegistrySettings())
    assert [(e.base, e.project, e.registry, e.floor) for e in endpoints.mirrors("docker.io")] == [
        ("https://a.example", "", "a.example", 0),
        ("http://b.example:5000", "p/", "b.example:5000", 3),
        ("http://c.example", "", "c.example", 0),
        ("https://d.example", "", "d.example", 0),
    ]
    assert list(endpoints.mirrors("a.example")) == []
    found = endpoints.by_origin()
    assert found["https://registry-1.docker.io"] is settings["docker.io"]
    assert found["https://d.example"] is found["http://d.example"] is settings["d.example"]
