"""Errors as documents of RFC 9457, for programs."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi.responses import Response

__all__ = ["PROBLEM", "Problem", "problem"]

PROBLEM = "application/problem+json"


class Problem(Exception):
    """Ends a request with this status and sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def problem(status: int, detail: str, **more: Any) -> Response:
    """An answer that says what is wrong."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return Response(json.dumps(document).encode(), status, media_type=PROBLEM)
