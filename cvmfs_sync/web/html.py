"""The pages over HTTP: requests of browsers become queries of the view, and its documents HTML.

What is not understood in the query of the catalogue is left out: whoever follows an old link sees more images, not an
error. All pages have an ETag, static files are found under the hash of their content and may be kept for a year.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, get_args
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from cvmfs_sync.pages import (
    Site,
    Urls,
    activity_page,
    catalogue_page,
    error_page,
    image_page,
    operations_page,
    static_files,
)
from cvmfs_sync.view.documents import ImageState
from cvmfs_sync.view.queries import View
from cvmfs_sync.view.snapshot import SORTS, Query
from cvmfs_sync.web.api import view_of
from cvmfs_sync.web.caching import cached
from cvmfs_sync.web.problems import Problem

__all__ = ["absolute_urls", "error", "router", "wanted"]

_HTML = "text/html; charset=utf-8"
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_YEAR = 365 * 86400
_LONGEST = 300
_MOST = 200
_USUAL = 50
_EVENTS = 50
_STATES = get_args(ImageState)
router = APIRouter(include_in_schema=False)
TheView = Annotated[View, Depends(view_of)]


@dataclass(frozen=True, slots=True)
class _Urls:
    """Where the pages of a server are.

    Attributes:
        base: By which the world reaches it; without, other pages are given addresses that begin with a slash.
    """

    base: str
    queries: bool = True

    def catalogue(self, parameters: Mapping[str, str]) -> str:
        asked = {name: value for name, value in parameters.items() if value}
        return f"/?{urlencode(asked, errors='replace')}" if asked else "/"

    def names(self) -> str | None:
        return None

    def image(self, link: str) -> str:
        return f"/images/{_quoted(link)}"

    def activity(self, before: int | None = None) -> str | None:
        return "/activity" if before is None else f"/activity?before={before}"

    def live(self) -> str | None:
        return "/activity/events"

    def operations(self) -> str | None:
        return "/operations"

    def feed(self, link: str | None = None) -> str | None:
        return "/feeds/all.atom" if link is None else f"/feeds/images/{_quoted(link)}"

    def badge(self, link: str) -> str | None:
        return f"/badges/{_quoted(link)}"

    def api(self) -> str | None:
        return "/api/v1/openapi.json"

    def static(self, name: str) -> str:
        return f"/static/{_hashes()[name]}/{name}"

    def absolute(self, url: str) -> str | None:
        return self.base + url if self.base else None


class _Absolute(_Urls):
    """The same for what is read elsewhere."""

    def catalogue(self, parameters: Mapping[str, str]) -> str:
        return self.base + super().catalogue(parameters)

    def image(self, link: str) -> str:
        return self.base + super().image(link)

    def feed(self, link: str | None = None) -> str | None:
        return self.base + (super().feed(link) or "")


def absolute_urls(request: Request) -> Urls:
    """Where things are, for documents that are read elsewhere."""
    return _Absolute((request.app.state.url or "").rstrip("/"))


@router.get("/")
def catalogue(request: Request, view: TheView) -> Response:
    """All images, or those that are searched for."""
    parameters = {
        name: value[:_LONGEST] for name, value in request.query_params.items() if value and name in Query.__slots__
    }
    if parameters.get("state") not in _STATES:
        parameters.pop("state", None)
    if parameters.get("sort") not in SORTS:
        parameters.pop("sort", None)
    state: ImageState | None = next((each for each in _STATES if each == parameters.get("state")), None)
    query = Query(
        parameters.get("q", ""), state, parameters.get("registry"), parameters.get("platform"),
        parameters.get("contact"), next((each for each in SORTS if each == parameters.get("sort")), "name"),
        _number(parameters, "offset", 0, 0, 2**53), _number(parameters, "limit", _USUAL, 1, _MOST),
    )  # fmt: skip
    return cached(request, _bytes(catalogue_page(_site(request, view), view.images(query), parameters)), _HTML)


@router.get("/images/{link:path}")
def image(request: Request, view: TheView, link: str) -> Response:
    """One image, by its link or its name."""
    found = view.image(link)
    if found is None:
        raise Problem(404, f"Nobody asks for {link[:_LONGEST]}, and nothing is published under that name.")
    return cached(request, _bytes(image_page(_site(request, view), found)), _HTML)


@router.get("/activity")
def activity(request: Request, view: TheView) -> Response:
    """What is being done."""
    before = _number(dict(request.query_params), "before", 0, 0, 2**53)
    page = activity_page(_site(request, view), view.cycle(), view.queue(), view.events(before or None, _EVENTS))
    return cached(request, _bytes(page), _HTML)


@router.get("/operations")
def operations(request: Request, view: TheView) -> Response:
    """Whether all is well."""
    return cached(request, _bytes(operations_page(_site(request, view), view.operations())), _HTML)


@router.get("/static/{version}/{name}")
def static(request: Request, version: str, name: str) -> Response:
    """What all pages need. Under the hash of another version it is the present one, which must not be kept."""
    content = static_files().get(name)
    if content is None:
        raise Problem(404, "There is no such file.")
    seconds = _YEAR if version == _hashes()[name] else 0
    return cached(request, content, _TYPES[name.rpartition(".")[2]], seconds=seconds)


def wanted(request: Request) -> bool:
    """Whether an error is to be told as a page: to browsers, but not below `/api/`."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def error(request: Request, status: int, message: str) -> Response:
    """An error as a page."""
    return Response(_bytes(error_page(_site(request, view_of(request)), status, message)), status, media_type=_HTML)


def _site(request: Request, view: View) -> Site:
    return Site(_Urls((request.app.state.url or "").rstrip("/")), view.repository, view.now)


@cache
def _hashes() -> Mapping[str, str]:
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in static_files().items()}


def _quoted(link: str) -> str:
    return quote(link, safe="/:@+", errors="replace")


def _bytes(page: str) -> bytes:
    # Lone surrogates are shown as signs, but nobody can prove that of every attribute.
    return page.encode(errors="replace")


def _number(parameters: Mapping[str, str], name: str, usual: int, least: int, most: int) -> int:
    text = parameters.get(name, "")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else usual
    return min(max(number, least), most)
