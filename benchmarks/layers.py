"""Writes images as docker and BuildKit do, into OCI layouts.

Trees on disk, or files made up, go in; gzip-compressed layers come out, written as a stream: nothing of an image is
held in memory but its names. As moby writes them, headers are ustar with PAX records only where a value does not fit,
names are relative, times are whole seconds, owners have no names, and each layer holds the parents of what it changes.
"""

from __future__ import annotations

import filecmp
import hashlib
import io
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, cast

from isal import isal_zlib

__all__ = ["Blob", "Layer", "LayerWriter", "Stats", "scan", "total", "write_difference", "write_image"]

MTIME = 1_700_000_000
_CREATED = "2023-11-14T22:13:20Z"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# Go's compress/gzip writes no time, and 255 for the operating system.
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"

Stats = dict[str, os.stat_result]
"""What `scan` finds: every path below a directory, in the order in which Go walks."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a layout."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that was written.

    Attributes:
        blob: The compressed archive.
        diff_id: Digest of the archive.
        archive: Its bytes.
        entries: Its headers, not counting PAX.
        content: Bytes of its files.
    """

    blob: Blob
    diff_id: str
    archive: int
    entries: int
    content: int


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Compressed:
    """Compresses what is written to it, and computes both digests."""

    def __init__(self, out: IO[bytes], *, fast: bool) -> None:
        self._out = out
        compressor: object = isal_zlib.compressobj(1, wbits=-15) if fast else zlib.compressobj(6, wbits=-15)
        self._compressor = cast(_Compressor, compressor)
        self._crc = 0
        self.diff_id, self.digest = hashlib.sha256(), hashlib.sha256()
        self.archive = self.size = 0
        self._emit(_GZIP_HEADER)

    def write(self, data: bytes) -> int:
        self.diff_id.update(data)
        self._crc = zlib.crc32(data, self._crc)
        self.archive += len(data)
        self._emit(self._compressor.compress(data))
        return len(data)

    def finish(self) -> None:
        self._emit(self._compressor.flush())
        self._emit(self._crc.to_bytes(4, "little") + (self.archive & 0xFFFFFFFF).to_bytes(4, "little"))

    def _emit(self, data: bytes) -> None:
        self.digest.update(data)
        self.size += self._out.write(data)


class LayerWriter:
    """Writes one layer into a layout; a context manager, after which `layer` is there.

    Args:
        layout: The layout's directory.
        parents: Status of directories that the layer need not name itself, by path.
        fast: Compress with igzip, at a third of the time and 1.2 times the size.
    """

    layer: Layer

    def __init__(
        self, layout: Path, parents: Mapping[str, os.stat_result] | None = None, *, fast: bool = False
    ) -> None:
        self._blobs = layout / "blobs/sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._partial = self._blobs / f".partial-{os.getpid()}-{id(self)}"
        self._parents = parents or {}
        self._fast = fast
        self._named: set[str] = {""}
        self._entries = self._content = 0

    def __enter__(self) -> Self:
        self._file = self._partial.open("xb", buffering=1 << 20)
        self._out = _Compressed(self._file, fast=self._fast)
        self._tar = tarfile.open(
            fileobj=cast(IO[bytes], self._out), mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.close()
            self._partial.unlink()
            return
        self._tar.close()
        self._out.finish()
        self._file.close()
        digest = self._out.digest.hexdigest()
        self._partial.rename(self._blobs / digest)
        self.layer = Layer(
            Blob(f"sha256:{digest}", self._out.size),
            f"sha256:{self._out.diff_id.hexdigest()}",
            self._out.archive,
            self._entries,
            self._content,
        )

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory with its parents."""
        self._add(_info(path, tarfile.DIRTYPE, mode))

    def file(self, path: str, content: bytes, mode: int = 0o644, mtime: int = MTIME) -> None:
        """A regular file."""
        info = _info(path, tarfile.REGTYPE, mode, mtime)
        info.size = len(content)
        self._add(info, io.BytesIO(content))

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        info = _info(path, tarfile.SYMTYPE, 0o777)
        info.linkname = target
        self._add(info)

    def hardlink(self, path: str, target: str) -> None:
        """A hard link to `target`, a path from the root."""
        info = _info(path, tarfile.LNKTYPE, 0o644)
        info.linkname = target
        self._add(info)

    def whiteout(self, path: str) -> None:
        """The deletion of what lower layers have at `path`."""
        parent, _, name = path.rpartition("/")
        self._add(_info(f"{parent}/.wh.{name}" if parent else f".wh.{name}", tarfile.REGTYPE, 0))

    def opaque(self, path: str) -> None:
        """The deletion of all that lower layers have in the directory `path`."""
        self._add(_info(f"{path}/.wh..wh..opq", tarfile.REGTYPE, 0))

    def copy(self, root: Path, path: str, status: os.stat_result, link: str | None = None) -> None:
        """What stands at `path` below `root`; a hard link to `link` if that is given."""
        kind = stat.S_IFMT(status.st_mode)
        info = _info(path, _TYPES[kind], stat.S_IMODE(status.st_mode), int(status.st_mtime))
        info.uid, info.gid = status.st_uid, status.st_gid
        if link is not None:
            info.type, info.linkname = tarfile.LNKTYPE, link
        elif kind == stat.S_IFLNK:
            info.linkname = os.readlink(root / path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif kind == stat.S_IFREG:
            info.size = status.st_size
            if "security.capability" in os.listxattr(root / path):
                value = os.getxattr(root / path, "security.capability")
                info.pax_headers = {"SCHILY.xattr.security.capability": value.decode("utf-8", "surrogateescape")}
            with (root / path).open("rb") as content:
                self._add(info, content)
            return
        self._add(info)

    def _add(self, info: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        parent = info.name.rpartition("/")[0]
        if parent not in self._named:
            status = self._parents.get(parent)
            above = _info(parent, tarfile.DIRTYPE, 0o755)
            if status is not None:
                above.mode, above.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
                above.uid, above.gid = status.st_uid, status.st_gid
            self._add(above)
        if info.type == tarfile.DIRTYPE:
            if info.name in self._named:
                return
            self._named.add(info.name)
            info.name += "/"
        self._tar.addfile(info, content)
        # Else tarfile keeps every entry, and a million of them are a gigabyte.
        self._tar.members.clear()  # type: ignore[attr-defined]
        self._entries += 1
        self._content += info.size


_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def _info(path: str, kind: bytes, mode: int, mtime: int = MTIME) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.mtime = kind, mode, mtime
    return info


def scan(root: Path) -> Stats:
    """Every path below `root` with its status; parents before children, siblings by name."""
    found: Stats = {}

    def visit(directory: str, prefix: str) -> None:
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISSOCK(status.st_mode):
                    found[prefix + entry.name] = status
                if entry.is_dir(follow_symlinks=False):
                    visit(entry.path, f"{prefix}{entry.name}/")

    visit(str(root), "")
    return found


def write_difference(layout: Path, old_root: Path | None, old: Stats, new_root: Path, new: Stats) -> Layer:
    """Write the layer that turns one tree into another.

    Files whose content is the same are taken for the same: what a second installation made anew has another time.
    """
    with LayerWriter(layout, new) as writer:
        first_names: dict[int, str] = {}
        for path, status in new.items():
            before = old.get(path)
            if before is not None and old_root is not None and _same(old_root / path, before, new_root / path, status):
                continue
            link = first_names.setdefault(status.st_ino, path) if status.st_nlink > 1 else path
            is_directory = stat.S_ISDIR(status.st_mode)
            writer.copy(new_root, path, status, None if is_directory or link == path else link)
        gone: set[str] = set()
        for path in old:
            if path in new:
                continue
            gone.add(path)
            if path.rpartition("/")[0] not in gone:
                writer.whiteout(path)
    return writer.layer


def _same(old_path: Path, old: os.stat_result, new_path: Path, new: os.stat_result) -> bool:
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev):
        return False
    if stat.S_ISLNK(old.st_mode):
        return os.readlink(old_path) == os.readlink(new_path)
    if stat.S_ISREG(old.st_mode):
        return old.st_size == new.st_size and filecmp.cmp(old_path, new_path)
    return True


def write_image(layout: Path, tags: Mapping[str, Sequence[Layer]]) -> None:
    """Write the documents of a layout, one image for each tag; layers bottom to top."""

    def blob(document: Mapping[str, Any]) -> Blob:
        content = json.dumps(document, separators=(",", ":")).encode()
        digest = hashlib.sha256(content).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(content)
        return Blob(f"sha256:{digest}", len(content))

    manifests = []
    for tag, layers in tags.items():
        config = {
            "created": _CREATED,
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": _CREATED, "created_by": "benchmarks"} for _ in layers],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, blob(config)),
            "layers": [_descriptor(_LAYER, layer.blob) for layer in layers],
        }
        name = {"org.opencontainers.image.ref.name": tag}
        manifests.append({**_descriptor(_MANIFEST, blob(manifest)), "annotations": name})
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _descriptor(media_type: str, blob: Blob) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def total(layers: Iterable[Layer]) -> tuple[int, int, int]:
    """Entries, bytes of files, and compressed bytes of some layers."""
    layers = list(layers)
    return sum(x.entries for x in layers), sum(x.content for x in layers), sum(x.blob.size for x in layers)
