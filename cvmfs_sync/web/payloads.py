"""What registries send to webhooks, and what of it says that something was pushed.

The body of a delivery goes in, pushes come out, and by what the delivery is known again. What is not about a push is
nothing to do, and no error. Digests are not even read, nor is the host that a body names: a webhook speaks for the one
registry that the configuration gives it. No I/O, and no secrets: whoever calls has checked who it is.

The forms are those of Docker Hub ("Webhooks"), GitHub ("Webhook events and payloads": `package`, `registry_package`),
Harbor ("Configure Webhook Notifications", both of its formats), Quay ("Repository notifications": push), GitLab
("Webhook events": pipeline) and CNCF Distribution ("Work with notifications").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cvmfs_sync.config import WebhookKind
from cvmfs_sync.document import field_of, list_of, parse_object
from cvmfs_sync.errors import InvalidManifest, InvalidReference
from cvmfs_sync.pushes import Push

__all__ = ["MOST_EVENTS", "Delivery", "Event", "parse"]

Fields = Mapping[str, Any]
MOST_EVENTS = 1000
_WHAT = "the delivery"


@dataclass(frozen=True, slots=True)
class Event:
    """One push, or several that were told together.

    Attributes:
        identity: By which it is known again; None if the sender tells nothing that a second one of the same kind
            would not have as well.
    """

    pushes: tuple[Push, ...]
    identity: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one request tells.

    Attributes:
        repeats: Whether its sender sends it again until it is taken, with everything behind it waiting.
        skipped: How many of its events make no sense.
    """

    events: tuple[Event, ...]
    repeats: bool = False
    skipped: int = 0


def parse(kind: WebhookKind, registry: str, body: bytes) -> Delivery:
    """Read a delivery.

    Args:
        kind: Of the sender.
        registry: Where all that it tells was pushed, by its name in references.
        body: As it was sent.

    Raises:
        InvalidManifest: It is not what such a sender sends.
    """
    document = parse_object(body, _WHAT)
    if kind == "distribution" or (kind == "gitlab" and "events" in document):
        return _notifications(registry, document)
    pushes = tuple(dict.fromkeys(_READERS[kind](registry, document)))
    if len(pushes) > MOST_EVENTS:
        raise InvalidManifest(f"{_WHAT} tells too much", found=f"{len(pushes)} pushes", expected=f"{MOST_EVENTS}")
    # Quay sends the same body for every push of the same tags.
    identity = None if kind == "quay" else hashlib.sha256(body).hexdigest()
    return Delivery((Event(pushes, identity),) if pushes else ())


def _dockerhub(registry: str, document: Fields) -> Iterator[Push]:
    repository = field_of(_object(document, "repository"), "repo_name", str, _WHAT)
    # Official images are told without the namespace that their references have.
    name = repository if "/" in repository else f"library/{repository}"
    yield from _pushed(registry, name, [field_of(_object(document, "push_data"), "tag", str, _WHAT)])


def _github(registry: str, document: Fields) -> Iterator[Push]:
    package = document.get("registry_package", document.get("package"))
    if package is None or document.get("action") not in ("published", "updated"):
        return
    if not isinstance(package, dict):
        raise InvalidManifest(f"{_WHAT}: the package is no object")
    if field_of(package, "package_type", str, _WHAT).lower() != "container":
        return
    namespace, name = (field_of(package, key, str, _WHAT) for key in ("namespace", "name"))
    told: Fields = package
    for key in ("package_version", "container_metadata", "tag"):
        told = field_of(told, key, dict, _WHAT, default={})
    # Owners may have capital letters, their images' names do not. It is not promised that a tag is told.
    yield _push(registry, f"{namespace}/{name}".lower(), field_of(told, "name", str, _WHAT, default="") or None)


def _harbor(registry: str, document: Fields) -> Iterator[Push]:
    match document.get("type"):
        case "PUSH_ARTIFACT":
            told = _object(document, "event_data")
        case "harbor.artifact.pushed":  # CloudEvents
            told = _object(document, "data")
        case _:
            return
    repository = field_of(_object(told, "repository"), "repo_full_name", str, _WHAT)
    tags = [field_of(each, "tag", str, _WHAT, default="") for each in list_of(told, "resources", dict, _WHAT)]
    # What is pushed by digest, as an index's manifests are, has the digest for a tag.
    yield from _pushed(registry, repository, [tag for tag in tags if tag and ":" not in tag])


def _quay(registry: str, document: Fields) -> Iterator[Push]:
    if "updated_tags" not in document:
        return
    repository = field_of(document, "repository", str, _WHAT)
    tags = document["updated_tags"]
    # Earlier versions had an object, with images' ids by tag.
    names = list(tags) if isinstance(tags, dict) else list_of(document, "updated_tags", str, _WHAT)
    yield from _pushed(registry, repository, names)


def _gitlab(registry: str, document: Fields) -> Iterator[Push]:
    """GitLab tells projects nothing of their registry: a pipeline that has succeeded may have pushed anything."""
    if document.get("object_kind") != "pipeline":
        return
    if field_of(_object(document, "object_attributes"), "status", str, _WHAT) == "success":
        path = field_of(_object(document, "project"), "path_with_namespace", str, _WHAT)
        yield _push(registry, path.lower(), below=True)


def _notifications(registry: str, document: Fields) -> Delivery:
    """Events that make no sense are passed over: a registry repeats a refused delivery for ever, and sends no other."""
    told = list_of(document, "events", dict, _WHAT)
    if len(told) > MOST_EVENTS:
        raise InvalidManifest(f"{_WHAT} tells too much", found=f"{len(told)} events", expected=f"{MOST_EVENTS}")
    events: list[Event] = []
    skipped = 0
    for each in told:
        try:
            events += _notification(registry, each)
        except InvalidManifest:
            skipped += 1
    return Delivery(tuple(events), repeats=True, skipped=skipped)


def _notification(registry: str, event: Fields) -> Iterator[Event]:
    if event.get("action") != "push":
        return
    target = _object(event, "target")
    tag = field_of(target, "tag", str, _WHAT, default="")
    if tag:  # without one it is a layer, or a manifest that nothing leads to yet
        push = _push(registry, field_of(target, "repository", str, _WHAT), tag)
        yield Event((push,), hashlib.sha256(field_of(event, "id", str, _WHAT).encode()).hexdigest())


_READERS: Mapping[WebhookKind, Callable[[str, Fields], Iterator[Push]]] = {
    "dockerhub": _dockerhub, "github": _github, "harbor": _harbor, "quay": _quay, "gitlab": _gitlab,
}  # fmt: skip


def _object(document: Fields, key: str) -> Fields:
    found: Fields = field_of(document, key, dict, _WHAT)
    return found


def _pushed(registry: str, repository: str, tags: Iterable[str]) -> Iterator[Push]:
    for tag in tags:
        yield _push(registry, repository, tag)


def _push(registry: str, repository: str, tag: str | None = None, *, below: bool = False) -> Push:
    """A name from outside as a value.

    Raises:
        InvalidManifest: It is none.
    """
    push = Push(registry, repository, tag, below)
    try:
        good = Push.parse(str(push)) == push
    except InvalidReference:
        good = False
    if not good:
        raise InvalidManifest(f"{_WHAT} names no image", found=repr(str(push))[:200])
    return push
