"""Every path in the repository, relative to its root.

Pure functions of names and digests; nothing here looks at a file system. Two layouts: `unpacked`, with the registry in
every link so that no two names collide, and `osg`, the paths that Open Science Grid users type today.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from cvmfs_sync.reference import Digest, ImageName, Platform, Reference

__all__ = [
    "CATALOGUE",
    "MARKER",
    "OWN",
    "Layout",
    "LayoutName",
    "record_path",
    "relative_target",
    "runnable",
    "tree_key",
]

LayoutName = Literal["unpacked", "osg"]
OWN = ".cvmfs-sync"
CATALOGUE = f"{OWN}/catalogue.json"
MARKER = ".cvmfscatalog"
_RECORDS = f"{OWN}/images"


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
        tag = f":{image.tag}" if image.tag else ""
        if isinstance(image, Reference):
            path = f"{self._repository(image)}{tag}" + (f"@{image.digest}" if image.digest else "")
        else:
            path = f"oci{image.directory}{tag}"
        if platform is not None:
            return f".multiarch/{str(platform).replace('/', '-')}/{path}"
        return path

    def image(self, link: str) -> str | None:
        """The image that a link names: the inverse of `link`, but for the platform. None where links do not tell it."""
        if link.startswith(".multiarch/"):
            link = link.split("/", 2)[2]
        if self.name != "unpacked":
            return None
        # No registry is called just "oci": its name has a dot or a port, or is localhost.
        return f"oci:{link.removeprefix('oci')}" if link.startswith("oci/") else link

    def _repository(self, image: Reference) -> str:
        return image.name if self.name == "unpacked" else image.repository

    def tree(self, digest: Digest, generation: int) -> str:
        """The sandbox of a platform manifest."""
        key = tree_key(digest, generation)
        if self.name == "osg":
            return f".images/{key[:2]}/{key[2:]}"
        return f".flat/{key[:2]}/{key}"

    def digest_of_tree(self, path: str) -> str | None:
        """The key in a tree's path, or None if the path is no tree's: the inverse of `tree`."""
        parts = path.split("/")
        if len(parts) != 3 or len(parts[1]) != 2:
            return None
        key = parts[1] + parts[2] if self.name == "osg" else parts[2]
        if parts[0] != (".images" if self.name == "osg" else ".flat") or not key.startswith(parts[1]):
            return None
        return key

    def markers(self, tree: str) -> Iterator[str]:
        """Files that make the directories above a tree and of the records nested catalogs."""
        prefix = posixpath.dirname(tree)
        yield f"{prefix}/{MARKER}"
        yield f"{OWN}/{MARKER}"


def tree_key(digest: Digest, generation: int) -> str:
    """`<hex>`, plus `-<n>` when the sandbox recipe's generation n is not 1. Other algorithms than sha256 are named."""
    hexadecimal = digest.hex if digest.algorithm == "sha256" else f"{digest.hex}-{digest.algorithm}"
    return hexadecimal if generation == 1 else f"{hexadecimal}-{generation}"


def record_path(key: str) -> str:
    """The record of a published tree, by `tree_key`."""
    return f"{_RECORDS}/{key[:2]}/{key}.json"


def relative_target(link: str, tree: str) -> str:
    """What a link at `link` holds to lead to `tree`."""
    return posixpath.relpath(tree, posixpath.dirname(link) or ".")


def runnable(image: ImageName) -> str:
    """How Apptainer is told to get an image that is not published."""
    if isinstance(image, Reference):
        # The docker transport refuses a name with both; the digest decides.
        return f"docker://{replace(image, tag=None) if image.digest else image}"
    return str(image)
