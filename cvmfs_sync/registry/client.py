"""A registry over HTTP(S) as a `Source`: the OCI distribution-spec's pull half, over requests.

References and descriptors go in; digests, verified manifests, tags, and blobs as they arrive come out. Blobs are not
verified here but in `fetch`, for all sources alike; only their length is held against the descriptor. Nothing is
cached but connections and tokens, and nothing is written, on disk or to a registry.

Every error names the reference and the host. What it proves is in its type: only `ImageNotFound` says that something
is gone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote, urljoin

import requests

from cvmfs_sync.errors import (
    BlobMismatch,
    ImageError,
    ImageNotFound,
    InvalidManifest,
    InvalidReference,
    RegistryUnavailable,
)
from cvmfs_sync.image import ACCEPT, MAX_DOCUMENT, Descriptor, verify
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry.auth import Authorizer, CredentialSource, Target
from cvmfs_sync.registry.credentials import DockerCredentials
from cvmfs_sync.registry.explain import explain
from cvmfs_sync.registry.politeness import RegistrySettings, Timing, backoff
from cvmfs_sync.registry.taglist import next_page, tag_page
from cvmfs_sync.registry.transport import (
    TRIES,
    BodyCutError,
    Request,
    Transport,
    describe,
    discard,
    origin,
    read_body,
    read_document,
)

__all__ = ["RegistrySource"]

_API_HOSTS = {"docker.io": "registry-1.docker.io"}
_MANIFEST_HEADERS = {"Accept": ", ".join(ACCEPT)}
_NO_SETTINGS: Mapping[str, RegistrySettings] = MappingProxyType({})
TAGS_PER_PAGE = 1000
MAX_TAG_PAGES = 1000
MAX_TAG_PAGE = 16 * 1024 * 1024
# A download may be cut often as long as it gets on; without getting on it ends like any exchange.
MAX_RESUMES = 100
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")


class RegistrySource:
    """`Source[Reference]`. Safe for threads.

    What it learns of a host (tokens, that it is down, that it throttles) it keeps for its own lifetime: a daemon makes
    a new one for each cycle. With `RegistrySettings.concurrency`, a blob holds its slot until its iterator ends or is
    closed.
    """

    def __init__(
        self,
        settings: Mapping[str, RegistrySettings] = _NO_SETTINGS,
        *,
        default: RegistrySettings | None = None,
        credentials: CredentialSource | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Connect to nobody yet.

        Args:
            settings: By the registry's name as it stands in references (`docker.io`, `localhost:5000`).
            default: For all other hosts.
            credentials: Docker's config.json if None.
            timing: The real clock if None.
        """
        self._settings = settings
        self._default = default or RegistrySettings()
        self._timing = timing or Timing()
        by_origin = {origin(self._base(registry)): value for registry, value in settings.items()}
        self._transport = Transport(by_origin, self._default, self._timing)
        self._authorizer = Authorizer(self._transport, credentials or DockerCredentials())

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def head(self, name: Reference) -> Digest:
        """The digest that `name` means now, by HEAD; by GET if the registry's HEAD does not tell it.

        Raises:
            ImageNotFound: If the registry says that there is no such manifest.
            ImageError: For all else, by type.
        """
        with self._exchange("HEAD", name, _manifest_path(name), _MANIFEST_HEADERS) as response:
            if response.status_code not in (405, 501):
                self._expect(response, name)
                digest = _content_digest(response, name)
                if digest is not None:
                    return _same(digest, name.digest, name)
        return self.manifest(name)[1]

    def manifest(self, name: Reference, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        """Content, digest and Content-Type of the manifest or index that `name` means, or of `digest` beside it.

        The content has the digest that was asked for; where a tag was asked for, the one that the registry names.

        Raises:
            ImageNotFound: If the registry says that there is no such manifest.
            BlobMismatch: If the content's digest is another one.
            InvalidManifest: If it is larger than 4 MiB.
            ImageError: For all else, by type.
        """
        asked = digest or name.digest
        path = _manifest_path(name, asked)
        content, headers = self._document(name, path, _MANIFEST_HEADERS, MAX_DOCUMENT)
        if asked is None:
            asked = _parse_digest(headers.get("Docker-Content-Digest"), name)
        if asked is None:
            asked = Digest("sha256", hashlib.sha256(content).hexdigest())
        verify(content, asked, f"{name}: manifest from {name.registry}")
        return content, asked, headers.get("Content-Type")

    def blob(self, name: Reference, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes in pieces of up to 1 MiB, resumed after cuts; as many as the descriptor says.

        Raises:
            RegistryUnavailable: If the registry's end of the connection failed for good.
            BlobMismatch: If the registry's blob has another size.
            ImageError: For all else, by type.
        """
        offset, in_vain = 0, 0
        reason = ""
        for _ in range(MAX_RESUMES):
            before, slow = offset, False
            try:
                for piece in self._blob_from(name, descriptor, offset):
                    offset += len(piece)
                    yield piece
            except BodyCutError as error:
                reason, slow = str(error), error.slow
            if offset == descriptor.size:
                return
            in_vain = 0 if offset > before and not slow else in_vain + 1
            if in_vain == TRIES:
                break
            self._timing.sleep(backoff(in_vain, self._timing.chance()))
        raise RegistryUnavailable(
            f"{name}: the download of {descriptor.digest} from {name.registry} breaks off again and again",
            found=f"{offset} bytes; {reason or 'the connection ended too early'}",
            expected=f"{descriptor.size} bytes",
            todo="the next cycle tries again",
        )

    def local_blob(self, name: Reference, descriptor: Descriptor) -> Path | None:  # noqa: ARG002
        """None: nothing of a registry is on this machine."""
        return None

    def tags(self, name: Reference) -> Iterator[str]:
        """All tags of the repository, each once, following the pages.

        What is no tag by the specification's grammar is left out: it would become a path.

        Raises:
            ImageNotFound: If the registry says that there is no such repository.
            InvalidManifest: If an answer is no tag list, or the pages do not end or lead to another host.
            ImageError: For all else, by type.
        """
        seen: set[str] = set()
        base = self._base(name.registry)
        path: str | None = f"/v2/{quote(name.repository)}/tags/list?n={TAGS_PER_PAGE}"
        visited: set[str] = set()
        while path is not None:
            if path in visited or len(visited) == MAX_TAG_PAGES:
                raise InvalidManifest(
                    f"{name.name}: the tag list of {name.registry} does not end", found=f"{len(visited)} pages"
                )
            visited.add(path)
            content, headers = self._document(name, path, {"Accept": "application/json"}, MAX_TAG_PAGE)
            for tag in tag_page(content, name):
                if tag not in seen:
                    seen.add(tag)
                    yield tag
            path = next_page(headers, urljoin(base, path), name)

    def _base(self, registry: str) -> str:
        scheme = "http" if self._settings.get(registry, self._default).insecure else "https"
        return f"{scheme}://{_API_HOSTS.get(registry, registry)}"

    @contextmanager
    def _exchange(
        self, method: str, name: Reference, path: str, headers: Mapping[str, str]
    ) -> Iterator[requests.Response]:
        """Send, with authorization as the registry wants it; hold a slot until the block ends."""
        url = self._base(name.registry) + path
        with self._transport.slots(url).slot():
            response = self._send(method, url, name, headers)
            try:
                yield response
            finally:
                response.close()

    def _send(self, method: str, url: str, name: Reference, headers: Mapping[str, str]) -> requests.Response:
        target = Target(name.registry, name.repository, origin(url))
        authorization = self._authorizer.header(target)
        response = self._transport.send(Request(method, url, str(name), headers, authorization))
        # Another host's 401 is not for our credentials.
        if response.status_code == 401 and origin(response.url) == target.origin:
            challenges = response.headers.get("WWW-Authenticate", "")
            try:
                renewed = self._authorizer.renew(target, challenges, authorization)
            except ImageError:
                discard(response)
                raise
            if renewed is not None:
                discard(response)
                response = self._transport.send(Request(method, url, str(name), headers, renewed))
        return response

    def _document(
        self, name: Reference, path: str, headers: Mapping[str, str], limit: int
    ) -> tuple[bytes, Mapping[str, str]]:
        """GET a bounded document, again if its body is cut."""
        reason = ""
        for attempt in range(1, TRIES + 1):
            with self._exchange("GET", name, path, headers) as response:
                self._expect(response, name)
                try:
                    return read_document(response, limit, str(name), self._timing), response.headers
                except BodyCutError as error:
                    reason = str(error)
            if attempt < TRIES:
                self._timing.sleep(backoff(attempt, self._timing.chance()))
        raise RegistryUnavailable(
            f"{name}: {name.registry} does not finish its answer", found=reason, todo="the next cycle tries again"
        )

    def _blob_from(self, name: Reference, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """One download from `offset` to the end.

        Raises:
            BodyCutError: If it ends early, or is not the range that was asked for.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        path = f"/v2/{quote(name.repository)}/blobs/{descriptor.digest}"
        with self._exchange("GET", name, path, headers) as response:
            skip = 0
            if response.status_code == 206 and offset:
                if not _right_range(response.headers.get("Content-Range"), offset, descriptor.size):
                    raise BodyCutError("the server sends another range than it was asked for")
            elif response.status_code == 416 and offset:
                raise BodyCutError("the server has no more bytes than it sent")
            else:
                self._expect_blob(response, name, descriptor)
                skip = offset
            left = descriptor.size - offset
            for piece in read_body(response, self._timing):
                fresh = piece[skip:] if skip else piece
                skip -= min(skip, len(piece))
                if len(fresh) > left:
                    raise BlobMismatch(
                        f"{name}: blob {descriptor.digest} has another size",
                        found="more bytes",
                        expected=f"{descriptor.size} bytes",
                    )
                left -= len(fresh)
                if fresh:
                    yield fresh

    def _expect(self, response: requests.Response, name: Reference) -> None:
        """Return for 200.

        Raises:
            ImageError: For any other status, by type.
        """
        status = response.status_code
        if status == 200:
            return
        host = origin(response.url).removeprefix("https://")
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
                    found=explain(response),
                    todo=f"check the spelling; see the repository's tags ('skopeo list-tags docker://{name.name}')",
                )
            case 401 | 403:
                target = Target(name.registry, name.repository, origin(self._base(name.registry)))
                raise self._authorizer.refusal(target, f"{explain(response)} for {name}")
            case _ if status >= 500:
                raise RegistryUnavailable(
                    f"{name}: {host} fails", found=explain(response), todo="the next cycle tries again"
                )
            case _:
                raise ImageError(
                    f"{name}: {host} does not give it",
                    found=explain(response),
                    expected="200 OK",
                    todo="ask the registry's operator what the answer means",
                )

    def _expect_blob(self, response: requests.Response, name: Reference, descriptor: Descriptor) -> None:
        """Return for 200 with the right length.

        Raises:
            BlobMismatch: If the length is known to be wrong: before the download, not after.
            ImageError: For any other status, by type.
        """
        status = response.status_code
        if status != 200 and origin(response.url) != origin(self._base(name.registry)):
            # Storage servers answer 403 to signed URLs that expired: it says nothing about access to the image.
            raise RegistryUnavailable(
                f"{name}: the storage of {name.registry} does not give blob {descriptor.digest}",
                found=f"{describe(status)} from {origin(response.url)}",
                todo="the next cycle tries again",
            )
        if status == 404:
            # Not ImageNotFound: the manifest is there, so the image is not gone but damaged.
            raise ImageError(
                f"{name}: {name.registry} has the manifest but not its blob {descriptor.digest}",
                found=explain(response),
                todo="push the image again",
            )
        self._expect(response, name)
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != descriptor.size:
            raise BlobMismatch(
                f"{name}: blob {descriptor.digest} of {name.registry} has another size",
                found=f"{length[:20]} bytes",
                expected=f"{descriptor.size} bytes",
                todo="push the image again",
            )


def _manifest_path(name: Reference, digest: Digest | None = None) -> str:
    return f"/v2/{quote(name.repository)}/manifests/{digest or name.digest or name.tag}"


def _content_digest(response: requests.Response, name: Reference) -> Digest | None:
    return _parse_digest(response.headers.get("Docker-Content-Digest"), name)


def _parse_digest(text: str | None, name: Reference) -> Digest | None:
    if not text:
        return None
    try:
        return Digest.parse(text)
    except InvalidReference as error:
        raise InvalidManifest(
            f"{name}: Docker-Content-Digest of {name.registry} is no digest",
            found=error.found,
            expected=error.expected,
        ) from None


def _same(digest: Digest, asked: Digest | None, name: Reference) -> Digest:
    """Hold what HEAD names against a pinned digest; only another algorithm's can't be compared."""
    if asked is not None and asked.algorithm == digest.algorithm and asked != digest:
        raise BlobMismatch(
            f"{name}: {name.registry} has another manifest there", found=str(digest), expected=str(asked)
        )
    return asked or digest


def _right_range(text: str | None, offset: int, size: int) -> bool:
    match = _CONTENT_RANGE.match((text or "").strip())
    if match is None:
        return False
    return int(match[1]) == offset and int(match[2]) == size - 1 and match[3] in ("*", str(size))
