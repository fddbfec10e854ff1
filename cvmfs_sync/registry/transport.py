"""One HTTP exchange, with everything that can go wrong on the way to its answer.

A `Request` goes in; a response comes out whose body has not been read, or an `ImageError` that names the host. Knows
sessions, redirects, retries, rate limits, time limits and TLS; does not know manifests, and of authorization only where
not to send it. No URL reaches a message, since the ones of storage servers are signed.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import NewConnectionError

from cvmfs_sync import __version__
from cvmfs_sync.errors import ImageError, InvalidManifest, RegistryUnavailable
from cvmfs_sync.registry.politeness import Breaker, Pace, RegistrySettings, Slots, Timing, backoff, retry_after

__all__ = ["BodyCutError", "Request", "Transport", "describe", "discard", "origin", "read_body", "read_document"]

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
TRIES = 3
# No new try starts after so many seconds, whatever the single tries' time limits add up to.
EXCHANGE_LIMIT = 180.0
MAX_REDIRECTS = 5
PIECE = 1024 * 1024
MAX_DISCARD = 16 * 1024
# A server that sends a byte a minute never runs into the read time-out.
SLOWEST_RATE = 1024
SLOW_WINDOW = 60.0

_TEMPORARY = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"https": 443, "http": 80}
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
# What OpenSSL says when the other side does not speak TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE"})


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask.

    Attributes:
        what: Whose sake it is for, to begin messages with.
        authorization: Sent to the URL's own origin only.
        form: Body of a POST. A request with a body is not redirected.
    """

    method: str
    url: str
    what: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)


class BodyCutError(Exception):
    """A body ended before its end; the text says why.

    Attributes:
        slow: Whether it was we who hung up, since it took too long.
    """

    def __init__(self, reason: str, *, slow: bool = False) -> None:
        super().__init__(reason)
        self.slow = slow


class Transport:
    """Sends requests: one session, pace and breaker for each origin. Safe for threads."""

    def __init__(self, settings: Mapping[str, RegistrySettings], default: RegistrySettings, timing: Timing) -> None:
        """Send nothing yet.

        Args:
            settings: By origin.
            default: For all other origins, those of token and storage servers among them.
            timing: Clocks and chance.
        """
        self.timing = timing
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
        """Try up to three times; follow redirects.

        After an exchange that failed to the end, the next ones to the same origin get one try each until one succeeds:
        an overloaded or throttling registry shall not cost every image of a cycle its waits.

        Returns:
            An answer that is neither a redirect nor temporary; its body is not read.

        Raises:
            RegistryUnavailable: If each try ended without an answer, or with 429 or 5xx.
            ImageError: If no further try would help: TLS, a redirect that must not be followed.
        """
        host = self._host(request.url)
        give_up = self.timing.clock() + EXCHANGE_LIMIT
        tries = 1 if host.worn_out else TRIES
        attempt = 0
        while True:
            wait: float | None = None
            try:
                response = self._follow(request)
            except RegistryUnavailable as error:
                failure = error
            else:
                if response.status_code not in _TEMPORARY:
                    host.worn_out = False
                    return response
                wait = retry_after(response.headers.get("Retry-After"), self.timing.wall_clock())
                failure = _temporary(request, response)
                discard(response)
            attempt += 1
            last = attempt >= tries or host.breaker.reason is not None
            if last or self.timing.clock() + (wait or 0.0) >= give_up:
                host.worn_out = True
                raise failure
            if wait is None:
                self.timing.sleep(backoff(attempt, self.timing.chance()))
            else:
                host.pace.pause(wait)

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
            discard(response)
            target = _redirect_target(request, url, location)
            if origin(target) != origin(url):
                # For good: a redirect that leads back would let the other host choose where the secret goes.
                authorization = None
            url = target
        raise ImageError(
            f"{request.what}: {_name(request.url)} redirects more than {MAX_REDIRECTS} times",
            todo="report it to the registry's operator",
        )

    def _once(self, request: Request, url: str, authorization: str | None) -> requests.Response:
        host = self._host(url)
        if host.breaker.reason is not None:
            raise RegistryUnavailable(
                f"{request.what}: {_name(url)} does not answer",
                found=f"{host.breaker.reason} (not asked again, it failed before)",
                todo="see whether the host is up; the next cycle tries again",
            )
        host.pace.wait()
        try:
            response = host.session.request(
                request.method,
                url,
                headers=dict(request.headers),
                data=request.form,
                auth=_Authorization(authorization),
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                allow_redirects=False,
                stream=True,
            )
            if request.method == "HEAD":
                # Nothing comes, but only reading gives the connection back to the pool.
                response.raw.read()
        except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationValueError):
            raise ImageError(
                f"{request.what}: {_name(url)} is not a host's name", todo="check the reference's spelling"
            ) from None
        except _BROKEN as error:
            final = _tls_failure(request, url, error)
            if final is not None:
                raise final from None
            reason = _reason(error)
            host.breaker.failed(reason)
            raise RegistryUnavailable(
                f"{request.what}: {_name(url)} does not answer",
                found=reason,
                todo="see whether the host is up; the next cycle tries again",
            ) from None
        host.breaker.answered()
        return response


class _Host:
    """What is remembered about one origin."""

    def __init__(self, settings: RegistrySettings, timing: Timing) -> None:
        self.pace = Pace(settings.requests_per_second, timing)
        self.slots = Slots(settings.concurrency)
        self.breaker = Breaker()
        self.worn_out = False
        self.session = _Session()
        self.session.headers.update({"User-Agent": f"cvmfs-sync/{__version__}", "Accept-Encoding": "identity"})
        # Registries need no cookies; without them a session has no state that threads could disturb.
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = HTTPAdapter(pool_connections=2, pool_maxsize=max(10, settings.concurrency), max_retries=0)
        self.session.mount("https://", adapter)
        self.session.mount("http://", adapter)


class _Session(requests.Session):
    """Never looks at redirects itself: to prepare the next request, it would read a redirect's body, however long."""

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


def origin(url: str) -> str:
    """Scheme, host and, unless it is the scheme's own, port."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    suffix = "" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host}{suffix}"


def describe(status: int) -> str:
    """`404 Not Found`. The phrase is the standard's, since a server may put anything there."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def discard(response: requests.Response) -> None:
    """Be done with a response of which nothing is wanted, and keep the connection if that costs little."""
    length = response.headers.get("Content-Length", "")
    try:
        if length.isdecimal() and int(length) <= MAX_DISCARD:
            response.raw.read(decode_content=False)
    except _BROKEN:
        pass  # then the connection is not kept
    finally:
        response.close()


def read_body(response: requests.Response, timing: Timing) -> Iterator[bytes]:
    """The body as it was sent, undecoded, in pieces of 1 MiB; what came before a cut is given out too.

    Raises:
        BodyCutError: If the connection breaks, ends before Content-Length, or is slower than 1 KiB/s for a minute.
    """
    parts: list[bytes] = []
    size, since, window = 0, timing.clock(), 0
    cut: BodyCutError | None = None
    while cut is None:
        try:
            piece = response.raw.read1(PIECE - size, decode_content=False)
        except _BROKEN as error:
            cut = BodyCutError(_reason(error))
            break
        if not piece:
            break
        parts.append(piece)
        size += len(piece)
        window += len(piece)
        if (elapsed := timing.clock() - since) >= SLOW_WINDOW:
            if window < SLOWEST_RATE * elapsed:
                cut = BodyCutError(f"{window} bytes in {elapsed:.0f} s", slow=True)
            since, window = timing.clock(), 0
        if size >= PIECE:
            yield b"".join(parts)
            parts, size = [], 0
            # The reader's own time is not the server's fault.
            since, window = timing.clock(), 0
    if parts:
        yield b"".join(parts)
    if cut is not None:
        raise cut


def read_document(response: requests.Response, limit: int, what: str, timing: Timing) -> bytes:
    """The whole body, never more of it than `limit` bytes.

    Raises:
        InvalidManifest: If it is larger.
        BodyCutError: See `read_body`.
    """
    content = bytearray()
    for piece in read_body(response, timing):
        content += piece
        if len(content) > limit:
            raise InvalidManifest(f"{what}: too large", found=f"over {limit} bytes", expected=f"at most {limit}")
    return bytes(content)


def _name(url: str) -> str:
    """The origin, without the scheme where that is what everybody expects."""
    return origin(url).removeprefix("https://")


def _temporary(request: Request, response: requests.Response) -> RegistryUnavailable:
    url = response.url or request.url
    todo = "the next cycle tries again"
    if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        todo = "log in to the registry for a higher limit, or lower requests_per_second; " + todo
    found = describe(response.status_code)
    return RegistryUnavailable(f"{request.what}: {_name(url)} is overloaded or failing", found=found, todo=todo)


def _redirect_target(request: Request, url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        schemes = urlsplit(url).scheme, urlsplit(target).scheme
        found = f"a redirect to {_name(target)[:200]}"
    except ValueError:
        target, schemes, found = "", ("", ""), "a redirect to what is no URL"
    if schemes[1] == "https" or schemes == ("http", "http"):
        return target
    raise ImageError(
        f"{request.what}: {_name(url)} redirects away from HTTPS"
        if schemes == ("https", "http")
        else f"{request.what}: {_name(url)} redirects to where nothing can be asked",
        found=found,
        todo="report it to the registry's operator; the redirect was not followed",
    )


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


def _tls_failure(request: Request, url: str, error: BaseException) -> ImageError | None:
    """The error if asking again is useless until a person has acted."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ImageError(
                f"{request.what}: the TLS certificate of {_name(url)} is not to be trusted",
                found=cause.verify_message,
                todo="if it is your registry with a CA of its own, name the CA's file in REQUESTS_CA_BUNDLE",
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
            return ImageError(
                f"{request.what}: {_name(url)} does not speak HTTPS",
                todo="if it is your registry with plain HTTP, set 'insecure: true' for it or use --insecure",
            )
    return None


def _reason(error: BaseException) -> str:
    """In a few words and without a URL, why no answer or no more of it came."""
    causes = list(_causes(error))
    for kind, text in (
        (urllib3.exceptions.NameResolutionError, "its name does not resolve"),
        (urllib3.exceptions.ProxyError, "the proxy of the environment's *_PROXY variables does not answer"),
        (urllib3.exceptions.ConnectTimeoutError, f"no connection within {CONNECT_TIMEOUT:.0f} s"),
        (urllib3.exceptions.ReadTimeoutError, f"nothing came for {READ_TIMEOUT:.0f} s"),
        (urllib3.exceptions.IncompleteRead, "the connection ended too early"),
    ):
        # urllib3 derives its error for a refused connection from the one for a time-out.
        if any(isinstance(cause, kind) and type(cause) is not NewConnectionError for cause in causes):
            return text
    for cause in reversed(causes):
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            return cause.strerror or str(cause)[:200]
    return "the connection broke"
