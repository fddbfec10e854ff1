"""A real browser walks through the pages, as a person would who looks for an image; axe looks at each of them."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import requests
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cvmfs_sync.web.app import make_app
from cvmfs_sync.web.process import routers
from tests.support.commands import require
from tests.support.shown import publish_some, view_of

_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where pages about a site with something of everything are served."""
    require("chromium")
    with view_of(publish_some(tmp_path_factory.mktemp("browser"))) as view, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = make_app(view, routers())
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http="h11"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            where = f"http://127.0.0.1:{listener.getsockname()[1]}"
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield where
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    require("chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_FLAGS)
        yield opened
        opened.close()


def _open(browser: Browser, address: str, **options: object) -> Page:
    context = browser.new_context(base_url=address, **options)  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    return context.new_page()


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_looking_for_an_image(browser: Browser, address: str, script: bool) -> None:
    """Search, open, copy the command, and read why another one is missing; also where no script runs."""
    page = _open(browser, address, java_script_enabled=script, permissions=["clipboard-read", "clipboard-write"])
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
    page = _open(browser, address, viewport={"width": width, "height": 740}, color_scheme=scheme)
    images = requests.get(f"{address}/api/v1/images", timeout=60).json()["images"]
    found: list[tuple[str, str, str]] = []
    for path in ("/", "/?q=nosuch", "/activity", "/operations", "/nosuch", *(f"/images/{i['link']}" for i in images)):
        page.goto(path)
        violations = Axe().run(page).response["violations"]
        found += [(path, each["id"], each["nodes"][0]["html"]) for each in violations]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert not found
    page.context.close()


def test_keyboard_only(browser: Browser, address: str) -> None:
    """The first key leads to the content, and Enter on a name opens the image."""
    page = _open(browser, address)
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
    page = _open(browser, address)
    with page.expect_request("**/activity/events"):
        page.goto("/activity")
    expect(page.get_by_text("No daemon is running.")).to_be_visible()
    page.context.close()
