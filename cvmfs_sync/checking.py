"""What `check` does beyond reading a list: only what a pull request changes, and asking the registries.

Lists go in, the part of them that has changed and what would become of it come out. Nothing is published.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from cvmfs_sync.config import Config
from cvmfs_sync.imagelist import ImageList, load, parse
from cvmfs_sync.importers import convert, is_foreign
from cvmfs_sync.plan import Plan, plan
from cvmfs_sync.service import load_config, make_context
from cvmfs_sync.state import State
from cvmfs_sync.yamlfile import parse as parse_yaml

__all__ = ["changed_since", "load_any", "online"]


def load_any(file: Path, today: date) -> ImageList:
    """Read an image list, or another tool's list as `import` would, with the lines of the file.

    Args:
        file: One that can't be read is a problem of the list.
        today: Wishes that expired before this day get a warning.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return load(file, today=today)
    if not is_foreign(text, parse_yaml(text, str(file))):
        return load(file, today=today)
    imported = convert(text, str(file))
    wishes = parse(imported.text, base=file.parent.absolute(), today=today, file=str(file))

    def original(line: int | None) -> int | None:
        return imported.origins[line] or None if line is not None and line < len(imported.origins) else line

    told = [replace(problem, line=original(problem.line), where="") for problem in wishes.problems]
    problems = sorted([*imported.problems, *told], key=lambda problem: problem.line or 0)
    found = tuple(replace(wish, line=original(wish.line) or 1) for wish in wishes.wishes)
    return ImageList(found, tuple(problems), wishes.blocked)


def changed_since(new: ImageList, old: ImageList) -> ImageList:
    """What of `new` is not in `old`: entries that were added or changed, and mistakes that were not made before."""
    known = {replace(wish, line=0) for wish in old.wishes}
    before = {(problem.severity, problem.message) for problem in old.problems}
    return ImageList(
        tuple(wish for wish in new.wishes if replace(wish, line=0) not in known),
        tuple(problem for problem in new.problems if (problem.severity, problem.message) not in before),
        new.blocked,
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
