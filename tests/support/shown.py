"""A small site with something of everything, and the view and application over it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from cvmfs_sync.config import load
from cvmfs_sync.view.queries import View
from cvmfs_sync.viewing import open_view
from tests.support.images import Image, file, layer, write_layout
from tests.support.site import Site

__all__ = ["HOSTILE", "answering", "publish_some", "view_of"]

HOSTILE = "<script>alert(1)</script>\x07\x1b[31m\u202e javascript:alert(1) " + "x" * 5000


def publish_some(home: Path) -> Site:
    """A site with a published image (moved once), one that shares a layer with it, a failing and a blocked one."""
    site = Site(home)
    layout = home / "layout"
    base = layer(file("etc/base", "base"))
    labels, env = {"org.example.title": "an example", "hostile": HOSTILE}, ("PATH=/bin", f"HOSTILE={HOSTILE}")
    for round_ in (1, 2):
        write_layout(
            layout,
            {
                "one": Image((base, layer(file("a", f"{round_}"))), labels=labels, env=env),
                "two": Image((base, layer(file("b", "2")))),
            },
        )  # fmt: skip
        site.wish(
            {"image": f"oci:{layout}:one", "description": "The first one", "contact": "someone@example.org",
             "definition": "https://git.example.org/one"},
            f"oci:{layout}:two",
            f"oci:{layout}:missing",
        )  # fmt: skip
        site.run("sync", "--json", rc=1)
    path = site.home / "image-list.yaml"
    document = json.loads(path.read_text())
    document["images"].append(f"oci:{layout}:later")
    path.write_text(json.dumps(document, indent=1))
    return site


@contextmanager
def view_of(site: Site, environment: Mapping[str, str] | None = None, **settings: Any) -> Iterator[View]:
    """What is shown of a site."""
    site.settings |= settings
    with open_view(load(site.config, environment or {})) as view:
        yield view


@contextmanager
def answering(app: ASGIApp) -> Iterator[str]:
    """The address at which an application answers while the block lasts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http="h11"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()
