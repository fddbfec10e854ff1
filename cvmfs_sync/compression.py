"""Inflates layers, beside the thread that reads them.

Compressed chunks or a blob's file go in, pieces of the uncompressed stream come out, none larger than a MiB
whatever the ratio. Recognised by their first bytes: gzip (RFC 1952), zstd (RFC 8878) and, for everything else,
plain tar. All checksums of both formats are verified, the stream must end where its last member does, and it must
have the diff_id that the image's configuration names (OCI image-spec, config.md, "Layer DiffID").

Does not look at the blob's own digest, which was verified when it was fetched, nor at what the stream holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Final, cast

import zstandard
from isal import igzip_lib

from cvmfs_sync.errors import ImageError, InvalidImage, LimitExceeded
from cvmfs_sync.reference import Digest
from cvmfs_sync.tar import Limits

__all__ = ["decompress", "read_layer"]

# Every piece costs a few hand-overs of the interpreter lock, each up to 5 ms when another thread is busy in
# Python. At a MiB they cost least, and larger pieces gain nothing.
_PIECE: Final = 1 << 20
_IN_FLIGHT: Final = 24  # pieces: stretches of small files and of large ones alternate
_MAX_WINDOW: Final = 128 << 20  # what the zstd command takes; allocated only for frames that ask for it

# The package's types call this class an instance.
_GzipError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
_REFUSED_MAGIC = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x5d\0\0": "lzma",
}
_LONGEST_MAGIC = 6


def decompress(chunks: Iterable[bytes], *, what: str, limits: Limits) -> Iterator[bytes]:
    """Yield the uncompressed stream in pieces of at most a MiB.

    Args:
        chunks: The blob, in chunks of any size.
        what: Name of the blob for messages.
        limits: `bytes` and `ratio` are looked at.

    Raises:
        InvalidImage: The compressed stream is damaged, cut off or followed by other bytes, or of a refused format.
        LimitExceeded: The uncompressed stream is too long, or too long for its compressed size.
    """
    source = _Source(chunks)
    done = 0
    for piece in _format(source, what)(source, what):
        done += len(piece)
        if done > limits.bytes:
            raise LimitExceeded(
                f"{what}: over the limit 'bytes'",
                found=f"{done} uncompressed bytes or more",
                expected=f"at most {limits.bytes}",
                todo="raise the limit 'bytes' if you trust this image",
            )
        if done > limits.ratio_floor and done > limits.ratio * source.consumed:
            raise LimitExceeded(
                f"{what}: over the limit 'ratio'",
                found=f"{done} uncompressed from {source.consumed} compressed bytes",
                expected=f"at most {limits.ratio} to 1",
                todo="raise the limit 'ratio' if you trust this image",
            )
        yield piece


class _Source:
    """Chunks, with some to be looked at first, and the count of what was taken."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._pending = b""
        self.consumed = 0

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end of the stream."""
        while len(self._pending) < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._pending += chunk
        return self._pending[:count]

    def take(self) -> bytes:
        """The next chunk; empty at the end of the stream."""
        chunk, self._pending = self._pending, b""
        while not chunk:
            following = next(self._chunks, None)
            if following is None:
                return b""
            chunk = following
        self.consumed += len(chunk)
        return chunk

    def give_back(self, rest: bytes) -> None:
        """Put back the end of the last chunk."""
        self._pending = rest
        self.consumed -= len(rest)


def _format(source: _Source, what: str) -> Callable[[_Source, str], Iterator[bytes]]:
    """Choose by the first bytes; the media type is only a claim."""
    start = source.peek(_LONGEST_MAGIC)
    if start.startswith(_GZIP_MAGIC):
        return _gunzip
    if start.startswith((_ZSTD_MAGIC, *_ZSTD_SKIPPABLE)):
        return _unzstd
    for magic, name in _REFUSED_MAGIC.items():
        if start.startswith(magic):
            raise InvalidImage(
                f"{what}: a compression that no image specification has",
                found=name,
                expected="gzip, zstd or an uncompressed tar",
                todo="have the image rebuilt with gzip or zstd layers",
            )
    return _plain


def _plain(source: _Source, _what: str) -> Iterator[bytes]:
    while chunk := source.take():
        for at in range(0, len(chunk), _PIECE):
            yield chunk[at : at + _PIECE]


def _gunzip(source: _Source, what: str) -> Iterator[bytes]:
    """One or more members, each with its checksum and length verified.

    Bytes after the last member are refused, zeros too: gzip itself passes over zeros, Go does not.
    """
    while True:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not member.eof:
            chunk = b""
            if member.needs_input and not (chunk := source.take()):
                raise _damaged(what, "gzip", "the end in the middle of a member")
            try:
                piece = member.decompress(chunk, _PIECE)
            except _GzipError as problem:
                raise _damaged(what, "gzip", str(problem)) from problem
            if piece:
                yield piece
        source.give_back(member.unused_data)
        following = source.peek(len(_GZIP_MAGIC))
        if not following:
            return
        if following != _GZIP_MAGIC:
            raise _damaged(what, "gzip", f"bytes after the last member: {following!r}")


def _unzstd(source: _Source, what: str) -> Iterator[bytes]:
    """One or more frames, skippable ones among them (zstd:chunked), each with its checksum verified."""
    frames = _ZstdFrames(source, what)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    # Needs no more of a file than `read`.
    stream = cast(IO[bytes], frames)
    reader = decompressor.stream_reader(stream, read_across_frames=True, closefd=False)
    try:
        while piece := reader.read(_PIECE):
            yield piece
    except zstandard.ZstdError as problem:
        raise _damaged(what, "zstd", str(problem)) from problem
    frames.check_end()


class _ZstdFrames:
    """Hands a zstd stream on and follows its frames, because the library takes a cut one for the end.

    RFC 8878, section 3.1. Only lengths are looked at; everything else the library checks.
    """

    def __init__(self, source: _Source, what: str) -> None:
        self._source = source
        self._what = what
        self._between = True
        self._held = b""
        self._walker = self._walk()
        self._step = next(self._walker)

    def read(self, _size: int = -1) -> bytes:
        """The next chunk, whatever size is asked for: the library takes what it gets."""
        chunk = self._source.take()
        at = 0
        while at < len(chunk):
            self._between = False
            count = min(abs(self._step) - len(self._held), len(chunk) - at)
            if self._step < 0:
                self._step += count
            else:
                self._held += chunk[at : at + count]
            at += count
            if len(self._held) == abs(self._step):
                held, self._held = self._held, b""
                self._step = self._walker.send(held)
        return chunk

    def check_end(self) -> None:
        """Raise InvalidImage unless the stream ended between two frames."""
        if not self._between:
            raise _damaged(self._what, "zstd", "the end in the middle of a frame")

    def _walk(self) -> Generator[int, bytes, None]:
        """Yield how many bytes come next: a positive number to be sent them, a negative one to skip them."""
        while True:
            self._between = True
            magic = yield 4
            if magic in _ZSTD_SKIPPABLE:
                if size := int.from_bytes((yield 4), "little"):
                    yield -size
                continue
            if magic != _ZSTD_MAGIC:
                raise _damaged(self._what, "zstd", f"bytes after the last frame: {magic!r}")
            descriptor = (yield 1)[0]
            single_segment = bool(descriptor & 0x20)
            window = 0 if single_segment else 1
            dictionary = (0, 1, 2, 4)[descriptor & 3]
            content_size = (1 - window, 2, 4, 8)[descriptor >> 6]
            yield -(window + dictionary + content_size)  # never 0
            last = False
            while not last:
                block = int.from_bytes((yield 3), "little")
                last = bool(block & 1)
                size = 1 if block >> 1 & 3 == 1 else block >> 3
                if size:
                    yield -size
            if descriptor & 4:
                yield -4


def _damaged(what: str, name: str, found: str) -> InvalidImage:
    return InvalidImage(
        f"{what}: the {name} stream is damaged",
        found=found,
        expected=f"whole {name} members and nothing else",
        todo="have the image rebuilt: its digest is right, so downloading it again will not help",
    )


@contextlib.contextmanager
def read_layer(
    path: Path | Callable[[], Path], *, diff_id: Digest, what: str, limits: Limits
) -> Iterator[Iterator[bytes]]:
    """Inflate a blob's file beside the caller, and verify its diff_id at the end.

    One thread reads and inflates, another hashes; both leave the interpreter lock while they do. They are gone
    when the context ends, wherever the caller stopped; if they still wait for the blob then, when that wait
    ends. At most some 28 MiB are in flight.

    Args:
        path: The blob, whose own digest was verified; or what gives it, which may wait for it and is called in the
            thread that reads.
        diff_id: Digest of the uncompressed stream.
        what: Name of the layer for messages.
        limits: `bytes` and `ratio` are looked at.

    Yields:
        An iterator of the pieces, for one thread and within the context. Only who exhausts it knows that the layer is
        the right one.

    Raises:
        InvalidImage: From the iterator, as `decompress`, or at its end when the diff_id is another.
        LimitExceeded: From the iterator, as `decompress`.
        ImageError: From the iterator, when the file cannot be read.
    """
    pipeline = _Pipeline(path, diff_id, what, limits)
    try:
        yield pipeline.pieces()
    finally:
        pipeline.stop()


class _Pipeline:
    """Two threads in a row, and the tokens that bound how far they are ahead of the caller.

    A piece needs a token to be handed on, and the caller's asking for the next piece gives it back. The queues
    themselves have no bound, so nothing but waiting for a token or a piece ever blocks, and a stop reaches
    everybody. (`Queue` has a bound, but is made of Python locks: more hand-overs of the interpreter lock.)
    """

    def __init__(self, path: Path | Callable[[], Path], diff_id: Digest, what: str, limits: Limits) -> None:
        self._path = path
        self._diff_id = diff_id
        self._digest = hashlib.new(diff_id.algorithm)
        self._what = what
        self._limits = limits
        self._stopped = False
        self._waiting = not isinstance(path, Path)
        self._tokens: SimpleQueue[None] = SimpleQueue()
        # None is the end.
        self._inflated: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        self._hashed: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        for _ in range(_IN_FLIGHT):
            self._tokens.put(None)
        self._threads = [
            threading.Thread(target=self._inflate, name=f"inflate {what}", daemon=True),
            threading.Thread(target=self._hash, name=f"hash {what}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def pieces(self) -> Iterator[bytes]:
        while True:
            item = self._hashed.get()
            if self._stopped:
                raise ValueError(f"{self._what}: read after its context ended")
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
            self._tokens.put(None)

    def stop(self) -> None:
        """End both threads, soon: at most one piece is still made."""
        self._stopped = True
        self._tokens.put(None)
        if not self._waiting:
            for thread in self._threads:
                thread.join()
        self._hashed.put(None)

    def _inflate(self) -> None:
        outcome: BaseException | None = None
        try:
            path = self._path if isinstance(self._path, Path) else self._path()
            self._waiting = False
            with path.open("rb", buffering=0) as blob:
                chunks = iter(lambda: blob.read(_PIECE), b"")
                for piece in decompress(chunks, what=self._what, limits=self._limits):
                    self._tokens.get()
                    if self._stopped:
                        break
                    self._inflated.put(piece)
        except OSError as problem:
            outcome = ImageError(
                f"{self._what}: the layer's file cannot be read",
                found=f"{problem.strerror}: {problem.filename}",
                todo="see that the image's layout, or the spool, is there and readable",
            )
        except BaseException as problem:  # noqa: BLE001 -- the caller gets it, whatever it is
            outcome = problem
        self._inflated.put(outcome)

    def _hash(self) -> None:
        digest = self._digest
        while isinstance(item := self._inflated.get(), bytes):
            digest.update(item)
            self._hashed.put(item)
        if item is None and not self._stopped and digest.hexdigest() != self._diff_id.hex:
            item = InvalidImage(
                f"{self._what}: the uncompressed stream has another digest",
                found=f"{self._diff_id.algorithm}:{digest.hexdigest()}",
                expected=f"{self._diff_id}, the diff_id of the image's configuration",
                todo="have the image rebuilt: its configuration and its layers do not belong together",
            )
        self._hashed.put(item)
