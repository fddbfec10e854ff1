"""A real browser watches `cvmfs-sync run` at work, by a registry that sends a layer as far as the test says."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import requests
from playwright.sync_api import Browser, expect

from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.browser import open_browser, open_page, violations
from tests.support.commands import require
from tests.support.images import file, layer
from tests.support.places import until
from tests.support.registry import free_port
from tests.test_daemon import _running as running

pytestmark = pytest.mark.slow
_SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@dataclass(frozen=True, slots=True)
class Watched:
    """A daemon in the middle of a download.

    Attributes:
        address: Of its pages.
        first: The image that is fetched; of its 8.4 MB, 2.1 MB have come.
        second: The one that waits.
        more: Lets some more of the first one come.
        rest: Lets the rest of each image come.
    """

    address: str
    first: str
    second: str
    more: threading.Event
    rest: Mapping[str, threading.Event]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """See `Watched`."""
    require("chromium")
    with ScriptableRegistry() as registry:
        names = {}
        for name in ("first", "second"):
            content = layer(file(name, random.Random(name).randbytes(8 << 20)), compression="none").blob
            image = registry.add_image(f"tools/{name}", "1", [content])
            names[image.layers[0]] = f"{registry.host}/tools/{name}:1"
        first, second = names
        more, rest = registry.hold(first, 2 << 20, 4 << 20)
        (other,) = registry.hold(second, 1 << 20)
        (tmp_path / "image-list.yaml").write_text(f"version: 1\nimages: {list(names.values())}\n")
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        settings = {
            "schedule": {"sync": "1h"}, "web": {"listen": f"127.0.0.1:{port}"},
            "registries": {registry.host: {"insecure": True}},
        }  # fmt: skip
        with running(tmp_path, settings) as daemon:
            daemon.wait_for(lambda: _answers(address))
            yield Watched(address, names[first], names[second], more, {names[first]: rest, names[second]: other})


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/api/v1/cycle", timeout=60).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    with open_browser() as opened:
        yield opened


def test_a_running_sync_is_watched(browser: Browser, watched: Watched) -> None:
    """The bytes grow, the next image comes, what was published is told, and the end; the page is loaded once."""
    page = open_page(browser, watched.address)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto("/activity")
    loaded: list[str] = []
    page.on("load", lambda seen: loaded.append(seen.url))
    what, amount = page.locator("[data-field=what]"), page.locator("[data-field=amount]")
    happened = page.get_by_role("region", name="What has happened")
    waits = page.get_by_role("region", name="Queue")
    expect(what).to_have_text(f"fetching {watched.first}")
    expect(amount).to_have_text(re.compile(r"^2\.\d MB of 8\.4 MB$"))
    expect(waits.get_by_role("row")).to_have_count(3)
    expect(happened).to_contain_text("Nothing has happened yet.")
    watched.more.set()
    expect(amount).to_have_text(re.compile(r"^4\.\d MB of 8\.4 MB$"))
    watched.rest[watched.first].set()
    expect(what).to_have_text(f"fetching {watched.second}")
    expect(amount).to_have_text(re.compile(r"^1\.\d MB of 8\.4 MB$"))
    expect(happened.get_by_role("listitem")).to_have_count(1)
    expect(happened.get_by_role("link", name=watched.first)).to_be_visible()
    expect(waits.get_by_role("row")).to_have_count(2)
    watched.rest[watched.second].set()
    expect(page.get_by_text("Nothing to do.")).to_be_visible()
    expect(page.get_by_text("The last cycle ended")).to_contain_text("ok")
    expect(happened.get_by_role("listitem")).to_have_count(2)
    assert not loaded
    happened.get_by_role("link", name=watched.second).click()
    expect(page.get_by_text("It is there, and it is what its tag means.")).to_be_visible()
    assert not wrong
    page.context.close()


def test_a_running_sync_is_watched_without_script(browser: Browser, watched: Watched) -> None:
    """The page loads itself again and shows more; so does whoever loads it."""
    page = open_page(browser, watched.address, java_script_enabled=False)
    page.goto("/activity")
    expect(page.locator("[data-field=what]")).to_have_text(f"fetching {watched.first}")
    expect(page.locator("[data-field=amount]")).to_have_text(re.compile(r"^2\.\d MB of 8\.4 MB$"))
    watched.more.set()
    expect(page.locator("[data-field=amount]")).to_have_text(re.compile(r"^4\.\d MB of 8\.4 MB$"))
    for rest in watched.rest.values():
        rest.set()
    until(lambda: requests.get(f"{watched.address}/api/v1/cycle", timeout=60).json()["last_result"] == "ok", 60)
    page.get_by_role("link", name="Load again").click()
    expect(page.get_by_text("Nothing to do.")).to_be_visible()
    expect(page.get_by_role("region", name="What has happened").get_by_role("listitem")).to_have_count(2)
    page.context.close()


def test_a_running_sync_is_accessible(browser: Browser, watched: Watched) -> None:
    """Axe finds nothing while progress is shown, in both colour schemes; nothing is wider than a phone."""
    page = open_page(browser, watched.address)
    page.goto("/activity")
    expect(page.get_by_role("progressbar")).to_be_visible()
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 740})
        for scheme in _SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert not violations(page), (width, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()
