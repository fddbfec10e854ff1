"""The documents of the view: what is told about images, events, the cycle, the queue and the operation.

They are the API's answers, and what pages, feeds, badges and exports are made from. Anybody may read them, so they hold
no secret, no path of this machine but those that clients run images from, and no stack trace. Texts that come from
images or lists are told as they are; whoever renders them escapes them. Times are UTC, sizes are bytes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Cycle",
    "Document",
    "Event",
    "Events",
    "Failing",
    "Image",
    "ImageConfiguration",
    "ImageState",
    "Images",
    "Layer",
    "ListSource",
    "LogLine",
    "Meaning",
    "Operations",
    "Progress",
    "Queue",
    "QueueEntry",
    "Registry",
    "Storage",
    "Summary",
    "Where",
]

ImageState = Literal["published", "failed", "pending", "blocked", "unlisted"]
"""`failed`: the last try failed, whether or not an older image is published; `pending`: not tried yet; `blocked`: the
operators have taken it down; `unlisted`: published, and nobody asks for it any more."""


class Document(BaseModel):
    """What all documents are: frozen."""

    model_config = ConfigDict(frozen=True)


class Failing(Document):
    """Why an image is not there, or not as its tag means it today."""

    reason: str = Field(description="In words for whoever asked for the image.")
    advice: str = Field(description="What that person can do; may be nothing but to wait.")
    detail: str = Field(description="What the program said.")
    temporary: bool = Field(description="Whether it may pass by itself.")
    count: int = Field(description="Failures in a row.")
    since: datetime
    last: datetime
    next_try: datetime | None = Field(description="None: in the next cycle.")


class Summary(Document):
    """One link of the repository, or one that is to be: an image for one platform."""

    name: str = Field(description="The image's name in full, such as docker.io/library/debian:12.")
    platform: str
    link: str = Field(description="Path of the link in the repository; unique, and the image's key everywhere.")
    registry: str = Field(description="Host of its registry; for other sources the kind, such as oci.")
    repository: str
    tag: str | None
    state: ImageState
    digest: str | None = Field(description="Of the published manifest; None if nothing is published.")
    size: int | None = Field(description="Of all its files.")
    entries: int | None = Field(description="Files, directories and links of it.")
    published_at: datetime | None = Field(description="Since when the link leads to that.")
    checked_at: datetime | None = Field(description="When its registry last answered.")
    path: str = Field(description="Where clients run it from, once it is published.")
    command: str | None = Field(description="A command that runs it; None if nothing is published.")
    description: str | None
    contact: str | None
    definition: str | None
    failure: Failing | None


class Images(Document):
    """Some of the images, as a query has them."""

    total: int = Field(description="That match the query.")
    offset: int
    limit: int
    states: dict[ImageState, int] = Field(description="Of all images that match but for their state.")
    registries: dict[str, int] = Field(description="Of all images that match but for their registry.")
    platforms: dict[str, int] = Field(description="Of all images that match but for their platform.")
    images: list[Summary]


class Layer(Document):
    """One layer of an image, the lowest first."""

    digest: str
    size: int = Field(description="Compressed.")
    images: int = Field(description="Published images that have it, this one among them.")


class ImageConfiguration(Document):
    """What the image says about how it is run."""

    environment: list[str]
    entrypoint: list[str]
    command: list[str]
    working_directory: str | None
    user: str | None
    labels: dict[str, str]


class Meaning(Document):
    """What a tag meant for some time, latest first."""

    digest: str
    since: datetime
    until: datetime | None = Field(description="None: still.")


class LogLine(Document):
    """What was logged while an image was last worked on."""

    at: datetime
    level: str
    message: str


class Image(Summary):
    """All that is known of one link."""

    tree: str | None = Field(description="Path of the sandbox in the repository.")
    source_digest: str | None = Field(description="What the name means at its registry: an index's, if it is one.")
    compressed_size: int | None = Field(description="Of all layers.")
    shared_size: int | None = Field(description="Bytes of layers that other published images have, too; compressed.")
    layers: list[Layer]
    configuration: ImageConfiguration | None
    platforms: list[Summary] = Field(description="The same name for other platforms.")
    tags: list[Summary] = Field(description="Other tags of the same repository, on the same platform.")
    meanings: list[Meaning]
    list_line: int | None = Field(description="Of the image list's entry that asks for it.")
    list_commit: str | None = Field(description="Of the list, in which it asked for what is published.")
    requested_by: str | None
    requested_at: datetime | None
    waiting_since: datetime | None = Field(description="Since when it waits to be published or updated.")
    events: list[Event] = Field(description="Latest first.")
    log: list[LogLine] = Field(description="Of its last pass, oldest first.")


class Event(Document):
    """Something that happened to a link."""

    id: int = Field(description="Later ones have greater numbers.")
    at: datetime
    event: str = Field(description="published, moved, linked, retired, taken_down, failed, recovered, list_refused.")
    image: str
    link: str | None
    digest: str | None
    before: str | None = Field(description="What the link led to before.")
    detail: str


class Events(Document):
    """Some of what happened, latest first."""

    events: list[Event]
    next_before: int | None = Field(description="Ask for events before this id for the next page; None at the end.")


class Progress(Document):
    """A piece of work that is under way."""

    what: str
    done: int
    total: int = Field(description="0 if that is not known.")
    unit: Literal["bytes", "images"] = Field(default="bytes", description="Of what.")
    since: datetime


class Cycle(Document):
    """What the daemon does now, and how its last cycle ended."""

    running: bool = Field(description="Whether a daemon is there and answers.")
    doing: str = Field(description="In words; empty while there is nothing to do.")
    since: datetime | None = Field(description="When the running cycle began.")
    progress: Progress | None
    total: int = Field(description="Images that the running cycle looks at.")
    results: dict[str, int] = Field(description="What became of them so far.")
    last_ended: datetime | None
    last_result: str | None = Field(description="ok, or why it ended early.")
    last_seconds: float | None
    next_at: datetime | None = Field(description="When the next cycle is due.")


class QueueEntry(Document):
    """One link that waits."""

    position: int = Field(description="From 1.")
    name: str
    link: str
    since: datetime
    expected_seconds: float | None = Field(description="Until it is there, going by the latest ones; None: no idea.")


class Queue(Document):
    """What waits to be published, in the order in which that will be done."""

    total: int
    entries: list[QueueEntry]


class Registry(Document):
    """How the daemon gets on with one registry."""

    host: str
    requests: dict[str, int] = Field(description="By result, since the daemon began.")
    limit: int | None = Field(description="Pulls that it allows in its window.")
    remaining: int | None = Field(description="Pulls that are left.")
    healthy: bool = Field(description="False while it is left alone because it does not answer.")


class Storage(Document):
    """How full a place is."""

    used: int
    limit: int | None
    free: int | None


class ListSource(Document):
    """The image list that is in force."""

    source: str
    commit: str | None
    read_at: datetime | None
    images: int
    refused: str | None = Field(description="Why the present one is not in force; None if it is.")
    refused_since: datetime | None


class Operations(Document):
    """For operators: is all well?"""

    version: str
    repository: str
    root: str
    published: int = Field(description="Links.")
    trees_size: int = Field(description="Bytes of the files of all published images, each counted once.")
    orphans: int = Field(description="Links and trees that nobody asks for and that wait for their retirement.")
    registries: list[Registry]
    spool: Storage | None
    state: Storage | None
    image_list: ListSource
    errors: list[Event] = Field(description="The latest failures.")


class Where(Document):
    """Where to run an image from."""

    name: str
    published: bool
    path: str = Field(description="/cvmfs/..., or docker://... if it is not published.")


Image.model_rebuild()
