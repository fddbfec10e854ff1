"""What is there and what is not, for `status` and whoever else asks.

List, repository and state database go in; a line for each link comes out. No registry is asked, so for a wish that
filters tags the known tags are those that are published or have failed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.imagelist import ImageList, Wish
from cvmfs_sync.inventory import Catalogue, published, read_catalogue
from cvmfs_sync.layout import Layout
from cvmfs_sync.ports import Repository
from cvmfs_sync.reference import ImageName, Platform, parse_image, without_tag
from cvmfs_sync.state import Event, Failure, State

__all__ = ["ImageStatus", "WishedLink", "image_status", "wished_links"]


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """One link.

    Attributes:
        state: `published`; `failed` when it failed last, whether or not an older one is published; `pending` before the
            first try; `unlisted` when the list does not ask for it.
        digest: Of what is published; None if nothing is.
        size: Bytes, unpacked.
        checked_at: When the registry was last asked with success.
    """

    state: str
    image: str
    link: str
    digest: str | None
    size: int | None
    published_at: str | None
    checked_at: str | None
    description: str | None
    failure: Failure | None
    history: tuple[Event, ...]


def image_status(
    repository: Repository, layout: Layout, state: State, wishes: ImageList, only: Sequence[ImageName] = ()
) -> tuple[ImageStatus, ...]:
    """The state of every wished link, and of published links that the list no longer asks for.

    Args:
        repository: Where they are published.
        layout: Where links are.
        state: Failures and history.
        wishes: The list.
        only: Names to restrict the answer to; each is in it, be it published and asked for or not.
    """
    catalogue = read_catalogue(repository, layout)
    statuses: list[ImageStatus] = []
    listed: set[str] = set()
    for each in wished_links(wishes, layout, catalogue, state.failing()):
        listed.add(each.link)
        if not only or each.name in only:
            statuses.append(
                _status(repository, layout, state, catalogue, each.name, each.platform, each.link, each.wish)
            )
    for link, line in catalogue.items():
        if link in listed or published(repository, layout, link) is None:
            continue
        unlisted = _parsed(line.image)
        if unlisted is not None and (not only or unlisted in only):
            statuses.append(
                _status(repository, layout, state, catalogue, unlisted, Platform.parse(line.platform), link, None)
            )
    answered = {status.link for status in statuses}
    for unknown in dict.fromkeys(only):
        link = layout.link(unknown)
        if link not in answered:
            statuses.append(_status(repository, layout, state, catalogue, unknown, Platform(), link, None))
    return tuple(statuses)


@dataclass(frozen=True, slots=True)
class WishedLink:
    """A link that the list asks for, as far as it is known which these are."""

    link: str
    name: ImageName
    platform: Platform
    wish: Wish


def wished_links(
    wishes: ImageList, layout: Layout, catalogue: Catalogue, failing: Collection[str]
) -> Iterator[WishedLink]:
    """Every link that the list asks for, once, in its order.

    Args:
        wishes: The list.
        layout: Where links are.
        catalogue: What is published.
        failing: Names, with their platforms, of what failed when it was last tried.
    """
    # Behind a name, in parentheses, may be its platform.
    without = {re.sub(r" \([^ ()]*\)\Z", "", name) for name in failing}
    known: dict[str, list[ImageName]] = {}
    if any(wish.tags is not None for wish in wishes.wishes):
        for name in {name for name in map(_parsed, [*(line.image for line in catalogue.values()), *without]) if name}:
            known.setdefault(_repository(name), []).append(name)
    listed: set[str] = set()
    for wish in wishes.wishes:
        for name, platform, link in _links(wish, layout, known, without):
            if link not in listed:
                listed.add(link)
                yield WishedLink(link, name, platform, wish)


def _links(
    wish: Wish, layout: Layout, known: Mapping[str, Sequence[ImageName]], failing: Collection[str]
) -> Iterator[tuple[ImageName, Platform, str]]:
    """The links of one wish; one that filters tags stands for itself while they can't be listed, or none is known."""
    names: list[ImageName] = [wish.name]
    if wish.tags is not None:
        chosen = [name for name in known.get(str(wish.name), ()) if name.tag and wish.tags.matches(name.tag)]
        names = sorted(chosen, key=str) if chosen and str(wish.name) not in failing else [*names, *chosen]
    for name in names:
        for platform in wish.platforms:
            yield name, platform, layout.link(name, None if platform == wish.platforms[0] else platform)


def _status(
    repository: Repository,
    layout: Layout,
    state: State,
    catalogue: Catalogue,
    name: ImageName,
    platform: Platform,
    link: str,
    wish: Wish | None,
) -> ImageStatus:
    there = published(repository, layout, link)
    line = catalogue.get(link)
    failure = state.failure(link)
    seen = state.last_seen(str(name), str(platform))
    if wish is None:
        word = "unlisted"
    elif failure is not None:
        word = "failed"
    else:
        word = "pending" if there is None else "published"
    return ImageStatus(
        state=word,
        image=str(name) if platform == Platform() else f"{name} ({platform})",
        link=link,
        digest=str(there.digest) if there else None,
        size=int(there.record.get("size", 0)) if there else None,
        published_at=line.published_at if line and there else None,
        checked_at=seen.isoformat() if seen else None,
        description=wish.description if wish else None,
        failure=failure,
        history=state.history(link),
    )


def _repository(name: ImageName) -> str:
    return str(without_tag(name))


def _parsed(image: str) -> ImageName | None:
    """A name in full; None for a repository without a tag, which the grammar would take for `latest`."""
    try:
        name = parse_image(image)
    except InvalidReference:
        return None
    return name if str(name) == image else None
