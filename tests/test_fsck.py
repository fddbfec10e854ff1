"""Check and repair: every damage that is made by hand is found, told, and mended; nothing else is touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync import cycle, fsck, imagelist, verify
from cvmfs_sync.errors import RepositoryUnavailable, UsageError
from cvmfs_sync.findings import Kind
from cvmfs_sync.fsck import FsckReport
from cvmfs_sync.locking import instance
from cvmfs_sync.ports import Costs
from cvmfs_sync.reference import parse_image
from cvmfs_sync.repository import CvmfsRepository, DirectoryRepository
from cvmfs_sync.repository.files import sync_directory
from cvmfs_sync.service import load_config, make_context
from cvmfs_sync.state import State
from cvmfs_sync.treecheck import PARTS, Amount
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.site import Site

OWN = ".cvmfs-sync"
CATALOGUE = f"{OWN}/catalogue.json"
BIG = "x" * 4_000_000  # a clone pays
SYNC = "cvmfs_sync.repository.directory.sync_directory"


@dataclass
class Place:
    """A site with two related images, and the old tree of one whose tag has moved."""

    site: Site
    registry: ScriptableRegistry
    now: datetime | None = None

    @property
    def root(self) -> Path:
        return self.site.root

    @property
    def tool(self) -> str:
        """The image, and its link, that is damaged."""
        return f"{self.registry.host}/org/tool:1"

    @property
    def other(self) -> str:
        return f"{self.registry.host}/org/other:1"

    def publish(self) -> None:
        """Publish the two; `tool` for the second time."""
        base = support.layer(support.file("base", BIG), support.directory("d"), support.file("d/f", "f" * 100)).tar
        self.registry.add_image("org/tool", "1", [base])
        self.registry.add_image("org/other", "1", [base, support.layer(support.file("other", "o")).tar])
        self.site.wish({"image": self.tool, "description": "a tool"}, self.other)
        self.sync()
        self.old = self.tree(self.tool)
        self.registry.add_image("org/tool", "1", [base, support.layer(support.file("new", "n" * 10)).tar])
        self.sync()
        self.new = self.tree(self.tool)
        assert self.old != self.new

    def tree(self, link: str) -> str:
        """Where a link leads."""
        return os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(self.root / link)))

    def record(self, tree: str) -> str:
        """Of a tree."""
        key = tree.rpartition("/")[2]
        return f"{OWN}/images/{key[:2]}/{key}.json"

    def sync(self) -> None:
        """One cycle, of which nothing fails."""
        settings = load_config(self.site.config)
        with make_context(settings) as context:
            report = cycle.sync(context, imagelist.load(self.site.home / "image-list.yaml"))
        assert report.exit_code == 0, report

    def check(self, amount: Amount = Amount.NONE, *only: str, repair: bool = False) -> FsckReport:
        """What the command does."""
        settings = load_config(self.site.config)
        with make_context(settings, None if repair else State.snapshot(settings.state_dir)) as context:
            now = self.now
            if now is not None:
                context = replace(context, now=lambda: now)
            return fsck.fsck(context, amount, [parse_image(image) for image in only], repair=repair)

    @contextmanager
    def damaging(self) -> Iterator[Path]:
        """The root, to be written to by an operator's hand."""
        if self.site.fake:
            assert self.site.fake.run("transaction").returncode == 0
        yield self.root
        if self.site.fake:
            assert self.site.fake.run("publish").returncode == 0

    def edit_catalogue(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Have somebody write another one; in `damaging`."""
        document = json.loads((self.root / CATALOGUE).read_bytes())
        change(document)
        (self.root / CATALOGUE).write_text(json.dumps(document))

    def fingerprint(self, *trees: str) -> dict[str, object]:
        """All that is there; or all of some trees, without what changes when another tree shares their files."""
        prefixes = tuple(str(self.root / tree) for tree in trees)
        found = self.site.fingerprint()
        return {path: value[:2] for path, value in found.items() if path.startswith(prefixes)} if trees else {**found}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is at work here."""
    monkeypatch.setattr(fsck, "_PAUSE_SECONDS", 0)


@pytest.fixture
def fake(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> support.FakeCvmfs:
    """A fake publisher, where small trees are cloned, too."""
    made = support.FakeCvmfs(memory_path / "publisher", "unpacked.example.org")
    made.make()
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    cheap = Costs(clone=0, cloned=0, removed=0, made=1, byte=1)
    monkeypatch.setattr(CvmfsRepository, "traits", replace(CvmfsRepository.traits, costs=cheap))
    return made


@pytest.fixture(params=["directory", "cvmfs"])
def place(request: pytest.FixtureRequest, memory_path: Path, registry: ScriptableRegistry) -> Place:
    """A published site of either backend."""
    fake = request.getfixturevalue("fake") if request.param == "cvmfs" else None
    made = Place(Site(memory_path / "site", fake, (registry.host, registry.alias)), registry)
    made.publish()
    return made


@pytest.fixture
def plain(memory_path: Path, registry: ScriptableRegistry) -> Place:
    """A published site of the backend directory, for what does not depend on the backend."""
    made = Place(Site(memory_path / "site", None, (registry.host, registry.alias)), registry)
    made.publish()
    return made


def rewrite(path: Path, content: str) -> None:
    """Other bytes under the same name, size and time; the file may be shared by trees, so it is made anew."""
    status = path.stat()

    def write() -> None:
        path.unlink()
        path.write_text(content)
        path.chmod(status.st_mode & 0o7777)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))

    keep_times(path.parent, write)


def without(*paths: Path) -> None:
    """Remove them, whatever they are."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def relink(path: Path, target: str) -> None:
    """Lead elsewhere."""
    without(path)
    path.symlink_to(target)


def keep_times(path: Path, act: Callable[[], object]) -> None:
    """Change something in a directory that keeps its time."""
    status = path.stat()
    act()
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


Found = Sequence[tuple[Kind, str]]


@dataclass(frozen=True)
class Damage:
    """What somebody did.

    Attributes:
        act: Does it.
        found: Kinds and paths that have to be found.
        left: Kinds that `--repair` leaves for the next sync.
    """

    name: str
    act: Callable[[Place], object]
    found: Callable[[Place], Found]
    left: tuple[Kind, ...] = ()


def own_tree(place: Place) -> Path:
    """The published tree of the tool."""
    return place.root / place.tree(place.tool)


def at_link(kind: Kind) -> Callable[[Place], Found]:
    """Found at the tool's link."""
    return lambda place: [(kind, place.tool)]


def at_tree(place: Place) -> Found:
    """Its tree is damaged."""
    return [(Kind.DAMAGED, place.tree(place.tool))]


def at(kind: Kind, path: str) -> Callable[[Place], Found]:
    """Found at a fixed path."""
    return lambda _: [(kind, path)]


def lose_all_but_the_tree(place: Place) -> None:
    """What an interrupted publish leaves."""
    tree = place.tree(place.tool)
    without(place.root / place.record(tree))
    without(place.root / place.tool)
    place.edit_catalogue(lambda document: document["images"].pop(place.tool))


def lose_line_and_tree(place: Place) -> None:
    """A link to where the tree was."""
    without(own_tree(place))
    place.edit_catalogue(lambda document: document["images"].pop(place.tool))


def lose_all_but_the_link(place: Place) -> None:
    """The same, and no record either."""
    lose_line_and_tree(place)
    without(place.root / place.record(place.new))


def other_record(place: Place) -> None:
    """A record under another one's name."""
    tool, other = (place.root / place.record(place.tree(link)) for link in (place.tool, place.other))
    without(tool)
    shutil.copy(other, tool)


DAMAGES = [
    Damage("catalogue", lambda p: without(p.root / CATALOGUE), at(Kind.CATALOGUE, CATALOGUE)),
    Damage(
        "version", lambda p: p.edit_catalogue(lambda d: d.update(version=99)), at(Kind.CATALOGUE, CATALOGUE)
    ),
    Damage(
        "types", lambda p: p.edit_catalogue(lambda d: d["images"][p.tool].update(path=[1])),
        at(Kind.CATALOGUE, CATALOGUE),
    ),
    Damage(
        "no line", lambda p: p.edit_catalogue(lambda d: d["images"].pop(p.tool)), at_link(Kind.MISSING_LINE)
    ),
    Damage(
        "size", lambda p: p.edit_catalogue(lambda d: d["images"][p.tool].update(size=1)), at_link(Kind.LINE)
    ),
    Damage(
        "digest", lambda p: p.edit_catalogue(lambda d: d["images"][p.tool].update(digest="sha256:0")),
        at_link(Kind.LINE),
    ),
    Damage(
        "other tree in the line",
        lambda p: p.edit_catalogue(lambda d: d["images"][p.tool].update(path=p.old)), at_link(Kind.LINE),
    ),
    Damage(
        "line above the root",
        lambda p: p.edit_catalogue(lambda d: d["images"].update({"../../x": d["images"][p.tool]})),
        at(Kind.LINE, "../../x"),
    ),
    Damage(
        "line at an absolute path",
        lambda p: p.edit_catalogue(lambda d: d["images"].update({"/x": d["images"][p.tool]})), at(Kind.LINE, "/x"),
    ),
    Damage(
        "line of nothing",
        lambda p: p.edit_catalogue(lambda d: d["images"].update({"a:1": {**d["images"][p.tool], "path": "gone"}})),
        at(Kind.MISSING_LINK, "a:1"),
    ),
    Damage("no link", lambda p: without(p.root / p.tool), at_link(Kind.MISSING_LINK)),
    Damage(
        "link to another tree", lambda p: relink(p.root / p.tool, os.readlink(p.root / p.other)), at_link(Kind.LINE)
    ),
    Damage("link elsewhere", lambda p: relink(p.root / p.tool, "../nowhere"), at_link(Kind.LINK)),
    Damage("absolute link", lambda p: relink(p.root / p.tool, str(p.root / p.tree(p.tool))), at_link(Kind.LINK)),
    Damage(
        "no tree", lambda p: without(own_tree(p)),
        lambda p: [(Kind.DANGLING, p.tool), (Kind.NO_TREE, p.record(p.tree(p.tool)))],
    ),
    Damage(
        "neither tree nor record",
        lambda p: without(p.root / p.record(p.tree(p.tool)), own_tree(p)), at_link(Kind.DANGLING),
    ),
    Damage(
        "neither line nor tree", lose_line_and_tree,
        lambda p: [(Kind.DANGLING, p.tool), (Kind.NO_TREE, p.record(p.new))],
    ),
    Damage(
        "nothing but the link", lose_all_but_the_link, at_link(Kind.DANGLING)
    ),
    Damage(
        "no record", lambda p: without(p.root / p.record(p.tree(p.tool))), at_link(Kind.UNRECORDED), (Kind.UNRECORDED,)
    ),
    Damage("all but the tree", lose_all_but_the_tree, lambda p: [(Kind.LEFTOVER, p.new)]),
    Damage(
        "garbage for a record", lambda p: rewrite(p.root / p.record(p.tree(p.tool)), "{"),
        lambda p: [(Kind.UNRECORDED, p.tool), (Kind.RECORD, p.record(p.tree(p.tool)))],
        (Kind.UNRECORDED, Kind.RECORD),
    ),
    Damage(
        "another one's record", other_record,
        lambda p: [(Kind.UNRECORDED, p.tool), (Kind.RECORD, p.record(p.tree(p.tool)))],
        (Kind.UNRECORDED, Kind.RECORD),
    ),
    Damage(
        "old record without a tree", lambda p: without(p.root / p.old),
        lambda p: [(Kind.NO_TREE, p.record(p.old))],
    ),
    Damage(
        "old tree without a record", lambda p: without(p.root / p.record(p.old)), lambda p: [(Kind.LEFTOVER, p.old)]
    ),
    Damage(
        "old tree damaged", lambda p: without(p.root / p.old / "base"), lambda p: [(Kind.DAMAGED, p.old)]
    ),
    Damage("a file less", lambda p: without(own_tree(p) / "d/f"), at_tree, (Kind.DAMAGED,)),
    Damage(
        "a file less in a directory with its time",
        lambda p: keep_times(own_tree(p) / "d", lambda: without(own_tree(p) / "d/f")), at_tree, (Kind.DAMAGED,),
    ),
    Damage(
        "a file more", lambda p: keep_times(own_tree(p), (own_tree(p) / "more").touch), at_tree,
        (Kind.DAMAGED,),
    ),
    Damage("a shorter file", lambda p: rewrite(own_tree(p) / "new", "n"), at_tree, (Kind.DAMAGED,)),
    Damage("a mode", lambda p: (own_tree(p) / "new").chmod(0o600), at_tree, (Kind.DAMAGED,)),
    Damage("a time", lambda p: os.utime(own_tree(p) / "new", (5, 5)), at_tree, (Kind.DAMAGED,)),
    Damage("a link's target", lambda p: relink(own_tree(p) / "singularity", "nowhere"), at_tree, (Kind.DAMAGED,)),
    Damage(
        "a link for a directory",
        lambda p: relink(own_tree(p) / "d", "/etc"), at_tree, (Kind.DAMAGED,),
    ),
    Damage(
        "no marker", lambda p: without(p.root / ".flat/.cvmfscatalog"), at(Kind.DIRECTORY, ".flat/.cvmfscatalog")
    ),
    Damage(
        "no prefixes",
        lambda p: without(*(d for d in (p.root / ".flat").iterdir() if d.is_dir() and not any(d.iterdir()))),
        at(Kind.DIRECTORY, ".flat"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "-"))
def test_damage_is_found_and_mended(place: Place, damage: Damage) -> None:
    """It is told with path and advice, looking changes nothing, repairing nothing else; then all is well again."""
    assert place.check(Amount.FULL).findings == ()
    other, links = place.tree(place.other), place.site.links()
    expected = sorted((kind.value, path) for kind, path in damage.found(place))
    with place.damaging():
        damage.act(place)
    before = place.fingerprint()
    report = place.check()
    assert sorted((each.kind.value, each.path) for each in report.findings) == expected
    assert report.exit_code == 1
    assert all(each.found and each.expected and each.mend.value for each in report.findings)
    assert place.fingerprint() == before

    untouched = place.fingerprint(other)
    report = place.check(repair=True)
    assert sorted((each.kind.value, each.path) for each in report.findings) == expected
    left = [each.kind for each in report.findings if each not in report.done]
    assert sorted(left, key=str) == sorted(damage.left, key=str)
    assert report.exit_code == bool(left)
    if not left:
        assert place.check(Amount.FULL).findings == ()
    place.sync()
    assert place.check(Amount.FULL).findings == ()
    assert place.fingerprint(other) == untouched
    assert place.site.links() == links
    assert (place.root / place.tool / "new").read_text() == "n" * 10
    assert place.site.catalogue()[place.tool]["description"] == "a tool"
    if place.site.fake:
        assert place.site.fake.run("fake-verify").returncode == 0


def test_bit_rot_is_found_by_reading_all(place: Place) -> None:
    """Other bytes under the same name, size and time are found by --content full, and their tree is written whole."""
    with place.damaging():
        rewrite(own_tree(place) / "base", "y" + BIG[1:])
    assert place.check(Amount.NONE).findings == ()
    (found,) = place.check(Amount.FULL).findings
    assert found.kind is Kind.DAMAGED
    assert found.path == place.tree(place.tool)
    assert "base: its content is sha256:" in found.found
    assert place.check(Amount.FULL, repair=True).exit_code == 1
    place.sync()
    report = place.check(Amount.FULL)
    assert report.exit_code == 0
    assert report.files > 6
    assert (place.root / place.tool / "base").read_text() == BIG


def test_samples_come_to_every_file(plain: Place) -> None:
    """Checks on consecutive days, and on each seventh, read every file once in as many checks as there are parts."""
    rewrite(own_tree(plain) / "base", "y" + BIG[1:])
    for step in (1, 7):
        found = files = 0
        for number in range(PARTS):
            plain.now = datetime(2031, 1, 1, tzinfo=UTC) + timedelta(days=number * step)
            report = plain.check(Amount.SAMPLE)
            found += len(report.findings)
            files += report.files
        plain.now = None
        assert found == 1
        # The file that is rotten is looked at twice.
        assert files == plain.check(Amount.FULL).files


def test_a_damaged_tree_is_replaced_in_one_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its links stay, it is there all the time, and it is written whole although there are trees to make it of."""
    tree = place.tree(place.tool)
    assert json.loads((place.root / place.record(tree)).read_bytes())["made_of"] is not None
    with place.damaging():
        rewrite(own_tree(place) / "base", "y" + BIG[1:])
    place.check(Amount.FULL, repair=True)
    assert (place.root / place.tool / "new").exists()
    assert not (place.root / place.record(tree)).exists()
    assert place.tool in place.site.catalogue()
    place.registry.requests.clear()
    commands = len(place.site.fake.commands()) if place.site.fake else 0

    def removed(_: object, paths: Sequence[str]) -> None:
        raise AssertionError(f"{paths} removed")

    monkeypatch.setattr(DirectoryRepository, "remove_trees", removed)
    place.sync()
    assert json.loads((place.root / place.record(tree)).read_bytes())["made_of"] is None
    assert place.tree(place.tool) == tree
    assert (place.root / place.tool / "base").read_text() == BIG
    if place.site.fake:
        arguments = [each["argv"] for each in place.site.fake.commands()[commands:]]
        assert [each[0] for each in arguments] == ["transaction", "publish"]
        assert not any("-T" in each for each in arguments)


def test_what_is_foreign_is_left_alone(place: Place) -> None:
    """Other tools' links and trees, also half-made ones, are counted and not touched; nor are an operator's files."""
    key = "ab" * 32
    with place.damaging() as root:
        for tree in (f".flat/ab/{key}", f".flat/cd/{'cd' * 32}", f".images/ab/{key[2:]}"):
            (root / tree / "bin").mkdir(parents=True)
        (root / "their").mkdir()
        (root / "their/tool:1").symlink_to(f"../.flat/ab/{key}")
        (root / "their/absolute:1").symlink_to(f"/cvmfs/unpacked.example.org/.images/ab/{key[2:]}")
        (root / "their/dangling:1").symlink_to(f"../.flat/ef/{'ef' * 32}")
        (root / "their/copy:1").symlink_to(f"../{place.tree(place.tool)}")
        (root / "their/inner").symlink_to(f"../{place.tree(place.tool)}/d")
        (root / "README").write_text("hello\n")
        (root / OWN / "images/ab").mkdir(exist_ok=True)
        (root / OWN / "images/ab/notes.txt").write_text("hello\n")
    before = place.fingerprint()
    report = place.check(Amount.FULL, repair=True)
    assert (report.findings, report.exit_code) == ((), 0)
    assert {each.path for each in report.foreign} == {
        f".flat/ab/{key}", f".flat/cd/{'cd' * 32}", f".images/ab/{key[2:]}",
        "their/tool:1", "their/absolute:1", "their/dangling:1", "their/copy:1", "their/inner",
    }  # fmt: skip
    assert {path: value for path, value in place.fingerprint().items() if "/lock" not in path} == {
        path: value for path, value in before.items() if "/lock" not in path
    }


@pytest.mark.parametrize("target", ["{tree}", "{tree}/d", "/cvmfs/other.name/{tree}", "/mnt/x/y/{tree}/d"])
def test_what_anybodys_link_leads_to_is_not_removed(plain: Place, target: str) -> None:
    """A tree of ours that is damaged or has no record stays while a link of somebody else leads to it or into it."""
    (plain.root / "theirs").symlink_to(target.format(tree=plain.old))
    without(plain.root / plain.old / "base")
    report = plain.check(repair=True)
    assert [each.path for each in report.findings if each.kind is Kind.DAMAGED] == [plain.old]
    assert not (plain.root / plain.record(plain.old)).exists()
    assert (plain.root / plain.old / "d/f").exists()
    assert plain.check(repair=True).done == frozenset()
    assert (plain.root / plain.old / "d/f").exists()


def test_a_lost_index_is_no_damage(place: Place) -> None:
    """A tree without its index is compared with its record when all is read, and then has an index again."""
    indexes = load_config(place.site.config).state_dir / "indexes/trees"
    shutil.rmtree(indexes)
    report = place.check(Amount.SAMPLE)
    assert (report.exit_code, report.trees, len(report.unindexed)) == (0, 0, 3)
    report = place.check(Amount.FULL)
    assert (report.exit_code, report.trees, report.unindexed) == (0, 3, ())
    report = place.check(Amount.SAMPLE)
    assert (report.exit_code, report.trees, report.unindexed) == (0, 3, ())


@pytest.mark.parametrize("rotten", [False, True])
def test_without_an_index_the_record_tells_damage(plain: Place, rotten: bool) -> None:
    """Number of names, bytes, and the record's sample of the content do."""
    shutil.rmtree(load_config(plain.site.config).state_dir / "indexes/trees")
    if rotten:
        rewrite(own_tree(plain) / "base", "y" + BIG[1:])
    else:
        without(own_tree(plain) / "d/f")
    (found,) = plain.check(Amount.FULL).findings
    assert (found.kind, found.path) == (Kind.DAMAGED, plain.tree(plain.tool))
    assert ("its sketch" in found.found) if rotten else ("its entries" in found.found)
    plain.check(Amount.FULL, repair=True)
    plain.sync()
    assert plain.check(Amount.FULL).exit_code == 0


def test_what_stands_in_a_links_way_is_left_to_a_person(place: Place) -> None:
    """A directory where a link should be is reported, and not removed."""
    with place.damaging() as root:
        without(root / place.tool)
        (root / place.tool).mkdir()
        (root / place.tool / "theirs").touch()
    report = place.check(repair=True)
    assert [(each.kind, each.path) for each in report.findings] == [(Kind.OBSTRUCTED, place.tool)]
    assert report.exit_code == 1
    assert (place.root / place.tool / "theirs").exists()


def test_findings_of_named_images_only(place: Place) -> None:
    """With images named, only these are checked and mended; one that is not published is a mistake."""
    with place.damaging() as root:
        without(root / place.tree(place.tool) / "new")
        without(root / place.other)
    report = place.check(Amount.NONE, place.tool)
    assert [(each.kind, each.path) for each in report.findings] == [(Kind.DAMAGED, place.tree(place.tool))]
    assert (report.links, report.trees) == (1, 1)
    report = place.check(Amount.NONE, place.other, repair=True)
    assert [(each.kind, each.path) for each in report.findings] == [(Kind.MISSING_LINK, place.other)]
    assert (place.root / place.record(place.tree(place.tool))).exists()
    with pytest.raises(UsageError, match="is not published"):
        place.check(Amount.NONE, f"{place.registry.host}/org/none:1")


def damage_everything(place: Place) -> None:
    """Something of nearly each kind."""
    with place.damaging() as root:
        without(root / place.tree(place.tool) / "new")
        without(root / place.old / "base")
        without(root / place.other)
        without(root / OWN / ".cvmfscatalog")
        place.edit_catalogue(lambda document: document["images"][place.tool].update(size=1))


@pytest.mark.parametrize("moves", range(1, 8))
def test_an_interrupted_repair_is_finished_by_the_next(
    plain: Place, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the moves of a directory's transaction is the last one, the next check finds what is left to do."""
    damage_everything(plain)
    left = moves

    def broken(path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RepositoryUnavailable("no more", todo="try again")
        sync_directory(path)

    monkeypatch.setattr(SYNC, broken)
    report = plain.check(repair=True)
    monkeypatch.setattr(SYNC, sync_directory)
    if left < 0:
        assert (report.exit_code, report.done) == (3, frozenset())
        assert report.stopped is not None
    assert (plain.root / plain.tool / "base").exists()
    plain.check(repair=True)
    plain.sync()
    assert plain.check(Amount.FULL).findings == ()
    assert not (plain.root / plain.old).exists()


@pytest.mark.parametrize("command", ["transaction", "publish", "ingest"])
def test_a_repair_that_the_server_refuses_is_finished_by_the_next(
    memory_path: Path, registry: ScriptableRegistry, fake: support.FakeCvmfs, command: str
) -> None:
    """The report tells what was found and what stopped it; no transaction stays open; the next one does the rest."""
    place = Place(Site(memory_path / "site", fake, (registry.host, registry.alias)), registry)
    place.publish()
    damage_everything(place)
    fake.switch("fail", f"{command}=1::it does not work today")
    report = place.check(repair=True)
    fake.unswitch("fail")
    assert (report.exit_code, report.done) == (3, frozenset())
    assert len(report.findings) == 5
    assert not fake.in_transaction
    report = place.check(repair=True)
    assert Kind.LEFTOVER in {each.kind for each in report.findings} or command != "ingest"
    place.sync()
    assert place.check(Amount.FULL).findings == ()
    assert not (place.root / place.old).exists()


def test_what_cannot_be_read_ends_the_check(plain: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable directory or file is no proof of anything: exit code 3, and nothing is repaired."""
    damage_everything(plain)
    before = plain.fingerprint()
    scandir, digest = os.scandir, verify.file_digest

    def forbidden(path: str) -> object:
        if str(path).endswith("org"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    def broken(where: int, name: bytes) -> bytes:
        if name == b"other":
            raise OSError(errno.EIO, "Input/output error")
        return digest(where, name)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", forbidden)
        with pytest.raises(RepositoryUnavailable, match="cannot read all"):
            plain.check(repair=True)
    with monkeypatch.context() as patched:
        patched.setattr(verify, "file_digest", broken)
        with pytest.raises(RepositoryUnavailable) as caught:
            plain.check(Amount.FULL, repair=True)
    assert "Input/output error" in str(caught.value)
    assert plain.fingerprint() == before


def test_an_empty_directory_below_a_lost_mount_is_not_the_repository(plain: Place) -> None:
    """Where all that is ours has gone, nothing is well, and nothing is repaired."""
    plain.root.rename(plain.root.with_name("unmounted"))
    with pytest.raises(RepositoryUnavailable, match="there is no repository"):
        plain.check(repair=True)
    plain.root.mkdir()
    with pytest.raises(RepositoryUnavailable, match="is ours"):
        plain.check()
    assert list(plain.root.iterdir()) == []


def test_what_passes_is_not_reported(plain: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a daemon, what is found is looked at again: it may have been in the middle of something."""
    record = plain.root / plain.record(plain.old)
    content = record.read_bytes()
    record.unlink()
    monkeypatch.setattr(time, "sleep", lambda _: record.write_bytes(content))
    assert plain.check().findings == ()


def test_the_command_line(plain: Place) -> None:
    """Text and JSON tell findings and what became of them; only a repair needs the lock."""
    tool, site = plain.tool, plain.site
    assert "0 mended, 0 left" in site.run("fsck").stdout
    without(own_tree(plain) / "new")
    without(plain.root / plain.other)
    with instance(load_config(site.config).state_dir):
        text = site.run("fsck", "--content", "none", rc=1).stdout
        assert "another cvmfs-sync is at work" in site.run("fsck", "--repair", rc=3).stderr
    assert f"damaged tree: {plain.tree(tool)}\n  found:    " in text
    assert "new: the name is not there, expected file" in text
    assert f"missing link: {plain.other}\n" in text
    assert "to do:    --repair makes the link" in text
    document = site.run("fsck", "--repair", "--json", "--content", "full", rc=1).json
    assert {(each["kind"], each["mended"]) for each in document["findings"]} == {
        ("damaged tree", False), ("missing link", True),
    }  # fmt: skip
    assert {each["todo"] for each in document["findings"]} == {
        None, "the next sync publishes it, if the list asks for it",
    }  # fmt: skip
    assert document["exit_code"] == 1
    plain.sync()
    assert site.run("fsck", "--json", "--content", "full").json["findings"] == []
    assert "is not published" in site.run("fsck", f"{plain.registry.host}/org/none:1", rc=2).stderr
    assert site.run("fsck", "--content", "some", rc=2).stdout == ""
