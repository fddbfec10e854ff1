"""What a failed `cvmfs_server` tells: the known failures of the commands that publish, as values.

A command's exit code and both streams go in, for some texts are on stdout and most codes are 1; what it means for us
and what the operator can do come out.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from cvmfs_sync.errors import (
    CloneRefused,
    CvmfsSyncError,
    LimitExceeded,
    NoSpace,
    NotOwner,
    RepositoryBusy,
    RepositoryUnavailable,
)
from cvmfs_sync.repository.commands import Completed

__all__ = ["FAILURES", "Failure", "failure_of"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One known failure of `cvmfs_server`.

    Attributes:
        commands: The subcommands that end so.
        text: A part of either stream.
        error: What it means for us.
        message: What happened, in words; `{name}` is the repository.
        todo: What the operator can do.
        busy: Whether it may pass by itself while we wait.
        codes: Exit codes that mean it, whatever the text.
        left_open: Whether an `ingest` that ends so has opened its transaction, and may not have aborted it.
    """

    commands: frozenset[str]
    text: str
    error: type[CvmfsSyncError]
    message: str
    todo: str
    busy: bool = False
    codes: frozenset[int] = frozenset()
    left_open: bool = False


def _failure(
    commands: str,
    text: str,
    error: type[CvmfsSyncError],
    message: str,
    todo: str,
    *,
    busy: bool = False,
    codes: frozenset[int] = frozenset(),
    left_open: bool = False,
) -> Failure:
    return Failure(frozenset(commands.split()), text, error, message, todo, busy, codes, left_open)


_ANY = "transaction publish abort ingest gc mount"
_FULL_STORAGE = (
    "failed publishes leave data/txn/chunk.* in the storage (/srv/cvmfs/{name} by default): remove them while nobody"
    " publishes, or free space"
)
FAILURES = (
    _failure(
        "transaction", "cannot clone directory tree", CloneRefused,
        "{name} does not make a tree of another one",
        "cvmfs-sync publishes the tree whole; if it recurs, `cvmfs_server check {name}`",
    ),
    _failure(
        "transaction ingest", "another transaction is already open", RepositoryBusy,
        "somebody else has a transaction open on {name}",
        "let its owner publish or abort it; cvmfs-sync never aborts a transaction that is not its own", busy=True,
        codes=frozenset({17, errno.EBUSY}),
    ),
    _failure(
        "transaction ingest", "currently publishing", RepositoryBusy, "somebody else is publishing {name}",
        "wait for it to finish, then sync again", busy=True,
    ),
    _failure(
        "gc", "while in a transaction", RepositoryBusy, "somebody else has a transaction open on {name}",
        "let its owner publish or abort it; cvmfs-sync never aborts a transaction that is not its own", busy=True,
    ),
    _failure(
        "gc", "Garbage Collection is not enabled", RepositoryUnavailable,
        "{name} was made without garbage collection",
        "set retire.repository_gc to false, or CVMFS_GARBAGE_COLLECTION=true in its server.conf",
    ),
    _failure(
        "publish ingest", "Another publish process is active", RepositoryBusy, "somebody else is publishing {name}",
        "wait for it to finish, then sync again", busy=True,
    ),
    _failure(
        "abort", "Could not acquire lock", RepositoryBusy, "a publish of {name} is running",
        "wait for it to finish, then sync again", busy=True,
    ),
    _failure(
        "transaction ingest", "is in a transaction but", RepositoryUnavailable,
        "a transaction on {name} was cut off by a crash or reboot, and it is not provably ours",
        "ask who opened it; then `cvmfs_server abort -f {name}`, or `cvmfs_server mount {name}` and publish",
    ),
    _failure(
        "transaction ingest", "is in a transaction and cannot be repaired", RepositoryUnavailable,
        "a transaction on {name} was cut off by a crash or reboot, and it is not provably ours",
        "ask who opened it; then `cvmfs_server abort -f {name}`, or `cvmfs_server mount {name}` and publish",
    ),
    _failure(
        "publish", "is in a transaction but", RepositoryUnavailable,
        "the repository {name} was unmounted while cvmfs-sync was writing",
        "find out why in the system's log, then sync again",
    ),
    _failure(
        _ANY, "Unable to find the configuration file", RepositoryUnavailable,
        "there is no repository {name} on this machine",
        "check repository.name, or create it with `cvmfs_server mkfs`",
    ),
    _failure(
        "publish ingest gc", "does not exist.", RepositoryUnavailable,
        "there is no repository {name} on this machine",
        "check repository.name, or create it with `cvmfs_server mkfs`",
    ),
    _failure(
        "publish ingest gc", "is owned by", NotOwner, "this user may not publish {name}",
        "run cvmfs-sync as the repository's owner (CVMFS_USER in its server.conf)",
    ),
    _failure(
        _ANY, "No write permission", NotOwner, "this user may not publish {name}",
        "run cvmfs-sync as the repository's owner (CVMFS_USER in its server.conf)",
    ),
    _failure(
        _ANY, "expired whitelist", RepositoryUnavailable, "the whitelist of {name} has expired",
        "`cvmfs_server resign {name}` with the master key",
    ),
    _failure(
        _ANY, "bad whitelist", RepositoryUnavailable, "the whitelist of {name} is not valid, probably expired",
        "`cvmfs_server resign {name}` with the master key",
    ),
    _failure(
        _ANY, "cannot load whitelist", RepositoryUnavailable, "the whitelist of {name} cannot be downloaded",
        "see that the web server of this stratum 0 runs",
    ),
    _failure(
        _ANY, "Repository unavailable under", RepositoryUnavailable, "the web server does not serve {name}",
        "see that the web server of this stratum 0 runs",
    ),
    _failure(
        _ANY, "errno 28", NoSpace, "no space left to publish {name}",
        _FULL_STORAGE,
    ),
    _failure(
        _ANY, "block upload failed (code: 28)", NoSpace, "no space left to publish {name}",
        _FULL_STORAGE,
    ),
    _failure(
        "publish ingest", "Open writable file descriptors", RepositoryBusy,
        "a process is writing below the repository {name}",
        "`lsof +f -- /cvmfs/{name}` names it; end it, then sync again", busy=True, left_open=True,
    ),
    _failure(
        "publish ingest", "open read-only file descriptors", RepositoryBusy,
        "a process has files open below the repository {name}",
        "`lsof +f -- /cvmfs/{name}` names it; end it, or keep backups and updatedb out of /cvmfs",
        busy=True, left_open=True,
    ),
    _failure(
        _ANY, "Current working directory is in", RepositoryBusy, "a shell stands inside the repository {name}",
        "leave the directory, then sync again", busy=True, left_open=True,
    ),
    # Where limits are not enforced, the same words begin with WARNING, and nothing fails.
    _failure(
        "publish transaction ingest", "FATAL: catalog at", LimitExceeded,
        "{name} takes no catalog with so many entries",
        "raise CVMFS_NESTED_KCATALOG_LIMIT or CVMFS_ROOT_KCATALOG_LIMIT in its server.conf, or unset"
        " CVMFS_ENFORCE_LIMITS",
    ),
    _failure(
        "publish", "FATAL: file at", LimitExceeded, "{name} takes no file of that size",
        "raise CVMFS_FILE_MBYTE_LIMIT in its server.conf, or unset CVMFS_ENFORCE_LIMITS",
    ),
    _failure(
        "publish", "is not in a transaction", RepositoryUnavailable,
        "the transaction on {name} was ended by somebody else while cvmfs-sync was writing",
        "find out who ran `cvmfs_server abort`, then sync again",
    ),
)  # fmt: skip


def failure_of(command: str, completed: Completed) -> Failure | None:
    """What the exit code and both streams of a failed subcommand tell; None if nothing known."""
    streams = completed.out + completed.err
    known = (failure for failure in FAILURES if command in failure.commands)
    return next((failure for failure in known if failure.text in streams or completed.code in failure.codes), None)
