"""One pass over the list: take down what is blocked, do what `plan` decides, start the clocks of what nobody asks for.

A list goes in, a report comes out. How a plan is carried out is in `executor`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta

from cvmfs_sync.context import Context
from cvmfs_sync.errors import RepositoryError
from cvmfs_sync.executor import Executor, note_waiting
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.outcome import CycleReport, Gap
from cvmfs_sync.plan import plan
from cvmfs_sync.reference import ImageName
from cvmfs_sync.remover import carry_out
from cvmfs_sync.retire import Inventory, Orphans, Retirement, orphans, take_inventory, takedown
from cvmfs_sync.survey import Survey
from cvmfs_sync.treeindex import tree_id

__all__ = ["note_orphans", "sync"]

log = logging.getLogger(__name__)
# Once a week must do, with a day in reserve.
_LONGEST_LOOK = timedelta(days=8)
_TAKEN_DOWN_AT_ONCE = 500


def sync(
    context: Context,
    wishes: ImageList,
    only: Sequence[ImageName] = (),
    *,
    retry: bool = False,
    insist: bool = True,
    gap: Gap | None = None,
) -> CycleReport:
    """Do what `plan` decides. Everything that was published before an error stays so.

    Args:
        context: All that it works with.
        wishes: A valid list.
        only: See `plan`.
        retry: See `plan`.
        insist: See `plan`.
        gap: Asked before each image.

    Raises:
        UsageError: See `plan`.
        RepositoryError: Another cvmfs-sync is at work, or an interrupted transaction of ours could not be cleaned up.
    """
    started = time.monotonic()
    with context.repository.exclusive():
        recovered = context.repository.recover()
        if recovered is not None:
            log.warning("%s", recovered)
        taken_down, unread = _take_down(context, wishes)
        planning = time.monotonic()
        decided = plan(context, wishes, only, retry=retry, insist=insist)
        planned = time.monotonic() - planning
        executor = Executor(context, decided, gap)
        note_waiting(context, decided.steps, others=bool(only))
        executor.run()
        context.backlog.end(context.state)
        if not only:
            _look_for_orphans(context, wishes, decided.survey)
    return CycleReport(
        executor.in_order(), time.monotonic() - started, recovered, executor.stopped or unread, taken_down, planned
    )


def _take_down(context: Context, wishes: ImageList) -> tuple[tuple[Retirement, ...], RepositoryError | None]:
    """Remove what the list blocks; what has gone, and why nothing could be found out.

    Raises:
        RepositoryError: It can't be removed, as then nothing can be published.
    """
    if not wishes.blocked or not context.repository.root.is_dir():
        return (), None
    try:
        inventory = take_inventory(context.repository, context.recipe.layout, lenient=True)
    except RepositoryError as error:
        log.error("what is blocked is not taken down: %s", error)
        return (), error
    going = takedown(wishes, inventory, context.state.sources())
    gone, stopped = carry_out(context.repository, context.recipe.layout, going, batch=_TAKEN_DOWN_AT_ONCE)
    now = context.now()
    for each in gone:
        context.state.record(each.path, each.image or each.path, "taken down", None, each.reason, now)
        if each.target is None:
            context.tree_indexes.drop(tree_id(each.path))
    if stopped is not None:
        raise stopped
    return gone, None


def _look_for_orphans(context: Context, wishes: ImageList, found: Survey) -> None:
    """Start the clocks of what nobody asks for any more; the next cycle can do it as well."""
    try:
        if context.repository.root.is_dir():
            note_orphans(context, wishes, found)
    except RepositoryError as error:
        log.warning("what nobody asks for any more could not be found out: %s", error)


def note_orphans(context: Context, wishes: ImageList, found: Survey) -> tuple[Inventory, Orphans]:
    """Note in the state what nobody asks for now; what there is, and what of it that is.

    A list that is empty, or not the present one, and a repository in which there is nothing, say nothing.

    Raises:
        RepositoryError: The repository can't be read.
    """
    state, now = context.state, context.now()
    try:
        inventory = take_inventory(context.repository, context.recipe.layout)
    except RepositoryError:
        state.hold_orphans(now)
        raise
    if not wishes.wishes or wishes.stale or inventory.empty:
        state.hold_orphans(now)
        return inventory, Orphans({}, frozenset())
    alone = orphans(found, wishes, inventory)
    state.mark_orphans(alone.reasons, alone.undecided, now, _LONGEST_LOOK)
    return inventory, alone
