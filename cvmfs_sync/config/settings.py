"""The settings of `cvmfs-sync.yaml`, section by section, as frozen values with all defaults."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from cvmfs_sync.config.values import (
    AbsolutePath,
    BindPoint,
    Duration,
    EngineHost,
    HookUrl,
    ImageListSource,
    Interval,
    Listen,
    Mirror,
    PublicUrl,
    RegistryHost,
    RepositoryName,
    Size,
)
from cvmfs_sync.schema import StrictModel

__all__ = [
    "Config",
    "Hook",
    "Limits",
    "Metrics",
    "RegistryOptions",
    "RepositoryOptions",
    "Retire",
    "Sandbox",
    "Schedule",
    "Web",
    "Webhook",
    "WebhookKind",
    "json_schema",
]

WebhookKind = Literal["dockerhub", "github", "harbor", "quay", "gitlab", "distribution"]
# Of senders whose registry most people mean.
_USUAL_REGISTRIES = {"dockerhub": "docker.io", "github": "ghcr.io", "quay": "quay.io"}


class RepositoryOptions(StrictModel):
    """Where images are published."""

    backend: Literal["directory", "cvmfs"] = "directory"
    name: RepositoryName | None = Field(default=None, description="cvmfs: the repository's name; required there.")
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

    bind_points: Annotated[tuple[BindPoint, ...], Field(strict=False)] = Field(
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
    mirrors: Annotated[tuple[Mirror, ...], Field(strict=False)] = Field(
        default=(), description="Pull-through caches to ask first, in order: host[:port] or URL."
    )
    ratelimit_floor: int = Field(
        default=0, ge=0, description="With so many pulls left or fewer, only what somebody waits for is pulled."
    )
    foreign_layers: bool = Field(
        default=False, description="Fetch layers that the registry does not keep from the URLs that manifests name."
    )


class Metrics(StrictModel):
    """Where Prometheus finds us."""

    listen: Listen | None = Field(
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
    url: HookUrl | None = Field(default=None, description="Gets the event as JSON by POST.")
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


class Webhook(StrictModel):
    """Who may tell that something was pushed."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]{0,62}$")] = Field(
        description="It is called at /webhooks/<name>."
    )
    kind: WebhookKind = Field(description="What calls it.")
    registry: RegistryHost = Field(
        default="",
        description="Whose images it is about; by default docker.io, ghcr.io or quay.io for dockerhub, github, quay.",
    )
    secret_file: AbsolutePath = Field(
        description="File with the secret that callers have to know, or two while one replaces the other, one a line."
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_registry(cls, data: Any) -> Any:
        if isinstance(data, dict) and "registry" not in data and isinstance(data.get("kind"), str):
            usual = _USUAL_REGISTRIES.get(data["kind"])
            return data if usual is None else {"registry": usual, **data}
        return data

    @model_validator(mode="after")
    def _registry_given(self) -> Webhook:
        if not self.registry:
            raise ValueError(f"the key 'registry' is missing: {self.kind} needs the registry's host, or host:port")
        return self


def _own_names(webhooks: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
    names = [webhook.name for webhook in webhooks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two webhooks have the name {name!r}")
    return webhooks


class Web(StrictModel):
    """Pages and API for those who ask for images."""

    listen: Listen | None = Field(
        default="127.0.0.1:9180", validate_default=True, description="host:port; null for no pages."
    )
    url: PublicUrl | None = Field(
        default=None, description="By which the world reaches the pages, for feeds and links from elsewhere."
    )
    webhooks: Annotated[tuple[Webhook, ...], Field(strict=False), AfterValidator(_own_names)] = Field(
        default=(), description="Registries that may tell that something was pushed."
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

    image_list: ImageListSource = Field(
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
    large_image: Size | None = Field(
        default="20G", validate_default=True, description="`check --online` warns of larger images; null for none."
    )
    schedule: Schedule = Field(default={}, validate_default=True)
    stop_within: Duration = Field(
        default="60s", validate_default=True, description="How long the daemon's end may take, a publish included."
    )
    retire: Retire = Field(default={}, validate_default=True)
    sandbox: Sandbox = Field(default={}, validate_default=True)
    registries: Mapping[RegistryHost, RegistryOptions] = Field(default={}, description="Options by host or host:port.")
    docker_host: EngineHost | None = Field(
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


def json_schema() -> dict[str, Any]:
    """The configuration's JSON Schema (draft 2020-12), for editors."""
    schema = Config.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "cvmfs-sync configuration",
    }
