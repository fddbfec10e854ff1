"""`/api/v1`: the view's documents as JSON, for programs. Read-only; docs/web.md describes it, openapi.json as well."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from cvmfs_sync import exports
from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.exports import ExportFormat
from cvmfs_sync.view.documents import Cycle, Document, Events, Image, Images, ImageState, Operations, Where
from cvmfs_sync.view.documents import Queue as QueueDocument
from cvmfs_sync.view.queries import View
from cvmfs_sync.view.snapshot import Query as ImageQuery
from cvmfs_sync.view.snapshot import Sort
from cvmfs_sync.web.caching import cached
from cvmfs_sync.web.problems import PROBLEM, Problem

__all__ = ["image_query", "router", "view_of"]

_MOST = 500
_JSON = "application/json"
_LARGEST = 2**53

Text = Annotated[str | None, Query(max_length=300)]
Key = Annotated[str, Query(min_length=1, max_length=1000, description="An image's link, or its name.")]
_PROBLEM: dict[str, Any] = {"content": {PROBLEM: {"schema": {"type": "object"}}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    304: {"description": "Not modified, by If-None-Match."},
    422: {"description": "A parameter is wrong.", **_PROBLEM},
}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such image.", **_PROBLEM}}
router = APIRouter(prefix="/api/v1", responses=_ERRORS)


def view_of(request: Request) -> View:
    """The view of the application that hears this request."""
    view: View = request.app.state.view
    return view


def image_query(
    q: Annotated[str, Query(max_length=300, description="Words in name, path, description or digest.")] = "",
    state: ImageState | None = None,
    registry: Text = None,
    platform: Text = None,
    contact: Text = None,
    sort: Sort = "name",
    offset: Annotated[int, Query(ge=0, le=_LARGEST)] = 0,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 50,
) -> ImageQuery:
    """Which images a request asks for."""
    return ImageQuery(q, state, registry, platform, contact, sort, offset, limit)


TheView = Annotated[View, Depends(view_of)]


@router.get("/images", response_model=Images)
def images(request: Request, view: TheView, query: Annotated[ImageQuery, Depends(image_query)]) -> Response:
    """All images of the list, and published ones that it does not ask for any more."""
    return _answer(request, view.images(query))


@router.get("/image", response_model=Image, responses=_MISSING)
def image(request: Request, view: TheView, image: Key) -> Response:
    """All that is known of one image."""
    found = view.image(image)
    if found is None:
        raise Problem(404, "nobody asks for an image of this name, and none is published")
    return _answer(request, found)


@router.get("/events", response_model=Events)
def events(
    request: Request,
    view: TheView,
    before: Annotated[int | None, Query(ge=0, le=_LARGEST, description="Only events with a smaller id.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 50,
    link: Annotated[str | None, Query(max_length=1000)] = None,
    event: Annotated[str | None, Query(max_length=30)] = None,
) -> Response:
    """What happened, latest first."""
    return _answer(request, view.events(before, limit, link=link, event=event))


@router.get("/cycle", response_model=Cycle)
def cycle(request: Request, view: TheView) -> Response:
    """What the daemon does now."""
    return _answer(request, view.cycle())


@router.get("/queue", response_model=QueueDocument)
def queue(request: Request, view: TheView) -> Response:
    """What waits to be published."""
    return _answer(request, view.queue())


@router.get("/operations", response_model=Operations)
def operations(request: Request, view: TheView) -> Response:
    """Whether all is well."""
    return _answer(request, view.operations())


@router.get("/where", response_model=Where, responses=_MISSING)
def where(request: Request, view: TheView, image: Key) -> Response:
    """Where to run an image from."""
    try:
        return _answer(request, view.where(image))
    except InvalidReference as error:
        raise Problem(404, str(error)) from None


_EXPORTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The dictionary.", "content": {kind: {} for kind in ("text/plain", "application/json")}}
}


@router.get("/export", response_class=Response, responses=_EXPORTED)
def export(
    request: Request,
    view: TheView,
    form: Annotated[ExportFormat, Query(alias="format")] = "json",
) -> Response:
    """A dictionary of all published images, for batch systems."""
    return cached(request, exports.export(view.every(), form).text.encode(), exports.MEDIA_TYPES[form])


def _answer(request: Request, document: Document) -> Response:
    return cached(request, document.model_dump_json().encode(), _JSON)
