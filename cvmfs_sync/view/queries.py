"""The queries that every page, every feed and the API are made from.

What is shown of all images is a `Snapshot`, which a thread of its own makes anew when something has changed: nobody who
asks waits for that, once there is a first one. Events, and what is known of one image, are looked up when somebody
asks. The repository, the list and the database are only read, and what can't be read is left out: a page that says less
is better than none.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from cvmfs_sync import __version__
from cvmfs_sync.errors import CvmfsSyncError, ListError, RepositoryUnavailable
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.inventory import Catalogue, published, read_catalogue
from cvmfs_sync.layout import CATALOGUE, Layout, runnable
from cvmfs_sync.ports import Repository
from cvmfs_sync.reference import parse_image
from cvmfs_sync.state import State
from cvmfs_sync.view.activity import Activity
from cvmfs_sync.view.documents import (
    Cycle,
    Events,
    Image,
    Images,
    ListSource,
    LogLine,
    Operations,
    Queue,
    QueueEntry,
    Summary,
    Where,
)
from cvmfs_sync.view.redaction import Redaction
from cvmfs_sync.view.shaping import configuration, meanings, number, shown
from cvmfs_sync.view.sharing import Sharing
from cvmfs_sync.view.snapshot import Known, Query, Snapshot, bounded, moment, take_snapshot, told

__all__ = ["Origins", "Source", "View"]

log = logging.getLogger(__name__)
Source = Literal["list", "repository", "state"]
_EVENTS_OF_IMAGE = 50
_TAGS = 200
_ENTRIES = 500
_LATEST_ERRORS = 20
_RECENT = 50
# The thread looks so often whether something has changed, and rests so many times as long as it has worked.
_GLANCE_SECONDS = 1.0
_REST = 10.0
_ACTIVITY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Origins:
    """Where all that is shown comes from.

    Attributes:
        repository: Of which only the root is read.
        wishes: Reads the list in force, and what is known of it; with the state database, if there is one.
        wishes_version: Something else whenever `wishes` may give something else.
        ask: Asks the daemon what it does; None if there is none.
        now: The time, UTC.
    """

    repository: Repository
    layout: Layout
    state_dir: Path
    wishes: Callable[[State], tuple[ImageList, Mapping[str, str | None]]]
    wishes_version: Callable[[], object]
    ask: Callable[[], Mapping[str, Any] | None]
    now: Callable[[], datetime]
    redact: Redaction


class View:
    """All that is shown; threads may share it. `close` ends its own thread.

    Args:
        origins: Where it comes from.
        watch: Whether changes are looked for. If not, all that is known of the images is of one moment.
    """

    def __init__(self, origins: Origins, *, watch: bool = True) -> None:
        self._origins = origins
        self._missing: dict[Source, CvmfsSyncError] = {}
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._closing = threading.Event()
        self._state: State | None = None
        self._former: list[State] = []
        self._empty = State.empty()
        self._wishes: tuple[object, ImageList, Mapping[str, str | None]] | None = None
        self._seen: object = None
        self._snapshot = self._take()
        self._asked: tuple[float, Activity | None] = (0.0, None)
        self._sharing = Sharing(origins.repository, once=not watch)
        self._thread = threading.Thread(target=self._watch, name="view", daemon=True) if watch else None
        if self._thread is not None:
            self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        for state in (*self._former, self._state, self._empty):
            if state is not None:
                state.close()

    @property
    def version(self) -> str:
        """Another text whenever what is shown may be another."""
        return self._snapshot.version

    @property
    def repository(self) -> str:
        """Name of the repository."""
        return self._origins.repository.root.name

    @property
    def now(self) -> datetime:
        """The time, UTC."""
        return self._origins.now()

    def images(self, query: Query) -> Images:
        """Some of the images."""
        return self._snapshot.query(query)

    def every(self) -> Sequence[Summary]:
        """All images, by name."""
        return self._snapshot.images

    def find(self, key: str) -> Summary | None:
        """The image of a link or a name; of a name that has several platforms, the one that has the plain link."""
        return self._snapshot.find(key)

    def image(self, key: str) -> Image | None:
        """All that is known of the image of a link or a name; None if there is none."""
        snapshot = self._snapshot
        summary = snapshot.find(key)
        if summary is None:
            return None
        origins, state = self._origins, self._database()
        tree = published(origins.repository, origins.layout, summary.link)
        line, wish = snapshot.lines.get(summary.link), snapshot.wishes.get(summary.link)
        record = tree.record if tree is not None else {}
        events = shown(state.events_before(None, _EVENTS_OF_IMAGE, link=summary.link), origins.redact)
        activity = self._activity()
        waiting = next((each for each in activity.queue if each.link == summary.link), None) if activity else None
        layers = self._sharing.layers(record)
        requested = line.requested_at if line else None
        return Image(
            **dict(summary),
            tree=tree.path if tree else None,
            source_digest=told(line.source_digest if line else None),
            compressed_size=number(record.get("compressed_size")),
            shared_size=sum(layer.size for layer in layers if layer.images > 1) if tree else None,
            layers=layers,
            configuration=configuration(record.get("config")),
            platforms=[each for each in snapshot.by_name.get(summary.name, ()) if each.link != summary.link],
            tags=[
                each
                for each in snapshot.by_repository[summary.registry, summary.repository, summary.platform]
                if each.link != summary.link
            ][:_TAGS],
            meanings=meanings(events),
            list_line=wish.line if wish else None,
            list_commit=told(line.list_commit if line else wish.origin.commit if wish and wish.origin else None),
            requested_by=told(line.requested_by if line else wish.origin.author if wish and wish.origin else None),
            requested_at=moment(requested if line else wish.origin.at if wish and wish.origin else None),
            waiting_since=waiting.since if waiting else None,
            events=events,
            log=[
                LogLine(at=each.at, level=each.level, message=origins.redact(each.message))
                for each in state.log_of(summary.link)
            ],
        )

    def events(
        self, before: int | None = None, limit: int = 50, *, link: str | None = None, event: str | None = None
    ) -> Events:
        """What happened, latest first.

        Args:
            before: Only what happened before the event with this id.
            limit: At most so many.
            link: What happened to this link only.
            event: What is called so only; "moved" is what leads to something else than before.
        """
        stored = "published" if event == "moved" else event.replace("_", " ") if event == "taken_down" else event
        rows = self._database().events_before(before, limit, link=link, event=stored)
        events = shown(rows, self._origins.redact)
        if event == "moved":
            events = [each for each in events if each.before is not None]
        return Events(events=events, next_before=rows[-1].number if len(rows) == limit else None)

    def cycle(self) -> Cycle:
        """What the daemon does now."""
        activity = self._activity()
        if activity is not None:
            return activity.cycle
        return Cycle(
            running=False, doing="", since=None, progress=None, total=0, results={},
            last_ended=None, last_result=None, last_seconds=None, next_at=None,
        )  # fmt: skip

    def queue(self) -> Queue:
        """What waits to be published, and for how long it will."""
        activity = self._activity()
        if activity is None:
            return Queue(total=0, entries=[])
        each = self._usual_seconds() if activity.queue else None
        known = self._snapshot.by_link
        return Queue(
            total=len(activity.queue),
            entries=[
                QueueEntry(
                    position=position, name=known[waiting.link].name if waiting.link in known else waiting.name,
                    link=waiting.link, since=waiting.since,
                    expected_seconds=None if each is None else round(each * position, 1),
                )
                for position, waiting in enumerate(activity.queue[:_ENTRIES], 1)
            ],
        )  # fmt: skip

    def operations(self) -> Operations:
        """Whether all is well."""
        origins, snapshot, activity, state = self._origins, self._snapshot, self._activity(), self._database()
        trees = {image.digest: image.size or 0 for image in snapshot.images if image.digest is not None}
        wishes, about = self._list(state)
        refused = about.get("refused")
        return Operations(
            version=__version__,
            repository=origins.repository.root.name,
            root=str(origins.repository.root),
            published=sum(image.digest is not None for image in snapshot.images),
            trees_size=sum(trees.values()),
            orphans=len(state.orphans()),
            registries=activity.registries if activity else [],
            spool=activity.spool if activity else None,
            state=activity.state if activity else None,
            image_list=ListSource(
                source=origins.redact(about.get("source") or ""),
                commit=about.get("commit"),
                read_at=moment(about.get("read_at")),
                images=len(wishes.wishes),
                refused=origins.redact(refused) if refused else None,
                refused_since=moment(about.get("since")),
            ),
            errors=shown(state.events_before(None, _LATEST_ERRORS, event="failed"), origins.redact),
        )

    def where(self, image: str) -> Where:
        """Where to run an image from.

        Raises:
            InvalidReference: That is no name of an image.
        """
        origins, name = self._origins, parse_image(image)
        link = origins.layout.link(name)
        there = published(origins.repository, origins.layout, link) is not None
        path = str(origins.repository.root / link) if there else runnable(name)
        return Where(name=bounded(str(name)), published=there, path=path)

    def require(self, *sources: Source) -> None:
        """For those who write down what is shown: what can't be read must not look as if it were gone.

        Raises:
            CvmfsSyncError: One of these can't be read.
        """
        for source in sources:
            if source in self._missing:
                raise self._missing[source]

    def refresh(self) -> None:
        """Look now whether something has changed."""
        with self._lock:
            if self._signature() != self._seen:
                self._snapshot = self._take()

    def _watch(self) -> None:
        rest = _GLANCE_SECONDS
        while not self._closing.wait(rest):
            started = time.monotonic()
            try:
                self.refresh()
            except Exception:
                # Whatever it is, what was known before is still shown.
                log.exception("what is shown could not be brought up to date")
            rest = max(_GLANCE_SECONDS, _REST * (time.monotonic() - started))

    def _database(self) -> State:
        """The state database, or an empty one if it can't be read."""
        if self._state is None or self._state.replaced():
            if self._state is not None:
                # Others may be reading it.
                self._former.append(self._state)
            try:
                self._state = State.open_readonly(self._origins.state_dir)
                self._missing.pop("state", None)
            except CvmfsSyncError as error:
                log.warning("no history is shown: %s", error)
                self._missing["state"] = error
                self._state = None
        return self._state or self._empty

    def _signature(self) -> object:
        """Something else whenever a snapshot would be another one."""
        database = self._database()
        return (
            database is self._empty,
            database.version(),
            self._origins.wishes_version(),
            _stamp(self._origins.repository.root / CATALOGUE),
        )

    def _list(self, state: State) -> tuple[ImageList, Mapping[str, str | None]]:
        """The list in force; read anew when it may have changed, for that takes seconds if it is long."""
        version = self._origins.wishes_version()
        if self._wishes is None or self._wishes[0] != version:
            try:
                wishes, about = self._origins.wishes(state)
                self._missing.pop("list", None)
            except ListError as error:
                self._missing["list"] = error
                if self._wishes is None:
                    return ImageList((), ()), {"refused": str(error)}
                wishes, about = self._wishes[1:]
            self._wishes = (version, wishes, about)
        return self._wishes[1:]

    def _take(self) -> Snapshot:
        origins, state = self._origins, self._database()
        self._seen = self._signature()
        wishes, _ = self._list(state)
        catalogue = self._catalogue()
        today = origins.now().date()
        known = Known(wishes.wished_on(today), catalogue, state.failures(), state.checked())
        version = f"{time.time_ns():x}"
        return take_snapshot(origins.repository, origins.layout, known, origins.redact, version)

    def _catalogue(self) -> Catalogue:
        """What is published; nothing if that can't be read."""
        repository = self._origins.repository
        problem: CvmfsSyncError
        try:
            os.listdir(repository.root)
            self._missing.pop("repository", None)
            return read_catalogue(repository, self._origins.layout)
        except OSError as error:
            todo = "see that it is mounted; if it is new, publish something first"
            problem = RepositoryUnavailable(f"cannot read {repository.root}", found=error.strerror, todo=todo)
        except CvmfsSyncError as error:
            problem = error
        log.warning("nothing published is shown: %s", problem)
        self._missing["repository"] = problem
        return {}

    def _activity(self) -> Activity | None:
        """What the daemon says, which is asked once a second however many want to know."""
        with self._asking:
            at, activity = self._asked
            now = time.monotonic()
            if at == 0.0 or now - at > _ACTIVITY_SECONDS:
                activity = None
                try:
                    answer = self._origins.ask()
                    if answer is not None and "activity" in answer:
                        activity = Activity.model_validate(answer["activity"])
                except (CvmfsSyncError, ValueError) as error:
                    log.info("the daemon does not tell what it does: %s", error)
                self._asked = (now, activity)
            return activity

    def _usual_seconds(self) -> float | None:
        """How long one image usually takes, by what the latest ones took."""
        taken = []
        for each in self._database().events_before(None, _RECENT, event="published"):
            with suppress(ValueError):
                taken.append(float(each.detail.removesuffix(" s")))
        return sum(taken) / len(taken) if taken else None


def _stamp(path: Path) -> object:
    with suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino
    return None
