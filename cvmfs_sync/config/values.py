"""What single settings may be: text, numbers and mappings of YAML in, values out.

Each type here validates one kind of setting, says what was expected and found, and describes itself in the JSON Schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.reference import Reference
from cvmfs_sync.units import DURATION_PATTERN, Address, Crontab, format_duration, parse_duration, parse_size
from cvmfs_sync.yamlfile import describe, did_you_mean

__all__ = [
    "AbsolutePath",
    "BindPoint",
    "Duration",
    "EngineHost",
    "GitList",
    "HookUrl",
    "ImageListSource",
    "Interval",
    "Listen",
    "Mirror",
    "PublicUrl",
    "RegistryHost",
    "RepositoryName",
    "Size",
]

_CVMFS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _path(value: object, info: ValidationInfo) -> Path:
    """A path, from the configuration's directory on."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"expected a path, found {describe(value)}")
    if value.startswith("~"):
        raise ValueError(f"'~' is not expanded, found {describe(value)}; write the whole path")
    base = (info.context or {}).get("base")
    return base / value if isinstance(base, Path) else Path(value)


@dataclass(frozen=True, slots=True)
class GitList:
    """An image list in a git repository.

    Attributes:
        git: The repository, by any name that git fetches from but that of a helper program.
        path: Of the list in it.
    """

    git: str
    branch: str = "main"
    path: str = "image-list.yaml"


def _git_list(value: dict[Any, Any], base: object) -> GitList:
    """`{git: URL, branch: main, path: image-list.yaml}`."""
    names = ["git", "branch", "path"]
    for key in value:
        if key not in names:
            raise ValueError(f"unknown key {key!r}; expected one of git, branch, path{did_you_mean(str(key), names)}")
    git, branch, path = value.get("git"), value.get("branch", "main"), value.get("path", "image-list.yaml")
    if not isinstance(git, str) or not re.fullmatch(r"(?!-)(?!.*::)\S+", git) or not git.isprintable():
        raise ValueError(f"'git' is a repository such as https://git.example.org/images.git, found {describe(git)}")
    if not isinstance(branch, str) or not re.fullmatch(r"(?![-./])(?!.*(\.\.|//|/\.))[\w./+-]+(?<![/.])", branch):
        raise ValueError(f"'branch' is the name of a branch such as main, found {describe(branch)}")
    if not isinstance(path, str) or not path.isprintable() or ":" in path or {"", ".", ".."} & set(path.split("/")):
        raise ValueError(f"'path' is that of a file in the repository, found {describe(path)}")
    return GitList(str(base / git) if isinstance(base, Path) and ":" not in git else git, branch, path)


def _image_list(value: object, info: ValidationInfo) -> Path | str | GitList:
    if isinstance(value, dict):
        return _git_list(value, (info.context or {}).get("base"))
    if not isinstance(value, str) or "://" not in value:
        return _path(value, info)
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or not value.isprintable() or " " in value:
        raise ValueError(f"expected a path or a URL that begins with https:// or http://, found {describe(value)}")
    return value


def _interval(value: object) -> timedelta | Crontab:
    if isinstance(value, str) and len(value.split()) > 1:
        return Crontab.parse(value)
    duration = value if isinstance(value, Crontab) else parse_duration(value)
    if duration == timedelta(0):
        raise ValueError("expected an interval longer than 0s")
    return duration


def _bind_point(value: object) -> PurePosixPath:
    text = str(value) if isinstance(value, str | PurePosixPath) else ""
    if not re.fullmatch(r"(?:/[^/]+)+", text) or not text.isprintable() or {".", ".."} & set(text.split("/")):
        raise ValueError(
            f"expected an absolute path such as /cvmfs, without '..' and final '/', found {describe(value)}"
        )
    return PurePosixPath(text)


def _repository_name(name: str) -> str:
    if not _CVMFS_NAME.fullmatch(name):
        raise ValueError(f"expected letters, digits, '.', '-' and '_', found {describe(name)}")
    return name


def _registry_host(host: str) -> str:
    try:
        registry = Reference.parse(f"{host}/name/name").registry
    except InvalidReference:
        registry = ""
    if registry == host:
        return host
    if registry and "/" not in host and "." in host:
        raise ValueError(f"another name of {registry!r}; write that")
    raise ValueError("expected a registry's host or host:port, such as ghcr.io or registry.example.org:5000")


def _mirror(value: object) -> str:
    """`host[:port]`, or an http(s) URL of one, each with `/project` if the mirror wants that; without a final slash."""
    expected = "expected a host, host:port or URL, such as https://cache.example.org or cache.example.org/project"
    if not isinstance(value, str):
        raise ValueError(f"{expected}; found {describe(value)}")
    if "@" in value:
        # Not shown: there may be a password in it.
        raise ValueError(f"{expected}, without a user; give the mirror an entry of its own in 'registries'")
    scheme, _, rest = value.rpartition("://")
    host, _, project = rest.rstrip("/").partition("/")
    try:
        good = scheme in ("", "http", "https") and _registry_host(host) == host
        good = good and (not project or Reference.parse(f"{host}/{project}/name").repository == f"{project}/name")
    except (InvalidReference, ValueError):
        good = False
    if not good:
        raise ValueError(f"{expected}; found {describe(value)}")
    return value.rstrip("/")


def _hook_url(value: object) -> str:
    """Not shown in errors: many services have a secret in it."""
    try:
        parts = urlsplit(value) if isinstance(value, str) and value.isprintable() and " " not in value else None
        good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or "@" in str(value).partition("://")[2].partition("/")[0]:
        raise ValueError("expected a URL that begins with https:// or http://, without a user")
    return str(value)


def _engine_host(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"unix:///\S+|tcp://[^\s/@]+:\d+", value):
        raise ValueError(f"expected unix:///path/of/socket or tcp://host:port, found {describe(value)}")
    return value


def _text_schema(**keywords: object) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", **keywords})


def _public_url(value: object) -> str:
    """Without a final slash."""
    try:
        parts = urlsplit(value) if isinstance(value, str) and value.isprintable() and " " not in value else None
        good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
        good = good and parts is not None and not (parts.query or parts.fragment or parts.username)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"expected a URL such as https://images.example.org, found {describe(value)}")
    return str(value).rstrip("/")


AbsolutePath = Annotated[Path, PlainValidator(_path), _text_schema()]
Duration = Annotated[
    timedelta,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration),
    _text_schema(pattern=f"^(?=.){DURATION_PATTERN}$", examples=["90s", "15m", "2h30m", "30d"]),
]
Interval = Annotated[
    timedelta | Crontab,
    PlainValidator(_interval),
    PlainSerializer(lambda value: str(value) if isinstance(value, Crontab) else format_duration(value)),
    _text_schema(examples=["15m", "30 3 * * *"]),
]
Size = Annotated[
    int,
    PlainValidator(parse_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": "^[0-9]+[KMGTkmgt]?(i?[Bb])?$"},
            ]
        }
    ),
]
BindPoint = Annotated[PurePosixPath, PlainValidator(_bind_point), _text_schema(pattern="^/"), PlainSerializer(str)]
EngineHost = Annotated[str, PlainValidator(_engine_host), _text_schema(pattern="^(unix|tcp)://")]
HookUrl = Annotated[str, PlainValidator(_hook_url), _text_schema(pattern="^https?://")]
ImageListSource = Annotated[
    Path | str | GitList,
    PlainValidator(_image_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {name: {"type": "string"} for name in ("git", "branch", "path")},
                    "required": ["git"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Listen = Annotated[Address, PlainValidator(Address.parse), PlainSerializer(str), _text_schema()]
Mirror = Annotated[str, PlainValidator(_mirror), _text_schema()]
PublicUrl = Annotated[str, PlainValidator(_public_url), _text_schema(pattern="^https?://")]
RegistryHost = Annotated[str, AfterValidator(_registry_host)]
RepositoryName = Annotated[str, AfterValidator(_repository_name)]
