"""One page of a registry's tag list (OCI distribution-spec, "Listing Tags").

A body and headers go in, tags and the next page's path come out. Asks nobody: `client` fetches the pages, and bounds
their number and size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from urllib.parse import urljoin, urlsplit

import requests

from cvmfs_sync.errors import InvalidManifest, InvalidReference
from cvmfs_sync.reference import Reference

__all__ = ["next_page", "tag_page"]

_log = logging.getLogger(__name__)


def tag_page(content: bytes, name: Reference) -> Iterator[str]:
    """The page's tags; what is no tag is left out and logged.

    Raises:
        InvalidManifest: If this is no tag list.
    """
    try:
        page = json.loads(content)
        tags = page["tags"] or []
        valid = isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
    except (ValueError, RecursionError, KeyError, TypeError):
        valid, tags = False, []
    if not valid:
        raise InvalidManifest(
            f"{name.name}: {name.registry} answers with something else than a tag list",
            found=repr(content[:100]),
            expected='{"name": ..., "tags": [...]}',
        )
    for tag in tags:
        try:
            Reference.parse(f"{name.name}:{tag}")
        except InvalidReference:
            _log.warning("%s: the tag list has %.100r, which is no tag; left out", name.name, tag)
        else:
            yield tag


def next_page(headers: Mapping[str, str], url: str, name: Reference) -> str | None:
    """Path and query of the page that `Link: <...>; rel="next"` names.

    Only the host is compared: behind a proxy that ends TLS, registries write http:// into their links.

    Raises:
        InvalidManifest: If the page is at another host.
    """
    links = requests.utils.parse_header_links(headers.get("Link", ""))
    link = next((item["url"] for item in links if "next" in item.get("rel", "").lower().split()), None)
    if link is None:
        return None
    try:
        target = urlsplit(urljoin(url, link))
    except ValueError:
        target = urlsplit("")
    if target.netloc != urlsplit(url).netloc:
        raise InvalidManifest(
            f"{name.name}: the tag list of {name.registry} goes on at another host",
            found=target.netloc[:200],
            expected=urlsplit(url).netloc,
            todo="report it to the registry's operator; the link was not followed",
        )
    return target.path + (f"?{target.query}" if target.query else "")
