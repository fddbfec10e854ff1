"""An answer's body, read within limits of size and time.

A response whose head has come goes in, bytes come out. Nothing is asked again here: who reads decides what a cut means.
"""

from __future__ import annotations

from collections.abc import Iterator

import requests

from cvmfs_sync.errors import InvalidManifest
from cvmfs_sync.registry.failures import BROKEN, reason
from cvmfs_sync.registry.politeness import Timing

__all__ = ["BodyCutError", "discard", "read_body", "read_document"]

PIECE = 1024 * 1024
MAX_DISCARD = 16 * 1024
# Who reads can stop between pieces only: of a body that drips, what has come by then is a piece, too.
PIECE_SECONDS = 1.0
# A server that sends a byte a minute never runs into the read time-out.
SLOWEST_RATE = 1024


class BodyCutError(Exception):
    """A body ended before its end; the text says why.

    Attributes:
        slow: Whether it was we who hung up, since it took too long.
    """

    def __init__(self, reason: str, *, slow: bool = False) -> None:
        super().__init__(reason)
        self.slow = slow


def discard(response: requests.Response, timing: Timing) -> None:
    """Be done with a response of which nothing is wanted, and keep the connection if that costs little."""
    length = response.headers.get("Content-Length", "")
    try:
        if length.isdecimal() and int(length) <= MAX_DISCARD:
            for _ in read_body(response, timing, within=timing.patience.discard):
                pass
    except BodyCutError:
        pass  # then the connection is not kept
    finally:
        response.close()


def read_body(response: requests.Response, timing: Timing, *, within: float | None = None) -> Iterator[bytes]:
    """The body as it was sent, undecoded, in pieces of up to 1 MiB; what came before a cut is given out too.

    While anything comes at all, there is a piece at least every second.

    Args:
        response: Its head has been read, nothing else.
        timing: Clock and patience.
        within: Seconds for the whole of it, the reader's own time included; without, only the rate is held.

    Raises:
        BodyCutError: If the connection breaks, ends before Content-Length, or is slower than 1 KiB/s for a minute.
    """
    parts: list[bytes] = []
    began = since = given = timing.clock()
    size, window = 0, 0
    cut: BodyCutError | None = None
    while cut is None:
        try:
            piece = response.raw.read1(PIECE - size, decode_content=False)
        except BROKEN as error:
            cut = BodyCutError(reason(error, timing.patience))
            break
        if not piece:
            break
        parts.append(piece)
        size += len(piece)
        window += len(piece)
        now = timing.clock()
        if within is not None and now - began >= within:
            cut = BodyCutError(f"it takes longer than {within:g} s", slow=True)
        if (elapsed := now - since) >= timing.patience.window:
            if window < SLOWEST_RATE * elapsed:
                cut = BodyCutError(f"{window} bytes in {elapsed:.0f} s", slow=True)
            since, window = now, 0
        if size >= PIECE or now - given >= PIECE_SECONDS:
            yield b"".join(parts)
            parts, size = [], 0
            given = timing.clock()
            # The reader's own time is not the server's fault.
            since += given - now
    if parts:
        yield b"".join(parts)
    if cut is not None:
        raise cut


def read_document(response: requests.Response, limit: int, what: str, timing: Timing) -> bytes:
    """The whole body, never more of it than `limit` bytes.

    Raises:
        InvalidManifest: If it is larger.
        BodyCutError: See `read_body`; also if it takes longer than an exchange may.
    """
    content = bytearray()
    for piece in read_body(response, timing, within=timing.patience.exchange):
        content += piece
        if len(content) > limit:
            raise InvalidManifest(f"{what}: too large", found=f"over {limit} bytes", expected=f"at most {limit}")
    return bytes(content)
