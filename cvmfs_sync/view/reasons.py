"""Why an image is not there, in words for whoever asked for it.

The class of an error of ours goes in; a sentence and a piece of advice come out. What exactly was found is in the
error's own text, which is shown beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["REASONS", "Reason", "reason_of"]


@dataclass(frozen=True, slots=True)
class Reason:
    """What happened, and what whoever asked for the image can do about it."""

    text: str
    advice: str


_WAIT = "Nothing: it is tried again by itself."
_OPERATORS = "Nothing: the operators of the repository have to act, and can see this as well."
_UNKNOWN = Reason("The image could not be published.", "See what the program said, below; it is tried again by itself.")

REASONS: Mapping[str, Reason] = {
    "ImageNotFound": Reason(
        "The registry says that there is no such image: the tag, or the whole repository, is not there.",
        "Compare name and tag with the registry's page of the image. If it was removed there, ask its owner, or take"
        " the line out of the image list.",
    ),
    "NotForPlatform": Reason(
        "The image is there, but it was not built for the platform that the image list asks for.",
        "Name one of its platforms, which stand below, in the image list; or have it built for this one.",
    ),
    "AccessDenied": Reason(
        "The registry refuses access: the image is private, or there is none of this name. Registries do not say"
        " which.",
        "Check the spelling. If the image is private, make it public, or ask the operators to give the publisher"
        " access.",
    ),
    "BlockedImage": Reason(
        "The operators have blocked this image: it must not be published.",
        "Read their reason below, and talk to them if you think that it has gone.",
    ),
    "RegistryUnavailable": Reason("The registry does not answer as it should, or cannot be reached.", _WAIT),
    "RateLimited": Reason("The registry allows no more downloads for some time.", _WAIT),
    "TriedLater": Reason("It failed before, and is not tried again yet.", _WAIT),
    "InvalidManifest": Reason(
        "What the registry has under this name is no image that follows the specification.",
        "Push the image again with a current tool, and check that it is a container image.",
    ),
    "BlobMismatch": Reason("What the registry sent is damaged: its checksum is not what it should be.", _WAIT),
    "BlobChanged": Reason("What the registry sent changed in the middle of the download.", _WAIT),
    "InvalidImage": Reason(
        "The image holds something broken, or unsafe, and cannot be unpacked.",
        "Build the image again with a current tool; the text below names the file.",
    ),
    "LimitExceeded": Reason(
        "The image is beyond one of the limits of this repository: of its size, or of what its files are like.",
        "The text below names the limit. Make the image smaller, for example without data sets; or ask the operators"
        " whether the limit can be raised.",
    ),
    "NotAsMeant": Reason("What was written to the repository was not right, and was not published.", _WAIT),
    "ImageError": _UNKNOWN,
    "RepositoryError": Reason("The repository cannot be written to at the moment.", _OPERATORS),
    "RepositoryBusy": Reason("Somebody else is publishing in the repository.", _WAIT),
    "RepositoryUnavailable": Reason("The repository cannot be written to at the moment.", _OPERATORS),
    "CloneRefused": Reason("The image could not be made of one that is published.", _WAIT),
    "NotOwner": Reason("The publisher may not write to the repository.", _OPERATORS),
    "NoSpace": Reason("There is no space left to publish the image.", _OPERATORS),
    "CvmfsSyncError": _UNKNOWN,
    "UsageError": Reason("The configuration or the image list is wrong.", _OPERATORS),
    "InvalidReference": Reason(
        "The image's name is not one that can be looked up.", "Write it as for 'docker pull', in the image list."
    ),
    "ConfigurationError": Reason("The publisher's configuration is wrong.", _OPERATORS),
    "ListError": Reason("The image list is not valid.", "Mend the list: 'cvmfs-sync check' tells the lines."),
}
"""By the name of the class in `errors`."""


def reason_of(kind: str | None) -> Reason:
    """The words for an error of this class; general ones for a class that is not known."""
    return REASONS.get(kind or "", _UNKNOWN)
