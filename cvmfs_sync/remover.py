"""Carrying out a retirement: what `retire` has decided goes, in small batches, each looked at again before."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import islice

from cvmfs_sync.catalogue import write_catalogue
from cvmfs_sync.errors import RepositoryError
from cvmfs_sync.inventory import all_links, all_records, read_catalogue
from cvmfs_sync.layout import Layout, key_of_tree, record_path
from cvmfs_sync.ports import Repository
from cvmfs_sync.retire import Retirement, RetirePlan

__all__ = ["carry_out", "forget_lines"]

log = logging.getLogger(__name__)


def carry_out(
    repository: Repository, layout: Layout, plan: RetirePlan, *, batch: int
) -> tuple[tuple[Retirement, ...], RepositoryError | None]:
    """Remove what the plan says, so many at a time: links and their lines of the catalogue, then records, then trees.

    Args:
        repository: Where.
        layout: Of the catalogue.
        plan: What.
        batch: How many links, or trees, in one go.

    Returns:
        What has gone, and what ended it early. What has changed since the plan was made stays.
    """
    gone: list[Retirement] = []
    try:
        for links in _batches(plan.links, batch):
            gone.extend(_remove_links(repository, layout, links))
        for trees in _batches(plan.trees, batch):
            gone.extend(_remove_trees(repository, trees))
    except RepositoryError as error:
        return tuple(gone), error
    return tuple(gone), None


def _remove_links(repository: Repository, layout: Layout, links: Sequence[Retirement]) -> list[Retirement]:
    there = dict(all_links(repository))
    going = [each for each in links if there.get(each.path) == each.target]
    if going:
        paths = {each.path for each in going}
        # A line whose link has gone is what an interrupted retirement left.
        catalogue = {
            link: line
            for link, line in read_catalogue(repository, layout).items()
            if link in there and link not in paths
        }
        with repository.transaction(f"retire {len(going)} links") as transaction:
            for path in sorted(paths):
                transaction.remove(path)
            write_catalogue(transaction, catalogue)
        for each in going:
            log.info("retired link=%s image=%s reason=%s", each.path, each.image, each.reason)
    return going


def _remove_trees(repository: Repository, trees: Sequence[Retirement]) -> list[Retirement]:
    """Without its record a tree is nothing, so that goes first."""
    linked = set(dict(all_links(repository)).values())
    going = [each for each in trees if each.path not in linked]
    if going:
        # Of one image in two layouts there is one record: it stays with the tree that it is about.
        paths = {each.path for each in going}
        recorded = {key_of_tree(each.path): each.path for each in all_records(repository, lenient=True)}
        twins = {path for path in paths if recorded.get(key_of_tree(path), path) not in paths}
        with repository.transaction(f"retire {len(going)} trees") as transaction:
            for each in going:
                key = key_of_tree(each.path)
                if key is not None and each.path not in twins:
                    transaction.remove(record_path(key))
        repository.remove_trees([each.path for each in going])
        for each in going:
            log.info("retired tree=%s reason=%s", each.path, each.reason)
    return going


def _batches(items: Sequence[Retirement], size: int) -> Iterable[list[Retirement]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def forget_lines(repository: Repository, layout: Layout) -> int:
    """Drop the lines of the catalogue whose links are not there, as an interrupted retirement may leave them.

    Returns:
        How many.

    Raises:
        RepositoryError: They are still there.
    """
    there = dict(all_links(repository))
    catalogue = read_catalogue(repository, layout)
    kept = {link: line for link, line in catalogue.items() if link in there}
    if len(kept) < len(catalogue):
        with repository.transaction(f"drop {len(catalogue) - len(kept)} lines of the catalogue") as transaction:
            write_catalogue(transaction, kept)
    return len(catalogue) - len(kept)
