"""The application: what is answered under which address.

A `View` goes in, an ASGI application comes out. Nothing can be changed by it but what a webhook asks the daemon for.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from cvmfs_sync import __version__
from cvmfs_sync.view.queries import View
from cvmfs_sync.web import api, html
from cvmfs_sync.web.problems import Problem, problem
from cvmfs_sync.web.security import Guard
from cvmfs_sync.web.thrift import Allowance, Thrift

__all__ = ["make_app"]


def make_app(
    view: View, routers: Sequence[APIRouter] = (), *, url: str | None = None, allowance: Allowance | None = None
) -> FastAPI:
    """The application.

    Args:
        view: What is shown; stays open.
        routers: What is answered beside the API.
        url: By which the world reaches it.
        allowance: How much of the processor answers may take; None for all.
    """
    app = FastAPI(
        title="cvmfs-sync", version=__version__, description="What is published, at which digest, and if not, why.",
        openapi_url="/api/v1/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.view = view
    app.state.url = url
    app.include_router(api.router)
    for router in routers:
        app.include_router(router)
    if allowance is not None:
        app.add_middleware(Thrift, allowance=allowance)
    app.add_middleware(Guard)

    @app.exception_handler(Problem)
    def _problem(request: Request, error: Problem) -> Response:
        return _wrong(request, error.status, error.detail)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        answer = _wrong(request, error.status_code, HTTPStatus(error.status_code).description or "no")
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        wrong = [{"parameter": ".".join(map(str, each["loc"][1:])), "message": each["msg"]} for each in error.errors()]
        return problem(422, "a parameter is wrong", parameters=wrong[:20])

    return app


def _wrong(request: Request, status: int, detail: str) -> Response:
    return html.error(request, status, detail) if html.wanted(request) else problem(status, detail)
