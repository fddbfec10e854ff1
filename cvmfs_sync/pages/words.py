"""What states, events and sort orders are called on the pages, and the sign that each has beside its colour.

Constants only. What a state means is decided in `view`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cvmfs_sync.view.documents import ImageState

__all__ = ["DOINGS", "EVENTS", "SORTS", "STATES", "Word"]


@dataclass(frozen=True, slots=True)
class Word:
    """How something is told.

    Attributes:
        label: In a word.
        sign: A character that says the same without colours.
        tone: Which colour: good, bad, wait or calm.
        sentence: In a sentence, for whoever asked for the image.
    """

    label: str
    sign: str
    tone: str
    sentence: str = ""


STATES: Mapping[ImageState, Word] = {
    "published": Word("Published", "\u2713", "good", "It is there, and it is what its tag means."),
    "failed": Word("Failed", "\u2715", "bad", "The last try to publish it has failed."),
    "pending": Word("Waiting", "\u2026", "wait", "It has been asked for, and its turn is yet to come."),
    "blocked": Word("Blocked", "\u2298", "bad", "The operators have taken it down."),
    "unlisted": Word("Unlisted", "\u25cb", "calm", "It is there, but nobody asks for it any more: it will go."),
}

EVENTS: Mapping[str, Word] = {
    "published": Word("Published", "\u2713", "good"),
    "moved": Word("Updated", "\u2191", "good"),
    "linked": Word("Linked", "\u2192", "good"),
    "recovered": Word("Recovered", "\u2713", "good"),
    "retired": Word("Retired", "\u25cb", "calm"),
    "taken_down": Word("Taken down", "\u2298", "bad"),
    "failed": Word("Failed", "\u2715", "bad"),
    "list_refused": Word("List refused", "\u2715", "bad"),
}

SORTS: Mapping[str, str] = {
    "name": "Name",
    "-published": "Latest first",
    "-size": "Largest first",
    "state": "State",
}

DOINGS: Mapping[str, str] = {
    "a cycle": "A cycle is running",
    "a garbage collection": "What nobody asks for any more is being retired",
    "reading the image list": "The image list is being read",
    "what was asked for": "What somebody has asked for is being published",
}
"""What the daemon says that it does, as a sentence."""
