"""A configuration becomes objects that work: the wiring of every command that has a repository.

A `Config` goes in; sources, repository, state and spool come out, put together in a `Context`, and closed after use.
The only other place that knows adapters is `standalone`, for the commands that need no configuration.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_sync.backlog import Backlog
from cvmfs_sync.backoff import Backoff
from cvmfs_sync.collection import Rules
from cvmfs_sync.config import Config, RegistryOptions, load
from cvmfs_sync.console import Bars
from cvmfs_sync.context import Asked, Context
from cvmfs_sync.eventlog import Document, EventLog
from cvmfs_sync.fetch import Spool
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.index import IndexCache
from cvmfs_sync.layout import Layout
from cvmfs_sync.listsource import Reading, known_list, name_of, read_list
from cvmfs_sync.passlog import collecting
from cvmfs_sync.ports import Progress, Repository
from cvmfs_sync.prepare import Recipe
from cvmfs_sync.registry import (
    ArchiveSource,
    EngineSource,
    LayoutSource,
    RegistryMemory,
    RegistrySettings,
    RegistrySource,
)
from cvmfs_sync.repository import CvmfsRepository, DirectoryRepository, TimedRepository
from cvmfs_sync.resolve import Sources
from cvmfs_sync.state import State
from cvmfs_sync.stopping import Stopping
from cvmfs_sync.tar import Limits

__all__ = [
    "known_wishes",
    "load_config",
    "make_context",
    "make_recipe",
    "make_repository",
    "make_rules",
    "note_list",
    "now",
    "open_state",
    "read_reading",
    "read_wishes",
]

_LIST = "list"


def load_config(path: Path) -> Config:
    """The configuration in a file, with the environment's changes."""
    return load(path, os.environ)


def read_wishes(config: Config) -> ImageList:
    """The image list in force.

    Raises:
        ListError: There is no valid one.
    """
    return read_reading(config).wishes


def read_reading(config: Config) -> Reading:
    """The image list in force, with why that is not the present one if it is not.

    Raises:
        ListError: There is no valid one.
    """
    return read_list(config.image_list, config.state_dir, today=now().date(), layout=Layout(config.layout))


def known_wishes(config: Config, state: State) -> tuple[ImageList, Mapping[str, str | None]]:
    """The image list in force as this machine knows it, and what is known of it; nobody is asked.

    Raises:
        ListError: There is no valid one.
    """
    reading = known_list(config.image_list, config.state_dir, today=now().date(), layout=Layout(config.layout))
    noted = state.noted(_LIST)
    about: dict[str, str | None] = json.loads(noted) if noted else {}
    source = name_of(config.image_list)
    if about.get("source") != source:
        about = {}
    refused = str(reading.refused) if reading.refused else None
    if isinstance(config.image_list, Path):
        # It has just been read: what was noted may be older.
        about = {**about, "refused": refused, "since": about.get("since") if refused else None}
    return reading.wishes, {
        "source": source,
        "commit": reading.wishes.commit,
        "read_at": about.get("read_at"),
        "refused": about.get("refused"),
        "since": about.get("since"),
    }


def open_state(config: Config, told: Callable[[Document], object] = lambda _document: None) -> State:
    """The state database, for those who alone work with it; its events are logged.

    Raises:
        RepositoryError: It can't be used.
    """
    state = State(config.state_dir)
    EventLog(config.state_dir, told=told).follow(state)
    return state


def note_list(config: Config, state: State, refused: Exception | None, at: datetime) -> None:
    """Remember, for `known_wishes`, that the list was read, and whether it is in force."""
    noted = state.noted(_LIST)
    before = json.loads(noted) if noted else {}
    source, reason = name_of(config.image_list), str(refused) if refused else None
    same = before.get("source") == source and before.get("refused") is not None
    since = None if refused is None else before["since"] if same else at.isoformat()
    note = {"source": source, "read_at": at.isoformat(), "refused": reason, "since": since}
    state.note(_LIST, json.dumps(note))
    if reason is not None and (reason != before.get("refused") or not same):
        state.record("", source, "list_refused", None, reason, at)


def make_recipe(config: Config) -> Recipe:
    """What shapes a sandbox."""
    return Recipe(
        Layout(config.layout),
        tuple(str(point) for point in config.sandbox.bind_points),
        replace(
            Limits(),
            **{name: value if value is not None else sys.maxsize for name, value in config.limits.given().items()},
        ),
    )


def make_rules(config: Config) -> Rules:
    """When what nobody asks for goes."""
    retire = config.retire
    return Rules(retire.grace_period, retire.batch, retire.max_fraction, retire.repository_gc)


def make_repository(config: Config, stopping: Stopping | None = None) -> Repository:
    """Where images are published."""
    options = config.repository
    if options.backend == "cvmfs":
        assert options.name is not None  # noqa: S101 - the configuration's model sees to it
        return CvmfsRepository(
            options.name,
            journal=config.state_dir / f"transaction-{options.name}.json",
            root=options.root,
            spool=options.spool,
            wait=options.wait,
            finishing=(stopping or Stopping()).finishing,
        )
    return DirectoryRepository(options.root, wait=options.wait)


@contextmanager
def make_context(
    config: Config,
    state: State | None = None,
    memory: RegistryMemory | None = None,
    *,
    clock: Callable[[], datetime] | None = None,
    stopping: Stopping | None = None,
    telling: Callable[[Progress], Progress] = lambda progress: progress,
    backlog: Backlog | None = None,
    held: Callable[[float, bool], object] = lambda _seconds, _published: None,
    told: Callable[[Document], object] = lambda _document: None,
    asked: Callable[[Asked, float], object] = lambda _what, _seconds: None,
) -> Iterator[Context]:
    """All that a cycle works with.

    Args:
        config: From `load_config`.
        state: The state database if None; closed with the rest.
        memory: What outlives the cycle of what is learnt about registries; nothing if None.
        clock: The time, UTC; this machine's if None.
        stopping: What a publish in its last phase is told to.
        telling: Wraps what is told of progress.
        backlog: What waits to be published, for whoever watches; one of its own if None.
        held: See `TimedRepository`.
        told: Of each event, with a state database of its own only; see `EventLog`.
        asked: See `Context`.
    """
    schedule = config.schedule.sync
    settings = {host: _settings(options) for host, options in config.registries.items()}
    with ExitStack() as stack:
        state = stack.enter_context(state or open_state(config, told))
        registry = RegistrySource(settings, default=_settings(RegistryOptions()), memory=memory)
        stack.callback(registry.close)
        recipe = make_recipe(config)
        archive = ArchiveSource(config.spool_dir, recipe.limits)
        stack.callback(archive.close)
        engine = EngineSource(config.spool_dir, _engine(config, os.environ), recipe.limits)
        stack.callback(engine.close)
        bars = stack.enter_context(Bars())
        sources = Sources(registry, LayoutSource(), archive, engine)
        yield Context(
            TimedRepository(make_repository(config, stopping), held), sources, recipe, state,
            Spool(config.spool_dir, config.spool_limit),
            IndexCache(config.state_dir / "indexes/layers"), IndexCache(config.state_dir / "indexes/trees"),
            clock or now, replace(sources, registry=registry.urgent()), telling(bars),
            Backoff(schedule) if isinstance(schedule, timedelta) else Backoff(), backlog or Backlog(),
            stack.enter_context(collecting()), asked,
        )  # fmt: skip


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)


def _engine(config: Config, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment that tells which engine is meant, with what the configuration says of it."""
    return {**environment, "DOCKER_HOST": config.docker_host} if config.docker_host else environment


def _settings(options: RegistryOptions) -> RegistrySettings:
    return RegistrySettings(
        options.insecure, options.requests_per_second, options.concurrency,
        options.credentials, options.ca_file, options.mirrors, options.ratelimit_floor,
        options.foreign_layers,
    )  # fmt: skip
