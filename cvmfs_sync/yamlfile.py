"""YAML files that people write: data with line numbers, and every mistake in plain words.

Bytes go in; plain data (dict, list, str, int, float, bool, None, date) comes out with the line of each value, or
problems that name file, line and what to do. `validate` then holds the data against a pydantic model and words the
model's errors the same way. Only what a hand-written list or configuration needs is read: no aliases and merge keys
(the usual way to make a small file expand without end), no tags, no second document, and keys are always text.
Nothing here knows what a configuration or an image list is, and only `read` touches the disk.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

__all__ = [
    "MAX_BYTES",
    "Document",
    "KeyPath",
    "Problem",
    "describe",
    "did_you_mean",
    "dotted",
    "line_of",
    "parse",
    "plain_scalar",
    "read",
]

# A list of ten thousand images in the long form; the real ones have some hundreds.
MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 32

KeyPath = tuple[str | int, ...]

# libyaml where PyYAML was built with it: the pure loader takes a second for each 200 kB.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.resolver.Resolver()
_STR_TAG = "tag:yaml.org,2002:str"
# YAML 1.2.2, section 5.1, without what U+FEFF and the other line breaks would do to line numbers.
_NOT_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_QUOTE = 'put a text that begins with {0!r} in quotes, for example "{0}-slim"'


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file, or in an environment variable.

    Attributes:
        file: The file as its user named it, or the variable's name.
        line: From 1; None where there is no line.
        where: The keys that lead to the value, joined by dots; empty for the whole document.
        column: From 1; known for mistakes in the YAML itself only.
    """

    file: str
    line: int | None
    where: str
    message: str
    severity: Literal["error", "warning"] = "error"
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return ": ".join(part for part in (place, self.where, self.message) if part)


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says.

    Attributes:
        data: None for an empty file, and for one that is not YAML: look at `problems` first.
        lines: The line of each value, by the keys and indices that lead to it; a mapping's value counts from its key.
        problems: Mistakes in the YAML itself. `data` holds the first value of a duplicate key, and None for a word that
            looks like a date or number and is none.
    """

    data: Any
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...] = ()


def read(path: Path, file: str | None = None) -> Document:
    """Read a file, at most `MAX_BYTES` and one byte of it.

    Args:
        path: The file.
        file: Its name in messages; the path if None.

    Raises:
        OSError: When it can't be read.
    """
    with path.open("rb") as stream:
        return parse(stream.read(MAX_BYTES + 1), file or str(path))


def parse(content: bytes | str, file: str) -> Document:
    """Read YAML; all mistakes come back as problems, nothing is raised.

    Args:
        content: One document. Bytes are UTF-8, with or without a byte order mark.
        file: Its name in messages.
    """
    if len(content) > MAX_BYTES:
        return _broken(Problem(file, None, "", f"larger than {MAX_BYTES} bytes: this is no hand-written file"))
    if isinstance(content, bytes):
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = content[: error.start]
            line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
            message = f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
            return _broken(Problem(file, line, "", message, column=column))
    else:
        text = content
    if bad := _NOT_PRINTABLE.search(text):
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        message = f"character U+{ord(bad[0]):04X} is not allowed in YAML; remove it"
        return _broken(Problem(file, line, "", message, column=column))
    composer = _Composer(text, file)
    try:
        data = composer.document()
    except _Stop as stop:
        return _broken(*composer.problems, stop.problem)
    except yaml.MarkedYAMLError as error:
        return _broken(*composer.problems, _syntax(error, text, file))
    return Document(data, composer.lines, tuple(composer.problems))


def plain_scalar(text: str) -> Any:
    """What YAML makes of an unquoted word: a number, true or false, null, a date, or the text itself.

    Raises:
        ValueError: For what looks like a date or number and is none.
    """
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))
    if tag == _STR_TAG or text in ("<<", "="):
        return text
    # A new constructor each time: it remembers every node that it ever made.
    return yaml.constructor.SafeConstructor().construct_object(yaml.ScalarNode(tag, text))


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of a value, or of the nearest one around it that has a line."""
    for length in range(len(path), -1, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def dotted(path: KeyPath) -> str:
    """Keys as one printable line."""
    return ".".join(str(part) if str(part).isprintable() else repr(part) for part in path)


def describe(value: object) -> str:
    """A found value in words, as short as fits a message."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {_shorten(repr(value))}"
        case str():
            return f"the text {_shorten(repr(value))}"
        case datetime():
            return f"the time {value}"
        case date():
            return f"the date {value}"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping of keys to values"
        case _:
            return _shorten(repr(value))


def did_you_mean(word: str, candidates: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'x'?` for the candidate that is close to `word`, with the prefix that all have, or nothing."""
    close = difflib.get_close_matches(word[:100], list(candidates), n=1)
    return f"; did you mean {prefix + close[0]!r}?" if close else ""


class _Stop(Exception):
    """The document can't be read further."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class _Composer:
    """Data out of parser events.

    PyYAML's own composer recurses without a bound and expands aliases; its constructor forgets lines and takes the last
    of two equal keys without a word.
    """

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[Problem] = []
        # Not yaml.Event: the stubs say that an event may have no mark, and a parser's always has one.
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)

    def document(self) -> Any:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        data = self._value(next(self._events), ())
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._stop(after, (), "a second document begins here; keep one for each file")
        return data

    def _value(self, event: Any, path: KeyPath) -> Any:
        self.lines.setdefault(path, _line(event))
        if len(path) > MAX_DEPTH:
            self._stop(event, path[:3], f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            self._stop(event, path, f"aliases are not supported; {_QUOTE.format('*')}, or write the value out here")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", _STR_TAG):
            self._stop(event, path, f"tags like {_shorten(tag)!r} are not supported; {_QUOTE.format('!')}")
        match event:
            case yaml.ScalarEvent():
                return self._scalar(event, path)
            case yaml.SequenceStartEvent():
                return list(self._items(path))
            case _:
                return self._mapping(path)

    def _items(self, path: KeyPath) -> Iterator[Any]:
        index = 0
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._value(event, (*path, index))
            index += 1

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._stop(event, path, "a key must be plain text")
            key = event.value
            here = (*path, key)
            if key == "<<" and event.implicit[0]:
                self._stop(event, path, "merge keys (<<) are not supported; write the keys out here")
            if key in result:
                message = f"this key stands twice; the first is on line {self.lines[here]}"
                self._report(event, here, message)
                lines = self.lines
                self.lines = {}
                self._value(next(self._events), here)
                self.lines = lines
                continue
            self.lines[here] = _line(event)
            result[key] = self._value(next(self._events), here)
        return result

    def _scalar(self, event: Any, path: KeyPath) -> Any:
        if event.tag is not None or not event.implicit[0]:
            return event.value
        try:
            return plain_scalar(event.value)
        except (ValueError, OverflowError) as error:
            self._report(event, path, f"{_shorten(repr(event.value))} is not valid: {error}")
            return None

    def _problem(self, event: Any, path: KeyPath, message: str) -> Problem:
        mark = event.start_mark
        return Problem(self.file, mark.line + 1, dotted(path), message, column=mark.column + 1)

    def _report(self, event: Any, path: KeyPath, message: str) -> None:
        self.problems.append(self._problem(event, path, message))

    def _stop(self, event: Any, path: KeyPath, message: str) -> typing.NoReturn:
        raise _Stop(self._problem(event, path, message))


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _broken(*problems: Problem) -> Document:
    return Document(None, {(): 1}, problems)


def _syntax(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    """A scanner's or parser's error in words for somebody who does not know YAML's grammar."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Problem(file, None, "", f"not YAML: {error.problem or error.context}")
    rows = text.splitlines() or [""]
    row = rows[mark.line] if mark.line < len(rows) else ""
    at = row[mark.column : mark.column + 1]
    indent = row[: len(row) - len(row.lstrip())]
    said = f"{error.context or ''} {error.problem or ''}"
    if at == "\t" or "\t" in indent:
        message = "a tab indents here; YAML takes spaces only"
    elif "alias" in said:
        message = _QUOTE.format("*")
    elif "anchor" in said:
        message = _QUOTE.format("&")
    elif "tag" in said:
        message = _QUOTE.format("!")
    elif at in ("@", "`", "%"):
        message = _QUOTE.format(at)
    elif "mapping values are not allowed" in said:
        message = "a second ': ' on one line; put the value in quotes, or begin a new line for the key"
    elif "escape" in said:
        mark = error.context_mark or mark
        message = "in double quotes a backslash begins an escape, and this is none; put the value in single quotes"
    elif "quoted scalar" in said:
        # Not where the search for its end was given up, which mostly is the end of the file.
        mark = error.context_mark or mark
        message = "this quotation mark is never closed"
    elif "flow node" in said:
        message = "a bracket is not closed, or a comma stands in the wrong place"
    elif "flow sequence" in said or "flow mapping" in said:
        start = f" on line {error.context_mark.line + 1}" if error.context_mark else ""
        message = f"the bracket{start} is not closed, or a comma is missing"
    elif "block mapping" in said or "block collection" in said or "simple key" in said or "document start" in said:
        message = (
            "indentation or a ':' is wrong here, or on the line before; what belongs together begins in one column"
        )
    else:
        message = f"not YAML: {error.problem or error.context}"
    return Problem(file, mark.line + 1, "", message, column=mark.column + 1)


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
