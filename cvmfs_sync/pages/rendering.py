"""One function for each page: documents in, HTML text out.

The templates are beside it in `templates/`. They escape everything that is not `Markup`, and a name that a template
does not know is an error, not an empty text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined

import cvmfs_sync
from cvmfs_sync.pages import texts, words
from cvmfs_sync.view.documents import Cycle, Events, Image, Images, Operations, Queue, Summary

__all__ = [
    "Site",
    "Urls",
    "activity_page",
    "catalogue_page",
    "error_page",
    "image_page",
    "names_page",
    "operations_page",
    "static_files",
]

STATIC = ("style.css", "pages.js", "favicon.svg")
# Of lists that an image may make as long as it likes, so many are shown, and the rest is told by its number.
_MOST = 200


class Urls(Protocol):
    """Where things are, as seen from the page that is rendered; None if there is no such thing here.

    Attributes:
        queries: Whether search and filters are answered. If not, `state` and `offset` are all that `catalogue` is asked
            for.
    """

    @property
    def queries(self) -> bool:
        """See above."""

    def catalogue(self, parameters: Mapping[str, str]) -> str:
        """The catalogue for these parameters; for none its first page."""

    def names(self) -> str | None:
        """The page with the names of all images, where no search is answered."""

    def image(self, link: str) -> str:
        """An image's page."""

    def activity(self, before: int | None = None) -> str | None:
        """What is being done, with events before this id."""

    def live(self) -> str | None:
        """The stream of what is being done."""

    def operations(self) -> str | None:
        """The page for operators."""

    def feed(self, link: str | None = None) -> str | None:
        """An image's feed, or that of all."""

    def badge(self, link: str) -> str | None:
        """An image's badge."""

    def api(self) -> str | None:
        """The API's documentation."""

    def static(self, name: str) -> str:
        """One of `static_files`."""

    def absolute(self, url: str) -> str | None:
        """Any of these for use on other pages; None if it is not known where they are."""


@dataclass(frozen=True, slots=True)
class Site:
    """What all pages of a site have in common.

    Attributes:
        urls: Where things are.
        repository: Name of the repository.
        now: From which distances of time are told; None if the page is kept, and read at any time.
    """

    urls: Urls
    repository: str
    now: datetime | None = None


def catalogue_page(site: Site, images: Images, parameters: Mapping[str, str]) -> str:
    """All images, or those that a query has found.

    Args:
        site: What all pages have in common.
        images: What was found.
        parameters: Of the query, as the URL has them; the form shows them again.
    """
    asked = {name: value for name, value in parameters.items() if value and name not in {"offset", "limit"}}
    # An answer to nonsense is an answer with no images: `limit` is 1 at least for the arithmetic.
    limit = max(1, images.limit)
    return _render(
        "catalogue.html", site, page="catalogue", images=images, asked=asked, parameters=parameters,
        kept={"limit": parameters["limit"]} if parameters.get("limit") else {},
        number=images.offset // limit + 1, last=max(1, -(-images.total // limit)), step=limit,
    )  # fmt: skip


def names_page(site: Site, images: Sequence[Summary]) -> str:
    """The names of all images on one page, to be searched by the browser."""
    return _render("names.html", site, page="names", images=images)


def image_page(site: Site, image: Image) -> str:
    """All that is known of one link."""
    return _render("image.html", site, page="image", image=image)


def activity_page(site: Site, cycle: Cycle, queue: Queue, events: Events) -> str:
    """What the daemon does now, what waits, and what has happened."""
    return _render("activity.html", site, page="activity", cycle=cycle, queue=queue, events=events)


def operations_page(site: Site, operations: Operations) -> str:
    """Whether all is well, for operators."""
    return _render("operations.html", site, page="operations", operations=operations)


def error_page(site: Site, status: int, message: str) -> str:
    """What is told instead of a page.

    Args:
        site: What all pages have in common.
        status: Of HTTP.
        message: For the reader.
    """
    return _render("error.html", site, page="error", status=status, message=message)


@cache
def static_files() -> Mapping[str, bytes]:
    """The files that all pages need, by name."""
    directory = files("cvmfs_sync.pages") / "static"
    return {name: (directory / name).read_bytes() for name in STATIC}


def _render(template: str, site: Site, **values: Any) -> str:
    return _environment().get_template(template).render(
        site=site, urls=site.urls, now=site.now, version=cvmfs_sync.__version__, **values
    )  # fmt: skip


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cvmfs_sync.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "ago": texts.ago,
        "amount": texts.amount,
        "count": texts.count,
        "duration": texts.duration,
        "exact": texts.exact,
        "short": texts.short_digest,
        "shown": texts.shown,
        "size": texts.size,
        "visible": texts.visible,
    }
    environment.globals |= {
        "doings": words.DOINGS,
        "events_words": words.EVENTS,
        "most": _MOST,
        "sorts": words.SORTS,
        "states": words.STATES,
        "web_address": texts.web_address,
    }
    return environment
