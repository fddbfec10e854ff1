"""Documentation and code say the same."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

import pytest
import typer.main
import yaml
from pydantic import BaseModel

from cvmfs_sync import cli, config, console, errors, image, imagelist
from cvmfs_sync.image import ImageConfig
from cvmfs_sync.reference import Digest, Platform
from cvmfs_sync.sandbox import furnish
from cvmfs_sync.schema import model_at
from cvmfs_sync.tar import Limits
from cvmfs_sync.tree import Tree
from cvmfs_sync.units import parse_size
from tests.support import Image, directory, file, layer, missing, run_cli, write_layout

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
DEPLOY = ROOT / "deploy"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DEPLOY.rglob("*.md"), *(ROOT / "tests").rglob("*.md")])
COMMAND = re.compile(r"(?:^|bin/|\$\()cvmfs-sync((?: --?[a-z]+)*) ([a-z]+)\b([^\n|#)]*)", re.MULTILINE)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", path.read_text())


def section(path: Path, title: str) -> str:
    """What stands below a heading of the first or second rank, up to the next one; without code blocks."""
    found = re.search(rf"^(#+) {re.escape(title)}$(.*?)(?=^#{{1,2}} |\Z)", prose(path), re.MULTILINE | re.DOTALL)
    assert found, f"{path.name} has no section {title!r}"
    return found[2]


def table(text: str, *header: str) -> list[list[str]]:
    """Rows of the table with these columns; backticks are left in."""
    for found in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]
        if rows[0] == list(header):
            assert {len(row) for row in rows} == {len(header)}
            return rows[2:]
    raise AssertionError(f"no table with the columns {header}")


def code(cell: str) -> str:
    """What stands between the first backticks of a cell."""
    found = re.search(r"`([^`]+)`", cell)
    assert found, f"no `code` in {cell!r}"
    return found[1]


def column(text: str, *header: str) -> list[str]:
    """The code in the first column of a table."""
    return [code(row[0]) for row in table(text, *header)]


def blocks(language: str) -> list[Any]:
    """All code blocks of a language, with the page's name as the test's."""
    found = []
    for path in PAGES:
        for number, (indent, name, body) in enumerate(FENCE.findall(path.read_text())):
            if name == language:
                text = "".join(line.removeprefix(indent) for line in body.splitlines(keepends=True))
                found.append(pytest.param(text, id=f"{path.relative_to(ROOT)}-{number}"))
    assert found
    return found


def slug(heading: str) -> str:
    """The anchor that GitHub and GitLab make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links() -> list[tuple[Path, str]]:
    """All links of all pages that lead to no other host."""
    found = [
        (path, target)
        for path in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(path))
        if "://" not in target and not target.startswith("mailto:")
    ]
    assert len(found) > 20
    return found


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings; a mapping's key is `<host>`, and a list is one setting."""
    for name, field in model.model_fields.items():
        inner = model_at(field.annotation, ())
        keyed = None if inner or get_origin(field.annotation) is tuple else model_at(field.annotation, ("key",))
        if inner is not None:
            yield from leaves(inner, f"{prefix}{name}.")
        elif keyed is not None:
            yield from leaves(keyed, f"{prefix}{name}.<host>.")
        else:
            yield f"{prefix}{name}"


def json_fields(value: object, prefix: str = "", *, maps: Mapping[str, str] | None = None) -> Iterator[str]:
    """Dotted names of all fields of a JSON document; `maps` names the mappings whose keys are data."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = f"{prefix}*" if prefix in (maps or {}) else f"{prefix}{key}"
            if not name.endswith("*"):
                yield name
            if name not in (maps or {}).values():
                yield from json_fields(inner, f"{name}.", maps=maps)
    elif isinstance(value, list):
        for inner in value:
            yield from json_fields(inner, f"{prefix[:-1]}[].", maps=maps)


def literals() -> str:
    """All text constants of the package."""
    return "\n".join(
        node.value
        for path in sorted((ROOT / "cvmfs_sync").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def command_names() -> set[str]:
    """The commands that there are."""
    return set(getattr(typer.main.get_command(cli.app), "commands"))  # noqa: B009 -- typer has groups and commands


def test_readme_has_all_commands_and_no_others() -> None:
    """The table of commands is that of the command line."""
    named = [name.split()[1] for name in column(section(README, "Commands"), "command", "what it does")]
    assert sorted(named) == sorted(command_names())


def test_what_is_planned_is_not_there() -> None:
    """The README does not call planned what works: commands, settings, lists from a URL."""
    planned = re.search(r"\*\*Planned, not there yet:\*\*(.*?)\n\n", README.read_text(), re.DOTALL)
    assert planned is None or not command_names() & set(re.findall(r"`(\w+)`", planned[1]))
    rows = table(section(README, "Configuration"), "key", "default", "meaning")
    unused = {code(key) for key, _, meaning in rows if "not used yet" in meaning}
    wiring = "".join((ROOT / f"cvmfs_sync/{name}.py").read_text() for name in ("service", "serving", "checking"))
    assert [key for key in unused if f".{key}" in wiring] == []
    (image_list,) = (meaning for key, _, meaning in rows if code(key) == "image_list")
    assert ("not supported" in image_list) == ("lists from a URL are not supported" in literals())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_pages_exist(path: Path) -> None:
    """No page tells anybody to run a command or an option of it that is not there."""
    group = typer.main.get_command(cli.app)
    shown = "\n".join(
        [*(body for _, _, body in FENCE.findall(path.read_text())), *re.findall(r"`([^`\n]+)`", prose(path))]
    )
    for options, name, rest in COMMAND.findall(shown):
        assert name in command_names(), f"cvmfs-sync{options} {name}{rest}"
        command = getattr(group, "commands")[name]  # noqa: B009
        known = {option for owner in (command, group) for each in owner.params for option in each.opts}
        for option in re.findall(r"(?<=\s)(--[a-z-]+|-[a-z]\b)", f"{options} {rest}"):
            assert option in known | {"--help", "-h"}, f"cvmfs-sync{options} {name}{rest}: {option}"


def test_readme_has_all_settings_with_their_defaults(tmp_path: Path) -> None:
    """The configuration reference, read as a configuration, is the one that an empty file gives."""
    rows = table(section(README, "Configuration"), "key", "default", "meaning")
    assert sorted(code(row[0]) for row in rows) == sorted(leaves(config.Config))
    document: dict[str, Any] = {}
    for key, default, _ in rows:
        *parents, name = code(key).replace("<host>", "ghcr?io").split(".")
        owner = document
        for parent in parents:
            owner = owner.setdefault(parent.replace("?", "."), {})
        owner[name] = None if default == "none" else yaml.safe_load(code(default))
    path = tmp_path / "cvmfs-sync.yaml"
    path.write_text("")
    empty = config.load(path, {})
    path.write_text(yaml.safe_dump(document))
    told = config.load(path, {})
    plain = {"registries", "limits"}
    assert told.model_dump(exclude=plain) == empty.model_dump(exclude=plain)
    assert told.registry("ghcr.io") == config.RegistryOptions()
    assert told.limits.given() == {name: getattr(Limits(), name) for name in config.Limits.model_fields}


def test_pages_have_all_limits_with_their_defaults() -> None:
    """docs/limits.md has the tar reader's limits; only those that it calls so are not configurable."""
    rows = table((DOCS / "limits.md").read_text(), "limit", "default", "of what")
    assert {code(name): parse_size(yaml.safe_load(value)) for name, value, _ in rows} == {
        field.name: getattr(Limits(), field.name) for field in fields(Limits)
    }
    fixed = {code(name) for name, _, meaning in rows if "not configurable" in meaning}
    assert {code(row[0]) for row in rows} - fixed == set(config.Limits.model_fields)


def test_pages_have_the_fixed_limits() -> None:
    """The limits that nobody can change are those of the code."""
    told = dict(table(section(DOCS / "limits.md", "Fixed"), "what", "limit"))
    assert told["a manifest, index or image configuration"] == f"{image.MAX_DOCUMENT >> 20} MiB"
    assert told["layers of an image"] == str(image.MAX_LAYERS)


def test_readme_has_all_keys_of_the_image_list() -> None:
    """The table of the long form is the list's schema."""
    properties = imagelist.json_schema()["$defs"]["Image"]["properties"]
    assert column(section(README, "Asking for an image"), "key", "meaning") == list(properties)


def test_exit_codes_agree() -> None:
    """README, docs/errors.md and the errors themselves have the same exit codes."""
    codes = {int(number) for number in re.findall(r"[:;]\s(\d+) ", cli.__doc__ or "")}
    assert codes > {0, 1, 2, 3} >= {error.exit_code for error in error_types().values()}
    for path, title in ((README, "Installing it for a site"), (DOCS / "errors.md", "Exit codes")):
        assert {int(row[0]) for row in table(section(path, title), "code", "meaning")} == codes


def error_types() -> dict[str, type[errors.CvmfsSyncError]]:
    """All errors by name."""
    return {name: getattr(errors, name) for name in errors.__all__}


def test_pages_have_all_errors() -> None:
    """docs/errors.md has each type with its exit code, and says which are temporary."""
    rows = table((DOCS / "errors.md").read_text(), "type", "exit code", "ends", "meaning")
    ends = ((errors.UsageError, "the process"), (errors.ImageError, "the image"), (errors.RepositoryError, "the cycle"))
    expected = {
        name: (
            str(error.exit_code),
            next((word for base, word in ends if issubclass(error, base)), ""),
            getattr(error, "temporary", False),
        )
        for name, error in error_types().items()
    }
    assert {code(row[0]): (row[1], row[2], row[3].startswith("temporary")) for row in rows} == expected


@pytest.mark.parametrize("text", blocks("json"))
def test_errors_in_json_look_as_shown(text: str) -> None:
    """The JSON form of an error has the fields that the page shows, in their order."""
    shown = json.loads(text)
    assert list(shown) == list(console.document(errors.NoSpace("what")))
    assert shown["type"] in error_types()


def test_pages_have_all_fields_of_record_and_catalogue(tmp_path: Path) -> None:
    """What docs/repository-layout.md describes is what a real `sync` writes, where it says."""
    tree = layer(directory("etc"), file("etc/motd", "hello\n"))
    labelled = Image((tree,), entrypoint=("/bin/sh",), env=("A=1",))
    write_layout(tmp_path / "layout", {"1": labelled})
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: ['oci:layout:1']\n")
    (tmp_path / "cvmfs-sync.yaml").write_text("")
    run_cli("sync", cwd=tmp_path).ok()
    page = DOCS / "repository-layout.md"
    own = tmp_path / "published/.cvmfs-sync"
    (record,) = (own / "images").glob("??/*.json")
    told = column(section(page, "The record"), "field", "meaning")
    written = set(json_fields(json.loads(record.read_bytes()), maps={"config.labels.": "config.labels.*"}))
    # `config` is described by its fields.
    assert sorted(told) == sorted(written - {"config"})
    told = column(section(page, "The catalogue"), "field", "meaning")
    catalogue = json.loads((own / "catalogue.json").read_bytes())
    assert sorted(told) == sorted(set(json_fields(catalogue, maps={"images.": ""})))
    link = tmp_path / "published" / next(iter(catalogue["images"]))
    assert link.is_symlink()
    assert link.resolve() == (tmp_path / "published/.flat" / record.parent.name / record.stem).resolve()


def test_pages_name_all_that_a_sandbox_gets() -> None:
    """Every path that is added to an empty image stands in docs/sandbox.md."""
    digest = Digest("sha256", "0" * 64)
    tree = Tree(Limits())
    furnish(tree, ImageConfig(digest, Platform(), ()), bind_points=("/cvmfs", "/srv"))
    text = (DOCS / "sandbox.md").read_text()
    absent = []
    for path, inode in tree.walk():
        name = "/" + path.decode()
        parents = inode.children and any(other.decode().startswith(f"{name[1:]}/") for other, _ in tree.walk())
        short = rf"`/{re.escape(path.decode().rpartition('/')[0])}/\w+`(?:, `\w+`)*, `{re.escape(Path(name).name)}`"
        if not (f"`{name}`" in text or re.search(short, text) or parents):
            absent.append(name)
    assert absent == []


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_valid(text: str, tmp_path: Path) -> None:
    """Every YAML block is an image list or a configuration that our own readers take."""
    if text.startswith("version:"):
        read = imagelist.parse(text, base=tmp_path)
        assert read.wishes
        assert read.problems == ()
    else:
        path = tmp_path / "cvmfs-sync.yaml"
        path.write_text(text)
        config.load(path, {})


def test_lists_and_configurations_of_this_repository_are_valid() -> None:
    """The example configuration and the image list load, the list without a warning."""
    loaded = config.load(DEPLOY / "cvmfs-sync.yaml", {})
    assert loaded.repository.backend == "cvmfs"
    assert imagelist.load(ROOT / "image-list.yaml").problems == ()


def test_the_other_backend_of_the_example_is_valid(tmp_path: Path) -> None:
    """What the example configuration has in comments, for the directory backend, loads in place of the other."""
    text = (DEPLOY / "cvmfs-sync.yaml").read_text()
    commented = re.search(r"^# repository:\n(?:#   .*\n)+", text, re.MULTILINE)
    assert commented
    path = tmp_path / "cvmfs-sync.yaml"
    path.write_text(re.sub(r"^# ", "", commented[0], flags=re.MULTILINE))
    assert config.load(path, {}).repository.backend == "directory"


@pytest.mark.parametrize(("path", "target"), links(), ids=lambda value: str(value).rpartition("/")[2])
def test_links_lead_somewhere(path: Path, target: str) -> None:
    """Every relative link names a file of this repository, and a heading of it if it names one."""
    name, _, anchor = target.partition("#")
    linked = (path.parent / name).resolve() if name else path
    assert linked.exists(), target
    assert linked.is_relative_to(ROOT)
    if anchor:
        headings = re.findall(r"^#+ (.*)$", prose(linked), re.MULTILINE)
        assert anchor in {slug(heading) for heading in headings}, target


def test_every_page_is_linked() -> None:
    """No page of docs/ and deploy/ is one that nobody finds."""
    linked = {(path.parent / target.partition("#")[0]).resolve() for path, target in links()}
    assert [path for path in PAGES if path.is_relative_to(DOCS) and path not in linked] == []
    assert [path for path in DEPLOY.iterdir() if path.name != "README.md" and path not in linked] == []


def test_every_decision_says_what_it_costs() -> None:
    """A decision has its context, what was decided, and its consequences."""
    pages = sorted((DOCS / "decisions").glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        assert headings[0].startswith(f"{int(page.name[:4])}. ")
        assert headings[1:] == ["Context", "Decision", "Consequences"], page.name


def test_messages_of_the_readme_are_messages_of_the_program() -> None:
    """Whoever searches the README for what the program said finds it."""
    texts = literals()
    quoted = column(section(README, "When something goes wrong"), "message", "what to do")
    assert quoted
    assert [message for message in quoted if message not in texts] == []


def test_architecture_has_every_module() -> None:
    """The table of modules is the import contract, row by row; `lint-imports` sees that no module is missing there."""
    rows = table((DOCS / "architecture.md").read_text(), "module", "what it is for")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each["type"] == "layers")
    assert [set(re.findall(r"`(\w+)`", row[0])) for row in rows] == [set(each.split(" | ")) for each in layers]


def verify_unit(path: Path) -> None:
    """Let systemd read a unit, its executable replaced by one that is here."""
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", path.read_text()))
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result


@pytest.mark.parametrize("text", blocks("ini"))
def test_drop_ins_are_what_systemd_understands(text: str, tmp_path: Path) -> None:
    """Each drop-in that a page shows goes with the service."""
    if shutil.which("systemd-analyze") is None:
        missing("not on PATH: systemd-analyze")
    service = tmp_path / "cvmfs-sync.service"
    # In one file it means the same as in two.
    service.write_text((DEPLOY / service.name).read_text() + "\n" + text)
    verify_unit(service)


def test_units_in_the_pages_are_what_systemd_understands(tmp_path: Path) -> None:
    """Each service or timer that a page shows whole, with the path where it is to be."""
    if shutil.which("systemd-analyze") is None:
        missing("not on PATH: systemd-analyze")
    shown = [
        unit
        for page in DOCS.glob("*.md")
        for unit in re.findall(
            r"^# /etc/systemd/system/([\w-]+\.(?:service|timer))\n(.*?)(?=^# /etc/|^```)",
            page.read_text(),
            re.MULTILINE | re.DOTALL,
        )
    ]
    assert {"cvmfs-sync-site.service", "cvmfs-sync-site.timer"} <= {name for name, _ in shown}
    for name, text in shown:
        (tmp_path / name).write_text(text)
    for name, _ in shown:
        verify_unit(tmp_path / name)


def test_checking_has_all_fields_of_its_document(tmp_path: Path) -> None:
    """docs/checking.md names what `check --online --json` has for each image beyond what `plan --json` has."""
    write_layout(tmp_path / "layout", {"1": Image((layer(file("x", "1")),))})
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: ['oci:layout:1']\n")
    (tmp_path / "cvmfs-sync.yaml").write_text("")
    document = run_cli("check", "--json", "--online", tmp_path / "image-list.yaml").ok().json
    (plain,) = run_cli("plan", "--json", "--config", tmp_path / "cvmfs-sync.yaml").ok().json["steps"]
    (step,) = document["online"]["steps"]
    page = section(DOCS / "checking.md", "In JSON")
    assert set(column(page, "field", "meaning")) == set(step) - set(plain)
    for name in (*document, *step["unpacked"], "layers", "image"):
        assert f"`{name}`" in page
