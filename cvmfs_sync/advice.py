"""What is wrong with the wishes of a list by what the registries say, for whoever edits the list.

A plan and forecasts go in; problems of the list come out, one for each mistake, on the line that is to be mended, with
how to mend it. For a tag that is not there, the repository's tags are listed, so that close ones can be named.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cvmfs_sync.context import Context
from cvmfs_sync.errors import AccessDenied, BlockedImage, CvmfsSyncError, ImageError, ImageNotFound, NotForPlatform
from cvmfs_sync.forecast import Forecast
from cvmfs_sync.imagelist import ImageList, Wish
from cvmfs_sync.plan import Plan, Step
from cvmfs_sync.reference import ImageName, Reference, without_tag
from cvmfs_sync.survey import Failed, Target, matches
from cvmfs_sync.tags import Globs, select
from cvmfs_sync.units import human_size
from cvmfs_sync.yamlfile import KeyPath, Problem, dotted, line_of

__all__ = ["Places", "Sizes", "advise", "size_in_words"]

_TAGS = 20_000  # are looked at; repositories of more are rare
_NAMED = 3
_EVERYTHING = Globs.parse(["*"])


@dataclass(frozen=True, slots=True)
class Places:
    """Where things stand in a list.

    Attributes:
        file: The list's name in messages.
        lines: Of its values, by their keys; of a list that is no YAML, of none.
    """

    file: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def problem(self, wish: Wish, key: KeyPath, message: str, *, warning: bool = False) -> Problem:
        """A problem of a wish, at the line of this key of its entry, or of its entry where that has no such key."""
        entries = [path for path, line in self.lines.items() if path[:-1] == ("images",) and line == wish.line]
        path: KeyPath = ()
        if len(entries) == 1:
            path = (*entries[0], *key) if (*entries[0], key[0]) in self.lines else entries[0]
        line = line_of(self.lines, path) if path else wish.line
        return Problem(self.file, line, dotted(path), message, "warning" if warning else "error")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is too much, in bytes; None where nothing is.

    Attributes:
        limit: Uncompressed, of an image.
        spool: Compressed, of the layers of an image that have to be fetched.
        large: Compressed or uncompressed, of an image: such are warned of.
    """

    limit: int | None = None
    spool: int | None = None
    large: int | None = None


def advise(
    context: Context,
    wishes: ImageList,
    decided: Plan,
    forecasts: Mapping[str, Forecast],
    places: Places,
    sizes: Sizes,
) -> tuple[Problem, ...]:
    """Say what is wrong, beyond what the list's own problems say.

    Args:
        context: Its sources are asked for tags.
        wishes: The list.
        decided: What would be done.
        forecasts: By link.
        places: Where the wishes stand.
        sizes: What is too much.

    Returns:
        Problems by line.
    """
    tags = _Tags(context)
    found: list[Problem] = []
    groups: dict[tuple[Wish, str], list[Failed]] = {}
    for step in decided.steps:
        if isinstance(step, Failed):
            if isinstance(step.error, BlockedImage) and wishes.block(step.target.name) is not None:
                continue  # the list itself says so
            groups.setdefault((step.target.wish, type(step.error).__name__), []).append(step)
        elif (forecast := forecasts.get(step.target.link)) is not None:
            found.extend(_too_large(step.target, forecast, places, sizes))
    found.extend(_failure(failed, places, tags) for failed in groups.values())
    found.extend(_overlaps(decided.steps, places))
    return tuple(sorted(found, key=lambda problem: problem.line or 0))


def _failure(failed: Sequence[Failed], places: Places, tags: _Tags) -> Problem:
    """What a wish fails by; of many tags of it one speaks for all."""
    first = failed[0]
    error, target = first.error, first.target
    key: KeyPath = ("image",)
    todo = error.todo
    match error:
        case NotForPlatform():
            key = ("platforms", target.wish.platforms.index(target.platform))
        case ImageNotFound():
            key = ("image" if target.wish.tags is None else "tags",)
            todo = tags.advice(target) or todo
        case AccessDenied() if isinstance(target.name, Reference):
            todo = (
                "check the spelling: registries answer so for what does not exist, too; if the image is private, make"
                f" it public, or ask the operators to give the publisher access; 'docker login {target.name.registry}'"
                " lets this check in"
            )
        case ImageError(temporary=True):
            todo = "run the check again; if it stays so, see whether the registry is up"
    text = str(CvmfsSyncError(error.what, found=error.found, expected=error.expected, todo=todo))
    others = len(failed) - 1
    text += f"; {others} more of this entry fail in this way" if others else ""
    return places.problem(target.wish, key, text)


def _too_large(target: Target, forecast: Forecast, places: Places, sizes: Sizes) -> Iterator[Problem]:
    """One problem for what is too large, or will be thought so."""
    likely = max(forecast.compressed, forecast.at_least, forecast.unpacked.likely if forecast.unpacked else 0)
    shrink = "make it smaller: leave out data sets and build tools, copy what is needed from a build stage"
    told = f"{target}: {size_in_words(forecast)}"
    if sizes.limit is not None and forecast.at_least > sizes.limit:
        what = f"is more than this repository takes; expected: at most {human_size(sizes.limit)} unpacked"
        ask = "ask the operators whether 'limits.bytes' can be raised"
    elif sizes.spool is not None and forecast.to_fetch > sizes.spool:
        what = f"is more than the publisher can fetch; expected: at most {human_size(sizes.spool)} compressed"
        ask = "ask the operators whether 'spool_limit' can be raised"
    elif sizes.large is not None and likely > sizes.large:
        text = (
            f"{told} is a large image; expected: up to {human_size(sizes.large)}; to do: {shrink};"
            " if it has to be so large, agree on it with the operators"
        )
        yield places.problem(target.wish, ("image",), text, warning=True)
        return
    else:
        return
    yield places.problem(target.wish, ("image",), f"{told} {what}; to do: {shrink}; or {ask}")


def size_in_words(forecast: Forecast) -> str:
    """`48 MiB compressed, ~120 MiB unpacked`."""
    size = forecast.unpacked
    if size is None:
        unpacked = "unpacked size unknown"
    elif size.exact:
        unpacked = f"{human_size(size.likely)} unpacked"
    else:
        unpacked = f"~{human_size(size.likely)} unpacked ({human_size(size.low)} to {human_size(size.high)})"
    return f"{human_size(forecast.compressed)} compressed, {unpacked}"


def _overlaps(steps: Sequence[Step], places: Places) -> Iterator[Problem]:
    """Filters that select what another entry's filter selects for sure: without `keep`, and for the same platform."""
    filters: dict[ImageName, list[Wish]] = {}
    for wish in dict.fromkeys(step.target.wish for step in steps):
        if wish.tags is not None:
            filters.setdefault(wish.name, []).append(wish)
    common: dict[tuple[Wish, Wish], list[str]] = {}
    for step in steps:
        target = step.target
        for other in filters.get(target.wish.name, ()):
            if other is target.wish or other.keep is not None or target.platform not in other.platforms:
                continue
            if matches(other, target.name):
                first, second = sorted((other, target.wish), key=lambda wish: wish.line)
                common.setdefault((first, second), []).append(str(getattr(target.name, "tag", "")))
    for (first, second), tags in common.items():
        text = (
            f"{second} selects {len(tags)} tags that {first} on line {first.line} selects as well, such as {tags[0]!r};"
            " remove one of the two, or narrow one by a pattern with '!'"
        )
        yield places.problem(second, ("tags",), text, warning=True)


class _Tags:
    """The tags of repositories, listed once each when they are needed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[ImageName, tuple[str, ...] | ImageError] = {}

    def advice(self, target: Target) -> str | None:
        """What to do about a tag, or a filter, that nothing answers to; None where nobody can tell."""
        repository = without_tag(target.name)
        tags = self._of(repository)
        if isinstance(tags, ImageNotFound):
            return f"check the spelling: there is no repository {repository}"
        if isinstance(tags, ImageError):
            return None
        if not tags:
            return f"have an image pushed: {repository} has no tags"
        wished = target.wish.tags
        wanted = str(getattr(target.name, "tag", None) or "") if wished is None else str(wished)
        close = difflib.get_close_matches(wanted[:100], tags, n=_NAMED)
        if close:
            return f"check the spelling; did you mean {_named(close, ' or ')}?"
        return f"choose among the tags of {repository}; the newest are {_named(tags[:_NAMED], ', ')}"

    def _of(self, repository: ImageName) -> tuple[str, ...] | ImageError:
        """Newest first."""
        if repository not in self._known:
            try:
                listed = islice(self._context.sources.tags(repository), _TAGS)
                self._known[repository] = select(listed, _EVERYTHING)
            except ImageError as error:
                self._known[repository] = error
        return self._known[repository]


def _named(tags: Sequence[str], last: str) -> str:
    return last.join(repr(tag) for tag in tags)
