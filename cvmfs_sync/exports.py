"""Dictionaries of published images, for the configuration of batch systems.

Images go in, the text of a dictionary comes out, with what had to be left out and why. Nothing is read or written here.

GlideinWMS keeps `SINGULARITY_IMAGES_DICT` as one text, `key:path,key:path`, which shell scripts take apart on worker
nodes at commas and at the first colon of each part; they read it as one word of a file, and pass it through `eval`.
So what goes in is what all of that leaves alone, and nothing is quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cvmfs_sync.errors import InvalidReference, UsageError
from cvmfs_sync.reference import parse_image
from cvmfs_sync.view.documents import Summary

__all__ = ["FORMATS", "MEDIA_TYPES", "Export", "ExportFormat", "LeftOut", "export", "parse_keys"]

ExportFormat = Literal["glideinwms", "htcondor", "json"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
MEDIA_TYPES: Mapping[ExportFormat, str] = {
    "glideinwms": "text/plain; charset=utf-8",
    "htcondor": "application/json",
    "json": "application/json",
}
_KEY = re.compile(r"[A-Za-z0-9._/@+=-]+")
_PATH = re.compile(r"/[A-Za-z0-9._/@+=:~-]+")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that is not in the dictionary.

    Attributes:
        image: Its link, or what the operator called it.
        reason: Why.
        asked: Whether the operator asked for just this one.
    """

    image: str
    reason: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """A dictionary.

    Attributes:
        text: What to write, with its final newline.
        images: How many there are in it.
        left_out: What is not.
    """

    text: str
    images: int
    left_out: tuple[LeftOut, ...]


def parse_keys(texts: Iterable[str]) -> Mapping[str, str]:
    """Keys that an operator has chosen, `KEY=IMAGE` each; the image comes out for each key, in the same order.

    Raises:
        UsageError: A text has another form, or a key is there twice.
    """
    keys: dict[str, str] = {}
    for text in texts:
        key, equals, image = text.partition("=")
        if not (equals and image and _KEY.fullmatch(key)):
            raise UsageError(
                "a key of the dictionary is not valid",
                found=repr(text),
                expected="KEY=IMAGE, such as rhel9=docker.io/library/rockylinux:9; keys are of letters, digits, ._/@+-",
            )
        if key in keys:
            raise UsageError(f"the key {key} is given twice", found=f"{keys[key]} and {image}", expected="one image")
        keys[key] = image
    return keys


def export(images: Iterable[Summary], form: ExportFormat, keys: Mapping[str, str] | None = None) -> Export:
    """Make a dictionary of what is published.

    Args:
        images: All images; those of which nothing is published are left out without a word.
        form: `glideinwms`: `key:path,...`. `htcondor`: a JSON object, paths by keys. `json`: the same with what else is
            known of each.
        keys: What is to be in it, by keys, as links or names, short ones too; the others are not. By default all is
            in it, its link being the key; for GlideinWMS with `-` for each colon.
    """
    there = (image for image in images if image.digest is not None)
    left_out: list[LeftOut] = []
    chosen = _chosen(there, keys, left_out) if keys else ((image.link, image) for image in there)
    entries: dict[str, Summary] = {}
    for key, image in chosen:
        name = key.replace(":", "-") if form == "glideinwms" else key
        reason = _unfit(name, image, entries) if form == "glideinwms" else None
        if reason is None:
            entries[name] = image
        else:
            left_out.append(LeftOut(image.link, reason, asked=bool(keys)))
    return Export(_text(entries, form), len(entries), tuple(left_out))


def _chosen(images: Iterable[Summary], keys: Mapping[str, str], left_out: list[LeftOut]) -> list[tuple[str, Summary]]:
    """What the operator asked for. An image's name means its plain link, which is the first one to have that name."""
    full = {name: _full(name) for name in keys.values()}
    wanted = {*full, *full.values()}
    found: dict[str, Summary] = {}
    for image in images:
        if image.link in wanted:
            found[image.link] = image
        if image.name in wanted and (image.name not in found or found[image.name].link.startswith(".multiarch/")):
            found[image.name] = image
    there = {name: found[each] for name in full for each in (full[name], name) if each in found}
    left_out.extend(LeftOut(name, "it is not published", asked=True) for name in keys.values() if name not in there)
    return [(key, there[name]) for key, name in keys.items() if name in there]


def _full(name: str) -> str:
    """The name in full of what may be a short one; a link stays one."""
    try:
        return str(parse_image(name))
    except InvalidReference:
        return name


def _unfit(key: str, image: Summary, entries: Mapping[str, Summary]) -> str | None:
    """Why GlideinWMS can't have an entry."""
    if not _KEY.fullmatch(key):
        return "its name has characters that the dictionary's syntax cannot hold"
    if not _PATH.fullmatch(image.path):
        return "its path has characters that the dictionary's syntax cannot hold"
    if key in entries:
        return f"its key {key} is that of {entries[key].link}, too"
    return None


def _text(entries: Mapping[str, Summary], form: ExportFormat) -> str:
    match form:
        case "glideinwms":
            return ",".join(f"{key}:{image.path}" for key, image in entries.items()) + "\n"
        case "htcondor":
            return _json({key: image.path for key, image in entries.items()})
        case "json":
            return _json({key: _described(image) for key, image in entries.items()})


def _described(image: Summary) -> dict[str, Any]:
    fields = {"name", "link", "platform", "path", "digest", "size", "published_at", "description", "contact"}
    return image.model_dump(mode="json", include=fields)


def _json(value: object) -> str:
    # ASCII: whatever characters the names have, no reader takes offence.
    return json.dumps(value, indent=2) + "\n"
