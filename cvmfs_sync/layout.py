"""Every path in the repository, relative to its root.

Pure functions of names and digests; nothing here looks at a file system. Two layouts: `unpacked`, with the registry in
every link so that no two names collide, and `osg`, the paths that Open Science Grid users type today.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from cvmfs_sync.reference import (
    ArchiveReference,
    ArtifactReference,
    Digest,
    EngineReference,
    ImageName,
    LayoutReference,
    Platform,
    Reference,
)

__all__ = [
    "CATALOGUE",
    "LAYOUTS",
    "MARKER",
    "OWN",
    "RECORDS",
    "Layout",
    "LayoutName",
    "key_of_tree",
    "record_path",
    "relative_target",
    "runnable",
    "tree_key",
]

LayoutName = Literal["unpacked", "osg"]
LAYOUTS: tuple[LayoutName, ...] = ("unpacked", "osg")
OWN = ".cvmfs-sync"
CATALOGUE = f"{OWN}/catalogue.json"
MARKER = ".cvmfscatalog"
RECORDS = f"{OWN}/images"
_KEY = re.compile(r"[0-9a-f]{64,}(?:-[a-z0-9]+)*")
# First parts of links, and what they stand for in names. No registry is called so: its name has a dot or a port, or is
# localhost.
_KINDS = {
    "oci/": "oci:/",
    "docker-archive/": "docker-archive:/",
    "docker-daemon/": "docker-daemon:",
    "oras/": "oras://",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where links and trees are."""

    name: LayoutName = "unpacked"

    def link(self, image: ImageName, platform: Platform | None = None) -> str:
        """The path that users type.

        Args:
            image: A name with a tag or digest.
            platform: Set for all but the first platform of a wish; these links have a directory of their own.
        """
        path = self._path(image)
        if platform is not None:
            return f".multiarch/{str(platform).replace('/', '-')}/{path}"
        return path

    def image(self, link: str) -> str | None:
        """The image that a link names: the inverse of `link`, but for the platform. None where links do not tell it."""
        if link.startswith(".multiarch/"):
            link = link.split("/", 2)[2]
        if self.name != "unpacked":
            return None
        for first, kind in _KINDS.items():
            if link.startswith(first):
                return kind + link.removeprefix(first)
        return link

    def _path(self, image: ImageName) -> str:
        tag = f":{image.tag}" if image.tag else ""
        match image:
            case Reference():
                digest = f"@{image.digest}" if image.digest else ""
                return f"{image.name if self.name == 'unpacked' else image.repository}{tag}{digest}"
            case LayoutReference():
                return f"oci{image.directory}{tag}"
            case ArchiveReference():
                return f"docker-archive{image.file}{tag}"
            case EngineReference():
                return f"docker-daemon/{image.repository}{tag}"
            case ArtifactReference():
                return f"oras/{image.reference}"
            case _:
                assert_never(image)

    def tree(self, digest: Digest, generation: int) -> str:
        """The sandbox of a platform manifest."""
        return self.tree_of_key(tree_key(digest, generation))

    def tree_of_key(self, key: str) -> str:
        """The sandbox of a `tree_key`."""
        return f"{self.trees}/{key[:2]}/{key[2:] if self.name == 'osg' else key}"

    def digest_of_tree(self, path: str) -> str | None:
        """The key in a tree's path, or None if the path is no tree's: the inverse of `tree`."""
        parts = path.split("/")
        if len(parts) != 3 or len(parts[1]) != 2:
            return None
        key = parts[1] + parts[2] if self.name == "osg" else parts[2]
        if parts[0] != self.trees or not key.startswith(parts[1]):
            return None
        return key

    @property
    def trees(self) -> str:
        """The directory of all trees."""
        return ".images" if self.name == "osg" else ".flat"

    def markers(self) -> Iterator[str]:
        """Files that make the directories of the trees and of the records nested catalogs."""
        yield f"{self.trees}/{MARKER}"
        yield f"{OWN}/{MARKER}"

    def prefixes(self) -> Iterator[str]:
        """All directories that trees are in: a clone can only be made where its directory is published already."""
        for number in range(256):
            yield f"{self.trees}/{number:02x}"


def key_of_tree(path: str) -> str | None:
    """The key in a tree's path of either layout, or None if the path is no tree's."""
    keys = (Layout(name).digest_of_tree(path) for name in LAYOUTS)
    return next((key for key in keys if key is not None and _KEY.fullmatch(key)), None)


def tree_key(digest: Digest, generation: int) -> str:
    """`<hex>`, plus `-<n>` when the sandbox recipe's generation n is not 1. Other algorithms than sha256 are named."""
    hexadecimal = digest.hex if digest.algorithm == "sha256" else f"{digest.hex}-{digest.algorithm}"
    return hexadecimal if generation == 1 else f"{hexadecimal}-{generation}"


def record_path(key: str) -> str:
    """The record of a published tree, by `tree_key`."""
    return f"{RECORDS}/{key[:2]}/{key}.json"


def relative_target(link: str, tree: str) -> str:
    """What a link at `link` holds to lead to `tree`."""
    return posixpath.relpath(tree, posixpath.dirname(link) or ".")


def runnable(image: ImageName) -> str:
    """How Apptainer is told to get an image that is not published."""
    if isinstance(image, Reference):
        # The docker transport refuses a name with both; the digest decides.
        return f"docker://{replace(image, tag=None) if image.digest else image}"
    if isinstance(image, ArchiveReference):
        # What stands behind the file is a whole reference to Apptainer, which takes the only image if there is none.
        return str(replace(image, tag=None))
    return str(image)
