"""What registries' answers prove: `survey` on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvmfs_sync.imagelist import ImageList, parse
from cvmfs_sync.reference import parse_image
from cvmfs_sync.survey import Failed, Gone, Matching, Present, Survey, Target, Unknown, matches, survey
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support import Image, file, layer, write_layout
from tests.support.retiring import Clock
from tests.support.site import Site


@pytest.fixture
def registry() -> Iterator[ScriptableRegistry]:
    """A registry whose faults are scripted, with the tags 1.0, 1.1 and 2.0 of `org/a`."""
    with ScriptableRegistry(page_size=1) as server:
        for tag in ("1.0", "1.1", "2.0"):
            server.put_manifest("org/a", tag, b"{}")
        yield server


@pytest.fixture
def clock(tmp_path: Path, registry: ScriptableRegistry) -> Clock:
    """An installation that may ask it."""
    return Clock(Site(tmp_path / "site", None, (registry.host,)))


def ask(clock: Clock, *entries: str) -> tuple[ImageList, Survey]:
    """What a list means now."""
    text = "version: 1\nimages:\n" + "".join(f"  - {entry}\n" for entry in entries)
    wishes = parse(text, base=clock.site.home).require_valid()
    with clock.context() as context:
        return wishes, survey(context, wishes)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda _: None, Present),
        (lambda registry: registry.delete("org/a", "1.0"), Gone),
        (lambda registry: registry.fail("/manifests/", status=404), Gone),
        (lambda registry: registry.fail("/manifests/", status=404, headers={"Content-Type": "text/html"}), Unknown),
        (lambda registry: registry.fail("/manifests/", status=401), Unknown),
        (lambda registry: registry.fail("/manifests/", status=403), Unknown),
        (lambda registry: registry.fail("/manifests/", status=410), Unknown),
        (lambda registry: registry.fail("/manifests/", status=200, headers={"Docker-Content-Digest": "x"}), Unknown),
    ],
)
def test_only_a_registrys_404_proves_that_an_image_is_gone(
    fault: Callable[[ScriptableRegistry], None], kind: type, clock: Clock, registry: ScriptableRegistry
) -> None:
    """Everything else says that it is there, or nothing."""
    fault(registry)
    name = f"{registry.host}/org/a:1.0"
    _, found = ask(clock, name)
    assert type(found.answers[parse_image(name)]) is kind


@pytest.mark.parametrize(
    ("fault", "tags", "listed"),
    [
        (lambda _: None, ["1.1", "1.0"], True),
        (lambda registry: registry.delete("org/a", "1.1"), ["1.0"], True),
        (lambda registry: [registry.delete("org/a", tag) for tag in ("1.0", "1.1")], [], True),
        (lambda registry: registry.fail("/tags/list", status=404), [], False),
        (lambda registry: registry.fail("/tags/list", status=401), [], False),
        (lambda registry: registry.fail("/tags/list", status=403), [], False),
        (lambda registry: registry.fail("/tags/list", status=200, body=b"[]"), [], False),
        (lambda registry: registry.fail("/tags/list", status=200, body=b'{"tags": 7}'), [], False),
        (lambda registry: registry.fail("/tags/list", status=405), [], False),
    ],
)
def test_a_tag_is_gone_by_a_whole_list_only(
    fault: Callable[[ScriptableRegistry], object],
    tags: list[str],
    listed: bool,
    clock: Clock,
    registry: ScriptableRegistry,
) -> None:
    """That there is no list, which a registry need not have, proves nothing."""
    fault(registry)
    name = f"{registry.host}/org/a"
    wishes, found = ask(clock, f"{name}:1.*")
    assert found.unlisted == (() if listed else wishes.wishes)
    assert [str(each.name) for each in found.targets if isinstance(each, Target)] == [f"{name}:{tag}" for tag in tags]
    assert [isinstance(each, Failed) for each in found.targets] == [not tags] * max(1, len(tags))


def test_a_page_that_fails_makes_the_list_unknown(clock: Clock, registry: ScriptableRegistry) -> None:
    """Also if what is looked for was on an earlier one: `keep` and the newest depend on all."""
    registry.before("/tags/list", lambda: None, times=1)
    registry.fail("/tags/list", status=403)
    wishes, found = ask(clock, f"{registry.host}/org/a:1.*")
    assert registry.paths().count("/v2/org/a/tags/list") == 2
    assert found.unlisted == wishes.wishes


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda _: None, Present),
        (lambda directory: write_layout(directory, {}), Present),
        (lambda directory: (directory / "index.json").write_text('{"schemaVersion": 2, "manifests": []}'), Gone),
        (lambda directory: (directory / "index.json").unlink(), Unknown),
        (lambda directory: directory.rename(directory.with_name("away")), Unknown),
    ],
)
def test_a_layout_that_is_not_there_proves_nothing(
    spoil: Callable[[Path], object], kind: type, clock: Clock, tmp_path: Path
) -> None:
    """A file system may not be mounted; one that is there without the tag is proof."""
    directory = write_layout(tmp_path / "layout", {"1": Image((layer(file("a")),))})
    spoil(directory)
    _, found = ask(clock, f"oci:{directory}:1")
    assert [type(answer) for answer in found.answers.values()] == [kind]


def test_expired_wishes_are_told_apart(clock: Clock, registry: ScriptableRegistry) -> None:
    """They are not asked for, and are not among the targets."""
    name = f"{registry.host}/org/a"
    wishes, found = ask(clock, f"{{image: '{name}:1.0', expires: 2026-11-19}}", f"{name}:1.1")
    assert found.expired == wishes.wishes[:1]
    assert [str(each.name) for each in found.targets if isinstance(each, Target)] == [f"{name}:1.1"]
    assert registry.paths() == ["/v2/org/a/manifests/1.1"]


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        ("x.org/a:1", "x.org/a:1", True),
        ("x.org/a:1", "x.org/a:2", False),
        ("x.org/a:1*", "x.org/a:12", True),
        ("x.org/a:1*", "x.org/a:2", False),
        ("x.org/a:1*", "x.org/b:1", False),
        ("x.org/a:1*", f"x.org/a@sha256:{'a' * 64}", False),
        ("x.org/a:1*", "oci:/a:1", False),
    ],
)
def test_which_wish_may_ask_for_a_name(entry: str, name: str, *, expected: bool) -> None:
    """One that could not be listed keeps whatever it may select."""
    (wish,) = parse(f"version: 1\nimages: ['{entry}']\n", base=Path("/")).require_valid().wishes
    assert matches(wish, parse_image(name)) is expected


def test_matching_finds_what_a_look_at_all_wishes_would(tmp_path: Path) -> None:
    """The first wish that may ask for a name, filters and plain names alike, without a look at the others."""
    entries = ["org/a:1", "{image: org/a, tags: ['1.*']}", "{image: org/a, tags: ['*']}", "org/b:1"]
    text = "version: 1\nimages:\n" + "".join(f"  - {each}\n" for each in entries)
    wishes = parse(text, base=tmp_path).wishes
    for given in (wishes, tuple(reversed(wishes))):
        matching = Matching(given)
        for name in ("org/a:1", "org/a:1.2", "org/a:2", "org/a", "org/b:1", "org/b:2", "org/c:1"):
            meant = parse_image(name)
            assert matching.first(meant) == next((wish for wish in given if matches(wish, meant)), None)
