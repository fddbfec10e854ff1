"""The wiring of a view: a configuration becomes what there is to be seen of its repository.

For all that show or write it: the server, the static site, dictionaries. Nothing is written here, and no registry is
asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvmfs_sync.config import Config
from cvmfs_sync.control import ask
from cvmfs_sync.service import known_wishes, make_recipe, make_repository, now
from cvmfs_sync.view.queries import Origins, View
from cvmfs_sync.view.redaction import Redaction

__all__ = ["open_view", "redaction"]


@contextmanager
def open_view(config: Config, *, watch: bool = True) -> Iterator[View]:
    """What there is to be seen of a configuration's repository.

    Args:
        config: Of the repository.
        watch: See `View`. If not, the daemon is not asked either: what it does is of the moment.
    """

    def live() -> Mapping[str, Any] | None:
        return ask(config.state_dir, {"show": "activity"})

    view = View(
        Origins(
            make_repository(config),
            make_recipe(config).layout,
            config.state_dir,
            lambda state: known_wishes(config, state),
            lambda: _list_version(config),
            live if watch else lambda: None,
            now,
            redaction(config),
        ),
        watch=watch,
    )
    try:
        yield view
    finally:
        view.close()


def redaction(config: Config) -> Redaction:
    """What of this configuration is nobody's business."""
    named = {"state_dir": config.state_dir, "spool_dir": config.spool_dir, "tmp": Path(tempfile.gettempdir())}
    if isinstance(config.image_list, Path):
        named["image_list"] = config.image_list
    return Redaction([config.repository.root, Path("/cvmfs")], named)


def _list_version(config: Config) -> object:
    """Something else whenever the list in force may be another one."""
    paths = [config.image_list] if isinstance(config.image_list, Path) else []
    with_copies = [*paths, *sorted(config.state_dir.glob("image-list*"))]
    return tuple((str(path), *_stamp(path)) for path in with_copies)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
