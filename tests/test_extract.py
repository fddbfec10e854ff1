"""What a difference writes is taken out of its layers before the lock is held, where there is room for it."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync import extract
from cvmfs_sync.repository import DirectoryRepository
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support import images
from tests.support.images import file as f
from tests.support.workshop import Workshop

SIZE = 100_000
CONTENT = [random.Random(number).randbytes(SIZE) for number in range(4)]


@pytest.fixture
def registry() -> Any:
    """A registry with an image of two layers, and one with a file more in each of them."""
    with ScriptableRegistry() as server:
        first = [f("a", CONTENT[0]), f("kept", "1")], [f("b", CONTENT[1])]
        second = [*first[0], f("new/c", CONTENT[2])], [*first[1], f("new/d", CONTENT[3]), f("new/empty", b"")]
        for tag, layers in (("1", first), ("2", second)):
            server.add_image("org/a", tag, [images.layer(*each).tar for each in layers])
        yield server


@pytest.fixture
def shop(tmp_path: Path, registry: ScriptableRegistry) -> Any:
    """A workshop that has published the first one."""
    workshop = Workshop(tmp_path, DirectoryRepository(tmp_path / "root"), insecure=(registry.host,))
    workshop.publish(workshop.resolve(f"{registry.host}/org/a:1"))
    yield workshop
    workshop.close()


def put(shop: Workshop, registry: ScriptableRegistry, *, lose_blobs: bool = False) -> bool:
    """Publish the second image as a difference; whether its files had been taken out ahead."""
    with shop.prepare(shop.resolve(f"{registry.host}/org/a:2")) as prepared:
        assert prepared.choice.relative is not None
        ahead = prepared.extracted is not None
        if lose_blobs:
            shutil.rmtree(shop.home / "spool/blobs")
        tree = shop.repository.root / shop.put(prepared).path
        assert [(tree / name).read_bytes() for name in ("a", "b", "new/c", "new/d")] == CONTENT
        assert (tree / "new/empty").read_bytes() == b""
    return ahead


def test_nothing_is_inflated_while_the_lock_is_held(shop: Workshop, registry: ScriptableRegistry) -> None:
    """The layers' files may even have gone: what is written stands in a file that has no name."""
    before = set((shop.home / "spool").iterdir())
    assert put(shop, registry, lose_blobs=True)
    assert set((shop.home / "spool").iterdir()) <= before


def test_without_room_in_the_spool_layers_are_read_under_the_lock(shop: Workshop, registry: ScriptableRegistry) -> None:
    """The limit of the spool holds for what is taken out, too, and is no reason to fail."""
    shop.spool_limit = 4 * SIZE + SIZE // 2
    shop.renew()
    assert not put(shop, registry)


@pytest.mark.parametrize("why", ["too large", "disk full", "read only"])
def test_what_cannot_be_taken_out_is_no_failure(
    shop: Workshop, registry: ScriptableRegistry, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """More than is worth it, too little space, a spool that takes no file: the image is published all the same."""

    def refuse(*_: object, **more: object) -> None:
        raise OSError(30, "Read-only file system")

    match why:
        case "too large":
            monkeypatch.setattr(extract, "_MOST", 2 * SIZE - 1)
        case "disk full":
            monkeypatch.setattr(extract, "_RESERVE", 1 << 62)
        case _:
            monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert not put(shop, registry)
