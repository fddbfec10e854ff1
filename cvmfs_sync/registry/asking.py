"""One question to one endpoint: authorization, slots, floors and counts around the transport's exchange.

An endpoint, a reference and a URL go in; a response, or a whole document, comes out, or the error that the answer
means. Which endpoint to ask is `client`'s business, which bytes come back `image`'s and `fetch`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import requests

from cvmfs_sync.errors import BlobMismatch, ImageError, ImageNotFound, RateLimited, RegistryUnavailable
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Reference
from cvmfs_sync.registry.auth import Authorizer
from cvmfs_sync.registry.body import BodyCutError, discard, read_document
from cvmfs_sync.registry.endpoints import Endpoint
from cvmfs_sync.registry.explain import explain
from cvmfs_sync.registry.ledger import RegistryMemory
from cvmfs_sync.registry.politeness import Timing, backoff
from cvmfs_sync.registry.transport import TRIES, Request, Transport
from cvmfs_sync.registry.urls import describe, host_of, origin

__all__ = ["Asker"]


class Asker:
    """Asks endpoints. Safe for threads."""

    def __init__(self, transport: Transport, authorizer: Authorizer, memory: RegistryMemory, timing: Timing) -> None:
        """Ask nobody yet."""
        self._transport = transport
        self._authorizer = authorizer
        self._memory = memory
        self._timing = timing

    @contextmanager
    def exchange(
        self, method: str, endpoint: Endpoint, name: Reference, url: str, headers: Mapping[str, str]
    ) -> Iterator[requests.Response]:
        """Send, with authorization as the registry wants it; hold a slot until the block ends."""
        with self._transport.slots(url).slot():
            response = self._send(method, endpoint, name, url, headers)
            try:
                yield response
            finally:
                response.close()

    def document(
        self, endpoint: Endpoint, name: Reference, url: str, headers: Mapping[str, str], limit: int
    ) -> tuple[bytes, Mapping[str, str]]:
        """GET a bounded document with its headers, again if its body is cut."""
        reason = ""
        tries = 1 if endpoint.mirror else TRIES
        for attempt in range(1, tries + 1):
            with self.exchange("GET", endpoint, name, url, headers) as response:
                self.expect(response, endpoint, name)
                try:
                    return read_document(response, limit, str(name), self._timing), response.headers
                except BodyCutError as error:
                    reason = str(error)
            if attempt < tries:
                self._timing.sleep(backoff(attempt, self._timing.chance()))
        raise RegistryUnavailable(
            f"{name}: {endpoint.registry} does not finish its answer", found=reason, todo="the next cycle tries again"
        )

    def may_pull(self, endpoint: Endpoint, name: Reference) -> None:
        """Return if the endpoint's rate limit leaves more pulls than its floor, or says nothing.

        Raises:
            RateLimited: If not.
        """
        said = self._memory.rate_limits().get(endpoint.registry)
        left = said.left(self._timing.wall_clock()) if said is not None else None
        if said is None or left is None or left > endpoint.floor:
            return
        of = f" of {said.limit}" if said.limit is not None else ""
        raise RateLimited(
            f"{name}: the pulls that {endpoint.registry} allows are kept for what somebody waits for",
            found=f"{left}{of} left",
            expected=f"more than {endpoint.floor} (ratelimit_floor)",
            todo="a later cycle pulls it; for a higher limit log in to the registry, or lower ratelimit_floor",
        )

    def expect(self, response: requests.Response, endpoint: Endpoint, name: Reference) -> None:
        """Return for 200.

        Raises:
            ImageError: For any other status, by type.
        """
        status = response.status_code
        if status == 200:
            return
        host = host_of(response.url)
        match status:
            case 404 if "text/html" in response.headers.get("Content-Type", "").lower():
                # A proxy whose registry is down, or a parked domain: no proof, and proof is what retires images.
                raise RegistryUnavailable(
                    f"{name}: not found, but {host} does not answer like a registry",
                    found=f"{describe(status)} with a web page",
                    todo="check the registry's name; see whether the registry is up",
                )
            case 404:
                raise ImageNotFound(
                    f"{name}: not found in {host}",
                    found=explain(response, self._timing),
                    todo=f"check the spelling; see the repository's tags ('skopeo list-tags docker://{name.name}')",
                )
            case 401 | 403:
                if status == 401:
                    self._memory.count(endpoint.registry, status)
                answer = f"{explain(response, self._timing)} for {name}"
                raise self._authorizer.refusal(endpoint.target(name), answer)
            case _ if status >= 500:
                raise RegistryUnavailable(
                    f"{name}: {host} fails", found=explain(response, self._timing), todo="the next cycle tries again"
                )
            case _:
                raise ImageError(
                    f"{name}: {host} does not give it",
                    found=explain(response, self._timing),
                    expected="200 OK",
                    todo="ask the registry's operator what the answer means",
                )

    def expect_blob(
        self, response: requests.Response, endpoint: Endpoint, name: Reference, descriptor: Descriptor
    ) -> None:
        """Return for 200 with the right length.

        Raises:
            BlobMismatch: If the length is known to be wrong: before the download, not after.
            ImageError: For any other status, by type.
        """
        status = response.status_code
        if status != 200 and origin(response.url) != endpoint.origin:
            # Storage servers answer 403 to signed URLs that expired: it says nothing about access to the image.
            raise RegistryUnavailable(
                f"{name}: the storage of {endpoint.registry} does not give blob {descriptor.digest}",
                found=f"{describe(status)} from {origin(response.url)}",
                todo="the next cycle tries again",
            )
        if status == 404:
            # Not ImageNotFound: the manifest is there, so the image is not gone but damaged.
            raise ImageError(
                f"{name}: {endpoint.registry} has the manifest but not its blob {descriptor.digest}",
                found=explain(response, self._timing),
                todo="push the image again",
            )
        self.expect(response, endpoint, name)
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != descriptor.size:
            raise BlobMismatch(
                f"{name}: blob {descriptor.digest} of {endpoint.registry} has another size",
                found=f"{length[:20]} bytes",
                expected=f"{descriptor.size} bytes",
                todo="push the image again",
            )

    def _send(
        self, method: str, endpoint: Endpoint, name: Reference, url: str, headers: Mapping[str, str]
    ) -> requests.Response:
        target = endpoint.target(name)

        def send(authorization: str | None) -> requests.Response:
            return self._transport.send(
                Request(
                    method,
                    url,
                    str(name),
                    headers,
                    authorization,
                    account=endpoint.registry,
                    limited=True,
                    # Behind a mirror there is another one to ask, which is better than to wait for this one.
                    tries=1 if endpoint.mirror else TRIES,
                )
            )

        authorization = self._authorizer.header(target)
        response = send(authorization)
        # Another host's 401 is not for our credentials.
        if response.status_code == 401 and origin(response.url) == target.origin:
            challenges = response.headers.get("WWW-Authenticate", "")
            try:
                renewed = self._authorizer.renew(target, challenges, authorization)
            except ImageError:
                discard(response, self._timing)
                raise
            if renewed is not None:
                discard(response, self._timing)
                response = send(renewed)
        return response
