"""What nobody asks for any more, and when it goes: pure decisions.

A survey of the list and an inventory of the repository go in. `orphans` says what nobody asks for now, and of what
nobody can tell; `retirement` says what of it has been so for long enough. Whatever can't be read ends all of it.
Removing is `remover`'s.

Only links of the catalogue are ever removed: others are somebody else's. A tree is removed when no link of any layout
leads to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from cvmfs_sync.errors import InvalidReference, RepositoryUnavailable
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.inventory import (
    Catalogue,
    Published,
    all_links,
    all_records,
    all_trees,
    configuration_of,
    read_catalogue,
)
from cvmfs_sync.layout import Layout
from cvmfs_sync.ports import Repository
from cvmfs_sync.reference import Digest, ImageName, parse_image
from cvmfs_sync.state import Orphan
from cvmfs_sync.survey import Failed, Gone, Matching, Present, Survey, Target

__all__ = [
    "Identity",
    "Inventory",
    "Orphans",
    "RetirePlan",
    "Retirement",
    "orphans",
    "retirement",
    "take_inventory",
    "takedown",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a record says that its tree is.

    Attributes:
        name: Under which it was published first.
        manifest: Digest of the platform's manifest.
        source: What the name meant then.
        configuration: Digest of the image configuration.
    """

    name: ImageName | None
    manifest: Digest
    source: Digest | None = None
    configuration: Digest | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the repository holds.

    Attributes:
        catalogue: Our links.
        links: Every link to a tree or into one, anybody's, with the tree's path.
        trees: Paths of all trees, published or not.
        records: Paths of the trees that have a record, with what it says.
    """

    catalogue: Catalogue
    links: Mapping[str, str]
    trees: frozenset[str]
    records: Mapping[str, Identity]

    @property
    def empty(self) -> bool:
        """Whether nothing at all is there: as in a repository that is not mounted."""
        return not (self.catalogue or self.trees)


@dataclass(frozen=True, slots=True)
class Orphans:
    """What nobody asks for now: reasons by path; and the paths of which nobody can tell."""

    reasons: Mapping[str, str]
    undecided: frozenset[str]


@dataclass(frozen=True, slots=True)
class Retirement:
    """A link or a tree that goes.

    Attributes:
        path: Of the link or tree.
        target: The tree that a link leads to; None for a tree.
        image: Of a link, as the catalogue says.
        due: When it goes; None if at once.
    """

    path: str
    target: str | None
    image: str | None
    reason: str
    since: datetime | None
    due: datetime | None


@dataclass(frozen=True, slots=True)
class RetirePlan:
    """What goes now, and what will.

    Attributes:
        links: Go now.
        trees: Go now; no link leads to them then.
        waiting: Within their grace period.
        refused: Why nothing goes after all.
    """

    links: tuple[Retirement, ...] = ()
    trees: tuple[Retirement, ...] = ()
    waiting: tuple[Retirement, ...] = ()
    refused: str | None = None


def take_inventory(repository: Repository, layout: Layout, *, lenient: bool = False) -> Inventory:
    """Read all of the repository but the trees themselves.

    Args:
        repository: Which.
        layout: Of a catalogue that has been lost.
        lenient: Whether to pass over records that make no sense.

    Raises:
        RepositoryUnavailable: Anything can't be read: what is not seen might be in use.
    """
    if not repository.root.is_dir():
        raise RepositoryUnavailable(f"there is no repository at {repository.root}", todo="see that it is mounted")
    catalogue = read_catalogue(repository, layout)
    links = dict(all_links(repository))
    trees = frozenset(all_trees(repository))
    records = {each.path: _identity(each) for each in all_records(repository, lenient=lenient)}
    return Inventory(catalogue, links, trees, records)


def _identity(tree: Published) -> Identity:
    source = _digest(str(tree.record.get("source_digest")))
    return Identity(_name(str(tree.record.get("reference"))), tree.digest, source, configuration_of(tree))


def orphans(survey: Survey, wishes: ImageList, inventory: Inventory) -> Orphans:
    """What nobody asks for, as far as the survey proves it; trees count as asked for while any link leads to them."""
    reasons: dict[str, str] = {}
    undecided: set[str] = set()
    unlisted, expired = Matching(survey.unlisted), Matching(survey.expired)
    filtered = Matching(wish for wish in wishes.wishes if wish.tags is not None)
    wanted = {each.link: each for each in survey.targets if isinstance(each, Target)}
    broken = {each.target.link for each in survey.targets if isinstance(each, Failed)}
    asked_for: dict[ImageName, set[str]] = {}
    for each in wanted.values():
        asked_for.setdefault(each.name, set()).add(str(each.platform))
    for link, line in inventory.catalogue.items():
        if inventory.links.get(link) != line.path:
            # It has gone, or somebody has made it lead elsewhere: then it is theirs until a sync takes it back.
            continue
        target = wanted.get(link)
        if target is not None:
            answer = survey.answers.get(target.name)
            if isinstance(answer, Gone):
                reasons[link] = "its registry has no such image any more"
            elif not isinstance(answer, Present):
                undecided.add(link)
            continue
        name = _name(line.image)
        if link in broken or name is None or unlisted.first(name) is not None:
            undecided.add(link)
        elif name in asked_for:
            there = line.platform in asked_for[name]
            reasons[link] = "its image has another path now" if there else f"nobody asks for {line.platform} any more"
        else:
            reasons[link] = _reason(name, expired, filtered)
    linked = set(inventory.links.values())
    for tree in inventory.trees - linked:
        published = tree in inventory.records
        reasons[tree] = "no link leads to it" if published else "was never finished, and no link leads to it"
    return Orphans(reasons, frozenset(undecided))


def _reason(name: ImageName, expired: Matching, filtered: Matching) -> str:
    """Why a link is not among the targets."""
    if (wish := expired.first(name)) is not None:
        return f"the wish for it expired on {wish.expires}"
    if filtered.first(name) is not None:
        return "its tag is not among those that the list selects any more"
    return "the list does not ask for it any more"


def _name(image: str) -> ImageName | None:
    try:
        return parse_image(image)
    except InvalidReference:
        return None


def retirement(
    found: Orphans,
    known: Mapping[str, Orphan],
    inventory: Inventory,
    *,
    now: datetime,
    grace: timedelta,
    max_fraction: float,
    force: bool = False,
) -> RetirePlan:
    """Decide what goes now.

    Args:
        found: What nobody asks for now.
        known: Since when; an orphan that is not in it has just become one.
        inventory: Of the repository.
        now: The time.
        grace: How long an orphan stays.
        max_fraction: Of all links, and of all trees: more than that never go at once,
        force: unless this is set.
    """
    due: list[Retirement] = []
    waiting: list[Retirement] = []
    for path, reason in sorted(found.reasons.items()):
        orphan = known.get(path) or Orphan(reason, now, timedelta(0))
        line = inventory.catalogue.get(path)
        retired = Retirement(
            path, inventory.links.get(path), line.image if line else None, reason, orphan.since,
            now + max(timedelta(0), grace - orphan.age),
        )  # fmt: skip
        (due if orphan.age >= grace else waiting).append(retired)
    links = tuple(each for each in due if each.target is not None)
    trees = [each for each in due if each.target is None]
    trees.extend(_left_alone(links, inventory))
    plan = RetirePlan(links, tuple(sorted(trees, key=lambda each: each.path)), tuple(waiting))
    refused = None if force else _too_many(plan, inventory, max_fraction)
    return plan if refused is None else RetirePlan((), (), (*plan.links, *plan.trees, *waiting), refused)


def _left_alone(links: Iterable[Retirement], inventory: Inventory) -> Iterable[Retirement]:
    """The trees that no link leads to when these are gone: they have waited with them."""
    going = {each.path for each in links}
    staying = {tree for link, tree in inventory.links.items() if link not in going}
    seen: set[str] = set()
    for each in links:
        tree = each.target
        if tree is not None and tree not in staying and tree not in seen and tree in inventory.trees:
            seen.add(tree)
            yield Retirement(tree, None, None, f"only {each.path} led to it", each.since, each.due)


def _too_many(plan: RetirePlan, inventory: Inventory, max_fraction: float) -> str | None:
    for what, going, there in (
        ("links", len(plan.links), len(inventory.catalogue.keys() & inventory.links.keys())),
        ("trees", len(plan.trees), len(inventory.trees)),
    ):
        # What the operator has written, and not the binary number that is nearest: 0.29 of 100 are 29.
        if going > Fraction(repr(max_fraction)) * there:
            return (
                f"{going} of {there} {what} would go, more than retire.max_fraction ({max_fraction:g}) allows;"
                " see with --dry-run that this is meant, then use --force"
            )
    return None


def takedown(wishes: ImageList, inventory: Inventory, sources: Mapping[tuple[str, str], tuple[str, str]]) -> RetirePlan:
    """What the list blocks and is published: it goes at once. A tree that somebody else's link leads to stays.

    Args:
        wishes: With what is blocked.
        inventory: Of the repository.
        sources: See `State.sources`: an index may have got another digest since its image was published.
    """
    reasons: dict[str, str] = {}
    for tree, identity in inventory.records.items():
        entry = wishes.block(None, identity.manifest, identity.configuration)
        if entry is not None:
            reasons[tree] = f"blocked: {entry.reason}"
    links: list[Retirement] = []
    for link, line in sorted(inventory.catalogue.items()):
        target = inventory.links.get(link)
        if target is None:
            continue
        source, digest = sources.get((line.image, line.platform), ("", ""))
        digests = [line.digest, line.source_digest, source if digest == line.digest else ""]
        there = inventory.records.get(target)
        entry = wishes.block(_name(line.image), *map(_digest, digests), there.configuration if there else None)
        if entry is not None or target in reasons:
            reason = f"blocked: {entry.reason}" if entry is not None else reasons[target]
            links.append(Retirement(link, target, line.image, reason, None, None))
    going = {each.path for each in links}
    linked = {tree for link, tree in inventory.links.items() if link not in going}
    led_to = set(inventory.links.values())
    for tree, identity in inventory.records.items():
        # What was left when an earlier takedown was interrupted, or what a blocked tag has meant before.
        entry = wishes.block(identity.name, identity.source)
        if entry is not None and tree not in led_to:
            reasons.setdefault(tree, f"blocked: {entry.reason}")
    for each in links:
        if each.target is not None and each.target in inventory.trees:
            reasons.setdefault(each.target, each.reason)
    trees = [Retirement(tree, None, None, reason, None, None) for tree, reason in sorted(reasons.items())]
    for each in trees:
        if each.path in linked:
            log.warning("%s is %s, and stays: a link that is not ours leads to it", each.path, each.reason)
    return RetirePlan(tuple(links), tuple(each for each in trees if each.path not in linked))


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except InvalidReference:
        return None
