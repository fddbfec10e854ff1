"""What a user's mistake in a pull request is told as: once, on the line that is to be mended, with how to mend it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.scriptable_registry import OCI_LAYER, OCI_MANIFEST, ScriptableRegistry, to_json
from tests.support import CliResult, Image, Index, RegistryServer, file, layer, run_cli, start_docker_registry
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


def add_large_image(registry: ScriptableRegistry, repository: str, tag: str, *sizes: int) -> None:
    """An image whose manifest claims layers of these sizes, of which there is not a byte."""
    registry.add_image(repository, tag, [bytes(512)] * len(sizes))
    content, media_type = registry.manifests[repository, tag]
    document = json.loads(content)
    document["layers"] = [
        {"mediaType": f"{OCI_LAYER}+gzip", "digest": f"sha256:{number:064x}", "size": size}
        for number, size in enumerate(sizes, 1)
    ]
    assert media_type == OCI_MANIFEST
    registry.put_manifest(repository, tag, to_json(document))


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
        add_large_image(large, "org/large", "1", 10 * GIB, 30 * GIB)
        add_large_image(large, "org/huge", "1", 300 * GIB)
        for size, tag in enumerate(("2.0", "2.1"), 40 * GIB):
            add_large_image(large, "org/large", tag, size)
        site = Site(home / "site", insecure=(public.host, private.host, large.host))
        yield World(public.host, private.host, large.host, site.config)


HEAD = "version: 1\nimages:\n"
SHORT = "  - {public}/org/tool:13.0\n"
BLOCKED = """\
  - {public}/org/tool:12.9
blocked:
  - image: {public}/org/tool:12.9
    reason: x
"""
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
        4, "error", ("not available for linux/amd64", "an index for", "write 'platforms: [linux/arm64, linux/s390x]'"),
    ),
    "a wrong platform of an image for one": (
        f"{HEAD}{SHORT}  - {{public}}/org/single:1\n",
        4, "error", ("not available for linux/amd64", "an image for linux/arm64", "write 'platforms: [linux/arm64]'"),
    ),
    "one wrong platform of two": (
        f"{HEAD}  - image: {{public}}/org/partly:1\n    platforms:\n      - linux/amd64\n      - linux/s390x\n",
        6, "error", ("not available for linux/s390x", "linux/amd64, linux/arm64", "take linux/s390x out of"),
    ),
    "a wrong platform of several tags": (
        f"{HEAD}{SHORT}  - {{public}}/org/arm:1.*\n",
        4, "error", ("not available for linux/amd64", "write 'platforms: [linux/arm64]'", "; 1 more of this entry"),
    ),
    "an image of 40 GiB": (
        f"{HEAD}{SHORT}  - {{large}}/org/large:1\n",
        4, "warning", ("40.0 GiB compressed", "large image", "up to 20.0 GiB", "make it smaller", "the operators"),
    ),
    "several images of 40 GiB": (
        f"{HEAD}{SHORT}  - {{large}}/org/large:2.*\n",
        4, "warning", ("org/large:2.1 is a large image", "40.0 GiB compressed", "; 1 more of this entry"),
    ),
    "an image over the limit": (
        f"{HEAD}{SHORT}  - {{large}}/org/huge:1\n",
        4, "error", ("300 GiB compressed", "at most 256 GiB", "make it smaller", "'limits.bytes'"),
    ),
    "two filters that overlap": (
        f"{HEAD}  - {{public}}/org/tool:12.*\n  - {{public}}/org/tool:1*\n",
        4, "warning", ("selects 3 tags that", "on line 3 selects as well", "remove one of the two"),
    ),
    "an image that a filter selects": (
        f"{HEAD}  - {{public}}/org/tool:12.*\n  - {{public}}/org/tool:12.9\n",
        4, "warning", ("is selected by", "on line 3 as well", "remove this one"),
    ),
    "a blocked image": (
        f"{HEAD}{SHORT}{BLOCKED}",
        4, "warning", ("is blocked, on line 6: x",),
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


@pytest.mark.parametrize("only_changes", [False, True])
def test_a_link_that_another_image_has(docker_registry: RegistryServer, tmp_path: Path, *, only_changes: bool) -> None:
    """Two images under one link would stop every cycle: it is told at the one that was added."""
    registry = docker_registry.host
    docker_registry.push("advice/tool", "1", TOOL)
    site = Site(tmp_path, insecure=(registry,), settings={"layout": "osg"})
    old = tmp_path / "old.yaml"
    old.write_text(f"{HEAD}  - quay.io/advice/tool:1\n")
    new = tmp_path / "new.yaml"
    new.write_text(f"{HEAD}  - {registry}/advice/tool:1\n  - quay.io/advice/tool:1\n")
    changes = ("--changed-since", old) if only_changes else ()
    (problem,) = run_cli("check", "--json", "--online", "--config", site.config, *changes, new).ok(1).json["problems"]
    assert problem["line"] == (3 if only_changes else 4)
    assert "two images claim the link advice/tool:1" in problem["message"]
    assert "remove one from the list" in problem["message"]


def test_a_registry_that_does_not_answer(tmp_path: Path) -> None:
    """Nobody can tell, and the message does not say that there is no such image."""
    with ScriptableRegistry() as registry:
        registry.fail("/v2/", status=500)
        site = Site(tmp_path, insecure=(registry.host,))
        path = site.wish(f"{registry.host}/org/tool:1")
        (problem,) = run_cli("check", "--json", "--online", "--config", site.config, path).ok(1).json["problems"]
    assert "run the check again" in problem["message"]
    assert "not found" not in problem["message"]


def test_mistakes_of_another_tools_list_have_its_lines(world: World, tmp_path: Path) -> None:
    """A typo in a docker_images.txt is told at its line there."""
    path = tmp_path / "docker_images.txt"
    path.write_text(f"# tools\n\n{world.public}/org/tool:13.0\n{world.public}/org/tool:13.1\n")
    (problem,) = run_cli("check", "--json", "--online", "--config", world.config, path).ok(1).json["problems"]
    assert (problem["line"], problem["where"]) == (4, "")
    assert "did you mean '13.0' or " in problem["message"]


def test_limits_of_the_configuration(world: World, tmp_path: Path) -> None:
    """`large_image`, `spool_limit` and `limits.bytes` say what is too much; without them nothing is."""
    path = tmp_path / "image-list.yaml"
    path.write_text(f"{HEAD}  - {world.large}/org/large:1\n")
    for settings, severity, words in (
        ({"large_image": None}, None, ""),
        ({"large_image": "50G"}, None, ""),
        ({"spool_limit": "30G"}, "error", "'spool_limit'"),
        ({"limits": {"bytes": "30G"}}, "error", "'limits.bytes'"),
        ({"large_image": "10G", "limits": {"bytes": None}}, "warning", "up to 10.0 GiB"),
    ):
        site = Site(tmp_path, insecure=(world.large,), settings=settings)
        problems = run_cli("check", "--json", "--online", "--config", site.config, path).json["problems"]
        assert [problem["severity"] for problem in problems] == ([severity] if severity else [])
        assert all(words in problem["message"] for problem in problems)
