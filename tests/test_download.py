"""Blobs over real HTTP into a real spool: cuts, lies, changes, several places, foreign layers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, InvalidManifest, LimitExceeded, RegistryUnavailable
from cvmfs_sync.image import Descriptor
from cvmfs_sync.ports import Silent
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry import LayoutSource, RegistrySettings, RegistrySource, Timing
from cvmfs_sync.resolve import Sources
from cvmfs_sync.spool import Spool
from tests.fakes.scriptable_registry import BasicAuth, ScriptableRegistry, chunked, sha256

BIG = random.Random(3).randbytes(3 * 1024 * 1024 + 321)
SMALL = b"0123456789"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
AT_ONCE = Timing(sleep=lambda _seconds: None)


@pytest.fixture
def other() -> Iterator[ScriptableRegistry]:
    """Another host."""
    with ScriptableRegistry() as server:
        yield server


def descriptor_of(content: bytes, *urls: str) -> Descriptor:
    """Of an ordinary layer, or of a foreign one with these URLs."""
    return Descriptor(FOREIGN if urls else "x", Digest.parse(sha256(content)), len(content), urls)


def get(spool: Path, registry: ScriptableRegistry, descriptor: Descriptor, **settings: object) -> bytes:
    """Download it as an image of this registry."""
    options = RegistrySettings(insecure=True, **settings)  # type: ignore[arg-type]
    source = RegistrySource({registry.host: options}, default=RegistrySettings(insecure=True), timing=AT_ONCE)
    try:
        name = Reference.parse(f"{registry.host}/org/tool:1")
        path = Spool(spool).get(name, descriptor, Sources(source, LayoutSource()), Silent())
        return path.read_bytes()
    finally:
        source.close()


def ranges(registry: ScriptableRegistry) -> list[str | None]:
    """What the requests asked for."""
    return [request.headers.get("range") for request in registry.requests]


@pytest.mark.parametrize("seed", range(5))
def test_twenty_cuts(tmp_path: Path, registry: ScriptableRegistry, seed: int) -> None:
    """Each resumes exactly where the one before was cut: no byte is sent twice."""
    chance = random.Random(seed)
    cuts = [chance.randrange(1, len(BIG) // 21) for _ in range(20)]
    registry.push_blob(BIG)
    for cut in cuts:
        registry.truncate("/blobs/", cut, times=1)
    assert get(tmp_path, registry, descriptor_of(BIG)) == BIG
    starts = [None, *(f"bytes={sum(cuts[:n])}-" for n in range(1, 21))]
    assert ranges(registry) == starts


def cut(registry: ScriptableRegistry, **headers: str) -> None:
    """Answer once with the first four of ten bytes."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    registry.fail("/blobs/", status=200, headers={"Content-Length": "10", **headers}, body=SMALL[:4], times=1)


def rest(registry: ScriptableRegistry, **headers: str) -> None:
    """Answer once with the other six."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    registry.fail("/blobs/", status=206, headers={"Content-Range": "bytes 4-9/10", **headers}, body=SMALL[4:], times=1)


@pytest.mark.parametrize(
    ("first", "second", "asked", "if_range"),
    [
        ({"ETag": '"a"'}, {"ETag": '"a"'}, [None, "bytes=4-"], '"a"'),
        ({"ETag": '"a"'}, {"ETag": 'W/"a"'}, [None, "bytes=4-"], '"a"'),
        ({"ETag": '"a"'}, {}, [None, "bytes=4-"], '"a"'),
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"a"'}, [None, "bytes=4-"], None),
        ({"ETag": '"a"'}, {"ETag": '"b"'}, [None, "bytes=4-", None], '"a"'),
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"b"'}, [None, "bytes=4-", None], None),
        ({"Last_Modified": "Mon, 01"}, {"Last_Modified": "Mon, 01"}, [None, "bytes=4-"], None),
        ({"Last_Modified": "Mon, 01"}, {"Last_Modified": "Tue, 02"}, [None, "bytes=4-", None], None),
        ({"ETag": '"a"', "Last_Modified": "1"}, {"ETag": '"a"', "Last_Modified": "2"}, [None, "bytes=4-"], '"a"'),
        ({}, {"ETag": '"b"', "Last_Modified": "2"}, [None, "bytes=4-"], None),
    ],
)
def test_a_blob_that_changes_after_a_cut_starts_again(
    tmp_path: Path,
    registry: ScriptableRegistry,
    first: dict[str, str],
    second: dict[str, str],
    asked: list[str | None],
    if_range: str | None,
) -> None:
    """Another ETag or date is another blob, and only a strong ETag goes into If-Range."""
    registry.push_blob(SMALL)
    cut(registry, **first)
    rest(registry, **second)
    assert get(tmp_path, registry, descriptor_of(SMALL)) == SMALL
    assert ranges(registry) == asked
    assert registry.requests[1].headers.get("if-range") == if_range


def test_what_came_before_a_change_is_thrown_away(tmp_path: Path, registry: ScriptableRegistry) -> None:
    """Wrong bytes, a cut, then the right blob with another ETag: the right one is what is kept."""
    registry.push_blob(SMALL)
    registry.fail("/blobs/", status=200, headers={"Content-Length": "10", "ETag": '"a"'}, body=b"xxxx", times=1)
    registry.fail("/blobs/", status=200, headers={"ETag": '"b"'}, body=SMALL, times=1)
    assert get(tmp_path, registry, descriptor_of(SMALL)) == SMALL
    assert ranges(registry) == [None, "bytes=4-", None]


def test_a_blob_that_changes_always(tmp_path: Path, registry: ScriptableRegistry) -> None:
    """It ends, as temporary."""
    for number in range(100):
        cut(registry, ETag=f'"{number}"')
    with pytest.raises(BlobMismatch, match="changed while it was downloaded") as caught:
        get(tmp_path, registry, descriptor_of(SMALL))
    assert caught.value.temporary
    assert len(registry.requests) < 20


@pytest.mark.parametrize("headers", [{}, {"Content-Range": "bytes */10"}, {"Content-Range": "nonsense"}])
def test_a_range_that_is_refused(tmp_path: Path, registry: ScriptableRegistry, headers: dict[str, str]) -> None:
    """After 416 the whole is asked for, and what is there already is skipped."""
    registry.push_blob(SMALL)
    cut(registry)
    registry.fail("/blobs/", status=416, headers=headers, times=1)
    assert get(tmp_path, registry, descriptor_of(SMALL)) == SMALL
    assert ranges(registry) == [None, "bytes=4-", None]


def test_a_range_that_is_refused_for_another_size(tmp_path: Path, registry: ScriptableRegistry) -> None:
    """A 416 that tells another size than the descriptor's ends it at once."""
    cut(registry)
    registry.fail("/blobs/", status=416, headers={"Content-Range": "bytes */4"})
    with pytest.raises(BlobMismatch, match="found: 4 bytes; expected: 10"):
        get(tmp_path, registry, descriptor_of(SMALL))
    assert len(registry.requests) == 2


@pytest.mark.parametrize(
    ("headers", "body", "error", "words"),
    [
        ({"Content-Length": "11"}, SMALL, BlobMismatch, "found: 11 bytes"),
        ({"Content-Length": "9"}, SMALL, BlobMismatch, "found: 9 bytes"),
        ({"Content-Length": "10"}, SMALL[:9], RegistryUnavailable, "breaks off again and again"),
        ({"Transfer-Encoding": "chunked"}, chunked([SMALL, b"x"]) + b"0\r\n\r\n", BlobMismatch, "more bytes"),
        ({"Transfer-Encoding": "chunked"}, chunked([SMALL[:9]]) + b"0\r\n\r\n", RegistryUnavailable, "breaks off"),
        ({}, SMALL[::-1], BlobMismatch, "is damaged"),
    ],
)
def test_servers_that_lie(
    tmp_path: Path,
    registry: ScriptableRegistry,
    headers: dict[str, str],
    body: bytes,
    error: type[ImageError],
    words: str,
) -> None:
    """A length that is wrong, a body that is: each is told for what it is, and leaves nothing behind."""
    registry.fail("/blobs/", status=200, headers=headers, body=body, times=1)
    registry.fail("/blobs/", status=200, headers={"Transfer-Encoding": "chunked"}, body=chunked([]) + b"0\r\n\r\n")
    with pytest.raises(error, match=words):
        get(tmp_path, registry, descriptor_of(SMALL))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_loop_of_redirects(tmp_path: Path, registry: ScriptableRegistry) -> None:
    """It is final: asking again would lead around again."""
    registry.redirect("", lambda path: path)
    with pytest.raises(ImageError, match="redirects more than") as caught:
        get(tmp_path, registry, descriptor_of(SMALL))
    assert not caught.value.temporary


# --- mirrors ----------------------------------------------------------------------------------------------------------


def test_a_mirror_with_wrong_bytes_is_passed_over(
    tmp_path: Path, registry: ScriptableRegistry, other: ScriptableRegistry
) -> None:
    """A cache that damages a blob costs a second download, not the image; it is not asked for that blob again."""
    registry.push_blob(BIG)
    other.push_blob(BIG)
    other.corrupt("/blobs/")
    mirrors = (f"http://{other.host}",)
    assert get(tmp_path, registry, descriptor_of(BIG), mirrors=mirrors) == BIG
    assert (len(other.requests), len(registry.requests)) == (1, 1)


def test_a_mirror_that_breaks_off(tmp_path: Path, registry: ScriptableRegistry, other: ScriptableRegistry) -> None:
    """The registry goes on where the mirror stopped."""
    registry.push_blob(BIG)
    other.push_blob(BIG)
    other.truncate("/blobs/", 2_000_000)
    assert get(tmp_path, registry, descriptor_of(BIG), mirrors=(f"http://{other.host}",)) == BIG
    assert ranges(registry) == ["bytes=2000000-"]


# --- foreign layers ---------------------------------------------------------------------------------------------------


def test_foreign_layers_are_refused_by_default(
    tmp_path: Path, registry: ScriptableRegistry, other: ScriptableRegistry
) -> None:
    """Nobody is asked; the message names the option that allows it."""
    other.push_blob(SMALL)
    url = f"http://{other.host}/v2/x/blobs/{sha256(SMALL)}"
    with pytest.raises(InvalidManifest, match=f"'foreign_layers: true' for {registry.host}"):
        get(tmp_path, registry, descriptor_of(SMALL, url))
    assert registry.requests == other.requests == []


def test_urls_of_other_layers_are_never_used(
    tmp_path: Path, registry: ScriptableRegistry, other: ScriptableRegistry
) -> None:
    """Only layers whose type says that they need not be kept have places of their own."""
    other.push_blob(SMALL)
    plain = Descriptor("x", Digest.parse(sha256(SMALL)), 10, (f"http://{other.host}/v2/x/blobs/{sha256(SMALL)}",))
    with pytest.raises(ImageError, match="has the manifest but not its blob"):
        get(tmp_path, registry, plain, foreign_layers=True)
    assert other.requests == []


def test_the_registry_is_asked_first(tmp_path: Path, registry: ScriptableRegistry, other: ScriptableRegistry) -> None:
    """It may keep the layer all the same; then no URL is followed."""
    registry.push_blob(SMALL)
    url = f"http://{other.host}/x"
    assert get(tmp_path, registry, descriptor_of(SMALL, url), foreign_layers=True) == SMALL
    assert other.requests == []


def test_urls_are_tried_in_order(tmp_path: Path, registry: ScriptableRegistry, other: ScriptableRegistry) -> None:
    """Missing, of another size, damaged, broken off in the middle: the next one is tried, without credentials."""
    registry.auth = BasicAuth({"user": "password"})
    other.push_blob(BIG)
    good = f"/v2/x/blobs/{sha256(BIG)}"
    other.fail("^/short", status=200, body=b"short")
    other.fail("^/wrong", status=200, body=bytes(len(BIG)))
    other.fail("^/half", status=200, body=BIG[:1_500_000], headers={"Content-Length": str(len(BIG))}, times=1)
    other.fail("^/half", status=404)
    urls = [f"http://{other.host}{path}" for path in ("/missing", "/short", "/wrong", "/half", good, "/unused")]
    assert get(tmp_path, registry, descriptor_of(BIG, *urls), foreign_layers=True) == BIG
    paths = [request.path for request in other.requests]
    assert paths[:3] == ["/missing", "/short", "/wrong"]
    assert paths.count("/wrong") == 1
    assert (paths[-1], ranges(other)[-1]) == (good, "bytes=1500000-")
    assert all("authorization" not in request.headers for request in other.requests)


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("ftp://example.org/x", InvalidManifest, "no https:// URL"),
        ("file:///etc/passwd", InvalidManifest, "no https:// URL"),
        ("https://", InvalidManifest, "no https:// URL"),
        ("//[bad", InvalidManifest, "no https:// URL"),
        ("", InvalidManifest, "no https:// URL"),
        ("http://127.0.0.1:1/secret", RegistryUnavailable, "127.0.0.1:1 does not answer"),
        ("http://{other}/secret", ImageError, "does not have foreign layer.*404 Not Found"),
    ],
)
def test_urls_that_give_nothing(
    tmp_path: Path,
    registry: ScriptableRegistry,
    other: ScriptableRegistry,
    url: str,
    error: type[ImageError],
    words: str,
) -> None:
    """The error is of the right kind; no path of a URL reaches it, for some are signed."""
    with pytest.raises(error, match=words) as caught:
        get(tmp_path, registry, descriptor_of(SMALL, url.format(other=other.host)), foreign_layers=True)
    assert "secret" not in str(caught.value)


def test_a_foreign_layer_that_may_come_later(
    tmp_path: Path, registry: ScriptableRegistry, other: ScriptableRegistry
) -> None:
    """If one place is only down, the error is temporary, whatever the last place says."""
    registry.fail("/blobs/", status=503)
    with pytest.raises(RegistryUnavailable, match="overloaded or failing"):
        get(tmp_path, registry, descriptor_of(SMALL, f"http://{other.host}/missing"), foreign_layers=True)
    assert len(other.requests) == 1


def test_foreign_layers_over_plain_http(tmp_path: Path, other: ScriptableRegistry) -> None:
    """What a registry over HTTPS names by http:// is not fetched, though the layer's digest would be checked."""
    other.push_blob(SMALL)
    url = f"http://{other.host}/v2/x/blobs/{sha256(SMALL)}"
    source = RegistrySource({"localhost:1": RegistrySettings(foreign_layers=True)}, timing=AT_ONCE)
    name = Reference.parse("localhost:1/org/tool:1")
    with pytest.raises(ImageError):
        Spool(tmp_path).get(name, descriptor_of(SMALL, url), Sources(source, LayoutSource()), Silent())
    source.close()
    assert other.requests == []


def test_no_room_for_a_download(tmp_path: Path, registry: ScriptableRegistry) -> None:
    """Nobody is asked for what can never fit."""
    registry.push_blob(BIG)
    source = RegistrySource(default=RegistrySettings(insecure=True), timing=AT_ONCE)
    name = Reference.parse(f"{registry.host}/org/tool:1")
    with pytest.raises(LimitExceeded, match="raise spool_limit"):
        Spool(tmp_path, limit=1000).get(name, descriptor_of(BIG), Sources(source, LayoutSource()), Silent())
    source.close()
    assert registry.requests == []
