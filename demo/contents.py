"""The two images of the demo, `hello` and `notes`, and what `hello` is after its update.

Both stand on one base layer with a shell. `hello` has a Python on it, and says what it sees; `notes` has a layer that
removes, replaces and links files of the one below, in all the ways that a layer can.
"""

from __future__ import annotations

from dataclasses import dataclass

from images import Entry, Image, Layer, file, hardlink, layer, opaque, symlink, whiteout
from machine import PYTHON, library_path, python_files, shell_files

__all__ = ["FIRST_GREETING", "SECOND_GREETING", "Images", "build_images"]

FIRST_GREETING = "it's a first release"
SECOND_GREETING = "and now the second"

_HELLO = '''\
"""Say which Python runs, what the image's environment holds, and how many files there are."""

import os
import sys

files = sum(len(files) for _, _, files in os.walk("/"))
print(f"Python {sys.version.split()[0]} at {sys.executable}")
print(f"GREETING={os.environ.get('GREETING')}")
print(f"{files} files are visible")
'''

_SHOW = """\
#!/bin/sh
while read -r line; do echo "$line"; done < /opt/notes/latest
"""


@dataclass(frozen=True, slots=True)
class Images:
    """All images of the demo.

    Attributes:
        updated: What the tag of `hello` means later: one small layer and one variable differ.
    """

    hello: Image
    updated: Image
    notes: Image


def build_images() -> Images:
    """Build them from this machine's files."""
    base = layer([*shell_files(), file("etc/motd", "This is the base layer.\n")])
    python = layer(python_files())
    return Images(
        hello=_hello(base, python, FIRST_GREETING),
        updated=_hello(base, python, SECOND_GREETING),
        notes=_notes(base),
    )


def _hello(base: Layer, python: Layer, greeting: str) -> Image:
    script = layer([file("opt/hello/hello.py", _HELLO), file("opt/hello/release.txt", f"{greeting}\n")])
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": library_path(),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GREETING": greeting,
    }
    labels = {"org.opencontainers.image.title": "hello"}
    return Image((base, python, script), environment, (PYTHON, "/opt/hello/hello.py"), labels)


def _notes(base: Layer) -> Image:
    environment = {"PATH": "/bin"}
    labels = {"org.opencontainers.image.title": "notes"}
    return Image((base, layer(_first_notes()), layer(_later_notes())), environment, ("/opt/notes/show",), labels)


def _first_notes() -> list[Entry]:
    return [
        file("opt/notes/show", _SHOW, 0o755),
        file("opt/notes/draft.txt", "Nobody shall read this.\n"),
        file("opt/notes/report.txt", "The first report.\n"),
        file("opt/notes/attic/1.txt", "An old note.\n"),
        file("opt/notes/attic/2.txt", "Another old note.\n"),
    ]


def _later_notes() -> list[Entry]:
    return [
        whiteout("opt/notes/draft.txt"),
        opaque("opt/notes/attic"),
        file("opt/notes/attic/index.txt", "The attic has been cleared.\n"),
        file("opt/notes/report.txt", "The final report.\n"),
        hardlink("opt/notes/copy.txt", "opt/notes/report.txt"),
        symlink("opt/notes/latest", "report.txt"),
        file("etc/motd", "This is the layer on top.\n"),
    ]
