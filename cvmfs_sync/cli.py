"""The command line: arguments, exit codes, and the only place that wires things together.

Exit codes: 0 all is well; 1 an image failed, or check found an error; 2 usage, configuration or list invalid; 3 the
repository or the machine stopped us; 70 a defect of cvmfs-sync itself (EX_SOFTWARE of sysexits.h); 130 interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import stat
import sys
import tempfile
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn

import typer

from cvmfs_sync import __version__
from cvmfs_sync.config import Config, load
from cvmfs_sync.console import (
    Bars,
    document,
    human_size,
    print_error,
    print_json,
    print_table,
    printable,
    set_up_logging,
)
from cvmfs_sync.cycle import RESULTS, Context, CycleReport, Failed, Plan, Publish, Relink, Unchanged, plan, sync
from cvmfs_sync.daemon import run_daemon
from cvmfs_sync.errors import ConfigurationError, CvmfsSyncError, RepositoryError, UsageError
from cvmfs_sync.fetch import Spool, fetching
from cvmfs_sync.flatten import Placement, Sink, Transform, flatten
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.imagelist import load as load_list
from cvmfs_sync.layout import Layout, runnable
from cvmfs_sync.metrics import Metrics
from cvmfs_sync.ports import Repository
from cvmfs_sync.publish import Recipe, published
from cvmfs_sync.reference import ImageName, Platform, parse_image
from cvmfs_sync.registry import LayoutSource, RegistrySettings, RegistrySource
from cvmfs_sync.repository import CvmfsRepository, DirectoryRepository
from cvmfs_sync.resolve import Sources, resolve, source_digest
from cvmfs_sync.rootfs import SANDBOX, DirectorySink, exact_policy, os_errors, remove_tree
from cvmfs_sync.sandbox import furnish
from cvmfs_sync.squash import OutOfOrder, TarSink
from cvmfs_sync.state import State, instance
from cvmfs_sync.status import ImageStatus, image_status
from cvmfs_sync.tar import Limits

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
        metavar="IMAGE", help="An image reference such as alpine or ghcr.io/org/name:tag, or oci:DIR[:tag]."
    ),
]
_DEFAULT_CONFIG = Path("cvmfs-sync.yaml")
_DEFAULT_PLATFORM = str(Platform())


class Terminated(KeyboardInterrupt):
    """SIGTERM came. For a daemon that is the usual end, for all else an interruption."""


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
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    set_up_logging(verbose=verbose)


@app.command("check")
def _check(
    image_list: Annotated[Path, typer.Argument(metavar="LIST", help="The image list to check, a YAML file.")],
    json_output: JsonOption = False,
) -> int:
    """Validate an image list.

    All its errors are reported at once, each with its line. Exit code 1 if there is one; warnings are no errors.
    """
    _require_file(image_list)
    wishes = load_list(image_list, today=_now().date())
    if json_output:
        problems = [
            {"file": p.file, "line": p.line, "where": p.where, "severity": p.severity, "message": p.message}
            for p in wishes.problems
        ]
        print_json({"valid": not wishes.errors, "images": len(wishes.wishes), "problems": problems})
    else:
        for problem in wishes.problems:
            sys.stdout.write(f"{problem}\n")
        state = f"{len(wishes.errors)} errors" if wishes.errors else "valid"
        sys.stdout.write(f"{image_list}: {state}, {len(wishes.wishes)} images, {len(wishes.warnings)} warnings\n")
    return 1 if wishes.errors else 0


@app.command("plan")
def _plan(config: ConfigOption = _DEFAULT_CONFIG, json_output: JsonOption = False) -> int:
    """Print what sync would do, and change nothing.

    Asks the registries as sync does. Exit code 1 if an image would fail.
    """
    settings = _load(config)
    wishes = _wishes(settings)
    with _context(settings, State.snapshot(settings.state_dir)) as context:
        decided = plan(context, wishes)
    steps = [_step_document(step) for step in decided.steps]
    if json_output:
        print_json({"steps": steps, "expired": [str(wish) for wish in decided.expired]})
    else:
        print_table(
            ("action", "image", "digest", "download", "reason"),
            [
                (
                    s["action"],
                    s["image"],
                    _short(s["digest"]),
                    human_size(s["bytes"]) if s["bytes"] else "-",
                    s["error"]["what"].removeprefix(f"{s['image']}: ") if "error" in s else s["reason"],
                )
                for s in steps
            ],
            caption=_plan_summary(decided),
        )
        for step in decided.steps:
            if isinstance(step, Failed):
                print_error(step.error)
    return 1 if any(isinstance(step, Failed) for step in decided.steps) else 0


@app.command("sync")
def _sync(
    images: ImagesArgument = None, config: ConfigOption = _DEFAULT_CONFIG, json_output: JsonOption = False
) -> int:
    """Publish what the list asks for, once.

    Images that are unchanged cost one request each, and images that fail do not keep the others. What the list no
    longer asks for stays. Exit code 1 if an image failed, 3 if the repository or the machine stopped us.
    """
    settings = _load(config)
    wishes = _wishes(settings)
    only = [parse_image(image) for image in images or ()]
    with instance(settings.state_dir), _context(settings) as context:
        report = sync(context, wishes, only)
    if json_output:
        print_json(_report_document(report))
    else:
        _print_report(report)
    if report.stopped is not None and json_output:
        print_error(report.stopped)
    return report.exit_code


@app.command("run")
def _run(config: ConfigOption = _DEFAULT_CONFIG) -> int:
    """Sync by the schedule until stopped, and serve metrics."""
    settings = _load(config)
    logger = logging.getLogger("cvmfs_sync")
    logger.setLevel(min(logger.level, logging.INFO))
    metrics = Metrics()
    listen = settings.metrics.listen
    with instance(settings.state_dir):
        if listen is not None:
            metrics.serve(listen.host, listen.port)
            log.info("serving metrics on %s", listen)
        last_good: list[ImageList] = []

        def cycle() -> None:
            _daemon_cycle(settings, metrics, last_good)

        with suppress(Terminated):
            run_daemon(settings.schedule.sync, cycle)
    log.info("stopped by SIGTERM")
    return 0


def _daemon_cycle(settings: Config, metrics: Metrics, last_good: list[ImageList]) -> None:
    """One cycle of the daemon: whatever goes wrong is logged and counted, and the next one comes.

    A list that is broken or not there keeps the last good one in force.
    """
    try:
        last_good[:] = [_wishes(settings)]
    except CvmfsSyncError as error:
        metrics.list_read(valid=False)
        log.error("the image list is not valid, %s: %s", "the last good one stays" if last_good else "waiting", error)
    else:
        metrics.list_read(valid=True)
    if not last_good:
        metrics.cycle_failed("list_invalid", _now())
        return
    try:
        with _context(settings) as context:
            report = sync(context, last_good[0])
    except CvmfsSyncError as error:
        log.error("the cycle ended: %s", error)
        metrics.cycle_failed("stopped" if error.exit_code == 3 else "list_invalid", _now())
        return
    metrics.cycle_ended(report, _now())
    counts = Tally(outcome.result for outcome in report.outcomes)
    log.info(
        "cycle %s seconds=%.1f exit_code=%d",
        " ".join(f"{result}={counts[result]}" for result in RESULTS), report.seconds, report.exit_code,
    )  # fmt: skip
    if report.stopped is not None:
        log.error("the cycle was stopped: %s", report.stopped)


@app.command("status")
def _status(
    images: ImagesArgument = None, config: ConfigOption = _DEFAULT_CONFIG, json_output: JsonOption = False
) -> int:
    """Show which images are published, and why others are not.

    Asks no registry: it tells what the last cycles found. With IMAGE, tells about images that nobody asked for, too.
    """
    settings = _load(config)
    wishes = _wishes(settings)
    only = [parse_image(image) for image in images or ()]
    repository = _repository(settings)
    today = _now().date()
    current = tuple(wish for wish in wishes.wishes if wish.expires is None or wish.expires >= today)
    with State.snapshot(settings.state_dir) as state:
        layout = _recipe(settings).layout
        statuses = image_status(repository, layout, state, replace(wishes, wishes=current), only)
    if json_output:
        print_json({"images": [_status_document(repository, status) for status in statuses]})
    else:
        print_table(
            ("state", "image", "digest", "published", "path"),
            [
                (
                    s.state,
                    s.image,
                    _short(s.digest),
                    _minutes(s.published_at),
                    str(repository.root / s.link) if s.digest else "-",
                )
                for s in statuses
            ],
        )
        for status in statuses:
            if status.failure is not None:
                count, since = status.failure.count, _minutes(status.failure.since.isoformat())
                times = "once, at" if count == 1 else f"{count} times since"
                reason = status.failure.reason.removeprefix(f"{status.image}: ")
                sys.stdout.write(printable(f"{status.image}: failed {times} {since}: {reason}\n"))
    return 0


@app.command("where")
def _where(
    image: ImageArgument,
    config: ConfigOption = _DEFAULT_CONFIG,
) -> int:
    """Print the path to run an image from.

    If it is not published, print where else to get it: docker://..., which Apptainer takes as well.
    """
    settings = _load(config)
    name = parse_image(image)
    layout = _recipe(settings).layout
    repository = _repository(settings)
    link = layout.link(name)
    there = published(repository, layout, link) is not None
    sys.stdout.write(f"{repository.root / link if there else runnable(name)}\n")
    return 0


@app.command("unpack")
def _unpack(
    image: ImageArgument,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="The directory to make; it may be there if it is empty.")
    ],
    insecure: InsecureOption = False,
    platform: PlatformOption = _DEFAULT_PLATFORM,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Add what Apptainer needs and make all readable, as sync does.")
    ] = False,
) -> int:
    """Unpack one image into a directory.

    Needs no repository and no configuration. DEST appears when it is whole; after an error nothing is there. Owners and
    devices are kept when root unpacks.
    """
    name, wanted = parse_image(image), Platform.parse(platform)
    destination = Path(os.path.abspath(destination))
    _require_empty(destination)
    with os_errors(f"to {destination}"), _parents(destination), _staging(destination) as staging:
        tree = staging / "tree"
        tree.mkdir()
        with DirectorySink(tree, SANDBOX if sandbox else exact_policy()) as sink:
            _flatten(name, wanted, insecure, Spool(staging / "spool"), sink, sandbox=sandbox)
        # A directory without write permission can't be moved by an ordinary user: its `..` changes.
        mode = tree.stat().st_mode
        tree.chmod(0o700)
        tree.rename(destination)
        destination.chmod(mode)
    return 0


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """The directories above a path; those that were made for it are gone again after an error."""
    made: list[Path] = []
    try:
        for parent in reversed(path.parents):
            with suppress(FileExistsError):
                parent.mkdir()
                made.append(parent)
        yield
    except BaseException:
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()
        raise


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    staging = destination.parent / f".{destination.name[:200]}.cvmfs-sync-{os.getpid()}"
    staging.mkdir(mode=0o700)
    try:
        yield staging
    finally:
        remove_tree(staging)


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
    name, wanted = parse_image(image), Platform.parse(platform)
    if output is None and sys.stdout.isatty():
        raise UsageError("a tar archive is not for a terminal", todo="redirect stdout, or name a file with -o")
    # Layers may be large and /tmp may be memory.
    with _temporary() as (directory, aside), _output(output) as stream:
        start = stream.tell() if stream.seekable() else None
        flat = partial(_flatten, name, wanted, insecure, Spool(directory), sandbox=False)
        try:
            flat(TarSink(stream, aside))
        except OutOfOrder:
            if start is None:
                raise
            stream.seek(start)
            stream.truncate()
            aside.seek(0)
            aside.truncate()
            flat(TarSink(stream, aside, Placement.NEVER))
    return 0


@contextmanager
def _temporary() -> Iterator[tuple[Path, IO[bytes]]]:
    with ExitStack() as stack:
        with os_errors("temporary files"):
            place = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="cvmfs-sync-", dir=place))
            aside = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        yield Path(directory), aside


@contextmanager
def _output(path: Path | None) -> Iterator[IO[bytes]]:
    """A stream to write to. A regular file gets its name when it is whole; a pipe or device is written to."""
    if path is None:
        with open(sys.stdout.fileno(), "wb", buffering=1 << 20, closefd=False) as stream:
            yield stream
        return
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise UsageError(f"{path} is a directory", expected="a file to write", todo="name a file in it")
    with os_errors(f"to {path}"):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb", buffering=1 << 20) as stream:
                yield stream
            return
        partial_path = path.with_name(f".{path.name[:200]}.cvmfs-sync-{os.getpid()}")
        try:
            with partial_path.open("xb", buffering=1 << 20) as stream:
                yield stream
            partial_path.rename(path)
        finally:
            partial_path.unlink(missing_ok=True)


def _flatten(
    name: ImageName, platform: Platform, insecure: bool, spool: Spool, sink: Sink, *, sandbox: bool
) -> ResolvedImage:
    """Resolve, fetch and flatten one image; layers are flattened while others are on their way."""
    settings = RegistrySettings(insecure=insecure)
    with ExitStack() as stack:
        registry = RegistrySource({}, default=settings)
        stack.callback(registry.close)
        sources = Sources(registry, LayoutSource())
        progress = stack.enter_context(Bars())
        image = resolve(name, source_digest(name, sources), platform, sources)
        transform: Transform | None = partial(furnish, config=image.config) if sandbox else None
        progress.start(f"flattening {name}", 2 * image.compressed_size)
        layers = stack.enter_context(fetching(image, sources, spool, progress))
        flatten(layers, sink, transform=transform, progress=progress)
    return image


def _require_empty(destination: Path) -> None:
    if not os.path.lexists(destination):
        return
    if destination.is_symlink() or not destination.is_dir():
        raise UsageError(f"{destination} is not a directory", expected="a directory that is empty or not there")
    if any(destination.iterdir()):
        raise UsageError(f"{destination} is not empty", expected="a directory that is empty or not there")
    if os.path.ismount(destination):
        raise UsageError(f"{destination} is a mount point", todo="name a directory below it")
    if destination == Path.cwd():
        raise UsageError(f"{destination} is the working directory, which cannot be replaced", todo="name another one")


def _require_file(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(
            f"{path}: the image list cannot be read", found=error.strerror, todo="name an existing file"
        ) from None


def _load(path: Path) -> Config:
    return load(path, os.environ)


def _wishes(config: Config) -> ImageList:
    if isinstance(config.image_list, str):
        raise ConfigurationError(
            "image_list: lists from a URL are not supported yet", found=config.image_list, expected="a path"
        )
    path = config.image_list
    return load_list(path, today=_now().date()).require_valid()


def _recipe(config: Config) -> Recipe:
    return Recipe(
        Layout(config.layout),
        tuple(str(point) for point in config.sandbox.bind_points),
        replace(
            Limits(),
            **{name: value if value is not None else sys.maxsize for name, value in config.limits.given().items()},
        ),
    )


def _repository(config: Config) -> Repository:
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
def _context(config: Config, state: State | None = None) -> Iterator[Context]:
    settings = {
        host: RegistrySettings(options.insecure, options.requests_per_second, options.concurrency)
        for host, options in config.registries.items()
    }
    with ExitStack() as stack:
        state = stack.enter_context(state or State(config.state_dir))
        registry = RegistrySource(settings)
        stack.callback(registry.close)
        bars = stack.enter_context(Bars())
        yield Context(
            _repository(config), Sources(registry, LayoutSource()), _recipe(config), state,
            Spool(config.spool_dir), _now, bars,
        )  # fmt: skip


def _now() -> datetime:
    return datetime.now(UTC)


def _short(digest: str | None) -> str:
    return digest.partition(":")[2][:12] if digest else "-"


def _minutes(timestamp: str | None) -> str:
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(timestamp or "").astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")
    return "-"


def _step_document(step: Publish | Relink | Unchanged | Failed) -> dict[str, Any]:
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


def _plan_summary(decided: Plan) -> str:
    counts = {
        kind: sum(isinstance(step, kind) for step in decided.steps) for kind in (Publish, Relink, Unchanged, Failed)
    }
    return (
        f"{counts[Publish]} to publish, {counts[Relink]} to link, {counts[Unchanged]} unchanged, "
        f"{counts[Failed]} failing, {len(decided.expired)} expired"
    )


def _report_document(report: CycleReport) -> dict[str, Any]:
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
                "error": document(outcome.error) if outcome.error else None,
            }
            for outcome in report.outcomes
        ],
    }


def _print_report(report: CycleReport) -> None:
    rows = [
        (o.result, str(o.target), _short(str(o.digest) if o.digest else None), f"{o.seconds:.1f} s")
        for o in report.outcomes
        if o.result != "unchanged"
    ]
    if rows:
        print_table(("result", "image", "digest", "time"), rows)
    counts = dict.fromkeys(("published", "linked", "unchanged", "failed", "skipped"), 0)
    for outcome in report.outcomes:
        counts[outcome.result] += 1
    if report.recovered:
        sys.stdout.write(f"{report.recovered}\n")
    sys.stdout.write(", ".join(f"{count} {result}" for result, count in counts.items()) + f", {report.seconds:.1f} s\n")
    for outcome in report.outcomes:
        if outcome.error is not None and outcome.error is not report.stopped:
            print_error(outcome.error)
    if report.stopped is not None:
        print_error(report.stopped)


def _status_document(repository: Repository, status: ImageStatus) -> dict[str, Any]:
    failure = status.failure
    return {
        "image": status.image,
        "state": status.state,
        "link": status.link,
        "path": str(repository.root / status.link) if status.digest else None,
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
        },
        "history": [
            {"at": event.at.isoformat(), "event": event.event, "digest": event.digest, "detail": event.detail}
            for event in status.history
        ],
    }
