"""What a user's mistake in a pull request is told as: once, on the line that is to be mended, with how to mend it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.scriptable_registry import OCI_LAYER, OCI_MANIFEST, ScriptableRegistry, to_json
from tests.support import CliResult, Image, Index, file, layer, run_cli, start_docker_registry
from tests.support.site import Site

TOOL = Image((layer(file("tool", "1")),))
GIB = 1 << 30


@dataclass(frozen=True)
class World:
    """Registries: a public one, a private one, and one that claims to have a large image; and their configuration."""

    public: str
    private: str
    large: str
    config: Path


def add_large_image(registry: ScriptableRegistry, repository: str, *sizes: int) -> None:
    """An image whose manifest claims layers of these sizes, of which there is not a byte."""
    registry.add_image(repository, "1", [bytes(512)] * len(sizes))
    content, media_type = registry.manifests[repository, "1"]
    document = json.loads(content)
    document["layers"] = [
        {"mediaType": f"{OCI_LAYER}+gzip", "digest": f"sha256:{number:064x}", "size": size}
        for number, size in enumerate(sizes, 1)
    ]
    assert media_type == OCI_MANIFEST
    registry.put_manifest(repository, "1", to_json(document))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The registries, with what the mistakes are about."""
    home = tmp_path_factory.mktemp("world")
    with (
        start_docker_registry(home / "public") as public,
        start_docker_registry(home / "private", ("alice", "secret")) as private,
        ScriptableRegistry() as large,
    ):
        for tag in ("12.9", "12.10", "12.11", "13.0", "dev"):
            public.push("org/tool", tag, TOOL)
        foreign = Index(tuple(TOOL.but(architecture=each) for each in ("arm64", "s390x")))
        public.push("org/foreign", "1", foreign)
        public.push("org/single", "1", TOOL.but(architecture="arm64"))
        for tag in ("1.0", "1.1"):
            public.push("org/arm", tag, TOOL.but(architecture="arm64"))
        public.push("org/partly", "1", Index((TOOL, TOOL.but(architecture="arm64"))))
        private.push("org/secret", "1", TOOL)
        add_large_image(large, "org/large", 10 * GIB, 30 * GIB)
        add_large_image(large, "org/huge", 300 * GIB)
        site = Site(home / "site", insecure=(public.host, private.host, large.host))
        yield World(public.host, private.host, large.host, site.config)


HEAD = "version: 1\nimages:\n"
SHORT = "  - {public}/org/tool:13.0\n"
MISTAKES: dict[str, tuple[str, int, str, tuple[str, ...]]] = {
    # A list, the line of its one mistake, how bad that is, and words that say what was found and what mends it.
    "a typo in a tag": (
        f"{HEAD}{SHORT}  - {{public}}/org/tool:12.111\n",
        4, "error", ("{public}/org/tool:12.111: not found", "did you mean '12.11' or '12.10'"),
    ),
    "a typo in a tag of the long form": (
        f"{HEAD}  - description: x\n    image: {{public}}/org/tool:12.1O\n",
        4, "error", ("images.0.image: ", "not found", "did you mean ", "'12.10'"),
    ),
    "a tag that is like none": (
        f"{HEAD}{SHORT}  - {{public}}/org/tool:focal\n",
        4, "error", ("not found", "choose among the tags of {public}/org/tool", "newest are '13.0', '12.11', '12.10'"),
    ),
    "a filter that selects nothing": (
        f"{HEAD}  - image: {{public}}/org/tool\n    tags: ['14.*']\n",
        4, "error", ("no tag matches 14.*", "newest are '13.0', '12.11', '12.10'"),
    ),
    "a typo in a repository": (
        f"{HEAD}{SHORT}  - {{public}}/org/tol:12.11\n",
        4, "error", ("not found", "check the spelling: there is no repository {public}/org/tol"),
    ),
    "a private image": (
        f"{HEAD}{SHORT}  - {{private}}/org/secret:1\n",
        4, "error", ("refuses access", "make it public, or ask the operators to give the publisher access"),
    ),
    "a wrong platform": (
        f"{HEAD}{SHORT}  - {{public}}/org/foreign:1\n",
        4, "error", ("not available for linux/amd64", "linux/arm64, linux/s390x", "name one of these platforms"),
    ),
    "a wrong platform of an image for one": (
        f"{HEAD}{SHORT}  - {{public}}/org/single:1\n",
        4, "error", ("not available for linux/amd64", "an image for linux/arm64", "name its platform in the list"),
    ),
    "one wrong platform of two": (
        f"{HEAD}  - image: {{public}}/org/partly:1\n    platforms:\n      - linux/amd64\n      - linux/s390x\n",
        6, "error", ("not available for linux/s390x", "linux/amd64, linux/arm64", "name one of these platforms"),
    ),
    "a wrong platform of several tags": (
        f"{HEAD}{SHORT}  - {{public}}/org/arm:1.*\n",
        4, "error", ("not available for linux/amd64", "name its platform", "; 1 more of this entry"),
    ),
    "an image of 40 GiB": (
        f"{HEAD}{SHORT}  - {{large}}/org/large:1\n",
        4, "warning", ("40.0 GiB compressed", "large image", "up to 20.0 GiB", "make it smaller", "the operators"),
    ),
    "an image over the limit": (
        f"{HEAD}{SHORT}  - {{large}}/org/huge:1\n",
        4, "error", ("300 GiB compressed", "at most 256 GiB", "make it smaller", "'limits.bytes'"),
    ),
    "two filters that overlap": (
        f"{HEAD}  - {{public}}/org/tool:12.*\n  - {{public}}/org/tool:1*\n",
        4, "warning", ("selects 3 tags that", "on line 3 selects as well", "remove one of the two"),
    ),
    "YAML with a tab": (
        f"{HEAD}{SHORT}\t- {{public}}/org/tool:12.11\n", 4, "error", ("a tab indents here", "spaces only"),
    ),
    "YAML with a wrong indentation": (
        f"{HEAD}{SHORT} - {{public}}/org/tool:12.11\n", 4, "error", ("what belongs together begins in one column",),
    ),
    "YAML with an open quotation mark": (
        f"{HEAD}{SHORT}  - '{{public}}/org/tool:12.11\n", 4, "error", ("quotation mark", "never closed"),
    ),
    "a misspelt key": (
        f"{HEAD}{SHORT}  - image: {{public}}/org/tool:12.11\n    contcat: x\n",
        5, "error", ("contcat: unknown key", "did you mean 'contact'?"),
    ),
    "a duplicate": (
        f"{HEAD}{SHORT}  - image: {{public}}/org/tool:13.0\n    contact: x\n",
        4, "error", ("stands twice, on lines 3 and 4", "remove one"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_told_once(world: World, tmp_path: Path, mistake: str) -> None:
    """As text, as JSON and as an annotation: one message, its file and line, what is wrong, and what to do."""
    text, line, severity, words = MISTAKES[mistake]
    hosts = {"public": world.public, "private": world.private, "large": world.large}
    path = tmp_path / "image-list.yaml"
    path.write_text(text.format(**hosts))

    def check(*options: str) -> CliResult:
        return run_cli("check", "--online", "--config", world.config, *options, path).ok(
            1 if severity == "error" else 0
        )

    (problem,) = check("--json").json["problems"]
    assert (problem["file"], problem["line"], problem["severity"]) == (str(path), line, severity)
    whole = ": ".join(part for part in (problem["where"], problem["message"]) if part)
    for word in words:
        assert word.format(**hosts) in whole
    result = check()
    assert result.stderr == ""
    (told,) = (
        each
        for each in result.stdout.splitlines()
        if each.startswith(f"{path}:") and each[len(str(path)) + 1].isdigit()
    )
    assert re.fullmatch(rf"{re.escape(str(path))}:{line}(:\d+)?: {re.escape(whole)}", told)
    result = check("--format", "github")
    assert result.stderr == ""
    commands = [each for each in result.stdout.splitlines() if re.match(r"::(error|warning) ", each)]
    assert commands == [f"::{severity} file={path},line={line}::{whole.replace('%', '%25')}"]
    # What is right beside it is told of once, and what is not is not told of as if it were.
    notices = [each for each in result.stdout.splitlines() if each.startswith("::notice ")]
    assert all("org/large" not in each and "org/huge" not in each for each in notices)
