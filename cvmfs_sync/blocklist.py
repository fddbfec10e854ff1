"""`blocked:` of an image list: images that must not be published, whoever asks for them.

The entries of that key go in; `Blocked` values come out, and every mistake with its line. What becomes of a blocked
image that is published is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema, model_validator

from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.reference import Digest, ImageName, Reference, parse_image, without_tag
from cvmfs_sync.schema import StrictModel, validate
from cvmfs_sync.yamlfile import KeyPath, Problem, describe, dotted, line_of

__all__ = ["Blocked", "BlockedEntry", "read_blocked"]


@dataclass(frozen=True, slots=True)
class Blocked:
    """One entry.

    Attributes:
        name: An image; with neither tag nor digest, all of its repository; with a digest, what of its repository has
            that, by whatever tag. None if the entry is a digest.
        digest: Of a manifest, an index or an image configuration.
        line: Where the entry begins in its file.
    """

    name: ImageName | None
    digest: Digest | None
    reason: str
    line: int

    def blocks(self, name: ImageName | None, *digests: Digest | None) -> bool:
        """Whether it is about this name, or one of these digests."""
        pinned = name.digest if isinstance(name, Reference) else None
        if self.digest is not None:
            return self.digest in (*digests, pinned)
        if name is None or self.name is None:
            return False
        if isinstance(self.name, Reference) and self.name.digest is not None:
            return without_tag(self.name) == without_tag(name) and self.name.digest in (*digests, pinned)
        return self.name in (name, without_tag(name))


class BlockedEntry(StrictModel):
    """An image that must not be published, by its name or by its digest."""

    image: str | None = Field(
        default=None, description="Image reference; without tag and digest, all of its repository."
    )
    digest: Annotated[str, WithJsonSchema({"type": "string", "pattern": "^sha(256|512):[0-9a-f]+$"})] | None = Field(
        default=None, description="Digest of a manifest, an index or an image configuration."
    )
    reason: str = Field(min_length=1, max_length=1000, description="Told to everybody who asks for the image.")

    @model_validator(mode="after")
    def _one_of_two(self) -> BlockedEntry:
        if (self.image is None) == (self.digest is None):
            raise ValueError("expected either 'image' or 'digest'")
        return self


def read_blocked(
    entries: object, lines: Mapping[KeyPath, int], file: str, base: Path
) -> tuple[tuple[Blocked, ...], tuple[Problem, ...]]:
    """The entries that could be read, and what is wrong with the others.

    Args:
        entries: The value of `blocked`.
        lines: Of the document.
        file: Its name in messages.
        base: Directory that relative paths in names start from.
    """
    found: list[Blocked] = []
    problems: list[Problem] = []
    if not isinstance(entries, list):
        return (), (Problem(file, lines.get(("blocked",)), "blocked", f"expected a list, found {describe(entries)}"),)
    for index, entry in enumerate(entries):
        path: KeyPath = ("blocked", index)
        if not isinstance(entry, dict):
            message = f"expected a mapping with 'image' or 'digest' and 'reason', found {describe(entry)}"
            problems.append(Problem(file, line_of(lines, path), dotted(path), message))
            continue
        model = validate(BlockedEntry, entry, lines, file, at=path)
        if isinstance(model, tuple):
            problems.extend(model)
            continue
        try:
            found.append(_blocked(model, line_of(lines, path) or 1, base))
        except InvalidReference as error:
            at: KeyPath = (*path, "image" if model.image is not None else "digest")
            problems.append(Problem(file, line_of(lines, at), dotted(at), str(error)))
    return tuple(found), tuple(problems)


def _blocked(entry: BlockedEntry, line: int, base: Path) -> Blocked:
    if entry.image is None:
        return Blocked(None, Digest.parse(entry.digest or ""), entry.reason, line)
    name = parse_image(entry.image, base=base)
    last = entry.image.rpartition("/")[2]
    if isinstance(name, Reference) and ":" not in last and "@" not in last:
        name = without_tag(name)
    return Blocked(name, None, entry.reason, line)


def json_schema() -> dict[str, Any]:
    """Of the key's value."""
    return {
        "type": "array",
        "description": "Images that must not be published, whoever asks for them.",
        "items": {**BlockedEntry.model_json_schema(), "title": "Blocked image"},
    }
