"""`cvmfs-sync.yaml`: what the operator decides, as one frozen value.

A file and the environment's variables go in; a `Config` with all defaults filled in and all paths absolute comes out,
or one error that lists every mistake with its line. Environment and time are passed in. Nothing here looks whether a
directory, a repository or a registry exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from cvmfs_sync.errors import ConfigurationError, InvalidReference
from cvmfs_sync.reference import Reference
from cvmfs_sync.schema import StrictModel, model_at, validate
from cvmfs_sync.units import DURATION_PATTERN, Address, Crontab, format_duration, parse_duration, parse_size
from cvmfs_sync.yamlfile import Document, KeyPath, Problem, describe, did_you_mean, dotted, parse, plain_scalar, read

__all__ = [
    "Config",
    "GitList",
    "Hook",
    "Limits",
    "Metrics",
    "RegistryOptions",
    "RepositoryOptions",
    "Retire",
    "Sandbox",
    "Schedule",
    "Web",
    "json_schema",
    "load",
]

PREFIX = "CVMFS_SYNC_"
# Variables of the same prefix that are no settings.
_OTHER_VARIABLE = re.compile(rf"{PREFIX}(?:CONFIG|TEST_.*)")

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


class RepositoryOptions(StrictModel):
    """Where images are published."""

    backend: Literal["directory", "cvmfs"] = "directory"
    name: Annotated[str, AfterValidator(_repository_name)] | None = Field(
        default=None, description="cvmfs: the repository's name; required there."
    )
    root: AbsolutePath = Field(
        default=Path("published"),
        validate_default=True,
        description="Directory to publish in; for cvmfs the mount point, /cvmfs/<name> by default.",
    )
    spool: AbsolutePath | None = Field(
        default=None,
        description="cvmfs: the server's spool directory; by default server.conf's, or /var/spool/cvmfs/<name>.",
    )
    wait: Duration = Field(default="5m", validate_default=True, description="How long to wait for a busy repository.")

    @model_validator(mode="before")
    @classmethod
    def _default_root(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("backend") == "cvmfs" and isinstance(data.get("name"), str):
            return {"root": f"/cvmfs/{data['name']}", **data}
        return data

    @model_validator(mode="after")
    def _name_given(self) -> RepositoryOptions:
        if self.backend == "cvmfs" and self.name is None:
            raise ValueError(
                "the key 'name' is missing: backend cvmfs needs the repository's name, for example unpacked.example.org"
            )
        return self


class Schedule(StrictModel):
    """When the daemon works: an interval (`15m`) or a crontab line."""

    sync: Interval = Field(default="15m", validate_default=True)
    gc: Interval = Field(default="30 3 * * *", validate_default=True)
    list: Interval = Field(
        default="5m", validate_default=True, description="When the image list is read; a changed one begins a cycle."
    )
    jitter: Duration = Field(
        default="10s", validate_default=True, description="Delay at random up to this, or a tenth of the interval."
    )


class Retire(StrictModel):
    """How images go that nobody wishes for any more."""

    grace_period: Duration = Field(default="30d", validate_default=True)
    batch: int = Field(default=50, ge=1, description="Images removed in one transaction.")
    max_fraction: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Of all published images: a garbage collection that would retire more retires none.",
    )
    repository_gc: bool = Field(
        default=False, description="cvmfs: run `cvmfs_server gc` after each garbage collection."
    )


class Sandbox(StrictModel):
    """What is added to every image's tree."""

    bind_points: Annotated[
        tuple[
            Annotated[PurePosixPath, PlainValidator(_bind_point), _text_schema(pattern="^/"), PlainSerializer(str)],
            ...,
        ],
        Field(strict=False),
    ] = Field(
        default=("/cvmfs", "/srv"),
        validate_default=True,
        description="Directories to bind host paths on.",
    )


class RegistryOptions(StrictModel):
    """How to talk to one registry."""

    insecure: bool = Field(default=False, description="Plain HTTP.")
    requests_per_second: float = Field(default=20, gt=0)
    concurrency: int = Field(default=4, ge=1, description="Requests at the same time.")
    credentials: AbsolutePath | None = Field(
        default=None, description="File in the form of Docker's config.json, for this registry only."
    )
    ca_file: AbsolutePath | None = Field(
        default=None, description="PEM file of the only CAs that may vouch for this host; by default the system's."
    )
    mirrors: Annotated[tuple[Annotated[str, PlainValidator(_mirror), _text_schema()], ...], Field(strict=False)] = (
        Field(default=(), description="Pull-through caches to ask first, in order: host[:port] or URL.")
    )
    ratelimit_floor: int = Field(
        default=0, ge=0, description="With so many pulls left or fewer, only what somebody waits for is pulled."
    )
    foreign_layers: bool = Field(
        default=False, description="Fetch layers that the registry does not keep from the URLs that manifests name."
    )


class Metrics(StrictModel):
    """Where Prometheus finds us."""

    listen: Annotated[Address, PlainValidator(Address.parse), PlainSerializer(str), _text_schema()] | None = Field(
        default="127.0.0.1:9100", validate_default=True, description="host:port; null for no metrics."
    )
    textfile: AbsolutePath | None = Field(
        default=None, description="File *.prom for node_exporter, which `sync` and `gc` write; null for none."
    )


def _without_defaults(schema: dict[str, Any]) -> None:
    """Drop the nulls that stand for "not given": written out, null lifts a limit."""
    for limit in schema["properties"].values():
        limit.pop("default")


class Hook(StrictModel):
    """Who is told what happens: a command, or a URL."""

    on: Annotated[
        tuple[
            Literal["published", "moved", "linked", "retired", "taken_down", "failed", "recovered", "list_refused"], ...
        ],
        Field(strict=False, min_length=1),
    ] = Field(description="Events that it is told.")
    command: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None, description="Program by its absolute path and arguments; gets the event as JSON on its stdin."
    )
    url: Annotated[str, PlainValidator(_hook_url), _text_schema(pattern="^https?://")] | None = Field(
        default=None, description="Gets the event as JSON by POST."
    )
    header_file: AbsolutePath | None = Field(
        default=None, description="url: file of headers to send, such as 'Authorization: Bearer ...', one a line."
    )
    timeout: Duration = Field(default="30s", validate_default=True, description="For one event.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Hook:
        if (self.command is None) == (self.url is None):
            raise ValueError("expected one of 'command' and 'url'")
        if self.command is not None and (not self.command[0].startswith("/") or self.header_file is not None):
            raise ValueError("a command has an absolute path such as /usr/local/bin/notify, and no 'header_file'")
        if self.timeout <= timedelta(0):
            raise ValueError("'timeout' must be longer than 0s")
        return self


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


class Web(StrictModel):
    """Pages and API for those who ask for images."""

    listen: Annotated[Address, PlainValidator(Address.parse), PlainSerializer(str), _text_schema()] | None = Field(
        default="127.0.0.1:9180", validate_default=True, description="host:port; null for no pages."
    )
    url: Annotated[str, PlainValidator(_public_url), _text_schema(pattern="^https?://")] | None = Field(
        default=None, description="By which the world reaches the pages, for feeds and links from elsewhere."
    )


class Limits(StrictModel):
    """Largest image that is accepted. A limit that is not given keeps its default, null lifts it."""

    model_config = ConfigDict(json_schema_extra=_without_defaults)

    bytes: Size | None = None
    entries: Size | None = None
    path: Size | None = None
    name: Size | None = None
    depth: Size | None = None
    link: Size | None = None
    xattrs: Size | None = None
    header: Size | None = None
    sparse: Size | None = None
    ratio: Size | None = None
    hardlinks: Size | None = None

    def given(self) -> dict[str, int | None]:
        """The limits that the configuration sets, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class Config(StrictModel):
    """All of `cvmfs-sync.yaml`. Only `load` makes relative paths absolute: it knows the file's directory."""

    image_list: Annotated[
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
    ] = Field(
        default=Path("image-list.yaml"),
        validate_default=True,
        description="Path, URL or git repository; a bad or unreachable list keeps the last good one.",
    )
    repository: RepositoryOptions = Field(default={}, validate_default=True)
    layout: Literal["unpacked", "osg"] = "unpacked"
    state_dir: AbsolutePath = Field(default=Path("state"), validate_default=True)
    spool_dir: AbsolutePath = Field(default=Path("spool"), validate_default=True)
    spool_limit: Size | None = Field(
        default=None, description="Bytes of layers in spool_dir at most, such as 50G; null for no limit."
    )
    schedule: Schedule = Field(default={}, validate_default=True)
    stop_within: Duration = Field(
        default="60s", validate_default=True, description="How long the daemon's end may take, a publish included."
    )
    retire: Retire = Field(default={}, validate_default=True)
    sandbox: Sandbox = Field(default={}, validate_default=True)
    registries: Mapping[Annotated[str, AfterValidator(_registry_host)], RegistryOptions] = Field(
        default={}, description="Options by host or host:port."
    )
    docker_host: Annotated[str, PlainValidator(_engine_host), _text_schema(pattern="^(unix|tcp)://")] | None = Field(
        default=None, description="Engine of docker-daemon: images; by default $DOCKER_HOST, else Docker's socket."
    )
    hooks: Annotated[tuple[Hook, ...], Field(strict=False)] = Field(
        default=(), description="Commands and URLs that are told what happens."
    )
    metrics: Metrics = Field(default={}, validate_default=True)
    web: Web = Field(default={}, validate_default=True)
    limits: Limits = Field(default={}, validate_default=True)

    def registry(self, host: str) -> RegistryOptions:
        """Options of one registry; defaults where the configuration doesn't name it."""
        return self.registries.get(host) or RegistryOptions()


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read a configuration.

    Args:
        path: The file. An empty one takes all defaults.
        environ: `CVMFS_SYNC_STATE_DIR`, `CVMFS_SYNC_REPOSITORY__ROOT` and so on replace what the file says; values are
            YAML words, or flow lists and mappings. Relative paths start from the file's directory here, too.

    Raises:
        ConfigurationError: With all mistakes, one a line.
    """
    try:
        document = read(path)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: there is no such configuration file",
            todo="name yours with --config, or create this one; an empty file takes all defaults",
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path}: the configuration cannot be read: {error.strerror}") from None
    problems = list(document.problems)
    overrides, mistakes = _overrides(environ)
    if not problems:
        data, lines, origins = _merge(document, overrides)
        base = Path(os.path.abspath(path)).parent
        config = validate(Config, data, lines, str(path), origins=origins, context={"base": base})
        if isinstance(config, Config) and not mistakes:
            return config
        problems.extend(config if isinstance(config, tuple) else ())
    raise ConfigurationError("\n".join(str(problem) for problem in [*problems, *mistakes]))


def json_schema() -> dict[str, Any]:
    """The configuration's JSON Schema (draft 2020-12), for editors."""
    schema = Config.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "cvmfs-sync configuration",
    }


def _overrides(environ: Mapping[str, str]) -> tuple[list[tuple[KeyPath, str, Any]], list[Problem]]:
    """Settings that variables make, outer ones first: path, variable, value; and the variables that are wrong."""
    overrides: list[tuple[KeyPath, str, Any]] = []
    problems: list[Problem] = []
    known = {f"{PREFIX}{'__'.join(path).upper()}": path for path in _settings(Config)}
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        if _OTHER_VARIABLE.fullmatch(variable):
            continue
        if variable not in known:
            names = [name.removeprefix(PREFIX) for name in known]
            hint = did_you_mean(variable.removeprefix(PREFIX).upper(), names, PREFIX)
            problems.append(Problem(variable, None, "", f"no setting has this name{hint or '; unset it'}"))
            continue
        text, path = environ[variable], known[variable]
        # Only what must be YAML is parsed as YAML: a crontab line may begin with '*'.
        if text.lstrip().startswith(("[", "{", '"', "'")):
            document = parse(text, variable)
            problems.extend(Problem(variable, None, dotted(path), problem.message) for problem in document.problems)
            if document.problems:
                continue
            value = document.data
        else:
            try:
                value = plain_scalar(text.strip())
            except ValueError as error:
                problems.append(Problem(variable, None, dotted(path), f"{text!r} is not valid: {error}"))
                continue
        overrides.append((path, variable, value))
    return overrides, problems


def _settings(model: type[BaseModel]) -> list[tuple[str, ...]]:
    """Paths of all settings and sections."""
    paths: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        paths.append((name,))
        inner = model_at(field.annotation, ())
        if inner is not None:
            paths.extend((name, *rest) for rest in _settings(inner))
    return paths


def _merge(
    document: Document, overrides: list[tuple[KeyPath, str, Any]]
) -> tuple[Any, Mapping[KeyPath, int], Mapping[KeyPath, str]]:
    """The document with the overrides in their places: data, lines, and which variable each value came from."""
    data = {} if document.data is None else document.data
    lines = dict(document.lines)
    origins: dict[KeyPath, str] = {}
    if not isinstance(data, dict):
        return data, lines, origins
    for path, variable, value in overrides:
        owner = data
        for key in path[:-1]:
            if owner.get(key) is None:
                owner[key] = {}
            owner = owner[key]
            if not isinstance(owner, dict):
                break  # not a section: validation says so
        else:
            owner[path[-1]] = value
            origins = {at: name for at, name in origins.items() if at[: len(path)] != path} | {path: variable}
            lines = {at: line for at, line in lines.items() if at[: len(path)] != path}
    return data, lines, origins
