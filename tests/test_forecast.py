"""What publishing an image would take, by what is published, what is kept, and what registries tell."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support import Image, RegistryServer, file, layer, run_cli, start_docker_registry, write_layout
from tests.support.images import Compression
from tests.support.site import Site
from tests.support.tokens import make_ca, make_certificate

BASE = layer(file("base", random.Random(1).randbytes(200_000)), file("zeros", bytes(300_000)))
TOP = layer(file("top", random.Random(2).randbytes(50_000)))
OTHER = layer(file("other", random.Random(3).randbytes(70_000)))


def steps(result: Any) -> dict[str, dict[str, Any]]:
    """The images of `check --online --json`, by name without the host."""
    return {step["image"].partition("/")[2]: step for step in result["online"]["steps"]}


def test_what_an_image_shares_with_published_ones(docker_registry: RegistryServer, tmp_path: Path) -> None:
    """Layers that a published image has are counted, and the one that has most of them is named."""
    host = docker_registry.host
    docker_registry.push("forecast/base", "1", Image((BASE,)))
    docker_registry.push("forecast/other", "1", Image((OTHER,)))
    docker_registry.push("forecast/new", "1", Image((BASE, TOP, OTHER)))
    docker_registry.push("forecast/alone", "1", Image((layer(file("alone", "1")),)))
    site = Site(tmp_path, insecure=(host,))
    site.wish(f"{host}/forecast/base:1", f"{host}/forecast/other:1")
    site.sync()
    fingerprint = site.fingerprint()
    path = site.wish(*(f"{host}/forecast/{name}:1" for name in ("base", "new", "alone")))
    found = steps(run_cli("check", "--online", "--json", "--config", site.config, path).ok().json)
    new = found["forecast/new:1"]
    common = len(BASE.blob) + len(OTHER.blob)
    assert new["shared"] == {"layers": 2, "bytes": common, "image": f"{host}/forecast/base:1"}
    assert new["compressed"] == common + len(TOP.blob)
    assert new["path"] == str(site.root / new["link"])
    # Of the layers whose index is kept the files are known, of the others the stream.
    assert new["unpacked"]["bytes"] == 200_000 + 300_000 + 70_000 + len(TOP.tar)
    assert found["forecast/alone:1"]["shared"] == {"layers": 0, "bytes": 0, "image": None}
    kept = found["forecast/base:1"]
    assert (kept["action"], kept["shared"], kept["compressed"]) == ("keep", None, len(BASE.blob))
    assert kept["unpacked"]["exact"]
    assert kept["unpacked"]["bytes"] >= 500_000
    assert site.fingerprint() == fingerprint
    text = run_cli("check", "--online", "--config", site.config, path).ok().stdout
    (line,) = (each for each in text.splitlines() if f"{host}/forecast/new:1" in each)
    assert f"with {host}/forecast/base:1" in line
    assert line.endswith(new["path"])


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_unpacked_size_of_what_was_never_fetched(
    docker_registry: RegistryServer, tmp_path: Path, compression: Compression
) -> None:
    """A few bytes of each layer tell its length, from a real registry; no layer is downloaded."""
    image = Image((layer(file("x", bytes(3_000_000)), compression=compression), layer(file("y", b"y" * 5000))))
    docker_registry.push(f"forecast/{compression}", "1", image)
    site = Site(tmp_path, insecure=(docker_registry.host,))
    path = site.wish(f"{docker_registry.host}/forecast/{compression}:1")
    (step,) = run_cli("check", "--online", "--json", "--config", site.config, path).ok().json["online"]["steps"]
    length = sum(len(each.tar) for each in image.layers)
    # No estimate of the layers; of the image's files it is one.
    assert step["unpacked"] == {"bytes": length, "low": length, "high": length, "exact": False}
    assert step["shared"] is None  # nothing says that anything is published


def test_no_layer_is_downloaded(tmp_path: Path) -> None:
    """Each layer costs one request for a few bytes, whether or not the registry knows ranges; then it is not known."""
    blob = layer(file("x", random.Random(4).randbytes(3_000_000))).blob
    for ranges in (True, False):
        with ScriptableRegistry() as registry:
            registry.ranges = ranges
            image = registry.add_image("org/name", "1", [blob])
            registry.add_image("org/same", "1", [blob])
            site = Site(tmp_path / str(ranges), insecure=(registry.host,))
            path = site.wish(f"{registry.host}/org/name:1", f"{registry.host}/org/same:1")
            result = run_cli("check", "--online", "--config", site.config, path).ok()
            asked = [each for each in registry.requests if each.path.endswith(image.layers[0])]
            assert [each.headers["range"] for each in asked] == [f"bytes={len(blob) - 4}-{len(blob) - 1}"]
        assert ("  ~2.9 MiB  " in result.stdout) is ranges


def test_without_a_configuration(tmp_path: Path) -> None:
    """As in a workflow that has nothing but the list: sizes are told, and what nobody can know is called unknown."""
    ca = make_ca(tmp_path / "ca")
    certificate = make_certificate(tmp_path / "tls", ca)
    with start_docker_registry(tmp_path / "registry") as plain:
        plain.push("org/name", "1", Image((BASE, TOP)))
    with start_docker_registry(tmp_path / "registry", certificate=certificate) as server:
        (tmp_path / "list.yaml").write_text(f"version: 1\nimages:\n  - {server.host}/org/name:1\n")
        environment = {"REQUESTS_CA_BUNDLE": str(ca[0])}
        (step,) = (
            run_cli("check", "--online", "--json", tmp_path / "list.yaml", env=environment).ok().json["online"]["steps"]
        )
        assert (step["path"], step["shared"]) == (None, None)
        assert step["link"] == f"{server.host}/org/name:1"
        assert step["unpacked"]["bytes"] == len(BASE.tar) + len(TOP.tar)
        text = run_cli("check", "--online", tmp_path / "list.yaml", env=environment).ok().stdout
    assert "  unknown  " in text
    assert "nothing" not in text


def test_experience_stands_in_where_nothing_is_told(tmp_path: Path) -> None:
    """What ten published images have come to estimates a layer that tells nothing; without them it is not known."""
    images = {str(number): Image((layer(file("x", bytes([number]) * 100_000)),)) for number in range(10)}
    layout = write_layout(tmp_path / "layout", images)
    with ScriptableRegistry() as registry:
        registry.ranges = False
        registry.add_image("org/name", "1", [layer(file("y", random.Random(5).randbytes(1000))).blob])
        site = Site(tmp_path / "site", insecure=(registry.host,))
        wishes = [f"oci:{layout}:{tag}" for tag in images]
        path = site.wish(f"{registry.host}/org/name:1")
        check = ("check", "--online", "--json", "--config", site.config, path)
        assert run_cli(*check).ok().json["online"]["steps"][0]["unpacked"] is None
        site.wish(*wishes)
        site.sync()
        site.wish(f"{registry.host}/org/name:1")
        size = run_cli(*check).ok().json["online"]["steps"][0]["unpacked"]
    assert not size["exact"]
    assert size["low"] <= size["bytes"] <= size["high"]
