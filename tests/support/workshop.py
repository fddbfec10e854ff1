"""What prepares and publishes images, put together for tests: no command line, no list, no memory of names."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cvmfs_sync.catalogue import CatalogueFile, LinkWish
from cvmfs_sync.fetch import Spool
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.imagelist import Wish
from cvmfs_sync.index import IndexCache
from cvmfs_sync.inventory import Published
from cvmfs_sync.layout import Layout
from cvmfs_sync.ports import Costs, Repository, Silent
from cvmfs_sync.prepare import Prepared, Preparer, Recipe
from cvmfs_sync.publish import put_image
from cvmfs_sync.reference import ImageName, Platform, parse_image
from cvmfs_sync.registry import LayoutSource, RegistrySettings, RegistrySource
from cvmfs_sync.repository import CvmfsRepository, DirectoryRepository
from cvmfs_sync.resolve import Sources, resolve, source_digest
from cvmfs_sync.shelf import Shelf
from cvmfs_sync.tar import Limits
from tests.support.images import Image, write_layout

__all__ = ["BY_DIFFERENCE", "NOW", "WHOLE", "Workshop", "inodes"]

NOW = datetime(2026, 1, 2, tzinfo=UTC)
BY_DIFFERENCE = Costs(clone=0.0, cloned=0.0, removed=0.0, made=1.0, byte=1.0)
"""Whatever two trees have in common, one is made of the other."""
WHOLE = Costs(clone=1e9, cloned=0.0, removed=0.0, made=0.0, byte=0.0)
"""Nothing is made of anything."""


@dataclass
class Workshop:
    """All that it takes to publish an image in a repository.

    Attributes:
        home: Where layouts, spool and indexes are.
        repository: Where to publish.
        costs: What publishing is thought to cost; None as the repository says.
        spool_limit: Bytes.
    """

    home: Path
    repository: DirectoryRepository | CvmfsRepository
    costs: Costs | None = BY_DIFFERENCE
    spool_limit: int | None = None
    limits: Limits = field(default_factory=Limits)
    insecure: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.costs is not None:
            self.repository.traits = replace(self.repository.traits, costs=self.costs)
        settings = {host: RegistrySettings(insecure=True, requests_per_second=1000) for host in self.insecure}
        self.registry = RegistrySource(settings)
        self.sources = Sources(self.registry, LayoutSource())
        self.renew()

    def renew(self) -> None:
        """Forget what a process remembers; indexes and blobs on disk stay."""
        self.recipe = Recipe(Layout(), (), self.limits)
        self.spool = Spool(self.home / "spool", self.spool_limit)
        self.layer_indexes = IndexCache(self.home / "indexes/layers")
        self.tree_indexes = IndexCache(self.home / "indexes/trees")
        repository: Repository = self.repository
        self.catalogue = CatalogueFile(repository, self.recipe.layout)
        self.shelf = Shelf(repository, self.tree_indexes)
        self.preparer = Preparer(
            repository, self.sources, self.sources, self.spool, self.recipe, self.layer_indexes, self.shelf
        )

    def close(self) -> None:
        """Close connections."""
        self.registry.close()

    def add(self, image: Image, tag: str = "1") -> ResolvedImage:
        """Put an image into a layout on disk, and resolve it."""
        return self.resolve(f"oci:{write_layout(self.home / 'layout', {tag: image})}:{tag}")

    def resolve(self, name: str | ImageName) -> ResolvedImage:
        """What a name means."""
        parsed = parse_image(name) if isinstance(name, str) else name
        return resolve(parsed, source_digest(parsed, self.sources), Platform(), self.sources)

    def prepare(self, image: ResolvedImage, replaces: str | None = None) -> Prepared:
        """Make it ready."""
        return self.preparer.prepare(image, replaces, Silent())

    def put(self, prepared: Prepared, link: str | None = None) -> Published:
        """Publish what is ready."""
        image = prepared.image
        wish = Wish(image.name, None, None, (Platform(),), None, None, None, None, 1)
        links = [LinkWish(link or f"links/{image.digest.hex[:12]}", image.name, image.source_digest, wish, Platform())]
        tree = put_image(self.repository, self.recipe, prepared, links, self.catalogue, NOW, Silent())
        self.shelf.published(tree.path)
        return tree

    def publish(self, image: ResolvedImage | Image, replaces: str | None = None) -> Published:
        """Prepare and publish."""
        resolved = self.add(image) if isinstance(image, Image) else image
        with self.prepare(resolved, replaces) as prepared:
            return self.put(prepared)


def inodes(root: Path, *, but: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """What a write to any file below a directory would change: all of lstat but times of access and of the inode.

    The number of names is left out, too: another tree may share a file.
    """
    found: dict[str, tuple[int, ...]] = {}
    stack = [root]
    while stack:
        path = stack.pop()
        status = path.lstat()
        name = os.path.relpath(path, root)
        if name not in but:
            found[name] = (
                status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns,
            )  # fmt: skip
        if stat.S_ISDIR(status.st_mode):
            stack.extend(path.iterdir())
    return found
