"""Which of a repository's tags a wish means.

Tags and a filter go in, the chosen tags come out, newest first. All of it is text: "newest" is what the version numbers
say, because a registry keeps no trustworthy dates and asking it for each tag's would cost a request each. Nothing here
talks to a registry, and nothing here depends on locale or time.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

__all__ = ["FILTER_SCHEMA", "Globs", "Regex", "Semver", "TagFilter", "is_pattern", "natural_key", "select"]

_MAX_TAG = 128  # OCI distribution-spec 1.1, "Pulling manifests"
_MAX_PATTERN = 200
_MAX_REPEATS = 8
# cosign's signatures, attestations and SBOMs, and the fallback tags of the distribution-spec's referrers.
_ATTACHED = re.compile(r"sha(?:256-[0-9a-f]{64}|512-[0-9a-f]{128})(?:\..*)?")


@dataclass(frozen=True, slots=True)
class Globs:
    """Shell patterns (`*`, `?`, `[ab]`, `[!ab]`), case-sensitive. A tag that an exclusion matches is out."""

    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    @classmethod
    def parse(cls, patterns: Sequence[str]) -> Globs:
        """Read patterns; those that begin with `!` exclude. Exclusions alone mean every other tag.

        Raises:
            ValueError: For a pattern that can match no tag.
        """
        for pattern in patterns:
            cls.check(pattern)
        include = tuple(pattern for pattern in patterns if not pattern.startswith("!"))
        exclude = tuple(pattern[1:] for pattern in patterns if pattern.startswith("!"))
        if not include and not exclude:
            raise ValueError('no pattern, so no tag; write ["*"] for all tags')
        return cls(include or ("*",), exclude)

    @staticmethod
    def check(pattern: str) -> str:
        """Return a pattern that can match.

        Raises:
            ValueError: When it can match no tag.
        """
        glob = pattern.removeprefix("!")
        if not glob or len(glob) > _MAX_PATTERN:
            raise ValueError(f"a pattern has 1 to {_MAX_PATTERN} characters, this one {len(glob)}")
        if bad := re.search(r"[^A-Za-z0-9_.*?\[\]!-]", glob):
            hint = "; write two patterns instead of {a,b}" if bad[0] in "{}" else ""
            raise ValueError(f"{pattern!r} can match no tag: tags have no {bad[0]!r}{hint}")
        if re.search(r"[\[\]]", re.sub(r"\[!?[^\]!]+\]", "", glob)):
            raise ValueError(f"{pattern!r} can match no tag: a '[' without its ']', or the other way round")
        if "!" in re.sub(r"\[!", "[", glob):
            raise ValueError(f"{pattern!r} can match no tag: '!' stands only at the beginning, or after '['")
        return pattern

    def matches(self, tag: str) -> bool:
        """Whether one of the patterns wants the tag and none excludes it."""
        return any(_glob(pattern).match(tag) for pattern in self.include) and not any(
            _glob(pattern).match(tag) for pattern in self.exclude
        )

    def __str__(self) -> str:
        return " ".join([*self.include, *(f"!{pattern}" for pattern in self.exclude)])


@dataclass(frozen=True, slots=True)
class Regex:
    """A regular expression that matches the whole tag."""

    pattern: str

    @classmethod
    def parse(cls, pattern: str) -> Regex:
        r"""Read a pattern of Python's `re`.

        The list is written by people who are not the daemon's owners, and `re` knows no time limit: so length and
        repetitions are bounded and a repetition within a repetition is refused, unless it begins with a separator, like
        `(\.[0-9]+)*`, which makes it harmless.

        Raises:
            ValueError: When it does not compile, or could take for ever.
        """
        if len(pattern) > _MAX_PATTERN:
            raise ValueError(f"longer than {_MAX_PATTERN} characters; use several images, or globs")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        _refuse_explosive(pattern)
        return cls(pattern)

    def matches(self, tag: str) -> bool:
        """Whether the pattern matches the tag from its first to its last character."""
        return re.fullmatch(self.pattern, tag) is not None

    def __str__(self) -> str:
        return f"regex {self.pattern}"


# major, minor, patch; then 1 for a release and 0 for a pre-release; then the pre-release's identifiers.
_Version = tuple[tuple[int, int, int], int, tuple[tuple[int, int, str], ...]]


@dataclass(frozen=True, slots=True)
class Semver:
    """A range of semantic versions: sets of comparators, of which one set has to hold whole.

    The grammar is npm's without hyphen ranges: `>=4.2`, `>=4.2 <5`, `^1.2`, `~1.2.3`, `4.x`, `1.x || >=3`. Tags count
    as versions with a leading `v` and without minor and patch (`v4`, `4.2`), but not with more than three numbers; a
    lone number of six or more digits is a date or build number. `1.2-slim` is a pre-release to semver, and pre-releases
    are chosen only where the range names one of the same version (`>=2.0.0-rc1` takes 2.0.0-rc2, not 2.1.0-rc1).
    """

    text: str
    _sets: tuple[tuple[tuple[str, _Version], ...], ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Semver:
        """Read a range.

        Raises:
            ValueError: When it is none.
        """
        if len(text) > _MAX_PATTERN:
            raise ValueError(f"longer than {_MAX_PATTERN} characters")
        sets = []
        for part in text.split("||"):
            # Operators may stand apart from their version: '>= 4.2'.
            words = re.sub(r"([<>=^~])\s+(?=[v0-9xX*])", r"\1", part).replace(",", " ").split()
            if not words:
                raise ValueError(f"{text!r} is not a version range; write for example '>=4.2 <5', '^1.2' or '4.x'")
            sets.append(tuple(comparator for word in words for comparator in _comparators(word, text)))
        return cls(text, tuple(sets))

    def matches(self, tag: str) -> bool:
        """Whether the tag is a version within the range."""
        version = _tag_version(tag)
        return version is not None and any(_holds(version, comparators) for comparators in self._sets)

    def __str__(self) -> str:
        return f"semver {self.text}"


TagFilter = Globs | Regex | Semver

# How lists write a filter, in JSON Schema.
FILTER_SCHEMA: dict[str, Any] = {
    "description": "Which of the repository's tags: globs, or a range of versions, or a regular expression.",
    "examples": [["4.*", "!*-rc*"], {"semver": ">=4.2 <5"}, {"regex": "v[0-9]+"}],
    "anyOf": [
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {
            "type": "object",
            "properties": {"semver": {"type": "string"}, "regex": {"type": "string"}},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        },
    ],
}


def select(tags: Iterable[str], tag_filter: TagFilter, keep: int | None = None) -> tuple[str, ...]:
    """The tags that a filter wants, newest first.

    Tags of signatures, attestations and bills of material (`sha256-<hex>.sig`) are no images and never chosen, nor is
    what is too long for a tag.

    Args:
        tags: All tags of a repository, in any order.
        tag_filter: What is wanted.
        keep: So many of the newest; all of them if None.
    """
    wanted = {tag for tag in tags if len(tag) <= _MAX_TAG and not _ATTACHED.fullmatch(tag) and tag_filter.matches(tag)}
    return tuple(sorted(wanted, key=natural_key, reverse=True)[:keep])


def is_pattern(tag: str) -> bool:
    """Whether what stands after an image's last colon is a glob, as users of DUCC and OSG write it."""
    return any(character in tag for character in "*?[")


# Words that stand before the release they lead to; `a` and `b` only with a number (1.0b2).
_BEFORE = {
    "dev": 0,
    "nightly": 0,
    "snapshot": 0,
    "alpha": 1,
    "a": 1,
    "beta": 2,
    "b": 2,
    "pre": 3,
    "preview": 3,
    "rc": 4,
}
_TOKEN = re.compile(r"[0-9]+|[A-Za-z]+")


def natural_key(tag: str) -> tuple[object, ...]:
    """A sort key: greater is newer.

    Tags are compared piece by piece, separators ignored: numbers as numbers (4.10 after 4.9), words by the alphabet. At
    the first difference a pre-release word comes before the tag's end, the end before any other word, a word before a
    number: `4.2-rc1 < 4.2 < 4.2-slim < 4.2.1`, and tags without a version (`latest`) before those that have one. Equal
    versions are ordered by the text, so that the order is total.
    """
    pieces: list[tuple[int, int, str]] = []
    text = tag[1:] if re.match(r"[vV][0-9]", tag) else tag
    tokens = _TOKEN.findall(text)
    for index, token in enumerate(tokens):
        word = token.lower()
        if token.isdigit():
            pieces.append((3, int(token), ""))
        elif word in _BEFORE and (len(word) > 1 or (index + 1 < len(tokens) and tokens[index + 1].isdigit())):
            pieces.append((0, _BEFORE[word], word))
        else:
            pieces.append((2, 0, word))
    return (*pieces, (1, 0, ""), tag)


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    # translate, not fnmatch: that folds case where the operating system does.
    return re.compile(fnmatch.translate(pattern))


_TAG_VERSION = re.compile(
    r"[vV]?(?P<major>[0-9]+)(?:\.(?P<minor>[0-9]+))?(?:\.(?P<patch>[0-9]+))?(?:-(?P<pre>[0-9A-Za-z.-]+))?"
)
_PART = r"(?:[0-9]+|[xX*])"
_COMPARATOR = re.compile(
    rf"(?P<operator>>=|<=|>|<|=|\^|~)?[vV]?(?P<major>{_PART})(?:\.(?P<minor>{_PART}))?(?:\.(?P<patch>{_PART}))?"
    r"(?:-(?P<pre>[0-9A-Za-z.-]+))?"
)
_DATE_DIGITS = 6


def _tag_version(tag: str) -> _Version | None:
    match = _TAG_VERSION.fullmatch(tag)
    if match is None or (match["minor"] is None and len(match["major"]) >= _DATE_DIGITS):
        return None
    return _version(int(match["major"]), int(match["minor"] or 0), int(match["patch"] or 0), match["pre"])


def _version(major: int, minor: int, patch: int, pre: str | None = None) -> _Version:
    """A version that compares as semver.org 2.0.0, section 11, says."""
    identifiers = tuple(
        (0, int(part), "") if re.fullmatch("[0-9]+", part) else (1, 0, part) for part in (pre or "").split(".") if pre
    )
    return (major, minor, patch), 0 if pre else 1, identifiers


def _below(major: int, minor: int = 0, patch: int = 0) -> tuple[str, _Version]:
    """Less than a version and than its pre-releases: `<5` leaves out 5.0.0-rc1."""
    return "<", ((major, minor, patch), 0, ())


def _comparators(word: str, text: str) -> list[tuple[str, _Version]]:
    """Plain comparisons for one word of a range, as in npm's node-semver, "Advanced Range Syntax"."""
    match = _COMPARATOR.fullmatch(word)
    if match is None:
        raise ValueError(f"{text!r} is not a version range: {word!r}; write for example '>=4.2 <5', '^1.2' or '4.x'")
    operator = match["operator"] or "="
    numbers = []
    for name in ("major", "minor", "patch"):
        part = match[name]
        if part is None or part in "xX*":
            break
        numbers.append(int(part))
    if match["pre"] and not numbers:
        raise ValueError(f"{text!r} is not a version range: {word!r} is a pre-release of no version")
    given = 3 if match["pre"] else len(numbers)
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    low = _version(major, minor, patch, match["pre"])
    # By the number of parts that are given: the end of all versions that begin with these.
    after = {1: _below(major + 1), 2: _below(major, minor + 1), 3: _below(major, minor, patch + 1)}
    if given == 0:
        return [(">=", low)] if operator not in ("<", ">") else [_below(0)]
    match operator:
        case "=":
            return [("=", low)] if given == 3 else [(">=", low), after[given]]
        case ">" | "<=" if given < 3:
            # >4.2 is after all of 4.2.x, <=4.2 up to all of it.
            _, edge = after[given]
            return [(">=", (edge[0], 1, ()))] if operator == ">" else [after[given]]
        case "<" if not match["pre"]:
            return [_below(major, minor, patch)]
        case "~":
            return [(">=", low), after[min(given, 2)]]
        case "^":
            # Up to the first number that is not zero.
            place = next((i + 1 for i, number in enumerate(numbers) if number), given)
            return [(">=", low), after[place]]
        case _:
            return [(operator, low)]


def _holds(version: _Version, comparators: Sequence[tuple[str, _Version]]) -> bool:
    compared = {
        "=": version.__eq__,
        ">": version.__gt__,
        ">=": version.__ge__,
        "<": version.__lt__,
        "<=": version.__le__,
    }
    if not all(compared[operator](bound) for operator, bound in comparators):
        return False
    return version[1] == 1 or any(bound[2] and bound[0] == version[0] for _, bound in comparators)


# A repeated group that is harmless: separators, then characters that are none, so there is one way to match.
_HARMLESS = re.compile(
    r"(?:\?:)?(?:\\?-|\\\.|_|\[[._-]+\])(?:\\d|\[(?:0-9|a-z|A-Z|[0-9A-Za-z])+\])(?:[+*?]|\{[0-9,]+\})?"
)
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def _refuse_explosive(pattern: str) -> None:
    """Refuse what could match in a time that grows exponentially, or like a high power, with a tag's length.

    Raises:
        ValueError: With the part that repeats.
    """
    # Same length as the pattern, with all that is literal blanked.
    bare = _ESCAPE_OR_CLASS.sub(lambda found: "\0" * len(found[0]), pattern)
    if re.search(r"\(\?[a-zA-Z]*x", bare):
        raise ValueError(f"{pattern!r}: the flag x is not supported")
    if len(re.findall(r"[*+]|\{[0-9]*,[0-9]*\}", bare)) > _MAX_REPEATS:
        raise ValueError(f"{pattern!r} repeats in more than {_MAX_REPEATS} places; use several images, or globs")
    starts: list[int] = []
    for position, character in enumerate(bare):
        if character == "(":
            starts.append(position + 1)
        elif character == ")":
            start = starts.pop()
            repeated = bare[position + 1 : position + 2] in ("*", "+", "{")
            ambiguous = re.search(r"[*+{|?]", bare[start:position].removeprefix("?:"))
            if repeated and ambiguous and not _HARMLESS.fullmatch(pattern[start:position]):
                raise ValueError(
                    f"{pattern!r} repeats {pattern[start - 1 : position + 1]!r}, which repeats itself or has a choice; "
                    r"that can take for ever: begin the group with a separator, like (\.[0-9]+)*, or use globs"
                )
