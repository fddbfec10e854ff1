"""One HTTP exchange, with everything that can go wrong on the way to its answer.

A `Request` goes in; a response comes out whose body has not been read, or an `ImageError` that names the host. Knows
sessions, redirects, retries, rate limits, time limits and TLS; does not know manifests, and of authorization only where
not to send it. No URL reaches a message, since the ones of storage servers are signed.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.auth import AuthBase

from cvmfs_sync import __version__
from cvmfs_sync.deadline import DeadlineAdapter
from cvmfs_sync.errors import ImageError, RegistryUnavailable
from cvmfs_sync.registry.body import discard
from cvmfs_sync.registry.failures import BROKEN, reason, tls_failure
from cvmfs_sync.registry.ledger import RegistryMemory
from cvmfs_sync.registry.politeness import Breaker, Pace, RegistrySettings, Slots, Timing, backoff, retry_after
from cvmfs_sync.registry.urls import describe, host_of, origin

__all__ = ["TRIES", "Request", "Transport"]

TRIES = 3
MAX_REDIRECTS = 5

_TEMPORARY = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask.

    Attributes:
        what: Whose sake it is for, to begin messages with.
        authorization: Sent to the URL's own origin only.
        form: Body of a POST. A request with a body is not redirected.
        account: The registry or mirror whose request it is, by name: answers are counted there. Nowhere if empty.
        limited: Whether the URL's host is that registry, and its answers tell the registry's rate limit.
        tries: How often to try what is temporary.
    """

    method: str
    url: str
    what: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    account: str = ""
    limited: bool = False
    tries: int = TRIES


class Transport:
    """Sends requests: one session, pace and breaker for each origin. Safe for threads."""

    def __init__(
        self,
        settings: Mapping[str, RegistrySettings],
        default: RegistrySettings,
        timing: Timing,
        memory: RegistryMemory | None = None,
    ) -> None:
        """Send nothing yet.

        Args:
            settings: By origin.
            default: For all other origins, those of token and storage servers among them.
            timing: Clocks, chance and patience.
            memory: Where answers are counted and rate limits noted.
        """
        self.timing = timing
        self._memory = memory or RegistryMemory()
        self._settings = settings
        self._default = default
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()

    def slots(self, url: str) -> Slots:
        """The slots of the URL's origin. Whoever reads a response's body holds one until its end."""
        return self._host(url).slots

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for host in self._hosts.values():
                host.session.close()

    def send(self, request: Request) -> requests.Response:
        """Try up to three times, or as often as the request says; follow redirects.

        After an exchange that failed to the end, the next ones to the same origin get one try each until one succeeds:
        an overloaded or throttling registry shall not cost every image of a cycle its waits.

        Returns:
            An answer that is neither a redirect nor temporary; its body is not read.

        Raises:
            RegistryUnavailable: If each try ended without an answer, or with 429 or 5xx.
            ImageError: If no further try would help: TLS, a redirect that must not be followed.
        """
        host = self._host(request.url)
        give_up = self.timing.clock() + self.timing.patience.exchange
        tries = 1 if host.worn_out else request.tries
        attempt = 0
        while True:
            wait: float | None = None
            try:
                response = self._follow(request)
            except RegistryUnavailable as error:
                failure = error
            else:
                self._count(request, response.status_code)
                if response.status_code not in _TEMPORARY:
                    host.worn_out = False
                    return response
                wait = retry_after(response.headers.get("Retry-After"), self.timing.wall_clock())
                failure = _temporary(request, response)
                discard(response, self.timing)
            attempt += 1
            last = attempt >= tries or host.breaker.reason is not None
            if last or self.timing.clock() + (wait or 0.0) >= give_up:
                host.worn_out = True
                raise failure
            if wait is None:
                self.timing.sleep(backoff(attempt, self.timing.chance()))
            else:
                host.pace.pause(wait)

    def _count(self, request: Request, status: int | None) -> None:
        # Most of a registry's 401s only say where tokens come from; the one that is the end is counted by `asking`.
        challenge = request.limited and status == HTTPStatus.UNAUTHORIZED
        if request.account and not challenge:
            self._memory.count(request.account, status)

    def _host(self, url: str) -> _Host:
        key = origin(url)
        with self._lock:
            host = self._hosts.get(key)
            if host is None:
                host = self._hosts[key] = _Host(self._settings.get(key, self._default), self.timing)
            return host

    def _follow(self, request: Request) -> requests.Response:
        url, authorization = request.url, request.authorization
        for _ in range(MAX_REDIRECTS + 1):
            response = self._once(request, url, authorization)
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or location is None or request.form is not None:
                return response
            discard(response, self.timing)
            target = _redirect_target(request, url, location)
            if origin(target) != origin(url):
                # For good: a redirect that leads back would let the other host choose where the secret goes.
                authorization = None
            url = target
        raise ImageError(
            f"{request.what}: {host_of(request.url)} redirects more than {MAX_REDIRECTS} times",
            todo="report it to the registry's operator",
        )

    def _once(self, request: Request, url: str, authorization: str | None) -> requests.Response:
        host = self._host(url)
        if host.ca_problem is not None:
            raise ImageError(
                f"{request.what}: the CA file for {host_of(url)} can't be used",
                found=f"{host.ca_file}: {host.ca_problem}",
                expected="a file with certificates in PEM form",
                todo="correct 'ca_file' of this registry in the configuration, or the file",
            )
        if host.breaker.reason is not None:
            raise RegistryUnavailable(
                f"{request.what}: {host_of(url)} does not answer",
                found=f"{host.breaker.reason} (not asked again, it failed before)",
                todo="see whether the host is up; the next cycle tries again",
            )
        host.pace.wait()
        patience = self.timing.patience
        try:
            response = host.session.request(
                request.method,
                url,
                headers=dict(request.headers),
                data=request.form,
                auth=_Authorization(authorization),
                timeout=(patience.connect, patience.read),
                # Given with each request: a session's own is overruled by the environment's.
                verify=str(host.ca_file) if host.ca_file else True,
                allow_redirects=False,
                stream=True,
            )
            if request.method == "HEAD":
                # Nothing comes, but only reading gives the connection back to the pool.
                response.raw.read()
        except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationValueError):
            raise ImageError(
                f"{request.what}: {host_of(url)} is not a host's name", todo="check the reference's spelling"
            ) from None
        except BROKEN as error:
            self._count(request, None)
            final = tls_failure(request.what, url, error)
            if final is not None:
                raise final from None
            why = reason(error, patience)
            host.breaker.failed(why)
            raise RegistryUnavailable(
                f"{request.what}: {host_of(url)} does not answer",
                found=why,
                todo="see whether the host is up; the next cycle tries again",
            ) from None
        host.breaker.answered()
        if request.limited and origin(url) == origin(request.url):
            self._memory.hear(request.account, response.headers, self.timing.wall_clock())
        return response


class _Host:
    """What is remembered about one origin."""

    def __init__(self, settings: RegistrySettings, timing: Timing) -> None:
        self.pace = Pace(settings.requests_per_second, timing)
        self.slots = Slots(settings.concurrency)
        self.breaker = Breaker()
        self.worn_out = False
        self.ca_file = settings.ca_file
        self.ca_problem = _ca_problem(settings.ca_file) if settings.ca_file else None
        self.session = _Session()
        self.session.headers.update({"User-Agent": f"cvmfs-sync/{__version__}", "Accept-Encoding": "identity"})
        # Registries need no cookies; without them a session has no state that threads could disturb.
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = DeadlineAdapter(
            timing.patience.answer,
            timing.clock,
            pool_connections=2,
            pool_maxsize=max(10, settings.concurrency),
            max_retries=0,
        )
        self.session.mount("https://", adapter)
        self.session.mount("http://", adapter)


class _Session(requests.Session):
    """The session of one origin, with the same options for each request.

    Never looks at redirects itself: to prepare the next request, it would read a redirect's body, however long.
    """

    _environment: Mapping[str, Any] | None = None

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Proxies and CA bundles as the environment says; looked up once, which takes as long as half a request."""
        if self._environment is None:
            self._environment = super().merge_environment_settings(url, proxies, stream, verify, cert)
        return dict(self._environment)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None, whatever the answer says."""


class _Authorization(AuthBase):
    """Sends this header or none. Without an `auth`, requests would look into ~/.netrc and the URL."""

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value is not None:
            request.headers["Authorization"] = self._value
        return request


def _ca_problem(file: Path) -> str | None:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        return "there is no certificate in it"
    except OSError as error:
        return error.strerror or "it cannot be read"
    return None


def _temporary(request: Request, response: requests.Response) -> RegistryUnavailable:
    url = response.url or request.url
    todo = "the next cycle tries again"
    if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        todo = "log in to the registry for a higher limit, or lower requests_per_second; " + todo
    found = describe(response.status_code)
    return RegistryUnavailable(f"{request.what}: {host_of(url)} is overloaded or failing", found=found, todo=todo)


def _redirect_target(request: Request, url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        schemes = urlsplit(url).scheme, urlsplit(target).scheme
        found = f"a redirect to {host_of(target)[:200]}"
    except ValueError:
        target, schemes, found = "", ("", ""), "a redirect to what is no URL"
    if schemes[1] == "https" or schemes == ("http", "http"):
        return target
    raise ImageError(
        f"{request.what}: {host_of(url)} redirects away from HTTPS"
        if schemes == ("https", "http")
        else f"{request.what}: {host_of(url)} redirects to where nothing can be asked",
        found=found,
        todo="report it to the registry's operator; the redirect was not followed",
    )
