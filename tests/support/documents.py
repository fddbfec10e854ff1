"""Documents of the view made by hand, for tests of pages, feeds and exports: usual ones, and hostile ones.

Each function gives a document that says something usual everywhere; keyword arguments change single fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cvmfs_sync.view.documents import (
    Cycle,
    Event,
    Events,
    Failing,
    Image,
    ImageConfiguration,
    Images,
    Layer,
    ListSource,
    LogLine,
    Meaning,
    Operations,
    Progress,
    Queue,
    QueueEntry,
    Registry,
    Storage,
    Summary,
)

__all__ = [
    "HOSTILE",
    "NOW",
    "cycle",
    "digest",
    "event",
    "events",
    "failing",
    "hostile_image",
    "image",
    "images",
    "operations",
    "queue",
    "summary",
]

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
_ROOT = "/cvmfs/unpacked.example.org"

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></textarea><svg onload=alert(1)>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "{{ 7*7 }}{% raw %}",
    "\u202egpj.exe\u2066 \u200f\u061c",
    "\x00\x01\x08\x1b[31mred\x7f\x9b",
    "\ud800 lone \udfff",
    "line\r\nSet-Cookie: a=b\n\u2028\u2029",
    "\ufeff\u200b\U000e0041",
    "]]></description>--><!--",
    "&lt;script&gt;&#x3c;",
)
"""Texts that would do harm if they were shown as they are."""


def digest(seed: object) -> str:
    """A digest that looks like one, the same for the same seed."""
    return f"sha256:{sha256(str(seed).encode(errors='replace')).hexdigest()}"


def failing(**fields: Any) -> Failing:
    """A failure that is the image's owner's to mend."""
    usual: dict[str, Any] = {
        "reason": "Its registry says that there is no such tag.",
        "advice": "Look whether the name is spelt as at the registry, and mend the line in the image list.",
        "detail": "MANIFEST_UNKNOWN: manifest unknown\nfound: HTTP 404",
        "temporary": False,
        "count": 3,
        "since": NOW - timedelta(hours=5),
        "last": NOW - timedelta(minutes=20),
        "next_try": NOW + timedelta(minutes=40),
    }
    return Failing(**(usual | fields))


def summary(name: str = "docker.io/library/debian:12", **fields: Any) -> Summary:
    """A published image."""
    return Summary(**(_summary(name) | fields))


def _summary(name: str) -> dict[str, Any]:
    repository, _, tag = name.rpartition(":")
    registry, _, path = repository.partition("/")
    return {
        "name": name, "platform": "linux/amd64", "link": name, "registry": registry, "repository": path, "tag": tag,
        "state": "published", "digest": digest(name), "size": 124_300_000, "entries": 9_421,
        "published_at": NOW - timedelta(hours=3), "checked_at": NOW - timedelta(minutes=4),
        "path": f"{_ROOT}/{name}", "command": f"apptainer exec {_ROOT}/{name} bash",
        "description": None, "contact": None, "definition": None, "failure": None,
    }  # fmt: skip


def images(found: Sequence[Summary], **fields: Any) -> Images:
    """A page of the catalogue with these."""
    usual: dict[str, Any] = {"total": len(found), "offset": 0, "limit": 50, "images": list(found)}
    for field, key in (("states", "state"), ("registries", "registry"), ("platforms", "platform")):
        values = [getattr(each, key) for each in found]
        usual[field] = {value: values.count(value) for value in values}
    return Images(**(usual | fields))


def image(name: str = "docker.io/library/debian:12", **fields: Any) -> Image:
    """All that is known of a published image."""
    usual = _summary(name) | {
        "description": "Debian stable, for whoever needs nothing else",
        "contact": "containers@example.org",
        "definition": "https://example.org/debian/Dockerfile",
        "tree": f".flat/{digest(name)[7:9]}/{digest(name)[7:]}",
        "source_digest": digest("index"),
        "compressed_size": 48_500_000,
        "shared_size": 31_000_000,
        "layers": [
            Layer(digest=digest("layer 1"), size=31_000_000, images=7),
            Layer(digest=digest("layer 2"), size=17_500_000, images=1),
        ],
        "configuration": ImageConfiguration(
            environment=["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            entrypoint=["/usr/bin/tini", "--"],
            command=["bash"],
            working_directory="/srv",
            user="1000:1000",
            labels={"org.opencontainers.image.source": "https://example.org/debian", "maintainer": "Debian"},
        ),
        "platforms": [summary(name, platform="linux/arm64", link=f".multiarch/linux-arm64/{name}")],
        "tags": [summary(name.rpartition(":")[0] + ":11", published_at=NOW - timedelta(days=70))],
        "meanings": [
            Meaning(digest=digest(name), since=NOW - timedelta(hours=3), until=None),
            Meaning(digest=digest("before"), since=NOW - timedelta(days=31), until=NOW - timedelta(hours=3)),
        ],
        "list_line": 14,
        "list_commit": "0f1e2d3c4b5a69788796a5b4c3d2e1f001122334",
        "requested_by": "Ada Example",
        "requested_at": NOW - timedelta(days=90),
        "waiting_since": None,
        "events": [event(), event(id=1, event="published", before=None, at=NOW - timedelta(days=31))],
        "log": [
            LogLine(at=NOW - timedelta(hours=3, seconds=40), level="info", message="fetching 2 layers, 48.5 MB"),
            LogLine(at=NOW - timedelta(hours=3), level="info", message="published: 412 files written, 3.1 MB"),
        ],
    }
    return Image(**(usual | fields))


def hostile_image(text: str) -> Image:
    """An image that says this wherever an image, a list or a registry may say something."""
    bad = failing(reason=text, advice=text, detail=text)
    fields: dict[str, Any] = {
        "platform": text, "registry": text, "repository": text, "tag": text, "path": f"/cvmfs/{text}",
        "command": f"apptainer exec '/cvmfs/{text}'", "description": text, "contact": text, "definition": text,
        "failure": bad, "digest": text, "link": text[:4000],
    }  # fmt: skip
    other = summary(**{**fields, "name": text})
    return image(
        **fields | {
            "name": text, "tree": text, "source_digest": text, "list_commit": text, "requested_by": text,
            "layers": [Layer(digest=text, size=1, images=2)],
            "configuration": ImageConfiguration(
                environment=[text], entrypoint=[text], command=[text], working_directory=text, user=text,
                labels={text: text},
            ),
            "platforms": [other], "tags": [other],
            "meanings": [Meaning(digest=text, since=NOW, until=None)],
            "events": [event(event=text, image=text, link=text[:4000], digest=text, before=text, detail=text)],
            "log": [LogLine(at=NOW, level=text, message=text)],
        }
    )  # fmt: skip


def event(**fields: Any) -> Event:
    """A tag that moved."""
    name = "docker.io/library/debian:12"
    usual: dict[str, Any] = {
        "id": 2, "at": NOW - timedelta(hours=3), "event": "moved", "image": name, "link": name, "digest": digest(name),
        "before": digest("before"), "detail": "",
    }  # fmt: skip
    return Event(**(usual | fields))


def events(*some: Event, next_before: int | None = None) -> Events:
    """A page of events."""
    return Events(events=list(some), next_before=next_before)


def cycle(**fields: Any) -> Cycle:
    """A daemon that is in the midst of a cycle."""
    usual: dict[str, Any] = {
        "running": True,
        "doing": "publishing docker.io/rocker/r-ver:4.4.2",
        "since": NOW - timedelta(minutes=7),
        "progress": Progress(
            what="fetching docker.io/rocker/r-ver:4.4.2", done=312_000_000, total=740_000_000,
            since=NOW - timedelta(seconds=40),
        ),
        "total": 128,
        "results": {"unchanged": 96, "published": 3, "failed": 1},
        "last_ended": NOW - timedelta(minutes=22),
        "last_result": "ok",
        "last_seconds": 75.0,
        "next_at": NOW + timedelta(minutes=8),
    }  # fmt: skip
    return Cycle(**(usual | fields))


def queue(*names: str, **fields: Any) -> Queue:
    """These wait, in this order."""
    entries = [
        QueueEntry(
            position=number, name=name, link=name, since=NOW - timedelta(minutes=number),
            expected_seconds=None if number > 3 else 90.0 * number,
        )
        for number, name in enumerate(names, 1)
    ]  # fmt: skip
    return Queue(**({"total": len(entries), "entries": entries} | fields))


def operations(**fields: Any) -> Operations:
    """All is well, but for one registry."""
    usual: dict[str, Any] = {
        "version": "0.1.0",
        "repository": "unpacked.example.org",
        "root": _ROOT,
        "published": 124,
        "trees_size": 312_400_000_000,
        "orphans": 2,
        "registries": [
            Registry(host="docker.io", requests={"ok": 1204, "error": 2}, limit=200, remaining=143, healthy=True),
            Registry(host="ghcr.io", requests={"ok": 311}, limit=None, remaining=None, healthy=True),
            Registry(host="example.org", requests={"error": 12}, limit=None, remaining=None, healthy=False),
        ],
        "spool": Storage(used=2_400_000_000, limit=50_000_000_000, free=812_000_000_000),
        "state": Storage(used=84_000_000, limit=None, free=812_000_000_000),
        "image_list": ListSource(
            source="https://git.example.org/images.git", commit="0f1e2d3c4b5a69788796a5b4c3d2e1f001122334",
            read_at=NOW - timedelta(minutes=7), images=57, refused=None, refused_since=None,
        ),
        "errors": [event(event="failed", before=None, digest=None, detail="The registry does not answer.")],
    }  # fmt: skip
    return Operations(**(usual | fields))
