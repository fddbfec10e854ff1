"""Columns of numbers and texts as bytes that compress well.

Values go in, column after column, and come out of the bytes in the same order. Numbers are little-endian, of the
narrowest type that holds their column, bytes of equal weight together; paths are written without what they share with
the one before. What the columns mean, and whether the bytes are those that were written, is for others to know.
"""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

__all__ = ["ColumnReader", "ColumnWriter"]

Value = TypeVar("Value")
_ANY_SIZE: Final = "*"
_CODES: Final = frozenset("BHIQbhiq")


class ColumnWriter:
    """Puts columns one after another."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def content(self) -> bytes:
        """The bytes so far."""
        return b"".join(self._parts)

    def number(self, value: int) -> None:
        """One number of any size."""
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self._parts += (bytes((len(raw),)), raw)

    def text(self, value: bytes) -> None:
        """One text."""
        self.number(len(value))
        self._parts.append(value)

    def numbers(self, values: Sequence[int]) -> None:
        """A column of the narrowest type; numbers beyond 64 bits, which no archive has, one by one."""
        self.number(len(values))
        low, high = min(values, default=0), max(values, default=0)
        bits = (max(high, -1 - low)).bit_length() + (low < 0)
        code = next((code for code in ("BHIQ" if low >= 0 else "bhiq") if bits <= 8 * array(code).itemsize), _ANY_SIZE)
        self._parts.append(code.encode())
        if code == _ANY_SIZE:
            for value in values:
                self.number(value)
        else:
            self._parts.append(_to_planes(array(code, values)))

    def table(self, values: Sequence[int]) -> None:
        """A column of few different values: those, and the number of each entry's."""
        numbers: dict[int, int] = {}
        positions = [numbers.setdefault(value, len(numbers)) for value in values]
        self.numbers(list(numbers))
        self.numbers(positions)

    def texts(self, values: Sequence[bytes]) -> None:
        """A column of texts."""
        self.numbers([len(value) for value in values])
        self._parts.extend(values)

    def paths(self, values: Sequence[bytes]) -> None:
        """A column of texts, of each only what the one before does not begin with."""
        shared = list(itertools.starmap(_common, itertools.pairwise(itertools.chain((b"",), values))))
        self.numbers(shared)
        self.texts([value[length:] for value, length in zip(values, shared, strict=True)])

    def present(self, values: Sequence[Value | None]) -> list[Value]:
        """Write which values are there at all, and return these."""
        where = [ordinal for ordinal, value in enumerate(values) if value]
        self.numbers([here - before for before, here in itertools.pairwise([0, *where])])
        return [value for value in values if value]


class ColumnReader:
    """Takes columns one after another; the counterpart of `ColumnWriter`, method by method.

    Bytes that were not written by it raise ValueError, IndexError or OverflowError, or give other values.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def _take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if count < 0 or self._at > len(self._content):
            raise ValueError(f"{count} bytes at {start} of {len(self._content)}")
        return self._content[start : self._at]

    def end(self) -> None:
        """Raise ValueError unless all has been taken."""
        if self._at != len(self._content):
            raise ValueError(f"{len(self._content) - self._at} bytes too many")

    def number(self) -> int:
        """One number."""
        return int.from_bytes(self._take(self._take(1)[0]), "little", signed=True)

    def text(self) -> bytes:
        """One text."""
        return self._take(self.number())

    def numbers(self) -> Sequence[int]:
        """A column of numbers."""
        count = self.number()
        code = self._take(1).decode()
        if code == _ANY_SIZE:
            return [self.number() for _ in range(count)]
        if code not in _CODES:
            raise ValueError(f"a column of type {code!r}")
        column = array(code)
        return _from_planes(column, self._take(count * column.itemsize))

    def table(self) -> list[int]:
        """A column of few different values; equal ones are one object."""
        # A list, because an array makes a new object of a number each time.
        different = list(self.numbers())
        return list(map(different.__getitem__, self.numbers()))

    def texts(self) -> list[bytes]:
        """A column of texts."""
        ends = list(itertools.accumulate(self.numbers(), initial=0))
        joined = self._take(ends[-1])
        return [joined[start:end] for start, end in itertools.pairwise(ends)]

    def paths(self) -> list[bytes]:
        """A column of paths."""
        paths = []
        path = b""
        for length, rest in zip(self.numbers(), self.texts(), strict=True):
            path = path[:length] + rest
            paths.append(path)
        return paths

    def present(self) -> Iterator[int]:
        """Positions of the values that are there."""
        return itertools.accumulate(self.numbers())


def _to_planes(column: array[int]) -> bytes:
    """All lowest bytes, then all second bytes, and so on: the upper ones of small numbers compress to nothing."""
    if sys.byteorder == "big":
        column.byteswap()
    raw = column.tobytes()
    return b"".join(raw[plane :: column.itemsize] for plane in range(column.itemsize))


def _from_planes(column: array[int], planes: bytes) -> array[int]:
    """Fill an empty column."""
    width = column.itemsize
    count = len(planes) // width
    raw = bytearray(len(planes))
    for plane in range(width):
        raw[plane::width] = planes[plane * count : (plane + 1) * count]
    column.frombytes(raw)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _common(one: bytes, other: bytes) -> int:
    """With how many bytes both begin. Comparing them as numbers is three times as fast as byte by byte."""
    length = min(len(one), len(other))
    different = int.from_bytes(one[:length], "big") ^ int.from_bytes(other[:length], "big")
    return length - (different.bit_length() + 7) // 8
