"""Cycles and garbage collections of a `Site` in the tests' own process, at any time that a test likes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cvmfs_sync.collection import CollectionReport, Rules, collect
from cvmfs_sync.config import Config
from cvmfs_sync.context import Context
from cvmfs_sync.cycle import sync
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.outcome import CycleReport
from cvmfs_sync.publish import as_json
from cvmfs_sync.service import load_config, make_context, make_rules, read_wishes
from tests.support.site import Site

__all__ = ["AT_ONCE", "NOW", "Clock", "fingerprints", "make_published", "read"]

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
AT_ONCE = Rules(timedelta(0), batch=50, max_fraction=1.0, repository_gc=False)


class Clock:
    """A site and its time.

    Attributes:
        now: What its cycles and collections take for the time.
    """

    def __init__(self, site: Site, now: datetime = NOW) -> None:
        self.site = site
        self.now = now

    def pass_by(self, **duration: float) -> None:
        """Let time go on, or, with negative numbers, back."""
        self.now += timedelta(**duration)

    @contextmanager
    def context(self) -> Iterator[Context]:
        """All that a cycle works with."""
        with make_context(load_config(self.site.config)) as context:
            yield replace(context, now=lambda: self.now)

    def sync(self) -> CycleReport:
        """One cycle."""
        with self.context() as context:
            return sync(context, read(load_config(self.site.config)))

    def gc(self, rules: Rules | None = AT_ONCE, **options: bool) -> CollectionReport:
        """One collection; by the site's own rules if None."""
        settings = load_config(self.site.config)
        with self.context() as context:
            return collect(context, read(settings), rules or make_rules(settings), **options)

    def ages(self) -> dict[str, float]:
        """For how many days the orphans have been seen to be some, by the end of their paths."""
        with self.context() as context:
            found = context.state.orphans()
        return {path.rpartition("/")[2][:12]: round(each.age / timedelta(days=1), 3) for path, each in found.items()}


def read(config: Config) -> ImageList:
    """The list in force."""
    found: object = read_wishes(config)
    wishes = found if isinstance(found, ImageList) else getattr(found, "wishes", None)
    assert isinstance(wishes, ImageList)
    return wishes


def make_published(site: Site, images: Sequence[str], *, platform: str = "linux/amd64") -> dict[str, str]:
    """Publish trees of one file for these images by hand: faster than by a registry; their digests."""
    from cvmfs_sync.catalogue import write_catalogue
    from cvmfs_sync.inventory import CatalogueEntry
    from cvmfs_sync.layout import Layout, record_path, relative_target
    from cvmfs_sync.reference import parse_image
    from tests.support.images import digest_of

    layout = Layout()
    digests = {image: digest_of(image.encode()) for image in images}
    lines: dict[str, CatalogueEntry] = {}
    with Clock(site).context() as context, context.repository.transaction("a test") as transaction:
        for image, digest in digests.items():
            key = digest.removeprefix("sha256:")
            tree = layout.tree_of_key(key)
            (transaction.create_tree(tree) / "file").write_text(image)
            record: dict[str, Any] = {"version": 1, "reference": image, "digest": digest, "source_digest": digest}
            record |= {"platform": platform, "generation": 1, "config": {"digest": digest_of(key.encode())}}
            record |= {"layers": [], "size": 1, "entries": 1, "published_at": NOW.isoformat(), "sketch": ""}
            transaction.write(record_path(key), as_json(record))
        for image, digest in digests.items():
            tree = layout.tree_of_key(digest.removeprefix("sha256:"))
            link = layout.link(parse_image(image))
            transaction.link(link, relative_target(link, tree))
            lines[link] = CatalogueEntry(image, digest, digest, platform, tree, 1, 1, NOW.isoformat())
        write_catalogue(transaction, lines)
    return digests


def fingerprints(*roots: Path) -> dict[str, tuple[int, ...]]:
    """What any write below these directories would change."""
    found: dict[str, tuple[int, ...]] = {}
    for root in roots:
        for path in [root, *root.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    return found
