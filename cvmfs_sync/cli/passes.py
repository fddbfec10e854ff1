"""Commands that work through a list once: `plan`, `sync`, `gc`, `fsck`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import typer

from cvmfs_sync.cli.app import app
from cvmfs_sync.cli.options import DEFAULT_CONFIG, ConfigOption, ImagesArgument, JsonOption
from cvmfs_sync.console import print_error, print_json
from cvmfs_sync.errors import CvmfsSyncError
from cvmfs_sync.reference import parse_image


@app.command("plan")
def _plan(config: ConfigOption = DEFAULT_CONFIG, json_output: JsonOption = False) -> int:
    """Print what sync would do, and change nothing.

    Asks the registries as sync does. Exit code 1 if an image would fail.
    """
    from cvmfs_sync.plan import plan
    from cvmfs_sync.render import plan_document, print_plan
    from cvmfs_sync.service import load_config, make_context, read_wishes
    from cvmfs_sync.state import State

    settings = load_config(config)
    wishes = read_wishes(settings)
    with make_context(settings, State.snapshot(settings.state_dir)) as context:
        decided = plan(context, wishes)
    if json_output:
        print_json(plan_document(decided))
    else:
        print_plan(decided)
    return 1 if decided.failing else 0


@app.command("sync")
def _sync(
    images: ImagesArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="Have the running daemon do it before all else, and wait for it; without one, do it here."
        ),
    ] = False,
    patient: Annotated[
        bool,
        typer.Option(
            "--patient", help="Try what fails again and again less and less often, as the daemon does: for timers."
        ),
    ] = False,
    json_output: JsonOption = False,
) -> int:
    """Publish what the list asks for, once.

    Images that are unchanged cost one request each, and images that fail do not keep the others. What the list no
    longer asks for stays. Exit code 1 if an image failed, 3 if the repository or the machine stopped us.
    """
    from cvmfs_sync.cycle import sync
    from cvmfs_sync.locking import instance
    from cvmfs_sync.measured import Measured
    from cvmfs_sync.metrics import Metrics
    from cvmfs_sync.render import print_report, report_document
    from cvmfs_sync.service import load_config, note_list, read_reading
    from cvmfs_sync.service import now as time_now

    settings = load_config(config)
    only = [parse_image(image) for image in images or ()]
    if now:
        code = _ask_daemon(settings.state_dir, [str(name) for name in only], json_output=json_output)
        if code is not None:
            return code
    with Measured(settings, Metrics.cycle_failed) as measured:
        reading = read_reading(settings)
        measured.list_read(valid=reading.refused is None)
        with instance(settings.state_dir), measured.context() as context:
            note_list(settings, context.state, reading.refused, time_now())
            report = sync(context, reading.wishes, only, retry=now or not patient)
        measured.ended(report)
    document = report_document(report)
    return _end(report, document, lambda: print_report(document), json_output=json_output)


def _ask_daemon(state_dir: Path, images: list[str], *, json_output: bool) -> int | None:
    """Have the daemon sync these images and print what becomes of them; the exit code, or None without a daemon."""
    from cvmfs_sync.control import ask
    from cvmfs_sync.render import error_of, print_report

    answer = ask(state_dir, {"sync": images})
    if answer is None:
        return None
    if "error" in answer:
        print_error(error_of(answer["error"]))
    elif json_output:
        print_json(answer["report"])
        if answer["report"]["stopped"] is not None:
            print_error(error_of(answer["report"]["stopped"]))
    else:
        print_report(answer["report"])
    return int(answer["exit_code"])


@app.command("gc")
def _gc(
    config: ConfigOption = DEFAULT_CONFIG,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would go and why, and change nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Retire more than retire.max_fraction at once.")] = False,
    json_output: JsonOption = False,
) -> int:
    """Retire what the list has not asked for since the grace period.

    Asks the registries first: only what is proven to be gone or not wished for goes. Exit code 1 if nothing is retired
    because it would be too much, or the list asks for nothing.
    """
    from cvmfs_sync.collection import collect
    from cvmfs_sync.locking import instance
    from cvmfs_sync.measured import Measured
    from cvmfs_sync.metrics import Metrics
    from cvmfs_sync.render import collection_document, print_collection
    from cvmfs_sync.service import load_config, make_context, make_rules, read_reading, read_wishes
    from cvmfs_sync.state import State

    settings = load_config(config)
    rules = make_rules(settings)
    if dry_run:
        wishes = read_wishes(settings)
        with make_context(settings, State.snapshot(settings.state_dir)) as context:
            report = collect(context, wishes, rules, force=force, dry_run=True)
    else:
        with Measured(settings, Metrics.collection_failed) as measured:
            reading = read_reading(settings)
            measured.list_read(valid=reading.refused is None)
            with instance(settings.state_dir), measured.context() as context:
                report = collect(context, reading.wishes, rules, force=force)
            measured.ended(report)
    return _end(report, collection_document(report), lambda: print_collection(report), json_output=json_output)


@app.command("fsck")
def _fsck(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Restrict it to these images; all that is published by default."),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    content: Annotated[
        Literal["none", "sample", "full"],
        typer.Option(
            help="How many files' content to read: none, a part that changes from day to day, or all. Names, sizes and"
            " metadata of all are looked at in any case."
        ),
    ] = "sample",
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be derived; needs the lock.")] = False,
    json_output: JsonOption = False,
) -> int:
    """Check what is published against its records, and repair it.

    Links, catalogue, records and trees are held against each other. Asks no registry. What is not ours is left alone,
    and nothing that a link leads to is removed. Exit code 1 if anything is wrong and not mended.
    """
    from cvmfs_sync.fsck import fsck
    from cvmfs_sync.locking import instance
    from cvmfs_sync.render import fsck_document, print_fsck
    from cvmfs_sync.service import load_config, make_context
    from cvmfs_sync.state import State
    from cvmfs_sync.treecheck import Amount

    settings = load_config(config)
    only = [parse_image(image) for image in images or ()]
    with ExitStack() as stack:
        if repair:
            stack.enter_context(instance(settings.state_dir))
        state = None if repair else State.snapshot(settings.state_dir)
        context = stack.enter_context(make_context(settings, state))
        report = fsck(context, Amount(content), only, repair=repair)
    return _end(report, fsck_document(report), lambda: print_fsck(report), json_output=json_output)


class _Report(Protocol):
    """Of a pass.

    Attributes:
        stopped: What ended it early.
    """

    @property
    def stopped(self) -> CvmfsSyncError | None: ...

    @property
    def exit_code(self) -> int: ...


def _end(report: _Report, document: dict[str, Any], print_text: Callable[[], object], *, json_output: bool) -> int:
    """Print what a pass has done, as a document or as text; its exit code."""
    if not json_output:
        print_text()
        return report.exit_code
    print_json(document)
    if report.stopped is not None:
        print_error(report.stopped)
    return report.exit_code
