"""Hand-written YAML: data with lines, and one clear message for each mistake."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from cvmfs_sync import schema, yamlfile
from cvmfs_sync.schema import StrictModel
from cvmfs_sync.yamlfile import Document, Problem

LOADERS = sorted({yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)}, key=str)

BROKEN = {
    "tab": ("a:\n\tb: 1\n", "f:2:1: a tab indents here; YAML takes spaces only"),
    "a backslash in double quotes": (
        'a: "v\\d+"\n',
        "f:1:4: in double quotes a backslash begins an escape, and this is none; put the value in single quotes",
    ),
    "tab after spaces": ("a:\n  b: 1\n  \tc: 1\n", "f:3:3: a tab indents here; YAML takes spaces only"),
    "duplicate key": ("a: 1\nb: 2\na: 3\n", "f:3:1: a: this key stands twice; the first is on line 1"),
    "duplicate key inside": (
        "x:\n  - {k: 1,\n     k: 2}\n",
        "f:3:6: x.0.k: this key stands twice; the first is on line 2",
    ),
    "alias": (
        "a: &x [1]\nb: *x\n",
        (
            "f:2:4: b: aliases are not supported; put a text that begins with '*' in quotes, for example \"*-slim\", "
            "or write the value out here"
        ),
    ),
    "unquoted glob": (
        "tags: [*.1]\n",
        "f:1:9: put a text that begins with '*' in quotes, for example \"*-slim\"",
    ),
    "unquoted exclusion": (
        "tags:\n  - !*-rc*\n",
        (
            "f:2:5: tags.0: tags like '!*-rc*' are not supported; put a text that begins with '!' in quotes, "
            'for example "!-slim"'
        ),
    ),
    "python object": (
        "a: !!python/object/apply:os.system [id]\n",
        (
            "f:1:4: a: tags like 'tag:yaml.org,2002:python/object/apply:os.system' are not supported; "
            "put a text that begins with '!' in quotes, for example \"!-slim\""
        ),
    ),
    "merge key": (
        "a:\n  <<: {b: 1}\n",
        "f:2:3: a: merge keys (<<) are not supported; write the keys out here",
    ),
    "list as key": ("a:\n  ? [1, 2]\n  : 3\n", "f:2:5: a: a key must be plain text"),
    "two documents": ("a: 1\n---\nb: 2\n", "f:2:1: a second document begins here; keep one for each file"),
    "no such date": ("a: 2027-02-30\n", "f:1:4: a: '2027-02-30' is not valid: day is out of range for month"),
    "two colons": (
        "a: b: c\n",
        "f:1:5: a second ': ' on one line; put the value in quotes, or begin a new line for the key",
    ),
    "control character": ("a: b\nc: \x07\n", "f:2:4: character U+0007 is not allowed in YAML; remove it"),
    "NUL": ("\0", "f:1:1: character U+0000 is not allowed in YAML; remove it"),
    "Latin-1": (b"a: 1\nb: caf\xe9\n", "f:2:7: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), "f:1:1: byte 0xff is not UTF-8; save the file as UTF-8"),
    "open bracket": ("a: [1, 2\nb: 3\n", "f:2:2: the bracket on line 1 is not closed, or a comma is missing"),
    "reserved": ("a: @b\n", "f:1:4: put a text that begins with '@' in quotes, for example \"@-slim\""),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_yaml(monkeypatch: pytest.MonkeyPatch, loader: type, content: Any, message: str) -> None:
    """A mistake is named with file, line, column and what to do, with libyaml and without."""
    monkeypatch.setattr(yamlfile, "_Loader", loader)
    assert [str(problem) for problem in yamlfile.parse(content, "f").problems] == [message]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "content",
    [
        'a: "b\n',
        "a: 'b\n",
        "a: {b: 1\n",
        "a:\n  b\n c: d\n",
        "- a\nb: c\n",
        "a: %b\n",
        "a: [",
        "a: [b, , c]",
        "a\nb: c\n",
        "&",
    ],
)
def test_no_jargon(monkeypatch: pytest.MonkeyPatch, loader: type, content: Any) -> None:
    """No message speaks of tokens, scalars or collections, with libyaml and without."""
    monkeypatch.setattr(yamlfile, "_Loader", loader)
    (problem,) = yamlfile.parse(content, "f").problems
    assert problem.line is not None
    assert not any(word in problem.message for word in ("token", "scalar", "collection", "not YAML"))


def test_all_duplicates_are_found() -> None:
    """A duplicate does not end the reading: the first value stands, and the next mistake is found, too."""
    document = yamlfile.parse("a: 1\na: {b: 2}\nc: 3\nc: 4\n", "f")
    assert document.data == {"a": 1, "c": 3}
    assert [problem.line for problem in document.problems] == [2, 4]
    assert ("a", "b") not in document.lines


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_depth_is_bounded(opening: str) -> None:
    """Deep nesting ends with a message, not with the interpreter's stack."""
    (problem,) = yamlfile.parse(opening * 900, "f").problems
    assert problem.message == "nested deeper than 32 levels"


def test_size_is_bounded(tmp_path: Path) -> None:
    """A file that is far too large for a person's is not read whole."""
    path = tmp_path / "big"
    with path.open("wb") as stream:
        stream.truncate(10 * yamlfile.MAX_BYTES)
    (problem,) = yamlfile.read(path).problems
    assert str(problem) == f"{path}: larger than 4194304 bytes: this is no hand-written file"


@pytest.mark.parametrize("content", ["", "\n# only a comment\n", "---\n", "null"])
def test_empty(content: Any) -> None:
    """A file without content is None, without a problem."""
    assert yamlfile.parse(content, "f") == Document(None, {(): 1})


def test_lines() -> None:
    """Each value has its line: a mapping's values count from their keys, items from where they begin."""
    document = yamlfile.parse("\ufeffa: 1\r\nb:\r\n  - x\r\n  - y: [1,\r\n      2]\r\n".encode(), "f")
    assert document.data == {"a": 1, "b": ["x", {"y": [1, 2]}]}
    assert document.lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 1): 4,
        ("b", 1, "y"): 4,
        ("b", 1, "y", 0): 4,
        ("b", 1, "y", 1): 5,
    }


def test_words() -> None:
    """Unquoted words become YAML's types, quoted ones and keys stay text."""
    document = yamlfile.parse("on: yes\n1: 2027-06-30\nq: '4.10'\nf: 4.10\ns: !!str 12\nn: ~\ne: ''\n", "f")
    assert document.problems == ()
    assert document.data == {
        "on": True,
        "1": date(2027, 6, 30),
        "q": "4.10",
        "f": 4.1,
        "s": "12",
        "n": None,
        "e": "",
    }


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_reads_what_pyyaml_writes(data: object) -> None:
    """Plain data survives PyYAML's writer and this reader, and every value has a line."""
    document = yamlfile.parse(yaml.safe_dump(data, allow_unicode=False), "f")
    assert document.problems == ()
    assert document.data == data


@given(st.binary(max_size=60) | st.text("a-:[]{}*&!|>'\"#%@`,? \n\t<=\\0", max_size=40))
@example(b"? ")
@example("? - a\n")
@example("a: !<")
def test_never_raises(content: Any) -> None:
    """Whatever the bytes, the answer is data or problems."""
    document = yamlfile.parse(content, "f")
    assert document.data is None or document.lines[()] == 1
    assert all(str(problem).startswith("f:") and "\n" not in str(problem) for problem in document.problems)


class Inner(StrictModel):
    """A model below another."""

    count: int = Field(default=1, ge=1, le=9)
    ratio: float = 0.5
    flag: bool = False


class Outer(StrictModel):
    """A model with every kind of member."""

    name: str
    inner: Inner = Inner()
    by_host: dict[str, Inner] = Field(default={})
    items: list[Inner] = Field(default=[])
    maybe: Inner | None = None


INVALID = {
    "missing": ("inner: {}", "f:1: the key 'name' is missing"),
    "unknown": (
        "name: x\nmayb: 1",
        "f:2: mayb: unknown key; expected one of name, inner, by_host, items, maybe; did you mean 'maybe'?",
    ),
    "unknown in a mapping": (
        "name: x\nby_host:\n  ghcr.io:\n    cuont: 1",
        "f:4: by_host.ghcr.io.cuont: unknown key; expected one of count, ratio, flag; did you mean 'count'?",
    ),
    "unknown in a list": (
        "name: x\nitems:\n- {}\n- {zzz: 1}",
        "f:4: items.1.zzz: unknown key; expected one of count, ratio, flag",
    ),
    "unknown in an optional": (
        "name: x\nmaybe: {flags: 1}",
        "f:2: maybe.flags: unknown key; expected one of count, ratio, flag; did you mean 'flag'?",
    ),
    "number for text": ("name: 4.10", "f:1: name: expected text, found the number 4.1; put it in quotes"),
    "date for text": ("name: 2027-01-01", "f:1: name: expected text, found the date 2027-01-01; put it in quotes"),
    "list for text": ("name: [a]", "f:1: name: expected text, found a list"),
    "nothing for text": ("name:", "f:1: name: expected text, found nothing"),
    "text for number": (
        "name: x\ninner: {count: '3'}",
        "f:2: inner.count: expected a whole number, found the text '3'",
    ),
    "fraction": ("name: x\ninner: {count: 1.5}", "f:2: inner.count: expected a whole number, found the number 1.5"),
    "true for number": ("name: x\ninner: {count: yes}", "f:2: inner.count: expected a whole number, found true"),
    "too small": ("name: x\ninner:\n  count: 0", "f:3: inner.count: must be at least 1, found the number 0"),
    "too large": ("name: x\ninner:\n  count: 10", "f:3: inner.count: must be at most 9, found the number 10"),
    "not a number": ("name: x\ninner: {ratio: .nan}", "f:2: inner.ratio: expected a number, found the number nan"),
    "text for flag": ("name: x\ninner: {flag: 'yes'}", "f:2: inner.flag: expected true or false, found the text 'yes'"),
    "text for list": ("name: x\nitems: a", "f:2: items: expected a list, found the text 'a'"),
    "list for mapping": ("name: x\ninner: []", "f:2: inner: expected a mapping of keys to values, found a list"),
    "text for document": ("hello", "f:1: expected a mapping of keys to values, found the text 'hello'"),
    "unprintable key": (
        'name: x\n"a\\nb": 1',
        "f:2: 'a\\nb': unknown key; expected one of name, inner, by_host, items, maybe",
    ),
}


@pytest.mark.parametrize(("content", "message"), INVALID.values(), ids=INVALID)
def test_invalid_data(content: Any, message: str) -> None:
    """The model's errors come with the right line and in plain words."""
    document = yamlfile.parse(content, "f")
    problems = schema.validate(Outer, document.data, document.lines, "f")
    assert isinstance(problems, tuple)
    assert [str(problem) for problem in problems] == [message]


def test_all_errors_by_line() -> None:
    """All errors are reported, in the order of their lines."""
    document = yamlfile.parse("items:\n- {x: 1}\nby_host: 3\nname: 1\n", "f")
    problems = schema.validate(Outer, document.data, document.lines, "f")
    assert isinstance(problems, tuple)
    assert [problem.line for problem in problems] == [2, 3, 4]


def test_part_of_a_document() -> None:
    """A part validated by itself keeps the whole document's lines and keys."""
    document = yamlfile.parse("a:\n- count: 1\n- count: x\n", "f")
    problems = schema.validate(Inner, document.data["a"][1], document.lines, "f", at=("a", 1))
    assert problems == (Problem("f", 3, "a.1.count", "expected a whole number, found the text 'x'"),)


def test_valid_data() -> None:
    """Valid data becomes the model's instance."""
    assert schema.validate(Inner, {"count": 3}, {}, "f") == Inner(count=3)


def test_read_missing_file() -> None:
    """A missing file is the caller's to explain."""
    with pytest.raises(FileNotFoundError):
        yamlfile.read(Path("/nonexistent/file"))
