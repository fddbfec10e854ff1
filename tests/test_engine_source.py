"""`registry.engine`: images of Podman's engine by docker-py, and of one that does what real ones do rarely."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cvmfs_sync.errors import (
    AccessDenied,
    BlobMismatch,
    ImageError,
    ImageNotFound,
    InvalidManifest,
    LimitExceeded,
    RegistryUnavailable,
)
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.ports import Source
from cvmfs_sync.reference import ArchiveReference, EngineReference, Platform, parse_image
from cvmfs_sync.registry import ArchiveSource, EngineSource, LayoutSource, RegistrySource
from cvmfs_sync.resolve import Sources, resolve, source_digest
from cvmfs_sync.tar import Limits
from tests import support
from tests.fakes.scriptable_engine import ScriptableEngine, start_scriptable_engine
from tests.support.dockersave import save_members, write_save
from tests.support.podman import PodmanEngine, start_podman
from tests.support.site import Site

LAYERS = tuple(support.layer(support.file(name, name * 3000), compression="none") for name in ("one", "two"))
IMAGE = support.Image(LAYERS, env=("A=1",), cmd=("true",), kind="docker")
MOVED = IMAGE.but(env=("A=2",))
NAME = EngineReference("localhost/tool", "1")
# docker-py leaves a socket that it could not connect to the garbage collector.
UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def image_id(image: support.Image) -> str:
    """What engines call an image: the digest of its configuration."""
    return support.digest_of(image.config_bytes)


@pytest.fixture(scope="module")
def podman() -> Iterator[PodmanEngine]:
    """Podman's engine without images."""
    with start_podman() as engine:
        yield engine


@pytest.fixture
def engine() -> Iterator[ScriptableEngine]:
    """An engine that has IMAGE."""
    with start_scriptable_engine() as running:
        yield running


def load(engine: ScriptableEngine, tmp_path: Path, image: support.Image, name: EngineReference = NAME) -> None:
    """Give the engine an image, or another one of that name."""
    path = write_save(tmp_path / "export.tar", save_members((image, [])))
    engine.images[f"{name.repository}:{name.tag}"] = image_id(image)
    engine.exports[image_id(image)] = path.read_bytes()


@pytest.fixture
def source(tmp_path: Path, engine: ScriptableEngine) -> Iterator[EngineSource]:
    """A source that asks it."""
    load(engine, tmp_path, IMAGE)
    made = EngineSource(tmp_path / "temporary", {"DOCKER_HOST": engine.host})
    yield made
    made.close()


def resolved(source: EngineSource, name: EngineReference) -> ResolvedImage:
    """Resolve, as the core does."""
    sources = Sources(RegistrySource(), LayoutSource(), engine=source)
    return resolve(name, source_digest(name, sources), Platform(), sources)


def blobs(source: EngineSource, image: ResolvedImage) -> list[bytes]:
    """The bytes of an image's layers."""
    assert isinstance(image.name, EngineReference)
    return [b"".join(source.blob(image.name, layer)) for layer in image.manifest.layers]


def test_is_a_source(source: EngineSource) -> None:
    """An engine fulfils the core's protocol."""
    checked: Source[EngineReference] = source
    assert checked is source


def test_an_image_of_podman(tmp_path: Path, podman: PodmanEngine) -> None:
    """What was loaded comes out: layers, configuration, and the identity that the same archive has."""
    path = write_save(tmp_path / "x.tar", save_members((IMAGE, ["localhost/tool:1"])))
    podman.podman("load", "-q", "-i", path)
    source = EngineSource(tmp_path / "temporary", podman.environment)
    assert str(source.head(NAME)) == image_id(IMAGE)
    image = resolved(source, NAME)
    assert str(image.source_digest) == image_id(IMAGE)
    assert image.digest == ArchiveSource(tmp_path).head(ArchiveReference(path))
    assert blobs(source, image) == [layer.tar for layer in LAYERS]
    assert image.config.environment == ("A=1",)
    # Another process, another export: the same image.
    again = EngineSource(tmp_path / "temporary", podman.environment)
    assert resolved(again, NAME) == image
    assert not list((tmp_path / "temporary").iterdir())
    again.close()
    source.close()


def test_tags_of_podman(tmp_path: Path, podman: PodmanEngine) -> None:
    """Tags are those of the name and of no other, also where the engine writes the name out."""
    path = write_save(tmp_path / "x.tar", save_members((MOVED, ["docker.io/library/lister:1"])))
    podman.podman("load", "-q", "-i", path)
    podman.podman("tag", "docker.io/library/lister:1", "docker.io/library/lister:2", "localhost/lister:3")
    source = EngineSource(tmp_path, podman.environment)
    assert sorted(source.tags(EngineReference("lister", None))) == ["1", "2"]
    assert list(source.tags(EngineReference("localhost/lister", None))) == ["3"]
    assert str(source.head(EngineReference("lister", "2"))) == image_id(MOVED)
    with pytest.raises(ImageNotFound, match="the engine has no such image"):
        source.head(EngineReference("lister", "4"))
    source.close()


def test_unpack_asks_the_engine_that_docker_host_names(tmp_path: Path, podman: PodmanEngine) -> None:
    """From the command line, like any other image; one that is not there is told."""
    podman.podman("load", "-q", "-i", write_save(tmp_path / "x.tar", save_members((IMAGE, ["localhost/cli:1"]))))
    support.run_cli("unpack", "docker-daemon:localhost/cli:1", tmp_path / "there", env=podman.environment).ok()
    assert (tmp_path / "there/two").read_text() == "two" * 3000
    failed = support.run_cli("unpack", "docker-daemon:localhost/cli:2", tmp_path / "x", env=podman.environment).ok(1)
    assert "docker-daemon:localhost/cli:2: the engine has no such image" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_unchanged_image_costs_one_request(engine: ScriptableEngine, source: EngineSource) -> None:
    """`head` inspects and exports nothing; resolving and reading all layers exports once."""
    source.head(NAME)
    source.head(NAME)
    assert engine.requests == ["/images/localhost/tool:1/json"] * 2
    engine.requests.clear()
    assert blobs(source, resolved(source, NAME)) == [layer.tar for layer in LAYERS]
    assert engine.requests == ["/images/localhost/tool:1/json", f"/images/{image_id(IMAGE)}/get"]


def test_a_name_that_moves_meanwhile(tmp_path: Path, engine: ScriptableEngine, source: EngineSource) -> None:
    """What was resolved is read, by ID; the next question gets the new image."""
    image = resolved(source, NAME)
    load(engine, tmp_path, MOVED)
    assert blobs(source, image) == [layer.tar for layer in LAYERS]
    assert source.head(NAME) != image.source_digest
    assert resolved(source, NAME).config.environment == ("A=2",)


def test_an_image_that_was_removed_meanwhile(engine: ScriptableEngine, source: EngineSource) -> None:
    """Its ID leads to nothing any more: that is proof."""
    digest = source.head(NAME)
    engine.exports.clear()
    with pytest.raises(ImageNotFound, match="no such image"):
        source.manifest(NAME, digest)


def test_an_image_store_whose_ids_are_manifests(tmp_path: Path, engine: ScriptableEngine, source: EngineSource) -> None:
    """Docker with containerd's image store names an image by its manifest, and exports compressed layers."""
    image = support.Image((support.layer(support.file("a", "1" * 5000)),))
    path = write_save(tmp_path / "y.tar", save_members((image, []), form="oci"))
    engine.images["localhost/tool:1"] = image.digest
    engine.exports[image.digest] = path.read_bytes()
    found = resolved(source, NAME)
    assert str(found.source_digest) == image.digest
    assert blobs(source, found) == [image.layers[0].blob]


def test_another_image_than_was_asked_for(tmp_path: Path, engine: ScriptableEngine, source: EngineSource) -> None:
    """An export is held against its ID."""
    load(engine, tmp_path, MOVED, EngineReference("x"))
    engine.exports[image_id(IMAGE)] = engine.exports[image_id(MOVED)]
    with pytest.raises(BlobMismatch, match="exported another image than it was asked for"):
        resolved(source, NAME)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, RegistryUnavailable),
        (503, RegistryUnavailable),
        (403, AccessDenied),
        (401, AccessDenied),
        (400, ImageError),
    ],
)
def test_refusals(engine: ScriptableEngine, source: EngineSource, status: int, error: type[ImageError]) -> None:
    """Each is told by type, with what the engine says; none of them is proof that an image is gone."""
    engine.status = status
    with pytest.raises(error, match=f"the engine refuses; found: {status}: scripted") as caught:
        source.head(NAME)
    assert type(caught.value) is error


@pytest.mark.parametrize("answer", [{}, [], {"Id": None}, {"Id": "sha256:../../x"}, {"Id": 7}, "text"])
def test_answers_without_an_id(engine: ScriptableEngine, source: EngineSource, answer: object) -> None:
    """What becomes a path is a digest or an error."""
    engine.answer = answer
    with pytest.raises(InvalidManifest, match="the engine names no ID"):
        source.head(NAME)


def test_an_id_without_its_algorithm(engine: ScriptableEngine, source: EngineSource) -> None:
    """Podman's own API writes it so."""
    engine.answer = {"Id": image_id(IMAGE).removeprefix("sha256:")}
    assert str(source.head(NAME)) == image_id(IMAGE)


@pytest.mark.parametrize("cut", [0, 512, 15_000])
def test_an_export_that_breaks_off(tmp_path: Path, engine: ScriptableEngine, source: EngineSource, cut: int) -> None:
    """It ends as an error of this image, nothing stays on disk, and the next try succeeds."""
    engine.cut = cut
    with pytest.raises(RegistryUnavailable, match="the engine does not answer"):
        resolved(source, NAME)
    engine.cut = None
    assert blobs(source, resolved(source, NAME)) == [layer.tar for layer in LAYERS]
    assert not list((tmp_path / "temporary").iterdir())


def test_an_export_without_end_is_stopped(tmp_path: Path, engine: ScriptableEngine) -> None:
    """An export may have no more bytes than the limits say."""
    load(engine, tmp_path, IMAGE)
    source = EngineSource(tmp_path / "temporary", {"DOCKER_HOST": engine.host}, Limits(bytes=20_000))
    with pytest.raises(LimitExceeded, match="over the limit 'bytes'"):
        source.manifest(NAME)
    source.close()


@UNCLOSED
@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("unix:///tmp/no-such-socket", "unix:///tmp/no-such-socket: No such file or directory"),
        ("unix:///etc/passwd", "Connection refused"),
        ("tcp://127.0.0.1:1", "Connection refused"),
        ("nonsense", "nonsense: Invalid bind address"),
    ],
)
def test_an_engine_that_is_not_there(tmp_path: Path, host: str, found: str) -> None:
    """It is temporary, and says which one was asked; nobody's image is retired for it."""
    source = EngineSource(tmp_path, {"DOCKER_HOST": host})
    with pytest.raises(RegistryUnavailable, match="the engine does not answer") as caught:
        source.head(NAME)
    assert found in str(caught.value)
    assert caught.value.temporary
    source.close()
    gc.collect()


def test_an_engine_that_says_nothing(tmp_path: Path, engine: ScriptableEngine) -> None:
    """A question ends after some seconds of silence, and so does an export, which has more of them."""
    load(engine, tmp_path, IMAGE)
    source = EngineSource(tmp_path / "temporary", {"DOCKER_HOST": engine.host}, silence=(0.1, 0.2))
    digest = source.head(NAME)
    engine.silent = threading.Event()
    for ask in (lambda: source.head(NAME), lambda: source.manifest(NAME, digest)):
        with pytest.raises(RegistryUnavailable, match=r"the engine does not answer; found: .*timed out"):
            ask()
    engine.silent.set()
    assert blobs(source, resolved(source, NAME)) == [layer.tar for layer in LAYERS]
    source.close()


def test_threads_ask_one_engine(tmp_path: Path, podman: PodmanEngine) -> None:
    """A cycle asks eight questions at a time."""
    podman.podman("load", "-q", "-i", write_save(tmp_path / "x.tar", save_members((IMAGE, ["localhost/many:1"]))))
    source = EngineSource(tmp_path / "temporary", podman.environment)
    with ThreadPoolExecutor(8) as executor:
        names = [EngineReference("localhost/many", "1")] * 40
        assert set(map(str, executor.map(source.head, names))) == {image_id(IMAGE)}
        images = list(executor.map(lambda name: resolved(source, name), names))
    assert {str(image.digest) for image in images} == {IMAGE.digest}
    source.close()


@UNCLOSED
def test_without_docker_host_it_is_dockers_own_socket(tmp_path: Path) -> None:
    """An empty variable counts as none."""
    for environment in ({}, {"DOCKER_HOST": ""}):
        if Path("/var/run/docker.sock").exists():
            support.missing("this machine has an engine")
        with pytest.raises(RegistryUnavailable, match=r"unix:///var/run/docker\.sock"):
            EngineSource(tmp_path, environment).head(NAME)
    gc.collect()


def test_a_directory_that_can_not_be_written(tmp_path: Path, engine: ScriptableEngine) -> None:
    """It ends this image and not the cycle: all others need no temporary copy."""
    load(engine, tmp_path, IMAGE)
    (tmp_path / "file").touch()
    source = EngineSource(tmp_path / "file" / "below", {"DOCKER_HOST": engine.host})
    with pytest.raises(ImageError, match="a temporary copy can't be written"):
        source.manifest(NAME)
    source.close()


def test_descriptors_are_given_back(tmp_path: Path, engine: ScriptableEngine) -> None:
    """A daemon makes a source for each cycle: closing one leaves no connection and no file open."""
    load(engine, tmp_path, IMAGE)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        source = EngineSource(tmp_path / "temporary", {"DOCKER_HOST": engine.host})
        blobs(source, resolved(source, NAME))
        source.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 5  # the stand-in's own ends close when it sees that


def test_names_are_asked_for_as_they_were_written(engine: ScriptableEngine, source: EngineSource) -> None:
    """What `tool` means is the engine's to say."""
    engine.images["tool:latest"] = image_id(IMAGE)
    name = parse_image("docker-daemon:tool")
    assert isinstance(name, EngineReference)
    assert str(source.head(name)) == image_id(IMAGE)
    assert engine.requests == ["/images/tool:latest/json"]


def test_a_list_follows_an_image_of_the_engine(tmp_path: Path, engine: ScriptableEngine) -> None:
    """Published under its name; a cycle without a change exports nothing; a new image under that name is published."""
    load(engine, tmp_path, IMAGE)
    site = Site(tmp_path / "site", settings={"docker_host": engine.host})
    site.wish(str(NAME))
    assert site.sync() == {str(NAME): "published"}
    link = "docker-daemon/localhost/tool:1"
    assert site.run("where", str(NAME)).stdout.strip() == str(site.root / link)
    (status,) = site.run("status", "--json").json["images"]
    assert (status["state"], status["image"], status["link"]) == ("published", str(NAME), link)
    engine.requests.clear()
    assert site.sync() == {str(NAME): "unchanged"}
    assert engine.requests == ["/images/localhost/tool:1/json"]
    before = site.target(link)
    load(engine, tmp_path, MOVED)
    assert site.sync() == {str(NAME): "published"}
    assert site.target(link) != before
    engine.status = 500
    site.sync(rc=1)
    assert site.run("where", str(NAME)).stdout.strip() == str(site.root / link)


def test_a_list_selects_tags_of_the_engine(tmp_path: Path, engine: ScriptableEngine) -> None:
    """A glob means the engine's tags of that name."""
    for number in (1, 2):
        image = IMAGE.but(env=(f"N={number}",))
        load(engine, tmp_path, image, EngineReference("tool", f"1.{number}"))
    load(engine, tmp_path, MOVED, EngineReference("tool", "other"))
    site = Site(tmp_path / "site", settings={"docker_host": engine.host})
    site.wish("docker-daemon:tool:1.*")
    assert site.sync() == {"docker-daemon:tool:1.1": "published", "docker-daemon:tool:1.2": "published"}


def test_a_full_disk_ends_one_image(tmp_path: Path, engine: ScriptableEngine) -> None:
    """An export that does not fit is no reason to stop the cycle: other images need less, or no copy."""
    support.require_root()
    load(engine, tmp_path, IMAGE)
    full = tmp_path / "full"
    full.mkdir()
    try:
        support.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", full)
    except AssertionError as error:
        support.missing(f"nothing can be mounted here: {error}")
    try:
        source = EngineSource(full, {"DOCKER_HOST": engine.host})
        with pytest.raises(ImageError, match=r"No space left on device: .*; to do: free space there"):
            source.manifest(NAME)
        source.close()
    finally:
        support.run("umount", full)
