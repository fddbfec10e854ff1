"""Everything that is shown of all images, at one moment: made in one go, never changed.

The list in force, the catalogue, the links and what the state database remembers go in; a `Snapshot` comes out, in
which thousands of images are searched in some milliseconds. What is shown of one image beyond that is `queries`' part.
"""

from __future__ import annotations

import os
import posixpath
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from typing import Literal, get_args

from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.imagelist import ImageList, Wish
from cvmfs_sync.inventory import Catalogue, CatalogueEntry, derived_entry, published
from cvmfs_sync.layout import Layout
from cvmfs_sync.ports import Repository
from cvmfs_sync.reference import ImageName, Platform, Reference, parse_image
from cvmfs_sync.remembered import Failure
from cvmfs_sync.status import wished_links
from cvmfs_sync.tags import natural_key
from cvmfs_sync.view.documents import Failing, Images, ImageState, Summary
from cvmfs_sync.view.reasons import reason_of
from cvmfs_sync.view.redaction import Redaction

__all__ = ["SORTS", "Known", "Query", "Snapshot", "Sort", "take_snapshot"]

Sort = Literal["name", "-published", "-size", "state"]
SORTS: tuple[Sort, ...] = get_args(Sort)
_TEXT = 2000
_ANSWERS = 64
_URGENCY: Mapping[ImageState, int] = {"failed": 0, "blocked": 1, "pending": 2, "unlisted": 3, "published": 4}


@dataclass(frozen=True, slots=True)
class Query:
    """Which images are asked for.

    Attributes:
        q: Words that all have to be in the name, link, description, contact or digest.
        sort: By what; `-` is for the largest or latest first.
    """

    q: str = ""
    state: ImageState | None = None
    registry: str | None = None
    platform: str | None = None
    contact: str | None = None
    sort: Sort = "name"
    offset: int = 0
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Known:
    """What goes into a snapshot.

    Attributes:
        failures: By link.
        checked: When registries last answered, by name and platform.
    """

    wishes: ImageList
    catalogue: Catalogue
    failures: Mapping[str, Failure]
    checked: Mapping[tuple[str, str], datetime]


@dataclass(frozen=True, slots=True)
class _Matches:
    """What a query has found; the counts are of what matches but for that one condition."""

    images: list[Summary]
    states: dict[ImageState, int]
    registries: dict[str, int]
    platforms: dict[str, int]


@dataclass(frozen=True)
class Snapshot:
    """All images at one moment.

    Attributes:
        version: Another text for whatever has changed.
        images: By name.
        wishes: The wish of each link that has one.
        lines: Of the catalogue, of links that are there.
    """

    version: str
    images: Sequence[Summary]
    wishes: Mapping[str, Wish] = field(default_factory=dict)
    lines: Mapping[str, CatalogueEntry] = field(default_factory=dict)

    @cached_property
    def by_link(self) -> Mapping[str, Summary]:
        """Each image by its key."""
        return {image.link: image for image in self.images}

    @cached_property
    def by_name(self) -> Mapping[str, Sequence[Summary]]:
        """The images of each name, one for each platform."""
        found: dict[str, list[Summary]] = {}
        for image in self.images:
            found.setdefault(image.name, []).append(image)
        return found

    @cached_property
    def by_repository(self) -> Mapping[tuple[str, str, str], Sequence[Summary]]:
        """The images of each registry, repository and platform."""
        found: dict[tuple[str, str, str], list[Summary]] = {}
        for image in self.images:
            found.setdefault((image.registry, image.repository, image.platform), []).append(image)
        return found

    @cached_property
    def users(self) -> Mapping[str, int]:
        """How many links lead to each tree, by the manifest's digest."""
        return Counter(image.digest for image in self.images if image.digest is not None)

    def find(self, key: str) -> Summary | None:
        """The image of a link or a name; of a name that has several platforms, the one that has the plain link."""
        found = self.by_link.get(key)
        if found is not None:
            return found
        with suppress(InvalidReference):
            images = self.by_name.get(str(parse_image(key)), ())
            return next((image for image in images if not image.link.startswith(".multiarch/")), None)
        return None

    def query(self, query: Query) -> Images:
        """The images that a query asks for."""
        matches = self._matches(replace(query, offset=0, limit=0))
        return Images(
            total=len(matches.images), offset=query.offset, limit=query.limit, states=matches.states,
            registries=matches.registries, platforms=matches.platforms,
            images=matches.images[query.offset : query.offset + query.limit],
        )  # fmt: skip

    def _matches(self, query: Query) -> _Matches:
        """All that match; the latest answers are kept, for the next page, and for the many who ask the same."""
        known = self._answers.get(query)
        if known is None:
            known = self._search(query)
            while len(self._answers) >= _ANSWERS:
                # Threads may do this at the same time.
                self._answers.pop(next(iter(self._answers), query), None)
            self._answers[query] = known
        return known

    def _search(self, query: Query) -> _Matches:
        words = query.q.casefold().split()
        wanted = {"state": query.state, "registry": query.registry, "platform": query.platform}
        given = {key: value for key, value in wanted.items() if value is not None}
        states: Counter[ImageState] = Counter()
        registries: Counter[str] = Counter()
        platforms: Counter[str] = Counter()
        found: list[Summary] = []
        for image, text in self._sorted(query.sort):
            if query.contact is not None and image.contact != query.contact:
                continue
            if not all(word in text for word in words):
                continue
            misses = [key for key, value in given.items() if getattr(image, key) != value]
            if not misses:
                found.append(image)
            if not misses or misses == ["state"]:
                states[image.state] += 1
            if not misses or misses == ["registry"]:
                registries[image.registry] += 1
            if not misses or misses == ["platform"]:
                platforms[image.platform] += 1
        return _Matches(found, dict(states), dict(registries), dict(platforms))

    def _sorted(self, sort: Sort) -> Sequence[tuple[Summary, str]]:
        """All images in this order, each with the text that is searched."""
        done = self._orders.get(sort)
        if done is None:
            images = self._texts
            match sort:
                case "-published":
                    never = datetime.min.replace(tzinfo=UTC)
                    done = sorted(images, key=lambda each: each[0].published_at or never, reverse=True)
                case "-size":
                    done = sorted(images, key=lambda each: each[0].size or 0, reverse=True)
                case "state":
                    done = sorted(images, key=lambda each: _URGENCY[each[0].state])
                case _:
                    done = images
            self._orders[sort] = done
        return done

    @cached_property
    def _answers(self) -> dict[Query, _Matches]:
        return {}

    @cached_property
    def _orders(self) -> dict[Sort, Sequence[tuple[Summary, str]]]:
        return {}

    @cached_property
    def _texts(self) -> Sequence[tuple[Summary, str]]:
        return [
            (i, "\n".join(filter(None, (i.name, i.link, i.platform, i.description, i.contact, i.digest))).casefold())
            for i in self.images
        ]


def take_snapshot(repository: Repository, layout: Layout, known: Known, redact: Redaction, version: str) -> Snapshot:
    """Look at all links of the list, and at those of the catalogue that it does not ask for any more."""
    summaries: list[Summary] = []
    wishes: dict[str, Wish] = {}
    lines: dict[str, CatalogueEntry] = {}
    failing = [failure.name for failure in known.failures.values()]
    wished = wished_links(known.wishes, layout, known.catalogue, failing)
    listed = (_Link(each.link, each.name, each.platform, each.wish) for each in wished)
    for each in chain(listed, _catalogued(known.catalogue)):
        if each.link in wishes or each.link in lines:
            continue
        line = _line(repository, layout, each.link, known.catalogue.get(each.link))
        if each.wish is not None:
            wishes[each.link] = each.wish
        elif line is None:
            continue
        if line is not None:
            lines[each.link] = line
        summaries.append(_summary(repository, each, line, known, redact))
    summaries.sort(key=lambda image: (natural_key(image.name), image.platform))
    return Snapshot(version, tuple(summaries), wishes, lines)


@dataclass(frozen=True, slots=True)
class _Link:
    """A link, and the list's entry that asks for it, if there is one."""

    link: str
    name: ImageName
    platform: Platform
    wish: Wish | None = None


def _catalogued(catalogue: Catalogue) -> Iterator[_Link]:
    for link, line in catalogue.items():
        try:
            yield _Link(link, parse_image(line.image), Platform.parse(line.platform))
        except InvalidReference:
            continue


def _line(repository: Repository, layout: Layout, link: str, line: CatalogueEntry | None) -> CatalogueEntry | None:
    """The catalogue's line for a link as it is now, which may be later than the catalogue; None if it is not there."""
    try:
        target = os.readlink(os.path.join(repository.root, link))
    except (OSError, ValueError):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
    if line is not None and line.path == path:
        return line
    tree = published(repository, layout, link)
    return None if tree is None else derived_entry(layout, link, tree)


def _summary(
    repository: Repository,
    each: _Link,
    line: CatalogueEntry | None,
    known: Known,
    redact: Redaction,
) -> Summary:
    name, wish = each.name, each.wish
    failure = known.failures.get(each.link) if wish is not None else None
    path = os.path.join(repository.root, each.link)
    registry, repository_name = _place(name)
    return Summary(
        name=bounded(str(name)),
        platform=str(each.platform),
        link=each.link,
        registry=registry,
        repository=repository_name,
        tag=name.tag,
        state=_state(wish, line, failure),
        digest=bounded(line.digest) if line else None,
        size=line.size if line else None,
        entries=line.entries if line else None,
        published_at=moment(line.published_at) if line else None,
        checked_at=known.checked.get((str(name), str(each.platform))),
        path=path,
        command=f"apptainer exec {shlex.quote(path)} sh" if line else None,
        description=told(wish.description if wish else line.description if line else None),
        contact=told(wish.contact if wish else line.contact if line else None),
        definition=told(wish.definition if wish else line.definition if line else None),
        failure=_failing(failure, redact) if failure else None,
    )


def _state(wish: Wish | None, line: CatalogueEntry | None, failure: Failure | None) -> ImageState:
    if wish is None:
        return "unlisted"
    if failure is not None:
        return "blocked" if failure.kind == "BlockedImage" else "failed"
    return "pending" if line is None else "published"


def _place(name: ImageName) -> tuple[str, str]:
    if isinstance(name, Reference):
        return name.registry, name.repository
    kind, _, rest = str(name).partition(":")
    return kind, bounded(rest.removesuffix(f":{name.tag}"))


def _failing(failure: Failure, redact: Redaction) -> Failing:
    words = reason_of(failure.kind)
    return Failing(
        reason=words.text, advice=words.advice, detail=redact(failure.reason), temporary=failure.temporary,
        count=failure.count, since=failure.since, last=failure.last, next_try=failure.next_try,
    )  # fmt: skip


def bounded(text: str) -> str:
    """A text that is encodable and not too long, whatever an image or a list has made of it."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}... ({len(text)} characters)"


def told(text: str | None) -> str | None:
    """The same of what may be missing."""
    return None if text is None else bounded(text)


def moment(text: str | None) -> datetime | None:
    """A time as records and catalogue have it; None if that is no time."""
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
