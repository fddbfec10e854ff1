"""A file out of a git repository: the latest commit of a branch, and who changed which line.

A repository, a branch and a path go in; the file's bytes, the commit and the origin of each line come out. Git of this
machine does the work, with the credentials that its own configuration, or ssh's, gives it: nobody is asked for any. Of
the repository a shallow copy without files is kept; nothing in it is run, no submodule is fetched. What the file means
is not known here.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from cvmfs_sync.config import GitList
from cvmfs_sync.errors import ListError
from cvmfs_sync.imagelist import Origin
from cvmfs_sync.rootfs import os_errors
from cvmfs_sync.yamlfile import MAX_BYTES

__all__ = ["GitFile", "fetch_file", "origins", "shown"]

_SECONDS = 120.0
# Deep enough to tell who asked for what was asked for lately; each commit of a list is small.
_DEPTH = 200
_REF = "refs/cvmfs-sync/list"
_SETTINGS = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "protocol.ext.allow=never", "fetch.recurseSubmodules=false",
    "gc.autoDetach=false", "maintenance.autoDetach=false", "transfer.fsckObjects=true",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GitFile:
    """A file as a commit has it."""

    commit: str
    content: bytes


def fetch_file(source: GitList, directory: Path, *, seconds: float = _SECONDS) -> GitFile:
    """Fetch the branch and read the file.

    Args:
        source: Which.
        directory: For the copy of the repository; made anew when git can't use it.
        seconds: For each command.

    Raises:
        ListError: With what git said.
    """
    what = f"{shown(source)}: the image list cannot be fetched"
    with os_errors(f"to the copy of the image list's repository {directory}"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = not (directory / "HEAD").is_file()
    try:
        if fresh:
            _git(None, "init", "--quiet", "--bare", "--template=", str(directory), seconds=seconds)
        fetch = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head")
        refspec = f"+refs/heads/{source.branch}:{_REF}"
        _git(directory, *fetch, f"--depth={_DEPTH}", "--", source.git, refspec, seconds=seconds)
        commit = _git(directory, "rev-parse", "--verify", f"{_REF}^{{commit}}", seconds=seconds).decode().strip()
        name = f"{commit}:{source.path}"
        kind = _git(directory, "cat-file", "-t", name, seconds=seconds).decode().strip()
        if kind != "blob":
            raise _GitError(f"{source.path} is a {kind}")
        size = int(_git(directory, "cat-file", "-s", name, seconds=seconds))
        if size > MAX_BYTES:
            raise _GitError(f"{source.path} has {size} bytes, at most {MAX_BYTES} are expected")
        return GitFile(commit, _git(directory, "cat-file", "blob", name, seconds=seconds))
    except _GitError as error:
        # It is a copy: should it be damaged, the next fetch makes it anew.
        shutil.rmtree(directory, ignore_errors=True)
        raise ListError(
            what, found=_without_secret(str(error), source.git)[:500],
            todo=f"see that `git ls-remote` of it works for this user, and that branch {source.branch} has the file",
        ) from None  # fmt: skip


def origins(source: GitList, directory: Path, commit: str, *, seconds: float = _SECONDS) -> Mapping[int, Origin]:
    """Author and time of each line's latest change, by line; without those that are older than the history here."""
    try:
        text = _git(directory, "blame", "--porcelain", commit, "--", source.path, seconds=seconds)
    except _GitError:
        return {}
    known: dict[str, dict[str, str]] = {}
    found: dict[int, Origin] = {}
    changed, line = "", 0
    for row in text.decode(errors="replace").splitlines():
        head = re.fullmatch(r"([0-9a-f]{40,64}) \d+ (\d+)(?: \d+)?", row)
        if head:
            changed, line = head[1], int(head[2])
            known.setdefault(changed, {})
        elif row.startswith("\t"):
            about = known[changed]
            if "boundary" not in about or _is_root(directory, changed, seconds):
                found[line] = Origin(commit, about.get("author"), _time(about.get("author-time", "")))
        else:
            key, _, value = row.partition(" ")
            known[changed][key] = value
    return found


def shown(source: GitList) -> str:
    """The source for a person, without user and query."""
    return f"{_shown_url(source.git)} {source.branch}:{source.path}"


class _GitError(Exception):
    """Git said no."""


def _git(directory: Path | None, *arguments: str, seconds: float) -> bytes:
    """Run git to its end, without a terminal to ask on; stdout.

    Raises:
        _GitError: It failed, or took too long.
    """
    options = [option for setting in _SETTINGS for option in ("-c", setting)]
    where = [f"--git-dir={directory}"] if directory else []
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        process = subprocess.Popen(
            ["git", *where, *options, *arguments], cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={**environment, "GIT_TERMINAL_PROMPT": "0", "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except OSError as error:
        raise _GitError(f"git cannot be run: {error.strerror}") from error
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise _GitError(f"no end within {seconds:g} s") from None
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        said = err.decode(errors="replace").strip()
        raise _GitError(said or f"git {arguments[0]} ended with exit code {process.returncode}")
    return out


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End git and the helpers that it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _is_root(directory: Path, commit: str, seconds: float) -> bool:
    """Whether history begins with this commit, and does not only end here because it was cut."""
    try:
        return "\nparent " not in _git(directory, "cat-file", "commit", commit, seconds=seconds).decode(
            errors="replace"
        )
    except _GitError:
        return False


def _time(seconds: str) -> str | None:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat() if re.fullmatch(r"\d{1,11}", seconds) else None


def _shown_url(url: str) -> str:
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _without_secret(text: str, url: str) -> str:
    return text.replace(url, _shown_url(url)) if "://" in url else text
