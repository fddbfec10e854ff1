"""Images made ready and published: what is fetched, what a tree is made of, what is written, and what if it fails."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import BlobMismatch, ImageError, LimitExceeded
from cvmfs_sync.index import decode, encode
from cvmfs_sync.repository import DirectoryRepository
from cvmfs_sync.tar import Limits
from cvmfs_sync.treeindex import tree_id
from tests.fakes.scriptable_registry import FakeImage, ScriptableRegistry
from tests.support import images
from tests.support.cvmfs import FakeCvmfs
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.site import Site
from tests.support.trees import tree_listing
from tests.support.workshop import WHOLE, Workshop

OWN = 16 << 10
"""Bytes of our own scripts in each tree, at most."""


SIZE = 300_000
"""Of a file. A hundred of them are enough for a clone to pay on a server."""


@functools.cache
def noise(seed: object) -> bytes:
    return random.Random(str(seed)).randbytes(SIZE)


def base(size: int = SIZE) -> list[images.Entry]:
    """A hundred files."""
    return [d("usr"), *[f(f"usr/{number}", noise(number)[:size]) for number in range(100)]]


def push(
    registry: ScriptableRegistry, name: str, *layers: list[images.Entry], tag: str = "1", **more: Any
) -> FakeImage:
    return registry.add_image(name, tag, [images.layer(*each, compression="none").tar for each in layers], **more)


def fetched(registry: ScriptableRegistry, image: FakeImage) -> list[int]:
    """The numbers of the layers that were asked for since the last look."""
    asked = [path.rpartition("/")[2] for path in registry.paths("GET")]
    registry.requests.clear()
    return [number for number, layer in enumerate(image.layers) if layer in asked]


def record(site: Site, image: FakeImage) -> dict[str, Any]:
    digits = image.digest.removeprefix("sha256:")
    found: dict[str, Any] = json.loads((site.root / f".cvmfs-sync/images/{digits[:2]}/{digits}.json").read_bytes())
    return found


def tree(image: FakeImage) -> str:
    digits = image.digest.removeprefix("sha256:")
    return f".flat/{digits[:2]}/{digits}"


# --- what is fetched --------------------------------------------------------------------------------------------------


def test_known_layers_are_fetched_when_one_of_their_files_is_written(
    shop: Workshop, registry: ScriptableRegistry
) -> None:
    """And not before: a successor costs its new layer, and one whose files are all there costs none."""
    first = push(registry, "org/tool", base(1_000), [f("a", "1")])
    old = shop.publish(shop.resolve(f"{registry.host}/org/tool:1"))
    assert fetched(registry, first) == [0, 1]
    shop.spool.clear()
    second = push(registry, "org/tool", base(1_000), [f("a", "1")], [f("b", "2")])
    new = shop.publish(shop.resolve(f"{registry.host}/org/tool:1"), old.path)
    assert (fetched(registry, second), new.record["made_of"]) == ([2], old.path)
    shop.spool.clear()
    # The same layers in another order, and one without a layer: all files are there.
    third = push(registry, "org/tool", [f("a", "1")], base(1_000))
    assert shop.publish(shop.resolve(f"{registry.host}/org/tool:1"), new.path).record["made_of"] is not None
    assert fetched(registry, third) == []


def test_what_an_image_costs_is_counted(shop: Workshop, registry: ScriptableRegistry) -> None:
    """Bytes that came, and bytes of files in layers that had to be read: those of a successor are its new layer's."""
    first = push(registry, "org/tool", base(1_000), [f("a", "1")])
    with shop.prepare(shop.resolve(f"{registry.host}/org/tool:1")) as prepared:
        assert prepared.fetched.effort.bytes == sum(len(registry.blobs[layer]) for layer in first.layers)
        assert prepared.flattened.effort.bytes == 100 * 1_000 + 1
        assert 0 < prepared.fetched.effort.seconds <= prepared.seconds
        assert 0 < prepared.flattened.effort.seconds <= prepared.seconds
        old = shop.put(prepared)
    shop.spool.clear()
    second = push(registry, "org/tool", base(1_000), [f("a", "1")], [f("b", "22")])
    with shop.prepare(shop.resolve(f"{registry.host}/org/tool:1"), old.path) as prepared:
        assert prepared.fetched.effort.bytes == len(registry.blobs[second.layers[2]])
        assert prepared.flattened.effort.bytes == 2


def test_waiting_for_a_layer_is_no_flattening(shop: Workshop, registry: ScriptableRegistry) -> None:
    """A slow registry makes fetching slow, and nothing else."""
    push(registry, "org/tool", [f("a", "1")])
    registry.delay("/blobs/", 0.7)
    image = shop.resolve(f"{registry.host}/org/tool:1")
    with shop.prepare(image) as prepared:
        fetched, flattened = prepared.fetched.effort, prepared.flattened.effort
    assert fetched.seconds >= 0.7
    assert fetched.seconds + flattened.seconds <= prepared.seconds


def test_a_known_layer_whose_file_was_hidden_is_fetched(shop: Workshop, registry: ScriptableRegistry) -> None:
    """What a published tree does not show has to be written from its layer."""
    hidden = push(registry, "org/tool", base(1_000), [images.whiteout("usr/7")])
    old = shop.publish(shop.resolve(f"{registry.host}/org/tool:1"))
    fetched(registry, hidden)
    shop.spool.clear()
    shown = push(registry, "org/tool", base(1_000), [f("x", "new")])
    new = shop.publish(shop.resolve(f"{registry.host}/org/tool:1"), old.path)
    assert (fetched(registry, shown), new.record["made_of"]) == ([0, 1], old.path)
    assert (shop.repository.root / new.path / "usr/7").read_bytes() == noise(7)[:1_000]


def test_a_whole_tree_needs_all_layers(tmp_path: Path, registry: ScriptableRegistry) -> None:
    """Known or not."""
    shop = Workshop(tmp_path, DirectoryRepository(tmp_path / "published"), WHOLE, insecure=(registry.host,))
    push(registry, "org/tool", base(1_000), [f("a", "1")])
    shop.publish(shop.resolve(f"{registry.host}/org/tool:1"))
    shop.spool.clear()
    second = push(registry, "org/tool", base(1_000), [f("a", "1")], [f("b", "2")])
    registry.requests.clear()
    new = shop.publish(shop.resolve(f"{registry.host}/org/tool:1"))
    assert (fetched(registry, second), new.record["made_of"]) == ([0, 1, 2], None)
    shop.close()


@pytest.mark.parametrize("what", ["layers", "trees", "both"])
@pytest.mark.parametrize("damage", ["lost", "cut", "garbage", "another's"])
def test_indexes_that_are_lost_or_damaged_are_made_again(
    shop: Workshop, registry: ScriptableRegistry, what: str, damage: str
) -> None:
    """A layer's from the layer, a tree's from the tree: nothing else is different, and the relative is found."""
    push(registry, "org/tool", base(1_000), [f("a", "1")])
    old = shop.publish(shop.resolve(f"{registry.host}/org/tool:1"))
    shop.spool.clear()
    for path in (shop.home / "indexes").glob("*/*/*.idx"):
        if what in (path.parts[-3], "both"):
            match damage:
                case "lost":
                    path.unlink()
                case "cut":
                    path.write_bytes(path.read_bytes()[:-1])
                case "garbage":
                    path.write_bytes(b"no index")
                case _:
                    path.write_bytes(encode(replace(decode(path.read_bytes()), diff_id=tree_id("another"))))
    shop.renew()
    second = push(registry, "org/tool", base(1_000), [f("a", "1")], [f("b", "2")])
    registry.requests.clear()
    new = shop.publish(shop.resolve(f"{registry.host}/org/tool:1"), old.path)
    assert new.record["made_of"] == old.path
    assert fetched(registry, second) == ([2] if what == "trees" else [0, 1, 2])
    assert new.record["written"] == {"files": 1, "bytes": 1, "removed": 0}


def test_an_index_that_cannot_be_kept_is_no_failure(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The image is published all the same; the next time more has to be read."""

    def full(self: object, index: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(shop.layer_indexes), "put", full)
    first = shop.publish(images.Image((images.layer(*base(1_000)),)))
    assert "could not be kept" in caplog.text
    second = shop.publish(images.Image((images.layer(*base(1_000)), images.layer(f("new")))), first.path)
    assert second.record["made_of"] == first.path


# --- what it is made of -----------------------------------------------------------------------------------------------


def stamped(entries: list[images.Entry], changed: int) -> list[images.Entry]:
    """The same files as of another build: other owners, which nobody keeps, and so many files with other content."""
    files = [each for each in entries if each.content]
    other = {each.path: noise(f"changed {each.path}") for each in files[:changed]}
    return [replace(each, uid=77, content=other.get(each.path, each.content)) for each in entries]


SUCCESSORS: dict[str, tuple[list[list[images.Entry]], int]] = {
    "a layer more": ([base(), [f("new", noise("new"))]], SIZE),
    "a file changed": ([[*base()[:-1], f("usr/99", noise("new"))]], SIZE),
    "only the environment": ([base()], 0),
    "rebuilt": ([stamped(base(), 1)], SIZE),
    "rebuilt in two layers": ([stamped(base()[:50], 0), stamped(base()[50:], 2)], 2 * SIZE),
    "files removed": ([base(), [images.whiteout("usr/1"), images.whiteout("usr/2")]], 0),
}


@pytest.mark.parametrize(("layers", "changed"), SUCCESSORS.values(), ids=SUCCESSORS.keys())
def test_a_moved_tag_is_made_of_what_it_was(
    site: Site, registry: ScriptableRegistry, layers: list[list[images.Entry]], changed: int
) -> None:
    """In one transaction that writes the change and little else; record and report say so."""
    name = f"{registry.host}/org/tool:1"
    first = push(registry, "org/tool", base(), [f("a", "a")])
    site.wish(name)
    assert site.sync() == {name: "published"}
    assert record(site, first)["made_of"] is None
    opened = site.transactions() if site.fake else 0
    second = push(registry, "org/tool", *layers[:1], [f("a", "a")], *layers[1:], config={"config": {"Env": ["A=B"]}})
    assert site.sync() == {name: "published"}
    _assert_made_of(site, second, first, changed)
    if site.fake:
        assert site.transactions() == opened + 1
        (published,) = [each for each in site.fake.commands() if each["argv"][0] == "publish"][-1:]
        assert published["bytes"] <= 1.2 * changed + OWN + 20_000  # the catalogue and the record, too


def test_a_first_image_is_made_of_another_on_the_same_base(site: Site, registry: ScriptableRegistry) -> None:
    """Although nobody has heard its name before; both in one cycle, the second while the first is being published."""
    names = [f"{registry.host}/org/{name}:1" for name in ("one", "other")]
    first = push(registry, "org/one", base(), [f("one", noise("one"))])
    second = push(registry, "org/other", base(), [f("other", noise("other"))])
    site.wish(*names)
    assert set(site.sync().values()) == {"published"}
    _assert_made_of(site, second, first, SIZE)
    assert not (site.root / tree(second) / "one").exists()


def test_a_lost_state_directory_costs_no_relative(site: Site, registry: ScriptableRegistry) -> None:
    """Nothing is published twice, and the next image is made of a tree that is read for it."""
    name = f"{registry.host}/org/tool:1"
    first = push(registry, "org/tool", base())
    site.wish(name)
    site.sync()
    shutil.rmtree(site.home / "state")
    opened = site.transactions() if site.fake else 0
    assert site.sync() == {name: "unchanged"}
    assert not site.fake or site.transactions() == opened
    second = push(registry, "org/tool", base(), [f("new", noise("new"))])
    assert site.sync() == {name: "published"}
    _assert_made_of(site, second, first, SIZE)


def _assert_made_of(site: Site, image: FakeImage, relative: FakeImage, changed: int) -> None:
    found = record(site, image)
    assert found["made_of"] == tree(relative)
    assert found["written"]["bytes"] <= 1.2 * changed + OWN
    (told,) = [each for each in site.report["images"] if each["digest"] == image.digest]
    assert told["made_of"] == tree(relative)
    assert told["written_bytes"] == found["written"]["bytes"]


# --- what is refused, and what fails ----------------------------------------------------------------------------------

LIMITS: dict[str, tuple[Limits, list[list[images.Entry]]]] = {
    "entries of all layers": (replace(Limits(), entries=5), [[f("a"), f("b"), f("c")], [f("d"), f("e"), f("f")]]),
    "bytes of all layers": (replace(Limits(), bytes=50_000), [[f("a", b"x" * 30_000)], [f("b", b"x" * 30_000)]]),
    "hardlinks": (replace(Limits(), hardlinks=1), [[f("a"), images.hardlink("b", "a")], [images.hardlink("c", "a")]]),
    "path": (
        replace(Limits(), path=30),
        [[d("a/long/way/to/go"), images.symlink("l", "a/long/way/to/go")], [f("l/and/then/some/more")]],
    ),
    "depth": (replace(Limits(), depth=3), [[d("a/b/c"), images.symlink("l", "a/b/c")], [f("l/d/e")]]),
}


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
@pytest.mark.parametrize(("limits", "layers"), LIMITS.values(), ids=LIMITS.keys())
def test_limits_hold(tmp_path: Path, limits: Limits, layers: list[list[images.Entry]], known: bool) -> None:
    """Of all layers together, and of those that are known by an index that was made under other limits."""
    image = images.Image(tuple(images.layer(*each) for each in layers))
    shop = Workshop(tmp_path, DirectoryRepository(tmp_path / "published"), limits=limits)
    if known:
        other = Workshop(tmp_path, DirectoryRepository(tmp_path / "elsewhere"))
        other.publish(image)
    with pytest.raises(LimitExceeded):
        shop.publish(image)
    assert not shop.repository.root.exists()
    with pytest.raises(LimitExceeded):
        shop.prepare(shop.add(image))


def test_no_layer_is_read_after_the_limit(tmp_path: Path) -> None:
    """What is too large is refused when that is known, and not when all of it is in memory."""
    shop = Workshop(tmp_path, DirectoryRepository(tmp_path / "published"), limits=replace(Limits(), entries=5))
    layers = [images.layer(*[f(f"{number}-{each}") for each in range(4)]) for number in range(9)]
    with pytest.raises(LimitExceeded):
        shop.prepare(shop.add(images.Image(tuple(layers))))
    assert len([*(shop.home / "indexes/layers").rglob("*.idx")]) == 2


def test_a_layer_that_is_not_the_one_of_its_index_fails_its_image_only(
    site: Site, registry: ScriptableRegistry
) -> None:
    """A manifest that names a known diff_id and another blob: an error of the image, and nothing is published."""
    good, bad = (f"{registry.host}/org/{name}:1" for name in ("good", "bad"))
    layers = [
        images.layer(*each, compression="none").tar
        for each in (base(100), [f("x/y", "1"), f("hidden", "2")], [images.whiteout("hidden")])
    ]
    image = registry.add_image("org/good", "1", layers)
    site.wish(good)
    site.sync()
    diff_ids = [images.digest_of(each) for each in layers[:2]]
    for number, wrong in enumerate(
        ([f("x/y", "1")], [d("hidden")], [f("x/y", "1"), f("hidden", "3")], [f("x/y", "1"), f("hidden", "22")])
    ):
        blob = images.layer(*wrong, compression="none").tar
        registry.add_image("org/bad", "1", [layers[0], blob], diff_ids=diff_ids)
        other = push(registry, "org/other", base(100), [f("other", str(number))])
        site.wish(good, bad, f"{registry.host}/org/other:1")
        results = site.sync(rc=1)
        assert results == {good: "unchanged", bad: "failed", f"{registry.host}/org/other:1": "published"}
        assert site.error(bad)["type"] in ("InvalidImage", "NotAsMeant")
        assert set(site.links()) == {good, f"{registry.host}/org/other:1"}
        assert tree(image).rpartition("/")[2] in site.trees()
        assert tree(other).rpartition("/")[2] in site.trees()
        if site.fake:
            assert not site.fake.in_transaction


def test_a_damaged_blob_fails_as_ever(shop: Workshop, registry: ScriptableRegistry) -> None:
    """Nothing is left in the repository, and the next attempt succeeds."""
    push(registry, "org/tool", base(1_000))
    image = shop.resolve(f"{registry.host}/org/tool:1")
    registry.corrupt("/org/tool/blobs/")
    with pytest.raises(BlobMismatch):
        shop.publish(image)
    assert not shop.repository.root.exists()
    registry.heal()
    shop.publish(image)


def test_an_image_of_another_century_is_published(tmp_path: Path) -> None:
    """With the nearest time that the file system has; an update of it is a difference."""
    shop = Workshop(tmp_path, DirectoryRepository(tmp_path / "published"))
    old = [f("a", "x", mtime=-3_000_000_000), f("b", "x", mtime=9_000_000_000)]
    first = shop.publish(images.Image((images.layer(*old),)))
    second = shop.publish(images.Image((images.layer(*old), images.layer(f("c", "y")))), first.path)
    assert second.record["written"] == {"files": 1, "bytes": 1, "removed": 0}


# --- a relative that is not what it was -------------------------------------------------------------------------------


def _instead(directory: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(directory)
    make(directory)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file that stays is gone": lambda root: (root / "usr/stays").unlink(),
    "a file that is touched is gone": lambda root: (root / "usr/touched").unlink(),
    "a file is there that comes": lambda root: (root / "usr/new").touch(),
    "a directory is there that comes": lambda root: (root / "made").mkdir(),
    "a directory has become a link": lambda root: _instead(root / "usr", lambda path: path.symlink_to("/etc")),
    "a directory has become a file": lambda root: _instead(root / "usr", Path.touch),
    "a directory is gone": lambda root: shutil.rmtree(root / "usr"),
    "a file has grown": lambda root: (root / "usr/stays").write_text("longer than it was"),
    "a mode": lambda root: (root / "usr/stays").chmod(0o600),
    "a file that is touched has other content": lambda root: (root / "usr/touched").write_text("TOUCHED"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_relative_is_no_relative(
    plain: Site, registry: ScriptableRegistry, damage: Callable[[Path], object]
) -> None:
    """The new tree is written whole and right, with one warning, and the cycle goes on."""
    name, other = (f"{registry.host}/org/{each}:1" for each in ("tool", "other"))
    old = [d("usr"), f("usr/stays", "stays"), f("usr/touched", "touched"), f("big", noise("big") * 30)]
    first = push(registry, "org/tool", old)
    plain.wish(name)
    plain.sync()
    damage(plain.root / tree(first))
    new = [*old[:2], f("usr/touched", "touched", 0o755), old[3], f("usr/new", "new"), f("made/x", "x")]
    second = push(registry, "org/tool", new)
    push(registry, "org/other", [f("o", "other")])
    plain.wish(name, other)
    result = plain.run("sync", "--json")
    assert {each["image"]: each["result"] for each in result.json["images"]} == {name: "published", other: "published"}
    assert record(plain, second)["made_of"] is None
    assert result.stderr.count(f"{name} is published whole") == 1
    listing = tree_listing(plain.root / tree(second))
    assert {"usr/stays", "usr/touched", "usr/new", "made/x", "big"} <= set(listing)
    assert listing["usr/stays"].digest == images.digest_of(b"stays")[7:]
    assert not (plain.root / ".cvmfs-sync/staging").exists()


def test_a_refused_clone_is_published_whole(
    tmp_path: Path, fake_cvmfs: FakeCvmfs, registry: ScriptableRegistry
) -> None:
    """With one warning that has the server's words; the transaction without a clone is another one."""
    site = Site(tmp_path / "site", fake_cvmfs, (registry.host,))
    name = f"{registry.host}/org/tool:1"
    push(registry, "org/tool", base())
    site.wish(name)
    site.sync()
    second = push(registry, "org/tool", base(), [f("a", "1")])
    words = "CernVM-FS error: cannot clone directory tree. PANIC: source 'x' cannot be read"
    fake_cvmfs.switch("fail", f"transaction#1=22::{words}")
    result = site.run("sync", "--json")
    assert [each["result"] for each in result.json["images"]] == ["published"]
    assert record(site, second)["made_of"] is None
    warnings = [line for line in result.stderr.splitlines() if "is published whole" in line]
    assert len(warnings) == 1
    assert "PANIC" in warnings[0]
    assert not fake_cvmfs.in_transaction
    commands = [each["argv"] for each in fake_cvmfs.commands() if each["argv"][0] == "transaction"]
    assert ["-T" in each for each in commands] == [False, True, False]


def test_a_relative_that_never_came_is_replaced_by_another(
    plain: Site, registry: ScriptableRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second image was to be made of the first, which failed while it was written: it is made of what is there."""
    from cvmfs_sync import cycle, executor
    from cvmfs_sync.imagelist import load
    from cvmfs_sync.publish import put_image
    from cvmfs_sync.service import load_config, make_context

    there = push(registry, "org/there", base()[:40])
    plain.wish(f"{registry.host}/org/there:1")
    plain.sync()
    push(registry, "org/first", base())
    second = push(registry, "org/second", base(), [f("a", "1")])
    wishes = load(plain.wish(*[f"{registry.host}/org/{name}:1" for name in ("there", "first", "second")]))

    def broken(repository: Any, recipe: Any, prepared: Any, *more: Any) -> Any:
        if "org/first" in str(prepared.image.name):
            raise ImageError("it fails")
        return put_image(repository, recipe, prepared, *more)

    monkeypatch.setattr(executor, "put_image", broken)
    with make_context(load_config(plain.config)) as context:
        outcomes = {str(each.target): each for each in cycle.sync(context, wishes).outcomes}
    results = {name.rpartition("/")[2]: each.result for name, each in outcomes.items()}
    assert results == {"there:1": "unchanged", "first:1": "failed", "second:1": "published"}
    assert record(plain, second)["made_of"] == tree(there)
    assert (plain.root / tree(second) / "usr/99").read_bytes() == noise(99)
