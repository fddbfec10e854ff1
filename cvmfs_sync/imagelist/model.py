"""The form of a list: which keys there are and what each may hold, for the reader and for editors."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator, WithJsonSchema

from cvmfs_sync.blocklist import json_schema as blocked_schema
from cvmfs_sync.schema import StrictModel
from cvmfs_sync.tags import FILTER_SCHEMA
from cvmfs_sync.yamlfile import describe

__all__ = ["Defaults", "Entry", "Outline", "json_schema"]

_MAX_TEXT = 1000


def _version(value: object) -> int:
    if value != 1 or isinstance(value, bool | float):
        raise ValueError(f"expected 1, the only version there is, found {describe(value)}")
    return 1


def _url(value: object) -> str:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        good = parts is not None and parts.scheme in ("http", "https") and parts.hostname and " " not in str(value)
    except ValueError:
        good = False
    if not good or not str(value).isprintable():
        raise ValueError(f"expected a URL that begins with https:// or http://, found {describe(value)}")
    return str(value)


def _date(value: object) -> date:
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError(f"expected a date such as 2027-06-30, found {describe(value)}; write it without quotes")
    if not isinstance(value, date) or isinstance(value, datetime):
        raise ValueError(f"expected a date such as 2027-06-30, found {describe(value)}")
    return value


_Text = Annotated[str, Field(min_length=1, max_length=_MAX_TEXT)]


_Keep = Annotated[int, Field(ge=1)] | None
_Platforms = Annotated[list[str], Field(min_length=1)] | None


class Defaults(StrictModel):
    """What holds for all images whose entries do not say it."""

    keep: _Keep = Field(default=None, description="Keep the newest so many of the tags, where tags are chosen.")
    platforms: _Platforms = Field(
        default=None,
        description="os/architecture[/variant]; linux/amd64 if not given.",
        examples=[["linux/amd64", "linux/arm64"]],
    )
    contact: _Text | None = Field(default=None, description="Whom to ask about the images.")


class Entry(StrictModel):
    """One image in the long form."""

    image: str = Field(
        description="Image reference; its tag may be a glob. Without a tag if `tags` is given.",
        examples=["docker.io/library/debian:12.5", "docker.io/library/debian:12*", "docker-archive:/srv/tools.tar:1.0"],
    )
    # Read apart from the model: its mistakes have lines of their own.
    tags: Annotated[Any, WithJsonSchema(FILTER_SCHEMA)] = None
    keep: _Keep = Field(default=None, description="Keep the newest so many of the tags; all of them if not given.")
    platforms: _Platforms = Field(
        default=None,
        description="os/architecture[/variant]; linux/amd64 if not given.",
        examples=[["linux/amd64"]],
    )
    description: _Text | None = Field(default=None, description="What the image is for.")
    contact: _Text | None = Field(default=None, description="Whom to ask about it.")
    definition: (
        Annotated[
            str,
            PlainValidator(_url),
            WithJsonSchema({"type": "string", "format": "uri", "pattern": "^https?://"}),
        ]
        | None
    ) = Field(default=None, description="URL of what the image is built from.")
    expires: Annotated[date, PlainValidator(_date), WithJsonSchema({"type": "string", "format": "date"})] | None = (
        Field(default=None, description="Last day on which the image is wanted, YYYY-MM-DD.")
    )


class Outline(StrictModel):
    """The document around the entries."""

    version: Annotated[int, PlainValidator(_version), WithJsonSchema({"const": 1})]
    # These are read apart, like the images.
    defaults: Any = None
    images: list[Any]
    blocked: Any = None


def json_schema() -> dict[str, Any]:
    """The list's JSON Schema (draft 2020-12), for editors."""
    schema = Outline.model_json_schema()
    schema["properties"]["images"] = {
        "type": "array",
        "description": "The images, each as a reference or in the long form.",
        "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Image"}]},
    }
    schema["properties"]["defaults"] = {"anyOf": [{"$ref": "#/$defs/Defaults"}, {"type": "null"}]}
    schema["properties"]["blocked"] = blocked_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "cvmfs-sync image list",
        "description": "The images that a CernVM-FS repository publishes.",
        "$defs": {"Image": {**Entry.model_json_schema(), "title": "Image"}, "Defaults": Defaults.model_json_schema()},
    }
