"""What the commands print: tables for people, documents for programs.

Values of the core go in, text or plain data comes out. A field of a document is documented in `docs/errors.md` or
`docs/repository-layout.md`, or says what it is by its name; fields are only ever added.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cvmfs_sync.collection import CollectionReport
from cvmfs_sync.console import document, print_error, print_table, printable
from cvmfs_sync.errors import CvmfsSyncError
from cvmfs_sync.findings import Finding, Mend
from cvmfs_sync.fsck import FsckReport
from cvmfs_sync.outcome import RESULTS, CycleReport
from cvmfs_sync.plan import Plan, Publish, Relink, Step, Unchanged
from cvmfs_sync.retire import Retirement
from cvmfs_sync.status import ImageStatus
from cvmfs_sync.survey import Failed
from cvmfs_sync.units import human_size
from cvmfs_sync.yamlfile import Problem

__all__ = [
    "collection_document",
    "error_of",
    "fsck_document",
    "plan_document",
    "plan_summary",
    "print_collection",
    "print_fsck",
    "print_plan",
    "print_report",
    "print_status",
    "problem_document",
    "report_document",
    "short_digest",
    "status_document",
]


def problem_document(problem: Problem) -> dict[str, Any]:
    """A mistake in a file."""
    return {
        "file": problem.file,
        "line": problem.line,
        "where": problem.where,
        "severity": problem.severity,
        "message": problem.message,
    }


def plan_document(decided: Plan) -> dict[str, Any]:
    """What sync would do."""
    return {
        "steps": [_step_document(step) for step in decided.steps],
        "expired": [str(wish) for wish in decided.expired],
    }


def print_plan(decided: Plan) -> None:
    """A table of the steps on stdout, the failures in full on stderr."""
    print_table(
        ("action", "image", "digest", "compressed", "reason"),
        [
            (
                s["action"],
                s["image"],
                short_digest(s["digest"]),
                human_size(s["bytes"]) if s["bytes"] else "-",
                s["error"]["what"].removeprefix(f"{s['image']}: ") if "error" in s else s["reason"],
            )
            for s in map(_step_document, decided.steps)
        ],
        caption=plan_summary(decided),
    )
    for step in decided.steps:
        if isinstance(step, Failed):
            print_error(step.error)


def collection_document(report: CollectionReport) -> dict[str, Any]:
    """What was retired, will be, or would be."""
    gone = {each.path for each in report.gone}
    plan = report.plan
    return {
        "exit_code": report.exit_code,
        "dry_run": report.dry_run,
        "seconds": round(report.seconds, 3),
        "refused": plan.refused,
        "stopped": document(report.stopped) if report.stopped else None,
        "retire": [{**_retirement_document(each), "gone": each.path in gone} for each in (*plan.links, *plan.trees)],
        "waiting": [_retirement_document(each) for each in plan.waiting],
    }


def _retirement_document(each: Retirement) -> dict[str, Any]:
    return {
        "kind": "tree" if each.target is None else "link",
        "path": each.path,
        "target": each.target,
        "image": each.image,
        "reason": each.reason,
        "since": each.since.isoformat() if each.since else None,
        "due": each.due.isoformat() if each.due else None,
    }


def print_collection(report: CollectionReport) -> None:
    """A table of what goes and what waits, and why nothing goes if so."""
    gone = {each.path for each in report.gone}
    going = (*report.plan.links, *report.plan.trees)
    rows = [("retired" if each.path in gone else "due", each) for each in going]
    rows += [("waiting", each) for each in report.plan.waiting]
    print_table(
        ("state", "image or tree", "since", "goes", "reason"),
        [
            (
                state,
                each.image or each.path,
                _minutes(each.since.isoformat() if each.since else None),
                "now" if state != "waiting" else _minutes(each.due.isoformat() if each.due else None),
                each.reason,
            )
            for state, each in rows
        ],
        caption=f"{len(gone)} retired, {len(going) - len(gone)} due, {len(report.plan.waiting)} waiting",
    )
    if report.plan.refused is not None:
        sys.stderr.write(f"cvmfs-sync: nothing is retired: {report.plan.refused}\n")
    if report.stopped is not None:
        print_error(report.stopped)


def fsck_document(report: FsckReport) -> dict[str, Any]:
    """What was wrong, and what became of it."""
    return {
        "exit_code": report.exit_code,
        "links": report.links,
        "trees": report.trees,
        "files_read": report.files,
        "unindexed": list(report.unindexed),
        "seconds": round(report.seconds, 3),
        "recovered": report.recovered,
        "stopped": document(report.stopped) if report.stopped else None,
        "findings": [
            {
                "kind": each.kind.value,
                "path": each.path,
                "tree": each.tree,
                "found": each.found,
                "expected": each.expected,
                "mended": each in report.done,
                "todo": _finding_todo(report, each),
            }
            for each in report.findings
        ],
        "foreign": [{"path": each.path, "what": each.what} for each in report.foreign],
    }


def print_fsck(report: FsckReport) -> None:
    """Every finding, and a summary."""
    if report.recovered:
        sys.stdout.write(f"{report.recovered}\n")
    for each in report.findings:
        last = ("to do:", todo) if (todo := _finding_todo(report, each)) else ("mended:", "yes")
        sys.stdout.write(printable(f"{each.kind.value}: {each.path}\n"))
        for label, text in (("found:", each.found), ("expected:", each.expected), last):
            sys.stdout.write(printable(f"  {label:<10}{text}\n"))
    counts = f"{report.links} links, {report.trees} trees, content of {report.files} files"
    left = len(report.findings) - len(report.done)
    sys.stdout.write(f"{counts}: {len(report.done)} mended, {left} left, {report.seconds:.1f} s\n")
    if report.unindexed:
        sys.stdout.write(f"{len(report.unindexed)} trees have lost their index; --content full reads them\n")
    if report.foreign:
        sys.stdout.write(f"{len(report.foreign)} links and trees are not ours; --json names them\n")
    if report.stopped is not None:
        print_error(report.stopped)


def _finding_todo(report: FsckReport, finding: Finding) -> str | None:
    """What is left to do about it."""
    if finding in report.done:
        return None
    begun = report.repair and report.stopped is None and finding.mend is Mend.FORGET_TREE
    return Mend.SYNC.value if begun else finding.mend.value


def print_status(root: Path, statuses: Sequence[ImageStatus]) -> None:
    """A table of the links, and why some of them failed."""
    print_table(
        ("state", "image", "digest", "published", "path"),
        [
            (
                s.state,
                s.image,
                short_digest(s.digest),
                _minutes(s.published_at),
                str(root / s.link) if s.digest else "-",
            )
            for s in statuses
        ],
    )
    for status in statuses:
        if status.failure is not None:
            count, since = status.failure.count, _minutes(status.failure.since.isoformat())
            times = "once, at" if count == 1 else f"{count} times since"
            reason = status.failure.reason.removeprefix(f"{status.image}: ")
            later = status.failure.next_try
            again = f"; tried again after {_minutes(later.isoformat())}" if later else ""
            sys.stdout.write(printable(f"{status.image}: failed {times} {since}{again}: {reason}\n"))


def short_digest(digest: str | None) -> str:
    """The digits by which people tell digests apart."""
    return digest.partition(":")[2][:12] if digest else "-"


def _minutes(timestamp: str | None) -> str:
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(timestamp or "").astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")
    return "-"


def _step_document(step: Step) -> dict[str, Any]:
    common = {"image": str(step.target), "link": step.target.link}
    match step:
        case Publish():
            return {
                "action": "publish", **common, "digest": str(step.image.digest), "bytes": step.image.compressed_size,
                "reason": step.reason, "replaces": str(step.replaces) if step.replaces else None,
            }  # fmt: skip
        case Relink():
            return {"action": "link", **common, "digest": str(step.digest), "bytes": 0, "reason": step.reason}
        case Unchanged():
            return {"action": "keep", **common, "digest": str(step.digest), "bytes": 0, "reason": "unchanged"}
        case Failed():
            return {
                "action": "fail", **common, "digest": None, "bytes": 0,
                "reason": str(step.error), "error": document(step.error),
            }  # fmt: skip


def plan_summary(decided: Plan) -> str:
    """How many steps of each kind there are."""
    counts = {
        kind: sum(isinstance(step, kind) for step in decided.steps) for kind in (Publish, Relink, Unchanged, Failed)
    }
    return (
        f"{counts[Publish]} to publish, {counts[Relink]} to link, {counts[Unchanged]} unchanged, "
        f"{counts[Failed]} failing, {len(decided.expired)} expired"
    )


def report_document(report: CycleReport) -> dict[str, Any]:
    """What became of every target."""
    return {
        "exit_code": report.exit_code,
        "seconds": round(report.seconds, 3),
        "recovered": report.recovered,
        "stopped": document(report.stopped) if report.stopped else None,
        "images": [
            {
                "image": str(outcome.target),
                "link": outcome.target.link,
                "result": outcome.result,
                "digest": str(outcome.digest) if outcome.digest else None,
                "seconds": round(outcome.seconds, 3),
                "made_of": outcome.made_of,
                "written_files": outcome.written_files,
                "written_bytes": outcome.written_bytes,
                "error": document(outcome.error) if outcome.error else None,
            }
            for outcome in report.outcomes
        ],
        "taken_down": [_retirement_document(each) for each in report.taken_down],
    }


def print_report(report: Mapping[str, Any]) -> None:
    """A table of what has changed, a summary, and every failure in full.

    Args:
        report: From `report_document`, be it that of another process.
    """
    images = report["images"]
    rows = [
        (each["result"], each["image"], short_digest(each["digest"]), _written(each), f"{each['seconds']:.1f} s")
        for each in images
        if each["result"] != "unchanged"
    ]
    if rows:
        print_table(("result", "image", "digest", "written", "time"), rows)
    counts = Counter(each["result"] for each in images)
    for each in report["taken_down"]:
        sys.stdout.write(printable(f"taken down: {each['image'] or each['path']}: {each['reason']}\n"))
    if report["recovered"]:
        sys.stdout.write(f"{report['recovered']}\n")
    sys.stdout.write(", ".join(f"{counts[result]} {result}" for result in RESULTS) + f", {report['seconds']:.1f} s\n")
    errors = [each["error"] for each in images if each["error"] and each["error"] != report["stopped"]]
    for error in [*errors, report["stopped"]]:
        if error is not None:
            print_error(error_of(error))


def error_of(told: Mapping[str, Any]) -> CvmfsSyncError:
    """An error that came as a document, for a person."""
    return CvmfsSyncError(
        str(told["what"]), found=told.get("found"), expected=told.get("expected"), todo=told.get("todo")
    )


def _written(image: Mapping[str, Any]) -> str:
    if image["result"] != "published":
        return "-"
    how = "whole" if image["made_of"] is None else "difference"
    return f"{human_size(image['written_bytes'])} ({how})"


def status_document(root: Path, status: ImageStatus) -> dict[str, Any]:
    """One link."""
    failure = status.failure
    return {
        "image": status.image,
        "state": status.state,
        "link": status.link,
        "path": str(root / status.link) if status.digest else None,
        "digest": status.digest,
        "size": status.size,
        "published_at": status.published_at,
        "checked_at": status.checked_at,
        "description": status.description,
        "failure": None
        if failure is None
        else {
            "reason": failure.reason,
            "temporary": failure.temporary,
            "count": failure.count,
            "since": failure.since.isoformat(),
            "last": failure.last.isoformat(),
            "next_try": failure.next_try.isoformat() if failure.next_try else None,
        },
        "history": [
            {"at": event.at.isoformat(), "event": event.event, "digest": event.digest, "detail": event.detail}
            for event in status.history
        ],
    }
