"""Who may be retired, and when: the decisions, as tables of values."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from cvmfs_sync.errors import ImageError, ImageNotFound
from cvmfs_sync.imagelist import ImageList, parse
from cvmfs_sync.inventory import CatalogueEntry
from cvmfs_sync.layout import Layout
from cvmfs_sync.reference import Digest, Platform, parse_image
from cvmfs_sync.retire import Identity, Inventory, Orphans, RetirePlan, orphans, retirement, takedown
from cvmfs_sync.state import Orphan
from cvmfs_sync.survey import Answer, Failed, Gone, Present, Survey, Target, Unknown
from tests.support.retiring import NOW

LAYOUT = Layout()
DAY = timedelta(days=1)


def digest(text: str) -> Digest:
    """A digest of anything."""
    return Digest("sha256", hashlib.sha256(text.encode()).hexdigest())


def tree_of(text: str) -> str:
    """The tree of the image `text`."""
    return LAYOUT.tree(digest(text), 1)


def wishes_of(text: str) -> ImageList:
    """The list with these images."""
    return parse(f"version: 1\nimages:\n{text}", base=Path("/"))


def link_of(image: str, platform: str | None = None) -> str:
    """The link of an image."""
    return LAYOUT.link(parse_image(image), Platform.parse(platform) if platform else None)


def inventory_of(
    *published: tuple[str, str],
    trees: tuple[str, ...] = (),
    unfinished: tuple[str, ...] = (),
    foreign: tuple[tuple[str, str], ...] = (),
    platforms: tuple[tuple[str, str, str], ...] = (),
) -> Inventory:
    """A repository.

    Args:
        *published: Image and what its tree holds.
        trees: Published trees without a link.
        unfinished: Trees without a record.
        foreign: Links that are not ours, and the trees to which they lead.
        platforms: Image, platform and what its tree holds.
    """
    catalogue: dict[str, CatalogueEntry] = {}
    links: dict[str, str] = {}
    records: dict[str, Identity] = {}
    for image, platform, content in [*((i, None, c) for i, c in published), *platforms]:
        tree, found = tree_of(content), str(digest(content))
        link = link_of(image, platform)
        name = platform or "linux/amd64"
        catalogue[link] = CatalogueEntry(image, found, str(digest(f"index {content}")), name, tree, 1, 1, "")
        links[link] = tree
        records[tree] = identity_of(image, content)
    for content in trees:
        records[tree_of(content)] = identity_of(f"x.org/{content}:1", content)
    links |= {link: tree_of(content) for link, content in foreign}
    everything = {*records, *(tree_of(content) for content in unfinished)}
    return Inventory(catalogue, links, frozenset(everything), records)


def identity_of(image: str, content: str) -> Identity:
    """What the record of a tree says."""
    return Identity(parse_image(image), digest(content), digest(f"index {content}"), digest(f"config {content}"))


def survey_of(
    wishes: ImageList,
    answers: dict[str, Answer] | None = None,
    *,
    unlisted: tuple[int, ...] = (),
    selected: tuple[str, ...] = (),
    too_long: tuple[str, ...] = (),
) -> Survey:
    """What registries say of a list.

    Args:
        wishes: The list.
        answers: By name; `Present` for all others.
        unlisted: Wishes, by number, whose tags could not be listed.
        selected: The names that filtering wishes select.
        too_long: Of these, those whose links can't be made.
    """
    current = wishes.wished_on(NOW.date())
    targets: list[Target | Failed] = []
    for number, wish in enumerate(current.wishes):
        names = [wish.name] if wish.tags is None else [parse_image(each) for each in selected]
        for name in names if number not in unlisted else []:
            for platform in wish.platforms:
                link = LAYOUT.link(name, None if platform == wish.platforms[0] else platform)
                target = Target(wish, name, platform, link)
                targets.append(Failed(target, ImageError("too long")) if str(name) in too_long else target)
    given = {parse_image(name): answer for name, answer in (answers or {}).items()}
    asked = {each.name: given.get(each.name, Present(digest("x"))) for each in targets if isinstance(each, Target)}
    expired = tuple(wish for wish in wishes.wishes if wish not in current.wishes)
    return Survey(tuple(targets), asked, expired, tuple(current.wishes[number] for number in unlisted))


GONE = Gone(ImageNotFound("404"))
UNKNOWN = Unknown(ImageError("503"))
ONE = (("x.org/a:1", "a"),)
MULTI = {"published": (("x.org/a:1", "a"),), "platforms": (("x.org/a:1", "linux/arm64", "arm"),)}
NOT_ASKED = "the list does not ask for it any more"
NOT_SELECTED = "its tag is not among those that the list selects any more"


@pytest.mark.parametrize(
    ("text", "said", "reason"),
    [
        pytest.param("- x.org/a:1", {}, None, id="wished for, and there"),
        pytest.param("- x.org/b:1", {}, NOT_ASKED, id="the wish was removed"),
        pytest.param(
            "- {image: x.org/a:1, expires: 2026-11-19}", {}, "the wish for it expired on 2026-11-19", id="end"
        ),
        pytest.param("- {image: x.org/a:1, expires: 2026-11-20}", {}, None, id="its last day"),
        pytest.param(
            "- x.org/a:1", {"answers": {"x.org/a:1": GONE}}, "its registry has no such image any more", id="404"
        ),
        pytest.param("- x.org/a:1", {"answers": {"x.org/a:1": UNKNOWN}}, "undecided", id="no answer"),
        pytest.param("- x.org/a:1*", {"selected": ("x.org/a:1",)}, None, id="selected by a filter"),
        pytest.param("- x.org/a:1*", {"selected": ("x.org/a:10",)}, NOT_SELECTED, id="no longer among the tags"),
        pytest.param("- x.org/a:2*", {"selected": ("x.org/a:2",)}, NOT_ASKED, id="another filter"),
        pytest.param("- x.org/a:1*", {"unlisted": (0,)}, "undecided", id="tags could not be listed"),
        pytest.param("- x.org/a:2*", {"unlisted": (0,)}, NOT_ASKED, id="a filter that never matches, not listed"),
        pytest.param("- x.org/b:1*", {"unlisted": (0,)}, NOT_ASKED, id="another repository's tags not listed"),
        pytest.param(
            "- x.org/a:1*", {"selected": ("x.org/a:1",), "too_long": ("x.org/a:1",)}, "undecided", id="a failed target"
        ),
        pytest.param("- {image: x.org/a:1, platforms: [linux/arm64]}", {}, None, id="another platform, the same link"),
    ],
)
def test_a_link_goes_by_proof_only(text: str, said: dict[str, object], reason: str | None) -> None:
    """What the list and the registries say, and what follows for the link of x.org/a:1."""
    wishes = wishes_of(text)
    assert not wishes.errors
    found = orphans(survey_of(wishes, **said), wishes, inventory_of(*ONE))  # type: ignore[arg-type]
    link = link_of("x.org/a:1")
    assert (dict(found.reasons), set(found.undecided)) == {
        None: ({}, set()),
        "undecided": ({}, {link}),
    }.get(reason, ({link: reason}, set()))


@pytest.mark.parametrize(
    ("platforms", "gone"),
    [
        ("linux/amd64, linux/arm64", {}),
        ("linux/amd64", {".multiarch/linux-arm64/x.org/a:1": "nobody asks for linux/arm64 any more"}),
        # The first one has the plain path, which leads to another tree after the next cycle.
        ("linux/arm64", {".multiarch/linux-arm64/x.org/a:1": "its image has another path now"}),
        ("linux/arm64, linux/amd64", {".multiarch/linux-arm64/x.org/a:1": "its image has another path now"}),
    ],
)
def test_a_dropped_platform_goes_alone(platforms: str, gone: dict[str, str]) -> None:
    """Its link is an orphan, that of the image's other platforms is not."""
    wishes = wishes_of(f"- {{image: x.org/a:1, platforms: [{platforms}]}}")
    inventory = inventory_of(*MULTI["published"], platforms=MULTI["platforms"])  # type: ignore[arg-type]
    assert orphans(survey_of(wishes), wishes, inventory).reasons == gone


@pytest.mark.parametrize(
    ("inventory", "gone"),
    [
        pytest.param(inventory_of(*ONE, trees=("old",)), {tree_of("old"): "no link leads to it"}, id="a moved tag's"),
        pytest.param(
            inventory_of(*ONE, unfinished=("half",)),
            {tree_of("half"): "was never finished, and no link leads to it"},
            id="without a record",
        ),
        pytest.param(inventory_of(*ONE, unfinished=("x",), foreign=(("my/link", "x"),)), {}, id="foreign link to it"),
        pytest.param(inventory_of(*ONE, trees=("x",), foreign=(("my/link", "x"),)), {}, id="foreign link, recorded"),
        pytest.param(inventory_of(*ONE, foreign=(("library/a:1", "a"),)), {}, id="a link of the other layout"),
        pytest.param(inventory_of(*ONE, foreign=(("x.org/b:1", "a"),)), {}, id="a link that is not in the catalogue"),
        pytest.param(inventory_of(*ONE, foreign=(("x.org/b:1", "gone"),)), {}, id="a foreign link to nothing"),
    ],
)
def test_trees_stay_while_any_link_leads_to_them(inventory: Inventory, gone: dict[str, str]) -> None:
    """Of whatever layout and whosoever; foreign links themselves are never orphans."""
    wishes = wishes_of("- x.org/a:1")
    assert orphans(survey_of(wishes), wishes, inventory) == Orphans(gone, frozenset())


def test_a_catalogue_line_whose_link_has_gone_is_no_orphan() -> None:
    """Somebody has removed the link, or put something else there: it is not ours any more."""
    whole = inventory_of(*ONE, ("x.org/b:1", "b"))
    inventory = replace(whole, links={link: tree for link, tree in whole.links.items() if link != "x.org/b:1"})
    wishes = wishes_of("- x.org/a:1")
    assert set(orphans(survey_of(wishes), wishes, inventory).reasons) == {tree_of("b")}


def decide(
    inventory: Inventory,
    ages: dict[str, timedelta],
    *,
    grace: timedelta = DAY,
    fraction: float = 1,
    force: bool = False,
) -> RetirePlan:
    """What goes of orphans of these ages."""
    known = {path: Orphan("why", NOW - age, age) for path, age in ages.items()}
    found = Orphans(dict.fromkeys(ages, "why"), frozenset())
    return retirement(found, known, inventory, now=NOW, grace=grace, max_fraction=fraction, force=force)


def goes(plan: RetirePlan) -> set[str]:
    """What a plan removes."""
    return {each.path for each in (*plan.links, *plan.trees)}


TWO_LINKS = inventory_of(("x.org/a:1", "a"), ("x.org/a:2", "a"))


@pytest.mark.parametrize(
    ("inventory", "ages", "gone"),
    [
        (inventory_of(*ONE), {"x.org/a:1": DAY - timedelta(seconds=1)}, set()),
        (inventory_of(*ONE), {"x.org/a:1": DAY}, {"x.org/a:1", tree_of("a")}),
        # Two links to one tree: it stays until both have gone.
        (TWO_LINKS, {"x.org/a:1": DAY}, {"x.org/a:1"}),
        (TWO_LINKS, {"x.org/a:1": DAY, "x.org/a:2": DAY / 2}, {"x.org/a:1"}),
        (TWO_LINKS, {"x.org/a:1": DAY, "x.org/a:2": DAY}, {"x.org/a:1", "x.org/a:2", tree_of("a")}),
        # A tree that a foreign link leads to, or that is not there.
        (inventory_of(*ONE, foreign=(("mine", "a"),)), {"x.org/a:1": DAY}, {"x.org/a:1"}),
        (replace(inventory_of(*ONE), trees=frozenset()), {"x.org/a:1": DAY}, {"x.org/a:1"}),
        # A moved tag's old tree has a clock of its own.
        (inventory_of(*ONE, trees=("old",)), {tree_of("old"): DAY}, {tree_of("old")}),
        (inventory_of(*ONE, trees=("old",)), {tree_of("old"): DAY / 2, "x.org/a:1": DAY}, {"x.org/a:1", tree_of("a")}),
    ],
)
def test_the_grace_period_is_each_ones_own(inventory: Inventory, ages: dict[str, timedelta], gone: set[str]) -> None:
    """What has been an orphan for long enough goes, with the trees that nobody else leads to."""
    plan = decide(inventory, ages)
    assert goes(plan) == gone
    assert {each.path for each in plan.waiting} == set(ages) - gone
    assert all(each.due and each.due > NOW for each in plan.waiting)


@pytest.mark.parametrize("grace", [timedelta(0), timedelta(seconds=1)])
def test_an_orphan_that_was_never_seen_before_begins_now(grace: timedelta) -> None:
    """Without any grace it goes at once."""
    found = Orphans({"x.org/a:1": "why"}, frozenset())
    plan = retirement(found, {}, inventory_of(*ONE), now=NOW, grace=grace, max_fraction=1)
    assert goes(plan) == ({"x.org/a:1", tree_of("a")} if not grace else set())
    assert {each.since for each in (*plan.links, *plan.waiting)} == {NOW}


@pytest.mark.parametrize(
    ("there", "going", "fraction", "refused"),
    [
        (10, 2, 0.2, False),
        (10, 3, 0.2, True),
        (100, 29, 0.29, False),  # 0.29 * 100 is 28.999999999999996
        (100, 30, 0.29, True),
        (10, 10, 1, False),
        (1, 1, 0.99, True),
        (3, 0, 0, False),
        (1000, 1, 0, True),
        (4, 1, 0.2, True),
    ],
)
def test_more_than_the_fraction_goes_by_force_only(there: int, going: int, fraction: float, *, refused: bool) -> None:
    """Exactly the fraction is allowed; else nothing at all goes, and all of it waits."""
    inventory = inventory_of(*((f"x.org/a:{number}", str(number)) for number in range(there)))
    ages = {f"x.org/a:{number}": DAY for number in range(going)}
    plan = decide(inventory, ages, fraction=fraction)
    assert (plan.refused is not None) == refused
    assert len(goes(plan)) == (0 if refused else 2 * going)
    if refused:
        assert len(plan.waiting) == 2 * going
        assert f"{going} of {there} links would go, more than retire.max_fraction ({fraction})" in str(plan.refused)
    assert len(goes(decide(inventory, ages, fraction=fraction, force=True))) == 2 * going


def test_the_fraction_is_of_trees_too() -> None:
    """Half of the trees are those of tags that have moved: that is too much, although no link goes."""
    inventory = inventory_of(*ONE, trees=("old",))
    plan = decide(inventory, {tree_of("old"): DAY}, fraction=0.2)
    assert "1 of 2 trees" in str(plan.refused)


def test_links_that_are_not_there_do_not_raise_the_bound() -> None:
    """Lines of the catalogue that lead nowhere are no published images."""
    whole = inventory_of(*((f"x.org/a:{number}", str(number)) for number in range(10)))
    inventory = replace(whole, links={link: tree for link, tree in whole.links.items() if link < "x.org/a:5"})
    assert decide(inventory, {"x.org/a:0": DAY, "x.org/a:1": DAY}, fraction=0.2).refused


def blocked_by(entry: str) -> ImageList:
    """A list that asks for everything, and blocks one thing."""
    text = f"version: 1\nimages: [x.org/a:1]\nblocked:\n  - {{{entry}, reason: bad}}\n"
    wishes = parse(text, base=Path("/"))
    assert not wishes.errors
    return wishes


PUBLISHED = inventory_of(
    ("x.org/a:1", "a1"), ("x.org/a:2", "a2"), ("x.org/a:same", "a1"), ("y.org/b:1", "a1"), ("y.org/c:1", "c"),
    trees=("old",), platforms=(("x.org/a:1", "linux/arm64", "arm"),),
)  # fmt: skip
ARM = ".multiarch/linux-arm64/x.org/a:1"


@pytest.mark.parametrize(
    ("entry", "links", "trees"),
    [
        # A name takes its links on all platforms; a tree goes when no link is left.
        ("image: 'x.org/a:1'", {"x.org/a:1", ARM}, {"arm"}),
        ("image: 'x.org/a:2'", {"x.org/a:2"}, {"a2"}),
        ("image: x.org/a", {"x.org/a:1", "x.org/a:2", "x.org/a:same", ARM}, {"a2", "arm"}),
        ("image: 'x.org/a:none'", set(), set()),
        ("image: x.org/aa", set(), set()),
        # A digest takes all links to it, whatever their names.
        (f"digest: '{digest('a1')}'", {"x.org/a:1", "x.org/a:same", "y.org/b:1"}, {"a1"}),
        (f"digest: '{digest('config a1')}'", {"x.org/a:1", "x.org/a:same", "y.org/b:1"}, {"a1"}),
        (f"digest: '{digest('index a1')}'", {"x.org/a:1", "x.org/a:same", "y.org/b:1"}, {"a1"}),
        (f"digest: '{digest('index arm')}'", {ARM}, {"arm"}),
        (f"digest: '{digest('old')}'", set(), {"old"}),
        (f"digest: '{digest('nobody')}'", set(), set()),
        # A repository with a digest: only there.
        (f"image: 'x.org/a@{digest('a1')}'", {"x.org/a:1", "x.org/a:same"}, set()),
        (f"image: 'x.org/a@{digest('index arm')}'", {ARM}, {"arm"}),
        (f"image: 'y.org/c@{digest('a1')}'", set(), set()),
        # What a blocked repository's tag meant before has no link any more.
        ("image: x.org/old", set(), {"old"}),
    ],
)
def test_what_is_blocked_goes_at_once(entry: str, links: set[str], trees: set[str]) -> None:
    """By name, repository, and the digests of manifest, index and configuration; without grace."""
    plan = takedown(blocked_by(entry), PUBLISHED, {})
    assert {each.path for each in plan.links} == links
    assert {each.path for each in plan.trees} == {tree_of(each) for each in trees}
    assert {each.reason for each in (*plan.links, *plan.trees)} <= {"blocked: bad"}
    assert {each.due for each in (*plan.links, *plan.trees)} <= {None}


@pytest.mark.parametrize(
    ("sources", "gone"),
    [
        ({("x.org/a:2", "linux/amd64"): (str(digest("newer index")), str(digest("a2")))}, {"x.org/a:2"}),
        ({("x.org/a:2", "linux/arm64"): (str(digest("newer index")), str(digest("a2")))}, set()),
        # It has moved to something that is blocked and was never published: what is there is another image.
        ({("x.org/a:2", "linux/amd64"): (str(digest("newer index")), str(digest("moved")))}, set()),
    ],
)
def test_an_index_that_has_changed_since_is_known(
    sources: dict[tuple[str, str], tuple[str, str]], gone: set[str]
) -> None:
    """The catalogue keeps the index by which an image came; the state knows the one that has it now."""
    plan = takedown(blocked_by(f"digest: '{digest('newer index')}'"), PUBLISHED, sources)
    assert {each.path for each in plan.links} == gone


def test_a_foreign_link_keeps_a_blocked_tree(caplog: pytest.LogCaptureFixture) -> None:
    """Ours go; the tree stays under somebody else's link, and the log says so."""
    inventory = inventory_of(*ONE, foreign=(("mine", "a"),))
    plan = takedown(blocked_by(f"digest: '{digest('a')}'"), inventory, {})
    assert ({each.path for each in plan.links}, plan.trees) == ({"x.org/a:1"}, ())
    assert "a link that is not ours leads to it" in caplog.text


def test_nothing_is_blocked_by_an_empty_list_of_blocks() -> None:
    """No entry, nothing to take down."""
    assert takedown(wishes_of("- x.org/a:1"), PUBLISHED, {}) == RetirePlan()


def test_a_wish_ends_with_its_last_day() -> None:
    """The day itself is one of its days."""
    wishes = wishes_of("- {image: x.org/a:1, expires: 2026-11-20}")
    assert wishes.wished_on(date(2026, 11, 20)).wishes
    assert not wishes.wished_on(date(2026, 11, 21)).wishes
