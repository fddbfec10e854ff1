"""The application that commands are part of, and what all of them take."""

from __future__ import annotations

import enum
import sys
from typing import Annotated

import typer

from cvmfs_sync import __version__
from cvmfs_sync.console import set_up_logging

__all__ = ["LogFormat", "app"]

app = typer.Typer(
    help="Keep a CernVM-FS repository in step with a list of container images.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class LogFormat(enum.StrEnum):
    """How lines are logged."""

    CONSOLE = "console"
    JSON = "json"


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
