"""Names of images: in registries, layouts, archives and engines; digests, platforms.

A text from a command line, list or manifest goes in, a frozen value comes out; nothing raw travels further inside. The
grammar is that of the reference library of CNCF Distribution (`distribution/reference`), with Docker's short forms.
Nothing here reads a file or talks to a registry.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from cvmfs_sync.errors import InvalidReference

__all__ = [
    "ArchiveReference",
    "ArtifactReference",
    "Digest",
    "EngineReference",
    "ImageName",
    "LayoutReference",
    "Platform",
    "Reference",
    "parse_image",
    "without_tag",
]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
# Other names of Docker Hub that people and old configuration files use.
_DOCKER_HUB_ALIASES = frozenset({"index.docker.io", "registry.hub.docker.com", "registry-1.docker.io"})

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]+)\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_DOMAIN_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?\Z")
_MAX_REPOSITORY = 255
_LAYOUT, _ARCHIVE, _ENGINE, _ARTIFACT = "oci:", "docker-archive:", "docker-daemon:", "oras://"


@dataclass(frozen=True, slots=True)
class Digest:
    """An algorithm and lower-case hex digits, safe to become a path (OCI image-spec, descriptor.md, "Digests")."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Read `sha256:<64 hex>` or `sha512:<128 hex>`.

        Raises:
            InvalidReference: For any other algorithm, length, case or type.
        """
        match = _DIGEST.match(text) if isinstance(text, str) else None
        if match is None or len(match[2]) != _HEX_LENGTH[match[1]]:
            raise InvalidReference(
                "not a digest",
                found=repr(text)[:200],
                expected="sha256: and 64, or sha512: and 128 lower-case hex digits",
            )
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant, with Go's names (`linux/arm64/v8`)."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read `os/architecture[/variant]`.

        Raises:
            InvalidReference: When the text is of another form.
        """
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", part) for part in parts):
            raise InvalidReference("not a platform", found=repr(text), expected="os/architecture[/variant]")
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry. At least one of `tag` and `digest` is set; where both are, the digest decides."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference in Docker's normal form (`alpine` is `docker.io/library/alpine:latest`).

        Raises:
            InvalidReference: When the text is no reference; the message names the part that is wrong.
        """
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        slash = rest.rfind("/")
        colon = rest.rfind(":")
        tag: str | None = None
        if colon > slash:
            rest, tag = rest[:colon], rest[colon + 1 :]
            if not _TAG.match(tag):
                raise _bad(
                    text, f"tag {tag!r}", "1 to 128 of letters, digits, '_', '.', '-', not starting with '.' or '-'"
                )
        if tag is None and digest is None:
            tag = DEFAULT_TAG
        registry, repository = _split_registry(rest)
        if not _REGISTRY.match(registry):
            raise _bad(text, f"registry {registry!r}", "host or host:port")
        if len(repository) > _MAX_REPOSITORY or not _REPOSITORY.match(repository):
            raise _bad(
                text,
                f"repository {repository!r}",
                "lower-case letters and digits, separated by '.', '_', '__' or '-', in parts separated by '/'",
            )
        return cls(registry, repository, tag, digest)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    def with_tag(self, tag: str) -> Reference:
        """The same repository at another tag."""
        return Reference(self.registry, self.repository, tag)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An image in an OCI image layout on disk: `oci:DIR[:tag]`.

    The directory is absolute, because it is the image's identity: the same text in two lists names two images.
    """

    directory: Path
    tag: str | None = None

    def __str__(self) -> str:
        return f"oci:{self.directory}" + (f":{self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True)
class ArchiveReference:
    """An image in a tar file that `docker save` has written: `docker-archive:FILE[:tag]`.

    The path is absolute, as a layout's is.
    """

    file: Path
    tag: str | None = None

    def __str__(self) -> str:
        return f"{_ARCHIVE}{self.file}" + (f":{self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True)
class EngineReference:
    """An image of the Docker or Podman engine of this machine: `docker-daemon:name[:tag]`.

    The name stays as it was written: what a short one means is the engine's to say. Podman has `localhost/name` for
    what Docker calls `name`.
    """

    repository: str
    tag: str | None = DEFAULT_TAG

    def __str__(self) -> str:
        return f"{_ENGINE}{self.repository}" + (f":{self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True)
class ArtifactReference:
    """A SIF file that is kept in a registry as an OCI artifact: `oras://registry/repository:tag`."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def reference(self) -> Reference:
        """Where in the registry its manifest is."""
        return Reference(self.registry, self.repository, self.tag, self.digest)

    def __str__(self) -> str:
        return f"{_ARTIFACT}{self.reference}"


ImageName = Reference | LayoutReference | ArchiveReference | EngineReference | ArtifactReference


def parse_image(text: str, *, base: Path | None = None) -> ImageName:
    """Read IMAGE as the command line and the image list take it.

    Args:
        text: A registry reference, `oci:DIR[:tag]`, `docker-archive:FILE[:tag]`, `docker-daemon:name[:tag]` or
            `oras://registry/repository[:tag]`.
        base: Directory that a relative path starts from; the working directory if None.

    Raises:
        InvalidReference: When the text is none of them.
    """
    on_disk = text.startswith((_LAYOUT, _ARCHIVE))
    # A path may hold blanks; a registry's name never does.
    blanks = not on_disk and text.split() != [text]
    if not text or text != text.strip() or blanks or not text.isprintable():
        raise _bad(text, "white space or control characters, or nothing", "registry/repository:tag")
    if text.startswith(_LAYOUT):
        return LayoutReference(*_path_and_tag(text, _LAYOUT, "DIR", "directory", base))
    if text.startswith(_ARCHIVE):
        return ArchiveReference(*_path_and_tag(text, _ARCHIVE, "FILE", "file", base))
    if text.startswith(_ENGINE):
        return _engine(text)
    if text.startswith(_ARTIFACT):
        name = _reference_behind(text, _ARTIFACT, "registry/repository:tag")
        return ArtifactReference(name.registry, name.repository, name.tag, name.digest)
    if "://" in text:
        raise _bad(text, "a URL", "a reference without a scheme, for example docker.io/library/debian:stable")
    return Reference.parse(text)


def without_tag(name: ImageName) -> ImageName:
    """The repository, layout or archive that an image is in, as a name without tag and digest."""
    if isinstance(name, Reference | ArtifactReference):
        return replace(name, tag=None, digest=None)
    return replace(name, tag=None)


def _path_and_tag(text: str, kind: str, word: str, thing: str, base: Path | None) -> tuple[Path, str | None]:
    rest = text.removeprefix(kind)
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, colon, tag = rest, "", ""
    if not path:
        raise _bad(text, f"no {thing}", f"{kind}{word} or {kind}{word}:tag")
    if colon and not _TAG.match(tag):
        raise _bad(text, f"tag {tag!r}", "letters, digits, '_', '.', '-'")
    # normpath keeps two slashes at the beginning, which POSIX leaves to the system, and to Linux are one.
    return Path(re.sub(r"\A//+", "/", os.path.normpath((base or Path.cwd()) / path))), tag or None


def _engine(text: str) -> EngineReference:
    form = "name or name:tag"
    name = _reference_behind(text, _ENGINE, form)
    if name.digest is not None:
        # What an engine calls a digest of its image is what some registry called it, and is gone with `docker tag`.
        raise _bad(text, f"digest {name.digest}", f"{_ENGINE}{form}")
    rest = text.removeprefix(_ENGINE)
    head, colon, tag = rest.rpartition(":")
    return EngineReference(head if colon and "/" not in tag else rest, name.tag)


def _reference_behind(text: str, kind: str, form: str) -> Reference:
    """What stands behind the prefix, by the grammar of references; the error shows all of the text."""
    if text == kind:
        raise _bad(text, "no name", kind + form)
    try:
        return Reference.parse(text.removeprefix(kind))
    except InvalidReference as error:
        raise _bad(text, error.found or error.what, error.expected or kind + form) from None


def _split_registry(name: str) -> tuple[str, str]:
    """Split like Docker: the first part is a host if it holds a dot or a colon or is `localhost`."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, repository = first, rest
    else:
        registry, repository = DEFAULT_REGISTRY, name
    if registry in _DOCKER_HUB_ALIASES:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _bad(text: str, found: str, expected: str) -> InvalidReference:
    return InvalidReference(f"{text[:200]!r} is not an image reference", found=found, expected=expected)
