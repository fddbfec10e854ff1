"""What a person sees: errors, tables, progress.

Results go to stdout, everything else to stderr, progress only if that is a terminal. Nothing here decides anything.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from cvmfs_sync.errors import CvmfsSyncError
from cvmfs_sync.passes import current_pass
from cvmfs_sync.ports import Unit

__all__ = [
    "Bars",
    "document",
    "print_error",
    "print_json",
    "print_table",
    "printable",
    "set_up_logging",
    "show_work",
]

_COUNTS = re.compile(r"(?:\w+=\d+ ?)+")
_PLACEHOLDER = re.compile(r"%%|(?:(\w+)=)?%[-#0 +]*\d*(?:\.\d+)?[a-z]")


class Bars:
    """A `Progress` with a bar for the piece of work that is under way; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Amount(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
        """See `ports.Progress`."""
        with self._lock:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(what, total=total, unit=unit)

    def advance(self, amount: int) -> None:
        """See `ports.Progress`."""
        with self._lock:
            if self._task is not None:
                self._bars.advance(self._task, amount)


class _Amount(ProgressColumn):
    """How much of the work is done."""

    def __init__(self) -> None:
        super().__init__()
        self._columns: dict[Unit, ProgressColumn] = {"bytes": DownloadColumn(), "images": MofNCompleteColumn()}

    def render(self, task: Task) -> RenderableType:
        """See rich."""
        return self._columns[task.fields["unit"]].render(task)


class _Formatter(logging.Formatter):
    """`<time> <level> <message>`, UTC. Systemd's journal has its own time, so that is left out there."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        text = f"{record.levelname.lower()} {record.getMessage()}"
        if ident := current_pass():
            text += f" pass={ident}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _JsonFormatter(logging.Formatter):
    """One JSON document a line. What a message has as `name=value` is a field by that name, too."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document: dict[str, object] = {
            "time": at, "level": record.levelname.lower(), "message": record.getMessage(), "logger": record.name,
        }  # fmt: skip
        if ident := current_pass():
            document["pass"] = ident
        names = [match[1] for match in _PLACEHOLDER.finditer(str(record.msg)) if match[0] != "%%"]
        if isinstance(record.args, tuple) and len(names) == len(record.args):
            for name, value in zip(names, record.args, strict=True):
                if name:
                    document.setdefault(name, value if isinstance(value, int | float | None) else str(value))
                elif isinstance(value, str) and _COUNTS.fullmatch(value):
                    document.update((each.partition("=")[0], int(each.partition("=")[2])) for each in value.split())
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


def set_up_logging(*, verbose: int, as_json: bool = False) -> None:
    """Log to stderr: warnings; with one `-v` a line for each unit of work; with two everything."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _Formatter())
    root = logging.getLogger("cvmfs_sync")
    root.handlers[:] = [handler]
    root.propagate = False
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    handler.setLevel(level)
    # What is said of an image's pass is kept for those who ask (`passlog`), whatever stderr shows.
    root.setLevel(min(level, logging.INFO))


def show_work() -> None:
    """Log each unit of work from now on, as what runs for long does, whatever was asked for."""
    for handler in logging.getLogger("cvmfs_sync").handlers:
        handler.setLevel(min(handler.level, logging.INFO))


def print_error(error: CvmfsSyncError) -> None:
    """What, found, expected, to do: a line each."""
    lines = [f"cvmfs-sync: {printable(error.what)}"]
    for label, text in (("found", error.found), ("expected", error.expected), ("to do", error.todo)):
        if text is not None:
            lines.append(f"  {label + ':':<10}{printable(text)}")
    sys.stderr.write("\n".join(lines) + "\n")


def document(error: CvmfsSyncError) -> dict[str, str | None]:
    """An error for `--json`."""
    return {
        "type": type(error).__name__,
        "what": error.what,
        "found": error.found,
        "expected": error.expected,
        "todo": error.todo,
    }


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    ascii_only = sys.stdout.encoding.lower() != "utf-8"
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=ascii_only) + "\n")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> None:
    """Columns on stdout, as wide as they need to be: a path that is cut helps nobody."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in header:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console(markup=False, highlight=False, emoji=False).print(table)
    else:
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        for row in [header, *rows]:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write("  ".join(cells).rstrip() + "\n")
    if caption:
        sys.stdout.write(caption + "\n")


def printable(text: str) -> str:
    """Text from registries and images, without what a terminal would act on; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
