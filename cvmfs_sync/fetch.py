"""An image's layers as files, fetched in parallel while somebody reads the first of them.

An image goes in, `Layer`s come out whose files are verified blobs of a `Spool`; they arrive top layer first, which is
the order in which flattening wants them. Verifying, and room on the disk, are the spool's.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path

from cvmfs_sync.flatten import Layer
from cvmfs_sync.image import Descriptor, ResolvedImage
from cvmfs_sync.ports import Progress, Silent, Unit
from cvmfs_sync.reference import Digest
from cvmfs_sync.resolve import Sources
from cvmfs_sync.spool import Spool

__all__ = ["Spool", "fetching", "spooled"]

_PARALLEL = 3


@contextmanager
def fetching(
    image: ResolvedImage,
    sources: Sources,
    spool: Spool,
    progress: Progress | None = None,
    *,
    ahead: Collection[Digest] | None = None,
) -> Iterator[tuple[Layer, ...]]:
    """Fetch an image's layers in the background; yields them bottom to top.

    A layer's `blob` waits for its file, which stays until the block ends. Leaving the block early, and the first
    failure, stop all other downloads. Where the spool has a limit, `hold` what will be fetched around this block.

    Args:
        image: Whose layers.
        sources: Whom to ask.
        spool: Where to put them.
        progress: Told of each byte.
        ahead: The layers to begin with at once; all if None. Another one is fetched when its `blob` is first called.
    """
    downloads = _Downloads(image, sources, spool, progress or Silent())
    try:
        downloads.start_ahead([layer for layer in image.manifest.layers if ahead is None or layer.digest in ahead])
        yield tuple(
            Layer(
                partial(downloads.result, layer),
                diff_id,
                layer.size,
                f"{image.name}: layer {number} ({str(layer.digest)[:19]})",
            )
            for number, (layer, diff_id) in enumerate(
                zip(image.manifest.layers, image.config.diff_ids, strict=True), start=1
            )
        )
    finally:
        downloads.close()


def spooled(image: ResolvedImage, sources: Sources) -> tuple[Descriptor, ...]:
    """The layers that need room in a spool: all but those that the source has on this machine. Each once."""
    layers = {layer.digest: layer for layer in image.manifest.layers}
    return tuple(layer for layer in layers.values() if sources.local_blob(image.name, layer) is None)


class _Stopped(Exception):
    """The rest of this download is of no use to anybody."""


class _Downloads:
    """The downloads of one image, and a `Progress` that several of them may tell."""

    def __init__(self, image: ResolvedImage, sources: Sources, spool: Spool, progress: Progress) -> None:
        self._image = image
        self._sources = sources
        self._spool = spool
        self._progress = progress
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._files: dict[Digest, Future[Path]] = {}
        self._pins = ExitStack()
        self._executor = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch")
        self._lock = threading.Lock()

    def start_ahead(self, layers: list[Descriptor]) -> None:
        """Begin with these, in the background, top layer first."""
        for layer in layers:
            self._pin(layer)
        # Those that the registry need not have come before all others: if one is refused, nothing is fetched in vain.
        first = [layer for layer in layers if layer.foreign]
        for layer in (*first, *reversed(layers)):
            if layer.digest not in self._files:
                self._files[layer.digest] = self._executor.submit(copy_context().run, self._run, layer)

    def result(self, layer: Descriptor) -> Path:
        """The file, when it is there; the first failure of all downloads if it is not."""
        with self._lock:
            file = self._files.get(layer.digest)
            begin = file is None
            if file is None:
                file = self._files[layer.digest] = Future()
        if begin:
            # Here and not in the background, where others may stand before it.
            try:
                self._pin(layer)
                file.set_result(self._run(layer))
            except BaseException as error:  # noqa: BLE001 - raised below
                file.set_exception(error)
        try:
            return file.result()
        except (_Stopped, CancelledError):
            if self._failure is None:
                raise
            raise self._failure from None

    def close(self) -> None:
        """End all downloads at their next piece, and wait for that; then their files may go."""
        self._stopped.set()
        self._executor.shutdown(cancel_futures=True)
        with self._lock:
            pins = self._pins.pop_all()
        pins.close()

    def start(self, what: str, total: int, unit: Unit = "bytes") -> None:
        """See `ports.Progress`."""
        with self._lock:
            self._progress.start(what, total, unit)

    def advance(self, amount: int) -> None:
        """See `ports.Progress`; a download calls it with each piece, so here it is stopped."""
        if self._stopped.is_set():
            raise _Stopped
        with self._lock:
            self._progress.advance(amount)

    def _pin(self, layer: Descriptor) -> None:
        """Keep the layer's file to the end; a source's own needs no keeping."""
        if self._sources.local_blob(self._image.name, layer) is None:
            pin = self._spool.pin(layer)
            pin.__enter__()
            with self._lock:
                if not self._stopped.is_set():
                    self._pins.push(pin)
                    return
            pin.__exit__(None, None, None)
            raise _Stopped

    def _run(self, layer: Descriptor) -> Path:
        """One download."""
        try:
            self.advance(0)
            return self._spool.get(self._image.name, layer, self._sources, self)
        except _Stopped:
            raise
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self._stopped.set()
            raise
