"""Pairs of images for the benchmarks of publishing: one that is published, and one that is to be published after it.

A `Subject` goes in, and a second layout with images that have much in common with it comes out, made once and kept
beside it; or images of made-up files which have as many names and bytes as a measurement wants.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.images import Subject
from benchmarks.layers import Blob, Layer, LayerWriter, write_image
from benchmarks.measure import cache

__all__ = ["BASED", "REBUILT", "distinct", "relatives", "tree_images"]

REBUILT = "rebuilt"
"""Tag of the rebuild: every layer is another one, and one file of a hundred."""
BASED = "based"
"""Tag of an image that has the two lowest layers in common, and one of its own."""
_OWN_FILES = 1_500
_OWN_SIZE = 20_000


def relatives(subject: Subject) -> Path:
    """A layout with the tags `REBUILT` and `BASED`."""

    def make(layout: Path) -> dict[str, list[Layer]]:
        layers = _layers(subject.layout, subject.tags[0])
        rebuilt = [_rebuild(subject.layout, layout, layer, number) for number, layer in enumerate(layers)]
        for layer in layers[:2]:
            os.link(_blob(subject.layout, layer.blob.digest), _blob(layout, layer.blob.digest))
        own = _files(layout, 3, {"opt/tool": (_OWN_FILES, _OWN_SIZE)})
        return {REBUILT: rebuilt, BASED: [*layers[:2], own]}

    return _cached(f"relatives-of-{subject.layout.name}", make)


def tree_images(name: str, images: Mapping[str, Mapping[str, tuple[int, int]]]) -> Path:
    """A layout of made-up images.

    Args:
        name: Under which it is kept.
        images: By tag, the directories of each image: how many files there are in it, and how many bytes each has.
            The first files of two directories of one name and size of files are the same.
    """

    def make(layout: Path) -> dict[str, list[Layer]]:
        made: dict[str, Layer] = {}

        def layer(directory: str, amounts: tuple[int, int]) -> Layer:
            key = f"{directory} {amounts}"
            if key not in made:
                made[key] = _files(layout, zlib.crc32(f"{directory} {amounts[1]}".encode()), {directory: amounts})
            return made[key]

        return {tag: [layer(*each) for each in parts.items()] for tag, parts in images.items()}

    return _cached(name, make, json.dumps(images))


def distinct(count: int, files: int, size: int) -> Path:
    """Images, tagged from "0", that have nothing in common; each has so many files and bytes in two layers."""
    half = (files // 2, size // files)
    parts = {str(number): {f"image-{number}/first": half, f"image-{number}/second": half} for number in range(count)}
    return tree_images("distinct", parts)


def _files(layout: Path, seed: int, directories: Mapping[str, tuple[int, int]]) -> Layer:
    """A layer of files of one size, fifty in a directory, no two alike."""
    generator = random.Random(seed)
    # Half of each is noise: gzip makes it about half the size.
    pool = b"".join(generator.randbytes(64).hex().encode() for _ in range(1 << 13))
    with LayerWriter(layout, fast=True) as writer:
        for directory, (count, size) in directories.items():
            for index in range(count):
                start = generator.randrange(len(pool) // 2)
                content = b"%d %d\n" % (seed, index) + (pool[start:] + pool * (size // len(pool) + 1))[:size]
                writer.file(f"{directory}/{index // 2500:03}/{index // 50 % 50:02}/file-{index:06}", content[:size])
    return writer.layer


def _rebuild(source: Path, layout: Path, layer: Layer, number: int) -> Layer:
    """A layer again as a later build would make it: one file of a hundred has changed, and one is new."""
    with (
        tarfile.open(_blob(source, layer.blob.digest), "r|gz") as members,
        LayerWriter(layout, fast=True) as writer,
    ):
        for member in members:
            content = members.extractfile(member) if member.isreg() else None
            if content is not None and zlib.crc32(member.name.encode(errors="surrogateescape")) % 100 == 0:
                # Sizes stay, so that a comparison has to look at the content.
                content = io.BytesIO(content.read()[:-1] + b"~")
            writer._add(member, content)
            members.members.clear()  # type: ignore[attr-defined]
        writer.file(f"usr/share/build/layer-{number}", b"built again\n")
    return writer.layer


def _layers(layout: Path, tag: str) -> list[Layer]:
    """The layers of an image, as far as `write_image` needs to know them."""
    name = "org.opencontainers.image.ref.name"
    index = json.loads((layout / "index.json").read_bytes())
    (entry,) = (each for each in index["manifests"] if each["annotations"][name] == tag)
    manifest = json.loads(_blob(layout, entry["digest"]).read_bytes())
    config = json.loads(_blob(layout, manifest["config"]["digest"]).read_bytes())
    pairs = zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
    return [Layer(Blob(layer["digest"], layer["size"]), diff_id, 0, 0, 0) for layer, diff_id in pairs]


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _cached(name: str, make: Callable[[Path], Mapping[str, Sequence[Layer]]], parameters: str = "") -> Path:
    """The layout that `make` makes, kept while the recipe is this one."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + parameters.encode()).hexdigest()[:12]
    final = cache() / f"{name}-{recipe}"
    if not final.exists():
        for old in cache().glob(f"{name}-{'?' * 12}"):
            shutil.rmtree(old)
        making = cache() / f"{name}-making-{os.getpid()}"
        shutil.rmtree(making, ignore_errors=True)
        (making / "blobs/sha256").mkdir(parents=True)
        try:
            write_image(making, make(making))
            making.rename(final)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return final
