"""Lists of today's tools."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_sync.imagelist import parse
from cvmfs_sync.importers import Imported, convert
from cvmfs_sync.yamlfile import parse as parse_yaml
from tests.support import run_cli

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


DIGEST = "sha256:" + "ab" * 32
# What stands in a line, and the wish that it is; None for what is reported.
ODDITIES: dict[str, str | None] = {
    "org{n}/tool": "docker.io/org{n}/tool:latest",
    "tool{n}": "docker.io/library/tool{n}:latest",
    "org{n}/tool:": None,
    "org{n}/tool:1.{n}": "docker.io/org{n}/tool:1.{n}",
    "org{n}/tool:*": "docker.io/org{n}/tool (*)",
    "org{n}/tool:v?.[0-9]*": "docker.io/org{n}/tool (v?.[0-9]*)",
    "org{n}/*:1": None,
    "localhost:5000/tool{n}": "localhost:5000/tool{n}:latest",
    "registry.example.org:5000/a/b/c/tool{n}:1-2_3.4": "registry.example.org:5000/a/b/c/tool{n}:1-2_3.4",
    "registry.example.org:5000/a/b/c/tool{n}:2*": "registry.example.org:5000/a/b/c/tool{n} (2*)",
    "registry.example.org/deep/er/and/deep/er/tool-{n}": "registry.example.org/deep/er/and/deep/er/tool-{n}:latest",
    "ghcr.io/org/tool{n}@" + DIGEST: "ghcr.io/org/tool{n}@" + DIGEST,
    "ghcr.io/org/tool{n}:1@" + DIGEST: "ghcr.io/org/tool{n}:1@" + DIGEST,
    "ghcr.io/Org/Tool{n}:1": None,
    "https://ghcr.io/org/byurl{n}:1": "ghcr.io/org/byurl{n}:1",
    "docker://ghcr.io/org/byscheme{n}": "ghcr.io/org/byscheme{n}:latest",
    "docker.io/org{n}/twice:1": "docker.io/org{n}/twice:1",
    "org{n}/twice:1": None,
    "index.docker.io/org{n}/twice:1": None,
    "1{n}": "docker.io/library/1{n}:latest",
    "2024-01-{n}": "docker.io/library/2024-01-{n}:latest",
    "org{n}/two words": None,
    "org{n}/tööl:1": None,
    "org{n}/tool:1.{n} org{n}/tool:2": None,
    "org{n}/behind:1\t# said behind it": "docker.io/org{n}/behind:1",
    "  org{n}/indented:1": "docker.io/org{n}/indented:1",
    "\torg{n}/tab:1\t \t": "docker.io/org{n}/tab:1",
    "org{n}/spaces:1   ": "docker.io/org{n}/spaces:1",
    "a: b{n}": None,
    "- org{n}/dash:1": None,
}


def _many(end: str) -> tuple[str, set[str], set[int]]:
    """A list as long as OSG's with all oddities; the wishes that it has, and the lines to be reported."""
    lines: list[str] = []
    wishes: set[str] = set()
    reported: set[int] = set()
    for number in range(10, 30):
        lines += ["", f'# group {number}: it\'s "quoted" & odd: {{}} [] \\ é', "#" * 40]
        for line, wish in ODDITIES.items():
            lines.append(line.replace("{n}", str(number)))
            if wish is None:
                reported.add(len(lines))
            else:
                wishes.add(wish.replace("{n}", str(number)))
        lines += ["  ", "#org/commented:1", "# org/commented-too:2*"]
    return "\ufeff" + end.join(lines), wishes, reported


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_several_hundred_lines_come_through(end: str) -> None:
    """A list of OSG's size with every oddity: each line is a wish or is reported, and the wishes are those expected."""
    text, wishes, reported = _many(end)
    imported = convert(text, "docker_images.txt")
    found = _wishes(imported)
    assert imported.images == len(wishes) == 20 * sum(wish is not None for wish in ODDITIES.values()) >= 400
    assert set(found) == wishes
    assert {problem.line for problem in imported.problems} == reported
    assert found["docker.io/org17/behind:1"] == "said behind it"
    assert found["docker.io/org17/tool:1.17"] == 'group 17: it\'s "quoted" & odd: {} [] \\ é'


def test_a_recipe_of_several_hundred_lines_comes_through() -> None:
    """The same images as DUCC's inputs, by their URLs: the same wishes, and what is wrong by the line of the recipe."""
    lines = ["version: 1", "user: cvmfs", "cvmfs_repo: 'x.example.org'", "output_format: '$(scheme)://x/$(image)'"]
    lines += ["", "input:"]
    wishes: set[str] = set()
    reported = {2, 3, 4}
    for number in range(10, 30):
        for position, (name, wish) in enumerate(ODDITIES.items()):
            bare = name.strip().partition("\t")[0].replace("{n}", str(number))
            url = bare if "://" in bare else f"https://{bare}"
            quoted = json.dumps(url, ensure_ascii=False) if position % 2 else "'" + url.replace("'", "''") + "'"
            lines.append(f"{'  ' * (number % 2 == 0)}- {quoted}" if number == 10 else f"  - {quoted}   # {number}")
            if wish is None:
                reported.add(len(lines))
            else:
                wishes.add(wish.replace("{n}", str(number)))
        lines += ["", f"  # group {number}"]
    imported = convert("\n".join(lines), "recipe.yaml")
    found = _wishes(imported)
    assert set(found) == wishes
    assert {problem.line for problem in imported.problems} == reported
    assert found["docker.io/org17/tool:1.17"] == "17"


@pytest.mark.parametrize("name", ["docker_images.txt", "list", "recipe.yaml"])
def test_check_reads_what_import_reads(tmp_path: Path, name: str) -> None:
    """`check` on the original finds the same images and mistakes; what `import` makes of it has no mistakes."""
    text, wishes, reported = _many("\r\n")
    if name == "recipe.yaml":
        text = "\ufeffversion: 1\r\ninput:\r\n  - 'https://ghcr.io/a/b:*'\r\n  - 'https://ghcr.io/A:1'\r\n"
        wishes, reported = {"ghcr.io/a/b (*)"}, {4}
    original = tmp_path / name
    original.write_bytes(text.encode())
    document = run_cli("check", "--json", original).ok(1).json
    assert document["images"] == len(wishes)
    other = re.compile("moves without notice|is selected by .* on line ([0-9]+)")
    assert {each["line"] for each in document["problems"] if not other.search(each["message"])} == reported
    # Lines that messages name are the original's, too.
    for each in document["problems"]:
        if (found := other.search(each["message"])) and found[1]:
            assert text.split("\r\n")[int(found[1]) - 1].endswith(":*")
    result = run_cli("import", original).ok(1)
    assert f"{len(wishes)} images imported, {len(reported)} remarks" in result.stderr
    (tmp_path / "image-list.yaml").write_text(result.stdout)
    document = run_cli("check", "--json", tmp_path / "image-list.yaml").ok().json
    assert document["images"] == len(wishes)
    assert {each["severity"] for each in document["problems"]} <= {"warning"}
    again = parse(result.stdout, base=Path("/"))
    assert {str(wish) for wish in again.wishes} == wishes


def test_a_recipe_tells_what_is_not_carried_over() -> None:
    """Unknown keys and versions, plain HTTP, and what stands twice; an input that is no list is an error."""
    text = "version: 2\nspeed: 9\ninput:\n  - http://a.example.org/x/y:1 # slow\ninput: [a]\n"
    imported = convert(text, "r")
    assert _wishes(imported) == {"a.example.org/x/y:1": "slow"}
    assert [(problem.line, problem.severity) for problem in imported.problems] == [
        (1, "warning"), (2, "warning"), (4, "warning"), (5, "error"),
    ]  # fmt: skip
    (problem,) = convert("version: 1\ninput: all\n", "r").problems
    assert (problem.line, problem.severity) == (2, "error")


def test_a_broken_recipe_is_told_as_such() -> None:
    """A mistake in a recipe's YAML is one mistake, and not one for each of its lines."""
    (problem,) = convert("version: 1\ninput:\n  - 'https://a.example.org/b:1'\n - c\n", "r").problems
    assert (problem.line, problem.severity) == (4, "error")


def test_a_long_comment_costs_no_image() -> None:
    """A description is cut where one has to end, and is printable whatever the comment holds."""
    imported = convert(f"# \x7f\x85a {'word ' * 500}\norg/tool:1\n", "x")
    assert not imported.problems
    (description,) = _wishes(imported).values()
    assert description is not None
    assert description.startswith("a word word")
    assert description.endswith("...")
    assert len(description) <= 1000


words = st.sampled_from(
    ["debian", "org/x:1", "org/x:*", "# a", " #b", "\t", "\r\n", "\n", "\n\n", ":", "- ", "'", '"', "input:",
     "version: 1", "https://ghcr.io/", "@", "\ufeff", "\x85", "\u2028", "\x0c", "{", "images:", "&", "*", "!", "é"]
)  # fmt: skip


@given(st.lists(words | st.text(max_size=6), max_size=25).map("".join))
def test_whatever_stands_in_a_list(text: str) -> None:
    """Nothing is raised, the outcome is a valid list, and no line that says anything is passed over in silence."""
    imported = convert(text, "x")
    _wishes(imported)
    told = {problem.line for problem in imported.problems} | set(imported.origins)
    if imported.text.startswith("# Imported from a docker_images.txt"):
        for number, line in enumerate(re.split("\r\n|\r|\n", text.removeprefix("\ufeff")), 1):
            assert not line.strip() or line.strip().startswith("#") or number in told
    else:
        data = parse_yaml(text.removeprefix("\ufeff"), "x").data
        inputs = data["input"] if isinstance(data, dict) and isinstance(data["input"], list) else []
        assert imported.images + len(imported.problems) >= len(inputs)
