"""Carrying out what a plan has decided, image by image.

A plan goes in; outcomes come out, one for each target. An image's failure is noted and the others go on; a repository's
failure ends it, and what was published by then stays published. While one image is published the next one is prepared;
the repository's lock is held for writing and publishing only. What to do is decided in `plan`, and what comes before
and after in `cycle`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import assert_never

from cvmfs_sync.accounting import account, keep_log
from cvmfs_sync.catalogue import CatalogueFile, LinkWish
from cvmfs_sync.context import Context
from cvmfs_sync.errors import CloneRefused, CvmfsSyncError, ImageError, NoSpace, NotAsMeant, RepositoryError
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.inventory import Published, find_tree, published
from cvmfs_sync.outcome import CycleReport, Gap, Outcome
from cvmfs_sync.passes import in_pass
from cvmfs_sync.pipeline import Job, pipeline
from cvmfs_sync.plan import Plan, Publish, Relink, Step, Unchanged, catalogue_line, fair_order, plan, remember
from cvmfs_sync.prepare import Prepared, Preparer
from cvmfs_sync.publish import LinkChange, put_image, put_links
from cvmfs_sync.reference import Digest, ImageName
from cvmfs_sync.sandbox import GENERATION
from cvmfs_sync.shelf import Shelf
from cvmfs_sync.survey import Failed, Target, image_error

__all__ = ["Executor", "note_waiting"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Executor:
    """One plan that is being carried out.

    Attributes:
        context: All that it works with.
        decided: The plan.
        gap: Asked before each image.
        outcomes: Of what has been done so far, in the order in which it was done.
        stopped: Why no more is done.
    """

    context: Context
    decided: Plan
    gap: Gap | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    stopped: RepositoryError | None = None
    _preparer: Preparer = field(init=False)
    _catalogue: CatalogueFile = field(init=False)
    _needed: dict[Digest, int] = field(init=False)

    def __post_init__(self) -> None:
        c = self.context
        shelf = Shelf(c.repository, c.tree_indexes)
        self._preparer = Preparer(c.repository, c.sources, c.urgent_sources, c.spool, c.recipe, c.layer_indexes, shelf)
        self._catalogue = CatalogueFile(c.repository, c.recipe.layout)
        self._needed = _users(self.decided.steps)

    def run(self) -> None:
        """Do every step, and leave nothing behind."""
        self.publish()
        if self._catalogue.behind and self.stopped is None:
            self._catch_up()
        if self.stopped is None:
            self.context.spool.clear()

    def publish(self) -> None:
        """Do every step."""
        with self.context.state.together():
            ready, followers = self._note()
        # What costs next to nothing does not wait for what may take hours.
        self._relink(ready)
        self._publish_all(fair_order(self.decided.steps), followers)

    def _note(self) -> tuple[list[Relink], dict[Digest, list[Relink]]]:
        """Note what is decided already; the links to make at once, and those to make with a tree to come."""
        ready: list[Relink] = []
        followers: dict[Digest, list[Relink]] = {}
        _forget_listing_failures(self.context, self.decided.steps)
        for step in self.decided.steps:
            match step:
                case Unchanged():
                    remember(self.context, step.target, step.source, step.digest)
                    self._done(Outcome(step.target, "unchanged", step.digest))
                case Failed():
                    self._done(Outcome(step.target, "failed", error=step.error, source=step.source, waits=step.waits))
                case Relink():
                    (ready if step.image is None else followers.setdefault(step.digest, [])).append(step)
                case Publish():
                    pass
                case _:
                    assert_never(step)
        return ready, followers

    def _publish_all(self, steps: Sequence[Publish], followers: Mapping[Digest, list[Relink]]) -> None:
        """Publish images in this order, each with all links that shall lead to it."""
        todo = list(steps)
        while todo:
            left: list[Publish] = []
            jobs = [Job(str(step.target), step.image, self._replaced(step.target)) for step in todo]
            with closing(pipeline(self._preparer, jobs, self.context.progress)) as ready:
                for number, step in enumerate(todo):
                    waiting = followers.get(step.image.digest, [])
                    if self.stopped is None and self.gap is not None and self.gap.wanted():
                        left = [*todo[number:], *left]
                        break
                    if self.stopped is not None:
                        self._skip(step, waiting)
                        continue
                    job, prepared = next(ready)
                    with in_pass(job.pass_id):
                        made = self._publish(step, job, prepared, waiting)
                    self._keep_log(job, [step.target, *(each.target for each in waiting if made)])
                    if made:
                        waiting.clear()
                    elif waiting and self.stopped is None:
                        # The next of them publishes it, from its own registry.
                        first = waiting.pop(0)
                        assert first.image is not None  # noqa: S101 - that is what a follower is
                        left.append(Publish(first.target, first.image, None, first.reason))
            # Nothing holds blobs now: whoever comes between has the spool for himself.
            if self.gap is not None and self.stopped is None and self.gap.wanted():
                self.gap.serve(self._publish_now)
                left = self._still_missing(left, followers)
            todo = left

    def _keep_log(self, job: Job, targets: Sequence[Target]) -> None:
        """The pass of an image is over: keep what was logged in it for all links that it was for."""
        lines = self.context.pass_log.take(job.pass_id)
        for target in targets:
            keep_log(self.context, target.link, lines)

    def _publish_now(self, wishes: ImageList, only: Sequence[ImageName], *, insist: bool = True) -> CycleReport:
        """A small cycle within this one; what it publishes is known here, too."""
        started = time.monotonic()
        inner = Executor(self.context, plan(self.context, wishes, only, insist=insist))
        note_waiting(self.context, inner.decided.steps, others=True)
        inner._preparer, inner._catalogue = self._preparer, self._catalogue
        for digest, users in inner._needed.items():
            self._needed[digest] = self._needed.get(digest, 0) + users
        inner._needed = self._needed
        inner.publish()
        self.stopped = inner.stopped
        return CycleReport(inner.in_order(), time.monotonic() - started, stopped=inner.stopped)

    def _still_missing(self, steps: Sequence[Publish], followers: Mapping[Digest, list[Relink]]) -> list[Publish]:
        """Those of the steps whose tree somebody else has not published meanwhile; the others get their links."""
        repository, layout = self.context.repository, self.context.recipe.layout
        missing: list[Publish] = []
        ready: list[Relink] = []
        for step in steps:
            digest, waiting = step.image.digest, followers.get(step.image.digest, [])
            if self.stopped is not None or find_tree(repository, layout, digest) is None:
                missing.append(step)
                continue
            for each in [Relink(step.target, step.image.source_digest, digest, step.reason), *waiting]:
                there = published(repository, layout, each.target.link)
                if there is not None and there.digest == digest:
                    self._done(Outcome(each.target, "unchanged", digest))
                else:
                    ready.append(each)
            self._release(step.image, 1 + len(waiting))
            waiting.clear()
        self._relink(ready)
        return missing

    def in_order(self) -> tuple[Outcome, ...]:
        """What became of all of them, in the order of the list."""
        order = {step.target.link: number for number, step in enumerate(self.decided.steps)}
        return tuple(sorted(self.outcomes, key=lambda outcome: order[outcome.target.link]))

    def _catch_up(self) -> None:
        """Write the lines that the last transactions left out."""
        try:
            put_links(self.context.repository, (), self._catalogue)
        except RepositoryError as failure:
            self.stopped = failure

    def _replaced(self, target: Target) -> str | None:
        there = published(self.context.repository, self.context.recipe.layout, target.link)
        return there.path if there else None

    def _skip(self, step: Publish, waiting: list[Relink]) -> None:
        self._done(Outcome(step.target, "skipped", step.image.digest))
        for each in waiting:
            self._done(Outcome(each.target, "skipped", each.digest))
        waiting.clear()

    def _publish(self, step: Publish, job: Job, ready: Prepared | Exception, waiting: Sequence[Relink]) -> bool:
        """Publish one image; whether it is there now.

        An image for which the spool has no space now does not end the cycle: others may fit.
        """
        started = time.monotonic()
        target, image = step.target, step.image
        shelf, path = self._preparer.shelf, self.context.recipe.layout.tree(image.digest, GENERATION)
        error: CvmfsSyncError
        try:
            if isinstance(ready, Exception):
                raise ready
            tree = self._put(ready, step, job, waiting)
        except NoSpace as failure:
            error = failure
            self.stopped = None if isinstance(ready, Exception) else failure
        except RepositoryError as failure:
            error = self.stopped = failure
        except Exception as failure:  # noqa: BLE001 - see image_error
            error = image_error(failure, target)
        else:
            shelf.published(path)
            seconds = time.monotonic() - started
            totals = ready.choice.difference.totals
            outcome = Outcome(
                target, "published", image.digest, None, seconds, image.compressed_size, ready.choice.relative,
                totals.files + totals.touched_files, totals.bytes + totals.touched_bytes,
                tree_bytes=ready.size, prepare_seconds=ready.seconds,
                fetched=ready.fetched.effort, flattened=ready.flattened.effort,
            )  # fmt: skip
            ready.close()
            self._done(outcome)
            for each in waiting:
                remember(self.context, each.target, each.source, tree.digest)
                self._done(Outcome(each.target, "linked", tree.digest, None, seconds))
            self._release(image, 1 + len(waiting))
            return True
        shelf.discard(path)
        if isinstance(ready, Prepared):
            ready.close()
        seconds = time.monotonic() - started
        self._done(Outcome(target, "failed", image.digest, error, seconds, source=image.source_digest))
        if self.stopped is None:
            self._release(image, 1)
        else:
            for each in waiting:
                self._done(Outcome(each.target, "skipped", each.digest))
        return False

    def _put(self, ready: Prepared, step: Publish, job: Job, waiting: Sequence[Relink]) -> Published:
        """Publish a tree; as a difference if that can be done, else whole."""
        context, image = self.context, step.image
        links = [
            LinkWish(step.target.link, image.name, image.source_digest, step.target.wish, step.target.platform),
            *(LinkWish(e.target.link, e.target.name, e.source, e.target.wish, e.target.platform) for e in waiting),
        ]
        relative = ready.choice.relative
        if relative is not None and not self._preparer.shelf.is_published(relative):
            # It was to be published before, and was not.
            self._preparer.choose_again(ready, job.replaces)
        context.progress.start(f"publishing {step.target}", ready.choice.difference.totals.bytes)
        try:
            return self._put_now(ready, links)
        except (CloneRefused, NotAsMeant) as failure:
            if ready.choice.relative is None:
                raise
            log.warning("%s is published whole: %s", step.target, failure)
        self._preparer.choose_again(ready, None, whole=True)
        context.progress.start(f"publishing {step.target}", ready.choice.difference.totals.bytes)
        return self._put_now(ready, links)

    def _put_now(self, ready: Prepared, links: Sequence[LinkWish]) -> Published:
        context = self.context
        with self._preparer.shelf.quiet:
            return put_image(
                context.repository, context.recipe, ready, links, self._catalogue, context.now(), context.progress
            )

    def _relink(self, steps: Sequence[Relink]) -> None:
        """Point links at published trees, all in one transaction."""
        if not steps:
            return
        started = time.monotonic()
        context, layout = self.context, self.context.recipe.layout
        catalogue = self._catalogue.lines
        changes: list[LinkChange] = []
        outcomes: list[Outcome] = []
        for step in steps:
            tree = find_tree(context.repository, layout, step.digest)
            if tree is None:
                error = ImageError(
                    f"{step.target}: its tree was removed while the cycle ran",
                    found=f"no record of {step.digest}", todo="sync again: it is published anew then",
                )  # fmt: skip
                outcomes.append(Outcome(step.target, "failed", step.digest, error))
                continue
            line = catalogue.get(step.target.link)
            changes.append(
                LinkChange(step.target.link, tree.path, catalogue_line(context, step.target, step.source, tree, line))
            )
            outcomes.append(Outcome(step.target, "linked", step.digest))
        try:
            if changes:
                put_links(context.repository, changes, self._catalogue)
        except (ImageError, RepositoryError) as failure:
            outcomes = [replace(o, result="failed", error=failure) if o.result == "linked" else o for o in outcomes]
            if isinstance(failure, RepositoryError):
                self.stopped = failure
        else:
            for step in steps:
                remember(context, step.target, step.source, step.digest)
        for outcome in outcomes:
            self._done(replace(outcome, seconds=time.monotonic() - started))

    def _done(self, outcome: Outcome) -> None:
        backlog, link = self.context.backlog, outcome.target.link
        if outcome.result in ("published", "linked"):
            outcome = replace(outcome, waited=backlog.made(link, self.context.now()))
        elif outcome.result != "skipped":
            backlog.failed(link)
        self.outcomes.append(outcome)
        backlog.settled(outcome.result)
        account(self.context, outcome, ends_all=outcome.error is not None and outcome.error is self.stopped)

    def _release(self, image: ResolvedImage, times: int) -> None:
        """Drop the blobs that no image of this cycle needs any more."""
        for digest in {layer.digest for layer in image.manifest.layers}:
            self._needed[digest] -= times
            if self._needed[digest] <= 0:
                self.context.spool.drop(digest)


def note_waiting(context: Context, steps: Sequence[Step], *, others: bool) -> None:
    """Note what waits to be published from now on, at the latest.

    Args:
        context: Whose backlog.
        steps: What was decided.
        others: Whether there are links of the list of which nothing was decided.
    """
    backlog, now = context.backlog, context.now()
    moved = [step.target.link for step in steps if isinstance(step, Relink) and step.reason != "catalogue"]
    moved += [step.target.link for step in fair_order(steps)]
    if others:
        backlog.also(context.state, moved, now)
        return
    backlog.expect(len(steps))
    failing = [step.target.link for step in steps if isinstance(step, Failed)]
    backlog.begin(context.state, moved, failing, now)


def _users(steps: Sequence[Step]) -> dict[Digest, int]:
    """How many images of this cycle need each layer."""
    users: dict[Digest, int] = {}
    for step in steps:
        if isinstance(step, Publish | Relink) and step.image is not None:
            for digest in {layer.digest for layer in step.image.manifest.layers}:
                users[digest] = users.get(digest, 0) + 1
    return users


def _forget_listing_failures(context: Context, steps: Sequence[Step]) -> None:
    """Tags that could be listed again: their failure stands under the wish's own name, which has no link."""
    for wish in {step.target.wish: None for step in steps if step.target.name != step.target.wish.name}:
        context.state.succeeded(context.recipe.layout.link(wish.name), str(wish.name), context.now())
