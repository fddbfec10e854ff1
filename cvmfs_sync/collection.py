"""One garbage collection: ask what the list means, decide what goes, remove it.

A list and the rules go in, a report comes out. Nothing goes by evidence that is not there: a list that asks for nothing
retires nothing, and a registry, list or directory that can't be read keeps what it might have asked for.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

from cvmfs_sync.context import Context
from cvmfs_sync.cycle import note_orphans
from cvmfs_sync.errors import RepositoryError
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.remover import carry_out, forget_lines
from cvmfs_sync.retire import Inventory, Retirement, RetirePlan, retirement
from cvmfs_sync.state import Orphan
from cvmfs_sync.survey import survey
from cvmfs_sync.treeindex import tree_id

__all__ = ["CollectionReport", "Rules", "collect"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """When what nobody asks for goes.

    Attributes:
        batch: Links, or trees, in one transaction.
        max_fraction: Of all links, and of all trees: more never go at once without force.
        repository_gc: Whether the repository's own garbage collection runs afterwards.
    """

    grace_period: timedelta
    batch: int
    max_fraction: float
    repository_gc: bool


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """What was decided, and what has gone.

    Attributes:
        gone: Links and trees that were removed.
        stopped: What ended it early.
        dry_run: Whether nothing was meant to be done.
    """

    plan: RetirePlan
    gone: tuple[Retirement, ...]
    seconds: float
    stopped: RepositoryError | None = None
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 it was refused, 3 the repository or the machine stopped us."""
        if self.stopped is not None:
            return self.stopped.exit_code
        return 1 if self.plan.refused is not None else 0


def collect(
    context: Context, wishes: ImageList, rules: Rules, *, force: bool = False, dry_run: bool = False
) -> CollectionReport:
    """Retire what nobody has asked for during the grace period.

    Args:
        context: With `dry_run`, its state should be a snapshot: clocks are started in it.
        wishes: A valid list.
        rules: When.
        force: Whether to retire more than `Rules.max_fraction`.
        dry_run: Whether to decide only.

    Raises:
        ListError: Two wishes claim one link.
        RepositoryError: The repository can't be read, or is somebody else's now; nothing has gone.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(context.repository.exclusive())
            if (recovered := context.repository.recover()) is not None:
                log.warning("%s", recovered)
        if (refused := _no_evidence(wishes)) is not None:
            context.state.hold_orphans(context.now())
            return CollectionReport(RetirePlan(refused=refused), (), time.monotonic() - started, dry_run=dry_run)
        inventory, alone = note_orphans(context, wishes, survey(context, wishes))
        plan = retirement(
            alone, context.state.orphans(), inventory,
            now=context.now(), grace=rules.grace_period, max_fraction=rules.max_fraction, force=force,
        )  # fmt: skip
        gone: tuple[Retirement, ...] = ()
        stopped: RepositoryError | None = None
        if plan.refused is None and not dry_run:
            gone, stopped = _retire(context, plan, inventory, rules)
    report = CollectionReport(plan, gone, time.monotonic() - started, stopped, dry_run)
    counts = Counter("links" if each.target else "trees" for each in gone)
    log.info(
        "gc links=%d trees=%d waiting=%d seconds=%.1f exit_code=%d",
        counts["links"], counts["trees"], len(plan.waiting), report.seconds, report.exit_code,
    )  # fmt: skip
    return report


def _no_evidence(wishes: ImageList) -> str | None:
    """Why nothing can be concluded from what this list does not ask for."""
    if wishes.stale:
        return "the image list can't be read, and by the last good copy of it nothing is retired"
    if not wishes.wishes:
        return "the list asks for no image; by such a list nothing is retired"
    return None


def _retire(
    context: Context, plan: RetirePlan, inventory: Inventory, rules: Rules
) -> tuple[tuple[Retirement, ...], RepositoryError | None]:
    """Do what was decided; what has gone, and what ended it early."""
    repository, layout, now = context.repository, context.recipe.layout, context.now()
    known = context.state.orphans()
    waited = {
        each.path: Orphan(each.reason, each.since or now, rules.grace_period)
        for each in plan.trees
        if each.path not in known
    }
    context.state.inherit(waited, now)
    gone, stopped = carry_out(repository, layout, plan, batch=rules.batch)
    _account(context, gone)
    if stopped is not None:
        return gone, stopped
    try:
        if inventory.catalogue.keys() - inventory.links.keys():
            forget_lines(repository, layout)
        if rules.repository_gc:
            repository.collect_garbage()
    except RepositoryError as error:
        return gone, error
    return gone, None


def _account(context: Context, gone: tuple[Retirement, ...]) -> None:
    """History of what has gone; and the indexes of trees that are no more."""
    now = context.now()
    for each in gone:
        context.state.record(each.path, each.image or each.path, "retired", None, each.reason, now)
        if each.target is None:
            context.tree_indexes.drop(tree_id(each.path))
