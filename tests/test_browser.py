"""A real browser walks through the pages, as a person would who looks for an image; axe looks at each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, expect

from cvmfs_sync.web.app import make_app
from cvmfs_sync.web.live import Broadcast
from cvmfs_sync.web.process import routers
from tests.support.browser import open_browser, open_page, violations
from tests.support.commands import require
from tests.support.shown import answering, publish_some, view_of
from tests.support.site import Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where pages about a site with something of everything are served."""
    require("chromium")
    site = publish_some(tmp_path_factory.mktemp("browser"))
    with view_of(site) as view, answering(make_app(view, routers())) as where:
        yield where


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_looking_for_an_image(browser: Browser, address: str, script: bool) -> None:
    """Search, open, copy the command, and read why another one is missing; also where no script runs."""
    page = open_page(browser, address, java_script_enabled=script, permissions=["clipboard-read", "clipboard-write"])
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto("/")
    page.get_by_label("Search names and descriptions").fill("first one")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="1 image found")).to_be_visible()
    page.get_by_role("heading", level=3).get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("layout:one")
    expect(page.get_by_role("heading", name="What the tag means")).to_be_visible()
    copy = page.get_by_role("button", name="Copy command")
    if script:
        copy.click()
        expect(page.locator("#said")).to_have_text("Copied to the clipboard.")
        assert "apptainer" in page.evaluate("navigator.clipboard.readText()")
    else:
        expect(copy).to_be_hidden()
    page.get_by_role("link", name="All images").click()
    page.get_by_role("navigation", name="States").get_by_role("link", name="Failed").click()
    page.get_by_role("heading", level=3).get_by_role("link").click()
    expect(page.get_by_role("heading", name="Why it is not there")).to_be_visible()
    assert not wrong
    page.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_pages_are_accessible(browser: Browser, address: str, width: int, scheme: str) -> None:
    """Axe finds nothing, in both colour schemes and on a phone; and no page is wider than the screen."""
    page = open_page(browser, address, viewport={"width": width, "height": 740}, color_scheme=scheme)
    images = requests.get(f"{address}/api/v1/images", timeout=60).json()["images"]
    found: list[tuple[str, str, str]] = []
    for path in ("/", "/?q=nosuch", "/activity", "/operations", "/nosuch", *(f"/images/{i['link']}" for i in images)):
        page.goto(path)
        found += [(path, *each) for each in violations(page)]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert not found
    page.context.close()


def test_keyboard_only(browser: Browser, address: str) -> None:
    """The first key leads to the content, and Enter on a name opens the image."""
    page = open_page(browser, address)
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('h3') !== null"):
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/images/**")
    page.context.close()


def test_errors_are_pages_for_browsers_only(address: str) -> None:
    """A browser gets a page, a program a document; static files may be kept, and pages need not be sent twice."""
    html = requests.get(f"{address}/images/nosuch", headers={"Accept": "text/html"}, timeout=60)
    assert (html.status_code, html.headers["content-type"]) == (404, "text/html; charset=utf-8")
    for path in ("/images/nosuch", "/api/v1/nosuch"):
        accept = "*/*" if path.startswith("/images") else "text/html"
        answer = requests.get(address + path, headers={"Accept": accept}, timeout=60)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    page = requests.get(address, timeout=60)
    assert requests.get(address, headers={"If-None-Match": page.headers["etag"]}, timeout=60).status_code == 304
    style = page.text.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
    assert "max-age=31536000" in requests.get(address + style, timeout=60).headers["cache-control"]


def test_live_activity(browser: Browser, address: str) -> None:
    """The stream tells the cycle at once, and the page with it says that no daemon is there."""
    with requests.get(f"{address}/activity/events", stream=True, timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines(decode_unicode=True)
        assert next(lines) == "event: cycle"
        assert '"running":false' in next(lines)
    page = open_page(browser, address)
    with page.expect_request("**/activity/events"):
        page.goto("/activity")
    expect(page.get_by_text("No daemon is running.")).to_be_visible()
    page.context.close()


def test_a_refused_stream_is_no_dead_page(browser: Browser, tmp_path: Path) -> None:
    """Whoever finds all places taken can load the page again, which looks for itself from time to time, and listens."""
    site = Site(tmp_path)
    site.wish()
    broadcast = Broadcast(most=0)
    with view_of(site) as view, answering(make_app(view, routers(broadcast))) as where:
        page = open_page(browser, where)
        page.clock.install()
        with page.expect_response("**/activity/events") as refused:
            page.goto("/activity")
        assert refused.value.status == requests.codes.service_unavailable
        expect(page.get_by_role("link", name="Load again")).to_be_visible()
        broadcast.most = 1
        with page.expect_response("**/activity/events") as heard, page.expect_response("**/activity"):
            page.clock.fast_forward(31_000)
            page.clock.fast_forward(5_000)
        assert heard.value.ok
        expect(page.get_by_role("link", name="Load again")).to_be_hidden()
        page.context.close()
