"""One blob over HTTP, resumed after cuts, from the first of several places that has it whole.

Ways to ask for the blob go in, its bytes as they arrive come out. They are verified by the spool, for all sources
alike; here only where there are several places, since which one is asked next depends on it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import requests

from cvmfs_sync.errors import BlobChanged, BlobMismatch, ImageError, RegistryUnavailable
from cvmfs_sync.image import Descriptor
from cvmfs_sync.reference import Digest
from cvmfs_sync.registry.body import BodyCutError, read_body
from cvmfs_sync.registry.politeness import Timing, backoff
from cvmfs_sync.registry.transport import TRIES

__all__ = ["MAX_RESUMES", "Download", "Place", "Places", "right_range"]

# A download may be cut often as long as it gets on; without getting on it ends like any exchange.
MAX_RESUMES = 100
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)\Z")
Ask = Callable[[Mapping[str, str]], AbstractContextManager[requests.Response]]


class Download:
    """A blob that comes in as many answers as it takes."""

    def __init__(
        self, what: str, host: str, descriptor: Descriptor, ask: Ask, expect: Callable[[requests.Response], None]
    ) -> None:
        """Ask nobody yet.

        Args:
            what: Whose blob, to begin messages with.
            host: Whom `ask` asks.
            descriptor: Of the blob.
            ask: Sends a GET with these headers.
            expect: Returns for an answer that has the blob from its start, and raises for all others.
        """
        self._what = what
        self._host = host
        self._descriptor = descriptor
        self._ask = ask
        self._expect = expect
        self._validators = ("", "")
        self._ranges = True

    def pieces(self, offset: int, timing: Timing) -> Iterator[bytes]:
        """The blob's bytes from `offset` on, in pieces of up to 1 MiB; as many as the descriptor says.

        Raises:
            RegistryUnavailable: If the host's end of the connection failed for good.
            BlobMismatch: If the host's blob has another size.
            BlobChanged: If it became another one after a cut.
            ImageError: For all else, by type.
        """
        in_vain = 0
        reason = ""
        for _ in range(MAX_RESUMES):
            before, slow = offset, False
            try:
                for piece in self.once(offset, timing):
                    offset += len(piece)
                    yield piece
            except BodyCutError as error:
                reason, slow = str(error), error.slow
            if offset == self._descriptor.size:
                return
            in_vain = 0 if offset > before and not slow else in_vain + 1
            if in_vain == TRIES:
                break
            timing.sleep(backoff(in_vain, timing.chance()))
        raise RegistryUnavailable(
            f"{self._what}: the download of {self._descriptor.digest} from {self._host} breaks off again and again",
            found=f"{offset} bytes; {reason or 'the connection ended too early'}",
            expected=f"{self._descriptor.size} bytes",
            todo="the next cycle tries again",
        )

    def once(self, offset: int, timing: Timing) -> Iterator[bytes]:
        """One answer's bytes, from `offset` to the end.

        Raises:
            BodyCutError: If it ends early, or is not the range that was asked for.
        """
        size = self._descriptor.size
        with self._ask(self._range(offset)) as response:
            skip = 0
            if response.status_code == 206 and offset and self._ranges:
                if not right_range(response, offset, size, size):
                    raise BodyCutError("the server sends another range than it was asked for")
            elif response.status_code == 416 and offset and self._ranges:
                self._refused_range(response)
            else:
                self._expect(response)
                skip = offset
            self._require_unchanged(response)
            left = size - offset
            for piece in read_body(response, timing):
                fresh = piece[skip:] if skip else piece
                skip -= min(skip, len(piece))
                if len(fresh) > left:
                    raise BlobMismatch(
                        f"{self._what}: blob {self._descriptor.digest} has another size",
                        found="more bytes",
                        expected=f"{size} bytes",
                    )
                left -= len(fresh)
                if fresh:
                    yield fresh

    def _range(self, offset: int) -> dict[str, str]:
        if not offset or not self._ranges:
            return {}
        etag = self._validators[0]
        # Weak ones are not allowed there (RFC 9110, 13.1.5).
        strong = {"If-Range": etag} if etag.startswith('"') else {}
        return {"Range": f"bytes={offset}-", **strong}

    def _refused_range(self, response: requests.Response) -> None:
        """The server says that there is nothing from our offset on.

        Raises:
            BlobMismatch: If it says that its blob has another size.
            BodyCutError: If not; then it will be asked for the whole.
        """
        match = _UNSATISFIED.match(response.headers.get("Content-Range", "").strip())
        if match is not None and int(match[1]) != self._descriptor.size:
            raise BlobMismatch(
                f"{self._what}: blob {self._descriptor.digest} of {self._host} has another size",
                found=f"{match[1][:20]} bytes",
                expected=f"{self._descriptor.size} bytes",
                todo="push the image again",
            )
        self._ranges = False
        raise BodyCutError("the server has no more bytes than it sent")

    def _require_unchanged(self, response: requests.Response) -> None:
        now = (response.headers.get("ETag", "").strip(), response.headers.get("Last-Modified", "").strip())
        before = self._validators
        self._validators = now
        # Proxies weaken an ETag on the way, and leave either out; neither means that the blob is another one.
        tags = [text.removeprefix("W/") for text in (before[0], now[0])]
        dates = [before[1], now[1]]
        if tags[0] != tags[1] if all(tags) else all(dates) and dates[0] != dates[1]:
            raise BlobChanged(
                f"{self._what}: blob {self._descriptor.digest} of {self._host} changed while it was downloaded",
                found=f"another {'ETag' if all(tags) else 'Last-Modified'} after a cut",
                todo="the next cycle tries again",
            )


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to get a blob.

    Attributes:
        name: Tells it from the others.
        pieces: The bytes from an offset on.
        failed: Told why another place is asked instead.
    """

    name: str
    pieces: Callable[[int], Iterator[bytes]]
    failed: Callable[[Exception], None]


class Places:
    """Asks one place after the other. Safe for threads.

    Which place gave wrong bytes it remembers for its own lifetime, and does not ask it for that blob again.
    """

    def __init__(self) -> None:
        self._wrong: set[tuple[Digest, str]] = set()

    def pieces(self, what: str, descriptor: Descriptor, places: Sequence[Place]) -> Iterator[bytes]:
        """The blob's bytes. A place that breaks off is passed over, and the next one goes on from there.

        Args:
            what: Whose blob, to begin messages with.
            descriptor: The blob's.
            places: In order of preference; the last one is asked whatever it gave before.

        Raises:
            BlobChanged: What came is wrong; asked from the start, places that gave none of it are tried.
            ImageError: The last place's error, or that of one where it may be had later.
        """
        asked = [place for place in places[:-1] if (descriptor.digest, place.name) not in self._wrong]
        last = places[-1]
        if not asked:
            yield from last.pieces(0)
            return
        digest = hashlib.new(descriptor.digest.algorithm)
        offset, held = 0, b""
        givers: set[str] = set()
        temporary: ImageError | None = None
        for place in (*asked, last):
            try:
                for piece in place.pieces(offset):
                    offset += len(piece)
                    givers.add(place.name)
                    digest.update(piece)
                    if held:
                        yield held
                    held = piece
            except BlobChanged:
                raise
            except (ImageError, BodyCutError) as error:
                if place is last:
                    raise temporary or error from None
                if isinstance(error, ImageError) and error.temporary:
                    temporary = error
                place.failed(error)
            if offset == descriptor.size:
                break
        wrong = [place for place in asked if place.name in givers]
        if wrong and digest.hexdigest() != descriptor.digest.hex:
            changed = BlobChanged(
                f"{what}: blob {descriptor.digest} is damaged where it was downloaded from",
                found=f"{descriptor.digest.algorithm}:{digest.hexdigest()}",
                expected=str(descriptor.digest),
                todo="the next cycle tries again",
            )
            for place in wrong:
                self._wrong.add((descriptor.digest, place.name))
                place.failed(changed)
            raise changed
        if held:
            yield held


def right_range(response: requests.Response, start: int, end: int, size: int) -> bool:
    """Whether an answer says that it has the bytes from `start` up to `end` of a blob of that size."""
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", "").strip())
    if match is None:
        return False
    return int(match[1]) == start and int(match[2]) == end - 1 and match[3] in ("*", str(size))
