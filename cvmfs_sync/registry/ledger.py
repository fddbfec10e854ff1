"""What is known about registries beyond one question: ETags of tags, rate limits, counts of requests.

Headers and statuses go in; values come out, for the next HEAD, for the decision whether to pull, and for metrics. Asks
nobody and writes nothing: a `RegistryMemory` lives as long as whoever makes it wants, and its ETags may be kept
elsewhere. Safe for threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from cvmfs_sync.reference import Digest

__all__ = ["REQUEST_RESULTS", "RateLimit", "RegistryMemory", "Validator", "read_rate_limit"]

REQUEST_RESULTS = ("ok", "not_modified", "not_found", "denied", "throttled", "error")
"""What can come of a request."""

MAX_VALIDATORS = 200_000
# An entity tag (RFC 9110, 8.8.3), short enough to be sent back.
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,250}"')
_COUNT = re.compile(r"\s*([0-9]{1,15})(?![0-9])")
_WINDOW = re.compile(r";\s*w\s*=\s*([0-9]{1,15})", re.IGNORECASE)
_EPOCH = 1e9
# For a limit whose registry says neither how long its window is nor when it is over.
_USUAL_WINDOW = 3600.0
_MAX_SOURCE = 100


@dataclass(frozen=True, slots=True)
class Validator:
    """What a tag meant, and the ETag by which a registry confirms that it still does."""

    etag: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a registry said about its limit on pulls.

    Attributes:
        limit: So many are allowed, if it says so.
        window: In so many seconds, if it says so.
        remaining: So many were left.
        source: Whom it counts, an address or an account, if it says so.
        at: When it said so, in seconds since 1970.
        resets: When it counts anew, in seconds since 1970, if it says so.
    """

    limit: int | None
    window: float | None
    remaining: int
    source: str | None
    at: float
    resets: float | None = None

    def left(self, now: float) -> int | None:
        """How many pulls are left; None if what was said holds no longer."""
        until = self.resets if self.resets is not None else self.at + (self.window or _USUAL_WINDOW)
        return self.remaining if now < until else None


def read_rate_limit(headers: Mapping[str, str], now: float) -> RateLimit | None:
    """The rate limit in an answer's headers, or None.

    Understands `ratelimit-limit: 100;w=21600` (Docker Hub), plain numbers, and the same with `x-` before it. A reset is
    a time since the epoch or a distance.

    Args:
        headers: Case does not matter.
        now: Seconds since the epoch.
    """
    for prefix in ("ratelimit-", "x-ratelimit-"):
        said = {part: headers.get(prefix + part) or "" for part in ("limit", "remaining", "reset")}
        remaining = _COUNT.match(said["remaining"])
        if remaining is None:
            continue
        limit, reset = _COUNT.match(said["limit"]), _COUNT.match(said["reset"])
        window = _WINDOW.search(said["limit"]) or _WINDOW.search(said["remaining"])
        source = "".join(c for c in headers.get("docker-ratelimit-source") or "" if c.isprintable())[:_MAX_SOURCE]
        resets = float(reset[1]) if reset else None
        if resets is not None and resets < _EPOCH:
            resets += now
        return RateLimit(
            int(limit[1]) if limit else None,
            float(window[1]) if window else None,
            int(remaining[1]),
            source or None,
            now,
            resets,
        )
    return None


class RegistryMemory:
    """What outlives one `RegistrySource`; a daemon hands the same one to the source of each cycle."""

    def __init__(self, validators: MutableMapping[str, Validator] | None = None) -> None:
        """Know nothing but `validators`.

        Args:
            validators: By URL, which holds no secret; kept up to date, oldest first, for whoever wants to keep it. In
                memory if None.
        """
        self._validators = {} if validators is None else validators
        self._limits: dict[str, RateLimit] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def recall(self, url: str) -> Validator | None:
        """What the URL's answer was, if it had an ETag."""
        with self._lock:
            return self._validators.get(url)

    def remember(self, url: str, etag: str | None, digest: Digest) -> None:
        """Note the answer to a HEAD or GET for a tag; without an ETag that can be sent back, forget the last one."""
        with self._lock:
            self._validators.pop(url, None)
            if etag is not None and _ETAG.fullmatch(etag):
                while len(self._validators) >= MAX_VALIDATORS:
                    del self._validators[next(iter(self._validators))]
                self._validators[url] = Validator(etag, digest)

    def forget(self, url: str) -> None:
        """The tag is gone."""
        with self._lock:
            self._validators.pop(url, None)

    def hear(self, host: str, headers: Mapping[str, str], now: float) -> None:
        """Note what an answer's headers say about the host's rate limit; nothing, if nothing."""
        limit = read_rate_limit(headers, now)
        if limit is not None:
            with self._lock:
                self._limits[host] = limit

    def rate_limits(self) -> Mapping[str, RateLimit]:
        """What each host said last."""
        with self._lock:
            return dict(self._limits)

    def count(self, host: str, status: int | None) -> None:
        """Note that a request had an answer with this status; None for no answer."""
        key = host, _result(status)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def requests(self) -> Mapping[tuple[str, str], int]:
        """How many requests there were, by host and result; for each host all of `REQUEST_RESULTS`."""
        with self._lock:
            hosts = dict.fromkeys(host for host, _ in self._counts)
            return {(host, result): self._counts.get((host, result), 0) for host in hosts for result in REQUEST_RESULTS}


def _result(status: int | None) -> str:
    match status:
        case 304:
            return "not_modified"
        case 404:
            return "not_found"
        case 401 | 403:
            return "denied"
        case 429:
            return "throttled"
        case int() if 200 <= status < 300:
            return "ok"
        case _:
            return "error"
