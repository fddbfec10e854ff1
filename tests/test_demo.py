"""`make demo` shows what it promises, for root and for others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support import missing, require, require_root

DEMO = Path(__file__).parent.parent / "demo"
NOBODY = "65534"


def run_demo(home: Path, *options: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the demo, as somebody else if `prefix` changes to them; `home` is all that they need to be able to write."""
    return subprocess.run(
        [*prefix, sys.executable, DEMO / "run.py", *options],
        env={**os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def assert_shown(result: subprocess.CompletedProcess[str]) -> None:
    """Every step has been taken and held, and the output is fit for a log."""
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n--- stderr\n{result.stderr}"
    for line in (
        "image-list.yaml: valid, 2 images",
        "  2 to publish, ",
        "  2 published, 0 linked, 0 unchanged, 0 failed, 0 skipped, ",
        "  0 published, 0 linked, 2 unchanged, 0 failed, 0 skipped, ",
        "  1 published, 0 linked, 1 unchanged, 0 failed, 0 skipped, ",
        "  docker://docker.io/library/debian:12",
        "steps held what they promise",
    ):
        assert line in result.stdout
    assert re.search(r"images:hello-1 -> (\.\./)+\.flat/[0-9a-f]{2}/[0-9a-f]{64}\n", result.stdout)
    assert "\033" not in result.stdout
    assert result.stderr == ""


def assert_run(result: subprocess.CompletedProcess[str]) -> None:
    """The image has been run out of its sandbox; a skip where the machine forbids it."""
    if "image NOT run" in result.stdout:
        refusals = re.findall(r"^Not possible here: (.*)$", result.stdout, re.MULTILINE)
        assert refusals, "the demo says why it does not run the image"
        missing(f"this machine runs no sandbox: {'; '.join(refusals)}")
    assert "  GREETING=and now the second\n" in result.stdout


@pytest.fixture
def nobodys_home() -> Iterator[Path]:
    """A directory that `NOBODY` may write, below others that they may enter, as `tmp_path` is not."""
    with tempfile.TemporaryDirectory(prefix="cvmfs-sync-test-") as name:
        home = Path(name)
        home.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(home, int(NOBODY), int(NOBODY))
        yield home


def other_user(home: Path) -> list[str]:
    """A command that runs another one as an ordinary user who may run this Python.

    That is another user id. Where this Python is in a directory that only root may enter, it is root in a user
    namespace, without any capability and with another user id as far as they can see: then `home` has to be root's.
    """
    require("setpriv", "unshare")
    changed = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if may_run_python(changed):
        return changed
    os.chown(home, 0, 0)
    seeming = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    return seeming if may_run_python(seeming) else missing(f"no ordinary user may run {sys.executable}")


def may_run_python(prefix: Sequence[str]) -> bool:
    """Whether the user that `prefix` changes to may read this Python and cvmfs-sync.

    That it starts is not enough: `setpriv` has its capabilities until it runs it.
    """
    trial = [sys.executable, "-c", "import os, sys, cvmfs_sync; open(os.path.realpath(sys.executable), 'rb').close()"]
    return subprocess.run([*prefix, *trial], capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.slow
def test_demo_shows_what_it_promises(tmp_path: Path) -> None:
    """Every step succeeds, the image runs, and nothing is left behind."""
    result = run_demo(tmp_path)
    assert_shown(result)
    assert list(tmp_path.iterdir()) == []
    assert_run(result)


@pytest.mark.slow
def test_demo_needs_no_root(nobodys_home: Path) -> None:
    """An ordinary user sees the same."""
    require_root()
    result = run_demo(nobodys_home, prefix=other_user(nobodys_home))
    assert_shown(result)
    assert list(nobodys_home.iterdir()) == []
    assert_run(result)


@pytest.mark.slow
def test_demo_goes_on_where_no_sandbox_can_run(tmp_path: Path) -> None:
    """Without any capability and user namespace the demo says why it does not run the image, and succeeds."""
    require_root()
    require("setpriv")
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if subprocess.run([*powerless, "unshare", "--user", "--map-root-user", "true"], check=False).returncode == 0:
        missing("the kernel lets root without capabilities make user namespaces")
    keep = tmp_path / "keep"
    result = run_demo(tmp_path, "--keep", str(keep), prefix=powerless)
    assert_shown(result)
    assert "Not possible here: " in result.stdout
    assert "image NOT run" in result.stdout
    assert (keep / "published/.cvmfs-sync/catalogue.json").is_file()


def test_demo_refuses_a_directory_in_use(tmp_path: Path) -> None:
    """`--keep` never mixes with what is there."""
    (tmp_path / "precious").touch()
    result = run_demo(tmp_path, "--keep", str(tmp_path))
    assert result.returncode == 2
    assert "name an empty directory" in result.stderr
    assert os.listdir(tmp_path) == ["precious"]


def test_demo_fails_when_a_promise_does_not_hold(tmp_path: Path) -> None:
    """A step that does not do what it promises ends the demo with exit code 1 and that promise."""
    demo = shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    script = demo / "run.py"
    script.write_text(script.read_text().replace('"2 to publish"', '"3 to publish"'))
    command = [sys.executable, str(script)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "demo failed: this does not hold: both images are to be published" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.slow
def test_screenshots_are_taken(tmp_path: Path) -> None:
    """Those that the README shows, small enough for a repository."""
    require("chromium")
    command = [sys.executable, "-m", "demo.screenshots", str(tmp_path / "images")]
    result = subprocess.run(
        command,
        cwd=DEMO.parent,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (DEMO.parent / "docs/images").iterdir()}
    assert {path.name for path in (tmp_path / "images").iterdir()} == names
    readme = (DEMO.parent / "README.md").read_text()
    for path in (DEMO.parent / "docs/images").iterdir():
        assert f"](docs/images/{path.name})" in readme
        assert path.read_bytes()[8:12] == b"WEBP"
        assert path.stat().st_size <= 60_000
