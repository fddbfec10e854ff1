"""Files of this machine that make a small Linux: a shell, and the Python that runs this, with their libraries.

Nothing is installed and nothing is written here; what is found is described as entries of layers. Libraries keep their
paths, because the dynamic loader looks for them there. Python moves below /usr/local when it is not the system's own,
so that the image does not depend on where pyenv, uv or a user's home are.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from images import Entry, file

__all__ = ["PYTHON", "library_path", "python_files", "shell_files"]

_PREFIX = Path(sys.base_prefix)
_PREFIX_IN_IMAGE = Path("/usr" if sys.base_prefix == "/usr" else "/usr/local")
_INTERPRETER = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
_STDLIB = Path(sysconfig.get_path("stdlib"))
PYTHON = f"{_PREFIX_IN_IMAGE}/bin/python3"
"""The interpreter's path in the image."""

# Large, or of no use without what else they need.
_LEFT_OUT = re.compile(
    r"test|tests|__pycache__|site-packages|dist-packages|config-.*|"
    r"idlelib|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data|(_tkinter|_test|_ctypes_test|xx).*\.so|.*\.a"
)
_LISTED_LIBRARY = re.compile(r"(?:=>\s+|^\s*)(/.+?) \(0x[0-9a-f]+\)$", re.MULTILINE)
_PT_INTERP = 3


def shell_files() -> list[Entry]:
    """`/bin/sh` and its libraries."""
    shell = Path("/bin/sh").resolve()
    return [file("bin/sh", shell.read_bytes(), 0o755), *_copies(_libraries(shell, _loader(shell)))]


def python_files() -> list[Entry]:
    """The interpreter, its standard library without tests, and the shared libraries of both."""
    interpreter = file(PYTHON.lstrip("/"), _INTERPRETER.read_bytes(), 0o755)
    return [interpreter, *_copies(_walk(_STDLIB)), *_copies(_python_libraries())]


def library_path() -> str:
    """`LD_LIBRARY_PATH` for the image's Python: the image has no cache of libraries as `ldconfig` makes it."""
    return ":".join(sorted({str(_in_image(path).parent) for path in _python_libraries()}))


@cache
def _python_libraries() -> tuple[Path, ...]:
    loader = _loader(_INTERPRETER)
    extensions = [path for path in _walk(_STDLIB) if path.suffix == ".so"]
    found = {library for each in (_INTERPRETER, *extensions) for library in _libraries(each, loader)}
    return tuple(sorted(found))


def _copies(paths: Iterable[Path]) -> Iterator[Entry]:
    """Files as they are in the image. Links are followed: what they lead to may be outside."""
    for path in paths:
        mode = 0o755 if os.access(path, os.X_OK) else 0o644
        yield file(str(_in_image(path)).lstrip("/"), path.read_bytes(), mode)


def _in_image(path: Path) -> Path:
    if path.is_relative_to(_PREFIX):
        return _PREFIX_IN_IMAGE / path.relative_to(_PREFIX)
    return path


def _walk(directory: Path) -> Iterator[Path]:
    """The readable files below a directory that belong into the image."""
    for path in directory.iterdir():
        if _LEFT_OUT.fullmatch(path.name):
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file() and os.access(path, os.R_OK):
            yield path


def _libraries(program: Path, loader: Path | None) -> list[Path]:
    """The shared libraries of a program or library, and the loader itself; what is not found is left out.

    The loader is asked itself, as `ldd` does, which is a script that not every machine has.
    """
    if loader is None:
        return []
    listing = subprocess.run([loader, "--list", program], capture_output=True, text=True, timeout=60, check=False)
    return [loader, *(Path(match) for match in _LISTED_LIBRARY.findall(listing.stdout))]


def _loader(program: Path) -> Path | None:
    """The dynamic loader that a program asks for; None if it is linked statically (ELF, "Program header")."""
    content = program.read_bytes()
    if content[:4] != b"\x7fELF":
        return None
    order = "<" if content[5] == 1 else ">"
    # Where a field is depends on the width of addresses: 64 bits or 32.
    at, table_at, sizes_at, offset_at, length_at = ("Q", 32, 54, 8, 32) if content[4] == 2 else ("I", 28, 42, 4, 16)
    (start,) = struct.unpack_from(order + at, content, table_at)
    size, count = struct.unpack_from(f"{order}HH", content, sizes_at)
    for header in range(start, start + size * count, size):
        if struct.unpack_from(f"{order}I", content, header) == (_PT_INTERP,):
            (offset,) = struct.unpack_from(order + at, content, header + offset_at)
            (length,) = struct.unpack_from(order + at, content, header + length_at)
            return Path(os.fsdecode(content[offset : offset + length].rstrip(b"\0")))
    return None
