"""What registries say was pushed, and which images of the list that may concern.

Texts of the daemon's socket go in, values come out, and from these and the wishes the names to look at. A push says
that somebody should look, never what he will find: it has no digest. Nothing here asks a registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from cvmfs_sync.config import WebhookKind
from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.imagelist import Wish
from cvmfs_sync.reference import ArtifactReference, ImageName, Reference

__all__ = ["DELIVERY_RESULTS", "SENDERS", "Push", "concerned"]

SENDERS = (*get_args(WebhookKind), "unknown")
"""Kinds of webhooks, and who calls one that there isn't."""
DELIVERY_RESULTS = ("accepted", "replayed", "refused", "flooded", "unreadable")
"""What can become of what they send."""
_BELOW = "/**"


@dataclass(frozen=True, slots=True)
class Push:
    """Something may have changed in a registry.

    Attributes:
        tag: None for any of the repository's.
        below: Whether all repositories are meant whose names begin with this one's and a slash, too.
    """

    registry: str
    repository: str
    tag: str | None = None
    below: bool = False

    @classmethod
    def parse(cls, text: str) -> Push:
        """Read `registry/repository`, with `:tag` for one tag or `/**` for all repositories below it, too.

        Raises:
            InvalidReference: It is none.
        """
        below = text.endswith(_BELOW)
        name = text.removesuffix(_BELOW)
        parsed = Reference.parse(name)
        tag = parsed.tag if name.rpartition("/")[2].endswith(f":{parsed.tag}") else None
        if parsed.digest is not None or (below and tag is not None):
            raise InvalidReference(f"{text[:200]!r} is not a push", expected="registry/repository, and perhaps a tag")
        return cls(parsed.registry, parsed.repository, tag, below)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{self.registry}/{self.repository}{tag}{_BELOW if self.below else ''}"


def concerned(wishes: Sequence[Wish], pushes: Iterable[Push]) -> tuple[ImageName, ...]:
    """The names that may mean something else now, in the order of the list.

    Of a wish for a filter's tags, it is the name with the tag that was pushed, if the filter takes it, or the one
    without any where the tag is not known. A name with a digest means what it always meant.
    """
    exact: dict[tuple[str, str], set[str | None]] = {}
    above: dict[str, set[str]] = {}
    for push in pushes:
        exact.setdefault((push.registry, push.repository), set()).add(push.tag)
        if push.below:
            above.setdefault(push.registry, set()).add(push.repository)
    found: dict[ImageName, None] = {}
    for wish in wishes:
        name = wish.name
        if isinstance(name, Reference | ArtifactReference) and name.digest is None:
            for tag in sorted(_pushed(name, exact, above), key=lambda tag: tag or ""):
                if wish.tags is None and tag in (None, name.tag):
                    found[name] = None
                elif wish.tags is not None and (tag is None or wish.tags.matches(tag)):
                    found[replace(name, tag=tag)] = None
    return tuple(found)


def _pushed(
    name: Reference | ArtifactReference, exact: Mapping[tuple[str, str], set[str | None]], above: Mapping[str, set[str]]
) -> set[str | None]:
    """The tags of a name's repository that were pushed."""
    tags = exact.get((name.registry, name.repository), set())
    parts = name.repository.split("/")
    nearer = above.get(name.registry, set())
    if any("/".join(parts[:length]) in nearer for length in range(1, len(parts))):
        return {*tags, None}
    return tags
