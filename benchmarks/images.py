"""The images that are measured, made once and kept in `${XDG_CACHE_HOME:-~/.cache}/cvmfs-sync-bench`.

Three kinds: a Debian with the packages of a scientific image (as root, from the machine's own package sources, so the
numbers of two machines are comparable only roughly), a small one of made-up files with the same shape, and made-up
images of a given number of entries or bytes. All but the last have the tags "1" and "2", which differ in the top layer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import layers as layers_module
from benchmarks.layers import Layer, LayerWriter, Stats, scan, total, write_difference, write_image
from benchmarks.measure import cache

__all__ = ["Subject", "Unavailable", "debian", "scaled", "synthetic"]

_MIB = 1 << 20
_PYTHON = (
    "ca-certificates", "curl", "git", "less", "locales", "procps", "python3-matplotlib", "python3-numpy",
    "python3-pandas", "python3-pip", "python3-requests", "python3-scipy",
)  # fmt: skip
_COMPILERS = ("cmake", "g++", "gcc", "gdb", "gfortran", "libboost-dev", "make")


class Unavailable(Exception):
    """Something can't be done on this machine; says why."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An image in an OCI layout.

    Attributes:
        name: For tables.
        layout: The layout's directory.
        layers: How many.
        entries: In all layers, hidden ones too.
        content: Bytes of files in all layers.
        compressed: Bytes of the blobs.
        tags: What the layout has; the first is measured.
    """

    name: str
    layout: Path
    layers: int
    entries: int
    content: int
    compressed: int
    tags: tuple[str, ...] = ("1",)


def debian() -> Subject:
    """At least 25,000 files and 800 MB in 7 layers.

    Raises:
        Unavailable: Without root, mmdebstrap or package sources.
    """
    if os.geteuid() != 0:
        raise Unavailable("the Debian image needs root; --quick does not")
    if shutil.which("mmdebstrap") is None:
        raise Unavailable("the Debian image needs mmdebstrap; --quick does not")

    def make(layout: Path) -> dict[str, list[Layer]]:
        base, python, compilers = layout / "base", layout / "python", layout / "compilers"
        _install(base, ())
        _install(python, _PYTHON)
        _install(compilers, (*_PYTHON, *_COMPILERS))
        _progress("writing layers")
        trees = [scan(root) for root in (base, python, compilers)]
        layers = [
            write_difference(layout, None, {}, base, trees[0]),
            write_difference(layout, base, trees[0], python, trees[1]),
            write_difference(layout, python, trees[1], compilers, trees[2]),
            _small_layer(layout, trees[2]),
            _upgrade(layout, compilers, trees[2]),
            _opaque_layer(layout, trees[2], "usr/share/zoneinfo"),
        ]
        for root in (base, python, compilers):
            shutil.rmtree(root)
        return _with_tops(layout, layers)

    return _cached("debian", make)


def synthetic(files: int = 3_000, size: int = 60 * _MIB) -> Subject:
    """An image of about `files` files and `size` bytes with the same layers, made without root or any tool."""

    def make(layout: Path) -> dict[str, list[Layer]]:
        generator = random.Random(1)
        pool = _text(generator, 2 * size // 3)
        shares = [("base", 0.25), ("python", 0.4), ("compilers", 0.35)]
        layers = []
        names: list[str] = []
        for name, share in shares:
            count = int(files * share)
            names = []
            with LayerWriter(layout) as writer:
                for index, length in enumerate(_sizes(generator, count, int(0.85 * size * share))):
                    start = generator.randrange(max(1, len(pool) - length))
                    path = f"usr/lib/{name}/package-{index // 25:03}/module-{index % 25:02}.py"
                    writer.file(path, pool[start : start + length])
                    names.append(path)
                    if index % 20 == 0:
                        writer.symlink(f"usr/bin/{name}-{index:04}", f"../../{path}")
            layers.append(writer.layer)
        layers.append(_small_layer(layout, {}))
        with LayerWriter(layout) as writer:
            for path in names[::5]:
                writer.file(path, pool[: generator.randrange(20_000)])
            for path in names[1::25]:
                writer.whiteout(path)
            for index in range(5):
                writer.whiteout(f"usr/lib/base/package-{index:03}")
        layers.append(writer.layer)
        layers.append(_opaque_layer(layout, {}, "usr/lib/python/package-000"))
        return _with_tops(layout, layers)

    return _cached(f"synthetic-{files}-{size}", make)


def scaled(entries: int, size: int) -> Subject:
    """An image of `entries` entries and `size` bytes in 4 layers, no path in two of them."""

    def make(layout: Path) -> dict[str, list[Layer]]:
        generator = random.Random(2)
        pool = _text(generator, 8 * _MIB)
        layers = []
        for number in range(4):
            with LayerWriter(layout, fast=True) as writer:
                count = entries // 4
                average = size // 4 // count
                for index in range(count):
                    path = f"data/{number}/{index // 10_000:04}/{index // 100 % 100:02}/file-{index:07}.dat"
                    start = generator.randrange(4 * _MIB)
                    writer.file(path, _repeated(pool, start, average))
            layers.append(writer.layer)
        return {"1": layers}

    return _cached(f"scaled-{entries}-{size}", make)


def _install(root: Path, packages: tuple[str, ...]) -> None:
    """A minimal Debian with some packages, as the machine's apt is configured."""
    _progress(f"installing a minimal Debian and {len(packages)} packages")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release.get("VERSION_CODENAME", "stable").strip('"')
    sources = [Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources")]
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--quiet", "--skip=output/dev"]
    # The machine's package sources may be a snapshot.
    command += ['--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=APT::Install-Recommends "false"']
    if packages:
        command.append(f"--include={','.join(packages)}")
    command += [suite, str(root), *(str(path) for path in sources if path.exists() and path.stat().st_size)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Unavailable(f"failed: {shlex.join(command)}\n{result.stderr[-2000:]}")


def _small_layer(layout: Path, tree: Stats) -> Layer:
    """What a few lines of a Dockerfile add."""
    with LayerWriter(layout, tree) as writer:
        for index in range(40):
            writer.file(f"opt/app/etc/part-{index:02}.conf", b"setting = 1\n" * index)
        writer.hardlink("opt/app/etc/default.conf", "opt/app/etc/part-07.conf")
        writer.symlink("opt/app/current", "../app")
        writer.file("opt/app/share/" + "a-long-directory-name/" * 6 + "file", b"longer than a header's name\n")
        writer.file("opt/app/share/grüße.txt", "ünïcödé\n".encode())
        writer.directory("srv/data", 0o1777)
    return writer.layer


def _upgrade(layout: Path, root: Path, tree: Stats) -> Layer:
    """One large package and many libraries written again, documentation removed."""
    with LayerWriter(layout, tree) as writer:
        gone = "usr/share/man"
        for path, status in tree.items():
            if re.fullmatch(r"usr/share/doc/[a-l][^/]*", path) or path == gone:
                writer.whiteout(path)
            elif not os.path.isfile(root / path) or os.path.islink(root / path):
                continue
            elif path.startswith("usr/lib/python3/dist-packages/pandas/") and path.endswith(".py"):
                writer.file(path, (root / path).read_bytes() + b"# upgraded\n")
            elif path.startswith("usr/lib/python3/dist-packages/pandas/") or (
                re.fullmatch(r"usr/lib/[^/]*-linux-gnu/[^/]*\.so\.[^/]*", path) and status.st_size < _MIB
            ):
                writer.copy(root, path, status)
    return writer.layer


def _opaque_layer(layout: Path, tree: Stats, directory: str) -> Layer:
    """A directory that was removed and made again."""
    with LayerWriter(layout, tree) as writer:
        writer.directory(directory)
        writer.opaque(directory)
        for index in range(10):
            writer.file(f"{directory}/new-{index}", b"all that is here\n" * index)
    return writer.layer


def _with_tops(layout: Path, layers: list[Layer]) -> dict[str, list[Layer]]:
    """The image and its successor: the same layers, and a top one that differs."""
    tags = {}
    for tag in ("1", "2"):
        with LayerWriter(layout) as writer:
            for index in range(20):
                writer.file(f"opt/app/bin/tool-{index:02}", f"#!/bin/sh\necho version {tag}\n".encode(), 0o755)
            writer.file("opt/app/VERSION", f"{tag}\n".encode())
        tags[tag] = [*layers, writer.layer]
    return tags


def _text(generator: random.Random, size: int) -> bytes:
    """Bytes that gzip makes about three times smaller."""
    words = [generator.randbytes(generator.randrange(1, 6)).hex().encode() + b" " for _ in range(4_000)]
    pieces: list[bytes] = []
    while size > 0:
        pieces.append(b"".join(generator.choices(words, k=1_000)))
        size -= len(pieces[-1])
    return b"".join(pieces)


def _sizes(generator: random.Random, count: int, total_size: int) -> list[int]:
    """Sizes as in a file system: most small, few large."""
    weights = [generator.lognormvariate(0, 1.6) for _ in range(count)]
    return [int(weight * total_size / sum(weights)) for weight in weights]


def _repeated(pool: bytes, start: int, size: int) -> bytes:
    return pool[start : start + size] if start + size <= len(pool) else (pool * (size // len(pool) + 2))[start:][:size]


def _cached(name: str, make: Callable[[Path], dict[str, list[Layer]]]) -> Subject:
    """The image that `make` makes, from the cache if this version of its recipe made it."""
    home = cache()
    home.mkdir(parents=True, exist_ok=True)
    recipe = b"".join(Path(file).read_bytes() for file in (__file__, layers_module.__file__))
    final = home / f"{name}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    with _locked(home / ".lock"):
        if not (final / "subject.json").exists():
            for old in home.glob(f"{name}-*"):
                shutil.rmtree(old)
            _progress(f"making the image {name}, once, in {home}")
            fresh = home / f"{name}-making"
            fresh.mkdir()
            try:
                tags = make(fresh)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            write_image(fresh, tags)
            layers = next(iter(tags.values()))
            entries, content, compressed = total(layers)
            subject = Subject(name, final, len(layers), entries, content, compressed, tuple(tags))
            (fresh / "subject.json").write_text(json.dumps(asdict(subject) | {"layout": ""}))
            fresh.rename(final)
    document = json.loads((final / "subject.json").read_bytes())
    return Subject(**(document | {"layout": final, "tags": tuple(document["tags"])}))


def _progress(message: str) -> None:
    sys.stderr.write(f"benchmarks: {message}\n")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
