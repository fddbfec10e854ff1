"""Running one command, and what its errors are to whoever called it."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence

import typer

from cvmfs_sync.cli.app import app
from cvmfs_sync.cli.signals import raise_on_signals
from cvmfs_sync.console import print_error, printable
from cvmfs_sync.errors import CvmfsSyncError, RepositoryError, UsageError

__all__ = ["main"]

log = logging.getLogger(__name__)

_INTERRUPTED = 130
_DEFECT = 70


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    raise_on_signals()
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
