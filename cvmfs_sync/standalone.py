"""One image, no repository and no configuration: `unpack` and `squash`.

A name goes in, a directory or a tar archive comes out, whole or not at all. Layers are flattened while others are on
their way.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from cvmfs_sync.console import Bars
from cvmfs_sync.errors import InvalidImage, UsageError
from cvmfs_sync.fetch import Spool, fetching
from cvmfs_sync.flatten import Placement, Sink, Transform, flatten
from cvmfs_sync.reference import ArtifactReference, ImageName, Platform
from cvmfs_sync.registry import ArchiveSource, EngineSource, LayoutSource, RegistrySettings, RegistrySource
from cvmfs_sync.removal import remove_tree
from cvmfs_sync.resolve import Sources, resolve, resolve_artifact, source_digest
from cvmfs_sync.rootfs import DirectorySink, os_errors
from cvmfs_sync.sandbox import furnish
from cvmfs_sync.squash import OutOfOrder, TarSink
from cvmfs_sync.writing import SANDBOX, exact_policy

__all__ = ["squash", "unpack"]

_BUFFER = 1 << 20
# Behind the line that a shell would run the file by (SIF specification, "Global Header").
_SIF_MAGIC = slice(32, 42)


def unpack(name: ImageName, destination: Path, platform: Platform, *, insecure: bool, sandbox: bool) -> None:
    """Make a directory out of an image. A SIF file, which is no layers to be flattened, stays a file.

    Args:
        name: The image.
        destination: Must be empty or not there; it gets its name when it is whole. For a SIF file not there.
        platform: What to choose from an index.
        insecure: Whether to talk plain HTTP.
        sandbox: Whether to add what Apptainer needs.

    Raises:
        CvmfsSyncError: Nothing of it is there.
    """
    destination = Path(os.path.abspath(destination))
    if isinstance(name, ArtifactReference):
        if sandbox:
            raise UsageError(f"{name} is a SIF file, which has all that Apptainer needs", todo="leave out '--sandbox'")
        _fetch_sif(name, destination, platform, insecure=insecure)
        return
    _require_empty(destination)
    with os_errors(f"to {destination}"), _parents(destination), _staging(destination) as staging:
        tree = staging / "tree"
        tree.mkdir()
        with DirectorySink(tree, SANDBOX if sandbox else exact_policy()) as sink:
            _flatten(name, platform, Spool(staging / "spool"), sink, insecure=insecure, sandbox=sandbox)
        # A directory without write permission can't be moved by an ordinary user: its `..` changes.
        mode = tree.stat().st_mode
        tree.chmod(0o700)
        tree.rename(destination)
        destination.chmod(mode)


def squash(name: ImageName, output: Path | None, platform: Platform, *, insecure: bool) -> None:
    """Make a tar archive out of an image.

    Args:
        name: The image.
        output: A file, which gets its name when it is whole; stdout if None.
        platform: What to choose from an index.
        insecure: Whether to talk plain HTTP.

    Raises:
        CvmfsSyncError: What was written to a pipe by then is no whole archive.
    """
    if output is None and sys.stdout.isatty():
        raise UsageError("a tar archive is not for a terminal", todo="redirect stdout, or name a file with -o")
    with _temporary() as (directory, aside), _output(output) as stream:
        start = stream.tell() if stream.seekable() else None
        flat = partial(_flatten, name, platform, Spool(directory), insecure=insecure, sandbox=False)
        try:
            flat(TarSink(stream, aside))
        except OutOfOrder:
            if start is None:
                raise
            stream.seek(start)
            stream.truncate()
            aside.seek(0)
            aside.truncate()
            flat(TarSink(stream, aside, Placement.NEVER))


def _flatten(name: ImageName, platform: Platform, spool: Spool, sink: Sink, *, insecure: bool, sandbox: bool) -> None:
    """Resolve, fetch and flatten one image."""
    with ExitStack() as stack:
        sources = stack.enter_context(_sources(spool.directory, insecure=insecure))
        progress = stack.enter_context(Bars())
        image = resolve(name, source_digest(name, sources), platform, sources)
        transform: Transform | None = partial(furnish, config=image.config) if sandbox else None
        progress.start(f"flattening {name}", 2 * image.compressed_size)
        layers = stack.enter_context(fetching(image, sources, spool, progress))
        flatten(layers, sink, transform=transform, progress=progress)


def _fetch_sif(name: ArtifactReference, destination: Path, platform: Platform, *, insecure: bool) -> None:
    """Fetch one SIF file, which gets its name when it is whole and verified."""
    if os.path.lexists(destination):
        raise UsageError(
            f"{destination} is there already", expected="a name for the SIF file that nothing has", todo="name another"
        )
    with os_errors(f"to {destination}"), _parents(destination), _staging(destination) as staging, ExitStack() as stack:
        sources = stack.enter_context(_sources(staging, insecure=insecure))
        progress = stack.enter_context(Bars())
        sif = resolve_artifact(name, source_digest(name, sources), platform, sources).sif
        progress.start(f"fetching {name}", sif.size)
        file = Spool(staging / "spool").get(name, sif, sources, progress)
        with file.open("rb") as stream:
            magic = stream.read(_SIF_MAGIC.stop)[_SIF_MAGIC]
        if magic != b"SIF_MAGIC\0":
            raise InvalidImage(f"{name}: not a SIF file, although its registry says so", found=repr(magic))
        file.chmod(0o755)
        file.rename(destination)


@contextmanager
def _sources(directory: Path, *, insecure: bool) -> Iterator[Sources]:
    """Whom to ask; `directory` is for their temporary files."""
    with ExitStack() as stack:
        registry = RegistrySource({}, default=RegistrySettings(insecure=insecure))
        stack.callback(registry.close)
        archive = ArchiveSource(directory)
        stack.callback(archive.close)
        engine = EngineSource(directory, os.environ)
        stack.callback(engine.close)
        yield Sources(registry, LayoutSource(), archive, engine)


def _require_empty(destination: Path) -> None:
    if not os.path.lexists(destination):
        return
    if destination.is_symlink() or not destination.is_dir():
        raise UsageError(f"{destination} is not a directory", expected="a directory that is empty or not there")
    if any(destination.iterdir()):
        raise UsageError(f"{destination} is not empty", expected="a directory that is empty or not there")
    if os.path.ismount(destination):
        raise UsageError(f"{destination} is a mount point", todo="name a directory below it")
    if destination == Path.cwd():
        raise UsageError(f"{destination} is the working directory, which cannot be replaced", todo="name another one")


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """The directories above a path; those that were made for it are gone again after an error."""
    made: list[Path] = []
    try:
        for parent in reversed(path.parents):
            with suppress(FileExistsError):
                parent.mkdir()
                made.append(parent)
        yield
    except BaseException:
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()
        raise


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    staging = destination.parent / f".{destination.name[:200]}.cvmfs-sync-{os.getpid()}"
    staging.mkdir(mode=0o700)
    try:
        yield staging
    finally:
        remove_tree(staging)


@contextmanager
def _temporary() -> Iterator[tuple[Path, IO[bytes]]]:
    with ExitStack() as stack:
        with os_errors("temporary files"):
            # Layers may be large and /tmp may be memory.
            place = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="cvmfs-sync-", dir=place))
            aside = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        yield Path(directory), aside


@contextmanager
def _output(path: Path | None) -> Iterator[IO[bytes]]:
    """A stream to write to. A regular file gets its name when it is whole; a pipe or device is written to."""
    if path is None:
        with open(sys.stdout.fileno(), "wb", buffering=_BUFFER, closefd=False) as stream:
            with suppress(OSError):
                # Only pipes have a size; the reader of a larger one is woken less often.
                fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, _BUFFER)
            yield stream
        return
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise UsageError(f"{path} is a directory", expected="a file to write", todo="name a file in it")
    with os_errors(f"to {path}"):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb", buffering=_BUFFER) as stream:
                yield stream
            return
        partial_path = path.with_name(f".{path.name[:200]}.cvmfs-sync-{os.getpid()}")
        try:
            with partial_path.open("xb", buffering=_BUFFER) as stream:
                yield stream
            partial_path.rename(path)
        finally:
            partial_path.unlink(missing_ok=True)
