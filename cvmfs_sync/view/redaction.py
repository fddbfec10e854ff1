"""Taking out of a text what is nobody's business: paths of this machine, passwords, tokens.

Texts of errors and log lines go in, which are written for the operator; what comes out may be read by anybody. What
clients need, the repository's root, stays. A text is bounded, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["Redaction"]

_LONGEST = 2000
# Up to the last '@': a password may hold one, or a slash. A digest's is none.
_USER_IN_URL = re.compile(r"(?<=://)[^\s'\"<>]*@(?!sha(?:256|512):)")
_FILE_URL = re.compile(r"(?i)\bfile://[^\s'\"<>;,]*")
# What the tokens of well-known services begin with, and JSON Web Tokens.
_TOKEN = re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|eyJ)[\w.-]+")
_SECRET = re.compile(
    r"(?i)\b((?:authorization|(?:set-)?cookie|x-auth[\w-]*|token|access_token|password|passwd|secret|api[_-]?key|signature)['\"]?\s*[=:]\s*"
    r"(?:(?:bearer|basic)\s+)?['\"]?)[^\s'\"&;,]+"
)
_QUERY = re.compile(r"(https?://[^\s?#'\"<>]+)[?#][^\s'\"<>;,]+")
# What most events say, such as how long it took: none of the others is found in it.
_PLAIN = re.compile(r"[0-9a-z .]*")
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):.*", re.DOTALL)
# Where a machine has what is its own. Paths inside images are told without the slash, so these are no such.
_MACHINE = re.compile(
    r"(?<![\w./])/(?:home|root|tmp|var|etc|usr|opt|srv|run|proc|sys|dev|mnt|media|data|scratch|work)(?:/[^\s'\";,:()]*)?"
)


class Redaction:
    """What is taken out.

    Args:
        kept: Paths that clients see.
        named: Paths by the word that stands for each.
    """

    def __init__(self, kept: Iterable[Path], named: Mapping[str, Path]) -> None:
        longest_first = sorted(((str(path), word) for word, path in named.items()), key=lambda each: -len(each[0]))
        self._kept = [re.compile(re.escape(str(path))) for path in kept]
        self._named = [
            (re.compile(rf"(?<![\w.]){re.escape(path)}(?=[/\s'\";,:)]|\Z)"), f"<{word}>")
            for path, word in longest_first
        ]

    def __call__(self, text: str) -> str:
        """The text without all that; at most some thousand characters of it."""
        if len(text) <= _LONGEST and _PLAIN.fullmatch(text):
            return text
        text = _TRACEBACK.sub("", text[: 4 * _LONGEST])
        text = _QUERY.sub(r"\1", _USER_IN_URL.sub("", text))
        text = _TOKEN.sub("...", _SECRET.sub(r"\1...", _FILE_URL.sub("<path>", text)))
        for path, word in self._named:
            text = path.sub(word, text)
        places = [found.span() for path in self._kept for found in path.finditer(text)]
        text = _MACHINE.sub(lambda found: found[0] if _inside(found.start(), places) else "<path>", text)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def _inside(position: int, places: Iterable[tuple[int, int]]) -> bool:
    return any(start <= position < end for start, end in places)
