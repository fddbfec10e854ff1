"""Webhooks over HTTP: who is let in, what is refused, and from a real registry's notification to the image."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support import Image, file, layer, write_layout
from tests.support.commands import cli_command, require, run
from tests.support.registry import RegistryServer, free_port, start_docker_registry
from tests.support.site import Site

SECRET = "f3b1c0a5d2e4968770f1e2d3c4b5a697"


def image(text: str) -> Image:
    return Image((layer(file("hello", text)),), cmd=("/bin/sh",))


# --- from the registry to the published image -------------------------------------------------------------------------


@contextmanager
def daemon(site: Site, port: int) -> Iterator[Path]:
    """A running `cvmfs-sync run` with pages, whose schedule would come to nothing for hours; its log."""
    log = site.home / "daemon.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            cli_command("run", "--config", site.config), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        try:
            until(lambda: answers(port), log)
            yield log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/api/v1/cycle", timeout=30).status_code == 200
    except requests.ConnectionError:
        return False


def until(condition: Callable[[], bool], log: Path) -> None:
    """Wait for something; show the log if it never happens."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"never happened:\n{log.read_text()}")


def test_a_notification_of_a_real_registry_gets_an_image_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tag moves, docker-registry tells it, and what it means now is published hours before it would be due."""
    require("skopeo")
    port = free_port()
    site = Site(tmp_path / "site")
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    endpoint = {
        "name": "cvmfs-sync", "url": f"http://127.0.0.1:{port}/webhooks/ours", "timeout": "5s", "threshold": 3,
        "backoff": "1s", "headers": {"Authorization": [f"Bearer {SECRET}"]}, "ignore": {"actions": ["pull"]},
    }  # fmt: skip
    with start_docker_registry(tmp_path / "registry", endpoint=endpoint) as registry:
        site.insecure = (registry.host,)
        site.settings = {
            "schedule": {"sync": "5h", "gc": "9h", "list": "7h"}, "metrics": {"listen": None},
            "web": {
                "listen": f"127.0.0.1:{port}",
                "webhooks": [
                    {"name": "ours", "kind": "distribution", "registry": registry.host, "secret_file": str(secret)}
                ],
            },
        }  # fmt: skip
        first = registry.push("org/tool", "1", image("one"))
        other = registry.push("org/other", "1", image("other"))
        site.wish(first, other)
        hello = site.root / first / "hello"
        with daemon(site, port) as log:
            until(lambda: "exit_code=0" in log.read_text(), log)
            assert hello.read_text() == "one"
            seconds = moved(registry, tmp_path, first, lambda: hello.read_text() == "two", log)
            text = log.read_text()
    assert site.target(first) in {each["digest"].partition(":")[2] for each in site.catalogue().values()}
    assert "webhook=ours kind=distribution" in text
    assert text.count("cycle published=") == 1, "a whole cycle was run"
    assert text.count("published image=") == 3
    assert SECRET not in text
    with capsys.disabled():
        print(f"\nfrom the push to the published image: {seconds:.2f} s")  # noqa: T201 -- the number is asked for


def moved(registry: RegistryServer, home: Path, reference: str, done: Callable[[], bool], log: Path) -> float:
    """Push another image to a tag, as people do; seconds from the end of the push until something holds."""
    write_layout(home / "layout", {"1": image("two")})
    run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{home}/layout:1", f"docker://{reference}")
    began = time.monotonic()
    until(done, log)
    return time.monotonic() - began
