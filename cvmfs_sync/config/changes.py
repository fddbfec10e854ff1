"""What a running daemon can take over from a new configuration."""

from __future__ import annotations

from operator import attrgetter

from cvmfs_sync.config.settings import Config
from cvmfs_sync.errors import UsageError

__all__ = ["require_changeable"]

# What everything that was published and remembered stands on; a daemon that changed it on its way would leave both.
_FIXED = ("repository.backend", "repository.name", "repository.root", "repository.spool", "layout", "state_dir",
          "metrics.listen")  # fmt: skip


def require_changeable(old: Config, new: Config) -> None:
    """Refuse what only a restart can change.

    Raises:
        UsageError: With all that is so.
    """
    values = [(key, attrgetter(key)(old), attrgetter(key)(new)) for key in _FIXED]
    changed = [f"{key}: {before} is to become {after}" for key, before, after in values if before != after]
    if changed:
        raise UsageError(
            "the new configuration changes what a running daemon cannot change",
            found="; ".join(changed), todo="restart the daemon, or take that back",
        )  # fmt: skip
