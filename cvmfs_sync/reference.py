"""Names of images: registry references, OCI layouts, digests, platforms.

A text from a command line, list or manifest goes in, a frozen value comes out; nothing raw travels further inside. The
grammar is that of the reference library of CNCF Distribution (`distribution/reference`), with Docker's short forms.
Nothing here reads a file or talks to a registry.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cvmfs_sync.errors import InvalidReference

__all__ = ["Digest", "ImageName", "LayoutReference", "Platform", "Reference", "parse_image"]

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


ImageName = Reference | LayoutReference


def parse_image(text: str, *, base: Path | None = None) -> ImageName:
    """Read IMAGE as the command line and the image list take it.

    Args:
        text: A registry reference or `oci:DIR[:tag]`.
        base: Directory that a relative `oci:` path starts from; the working directory if None.

    Raises:
        InvalidReference: When the text is neither.
    """
    # A directory may hold blanks; a registry's name never does.
    blanks = not text.startswith("oci:") and any(c.isspace() for c in text)
    if not text or text != text.strip() or blanks or not text.isprintable():
        raise _bad(text, "white space or control characters, or nothing", "registry/repository:tag")
    if not text.startswith("oci:"):
        if "://" in text:
            raise _bad(text, "a URL", "a reference without a scheme, for example docker.io/library/debian:stable")
        return Reference.parse(text)
    directory, colon, tag = text[4:].rpartition(":")
    if not colon or "/" in tag:
        directory, tag = text[4:], ""
    if not directory:
        raise _bad(text, "no directory", "oci:DIR or oci:DIR:tag")
    if colon and "/" not in text[4:].rpartition(":")[2] and not _TAG.match(tag):
        raise _bad(text, f"tag {tag!r}", "letters, digits, '_', '.', '-'")
    # normpath keeps two slashes at the beginning, which POSIX leaves to the system, and to Linux are one.
    path = re.sub(r"\A//+", "/", os.path.normpath((base or Path.cwd()) / directory))
    return LayoutReference(Path(path), tag or None)


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
