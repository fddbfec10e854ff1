"""From what is stored to what is shown: events, what a tag meant, what an image says of itself.

Pure functions. Records hold what images say, so nothing in them is trusted to have any form.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cvmfs_sync.remembered import NumberedEvent
from cvmfs_sync.view.documents import Event, ImageConfiguration, Meaning
from cvmfs_sync.view.redaction import Redaction
from cvmfs_sync.view.snapshot import bounded

__all__ = ["configuration", "meanings", "number", "shown"]

_ENTRIES = 500


def number(value: object) -> int | None:
    """A number, if it is one."""
    return value if isinstance(value, int) else None


def _texts(value: object) -> list[str]:
    return [bounded(str(each)) for each in value[:_ENTRIES]] if isinstance(value, list | tuple) else []


def configuration(config: object) -> ImageConfiguration | None:
    """What a record says; none of it is trusted to be of any form."""
    if not isinstance(config, dict):
        return None
    environment, labels = config.get("environment"), config.get("labels")
    if isinstance(environment, dict):
        environment = [f"{name}={value}" for name, value in environment.items()]
    user, directory = config.get("user"), config.get("working_directory")
    return ImageConfiguration(
        environment=_texts(environment),
        entrypoint=_texts(config.get("entrypoint")),
        command=_texts(config.get("command")),
        working_directory=bounded(directory) if isinstance(directory, str) and directory else None,
        user=bounded(user) if isinstance(user, str) and user else None,
        labels={bounded(str(key)): bounded(str(value)) for key, value in list(labels.items())[:_ENTRIES]}
        if isinstance(labels, dict)
        else {},
    )


def shown(events: Sequence[NumberedEvent], redact: Redaction) -> list[Event]:
    """Events as anybody may see them."""
    return [
        Event(
            id=each.number, at=each.at,
            event="moved" if each.before not in (None, each.digest) else each.event.replace(" ", "_"),
            image=bounded(each.name) if each.link else redact(bounded(each.name)),
            link=each.link or None, digest=each.digest,
            before=each.before if each.before != each.digest else None, detail=redact(each.detail),
        )
        for each in events
    ]  # fmt: skip


def meanings(events: Sequence[Event]) -> list[Meaning]:
    """What a link meant, as its events tell, which are the latest first."""
    found: list[Meaning] = []
    until: datetime | None = None
    for event in events:
        if event.event in ("published", "linked", "moved") and event.digest is not None:
            if found and found[-1].digest == event.digest and found[-1].since == until:
                found[-1] = Meaning(digest=event.digest, since=event.at, until=found[-1].until)
            else:
                found.append(Meaning(digest=event.digest, since=event.at, until=until))
            until = event.at
        elif event.event in ("retired", "taken_down"):
            until = event.at
    return found
