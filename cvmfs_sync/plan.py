"""What is wished for, what is there, and what follows: the deciding half of a cycle.

Every name is asked for once; from the answers, the repository and the memory of earlier answers comes one step for each
link. Nothing is published here, and `plan` of the command line prints just what `sync` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cvmfs_sync.blocklist import Blocked
from cvmfs_sync.catalogue import catalogue_entry
from cvmfs_sync.context import Context
from cvmfs_sync.errors import BlockedImage, TriedLater
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.imagelist import ImageList, Wish
from cvmfs_sync.inventory import (
    Catalogue,
    CatalogueEntry,
    Published,
    configuration_of,
    find_tree,
    published,
    read_catalogue,
    stored_catalogue,
)
from cvmfs_sync.reference import Digest, ImageName
from cvmfs_sync.resolve import resolve
from cvmfs_sync.sandbox import GENERATION
from cvmfs_sync.survey import Failed, Present, Survey, Target, ask_each, image_error, survey

__all__ = [
    "Plan",
    "Publish",
    "Relink",
    "Step",
    "Unchanged",
    "catalogue_line",
    "fair_order",
    "plan",
    "remember",
    "wish_key",
]


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The link leads where it shall."""

    target: Target
    source: Digest
    digest: Digest


@dataclass(frozen=True, slots=True)
class Relink:
    """The tree is published; link or catalogue have to say so.

    Attributes:
        image: Set while the tree is still to be published for another link of this cycle: should that fail, this link's
            own registry is asked for it.
    """

    target: Target
    source: Digest
    digest: Digest
    reason: str
    image: ResolvedImage | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """The tree has to be published; `replaces` is what the link leads to now."""

    target: Target
    image: ResolvedImage
    replaces: Digest | None
    reason: str


Step = Unchanged | Relink | Publish | Failed


@dataclass(frozen=True, slots=True)
class Plan:
    """Every target with what has to be done, in the order of the list, and what that was decided from."""

    steps: tuple[Step, ...]
    survey: Survey

    @property
    def expired(self) -> tuple[Wish, ...]:
        """The lines of the list that have expired."""
        return self.survey.expired

    @property
    def failing(self) -> int:
        """How many targets would fail."""
        return sum(isinstance(step, Failed) for step in self.steps)


def plan(
    context: Context,
    wishes: ImageList,
    only: Sequence[ImageName] = (),
    *,
    retry: bool = False,
    insist: bool = True,
) -> Plan:
    """Decide what has to be done.

    Args:
        context: Nothing in it is changed but the memory of what names meant.
        wishes: A valid list.
        only: Names to restrict the cycle to.
        retry: Whether all that has failed is tried, whatever its time.
        insist: Whether somebody asks for the names of `only`: then these are tried whenever they have failed. See
            `survey`.

    Raises:
        UsageError: See `survey`.
        ListError: Two wishes claim one link.
    """
    found = survey(context, wishes, only, insist=insist)
    stored = stored_catalogue(context.repository)
    catalogue = read_catalogue(context.repository, context.recipe.layout) if stored is None else stored
    eager = retry or (insist and bool(only))
    decisions = [_decide(context, wishes, catalogue, target, found, eager=eager) for target in found.targets]
    unresolved = [each for each in decisions if isinstance(each, _Unresolved)]
    resolved = iter(ask_each(unresolved, lambda each: each.target.name, lambda each: _resolve(context, wishes, each)))
    with context.state.together():
        steps = _settled(
            context, catalogue, [next(resolved) if isinstance(each, _Unresolved) else each for each in decisions]
        )
    if stored is None:
        # It was lost, and is written anew with the links.
        steps = [Relink(s.target, s.source, s.digest, "catalogue") if isinstance(s, Unchanged) else s for s in steps]
    return Plan(tuple(steps), found)


def _settled(context: Context, catalogue: Catalogue, steps: Sequence[Step]) -> list[Step]:
    """The steps, now that it is known which manifest each name means, and that is remembered."""
    found: list[Step] = []
    coming: set[Digest] = set()
    for step in steps:
        if not isinstance(step, Publish):
            found.append(step)
            continue
        target, source, digest = step.target, step.image.source_digest, step.image.digest
        remember(context, target, source, digest)
        # It may be there already, or be published for another link of this cycle.
        there = published(context.repository, context.recipe.layout, target.link)
        settled = _settle(context, catalogue, target, source, digest, there)
        if settled is None and digest in coming:
            settled = Relink(target, source, digest, step.reason, step.image)
        coming.add(digest)
        found.append(settled or step)
    return found


@dataclass(frozen=True, slots=True)
class _Unresolved:
    """A target whose manifest has to be fetched before anything is decided."""

    target: Target
    source: Digest
    there: Published | None


def _decide(
    context: Context, wishes: ImageList, catalogue: Catalogue, target: Target | Failed, found: Survey, *, eager: bool
) -> Step | _Unresolved:
    """What the repository and our memory say about an answer; asks nobody."""
    if isinstance(target, Failed):
        return (None if eager else _waits(context, target.target, None)) or target
    blocked = wishes.block(target.name)
    if blocked is not None:
        return Failed(target, _refusal(target, blocked))
    answer = found.answers[target.name]
    if not isinstance(answer, Present):
        return (None if eager else _waits(context, target, None)) or Failed(target, answer.error)
    source = answer.digest
    there = published(context.repository, context.recipe.layout, target.link)
    digest = _known_digest(context, target, source, catalogue.get(target.link), there)
    blocked = wishes.block(target.name, source, digest, _configuration(context, wishes, digest))
    if blocked is not None:
        return Failed(target, _refusal(target, blocked), source)
    settled = None if digest is None else _settle(context, catalogue, target, source, digest, there)
    waits = _waits(context, target, source) if settled is None and not eager else None
    return settled or waits or _Unresolved(target, source, there)


def _waits(context: Context, target: Target, source: Digest | None) -> Failed | None:
    """The step for what has failed before if nothing has changed since, and its time has not come."""
    failure = context.state.failure(target.link)
    if failure is None or failure.next_try is None or failure.next_try <= context.now():
        return None
    if failure.source != (str(source) if source else None) or failure.wish != wish_key(target.wish):
        return None
    later = f"{failure.next_try:%Y-%m-%d %H:%M}Z"
    error = TriedLater(
        failure.reason, todo=f"it is tried again after {later}; 'cvmfs-sync sync --now {target.name}' tries at once"
    )
    return Failed(target, error, source, waits=True)


def wish_key(wish: Wish) -> str:
    """By which an entry of the list is known again, wherever in the list it stands."""
    return hashlib.sha256(repr(replace(wish, line=0, origin=None)).encode("utf-8", "surrogatepass")).hexdigest()


def _configuration(context: Context, wishes: ImageList, digest: Digest | None) -> Digest | None:
    """Of a published tree that has not gone although it is blocked: a link of somebody else keeps it."""
    if not wishes.blocked or digest is None:
        return None
    tree = find_tree(context.repository, context.recipe.layout, digest)
    return configuration_of(tree) if tree is not None else None


def _refusal(target: Target, blocked: Blocked) -> BlockedImage:
    return BlockedImage(
        f"{target} is blocked",
        found=f"line {blocked.line} of the image list: {blocked.reason}",
        todo="ask the operators; they remove the line from 'blocked' when the reason is gone",
    )


def _settle(
    context: Context, catalogue: Catalogue, target: Target, source: Digest, digest: Digest, there: Published | None
) -> Unchanged | Relink | None:
    """What follows if the target means this manifest and its tree is published; None if the tree is not.

    `there` is what the link leads to now. It mostly is that tree, and then its record is not read again.
    """
    layout = context.recipe.layout
    same = there is not None and there.path == layout.tree(digest, GENERATION)
    tree = there if same else find_tree(context.repository, layout, digest)
    if tree is None:
        return None
    if there is None or there.path != tree.path:
        return Relink(target, source, digest, _reason(there, digest))
    line = catalogue.get(target.link)
    if line is None or line != catalogue_line(context, target, source, tree, line):
        return Relink(target, source, digest, "catalogue")
    return Unchanged(target, source, digest)


def _reason(there: Published | None, digest: Digest) -> str:
    if there is None:
        return "new"
    return "moved" if there.digest != digest else "sandbox recipe"


def fair_order(steps: Sequence[Step]) -> tuple[Publish, ...]:
    """In which order to publish: what is new before what has an older version there, and the wishes taking turns.

    Somebody waits for what is new; and nobody's hundred tags keep another's one waiting.
    """
    turns: dict[int, int] = {}
    keyed: list[tuple[bool, int, int, Publish]] = []
    for position, step in enumerate(steps):
        if isinstance(step, Publish):
            turn = turns[step.target.wish.line] = turns.get(step.target.wish.line, -1) + 1
            keyed.append((step.replaces is not None, turn, position, step))
    return tuple(step for *_, step in sorted(keyed, key=lambda key: key[:3]))


def _known_digest(
    context: Context, target: Target, source: Digest, line: CatalogueEntry | None, there: Published | None
) -> Digest | None:
    """The platform manifest behind `source`, if the repository or the state database has learnt it before."""
    platform = str(target.platform)
    if line is not None and there is not None and line.source_digest == str(source) and line.platform == platform:
        return there.digest if str(there.digest) == line.digest else None
    return context.state.recall(str(target.name), platform, source)


def _resolve(context: Context, wishes: ImageList, decision: _Unresolved) -> Step:
    target, there = decision.target, decision.there
    try:
        sources = context.urgent_sources if there is None else context.sources
        with context.asking("image"):
            image = resolve(target.name, decision.source, target.platform, sources)
    except Exception as error:  # noqa: BLE001 - see image_error
        return Failed(target, image_error(error, target), decision.source)
    blocked = wishes.block(target.name, image.digest, image.config.digest)
    if blocked is not None:
        return Failed(target, _refusal(target, blocked))
    return Publish(target, image, there.digest if there else None, _reason(there, image.digest))


def catalogue_line(
    context: Context, target: Target, source: Digest, tree: Published, line: CatalogueEntry | None
) -> CatalogueEntry:
    """The catalogue's line for a link; one that leads to the same tree keeps its time, and its source.

    The source is kept because an index changes with every platform of it: that alone is no reason for a transaction.
    """
    same = line is not None and line.digest == str(tree.digest)
    at = line.published_at if same and line is not None else context.now().isoformat()
    fresh = catalogue_entry(target.name, source, tree, target.wish, target.platform, at)
    if not same or line is None:
        return fresh
    # Who asked for it, too: each commit of the list is none.
    return replace(
        fresh, source_digest=line.source_digest,
        list_commit=line.list_commit, requested_by=line.requested_by, requested_at=line.requested_at,
    )  # fmt: skip


def remember(context: Context, target: Target, source: Digest, digest: Digest) -> None:
    """Note what a target's name meant."""
    context.state.remember(str(target.name), str(target.platform), source, digest, context.now())
