"""Where foreign layers are to be had: those that a registry need not keep, since their descriptors have `urls`.

Settings and a descriptor go in, the places to ask come out; none unless the configuration allows it. Their URLs were
written by whoever made the image: no credentials go there, and only HTTPS is spoken unless the registry itself is
insecure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import requests

from cvmfs_sync.errors import BlobMismatch, ImageError, InvalidManifest
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Reference
from cvmfs_sync.registry.download import Download, Place
from cvmfs_sync.registry.politeness import RegistrySettings, Timing
from cvmfs_sync.registry.transport import Request, Transport
from cvmfs_sync.registry.urls import describe, host_of

__all__ = ["foreign_places", "require_allowed"]

_log = logging.getLogger(__name__)


def require_allowed(name: Reference, descriptor: Descriptor, settings: RegistrySettings) -> None:
    """See that a layer may be fetched.

    Raises:
        InvalidManifest: It is a foreign one, and the configuration does not allow these.
    """
    if descriptor.foreign and not settings.foreign_layers:
        raise InvalidManifest(
            f"{name}: layer {descriptor.digest} is not kept by the registry",
            found="a non-distributable layer with 'urls'",
            todo=f"set 'foreign_layers: true' for {name.registry} under 'registries' to have it fetched from there, or"
            " build the image on a base whose layers may be distributed",
        )


def foreign_places(
    name: Reference, descriptor: Descriptor, settings: RegistrySettings, transport: Transport, timing: Timing
) -> tuple[Place, ...]:
    """One place for each URL of a foreign layer that is allowed."""
    if not (descriptor.foreign and settings.foreign_layers):
        return ()
    return tuple(_place(name, descriptor, url, settings, transport, timing) for url in dict.fromkeys(descriptor.urls))


def _place(
    name: Reference, descriptor: Descriptor, url: str, settings: RegistrySettings, transport: Transport, timing: Timing
) -> Place:
    @contextmanager
    def ask(headers: Mapping[str, str]) -> Iterator[requests.Response]:
        with transport.slots(url).slot():
            response = transport.send(Request("GET", url, str(name), headers))
            try:
                yield response
            finally:
                response.close()

    def expect(response: requests.Response) -> None:
        host = host_of(response.url)
        if response.status_code != 200:
            raise ImageError(
                f"{name}: {host} does not have foreign layer {descriptor.digest}",
                found=describe(response.status_code),
                todo="see whether the layer's URLs still work, or mirror it in the registry",
            )
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != descriptor.size:
            raise BlobMismatch(
                f"{name}: foreign layer {descriptor.digest} of {host} has another size",
                found=f"{length[:20]} bytes",
                expected=f"{descriptor.size} bytes",
            )

    def pieces(offset: int) -> Iterator[bytes]:
        host = _host(name, url, settings)
        yield from Download(str(name), host, descriptor, ask, expect).pieces(offset, timing)

    def failed(error: Exception) -> None:
        _log.warning("%s: foreign layer %s is looked for elsewhere: %s", name, descriptor.digest, error)

    return Place(url, pieces, failed)


def _host(name: Reference, url: str, settings: RegistrySettings) -> str:
    """The host of a layer's URL, if it may be asked.

    Raises:
        InvalidManifest: It may not.
    """
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname
    except ValueError:
        scheme, host = "", None
    if host and (scheme == "https" or (scheme == "http" and settings.insecure)):
        return host_of(url)
    raise InvalidManifest(
        f"{name}: a foreign layer's URL is not used",
        found="plain HTTP" if host and scheme == "http" else "no https:// URL",
        expected="https://, or http:// where the registry is 'insecure: true'",
    )
