"""Feeds and badges over HTTP.

Feeds have the addresses by which the world reaches the pages, as the configuration tells them; without, relative ones,
which start from where the feed was fetched. What a request says of its own host is never believed.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from cvmfs_sync.pages import badges, feeds
from cvmfs_sync.view.queries import View
from cvmfs_sync.web.api import view_of
from cvmfs_sync.web.caching import cached
from cvmfs_sync.web.html import absolute_urls
from cvmfs_sync.web.problems import Problem

__all__ = ["router"]

_SVG = "image/svg+xml"
_ENTRIES = 100
# Proxies of pages that show a badge keep it as long as they are told.
_BADGE_SECONDS = 300
router = APIRouter(include_in_schema=False)
TheView = Annotated[View, Depends(view_of)]


@router.get("/feeds/all.atom")
def all_images(request: Request, view: TheView) -> Response:
    """What has happened to all images."""
    feed = feeds.Feed(view.repository, absolute_urls(request))
    return cached(request, feeds.render(feed, view.events(None, _ENTRIES).events), feeds.MEDIA_TYPE)


@router.get("/feeds/images/{link:path}")
def one_image(request: Request, view: TheView, link: str) -> Response:
    """What has happened to one image."""
    image = view.find(link)
    if image is None:
        raise Problem(404, "There is no feed of an image that nobody asks for.")
    feed = feeds.Feed(view.repository, absolute_urls(request), image.link, image.name)
    events = view.events(None, _ENTRIES, link=image.link).events
    return cached(request, feeds.render(feed, events), feeds.MEDIA_TYPE)


@router.get("/badges/{link:path}")
def badge(request: Request, view: TheView, link: str) -> Response:
    """How an image is, in a line; also of one that nobody asks for, since a broken picture says less."""
    drawn = badges.draw(badges.badge(view.find(link), view.now))
    answer = cached(request, drawn.encode(errors="replace"), _SVG, seconds=_BADGE_SECONDS)
    answer.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return answer
