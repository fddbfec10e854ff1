"""Lists of today's tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_sync.imagelist import parse
from cvmfs_sync.importers import Imported, convert

OSG = """\
# OSG images
#
############################
htcondor/mini:9.0-el7
opensciencegrid/osgvo-ubuntu-20.04:latest   \n
# Rosetta and friends,
# kept by the Meiler lab
rosettacommons/rosetta:*
rosettacommons/rosetta-mpi
#rosettacommons/old:1

python
ghcr.io/Org/Name:1
registry.example.org:5000/a/b/c/d:1.2   # nested
python:latest
hub.example.org/x/y@sha256:{digest}
two words
""".format(digest="ab" * 32)

DUCC = """\
version: 1
user: cvmfsunpacker
cvmfs_repo: 'unpacked.cern.ch'
output_format: '$(scheme)://registry.gitlab.cern.ch/thin/$(image)'
input:
  # Base systems
  - 'https://registry.hub.docker.com/library/fedora:latest'
  - 'https://registry.hub.docker.com/library/debian:stable'

  #- 'https://registry.hub.docker.com/library/old:1'
  - "https://gitlab-registry.cern.ch/lhcb-core/lbdocker/centos7-build:v*"
  - https://ghcr.io/org/name
  - 7
"""


def _wishes(imported: Imported) -> dict[str, str | None]:
    read = parse(imported.text, base=Path("/"))
    assert not read.errors, imported.text
    assert len(read.wishes) == imported.images
    return {str(wish): wish.description for wish in read.wishes}


def test_docker_images_txt_becomes_a_list() -> None:
    """Every image comes through, with the comment above its block; rulers and dead lines are no descriptions."""
    imported = convert(OSG, "docker_images.txt")
    rosetta = "Rosetta and friends, kept by the Meiler lab"
    assert _wishes(imported) == {
        "docker.io/htcondor/mini:9.0-el7": "OSG images",
        "docker.io/opensciencegrid/osgvo-ubuntu-20.04:latest": "OSG images",
        "docker.io/rosettacommons/rosetta (*)": rosetta,
        "docker.io/rosettacommons/rosetta-mpi:latest": rosetta,
        "docker.io/library/python:latest": None,
        "registry.example.org:5000/a/b/c/d:1.2": "nested",
        f"hub.example.org/x/y@sha256:{'ab' * 32}": None,
    }


def test_what_is_not_carried_over_is_told_with_its_line() -> None:
    """Nothing is dropped in silence: bad names and duplicates are named where they stand."""
    problems = [(p.line, p.severity, p.message) for p in convert(OSG, "docker_images.txt").problems]
    assert [(line, severity) for line, severity, _ in problems] == [(14, "error"), (16, "warning"), (18, "error")]
    assert "'ghcr.io/Org/Name:1'" in problems[0][2]
    assert "line 13 already" in problems[1][2]
    assert "'two words'" in problems[2][2]


def test_a_recipe_becomes_a_list() -> None:
    """DUCC's URLs become references, its globs stay, and its settings are named as not carried over."""
    imported = convert(DUCC, "recipe.yaml")
    assert _wishes(imported) == {
        "docker.io/library/fedora:latest": "Base systems",
        "docker.io/library/debian:stable": "Base systems",
        "gitlab-registry.cern.ch/lhcb-core/lbdocker/centos7-build (v*)": None,
        "ghcr.io/org/name:latest": None,
    }
    assert [(p.line, p.where) for p in imported.problems] == [
        (2, "user"), (3, "cvmfs_repo"), (4, "output_format"), (13, "input.4"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "version: 1\ninput: []\n"])
def test_a_list_without_images_is_an_empty_list(text: str) -> None:
    """An empty original gives a valid list of nothing."""
    imported = convert(text, "x")
    assert imported.images == 0
    assert not parse(imported.text, base=Path("/")).errors


def test_several_hundred_lines_come_through() -> None:
    """A list of the size of OSG's loses nothing, whatever stands between the images."""
    lines = []
    for number in range(600):
        lines.append(f"org{number % 40}/image-{number}:{'*' if number % 5 == 0 else f'v{number}'}{' ' * (number % 3)}")
        if number % 7 == 0:
            lines += ["", f'# group {number}: it\'s "quoted" & odd: {{}} []']
    imported = convert("\r\n".join(lines), "docker_images.txt")
    assert imported.images == 600
    assert not imported.problems
    assert len(_wishes(imported)) == 600
