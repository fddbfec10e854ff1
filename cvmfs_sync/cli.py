"""The command line: arguments, exit codes, and the only place that wires things together.

Exit codes: 0 all is well; 1 an image failed, or check or fsck found an error; 2 usage, configuration or list invalid;
3 the repository or the machine stopped us; 70 a defect of cvmfs-sync itself (EX_SOFTWARE of sysexits.h);
130 interrupted.
"""

from __future__ import annotations

import enum
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from cvmfs_sync import __version__
from cvmfs_sync.console import print_error, print_json, printable, set_up_logging, show_work
from cvmfs_sync.errors import CvmfsSyncError, RepositoryError, UsageError
from cvmfs_sync.reference import Platform, parse_image
from cvmfs_sync.stopping import Stopping, Terminated

# A command imports what it needs: all of it together takes longer than most commands.

__all__ = ["app", "main"]

log = logging.getLogger(__name__)

app = typer.Typer(
    help="Keep a CernVM-FS repository in step with a list of container images.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130
_DEFECT = 70
ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", metavar="FILE", envvar="CVMFS_SYNC_CONFIG", help="Read this configuration file."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout instead of text.")]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Talk plain HTTP to the image's registry, not HTTPS.")]
PlatformOption = Annotated[
    str,
    typer.Option(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="Choose this platform where an image is there for several."
    ),
]
ImagesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE", help="Restrict it to these images; all of the list by default."),
]
ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="An image reference such as alpine or ghcr.io/org/name:tag, or oci:DIR[:tag], docker-archive:FILE[:tag],"
        " docker-daemon:name[:tag], oras://registry/repository:tag.",
    ),
]
_DEFAULT_CONFIG = Path("cvmfs-sync.yaml")
_DEFAULT_PLATFORM = str(Platform())


class LogFormat(enum.StrEnum):
    """How lines are logged."""

    CONSOLE = "console"
    JSON = "json"


class Format(enum.StrEnum):
    """How `check` prints what it found."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if sys.stdout is None or sys.stderr is None:
        # The next file that is opened would take the free descriptor, and get what is meant for a person.
        return UsageError.exit_code
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _invoke(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
        sys.stdout.flush()
    except CvmfsSyncError as error:
        print_error(error)
        code = error.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "cvmfs-sync"
        sys.stderr.write(f"cvmfs-sync: {error.format_message()}\n  to do:    see '{command} --help'\n")
        code = error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("cvmfs-sync: interrupted; what was published before stays, nothing is left half done\n")
        code = _INTERRUPTED
    except BrokenPipeError:
        code = 1  # whoever read our output has gone
    except OSError as error:
        where = "standard output" if error.filename is None else printable(str(error.filename))
        sys.stderr.write(f"cvmfs-sync: {error.strerror or error}: {where}\n")
        log.debug("unexpected", exc_info=True)
        code = RepositoryError.exit_code
    except Exception as error:
        sys.stderr.write(
            f"cvmfs-sync: a defect of cvmfs-sync: {type(error).__name__}: {printable(str(error))[:500]}\n"
            "  to do:    report it, with the output of the same command after 'cvmfs-sync -vv'\n"
        )
        log.debug("unexpected", exc_info=True)
        code = _DEFECT
    _close_output()
    return code


def _invoke(arguments: list[str]) -> int:
    """What typer's own `main` does, without its ways to say that something failed."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("cvmfs-sync", arguments) as context:
            code = command.invoke(context)
    except typer.Exit as ended:
        code = ended.exit_code
    return code if isinstance(code, int) else 0


def _close_output() -> None:
    """Python would flush at its exit, and complain there, with an exit code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(received: int, _frame: object) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _already_stopping)
    raise Terminated if received == signal.SIGTERM else KeyboardInterrupt


def _stop_by(stopping: Stopping) -> None:
    """Have the signals that end us ask for an end in time."""

    def stop(received: int, _frame: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _already_stopping)
        stopping.request(Terminated() if received == signal.SIGTERM else KeyboardInterrupt())

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def _already_stopping(_signal: int, _frame: object) -> None:
    # An interrupted clean-up would leave what it was about to clean up. SIGKILL is always safe: the next run cleans up.
    os.write(2, b"cvmfs-sync: cleaning up; please wait\n")


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"cvmfs-sync {__version__}\n")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            show_default=False,
            help="Log each unit of work to stderr; given twice, each step, and tracebacks.",
        ),
    ] = 0,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="Log lines for people, or one JSON document a line.")
    ] = LogFormat.CONSOLE,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    set_up_logging(verbose=verbose, as_json=log_format is LogFormat.JSON)


@app.command("check")
def _check(
    image_list: Annotated[
        Path, typer.Argument(metavar="LIST", help="The list to check: an image list, or OSG's or DUCC's.")
    ],
    changed_since: Annotated[
        Path | None,
        typer.Option("--changed-since", metavar="LIST", help="Look only at what is not in this older list."),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the registries, too: is each image there, and how large is it?")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Registries' options and paths for --online."),
    ] = None,
    json_output: JsonOption = False,
    output: Annotated[
        Format,
        typer.Option("--format", help="'github' prints annotations that its pull requests show beside the lines."),
    ] = Format.TEXT,
) -> int:
    """Validate an image list.

    All its errors are reported at once, each with its line. Exit code 1 if there is one; warnings are no errors.
    """
    from cvmfs_sync import checking
    from cvmfs_sync.render import plan_document, print_plan, problem_document, workflow_commands
    from cvmfs_sync.service import now

    for path in (image_list, changed_since):
        if path is not None:
            _require_file(path)
    today = now().date()
    wishes = checking.load_any(image_list, today)
    if changed_since is not None:
        wishes = checking.changed_since(wishes, checking.load_any(changed_since, today))
    decided = checking.online(wishes, config) if online else None
    failing = decided.failing if decided else 0
    if json_output or output is Format.JSON:
        document = {
            "valid": not wishes.errors,
            "images": len(wishes.wishes),
            "problems": [problem_document(problem) for problem in wishes.problems],
        }
        print_json(document | ({"online": plan_document(decided)} if decided else {}))
    else:
        if output is Format.GITHUB:
            for line in workflow_commands(str(image_list), wishes, decided):
                sys.stdout.write(f"{line}\n")
        else:
            for problem in wishes.problems:
                sys.stdout.write(f"{problem}\n")
        if decided:
            print_plan(decided)
        state = f"{len(wishes.errors)} errors" if wishes.errors else "valid"
        sys.stdout.write(f"{image_list}: {state}, {len(wishes.wishes)} images, {len(wishes.warnings)} warnings\n")
    return 1 if wishes.errors or failing else 0


@app.command("plan")
def _plan(config: ConfigOption = _DEFAULT_CONFIG, json_output: JsonOption = False) -> int:
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
    config: ConfigOption = _DEFAULT_CONFIG,
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
    if json_output:
        print_json(report_document(report))
    else:
        print_report(report_document(report))
    if report.stopped is not None and json_output:
        print_error(report.stopped)
    return report.exit_code


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


@app.command("run")
def _run(context: typer.Context, config: ConfigOption = _DEFAULT_CONFIG) -> int:
    """Sync by the schedule until stopped, and serve metrics and pages.

    Logs each unit of work to stderr. SIGHUP has it read its configuration again, and the list. Exit code 0 when SIGTERM
    ends it: within stop_within, in which a publish that is nearly done is finished, and any other is aborted.
    """
    from cvmfs_sync.notify import Notifier
    from cvmfs_sync.render import report_document
    from cvmfs_sync.service import load_config
    from cvmfs_sync.serving import Daemon

    show_work()
    stopping = Stopping()
    with suppress(Terminated):
        _stop_by(stopping)
        notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
        log_format = context.parent.params["log_format"] if context.parent else LogFormat.CONSOLE
        pages = [sys.executable, "-m", "cvmfs_sync", "--log-format", str(log_format), "serve"]
        pages += ["--config", str(config), "--parent", str(os.getpid())]
        Daemon(lambda: load_config(config), report_document, stopping=stopping, notifier=notifier, pages=pages).run()
    log.info("stopped by SIGTERM")
    return 0


@app.command("serve")
def _serve(
    config: ConfigOption = _DEFAULT_CONFIG,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True, help="End when this process ends.")] = None,
) -> int:
    """Show pages and answer the API at web.listen until stopped.

    Only reads, and needs no daemon; where one runs, it does this by itself. Exit code 0 when SIGTERM ends it.
    """
    from cvmfs_sync.service import load_config
    from cvmfs_sync.web.process import serve_pages

    show_work()
    with suppress(Terminated):
        serve_pages(load_config(config), parent=parent)
    return 0


@app.command("gc")
def _gc(
    config: ConfigOption = _DEFAULT_CONFIG,
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
    if json_output:
        print_json(collection_document(report))
    else:
        print_collection(report)
    if report.stopped is not None and json_output:
        print_error(report.stopped)
    return report.exit_code


@app.command("fsck")
def _fsck(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Restrict it to these images; all that is published by default."),
    ] = None,
    config: ConfigOption = _DEFAULT_CONFIG,
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
    if json_output:
        print_json(fsck_document(report))
    else:
        print_fsck(report)
    if report.stopped is not None and json_output:
        print_error(report.stopped)
    return report.exit_code


@app.command("status")
def _status(
    images: ImagesArgument = None, config: ConfigOption = _DEFAULT_CONFIG, json_output: JsonOption = False
) -> int:
    """Show which images are published, and why others are not.

    Asks no registry: it tells what the last cycles found. With IMAGE, tells about images that nobody asked for, too.
    """
    from cvmfs_sync.render import print_status, status_document
    from cvmfs_sync.service import known_wishes, load_config, make_recipe, make_repository, now
    from cvmfs_sync.state import State
    from cvmfs_sync.status import image_status

    settings = load_config(config)
    only = [parse_image(image) for image in images or ()]
    repository = make_repository(settings)
    with State.snapshot(settings.state_dir) as state:
        known, about = known_wishes(settings, state)
        statuses = image_status(repository, make_recipe(settings).layout, state, known.wished_on(now().date()), only)
    if json_output:
        print_json({"list": about, "images": [status_document(repository.root, status) for status in statuses]})
    else:
        print_status(repository.root, statuses)
    if about["refused"] is not None:
        sys.stderr.write(
            printable(f"cvmfs-sync: the image list is not valid, an older one is in force: {about['refused']}\n")
        )
    return 0


@app.command("where")
def _where(
    image: ImageArgument,
    config: ConfigOption = _DEFAULT_CONFIG,
) -> int:
    """Print the path to run an image from.

    If it is not published, print where else to get it: docker://..., which Apptainer takes as well.
    """
    from cvmfs_sync.inventory import published
    from cvmfs_sync.layout import runnable
    from cvmfs_sync.service import load_config, make_recipe, make_repository

    settings = load_config(config)
    name = parse_image(image)
    layout = make_recipe(settings).layout
    repository = make_repository(settings)
    link = layout.link(name)
    there = published(repository, layout, link) is not None
    sys.stdout.write(f"{repository.root / link if there else runnable(name)}\n")
    return 0


class ExportForm(enum.StrEnum):
    """For which program a dictionary is."""

    GLIDEINWMS = "glideinwms"
    HTCONDOR = "htcondor"
    JSON = "json"


@app.command("export")
def _export(
    config: ConfigOption = _DEFAULT_CONFIG,
    form: Annotated[
        ExportForm, typer.Option("--format", help="GlideinWMS's SINGULARITY_IMAGES_DICT, or JSON for HTCondor.")
    ] = ExportForm.JSON,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY=IMAGE", help="Only this image, under this key; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write this file; stdout by default.")
    ] = None,
) -> int:
    """Print the published images as a dictionary for a batch system.

    What its syntax cannot hold is left out and told on stderr. Exit code 1 if that was an image that --key names; then
    FILE stays as it was.
    """
    from cvmfs_sync.exports import export, parse_keys
    from cvmfs_sync.service import load_config
    from cvmfs_sync.web.process import open_view

    chosen = parse_keys(keys or ())
    with open_view(load_config(config)) as view:
        exported = export(view.every(), form.value, chosen)
    for each in exported.left_out:
        sys.stderr.write(printable(f"{each.image} is left out: {each.reason}\n"))
    if any(each.asked for each in exported.left_out):
        return 1
    if output is None:
        sys.stdout.write(exported.text)
        return 0
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        fresh.write_text(exported.text)
        fresh.replace(output)
    finally:
        fresh.unlink(missing_ok=True)
    return 0


@app.command("import")
def _import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="OSG's docker_images.txt, or a recipe of DUCC.")],
) -> int:
    """Turn another tool's list into an image list, on stdout.

    What could not be carried over is told on stderr, by line. Exit code 1 if that was an image.
    """
    from cvmfs_sync.importers import convert

    _require_file(file)
    imported = convert(file.read_text(encoding="utf-8", errors="replace"), str(file))
    sys.stdout.write(imported.text)
    for problem in imported.problems:
        sys.stderr.write(f"{problem}\n")
    sys.stderr.write(f"{file}: {imported.images} images imported, {len(imported.problems)} remarks\n")
    return 1 if any(problem.severity == "error" for problem in imported.problems) else 0


@app.command("unpack")
def _unpack(
    image: ImageArgument,
    destination: Annotated[
        Path,
        typer.Argument(
            metavar="DEST",
            help="The directory to make; it may be there if it is empty. Of a SIF file, the file, which may not.",
        ),
    ],
    insecure: InsecureOption = False,
    platform: PlatformOption = _DEFAULT_PLATFORM,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Add what Apptainer needs and make all readable, as sync does.")
    ] = False,
) -> int:
    """Unpack one image into a directory.

    Needs no repository and no configuration. DEST appears when it is whole; after an error nothing is there. Owners and
    devices are kept when root unpacks. A SIF file (oras://...) stays what it is: DEST becomes that file.
    """
    from cvmfs_sync.standalone import unpack

    unpack(parse_image(image), destination, Platform.parse(platform), insecure=insecure, sandbox=sandbox)
    return 0


@app.command("squash")
def _squash(
    image: ImageArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write this file; stdout by default.")
    ] = None,
    insecure: InsecureOption = False,
    platform: PlatformOption = _DEFAULT_PLATFORM,
) -> int:
    """Write one image as one flat tar archive.

    Needs no repository and no configuration. FILE appears when it is whole. Layers wait in TMPDIR, /var/tmp by default.
    """
    from cvmfs_sync.standalone import squash

    squash(parse_image(image), output, Platform.parse(platform), insecure=insecure)
    return 0


def _require_file(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(
            f"{path}: the image list cannot be read", found=error.strerror, todo="name an existing file"
        ) from None
