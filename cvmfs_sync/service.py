"""A configuration becomes objects that work: the wiring of every command that has a repository.

A `Config` goes in; sources, repository, state and spool come out, put together in a `Context`, and closed after use.
The only other place that knows adapters is `standalone`, for the commands that need no configuration.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cvmfs_sync.config import Config, RegistryOptions, load
from cvmfs_sync.console import Bars
from cvmfs_sync.fetch import Spool
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.layout import Layout
from cvmfs_sync.listsource import read_list
from cvmfs_sync.plan import Context
from cvmfs_sync.ports import Repository
from cvmfs_sync.publish import Recipe
from cvmfs_sync.registry import LayoutSource, RegistrySettings, RegistrySource
from cvmfs_sync.repository import CvmfsRepository, DirectoryRepository
from cvmfs_sync.resolve import Sources
from cvmfs_sync.state import State
from cvmfs_sync.tar import Limits

__all__ = ["load_config", "make_context", "make_recipe", "make_repository", "now", "read_wishes"]


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
def make_context(config: Config, state: State | None = None) -> Iterator[Context]:
    """All that a cycle works with; `state` is closed with the rest."""
    settings = {host: _settings(options) for host, options in config.registries.items()}
    with ExitStack() as stack:
        state = stack.enter_context(state or State(config.state_dir))
        registry = RegistrySource(settings, default=_settings(RegistryOptions()))
        stack.callback(registry.close)
        bars = stack.enter_context(Bars())
        yield Context(
            make_repository(config), Sources(registry, LayoutSource()), make_recipe(config), state,
            Spool(config.spool_dir), now, bars,
        )  # fmt: skip


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)


def _settings(options: RegistryOptions) -> RegistrySettings:
    return RegistrySettings(options.insecure, options.requests_per_second, options.concurrency)
