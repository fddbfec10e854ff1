"""`events.jsonl`: what happened, one JSON document a line, for machines that follow it.

Events of the state database go in, after they have been committed there; each is appended once. The database numbers
them, so what a killed process has not written, the next one writes, after it has cut off a line that was torn. The file
is rotated by its size, and so many are kept. A log that can't be written ends nothing: it is caught up with later.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from cvmfs_sync.errors import CvmfsSyncError
from cvmfs_sync.state import NumberedEvent, State

__all__ = ["EVENTS", "Document", "EventLog"]

log = logging.getLogger(__name__)
EVENTS = ("published", "moved", "linked", "retired", "taken_down", "failed", "recovered", "list_refused")
"""What a line can tell."""
Document: TypeAlias = Mapping[str, str | int | None]
"""A line of the log."""
_KEY = "event log"
_SIZE = 16 << 20
_FILES = 5
_DETAIL = 4000
# More than a line can have.
_TAIL = 1 << 17
_MOVED = "moved"


class EventLog:
    """The log of one state directory; one process writes it at a time.

    Args:
        directory: The state directory.
        size: Bytes of a file, at most, before a new one is begun.
        files: That are kept: `events.jsonl`, and `events.jsonl.1` and so on, which are older.
        told: Told of each event after it has been written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: int = _SIZE,
        files: int = _FILES,
        told: Callable[[Document], object] = lambda _document: None,
    ) -> None:
        self.path = directory / "events.jsonl"
        self._size = size
        self._files = files
        self._told = told

    def follow(self, state: State) -> None:
        """Write what has happened meanwhile, and from now on what happens as soon as it is true."""
        state.listen(lambda: self.catch_up(state))
        self.catch_up(state)

    def catch_up(self, state: State) -> None:
        """Append the events that the log does not have."""
        try:
            history, logged = self._position(state)
            last = self._mend(history)
            half = False
            if last is not None and last[0] >= logged:
                logged, half = last[0], last[1] == _MOVED
            todo = state.events_since(logged - 1 if half else logged)
            lines = [line for event in todo for line in _lines(event, history)]
            if half and lines:
                # Its first line is there, and its second one is not.
                lines = lines[1:]
            self._append(lines)
            if todo and todo[-1].number != logged:
                state.note(_KEY, json.dumps({"history": history, "logged": todo[-1].number}))
        except (OSError, CvmfsSyncError) as error:
            log.warning("the event log %s is behind: %s", self.path, error)

    def _position(self, state: State) -> tuple[str, int]:
        """Which history the database has, and up to which event the log is known to have it."""
        with suppress(ValueError, TypeError, KeyError):
            noted = json.loads(state.noted(_KEY) or "")
            return str(noted["history"]), int(noted["logged"])
        # What happened before there was a log is no news.
        history, logged = secrets.token_hex(4), state.last_event()
        state.note(_KEY, json.dumps({"history": history, "logged": logged}))
        return history, logged

    def _mend(self, history: str) -> tuple[int, str] | None:
        """Cut off a torn line; number and name of the last event of this history that is there, if one is."""
        for path in (self.path, self._old(1)):
            try:
                with path.open("r+b") as file:
                    end = file.seek(0, os.SEEK_END)
                    start = file.seek(max(0, end - _TAIL))
                    tail = file.read()
                    whole = tail[: tail.rfind(b"\n") + 1]
                    if len(whole) != len(tail):
                        file.truncate(start + len(whole))
            except FileNotFoundError:
                continue
            if whole:
                with suppress(ValueError, TypeError, KeyError):
                    last = json.loads(whole.splitlines()[-1])
                    if last["history"] == history:
                        return int(last["id"]), str(last["event"])
                return None
        return None

    def _append(self, documents: Iterable[Document]) -> None:
        """Write lines, each whole or, if the process is killed, the last of them torn."""
        for document in documents:
            line = json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
            with suppress(FileNotFoundError):
                if self.path.stat().st_size + len(line) > self._size:
                    self._rotate()
            with self.path.open("ab", buffering=0) as file:
                before = file.seek(0, os.SEEK_END)
                try:
                    written = file.write(line)
                    if written != len(line):
                        raise OSError(f"{written} of {len(line)} bytes were written")
                except OSError:
                    file.truncate(before)
                    raise
            self._told(document)

    def _rotate(self) -> None:
        if self._files < 2:
            self.path.unlink()
            return
        for number in range(self._files - 1, 1, -1):
            with suppress(FileNotFoundError):
                self._old(number - 1).replace(self._old(number))
        self.path.replace(self._old(1))

    def _old(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _lines(event: NumberedEvent, history: str) -> list[Document]:
    """A link that leads to another image than before is two events: it has moved, and what it leads to was made."""
    document: dict[str, str | int | None] = {
        "at": event.at.isoformat(),
        "event": event.event.replace(" ", "_"),
        "image": event.name,
        "link": event.link or None,
        "digest": event.digest,
        "detail": event.detail[:_DETAIL],
        "id": event.number,
        "history": history,
    }
    if event.before is None or event.before == event.digest:
        return [document]
    return [{**document, "event": _MOVED, "detail": f"from {event.before}"}, document]
