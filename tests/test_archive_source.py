"""`registry.archive` and `registry.dockersave`: what `docker save` writes, and what nobody should."""

from __future__ import annotations

import gc
import gzip
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, InvalidImage, InvalidManifest, LimitExceeded
from cvmfs_sync.image import Descriptor, ResolvedImage
from cvmfs_sync.ports import Silent, Source
from cvmfs_sync.reference import ArchiveReference, Digest, EngineReference, Platform
from cvmfs_sync.registry import ArchiveSource, LayoutSource, RegistrySource
from cvmfs_sync.registry.archive import KEPT
from cvmfs_sync.resolve import Sources, resolve, source_digest
from cvmfs_sync.spool import Spool
from cvmfs_sync.tar import Limits
from tests import support
from tests.support.dockersave import Link, Members, save_members, write_save
from tests.support.site import Site

LAYERS = tuple(support.layer(support.file(name, name * 3000), compression="none") for name in ("one", "two", "three"))
IMAGE = support.Image(LAYERS, env=("A=1",), cmd=("true",), kind="docker")
SMALL = support.Image((support.layer(support.file("a", "1"), compression="none"), support.layer()))
OTHER = support.Image((LAYERS[0], support.layer(support.file("x", "y"), compression="none")))


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[ArchiveSource]:
    """A source with a directory of its own for temporary files."""
    source = ArchiveSource(tmp_path / "temporary")
    yield source
    source.close()


def name_of(path: Path, tag: str | None = None) -> ArchiveReference:
    """The archive as it is asked for."""
    return ArchiveReference(path, tag)


def resolved(source: ArchiveSource, name: ArchiveReference) -> ResolvedImage:
    """Resolve, as the core does."""
    sources = Sources(RegistrySource(), LayoutSource(), source)
    return resolve(name, source_digest(name, sources), Platform(), sources)


def blobs(source: ArchiveSource, image: ResolvedImage) -> list[bytes]:
    """The bytes of an image's layers."""
    assert isinstance(image.name, ArchiveReference)
    return [b"".join(source.blob(image.name, layer)) for layer in image.manifest.layers]


def test_is_a_source(archive: ArchiveSource) -> None:
    """An archive fulfils the core's protocol."""
    checked: Source[ArchiveReference] = archive
    assert checked is archive


@pytest.mark.parametrize("form", ["legacy", "oci"])
@pytest.mark.parametrize("compressed", ["no", "gzip", "zstd"])
def test_both_forms_are_read_and_make_the_same_manifest(
    tmp_path: Path, archive: ArchiveSource, form: str, compressed: str
) -> None:
    """The identity is that of configuration and layers, not of the form, the order of members or the compression."""
    path = write_save(tmp_path / "plain.tar", save_members((IMAGE, ["x:1"]), form="oci" if form == "oci" else "legacy"))
    if compressed != "no":
        content = path.read_bytes()
        packed = gzip.compress(content) if compressed == "gzip" else zstandard.compress(content)
        path = tmp_path / f"packed.{compressed}"
        path.write_bytes(packed)
    image = resolved(archive, name_of(path, "1"))
    assert str(image.digest) == IMAGE.digest
    assert image.source_digest == image.digest
    assert image.config.environment == ("A=1",)
    assert blobs(archive, image) == [layer.tar for layer in LAYERS]
    assert not list((tmp_path / "temporary").iterdir()) if compressed != "no" else not (tmp_path / "temporary").exists()


def test_compressed_layers_are_named_by_what_is_there(tmp_path: Path, archive: ArchiveSource) -> None:
    """BuildKit and others put compressed layers into an archive; in either form they are the blobs that they are."""
    layers = (
        support.layer(support.file("a", "1" * 9000)),
        support.layer(support.file("b", "2"), compression="zstd"),
        LAYERS[0],
    )
    image = support.Image(layers)
    for form in ("legacy", "oci"):
        path = write_save(tmp_path / form, save_members((image, []), form="oci" if form == "oci" else "legacy"))
        found = resolved(archive, name_of(path))
        assert [str(layer.digest) for layer in found.manifest.layers] == [layer.digest for layer in layers]
        assert [layer.media_type.rpartition(".")[2] for layer in found.manifest.layers] == ["gzip", "zstd", "tar"]
        assert blobs(archive, found) == [layer.blob for layer in layers]


@pytest.mark.parametrize("hard", [False, True])
def test_layers_may_be_links_to_other_members(tmp_path: Path, archive: ArchiveSource, hard: bool) -> None:
    """Docker linked a layer that two images share; the target may come before or after."""
    members = save_members((IMAGE, ["x:1"]))
    layers = [name for name in members if name.endswith("/layer.tar")]
    members["shared/first.tar"] = members[layers[0]]
    members[layers[0]] = Link("shared/first.tar" if hard else "../shared/first.tar", hard)
    path = write_save(tmp_path / "x.tar", dict(reversed(members.items())) if not hard else members)
    if hard:
        # A hard link comes after what it links to.
        order = ["shared/first.tar", *(name for name in members if name != "shared/first.tar")]
        path = write_save(tmp_path / "x.tar", [(name, members[name]) for name in order])
    assert str(resolved(archive, name_of(path)).digest) == IMAGE.digest


def test_images_are_found_by_tag(tmp_path: Path, archive: ArchiveSource) -> None:
    """With several images a tag has to be named; the errors list what there is."""
    path = write_save(
        tmp_path / "x.tar", save_members((IMAGE, ["host:5000/x:1", "x:one"]), (OTHER, ["y:2", "host:5000/x:both"]))
    )
    assert archive.head(name_of(path, "1")) == archive.head(name_of(path, "one")) != archive.head(name_of(path, "2"))
    assert list(archive.tags(name_of(path))) == ["1", "one", "2", "both"]
    with pytest.raises(ImageError, match="several images in the archive, and no tag is named; found: 1, 2, both, one"):
        archive.head(name_of(path))
    with pytest.raises(ImageNotFound, match="no image in the archive has this tag; found: 1, 2, both, one"):
        archive.head(name_of(path, "3"))
    path = write_save(tmp_path / "y.tar", save_members((IMAGE, ["x:1"]), (OTHER, ["y:1"])))
    with pytest.raises(ImageError, match="several images in the archive have this tag; found: x:1, y:1"):
        archive.head(name_of(path, "1"))
    path = write_save(tmp_path / "z.tar", {"manifest.json": b"[]"})
    with pytest.raises(ImageNotFound, match="holds no image"):
        archive.head(name_of(path))


def replaced(name: str, content: bytes | Link | None) -> Callable[[Members], object]:
    """A change of the member whose name ends so; None removes it."""

    def change(members: Members) -> None:
        (found,) = (member for member in members if member.endswith(name))
        if content is None:
            del members[found]
        else:
            members[found] = content

    return change


def described(**fields: object) -> Callable[[Members], object]:
    """A change of the fields of the one image in manifest.json."""

    def change(members: Members) -> None:
        content = members["manifest.json"]
        assert isinstance(content, bytes)
        members["manifest.json"] = json.dumps([{**json.loads(content)[0], **fields}]).encode()

    return change


CONFIG = f"{support.digest_of(IMAGE.config_bytes).removeprefix('sha256:')}.json"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (replaced("manifest.json", None), ImageError, "no manifest.json in the archive; found: 10 other members"),
        (replaced("manifest.json", b"{"), InvalidManifest, "manifest.json: not JSON"),
        (replaced("manifest.json", b"{}"), InvalidManifest, "found: dict; expected: a list of at most"),
        (replaced("manifest.json", b"[7]"), InvalidManifest, "found: a list with int"),
        (replaced("manifest.json", b'[{"Config": "a", "Config": "b"}]'), InvalidManifest, "twice"),
        (replaced("manifest.json", b" " * (4 * 1024 * 1024 + 1)), InvalidManifest, "manifest.json is too large"),
        (replaced("manifest.json", Link("manifest.json")), ImageError, "a link without end"),
        (replaced("manifest.json", Link("/etc/hostname")), ImageError, "missing in the archive; found: a link to"),
        (replaced("manifest.json", Link("../../etc/hostname")), ImageError, "is missing in the archive"),
        (described(Config=None), InvalidManifest, "'Config'"),
        (described(Config="../../../etc/hostname"), ImageError, "is missing in the archive"),
        (described(Config="/etc/hostname"), ImageError, "'/etc/hostname' is missing"),
        (described(Layers=["a", 7]), InvalidManifest, "'Layers'"),
        (described(Layers="abc"), InvalidManifest, "'Layers'"),
        (described(RepoTags=[None]), InvalidManifest, "'RepoTags'"),
        (described(Layers=[]), InvalidManifest, "found: 3 diff_ids; expected: 0, one for each layer"),
        (described(Layers=["x/layer.tar"] * 3), ImageError, "'x/layer.tar' is missing"),
        (replaced(CONFIG, None), ImageError, "is missing in the archive; to do: save the image again"),
        (replaced(CONFIG, b"{}"), BlobMismatch, "not what its digest says"),
        (replaced(CONFIG, b" " * (4 * 1024 * 1024 + 1)), InvalidManifest, "too large"),
        (replaced(CONFIG, Link("/etc/hostname")), ImageError, "is missing in the archive"),
    ],
)
def test_what_no_tool_writes_is_refused(
    tmp_path: Path, archive: ArchiveSource, change: Callable[[Members], object], error: type[ImageError], words: str
) -> None:
    """Each mistake ends this image with a message that names the archive, and nothing outside of it is read."""
    members = save_members((IMAGE, ["x:1"]))
    change(members)
    path = write_save(tmp_path / "x.tar", members)
    with pytest.raises(error) as caught:
        archive.head(name_of(path, "1"))
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert str(path) in caught.value.what


def test_members_that_stand_twice_are_refused_where_they_are_needed(tmp_path: Path, archive: ArchiveSource) -> None:
    """Readers differ on which one counts; one that no image names does no harm."""
    members = [*save_members((IMAGE, ["x:1"])).items()]
    path = write_save(tmp_path / "x.tar", [*members, ("README", b"1"), ("README", b"2")])
    assert str(archive.head(name_of(path))) == IMAGE.digest
    for twice in ("manifest.json", CONFIG, next(name for name, _ in members if name.endswith("layer.tar"))):
        content = dict(members)[twice]
        path = write_save(tmp_path / "y.tar", [*members, (f"./{twice}", content)])
        with pytest.raises(ImageError, match="stands twice in the archive"):
            archive.head(name_of(path))


def test_sparse_members_are_refused(tmp_path: Path, archive: ArchiveSource) -> None:
    """A sparse layer's stored bytes are not its content."""
    support.require("tar")
    layer = tmp_path / "layer.tar"
    with layer.open("wb") as stream:
        stream.truncate(1 << 20)
    image = IMAGE.but(layers=(support.layer_of_tar(layer.read_bytes(), "none"),))
    (tmp_path / "c.json").write_bytes(image.config_bytes)
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["layer.tar"]}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    support.run("tar", "-C", tmp_path, "-Scf", tmp_path / "x.tar", "manifest.json", "c.json", "layer.tar")
    with pytest.raises(ImageError, match=r"'layer\.tar' is a sparse file"):
        archive.head(name_of(tmp_path / "x.tar"))


def test_layers_that_are_not_what_the_configuration_says_are_found_out(tmp_path: Path, archive: ArchiveSource) -> None:
    """An uncompressed layer is named by its diff_id; fetching holds its bytes against that."""
    members = save_members((IMAGE, ["x:1"]))
    layer = next(name for name in members if name.endswith("layer.tar"))
    content = members[layer]
    assert isinstance(content, bytes)
    members[layer] = content.replace(b"oneone", b"ONEONE")
    image = resolved(archive, name_of(write_save(tmp_path / "x.tar", members)))
    sources = Sources(RegistrySource(), LayoutSource(), archive)
    spool = Spool(tmp_path / "spool")
    with pytest.raises(BlobMismatch, match="damaged"):
        spool.get(image.name, image.manifest.layers[0], sources, Silent())
    assert spool.get(image.name, image.manifest.layers[1], sources, Silent()).read_bytes() == LAYERS[1].tar


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no manifest.json"),
        (b"no tar archive" * 100, "not a tar archive"),
        (b"BZh91AY", "a compression that is not read"),
        (b"\xfd7zXZ\0\0", "a compression that is not read"),
        (b"\x1f\x8b\x08 broken", "docker-archive:"),
        (gzip.compress(b"no tar archive" * 100), "not a tar archive"),
    ],
)
def test_files_that_are_no_archives(tmp_path: Path, archive: ArchiveSource, content: bytes, words: str) -> None:
    """Whatever a file is, its name and what it should be are said."""
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        archive.head(name_of(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_can_not_be_read(tmp_path: Path, archive: ArchiveSource) -> None:
    """A missing file, a directory and a named pipe end at once; a missing file is no proof that an image is gone."""
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "not a regular"),
        (tmp_path / "pipe", "regular"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            archive.head(name_of(path))
        assert not isinstance(caught.value, ImageNotFound)


def test_an_archive_that_is_cut_off(tmp_path: Path, archive: ArchiveSource) -> None:
    """`docker save` that was interrupted leaves such a file."""
    path = write_save(tmp_path / "x.tar", save_members((IMAGE, ["x:1"])))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InvalidImage, match="cut off"):
        archive.head(name_of(path))


def test_what_inflates_without_end_is_stopped(tmp_path: Path) -> None:
    """A compressed archive may have no more bytes, and no larger a ratio, than a layer."""
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(bytes(4 << 20)))
    for limits, word in ((Limits(bytes=1 << 20), "'bytes'"), (Limits(ratio=10, ratio_floor=1000), "'ratio'")):
        source = ArchiveSource(tmp_path / "temporary", limits)
        with pytest.raises(LimitExceeded, match=word):
            source.head(name_of(path))


def test_archives_of_many_files_are_refused(tmp_path: Path, archive: ArchiveSource) -> None:
    """`docker export` writes another kind of archive, which is told from its members before there are millions."""
    path = tmp_path / "x.tar"
    header = write_save(tmp_path / "one.tar", {"member-000000": b""}).read_bytes()[:512]
    with path.open("wb") as stream:
        for number in range(100_002):
            block = bytearray(header)
            block[7:13] = b"%06d" % number
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
            stream.write(block)
        stream.write(bytes(1024))
    with pytest.raises(LimitExceeded, match="not an archive of images; found: more than 100000 members"):
        archive.head(name_of(path))


def test_a_replaced_archive_is_looked_at_again(tmp_path: Path, archive: ArchiveSource) -> None:
    """The next question gets the new image; what was asked of the old one is told that it has changed."""
    path = write_save(tmp_path / "x.tar", save_members((IMAGE, ["x:1"])))
    image = resolved(archive, name_of(path))
    write_save(tmp_path / "new.tar", save_members((OTHER, ["x:1"]))).rename(path)
    assert archive.head(name_of(path)) != image.digest
    with pytest.raises(BlobMismatch, match="was changed while it was read") as caught:
        archive.manifest(name_of(path), image.digest)
    assert caught.value.temporary
    with pytest.raises(BlobMismatch, match="changed"):
        list(archive.blob(name_of(path), image.manifest.layers[2]))


def test_an_archive_that_is_written_to_while_it_is_read(tmp_path: Path, archive: ArchiveSource) -> None:
    """Not even the right number of bytes is taken for the blob."""
    large = support.layer(support.file("large", bytes(3 << 20)), compression="none")
    path = write_save(tmp_path / "x.tar", save_members((IMAGE.but(layers=(large,)), ["x:1"])))
    image = resolved(archive, name_of(path))
    pieces = archive.blob(name_of(path), image.manifest.layers[0])
    next(pieces)
    with path.open("r+b") as stream:
        stream.seek(2 << 20)
        stream.write(b"other")
    with pytest.raises(BlobMismatch, match="changed"):
        list(pieces)
    image = resolved(archive, name_of(path))
    pieces = archive.blob(name_of(path), image.manifest.layers[0])
    next(pieces)
    os.truncate(path, 1 << 20)
    with pytest.raises(BlobMismatch, match="changed"):
        list(pieces)


def test_few_archives_stay_open(tmp_path: Path, archive: ArchiveSource) -> None:
    """However many a list names, and each is closed when nobody reads it any more."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(write_save(tmp_path / "x.tar", save_members((IMAGE, ["x:1"]))).read_bytes()))
    names = [name_of(path.with_name(f"{number}.tar.gz")) for number in range(20)]
    for name in names:
        name.file.hardlink_to(path)
        assert str(archive.head(name)) == IMAGE.digest
    assert len(os.listdir("/proc/self/fd")) - before == KEPT
    image = resolved(archive, names[0])
    pieces = archive.blob(names[0], image.manifest.layers[0])
    first = next(pieces)
    archive.close()
    assert first + b"".join(pieces) == LAYERS[0].tar
    del pieces
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_share_one_look(tmp_path: Path, archive: ArchiveSource) -> None:
    """Images of one archive that are asked for at the same time have it inflated once, and each gets its own."""
    path = tmp_path / "x.tar.gz"
    members = save_members((IMAGE, ["x:1"]), (OTHER, ["x:2"]))
    path.write_bytes(gzip.compress(write_save(tmp_path / "x.tar", members).read_bytes()))
    results: list[list[bytes]] = []

    def read(tag: str) -> None:
        results.append(blobs(archive, resolved(archive, name_of(path, tag))))

    threads = [threading.Thread(target=read, args=("1" if number % 2 else "2",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(result) for result in results) == [2] * 4 + [3] * 4
    assert all(result[0] == LAYERS[0].tar for result in results)


def test_what_skopeo_writes(tmp_path: Path, archive: ArchiveSource) -> None:
    """Its layers are files beside links; its uncompressed layers have the configuration's diff_ids."""
    support.require("skopeo")
    image = support.Image((support.layer(support.file("a", "1" * 5000)), support.layer()), env=("B=2",))
    layout = support.write_layout(tmp_path / "layout", {"1": image})
    path = tmp_path / "x.tar"
    for tag in ("1", "2"):
        path.unlink(missing_ok=True)
        support.run(
            "skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:1", f"docker-archive:{path}:example.org/x:{tag}"
        )
        found = resolved(archive, name_of(path, tag))
        assert blobs(archive, found) == [layer.tar for layer in image.layers]
        assert found.config.environment == ("B=2",)
    with pytest.raises(ImageNotFound, match="found: 2"):
        archive.head(name_of(path, "1"))


def test_an_oci_archive_says_what_to_do(tmp_path: Path, archive: ArchiveSource) -> None:
    """`podman save --format oci-archive` writes no manifest.json; the todo does it."""
    layout = support.write_layout(tmp_path / "layout", {"1": IMAGE})
    subprocess.run(["tar", "-C", layout, "-cf", tmp_path / "x.tar", "."], check=True)
    with pytest.raises(ImageError, match=r"an OCI archive; .*unpack it with tar into a directory, and name that"):
        archive.head(name_of(tmp_path / "x.tar"))


def test_unpack_makes_a_directory_of_an_archive(tmp_path: Path) -> None:
    """From the command line, with a relative path and a tag, like any other image."""
    write_save(tmp_path / "x.tar", save_members((IMAGE, ["x:1"])))
    support.run_cli("unpack", "docker-archive:x.tar:1", "there", cwd=tmp_path).ok()
    assert (tmp_path / "there/two").read_text() == "two" * 3000
    failed = support.run_cli("unpack", "docker-archive:x.tar:2", "elsewhere", cwd=tmp_path).ok(1)
    assert "no image in the archive has this tag" in failed.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_a_kind_without_a_source_fails_its_images() -> None:
    """Who has no use for engines and archives need not bring a source of them."""
    sources = Sources(RegistrySource(), LayoutSource())
    for name in (name_of(Path("/x")), EngineReference("x")):
        with pytest.raises(ImageError, match="can't be read here"):
            sources.head(name)
        with pytest.raises(ImageError, match="can't be read here"):
            sources.local_blob(name, Descriptor("x", Digest("sha256", "0" * 64), 1))


def test_a_list_follows_an_archive(tmp_path: Path) -> None:
    """Its path starts from the list's directory; a replaced file is published anew, an unchanged one is not."""
    site = Site(tmp_path / "site")
    site.wish("docker-archive:x.tar:1")
    name = f"docker-archive:{site.home}/x.tar:1"
    write_save(site.home / "x.tar", save_members((IMAGE, ["x:1"])))
    assert site.sync() == {name: "published"}
    assert site.sync() == {name: "unchanged"}
    link = f"docker-archive{site.home}/x.tar:1"
    assert site.run("where", name).stdout.strip() == str(site.root / link)
    assert [each["state"] for each in site.run("status", "--json").json["images"]] == ["published"]
    before = site.target(link)
    write_save(site.home / "x.tar", save_members((OTHER, ["x:1"])))
    assert site.sync() == {name: "published"}
    assert site.target(link) != before
    (site.home / "x.tar").unlink()
    site.sync(rc=1)
    assert "can't be read" in site.error(name)["what"]
    assert site.run("where", name).stdout.strip() == str(site.root / link)


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_archive_is_an_error_of_its_image(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes are changed or cut off, it ends as an image that fails, or as the image that it was."""
    form = data.draw(st.sampled_from(["legacy", "oci"]))
    members = save_members((SMALL, ["x:1"]), form="oci" if form == "oci" else "legacy")
    content = bytearray(write_save(tmp_path / "x.tar", members).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    (tmp_path / "x.tar").write_bytes(content)
    source = ArchiveSource(tmp_path / "temporary")
    try:
        image = resolved(source, name_of(tmp_path / "x.tar", "1"))
        found = blobs(source, image)
    except ImageError:
        return
    finally:
        source.close()
    assert len(found) == len(image.manifest.layers)
