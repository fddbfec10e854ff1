"""One pass over the list: do what `plan` decides, image by image, and report.

An image's failure is recorded and the others go on; a repository's failure ends the cycle, and what was published by
then stays published.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from cvmfs_sync.errors import CvmfsSyncError, ImageError, NoSpace, RepositoryError
from cvmfs_sync.fetch import fetching
from cvmfs_sync.image import ResolvedImage
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.plan import (
    Context,
    Failed,
    Publish,
    Relink,
    Step,
    Target,
    Unchanged,
    catalogue_line,
    image_error,
    plan,
    remember,
)
from cvmfs_sync.publish import LinkChange, find_tree, put_image, put_links, read_catalogue
from cvmfs_sync.reference import Digest, ImageName

__all__ = ["RESULTS", "CycleReport", "Outcome", "sync"]

log = logging.getLogger(__name__)
RESULTS = ("published", "linked", "unchanged", "failed", "skipped")
"""What can become of a target; `skipped` when the cycle ended before its turn."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target.

    Attributes:
        result: One of `RESULTS`.
        size: Compressed bytes of an image that was published.
    """

    target: Target
    result: str
    digest: Digest | None = None
    error: CvmfsSyncError | None = None
    seconds: float = 0.0
    size: int = 0


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What became of all of them; `stopped` is the failure that ended the cycle early."""

    outcomes: tuple[Outcome, ...]
    seconds: float
    recovered: str | None = None
    stopped: RepositoryError | None = None

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 an image failed, 3 the repository or the machine stopped us."""
        errors = [self.stopped, *(outcome.error for outcome in self.outcomes)]
        if any(isinstance(error, RepositoryError) for error in errors):
            return RepositoryError.exit_code
        return 1 if any(outcome.result == "failed" for outcome in self.outcomes) else 0


def sync(context: Context, wishes: ImageList, only: Sequence[ImageName] = ()) -> CycleReport:
    """Do what `plan` decides. Everything that was published before an error stays so.

    Raises:
        UsageError: See `plan`.
        RepositoryError: An interrupted transaction of ours could not be cleaned up.
    """
    started = time.monotonic()
    recovered = context.repository.recover()
    if recovered is not None:
        log.warning("%s", recovered)
    decided = plan(context, wishes, only)
    outcomes: list[Outcome] = []
    relinks: list[Relink] = []
    stopped: RepositoryError | None = None
    needed = _users(decided.steps)
    _forget_listing_failures(context, decided.steps)
    for planned in decided.steps:
        step = _at_its_turn(context, planned)
        match step:
            case Unchanged():
                remember(context, step.target, step.source, step.digest)
                outcome = Outcome(step.target, "unchanged", step.digest)
            case Failed():
                outcome = Outcome(step.target, "failed", error=step.error)
            case Relink():
                relinks.append(step)
                if step.image is not None:
                    _release(context, step.image, needed)
                continue
            case Publish() if stopped is not None:
                outcome = Outcome(step.target, "skipped", step.image.digest)
            case Publish():
                outcome, stopped = _publish(context, step.target, step.image)
                if stopped is None:
                    _release(context, step.image, needed)
            case _:
                assert_never(step)
        outcomes.append(outcome)
        _account(context, outcome)
    for outcome in _relink(context, relinks, stopped):
        if stopped is None and isinstance(outcome.error, RepositoryError):
            stopped = outcome.error
        outcomes.append(outcome)
        _account(context, outcome)
    if stopped is None:
        context.spool.clear()
    return CycleReport(tuple(outcomes), time.monotonic() - started, recovered, stopped)


def _publish(context: Context, target: Target, image: ResolvedImage) -> tuple[Outcome, RepositoryError | None]:
    """Fetch and publish one image. Nothing is downloaded while the transaction is open.

    Returns:
        What became of it, and what ends the cycle. An image that is too large for the spool does not: others fit.
    """
    started = time.monotonic()
    fetched = False
    try:
        context.progress.start(f"fetching {target}", image.compressed_size)
        with fetching(image, context.sources, context.spool, context.progress) as layers:
            for layer in layers:
                layer.blob()
            fetched = True
            context.progress.start(f"publishing {target}", image.compressed_size)
            put_image(
                context.repository, context.recipe, image, layers, target.link,
                target.wish, target.platform, context.now(), context.progress,
            )  # fmt: skip
    except RepositoryError as error:
        outcome = Outcome(target, "failed", image.digest, error, time.monotonic() - started)
        return outcome, error if fetched or not isinstance(error, NoSpace) else None
    except Exception as error:  # noqa: BLE001 - see image_error
        failure = image_error(error, target)
        return Outcome(target, "failed", image.digest, failure, time.monotonic() - started), None
    seconds = time.monotonic() - started
    return Outcome(target, "published", image.digest, None, seconds, image.compressed_size), None


def _relink(context: Context, steps: Sequence[Relink], stopped: RepositoryError | None) -> list[Outcome]:
    """Point links at published trees, all in one transaction."""
    if not steps:
        return []
    if stopped is not None:
        return [Outcome(step.target, "skipped", step.digest) for step in steps]
    started = time.monotonic()
    layout = context.recipe.layout
    catalogue = read_catalogue(context.repository, layout)
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
            put_links(context.repository, layout, changes)
    except (ImageError, RepositoryError) as failure:
        return [replace(o, result="failed", error=failure) if o.result == "linked" else o for o in outcomes]
    for step in steps:
        remember(context, step.target, step.source, step.digest)
    return [replace(outcome, seconds=time.monotonic() - started) for outcome in outcomes]


def _account(context: Context, outcome: Outcome) -> None:
    """One log line, and what the state database remembers."""
    target, now, state = outcome.target, context.now(), context.state
    name = str(target)
    match outcome.result:
        case "failed":
            assert outcome.error is not None  # noqa: S101 - that is what failed means
            temporary = isinstance(outcome.error, RepositoryError) or (
                isinstance(outcome.error, ImageError) and outcome.error.temporary
            )
            state.failed(target.link, name, str(outcome.error), temporary=temporary, at=now)
            log.info("failed image=%s reason=%s", name, outcome.error)
        case "published" | "linked":
            state.succeeded(target.link, name, now)
            state.record(target.link, name, outcome.result, outcome.digest, f"{outcome.seconds:.1f} s", now)
            log.info(
                "%s image=%s digest=%s compressed_bytes=%d seconds=%.2f",
                outcome.result, name, outcome.digest, outcome.size, outcome.seconds,
            )  # fmt: skip
        case "unchanged":
            state.succeeded(target.link, name, now)
            log.debug("unchanged image=%s digest=%s", name, outcome.digest)


def _at_its_turn(context: Context, step: Step) -> Step:
    """A link to a tree that should have been published by now, and was not, publishes it itself."""
    if isinstance(step, Relink) and step.image is not None:
        tree = find_tree(context.repository, context.recipe.layout, step.digest)
        return Publish(step.target, step.image, None, step.reason) if tree is None else step
    return step


def _users(steps: Sequence[Step]) -> dict[Digest, int]:
    """How many images of this cycle need each layer."""
    users: dict[Digest, int] = {}
    for step in steps:
        if isinstance(step, Publish | Relink) and step.image is not None:
            for digest in {layer.digest for layer in step.image.manifest.layers}:
                users[digest] = users.get(digest, 0) + 1
    return users


def _release(context: Context, image: ResolvedImage, users: dict[Digest, int]) -> None:
    for digest in {layer.digest for layer in image.manifest.layers}:
        users[digest] -= 1
        if not users[digest]:
            context.spool.drop(digest)


def _forget_listing_failures(context: Context, steps: Sequence[Step]) -> None:
    """Tags that could be listed again: their failure stands under the wish's own name, which has no link."""
    for wish in {step.target.wish: None for step in steps if step.target.name != step.target.wish.name}:
        context.state.succeeded(context.recipe.layout.link(wish.name), str(wish.name), context.now())
