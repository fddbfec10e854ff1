"""Debian's chromium, driven by Playwright, and axe to look at what it shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.commands import require

__all__ = ["open_browser", "open_page", "violations"]

_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
_MILLISECONDS = 60_000


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser while the block lasts; what is expected of its pages is waited for a minute."""
    require("chromium")
    expect.set_options(timeout=_MILLISECONDS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_FLAGS)
        try:
            yield opened
        finally:
            opened.close()


def open_page(browser: Browser, address: str, **options: Any) -> Page:
    """A page in a new context of Playwright, with these options of it; addresses are relative to `address`."""
    context = browser.new_context(base_url=address, **options)
    context.set_default_timeout(_MILLISECONDS)
    return context.new_page()


def violations(page: Page) -> list[tuple[str, str]]:
    """What axe finds: the rule, and the first element that breaks it."""
    return [(each["id"], each["nodes"][0]["html"]) for each in Axe().run(page).response["violations"]]
