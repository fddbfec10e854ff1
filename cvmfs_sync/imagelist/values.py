"""What a list asks for, as values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date

from cvmfs_sync.blocklist import Blocked
from cvmfs_sync.errors import ListError
from cvmfs_sync.reference import Digest, ImageName, Platform
from cvmfs_sync.tags import TagFilter
from cvmfs_sync.yamlfile import Problem

__all__ = ["ImageList", "Origin", "Wish"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an entry comes from, when the list is in a git repository.

    Attributes:
        commit: In which the list was read.
        author: Of the latest change of the entry's first line; None if the history that is there does not tell.
        at: When that was, ISO 8601, UTC.
    """

    commit: str
    author: str | None = None
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """One entry of the list.

    Attributes:
        name: What is asked for. Without tag and digest if `tags` says which tags.
        tags: Which of the repository's tags; None for the one image that `name` names.
        keep: So many of the newest of these tags; None for all.
        platforms: Never empty.
        definition: URL of what the image is built from.
        expires: Last day on which the image is wished for.
        line: Where the entry begins in its file.
        origin: Who asked for it, if that is known; two entries that differ in nothing else are equal.
    """

    name: ImageName
    tags: TagFilter | None
    keep: int | None
    platforms: tuple[Platform, ...]
    description: str | None
    contact: str | None
    definition: str | None
    expires: date | None
    line: int
    origin: Origin | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.tags})" if self.tags else str(self.name)


@dataclass(frozen=True, slots=True)
class ImageList:
    """All wishes that could be read, and all that is wrong with the list, by line.

    With errors, `wishes` is what remains, not what the list means: retiring by it would retire what is merely misspelt.

    Attributes:
        blocked: What must not be published.
        stale: Whether this is an older list, in force because the present one can't be read: good for publishing, and
            no proof that something is not wished for.
        commit: Of the list, if it is in a git repository.
    """

    wishes: tuple[Wish, ...]
    problems: tuple[Problem, ...]
    blocked: tuple[Blocked, ...] = ()
    stale: bool = False
    commit: str | None = None

    def block(self, name: ImageName | None, *digests: Digest | None) -> Blocked | None:
        """The entry of `blocked` that is about this name, or one of these digests, if there is one."""
        return next((each for each in self.blocked if each.blocks(name, *digests)), None)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What makes the list invalid."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What its author should know."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    def wished_on(self, day: date) -> ImageList:
        """This list without the wishes that had expired by then."""
        return replace(self, wishes=tuple(w for w in self.wishes if w.expires is None or w.expires >= day))

    def require_valid(self) -> ImageList:
        """This list, if it may be acted upon.

        Raises:
            ListError: With all errors, one a line.
        """
        if self.errors:
            raise ListError("\n".join(str(problem) for problem in self.errors))
        return self
