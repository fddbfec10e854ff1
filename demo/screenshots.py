"""The screenshots of the README: a site with a history, `cvmfs-sync run` in the middle of a download, and a browser.

    python -m demo.screenshots [DIRECTORY]

Images have names that readers know, and content that is made here. They come from a registry on loopback, which stands
in as a proxy for all registries: nothing is asked of the world. Debian's chromium takes the pictures.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import requests
from playwright.sync_api import Browser, Page, Route, expect

from cvmfs_sync.cycle import sync
from cvmfs_sync.service import load_config, make_context, read_wishes
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.browser import open_browser, open_page
from tests.support.images import file, layer
from tests.support.registry import free_port
from tests.test_daemon import _running as running

_MB = 1_000_000
_LARGEST = 60_000
_SECONDS = 120.0
_HERE = Path(__file__).parent.parent / "docs/images"


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of the list.

    Attributes:
        name: As in the list.
        size: Of its own layer, which is next to nothing when it is compressed.
        ages: How long ago it was pushed, each time with another content; never if there are none.
        more: What else its entry has.
    """

    name: str
    size: int
    ages: tuple[timedelta, ...]
    more: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str]:
        """Its repository without the registry, and its tag."""
        repository, _, tag = self.name.partition("/")[2].rpartition(":")
        return repository, tag


def _ago(**units: float) -> timedelta:
    return timedelta(**units)


_PUBLISHED = (
    _Image("docker.io/library/debian:12.11", 74 * _MB, (_ago(days=34),), {"description": "Debian, to build on"}),
    _Image(
        "docker.io/rocker/r-ver:4.4", 92 * _MB, (_ago(days=34), _ago(days=9, hours=3), _ago(hours=21)),
        {"description": "R with version-pinned packages", "contact": "statistics@example.org",
         "definition": "https://github.com/rocker-org/rocker-versioned2"},
    ),
    _Image(
        "quay.io/biocontainers/bwa:0.7.18--h577a1d6_2", 31 * _MB, (_ago(days=12),),
        {"description": "Burrows-Wheeler aligner", "contact": "genomics@example.org"},
    ),
    _Image(
        "quay.io/biocontainers/samtools:1.20--h50ea8bc_1", 38 * _MB, (_ago(hours=2.4),),
        {"description": "Reads, writes and sorts alignments", "contact": "genomics@example.org"},
    ),
)  # fmt: skip
_MISSING = _Image(
    "docker.io/astrolab/lightcurves:2.1", 0, (),
    {"description": "Fits light curves of variable stars", "contact": "astronomy@example.org",
     "definition": "https://git.example.org/astrolab/lightcurves"},
)  # fmt: skip
_FETCHED = _Image("docker.io/rootproject/root:6.32.02-ubuntu24.04", 64 * _MB, (_ago(),), {"description": "ROOT"})
_WAITING = (
    _Image("docker.io/library/julia:1.10", 26 * _MB, (_ago(),), {"description": "Julia"}),
    _Image("docker.io/tensorflow/tensorflow:2.17.0", 41 * _MB, (_ago(),), {"description": "TensorFlow"}),
)


@contextmanager
def site(home: Path) -> Iterator[str]:
    """The address of a site that has a history, at which one image is being fetched and others wait."""
    with ScriptableRegistry() as registry:
        os.environ.update(HTTP_PROXY=f"http://{registry.host}", NO_PROXY="127.0.0.1")
        now = datetime.now(UTC)
        for age in sorted({age for each in _PUBLISHED for age in each.ages}, reverse=True):
            wished = [each for each in _PUBLISHED if max(each.ages) >= age]
            for each in wished:
                if age in each.ages:
                    _push(registry, each, _content(each))
            _cycle(_configuration(home, [*wished, *([_MISSING] if age < _ago(hours=22) else [])]), now - age)
        blob = _push(registry, _FETCHED, random.Random(1).randbytes(_FETCHED.size))
        registry.hold(blob, 2 * _FETCHED.size // 3)
        for each in _WAITING:
            registry.hold(_push(registry, each, _content(each)), 1)
        _wish(home, [*_PUBLISHED, _MISSING, _FETCHED, *_WAITING])
        port = free_port()
        settings = {**_settings(), "schedule": {"sync": "1h"}, "web": {"listen": f"127.0.0.1:{port}"}}
        address = f"http://127.0.0.1:{port}"
        with running(home, settings) as daemon:
            daemon.wait_for(lambda: _far(address))
            yield address


def shoot(browser: Browser, address: str, home: Path, directory: Path) -> None:
    """Take the pictures, in which the repository is where CernVM-FS would have it."""
    failing = f"/images/{_MISSING.name}"
    _picture(browser, address, home, "/", directory / "catalogue.webp", 1100, 860)
    _picture(browser, address, home, failing, directory / "failure.webp", 1100, 620, scheme="dark")
    _picture(browser, address, home, "/activity", directory / "activity.webp", 390, 760)


def _picture(
    browser: Browser, address: str, home: Path, path: str, to: Path, width: int, height: int, *,
    scheme: Literal["light", "dark"] = "light",
) -> None:  # fmt: skip
    page = open_page(browser, address, viewport={"width": width, "height": height}, color_scheme=scheme)
    page.route(f"{address}{path}", lambda route: _moved(route, home))
    page.goto(path)
    if path == "/activity":
        expect(page.locator("[data-field=amount]")).not_to_be_empty()
    _write(page, page.screenshot(), to)
    page.context.close()


def _moved(route: Route, home: Path) -> None:
    answer = route.fetch()
    route.fulfill(response=answer, body=answer.text().replace(str(home), "/cvmfs"))


def _write(page: Page, png: bytes, to: Path) -> None:
    """Keep a picture as WebP, without loss if that is small enough; the browser knows how that is written."""
    page.goto("about:blank")
    content, quality = b"", 1.0
    for quality in (1.0, 0.9, 0.8, 0.6, 0.4):
        found: str = page.evaluate(
            """async ([png, quality]) => {
                const image = new Image();
                image.src = `data:image/png;base64,${png}`;
                await image.decode();
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [image.width, image.height];
                canvas.getContext("2d").drawImage(image, 0, 0);
                return canvas.toDataURL("image/webp", quality);
            }""",
            [base64.b64encode(png).decode(), quality],
        )
        content = base64.b64decode(found.partition(",")[2])
        if len(content) <= _LARGEST:
            break
    to.write_bytes(content)
    sys.stdout.write(f"{to}: {len(content):,} bytes, quality {quality}\n")


def _push(registry: ScriptableRegistry, image: _Image, content: bytes) -> str:
    """Push an image that has not been there; the digest of its own layer."""
    base = layer(file("etc/os-release", "ID=debian\n"), file("usr/lib/base", b"\0" * (28 * _MB)))
    stamp = file("etc/built", str(len(registry.manifests)))
    own = layer(file("opt/tool", content), stamp)
    repository, tag = image.place
    return registry.add_image(repository, tag, [base.blob, own.blob]).layers[-1]


def _content(image: _Image) -> bytes:
    """So many bytes, of which a hundredth is left when they are compressed."""
    piece = random.Random(image.name).randbytes(1_000) + bytes(99_000)
    return (piece * (image.size // len(piece) + 1))[: image.size]


def _settings() -> dict[str, Any]:
    plain = {"insecure": True, "requests_per_second": 1000}
    registries = dict.fromkeys(("docker.io", "quay.io"), plain)
    return {"registries": registries, "repository": {"root": "unpacked.example.org"}}


def _configuration(home: Path, images: list[_Image]) -> Path:
    _wish(home, images)
    path = home / "cvmfs-sync.yaml"
    path.write_text(json.dumps(_settings()))
    return path


def _wish(home: Path, images: list[_Image]) -> None:
    entries = [{"image": each.name, **each.more} for each in images]
    (home / "image-list.yaml").write_text(json.dumps({"version": 1, "images": entries}, indent=1))


def _cycle(configuration: Path, at: datetime) -> None:
    """A cycle at that time; one that takes its time as usual."""
    config, began = load_config(configuration), time.monotonic()
    with make_context(config, clock=lambda: at + timedelta(seconds=time.monotonic() - began)) as context:
        sync(context, read_wishes(config))


def _far(address: str) -> bool:
    """Whether the download has come as far as it will."""
    try:
        cycle = requests.get(f"{address}/api/v1/cycle", timeout=_SECONDS).json()
    except requests.ConnectionError:
        return False
    return bool(cycle["progress"] and cycle["progress"]["done"] > _FETCHED.size // 2)


def main() -> int:
    """Take them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make screenshots", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, nargs="?", default=_HERE)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="cvmfs-sync-screenshots-", dir=os.environ.get("TMPDIR", "/var/tmp")) as home,
        site(Path(home)) as address,
        open_browser() as browser,
    ):
        shoot(browser, address, Path(home), directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
