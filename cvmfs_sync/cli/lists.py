"""Commands for those who write image lists: `check`, `import`."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from cvmfs_sync.cli.app import app
from cvmfs_sync.cli.options import JsonOption
from cvmfs_sync.console import print_json
from cvmfs_sync.errors import UsageError


class Format(enum.StrEnum):
    """How `check` prints what it found."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


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
        bool,
        typer.Option(
            "--online",
            help="Ask the registries, too: is each image there, and what would it take?",
        ),
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
    from cvmfs_sync.service import now
    from cvmfs_sync.verdict import all_problems, check_document, print_check

    for path in (image_list, changed_since):
        if path is not None:
            _require_file(path)
    today = now().date()
    wishes = whole = checking.load_any(image_list, today)
    if changed_since is not None:
        old = checking.load_any(changed_since, today, image_list)
        wishes = checking.changed_since(wishes, old, checking.added_lines(image_list, changed_since))
    asked = checking.online(wishes, whole, image_list, config) if online else None
    if json_output or output is Format.JSON:
        print_json(check_document(wishes, asked))
    else:
        print_check(image_list, wishes, asked, github=output is Format.GITHUB)
    return 1 if any(problem.severity == "error" for problem in all_problems(wishes, asked)) else 0


@app.command("import")
def _import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="OSG's docker_images.txt, or a recipe of DUCC.")],
) -> int:
    """Turn another tool's list into an image list, on stdout.

    What could not be carried over is told on stderr, by line. Exit code 1 if that was an image.
    """
    from cvmfs_sync.importers import convert

    _require_file(file)
    imported = convert(file.read_text(encoding="utf-8-sig", errors="replace"), str(file))
    sys.stdout.write(imported.text)
    for problem in imported.problems:
        sys.stderr.write(f"{problem}\n")
    sys.stderr.write(f"{file}: {imported.images} images imported, {len(imported.problems)} remarks\n")
    return 1 if any(problem.severity == "error" for problem in imported.problems) else 0


def _require_file(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(
            f"{path}: the image list cannot be read", found=error.strerror, todo="name an existing file"
        ) from None
