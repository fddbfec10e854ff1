"""Pushes as values, and the wishes that they concern."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.imagelist import parse
from cvmfs_sync.pushes import Push, concerned


@pytest.mark.parametrize(
    ("text", "push"),
    [
        ("quay.io/org/tool:1", Push("quay.io", "org/tool", "1")),
        ("quay.io/org/tool:latest", Push("quay.io", "org/tool", "latest")),
        ("quay.io/org/tool", Push("quay.io", "org/tool")),
        ("quay.io/org/tool/**", Push("quay.io", "org/tool", below=True)),
        ("localhost:5000/tool", Push("localhost:5000", "tool")),
        ("localhost:5000/tool:5000", Push("localhost:5000", "tool", "5000")),
        ("docker.io/library/debian:12", Push("docker.io", "library/debian", "12")),
    ],
)
def test_a_push_is_read_as_it_is_written(text: str, push: Push) -> None:
    """There and back."""
    assert Push.parse(text) == push
    assert str(push) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "quay.io/", "quay.io/Org/tool", "quay.io/org/tool:", "quay.io/org/tool:1/**", "quay.io/org/../x", "a b",
        f"quay.io/org/tool@sha256:{'0' * 64}", "/**", "quay.io/**/**", "quay.io/org/tool:1\n", "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_push_is_refused(text: str) -> None:
    """Digests among it: nobody can say what a push is to be found to be."""
    with pytest.raises(InvalidReference):
        Push.parse(text)


LIST = f"""
version: 1
images:
  - quay.io/org/tool:1
  - quay.io/org/tool:2
  - quay.io/org/tool@sha256:{"1" * 64}
  - image: quay.io/org/many
    tags: ["4.*", "!*-rc*"]
  - quay.io/org/many:latest
  - oras://quay.io/org/sif:1
  - debian
  - ghcr.io/org/tool:1
  - quay.io/org/tool/part:1
  - quay.io/org/toolbox:1
  - oci:/srv/images:1
"""


@pytest.mark.parametrize(
    ("pushed", "expected"),
    [
        ("quay.io/org/tool:1", ["quay.io/org/tool:1"]),
        ("quay.io/org/tool:3", []),
        ("quay.io/org/tool", ["quay.io/org/tool:1", "quay.io/org/tool:2"]),
        ("quay.io/org/tool/**", ["quay.io/org/tool:1", "quay.io/org/tool:2", "quay.io/org/tool/part:1"]),
        ("quay.io/org/many:4.2", ["quay.io/org/many:4.2"]),
        ("quay.io/org/many:4.2-rc1", []),
        ("quay.io/org/many:latest", ["quay.io/org/many:latest"]),
        ("quay.io/org/many", ["quay.io/org/many", "quay.io/org/many:latest"]),
        ("quay.io/org/sif:1", ["oras://quay.io/org/sif:1"]),
        ("docker.io/library/debian:latest", ["docker.io/library/debian:latest"]),
        ("index.docker.io/library/debian:latest", ["docker.io/library/debian:latest"]),
        ("quay.io/nobody/asks:1", []),
    ],
)
def test_who_is_concerned(pushed: str, expected: list[str]) -> None:
    """Names of the list, tags by its filters; what has a digest never means anything else."""
    names = concerned(parse(LIST, base=Path("/")).require_valid().wishes, [Push.parse(pushed)])
    assert [str(name) for name in names] == expected


def test_many_pushes_are_names_of_the_list_each_once() -> None:
    """In the list's order, whatever was told first, or twice."""
    pushed = ["ghcr.io/org/tool:1", "quay.io/org/many:4.2", "quay.io/org/many:4.1", "quay.io/org/tool:1"]
    names = concerned(
        parse(LIST, base=Path("/")).require_valid().wishes, [Push.parse(each) for each in [*pushed, *pushed]]
    )
    assert [str(name) for name in names] == [
        "quay.io/org/tool:1", "quay.io/org/many:4.1", "quay.io/org/many:4.2", "ghcr.io/org/tool:1",
    ]  # fmt: skip
