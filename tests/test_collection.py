"""`gc`: what nobody asks for goes after its grace period, by proof only, on both backends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_sync.collection import collect
from cvmfs_sync.daemon import Job, run_daemon
from cvmfs_sync.errors import RepositoryUnavailable
from cvmfs_sync.locking import instance
from cvmfs_sync.service import load_config, make_context, make_repository
from cvmfs_sync.state import State
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.commands import cli_command, require_root, run_cli
from tests.support.registry import free_port
from tests.support.retiring import AT_ONCE, Clock, fingerprints, make_published, read
from tests.support.site import Site

# Names that are pinned need no request.
A, B, C = (f"x.org/{each}@sha256:{each * 64}" for each in "abc")
DUE_AT_ONCE = {"retire": {"grace_period": "0s", "max_fraction": 1}}
HOUR = replace(AT_ONCE, grace_period=timedelta(hours=1))


def layer(content: str) -> bytes:
    """A layer with one file."""
    return support.layer(support.file("content", content)).tar


@pytest.fixture
def site(site: Site) -> Site:
    """An installation with either backend, in which everything is due at once."""
    site.settings |= DUE_AT_ONCE
    return site


@pytest.fixture
def plain(plain: Site) -> Site:
    """The same with backend directory, for what does not depend on the backend."""
    plain.settings |= DUE_AT_ONCE
    return plain


def two_images(site: Site, registry: ScriptableRegistry) -> tuple[str, str]:
    """`org/a:1` and `org/b:1`, published."""
    images = tuple(f"{registry.host}/org/{name}:1" for name in "ab")
    for name in "ab":
        registry.add_image(f"org/{name}", "1", [layer(name)])
    site.wish(*images)
    assert Clock(site).sync().exit_code == 0
    assert set(site.links()) == set(images)
    return images[0], images[1]


def assert_consistent(site: Site) -> None:
    """No link leads to nothing, no record is without its tree or line without its link, and nothing is left over."""
    trees, links = site.trees(), site.links()
    assert set(links.values()) <= trees
    assert {path.stem for path in site.root.glob(".cvmfs-sync/images/??/*.json")} == trees
    assert set(site.catalogue()) == set(links)
    if site.fake:
        assert not site.fake.in_transaction
        assert site.fake.run("fake-verify").returncode == 0
    else:
        assert not (site.root / ".cvmfs-sync/staging").exists()


# --- what happens, from the list to the directory ---


def test_a_removed_wish_is_retired(site: Site, registry: ScriptableRegistry) -> None:
    """Link, line, record and tree go; the others are untouched; text, JSON and history tell it."""
    a, b = two_images(site, registry)
    tree = site.target(b)
    site.wish(a)
    dry = site.run("gc", "--dry-run", "--json").json
    assert (dry["dry_run"], dry["exit_code"], set(site.links())) == (True, 0, {a, b})
    assert [(each["kind"], each["gone"]) for each in dry["retire"]] == [("link", False), ("tree", False)]

    report = site.run("gc", "--json").json
    assert [(each["kind"], each["path"], each["gone"]) for each in report["retire"]] == [
        ("link", b, True),
        ("tree", f".flat/{tree[:2]}/{tree}", True),
    ]
    assert report["retire"][0]["reason"] == "the list does not ask for it any more"
    assert report["retire"][0]["image"] == b
    assert (report["refused"], report["stopped"], report["waiting"]) == (None, None, [])
    assert set(site.links()) == {a}
    assert tree not in site.trees()
    assert (site.root / b).parent.exists(), "the other link is in it"
    assert (site.root / a / "content").read_text() == "a"
    assert_consistent(site)
    (status,) = site.run("status", "--json", b).json["images"]
    assert (status["state"], status["history"][0]["event"]) == ("unlisted", "retired")
    assert status["history"][0]["detail"] == "the list does not ask for it any more"
    assert "0 retired, 0 due, 0 waiting" in site.run("gc").stdout
    # Who wishes for it again gets it.
    site.wish(a, b)
    assert site.sync() == {a: "unchanged", b: "published"}
    assert (site.root / b / "content").read_text() == "b"


def test_the_old_tree_of_a_moved_tag_goes(site: Site, registry: ScriptableRegistry) -> None:
    """Its link stays, and leads to the new one."""
    a, _ = two_images(site, registry)
    old = site.target(a)
    registry.add_image("org/a", "1", [layer("new")])
    clock = Clock(site)
    clock.sync()
    assert {old, site.target(a)} <= site.trees()
    (gone,) = clock.gc().gone
    assert (gone.path.rpartition("/")[2], gone.reason) == (old, "no link leads to it")
    assert (site.root / a / "content").read_text() == "new"
    assert_consistent(site)


def test_a_tag_that_a_whole_list_lacks_goes(site: Site, registry: ScriptableRegistry) -> None:
    """Also one that `keep` leaves out; not while its filter could only be asked in part."""
    for tag in ("1.0", "1.1", "1.2"):
        registry.add_image("org/a", tag, [layer(tag)])
    name = f"{registry.host}/org/a"
    site.wish({"image": name, "tags": ["1.*"]})
    clock = Clock(site)
    clock.sync()
    assert set(site.links()) == {f"{name}:1.0", f"{name}:1.1", f"{name}:1.2"}
    registry.delete("org/a", "1.0")
    site.wish({"image": name, "tags": ["1.*"], "keep": 1})
    registry.page_size = 1
    registry.fail(r"/tags/list", status=403, times=1)
    assert clock.gc().gone == ()
    registry.before(r"/tags/list", lambda: None, times=1)
    registry.fail(r"/tags/list", status=403, times=1)
    assert clock.gc().gone == (), "the second page failed"
    assert {each.path for each in clock.gc().gone if each.target} == {f"{name}:1.0", f"{name}:1.1"}
    assert set(site.links()) == {f"{name}:1.2"}
    assert_consistent(site)


def test_two_links_to_one_tree(site: Site, registry: ScriptableRegistry) -> None:
    """The tree stays as long as one of them does."""
    a, _ = two_images(site, registry)
    registry.manifests["org/a", "2"] = registry.manifests["org/a", "1"]
    second = f"{registry.host}/org/a:2"
    site.wish(a, second)
    clock = Clock(site)
    clock.sync()
    clock.gc()
    site.wish(second)
    assert [each.path for each in clock.gc().gone] == [a]
    assert (site.root / second / "content").read_text() == "a"
    site.wish(f"{registry.host}/org/b:1")
    assert len(clock.gc().gone) == 2
    assert site.trees() == set()


Fault = Callable[[ScriptableRegistry], object]
FAULTS: dict[str, Fault] = {
    "401": lambda registry: registry.fail(r"/manifests/", status=401),
    "403": lambda registry: registry.fail(r"/manifests/", status=403),
    "429": lambda registry: registry.fail(r"/manifests/", status=429, headers={"Retry-After": "0"}),
    "500": lambda registry: registry.fail(r"/manifests/", status=500),
    "502 of a proxy": lambda registry: registry.fail(r"/manifests/", status=502, body=b"<html>"),
    "404 of a web server": lambda registry: registry.fail(
        r"/manifests/", status=404, headers={"Content-Type": "text/html"}, body=b"<html>no such page"
    ),
    "410": lambda registry: registry.fail(r"/manifests/", status=410),
    "an answer cut": lambda registry: registry.drop(r"/manifests/"),
    "tag list: 404": lambda registry: registry.fail(r"/tags/list", status=404),
    "tag list: 401": lambda registry: registry.fail(r"/tags/list", status=401),
    "tag list: 500": lambda registry: registry.fail(r"/tags/list", status=500),
    "tag list: no list": lambda registry: registry.fail(r"/tags/list", status=200, body=b"{}"),
    "tag list: no JSON": lambda registry: registry.fail(r"/tags/list", status=200, body=b"<html>"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_proves_nothing_retires_nothing(fault: str, plain: Site, registry: ScriptableRegistry) -> None:
    """A refused, failed or missing answer: link and tree stay, also with --force and without any grace."""
    registry.add_image("org/a", "1", [layer("a")])
    registry.add_image("org/t", "1", [layer("t")])
    plain.wish(f"{registry.host}/org/a:1", {"image": f"{registry.host}/org/t", "tags": ["*"]})
    clock = Clock(plain)
    assert clock.sync().exit_code == 0
    before = fingerprints(plain.root)
    FAULTS[fault](registry)
    report = clock.gc(force=True)
    assert (report.gone, report.plan.links, report.plan.trees, report.plan.waiting) == ((), (), (), ())
    assert clock.ages() == {}
    assert fingerprints(plain.root) == before


@pytest.mark.parametrize("host", ["127.0.0.1:{closed}", "no-such-host.invalid", "127.0.0.1:{plaintext}"])
def test_a_registry_that_is_not_there_proves_nothing(host: str, plain: Site, registry: ScriptableRegistry) -> None:
    """Connection refused, no such name, no TLS where TLS is wanted."""
    host = host.format(closed=free_port(), plaintext=registry.port)
    plain.insecure = ()
    images = [f"{host}/org/a:1", f"{host}/org/t:1"]
    make_published(plain, images)
    plain.wish(images[0], {"image": f"{host}/org/t", "tags": ["*"]})
    report = Clock(plain).gc(force=True)
    assert (report.exit_code, report.gone) == (0, ())
    assert set(plain.links()) == set(images)


def test_a_registrys_404_is_proof(plain: Site, registry: ScriptableRegistry) -> None:
    """The wish is still there, and fails; the link goes, and comes back with the image."""
    a, b = two_images(plain, registry)
    manifest = registry.manifests.pop(("org/b", "1"))
    clock = Clock(plain)
    gone = clock.gc().gone
    assert [(each.image, each.reason) for each in gone if each.target] == [
        (b, "its registry has no such image any more")
    ]
    assert set(plain.links()) == {a}
    assert plain.sync(rc=1) == {a: "unchanged", b: "failed"}
    registry.manifests["org/b", "1"] = manifest
    assert plain.sync() == {a: "unchanged", b: "published"}


# --- lists ---


@pytest.mark.parametrize(
    ("text", "rc", "words"),
    [
        ("version: 1\nimages: []\n", 1, "the list asks for no image; by such a list nothing is retired"),
        ("version: 1\nimages: []\nblocked: [{image: 'x.org/a:1', reason: r}]\n", 1, "asks for no image"),
        ("version: 1\nblocked: [{image: 'x.org/a:1', reason: r}]\n", 2, "the key 'images' is missing"),
        ("", 2, "the list is empty"),
        ("version: 1\nimages:\n", 2, "expected a list"),
        ("version: 1\nimages: [x.org/a:1, 'x.org/B:1']\n", 2, "image-list.yaml:2"),
        ("{", 2, "image-list.yaml:2"),
        ("<html>", 2, "image-list.yaml"),
        (None, 2, "cannot be read"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_list_that_says_nothing_retires_nothing(
    text: str | None, rc: int, words: str, plain: Site, *, force: bool
) -> None:
    """Empty, broken or missing: nothing goes and no clock runs, --force or not."""
    make_published(plain, [A, B])
    path = plain.wish()
    path.unlink() if text is None else path.write_text(text)
    before = fingerprints(plain.root)
    result = plain.run("gc", *(["--force"] if force else []), rc=rc)
    assert words in result.stderr
    assert fingerprints(plain.root) == before
    assert Clock(plain).ages() == {}


def test_the_last_good_copy_of_a_list_retires_nothing(plain: Site, registry: ScriptableRegistry) -> None:
    """A URL that does not answer: publishing goes on by the copy; what the list may ask for by now is not known."""
    a, b = two_images(plain, registry)
    plain.settings["image_list"] = f"http://{registry.host}/list.yaml"
    registry.fail(r"/list.yaml", status=200, body=f"version: 1\nimages: ['{a}']\n".encode(), times=1)
    registry.fail(r"/list.yaml", status=503)
    clock = Clock(plain)
    assert clock.gc(HOUR).plan.refused is None
    assert set(clock.ages()) == {b.rpartition("/")[2]}
    clock.pass_by(hours=2)
    report = clock.gc(HOUR, force=True)
    assert "by the last good copy of it nothing is retired" in str(report.plan.refused)
    assert (report.exit_code, report.gone, clock.ages()) == (1, (), {b.rpartition("/")[2]: 0})
    assert clock.sync().exit_code == 0
    assert clock.ages() == {b.rpartition("/")[2]: 0}


# --- what can't be read, and what is not ours ---


def test_a_repository_that_is_not_there_is_no_empty_one(plain: Site, registry: ScriptableRegistry) -> None:
    """Moved away or unmounted: an error or nothing, and the clocks are as they were."""
    a, b = two_images(plain, registry)
    plain.wish(a)
    clock = Clock(plain)
    clock.gc(HOUR)
    clock.pass_by(minutes=36)
    clock.gc(HOUR)
    ages = {b.rpartition("/")[2]: 0.025}
    assert clock.ages() == ages
    away = plain.root.rename(plain.home / "away")
    result = plain.run("gc", rc=3)
    assert "there is no repository at" in result.stderr
    plain.root.mkdir()
    clock.pass_by(hours=5)
    assert clock.gc(HOUR).gone == ()
    assert clock.ages() == ages
    shutil.rmtree(plain.root)
    away.rename(plain.root)
    assert clock.gc(HOUR).gone == ()
    assert set(plain.links()) == {a, b}


def _forbid(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    path.chmod(0)
    return path


UNREADABLE: dict[str, Callable[[Path], Path]] = {
    "among links": lambda root: _forbid(root / "x.org/secret"),
    "of our links": lambda root: _forbid(root / "x.org"),
    "among trees": lambda root: _forbid(next(root.glob(".flat/??"))),
    "all trees": lambda root: _forbid(root / ".flat"),
    "of the other layout": lambda root: _forbid(root / ".images"),
    "among records": lambda root: _forbid(next(root.glob(".cvmfs-sync/images/??"))),
    "all records": lambda root: _forbid(root / ".cvmfs-sync/images"),
}


@pytest.mark.parametrize("where", [*UNREADABLE, "listed, not entered", "a record", "the catalogue"])
def test_what_cannot_be_read_retires_nothing(where: str, plain: Site) -> None:
    """One unreadable directory or file anywhere: exit code 3, and everything stays."""
    require_root()
    make_published(plain, [A, B, C])
    plain.wish(C)
    plain.insecure = ()
    root = plain.root
    if where == "listed, not entered":
        (root / "x.org").chmod(0o744)
        path = root / "x.org"
    elif where == "a record":
        path = next(root.glob(".cvmfs-sync/images/??/*.json"))
        path.chmod(0)
    elif where == "the catalogue":
        path = root / ".cvmfs-sync"
        path.chmod(0)
    else:
        path = UNREADABLE[where](root)
    settings = load_config(plain.config)
    wishes = read(settings)
    with (
        _as_nobody(plain.home),
        make_context(settings, State.snapshot(settings.state_dir)) as context,
        pytest.raises(RepositoryUnavailable, match="cannot read all of the repository"),
    ):
        collect(context, wishes, AT_ONCE, force=True, dry_run=True)
    path.chmod(0o755)
    assert set(plain.links()) == {A, B, C}
    assert len(plain.trees()) == 3


@contextmanager
def _as_nobody(home: Path) -> Iterator[None]:
    """Be a user whom modes mean something."""
    for directory in home.parents:
        if directory.stat().st_mode & 0o055 != 0o055:
            directory.chmod(directory.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"digest": 7}', b'{"digest": "sha256:00", "generation": 1}'])
def test_a_senseless_record_retires_nothing(content: bytes, plain: Site) -> None:
    """It may be of a tree that is in use: exit code 3, and what to do."""
    make_published(plain, [A, C])
    plain.wish(C)
    next(plain.root.glob(".cvmfs-sync/images/??/*.json")).write_bytes(content)
    before = fingerprints(plain.root)
    result = plain.run("gc", "--force", rc=3)
    assert "makes no sense" in result.stderr
    assert "fsck" in result.stderr
    assert fingerprints(plain.root) == before


@pytest.mark.parametrize(
    "target",
    [
        "../.flat/{two}/{hex}",
        "../.flat/{two}/{hex}/content",
        "../.flat/../.flat/{two}//{hex}/",
        "{root}/.flat/{two}/{hex}",
        "/cvmfs/x/.flat/{two}/{hex}/bin",
    ],
)
def test_what_somebody_else_links_to_stays(target: str, site: Site) -> None:
    """To the tree or into it, relative or absolute, with our record or without: neither tree nor link goes."""
    digests = make_published(site, [A, B])
    tree = digests[B].removeprefix("sha256:")
    clock = Clock(site)
    with clock.context() as context, context.repository.transaction("an operator's") as transaction:
        transaction.link("mine/link", target.format(two=tree[:2], hex=tree, root=site.root))
    site.wish(A)
    assert [each.path for each in clock.gc(force=True).gone] == [B]
    assert clock.gc(force=True).gone == ()
    assert tree in site.trees()
    assert (site.root / "mine/link").is_symlink()
    with clock.context() as context, context.repository.transaction("an operator's") as transaction:
        transaction.remove("mine/link")
    assert [each.path[-64:] for each in clock.gc(force=True).gone] == [tree]


def test_links_by_another_layout_keep_their_trees(site: Site, registry: ScriptableRegistry) -> None:
    """A site that changes its layout: the old links go by the grace period; trees stay while any link leads there."""
    a, b = two_images(site, registry)
    old = {a: site.target(a), b: site.target(b)}
    site.settings["layout"] = "osg"
    clock = Clock(site)
    clock.sync()
    assert set(site.links()) == {a, b, "org/a:1", "org/b:1"}
    report = clock.gc()
    assert {each.path for each in report.gone if each.target} == {a, b}
    assert {each.reason for each in report.gone if each.target} == {"its image has another path now"}
    assert set(site.links()) == {"org/a:1", "org/b:1"}
    assert not set(old.values()) & site.trees(), "they are at another place now"
    assert len([path for path in site.root.glob(".images/??/*") if path.is_dir()]) == 2
    # Of each image there is one record, and it is about the tree that stays.
    records = [json.loads(path.read_bytes()) for path in site.root.glob(".cvmfs-sync/images/??/*.json")]
    assert sorted(record["tree"][:8] for record in records) == [".images/"] * 2
    assert set(site.sync().values()) == {"unchanged"}


def test_a_lost_catalogue_makes_nothing_ours_that_was_not(plain: Site) -> None:
    """A link that has not the name of its image is somebody else's, whatever it leads to."""
    digests = make_published(plain, [A, B])
    tree = digests[B].removeprefix("sha256:")
    (plain.root / "tools").symlink_to(f".flat/{tree[:2]}/{tree}")
    (plain.root / ".cvmfs-sync/catalogue.json").unlink()
    plain.wish(A)
    assert [each.path for each in Clock(plain).gc(force=True).gone] == [B]
    assert (plain.root / "tools/file").read_text() == B


# --- time ---


def test_the_grace_period_counts_what_was_seen(plain: Site) -> None:
    """Looks that follow each other add up; a wish that comes back clears the clock."""
    make_published(plain, [A, B])
    plain.wish(A)
    plain.insecure = ()
    rules = replace(AT_ONCE, grace_period=timedelta(days=30))
    clock = Clock(plain)
    for day in range(0, 29, 7):
        assert clock.gc(rules).gone == ()
        assert clock.ages() == {"b@sha256:bbb": day}
        clock.pass_by(days=7)
    plain.wish(A, B)
    clock.gc(rules)
    assert clock.ages() == {}
    plain.wish(A)
    clock.gc(rules)
    assert clock.ages() == {"b@sha256:bbb": 0}
    for _ in range(4):
        clock.pass_by(days=6)
        assert clock.gc(rules).gone == ()
    clock.pass_by(days=6)
    assert {each.path for each in clock.gc(rules).gone if each.target} == {B}


@pytest.mark.parametrize("jump", [{"days": 365}, {"days": -365}, {"days": 60}, {"days": 9}])
@pytest.mark.parametrize("grace", [timedelta(hours=1), timedelta(days=30)])
def test_a_clock_that_jumps_makes_nothing_older(jump: dict[str, float], grace: timedelta, plain: Site) -> None:
    """Nor does a daemon that was off for months: between looks so far apart nobody knows what was."""
    make_published(plain, [A, B])
    plain.wish(A)
    rules = replace(AT_ONCE, grace_period=grace)
    clock = Clock(plain)
    clock.gc(rules)
    clock.pass_by(minutes=36)
    clock.gc(rules)
    for _ in range(3):
        clock.pass_by(**jump)
        assert clock.gc(rules).gone == ()
        assert clock.ages() == {"b@sha256:bbb": 0.025}
    clock.pass_by(minutes=36)
    report = clock.gc(rules)
    assert bool(report.gone) == (grace < timedelta(days=1))


def test_nobody_grows_older_while_nobody_can_tell(plain: Site, registry: ScriptableRegistry) -> None:
    """An image that was gone, then can't be asked for, then is gone: the time in between does not count."""
    two_images(plain, registry)
    registry.delete("org/b", "1")
    clock = Clock(plain)
    clock.gc(HOUR)
    clock.pass_by(minutes=36)
    clock.gc(HOUR)
    assert clock.ages() == {"b:1": 0.025}
    registry.fail(r"org/b/", status=403, times=2)
    for look in (clock.sync, lambda: clock.gc(HOUR)):
        clock.pass_by(minutes=36)
        look()
        assert clock.ages() == {"b:1": 0.025}
    registry.heal()
    clock.pass_by(minutes=12)
    assert clock.gc(HOUR).gone == ()
    assert clock.ages() == {"b:1": 0.033}
    clock.pass_by(minutes=12)
    assert clock.gc(HOUR).gone


def test_a_lost_state_begins_anew(plain: Site) -> None:
    """Without it nobody knows since when: that costs time, and no image."""
    make_published(plain, [A, B])
    plain.wish(A)
    clock = Clock(plain)
    clock.gc(HOUR)
    clock.pass_by(minutes=55)
    clock.gc(HOUR)
    shutil.rmtree(plain.home / "state")
    clock.pass_by(minutes=55)
    assert clock.gc(HOUR).gone == ()
    clock.pass_by(minutes=60)
    assert clock.gc(HOUR).gone


def test_sync_starts_the_clock_and_retires_nothing(plain: Site, registry: ScriptableRegistry) -> None:
    """Whoever collects once a week need not wait for two collections; a sync of one image looks at nothing else."""
    a, b = two_images(plain, registry)
    plain.wish(a)
    plain.run("sync", a)
    clock = Clock(plain)
    assert clock.ages() == {}
    clock.sync()
    assert (clock.ages(), set(plain.links())) == ({"b:1": 0}, {a, b})
    clock.pass_by(hours=1)
    assert clock.gc(HOUR).gone


# --- the command ---


def test_a_dry_run_changes_nothing(site: Site, registry: ScriptableRegistry) -> None:
    """Neither repository nor state nor spool, with orphans, with a clock to start, without a state directory."""
    a, _ = two_images(site, registry)
    site.wish(a)
    config = site.config
    roots = [site.home, *([site.fake.home / "srv", site.root] if site.fake else [])]
    before = fingerprints(*roots)
    assert "2 due" in run_cli("gc", "--config", config, "--dry-run").ok().stdout
    assert fingerprints(*roots) == before
    shutil.rmtree(site.home / "state")
    before = fingerprints(*roots)
    assert "2 due" in run_cli("gc", "--config", config, "--dry-run").ok().stdout
    assert fingerprints(*roots) == before


def test_too_much_at_once_is_refused(plain: Site) -> None:
    """Exit code 1, what would go, and how it can; then --force."""
    make_published(plain, [A, B, C])
    plain.wish(A)
    plain.settings["retire"] = {"grace_period": "0s", "max_fraction": 0.5}
    before = fingerprints(plain.root)
    for arguments in ([], ["--dry-run"]):
        result = plain.run("gc", *arguments, rc=1)
        assert "nothing is retired: 2 of 3 links would go, more than retire.max_fraction (0.5)" in result.stderr
        assert B in result.stdout
        document = plain.run("gc", "--json", *arguments, rc=1).json
        assert (document["exit_code"], document["retire"], len(document["waiting"])) == (1, [], 4)
        assert document["refused"].startswith("2 of 3 links")
        assert fingerprints(plain.root) == before
    assert "4 due" in plain.run("gc", "--dry-run", "--force").stdout
    assert "4 retired" in plain.run("gc", "--force").stdout
    assert set(plain.links()) == {A}


@pytest.mark.parametrize("arguments", [["--dryrun"], [A], ["--config", "/nowhere.yaml"]])
def test_mistakes_on_the_command_line(arguments: list[str], plain: Site) -> None:
    """Exit code 2, and nothing is done."""
    make_published(plain, [A])
    plain.wish(B)
    plain.run("gc", *arguments, rc=2)
    assert set(plain.links()) == {A}


# --- a large repository ---


@pytest.mark.parametrize(("batch", "transactions"), [(50, 2), (20, 6)])
def test_fifty_of_a_thousand_images(
    batch: int, transactions: int, fake_cvmfs: support.FakeCvmfs, tmp_path: Path, registry: ScriptableRegistry
) -> None:
    """For each batch a transaction for links and lines, one for records, an ingest for trees; a HEAD for each wish."""
    name = f"{registry.host}/org/tool"
    site = Site(tmp_path / "site", fake_cvmfs, (registry.host,))
    make_published(site, [f"{name}:{number}" for number in range(1000)])
    for number in range(1000):
        if number % 20:
            registry.put_manifest("org/tool", str(number), b"{}")
    site.wish({"image": name, "tags": ["*"]})
    before = len(fake_cvmfs.commands())
    clock = Clock(site)
    report = clock.gc(replace(AT_ONCE, batch=batch, max_fraction=0.05))
    assert report.plan.refused is None
    assert len([each for each in report.gone if each.target]) == 50
    assert len(report.gone) == 100

    assert (registry.paths().count("/v2/org/tool/tags/list"), len(registry.paths("HEAD"))) == (1, 950)
    counts = Counter(each["argv"][0] for each in fake_cvmfs.commands()[before:])
    assert counts == {"transaction": transactions, "publish": transactions, "ingest": transactions // 2}
    assert len(site.links()) == len(site.trees()) == 950
    assert_consistent(site)


# --- interruptions ---


@pytest.mark.parametrize("grace", [timedelta(0), timedelta(hours=1)])
@pytest.mark.parametrize(
    "rule",
    [
        "transaction#1=17::another transaction is already open",
        "publish#1=1:Open writable file descriptors on REPO:",
        "transaction#2=5::cannot load whitelist [failed to download whitelist]",
        "publish#2=1::Synchronization failed",
        "ingest#1=1::errno 28",
        "transaction#3=17::another transaction is already open",
        "publish#3=1::bad whitelist",
        "publish#4=1::Synchronization failed",
        "ingest#2=1::currently publishing and should not be touched",
    ],
)
def test_what_is_stopped_is_finished_by_the_next(
    rule: str, grace: timedelta, fake_cvmfs: support.FakeCvmfs, tmp_path: Path
) -> None:
    """Each command fails once: exit code 3, no link to nothing, nothing lost that was not due; the next one goes on."""
    site = Site(tmp_path / "site", fake_cvmfs)
    images = [f"x.org/tool@sha256:{number:064x}" for number in range(6)]
    digests = make_published(site, images)
    kept = images[:2]
    site.wish(*kept)
    clock = Clock(site)
    rules = replace(AT_ONCE, grace_period=grace, batch=2)
    clock.gc(replace(rules, grace_period=timedelta(days=1)))
    clock.pass_by(hours=1)
    # Those of the collection count from now on.
    fake_cvmfs.switch("fail", rule)
    report = clock.gc(rules)
    assert report.exit_code == 3
    assert len(report.gone) < 8
    links = site.links()
    assert set(kept) <= set(links)
    assert set(links.values()) <= site.trees()
    records = {path.stem for path in site.root.glob(".cvmfs-sync/images/??/*.json")}
    assert records <= site.trees()
    assert set(site.catalogue()) == set(links)
    assert not fake_cvmfs.in_transaction

    fake_cvmfs.unswitch("fail")
    # A tree whose link has gone has waited with it, and does not wait again.
    report = clock.gc(rules)
    assert (report.exit_code, report.plan.waiting) == (0, ())
    assert set(site.links()) == set(kept)
    assert site.trees() == {digests[each].removeprefix("sha256:") for each in kept}
    assert_consistent(site)


def test_a_line_without_its_link_is_dropped(site: Site) -> None:
    """What an interrupted retirement or an operator left in the catalogue, also if nothing else goes."""
    make_published(site, [A, B])
    clock = Clock(site)
    with clock.context() as context, context.repository.transaction("an operator's") as transaction:
        transaction.remove(B)
    site.wish(A)
    clock.gc(replace(AT_ONCE, grace_period=timedelta(days=1)))
    assert set(site.catalogue()) == {A}


def test_what_changes_between_plan_and_removal_stays(plain: Site, registry: ScriptableRegistry) -> None:
    """An operator points a link elsewhere, and another one at a tree that is due, while registries are asked."""
    a, b = two_images(plain, registry)
    tree_a, tree_b = plain.target(a), plain.target(b)
    registry.add_image("org/c", "1", [layer("c")])
    c = f"{registry.host}/org/c:1"
    plain.wish(a, b, c)
    clock = Clock(plain)
    clock.sync()
    plain.wish(c)
    with clock.context() as context:
        from cvmfs_sync.cycle import note_orphans
        from cvmfs_sync.remover import carry_out
        from cvmfs_sync.retire import retirement
        from cvmfs_sync.survey import survey

        wishes = read(load_config(plain.config))
        inventory, alone = note_orphans(context, wishes, survey(context, wishes))
        plan = retirement(alone, {}, inventory, now=clock.now, grace=timedelta(0), max_fraction=1)
        assert len(plan.links) == len(plan.trees) == 2
        (plain.root / a).unlink()
        (plain.root / a).symlink_to(os.readlink(plain.root / c))
        (plain.root / "mine").symlink_to(f".flat/{tree_b[:2]}/{tree_b}")
        gone, stopped = carry_out(context.repository, context.recipe.layout, plan, batch=50)
    assert stopped is None
    assert {each.path for each in gone} == {b, f".flat/{tree_a[:2]}/{tree_a}"}
    assert (plain.root / a).is_symlink()
    assert (plain.root / "mine/content").read_text() == "b"


# --- the repository's own garbage collection ---


def _revisions(fake: support.FakeCvmfs) -> list[list[str]]:
    return [each["argv"] for each in fake.commands() if each["argv"][0] == "gc"]


def test_the_repositorys_own_collection_runs_when_configured(fake_cvmfs: support.FakeCvmfs, tmp_path: Path) -> None:
    """After ours, with -f; not by a dry run, not when nothing may be concluded, and not by default."""
    site = Site(tmp_path / "site", fake_cvmfs, (), {"retire": {"repository_gc": True, "grace_period": "0s"}})
    make_published(site, [f"x.org/a@sha256:{number:064x}" for number in range(6)])
    with fake_cvmfs.server_conf.open("a") as stream:
        stream.write("CVMFS_GARBAGE_COLLECTION=true\n")
    site.wish(*(f"x.org/b@sha256:{number:064x}" for number in range(6)))
    assert "nothing is retired" in site.run("gc", rc=1).stderr
    site.run("gc", "--dry-run", "--force")
    assert _revisions(fake_cvmfs) == []
    site.run("gc", "--force")
    assert _revisions(fake_cvmfs) == [["gc", "-f", fake_cvmfs.name]]
    assert fake_cvmfs.commands()[-1]["argv"][0] == "gc"
    site.settings = {"retire": {"grace_period": "0s"}}
    site.run("gc")
    assert len(_revisions(fake_cvmfs)) == 1


def test_a_repository_that_cannot_collect_says_so(fake_cvmfs: support.FakeCvmfs, tmp_path: Path) -> None:
    """Made without garbage collection: exit code 3 and what to do, after our images have gone."""
    site = Site(tmp_path / "site", fake_cvmfs, (), {"retire": {"repository_gc": True, "grace_period": "0s"}})
    make_published(site, [f"x.org/a@sha256:{number:064x}" for number in range(6)])
    site.wish(*(f"x.org/a@sha256:{number:064x}" for number in range(5)))
    result = site.run("gc", rc=3)
    assert "was made without garbage collection" in result.stderr
    assert "set retire.repository_gc to false" in result.stderr
    assert "2 retired" in result.stdout
    assert f"x.org/a@sha256:{5:064x}" not in site.links()
    assert site.run("gc", "--json", rc=3).json["stopped"]["type"] == "RepositoryUnavailable"


def test_a_directory_has_nothing_to_collect(plain: Site) -> None:
    """The key is harmless there."""
    make_published(plain, [A])
    plain.wish(A)
    plain.settings["retire"] = {"repository_gc": True}
    plain.run("gc")


# --- one at a time ---


@pytest.mark.parametrize("command", ["gc", "sync"])
def test_one_at_a_time_by_state_directory(command: str, plain: Site) -> None:
    """While another one holds it: exit code 3, and which process; a dry run needs no lock."""
    make_published(plain, [A])
    plain.wish(A)
    with instance(plain.home / "state"):
        result = plain.run(command, rc=3)
        assert "another cvmfs-sync is at work" in result.stderr
        assert f"process {os.getpid()} holds" in result.stderr
        plain.run("gc", "--dry-run")


@pytest.mark.parametrize("command", ["gc", "sync"])
def test_one_at_a_time_by_repository(command: str, site: Site) -> None:
    """Also with a state directory of its own."""
    make_published(site, [A])
    site.wish(B)
    before = fingerprints(site.root)
    with make_repository(load_config(site.config)).exclusive():
        site.settings["state_dir"] = "another"
        result = site.run(command, rc=3)
        assert "another cvmfs-sync is at work" in result.stderr
        site.run("gc", "--dry-run")
    assert fingerprints(site.root) == before


def test_an_operators_transaction_is_left_alone(fake_cvmfs: support.FakeCvmfs, tmp_path: Path) -> None:
    """Exit code 3, nothing has gone, and the transaction is still there."""
    site = Site(tmp_path / "site", fake_cvmfs, (), {"retire": {"grace_period": "0s", "max_fraction": 1}})
    make_published(site, [A, B])
    site.wish(A)
    assert fake_cvmfs.run("transaction").returncode == 0
    result = site.run("gc", rc=3)
    assert "somebody else has a transaction open on" in result.stderr
    assert "0 retired, 2 due" in result.stdout
    assert fake_cvmfs.in_transaction
    assert fake_cvmfs.run("abort", "-f").returncode == 0
    assert set(site.links()) == {A, B}


class _Stop(Exception):
    """Ends the daemon of a test."""


def test_jobs_of_the_daemon_take_turns() -> None:
    """A collection that is due while a cycle runs comes after it."""
    running: list[str] = []
    seen: list[str] = []

    def job(name: str) -> Callable[[], None]:
        def run() -> None:
            assert running == []
            running.append(name)
            time.sleep(0.02)
            running.remove(name)
            seen.append(name)
            if {"cycle", "gc"} <= set(seen) and len(seen) > 4:
                raise _Stop

        return run

    every = timedelta(seconds=0.05)
    with pytest.raises(_Stop):
        run_daemon(Job("cycle", every, job("cycle"), at_once=True), Job("gc", every, job("gc")))


@pytest.mark.parametrize(
    ("text", "words", "left"),
    [
        (f"version: 1\nimages: ['{A}']\n", "gc links=1 trees=1 waiting=0", {A}),
        ("version: 1\nimages: []\n", "nothing is retired: the list asks for no image", {A, B}),
        (f"version: 1\nimages: ['{A}', 7]\n", "no garbage collection", {A, B}),
    ],
)
def test_the_daemon_collects(text: str, words: str, left: set[str], plain: Site) -> None:
    """By its schedule; by no list that is empty or broken."""
    make_published(plain, [A, B])
    plain.settings |= {"schedule": {"sync": "1h", "gc": "1s"}, "metrics": {"listen": None}}
    plain.wish().write_text(text)
    process = subprocess.Popen(
        cli_command("-v", "run", "--config", plain.config), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            break
    process.terminate()
    process.wait(60)
    process.stderr.close()
    assert words in lines[-1], lines
    assert set(plain.links()) == left


def test_the_daemon_reads_the_list_before_it_collects(plain: Site, registry: ScriptableRegistry) -> None:
    """A wish that came back after the last cycle is heard, and a list that broke since then retires nothing."""
    from cvmfs_sync.render import report_document
    from cvmfs_sync.serving import Daemon

    a, b = two_images(plain, registry)
    config = load_config(plain.config)
    for text in (f"version: 1\nimages: ['{a}', '{b}']\n", "version: 1\nimages: [\n"):
        plain.wish(a)
        daemon = Daemon(lambda: config, report_document)
        daemon.read_list()
        plain.wish().write_text(text)
        daemon.collection()
        assert set(plain.links()) == {a, b}
