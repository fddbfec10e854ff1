"""What is told to strangers, looked at for what a stranger could have put into it: pages, feeds, badges."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser

from cvmfs_sync.pages.texts import visible

__all__ = ["Page", "require_harmless", "require_harmless_badge", "require_harmless_feed"]

_VOID = {"meta", "link", "input", "img", "path", "br"}
_TAGS = set(
    re.findall(
        r"\w+",
        "html head meta title link script body a header div svg path span nav ul li ol main footer p h1 h2 h3 form "
        "label input button details summary select option dl dt dd code bdi time section table caption thead tbody tr "
        "th td pre strong meter progress img noscript",
    )
)


class Page(HTMLParser):
    """A page in pieces; the end tags have to fit.

    Attributes:
        tags: Each element with its attributes, in order.
        text: All of it.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> Iterator[dict[str, str]]:
        """The attributes of each element of this kind."""
        return (attributes for name, attributes in self.tags if name == tag)

    def words(self) -> str:
        """The text with single blanks."""
        return " ".join(self.text.split())


# Of this site, to a place on the page, or to another site: never an address that runs something.
_ADDRESS = re.compile(r"(?:https?:/)?/[^/]|/\Z|#main\Z|(?:\.\./)?[a-z0-9][a-z0-9./_-]*\Z")
_ATOM = "feed id title updated published author name link entry category summary generator"
_SVG = "svg title clipPath rect g text"


def require_harmless(html: str) -> Page:
    """The page, in which nothing runs, is loaded from elsewhere, or can't be seen.

    Raises:
        AssertionError: With what could do harm.
    """
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= _TAGS
    for tag, attributes in page.tags:
        assert not {each for each in attributes if each.startswith("on") or each in {"style", "srcdoc"}}, (
            tag,
            attributes,
        )
        for name in ("href", "src", "action"):
            address = attributes.get(name)
            assert address is None or _ADDRESS.match(address), (tag, address)
            assert tag == "a" or not (address or "").startswith("http"), (tag, address)
    policies = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert [each.partition(";")[0] for each in policies] == ["default-src 'none'"]
    assert "unsafe" not in policies[0]
    assert visible(html.replace("\n", "")) == html.replace("\n", "")
    return page


def require_harmless_feed(content: bytes) -> ET.Element:
    """The feed, which is well-formed, of Atom's elements alone, and leads to pages only.

    Raises:
        AssertionError: With what could do harm.
        ParseError: It is not well-formed.
    """
    root = ET.fromstring(content)
    assert {element.tag for element in root.iter()} <= {
        f"{{http://www.w3.org/2005/Atom}}{name}" for name in _ATOM.split()
    }
    _require_visible(root)
    for element in root.iter():
        address = element.attrib.get("href")
        assert address is None or _ADDRESS.match(address), address
        assert element.attrib.get("type") in {None, "text", "text/html", "application/atom+xml"}
    return root


def require_harmless_badge(content: bytes) -> ET.Element:
    """The badge, which is well-formed, draws, and does nothing else.

    Raises:
        AssertionError: With what could do harm.
        ParseError: It is not well-formed.
    """
    root = ET.fromstring(content)
    assert {element.tag for element in root.iter()} <= {
        f"{{http://www.w3.org/2000/svg}}{name}" for name in _SVG.split()
    }
    _require_visible(root)
    for element in root.iter():
        assert not {name for name in element.attrib if name.startswith("on") or "href" in name or name == "style"}
    return root


def _require_visible(root: ET.Element) -> None:
    for element in root.iter():
        for text in (element.text or "", *element.attrib.values()):
            assert all(visible(line) == line for line in text.split("\n")), text
