"""Names of images: what is understood, how it is written out, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.reference import (
    ArchiveReference,
    ArtifactReference,
    Digest,
    EngineReference,
    ImageName,
    LayoutReference,
    Platform,
    Reference,
    parse_image,
    without_tag,
)

HEX = "0123456789abcdef" * 4
SHA256 = f"sha256:{HEX}"
SHA512 = f"sha512:{HEX}{HEX}"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine:1", "docker.io/library/alpine:1"),
        ("registry.hub.docker.com/library/alpine", "docker.io/library/alpine:latest"),
        ("registry-1.docker.io/org/tool:1", "docker.io/org/tool:1"),
        ("rocker/r-ver:4", "docker.io/rocker/r-ver:4"),
        ("ghcr.io/org/sub/name:tag", "ghcr.io/org/sub/name:tag"),
        ("host:5000/name", "host:5000/name:latest"),
        ("host:5000", "docker.io/library/host:5000"),
        ("localhost/name", "localhost/name:latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("HOST/name", "HOST/name:latest"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
        (f"alpine@{SHA256}", f"docker.io/library/alpine@{SHA256}"),
        (f"ghcr.io/a/b:1@{SHA512}", f"ghcr.io/a/b:1@{SHA512}"),
        ("a/b__c.d-e---f", "docker.io/a/b__c.d-e---f:latest"),
        ("name:Tag_1.0-rc", "docker.io/library/name:Tag_1.0-rc"),
        (f"name:{'t' * 128}", f"docker.io/library/name:{'t' * 128}"),
    ],
)
def test_references_take_dockers_normal_form(text: str, normal: str) -> None:
    """Every short form means what it means to Docker, and its normal form means itself."""
    name = parse_image(text)
    assert isinstance(name, Reference)
    assert str(name) == normal
    assert parse_image(normal) == name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"),
        (" alpine", "white space"),
        ("alpine\n", "white space"),
        ("al\x1b[31mpine", "control"),
        ("alpine:", "tag ''"),
        ("alpine:.hidden", "tag '.hidden'"),
        ("alpine:-x", "tag '-x'"),
        (f"alpine:{'t' * 129}", "tag"),
        ("alpine:a/b:", "tag ''"),
        ("docker://alpine", "a URL"),
        ("https://ghcr.io/a/b", "a URL"),
        ("ghcr.io/Org/name", "repository 'Org/name'"),
        ("UPPER", "repository 'library/UPPER'"),
        ("a..b/../c", "registry 'a..b'"),
        ("ghcr.io/../etc/passwd", "repository"),
        ("../x", "registry '..'"),
        ("/etc/passwd", "repository"),
        ("ghcr.io//x", "repository"),
        ("ghcr.io/x/", "repository"),
        (f"ghcr.io/{'x' * 256}", "repository"),
        ("-host.org/x", "registry '-host.org'"),
        ("host:99x/x", "registry 'host:99x'"),
        ("host:123456/x", "registry"),
        ("user@host/x", "'host/x'"),
        ("alpine@sha256:abc", "'sha256:abc'"),
        (f"alpine@sha256:{HEX.upper()}", "'sha256:"),
        (f"alpine@md5:{HEX[:32]}", "'md5:"),
        (f"alpine@{SHA256}@{SHA256}", "'sha256:"),
        (f"alpine@{SHA256}/../x", "'sha256:"),
        ("oci:", "no directory"),
        ("oci::tag", "no directory"),
        ("oci:dir:", "tag ''"),
        ("oci:dir:-x", "tag '-x'"),
        ("oci:dir\n", "white space"),
        ("docker-archive:", "no file"),
        ("docker-archive::1", "no file"),
        ("docker-archive:x.tar:", "tag ''"),
        ("docker-archive:x.tar:-x", "tag '-x'"),
        ("docker-archive:x.tar:a b", "tag 'a b'"),
        ("docker-archive:x\x1b.tar", "control"),
        ("docker-daemon:", "no name"),
        ("docker-daemon:a b", "white space"),
        ("docker-daemon:UPPER", "repository 'library/UPPER'"),
        ("docker-daemon:x:", "tag ''"),
        ("docker-daemon:x:-y", "tag '-y'"),
        ("docker-daemon://x", "repository"),
        ("docker-daemon:../x", "registry '..'"),
        ("docker-daemon:x/../../images/json?", "repository"),
        (f"docker-daemon:x@{SHA256}", "digest sha256:"),
        ("docker-daemon:x@md5:0", "'md5:0'"),
        ("oras://", "no name"),
        ("oras://ghcr.io/Org/x:1", "repository 'Org/x'"),
        ("oras://ghcr.io/x:-1", "tag '-1'"),
        ("oras:///x:1", "repository"),
        ("oras://ghcr.io/../x", "repository"),
        ("oras://ghcr.io/x@sha256:abc", "'sha256:abc'"),
        ("oras://oras://ghcr.io/x:1", "registry 'oras:'"),
    ],
)
def test_what_is_no_reference_is_refused(text: str, found: str) -> None:
    """A name that Docker refuses, or that would lead out of a directory, is refused, and the message names the part."""
    with pytest.raises(InvalidReference) as caught:
        parse_image(text)
    assert found in str(caught.value)
    assert caught.value.expected
    assert "\x1b" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "directory", "tag"),
    [
        ("oci:images", "/base/images", None),
        ("oci:images:1.0", "/base/images", "1.0"),
        ("oci:../x/./y:z", "/x/y", "z"),
        ("oci:/srv/a:b/c", "/srv/a:b/c", None),
        ("oci:/srv/a:b/c:tag", "/srv/a:b/c", "tag"),
        ("oci://srv//a/:1", "/srv/a", "1"),
        ("oci:///srv/a", "/srv/a", None),
        ("oci:.:latest", "/base", "latest"),
        ("oci:/srv/my images:1", "/srv/my images", "1"),
    ],
)
def test_layout_directories_are_made_absolute(text: str, directory: str, tag: str | None) -> None:
    """An OCI layout is known by its normalized absolute path, from the base that is given, whatever the spelling."""
    name = parse_image(text, base=Path("/base"))
    assert name == LayoutReference(Path(directory), tag)
    assert parse_image(str(name)) == name


def test_a_relative_layout_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a base, `oci:DIR` is what a shell would mean by DIR."""
    monkeypatch.chdir(tmp_path)
    assert parse_image("oci:x:1") == LayoutReference(tmp_path / "x", "1")


@pytest.mark.parametrize(
    ("text", "file", "tag"),
    [
        ("docker-archive:x.tar", "/base/x.tar", None),
        ("docker-archive:x.tar:1.0", "/base/x.tar", "1.0"),
        ("docker-archive:../y/./x.tar.gz:z", "/y/x.tar.gz", "z"),
        ("docker-archive:/srv/a:b/x.tar", "/srv/a:b/x.tar", None),
        ("docker-archive:///srv//x y.tar:1", "/srv/x y.tar", "1"),
    ],
)
def test_archives_are_files_with_an_absolute_path(text: str, file: str, tag: str | None) -> None:
    """Like a layout's directory, and with the same way to tell path and tag apart."""
    name = parse_image(text, base=Path("/base"))
    assert name == ArchiveReference(Path(file), tag)
    assert parse_image(str(name)) == name


@pytest.mark.parametrize(
    ("text", "repository", "tag"),
    [
        ("docker-daemon:tool", "tool", "latest"),
        ("docker-daemon:tool:1", "tool", "1"),
        ("docker-daemon:localhost/tool:1", "localhost/tool", "1"),
        ("docker-daemon:localhost:5000/a/tool", "localhost:5000/a/tool", "latest"),
        ("docker-daemon:docker.io/library/tool:x_1", "docker.io/library/tool", "x_1"),
    ],
)
def test_an_engines_name_stays_as_it_is_written(text: str, repository: str, tag: str) -> None:
    """Podman and Docker put different registries before a short name; only a missing tag is filled in."""
    name = parse_image(text)
    assert name == EngineReference(repository, tag)
    assert parse_image(str(name)) == name


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("oras://ghcr.io/org/x:1", "oras://ghcr.io/org/x:1"),
        ("oras://host:5000/x", "oras://host:5000/x:latest"),
        (f"oras://ghcr.io/org/x@{SHA256}", f"oras://ghcr.io/org/x@{SHA256}"),
        ("oras://org/x:1", "oras://docker.io/org/x:1"),
    ],
)
def test_a_sif_file_is_where_an_image_would_be(text: str, normal: str) -> None:
    """Behind the prefix stands a registry reference, with all its short forms."""
    name = parse_image(text)
    assert isinstance(name, ArtifactReference)
    assert (str(name), str(name.reference)) == (normal, normal.removeprefix("oras://"))
    assert parse_image(normal) == name


def test_names_of_other_kinds_are_not_mistaken() -> None:
    """Only the whole prefix makes another kind: a registry or repository may be called so."""
    for text in ("oras:5000/x:1", "oci.example.org/x:1", "docker-daemon/x:1", "docker-archive/x:1", "oras/x:1"):
        assert isinstance(parse_image(text), Reference)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        (f"ghcr.io/x:1@{SHA256}", Reference("ghcr.io", "x")),
        ("oci:/srv/x:1", LayoutReference(Path("/srv/x"))),
        ("docker-archive:/srv/x.tar:1", ArchiveReference(Path("/srv/x.tar"))),
        ("docker-daemon:x:1", EngineReference("x", None)),
        (f"oras://ghcr.io/x:1@{SHA256}", ArtifactReference("ghcr.io", "x")),
    ],
)
def test_a_name_without_its_tag_is_what_tags_are_listed_of(text: str, bare: ImageName) -> None:
    """Of every kind; its text has no tag either."""
    assert without_tag(parse_image(text)) == bare
    assert str(bare) == text.partition("@")[0].removesuffix(":1")


@pytest.mark.parametrize("text", [SHA256, SHA512])
def test_digests_are_what_they_were_read_from(text: str) -> None:
    """Both algorithms are read and written out the same."""
    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [None, 7, b"x", "", HEX, f"sha256:{HEX}0", f"sha512:{HEX}", f"SHA256:{HEX}", f"{SHA256}\n", "sha256:../../x"],
)
def test_digests_of_any_other_form_are_refused(text: object) -> None:
    """What becomes a path has exactly the digits of its algorithm, and nothing else."""
    with pytest.raises(InvalidReference, match="not a digest"):
        Digest.parse(text)


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm64/v8", "windows/amd64"])
def test_platforms_are_what_they_were_read_from(text: str) -> None:
    """Two or three parts are a platform."""
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize("text", ["", "linux", "linux/", "linux/amd64/v1/x", "Linux/amd64", "linux/../x", "linux/am d"])
def test_platforms_of_any_other_form_are_refused(text: str) -> None:
    """What becomes a path has no empty part and no dots first."""
    with pytest.raises(InvalidReference, match="not a platform"):
        Platform.parse(text)
