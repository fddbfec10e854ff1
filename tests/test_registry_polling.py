"""`registry.ledger` and what the client makes of it: conditional requests, rate limits, counts."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import AccessDenied, ImageError, ImageNotFound, RateLimited, RegistryUnavailable
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest
from cvmfs_sync.registry import (
    RateLimit,
    RegistryMemory,
    RegistrySettings,
    RegistrySource,
    Timing,
    Validator,
    ledger,
)
from cvmfs_sync.registry.ledger import read_rate_limit
from tests.fakes.scriptable_registry import ScriptableRegistry, TokenAuth, sha256
from tests.support import run_cli
from tests.support.pulling import Nobody, ref

NOW = 1_700_000_000.0
BODY = random.Random(5).randbytes(1000)
HUB = {"ratelimit-limit": "100;w=21600", "docker-ratelimit-source": "192.0.2.7"}


@pytest.fixture
def registry(registry: ScriptableRegistry) -> ScriptableRegistry:
    """A registry with one image, tagged `1`."""
    registry.add_image("org/tool", "1")
    registry.push_blob(BODY)
    return registry


Connect = Callable[..., RegistrySource]


@pytest.fixture
def connect(registry: ScriptableRegistry) -> Iterator[Connect]:
    """Makes clients, one for each cycle of a daemon; `now` is the time since 1970."""
    clients: list[RegistrySource] = []

    def make(memory: RegistryMemory | None = None, *, floor: int = 0, now: float = NOW) -> RegistrySource:
        settings = {registry.host: RegistrySettings(insecure=True, ratelimit_floor=floor)}
        timing = Timing(wall_clock=lambda: now, sleep=lambda _: None)
        clients.append(RegistrySource(settings, credentials=Nobody(), timing=timing, memory=memory))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def digest_of(server: ScriptableRegistry) -> Digest:
    """What the tag means now."""
    return Digest.parse(server.add_image("org/tool", "1").digest)


BLOB = Descriptor("x", Digest.parse(sha256(BODY)), len(BODY))


# --- ETags ------------------------------------------------------------------------------------------------------------


def test_an_unchanged_tag_is_confirmed(connect: Connect, registry: ScriptableRegistry) -> None:
    """With an ETag from the last cycle, the question is whether it still holds; 304 means the remembered digest."""
    registry.etags = True
    memory = RegistryMemory()
    expected = digest_of(registry)
    assert [connect(memory).head(ref(registry)) for _ in range(3)] == [expected] * 3
    asked = [request.headers.get("if-none-match") for request in registry.requests]
    assert asked == [None, f'"{expected}"', f'"{expected}"']
    assert memory.requests()[registry.host, "not_modified"] == 2


def test_a_moved_tag_is_not_confirmed(connect: Connect, registry: ScriptableRegistry) -> None:
    """A tag that has moved gives the new digest and the new ETag."""
    registry.etags = True
    memory = RegistryMemory()
    connect(memory).head(ref(registry))
    moved = registry.add_image("org/tool", "1", [b"x"]).digest
    for _ in range(2):
        assert str(connect(memory).head(ref(registry))) == moved
    assert registry.requests[-1].headers["if-none-match"] == f'"{moved}"'


def test_without_a_memory_nothing_is_conditional(connect: Connect, registry: ScriptableRegistry) -> None:
    """Another client knows nothing of the first one's ETags unless it is told."""
    registry.etags = True
    for _ in range(2):
        connect().head(ref(registry))
    assert all("if-none-match" not in request.headers for request in registry.requests)


def test_an_etag_spares_the_get(connect: Connect, registry: ScriptableRegistry) -> None:
    """Where HEAD tells no digest, it is learnt by one GET, and confirmed by HEADs from then on."""
    registry.etags, registry.content_digest = True, False
    memory = RegistryMemory()
    expected = digest_of(registry)
    assert [connect(memory).head(ref(registry)) for _ in range(3)] == [expected] * 3
    assert [request.method for request in registry.requests] == ["HEAD", "GET", "HEAD", "HEAD"]


def test_an_etag_that_is_repeated_spares_the_get(connect: Connect, registry: ScriptableRegistry) -> None:
    """A registry that ignores If-None-Match but sends the same ETag again has said that nothing changed."""
    digest = digest_of(registry)
    memory = RegistryMemory()
    registry.content_digest = False
    registry.headers = {"ETag": '"a"'}
    assert [connect(memory).head(ref(registry)) for _ in range(2)] == [digest] * 2
    registry.headers = {"ETag": '"b"'}
    assert connect(memory).head(ref(registry)) == digest
    assert [request.method for request in registry.requests] == ["HEAD", "GET", "HEAD", "HEAD", "GET"]


@pytest.mark.parametrize("etag", ["", "x", "*", '"a', '"a b"', '"\xe4"', '"' + "a" * 300 + '"', '"a", "b"'])
def test_etags_that_are_none(connect: Connect, registry: ScriptableRegistry, etag: str) -> None:
    """What is no entity tag is not sent back."""
    registry.headers = {"ETag": etag}
    memory = RegistryMemory()
    for _ in range(2):
        connect(memory).head(ref(registry))
    assert all("if-none-match" not in request.headers for request in registry.requests)


def test_304_that_nobody_asked_for(connect: Connect, registry: ScriptableRegistry) -> None:
    """Without a question, "not modified" is no answer and no digest."""
    registry.fail("/manifests/", status=304)
    with pytest.raises(Exception, match="304"):
        connect().head(ref(registry))


def test_a_tag_that_is_gone_is_forgotten(connect: Connect, registry: ScriptableRegistry) -> None:
    """After a 404 there is nothing to confirm."""
    registry.etags = True
    kept: dict[str, Validator] = {}
    memory = RegistryMemory(kept)
    digest = connect(memory).head(ref(registry))
    assert kept == {f"http://{registry.host}/v2/org/tool/manifests/1": Validator(f'"{digest}"', digest)}
    registry.delete("org/tool", "1")
    with pytest.raises(ImageNotFound):
        connect(memory).head(ref(registry))
    assert kept == {}


def test_pinned_digests_have_no_etag(connect: Connect, registry: ScriptableRegistry) -> None:
    """What a digest means never changes: nothing is kept for it."""
    registry.etags = True
    kept: dict[str, Validator] = {}
    name = ref(registry, f"org/tool@{digest_of(registry)}")
    source = connect(RegistryMemory(kept))
    source.head(name)
    source.manifest(name)
    assert kept == {}


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more tags than it holds, it forgets the oldest."""
    monkeypatch.setattr(ledger, "MAX_VALIDATORS", 3)
    kept: dict[str, Validator] = {}
    memory = RegistryMemory(kept)
    for number in (1, 2, 3, 1, 4, 5):
        memory.remember(str(number), '"x"', Digest("sha256", "0" * 64))
    assert list(kept) == ["1", "4", "5"]


def test_a_cycle_asks_once_for_each_tag(tmp_path: Path, registry: ScriptableRegistry) -> None:
    """However often a tag is wished for, a cycle that changes nothing is one HEAD for it, and none for a digest."""
    image = registry.add_image("org/tool", "1")
    host = registry.host
    entries = [
        f"{host}/org/tool:1",
        {"image": f"{host}/org/tool", "tags": ["1*"]},
        f"{host}/org/tool@{image.digest}",
    ]
    (tmp_path / "image-list.yaml").write_text(json.dumps({"version": 1, "images": entries}))
    (tmp_path / "cvmfs-sync.yaml").write_text(json.dumps({"registries": {host: {"insecure": True}}}))
    run_cli("sync", cwd=tmp_path).ok()
    registry.requests.clear()
    run_cli("sync", cwd=tmp_path).ok()
    assert sorted((r.method, r.path) for r in registry.requests) == [
        ("GET", "/v2/org/tool/tags/list"),
        ("HEAD", "/v2/org/tool/manifests/1"),
    ]


# --- rate limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"ratelimit-limit": "100"}, None),
        (
            HUB | {"ratelimit-remaining": "76;w=21600"},
            RateLimit(100, 21600.0, 76, "192.0.2.7", NOW),
        ),
        ({"RateLimit-Remaining": "5"}, RateLimit(None, None, 5, None, NOW)),
        ({"RateLimit-Limit": "60", "RateLimit-Remaining": "0"}, RateLimit(60, None, 0, None, NOW)),
        (
            {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "7", "X-RateLimit-Reset": str(int(NOW) + 90)},
            RateLimit(60, None, 7, None, NOW, NOW + 90),
        ),
        ({"ratelimit-remaining": "7", "ratelimit-reset": "30"}, RateLimit(None, None, 7, None, NOW, NOW + 30)),
        ({"ratelimit-limit": "10, 10;w=1, 50;w=60", "ratelimit-remaining": "9"}, RateLimit(10, 1.0, 9, None, NOW)),
        ({"ratelimit-remaining": " 7 ; w = 60 "}, RateLimit(None, 60.0, 7, None, NOW)),
        ({"ratelimit-remaining": "-1"}, None),
        ({"ratelimit-remaining": "many"}, None),
        ({"ratelimit-remaining": ""}, None),
        ({"ratelimit-remaining": "9" * 400}, None),
        ({"ratelimit-remaining": "5", "ratelimit-limit": "x;w=y"}, RateLimit(None, None, 5, None, NOW)),
        ({"ratelimit-remaining": "5", "ratelimit-reset": "z"}, RateLimit(None, None, 5, None, NOW)),
        (
            {"ratelimit-remaining": "5", "docker-ratelimit-source": "a\x1b[1m" + "b" * 500},
            RateLimit(None, None, 5, "a[1m" + "b" * 96, NOW),
        ),
    ],
)  # fmt: skip
def test_rate_limits_are_read(headers: dict[str, str], expected: RateLimit | None) -> None:
    """Docker Hub's form with a window, plain numbers, resets as distance or epoch; nonsense says nothing."""
    from requests.structures import CaseInsensitiveDict

    assert read_rate_limit(CaseInsensitiveDict(headers), NOW) == expected


@pytest.mark.parametrize(
    ("limit", "until"),
    [
        (RateLimit(100, 21600.0, 5, None, NOW), NOW + 21600),
        (RateLimit(100, 21600.0, 5, None, NOW, NOW + 20), NOW + 20),
        (RateLimit(100, None, 5, None, NOW), NOW + 3600),
    ],
)
def test_what_was_said_holds_for_a_time(limit: RateLimit, until: float) -> None:
    """After its window or reset, a limit says nothing any more."""
    assert (limit.left(until - 1), limit.left(until)) == (5, None)


@pytest.mark.parametrize("status", [200, 404, 429, 500])
def test_rate_limits_of_every_answer(connect: Connect, registry: ScriptableRegistry, status: int) -> None:
    """The headers count on HEAD, and on answers that are errors."""
    if status != 200:
        registry.fail("", status=status)
    registry.headers = HUB | {"ratelimit-remaining": "76;w=21600"}
    source = connect()
    try:
        source.head(ref(registry))
    except (ImageNotFound, RegistryUnavailable):
        assert status != 200
    assert source.rate_limits() == {registry.host: RateLimit(100, 21600.0, 76, "192.0.2.7", NOW)}


def test_below_the_floor_nothing_is_pulled(connect: Connect, registry: ScriptableRegistry) -> None:
    """At the floor, manifests and blobs wait for a later cycle and HEADs go on; what is urgent is pulled."""
    source = connect(floor=10)
    asks: list[Callable[[RegistrySource], Any]] = [
        lambda source: source.manifest(ref(registry)),
        lambda source: list(source.blob(ref(registry), BLOB)),
    ]
    for left in (11, 10, 0):
        registry.headers = HUB | {"ratelimit-remaining": f"{left};w=21600"}
        source.head(ref(registry))
        registry.requests.clear()
        for ask in asks:
            if left > 10:
                ask(source)
                continue
            with pytest.raises(RateLimited, match=rf"{left} of 100 left.*more than 10 \(ratelimit_floor\)") as caught:
                ask(source)
            assert caught.value.temporary
            assert caught.value.todo
        assert len(registry.requests) == (2 if left > 10 else 0)
    for ask in asks:
        ask(source.urgent())
    assert len(registry.requests) == 2
    assert source.head(ref(registry)) == source.urgent().head(ref(registry))


def test_urgency_reaches_other_threads(connect: Connect, registry: ScriptableRegistry) -> None:
    """Downloads run in threads of their own: an urgent source is urgent there, and its twin is not."""
    registry.headers = HUB | {"ratelimit-remaining": "0;w=21600"}
    source = connect()
    source.head(ref(registry))
    urgent = source.urgent()
    with ThreadPoolExecutor(2) as pool:
        assert b"".join(pool.submit(lambda: list(urgent.blob(ref(registry), BLOB))).result()) == BODY
        with pytest.raises(RateLimited):
            pool.submit(lambda: list(source.blob(ref(registry), BLOB))).result()


def test_a_head_without_digest_is_no_pull_below_the_floor(connect: Connect, registry: ScriptableRegistry) -> None:
    """Where HEAD does not tell the digest, asking by GET is a pull and waits, too."""
    registry.content_digest = False
    registry.headers = HUB | {"ratelimit-remaining": "0;w=21600"}
    with pytest.raises(RateLimited):
        connect().head(ref(registry))
    assert [request.method for request in registry.requests] == ["HEAD"]


def test_a_download_goes_on_below_the_floor(connect: Connect, registry: ScriptableRegistry) -> None:
    """A download that has begun is ended: half of it would be lost."""
    registry.truncate("/blobs/", 500, times=1)
    registry.headers = HUB | {"ratelimit-remaining": "0;w=21600"}
    assert b"".join(connect().blob(ref(registry), BLOB)) == BODY
    assert len(registry.requests) == 2


def test_the_next_cycle_knows_the_limit(connect: Connect, registry: ScriptableRegistry) -> None:
    """With the memory handed on, the first pull of a cycle obeys; after the window it is free again."""
    registry.headers = HUB | {"ratelimit-remaining": "0;w=21600"}
    memory = RegistryMemory()
    connect(memory).head(ref(registry))
    with pytest.raises(RateLimited):
        connect(memory, now=NOW + 21599).manifest(ref(registry))
    registry.headers = {}
    connect(memory, now=NOW + 21600).manifest(ref(registry))


def test_a_storage_servers_limit_is_not_the_registrys(connect: Connect, registry: ScriptableRegistry) -> None:
    """What another host says about limits, where a redirect led, is not noted."""
    with ScriptableRegistry() as cdn:
        cdn.push_blob(BODY)
        cdn.headers = HUB | {"ratelimit-remaining": "0;w=21600"}
        registry.redirect("/blobs/", lambda path: f"http://localhost:{cdn.port}{path}")
        source = connect()
        assert b"".join(source.blob(ref(registry), BLOB)) == BODY
        assert source.rate_limits() == {}


# --- counts -----------------------------------------------------------------------------------------------------------


def test_requests_are_counted(connect: Connect, registry: ScriptableRegistry) -> None:
    """Every answer counts by its result, retries too; none at all is an error."""
    memory = RegistryMemory()
    for status, times in ((404, 1), (429, 2), (403, 1), (500, 1), (418, 1)):
        registry.fail("", status=status, times=times)
        with nullcontext() if status in (429, 500) else pytest.raises(ImageError):
            connect(memory).head(ref(registry))
    registry.drop("", times=1)
    connect(memory).head(ref(registry))
    assert memory.requests() == {
        (registry.host, "ok"): 3,
        (registry.host, "not_modified"): 0,
        (registry.host, "not_found"): 1,
        (registry.host, "denied"): 1,
        (registry.host, "throttled"): 2,
        (registry.host, "error"): 3,
    }


def test_challenges_are_not_denials(connect: Connect, registry: ScriptableRegistry) -> None:
    """The 401 that says where tokens come from counts nowhere; the one that is the end counts as denied."""
    registry.auth = TokenAuth()
    memory = RegistryMemory()
    connect(memory).head(ref(registry))
    counts = memory.requests()
    assert (counts[registry.host, "ok"], counts[registry.host, "denied"]) == (2, 0)
    registry.fail("/v2/", status=401)
    with pytest.raises(AccessDenied):
        connect(memory).head(ref(registry))
    assert memory.requests()[registry.host, "denied"] == 1
    registry.heal()
    registry.auth = TokenAuth(users={"alice": "x"})
    with pytest.raises(AccessDenied):
        connect(memory).head(ref(registry))
    assert memory.requests()[registry.host, "denied"] == 2


def test_threads_count_together() -> None:
    """No count is lost."""
    memory = RegistryMemory()
    start = threading.Barrier(8)

    def count(_: int) -> None:
        start.wait()
        for _ in range(1000):
            memory.count("a.example", 200)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert memory.requests()["a.example", "ok"] == 8000
