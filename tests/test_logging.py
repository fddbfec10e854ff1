"""What is logged, for people and as JSON."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.console import set_up_logging
from cvmfs_sync.passes import in_pass, new_pass
from tests.support import Image, file, layer, run_cli, write_layout

log = logging.getLogger("cvmfs_sync.test")


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    root = logging.getLogger("cvmfs_sync")
    before = root.handlers[:], root.propagate, root.level
    yield
    root.handlers[:], root.propagate = before[:2]
    root.setLevel(before[2])


def _logged(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    set_up_logging(verbose=1, as_json=True)
    log.info(*arguments)
    document: dict[str, Any] = json.loads(capsys.readouterr().err)
    assert document.pop("level") == "info"
    assert document.pop("logger") == "cvmfs_sync.test"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", document.pop("time"))
    return document


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (("plain",), {"message": "plain"}),
        (("done image=%s bytes=%d seconds=%.2f", "a b", 7, 1.239),
         {"message": "done image=a b bytes=7 seconds=1.24", "image": "a b", "bytes": 7, "seconds": 1.239}),
        (("cycle %s seconds=%.1f", "published=1 failed=0", 2.0),
         {"message": "cycle published=1 failed=0 seconds=2.0", "published": 1, "failed": 0, "seconds": 2.0}),
        (("100%% of %s x=%r", "it", "y\n"), {"message": "100% of it x='y\\n'", "x": "y\n"}),
        (("message=%s level=%s", "a", "b"), {"message": "message=a level=b"}),
        (("%s: two\nlines", Path("/a")), {"message": "/a: two\nlines"}),
    ],
)  # fmt: skip
def test_numbers_are_fields(
    capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], fields: dict[str, object]
) -> None:
    """One document a line, whatever is in it; what a line has as name=value is a field, with its type."""
    assert _logged(capsys, *arguments) == fields


def test_a_traceback_is_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    """A defect is one line, too."""
    set_up_logging(verbose=0, as_json=True)
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError:
        log.exception("a defect")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: division by zero" in json.loads(line)["traceback"]


def test_a_pass_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of a pass have its id in either form, and others have none."""
    ident = new_pass()
    with in_pass(ident):
        assert _logged(capsys, "x") == {"message": "x", "pass": ident}
        set_up_logging(verbose=1)
        log.info("x")
        assert capsys.readouterr().err == f"info x pass={ident}\n"
    log.info("x")
    assert capsys.readouterr().err == "info x\n"


def test_lines_of_one_image_have_one_id(tmp_path: Path) -> None:
    """What prepares an image in a thread, and what publishes it, log the same id; another image has another."""
    write_layout(
        tmp_path / "images", {name: Image((layer(file("hello", name)),)) for name in ("one", "two")}
    )  # fmt: skip
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: [oci:images:one, oci:images:two]\n")
    (tmp_path / "cvmfs-sync.yaml").touch()
    result = run_cli("-v", "--log-format", "json", "sync", "--config", tmp_path / "cvmfs-sync.yaml").ok()
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    passes: dict[str, set[str]] = {}
    for line in lines:
        if "image" in line:
            passes.setdefault(line["image"], set()).add(line["pass"])
            assert re.fullmatch(r"[0-9a-f]{8}", line["pass"])
    assert [len(idents) for idents in passes.values()] == [1, 1]
    assert len(set.union(*passes.values())) == 2
    words = [line["message"].split()[0] for line in lines if "image" in line]
    assert sorted(words) == ["prepared", "prepared", "published", "published"]
