"""Lists of today's tools as an image list: OSG's `docker_images.txt` and DUCC's recipe.

The text of either goes in; the text of an `image-list.yaml` comes out, with what could not be carried over and why.
Comments that stand directly above images, or behind one, become their description. Each line that is neither empty nor
a comment becomes an image, or is named with its number. Nothing is asked of any registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvmfs_sync.imagelist import parse as parse_list
from cvmfs_sync.yamlfile import Document, Problem, describe
from cvmfs_sync.yamlfile import parse as parse_yaml

__all__ = ["Imported", "convert", "is_foreign"]

# A line that would be an image if it were not commented out, rather than a sentence.
_IMAGE_LIKE = re.compile(r"[a-z0-9._-]+(?::\d+)?(?:/[a-z0-9._-]+)+(?::[\w.*?\[\]-]+)?(?:@sha256:[0-9a-f]{64})?")
# What YAML takes for a text without quotes: with a slash it is no number, date or truth.
_PLAIN = re.compile(r"[\w.-]+(?::\d+)?(?:/[\w.-]+)+(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?", re.ASCII)
_YAML_LINE = re.compile(r"- |[\w-]+:(?:\s|$)")
_LIST_KEY = re.compile(r"(?m)^(?:version|defaults|images|blocked):(?:\s|$)")
_RECIPE_KEY = re.compile(r"(?m)^input:(?:\s|$)")
_RULE = re.compile(r"[\W_]*")
_SCHEME = re.compile(r"(https?|docker)://")
_LINE_END = re.compile("\r\n|\r|\n")
_ASIDE = re.compile(r"\s#+(.*)")
_RECIPE_KEYS = ("version", "user", "cvmfs_repo", "output_format", "input")
_MAX_DESCRIPTION = 1000


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
    if _LIST_KEY.search(text):
        return _RECIPE_KEY.search(text) is not None
    lines = [line.image for line in _plain_lines(text)]
    # One line that is YAML by mistake makes no image list of a file.
    return sum(_YAML_LINE.match(line) is not None for line in lines) * 2 < len(lines)


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
    text = text.removeprefix("\ufeff")
    problems: list[Problem] = []
    document = parse_yaml(text, file)
    recipe = document.data if isinstance(document.data, dict) and "input" in document.data else None
    broken = recipe is None and document.problems and _LIST_KEY.search(text) and _RECIPE_KEY.search(text)
    lines: list[_Line]
    if recipe is not None or broken:
        kind = "DUCC recipe"
        problems.extend(document.problems)
        lines = list(_recipe_lines(text, file, document, recipe or {}, problems))
    else:
        kind, lines = "docker_images.txt", list(_plain_lines(text))
    output = [f"# Imported from a {kind} by cvmfs-sync.", "version: 1", "images:"]
    origins = [0] * len(output)
    seen: dict[str, int] = {}
    for line in lines:
        scheme = _SCHEME.match(line.image)
        name = line.image[scheme.end() :] if scheme else line.image
        entry = _entry(name, line.description)
        read = parse_list("\n".join(["version: 1", "images:", *entry]), base=Path("/"), file=file)
        if read.errors:
            reason = f"{line.image!r}: {read.errors[0].message}"
            problems.append(Problem(file, line.number, "", reason))
            continue
        wish = str(read.wishes[0])
        if wish in seen:
            message = f"{line.image!r} stands in line {seen[wish]} already"
            problems.append(Problem(file, line.number, "", message, "warning"))
            continue
        if scheme and scheme[1] == "http":
            message = f"{line.image!r}: plain HTTP is 'insecure: true' of the registry in cvmfs-sync.yaml"
            problems.append(Problem(file, line.number, "", message, "warning"))
        seen[wish] = line.number
        output.extend(entry)
        origins.extend([line.number] * len(entry))
    if not seen:
        output[-1] = "images: []"
    ordered = tuple(sorted(problems, key=lambda problem: problem.line or 0))
    return Imported("\n".join(output) + "\n", len(seen), ordered, (0, *origins))


def _entry(name: str, description: str | None) -> list[str]:
    """The lines of one image; JSON's strings are YAML's."""
    image = name if _PLAIN.fullmatch(name) else json.dumps(name)
    if not description:
        return [f"  - {image}"]
    return [f"  - image: {image}", f"    description: {json.dumps(description, ensure_ascii=False)}"]


def _plain_lines(text: str) -> Iterator[_Line]:
    """Images of a `docker_images.txt`: one a line, `#` begins a comment, an empty line ends what a comment is about."""
    comment: list[str] = []
    fresh = True
    for number, raw in enumerate(_LINE_END.split(text), 1):
        line = raw.strip()
        if not line:
            comment, fresh = [], True
        elif line.startswith("#"):
            if not fresh:
                comment, fresh = [], True
            comment.extend(_sentence(line))
        else:
            fresh = False
            aside = _ASIDE.search(line)
            image = line[: aside.start()] if aside else line
            yield _Line(number, image.strip(), (_words(aside[1]) if aside else "") or _words(" ".join(comment)))


def _recipe_lines(
    text: str, file: str, document: Document, recipe: dict[str, object], problems: list[Problem]
) -> Iterator[_Line]:
    """Images of a DUCC recipe; its settings, which are the configuration's business here, and mistakes as problems."""

    def problem(key: str, message: str, severity: Literal["error", "warning"] = "warning") -> None:
        problems.append(Problem(file, document.lines.get((key,)), key, message, severity))

    for key in recipe:
        if key not in _RECIPE_KEYS:
            problem(str(key), "is no key of a recipe that is known here, and is not carried over")
        elif key not in ("version", "input"):
            problem(key, f"{key!r} is a matter of cvmfs-sync.yaml and is not carried over")
    if recipe.get("version", 1) != 1:
        problem("version", f"version {recipe['version']!r} of recipes is not known here; it was read like version 1")
    images = recipe.get("input")
    if images is not None and not isinstance(images, list):
        problem("input", f"expected a list of images' URLs, found {describe(images)}", "error")
    lines = _LINE_END.split(text)
    for index, image in enumerate(images if isinstance(images, list) else ()):
        number = document.lines.get(("input", index), 1)
        if not isinstance(image, str):
            problems.append(
                Problem(file, number, f"input.{index}", f"expected an image's URL, found {describe(image)}")
            )
            continue
        aside = _ASIDE.search(lines[number - 1]) if number <= len(lines) else None
        yield _Line(number, image.strip(), (_words(aside[1]) if aside else "") or _comment_above(lines, number))


def _comment_above(lines: list[str], number: int) -> str:
    """The comment directly above the block of items that line `number` stands in."""
    above = min(number - 2, len(lines) - 1)
    while above >= 0 and lines[above].strip().startswith("-"):
        above -= 1
    comment: list[str] = []
    while above >= 0 and lines[above].strip().startswith("#"):
        comment[:0] = _sentence(lines[above].strip())
        above -= 1
    return _words(" ".join(comment))


def _sentence(comment: str) -> list[str]:
    """The words of a comment line; none for a ruler or an image that is commented out."""
    words = comment.strip("#").strip()
    bare = _SCHEME.sub("", words.lstrip("- ").strip("'\""))
    if _RULE.fullmatch(words) or _IMAGE_LIKE.fullmatch(bare):
        return []
    return [words]


def _words(comment: str) -> str:
    """A comment as a description: one printable line, no longer than a description may be."""
    words = " ".join("".join(c if c.isprintable() else " " for c in comment).split())
    return words if len(words) <= _MAX_DESCRIPTION else f"{words[: _MAX_DESCRIPTION - 3].rstrip()}..."
