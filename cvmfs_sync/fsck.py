"""Check a repository, and repair it: links, catalogue, records, trees and indexes against each other.

A context goes in, a report comes out. `findings` decides what is wrong and what is done about it; here is what reads
the repository, compares trees with their indexes, one at a time, and carries repairs out. What can't be read ends all
of it before anything is changed: it may be what somebody uses. Without repair nothing in the repository is changed, and
others may publish meanwhile: what was found is looked at again before it is told.
"""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cvmfs_sync.catalogue import write_catalogue
from cvmfs_sync.context import Context
from cvmfs_sync.errors import RepositoryError, RepositoryUnavailable, UsageError
from cvmfs_sync.findings import Finding, Foreign, Kind, Repairs, Snapshot, inspect, repairs
from cvmfs_sync.inventory import (
    Published,
    all_links,
    all_trees,
    read_catalogue,
    read_record,
    record_keys,
    stored_catalogue,
)
from cvmfs_sync.layout import CATALOGUE, LAYOUTS, OWN, Layout, key_of_tree, record_path, relative_target, tree_key
from cvmfs_sync.ports import Repository
from cvmfs_sync.publish import make_directories
from cvmfs_sync.reference import ImageName
from cvmfs_sync.sandbox import GENERATION
from cvmfs_sync.treecheck import Amount, TreeChecker
from cvmfs_sync.treeindex import tree_id

__all__ = ["FsckReport", "fsck"]

log = logging.getLogger(__name__)
_BATCH = 50
_PAUSE_SECONDS = 0.5
_KEPT = ("reference", "source_digest", "platform", "size", "entries", "published_at", "sketch")
# What readlink says where nothing is, and where something else than a link is.
_NOTHING = frozenset({errno.ENOENT, errno.ENAMETOOLONG})
_NO_LINK = frozenset({errno.EINVAL, errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What was found, and what became of it.

    Attributes:
        findings: What is or was wrong.
        done: What of it has been mended; all else is left for the next sync, or for a person.
        foreign: What is not ours.
        links: Lines of the catalogue that were checked.
        trees: Trees that were compared with their index or record.
        files: Files whose content was read.
        unindexed: Trees that were not compared, because their index was lost.
        seconds: How long it took.
        repair: Whether it was asked to mend.
        stopped: What ended the repair early.
    """

    findings: tuple[Finding, ...]
    done: frozenset[Finding]
    foreign: tuple[Foreign, ...]
    links: int
    trees: int
    files: int
    unindexed: tuple[str, ...]
    seconds: float
    repair: bool
    recovered: str | None = None
    stopped: RepositoryError | None = None

    @property
    def exit_code(self) -> int:
        """0 nothing is wrong any more, 1 something is, 3 the repository or the machine stopped us."""
        if self.stopped is not None:
            return self.stopped.exit_code
        return 1 if any(each not in self.done for each in self.findings) else 0


def fsck(context: Context, amount: Amount, only: Sequence[ImageName] = (), *, repair: bool = False) -> FsckReport:
    """Check, and repair if asked to.

    Args:
        context: With `repair`, the caller holds the lock of its state directory.
        amount: How much content is read.
        only: Images to restrict it to.
        repair: Whether to mend what can be derived.

    Raises:
        UsageError: An image of `only` is not published.
        RepositoryError: The repository can't be read, or is somebody else's now; nothing has been changed.
    """
    started = time.monotonic()
    layout = context.recipe.layout
    checker = TreeChecker(context.repository, context.tree_indexes, context.progress, context.now().date())
    recovered: str | None = None
    stopped: RepositoryError | None = None
    done: frozenset[Finding] = frozenset()
    with ExitStack() as stack:
        if repair:
            stack.enter_context(context.repository.exclusive())
            recovered = context.repository.recover()
        snapshot = _read(context)
        found, foreign = inspect(snapshot, layout)
        links, trees = set(snapshot.catalogue), list(_trees(snapshot))
        if only:
            wanted = _wanted(snapshot, layout, only)
            found = tuple(each for each in found if each.path in wanted)
            foreign, links = (), links & wanted
            trees = [each for each in trees if each.path in wanted]
        found = (*found, *checker.check(trees, amount))
        if found and not repair:
            time.sleep(_PAUSE_SECONDS)
        found, snapshot = _still(context, checker, found)
        if repair:
            try:
                done = _carry_out(context, repairs(found, snapshot, layout))
            except RepositoryError as error:
                stopped = error
    report = FsckReport(
        found, done, foreign, len(links), checker.trees, checker.files, tuple(checker.unindexed),
        time.monotonic() - started, repair, recovered, stopped,
    )  # fmt: skip
    log.info(
        "fsck links=%d trees=%d files=%d findings=%d repaired=%d seconds=%.1f exit_code=%d",
        report.links, report.trees, report.files, len(found), len(done), report.seconds, report.exit_code,
    )  # fmt: skip
    return report


def _read(context: Context) -> Snapshot:
    """All that is there but the trees themselves."""
    repository, layout, root = context.repository, context.recipe.layout, context.repository.root
    known = context.state.manifests()
    _require_mounted(repository, bool(known))
    stored = stored_catalogue(repository)
    catalogue = read_catalogue(repository, layout) if stored is None else stored
    links = dict(all_links(repository))
    named = {line.path for line in catalogue.values()}
    records: dict[str, Published | str] = {}
    for key in record_keys(repository):
        record = _record(repository, layout, key, named)
        if record is not None:
            records[key] = record
    trees = {path: _is_directory(repository, path) for path in all_trees(repository)}
    needed = [*layout.prefixes(), *layout.markers()]
    return Snapshot(
        catalogue=catalogue,
        usable=stored is not None,
        links=links,
        leads={link: _lead(repository, link) for link in (*links, *catalogue)},
        records=records,
        trees={path: there for path, there in trees.items() if there is not None},
        known=frozenset(tree_key(digest, number) for digest in known for number in range(1, GENERATION + 1)),
        absent=tuple(path for path in needed if not (root / path).exists()),
    )


def _require_mounted(repository: Repository, remembered: bool) -> None:
    """See that the repository can be read, and is not an empty directory below a mount that failed."""
    root = repository.root
    todo = "see that it is mounted; if it was emptied on purpose, the next sync publishes everything again"
    if not root.is_dir():
        raise RepositoryUnavailable(f"there is no repository at {root}", todo="see that it is mounted")
    if remembered and not (root / OWN).exists():
        raise RepositoryUnavailable(
            f"nothing in {root} is ours", found=f"no {OWN}", expected="what was published", todo=todo
        )
    try:
        (root / CATALOGUE).open("rb").close()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        pass
    except OSError as error:
        raise _unreadable(repository, CATALOGUE, error) from error


def _record(repository: Repository, layout: Layout, key: str, named: set[str]) -> Published | str | None:
    """A record, without what nobody needs here; or why it makes no sense."""
    path = layout.tree_of_key(key)
    others = [Layout(name).tree_of_key(key) for name in LAYOUTS]
    if not (repository.root / path).is_dir():
        path = next((other for other in others if other in named), path)
    try:
        record = read_record(repository, path, key)
    except ValueError as error:
        return str(error)
    if record is None:
        return None
    facts = {name: record.record[name] for name in _KEPT if name in record.record}
    return Published(record.digest, record.generation, record.path, facts)


def _is_directory(repository: Repository, path: str) -> bool | None:
    try:
        return stat.S_ISDIR((repository.root / path).lstat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(repository, path, error) from error


def _lead(repository: Repository, link: str) -> str | None:
    """See `Snapshot.leads`."""
    try:
        target = os.readlink(repository.root / link)
    except ValueError:
        return None
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        if error.errno in _NO_LINK:
            return ""
        raise _unreadable(repository, link, error) from error
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), target)) if target[:1] != "/" else target


def _unreadable(repository: Repository, path: str, error: OSError) -> RepositoryUnavailable:
    return RepositoryUnavailable(
        f"cannot read all of the repository: {repository.root / path}",
        found=error.strerror,
        todo="see that this user may read it, and that disk and mount are well; nothing was repaired",
    )


def _wanted(snapshot: Snapshot, layout: Layout, only: Sequence[ImageName]) -> frozenset[str]:
    """The paths of all that belongs to some images.

    Raises:
        UsageError: There is nothing of one of them.
    """
    wanted: set[str] = set()
    for name in only:
        plain = layout.link(name)
        links = {link for link, line in snapshot.catalogue.items() if line.image == str(name)}
        links |= {link for link in snapshot.links if link == plain or _further(link) == plain}
        if not links:
            raise UsageError(
                f"{name} is not published", found=f"no link {plain}", todo="see 'cvmfs-sync status', or sync it"
            )
        wanted |= links
    trees = {snapshot.links[link] for link in wanted if link in snapshot.links}
    trees |= {str(snapshot.catalogue[link].path) for link in wanted if link in snapshot.catalogue}
    keys = {key for tree in trees if (key := key_of_tree(tree)) is not None}
    return frozenset({CATALOGUE, *wanted, *trees, *map(record_path, keys)})


def _further(link: str) -> str | None:
    """The link of a further platform without its directory."""
    return link.split("/", 2)[2] if link.startswith(".multiarch/") and link.count("/") > 1 else None


def _trees(snapshot: Snapshot) -> Iterator[Published]:
    """All that are published, in the order of their keys."""
    for _, record in sorted(snapshot.records.items()):
        if isinstance(record, Published) and snapshot.good(record.path) is not None:
            yield record


def _still(context: Context, checker: TreeChecker, found: Iterable[Finding]) -> tuple[tuple[Finding, ...], Snapshot]:
    """What of it is still so: others may have been at work."""
    snapshot = _read(context)
    now = set(inspect(snapshot, context.recipe.layout)[0])
    still: list[Finding] = []
    for each in found:
        tree = snapshot.good(each.tree) if each.kind is Kind.DAMAGED else None
        if each in now or (tree is not None and checker.is_damaged(tree, each.rotten)):
            still.append(each)
    return tuple(still), snapshot


def _carry_out(context: Context, todo: Repairs) -> frozenset[Finding]:
    """Do it: all but the removal of trees in one transaction. Gives what has been mended.

    What is removed first is the record, for without it a tree is nothing; whatever then comes in between, the next
    check finds what is left to do.
    """
    repository, layout = context.repository, context.recipe.layout
    if todo.directories or todo.links or todo.unlink or todo.records or todo.catalogue:
        catalogue = dict(read_catalogue(repository, layout))
        with repository.transaction("repair what fsck found") as transaction:
            if todo.directories:
                make_directories(repository, layout, transaction)
            for key in sorted(todo.records):
                transaction.remove(record_path(key))
            for link, tree in sorted(todo.links.items()):
                transaction.link(link, relative_target(link, tree))
            for link in sorted(todo.unlink):
                transaction.remove(link)
            for link, line in todo.lines.items():
                catalogue.pop(link, None)
                if line is not None:
                    catalogue[link] = line
            if todo.catalogue:
                write_catalogue(transaction, catalogue)
    for key in todo.records:
        for name in LAYOUTS:
            context.tree_indexes.drop(tree_id(Layout(name).tree_of_key(key)))
    for start in range(0, len(todo.trees), _BATCH):
        linked = set(dict(all_links(repository)).values())
        recorded = set(record_keys(repository))
        batch = todo.trees[start : start + _BATCH]
        repository.remove_trees([each for each in batch if each not in linked and key_of_tree(each) not in recorded])
    return todo.done
