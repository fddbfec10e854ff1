"""The pages as texts: what they tell, what they leave out, and that no text of a stranger becomes markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from cvmfs_sync.pages import (
    Site,
    activity_page,
    catalogue_page,
    error_page,
    image_page,
    operations_page,
    static_files,
)
from cvmfs_sync.pages import texts as shown
from cvmfs_sync.view.documents import Cycle, Progress
from tests.support import documents
from tests.support.documents import HOSTILE, NOW
from tests.support.harmless import Page, require_harmless


class _Urls:
    """The addresses of a server, or of a site of files."""

    def __init__(self, queries: bool = True) -> None:
        self.queries = queries

    def catalogue(self, parameters: Mapping[str, str]) -> str:
        return "/?" + urlencode(parameters, errors="replace")

    def names(self) -> str | None:
        return None if self.queries else "/names"

    def image(self, link: str) -> str:
        return "/images/" + quote(link, errors="replace")

    def activity(self, before: int | None = None) -> str | None:
        return ("/activity" + (f"?before={before}" if before else "")) if self.queries else None

    def live(self) -> str | None:
        return "/activity/events" if self.queries else None

    def operations(self) -> str | None:
        return "/operations" if self.queries else None

    def feed(self, link: str | None = None) -> str | None:
        return "/feed.atom" if link is None else "/feeds/" + quote(link, errors="replace")

    def badge(self, link: str) -> str | None:
        return "/badges/" + quote(link, errors="replace")

    def api(self) -> str | None:
        return "/api/v1" if self.queries else None

    def static(self, name: str) -> str:
        return f"/static/{name}"

    def absolute(self, url: str) -> str | None:
        return f"https://images.example.org{url}"


SITE = Site(_Urls(), "unpacked.example.org", NOW)


def _pages_with(text: str) -> dict[str, str]:
    """Every page, with this text wherever there is room for one."""
    image = documents.hostile_image(text)
    event = image.events[0]
    operations = documents.operations(
        version=text, repository=text, root=text, errors=[event],
        registries=[documents.operations().registries[0].model_copy(update={"host": text, "requests": {text: 1}})],
        image_list=documents.operations().image_list.model_copy(
            update={"source": text, "commit": text, "refused": text}
        ),
    )  # fmt: skip
    progress = documents.cycle().progress
    assert progress is not None
    cycle = documents.cycle(
        doing=text, progress=progress.model_copy(update={"what": text}), results={text: 1}, last_result=text
    )
    asked = text[:200]
    site = Site(_Urls(), text, NOW)
    found = documents.images([image.tags[0]])
    return {
        "catalogue": catalogue_page(site, found, {"q": asked, "contact": asked, "registry": asked, "sort": asked}),
        "nothing found": catalogue_page(site, documents.images([]), {"q": asked, "platform": asked, "limit": asked}),
        "image": image_page(site, image),
        "activity": activity_page(site, cycle, documents.queue(text[:4000]), documents.events(event, next_before=1)),
        "operations": operations_page(site, operations),
        "error": error_page(site, 404, text),
    }


@pytest.mark.parametrize("text", [*HOSTILE, "x" * 1_000_000], ids=lambda text: ascii(text[:24]))
def test_texts_of_strangers_are_harmless(text: str) -> None:
    """No text becomes an element, an attribute, a link that runs, or an invisible character; long ones are cut."""
    for name, html in _pages_with(text).items():
        assert len(html.encode()) < 200_000, name
        page = require_harmless(html)
        assert [each["src"] for each in page.all("script")] == ["/static/pages.js"], name


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("https://example.org/a?b=c#d", True), ("http://example.org", True), ("HTTPS://example.org/", True),
        ("javascript:alert(1)", False), ("JaVaScRiPt:alert(1)", False), (" javascript:alert(1)", False),
        ("java\nscript:alert(1)", False), ("data:text/html,x", False), ("//example.org", False), ("https:", False),
        ("https://good.example@bad.example/", False), ("https://example.org/\u202e", False),
        ("https://example.org/ x", False), ("https:\\\\example.org", False), ("https://[::1", False),
        ("ftp://example.org", False), ("example.org", False), ("https://e.org/" + "x" * 3000, False), ("", False),
    ],
)  # fmt: skip
def test_only_web_addresses_become_links(address: str, link: bool) -> None:
    """Addresses of http and https are links that pass nothing on; everything else is text."""
    page = Page(image_page(SITE, documents.image(definition=address, configuration=None)))
    outside = [each for each in page.all("a") if "rel" in each]
    assert [each["href"] for each in outside] == ([address] if link else [])
    assert all(each["rel"] == "ugc nofollow noopener noreferrer" for each in outside)


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain", "plain"), ("ﺲﻼﻣ \u200c", "ﺲﻼﻣ \u200c"), ("a\tb\r\n", "a\u2409b\u240d\u240a"), ("\x7f", "\u2421"),
        ("\u202e", "⟨U+202E⟩"), ("\ud800", "⟨U+D800⟩"), ("é", "é"), ("\x9b", "⟨U+009B⟩"),
    ],
)  # fmt: skip
def test_what_shows_nothing_is_made_visible(text: str, visible: str) -> None:
    """Control characters, and those that turn a text around, become signs; scripts keep the joiners that they need."""
    assert shown.visible(text) == visible


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_940_000, "99.9 MB"), (124_300_000, "124 MB"),
     (999_600_000, "1.0 GB"), (5 * 10**15, "5,000 TB"), (None, "not known")],
)  # fmt: skip
def test_sizes(number: int | None, text: str) -> None:
    """Bytes are told in the unit that gives the fewest digits."""
    assert shown.size(number) == text


@pytest.mark.parametrize(
    ("distance", "text"),
    [(0, "just now"), (59, "just now"), (-30, "in a moment"), (60, "1 minute ago"), (7200, "2 hours ago"),
     (-2400, "in 40 minutes"), (90000, "1 day ago"), (800 * 86400, "2 years ago")],
)  # fmt: skip
def test_distances_of_time(distance: int, text: str) -> None:
    """Times are told by how far they are from now."""
    assert shown.ago(NOW - timedelta(seconds=distance), NOW) == text


def test_catalogue_tells_of_each_image_what_is_needed() -> None:
    """State in words, digest, size, time, command to copy, description and definition."""
    found = documents.images([documents.summary(description="For tests", definition="https://example.org/d")])
    html = catalogue_page(SITE, found, {})
    page = Page(html)
    for text in ("docker.io/library/debian:12", "✓ Published", "sha256:", "124 MB", "3 hours ago", "For tests"):
        assert text in page.words()
    assert [each["data-copy"] for each in page.all("button") if "data-copy" in each] == [
        "apptainer exec /cvmfs/unpacked.example.org/docker.io/library/debian:12 bash"
    ]
    assert (NOW - timedelta(hours=3)).isoformat() in {each["datetime"] for each in page.all("time")}


def test_catalogue_keeps_what_was_asked_for() -> None:
    """The form shows the query again, and the links to other pages repeat it."""
    found = documents.images([documents.summary()], total=131, offset=50)
    page = Page(catalogue_page(SITE, found, {"q": "deb", "sort": "-size", "offset": "50", "limit": "50"}))
    links = {each["rel"]: each["href"] for each in page.all("a") if "rel" in each}
    assert links == {
        "prev": "/?q=deb&sort=-size&limit=50",
        "next": "/?q=deb&sort=-size&offset=100&limit=50",
    }
    assert [each["value"] for each in page.all("input")] == ["deb", "", "50"]
    assert [each["value"] for each in page.all("option") if "selected" in each] == ["", "", "", "-size"]
    assert "Page 2 of 3" in page.words()


@pytest.mark.parametrize(
    ("total", "parameters", "text"),
    [
        (0, {"q": "nosuch"}, "No image matches."), (0, {}, "Nobody has asked for an image yet."),
        (3, {"offset": "50"}, "There is no such page."),
    ],
)  # fmt: skip
def test_empty_catalogue(total: int, parameters: dict[str, str], text: str) -> None:
    """A catalogue in which nothing is shown says why, and what to do."""
    assert text in Page(catalogue_page(SITE, documents.images([], total=total), parameters)).words()


def test_beyond_the_last_page() -> None:
    """The way back is to the first page of what was asked for, and no number of a page is told that is none."""
    found = documents.images([], total=131, offset=5000, limit=50)
    page = Page(catalogue_page(SITE, found, {"q": "debian", "offset": "5000"}))
    assert "There is no such page." in page.words()
    assert "Page 101" not in page.words()
    assert "/?q=debian" in {each["href"] for each in page.all("a")}


def test_a_site_of_files_offers_nothing_that_needs_a_server() -> None:
    """There is no form, no page of the daemon, and no distance of time that would be wrong tomorrow."""
    site = Site(_Urls(queries=False), "unpacked.example.org")
    page = Page(catalogue_page(site, documents.images([documents.summary()], total=131), {}))
    assert not list(page.all("form"))
    assert not {"/activity", "/operations", "/api/v1"} & {each["href"] for each in page.all("a")}
    assert " ago" not in page.words() + Page(image_page(site, documents.image())).words()


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"digest": None}, ["Why it is not there", "no such tag", "What to do: Look whether", "3 times in a row"]),
        ({}, ["Why it is not up to date", "What was published before is still there", "tried again in 40 minutes"]),
        ({"failure": documents.failing(next_try=None, count=1)}, ["failed once", "tried again in the next cycle"]),
        ({"failure": documents.failing(next_try=NOW - timedelta(hours=1))}, ["tried again in the next cycle"]),
        ({"failure": documents.failing(temporary=True)}, ["This may pass by itself"]),
    ],
)  # fmt: skip
def test_failing_image_says_why(fields: dict[str, Any], texts: list[str]) -> None:
    """A failing image tells the reason, what to do, and when it is tried again."""
    image = documents.image(**{"state": "failed", "failure": documents.failing(), **fields})
    words = Page(image_page(SITE, image)).words()
    assert [text for text in texts if text not in words] == []


def test_image_tells_where_it_comes_from() -> None:
    """What its tag meant, who asked, what it shares, how it runs, what was logged, and how to follow it."""
    words = Page(image_page(SITE, documents.image())).words()
    for text in (
        "line 14 of the image list, commit 0f1e2d3c4b5a", "Ada Example", "31.0 MB (63 %) are shared", "6 other images",
        "LANG=C.UTF-8", "/usr/bin/tini", "maintainer", "412 files written", "1 month ago", "linux/arm64",
        "[![cvmfs](https://images.example.org/badges/docker.io/library/debian%3A12)]",
    ):  # fmt: skip
        assert text in words


def test_waiting_image_leads_to_the_queue() -> None:
    """Where its place is told; a site of files has none."""
    waiting = documents.image(state="pending", waiting_since=NOW - timedelta(minutes=4))
    page = image_page(SITE, waiting)
    assert "It joined the queue 4 minutes ago" in Page(page).words()
    assert 'href="/activity#queue"' in page
    files = image_page(Site(_Urls(queries=False), "unpacked.example.org"), waiting)
    assert "It joined the queue" in Page(files).words()


def test_markdown_is_offered_where_it_works_elsewhere() -> None:
    """Not where nobody has said how the world reaches the pages."""

    class Relative(_Urls):
        def absolute(self, url: str) -> str | None:
            return None

    page = image_page(Site(Relative(), "unpacked.example.org", NOW), documents.image())
    assert 'class="badge"' in page
    assert "Markdown" not in page


def test_events_tell_what_publishing_took() -> None:
    """A bare number would be read as anything; the text of a failure is left as it is."""
    took = documents.event(detail="12.3 s")
    failed = documents.event(event="failed", digest=None, before=None, detail="no answer within 60 s")
    words = Page(activity_page(SITE, documents.cycle(), documents.queue(), documents.events(took, failed))).words()
    assert "took 12.3 s" in words
    assert "took no answer" not in words


_ASKING = Progress(what="asking registries", done=3, total=1200, unit="images", since=NOW)


@pytest.mark.parametrize(
    ("cycle", "text"),
    [
        (documents.cycle(), "312 MB of 740 MB"), (documents.cycle(), "100 of 128 looked at"),
        (documents.cycle(doing="a cycle"), "A cycle is running"),
        (documents.cycle(progress=_ASKING), "asking registries 3 of 1,200 images"),
        (documents.cycle(progress=_ASKING.model_copy(update={"total": 0})), "asking registries 3 images"),
        (documents.cycle(running=False), "No daemon is running."),
        (documents.cycle(doing="", progress=None, since=None), "The next cycle begins in 8 minutes"),
    ],
)  # fmt: skip
def test_activity_says_what_is_done(cycle: Cycle, text: str) -> None:
    """A running cycle, one that is to come, and no daemon at all."""
    words = Page(activity_page(SITE, cycle, documents.queue(), documents.events())).words()
    assert text in words
    assert ("Nothing waits." in words) is cycle.running
    assert ("It begins with the next cycle." in words) is not cycle.running


def test_operations_tells_of_a_refused_list() -> None:
    """That a list is refused comes first, with the reason."""
    refused = documents.operations().image_list.model_copy(
        update={"refused": "line 3: no such key", "refused_since": NOW}
    )
    words = Page(operations_page(SITE, documents.operations(image_list=refused))).words()
    assert "line 3: no such key" in words
    assert "✕ Left alone" in words


def test_operations_tells_what_there_is_to_tell() -> None:
    """Of requests only those that there were, in words; of a list on the publisher's disk not its path."""
    registry = documents.operations().registries[0].model_copy(update={"requests": {"not_found": 3, "error": 0}})
    source = documents.operations().image_list.model_copy(update={"source": "<image_list>"})
    words = Page(operations_page(SITE, documents.operations(registries=[registry], image_list=source))).words()
    assert "not found 3" in words
    assert "error 0" not in words
    assert "a file of the publisher" in words


def test_every_page_is_fit_for_screen_readers() -> None:
    """One main heading, landmarks, labelled fields, captions; nothing by markup alone that a policy would forbid."""
    for name, html in _pages_with("usual").items():
        page = Page(html)
        assert len(list(page.all("h1"))) == 1, name
        assert [each["id"] for each in page.all("main")] == ["main"], name
        assert html.index('href="#main"') < html.index("<header"), name
        assert len(list(page.all("caption"))) == len(list(page.all("table"))), name
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids)), name
        labelled = {each["for"] for each in page.all("label")}
        fields = [each for tag in ("input", "select") for each in page.all(tag) if each.get("type") != "hidden"]
        assert {each["id"] for each in fields} == labelled, name


def test_nothing_is_loaded_from_elsewhere() -> None:
    """The static files name no other place."""
    for name, content in static_files().items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*|; //.*|\{ //.*|\* //.*", "", text, flags=re.MULTILINE), name
        assert "@import" not in text, name
