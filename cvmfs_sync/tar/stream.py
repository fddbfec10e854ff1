"""A forward-only view of a chunked stream.

Chunks of any size go in; blocks, runs of bytes and pieces come out, copied only where they cross a border of
chunks. Holds one chunk at a time and knows nothing of tar but the size of a block.
"""

from __future__ import annotations

from collections.abc import Iterable

from cvmfs_sync.tar.fields import Malformed, TooLarge

__all__ = ["BLOCK", "Stream"]

BLOCK = 512


class Stream:
    """The stream, and where in it we are.

    Attributes:
        chunk: The current chunk.
        at: Position in the chunk. The reader's fast path moves it.
        base: Position of the chunk's start in the stream.
    """

    __slots__ = ("_chunks", "_maximum", "at", "base", "chunk")

    def __init__(self, chunks: Iterable[bytes], maximum: int) -> None:
        self._chunks = iter(chunks)
        self._maximum = maximum
        self.chunk = b""
        self.at = 0
        self.base = 0

    @property
    def position(self) -> int:
        """Bytes read or skipped so far."""
        return self.base + self.at

    def _next(self) -> bool:
        """Go to the next chunk that is not empty; False at the end of the stream."""
        for chunk in self._chunks:
            self.base += len(self.chunk)
            self.at = 0
            self.chunk = chunk
            if self.base + len(chunk) > self._maximum:
                raise TooLarge("bytes", self.base + len(chunk), self._maximum)
            if chunk:
                return True
        return False

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        at = self.at
        taken = self.chunk[at : at + count]
        self.at = at + len(taken)
        return taken if len(taken) == count else self._gather(taken, count)

    def block(self) -> bytes:
        """The next block; empty at the end of the stream."""
        if self.at == len(self.chunk) and not self._next():
            return b""
        return self.take(BLOCK)

    def _gather(self, taken: bytes, count: int) -> bytes:
        gathered = bytearray(taken)
        while (missing := count - len(gathered)) > 0:
            if self.at == len(self.chunk) and not self._next():
                raise _truncated(missing)
            part = self.chunk[self.at : self.at + missing]
            self.at += len(part)
            gathered += part
        return bytes(gathered)

    def some(self, most: int) -> memoryview:
        """At least one byte and at most `most`, from one chunk, not copied."""
        if self.at == len(self.chunk) and not self._next():
            raise _truncated(most)
        at = self.at
        self.at = min(at + most, len(self.chunk))
        return memoryview(self.chunk)[at : self.at]

    def skip(self, count: int) -> None:
        """Leave out `count` bytes."""
        while count > (rest := len(self.chunk) - self.at):
            count -= rest
            self.at = len(self.chunk)
            if not self._next():
                raise _truncated(count)
        self.at += count

    def only_zeros_remain(self) -> bool:
        """Read to the end, or to the first chunk with a byte that is not zero."""
        rest = self.chunk[self.at :]
        while True:
            if rest != bytes(len(rest)):
                self.at = len(self.chunk) - len(rest.lstrip(b"\0"))
                return False
            self.at = len(self.chunk)
            if not self._next():
                return True
            rest = self.chunk


def _truncated(missing: int) -> Malformed:
    return Malformed("the stream is cut off", found="its end", expected=f"{missing} more bytes of this entry")
