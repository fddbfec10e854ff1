"""A registry over HTTP(S) as a `Source`: the OCI distribution-spec's pull half, over requests.

References and descriptors go in; digests, verified manifests, tags, and blobs as they arrive come out. Blobs are not
verified here but in `fetch`, for all sources alike; only their length is held against the descriptor. Nothing is
cached but connections, tokens and, in a `RegistryMemory`, the ETags of tags; nothing is written, on disk or to a
registry.

Mirrors are asked first, in order; one that fails or does not have it is passed over. Errors are those of the registry
itself: they name the reference and the host, and what they prove is in their type. Only `ImageNotFound` says that
something is gone. A tag list is never a mirror's, since one that knows only what it was asked for would make the other
tags look gone.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import urljoin

from cvmfs_sync.errors import (
    BlobMismatch,
    ImageError,
    ImageNotFound,
    InvalidManifest,
    InvalidReference,
)
from cvmfs_sync.image import ACCEPT, MAX_DOCUMENT, Descriptor, verify
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry.asking import Asker
from cvmfs_sync.registry.auth import Authorizer
from cvmfs_sync.registry.body import BodyCutError, read_document
from cvmfs_sync.registry.credentials import CredentialSource, DockerCredentials, FileCredentials
from cvmfs_sync.registry.download import Download, Place, Places, right_range
from cvmfs_sync.registry.endpoints import Endpoint, Endpoints
from cvmfs_sync.registry.foreign import foreign_places, require_allowed
from cvmfs_sync.registry.ledger import RateLimit, RegistryMemory
from cvmfs_sync.registry.politeness import RegistrySettings, Timing
from cvmfs_sync.registry.taglist import next_page, tag_page
from cvmfs_sync.registry.transport import Transport

__all__ = ["RegistrySource"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_MANIFEST_HEADERS = {"Accept": ", ".join(ACCEPT)}
_NO_SETTINGS: Mapping[str, RegistrySettings] = MappingProxyType({})
TAGS_PER_PAGE = 1000
MAX_TAG_PAGES = 1000
MAX_TAG_PAGE = 16 * 1024 * 1024


class RegistrySource:
    """`Source[Reference]`. Safe for threads.

    What it learns of a host (tokens, that it is down, that it throttles) it keeps for its own lifetime: a daemon makes
    a new one for each cycle, and hands all of them the same `RegistryMemory`. With `RegistrySettings.concurrency`, a
    blob holds its slot until its iterator ends or is closed.
    """

    def __init__(
        self,
        settings: Mapping[str, RegistrySettings] = _NO_SETTINGS,
        *,
        default: RegistrySettings | None = None,
        credentials: CredentialSource | None = None,
        timing: Timing | None = None,
        memory: RegistryMemory | None = None,
    ) -> None:
        """Connect to nobody yet.

        Args:
            settings: By the registry's name as it stands in references (`docker.io`, `localhost:5000`), or by that of
                a mirror, token server or storage server.
            default: For all other hosts.
            credentials: For registries whose settings name no file; Docker's config.json if None.
            timing: The real clock if None.
            memory: What an earlier source has learnt, and where this one leaves what it learns; nothing if None.
        """
        default = default or RegistrySettings()
        self._timing = timing or Timing()
        self._memory = memory or RegistryMemory()
        self._urgent = False
        self._endpoints = Endpoints(settings, default)
        files = {host: options.credentials for host, options in settings.items() if options.credentials is not None}
        self._transport = Transport(self._endpoints.by_origin(), default, self._timing, self._memory)
        authorizer = Authorizer(self._transport, FileCredentials(files, credentials or DockerCredentials()))
        self._asker = Asker(self._transport, authorizer, self._memory, self._timing)
        self._bad_mirrors: set[str] = set()
        self._places = Places()
        self._settings_of: Callable[[str], RegistrySettings] = lambda registry: settings.get(registry, default)

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def urgent(self) -> RegistrySource:
        """The same source, for images that somebody waits for: it pulls below `ratelimit_floor`, too.

        It shares everything with this one; closing one closes both. An object and not a context variable, because
        downloads run in threads of `fetch`, which would not inherit one:

            replace(sources, registry=source.urgent())
        """
        other = copy.copy(self)
        other._urgent = True
        return other

    def rate_limits(self) -> Mapping[str, RateLimit]:
        """What each registry and mirror last said about its limit on pulls, by its name in references."""
        return self._memory.rate_limits()

    def head(self, name: Reference) -> Digest:
        """The digest that `name` means now, by HEAD; by GET if the registry's HEAD does not tell it.

        Where the last answer had an ETag, the question is whether it still holds.

        Raises:
            ImageNotFound: If the registry says that there is no such manifest.
            ImageError: For all else, by type.
        """
        return self._first(name, lambda endpoint: self._head(endpoint, name))

    def manifest(self, name: Reference, digest: Digest | None = None) -> tuple[bytes, Digest, str | None]:
        """Content, digest and Content-Type of the manifest or index that `name` means, or of `digest` beside it.

        The content has the digest that was asked for; where a tag was asked for, the one that the registry names.

        Raises:
            ImageNotFound: If the registry says that there is no such manifest.
            RateLimited: If it is not urgent, and the registry's rate limit is at its floor.
            BlobMismatch: If the content's digest is another one.
            InvalidManifest: If it is larger than 4 MiB.
            ImageError: For all else, by type.
        """
        return self._first(name, lambda endpoint: self._manifest(endpoint, name, digest))

    def blob(self, name: Reference, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's bytes in pieces of up to 1 MiB, resumed after cuts; as many as the descriptor says.

        A foreign layer that the registry does not keep comes from the first of its URLs that has it.

        Raises:
            RegistryUnavailable: If the registry's end of the connection failed for good.
            RateLimited: As `manifest`.
            BlobMismatch: If the registry's blob has another size.
            BlobChanged: If what came is wrong, and asking again from the start may help.
            InvalidManifest: If it is a foreign layer, and `RegistrySettings.foreign_layers` is not set.
            ImageError: For all else, by type.
        """
        settings = self._settings_of(name.registry)
        require_allowed(name, descriptor, settings)
        places = [self._mirror_place(mirror, name, descriptor) for mirror in self._endpoints.mirrors(name.registry)]
        places.append(self._place(self._endpoints.itself(name.registry), name, descriptor))
        places += foreign_places(name, descriptor, settings, self._transport, self._timing)
        yield from self._places.pieces(str(name), descriptor, places)

    def local_blob(self, name: Reference, descriptor: Descriptor) -> Path | None:  # noqa: ARG002
        """None: nothing of a registry is on this machine."""
        return None

    def part(self, name: Reference, descriptor: Descriptor, offset: int, length: int) -> bytes | None:
        """So many bytes of a blob, not verified, asked of the registry itself; None if it does not give just those."""
        endpoint = self._endpoints.itself(name.registry)
        url, end = endpoint.blob(name, descriptor.digest), offset + length
        try:
            with self._asker.exchange("GET", endpoint, name, url, {"Range": f"bytes={offset}-{end - 1}"}) as response:
                # Whoever knows no ranges begins to send all of it, and we hang up.
                if response.status_code != 206 or not right_range(response, offset, end, descriptor.size):
                    return None
                content = read_document(response, length, str(name), self._timing)
        except (ImageError, BodyCutError) as error:
            _log.debug("%s: no part of %s: %s", name, descriptor.digest, error)
            return None
        return content if len(content) == length else None

    def tags(self, name: Reference) -> Iterator[str]:
        """All tags of the repository, each once, following the pages; from the registry itself, not from mirrors.

        What is no tag by the specification's grammar is left out: it would become a path.

        Raises:
            ImageNotFound: If the registry says that there is no such repository.
            InvalidManifest: If an answer is no tag list, or the pages do not end or lead to another host.
            ImageError: For all else, by type.
        """
        seen: set[str] = set()
        endpoint = self._endpoints.itself(name.registry)
        url: str | None = endpoint.tags(name, TAGS_PER_PAGE)
        visited: set[str] = set()
        while url is not None:
            if url in visited or len(visited) == MAX_TAG_PAGES:
                raise InvalidManifest(
                    f"{name.name}: the tag list of {name.registry} does not end", found=f"{len(visited)} pages"
                )
            visited.add(url)
            content, headers = self._asker.document(endpoint, name, url, {"Accept": "application/json"}, MAX_TAG_PAGE)
            for tag in tag_page(content, name):
                if tag not in seen:
                    seen.add(tag)
                    yield tag
            path = next_page(headers, url, name)
            url = urljoin(endpoint.base, path) if path is not None else None

    def _first(self, name: Reference, ask: Callable[[Endpoint], T]) -> T:
        """The answer of the first mirror that has one, else what the registry says."""
        for mirror in self._endpoints.mirrors(name.registry):
            try:
                return ask(mirror)
            except ImageError as error:
                self._pass_over(mirror, name, error)
        return ask(self._endpoints.itself(name.registry))

    def _pass_over(self, mirror: Endpoint, name: Reference, error: Exception) -> None:
        """Log it: once for each mirror where a person may want to act."""
        if isinstance(error, ImageNotFound) or mirror.base in self._bad_mirrors:
            _log.debug("%s: not from the mirror %s: %s", name, mirror.registry, error)
            return
        self._bad_mirrors.add(mirror.base)
        _log.warning("the mirror %s of %s is passed over: %s", mirror.registry, name.registry, error)

    def _may_pull(self, endpoint: Endpoint, name: Reference) -> None:
        if not self._urgent:
            self._asker.may_pull(endpoint, name)

    def _head(self, endpoint: Endpoint, name: Reference) -> Digest:
        url = endpoint.manifest(name)
        known = self._memory.recall(url) if name.digest is None else None
        headers = _MANIFEST_HEADERS | ({"If-None-Match": known.etag} if known is not None else {})
        with self._asker.exchange("HEAD", endpoint, name, url, headers) as response:
            if known is not None and response.status_code == 304:
                return known.digest
            if response.status_code == 404:
                self._memory.forget(url)
            if response.status_code not in (405, 501):
                self._asker.expect(response, endpoint, name)
                digest = _parse_digest(response.headers.get("Docker-Content-Digest"), name)
                if digest is not None:
                    if name.digest is None:
                        self._memory.remember(url, response.headers.get("ETag"), digest)
                    return _same(digest, name.digest, name)
                # A registry that confirms nothing but repeats itself: a GET counts as a pull, and this needs none.
                if known is not None and response.headers.get("ETag") == known.etag:
                    return known.digest
        return self._manifest(endpoint, name)[1]

    def _manifest(
        self, endpoint: Endpoint, name: Reference, digest: Digest | None = None
    ) -> tuple[bytes, Digest, str | None]:
        self._may_pull(endpoint, name)
        asked = digest or name.digest
        url = endpoint.manifest(name, asked)
        content, headers = self._asker.document(endpoint, name, url, _MANIFEST_HEADERS, MAX_DOCUMENT)
        expected = asked or _parse_digest(headers.get("Docker-Content-Digest"), name)
        if expected is None:
            expected = Digest("sha256", hashlib.sha256(content).hexdigest())
        verify(content, expected, f"{name}: manifest from {endpoint.registry}")
        if asked is None:
            self._memory.remember(url, headers.get("ETag"), expected)
        return content, expected, headers.get("Content-Type")

    def _place(self, endpoint: Endpoint, name: Reference, descriptor: Descriptor) -> Place:
        """The registry itself, asked until it has given the whole blob."""

        def pieces(offset: int) -> Iterator[bytes]:
            self._may_pull(endpoint, name)
            yield from self._download(endpoint, name, descriptor).pieces(offset, self._timing)

        return Place(endpoint.base, pieces, lambda error: _log.debug("%s: not from the registry: %s", name, error))

    def _mirror_place(self, mirror: Endpoint, name: Reference, descriptor: Descriptor) -> Place:
        """A mirror, asked once."""

        def pieces(offset: int) -> Iterator[bytes]:
            self._may_pull(mirror, name)
            yield from self._download(mirror, name, descriptor).once(offset, self._timing)

        return Place(mirror.base, pieces, lambda error: self._pass_over(mirror, name, error))

    def _download(self, endpoint: Endpoint, name: Reference, descriptor: Descriptor) -> Download:
        url = endpoint.blob(name, descriptor.digest)
        return Download(
            str(name),
            endpoint.registry,
            descriptor,
            lambda headers: self._asker.exchange("GET", endpoint, name, url, headers),
            lambda response: self._asker.expect_blob(response, endpoint, name, descriptor),
        )


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
