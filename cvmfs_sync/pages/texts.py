"""How texts of strangers, times, sizes and digests are shown to people.

A value goes in, a text that is safe to read comes out; where that is HTML, it is `Markup`, and everything in it is
escaped. Labels, names and descriptions are written by whoever builds images or asks for them: they may hold markup, a
megabyte, or characters that turn what stands beside them around.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from markupsafe import Markup

__all__ = ["ago", "amount", "count", "duration", "exact", "short_digest", "shown", "size", "visible", "web_address"]

_SHOWN = 400
# U+200C and U+200D join or separate letters of Persian, Hindi and others, and emoji: words need them.
_NEEDED = "\u200c\u200d\u00ad"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_STEPS = (("year", 365 * 86400), ("month", 30 * 86400), ("day", 86400), ("hour", 3600), ("minute", 60))


def visible(text: str) -> str:
    """The text with a symbol for each character that shows nothing, or that changes the direction of others."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # control pictures
    if code == 0x7F:
        return "\u2421"
    if character not in _NEEDED and unicodedata.category(character) in _HIDDEN:
        return f"\u27e8U+{code:04X}\u27e9"
    return character


def shown(text: str | None, limit: int = _SHOWN) -> Markup:
    """A stranger's text as HTML, apart from the direction of what stands around it; a long one with its length.

    Args:
        text: As it was written.
        limit: Characters that are shown.
    """
    if not text:
        return Markup("")
    short = Markup("<bdi>{}</bdi>").format(visible(text[:limit]))
    if len(text) <= limit:
        return short
    return short + Markup('<span class="cut">… ({} characters in all)</span>').format(count(len(text)))


def web_address(text: str | None) -> str | None:
    """The text, if it is an address that may become a link: of http or https, and no more to it than meets the eye."""
    if not text or len(text) > 2000 or visible(text) != text or any(each.isspace() or each in '\\"<>' for each in text):
        return None
    try:
        parts = urlsplit(text)
        host, user = parts.hostname, parts.username
    except ValueError:
        return None
    return text if parts.scheme in {"http", "https"} and host and user is None else None


def count(number: int) -> str:
    """A whole number with its thousands set apart."""
    return f"{number:,}"


def size(number: int | None) -> str:
    """Bytes, in the unit that makes them easy to read: powers of 1000, as disks and networks have them."""
    if number is None:
        return "not known"
    if number < 1000:
        return f"{number} B"
    value = float(number)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:,.0f} {unit}" if value >= 99.95 else f"{value:.1f} {unit}"


def amount(number: int, unit: str) -> str:
    """So many bytes, or images."""
    return size(number) if unit == "bytes" else f"{count(number)} {unit}"


def duration(seconds: float) -> str:
    """Seconds, roughly: `less than a minute`, `4 minutes`, `2 hours`."""
    for unit, length in _STEPS:
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number > 1 else ''}"
    return "less than a minute"


def ago(when: datetime, now: datetime) -> str:
    """When that was or will be, seen from now."""
    distance = now - when
    if abs(distance) < timedelta(minutes=1):
        return "just now" if distance >= timedelta() else "in a moment"
    words = duration(abs(distance).total_seconds())
    return f"{words} ago" if distance > timedelta() else f"in {words}"


def exact(when: datetime) -> str:
    """The time to the minute, for people."""
    return f"{when:%Y-%m-%d %H:%M} UTC"


def short_digest(digest: str | None) -> str:
    """Enough of a digest to tell it from others."""
    if not digest:
        return "none"
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:16]}:{value[:12]}"
