"""`registry.client`, `transport` and `politeness` against real HTTP on loopback; a line of the facts page is a test."""

from __future__ import annotations

import email.utils
import gc
import gzip
import itertools
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from cvmfs_sync import __version__
from cvmfs_sync.errors import (
    AccessDenied,
    BlobMismatch,
    ImageError,
    ImageNotFound,
    InvalidManifest,
    RegistryUnavailable,
)
from cvmfs_sync.image import ACCEPT, MAX_DOCUMENT, Descriptor, Manifest, parse_config, parse_document
from cvmfs_sync.ports import Source
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry import Credential, Patience, RegistrySettings, RegistrySource, Timing
from cvmfs_sync.registry.endpoints import Endpoints
from cvmfs_sync.registry.politeness import Breaker, Pace, Slots, backoff, retry_after
from cvmfs_sync.registry.transport import Request, Transport
from cvmfs_sync.registry.urls import origin
from tests.fakes.scriptable_registry import (
    OCI_INDEX,
    ScriptableRegistry,
    chunked,
    error_document,
    sha256,
    to_json,
    write_layout,
)
from tests.support.pulling import Nobody, ref

BIG = random.Random(1).randbytes(3 * 1024 * 1024 + 12345)


@dataclass
class FakeTime:
    """A clock that only sleeping moves."""

    now: float = 1_000.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        """Note it and go on."""
        self.slept.append(seconds)
        self.now += seconds

    def timing(self) -> Timing:
        """For a client."""
        return Timing(lambda: self.now, lambda: 1_700_000_000.0 + self.now, self.sleep, lambda: 0.5)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no credentials of whoever runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker-config"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def clock() -> FakeTime:
    """Time that costs none."""
    return FakeTime()


@pytest.fixture
def source(clock: FakeTime) -> Iterator[RegistrySource]:
    """A client that takes every host for a plain HTTP one."""
    client = RegistrySource(default=RegistrySettings(insecure=True), credentials=Nobody(), timing=clock.timing())
    yield client
    client.close()


def blob_of(server: ScriptableRegistry, content: bytes) -> Descriptor:
    """Push a blob; its descriptor."""
    return Descriptor("application/octet-stream", Digest.parse(server.push_blob(content)), len(content))


def test_is_a_source(source: RegistrySource) -> None:
    """The client fulfils the core's protocol."""
    checked: Source[Reference] = source
    assert checked is source


# --- names, headers ---------------------------------------------------------------------------------------------------


def test_docker_hub_is_served_by_another_host() -> None:
    """`docker.io` is asked at registry-1.docker.io; HTTPS unless told otherwise."""
    endpoints = Endpoints({"a.example:5000": RegistrySettings(insecure=True)}, RegistrySettings())
    assert endpoints.itself("docker.io").base == "https://registry-1.docker.io"
    assert endpoints.itself("a.example:5000").base == "http://a.example:5000"
    assert endpoints.itself("b.example").base == "https://b.example"
    assert Endpoints({}, RegistrySettings(insecure=True)).itself("b.example").base == "http://b.example"


def test_head_is_one_head_with_the_full_accept_list(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """An unchanged tag costs one HEAD and no GET; the Accept list is whole, and the body is asked for unencoded."""
    image = registry.add_image("org/tool", "1")
    assert str(source.head(ref(registry))) == image.digest
    (request,) = registry.requests
    assert (request.method, request.path) == ("HEAD", "/v2/org/tool/manifests/1")
    assert request.headers["accept"] == ", ".join(ACCEPT)
    assert request.headers["user-agent"] == f"cvmfs-sync/{__version__}"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


def test_manifest_sends_the_same_accept_list(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """The digest depends on Accept: GET sends what HEAD sends."""
    image = registry.add_image("org/tool", "1")
    content, digest, media_type = source.manifest(ref(registry))
    assert (content, str(digest), media_type) == (image.manifest, image.digest, image.media_type)
    assert registry.requests[0].headers["accept"] == ", ".join(ACCEPT)


def test_connections_are_reused(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Thirty requests in a row, of all kinds, need one connection."""
    registry.add_image("org/tool", "1")
    descriptor = blob_of(registry, BIG)
    for _ in range(10):
        source.head(ref(registry))
        source.manifest(ref(registry))
        assert b"".join(source.blob(ref(registry), descriptor)) == BIG
    assert registry.connections == 1


def test_cookies_are_not_kept(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A session carries nothing from one request to the next."""
    registry.fail("", status=404, headers={"Set-Cookie": "a=b; Path=/"}, body=b"{}", times=1)
    with pytest.raises(ImageNotFound):
        source.manifest(ref(registry))
    registry.add_image("org/tool", "1")
    source.head(ref(registry))
    assert "cookie" not in registry.requests[-1].headers


# --- head and manifest ------------------------------------------------------------------------------------------------


def test_head_without_digest_gets_and_hashes(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """An older registry leaves Docker-Content-Digest out: GET and hash."""
    image = registry.add_image("org/tool", "1")
    registry.content_digest = False
    assert str(source.head(ref(registry))) == image.digest
    assert [request.method for request in registry.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("status", [405, 501])
def test_head_not_allowed_gets_and_hashes(source: RegistrySource, registry: ScriptableRegistry, status: int) -> None:
    """A server without HEAD is asked by GET."""
    image = registry.add_image("org/tool", "1")
    registry.fail("/manifests/", status=status, method="HEAD")
    assert str(source.head(ref(registry))) == image.digest


def test_pinned_digest_is_asked_by_digest(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Where a reference has tag and digest, the digest decides; a registry that names another one is refused."""
    image = registry.add_image("org/tool", "1")
    other = registry.add_image("org/tool", "2", [b"x"])
    name = ref(registry, f"org/tool:2@{image.digest}")
    assert str(source.head(name)) == image.digest
    assert source.manifest(name)[0] == image.manifest
    assert registry.paths() == [f"/v2/org/tool/manifests/{image.digest}"] * 2
    registry.fail("/manifests/", status=200, headers={"Docker-Content-Digest": other.digest}, method="HEAD")
    with pytest.raises(BlobMismatch):
        source.head(name)


def test_manifest_by_digest(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A platform's manifest is asked for by its digest, in the repository of the index."""
    image = registry.add_image("org/tool", None)
    registry.add_index("org/tool", "1", {"linux/amd64": image})
    assert source.manifest(ref(registry))[2] == OCI_INDEX
    assert source.manifest(ref(registry), Digest.parse(image.digest))[0] == image.manifest


def test_a_manifest_with_another_digest_is_refused(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A body whose digest is not the one asked for, or the one named, is refused, by tag and by digest."""
    image = registry.add_image("org/tool", "1")
    registry.corrupt("/manifests/")
    for name in ("org/tool:1", f"org/tool@{image.digest}"):
        with pytest.raises(BlobMismatch, match=r"org/tool.*found: sha256.*expected: sha256"):
            source.manifest(ref(registry, name))


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 63, "x"]
)
def test_a_digest_that_is_none_is_refused(source: RegistrySource, registry: ScriptableRegistry, digest: str) -> None:
    """What a registry calls a digest becomes a path: anything but the two known forms is refused."""
    registry.fail("/manifests/", status=200, headers={"Docker-Content-Digest": digest}, body=b"{}")
    for ask in (source.head, source.manifest):
        with pytest.raises(InvalidManifest, match="no digest"):
            ask(ref(registry))


@pytest.mark.parametrize("declared", [True, False])
def test_a_document_over_4_mib_is_refused(
    source: RegistrySource, registry: ScriptableRegistry, *, declared: bool
) -> None:
    """An endless manifest is not read to its end, whether or not its length is declared."""
    body = b" " * (MAX_DOCUMENT + 1)
    if declared:
        registry.fail("/manifests/", status=200, body=body)
    else:
        registry.fail("/manifests/", status=200, body=chunked([body]), headers={"Transfer-Encoding": "chunked"})
    with pytest.raises(InvalidManifest, match="too large"):
        source.manifest(ref(registry))


def test_a_manifest_of_exactly_4_mib_passes(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """The limit is the specification's floor, included."""
    registry.put_manifest("org/tool", "1", b" " * MAX_DOCUMENT)
    assert len(source.manifest(ref(registry))[0]) == MAX_DOCUMENT


def test_a_cut_manifest_is_asked_again(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A short body is never taken for the manifest; one cut costs a try, three are a temporary error."""
    image = registry.add_image("org/tool", "1")
    registry.truncate("/manifests/", 10, times=1)
    assert source.manifest(ref(registry))[0] == image.manifest
    registry.truncate("/manifests/", 10)
    with pytest.raises(RegistryUnavailable, match="ended too early"):
        source.manifest(ref(registry))


# --- what is missing, private, broken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, ImageNotFound),
        (401, AccessDenied),
        (403, AccessDenied),
        (429, RegistryUnavailable),
        (500, RegistryUnavailable),
        (501, RegistryUnavailable),
        (503, RegistryUnavailable),
        (400, ImageError),
        (410, ImageError),
        (418, ImageError),
        (204, ImageError),
        (206, ImageError),
        (304, ImageError),
        (302, ImageError),
    ],
)
def test_status_becomes_the_right_error(
    source: RegistrySource, registry: ScriptableRegistry, status: int, kind: type[ImageError]
) -> None:
    """Each status ends as its type of error, which names reference and host; only 404 is proof of absence."""
    registry.fail("/manifests/", status=status, method="GET")
    with pytest.raises(ImageError) as caught:
        source.manifest(ref(registry))
    assert type(caught.value) is kind
    assert registry.host in str(caught.value)
    assert "org/tool" in str(caught.value)
    assert str(status) in str(caught.value)
    assert caught.value.todo
    assert caught.value.temporary == (kind is RegistryUnavailable)


def test_not_found_says_what_to_do(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A missing tag is told by HEAD and by GET, with the registry's own words where it has some."""
    registry.add_image("org/tool", "1")
    with pytest.raises(ImageNotFound, match="spelling"):
        source.head(ref(registry, "org/tool:2"))
    with pytest.raises(ImageNotFound, match="MANIFEST_UNKNOWN: manifest unknown"):
        source.manifest(ref(registry, "org/tool:2"))


def test_access_denied_tells_that_it_may_not_exist(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Docker Hub answers 401 for what does not exist: the message does not claim to know."""
    registry.fail("", status=401)
    with pytest.raises(AccessDenied, match=r"private, or does not exist; registries do not say which"):
        source.head(ref(registry))


@pytest.mark.parametrize("method", ["head", "manifest", "tags"])
def test_a_web_page_is_no_proof(source: RegistrySource, registry: ScriptableRegistry, method: str) -> None:
    """A proxy's 404 page, where the registry behind it is down, does not say that an image is gone."""
    page = {"Content-Type": "text/html; charset=utf-8"}
    registry.fail("", status=404, headers=page, body=b"<html>404</html>")
    with pytest.raises(RegistryUnavailable, match="web page"):
        list(getattr(source, method)(ref(registry)))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (error_document("DENIED", "no\x1b[31m red\n"), "DENIED: no [31m red"),
        (error_document("X", "y" * 10_000), "yyy"),
        (b"<html>", "418"),
        (b'{"errors": "none"}', "418"),
        (b'{"errors": [1, {"code": 2}, {"message": "m"}]}', "m"),
        (b"[" * 100_000, "418"),
        (b"\xff\xfe", "418"),
    ],
)
def test_the_registrys_words_are_short_and_printable(
    source: RegistrySource, registry: ScriptableRegistry, body: bytes, expected: str
) -> None:
    """What a registry says about an error is shown, but cannot fill or fool a terminal."""
    gc.collect()  # else finalizers may run, and fail, where the parser has used up the stack
    registry.fail("", status=418, body=body)
    with pytest.raises(ImageError) as caught:
        source.manifest(ref(registry))
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name", ["a" * 64 + ".example/x", "127.0.0.1:99999/x", "host.invalid/x", "127.0.0.1:1/x", "[::1]:1/x"]
)
def test_hosts_that_are_none(source: RegistrySource, name: str) -> None:
    """A host that does not exist, listen, or can't be a host is that image's error and no traceback."""
    with pytest.raises(ImageError) as caught:
        source.head(Reference.parse(name))
    assert name.partition("/")[0] in str(caught.value)
    assert caught.value.todo


# --- retries, politeness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_temporary_failures_are_tried_three_times(
    source: RegistrySource, registry: ScriptableRegistry, clock: FakeTime, status: int
) -> None:
    """Two failures cost two waits with jitter; three are the end, named with host and status."""
    image = registry.add_image("org/tool", "1")
    registry.fail("/manifests/", status=status, times=2)
    assert str(source.head(ref(registry))) == image.digest
    assert clock.slept == [0.5, 1.0]
    registry.fail("/manifests/", status=status)
    with pytest.raises(RegistryUnavailable, match=str(status)):
        source.head(ref(registry))
    assert len(registry.requests) == 6


def test_dropped_connections_are_tried_again(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A connection that closes without an answer is temporary."""
    image = registry.add_image("org/tool", "1")
    registry.drop("/manifests/", times=2)
    assert str(source.head(ref(registry))) == image.digest


def test_final_failures_are_not_tried_again(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """What another try can't change is asked once."""
    registry.fail("", status=404)
    with pytest.raises(ImageNotFound):
        source.head(ref(registry))
    assert len(registry.requests) == 1


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        ("0.25", 0.25),
        ("-5", 0.0),
        ("86400", 60.0),
        (str(int(NOW) + 20), 20.0),
        (str(int(NOW) + 20_000), 60.0),
        (str(int(NOW) - 20), 0.0),
        (email.utils.formatdate(NOW + 30, usegmt=True), 30.0),
        (email.utils.formatdate(NOW - 30, usegmt=True), 0.0),
        ("Tue, 14 Nov 2023 22:13:40 -0000", 20.0),
        ("soon", None),
        ("", None),
        ("inf", None),
        ("nan", None),
        ("0.001", 0.001),
        ("-0.5", 0.0),
        ("-1700000000", 0.0),
        ("1e308", 60.0),
        ("1e999", None),
        ("9" * 300, 60.0),
        ("9" * 400, None),
        ("7 seconds", None),
        ("7, 9", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60.0),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0.0),
        ("Tue, 14 Nov 23 22:13:40", 20.0),
        ("Fri, 99 Nov 2023 99:99:99 GMT", None),
    ],
)
def test_retry_after_in_all_its_forms(text: str | None, seconds: float | None) -> None:
    """Seconds, fractions, HTTP dates and epoch times are understood and clamped; nonsense is ignored."""
    assert retry_after(text, NOW) == seconds


def test_retry_after_is_kept(source: RegistrySource, registry: ScriptableRegistry, clock: FakeTime) -> None:
    """A throttling registry gets the pause that it asks for, before any other request too."""
    registry.add_image("org/tool", "1")
    registry.fail("", status=429, headers={"Retry-After": "7"}, times=1)
    source.head(ref(registry))
    assert clock.slept == [7.0]


def test_a_throttling_registry_costs_a_cycle_its_waits_once(
    source: RegistrySource, registry: ScriptableRegistry, clock: FakeTime
) -> None:
    """After one exchange failed to its end, the next ones get one try each until one succeeds."""
    image = registry.add_image("org/tool", "1")
    registry.fail("", status=429, headers={"Retry-After": "86400"}, times=23)
    for _ in range(21):
        with pytest.raises(RegistryUnavailable, match="429"):
            source.head(ref(registry))
    assert sum(clock.slept) == 120.0
    assert len(registry.requests) == 23
    assert str(source.head(ref(registry))) == image.digest


def test_a_dead_host_is_given_up(source: RegistrySource, clock: FakeTime) -> None:
    """After three connections that failed in a row, each further image fails at once, with the first reason."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        for number in range(20):
            with pytest.raises(RegistryUnavailable, match=f"{host} does not answer.*refused") as caught:
                source.head(Reference.parse(f"{host}/x:{number}"))
            assert ("not asked again" in str(caught.value)) == (number > 0)
    assert len(clock.slept) == 2


def test_a_dead_host_does_not_touch_the_others(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Giving up is by host."""
    image = registry.add_image("org/tool", "1")
    with pytest.raises(RegistryUnavailable):
        source.head(Reference.parse("127.0.0.1:1/x"))
    assert str(source.head(ref(registry))) == image.digest


def test_an_answer_closes_the_breaker() -> None:
    """Only failures in a row count."""
    breaker = Breaker()
    for _ in range(2):
        breaker.failed("a")
    breaker.answered()
    for reason in "bcd":
        assert breaker.reason is None
        breaker.failed(reason)
    assert breaker.reason == "b"


def test_backoff_is_jittered_and_bounded() -> None:
    """Chance scales the whole wait, which never exceeds eight seconds."""
    assert backoff(0, 0.0) == 0.0
    assert [backoff(n, 1.0) for n in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_the_request_rate_is_kept(registry: ScriptableRegistry, clock: FakeTime) -> None:
    """Eleven requests at ten per second take one second."""
    registry.add_image("org/tool", "1")
    settings = {registry.host: RegistrySettings(insecure=True, requests_per_second=10)}
    source = RegistrySource(settings, credentials=Nobody(), timing=clock.timing())
    start = clock.now
    for _ in range(11):
        source.head(ref(registry))
    source.close()
    assert clock.now - start == pytest.approx(1.0)


def test_pace_spaces_threads() -> None:
    """Threads that come at once get times of their own."""
    clock = FakeTime()
    waits: list[float] = []
    pace = Pace(4, Timing(lambda: 0.0, lambda: 0.0, waits.append, lambda: 0.0))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: pace.wait(), range(8)))
    assert sorted(waits) == [0.25 * n for n in range(1, 8)]
    assert clock.slept == []


def test_concurrency_is_kept(registry: ScriptableRegistry) -> None:
    """No more requests than allowed are under way at once, downloads included."""
    descriptor = blob_of(registry, BIG)
    busy, most, lock = 0, 0, threading.Lock()
    settings = {registry.host: RegistrySettings(insecure=True, concurrency=2)}
    source = RegistrySource(settings, credentials=Nobody())

    def download(_: int) -> None:
        nonlocal busy, most
        pieces = source.blob(ref(registry), descriptor)
        # Counted in after the slot was taken and out before it is given back: never more than there are slots.
        next(pieces)
        with lock:
            busy += 1
            most = max(most, busy)
        next(pieces)
        with lock:
            busy -= 1
        pieces.close()  # type: ignore[attr-defined]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(download, range(32)))
    source.close()
    assert 1 <= most <= 2


def test_a_thread_does_not_wait_for_itself(registry: ScriptableRegistry) -> None:
    """With one slot, a manifest can be asked for while a blob is read; abandoning the blob frees the slot."""
    registry.add_image("org/tool", "1")
    descriptor = blob_of(registry, BIG)
    source = RegistrySource({registry.host: RegistrySettings(insecure=True, concurrency=1)}, credentials=Nobody())
    pieces = source.blob(ref(registry), descriptor)
    next(pieces)
    source.manifest(ref(registry))
    pieces.close()  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(source.head, ref(registry)).result(timeout=30)
    source.close()


def test_slots_are_freed_by_another_thread() -> None:
    """A generator that another thread closes gives its own slot back."""
    slots = Slots(1)
    held = slots.slot()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.__enter__).result(timeout=30)
    held.__exit__(None, None, None)
    with slots.slot():
        pass


# --- blobs ------------------------------------------------------------------------------------------------------------


def test_blob_arrives_in_pieces_of_a_mebibyte(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A blob comes whole, as it is stored, in bounded pieces."""
    descriptor = blob_of(registry, BIG)
    pieces = list(source.blob(ref(registry), descriptor))
    assert b"".join(pieces) == BIG
    assert [len(piece) for piece in pieces[:-1]] == [1024 * 1024] * 3
    assert source.local_blob(ref(registry), descriptor) is None


def test_an_empty_blob(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """No bytes are an answer, too."""
    assert list(source.blob(ref(registry), blob_of(registry, b""))) == []


def test_content_encoding_is_not_undone(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A layer is delivered compressed, whatever Content-Encoding says: its digest is that of what was stored."""
    stored = gzip.compress(b"layer" * 1000)
    descriptor = blob_of(registry, stored)
    registry.fail("/blobs/", status=200, headers={"Content-Encoding": "gzip"}, body=stored)
    assert b"".join(source.blob(ref(registry), descriptor)) == stored


def test_a_chunked_blob(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Transfer-Encoding is undone; without the last chunk, the body counts as cut."""
    descriptor = blob_of(registry, b"abcdef")
    body = chunked([b"abc", b"def"])
    encoding = {"Transfer-Encoding": "chunked"}
    registry.fail("/blobs/", status=200, headers=encoding, body=body + b"0\r\n\r\n", times=1)
    assert b"".join(source.blob(ref(registry), descriptor)) == b"abcdef"
    registry.fail("/blobs/", status=200, headers=encoding, body=chunked([b"abc"]), times=1)
    assert b"".join(source.blob(ref(registry), descriptor)) == b"abcdef"
    assert registry.requests[-1].headers["range"] == "bytes=3-"


def test_a_download_that_is_cut_twenty_times_arrives_whole(
    source: RegistrySource, registry: ScriptableRegistry
) -> None:
    """Each cut is resumed where it happened, at any offset, so no byte is asked for twice."""
    chance = random.Random(2)
    descriptor = blob_of(registry, BIG)
    for _ in range(20):
        registry.truncate("/blobs/", chance.randrange(1, 200_000), times=1)
    assert b"".join(source.blob(ref(registry), descriptor)) == BIG
    starts = [int(r.headers.get("range", "bytes=0-")[6:-1]) for r in registry.requests]
    assert len(starts) == 21
    assert starts == sorted(set(starts))


def test_a_server_without_ranges_starts_again(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A 200 to a Range request means start again: what was delivered already is skipped."""
    registry.ranges = False
    descriptor = blob_of(registry, BIG)
    registry.truncate("/blobs/", 2_000_000, times=1)
    registry.truncate("/blobs/", 2_500_000, times=1)
    assert b"".join(source.blob(ref(registry), descriptor)) == BIG
    assert len(registry.requests) == 3


@pytest.mark.parametrize(
    "content_range", [None, "bytes 0-5/10", "bytes 4-8/10", "bytes 4-9/11", "bytes 5-9/10", "items 4-9/10", "x"]
)
def test_a_wrong_range_is_not_taken(
    source: RegistrySource, registry: ScriptableRegistry, content_range: str | None
) -> None:
    """206 with another range than the one asked for is no continuation."""
    descriptor = blob_of(registry, b"0123456789")
    registry.truncate("/blobs/", 4, times=1)
    headers = {"Content-Range": content_range} if content_range else {}
    registry.fail("/blobs/", status=206, headers=headers, body=b"abcdef", times=1)
    assert b"".join(source.blob(ref(registry), descriptor)) == b"0123456789"
    assert [r.headers.get("range") for r in registry.requests] == [None, "bytes=4-", "bytes=4-"]


def test_a_blob_that_never_ends_well(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A download that does not get on is given up after three tries in vain, as temporary, never as short."""
    descriptor = blob_of(registry, BIG)
    registry.truncate("/blobs/", 1000, times=1)
    registry.truncate("/blobs/", 0)
    got: list[bytes] = []
    with pytest.raises(RegistryUnavailable, match=f"found: 1000 bytes.*expected: {len(BIG)} bytes"):
        got.extend(source.blob(ref(registry), descriptor))
    assert b"".join(got) == BIG[:1000]
    assert len(registry.requests) == 4


@pytest.mark.parametrize(("size", "kind"), [(5, BlobMismatch), (7, BlobMismatch)])
def test_size_is_checked_before_the_download(
    source: RegistrySource, registry: ScriptableRegistry, size: int, kind: type[ImageError]
) -> None:
    """A Content-Length that is not the descriptor's size ends it before the first byte."""
    good = blob_of(registry, b"abcdef")
    with pytest.raises(kind, match=f"found: 6 bytes; expected: {size} bytes"):
        next(source.blob(ref(registry), Descriptor(good.media_type, good.digest, size)))


def test_a_blob_longer_than_it_says(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Without a Content-Length, no more than the descriptor's size is delivered."""
    descriptor = blob_of(registry, b"abc")
    body = chunked([b"abcdef"]) + b"0\r\n\r\n"
    registry.fail("/blobs/", status=200, headers={"Transfer-Encoding": "chunked"}, body=body)
    with pytest.raises(BlobMismatch, match="more bytes"):
        list(source.blob(ref(registry), descriptor))


def test_a_blob_that_the_registry_lost(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A missing blob is a damaged image, not proof that the tag is gone."""
    descriptor = Descriptor("x", Digest.parse(sha256(b"never pushed")), 5)
    with pytest.raises(ImageError, match="push the image again") as caught:
        list(source.blob(ref(registry), descriptor))
    assert not isinstance(caught.value, ImageNotFound)


def test_wrong_bytes_are_left_to_fetch(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Blobs are verified in one place for all sources, which is not here."""
    descriptor = blob_of(registry, b"abc")
    registry.corrupt("/blobs/")
    assert b"".join(source.blob(ref(registry), descriptor)) == b"`bc"


def test_a_drip_is_not_waited_for(registry: ScriptableRegistry) -> None:
    """A server that sends a few bytes a minute never times out, but is given up for being slow, three times."""
    descriptor = blob_of(registry, BIG)
    registry.truncate("/blobs/", 10)
    hours = itertools.count(0, 3600)
    patience = Patience(answer=1e9)
    timing = Timing(lambda: float(next(hours)), time.time, lambda _: None, lambda: 0.0, patience)
    source = RegistrySource(default=RegistrySettings(insecure=True), credentials=Nobody(), timing=timing)
    with pytest.raises(RegistryUnavailable, match="10 bytes in 3600 s"):
        list(source.blob(ref(registry), descriptor))
    source.close()
    assert len(registry.requests) == 3


def test_a_drip_comes_in_small_pieces(registry: ScriptableRegistry) -> None:
    """What drips is given out every second, so that whoever reads it can stop without waiting for the next MiB."""
    descriptor = blob_of(registry, b"x" * 200)
    registry.drip("/blobs/", 0.05, head=False)
    seconds = itertools.count(0, 1)
    timing = Timing(
        lambda: float(next(seconds)), time.time, lambda _: None, lambda: 0.0, Patience(1e9, 60, 1e9, 1e9, 1e9)
    )
    source = RegistrySource(default=RegistrySettings(insecure=True), credentials=Nobody(), timing=timing)
    pieces = source.blob(ref(registry), descriptor)
    assert 0 < len(next(pieces)) < descriptor.size
    pieces.close()  # type: ignore[attr-defined]
    source.close()


def test_parallel_downloads(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Threads share a client."""
    descriptor = blob_of(registry, BIG)
    with ThreadPoolExecutor(8) as pool:
        bodies = pool.map(lambda _: b"".join(source.blob(ref(registry), descriptor)), range(16))
        assert all(body == BIG for body in bodies)
    assert registry.connections <= 4


# --- redirects --------------------------------------------------------------------------------------------------------


def test_blobs_come_from_a_cdn(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Redirects are followed to another host, with Range, after a cut from the registry on."""
    descriptor = blob_of(registry, BIG)
    registry.truncate("^/cdn/", 1_500_000, times=1)
    registry.redirect("^/v2/.*/blobs/", lambda path: f"http://{registry.alias}/cdn{path}")
    registry.blobs.clear()
    with ScriptableRegistry() as cdn:
        cdn.push_blob(BIG)
        registry.heal()
        registry.redirect("/blobs/", lambda path: f"http://localhost:{cdn.port}{path}")
        cdn.truncate("/blobs/", 1_500_000, times=1)
        assert b"".join(source.blob(ref(registry), descriptor)) == BIG
        assert [r.headers.get("range") for r in cdn.requests] == [None, "bytes=1500000-"]
    assert [r.headers.get("range") for r in registry.requests] == [None, "bytes=1500000-"]


def test_a_relative_redirect(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Location may be a path."""
    image = registry.add_image("org/tool", "1")
    registry.redirect("/old/", "/v2/org/tool/manifests/1")
    assert str(source.head(ref(registry, "old/name:1"))) == image.digest


def test_redirects_end(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A loop of redirects is an error after five of them."""
    registry.redirect("", lambda path: path)
    with pytest.raises(ImageError, match="more than 5 times"):
        source.head(ref(registry))
    assert len(registry.requests) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", "//[bad", "http://:80/"])
def test_redirects_to_elsewhere(source: RegistrySource, registry: ScriptableRegistry, location: str) -> None:
    """A redirect that leads to no web server is an error and is not followed."""
    registry.redirect("", location)
    with pytest.raises(ImageError) as caught:
        source.head(ref(registry))
    assert registry.host in str(caught.value)


def test_storage_that_refuses_says_nothing_about_access(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A CDN's 403 or 404 is temporary; the signature in its URL reaches no message."""
    descriptor = blob_of(registry, b"abc")
    for status in (401, 403, 404):
        registry.heal()
        registry.fail("^/cdn", status=status)
        registry.redirect("/blobs/", f"http://{registry.alias}/cdn?Signature=s3cr3t")
        with pytest.raises(RegistryUnavailable, match=f"{status}.*{registry.alias}") as caught:
            list(source.blob(ref(registry), descriptor))
        assert "s3cr3t" not in str(caught.value)


# --- tags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    [
        '<{next}>; rel="next"',
        "<{next}>; rel=next",
        '<http://{host}{next}>; rel="next"',
        '<https://{host}{next}>; rel="next"',
        '</first>; rel="first", <{next}>; rel="next"',
    ],
)
def test_tags_follow_the_pages(source: RegistrySource, registry: ScriptableRegistry, link: str) -> None:
    """All pages are read, whether the link is relative or absolute (also with the scheme behind a TLS proxy)."""
    expected = [f"t{n:03}" for n in range(95)]
    for tag in expected:
        registry.put_manifest("org/tool", tag, b"{}")
    registry.page_size, registry.link = 10, link
    assert list(source.tags(ref(registry))) == expected
    assert len(registry.requests) == 10


def test_ten_thousand_tags_in_one_page(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A registry that pages nothing is read all the same."""
    body = to_json({"name": "org/tool", "tags": [f"{n:0128}" for n in range(10_000)]})
    registry.fail("/tags/", status=200, body=body)
    assert len(set(source.tags(ref(registry)))) == 10_000


def test_tags_once_each_and_only_tags(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """What stands twice comes once; what is no tag would become a path and is left out."""
    tags = ["a", "b", "a", "../../etc", "", ".x", "a b", "x" * 129, "sha256-" + "0" * 64 + ".sig", "é", "a@b", "a:b"]
    registry.fail("/tags/", status=200, body=to_json({"tags": tags}))
    assert list(source.tags(ref(registry))) == ["a", "b", "sha256-" + "0" * 64 + ".sig"]


def test_no_tags(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """Null is an empty list, as Go's encoder writes it; a missing repository is proof."""
    registry.fail("/empty/", status=200, body=b'{"tags": null}')
    assert list(source.tags(ref(registry, "org/empty"))) == []
    with pytest.raises(ImageNotFound, match="NAME_UNKNOWN"):
        list(source.tags(ref(registry, "org/none")))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"tags": 5}', b'{"tags": [5]}', b"<html>", b"[" * 100_000])
def test_tag_lists_that_are_none(source: RegistrySource, registry: ScriptableRegistry, body: bytes) -> None:
    """An answer that is no tag list is an error and not an empty list."""
    gc.collect()  # else finalizers may run, and fail, where the parser has used up the stack
    registry.fail("/tags/", status=200, body=body)
    with pytest.raises(InvalidManifest, match="tag list"):
        list(source.tags(ref(registry)))


def test_tag_pages_stay_at_their_host(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A link to another host is refused, and what is no link."""
    for target in (f"http://{registry.alias}/v2/org/tool/tags/list?last=a", "http://[", "file:///etc/passwd"):
        registry.heal()
        registry.fail("/tags/", status=200, headers={"Link": f'<{target}>; rel="next"'}, body=b'{"tags": ["a"]}')
        with pytest.raises(InvalidManifest, match="another host"):
            list(source.tags(ref(registry)))
    assert len(registry.requests) == 3


def test_tag_pages_end(source: RegistrySource, registry: ScriptableRegistry) -> None:
    """A page that links to itself is an error."""
    link = {"Link": '</v2/org/tool/tags/list?last=a>; rel="next"'}
    registry.fail("/tags/", status=200, headers=link, body=b'{"tags": ["a"]}')
    with pytest.raises(InvalidManifest, match="does not end"):
        list(source.tags(ref(registry)))
    assert len(registry.requests) == 2


# --- TLS, proxies -----------------------------------------------------------------------------------------------------


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """PEM files of a certificate for 127.0.0.1 and its key."""
    paths = directory / "cert.pem", directory / "key.pem"
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*command, *names, *files], check=True, capture_output=True, timeout=60)
    return paths


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody vouches for, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_a_certificate_nobody_vouches_for(certificate: tuple[Path, Path], clock: FakeTime) -> None:
    """A TLS failure is final, is not tried again, and says what to do."""
    with ScriptableRegistry(certificate=certificate) as registry:
        source = RegistrySource(credentials=Nobody(), timing=clock.timing())
        with pytest.raises(ImageError, match=r"certificate.*REQUESTS_CA_BUNDLE") as caught:
            source.head(ref(registry))
        source.close()
    assert not caught.value.temporary
    assert clock.slept == []


def test_a_private_ca(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA of one's own is named by REQUESTS_CA_BUNDLE."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with ScriptableRegistry(certificate=certificate) as registry:
        image = registry.add_image("org/tool", "1")
        source = RegistrySource(credentials=Nobody())
        assert str(source.head(ref(registry))) == image.digest
        source.close()


def test_never_from_https_to_http(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect that leaves HTTPS is refused, and what it leads to is not asked."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with ScriptableRegistry(certificate=certificate) as registry, ScriptableRegistry() as plain:
        registry.redirect("", f"http://{plain.host}/")
        source = RegistrySource(credentials=Nobody())
        with pytest.raises(ImageError, match="away from HTTPS"):
            source.head(ref(registry))
        source.close()
        assert plain.requests == []


def test_plain_http_behind_https(registry: ScriptableRegistry) -> None:
    """A registry that does not speak TLS gets the hint about `insecure`."""
    source = RegistrySource(credentials=Nobody())
    with pytest.raises(ImageError, match=r"does not speak HTTPS.*insecure"):
        source.head(ref(registry))
    source.close()


def test_the_environments_proxy_is_used(
    source: RegistrySource, registry: ScriptableRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators' proxies are honoured, NO_PROXY too."""
    monkeypatch.setenv("http_proxy", f"http://{registry.host}")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    registry.fail("", status=404)
    with pytest.raises(ImageNotFound):
        source.head(ref(registry))
    with pytest.raises(ImageNotFound):
        source.head(Reference.parse("registry.invalid/x"))
    assert [r.host for r in registry.requests] == [registry.host, "registry.invalid"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.example/x", "https://A.example:443/y", True),
        ("http://a.example", "http://a.example:80", True),
        ("http://a.example", "https://a.example", False),
        ("https://a.example", "https://a.example:5000", False),
        ("https://a.example", "https://b.a.example", False),
        ("https://user@a.example", "https://a.example", True),
        ("https://[::1]:5000", "https://[::1]:5000/x", True),
        ("https://a.example:99999", "https://a.example:99999", True),
    ],
)
def test_origin(one: str, other: str, same: bool) -> None:
    """Scheme, host and port make the origin, whatever the spelling."""
    assert (origin(one) == origin(other)) is same


def test_a_form_is_not_redirected(registry: ScriptableRegistry, clock: FakeTime) -> None:
    """A POST, whose body is a secret, goes to nobody else."""
    registry.redirect("/token", "/elsewhere")
    transport = Transport({}, RegistrySettings(), clock.timing())
    response = transport.send(Request("POST", f"http://{registry.host}/token", "x", form={"a": "s3cr3t"}))
    response.close()
    transport.close()
    assert response.status_code == 307
    assert "s3cr3t" not in repr(Request("POST", "u", "x", form={"a": "s3cr3t"}, authorization="s3cr3t"))


# --- a real registry --------------------------------------------------------------------------------------------------


def need(program: str) -> str:
    """The program's path; skips the test where it is missing, except in CI."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is missing, and CI must have it")
        pytest.skip(f"{program} is not installed")
    return path


StartRegistry = Callable[..., str]


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[StartRegistry]:
    """Starts Debian's docker-registry; with a user and password if these are given. Returns host:port."""
    program = need("docker-registry")
    processes: list[subprocess.Popen[bytes]] = []

    def start(user: str | None = None, password: str = "") -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{free.getsockname()[1]}"
        storage = f"storage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}"
        lines = ["version: 0.1", "log: {level: error}", storage, f"http: {{addr: '{host}'}}"]
        if user is not None:
            command = [need("htpasswd"), "-nbB", "-C4", user, password]
            line = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
            (tmp_path / "htpasswd").write_bytes(line)
            lines.append(f"auth: {{htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}}}")
        config = tmp_path / "registry.yml"
        config.write_text("\n".join(lines) + "\n")
        with (tmp_path / "registry.log").open("wb") as log:
            processes.append(subprocess.Popen([program, "serve", config], stdout=log, stderr=log))
        for _ in range(200):
            try:
                requests.get(f"http://{host}/v2/", timeout=5).close()
                break
            except requests.ConnectionError:
                time.sleep(0.05)
        return host

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def oci_layout(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A layout with one image of two layers, tagged `1`."""
    layers = [gzip.compress(random.Random(n).randbytes(700_000), mtime=0) for n in range(2)]
    write_layout(tmp_path / "layout", {"1": layers})
    return tmp_path / "layout", layers


def skopeo_copy(layout: Path, target: str, *options: str) -> None:
    """Push an image."""
    command = [need("skopeo"), "copy", "--insecure-policy", "--dest-tls-verify=false", *options]
    subprocess.run([*command, f"oci:{layout}:1", f"docker://{target}"], check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("docker", [False, True])
def test_against_docker_registry(
    start_registry: StartRegistry,
    oci_layout: tuple[Path, list[bytes]],
    source: RegistrySource,
    *,
    docker: bool,
) -> None:
    """A real registry's image is found, read and downloaded, in both manifest formats."""
    layout, layers = oci_layout
    host = start_registry()
    skopeo_copy(layout, f"{host}/org/tool:1", *(["--format", "v2s2"] if docker else []))
    skopeo_copy(layout, f"{host}/org/tool:2", *(["--format", "v2s2"] if docker else []))
    name = Reference.parse(f"{host}/org/tool:1")
    content, digest, media_type = source.manifest(name)
    assert source.head(name) == digest
    assert sorted(source.tags(name)) == ["1", "2"]
    manifest = parse_document(content, digest, media_type, str(name))
    assert isinstance(manifest, Manifest)
    assert [b"".join(source.blob(name, layer)) for layer in manifest.layers] == layers
    config = parse_config(b"".join(source.blob(name, manifest.config)), manifest, str(name))
    assert len(config.diff_ids) == 2
    for missing in ("org/tool:3", "org/none:1"):
        with pytest.raises(ImageNotFound):
            source.head(Reference.parse(f"{host}/{missing}"))
        with pytest.raises(ImageNotFound):
            source.manifest(Reference.parse(f"{host}/{missing}"))


def test_against_docker_registry_with_passwords(
    start_registry: StartRegistry, oci_layout: tuple[Path, list[bytes]], clock: FakeTime
) -> None:
    """A real registry with htpasswd lets the right password in, and nobody else."""
    layout, layers = oci_layout
    host = start_registry("alice", "pässword:1")
    skopeo_copy(layout, f"{host}/org/tool:1", "--dest-creds", "alice:pässword:1")
    name = Reference.parse(f"{host}/org/tool:1")

    class Known:
        def __init__(self, credential: Credential) -> None:
            self.credential = credential

        def find(self, registry: str) -> Credential:
            assert registry == host
            return self.credential

    def client(credential: Credential) -> RegistrySource:
        return RegistrySource(
            default=RegistrySettings(insecure=True), credentials=Known(credential), timing=clock.timing()
        )

    good = client(Credential("alice", "pässword:1"))
    content, digest, media_type = good.manifest(name)
    manifest = parse_document(content, digest, media_type, str(name))
    assert isinstance(manifest, Manifest)
    assert b"".join(good.blob(name, manifest.layers[1])) == layers[1]
    good.close()
    for credential in (Credential(), Credential("alice", "wr0ng-secret")):
        bad = client(credential)
        with pytest.raises(AccessDenied, match="401 Unauthorized") as caught:
            bad.manifest(name)
        bad.close()
        assert "wr0ng-secret" not in str(caught.value)


def test_a_part_of_a_blob() -> None:
    """Just the bytes that were asked for, or None: for a whole answer, another range, an error, or a cut."""
    blob = bytes(range(256)) * 8
    with ScriptableRegistry() as registry:
        image = registry.add_image("org/name", "1", [blob])
        name = Reference.parse(f"{registry.host}/org/name:1")
        descriptor = Descriptor("x", Digest.parse(image.layers[0]), len(blob))
        source = RegistrySource(default=RegistrySettings(insecure=True, requests_per_second=1000))
        assert source.part(name, descriptor, 100, 4) == blob[100:104]
        assert source.part(name, descriptor, len(blob) - 4, 4) == blob[-4:]
        assert source.part(name, descriptor, 0, 4) == blob[:4]
        registry.ranges = False
        assert source.part(name, descriptor, 0, 4) is None
        registry.ranges = True
        other = {"Content-Range": f"bytes 0-3/{len(blob)}"}
        for status, headers in ((206, other), (206, {}), (404, {}), (416, {})):
            registry.fail("/blobs/", status=status, headers=headers, body=blob[:4])
            assert source.part(name, descriptor, 100, 4) is None
            registry.heal()
        registry.truncate("/blobs/", 2)
        assert source.part(name, descriptor, 100, 4) is None
        registry.heal()
        assert source.part(name, descriptor, 100, 4) == blob[100:104]
        source.close()
