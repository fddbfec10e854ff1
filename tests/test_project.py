"""The rules of this project that a machine can hold."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions, version
from pathlib import Path

import pytest

import cvmfs_sync
from tests.support import run_cli

ROOT = Path(__file__).parent.parent

# In pieces, so that this file does not hold what it looks for.
PACKAGE_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pypi", "python", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("ftp", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("proxy", "golang", "org"),
        ("sum", "golang", "org"),
        ("conda", "anaconda", "org"),
        ("repo", "anaconda", "com"),
        ("repo", "maven", "apache", "org"),
        ("jfrog", "io"),
    )
)
MIRROR = re.compile(
    rb"--(extra-)?index-url|--find-links|--trusted-host|//[\w.-]*\b(mirror|artifactory|nexus|devpi)s?\b"
)


def committed_files() -> list[Path]:
    """What git has or would add; the whole directory where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / os.fsdecode(name) for name in listing.split(b"\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_file_names_a_package_registry_or_mirror() -> None:
    """Where packages come from is the business of the machine, not of this repository."""
    hosts = re.compile("|".join(rf"(?<![\w-]){re.escape(host)}\b" for host in PACKAGE_HOSTS).encode())
    found = []
    for path in committed_files():
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if hosts.search(line) or (path != Path(__file__) and MIRROR.search(line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line[:100]!r}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["run", "dev"])
def test_pins_have_hashes_and_no_address(name: str) -> None:
    """Every requirement is one version with hashes, and nothing says where it comes from."""
    text = (ROOT / f"requirements/{name}.txt").read_text()
    assert "://" not in text
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9-]+==\S+( ; [^\\]+)? \\\n +--hash=sha256:[0-9a-f]{64}", requirement), requirement


def test_every_dependency_is_pinned_and_dev_agrees_with_run() -> None:
    """`make install` gets what pyproject.toml asks for, and tests run with the versions that users get."""

    def pins(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE))

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w.-]", each, maxsplit=1)[0].lower() for each in requirements}

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    run = {pin.partition("==")[0] for pin in pins("run")}
    dev = {pin.partition("==")[0] for pin in pins("dev")}
    assert names(project["dependencies"]) | names(document["build-system"]["requires"]) <= run
    extras = names([each for extra in project["optional-dependencies"].values() for each in extra])
    assert extras - {"cvmfs-sync"} <= dev
    assert pins("run") <= pins("dev")


def test_every_import_is_a_declared_dependency() -> None:
    """What the package imports is what its users get, and not what happens to come with the tools of developers."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed = {re.split(r"[^\w.-]", each, maxsplit=1)[0].lower() for each in declared}
    providers = packages_distributions()
    found = []
    for path in sorted((ROOT / "cvmfs_sync").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for module in {each.partition(".")[0] for each in modules} - sys.stdlib_module_names - {"cvmfs_sync"}:
                names = {name.lower().replace("_", "-") for name in providers.get(module, [module])}
                if not names & allowed:
                    found.append(f"{path.relative_to(ROOT)} imports {module}: not in pyproject.toml's dependencies")
    assert not found, "\n".join(found)


def test_every_module_says_what_it_is() -> None:
    """Each module of the package starts with a docstring."""
    modules = sorted((ROOT / "cvmfs_sync").rglob("*.py"))
    assert modules
    without = [str(path.relative_to(ROOT)) for path in modules if not ast.get_docstring(ast.parse(path.read_bytes()))]
    assert without == []


def test_every_test_says_which_behaviour_it_holds() -> None:
    """Each test function has a docstring."""
    without = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert without == []


def test_version_is_the_same_everywhere() -> None:
    """The installed package, its metadata and the command line say one version."""
    assert version("cvmfs-sync") == cvmfs_sync.__version__
    assert cvmfs_sync.__version__ in run_cli("--version").ok().stdout
    (script,) = (each for each in entry_points(group="console_scripts") if each.name == "cvmfs-sync")
    assert script.value == "cvmfs_sync.__main__:main"


def test_supported_pythons_are_said_once() -> None:
    """Classifiers, the lower bound, mypy and ruff agree."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    classifiers = document["project"]["classifiers"]
    minors = [int(found[1]) for each in classifiers if (found := re.search(r":: 3\.(\d+)$", each))]
    assert minors == [11, 12, 13, 14]
    assert document["project"]["requires-python"] == ">=3.11"
    assert document["tool"]["mypy"]["python_version"] == "3.11"
    assert document["tool"]["ruff"]["target-version"] == "py311"


def test_top_level_is_what_it_should_be() -> None:
    """What a newcomer, a packager and CI look for is where they look; scripts can be executed."""
    expected = {".ci/run", "Dockerfile", "LICENSE", "Makefile", "pyproject.toml", "cvmfs_sync/py.typed"}
    assert {name for name in expected if not (ROOT / name).is_file()} == set()
    for path in committed_files():
        if path.read_bytes()[:2] == b"#!":
            assert os.access(path, os.X_OK), f"{path.relative_to(ROOT)} has a #! line but cannot be executed"
