"""Why no answer came: an exception of requests, urllib3 or a socket goes in, words or an error come out.

The words name no URL, since those of storage servers are signed. What is final, because only a person can change it, is
told from what is temporary by the exception's type.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import requests
import urllib3
from urllib3.exceptions import NewConnectionError

from cvmfs_sync.deadline import AnswerTooSlowError
from cvmfs_sync.errors import ImageError
from cvmfs_sync.registry.politeness import Patience
from cvmfs_sync.registry.urls import host_of

__all__ = ["BROKEN", "reason", "tls_failure"]

BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""All that a request, or reading its answer, raises."""
# What OpenSSL says when the other side does not speak TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE"})


def tls_failure(what: str, url: str, error: BaseException) -> ImageError | None:
    """The error if asking again is useless until a person has acted.

    Args:
        what: For whose sake it was asked, to begin the message with.
        url: Who was asked.
        error: What came of it.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ImageError(
                f"{what}: the TLS certificate of {host_of(url)} is not to be trusted",
                found=cause.verify_message,
                todo="if it is your registry with a CA of its own, name the CA's file in its 'ca_file', "
                "or in REQUESTS_CA_BUNDLE",
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
            return ImageError(
                f"{what}: {host_of(url)} does not speak HTTPS",
                todo="if it is your registry with plain HTTP, set 'insecure: true' for it or use --insecure",
            )
    return None


def reason(error: BaseException, patience: Patience) -> str:
    """In a few words why no answer, or no more of it, came."""
    causes = list(_causes(error))
    for kind, text in (
        (urllib3.exceptions.NameResolutionError, "its name does not resolve"),
        (urllib3.exceptions.ProxyError, "the proxy of the environment's *_PROXY variables does not answer"),
        (urllib3.exceptions.ConnectTimeoutError, f"no connection within {patience.connect:g} s"),
        (AnswerTooSlowError, f"no whole answer within {patience.answer:g} s"),
        (urllib3.exceptions.ReadTimeoutError, f"nothing came for {patience.read:g} s"),
        (urllib3.exceptions.IncompleteRead, "the connection ended too early"),
    ):
        # urllib3 derives its error for a refused connection from the one for a time-out.
        if any(isinstance(cause, kind) and type(cause) is not NewConnectionError for cause in causes):
            return text
    for cause in reversed(causes):
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            return cause.strerror or str(cause)[:200]
    return "the connection broke"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what is wrapped in it, outermost first: requests wraps urllib3, which wraps the socket's."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        item = waiting.pop(0)
        if isinstance(item, BaseException) and not any(item is other for other in seen):
            seen.append(item)
            yield item
            waiting += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]
