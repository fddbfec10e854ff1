"""Atom feeds (RFC 4287): what has happened to all images, or to one.

Events go in, the bytes of an XML document come out. Texts may be hostile: they are cut, signs stand for what XML cannot
hold or nobody can see, and the document is built as a tree, never of pieces of text. Identifiers are tag URIs (RFC
4151) made of the repository, the time and the link, so that they stay the same when the site moves, or when its
database begins anew.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from cvmfs_sync import __version__
from cvmfs_sync.pages.rendering import Urls
from cvmfs_sync.pages.texts import visible
from cvmfs_sync.pages.words import EVENTS
from cvmfs_sync.view.documents import Event

__all__ = ["MEDIA_TYPE", "Feed", "render"]

MEDIA_TYPE = "application/atom+xml; charset=utf-8"
_ATOM = "http://www.w3.org/2005/Atom"
_LONGEST = 2000
# Unreserved, sub-delims and what else a path may have (RFC 3986): all that RFC 4151 allows in `specific`.
_SPECIFIC = "/:@!$&'()*+,;=-._~"
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Feed:
    """Which feed it is.

    Attributes:
        authority: Name of the repository: the one that gives the identifiers.
        urls: Where things are, as seen from the feed. Absolute or relative: RFC 4287 allows both, and a relative one
            starts from the URL by which the feed was fetched.
        link: Of the image that it is about; None for all.
        name: The image's.
    """

    authority: str
    urls: Urls
    link: str | None = None
    name: str | None = None


def render(feed: Feed, events: Sequence[Event]) -> bytes:
    """The feed's document.

    Args:
        feed: Which one.
        events: What has happened, latest first.
    """
    urls = feed.urls
    root = ET.Element("feed", xmlns=_ATOM)
    _add(root, "id", _tag(feed.authority, "2026", "feeds/all" if feed.link is None else f"feeds/image/{feed.link}"))
    _add(root, "title", f"Images in {feed.authority}" if feed.link is None else f"{feed.name} in {feed.authority}")
    _add(root, "updated", _time(events[0].at if events else _NEVER))
    _link(root, "self", urls.feed(feed.link), "application/atom+xml")
    _link(root, "alternate", urls.catalogue({}) if feed.link is None else urls.image(feed.link), "text/html")
    _add(ET.SubElement(root, "author"), "name", feed.authority)
    ET.SubElement(root, "generator", version=__version__).text = "cvmfs-sync"
    for event in events:
        _entry(root, feed, event)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _entry(root: ET.Element, feed: Feed, event: Event) -> None:
    entry = ET.SubElement(root, "entry")
    micro = f"{event.at.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
    about = event.link if event.link is not None else event.image
    _add(entry, "id", _tag(feed.authority, f"{event.at.astimezone(UTC):%Y-%m-%d}", f"{event.event}/{micro}/{about}"))
    word = EVENTS[event.event].label if event.event in EVENTS else event.event
    _add(entry, "title", f"{word}: {event.image or feed.authority}")
    _add(entry, "updated", _time(event.at))
    _add(entry, "published", _time(event.at))
    page = feed.urls.image(event.link) if event.link is not None else feed.urls.catalogue({})
    _link(entry, "alternate", page, "text/html")
    ET.SubElement(entry, "category", term=_text(_cut(event.event)))
    lines = [event.detail]
    if event.digest is not None:
        lines.append(f"Digest: {event.digest}")
    if event.before is not None:
        lines.append(f"Before: {event.before}")
    summary = ET.SubElement(entry, "summary", type="text")
    summary.text = _text("\n".join(_cut(line) for line in lines if line))


def _text(text: str) -> str:
    """The text with signs for what no XML 1.0 document can hold, be it escaped, and for what turns others around."""
    return "\n".join(map(visible, text.split("\n")))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\u2026"


def _add(parent: ET.Element, name: str, text: str) -> None:
    ET.SubElement(parent, name).text = _text(_cut(text))


def _link(parent: ET.Element, relation: str, url: str | None, kind: str) -> None:
    if url is not None:
        ET.SubElement(parent, "link", rel=relation, type=kind, href=_text(url))


def _tag(authority: str, date: str, specific: str) -> str:
    whose = quote(authority, safe=".-", errors="surrogatepass")
    return f"tag:{whose},{date}:{quote(specific, safe=_SPECIFIC, errors='surrogatepass')}"


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
