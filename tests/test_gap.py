"""Somebody who can't wait comes between two images of a cycle, and the cycle goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cvmfs_sync.cycle import sync
from cvmfs_sync.errors import UsageError
from cvmfs_sync.outcome import CycleReport, PublishNow
from cvmfs_sync.reference import parse_image
from cvmfs_sync.service import load_config, make_context, read_wishes
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.site import Site

NAMES = ("one", "two", "three", "four")


@pytest.fixture
def site(site: Site, registry: ScriptableRegistry) -> Site:
    """An installation with either backend, whose list asks for all of these."""
    for name in NAMES:
        registry.add_image(f"org/{name}", "1", [support.layer(support.file("a", name)).tar])
    site.wish(*(f"{registry.host}/org/{name}:1" for name in NAMES))
    return site


class _Between:
    """A `Gap` in which something is done once, when it has been asked so often."""

    def __init__(self, number: int, act: Callable[[PublishNow], object]) -> None:
        self.left = number
        self.act = act

    def wanted(self) -> bool:
        self.left -= self.left > 0
        return self.left == 0

    def serve(self, publish: PublishNow) -> None:
        self.left = -1
        self.act(publish)


def _cycle(site: Site, gap: _Between) -> CycleReport:
    config = load_config(site.config)
    with make_context(config) as context:
        return sync(context, read_wishes(config), gap=gap)


def _results(report: CycleReport) -> list[tuple[str, str]]:
    return [(outcome.target.name.repository, outcome.result) for outcome in report.outcomes]  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_what_is_asked_for_now_goes_first(site: Site, registry: ScriptableRegistry, number: int) -> None:
    """It is published at once, in whatever gap; the cycle then does the others, and that one no second time."""
    inner: list[CycleReport] = []
    asked = f"{registry.host}/org/four:1"

    def act(publish: PublishNow) -> None:
        before = set(site.links())
        inner.append(publish(read_wishes(load_config(site.config)), [parse_image(asked)]))
        assert set(site.links()) == before | {asked}

    report = _cycle(site, _Between(number, act))
    assert _results(inner[0]) == [("org/four", "published")]
    assert _results(report) == [*((f"org/{name}", "published") for name in NAMES[:3]), ("org/four", "unchanged")]
    assert set(site.links()) == set(site.catalogue()) == {f"{registry.host}/org/{name}:1" for name in NAMES}
    assert set(site.sync().values()) == {"unchanged"}


def test_a_new_image_of_a_newer_list_can_come_between(site: Site, registry: ScriptableRegistry) -> None:
    """The list may have changed since the cycle began; what the cycle was about stays."""
    registry.add_image("org/new", "1", [support.layer(support.file("a", "new")).tar])
    new = f"{registry.host}/org/new:1"

    def act(publish: PublishNow) -> None:
        site.wish(new)
        publish(read_wishes(load_config(site.config)), [parse_image(new)])

    report = _cycle(site, _Between(1, act))
    assert {result for _, result in _results(report)} == {"published"}
    assert set(site.links()) == set(site.catalogue()) == {new, *(f"{registry.host}/org/{name}:1" for name in NAMES)}


def test_a_refused_request_leaves_the_cycle_alone(site: Site, registry: ScriptableRegistry) -> None:
    """Who asks for what is not in the list is told; the others get their images."""

    def act(publish: PublishNow) -> None:
        with pytest.raises(UsageError, match="not in the image list"):
            publish(read_wishes(load_config(site.config)), [parse_image("alpine")])

    assert {result for _, result in _results(_cycle(site, _Between(1, act)))} == {"published"}


def test_links_to_one_tree_are_all_made(site: Site, registry: ScriptableRegistry) -> None:
    """An image that was published in between has other links of the cycle waiting for it: they get theirs."""
    registry.add_image("org/five", "1", [support.layer(support.file("a", "four")).tar])
    names = (*NAMES, "five")
    site.wish(*(f"{registry.host}/org/{name}:1" for name in names))

    def act(publish: PublishNow) -> None:
        publish(read_wishes(load_config(site.config)), [parse_image(f"{registry.host}/org/five:1")])

    report = _cycle(site, _Between(1, act))
    assert {result for _, result in _results(report)} == {"published", "linked", "unchanged"}
    assert set(site.links()) == {f"{registry.host}/org/{name}:1" for name in names}
    assert site.target(f"{registry.host}/org/four:1") == site.target(f"{registry.host}/org/five:1")
