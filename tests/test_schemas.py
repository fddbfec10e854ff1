"""The committed JSON Schemas, and the templates that check a list."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvmfs_sync import cli
from cvmfs_sync.schemas import documents, write
from tests.support.commands import cli_command

TOP = Path(__file__).parent.parent
SCHEMAS = TOP / "deploy/schemas"
TEMPLATES = TOP / "deploy/ci"


@pytest.mark.parametrize("name", documents())
def test_the_committed_schema_is_current(name: str, tmp_path: Path) -> None:
    """`make schemas` would change nothing."""
    write(tmp_path)
    assert (tmp_path / name).read_text() == documents()[name]
    assert (SCHEMAS / name).read_text() == documents()[name], "run `make schemas`"
    assert json.loads(documents()[name])["$schema"].startswith("https://json-schema.org/")


def test_no_other_schema_is_committed() -> None:
    """A schema that nothing makes any more is gone."""
    assert {path.name for path in SCHEMAS.iterdir()} == set(documents())


def script(template: str) -> str:
    """The commands of a template that run cvmfs-sync and what goes before."""
    document: Any = yaml.safe_load((TEMPLATES / template).read_text())
    if "jobs" in document:
        return "\n".join(step["run"] for step in document["jobs"]["check"]["steps"][-2:])
    return "\n".join(document["check the image list"]["script"])


@pytest.mark.parametrize("template", ["check-image-list.github.yml", "check-image-list.gitlab.yml"])
@pytest.mark.parametrize("history", ["changed", "new"])
def test_a_template_checks_what_a_request_changes(template: str, history: str, tmp_path: Path) -> None:
    """Its own commands, run in a git repository: an old mistake is nobody's, a new one fails with its line."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    path = tmp_path / "image-list.yaml"
    old = "version: 1\nimages:\n  - docker.io/Old/mistake:1\n"
    (tmp_path / "README").write_text("images\n")
    if history == "changed":
        path.write_text(old)
    git("add", ".")
    git("commit", "-m", "before")
    before = git("rev-parse", "HEAD")
    path.write_text(old + "  - docker.io/New/mistake:1\n")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/cvmfs-sync"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(cli_command())} "$@"\n')
    wrapper.chmod(0o755)
    environment = {
        **os.environ, "BASE": before, "CI_MERGE_REQUEST_DIFF_BASE_SHA": before, "LIST": "image-list.yaml", "ONLINE": "",
        "RUNNER_TEMP": str(tmp_path), "PATH": f"{wrapper.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    commands = script(template).replace(" --online", "")
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"4.*New/mistake", done.stdout)
    assert ("Old/mistake" in done.stdout) == (history == "new")


def test_the_pre_commit_hook_names_a_command_that_is_there() -> None:
    """Its entry is a command line of ours, and its pattern finds the list."""
    (hook,) = yaml.safe_load((TOP / ".pre-commit-hooks.yaml").read_text())
    command, subcommand = shlex.split(hook["entry"])
    assert command == "cvmfs-sync"
    assert subcommand in {each.name for each in cli.app.registered_commands}
    assert re.search(hook["files"], "image-list.yaml")
    assert not re.search(hook["files"], "other.yaml")
