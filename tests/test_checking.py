"""`check` on pull requests, `import`, and lists from a URL, as their users meet them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmfs_sync.checking import added_lines
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support import Image, file, layer, run_cli, write_layout

OLD = """\
version: 1
images:
  - docker.io/library/debian:12
  - docker.io/library/python:latest
  - docker.io/Library/broken:1
"""
NEW = (
    OLD
    + """\
  - docker.io/library/ruby:latest
  - image: docker.io/library/perl:5
    descripton: typo
"""
)


def _lists(home: Path) -> tuple[Path, Path]:
    (home / "old.yaml").write_text(OLD)
    (home / "new.yaml").write_text(NEW)
    return home / "old.yaml", home / "new.yaml"


def test_changed_since_shows_only_what_a_pull_request_brings(tmp_path: Path) -> None:
    """Mistakes that were in the list before are not put to the charge of who adds a line."""
    old, new = _lists(tmp_path)
    document = run_cli("check", "--json", "--changed-since", old, new).ok(1).json
    assert [(p["line"], p["severity"]) for p in document["problems"]] == [(6, "warning"), (8, "error")]
    assert document["images"] == 1
    assert run_cli("check", "--changed-since", new, new).ok().stdout.endswith("valid, 0 images, 0 warnings\n")


def test_a_changed_entry_counts_as_changed_and_a_moved_one_does_not(tmp_path: Path) -> None:
    """What an entry says decides, not where it stands."""
    (tmp_path / "old.yaml").write_text("version: 1\nimages:\n  - debian:12\n  - image: perl:5\n    contact: a@b.org\n")
    (tmp_path / "new.yaml").write_text("version: 1\nimages:\n  - image: perl:5\n    contact: c@d.org\n  - debian:12\n")
    result = run_cli("check", "--json", "--changed-since", tmp_path / "old.yaml", tmp_path / "new.yaml").ok()
    assert result.json["images"] == 1


def test_an_old_list_elsewhere_means_the_same_paths(tmp_path: Path) -> None:
    """A pull request's check keeps the old list in another directory; relative names mean what the new one's mean."""
    (tmp_path / "before").mkdir()
    (tmp_path / "before/list.yaml").write_text("version: 1\nimages:\n  - oci:layout:1\n")
    (tmp_path / "list.yaml").write_text("version: 1\nimages:\n  - oci:layout:2\n  - oci:layout:1\n")
    result = run_cli("check", "--json", "--changed-since", tmp_path / "before/list.yaml", tmp_path / "list.yaml").ok()
    assert result.json["images"] == 1


def test_an_old_mistake_that_has_moved_is_an_old_one(tmp_path: Path) -> None:
    """A duplicate names lines; that they have moved makes no new mistake of it."""
    twice = "  - debian:12\n  - debian:12\n"
    (tmp_path / "old.yaml").write_text(f"version: 1\nimages:\n{twice}")
    (tmp_path / "new.yaml").write_text(f"version: 1\nimages:\n  - debian:13\n{twice}")
    result = run_cli("check", "--json", "--changed-since", tmp_path / "old.yaml", tmp_path / "new.yaml").ok()
    assert (result.json["images"], result.json["problems"]) == (1, [])


ADDITIONS = {
    # The old list, what a pull request makes of it, and the line that the mistake is told at.
    "below": (["debian:12", "debian:11"], ["debian:12", "debian:11", "debian:12"], 5),
    "above": (["debian:12", "debian:11"], ["docker.io/library/debian:11", "debian:12", "debian:11"], 3),
    "between": (["debian:12", "debian:11"], ["debian:12", "library/debian:11", "debian:11"], 4),
    "a filter": (["debian:12", "perl:5.1"], ["perl:5.*", "debian:12", "perl:5.1"], 3),
    "beside a filter": (["debian:12", "perl:5.*"], ["perl:5.1", "debian:12", "perl:5.*"], 3),
}


@pytest.mark.parametrize(("before", "after", "line"), ADDITIONS.values(), ids=ADDITIONS)
def test_what_stands_twice_is_told_where_it_was_added(
    tmp_path: Path, before: list[str], after: list[str], line: int
) -> None:
    """Of two lines that make a mistake together, the pull request's own one has the message."""
    for name, images in (("old.yaml", before), ("new.yaml", after)):
        (tmp_path / name).write_text("version: 1\nimages:\n" + "".join(f"  - {image}\n" for image in images))
    document = run_cli("check", "--json", "--changed-since", tmp_path / "old.yaml", tmp_path / "new.yaml").json
    assert [problem["line"] for problem in document["problems"]] == [line]


def test_lines_that_were_added(tmp_path: Path) -> None:
    """Numbers of lines that the old file does not have; none for the same file, or one that lost some."""
    old, new = tmp_path / "old", tmp_path / "new"
    for before, after, expected in (
        ("a b c", "a b c", set()), ("a b c", "a c", set()), ("", "a b", {1, 2}), ("a b c d", "a x c y d", {2, 4}),
        ("a a", "a a a", {3}), ("a b", "", set()),
    ):  # fmt: skip
        old.write_text("\n".join(before.split()))
        new.write_text("\n".join(after.split()))
        assert added_lines(new, old) == expected


def test_a_missing_old_list_is_a_usage_error(tmp_path: Path) -> None:
    """An old list that is not there must not make everything look unchanged."""
    _, new = _lists(tmp_path)
    assert "gone.yaml" in run_cli("check", "--changed-since", tmp_path / "gone.yaml", new).ok(2).stderr


def test_online_asks_what_each_image_is(tmp_path: Path) -> None:
    """Digest, size and path of an image that is there; a reason and exit code 1 for one that is not."""
    image = Image((layer(file("hello", "x" * 1000)),))
    write_layout(tmp_path / "images", {"1": image})
    lines = ["version: 1", "images:", "  - oci:images:1"]
    (tmp_path / "list.yaml").write_text("\n".join(lines) + "\n")
    (step,) = run_cli("check", "--online", "--json", tmp_path / "list.yaml").ok().json["online"]["steps"]
    assert (step["action"], step["digest"], step["link"]) == ("publish", image.digest, f"oci{tmp_path}/images:1")
    assert step["bytes"] == len(image.layers[0].blob)
    (tmp_path / "list.yaml").write_text("\n".join([*lines, "  - oci:images:2"]) + "\n")
    result = run_cli("check", "--online", tmp_path / "list.yaml").ok(1)
    assert "1 to publish, 0 to link, 0 unchanged, 1 failing" in result.stdout
    assert f"list.yaml:4: images.1: oci:{tmp_path}/images:2: " in result.stdout
    assert result.stderr == ""


def test_online_with_a_configuration_knows_registries_and_what_is_published(tmp_path: Path) -> None:
    """The registry's options come from the configuration, and a published image is kept."""
    with ScriptableRegistry() as registry:
        registry.add_image("org/name", "1", [b""])
        (tmp_path / "image-list.yaml").write_text(f"version: 1\nimages:\n  - {registry.host}/org/name:1\n")
        config = tmp_path / "cvmfs-sync.yaml"
        config.write_text(f"registries: {{'{registry.host}': {{insecure: true}}}}\n")
        check = ("check", "--online", "--json", "--config", config, tmp_path / "image-list.yaml")
        assert run_cli(*check).ok().json["online"]["steps"][0]["action"] == "publish"
        run_cli("sync", "--config", config).ok()
        assert run_cli(*check).ok().json["online"]["steps"][0]["action"] == "keep"


def test_import_writes_a_list_that_check_accepts(tmp_path: Path) -> None:
    """The way from another tool's list: import, check; what was lost is told on stderr with exit code 1."""
    (tmp_path / "docker_images.txt").write_text("# ours\norg/name:1\norg/other:*\n")
    result = run_cli("import", tmp_path / "docker_images.txt").ok()
    assert "2 images imported, 0 remarks" in result.stderr
    (tmp_path / "list.yaml").write_text(result.stdout)
    run_cli("check", tmp_path / "list.yaml").ok()
    (tmp_path / "docker_images.txt").write_text("org/name:1\nno such image\n")
    result = run_cli("import", tmp_path / "docker_images.txt").ok(1)
    assert "docker_images.txt:2" in result.stderr
    assert run_cli("import", tmp_path / "gone").ok(2).stdout == ""


@pytest.mark.parametrize("command", ["plan", "sync", "status"])
def test_a_list_from_a_url_that_was_never_there_is_exit_2(tmp_path: Path, command: str) -> None:
    """Nothing is done without a list, and the message names the URL."""
    config = tmp_path / "cvmfs-sync.yaml"
    config.write_text("image_list: http://127.0.0.1:9/list.yaml\n")
    assert "http://127.0.0.1:9/list.yaml" in run_cli(command, "--config", config).ok(2).stderr


OTHER_LISTS = {
    "docker_images.txt": (
        "debian:12\n# tools\norg/tool:1.*\norg/tool:latest\n\nregistry.example.org:5000/a/b:1   # nested\norg/x::\n",
        [(4, "warning"), (7, "error")],
        4,
    ),
    "one line": ("debian:12\n", [], 1),
    "DUCC": (
        """\
version: 1
user: cvmfs-sync
input:
  - 'https://registry.example.org/org/tool:1.*'
  - 'https://docker.io/library/debian:latest'
  - 'https://docker.io/org/x::'
""",
        [(2, "warning"), (5, "warning"), (6, "error")],
        2,
    ),
}


@pytest.mark.parametrize("kind", OTHER_LISTS)
def test_other_tools_lists_are_checked_as_they_are(tmp_path: Path, kind: str) -> None:
    """Each mistake stands at its line of the file that people edit, not of what `import` would make of it."""
    text, problems, images = OTHER_LISTS[kind]
    (tmp_path / "list").write_text(text)
    document = (
        run_cli("check", "--json", tmp_path / "list").ok(1 if (7, "error") in problems or "DUCC" in kind else 0).json
    )
    assert [(p["line"], p["severity"]) for p in document["problems"]] == problems
    assert document["images"] == images


def test_what_a_pull_request_adds_to_another_tools_list(tmp_path: Path) -> None:
    """Only the lines that are new are looked at."""
    (tmp_path / "old").write_text("debian:12\norg/x::\n")
    (tmp_path / "new").write_text("debian:12\norg/x::\norg/tool:latest\n")
    document = run_cli("check", "--json", "--changed-since", tmp_path / "old", tmp_path / "new").ok().json
    assert (document["images"], [p["line"] for p in document["problems"]]) == (1, [3])


def test_a_broken_image_list_is_not_taken_for_another_tools(tmp_path: Path) -> None:
    """A mistake in the YAML is told as such."""
    (tmp_path / "list").write_text("version: 1\nimages:\n  - debian:12\n - org/tool:1\n")
    assert "list:4" in run_cli("check", tmp_path / "list").ok(1).stdout


def test_annotations_for_github(tmp_path: Path) -> None:
    """Mistakes, failures and what would be published stand at their lines; no text ends the command early."""
    image = Image((layer(file("hello", "x" * 1000)),))
    layout = write_layout(tmp_path / "images", {"1": image})
    source = tmp_path / "a,b.yaml"
    source.write_text(f"version: 1\nimages:\n  - oci:{layout}:1\n  - oci:{layout}:2\n  - docker.io/x/y:50%::z\n")
    lines = run_cli("check", "--online", "--format", "github", source).ok(1).stdout.splitlines()
    name = str(source).replace(",", "%2C")
    commands = [line for line in lines if line.startswith("::")]
    assert [command.partition("::")[2].split("::")[0] for command in commands] == [
        f"error file={name},line=4",
        f"error file={name},line=5",
        f"notice file={name},line=3",
    ]
    assert "not" in commands[0]
    assert "50%25" in commands[1]
    assert "would be published" in commands[2]
    assert run_cli("check", "--format", "json", source).ok(1).json["images"] == 2
    assert "one of" in run_cli("check", "--format", "xml", source).ok(2).stderr
