"""What `check` does beyond reading a list: only what a pull request changes, and asking the registries.

Lists go in, the part of them that has changed and what would become of it come out. Nothing is published.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cvmfs_sync.config import Config
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.plan import Plan, plan
from cvmfs_sync.service import load_config, make_context
from cvmfs_sync.state import State

__all__ = ["changed_since", "online"]


def changed_since(new: ImageList, old: ImageList) -> ImageList:
    """What of `new` is not in `old`: entries that were added or changed, and mistakes that were not made before."""
    known = {replace(wish, line=0) for wish in old.wishes}
    before = {(problem.severity, problem.message) for problem in old.problems}
    return ImageList(
        tuple(wish for wish in new.wishes if replace(wish, line=0) not in known),
        tuple(problem for problem in new.problems if (problem.severity, problem.message) not in before),
    )


def online(wishes: ImageList, config: Path | None) -> Plan:
    """Ask the registries what each wish means, and say what publishing it would take.

    Args:
        wishes: Those that could be read are asked for, also if others have mistakes.
        config: For the registries' options, and to tell what is published already; without one, nothing is.

    Raises:
        UsageError: The configuration is wrong, or two wishes claim one link.
    """
    if config is not None:
        settings = load_config(config)
        with make_context(settings, State.snapshot(settings.state_dir)) as context:
            return plan(context, wishes)
    with TemporaryDirectory(prefix="cvmfs-sync-") as directory:
        settings = Config.model_validate(
            {"repository": {"root": f"{directory}/published"}, "state_dir": f"{directory}/state"},
            context={"base": Path(directory)},
        )
        with make_context(settings, State.snapshot(settings.state_dir)) as context:
            return plan(context, wishes)
