"""Every error that cvmfs-sync raises on purpose, and what each one ends.

An error says what happened, what was found, what was expected and what to do; the command line prints those four and
exits with the error's code. The class tells what it ends: an `ImageError` ends one image and the others go on, a
`RepositoryError` ends the cycle, a `UsageError` ends the process before anything was done.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AccessDenied",
    "BlobChanged",
    "BlobMismatch",
    "BlockedImage",
    "CloneRefused",
    "ConfigurationError",
    "CvmfsSyncError",
    "ImageError",
    "ImageNotFound",
    "InvalidImage",
    "InvalidManifest",
    "InvalidReference",
    "LimitExceeded",
    "ListError",
    "NoSpace",
    "NotAsMeant",
    "NotForPlatform",
    "NotOwner",
    "RateLimited",
    "RegistryUnavailable",
    "RepositoryBusy",
    "RepositoryError",
    "RepositoryUnavailable",
    "TriedLater",
    "UsageError",
]


class CvmfsSyncError(Exception):
    """Base of all errors that are meant for a person.

    Args:
        what: What failed, with the name of the thing, without a full stop.
        found: What was there.
        expected: What should have been there.
        todo: What the reader can do now, as an imperative.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, what: str, *, found: str | None = None, expected: str | None = None, todo: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.expected = expected
        self.todo = todo

    def __str__(self) -> str:
        parts = [self.what]
        if self.found is not None:
            parts.append(f"found: {self.found}")
        if self.expected is not None:
            parts.append(f"expected: {self.expected}")
        if self.todo is not None:
            parts.append(f"to do: {self.todo}")
        return "; ".join(parts)


class UsageError(CvmfsSyncError):
    """The command line, configuration or list is wrong; nothing was done."""

    exit_code = 2


class InvalidReference(UsageError):
    """A text is no image reference."""


class ConfigurationError(UsageError):
    """`cvmfs-sync.yaml` or a `CVMFS_SYNC_*` variable is wrong."""


class ListError(UsageError):
    """An image list does not hold what its schema says, or asks for what can't be had together.

    Attributes:
        lines: Of the list, of which one is to be mended.
    """

    lines: tuple[int, ...] = ()


class ImageError(CvmfsSyncError):
    """One image failed; the others go on.

    Attributes:
        temporary: Whether the same request may succeed later without anybody changing anything.
    """

    temporary: ClassVar[bool] = False


class ImageNotFound(ImageError):
    """The registry says, as proof and not by refusing access, that this manifest is not there."""


class NotForPlatform(ImageNotFound):
    """The image is there, and was not built for the platform that is asked for.

    Attributes:
        offered: The platforms that it was built for.
    """

    offered: tuple[str, ...] = ()


class AccessDenied(ImageError):
    """The registry wants other credentials, or the repository does not exist: registries do not say which."""


class BlockedImage(ImageError):
    """The list says that it must not be published."""


class RegistryUnavailable(ImageError):
    """No usable answer: connection refused, time-out, 429, 5xx, or a body cut short."""

    temporary = True


class TriedLater(ImageError):
    """It failed before in the same way, and is not tried again yet."""


class RateLimited(RegistryUnavailable):
    """The registry allows few more pulls, and the configuration keeps those for what somebody waits for."""


class InvalidManifest(ImageError):
    """A manifest, index or image configuration breaks the specification or contradicts itself."""


class BlobMismatch(ImageError):
    """Bytes do not have the size or digest that names them."""

    temporary = True


class BlobChanged(BlobMismatch):
    """A source began to give other bytes in the middle of a blob; asked from the start, it may give the right ones."""


class InvalidImage(ImageError):
    """A layer breaks the tar or layer specification, or asks for something unsafe."""


class LimitExceeded(InvalidImage):
    """An image is larger than a configured limit."""


class NotAsMeant(ImageError):
    """What was written to the repository is not what should have been written; nothing was published."""

    temporary = True


class RepositoryError(CvmfsSyncError):
    """The repository or the machine stopped us; no other image can be published now."""

    exit_code = 3


class RepositoryBusy(RepositoryError):
    """Somebody else holds the transaction, or publishes."""


class RepositoryUnavailable(RepositoryError):
    """The repository cannot be written: not mounted, damaged, read-only, or its web server or whitelist failed."""


class CloneRefused(RepositoryUnavailable):
    """A tree can't be made of a clone; written whole it can."""


class NotOwner(RepositoryError):
    """The process runs as a user who may not publish."""


class NoSpace(RepositoryError):
    """A file system is full."""
