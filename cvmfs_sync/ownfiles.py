"""Files of ours in a directory that may hold others' as well, such as the root of a web server.

The paths that there are to be, and of each file what it is made of and how, go in. Only what is not so yet is written,
each file in one step, and what was ours and is not wanted any more is removed. A manifest in the directory tells which
files are ours; others are never changed. After a crash each file is as it was or as it is to be, and the next run looks
at the content of all of them.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvmfs_sync.errors import UsageError
from cvmfs_sync.locking import locked_directory
from cvmfs_sync.rootfs import os_errors

__all__ = ["MANIFEST", "OwnFiles", "Written", "own_files"]

MANIFEST = ".cvmfs-sync-site.json"
# One name for all that is being written, so that a crash leaves one file at most, which the next run removes.
_FRESH = ".cvmfs-sync-site.new"
_VERSION = 1
# Lower case only, for file systems that do not tell cases apart; and nothing that leads elsewhere.
_PATH = re.compile(r"(?:[a-z0-9][a-z0-9._-]{0,127}/)?[a-z0-9][a-z0-9._-]{0,127}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Written:
    """What a run did, in files."""

    written: int
    unchanged: int
    removed: int


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file as it was left: its status tells whether anybody has changed it since."""

    made_of: str
    size: int
    mtime_ns: int


_UNKNOWN = _Kept("", -1, -1)


@contextmanager
def own_files(directory: Path, wanted: Collection[str]) -> Iterator[OwnFiles]:
    """Keep these files in a directory, which is made if it is not there, and locked meanwhile.

    Args:
        directory: For the files; with other things in it only if files of ours have been in it before.
        wanted: Paths of all files that there are to be: of at most one directory and a name.

    Raises:
        UsageError: It holds other things, or one where a file of ours is to be. Nothing has been changed.
        RepositoryBusy: Another process writes these files.
        RepositoryError: The file system refuses something.
    """
    with os_errors(f"to {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
    with locked_directory(directory), ExitStack() as stack, os_errors(f"to {directory}"):
        yield OwnFiles(directory, wanted, stack)


class OwnFiles:
    """The files of one directory; made by `own_files`, whose `stack` closes what it opens."""

    def __init__(self, directory: Path, wanted: Collection[str], stack: ExitStack) -> None:
        wrong = [path for path in wanted if not _PATH.fullmatch(path)]
        assert not wrong, wrong  # noqa: S101 - the caller makes up the names
        self._directory = directory
        self._closing = stack
        self._below = {"": self._opened(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))}
        self._wanted = frozenset(wanted)
        self._kept, self._trusted = self._read_manifest()
        self._discard()
        stack.callback(self._discard)
        self._fresh: dict[str, _Kept] = {}
        self._begun = False
        self._written = self._unchanged = 0
        for path in sorted(self._wanted - self._kept.keys()):
            if self._status(path) is not None:
                raise UsageError(
                    f"{directory / path} is not ours", expected="no file where a page is to be",
                    todo="move it away, or name another directory",
                )  # fmt: skip

    def is_there(self, path: str) -> bool:
        """Whether there is a file of ours, of whatever content."""
        return path in self._kept and self._status(path) is not None

    def keep(self, paths: Sequence[str], made_of: str, make: Callable[[], Iterable[bytes]]) -> None:
        """See to it that these files are as they are to be.

        Args:
            paths: Of files that are made together.
            made_of: Another text whenever what `make` gives may be something else.
            make: Gives their contents, in the same order; not called if the files are made of that already.
        """
        if self._trusted and all(self._is_as_left(path, made_of) for path in paths):
            self._unchanged += len(paths)
            self._fresh.update({path: self._kept[path] for path in paths})
            return
        for path, content in zip(paths, make(), strict=True):
            status = self._status(path)
            if status is not None and self._holds(path, status, content):
                self._unchanged += 1
            else:
                self._begin()
                status = self._write(path, content)
                self._written += 1
            self._fresh[path] = _Kept(made_of, status.st_size, status.st_mtime_ns)

    def finish(self) -> Written:
        """Remove what is not wanted any more, and note what is there; all that is wanted has been given to `keep`."""
        assert self._fresh.keys() == self._wanted  # noqa: S101 - the caller has told them itself
        removed = 0
        for path in self._kept.keys() - self._wanted:
            status = self._status(path)
            if status is not None and not stat.S_ISDIR(status.st_mode):
                self._begin()
                directory, name = self._place(path)
                os.unlink(name, dir_fd=directory)
                removed += 1
        if not self._trusted or self._begun or self._fresh != self._kept:
            self._write_manifest(self._fresh, complete=True)
        return Written(self._written, self._unchanged, removed)

    def _begin(self) -> None:
        """Before the first change: note that all files are ours, and that none of them is known until `finish`."""
        if not self._begun:
            self._write_manifest(dict.fromkeys(self._kept.keys() | self._wanted, _UNKNOWN), complete=False)
            self._begun = True

    # --- the manifest -------------------------------------------------------------------------------------------------

    def _read_manifest(self) -> tuple[dict[str, _Kept], bool]:
        """What is ours, and whether the last run has come to its end."""
        try:
            text = self._read(MANIFEST)
        except FileNotFoundError:
            others = set(os.listdir(self._below[""])) - {_FRESH}
            if others:
                raise UsageError(
                    f"{self._directory} is not empty, and nothing in it is ours", found=min(others),
                    expected="an empty directory, or one that this command has written before",
                    todo="name another directory",
                ) from None  # fmt: skip
            return {}, True
        try:
            document: dict[str, Any] = json.loads(text)
            version = document["version"]
            if version != _VERSION:
                raise ValueError(f"version {version}")
            kept = {path: _Kept(str(of), int(size), int(time)) for path, (of, size, time) in document["files"].items()}
            if not all(map(_PATH.fullmatch, kept)):
                raise ValueError("a path that is none of ours")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"{self._directory / MANIFEST} does not tell which files are ours", found=str(error)[:200],
                expected=f"a manifest of version {_VERSION}", todo="remove the directory, or name another one",
            ) from None  # fmt: skip
        return kept, document.get("complete") is True

    def _write_manifest(self, files: dict[str, _Kept], *, complete: bool) -> None:
        lines = {path: [kept.made_of, kept.size, kept.mtime_ns] for path, kept in sorted(files.items())}
        document = {"version": _VERSION, "complete": complete, "files": lines}
        self._write(MANIFEST, (json.dumps(document, separators=(",", ":")) + "\n").encode())

    # --- files --------------------------------------------------------------------------------------------------------

    def _is_as_left(self, path: str, made_of: str) -> bool:
        kept = self._kept.get(path)
        if kept is None or kept.made_of != made_of:
            return False
        status = self._status(path)
        return (
            status is not None
            and stat.S_ISREG(status.st_mode)
            and (status.st_size, status.st_mtime_ns) == (kept.size, kept.mtime_ns)
        )

    def _status(self, path: str) -> os.stat_result | None:
        """Of what is there; None if nothing is."""
        with suppress(FileNotFoundError):
            directory, name = self._place(path)
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        return None

    def _holds(self, path: str, status: os.stat_result, content: bytes) -> bool:
        return stat.S_ISREG(status.st_mode) and status.st_size == len(content) and self._read(path) == content

    def _read(self, path: str) -> bytes:
        directory, name = self._place(path)
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
            return file.read()

    def _write(self, path: str, content: bytes) -> os.stat_result:
        """Have a file there with this content, in one step."""
        root = self._below[""]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(_FRESH, flags, 0o666, dir_fd=root), "wb") as file:
            file.write(content)
            file.flush()
            status = os.fstat(file.fileno())
        directory, name = self._place(path, make=True)
        os.rename(_FRESH, name, src_dir_fd=root, dst_dir_fd=directory)
        return status

    def _opened(self, descriptor: int) -> int:
        self._closing.callback(os.close, descriptor)
        return descriptor

    def _discard(self) -> None:
        """Remove what was being written, here or in a run that was killed."""
        with suppress(FileNotFoundError):
            os.unlink(_FRESH, dir_fd=self._below[""])

    def _place(self, path: str, *, make: bool = False) -> tuple[int, str]:
        """The directory of a path, and the name in it.

        Raises:
            FileNotFoundError: The directory is not there, and is not to be made.
            UsageError: It is none, or a link to one.
        """
        parent, _, name = path.rpartition("/")
        if parent not in self._below:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(parent, dir_fd=self._below[""])
            try:
                self._below[parent] = self._opened(os.open(parent, _DIRECTORY, dir_fd=self._below[""]))
            except FileNotFoundError:
                raise
            except OSError as error:
                raise UsageError(
                    f"{self._directory / parent} is not ours", found=error.strerror, expected="a directory",
                    todo="move it away, or name another directory",
                ) from None  # fmt: skip
        return self._below[parent], name
