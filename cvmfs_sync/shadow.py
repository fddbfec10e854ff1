"""What can be told of a layer's entry before all layers have been read: whether it is hidden, and where it lands.

Paths as they are written in the archives go in, top layer first. What comes out saves work: the merge decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from cvmfs_sync.tar import Entry, Kind
from cvmfs_sync.tree import OPAQUE, WHITEOUT, split

__all__ = ["Certainty", "Shadow"]

_FILE, _GONE, _OPAQUE, _DIRECTORY = 1, 2, 4, 8


class Shadow:
    """What the layers above hide, told from paths as they are written in the archives.

    A hint that saves writing: symbolic links among the parents can make it wrong, and `flatten` mends that.
    """

    def __init__(self) -> None:
        self._covers: dict[bytes, int] = {}
        self._hidden: dict[bytes, bool] = {}

    def add(self, index: Sequence[Entry]) -> None:
        """Take note of a whole layer, the next one below."""
        covers = self._covers
        for entry in index:
            path = entry.path
            if WHITEOUT in path:
                parent, name = split(path)
                if name == OPAQUE:
                    covers[parent] = covers.get(parent, 0) | _OPAQUE
                    continue
                if name.startswith(WHITEOUT):
                    victim = name[len(WHITEOUT) :]
                    path = parent + b"/" + victim if parent else victim
                    covers[path] = covers.get(path, 0) | _GONE
                    continue
            covers[path] = covers.get(path, 0) | (_DIRECTORY if entry.kind is Kind.DIRECTORY else _FILE)
        self._hidden.clear()

    def hides(self, path: bytes) -> bool:
        """Whether a regular file at `path` of a layer below is hidden."""
        if path in self._covers and self._covers[path] & (_FILE | _GONE | _DIRECTORY):
            return True
        parent = path.rpartition(b"/")[0]
        hidden = self._hidden.get(parent)
        return self._hides_below(parent) if hidden is None else hidden

    def _hides_below(self, directory: bytes) -> bool:
        """Whether all that layers below put into `directory` is hidden. Iterative: paths can be deep."""
        path, result = directory, False
        pending = []
        while True:
            known = self._hidden.get(path)
            if known is not None:
                result = known
                break
            pending.append(path)
            if self._covers.get(path, 0) & (_FILE | _GONE | _OPAQUE if path else _OPAQUE):
                result = True
                break
            if not path:
                break
            path = path.rpartition(b"/")[0]
        for path in pending:
            self._hidden[path] = result
        return result


class Certainty:
    """Whether a path of the layer being read lands just there: its parents are known to be directories by now.

    The bottom layer has nothing below it, so a parent that it does not name can be no symbolic link. A whiteout behind
    a link could hide any path of the layers below, so nothing is certain below one that may stand there.

    Attributes:
        whiteouts_hold: Whether all whiteouts so far stand at their own path.
    """

    def __init__(self, *, bottom: bool, clear: bool) -> None:
        self._kinds: dict[bytes, bool] = {b"": True}
        self._bottom = bottom
        self._clear = clear
        self.whiteouts_hold = True
        self._known: dict[bytes, bool] = {}

    def note(self, entry: Entry) -> None:
        """An entry has been read that is no whiteout."""
        directory = entry.kind is Kind.DIRECTORY
        if self._kinds.get(entry.path) is not directory:
            self._kinds[entry.path] = directory
            self._known.clear()

    def note_whiteout(self, path: bytes) -> None:
        """A whiteout has been read."""
        if not self._directory(path.rpartition(b"/")[0]):
            self.whiteouts_hold = False

    def holds(self, path: bytes) -> bool:
        """Whether what was read at `path` lands there."""
        if not self._clear:
            return False
        parent = path.rpartition(b"/")[0]
        known = self._known.get(parent)
        if known is None:
            known = self._known[parent] = self._directory(parent)
        return known

    def _directory(self, path: bytes) -> bool:
        while path:
            if not self._kinds.get(path, self._bottom):
                return False
            path = path.rpartition(b"/")[0]
        return True
