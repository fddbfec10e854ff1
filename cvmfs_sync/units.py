"""Durations, sizes, crontab lines and addresses, as people write them in a configuration.

A text goes in, a value comes out, or a `ValueError` that says what was expected. Nothing here knows which setting it
reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from cvmfs_sync.yamlfile import describe

__all__ = ["DURATION_PATTERN", "Address", "Crontab", "format_duration", "human_size", "parse_duration", "parse_size"]

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
DURATION_PATTERN = "".join(f"(?:([0-9]{{1,6}}){unit})?" for unit in _UNITS)
_DURATION = re.compile(DURATION_PATTERN)
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_duration(text: object) -> timedelta:
    """Read `15m`, `2h30m`, `30d`: numbers with the units w, d, h, m, s, the larger ones first.

    Raises:
        ValueError: For any other form, and for a number without a unit.
    """
    if isinstance(text, timedelta):
        return text
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[0] == "":
        unit = "; add a unit: s, m, h, d or w" if isinstance(text, int) else ""
        raise ValueError(f"expected a duration such as 90s, 15m, 2h30m or 30d, found {describe(text)}{unit}")
    return timedelta(**{name: int(number or 0) for name, number in zip(_UNITS.values(), match.groups(), strict=True)})


def format_duration(duration: timedelta) -> str:
    """A duration as `parse_duration` reads it."""
    rest, text = int(duration.total_seconds()), ""
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, seconds)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_size(value: object) -> int:
    """Read a number, or one with a binary unit: `10G` is 10 * 1024**3, and so are `10GB` and `10GiB`.

    Raises:
        ValueError: For any other form, and for negative numbers.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected a whole number, or one with K, M, G or T (powers of 1024), found {describe(value)}")
    return int(match[1]) * int(1024 ** " KMGT".index(match[2].upper() or " "))


def human_size(size: int) -> str:
    """A number of bytes with a binary unit."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


@dataclass(frozen=True, slots=True)
class Crontab:
    """A crontab line, its five fields in the form that schedulers agree on.

    Days of the week are names, because 0 is Sunday in crontab(5) and Monday in APScheduler.

    Attributes:
        text: As it was written.
    """

    text: str
    minute: str
    hour: str
    day: str
    month: str
    day_of_week: str

    @classmethod
    def parse(cls, text: str) -> Crontab:
        """Read five fields as crontab(5) has them: `*`, numbers, names, ranges, lists, steps.

        Raises:
            ValueError: With the field that is wrong.
        """
        words = text.lower().split()
        if len(words) != len(_CRON_FIELDS):
            raise ValueError(
                "expected an interval such as 15m, or a crontab line of five fields such as '30 3 * * *', "
                f"found {describe(text)}"
            )
        fields = []
        for word, (name, low, high, names) in zip(words, _CRON_FIELDS, strict=True):
            numbers = _cron_numbers(word, name, low, high, names)
            days = name == "day of week" and word != "*"
            fields.append(",".join(_DAYS[day] for day in sorted({day % 7 for day in numbers})) if days else word)
        return cls(text, *fields)

    def __str__(self) -> str:
        return self.text


_MONTHS = ("", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
_CRON_ITEM = re.compile(r"(?:\*|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?")


def _cron_numbers(field: str, name: str, low: int, high: int, names: tuple[str, ...]) -> list[int]:
    """All numbers that one field of a crontab line means."""
    wrong = ValueError(f"the {name} field {field!r} of the crontab line is not * or within {low}-{high}")
    numbers: list[int] = []
    for item in field.split(","):
        match = _CRON_ITEM.fullmatch(item)
        if match is None:
            raise wrong
        first, last, step = match.groups()
        try:
            start = low if first is None else names.index(first) if first.isalpha() else int(first)
            end = names.index(last) if last and last.isalpha() else int(last) if last else start
        except ValueError:
            raise wrong from None
        if first is None or (step and not last):
            end = min(high, 6) if name == "day of week" else high
        if not low <= start <= end <= high or (step and int(step) == 0):
            raise wrong
        numbers.extend(range(start, end + 1, int(step or 1)))
    return numbers


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: object) -> Address:
        """Read `host:port`; an IPv6 address stands in brackets.

        Raises:
            ValueError: For any other form.
        """
        match = (
            re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text) if isinstance(text, str) else None
        )
        if match is None or int(match[2]) > 65535:
            raise ValueError(f"expected host:port such as 127.0.0.1:9100, found {describe(text)}")
        return cls(match[1].strip("[]"), int(match[2]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
