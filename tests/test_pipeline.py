"""One image is prepared while another is published: order, failures, the end in the middle, and the spool's limit."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from functools import partial

import pytest

from cvmfs_sync.errors import BlobMismatch, LimitExceeded
from cvmfs_sync.pipeline import Job, pipeline
from cvmfs_sync.ports import Silent, Unit
from cvmfs_sync.prepare import Prepared
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support import images
from tests.support.places import until
from tests.support.workshop import Workshop

SIZE = 100_000


def jobs(shop: Workshop, registry: ScriptableRegistry, *names: str) -> list[Job]:
    """Images that have nothing in common, each of one large layer."""
    result = []
    for name in names:
        content = random.Random(name).randbytes(SIZE)
        registry.add_image(f"org/{name}", "1", [images.layer(images.file(name, content)).tar])
        result.append(Job(name, shop.resolve(f"{registry.host}/org/{name}:1"), None))
    return result


def blobs(registry: ScriptableRegistry, name: str) -> int:
    """How many layers of this image were asked for."""
    return sum(f"/org/{name}/blobs/" in path for path in registry.paths("GET"))


def asked_for(registry: ScriptableRegistry, name: str) -> bool:
    """Whether its layer was asked for, and its configuration was not again."""
    return blobs(registry, name) == 1


def threads() -> set[str]:
    """The threads that prepare or fetch."""
    return {each.name for each in threading.enumerate() if each.name.startswith(("prepare", "fetch", "layer"))}


def test_jobs_come_in_their_order_and_one_is_ahead(shop: Workshop, registry: ScriptableRegistry) -> None:
    """While one is in use the next is fetched, and no further one."""
    todo = jobs(shop, registry, "a", "b", "c", "d")
    registry.requests.clear()
    seen = []
    with closing(pipeline(shop.preparer, todo, Silent())) as ready:
        for job, prepared in ready:
            assert isinstance(prepared, Prepared)
            seen.append(job.what)
            following = "abcd"[len(seen) :]
            if following:
                until(partial(asked_for, registry, following[0]))
            assert not any(blobs(registry, name) for name in following[1:])
            shop.put(prepared)
    assert seen == ["a", "b", "c", "d"]
    assert not threads()


def test_a_failure_is_a_value_and_the_others_go_on(shop: Workshop, registry: ScriptableRegistry) -> None:
    """The job that failed comes in its turn with why."""
    todo = jobs(shop, registry, "a", "b", "c")
    registry.corrupt("/org/b/blobs/")
    with closing(pipeline(shop.preparer, todo, Silent())) as ready:
        results = [(job.what, type(result)) for job, result in ready]
    assert results == [("a", Prepared), ("b", BlobMismatch), ("c", Prepared)]
    assert not threads()


def test_what_was_used_gives_its_blobs_back(shop: Workshop, registry: ScriptableRegistry) -> None:
    """At the latest when the next is asked for; then nothing keeps them in the spool."""
    todo = jobs(shop, registry, "a", "b")
    with closing(pipeline(shop.preparer, todo, Silent())) as ready:
        for job, _ in ready:
            for layer in job.image.manifest.layers:
                shop.spool.drop(layer.digest)
                assert (tmp := shop.home / "spool/blobs/sha256" / layer.digest.hex).exists(), tmp
    shop.spool.clear()
    assert not [path for path in (shop.home / "spool").rglob("*") if path.is_file()]


@pytest.mark.parametrize("at", ["before the first", "first", "last"])
def test_closing_stops_the_work(shop: Workshop, registry: ScriptableRegistry, at: str) -> None:
    """A download that is under way ends at its next piece, what is ready is closed, and no thread is left."""
    todo = jobs(shop, registry, "a", "b")
    answering = threading.Event()
    registry.before("/org/b/blobs/", lambda: answering.wait(20))
    ready = pipeline(shop.preparer, todo if at != "last" else todo[:1], Silent())
    if at != "before the first":
        next(ready)
    if at == "first":
        until(lambda: blobs(registry, "b") == 1)
        answering.set()
    ready.close()
    assert not threads()
    shop.spool.clear()
    assert not [path for path in (shop.home / "spool").rglob("*") if path.is_file()]


@pytest.mark.parametrize("limit", [1.5, 2.5])
def test_the_limit_of_the_spool_is_kept(shop: Workshop, registry: ScriptableRegistry, limit: float) -> None:
    """With room for one image or two, images take turns: all are published, and never is more on disk."""
    shop.spool_limit = int(limit * SIZE)
    shop.renew()
    todo = jobs(shop, registry, *"abcdef")
    most = 0

    def look() -> None:
        nonlocal most
        found = [path.stat().st_size for path in (shop.home / "spool").rglob("*") if path.is_file()]
        most = max(most, sum(found))

    registry.before("/blobs/", look)
    with closing(pipeline(shop.preparer, todo, Silent())) as ready:
        for _, prepared in ready:
            if isinstance(prepared, Exception):
                raise prepared
            look()
            shop.put(prepared)
    assert 0 < most <= shop.spool_limit


def test_an_image_that_can_never_fit_fails_alone(shop: Workshop, registry: ScriptableRegistry) -> None:
    """It does not wait for ever, and those after it are prepared."""
    shop.spool_limit = int(1.5 * SIZE)
    shop.renew()
    todo = jobs(shop, registry, "a", "b")
    content = random.Random(0).randbytes(2 * SIZE)
    registry.add_image("org/large", "1", [images.layer(images.file("large", content)).tar])
    todo.insert(1, Job("large", shop.resolve(f"{registry.host}/org/large:1"), None))
    with closing(pipeline(shop.preparer, todo, Silent())) as ready:
        assert [type(result) for _, result in ready] == [Prepared, LimitExceeded, Prepared]


def test_known_layers_count_for_the_limit(shop: Workshop, registry: ScriptableRegistry) -> None:
    """Layers that are fetched although their indexes are known need room like all others."""
    todo = jobs(shop, registry, *"abc")
    with closing(pipeline(shop.preparer, todo, Silent())) as ready:
        assert all(isinstance(result, Prepared) for _, result in ready)
    shop.spool.clear()
    shop.spool_limit = int(1.5 * SIZE)
    shop.renew()
    in_use = 0
    too_early = threading.Event()
    registry.before("/blobs/", lambda: too_early.set() if in_use else None)
    with closing(pipeline(shop.preparer, todo, Silent())) as ready:
        for _, prepared in ready:
            assert isinstance(prepared, Prepared)
            in_use += 1
            assert not too_early.wait(0.1)
            shop.put(prepared)
            in_use -= 1
            prepared.close()
    assert sum("/blobs/" in path for path in registry.paths("GET")) == 9, "configurations, and layers twice"


def test_progress_is_shown_of_what_is_waited_for(shop: Workshop, registry: ScriptableRegistry) -> None:
    """Each image is begun once, in its turn, and all of its bytes are told."""
    told: list[tuple[str, int]] = []

    class Told:
        def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
            told.append((what, -total))

        def advance(self, amount: int) -> None:
            told[-1] = told[-1][0], told[-1][1] + amount

    todo = jobs(shop, registry, "a", "b", "c")
    with closing(pipeline(shop.preparer, todo, Told())) as ready:
        for _, prepared in ready:
            assert isinstance(prepared, Prepared)
    assert told == [("fetching a", 0), ("fetching b", 0), ("fetching c", 0)]
