"""One outcome: its line in the log, and what the state database remembers of it.

An outcome goes in. What it means for the next passes, such as when a failed image is tried again, is decided elsewhere
(`backoff`, `plan`); here it is written down.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cvmfs_sync.context import Context
from cvmfs_sync.errors import BlockedImage, CvmfsSyncError, ImageError, RepositoryError
from cvmfs_sync.outcome import Outcome
from cvmfs_sync.passes import current_pass
from cvmfs_sync.plan import wish_key
from cvmfs_sync.remembered import LogLine

__all__ = ["account", "keep_log"]

log = logging.getLogger(__name__)


def account(context: Context, outcome: Outcome, *, ends_all: bool) -> None:
    """One log line, and what the state database remembers.

    Args:
        context: Whose state.
        outcome: Of one target.
        ends_all: Whether it failed by what is no fault of the image; then it does not wait longer than all others.
    """
    target, now, state = outcome.target, context.now(), context.state
    name = str(target)
    match outcome.result:
        case "failed":
            assert outcome.error is not None  # noqa: S101 - that is what failed means
            temporary = isinstance(outcome.error, RepositoryError) or (
                isinstance(outcome.error, ImageError) and outcome.error.temporary
            )
            if outcome.waits:
                log.debug("waiting image=%s reason=%s", name, outcome.error)
                return
            before = state.failure(target.link)
            # What the list blocks is as free as the others the moment that it is not blocked any more.
            at_once = ends_all or isinstance(outcome.error, BlockedImage)
            later = context.backoff.next_try(before.count + 1 if before else 1, now, temporary=temporary)
            state.failed(
                target.link, name, str(outcome.error), temporary=temporary, at=now, source=outcome.source,
                wish=wish_key(target.wish), next_try=later if later > now and not at_once else None,
                kind=type(outcome.error).__name__,
            )  # fmt: skip
            log.info("failed image=%s reason=%s", name, outcome.error)
            if not current_pass():
                # It came to its end before its pass began.
                keep_log(context, target.link, [LogLine(now, "info", f"failed image={name} reason={outcome.error}")])
        case "published" | "linked":
            state.succeeded(target.link, name, now)
            state.record(target.link, name, outcome.result, outcome.digest, f"{outcome.seconds:.1f} s", now)
            log.info(
                "%s image=%s digest=%s compressed_bytes=%d made_of=%s written_files=%d written_bytes=%d seconds=%.2f",
                outcome.result, name, outcome.digest, outcome.size, outcome.made_of or "nothing",
                outcome.written_files, outcome.written_bytes, outcome.seconds,
            )  # fmt: skip
        case "unchanged":
            state.succeeded(target.link, name, now)
            log.debug("unchanged image=%s digest=%s", name, outcome.digest)


def keep_log(context: Context, link: str, lines: Sequence[LogLine]) -> None:
    """Keep what was logged while a link was worked on; that this can't be done ends nothing."""
    try:
        context.state.keep_log(link, lines)
    except CvmfsSyncError as error:
        log.warning("the log lines of %s are not kept: %s", link, error)
