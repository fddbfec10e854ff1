"""Names of images: what is understood, how it is written out, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.reference import Digest, LayoutReference, Platform, Reference, parse_image

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
