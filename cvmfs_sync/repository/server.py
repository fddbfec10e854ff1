"""The subcommands of `cvmfs_server`, run with patience for what may pass by itself.

A subcommand goes in; it has succeeded when it returns, or an error tells what its exit code and streams mean. Whose
transaction is whose is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from cvmfs_sync.errors import RepositoryBusy, RepositoryUnavailable
from cvmfs_sync.repository.commands import Completed, run, still_running
from cvmfs_sync.repository.failures import Failure, failure_of
from cvmfs_sync.repository.journal import Note
from cvmfs_sync.repository.patience import pauses

__all__ = ["Server"]

log = logging.getLogger(__name__)
_POLL_SECONDS = 5.0
_ORPHAN_POLL_SECONDS = 0.25


def _nothing(_: object = None) -> None:
    """Do nothing."""


class Server:
    """`cvmfs_server` for one repository.

    Args:
        name: The repository's fully qualified name.
        wait: How long to wait, for each command, for what may pass by itself.
        sleep: Waits so many seconds.
    """

    def __init__(self, name: str, wait: timedelta, sleep: Callable[[float], object]) -> None:
        self.name = name
        self._wait = wait
        self._sleep = sleep

    def run(
        self,
        command: str,
        *options: str,
        note: Note | None = None,
        before: Callable[[], None] = _nothing,
        after: Callable[[Failure], None] = _nothing,
    ) -> Completed:
        """Run one subcommand, waiting for what may pass by itself.

        Args:
            command: The subcommand.
            *options: Of the subcommand.
            note: The transaction that it works for, by which it is known if we are killed meanwhile.
            before: Called before each attempt.
            after: Called after each that failed in a known way, before anything else is done.

        Raises:
            RepositoryError: The `Failure` that its exit code and streams tell.
            LimitExceeded: The server enforces a limit that an image is over.
        """
        waiting = pauses(self._wait, _POLL_SECONDS)
        while True:
            before()
            completed = run(["cvmfs_server", command, *options, self.name], mark=note.identity if note else None)
            if completed.code == 0:
                log.info("cvmfs_server %s %s: %.1f s", command, self.name, completed.seconds)
                return completed
            failure = failure_of(command, completed)
            if failure is None:
                raise RepositoryUnavailable(
                    f"cvmfs_server {command} of {self.name} failed",
                    found=str(completed),
                    expected="exit code 0",
                    todo=f"`cvmfs_server check {self.name}` finds damage; the text above is the server's",
                )
            after(failure)
            pause = next(waiting, None) if failure.busy else None
            if pause is None:
                raise failure.error(
                    failure.message.format(name=self.name),
                    found=str(completed),
                    todo=failure.todo.format(name=self.name),
                )
            log.info("%s; waiting", failure.message.format(name=self.name))
            self._sleep(pause)

    def wait_for_orphan(self, note: Note) -> None:
        """Wait for a command that a killed run of ours left running: only its end tells what it did.

        Raises:
            RepositoryBusy: It runs for longer than we wait.
        """
        waiting = pauses(self._wait, _ORPHAN_POLL_SECONDS)
        while (process := still_running(note.identity)) is not None:
            pause = next(waiting, None)
            if pause is None:
                raise RepositoryBusy(
                    f"cvmfs_server still runs for an interrupted cvmfs-sync on {self.name}",
                    found=f"process {process}, {note.state} '{note.purpose}'",
                    todo="wait for it to finish, then sync again",
                )
            log.info("process %d of an interrupted run still works on %s; waiting", process, self.name)
            self._sleep(pause)
