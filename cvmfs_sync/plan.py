"""What is wished for, what is there, and what follows: the deciding half of a cycle.

Every name is asked for once; from the answers, the repository and the memory of earlier answers comes one step for each
link. Nothing is published here, and `plan` of the command line prints just what `sync` does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import accumulate

from cvmfs_sync.errors import CvmfsSyncError, ImageError, ListError, RepositoryError, UsageError
from cvmfs_sync.fetch import Spool
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.imagelist import ImageList, Wish
from cvmfs_sync.ports import Progress, Repository, Silent
from cvmfs_sync.publish import (
    Catalogue,
    CatalogueEntry,
    Published,
    Recipe,
    catalogue_entry,
    find_tree,
    published,
    read_catalogue,
    stored_catalogue,
)
from cvmfs_sync.reference import Digest, ImageName, Platform, Reference
from cvmfs_sync.resolve import Sources, expand, resolve, source_digest
from cvmfs_sync.sandbox import GENERATION
from cvmfs_sync.state import State

__all__ = [
    "Context",
    "Failed",
    "Plan",
    "Publish",
    "Relink",
    "Step",
    "Target",
    "Unchanged",
    "catalogue_line",
    "image_error",
    "plan",
    "remember",
]

log = logging.getLogger(__name__)
_ASKING = 8
_NAME_MAX = 255


@dataclass(frozen=True, slots=True)
class Context:
    """All that a cycle works with.

    Attributes:
        now: The time, UTC.
    """

    repository: Repository
    sources: Sources
    recipe: Recipe
    state: State
    spool: Spool
    now: Callable[[], datetime]
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True, slots=True)
class Target:
    """One link that shall be there."""

    wish: Wish
    name: ImageName
    platform: Platform
    link: str

    def __str__(self) -> str:
        return str(self.name) if self.platform == Platform() else f"{self.name} ({self.platform})"


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


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing could be decided, or done; what is published stays."""

    target: Target
    error: CvmfsSyncError


Step = Unchanged | Relink | Publish | Failed


@dataclass(frozen=True, slots=True)
class Plan:
    """Every target with what has to be done, in the order of the list, and the lines of the list that have expired."""

    steps: tuple[Step, ...]
    expired: tuple[Wish, ...] = ()

    @property
    def failing(self) -> int:
        """How many targets would fail."""
        return sum(isinstance(step, Failed) for step in self.steps)


def plan(context: Context, wishes: ImageList, only: Sequence[ImageName] = ()) -> Plan:
    """Decide what has to be done.

    Args:
        context: Nothing in it is changed but the memory of what names meant.
        wishes: A valid list.
        only: Names to restrict the cycle to.

    Raises:
        UsageError: A name of `only` is not in the list, or not among the tags that it selects.
        ListError: Two wishes claim one link.
    """
    current = list(wishes.wished_on(context.now().date()).wishes)
    expired = tuple(wish for wish in wishes.wishes if wish not in current)
    if only:
        _require_listed(only, current, expired)
        current = [wish for wish in current if any(_matches(wish, name) for name in only)]
    catalogue = read_catalogue(context.repository, context.recipe.layout)
    with ThreadPoolExecutor(_ASKING, thread_name_prefix="ask") as executor:
        expanded = list(executor.map(lambda wish: _targets(context, wish), current))
        targets = _distinct([target for group in expanded for target in group if not only or _asked(target, only)])
        if only:
            _require_selected(only, targets)
        names = list(dict.fromkeys(target.name for target in targets if isinstance(target, Target)))
        context.progress.start("asking registries", len(names))
        answers = dict(zip(names, executor.map(lambda name: _ask(context, name), names), strict=True))
        decisions = [_decide(context, catalogue, target, answers) for target in targets]
        resolved = list(executor.map(lambda decision: _resolve(context, decision), decisions))
    steps: list[Step] = []
    coming: set[Digest] = set()
    for step in resolved:
        if isinstance(step, Publish):
            target, source, digest = step.target, step.image.source_digest, step.image.digest
            remember(context, target, source, digest)
            # Only now is it known which manifest the name means: it may be there already, or be published for another
            # link of this cycle.
            there = published(context.repository, context.recipe.layout, target.link)
            settled = _settle(context, catalogue, target, source, digest, there)
            if settled is None and digest in coming:
                settled = Relink(target, source, digest, step.reason, step.image)
            coming.add(digest)
            steps.append(settled or step)
        else:
            steps.append(step)
    if stored_catalogue(context.repository) is None:
        # It was lost, and is written anew with the links.
        steps = [Relink(s.target, s.source, s.digest, "catalogue") if isinstance(s, Unchanged) else s for s in steps]
    return Plan(tuple(steps), expired)


@dataclass(frozen=True, slots=True)
class _Unresolved:
    """A target whose manifest has to be fetched before anything is decided."""

    target: Target
    source: Digest
    there: Published | None


def _targets(context: Context, wish: Wish) -> tuple[Target | Failed, ...]:
    """The links of one wish; its first platform has the plain one."""
    layout = context.recipe.layout
    try:
        names: Iterable[ImageName] = expand(wish, context.sources)
    except Exception as error:  # noqa: BLE001 - see image_error
        return (Failed(Target(wish, wish.name, wish.platforms[0], layout.link(wish.name)), image_error(error, wish)),)
    targets = (
        Target(wish, name, platform, layout.link(name, None if platform == wish.platforms[0] else platform))
        for name in names
        for platform in wish.platforms
    )
    return tuple(target if _fits_file_system(target.link) else _too_long(target) for target in targets)


def _fits_file_system(link: str) -> bool:
    return max(len(os.fsencode(part)) for part in link.split("/")) <= _NAME_MAX


def _too_long(target: Target) -> Failed:
    error = ImageError(
        f"{target}: too long for the name of a link",
        found=f"{len(target.link.rpartition('/')[2])} characters after the last '/'",
        expected=f"at most {_NAME_MAX}",
        todo="give the repository or the tag a shorter name",
    )
    return Failed(target, error)


def _ask(context: Context, name: ImageName) -> Digest | ImageError:
    """What a name means now, or why nobody knows."""
    try:
        return source_digest(name, context.sources)
    except Exception as error:  # noqa: BLE001 - see image_error
        return image_error(error, name)
    finally:
        context.progress.advance(1)


def image_error(error: Exception, what: object) -> ImageError:
    """What ends one image and no more: a defect of ours that one odd image meets must not stop all the others."""
    if isinstance(error, RepositoryError):
        raise error
    if isinstance(error, ImageError):
        return error
    log.debug("unexpected", exc_info=error)
    return ImageError(
        f"{what}: cvmfs-sync has a defect",
        found=f"{type(error).__name__}: {str(error)[:500]}",
        todo="report it, with the output of 'cvmfs-sync -vv sync' for this image; the other images are not concerned",
    )


def _decide(
    context: Context, catalogue: Catalogue, target: Target | Failed, answers: Mapping[ImageName, Digest | ImageError]
) -> Step | _Unresolved:
    """What the repository and our memory say about an answer; asks nobody."""
    if isinstance(target, Failed):
        return target
    source = answers[target.name]
    if isinstance(source, ImageError):
        return Failed(target, source)
    there = published(context.repository, context.recipe.layout, target.link)
    digest = _known_digest(context, target, source, catalogue.get(target.link), there)
    settled = None if digest is None else _settle(context, catalogue, target, source, digest, there)
    return settled or _Unresolved(target, source, there)


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


def _known_digest(
    context: Context, target: Target, source: Digest, line: CatalogueEntry | None, there: Published | None
) -> Digest | None:
    """The platform manifest behind `source`, if the repository or the state database has learnt it before."""
    platform = str(target.platform)
    if line is not None and there is not None and line.source_digest == str(source) and line.platform == platform:
        return there.digest if str(there.digest) == line.digest else None
    return context.state.recall(str(target.name), platform, source)


def _resolve(context: Context, decision: Step | _Unresolved) -> Step:
    if not isinstance(decision, _Unresolved):
        return decision
    target, there = decision.target, decision.there
    try:
        image = resolve(target.name, decision.source, target.platform, context.sources)
    except Exception as error:  # noqa: BLE001 - see image_error
        return Failed(target, image_error(error, target))
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
    return replace(fresh, source_digest=line.source_digest) if same and line is not None else fresh


def remember(context: Context, target: Target, source: Digest, digest: Digest) -> None:
    """Note what a target's name meant."""
    context.state.remember(str(target.name), str(target.platform), source, digest, context.now())


def _distinct(targets: Sequence[Target | Failed]) -> list[Target | Failed]:
    """One target for each link: of several wishes for one image, the one that names its tag speaks for it.

    Raises:
        ListError: Two images claim one link, or one link lies below the other.
    """
    claimed: dict[str, Target] = {}
    for target in targets:
        if isinstance(target, Failed):
            continue
        other = claimed.setdefault(target.link, target)
        if (other.name, other.platform) != (target.name, target.platform):
            raise _collision(other, target)
        if other.wish.tags is not None and target.wish.tags is None:
            claimed[target.link] = target
    for link, target in claimed.items():
        for above in accumulate(link.split("/")[:-1], "{}/{}".format):
            if above in claimed:
                raise _collision(claimed[above], target)
    return [target for target in targets if isinstance(target, Failed) or claimed[target.link] is target]


def _collision(one: Target, other: Target) -> ListError:
    return ListError(
        f"two images claim the link {one.link}",
        found=f"{one} (line {one.wish.line}) and {other} (line {other.wish.line})",
        expected="one of them",
        todo="remove one from the list, or use layout 'unpacked', whose links name the registry",
    )


def _require_listed(only: Sequence[ImageName], current: Sequence[Wish], expired: Sequence[Wish]) -> None:
    for name in only:
        if any(_matches(wish, name) for wish in current):
            continue
        for wish in expired:
            if _matches(wish, name):
                raise UsageError(
                    f"{name} is not wished for any more",
                    found=f"line {wish.line} of the image list expired on {wish.expires}",
                    todo="set a later date there",
                )
        raise UsageError(f"{name} is not in the image list", todo="add it to the list, or check its spelling")


def _require_selected(only: Sequence[ImageName], targets: Sequence[Target | Failed]) -> None:
    """Refuse a tag that a filter of the list matches, and that is not there, or older than those that it keeps."""
    if any(isinstance(target, Failed) for target in targets):
        return
    for name in only:
        if not any(isinstance(target, Target) and target.name == name for target in targets):
            raise UsageError(
                f"{name} is not among the tags that the image list selects now",
                todo="compare the entry's 'tags' and 'keep' with the tags of the repository",
            )


def _matches(wish: Wish, name: ImageName) -> bool:
    """Whether a wish may ask for `name`; which tags its filter selects is only known when they are listed."""
    if wish.tags is None:
        return wish.name == name
    if isinstance(name, Reference) and isinstance(wish.name, Reference):
        return wish.name.name == name.name and name.tag is not None and wish.tags.matches(name.tag)
    return False


def _asked(target: Target | Failed, only: Sequence[ImageName]) -> bool:
    return isinstance(target, Failed) or target.name in only
