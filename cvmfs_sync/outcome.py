"""What became of the images of a pass, as values.

Those who publish make them; those who print, count and tell others about them read them. `Gap` is what may come between
two images, because it is told in the same words. Nothing is done here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cvmfs_sync.errors import CvmfsSyncError, RepositoryError
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.meter import Effort
from cvmfs_sync.reference import Digest, ImageName
from cvmfs_sync.retire import Retirement
from cvmfs_sync.survey import Target

__all__ = ["RESULTS", "CycleReport", "Gap", "Outcome", "PublishNow"]

RESULTS = ("published", "linked", "unchanged", "failed", "skipped")
"""What can become of a target; `skipped` when the cycle ended before its turn."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target.

    Attributes:
        result: One of `RESULTS`.
        size: Compressed bytes of an image that was published.
        made_of: The tree that a published one was made of; None if it was written whole.
        written_files: Files that were written for it.
        written_bytes: Their bytes.
        source: What the name of an image that failed means, as far as that is known.
        waits: Whether an image that failed was not tried now: see `plan`.
        tree_bytes: Of the files of a tree that was published.
        prepare_seconds: That fetching and comparing it took.
        fetched: What it took to get its layers.
        flattened: What it took to read those that were not known, and to merge all of them.
        waited: Seconds since its name was first seen to mean what is published now; None if it meant that before.
    """

    target: Target
    result: str
    digest: Digest | None = None
    error: CvmfsSyncError | None = None
    seconds: float = 0.0
    size: int = 0
    made_of: str | None = None
    written_files: int = 0
    written_bytes: int = 0
    source: Digest | None = None
    waits: bool = False
    tree_bytes: int = 0
    prepare_seconds: float = 0.0
    fetched: Effort = field(default_factory=Effort)
    flattened: Effort = field(default_factory=Effort)
    waited: float | None = None


@dataclass(frozen=True, slots=True)
class CycleReport:
    """What became of all of them; `stopped` is the failure that ended the cycle early.

    Attributes:
        outcomes: In the order of the list.
        taken_down: Links and trees that the list blocks.
        plan_seconds: That it took to ask the registries and to decide.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float
    recovered: str | None = None
    stopped: RepositoryError | None = None
    taken_down: tuple[Retirement, ...] = ()
    plan_seconds: float = 0.0

    @property
    def counts(self) -> Mapping[str, int]:
        """How many images came to which result; all of `RESULTS`, in their order."""
        found = Counter(outcome.result for outcome in self.outcomes)
        return {result: found[result] for result in RESULTS}

    @property
    def tally(self) -> str:
        """The same for a line of the log."""
        return " ".join(f"{result}={count}" for result, count in self.counts.items())

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 an image failed, 3 the repository or the machine stopped us."""
        errors = [self.stopped, *(outcome.error for outcome in self.outcomes)]
        if any(isinstance(error, RepositoryError) for error in errors):
            return RepositoryError.exit_code
        return 1 if any(outcome.result == "failed" for outcome in self.outcomes) else 0


class PublishNow(Protocol):
    """Publishes images of a list, in the middle of a cycle or between two."""

    def __call__(self, wishes: ImageList, only: Sequence[ImageName], *, insist: bool = True) -> CycleReport:
        """See `plan` for what is given and raised."""


class Gap(Protocol):
    """What may come between two images of a cycle: somebody who can't wait for its end."""

    def wanted(self) -> bool:
        """Whether there is something to do; may raise to end the cycle."""

    def serve(self, publish: PublishNow) -> None:
        """Do it."""
