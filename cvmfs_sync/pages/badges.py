"""A badge for an image: one line of SVG that a README elsewhere shows.

What is known of an image goes in, the text of an SVG document comes out. It loads nothing and runs nothing; its colours
only repeat what its words say. Which widths letters have depends on the reader's fonts, so the text is told how wide to
be.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import datetime

from cvmfs_sync.pages.texts import ago, visible
from cvmfs_sync.view.documents import Summary

__all__ = ["Badge", "badge", "draw"]

_SVG = "http://www.w3.org/2000/svg"
_LABEL = "cvmfs"
# Darker than others' badges: white letters of this size need a contrast of 4.5 (WCAG 2.2, 1.4.3).
_GREEN, _ORANGE, _RED, _GREY, _BLUE, _DARK = "#1a7f37", "#9a6700", "#b3261e", "#57606a", "#0757ba", "#24292f"
_HEIGHT, _PADDING = 20, 7
# Advance widths of Verdana at 11 pixels, about; the others are 7.
_WIDTHS = {
    **dict.fromkeys("ijlI|.,:;'! ", 3.9), **dict.fromkeys("frt()[]-/", 4.7), **dict.fromkeys("mwMW%", 10.6),
    **dict.fromkeys("ABCDEGHNOQRUV", 7.9),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Badge:
    """What a badge says.

    Attributes:
        text: In a few words.
        colour: Behind them.
    """

    text: str
    colour: str


def badge(image: Summary | None, now: datetime | None) -> Badge:
    """What to say of an image.

    Args:
        image: None if nobody has asked for it.
        now: Times are told as seen from it; None for a badge that is kept, whose times are exact.
    """
    if image is None:
        return Badge("not asked for", _GREY)
    there = None
    if image.digest is not None:
        when = f"published {_when(image.published_at, now)}" if image.published_at else "published"
        algorithm, _, value = image.digest.partition(":")
        there = f"{when}, {algorithm[:10]}:{value[:8]}"
    match image.state:
        case "published":
            return Badge(there or "published", _GREEN)
        case "failed":
            failing = f"failing since {_when(image.failure.since, now, since=True)}" if image.failure else "failing"
            return Badge(f"update {failing}; {there}", _ORANGE) if there else Badge(failing, _RED)
        case "pending":
            return Badge(f"update waits; {there}", _BLUE) if there else Badge("waiting to be published", _BLUE)
        case "blocked":
            return Badge("blocked by the operators", _RED)
        case "unlisted":
            return Badge(f"no longer asked for; {there}", _GREY)


def _when(at: datetime, now: datetime | None, *, since: bool = False) -> str:
    # "since 2 hours ago" is no English.
    return f"{at:%Y-%m-%d %H:%M}Z" if now is None or since else ago(at, now)


def draw(told: Badge) -> str:
    """The SVG document."""
    said = visible(told.text)
    left, right = (_width(text) + 2 * _PADDING for text in (_LABEL, said))
    width = left + right
    sentence = f"{_LABEL}: {said}"
    size = {"width": str(width), "height": str(_HEIGHT), "viewBox": f"0 0 {width} {_HEIGHT}"}
    svg = ET.Element("svg", {"xmlns": _SVG, **size, "role": "img", "aria-label": sentence})
    ET.SubElement(svg, "title").text = sentence
    clip = ET.SubElement(svg, "clipPath", id="corners")
    ET.SubElement(clip, "rect", width=str(width), height=str(_HEIGHT), rx="3")
    fields = ET.SubElement(svg, "g", {"clip-path": "url(#corners)"})
    ET.SubElement(fields, "rect", width=str(left), height=str(_HEIGHT), fill=_DARK)
    ET.SubElement(fields, "rect", x=str(left), width=str(right), height=str(_HEIGHT), fill=told.colour)
    letters = ET.SubElement(
        svg, "g", {"fill": "#fff", "font-family": "Verdana,DejaVu Sans,Geneva,sans-serif", "font-size": "11"}
    )
    for at, text in ((0, _LABEL), (left, said)):
        line = ET.SubElement(
            letters, "text", x=str(at + _PADDING), y="14", textLength=str(_width(text)), lengthAdjust="spacingAndGlyphs"
        )
        line.text = text
    return ET.tostring(svg, encoding="unicode") + "\n"


def _width(text: str) -> int:
    return round(sum(_WIDTHS.get(character, 7.0) for character in text))
