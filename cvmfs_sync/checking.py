"""What `check` does beyond reading a list: only what a pull request changes, and asking the registries.

Lists go in, the part of them that has changed and what would become of it come out. Nothing is published.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from cvmfs_sync.advice import Advice, Places, Sizes, advise
from cvmfs_sync.config import Config
from cvmfs_sync.errors import ListError
from cvmfs_sync.forecast import Forecast, forecast
from cvmfs_sync.imagelist import ImageList, load, parse
from cvmfs_sync.importers import convert, is_foreign
from cvmfs_sync.plan import Plan, plan
from cvmfs_sync.service import load_config, make_context
from cvmfs_sync.state import State
from cvmfs_sync.survey import require_distinct_links
from cvmfs_sync.yamlfile import Problem
from cvmfs_sync.yamlfile import parse as parse_yaml

__all__ = ["Online", "added_lines", "changed_since", "load_any", "online"]

# Entries move when others are added above them.
_LINE_NUMBER = re.compile(r"(?<=\bon line )\d+")
_LINE_NUMBERS = re.compile(rf"{_LINE_NUMBER.pattern}|(?<=\bon lines )\d+ and \d+|(?<=\bin line )\d+")


def load_any(file: Path, today: date, beside: Path | None = None) -> ImageList:
    """Read an image list, or another tool's list as `import` would, with the lines of the file.

    Args:
        file: One that can't be read is a problem of the list.
        today: Wishes that expired before this day get a warning.
        beside: The file from whose directory relative paths in names start; `file` itself if None.
    """
    try:
        content = file.read_bytes()
    except OSError:
        return load(file, today=today)
    base = (beside or file).absolute().parent
    text = content.decode("utf-8-sig", errors="replace")
    if not is_foreign(text, parse_yaml(text, str(file))):
        return parse(content, base=base, today=today, file=str(file))
    imported = convert(text, str(file))
    wishes = parse(imported.text, base=base, today=today, file=str(file))

    def original(line: int | None) -> int | None:
        return imported.origins[line] or None if line is not None and line < len(imported.origins) else line

    def told(problem: Problem) -> Problem:
        message = _LINE_NUMBER.sub(lambda found: str(original(int(found[0]))), problem.message)
        return replace(problem, line=original(problem.line), where="", message=message)

    problems = sorted([*imported.problems, *map(told, wishes.problems)], key=lambda problem: problem.line or 0)
    found = tuple(replace(wish, line=original(wish.line) or 1) for wish in wishes.wishes)
    return ImageList(found, tuple(problems), wishes.blocked)


def changed_since(new: ImageList, old: ImageList, added: Collection[int]) -> ImageList:
    """What of `new` is not in `old`: entries that were added or changed, and mistakes that were not made before.

    Args:
        new: A list.
        old: What it was before.
        added: Lines of `new` that are not in `old`. A mistake that two lines make together is told at the one of these.
    """
    known = {replace(wish, line=0) for wish in old.wishes}
    before = {_mistake(problem) for problem in old.problems}
    return ImageList(
        tuple(wish for wish in new.wishes if replace(wish, line=0) not in known),
        tuple(_at_addition(problem, added) for problem in new.problems if _mistake(problem) not in before),
        new.blocked,
    )


def added_lines(new: Path, old: Path) -> frozenset[int]:
    """The numbers of a file's lines that are not in an older one."""
    ours, theirs = (file.read_bytes().splitlines() for file in (new, old))
    # Mostly all but a few lines are the same, and comparing takes their number squared.
    start = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    start = min(len(ours), len(theirs)) if start is None else start
    end = 0
    while end < min(len(ours), len(theirs)) - start and ours[-1 - end] == theirs[-1 - end]:
        end += 1
    matcher = difflib.SequenceMatcher(None, theirs[start : len(theirs) - end], ours[start : len(ours) - end])
    return frozenset(
        start + number + 1
        for kind, _, _, first, last in matcher.get_opcodes()
        if kind != "equal"
        for number in range(first, last)
    )


def _at_addition(problem: Problem, added: Collection[int]) -> Problem:
    if problem.line in added:
        return problem
    others = [int(number) for found in _LINE_NUMBERS.findall(problem.message) for number in found.split(" and ")]
    return replace(problem, line=next((line for line in others if line in added), problem.line))


def _mistake(problem: Problem) -> tuple[str, str]:
    """What is wrong, wherever it stands."""
    return problem.severity, _LINE_NUMBERS.sub("", problem.message)


@dataclass(frozen=True, slots=True)
class Online:
    """What the registries say of a list.

    Attributes:
        plan: What would be done; None where the wishes can't be had together.
        forecasts: What that would take, by link.
        advice: What is wrong with the wishes, beyond the list's own problems.
        root: Below which links will be; None where no configuration tells.
    """

    plan: Plan | None
    forecasts: Mapping[str, Forecast]
    advice: tuple[Advice, ...]
    root: Path | None


def online(wishes: ImageList, whole: ImageList, file: Path, config: Path | None) -> Online:
    """Ask the registries what each wish means, and say what publishing it would take.

    Args:
        wishes: What is asked for: those that could be read, also if others have mistakes.
        whole: The list that they are a part of. What they can't be had together with may be anywhere in it.
        file: The list, for the lines of its entries.
        config: For the registries' options, and to tell what is published already; without one, nobody knows.

    Raises:
        UsageError: The configuration is wrong.
    """
    places = _places(file)
    if config is not None:
        settings = load_config(config)
        root = settings.repository.root
        return _ask(wishes, whole, places, settings, told=root.is_dir(), root=root)
    with TemporaryDirectory(prefix="cvmfs-sync-") as directory:
        settings = Config.model_validate(
            {"repository": {"root": f"{directory}/published"}, "state_dir": f"{directory}/state"},
            context={"base": Path(directory)},
        )
        return _ask(wishes, whole, places, settings, told=False, root=None)


def _ask(
    wishes: ImageList, whole: ImageList, places: Places, settings: Config, *, told: bool, root: Path | None
) -> Online:
    with make_context(settings, State.snapshot(settings.state_dir)) as context:
        try:
            require_distinct_links(context.recipe.layout, whole.wished_on(context.now().date()).wishes)
            # Whoever checks wants to know how it is now, not how it was when it failed.
            decided = plan(context, wishes, retry=True)
        except ListError as error:
            ours = {wish.line for wish in wishes.wishes}
            lines = sorted(error.lines, key=lambda line: (line in ours, line))
            problem = Problem(places.file, lines[-1] if lines else None, "", str(error))
            return Online(None, {}, (Advice(problem),), root)
        forecasts = forecast(context, decided, told=told)
        sizes = Sizes(context.recipe.limits.bytes, settings.spool_limit, settings.large_image)
        return Online(decided, forecasts, advise(context, wishes, decided, forecasts, places, sizes), root)


def _places(file: Path) -> Places:
    """Where the entries of a list stand; those of another tool's list know their lines."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    document = parse_yaml(text, str(file))
    return Places(str(file), {} if is_foreign(text, document) else document.lines)
