"""The image list: wishes with lines, and every mistake of a list at once."""

# ruff: noqa: E501 -- messages stand whole, as their readers see them
from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_sync import imagelist
from cvmfs_sync.errors import ListError
from cvmfs_sync.imagelist import ImageList, Wish
from cvmfs_sync.reference import (
    ArchiveReference,
    ArtifactReference,
    Digest,
    EngineReference,
    LayoutReference,
    Platform,
    Reference,
)
from cvmfs_sync.tags import Globs, Regex, Semver

BASE = Path("/lists")
DIGEST = "sha256:" + "0" * 64
AMD64 = Platform("linux", "amd64")


def parse(entries: str, today: date | None = None) -> ImageList:
    """A list with these entries; the first one is on line 3."""
    return imagelist.parse(f"version: 1\nimages:\n{entries}", base=BASE, today=today, file="f")


def only(entries: str) -> Wish:
    """The one wish of a list without errors."""
    (wish,) = parse(entries).require_valid().wishes
    return wish


def test_short_form() -> None:
    """A text is an image, for the default platform, with its line."""
    assert only("- docker.io/library/debian:12.5") == Wish(
        Reference("docker.io", "library/debian", "12.5"), None, None, (AMD64,), None, None, None, None, 3
    )


def test_long_form() -> None:
    """The design's long form is read whole."""
    wish = only("""
  - image: docker.io/rocker/r-ver
    tags: ["4.*", "!*-rc*"]
    keep: 5
    platforms: [linux/amd64, linux/arm64/v8]
    description: R with version-pinned packages
    contact: someone@example.org
    definition: https://github.com/rocker-org/rocker-versioned2
    expires: 2027-06-30
""")
    assert wish == Wish(
        name=Reference("docker.io", "rocker/r-ver"),
        tags=Globs(("4.*",), ("*-rc*",)),
        keep=5,
        platforms=(AMD64, Platform("linux", "arm64", "v8")),
        description="R with version-pinned packages",
        contact="someone@example.org",
        definition="https://github.com/rocker-org/rocker-versioned2",
        expires=date(2027, 6, 30),
        line=4,
    )


NAMES = [
    ("- debian:12.5", "docker.io/library/debian:12.5"),
    ("- localhost:5000/a/b:1", "localhost:5000/a/b:1"),
    (f"- ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST}"),
    (f"- ghcr.io/a/b:1@{DIGEST}", f"ghcr.io/a/b:1@{DIGEST}"),
    ("- debian:12*", "docker.io/library/debian (12*)"),
    ("- localhost:5000/a/b:*", "localhost:5000/a/b (*)"),
    ("- ghcr.io/a/b:1.[0-4]", "ghcr.io/a/b (1.[0-4])"),
    ("- ghcr.io/a/b:?", "ghcr.io/a/b (?)"),
    ("- {image: ghcr.io/a/b:1*, keep: 2}", "ghcr.io/a/b (1*)"),
    ("- {image: ghcr.io/a/b, tags: {semver: '>=4.2'}}", "ghcr.io/a/b (semver >=4.2)"),
    ("- {image: ghcr.io/a/b, tags: {regex: 'v[0-9]+'}}", "ghcr.io/a/b (regex v[0-9]+)"),
    ("- {image: ghcr.io/a/b:1, tags: null, keep: null, contact: null}", "ghcr.io/a/b:1"),
    ("- oci:images/x", "oci:/lists/images/x"),
    ("- oci:/images/x:1", "oci:/images/x:1"),
    ("- oci:x@y:1.*", "oci:/lists/x@y (1.*)"),
    ("- {image: 'oci:x', tags: ['*']}", "oci:/lists/x (*)"),
    ("- docker-archive:x.tar", "docker-archive:/lists/x.tar"),
    ("- docker-archive:/srv/x y.tar:1", "docker-archive:/srv/x y.tar:1"),
    ("- docker-archive:x@y.tar:1.*", "docker-archive:/lists/x@y.tar (1.*)"),
    ("- docker-daemon:tool:1", "docker-daemon:tool:1"),
    ("- docker-daemon:localhost/tool", "docker-daemon:localhost/tool:latest"),
    ("- docker-daemon:localhost:5000/tool:v*", "docker-daemon:localhost:5000/tool (v*)"),
    ("- {image: 'docker-daemon:tool', tags: {semver: '>=1'}}", "docker-daemon:tool (semver >=1)"),
    ("- oras://ghcr.io/a/b:1", "oras://ghcr.io/a/b:1"),
    ("- oras://host:5000/a/b:1*", "oras://host:5000/a/b (1*)"),
]


@pytest.mark.parametrize(("entry", "name"), NAMES)
def test_names(entry: str, name: str) -> None:
    """References in Docker's forms, layouts from the list's directory on, and globs in the place of a tag."""
    assert str(only(entry)) == name


def test_filtered_names_have_no_tag() -> None:
    """Where a filter chooses the tags, the name has none, so that nobody takes `latest` for it."""
    assert only("- debian:12*").name == Reference("docker.io", "library/debian")
    assert only("- oci:x:1*").name == LayoutReference(BASE / "x")
    assert only("- docker-archive:x:1*").name == ArchiveReference(BASE / "x")
    assert only("- docker-daemon:x:1*").name == EngineReference("x", None)
    assert only("- oras://x/y:1*").name == ArtifactReference("docker.io", "x/y")
    assert only(f"- debian@{DIGEST}").name == Reference("docker.io", "library/debian", None, Digest("sha256", "0" * 64))


def test_filters() -> None:
    """Each form of `tags` becomes its filter."""
    assert only("- {image: a, tags: ['1']}").tags == Globs(("1",))
    assert only("- {image: a, tags: {semver: ^1}}").tags == Semver.parse("^1")
    assert only("- {image: a, tags: {regex: a}}").tags == Regex("a")


ERRORS = {
    "upper case": ("- ghcr.io/Foo/bar:1", "f:3: images.0: 'ghcr.io/Foo/bar:1' is not an image reference; found: repository 'Foo/bar'; expected: lower-case letters and digits, separated by '.', '_', '__' or '-', in parts separated by '/'"),
    "URL": ("- https://quay.io/a/b:1", "f:3: images.0: 'https://quay.io/a/b:1' is not an image reference; found: a URL; expected: a reference without a scheme, for example docker.io/library/debian:stable"),
    "digest": ("- a@sha256:abc", "f:3: images.0: not a digest; found: 'sha256:abc'; expected: sha256: and 64, or sha512: and 128 lower-case hex digits"),
    "glob in the name": ("- ghcr.io/a/*:1", "f:3: images.0: 'ghcr.io/a/*:1' is not an image reference; found: repository 'a/*'; expected: lower-case letters and digits, separated by '.', '_', '__' or '-', in parts separated by '/'"),
    "archive without a file": ("- a:1\n- 'docker-archive::1'", "f:4: images.1: 'docker-archive::1' is not an image reference; found: no file; expected: docker-archive:FILE or docker-archive:FILE:tag"),
    "engine without a name": ("- image: 'docker-daemon:'", "f:3: images.0.image: 'docker-daemon:' is not an image reference; found: no name; expected: docker-daemon:name or name:tag"),
    "engine and digest": (f"- docker-daemon:a@{DIGEST}", f"f:3: images.0: 'docker-daemon:a@{DIGEST}' is not an image reference; found: digest {DIGEST}; expected: docker-daemon:name or name:tag"),
    "SIF without a repository": ("- oras://ghcr.io/A:1", "f:3: images.0: 'oras://ghcr.io/A:1' is not an image reference; found: repository 'A'; expected: lower-case letters and digits, separated by '.', '_', '__' or '-', in parts separated by '/'"),
    "engine, tag and tags": ("- image: docker-daemon:a:1\n  tags: ['1']", "f:3: images.0.image: names the tag '1', and 'tags' chooses tags: remove one of the two"),
    "archive, tag and tags": ("- image: docker-archive:a:1\n  tags: ['1']", "f:3: images.0.image: names the tag '1', and 'tags' chooses tags: remove one of the two"),
    "archive twice": ("- docker-archive:a:1\n- docker-archive:./a:1", "f:4: images: docker-archive:/lists/a:1 stands twice, on lines 3 and 4; remove one"),
    "bad glob": ("- a:1.[0", "f:3: images.0: '1.[0' can match no tag: a '[' without its ']', or the other way round"),
    "glob and digest": (f"- a:1*@{DIGEST}", f"f:3: images.0: 'a:1*@{DIGEST}' is not an image reference; found: tag '1*'; expected: 1 to 128 of letters, digits, '_', '.', '-', not starting with '.' or '-'"),
    "number": ("- 4", "f:3: images.0: expected an image reference or a mapping with the key 'image', found the number 4"),
    "nothing": ("-", "f:3: images.0: expected an image reference or a mapping with the key 'image', found nothing"),
    "no image": ("- tags: ['1']", "f:3: images.0: the key 'image' is missing"),
    "image of a wrong type": ("- image: [a]", "f:3: images.0.image: expected text, found a list"),
    "unknown key": ("- image: a:1\n  contcat: x", "f:4: images.0.contcat: unknown key; expected one of image, tags, keep, platforms, description, contact, definition, expires; did you mean 'contact'?"),
    "tag and tags": ("- image: a:1\n  tags: ['1']", "f:3: images.0.image: names the tag '1', and 'tags' chooses tags: remove one of the two"),
    "digest and tags": (f"- image: a@{DIGEST}\n  tags: ['1']", "f:3: images.0.image: names a digest, and 'tags' chooses tags: remove one of the two"),
    "tags as text": ("- image: a\n  tags: 4.*", "f:4: images.0.tags: expected one of [\"4.*\", \"!*-rc*\"], {semver: \">=4.2\"} or {regex: \"...\"}, found the text '4.*'"),
    "two filters": ("- image: a\n  tags: {semver: '1', regex: '1'}", "f:4: images.0.tags: expected one of [\"4.*\", \"!*-rc*\"], {semver: \">=4.2\"} or {regex: \"...\"}, found a mapping of keys to values"),
    "no filter": ("- image: a\n  tags: []", "f:4: images.0.tags: no pattern, so no tag; write [\"*\"] for all tags"),
    "unquoted version": ("- image: a\n  tags:\n  - '1'\n  - 4.10", "f:6: images.0.tags.1: expected text, found the number 4.1; put it in quotes"),
    "misspelt filter": ("- image: a\n  tags:\n    semvar: '1'", "f:5: images.0.tags.semvar: unknown key; expected one of semver, regex; did you mean 'semver'?"),
    "semver as number": ("- image: a\n  tags: {semver: 4.2}", "f:4: images.0.tags.semver: expected text, found the number 4.2; put it in quotes"),
    "bad range": ("- image: a\n  tags: {semver: new}", "f:4: images.0.tags.semver: 'new' is not a version range: 'new'; write for example '>=4.2 <5', '^1.2' or '4.x'"),
    "bad regex": ("- image: a\n  tags: {regex: '('}", "f:4: images.0.tags.regex: '(' is not a regular expression: missing ), unterminated subpattern at position 0"),
    "keep without tags": ("- image: a:1\n  keep: 3", "f:4: images.0.keep: chooses among tags, but the image names one; add 'tags', or remove 'keep'"),
    "keep none": ("- image: a:*\n  keep: 0", "f:4: images.0.keep: must be at least 1, found the number 0"),
    "keep as text": ("- image: a:*\n  keep: '3'", "f:4: images.0.keep: expected a whole number, found the text '3'"),
    "platform": ("- image: a:1\n  platforms:\n  - linux/amd64\n  - arm64", "f:6: images.0.platforms.1: not a platform; found: 'arm64'; expected: os/architecture[/variant]"),
    "platform twice": ("- image: a:1\n  platforms: [linux/amd64, linux/amd64]", "f:4: images.0.platforms.1: linux/amd64 stands twice; remove one"),
    "platform as text": ("- image: a:1\n  platforms: linux/amd64", "f:4: images.0.platforms: expected a list, found the text 'linux/amd64'"),
    "no platform": ("- image: a:1\n  platforms: []", "f:4: images.0.platforms: must not be empty"),
    "definition": ("- image: a:1\n  definition: git@github.com:a/b", "f:4: images.0.definition: expected a URL that begins with https:// or http://, found the text 'git@github.com:a/b'"),
    "quoted date": ("- image: a:1\n  expires: '2027-06-30'", "f:4: images.0.expires: expected a date such as 2027-06-30, found the text '2027-06-30'; write it without quotes"),
    "no date": ("- image: a:1\n  expires: next year", "f:4: images.0.expires: expected a date such as 2027-06-30, found the text 'next year'"),
    "time": ("- image: a:1\n  expires: 2027-06-30 10:00:00", "f:4: images.0.expires: expected a date such as 2027-06-30, found the time 2027-06-30 10:00:00"),
    "no such date": ("- image: a:1\n  expires: 2027-02-30", "f:4:12: images.0.expires: '2027-02-30' is not valid: day is out of range for month"),
    "empty description": ("- image: a:1\n  description: ''", "f:4: images.0.description: must not be empty"),
    "long description": (f"- image: a:1\n  description: {'x' * 1001}", "f:4: images.0.description: must be at most 1000 characters long"),
    "twice": ("- debian:12.5\n- ubuntu:24.04\n- docker.io/library/debian:12.5", "f:5: images: docker.io/library/debian:12.5 stands twice, on lines 3 and 5; remove one"),
    "twice by glob": ("- a:1*\n- {image: a, tags: ['1*']}", "f:4: images: docker.io/library/a (1*) stands twice, on lines 3 and 4; remove one"),
    "twice on one line": ("  [a:1, a:1]", "f:3: images: docker.io/library/a:1 stands twice, on lines 3 and 3; remove one"),
    "duplicate key": ("- image: a:1\n  image: b:1", "f:4:3: images.0.image: this key stands twice; the first is on line 3"),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(entries: str, message: str) -> None:
    """A mistake in an entry gives one message, on its line, that says how to mend it."""
    assert [str(problem) for problem in parse(entries).problems] == [message]


DOCUMENTS = {
    "empty": ("", "f:1: the list is empty; it begins with 'version: 1' and 'images:'"),
    "no images": ("version: 1", "f:1: the key 'images' is missing"),
    "images of nothing": ("version: 1\nimages:", "f:2: images: expected a list, found nothing"),
    "a mapping": ("version: 1\nimages: {a: 1}", "f:2: images: expected a list, found a mapping of keys to values"),
    "no version": ("images: [a:1]", "f:1: the key 'version' is missing"),
    "version 2": ("images: [a:1]\nversion: 2", "f:2: version: expected 1, the only version there is, found the number 2"),
    "version as text": ("version: '1'\nimages: [a:1]", "f:1: version: expected 1, the only version there is, found the text '1'"),
    "version as truth": ("version: yes\nimages: [a:1]", "f:1: version: expected 1, the only version there is, found true"),
    "unknown key": ("version: 1\nimages: [a:1]\nimage: b", "f:3: image: unknown key; expected one of version, defaults, images, blocked; did you mean 'images'?"),
    "only a list": ("- a:1", "f:1: expected a mapping of keys to values, found a list"),
    "no YAML": ("version: 1\nimages:\n\t- a", "f:3:1: a tab indents here; YAML takes spaces only"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_documents(text: str, message: str) -> None:
    """A list without images, or that is none, is an error: never a list that asks for nothing."""
    found = imagelist.parse(text, base=BASE, file="f")
    assert [str(problem) for problem in found.problems] == [message]
    with pytest.raises(ListError, match="^" + re.escape(message) + "$"):
        found.require_valid()


def test_all_errors_at_once() -> None:
    """Every entry is looked at, and what is right comes out although its neighbours are wrong."""
    found = parse("- a/Foo\n- image: a:1\n  tags: [b c]\n  keep: x\n  foo: 1\n- debian:12.5\n- - c\n")
    assert [problem.line for problem in found.errors] == [3, 4, 5, 6, 7, 9]
    assert [str(wish) for wish in found.wishes] == ["docker.io/library/debian:12.5"]
    with pytest.raises(ListError) as caught:
        found.require_valid()
    assert str(caught.value).split("\n") == [str(problem) for problem in found.errors]
    assert caught.value.exit_code == 2


WARNINGS = {
    "SIF file": ("- oras://ghcr.io/a/b:1", "f:3: images.0: names a SIF file, which can be fetched ('unpack') but not be published yet: it will fail"),
    "no tag": ("- debian", "f:3: images.0: no tag means 'latest', which moves without notice: what runs today may not run tomorrow; name a version (debian:<version>), or pin it (debian@sha256:<digest>)"),
    "latest": ("- image: ghcr.io/a/b:latest", "f:3: images.0.image: 'latest' moves without notice: what runs today may not run tomorrow; name a version (ghcr.io/a/b:<version>), or pin it (ghcr.io/a/b@sha256:<digest>)"),
    "expired": ("- image: a:1\n  expires: 2026-12-31", "f:4: images.0.expires: the wish ended on 2026-12-31; remove the image, or set a later date"),
    "selected by a filter, too": ("- a:1*\n- a:1.2", "f:4: images: docker.io/library/a:1.2 is selected by docker.io/library/a (1*) on line 3 as well; remove this one"),
    "selected by a filter below": ("- {image: 'a:1.2', contact: x}\n- {image: a, tags: {semver: '1'}, contact: x}", "f:3: images: docker.io/library/a:1.2 is selected by docker.io/library/a (semver 1) on line 4 as well; remove this one"),
    "no images": ("  []", "f:2: images: asks for no image; by such a list nothing is retired"),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "message"), WARNINGS.values(), ids=WARNINGS)
def test_warnings(entries: str, message: str) -> None:
    """What works but will surprise somebody is said, and does not make the list invalid."""
    found = parse(entries, today=date(2027, 1, 1)).require_valid()
    assert [str(problem) for problem in found.warnings] == [message]
    assert found.errors == ()


def test_one_message_for_each_mistake() -> None:
    """An entry that stands twice is not told that a filter selects it, too."""
    found = parse("- a:1*\n- a:1.2\n- docker.io/library/a:1.2\n")
    assert [(problem.line, problem.severity) for problem in found.problems] == [(4, "warning"), (5, "error")]


@pytest.mark.parametrize(
    "entry",
    [
        f"- a:latest@{DIGEST}",
        f"- a@{DIGEST}",
        "- a:1",
        "- oci:x",
        "- docker-archive:x",
        "- docker-daemon:x",
        "- {image: a, tags: [latest]}",
    ],
)
def test_no_warning(entry: str) -> None:
    """What is pinned, or has no registry that could move it, gives no warning."""
    assert parse(f"{entry}\n", today=date(2027, 1, 1)).problems == ()


@pytest.mark.parametrize(
    "entries",
    [
        "- a:2*\n- a:1.2",
        "- b:1*\n- a:1.2",
        "- {image: 'a:1*', keep: 3}\n- a:1.2",
        f"- a:1*\n- a:1.2@{DIGEST}",
        "- a:1*\n- {image: 'a:1.2', description: why}",
        "- a:1*\n- {image: 'a:1.2', platforms: [linux/arm64]}",
        "- {image: 'a:1*', expires: 2030-01-01}\n- a:1.2",
        "- a:1*\n- {image: a, tags: ['1.2*']}",
    ],
)
def test_entries_that_only_seem_to_overlap(entries: str) -> None:
    """What a filter does not select for sure, or with all that the entry says, stands there on purpose."""
    assert parse(f"{entries}\n", today=date(2027, 1, 1)).problems == ()


def test_defaults() -> None:
    """What the list says for all holds for each entry that does not say it, in either form; null takes it back."""
    text = """
version: 1
defaults: {platforms: [linux/amd64, linux/arm64], keep: 3, contact: all@example.org}
images:
  - a:1
  - a:2*
  - image: b:2*
    keep: 1
    platforms: [linux/s390x]
    contact: own@example.org
  - {image: 'c:2*', keep: null, platforms: null, contact: null}
"""
    both, own = (AMD64, Platform("linux", "arm64")), (Platform("linux", "s390x"),)
    found = imagelist.parse(text, base=BASE, file="f").require_valid().wishes
    assert [(wish.keep, wish.platforms, wish.contact) for wish in found] == [
        (None, both, "all@example.org"),
        (3, both, "all@example.org"),
        (1, own, "own@example.org"),
        (None, (AMD64,), None),
    ]


DEFAULTS = {
    "unknown key": ("{image: x}", "f:2: defaults.image: unknown key; expected one of keep, platforms, contact"),
    "keep": ("{keep: 0}", "f:2: defaults.keep: must be at least 1, found the number 0"),
    "platform": ("\n  platforms:\n  - arm", "f:4: defaults.platforms.0: not a platform; found: 'arm'; expected: os/architecture[/variant]"),
    "no mapping": ("[a]", "f:2: defaults: expected a mapping of keys to values, found a list"),
}  # fmt: skip


@pytest.mark.parametrize(("defaults", "message"), DEFAULTS.values(), ids=DEFAULTS)
def test_mistakes_in_defaults(defaults: str, message: str) -> None:
    """One message, at the mistake, and none at each entry that it would hold for."""
    found = imagelist.parse(f"version: 1\ndefaults: {defaults}\nimages: [a:1, a:2*]\n", base=BASE, file="f")
    assert [str(problem) for problem in found.problems] == [message]


def test_expiry_is_the_last_day() -> None:
    """A wish holds on the day on which it expires, and nobody warns who does not know the day."""
    entry = "- {image: 'a:1', expires: 2027-01-01}"
    assert parse(entry, today=date(2027, 1, 1)).problems == ()
    assert parse(entry).problems == ()


def test_same_repository_in_parts() -> None:
    """One repository may stand in several entries that ask for different tags."""
    assert len(parse("- a:1\n- a:2\n- a:3*\n- {image: a, tags: {semver: '4'}}").require_valid().wishes) == 4


def test_load(tmp_path: Path) -> None:
    """A file is read with paths from its directory, and one that is not there is a problem, not an exception."""
    path = tmp_path / "list.yaml"
    path.write_text("version: 1\nimages: ['oci:x', 4]\n")
    found = imagelist.load(path)
    assert [wish.name for wish in found.wishes] == [LayoutReference(tmp_path / "x")]
    assert [str(problem) for problem in found.problems] == [
        f"{path}:2: images.1: expected an image reference or a mapping with the key 'image', found the number 4"
    ]
    missing = imagelist.load(tmp_path / "none.yaml")
    assert [str(problem) for problem in missing.errors] == [
        f"{tmp_path}/none.yaml: cannot be read: No such file or directory; name an existing image list"
    ]


def test_sample() -> None:
    """The list in this repository is valid and shows every form."""
    found = imagelist.load(Path(__file__).parent.parent / "image-list.yaml", today=date(2027, 1, 1))
    assert found.problems == ()
    assert {type(wish.tags) for wish in found.wishes} == {type(None), Globs, Semver, Regex}
    assert len(found.wishes) >= 10


def test_json_schema() -> None:
    """The schema is JSON and offers the short and the long form with all its keys."""
    schema = json.loads(json.dumps(imagelist.json_schema()))
    assert schema["required"] == ["version", "images"]
    short, long = schema["properties"]["images"]["items"]["anyOf"]
    assert short == {"type": "string"}
    assert long == {"$ref": "#/$defs/Image"}
    assert list(schema["$defs"]["Image"]["properties"]) == [
        *("image", "tags", "keep", "platforms", "description", "contact", "definition", "expires"),
    ]
    assert schema["$defs"]["Image"]["additionalProperties"] is False


words = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["a:1", "a", "1*", "linux/amd64"])
)
values = st.recursive(
    words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)
keys = st.sampled_from(["image", "tags", "keep", "platforms", "description", "contact", "definition", "expires", "x"])


@given(st.lists(st.dictionaries(keys, values, max_size=5) | values, max_size=4))
def test_never_raises(images: list[object]) -> None:
    """Whatever stands in a list, the answer is wishes and problems: each entry is one or has one."""
    text = yaml.safe_dump({"version": 1, "images": images})
    found = imagelist.parse(text, base=BASE)
    assert all(problem.line is not None and "\n" not in str(problem) for problem in found.problems)
    wrong = {problem.where.split(".")[1] for problem in found.errors if "." in problem.where}
    assert len(found.wishes) + len(wrong) >= len(images)
