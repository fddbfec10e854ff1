"""The workflow, the template and the hook for repositories of image lists do what they say, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import Image, file, layer, require, run, write_layout

ROOT = Path(__file__).parent.parent
CI = ROOT / "deploy/ci"
BEFORE = "version: 1\nimages:\n  - docker.io/Old/mistake:1\n  - oci:layout:old\n"
GOOD = f"{BEFORE}  - oci:layout:1\n"
BAD = f"{GOOD}  - oci:layout:2\n"


@dataclass
class PullRequest:
    """A clone of a repository with a list that a pull request changes."""

    home: Path
    base: str

    def run(self, script: str, **variables: str) -> tuple[int, str]:
        """Run a script as a CI does, in the clone; exit code and stdout."""
        program = self.home.parent / "bin/cvmfs-sync"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cvmfs_sync "$@"\n')
        program.chmod(0o755)
        environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", **variables}
        result = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
            cwd=self.home, env=environment, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert "Traceback" not in result.stderr, result.stderr
        return result.returncode, result.stdout


def pull_request(home: Path, monkeypatch: pytest.MonkeyPatch, after: str, before: str | None = BEFORE) -> PullRequest:
    """One whose list was `before`, and would be `after`."""
    require("git")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    clone = home / "clone"
    write_layout(clone / "layout", {"1": Image((layer(file("hello", "1")),))})
    git = ("git", "-C", clone, "-c", "user.name=Ann Other", "-c", "user.email=nobody@example.org")
    run("git", "init", "--quiet", clone)
    if before is not None:
        (clone / "image-list.yaml").write_text(before)
        run(*git, "add", "image-list.yaml")
    run(*git, "commit", "--quiet", "--allow-empty", "-m", "before")
    (clone / "image-list.yaml").write_text(after)
    return PullRequest(clone, run(*git, "rev-parse", "HEAD").strip())


def workflow() -> dict[Any, Any]:
    """The workflow of GitHub; YAML 1.1 takes its `on` for true."""
    loaded: dict[Any, Any] = yaml.safe_load((CI / "check-image-list.github.yml").read_text())
    return loaded


def environment(request: PullRequest, **inputs: str) -> dict[str, str]:
    """The variables of the workflow's job, where its caller gives these inputs."""
    variables = {"RUNNER_TEMP": str(request.home.parent)}
    for name, expression in workflow()["jobs"]["check"]["env"].items():
        if name == "BASE":
            assert expression == "${{ github.event.pull_request.base.sha }}"
            variables[name] = request.base
            continue
        known = re.fullmatch(r"\$\{\{ inputs\.(\w+) (?:!= false && '([^']*)' )?\|\| '([^']*)' \}\}", expression)
        assert known, expression
        variables[name] = inputs.get(known[1], known[2] if known[2] is not None else known[3])
    return variables


def steps() -> list[str]:
    """The commands of the workflow, without the installation."""
    found = [step["run"] for step in workflow()["jobs"]["check"]["steps"] if "run" in step]
    assert found[0].startswith("python -m pip install")
    return found[1:]


def in_github(request: PullRequest, **inputs: str) -> tuple[int, list[str]]:
    """What the workflow's commands say, one after the other; the annotations."""
    code, out = 0, ""
    for command in steps():
        code, said = request.run(command, **environment(request, **inputs))
        out += said
        if code:
            break
    return code, [line for line in out.splitlines() if line.startswith("::")]


def test_the_workflow_annotates_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the pull request adds is asked for, and told of at its line by the file's name from the top."""
    code, lines = in_github(pull_request(tmp_path / "good", monkeypatch, GOOD))
    assert code == 0
    (line,) = lines
    assert line.startswith("::notice file=image-list.yaml,line=5::")
    code, lines = in_github(pull_request(tmp_path / "bad", monkeypatch, BAD))
    assert code == 1
    assert [line.split("::")[1] for line in lines] == [
        "error file=image-list.yaml,line=6", "notice file=image-list.yaml,line=5",
    ]  # fmt: skip


def test_the_workflow_takes_inputs_and_a_list_that_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `online` nobody is asked; a configuration tells the path; a list that was not there before is all new."""
    request = pull_request(tmp_path, monkeypatch, "version: 1\nimages:\n  - oci:layout:2\n", before=None)
    (request.home / "my config.yaml").write_text("repository: {root: /srv/containers}\n")
    assert in_github(request, online="") == (0, [])
    code, (line,) = in_github(request, config="my config.yaml")
    assert (code, line.split("::")[1]) == (1, "error file=image-list.yaml,line=3")
    (request.home / "image-list.yaml").write_text("version: 1\nimages:\n  - oci:layout:1\n")
    code, (line,) = in_github(request, config="my config.yaml")
    assert code == 0
    assert "published at /srv/containers/oci/" in line


def test_the_workflow_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each input is used, may only read, and runs for pull requests that change the list."""
    document = workflow()
    assert document["permissions"] == {"contents": "read"}
    triggers = document[True]
    assert triggers["pull_request"] == {"paths": ["image-list.yaml"]}
    used = str(document["jobs"]["check"]["env"])
    for name, described in triggers["workflow_call"]["inputs"].items():
        assert f"inputs.{name} " in used
        assert set(described) == {"description", "type", "default"}
    assert environment(pull_request(tmp_path, monkeypatch, GOOD))["LIST"] == "image-list.yaml"


@pytest.mark.parametrize(("text", "code", "line"), [(GOOD, 0, None), (BAD, 1, "image-list.yaml:6: ")])
def test_the_template_tells_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int, line: str | None
) -> None:
    """The template's script fails for a mistake that the merge request adds, and says where it is."""
    request = pull_request(tmp_path, monkeypatch, text)
    (job,) = yaml.safe_load((CI / "check-image-list.gitlab.yml").read_text()).values()
    variables = {**job["variables"], "CI_MERGE_REQUEST_DIFF_BASE_SHA": request.base}
    ended, out = request.run("\n".join(job["script"]), **variables)
    assert ended == code
    told = [each for each in out.splitlines() if re.match(r"image-list\.yaml:\d", each)]
    assert len(told) == (0 if line is None else 1)
    assert all(each.startswith(line or "") for each in told)


@pytest.mark.parametrize(("text", "code"), [("version: 1\nimages: [debian:12]\n", 0), ("images: [debian:12]\n", 1)])
def test_the_hook_checks_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int) -> None:
    """What pre-commit runs, with the names of the files that it is about: one, for `check` takes one."""
    request = pull_request(tmp_path, monkeypatch, text)
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    names = ["image-list.yaml", "x/image-list.yaml", "image-list.yamlx", "an-image-list.yaml"]
    matching = [name for name in names if re.search(hook["files"], name)]
    assert matching == ["image-list.yaml"]
    assert hook["language"] == "python"
    assert request.run(f"{hook['entry']} {matching[0]}")[0] == code
