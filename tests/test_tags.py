"""Choosing tags: globs, semantic versions, regular expressions, and the newest of them."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_sync.tags import Globs, Regex, Semver, TagFilter, is_pattern, natural_key, select

DIGEST = "0123456789abcdef" * 4

GLOBS = [
    (["4.*"], ["4.1", "4.10", "4.", "5.4.1", "4", "v4.1"], ["4.10", "4.1", "4."]),
    (["4.*", "!*-rc*"], ["4.1", "4.2-rc1", "4.2"], ["4.2", "4.1"]),
    (["!*-rc*", "4.*"], ["4.1", "4.2-rc1", "4.2"], ["4.2", "4.1"]),
    (["!*-rc*"], ["4.1", "4.2-rc1", "latest"], ["4.1", "latest"]),
    (["12", "13"], ["12", "12.1", "13"], ["13", "12"]),
    (["1.?"], ["1.1", "1.10", "1."], ["1.1"]),
    (["1.[0-2]"], ["1.0", "1.2", "1.3"], ["1.2", "1.0"]),
    (["1.[!0-2]"], ["1.0", "1.2", "1.3"], ["1.3"]),
    (["EL*"], ["EL9", "el9"], ["EL9"]),
    (["*.sif"], ["1.sif", "1xsif"], ["1.sif"]),
    (["*"], [f"sha256-{DIGEST}", f"sha256-{DIGEST}.sig", f"sha256-{DIGEST}.att", f"sha256-{DIGEST}.sbom", "1"], ["1"]),
    (["*"], ["a" * 128, "a" * 129], ["a" * 128]),
    (["*"], ["1", "1", "1"], ["1"]),
    (["9*"], ["1"], []),
]


@pytest.mark.parametrize(("patterns", "tags", "chosen"), GLOBS)
def test_globs(patterns: list[str], tags: list[str], chosen: list[str]) -> None:
    """Globs match whole tags with their case, dots are dots, and an exclusion wins wherever it stands."""
    assert list(select(tags, Globs.parse(patterns))) == chosen


BAD_GLOBS = [
    ([], 'no pattern, so no tag; write ["*"] for all tags'),
    ([""], "a pattern has 1 to 200 characters, this one 0"),
    (["!"], "a pattern has 1 to 200 characters, this one 0"),
    (["a b"], "'a b' can match no tag: tags have no ' '"),
    (["debian:12*"], "'debian:12*' can match no tag: tags have no ':'"),
    (["{11,12}"], "'{11,12}' can match no tag: tags have no '{'; write two patterns instead of {a,b}"),
    (["1.[0-2"], "'1.[0-2' can match no tag: a '[' without its ']', or the other way round"),
    (["1.0]"], "'1.0]' can match no tag: a '[' without its ']', or the other way round"),
    (["1.!0"], "'1.!0' can match no tag: '!' stands only at the beginning, or after '['"),
]


@pytest.mark.parametrize(("patterns", "message"), BAD_GLOBS)
def test_bad_globs(patterns: list[str], message: str) -> None:
    """A pattern that can match nothing is a mistake, and its message says which character is wrong."""
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Globs.parse(patterns)


SEMVER = [
    (">=4.2", "4.2 4.2.0 v4.2.1 4.10 5 5.0.0", "4.1.9 4 3 latest 4.3-rc1 4.2-slim 4.2.1.5 20240101"),
    (">=4.2 <5", "4.2 4.99.99", "5 5.0.0 5.0.0-rc1 4.1"),
    (">= 4.2, < 5", "4.2 4.99.99", "5 4.1"),
    (">4.2", "4.3 5", "4.2 4.2.9"),
    ("<=4.2", "4.2 4.2.9 3", "4.3"),
    ("<4.2", "4.1.9", "4.2 4.2.0-rc1"),
    (">1.2.3", "1.2.4", "1.2.3"),
    ("<=1.2.3", "1.2.3 0", "1.2.4"),
    ("^1.2", "1.2 1.2.0 1.9 v1.10.3", "1.1.9 2 2.0.0-rc1"),
    ("^1.2.3", "1.2.3 1.3", "1.2.2 2"),
    ("^0.2.3", "0.2.3 0.2.9", "0.2.2 0.3 1"),
    ("^0.0.3", "0.0.3", "0.0.4 0.1"),
    ("^0.0", "0.0.0 0.0.9", "0.1"),
    ("^0", "0.0.1 0.9", "1"),
    ("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3"),
    ("~1.2", "1.2 1.2.9", "1.1 1.3"),
    ("~1", "1 1.9", "0 2"),
    ("4.x", "4 4.0 4.9.9", "3 5"),
    ("4.2.*", "4.2 4.2.9", "4.1 4.3"),
    ("4", "4 4.9.9", "3 5"),
    ("=4.2.1", "4.2.1 v4.2.1", "4.2 4.2.2"),
    ("v4.2.1", "4.2.1", "4.2.2"),
    ("*", "0 1 99.1.1", "latest 1.0-rc1 123456"),
    ("1.x || >=3", "1.5 3 4", "2"),
    ("22.04", "22.04 22.4.1", "22.10"),
    (">=2.0.0-rc1", "2.0.0-rc1 2.0.0-rc2 2.0.0 2.1", "2.0.0-beta 2.1.0-rc1"),
    ("2.0.0-rc1", "2.0.0-rc1", "2.0.0 2.0.0-rc2"),
    (">=1.0.0-alpha.2", "1.0.0-alpha.2 1.0.0-alpha.10 1.0.0-alpha.x 1.0.0-beta 1.0.0", "1.0.0-alpha.1 1.0.0-alpha"),
    (">=2023.1", "2023.1 2024.1", "20240101"),
    ("<0", "", "0 1"),
    (">*", "", "0 1"),
]


@pytest.mark.parametrize(("text", "inside", "outside"), SEMVER)
def test_semver(text: str, inside: str, outside: str) -> None:
    """Ranges mean what they mean to npm; pre-releases are chosen only where the range names one."""
    semver = Semver.parse(text)
    assert [tag for tag in inside.split() if not semver.matches(tag)] == []
    assert [tag for tag in outside.split() if semver.matches(tag)] == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("latest", "latest"),
        (">=x.y", ">=x.y"),
        ("1.2.3.4", "1.2.3.4"),
        ("=>1", "=>1"),
        (">=1 <two", "<two"),
        ("1 - 2", "-"),
    ],
)
def test_bad_semver(text: str, word: str) -> None:
    """What is no range is refused with the word that is wrong."""
    message = f"{text!r} is not a version range: {word!r}; write for example '>=4.2 <5', '^1.2' or '4.x'"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Semver.parse(text)


@pytest.mark.parametrize("text", ["", " ", "1 ||", "|| 1"])
def test_empty_semver(text: str) -> None:
    """An empty range is a mistake, not "everything"."""
    with pytest.raises(ValueError, match=r"is not a version range; write for example"):
        Semver.parse(text)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"v[0-9]+", "v1 v10", "v1.0 xv1 v1x"),
        (r"\d+(\.\d+)*", "1 1.2.3", "1. .1 1-2"),
        (r"(?:a|b)-(?:1|2)?", "a- b-2", "c-1"),
        (r"4(?:[.-][0-9a-z]+)*", "4 4.1 4-slim 4.1-slim", "5"),
    ],
)
def test_regex(pattern: str, inside: str, outside: str) -> None:
    """A regular expression matches the whole tag or not at all."""
    regex = Regex.parse(pattern)
    assert [tag for tag in inside.split() if not regex.matches(tag)] == []
    assert [tag for tag in outside.split() if regex.matches(tag)] == []


BAD_REGEXES = [
    ("(", "'(' is not a regular expression: missing ), unterminated subpattern at position 0"),
    ("*", "'*' is not a regular expression: nothing to repeat at position 0"),
    ("a" * 201, "longer than 200 characters; use several images, or globs"),
    (
        "(a+)+b",
        (
            "'(a+)+b' repeats '(a+)', which repeats itself or has a choice; that can take for ever: begin the group "
            r"with a separator, like (\.[0-9]+)*, or use globs"
        ),
    ),
    (".*" * 9, f"{'.*' * 9!r} repeats in more than 8 places; use several images, or globs"),
    ("(?x) a", "'(?x) a': the flag x is not supported"),
]


@pytest.mark.parametrize(("pattern", "message"), BAD_REGEXES)
def test_bad_regexes(pattern: str, message: str) -> None:
    """A pattern that does not compile, or could keep the daemon busy for ever, is refused."""
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Regex.parse(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*b",
        "(a|a)*b",
        "(a|ab)+c",
        "((a+)b?)+c",
        "(?:[a-z]+)*1",
        "(a{1,9}){1,9}b",
        r"(\.[0-9.]+)*x",
        r"(-?[a-z]+)*1",
    ],
)
def test_explosive_regexes(pattern: str) -> None:
    """Repetitions whose parts can match the same text in many ways are refused, however they are written."""
    with pytest.raises(ValueError, match="can take for ever"):
        Regex.parse(pattern)


@pytest.mark.parametrize("pattern", [r"(\.[0-9]+)*x", r"([.-][a-z]+)*1", r"(?:-[0-9a-z]+)+_", r"(_\d+){1,9}x"])
def test_harmless_repetition_is_fast(pattern: str) -> None:
    """The repetitions that are let through end at once on the longest tag that almost matches."""
    regex = Regex.parse(pattern)
    start = time.perf_counter()
    for text in (".1" * 64, ".11111111" * 14, "-a" * 64, "-aaaaaaaaaaaaaaaa" * 7, "_1" * 64):
        assert not regex.matches(text)
    assert time.perf_counter() - start < 1


ORDERED = [
    "bookworm-20240101",
    "bookworm-20240211",
    "latest",
    "stable",
    "1.0.dev3",
    "1.0a1",
    "1.0b2",
    "1.0-rc1",
    "1.0-rc.10",
    "1.0",
    "1.0-slim",
    "1.0.1",
    "v1.9",
    "1.10",
    "1.10-alpine",
    "2-alpha",
    "2",
    "20240101",
]


def test_natural_order() -> None:
    """Numbers compare as numbers, pre-releases before their release, variants after it, words before versions."""
    shuffled = random.Random(1).sample(ORDERED, len(ORDERED))
    assert sorted(shuffled, key=natural_key) == ORDERED


@pytest.mark.parametrize(
    ("keep", "chosen"),
    [(None, ["4.10", "4.9", "4.9-rc1"]), (1, ["4.10"]), (2, ["4.10", "4.9"]), (9, ["4.10", "4.9", "4.9-rc1"])],
)
def test_keep(keep: int | None, chosen: list[str]) -> None:
    """`keep` takes the newest of what the filter leaves."""
    assert list(select(["4.9-rc1", "5.0", "4.9", "4.10"], Globs.parse(["4.*"]), keep)) == chosen


tag_texts = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True) | st.sampled_from(ORDERED)
filters = st.sampled_from(
    [
        Globs.parse(["*"]),
        Globs.parse(["*1*", "!*a*"]),
        Semver.parse("*"),
        Semver.parse(">=1.0.0-rc1"),
        Regex.parse(".*"),
    ]
)


@given(st.lists(tag_texts), filters, st.none() | st.integers(1, 5), st.randoms(use_true_random=False))
def test_selection(tags: list[str], tag_filter: TagFilter, keep: int | None, chance: random.Random) -> None:
    """The answer is the same in whatever order the registry lists its tags, and holds wanted tags only, once each."""
    chosen = select(tags, tag_filter, keep)
    assert chosen == select(chance.sample(tags, len(tags)), tag_filter, keep)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(tags)
    assert all(tag_filter.matches(tag) for tag in chosen)
    assert chosen == select(tags, tag_filter)[:keep]


@given(st.tuples(*[st.integers(0, 99)] * 3), st.tuples(*[st.integers(0, 99)] * 3))
def test_semver_order_is_number_order(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """For full versions, ranges and the order of tags agree with the order of numbers."""
    one, other = ".".join(map(str, first)), ".".join(map(str, second))
    assert Semver.parse(f">={other}").matches(one) == (first >= second)
    assert Semver.parse(f"<{other}").matches(one) == (first < second)
    assert (natural_key(one) < natural_key(other)) == (first < second)


@given(st.text(max_size=30))
def test_parsers_refuse_with_value_error(text: str) -> None:
    """Whatever the text, a parser returns a filter or raises ValueError."""
    for parse in (lambda: Globs.parse([text]), lambda: Semver.parse(text), lambda: Regex.parse(text)):
        try:
            parse().matches("1.0")
        except ValueError as error:
            assert str(error)  # noqa: PT017 -- both outcomes are right


def test_is_pattern() -> None:
    """Globs in the short form are told from tags by the characters that tags can't have."""
    assert [tag for tag in ("12*", "1.?", "[12]", "12.5", "latest") if is_pattern(tag)] == ["12*", "1.?", "[12]"]
