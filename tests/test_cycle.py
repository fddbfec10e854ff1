"""One pass over the list, end to end: from an image list and registries to published sandboxes, in both backends."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.site import Site

ADDED = (".singularity.d*", "singularity", ".run", ".exec", ".shell", ".test", "environment", ".cvmfscatalog")


def layer(**files: str) -> bytes:
    """A layer's blob, uncompressed; names have `_` for `/`."""
    return support.layer(*(support.file(name.replace("_", "/"), text) for name, text in files.items())).tar


@pytest.fixture(scope="module")
def unpacked(debian_layout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, support.Node]]:
    """What umoci makes of the Debian image before and after its tag moves."""
    work = tmp_path_factory.mktemp("umoci")
    trees = {tag: support.tree_listing(support.umoci_unpack(debian_layout, tag, work / tag)) for tag in ("1", "2")}
    shutil.rmtree(work)
    return trees


@pytest.mark.parametrize("backend", ["directory", "cvmfs"])
def test_a_real_image_is_published_as_umoci_unpacks_it(
    backend: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    debian_image: support.DebianImage,
    unpacked: dict[str, dict[str, support.Node]],
) -> None:
    """Paths, types, sizes, contents, links: all are umoci's; modes too, but for what a sandbox needs. Tags move."""
    fake = request.getfixturevalue("fake_cvmfs") if backend == "cvmfs" else None
    site = Site(tmp_path / "site", fake, (debian_image.host,))
    tag = f"{debian_image.host}/{debian_image.repository}:stable"
    server = request.getfixturevalue("docker_registry")
    server.retag(debian_image.repository, "1", "stable")
    # The fake takes its time to copy a tree: once is enough for what does not depend on the backend.
    others = [debian_image.env] if fake is None else []
    site.wish(tag, *others)
    assert site.sync() == {tag: "published", **dict.fromkeys(others, "published")}
    first = site.target(tag)
    _assert_equals_umoci(site, first, unpacked["1"])
    for env in others:
        # An image whose only change is its environment is another image.
        assert site.target(env) != first
        script = ".singularity.d/env/10-docker2singularity.sh"
        assert "FLAVOUR=vanilla" in (site.root / env / script).read_text()
        assert "FLAVOUR" not in (site.root / tag / script).read_text()

    server.retag(debian_image.repository, "2", "stable")
    assert site.sync() == {tag: "published", **dict.fromkeys(others, "unchanged")}
    assert site.target(tag) != first
    assert first in site.trees(), "the old tree stays for whoever runs from it"
    _assert_equals_umoci(site, site.target(tag), unpacked["2"])


def _assert_equals_umoci(site: Site, tree: str, theirs: dict[str, support.Node]) -> None:
    ours = support.tree_listing((site.root / ".flat" / tree[:2] / tree).resolve())
    # The owner is the publisher's; CernVM-FS keeps neither hard links nor fractions of seconds nor attributes.
    ignore = {"uid", "gid", "mode", "xattrs"} | ({"links", "mtime_ns"} if site.fake else set())
    furnished = ["dev", "etc/hosts", "etc/resolv.conf", "cvmfs", "proc", "sys", "home", "root", "tmp", "var/tmp", "srv"]
    missing = [path for path in furnished if path not in theirs]
    # What was added changed its directory's time.
    support.assert_same_tree(ours, theirs, ignore, [*ADDED, *missing, "."])
    assert set(theirs) <= set(ours)
    for path, node in theirs.items():
        added = {"directory": 0o705, "file": 0o404}.get(node.type, 0)
        if node.type != "fifo":  # nobody reads one of a read-only tree
            assert oct(ours[path].mode) == oct(node.mode | added), path
    assert {".singularity.d", ".run", "cvmfs", "srv", ".cvmfscatalog"} <= set(ours)


def test_an_unchanged_image_costs_one_head_and_no_transaction(site: Site, registry: ScriptableRegistry) -> None:
    """A second sync asks each name once, however many platforms are wished for, and writes nothing."""
    amd = registry.add_image("org/multi", None, [layer(a="amd")])
    arm = registry.add_image("org/multi", None, [layer(a="arm")], platform="linux/arm64")
    registry.add_index("org/multi", "1", {"linux/amd64": amd, "linux/arm64": arm})
    registry.add_image("org/tool", "1", [layer(b="tool")])
    multi, tool = f"{registry.host}/org/multi:1", f"{registry.host}/org/tool:1"
    site.wish({"image": multi, "platforms": ["linux/amd64", "linux/arm64"]}, tool)
    assert set(site.sync().values()) == {"published"}
    assert (site.root / multi / "a").read_text() == "amd"
    assert (site.root / f".multiarch/linux-arm64/{multi}/a").read_text() == "arm"

    before = site.transactions() if site.fake else site.fingerprint()
    registry.requests.clear()
    assert site.sync() == {multi: "unchanged", f"{multi} (linux/arm64)": "unchanged", tool: "unchanged"}
    assert sorted((each.method, each.path) for each in registry.requests) == [
        ("HEAD", "/v2/org/multi/manifests/1"),
        ("HEAD", "/v2/org/tool/manifests/1"),
    ]
    assert before == (site.transactions() if site.fake else site.fingerprint())


def test_a_moved_tag_is_followed_and_a_removed_wish_stays(site: Site, registry: ScriptableRegistry) -> None:
    """The link is switched, the old tree stays; what the list does not name any more is left as it is."""
    first = registry.add_image("org/tool", "1", [layer(a="old")])
    other = registry.add_image("org/other", "1", [layer(o="other")])
    tool, removed = f"{registry.host}/org/tool:1", f"{registry.host}/org/other:1"
    site.wish(tool, removed)
    site.sync()
    second = registry.add_image("org/tool", "1", [layer(a="old"), layer(a="new")])
    site.wish(tool)
    assert site.sync() == {tool: "published"}
    assert (site.root / tool / "a").read_text() == "new"
    assert site.trees() == {each.digest.removeprefix("sha256:") for each in (first, second, other)}
    assert site.target(removed) == other.digest.removeprefix("sha256:")
    assert site.catalogue()[tool]["digest"] == second.digest
    assert set(site.catalogue()) == {tool, removed}


def test_losing_the_state_costs_nothing(site: Site, registry: ScriptableRegistry) -> None:
    """Without the state directory nothing is published twice, and no transaction is opened."""
    image = registry.add_image("org/tool", None, [layer(a="1")])
    registry.add_index("org/tool", "1", {"linux/amd64": image})
    tool = f"{registry.host}/org/tool:1"
    site.wish(tool)
    site.sync()
    shutil.rmtree(site.home / "state")
    before = site.transactions() if site.fake else site.fingerprint()
    assert site.sync() == {tool: "unchanged"}
    assert before == (site.transactions() if site.fake else site.fingerprint())


@pytest.mark.parametrize(
    ("site", "damage"),
    [("directory", "lost"), ("directory", "damaged"), ("directory", "of another version"), ("cvmfs", "lost")],
    indirect=["site"],
)
def test_a_lost_catalogue_is_written_anew(site: Site, registry: ScriptableRegistry, damage: str) -> None:
    """From links and records, with names and times as they were; the trees are left alone."""
    registry.add_image("org/tool", "1", [layer(a="1")])
    registry.manifests["org/tool", "stable"] = registry.manifests["org/tool", "1"]
    tool, stable = f"{registry.host}/org/tool:1", f"{registry.host}/org/tool:stable"
    site.wish(tool, {"image": stable, "description": "what is meant"})
    site.sync()
    before = site.catalogue()
    path = site.root / ".cvmfs-sync/catalogue.json"
    if site.fake:
        # A change of the repository from outside a transaction would not be one.
        assert site.fake.run("transaction").returncode == 0
    match damage:
        case "lost":
            path.unlink()
        case "damaged":
            path.write_text('{"version": 1, "images": {"x": 7}}')
        case _:
            path.write_text('{"version": 99}')
    if site.fake:
        assert site.fake.run("publish").returncode == 0
    registry.requests.clear()
    assert set(site.sync().values()) == {"linked"}
    assert {request.method for request in registry.requests} == {"HEAD"}
    assert {link: {**line, "published_at": ""} for link, line in site.catalogue().items()} == {
        link: {**line, "published_at": ""} for link, line in before.items()
    }
    assert set(site.sync().values()) == {"unchanged"}


def test_one_image_under_two_names_is_one_tree(site: Site, registry: ScriptableRegistry) -> None:
    """Two tags, two repositories, two registries: one tree, whose content is fetched once, and a link for each."""
    blob = layer(a="1")
    image = registry.add_image("org/tool", "1", [blob])
    for repository, tag in (("org/tool", "1.0"), ("mirror/tool", "1")):
        registry.add_image(repository, tag, [blob])
    names = [f"{registry.host}/org/tool:1", f"{registry.host}/org/tool:1.0", f"{registry.host}/mirror/tool:1"]
    names.append(f"{registry.alias}/org/tool:1")
    site.wish(*names)
    assert site.sync() == {names[0]: "published", **dict.fromkeys(names[1:], "linked")}
    assert site.trees() == {image.digest.removeprefix("sha256:")}
    assert set(site.links()) == set(names)
    assert sum("/blobs/" + image.layers[0] in path for path in registry.paths("GET")) == 1
    assert {line["digest"] for line in site.catalogue().values()} == {image.digest}
    if site.fake:
        assert site.transactions() == 1


def test_a_shared_image_comes_from_whoever_has_it(plain: Site, registry: ScriptableRegistry) -> None:
    """If one registry fails in the middle, another name of the same image is not held up by that."""
    blob = layer(a="1")
    for repository in ("broken/tool", "good/tool", "third/tool"):
        registry.add_image(repository, "1", [blob])
    registry.fail(r"/broken/tool/blobs/sha256:" + support.digest_of(blob)[7:], status=404)
    names = [f"{registry.host}/{each}/tool:1" for each in ("broken", "good", "third")]
    plain.wish(*names)
    assert plain.sync(rc=1) == {names[0]: "failed", names[1]: "published", names[2]: "linked"}
    assert set(plain.links()) == set(names[1:])
    registry.heal()
    assert plain.sync() == {names[0]: "linked", names[1]: "unchanged", names[2]: "unchanged"}


def test_an_index_that_changes_for_others_is_no_change(site: Site, registry: ScriptableRegistry) -> None:
    """A new platform in an index publishes nothing for those who do not want it, now or in later cycles."""
    amd = registry.add_image("org/tool", None, [layer(a="amd")])
    arm = registry.add_image("org/tool", None, [layer(a="arm")], platform="linux/arm64")
    registry.add_index("org/tool", "1", {"linux/amd64": amd})
    tool = f"{registry.host}/org/tool:1"
    site.wish(tool)
    site.sync()
    registry.add_index("org/tool", "1", {"linux/amd64": amd, "linux/arm64": arm})
    before = site.transactions() if site.fake else site.fingerprint()
    assert site.sync() == {tool: "unchanged"}
    registry.requests.clear()
    assert site.sync() == {tool: "unchanged"}
    assert [request.method for request in registry.requests] == ["HEAD"]
    assert before == (site.transactions() if site.fake else site.fingerprint())


def test_tags_are_selected_and_kept(plain: Site, registry: ScriptableRegistry) -> None:
    """A glob with `keep` publishes the newest, over all pages; an older one stays when it falls out of them."""
    registry.page_size = 2
    for tag in ("4.1", "4.2", "4.10", "4.11-rc1", "5.0", "latest"):
        registry.add_image("org/r", tag, [layer(v=tag)])
    name = f"{registry.host}/org/r"
    plain.wish({"image": name, "tags": ["4.*", "!*-rc*"], "keep": 2})
    assert plain.sync() == {f"{name}:4.10": "published", f"{name}:4.2": "published"}
    registry.add_image("org/r", "4.11", [layer(v="4.11")])
    assert plain.sync() == {f"{name}:4.11": "published", f"{name}:4.10": "unchanged"}
    assert set(plain.links()) == {f"{name}:{tag}" for tag in ("4.2", "4.10", "4.11")}
    # One of them only; and one that the filter matches, but no longer keeps.
    assert plain.sync(f"{name}:4.11") == {f"{name}:4.11": "unchanged"}
    error = plain.run("sync", f"{name}:4.2", rc=2).stderr
    assert f"{name}:4.2 is not among the tags that the image list selects now" in error


def test_an_entry_for_a_tag_speaks_before_one_for_many(plain: Site, registry: ScriptableRegistry) -> None:
    """An image that a glob and an entry of its own ask for is published once, and does not change at every sync."""
    registry.add_image("org/r", "4.1", [layer(v="1")])
    name = f"{registry.host}/org/r"
    plain.wish({"image": name, "tags": ["4.*"]}, {"image": f"{name}:4.1", "description": "the one for papers"})
    assert plain.sync() == {f"{name}:4.1": "published"}
    assert plain.catalogue()[f"{name}:4.1"]["description"] == "the one for papers"
    assert plain.sync() == {f"{name}:4.1": "unchanged"}
    plain.wish({"image": name, "tags": ["4.*"]}, {"image": f"{name}:4.1", "description": "another text"})
    assert plain.sync() == {f"{name}:4.1": "linked"}
    assert plain.catalogue()[f"{name}:4.1"]["description"] == "another text"


def test_an_expired_wish_is_not_followed(plain: Site, registry: ScriptableRegistry) -> None:
    """From the day after its last day on, an image is not asked for; plan says so, sync by name refuses."""
    registry.add_image("org/tool", "1", [layer(a="1")])
    tool = f"{registry.host}/org/tool:1"
    plain.wish({"image": tool, "expires": "2020-01-01"})
    # JSON has no dates, YAML has them without quotes.
    path = plain.home / "image-list.yaml"
    path.write_text(path.read_text().replace('"2020-01-01"', "2020-01-01"))
    assert plain.sync() == {}
    assert registry.requests == []
    assert plain.run("plan", "--json").json == {"steps": [], "expired": [tool]}
    error = plain.run("sync", tool, rc=2).stderr
    assert "is not wished for any more" in error
    assert "expired on 2020-01-01" in error


def test_pinned_images_are_asked_for_once(plain: Site, registry: ScriptableRegistry) -> None:
    """A name with a digest is published under that name, and costs no request ever after."""
    image = registry.add_image("org/tool", None, [layer(a="1")])
    tool = f"{registry.host}/org/tool:1@{image.digest}"
    plain.wish(tool)
    assert plain.sync() == {tool: "published"}
    registry.requests.clear()
    assert plain.sync() == {tool: "unchanged"}
    assert registry.requests == []


def test_plan_says_what_sync_does(plain: Site, registry: ScriptableRegistry) -> None:
    """The same steps in the same order; plan itself changes nothing, not even on disk."""
    blob = layer(a="1")
    registry.add_image("org/tool", "1", [blob])
    registry.add_image("org/twin", "1", [blob])
    gone, tool, twin = (f"{registry.host}/org/{name}:1" for name in ("gone", "tool", "twin"))
    plain.wish(tool, gone, twin)
    planned = plain.run("plan", "--json", rc=1).json["steps"]
    assert [(step["action"], step["image"]) for step in planned] == [("publish", tool), ("fail", gone), ("link", twin)]
    assert sorted(path.name for path in plain.home.iterdir()) == ["cvmfs-sync.yaml", "image-list.yaml"]
    done = plain.sync(rc=1)
    assert done == {tool: "published", gone: "failed", twin: "linked"}
    assert {step["image"]: step["digest"] for step in planned} == {
        **{each["image"]: each["digest"] for each in plain.report["images"]}
    }
    before = {path: path.read_bytes() for path in (plain.home / "state").iterdir() if path.is_file()}
    registry.add_image("org/tool", "1", [blob, layer(a="2")])
    text = plain.run("plan", rc=1).stdout
    assert "1 to publish, 0 to link, 1 unchanged, 1 failing, 0 expired" in text
    assert "moved" in text
    assert before == {path: path.read_bytes() for path in (plain.home / "state").iterdir() if path.is_file()}


BROKEN = {
    "unknown": ("ImageNotFound", "not found"),
    "private": ("AccessDenied", "refuses access"),
    "forbidden": ("AccessDenied", "refuses access"),
    "down": ("RegistryUnavailable", "fail"),
    "busy": ("RegistryUnavailable", ""),
    "cut": ("RegistryUnavailable", "breaks off again and again"),
    "wrong": ("BlobMismatch", "is damaged"),
    "missing": ("ImageError", "has the manifest but not its blob"),
    "liar": ("InvalidImage", "layer 1"),
    "malformed": ("InvalidImage", "layer 1"),
    "evil": ("InvalidImage", "layer 1"),
    "nojson": ("InvalidManifest", "not JSON"),
    "helm": ("InvalidManifest", "an artifact, not a container image"),
    "arm": ("NotForPlatform", "not available for linux/amd64"),
}


def test_one_failing_image_is_reported_and_the_others_go_on(site: Site, registry: ScriptableRegistry) -> None:
    """Whatever a registry or an image does wrong: an error that names it and its kind, exit code 1, nothing lost."""
    host = registry.host
    good = [f"{host}/org/first:1", f"{host}/org/last:1"]
    for name in ("first", "last"):
        registry.add_image(f"org/{name}", "1", [layer(name=name)])
    for number, name in enumerate(("cut", "wrong", "missing"), 10):
        blob = layer(name=name * number)
        registry.add_image(f"bad/{name}", "1", [layer(base="base"), blob])
        path = f"/bad/{name}/blobs/{support.digest_of(blob)}"
        match name:
            case "cut":
                registry.truncate(path, 100)
                registry.ranges = False
            case "wrong":
                registry.corrupt(path)
            case _:
                registry.fail(path, status=404)
    registry.fail("/bad/private/", status=401)
    registry.fail("/bad/forbidden/", status=403)
    registry.fail("/bad/down/", status=503, headers={"Retry-After": "0"})
    registry.fail("/bad/busy/", status=429, headers={"Retry-After": "0"})
    registry.add_image("bad/liar", "1", [layer(a="1")], diff_ids=[support.digest_of(b"")])
    registry.add_image("bad/malformed", "1", [b"this is no tar archive" * 100])
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../../../evil"))
    registry.add_image("bad/evil", "1", [evil.getvalue()])
    registry.put_manifest("bad/nojson", "1", b"<html>")
    helm = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": support.digest_of(b"{}"), "size": 2}
    registry.put_manifest("bad/helm", "1", json.dumps({"schemaVersion": 2, "config": helm, "layers": []}).encode())
    registry.add_image("bad/arm", "1", [layer(a="1")], platform="linux/arm64")
    bad = {name: f"{host}/bad/{name}:1" for name in BROKEN}
    site.wish(good[0], *bad.values(), good[1])
    results = site.sync(rc=1)
    assert results == {**dict.fromkeys(good, "published"), **dict.fromkeys(bad.values(), "failed")}
    for name, (kind, words) in BROKEN.items():
        error = site.error(bad[name])
        assert (name, error["type"]) == (name, kind)
        assert words in error["what"], name
        assert bad[name] in error["what"] or f"{host}/bad/{name}" in error["what"], name
    assert set(site.links()) == set(good)
    assert len(site.trees()) == 2
    assert not [path for path in (site.home / "spool").rglob("*") if path.is_file()]
    if site.fake:
        assert not site.fake.in_transaction
    else:
        assert not (site.root / ".cvmfs-sync/staging").exists()

    # The same in words; and why, from the memory, without a registry.
    requests = len(registry.requests)
    text = site.run("status").stdout
    assert f"{bad['wrong']}: failed once, at" in text
    assert len(registry.requests) == requests
    # What is repaired is published by the next sync, and its failure is history.
    registry.heal()
    assert site.sync(bad["wrong"]) == {bad["wrong"]: "published"}
    (status,) = site.run("status", "--json", bad["wrong"]).json["images"]
    assert (status["state"], status["failure"]) == ("published", None)
    assert [event["event"] for event in status["history"]] == ["published", "recovered", "failed"]


def test_a_published_image_outlives_its_registry(plain: Site, registry: ScriptableRegistry) -> None:
    """Gone, private or down: what was published stays, and status says both."""
    registry.add_image("org/tool", "1", [layer(a="1")])
    tool = f"{registry.host}/org/tool:1"
    plain.wish(tool)
    plain.sync()
    for status in (404, 401, 500):
        registry.heal()
        registry.fail("/org/tool/", status=status, headers={"Retry-After": "0"})
        assert plain.sync(tool, rc=1) == {tool: "failed"}
    assert (plain.root / tool / "a").read_text() == "1"
    (status,) = plain.run("status", "--json").json["images"]
    assert (status["state"], status["failure"]["count"]) == ("failed", 3)
    assert status["digest"] is not None
    assert plain.run("where", tool).stdout == f"{plain.root}/{tool}\n"


def test_a_registry_that_is_not_there_is_named(plain: Site) -> None:
    """Connection refused: exit code 1, and the message says where nobody answers."""
    plain.wish("127.0.0.1:1/org/tool:1", "127.0.0.1:1/org/other:1")
    assert set(plain.sync(rc=1).values()) == {"failed"}
    error = plain.error("127.0.0.1:1/org/tool:1")
    assert error["type"] == "RegistryUnavailable"
    assert "127.0.0.1:1" in error["what"]


def test_tags_that_cannot_be_listed_are_a_failure_of_their_entry(plain: Site, registry: ScriptableRegistry) -> None:
    """What is published of them stays; the failure is seen in status, and gone when the list is there again."""
    registry.add_image("org/r", "4.1", [layer(v="1")])
    name = f"{registry.host}/org/r"
    plain.wish({"image": name, "tags": ["4.*"]})
    registry.fail("/tags/list", status=500, headers={"Retry-After": "0"})
    assert plain.sync(rc=1) == {name: "failed"}
    registry.heal()
    plain.sync()
    states = {each["image"]: each["state"] for each in plain.run("status", "--json").json["images"]}
    assert states == {f"{name}:4.1": "published"}
    registry.fail("/tags/list", status=500, headers={"Retry-After": "0"})
    plain.sync(rc=1)
    states = {each["image"]: each["state"] for each in plain.run("status", "--json").json["images"]}
    assert states == {f"{name}:4.1": "published", name: "failed"}
    # A tag that has never been published is known by its failure.
    registry.heal()
    registry.add_image("org/r", "4.2", [b"no tar" * 200])
    plain.sync(rc=1)
    states = {each["image"]: each["state"] for each in plain.run("status", "--json").json["images"]}
    assert states == {f"{name}:4.1": "published", f"{name}:4.2": "failed"}


def test_the_tag_may_move_while_it_is_fetched(plain: Site, registry: ScriptableRegistry) -> None:
    """What is published is what the name meant when it was asked, whole; the next sync follows."""
    old = registry.add_image("org/tool", "1", [layer(a="old")])
    tool = f"{registry.host}/org/tool:1"
    plain.wish(tool)
    registry.before(f"manifests/{old.digest}", lambda: registry.add_image("org/tool", "1", [layer(a="new")]), times=1)
    plain.sync()
    assert (plain.root / tool / "a").read_text() == "old"
    assert plain.target(tool) == old.digest.removeprefix("sha256:")
    assert plain.sync() == {tool: "published"}
    assert (plain.root / tool / "a").read_text() == "new"


def test_nothing_is_fetched_while_a_transaction_is_open(
    fake_cvmfs: support.FakeCvmfs, tmp_path: Path, registry: ScriptableRegistry
) -> None:
    """A slow registry must not keep a repository locked: every request comes while it is not in a transaction."""
    site = Site(tmp_path / "site", fake_cvmfs, (registry.host,))
    for name in ("a", "b"):
        registry.add_image(f"org/{name}", "1", [layer(name=name), layer(other=name)])
    open_ones: list[bool] = []
    registry.before("", lambda: open_ones.append(fake_cvmfs.in_transaction))
    site.wish(f"{registry.host}/org/a:1", f"{registry.host}/org/b:1")
    site.sync()
    assert open_ones
    assert not any(open_ones)


def test_the_osg_layout_has_its_own_paths(tmp_path: Path, registry: ScriptableRegistry) -> None:
    """Links without the registry, trees below `.images`; what one link would have to mean twice is refused."""
    site = Site(tmp_path / "site", None, (registry.host, registry.alias), {"layout": "osg"})
    image = registry.add_image("org/tool", "1", [layer(a="1")])
    registry.add_image("library/tool", "1", [layer(a="2")])
    site.wish(f"{registry.host}/org/tool:1", f"{registry.host}/library/tool:1")
    site.sync()
    assert set(site.links()) == {"org/tool:1", "library/tool:1"}
    digits = image.digest.removeprefix("sha256:")
    assert (site.root / f".images/{digits[:2]}/{digits[2:]}/a").read_text() == "1"
    site.wish(f"{registry.host}/org/tool:1", f"{registry.alias}/org/tool:1")
    error = site.run("sync", rc=2).stderr
    assert "two images claim the link org/tool:1" in error
    assert f"{registry.host}/org/tool:1 (line 4) and {registry.alias}/org/tool:1 (line 5)" in error
    assert (site.root / "org/tool:1/a").read_text() == "1"


def test_a_link_cannot_lie_below_another(plain: Site, tmp_path: Path) -> None:
    """Two names of which one is a directory of the other are refused before anything is done."""
    image = support.Image((support.layer(support.file("a", "1")),))
    inner = support.write_layout(tmp_path / "images/inner", {"1": image})
    support.write_layout(tmp_path / "images", {"1": image})
    plain.wish(f"oci:{inner}:1", f"oci:{tmp_path}/images")
    assert "two images claim the link" in plain.run("sync", rc=2).stderr
    assert not plain.root.exists()


def test_layouts_on_disk_are_published_too(plain: Site, tmp_path: Path) -> None:
    """`oci:DIR:tag`, relative to the list, is an image like any other; its link has the whole path."""
    image = support.Image((support.layer(support.file("a", "1"), compression="zstd"),), entrypoint=("/bin/true",))
    layout = support.write_layout(tmp_path / "site/images", {"1": image})
    plain.wish("oci:images:1")
    name = f"oci:{layout}:1"
    assert plain.sync() == {name: "published"}
    assert (plain.root / f"oci{layout}:1/a").read_text() == "1"
    moved = image.but(layers=(*image.layers, support.layer(support.whiteout("a"))))
    support.write_layout(layout, {"1": moved})
    assert plain.sync() == {name: "published"}
    assert not (plain.root / f"oci{layout}:1/a").exists()
    assert plain.run("where", name).stdout == f"{plain.root}/oci{layout}:1\n"


def test_an_unexpected_exception_ends_one_image(
    plain: Site, registry: ScriptableRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect that one image meets is its failure, asks to be reported, and does not keep the others."""
    from cvmfs_sync import cycle, executor, plan, survey
    from cvmfs_sync.imagelist import load
    from cvmfs_sync.service import load_config, make_context

    registry.add_image("org/odd", "1", [layer(a="1")])
    registry.add_image("org/good", "1", [layer(a="2")])
    wishes = load(plain.wish(f"{registry.host}/org/odd:1", f"{registry.host}/org/good:1"))
    for module, stage in ((survey, "source_digest"), (plan, "resolve"), (executor, "put_image")):
        original = getattr(module, stage)

        def broken(*args: object, original: object = original, **more: object) -> object:
            if any("org/odd" in str(arg) for arg in args):
                raise ZeroDivisionError("division by zero")
            assert callable(original)
            return original(*args, **more)

        monkeypatch.setattr(module, stage, broken)
        with make_context(load_config(plain.config)) as context:
            odd, good = cycle.sync(context, wishes).outcomes
        monkeypatch.setattr(module, stage, original)
        assert (odd.result, good.result) == ("failed", "published" if stage == "source_digest" else "unchanged")
        assert "ZeroDivisionError: division by zero" in str(odd.error)
        assert "report it" in str(odd.error)


def test_an_unreadable_directory_is_no_reason_to_forget_links(plain: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue that is made anew holds all links or is not made: what cannot be read may hold some."""
    from cvmfs_sync import inventory
    from cvmfs_sync.errors import RepositoryUnavailable
    from cvmfs_sync.layout import Layout
    from cvmfs_sync.repository import DirectoryRepository

    (plain.root / "docker.io/library").mkdir(parents=True)
    listdir = os.scandir

    def forbidden(path: str) -> object:
        if str(path).endswith("library"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(RepositoryUnavailable, match="library"):
        inventory.read_catalogue(DirectoryRepository(plain.root), Layout())
