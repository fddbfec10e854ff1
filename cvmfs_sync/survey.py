"""What the image list means now: which links shall be there, and what each image is at its registry.

A valid list goes in; targets and answers come out. An answer says what is proven: that an image is there, that it is
gone, or neither. Only a registry's own word that there is no such manifest, or a whole list of tags without the tag, is
proof that something is gone; a refused, failed or missing answer proves nothing, and retires nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import TypeAlias, TypeVar

from cvmfs_sync.context import Context
from cvmfs_sync.errors import CvmfsSyncError, ImageError, ImageNotFound, ListError, RepositoryError, UsageError
from cvmfs_sync.imagelist import ImageList, Wish
from cvmfs_sync.layout import Layout
from cvmfs_sync.reference import Digest, ImageName, Platform, without_tag
from cvmfs_sync.resolve import selected, source_digest

__all__ = [
    "Answer",
    "Failed",
    "Gone",
    "Matching",
    "Present",
    "Survey",
    "Target",
    "Unknown",
    "ask_each",
    "image_error",
    "matches",
    "require_distinct_links",
    "survey",
]

log = logging.getLogger(__name__)
_ASKING = 8
_NAME_MAX = 255
Item = TypeVar("Item")
Reply = TypeVar("Reply")


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
class Failed:
    """Nothing could be decided, or done; what is published stays.

    Attributes:
        source: What the name means, as far as that is known.
        waits: Whether it was not tried at all: it has failed before, and its time has not come.
    """

    target: Target
    error: CvmfsSyncError
    source: Digest | None = None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Present:
    """The name means this manifest or index."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Gone:
    """It is proven that there is no such image."""

    error: ImageNotFound


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can tell."""

    error: ImageError


Answer: TypeAlias = Present | Gone | Unknown


@dataclass(frozen=True, slots=True)
class Survey:
    """What the list means.

    Attributes:
        targets: The links that shall be there, in the order of the list, one for each link; `Failed` where a wish's
            tags are not known, or a link can't be made.
        answers: For each name of a target.
        expired: Wishes that have ended.
        unlisted: Wishes whose tags could not be listed: any of them may be wished for.
    """

    targets: tuple[Target | Failed, ...]
    answers: Mapping[ImageName, Answer]
    expired: tuple[Wish, ...] = ()
    unlisted: tuple[Wish, ...] = ()


def survey(context: Context, wishes: ImageList, only: Sequence[ImageName] = (), *, insist: bool = True) -> Survey:
    """Ask the registries.

    Args:
        context: Nothing in it is changed.
        wishes: A valid list.
        only: Names to restrict the questions to.
        insist: Whether each of them has to be asked for by the list. Without, those that are not are left out, and one
            without tag and digest stands for all that the list asks for of its repository.

    Raises:
        UsageError: A name of `only` is not in the list, or not among the tags that it selects; with `insist`.
        ListError: Two wishes claim one link.
    """
    today = context.now().date()
    current = list(wishes.wished_on(today).wishes)
    expired = tuple(wish for wish in wishes.wishes if wish.expires is not None and wish.expires < today)
    if only:
        if insist:
            _require_listed(only, current, expired)
        current = _asked_wishes(current, only, whole=not insist)
    named = frozenset(only)
    filtering = [wish for wish in current if wish.tags is not None]
    listings = iter(ask_each(filtering, lambda wish: wish.name, lambda wish: _targets(context, wish)))
    expanded = [_targets(context, wish) if wish.tags is None else next(listings) for wish in current]
    targets = _distinct([t for group, _ in expanded for t in group if not only or _asked(t, named, whole=not insist)])
    if only and insist:
        _require_selected(only, targets)
    names = list(dict.fromkeys(target.name for target in targets if isinstance(target, Target)))
    context.progress.start("asking registries", len(names), "images")
    answers = dict(zip(names, ask_each(names, lambda name: name, lambda name: _ask(context, name)), strict=True))
    unlisted = tuple(wish for wish, (_, listed) in zip(current, expanded, strict=True) if not listed)
    return Survey(tuple(targets), answers, expired, unlisted)


def ask_each(items: Sequence[Item], name: Callable[[Item], ImageName], ask: Callable[[Item], Reply]) -> list[Reply]:
    """Ask for all of them at once, each registry in threads of its own: a dead one delays nobody else.

    Args:
        items: For what.
        name: The image that an item is about.
        ask: Asks for one.

    Returns:
        The replies in the order of the items.
    """
    replies: list[Future[Reply]] = []
    with ExitStack() as stack:
        executors: dict[str, ThreadPoolExecutor] = {}
        for item in items:
            registry = getattr(name(item), "registry", "")
            if registry not in executors:
                executors[registry] = stack.enter_context(ThreadPoolExecutor(_ASKING, thread_name_prefix="ask"))
            replies.append(executors[registry].submit(ask, item))
        try:
            return [reply.result() for reply in replies]
        except BaseException:
            for reply in replies:
                reply.cancel()
            raise


def _targets(context: Context, wish: Wish) -> tuple[tuple[Target | Failed, ...], bool]:
    """The links of one wish, of which its first platform has the plain one; and whether its tags could be listed."""
    layout = context.recipe.layout
    names: Iterable[ImageName] = (wish.name,)
    listed = False
    try:
        if wish.tags is not None:
            with context.asking("tags"):
                tags = tuple(context.sources.tags(wish.name))
            # All of them, so that what is not among them is not there. That there is no list proves nothing: not every
            # registry has one.
            listed = True
            names = selected(wish, wish.tags, tags)
    except Exception as error:  # noqa: BLE001 - see image_error
        failed = Failed(Target(wish, wish.name, wish.platforms[0], layout.link(wish.name)), image_error(error, wish))
        return (failed,), listed and isinstance(error, ImageNotFound)
    targets = _links(layout, wish, names)
    return tuple(target if _fits_file_system(target.link) else _too_long(target) for target in targets), True


def _links(layout: Layout, wish: Wish, names: Iterable[ImageName]) -> Iterator[Target]:
    for name in names:
        for platform in wish.platforms:
            yield Target(wish, name, platform, layout.link(name, None if platform == wish.platforms[0] else platform))


def require_distinct_links(layout: Layout, wishes: Iterable[Wish]) -> None:
    """Return if no two wishes that name their images claim one link; of filters only registries can tell.

    Raises:
        ListError: With the lines of two that do.
    """
    _distinct([target for wish in wishes if wish.tags is None for target in _links(layout, wish, (wish.name,))])


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


def _ask(context: Context, name: ImageName) -> Answer:
    """What a name means now."""
    try:
        with context.asking("name"):
            return Present(source_digest(name, context.sources))
    except ImageNotFound as error:
        return Gone(error)
    except Exception as error:  # noqa: BLE001 - see image_error
        return Unknown(image_error(error, name))
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
    error = ListError(
        f"two images claim the link {one.link}",
        found=f"{one} (line {one.wish.line}) and {other} (line {other.wish.line})",
        expected="one of them",
        todo="remove one from the list, or use layout 'unpacked', whose links name the registry",
    )
    error.lines = (one.wish.line, other.wish.line)
    return error


def _require_listed(only: Sequence[ImageName], current: Sequence[Wish], expired: Sequence[Wish]) -> None:
    for name in only:
        if any(matches(wish, name) for wish in current):
            continue
        for wish in expired:
            if matches(wish, name):
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


def matches(wish: Wish, name: ImageName) -> bool:
    """Whether a wish may ask for `name`; which tags its filter selects is only known when they are listed."""
    if wish.tags is None:
        return wish.name == name
    return without_tag(name) == wish.name and name.tag is not None and wish.tags.matches(name.tag)


class Matching:
    """Wishes by what they may ask for, so that thousands of names do not each look at thousands of wishes."""

    def __init__(self, wishes: Iterable[Wish]) -> None:
        self._by_name: dict[ImageName, list[tuple[int, Wish]]] = {}
        for position, wish in enumerate(wishes):
            self._by_name.setdefault(wish.name, []).append((position, wish))

    def first(self, name: ImageName) -> Wish | None:
        """The first wish that `matches`, in the order in which they were given."""
        near = sorted(
            (pair for key in {name, without_tag(name)} for pair in self._by_name.get(key, ())), key=itemgetter(0)
        )
        return next((wish for _, wish in near if matches(wish, name)), None)


def _asked_wishes(wishes: Sequence[Wish], only: Sequence[ImageName], *, whole: bool) -> list[Wish]:
    """Those that may ask for one of the names; with `whole`, a name without a tag is all of its repository."""
    near: dict[ImageName, list[ImageName]] = {}
    for name in only:
        for key in {name, without_tag(name)}:
            near.setdefault(key, []).append(name)
    return [
        wish
        for wish in wishes
        if any(matches(wish, name) or (whole and wish.name == name) for name in near.get(wish.name, ()))
    ]


def _asked(target: Target | Failed, only: frozenset[ImageName], *, whole: bool) -> bool:
    return isinstance(target, Failed) or target.name in only or (whole and without_tag(target.name) in only)
