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
from cvmfs_sync.plan import Plan, Publish, Step
from cvmfs_sync.reference import ImageName, Reference, without_tag
from cvmfs_sync.survey import Failed, Target, matches
from cvmfs_sync.tags import Globs, select
from cvmfs_sync.units import human_size
from cvmfs_sync.yamlfile import KeyPath, Problem, dotted, line_of

__all__ = ["Advice", "Places", "Sizes", "advise", "size_in_words"]

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
    _entries: dict[int, list[KeyPath]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for path, line in self.lines.items():
            if path[:-1] == ("images",):
                self._entries.setdefault(line, []).append(path)

    def problem(self, wish: Wish, key: KeyPath, message: str, *, warning: bool = False) -> Problem:
        """A problem of a wish, at the line of this key of its entry, or of its entry where that has no such key."""
        entries = self._entries.get(wish.line, [])
        path: KeyPath = ()
        if len(entries) == 1:
            path = (*entries[0], *key) if (*entries[0], key[0]) in self.lines else entries[0]
        line = line_of(self.lines, path) if path else wish.line
        return Problem(self.file, line, dotted(path), message, "warning" if warning else "error")


@dataclass(frozen=True, slots=True)
class Advice:
    """A problem, and the links of images that it is about."""

    problem: Problem
    links: tuple[str, ...] = ()


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
) -> tuple[Advice, ...]:
    """Say what is wrong, beyond what the list's own problems say.

    Args:
        context: Its sources are asked for tags.
        wishes: The list.
        decided: What would be done.
        forecasts: By link.
        places: Where the wishes stand.
        sizes: What is too much.

    Returns:
        One for each mistake: of many tags of an entry that have the same one, the first speaks for all.
    """
    failed: dict[tuple[Wish, str], list[Failed]] = {}
    large: dict[tuple[Wish, _Excess], list[tuple[Target, Forecast]]] = {}
    for step in decided.steps:
        target = step.target
        match step:
            case Failed():
                if isinstance(step.error, BlockedImage) and wishes.block(target.name) is not None:
                    continue  # the list itself says so
                failed.setdefault((target.wish, type(step.error).__name__), []).append(step)
            case Publish() if target.link in forecasts:
                excess = _excess(forecasts[target.link], sizes)
                if excess is not None:
                    large.setdefault((target.wish, excess), []).append((target, forecasts[target.link]))
    tags = _Tags(context)
    found = [_failure(group, places, tags) for group in failed.values()]
    found += [_too_large(excess, group, places) for (_, excess), group in large.items()]
    return (*found, *_overlaps(decided.steps, places))


def _failure(failed: Sequence[Failed], places: Places, tags: _Tags) -> Advice:
    """What tags of one wish fail by."""
    first = failed[0]
    error, target = first.error, first.target
    key: KeyPath = ("image",)
    todo = error.todo
    match error:
        case NotForPlatform():
            key = ("platforms", target.wish.platforms.index(target.platform))
            built = f"have the image built for {target.platform}"
            if len(target.wish.platforms) > 1:
                todo = f"take {target.platform} out of 'platforms', or {built}"
            elif error.offered:
                todo = f"write 'platforms: [{', '.join(error.offered)}]' into its entry if that is wanted, or {built}"
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
    return Advice(places.problem(target.wish, key, text + _more(failed)))


@dataclass(frozen=True, slots=True)
class _Excess:
    """Which measure an image exceeds, in words, and whether the publisher would take it all the same."""

    what: str
    expected: str
    ask: str
    warning: bool = False


def _excess(forecast: Forecast, sizes: Sizes) -> _Excess | None:
    likely = max(forecast.compressed, forecast.at_least, forecast.unpacked.likely if forecast.unpacked else 0)
    if sizes.limit is not None and forecast.at_least > sizes.limit:
        ask = "ask the operators whether 'limits.bytes' can be raised"
        return _Excess("larger than this repository takes", f"at most {human_size(sizes.limit)} unpacked", ask)
    if sizes.spool is not None and forecast.to_fetch > sizes.spool:
        ask = "ask the operators whether 'spool_limit' can be raised"
        return _Excess("larger than the publisher can fetch", f"at most {human_size(sizes.spool)} compressed", ask)
    if sizes.large is not None and likely > sizes.large:
        return _Excess(
            "a large image", f"up to {human_size(sizes.large)}", "agree with the operators on it", warning=True
        )
    return None


def _too_large(excess: _Excess, images: Sequence[tuple[Target, Forecast]], places: Places) -> Advice:
    """What is too large, or will be thought so."""
    target, forecast = images[0]
    todo = "make it smaller (leave out data sets and build tools, copy what is needed from a build stage)"
    error = CvmfsSyncError(
        f"{target} is {excess.what}",
        found=size_in_words(forecast),
        expected=excess.expected,
        todo=f"{todo}, or {excess.ask}",
    )
    problem = places.problem(target.wish, ("image",), f"{error}{_more(images)}", warning=excess.warning)
    return Advice(problem, tuple(target.link for target, _ in images))


def _more(group: Sequence[object]) -> str:
    return f"; {len(group) - 1} more of this entry in the same way" if len(group) > 1 else ""


def size_in_words(forecast: Forecast) -> str:
    """`48 MiB compressed, ~120 MiB unpacked`."""
    size = forecast.unpacked
    if size is None:
        unpacked = "unpacked size unknown"
    elif size.exact:
        unpacked = f"{'' if forecast.published else '~'}{human_size(size.likely)} unpacked"
    else:
        unpacked = f"~{human_size(size.likely)} unpacked ({human_size(size.low)} to {human_size(size.high)})"
    return f"{human_size(forecast.compressed)} compressed, {unpacked}"


def _overlaps(steps: Sequence[Step], places: Places) -> Iterator[Advice]:
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
        yield Advice(places.problem(second, ("tags",), text, warning=True))


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
