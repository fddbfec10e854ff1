"""JSON documents from outside, read strictly.

Bytes and the name that messages have for them go in, plain values of the expected kinds come out, or `InvalidManifest`.
What readers have disagreed about is refused: keys that stand twice, other encodings than UTF-8, halves of characters.
What the fields mean is not known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cvmfs_sync.errors import InvalidManifest

__all__ = ["MAX_DOCUMENT", "field_of", "list_of", "parse_json", "parse_object"]

# The floor that the distribution-spec sets for manifests; configurations are held to the same.
MAX_DOCUMENT = 4 * 1024 * 1024
# What may be half a character, which can be written to no file.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
T = TypeVar("T")


def parse_json(content: bytes, what: str) -> Any:
    """Read a JSON document of bounded size in which no key stands twice.

    Raises:
        InvalidManifest: It is none.
    """
    if len(content) > MAX_DOCUMENT:
        raise InvalidManifest(f"{what}: too large", found=f"{len(content)} bytes", expected=f"at most {MAX_DOCUMENT}")
    try:
        # Left to itself, `json` takes UTF-16 for JSON, too, which no other reader does.
        document = json.loads(content.decode(), object_pairs_hook=_unique)
        if _SURROGATE.search(content):
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidManifest(f"{what}: not JSON", found=str(error)[:200]) from None
    return document


def parse_object(content: bytes, what: str) -> Mapping[str, Any]:
    """Read a document like `parse_json`, which has to be an object."""
    document = parse_json(content, what)
    if not isinstance(document, dict):
        raise InvalidManifest(f"{what}: not a JSON object", found=type(document).__name__)
    return document


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return document


_MISSING: Any = object()


def field_of(item: Mapping[str, Any], key: str, kind: type[T], what: str, default: T = _MISSING) -> T:
    """The value at `key`; null counts as missing, as Go's encoder writes it for empty values.

    Raises:
        InvalidManifest: It is of another kind, or missing without a default.
    """
    value = item.get(key)
    if value is None and default is not _MISSING:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "nothing" if value is None else type(value).__name__
        raise InvalidManifest(f"{what}: field {key!r}", found=found, expected=kind.__name__)
    return value


def list_of(item: Mapping[str, Any], key: str, kind: type[T], what: str) -> tuple[T, ...]:
    """The values of the list at `key`, all of one kind; missing and null are the empty list.

    Raises:
        InvalidManifest: It is no such list.
    """
    values = field_of(item, key, list, what, default=[])
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidManifest(
                f"{what}: field {key!r}", found=f"a list with {type(value).__name__}", expected=f"{kind.__name__}s"
            )
    return tuple(values)
