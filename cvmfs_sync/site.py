"""The view as a static site: which documents are looked up, and which files they become.

A view goes in; files are in a directory when it is done. What is in them is `pages.site`'s part, which of them are
written and removed is that of `ownfiles`. What links lead to is written before the links and removed after them, so
that nobody who comes from the first page meets one that leads nowhere, be it meanwhile, or after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cvmfs_sync.config import Config
from cvmfs_sync.errors import UsageError
from cvmfs_sync.ownfiles import Written, own_files
from cvmfs_sync.pages.site import PER_PAGE, Part, StaticSite
from cvmfs_sync.pages.texts import web_address
from cvmfs_sync.view.documents import Summary
from cvmfs_sync.view.queries import View
from cvmfs_sync.view.snapshot import Query

__all__ = ["require_apart", "write_site"]

_ENTRIES = 100


def require_apart(directory: Path, config: Config) -> None:
    """See to it that a site is not written among what is ours to keep.

    Raises:
        UsageError: It would be.
    """
    places = {"repository.root": config.repository.root, "state_dir": config.state_dir, "spool_dir": config.spool_dir}
    for key, place in places.items():
        if directory.resolve().is_relative_to(place.resolve()):
            raise UsageError(
                f"no site can be in {key}", found=str(directory), todo="name a directory that holds nothing else"
            )


def write_site(view: View, directory: Path, url: str | None = None) -> Written:
    """Write the files of a site that are not as they are to be, and remove those that are none of it any more.

    Args:
        view: What is shown; one that does not watch.
        directory: Where to.
        url: By which the world reaches the site; None: badges and feeds have relative links.

    Raises:
        CvmfsSyncError: List, repository or database can't be read; nothing has been changed.
        UsageError: That is no address, or the directory holds what is not ours; nothing has been changed.
        RepositoryError: The file system refuses something. What is there can be read, and the next run completes it.
    """
    if url is not None and (web_address(url) is None or set("?#") & set(url)):
        raise UsageError("the site has no such address", found=url, expected="https://host/path")
    view.require("list", "repository", "state")
    images = view.every()
    site = StaticSite(view.repository, images, url)
    with own_files(directory, site.paths) as files:
        new_first = sorted(images, key=lambda image: files.is_there(site.page_of(image.link)))
        for part in _parts(view, site, new_first):
            files.keep(part.paths, part.made_of, part.make)
        return files.finish()


def _parts(view: View, site: StaticSite, images: Sequence[Summary]) -> Iterator[Part]:
    yield site.static()
    for summary in images:
        image = view.image(summary.link)
        assert image is not None  # noqa: S101 - the view does not watch: what it has known it knows
        view.require("state")
        yield site.image(image)
    yield site.all_images(view.images(Query(limit=max(1, len(images)))))
    yield site.feed(view.events(None, _ENTRIES))
    for state, page in site.pages():
        query = Query(state=state, offset=(page - 1) * PER_PAGE, limit=PER_PAGE)
        yield site.catalogue(state, page, view.images(query))
