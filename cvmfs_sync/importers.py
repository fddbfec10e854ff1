"""Lists of today's tools as an image list: OSG's `docker_images.txt` and DUCC's recipe.

The text of either goes in; the text of an `image-list.yaml` comes out, with what could not be carried over and why.
Comments that stand directly above images become their description. Nothing is asked of any registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cvmfs_sync.imagelist import parse as parse_list
from cvmfs_sync.yamlfile import Document, Problem
from cvmfs_sync.yamlfile import parse as parse_yaml

__all__ = ["Imported", "convert", "is_foreign"]

# A line that would be an image if it were not commented out, rather than a sentence.
_IMAGE_LIKE = re.compile(r"[a-z0-9._-]+(?::\d+)?(?:/[a-z0-9._-]+)+(?::[\w.*?\[\]-]+)?(?:@sha256:[0-9a-f]{64})?")
_YAML_LINE = re.compile(r"- |[\w-]+:(?:\s|$)")
_RULE = re.compile(r"[\W_]*")
_SCHEME = re.compile(r"(?:https?|docker)://")


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a list.

    Attributes:
        text: An `image-list.yaml`.
        images: How many entries it has.
        problems: What was not carried over, by line of the original.
        origins: Line of the original by line of `text`, both counted from 1; 0 for what no line stands for.
    """

    text: str
    images: int
    problems: tuple[Problem, ...]
    origins: tuple[int, ...] = ()


def is_foreign(text: str, document: Document) -> bool:
    """Whether a list is another tool's: a recipe of DUCC, or lines that are no YAML mapping.

    Args:
        text: The list.
        document: What YAML makes of it.
    """
    if isinstance(document.data, dict):
        return "input" in document.data and "images" not in document.data
    if document.data is not None and not isinstance(document.data, str | list):
        return False
    lines = [line.image for line in _plain_lines(text)]
    return bool(lines) and not any(_YAML_LINE.match(line) for line in lines)


@dataclass(frozen=True, slots=True)
class _Line:
    """An image of the original, and the comment that stands above it."""

    number: int
    image: str
    description: str | None


def convert(text: str, file: str) -> Imported:
    """Turn either format into an image list.

    Args:
        text: The original.
        file: Its name for messages.
    """
    problems: list[Problem] = []
    document = parse_yaml(text, file)
    recipe = document.data if isinstance(document.data, dict) and "input" in document.data else None
    if recipe is None:
        kind, lines = "docker_images.txt", list(_plain_lines(text))
    else:
        kind, lines = "DUCC recipe", list(_recipe_lines(text, file, document, recipe, problems))
    output = [f"# Imported from a {kind} by cvmfs-sync.", "version: 1", "images:"]
    origins = [0] * len(output)
    seen: dict[str, int] = {}
    for line in lines:
        name = _SCHEME.sub("", line.image)
        entry = _entry(name, line.description)
        read = parse_list("\n".join(["version: 1", "images:", *entry]), base=Path("/"), file=file)
        if read.errors:
            reason = f"{line.image!r}: {read.errors[0].message}"
            problems.append(Problem(file, line.number, "", reason))
            continue
        wish = str(read.wishes[0])
        if wish in seen:
            problems.append(
                Problem(file, line.number, "", f"{line.image!r} stands in line {seen[wish]} already", "warning")
            )
            continue
        seen[wish] = line.number
        output.extend(entry)
        origins.extend([line.number] * len(entry))
    if not seen:
        output[-1] = "images: []"
    ordered = tuple(sorted(problems, key=lambda problem: problem.line or 0))
    return Imported("\n".join(output) + "\n", len(seen), ordered, (0, *origins))


def _entry(name: str, description: str | None) -> list[str]:
    """The lines of one image; JSON's strings are YAML's."""
    plain = re.fullmatch(r"[\w./:@-]+", name) is not None
    image = name if plain else json.dumps(name, ensure_ascii=False)
    if description is None:
        return [f"  - {image}"]
    return [f"  - image: {image}", f"    description: {json.dumps(description, ensure_ascii=False)}"]


def _plain_lines(text: str) -> Iterator[_Line]:
    """Images of a `docker_images.txt`: one a line, `#` begins a comment, an empty line ends what a comment is about."""
    comment: list[str] = []
    fresh = True
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip().lstrip("\ufeff")
        if not line:
            comment, fresh = [], True
        elif line.startswith("#"):
            if not fresh:
                comment, fresh = [], True
            comment.extend(_sentence(line))
        else:
            fresh = False
            image, _, aside = line.partition(" #")
            yield _Line(number, image.strip(), aside.strip() or " ".join(comment) or None)


def _recipe_lines(
    text: str, file: str, document: Document, recipe: dict[str, object], problems: list[Problem]
) -> Iterator[_Line]:
    """Images of a DUCC recipe, and its settings as problems: they are the configuration's business here."""
    for key in ("user", "cvmfs_repo", "output_format"):
        if key in recipe:
            message = f"{key!r} is a matter of cvmfs-sync.yaml and is not carried over"
            problems.append(Problem(file, _line_with(text, f"{key}:"), key, message, "warning"))
    images = recipe.get("input")
    lines = text.splitlines()
    for index, image in enumerate(images if isinstance(images, list) else ()):
        number = document.lines.get(("input", index), 1)
        if not isinstance(image, str):
            problems.append(Problem(file, number, f"input.{index}", f"expected an image's URL, found {image!r}"))
            continue
        yield _Line(number, image.strip(), _comment_above(lines, number))


def _comment_above(lines: list[str], number: int) -> str | None:
    """The comment directly above the block of items that line `number` stands in."""
    above = number - 2
    while above >= 0 and lines[above].strip().startswith("-"):
        above -= 1
    comment: list[str] = []
    while above >= 0 and lines[above].strip().startswith("#"):
        comment[:0] = _sentence(lines[above].strip())
        above -= 1
    return " ".join(comment) or None


def _sentence(comment: str) -> list[str]:
    """The words of a comment line; none for a ruler or an image that is commented out."""
    words = comment.strip("#").strip()
    bare = _SCHEME.sub("", words.lstrip("- ").strip("'\""))
    if _RULE.fullmatch(words) or _IMAGE_LIKE.fullmatch(bare):
        return []
    return [words]


def _line_with(text: str, start: str) -> int | None:
    return next((n for n, line in enumerate(text.splitlines(), 1) if line.startswith(start)), None)
