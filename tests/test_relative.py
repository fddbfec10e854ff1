"""Which published tree a new one is made of: likeness, ranking, cost, and the choice."""

# ruff: noqa: E501 -- a table is read line by line
from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_sync.difference import Content, Totals, TreeDiff, exact_metadata
from cvmfs_sync.ports import Costs
from cvmfs_sync.relative import (
    Candidate,
    Choice,
    candidates,
    cost,
    names_in,
    nearest,
    similarity,
    sketch,
    whole_difference,
)
from cvmfs_sync.repository import CvmfsRepository
from cvmfs_sync.repository.directory import COSTS as MEASURED
from cvmfs_sync.tree import SYNTHETIC, Inode, Tree, merge
from tests.support import images
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import entries_of, random_layers

Entries = Sequence[images.Entry]
COSTS = Costs(clone=5.0, cloned=0.01, removed=0.1, made=1.0, byte=0.001)


def built(entries: Entries) -> tuple[Tree, Content]:
    """A tree and what tells the content of its files."""

    def content(inode: Inode) -> bytes:
        return inode.content or b"" if inode.layer == SYNTHETIC else entries[inode.ordinal].content

    return merge([entries_of(entries)]), content


def files(count: int, *, first: int = 0, prefix: str = "f") -> list[images.Entry]:
    return [f(f"{prefix}{number}", str(number)) for number in range(first, first + count)]


# --- likeness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "least", "most"),
    [
        (files(1_000), files(1_000), 1.0, 1.0),
        (files(1_000), files(1_000, prefix="g"), 0.0, 0.0),
        (files(1_000), files(990), 0.9, 1.0),
        (files(1_000), [*files(990), *files(10, prefix="new")], 0.9, 1.0),
        (files(1_000), files(500), 0.3, 0.7),
        (files(2), [*files(1), *files(1, prefix="g")], 0.33, 0.34),
        (files(1), [f("f0", "another")], 0.0, 0.0),
        ([s("a", "b")], [s("a", "c")], 0.0, 0.0),
        ([s("a", "b")], [f("a", "b")], 0.0, 0.0),
        (files(10), [f(f"f{n}", str(n), 0o600, mtime=5, uid=7) for n in range(10)], 1.0, 1.0),
        ([], [], 0.0, 0.0),
    ],
    ids=[
        "identical",
        "disjoint",
        "99 %",
        "99 %, rebuilt",
        "half",
        "a third",
        "content",
        "target",
        "type",
        "metadata",
        "empty",
    ],
)
def test_likeness_is_what_both_have_of_either(one: Entries, other: Entries, least: float, most: float) -> None:
    """By path and content; metadata costs little, so it does not count."""
    sketches = [sketch(*built(each)) for each in (one, other)]
    assert least <= similarity(*sketches) <= most
    assert similarity(*sketches) == similarity(*reversed(sketches))


def test_a_sketch_does_not_depend_on_the_order_of_the_archive() -> None:
    """Nor on which layer holds a file; and it is of one size however large the tree is."""
    entries = files(2_000)
    shuffled = random.Random(1).sample(entries, len(entries))
    assert sketch(*built(entries)) == sketch(*built(shuffled))
    assert len(sketch(*built(entries))) == len(sketch(*built(files(64)))) == 64 * 12


@pytest.mark.parametrize("damaged", ["", "no hash", "abc", "0" * 1_001])
def test_a_sketch_that_is_none_is_like_nothing(damaged: str) -> None:
    """A record can hold anything."""
    assert similarity(sketch(*built(files(100))), damaged) == 0.0


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_estimate_is_near_the_truth(common: int, different: int) -> None:
    """Within a fifth, which is more than three deviations."""
    one = [*files(common), *files(different, prefix="one")]
    other = [*files(common), *files(different, prefix="other")]
    truth = common / (common + 2 * different) if common else 0.0
    assert abs(similarity(sketch(*built(one)), sketch(*built(other))) - truth) <= 0.2


# --- ranking ----------------------------------------------------------------------------------------------------------

SKETCHES = {name: sketch(*built(entries)) for name, entries in {
    "new": files(200), "near": [*files(190), *files(10, prefix="n")], "half": files(100), "far": files(200, prefix="far"),
}.items()}  # fmt: skip
LAYERS = {"base": 900, "top": 100}


def candidate(
    path: str,
    *,
    repository: str = "other",
    layers: Mapping[str, int] | None = None,
    like: str = "far",
    at: str = "2026-01-01",
) -> Candidate:
    return Candidate(path, repository, layers or {}, SKETCHES.get(like, like), at)


RANKINGS: dict[str, tuple[list[Candidate], str | None, list[str]]] = {
    "nothing is published": ([], None, []),
    "nothing in common": ([candidate("a"), candidate("b")], None, []),
    "what is replaced, whatever it is": ([candidate("a", layers=LAYERS), candidate("old")], "old", ["old", "a"]),
    "what is replaced and is gone": ([candidate("a", layers=LAYERS)], "old", ["a"]),
    "most bytes of layers": ([candidate("top", layers={"top": 100}), candidate("base", layers={"base": 900}), candidate("both", layers=LAYERS)], None, ["both", "base", "top"]),
    "most files": ([candidate("half", like="half"), candidate("near", like="near")], None, ["near", "half"]),
    "layers or files": ([candidate("half", like="half"), candidate("base", layers={"base": 900}), candidate("top", layers={"top": 100})], None, ["base", "half", "top"]),
    "files although no layer is the same": ([candidate("a", layers={"x": 1}, like="near"), candidate("b", layers={"y": 1})], None, ["a"]),
    "the same repository, the latest first": ([candidate("a", repository="ours", at="2025-01-01"), candidate("b", repository="ours", at="2026-02-01"), candidate("c")], None, ["b", "a"]),
    "the same repository is no reason against likeness": ([candidate("a", repository="ours"), candidate("b", layers=LAYERS)], None, ["b", "a"]),
    "of equals the latest": ([candidate("a", layers=LAYERS, at="2025-01-01"), candidate("b", layers=LAYERS, at="2026-01-01")], None, ["b", "a"]),
    "of equals the one of the same repository": ([candidate("a", layers=LAYERS, at="2026-05-05"), candidate("b", layers=LAYERS, repository="ours")], None, ["b", "a"]),
    "no sketch, but layers": ([candidate("a", layers={"base": 900}, like="")], None, ["a"]),
    "no more than are worth it": ([candidate(name, layers=LAYERS) for name in "abcdefgh"], "a", ["a", "h", "g", "f"]),
}  # fmt: skip


@pytest.mark.parametrize(("published", "replaces", "expected"), RANKINGS.values(), ids=RANKINGS.keys())
def test_ranking(published: list[Candidate], replaces: str | None, expected: list[str]) -> None:
    """What the link leads to, then what is likest, then the repository's latest; the rest is left out."""
    for order in (published, published[::-1]):
        ranked = candidates(order, replaces=replaces, repository="ours", layers=LAYERS, sketch=SKETCHES["new"])
        assert [each.path for each in ranked] == expected


def test_an_image_without_layers_has_candidates() -> None:
    """Its whole tree is what we add to it, and so is another's."""
    ranked = candidates(
        [candidate("a", like="new")], replaces=None, repository="ours", layers={}, sketch=SKETCHES["new"]
    )
    assert [each.path for each in ranked] == ["a"]


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["removed", "made", "touched_files", "bytes", "touched_bytes"])
def test_more_of_anything_costs_more(field: str) -> None:
    """Names that go, names that come, files that are written again, and their bytes."""
    one, more = (TreeDiff(totals=replace(Totals(), **{field: count})) for count in (1, 2))
    assert 0 < cost(one, None, COSTS) < cost(more, None, COSTS)
    assert cost(one, 5, COSTS) < cost(more, 5, COSTS)


@given(st.builds(Totals, *[st.integers(0, 10**6)] * 8), st.integers(0, 10**6))
def test_a_clone_costs_itself_and_its_names(totals: Totals, names: int) -> None:
    """And what stays as it is costs nothing else."""
    difference = TreeDiff(totals=totals)
    assert cost(difference, names, COSTS) == pytest.approx(cost(difference, None, COSTS) + 5.0 + 0.01 * names)
    unmoved = TreeDiff(totals=replace(totals, unchanged=0, changed=0, files=0))
    assert cost(unmoved, names, COSTS) == cost(difference, names, COSTS)


@given(random_layers())
def test_the_whole_costs_what_its_difference_from_nothing_costs(layers: list[list[images.Entry]]) -> None:
    """The estimate that is made first, without the steps, is that of the steps."""
    try:
        tree = merge([entries_of(each) for each in layers])
    except Exception:  # noqa: BLE001 - an image that is refused
        return
    choice = nearest(tree, lambda inode: b"", (), _no_load, costs=COSTS, metadata=exact_metadata)
    difference = whole_difference(tree, lambda inode: b"", exact_metadata)
    assert choice == Choice(None, difference, choice.whole, choice.whole)
    assert choice.whole == pytest.approx(cost(difference, None, COSTS))


def _no_load(each: Candidate) -> None:
    raise AssertionError(each)


# --- the choice -------------------------------------------------------------------------------------------------------

NEW = [d("d"), *[f(f"d/{n}", "x" * 1_000) for n in range(100)]]


def choose(old: Mapping[str, Entries | None], new: Entries = NEW, costs: Costs = COSTS) -> tuple[Choice, list[str]]:
    """The choice among these, in this order, and which were looked at. None is a tree that can't be loaded."""
    looked: list[str] = []

    def load(each: Candidate) -> tuple[Tree, Content] | None:
        looked.append(each.path)
        entries = old[each.path]
        return None if entries is None else built(entries)

    tree, content = built(new)
    ranked = [candidate(path) for path in old]
    return nearest(tree, content, ranked, load, costs=costs, metadata=exact_metadata), looked


CHOICES: dict[str, tuple[dict[str, Entries | None], str | None, list[str]]] = {
    "none": ({}, None, []),
    "near enough: nobody else is looked at": ({"a": NEW, "b": NEW}, "a", ["a"]),
    "the cheaper of two": ({"a": NEW[:60], "b": NEW[:80]}, "b", ["a", "b"]),
    "the first of equals": ({"a": NEW[:60], "b": NEW[:60]}, "a", ["a", "b"]),
    "the first that is near enough": ({"a": NEW[:60], "b": NEW[:99], "c": NEW}, "b", ["a", "b"]),
    "one that can't be loaded": ({"a": None, "b": NEW[:80]}, "b", ["a", "b"]),
    "none that can be loaded": ({"a": None, "b": None}, None, ["a", "b"]),
    "nothing in common costs more than nothing": ({"a": files(100)}, None, ["a"]),
    "little in common does not pay the clone": ({"a": NEW[:3]}, None, ["a"]),
    "more to remove than to make": ({"a": [*NEW, *files(3_000)]}, None, ["a"]),
}


@pytest.mark.parametrize(("old", "expected", "looked"), CHOICES.values(), ids=CHOICES.keys())
def test_the_nearest_is_chosen(old: dict[str, Entries | None], expected: str | None, looked: list[str]) -> None:
    """By cost, none if beginning with nothing costs less, and without more looks than it takes."""
    choice, seen = choose(old)
    assert (choice.relative, seen) == (expected, looked)
    assert choice.cost <= choice.whole
    if expected is None:
        assert choice.difference.totals.made == 101
        assert not choice.difference.removals


def test_metadata_that_the_repository_drops_is_no_difference() -> None:
    """What is compared is what comes there."""
    old = [*NEW[:81], *[replace(each, uid=7) for each in NEW[81:]]]
    assert choose({"a": old})[0].difference.totals.touched_files == 20
    tree, content = built(NEW)
    choice = nearest(
        tree, content, [candidate("a")], lambda each: built(old), costs=COSTS,
        metadata=lambda entry: exact_metadata(entry)._replace(uid=0),
    )  # fmt: skip
    assert choice.difference.empty


def test_hard_links_are_made_once() -> None:
    """Further names of a file cost a name, and not its bytes."""
    linked = [f("a", "x" * 1_000), *[h(f"b{n}", "a") for n in range(9)]]
    assert choose({}, linked)[0].whole == pytest.approx(10 * COSTS.made + 1_000 * COSTS.byte)


@pytest.mark.parametrize("costs", [MEASURED, CvmfsRepository.traits.costs], ids=["directory", "cvmfs"])
@pytest.mark.parametrize(("changed", "made_of"), [(0, True), (10, True), (10_000, False)])
def test_by_the_measured_costs_an_update_is_an_update(costs: Costs, changed: int, made_of: bool) -> None:
    """Ten thousand files of which few have changed are made of what they were; if all have, they are not."""
    old = [f(f"f{number}", "x" * 1_000) for number in range(10_000)]
    new = [*[f(f"f{number}", "y" * 1_000) for number in range(changed)], *old[changed:]]
    choice, _ = choose({"a": old}, new, costs)
    assert (choice.relative is not None) is made_of
    if made_of:
        assert choice.cost < choice.whole / 2
    assert names_in(built(old)[0]) == 10_000
