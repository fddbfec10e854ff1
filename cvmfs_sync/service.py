"""A configuration becomes objects that work: the wiring of every command that has a repository.

A `Config` goes in; sources, repository, state and spool come out, put together in a `Context`, and closed after use.
The only other place that knows adapters is `standalone`, for the commands that need no configuration.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cvmfs_sync.collection import Rules
from cvmfs_sync.config import Config, RegistryOptions, load
from cvmfs_sync.console import Bars
from cvmfs_sync.context import Context
from cvmfs_sync.fetch import Spool
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.index import IndexCache
from cvmfs_sync.layout import Layout
from cvmfs_sync.listsource import read_list
from cvmfs_sync.ports import Repository
from cvmfs_sync.prepare import Recipe
from cvmfs_sync.registry import (
    ArchiveSource,
    EngineSource,
    LayoutSource,
    RegistryMemory,
    RegistrySettings,
    RegistrySource,
)
from cvmfs_sync.repository import CvmfsRepository, DirectoryRepository
from cvmfs_sync.resolve import Sources
from cvmfs_sync.state import State
from cvmfs_sync.tar import Limits

__all__ = ["load_config", "make_context", "make_recipe", "make_repository", "make_rules", "now", "read_wishes"]


def load_config(path: Path) -> Config:
    """The configuration in a file, with the environment's changes."""
    return load(path, os.environ)


def read_wishes(config: Config) -> ImageList:
    """The image list in force.

    Raises:
        ListError: There is no valid one.
    """
    return read_list(config.image_list, config.state_dir, today=now().date())


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


def make_repository(config: Config) -> Repository:
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
        )
    return DirectoryRepository(options.root, wait=options.wait)


@contextmanager
def make_context(config: Config, state: State | None = None, memory: RegistryMemory | None = None) -> Iterator[Context]:
    """All that a cycle works with.

    Args:
        config: From `load_config`.
        state: The state database if None; closed with the rest.
        memory: What outlives the cycle of what is learnt about registries; nothing if None.
    """
    settings = {host: _settings(options) for host, options in config.registries.items()}
    with ExitStack() as stack:
        state = stack.enter_context(state or State(config.state_dir))
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
            make_repository(config), sources, recipe, state, Spool(config.spool_dir, config.spool_limit),
            IndexCache(config.state_dir / "indexes/layers"), IndexCache(config.state_dir / "indexes/trees"), now,
            replace(sources, registry=registry.urgent()), bars,
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
