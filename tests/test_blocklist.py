"""`blocked:` of an image list: what is read, what is wrong with it, and what becomes of a blocked image."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.blocklist import Blocked
from cvmfs_sync.imagelist import json_schema, parse
from cvmfs_sync.reference import Digest, parse_image
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.commands import run_cli
from tests.support.retiring import Clock, make_published
from tests.support.site import Site

A, B = (Digest("sha256", each * 64) for each in "ab")
HEAD = "version: 1\nimages:\n  - x.org/a:1\n"


def layer(content: str) -> bytes:
    """A layer with one file."""
    return support.layer(support.file("content", content)).tar


def wish(site: Site, images: list[Any], blocked: list[dict[str, str]] | None = None) -> None:
    """Write the list."""
    document = {"version": 1, "images": images} | ({"blocked": blocked} if blocked is not None else {})
    site.wish().write_text(json.dumps(document, indent=1))


def entry_of(text: str) -> Blocked:
    """The only entry of `blocked`."""
    read = parse(f"{HEAD}blocked:\n  - {{{text}, reason: bad}}\n", base=Path("/lists"))
    assert not read.errors
    (entry,) = read.blocked
    assert (entry.reason, entry.line) == ("bad", 5)
    return entry


@pytest.mark.parametrize(
    ("text", "name", "digests", "blocks"),
    [
        ("image: 'x.org/a:1'", "x.org/a:1", (), True),
        ("image: 'x.org/a:1'", "x.org/a:2", (), False),
        ("image: 'x.org/a:1'", "x.org/b:1", (), False),
        ("image: 'x.org/a:1'", None, (A,), False),
        ("image: alpine", "docker.io/library/alpine:3", (), True),
        ("image: 'alpine:latest'", "docker.io/library/alpine:3", (), False),
        ("image: 'alpine:latest'", "alpine", (), True),
        ("image: x.org/a", "x.org/a:1", (), True),
        ("image: x.org/a", f"x.org/a@{A}", (), True),
        ("image: x.org/a", "x.org/a/b:1", (), False),
        ("image: 'localhost:5000/a'", "localhost:5000/a:7", (), True),
        ("image: 'localhost:5000/a'", "localhost:5001/a:7", (), False),
        (f"image: 'x.org/a@{A}'", f"x.org/a@{A}", (), True),
        (f"image: 'x.org/a@{A}'", f"x.org/a:1@{A}", (), True),
        (f"image: 'x.org/a@{A}'", "x.org/a:1", (B, A), True),
        (f"image: 'x.org/a@{A}'", "x.org/a:1", (B,), False),
        (f"image: 'x.org/a@{A}'", "x.org/b:1", (A,), False),
        (f"digest: '{A}'", "x.org/a:1", (B, None, A), True),
        (f"digest: '{A}'", "x.org/a:1", (B, None), False),
        (f"digest: '{A}'", f"x.org/a@{A}", (), True),
        (f"digest: '{A}'", None, (A,), True),
        ("image: 'oci:images:1'", "oci:/lists/images:1", (), True),
        ("image: 'oci:images'", "oci:/lists/images:1", (), True),
        ("image: 'oci:images'", "oci:/elsewhere/images:1", (), False),
        ("image: 'oras://x.org/a:1'", "oras://x.org/a:1", (), True),
    ],
)
def test_what_an_entry_is_about(
    text: str, name: str | None, digests: tuple[Digest | None, ...], *, blocks: bool
) -> None:
    """A name is that image, a name without tag all of its repository, a digest whoever has it."""
    assert entry_of(text).blocks(parse_image(name) if name else None, *digests) is blocks


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("blocked: x.org/a:1", 4, "blocked: expected a list, found"),
        ("blocked: {image: x.org/a}", 4, "blocked: expected a list, found"),
        ("blocked:\n  - x.org/a:1", 5, "expected a mapping with 'image' or 'digest' and 'reason'"),
        ("blocked:\n  -", 5, "expected a mapping with 'image' or 'digest' and 'reason'"),
        ("blocked:\n  - image: x.org/a", 5, "the key 'reason' is missing"),
        ("blocked:\n  - reason: r", 5, "expected either 'image' or 'digest'"),
        (f"blocked:\n  - image: x.org/a\n    digest: '{A}'\n    reason: r", 5, "expected either 'image' or 'digest'"),
        ("blocked:\n  - image: x.org/a\n    reason: ''", 6, "must not be empty"),
        ("blocked:\n  - image: x.org/a\n    reason: 7", 6, "expected text, found"),
        ("blocked:\n  - image: x.org/a\n    reason:", 6, "expected text, found"),
        (f"blocked:\n  - image: x.org/a\n    reason: {'r' * 1001}", 6, "at most 1000 characters"),
        ("blocked:\n  - image: x.org/A:1\n    reason: r", 5, "x.org/A:1"),
        ("blocked:\n  - image: 'x.org/a:1.*'\n    reason: r", 5, "x.org/a:1.*"),
        ("blocked:\n  - image: ''\n    reason: r", 5, ""),
        ("blocked:\n  - image: 7\n    reason: r", 5, "expected text"),
        ("blocked:\n  - digest: abc\n    reason: r", 5, "abc"),
        ("blocked:\n  - digest: 'sha256:abc'\n    reason: r", 5, "sha256:abc"),
        (f"blocked:\n  - digest: 'sha256:{'A' * 64}'\n    reason: r", 5, "sha256:"),
        ("blocked:\n  - imgae: x.org/a\n    reason: r", 5, "did you mean 'image'"),
        ("blcoked: []", 4, "did you mean 'blocked'"),
    ],
)
def test_mistakes_have_their_lines(text: str, line: int, words: str, tmp_path: Path) -> None:
    """`check` tells each; the list is not valid, so nobody acts by half of it."""
    path = tmp_path / "image-list.yaml"
    path.write_text(f"{HEAD}{text}\n")
    result = run_cli("check", path).ok(1)
    (said,) = [each for each in result.stdout.splitlines() if each.startswith(f"{path}:{line}: ")]
    assert words in said
    with pytest.raises(Exception, match=re.escape(f":{line}: ")):
        parse(path.read_bytes(), base=tmp_path).require_valid()


@pytest.mark.parametrize("text", ["", "blocked:\n", "blocked: []\n"])
def test_no_entry_blocks_nothing(text: str) -> None:
    """No key, an empty one, an empty list."""
    read = parse(f"{HEAD}{text}", base=Path("/"))
    assert (read.problems, read.blocked, read.block(parse_image("x.org/a:1"), A)) == ((), (), None)


def test_all_mistakes_are_told_at_once() -> None:
    """Those of images and those of blocks, by line."""
    text = (
        "version: 1\nimages:\n  - x.org/A\nblocked:\n  - image: x.org/B\n    reason: r\n  - digest: d\n    reason: r\n"
    )
    assert [problem.line for problem in parse(text, base=Path("/")).errors] == [3, 5, 7]


def test_a_wish_for_a_blocked_name_is_told_by_check() -> None:
    """Whoever asks for it learns the reason in the pull request."""
    read = parse(f"{HEAD}  - x.org/b:*\nblocked: [{{image: x.org/b, reason: a secret in it}}]\n", base=Path("/"))
    (problem,) = read.problems
    assert (problem.severity, problem.line) == ("warning", 4)
    assert (
        problem.message == "x.org/b (x.org/b:*) is blocked, on line 5: a secret in it"
        or "is blocked, on line 5" in (problem.message)
    )


def test_the_schema_has_the_key() -> None:
    """Editors know it, and what is in it."""
    schema = json_schema()["properties"]["blocked"]
    assert schema["type"] == "array"
    assert set(schema["items"]["properties"]) == {"image", "digest", "reason"}
    assert schema["items"]["required"] == ["reason"]
    assert schema["items"]["additionalProperties"] is False
    assert all("description" in each for each in schema["items"]["properties"].values())


# --- what becomes of a blocked image ---


def entry_for(kind: str, registry: ScriptableRegistry) -> dict[str, str]:
    """What blocks `org/a:1`, in one way or another."""
    name = f"{registry.host}/org/a"
    index = json.loads(registry.manifests["org/a", "1"][0])
    manifest = index["manifests"][0]["digest"]
    config = json.loads(registry.manifests["org/a", manifest][0])["config"]["digest"]
    return {
        "name": {"image": f"{name}:1"},
        "repository": {"image": name},
        "manifest": {"digest": manifest},
        "index": {"digest": support.digest_of(registry.manifests["org/a", "1"][0])},
        "configuration": {"digest": config},
        "repository and digest": {"image": f"{name}@{manifest}"},
    }[kind] | {"reason": "a secret in it"}


@pytest.mark.parametrize("kind", ["name", "repository", "manifest", "index", "configuration", "repository and digest"])
def test_a_blocked_image_is_taken_down(kind: str, site: Site, registry: ScriptableRegistry) -> None:
    """By the next sync, whatever grace period and max_fraction say; it does not come back until it is unblocked."""
    images = {name: registry.add_image(f"org/{name}", None, [layer(name)]) for name in "ab"}
    for name, image in images.items():
        registry.add_index(f"org/{name}", "1", {"linux/amd64": image})
    a, b = (f"{registry.host}/org/{name}:1" for name in "ab")
    wish(site, [a, b])
    site.sync()
    tree = site.target(a)
    wish(site, [a, b], [entry_for(kind, registry)])
    assert site.run("plan", "--json", rc=1).json["steps"][0]["action"] == "fail"
    assert set(site.links()) == {a, b}, "a plan changes nothing"

    assert site.sync(rc=1) == {a: "failed", b: "unchanged"}
    assert [(each["kind"], each["path"]) for each in site.report["taken_down"]] == [
        ("link", a),
        ("tree", f".flat/{tree[:2]}/{tree}"),
    ]
    error = site.error(a)
    assert "is blocked" in error["what"]
    assert "a secret in it" in error["found"]
    assert (set(site.links()), set(site.catalogue()), site.trees()) == ({b}, {b}, {site.target(b)})
    assert not (site.root / f".cvmfs-sync/images/{tree[:2]}/{tree}.json").exists()

    before = site.transactions() if site.fake else site.fingerprint()
    assert site.sync(rc=1) == {a: "failed", b: "unchanged"}
    assert site.report["taken_down"] == []
    assert before == (site.transactions() if site.fake else site.fingerprint())
    (status,) = site.run("status", "--json", a).json["images"]
    assert status["state"] == "failed"
    assert "a secret in it" in status["failure"]["reason"]
    assert [each["event"] for each in status["history"]] == ["failed", "taken down", "published"]
    assert "a secret in it" in site.run("status").stdout

    wish(site, [a, b])
    assert site.sync() == {a: "published", b: "unchanged"}
    assert (site.root / a / "content").read_text() == "a"


def test_what_is_blocked_and_not_wished_for_goes_too(site: Site, registry: ScriptableRegistry) -> None:
    """Also by a list that asks for nothing else, and by a sync of another image."""
    registry.add_image("org/c", "1", [layer("c")])
    c = f"{registry.host}/org/c:1"
    make_published(site, ["x.org/a:1", "x.org/b:1"])
    wish(site, [c], [{"image": "x.org/a:1", "reason": "r"}])
    assert site.sync(c) == {c: "published"}
    assert set(site.links()) == {"x.org/b:1", c}
    wish(site, [], [{"image": "x.org/b", "reason": "r"}])
    assert site.sync() == {}
    assert set(site.links()) == {c}


def test_a_blocked_digest_takes_all_names_down(site: Site, registry: ScriptableRegistry) -> None:
    """Tags, repositories and registries that mean it; a tag that moves to another image is published."""
    image = registry.add_image("org/a", "1", [layer("a")])
    for name in (("org/a", "2"), ("org/copy", "1"), ("org/copy", image.digest)):
        registry.manifests[name] = registry.manifests["org/a", "1"]
    names = [f"{registry.host}/org/a:1", f"{registry.host}/org/a:2", f"{registry.alias}/org/copy:1"]
    wish(site, names)
    site.sync()
    wish(site, names, [{"digest": image.digest, "reason": "r"}])
    assert set(site.sync(rc=1).values()) == {"failed"}
    assert (site.links(), site.trees(), site.catalogue()) == ({}, set(), {})
    registry.add_image("org/a", "2", [layer("mended")])
    assert site.sync(rc=1) == {names[0]: "failed", names[1]: "published", names[2]: "failed"}


def test_a_tag_that_moves_to_a_blocked_image_stays_where_it_was(site: Site, registry: ScriptableRegistry) -> None:
    """What is published is not what is blocked."""
    registry.add_image("org/a", "1", [layer("good")])
    a = f"{registry.host}/org/a:1"
    wish(site, [a])
    site.sync()
    bad = registry.add_image("org/a", "1", [layer("bad")])
    wish(site, [a], [{"digest": bad.digest, "reason": "r"}])
    assert site.sync(rc=1) == {a: "failed"}
    assert (site.root / a / "content").read_text() == "good"


def test_a_blocked_image_that_somebody_else_links_to_does_not_come_back(
    site: Site, registry: ScriptableRegistry
) -> None:
    """Its tree stays under the foreign link, and ours is not made again."""
    registry.add_image("org/a", "1", [layer("a")])
    a = f"{registry.host}/org/a:1"
    wish(site, [a])
    site.sync()
    tree = site.target(a)
    with Clock(site).context() as context, context.repository.transaction("an operator's") as transaction:
        transaction.link("mine", f".flat/{tree[:2]}/{tree}")
    config = json.loads(registry.manifests["org/a", "1"][0])["config"]["digest"]
    wish(site, [a], [{"digest": config, "reason": "r"}])
    for _ in range(2):
        assert site.sync(rc=1) == {a: "failed"}
        assert set(site.links()) == {"mine"}
    assert tree in site.trees()


def test_an_interrupted_takedown_is_finished(fake_cvmfs: support.FakeCvmfs, tmp_path: Path) -> None:
    """By the next sync: records and trees go, although no link tells of them any more."""
    site = Site(tmp_path / "site", fake_cvmfs)
    for rule in ("transaction#2=17::another transaction is already open", "ingest#1=1::errno 28"):
        make_published(site, ["x.org/a:1", "x.org/a:2"])
        wish(site, [], [{"image": "x.org/a", "reason": "r"}])
        fake_cvmfs.switch("fail", rule)
        site.run("sync", rc=3)
        assert site.links() == {}
        fake_cvmfs.unswitch("fail")
        site.run("sync")
        assert list(site.root.glob(".cvmfs-sync/images/??/*.json")) == []
        site.settings = {"retire": {"grace_period": "0s"}}


def test_what_hinders_a_takedown_does_not_hinder_the_others(site: Site, registry: ScriptableRegistry) -> None:
    """A record that makes no sense is passed over: links are blocked by their names all the same."""
    registry.add_image("org/c", "1", [layer("c")])
    c = f"{registry.host}/org/c:1"
    digests = make_published(site, ["x.org/a:1", "x.org/b:1"])
    key = digests["x.org/b:1"].removeprefix("sha256:")
    with Clock(site).context() as context, context.repository.transaction("damage") as transaction:
        transaction.write(f".cvmfs-sync/images/{key[:2]}/{key}.json", b"{")
    wish(site, [c], [{"image": "x.org/a:1", "reason": "r"}])
    assert site.sync() == {c: "published"}
    assert set(site.links()) == {"x.org/b:1", c}
