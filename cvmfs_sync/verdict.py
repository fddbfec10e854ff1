"""What `check` prints: a list's problems and, by `--online`, what would become of its images.

Problems and an `Online` go in; text for people, a document for programs, or annotations for GitHub come out. Each
problem is told once, in whichever form.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvmfs_sync.advice import size_in_words
from cvmfs_sync.checking import Online
from cvmfs_sync.console import print_table, printable
from cvmfs_sync.forecast import Forecast, Shared
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.plan import Plan, Publish, Step
from cvmfs_sync.render import plan_document, plan_summary, problem_document, short_digest
from cvmfs_sync.survey import Failed
from cvmfs_sync.units import human_size
from cvmfs_sync.yamlfile import Problem

__all__ = ["all_problems", "check_document", "print_check", "workflow_commands"]


def all_problems(wishes: ImageList, online: Online | None) -> tuple[Problem, ...]:
    """The list's own problems, and what the registries say, by line."""
    found = [*wishes.problems, *(each.problem for each in (online.advice if online else ()))]
    return tuple(sorted(found, key=lambda problem: problem.line or 0))


def check_document(wishes: ImageList, online: Online | None) -> dict[str, Any]:
    """The whole verdict."""
    document: dict[str, Any] = {
        "valid": not wishes.errors,
        "images": len(wishes.wishes),
        "problems": [problem_document(problem) for problem in all_problems(wishes, online)],
    }
    if online is not None:
        plan = plan_document(online.plan) if online.plan else {"steps": [], "expired": []}
        for step, told in zip(online.plan.steps if online.plan else (), plan["steps"], strict=True):
            told.update(_forecast_document(step, online))
        document["online"] = plan
    return document


def _forecast_document(step: Step, online: Online) -> dict[str, Any]:
    forecast = online.forecasts.get(step.target.link)
    size = forecast.unpacked if forecast else None
    shared = forecast.shared if forecast else None
    exact = forecast is not None and forecast.published
    return {
        "line": step.target.wish.line,
        "path": str(online.root / step.target.link) if online.root else None,
        "compressed": forecast.compressed if forecast else None,
        "unpacked": {"bytes": size.likely, "low": size.low, "high": size.high, "exact": exact} if size else None,
        "shared": {"layers": shared.layers, "bytes": shared.bytes, "image": shared.relative} if shared else None,
    }


def workflow_commands(file: str, wishes: ImageList, online: Online | None) -> Iterator[str]:
    """Problems, and what would be published, as workflow commands of GitHub Actions.

    Args:
        file: The list's name, from the top of its repository.
        wishes: The list.
        online: For what would be published; images that have a problem of their own are not told of again.
    """
    for problem in all_problems(wishes, online):
        text = ": ".join(part for part in (problem.where, problem.message) if part)
        yield _annotation(problem.severity, file, problem.line, text)
    if online is None or online.plan is None:
        return
    told = {link for advice in online.advice for link in advice.links}
    for step in online.plan.steps:
        forecast = online.forecasts.get(step.target.link)
        if isinstance(step, Publish) and forecast is not None and step.target.link not in told:
            text = f"{step.target}: would be published at {_path(step, online)}: {size_in_words(forecast)}"
            if forecast.shared is not None:
                text += f"; published of it: {_shared(forecast.shared)}"
            yield _annotation("notice", file, step.target.wish.line, text)


def _annotation(level: str, file: str, line: int | None, text: str) -> str:
    place = f"file={_property(file)}" + (f",line={line}" if line is not None else "")
    return f"::{level} {place}::{_data(printable(text))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def print_check(image_list: Path, wishes: ImageList, online: Online | None, *, github: bool) -> None:
    """Problems, a table of what would become of the images that have none, and a summary."""
    problems = all_problems(wishes, online)
    for line in workflow_commands(str(image_list), wishes, online) if github else map(str, problems):
        sys.stdout.write(f"{line if github else printable(line)}\n")
    if online and online.plan:
        _print_images(online.plan, online)
    errors = [problem for problem in problems if problem.severity == "error"]
    state = f"{len(errors)} errors" if errors else "valid"
    warnings = len(problems) - len(errors)
    sys.stdout.write(f"{image_list}: {state}, {len(wishes.wishes)} images, {warnings} warnings\n")


def _print_images(plan: Plan, online: Online) -> None:
    rows = []
    for step, told in zip(plan.steps, plan_document(plan)["steps"], strict=True):
        if not isinstance(step, Failed):
            sizes = _sizes(step, online.forecasts.get(step.target.link))
            rows.append((told["action"], str(step.target), short_digest(told["digest"]), *sizes, _path(step, online)))
    print_table(
        ("action", "image", "digest", "compressed", "unpacked", "published of it", "path"),
        rows,
        caption=plan_summary(plan),
    )


def _sizes(step: Step, forecast: Forecast | None) -> tuple[str, str, str]:
    """Compressed, unpacked, and what of it is published."""
    if forecast is None:
        return "unknown", "unknown", "unknown"
    size = size_in_words(forecast).partition(", ")[2]
    unpacked = "unknown" if forecast.unpacked is None else size.replace(" unpacked", "")
    shared = _shared(forecast.shared) if forecast.shared else "unknown" if isinstance(step, Publish) else "all"
    return human_size(forecast.compressed), unpacked, shared


def _shared(shared: Shared) -> str:
    return f"{human_size(shared.bytes)} with {shared.relative}" if shared.relative else "nothing"


def _path(step: Step, online: Online) -> str:
    return str(online.root / step.target.link) if online.root else step.target.link
