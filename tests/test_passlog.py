"""The log lines of an image's last pass: which are collected, how many, and where they are found again."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest

from cvmfs_sync.passes import in_pass
from cvmfs_sync.passlog import PassLog, collecting
from cvmfs_sync.remembered import LogLine
from cvmfs_sync.state import State
from tests.support.images import Image, file, layer, write_layout
from tests.support.site import Site

log = logging.getLogger("cvmfs_sync.test")


@pytest.fixture
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[PassLog]:
    caplog.set_level(logging.DEBUG, "cvmfs_sync")
    with collecting() as handler:
        yield handler


def messages(lines: object) -> list[str]:
    assert isinstance(lines, tuple)
    return [line.message for line in lines]


def test_lines_of_a_pass_from_all_its_threads(collected: PassLog) -> None:
    """At INFO and above, from threads that have its context, without a traceback, and only once."""
    log.info("outside")
    with in_pass("a"):
        log.info("number %d", 1)
        log.debug("a detail")
        thread = threading.Thread(target=copy_context().run, args=(log.warning, "from a thread"))
        thread.start()
        thread.join()
        try:
            raise ValueError("secret")
        except ValueError:
            log.exception("a defect")
    with in_pass("b"):
        log.info("another")
    lines = collected.take("a")
    assert messages(lines) == ["number 1", "from a thread", "a defect"]
    assert [line.level for line in lines] == ["info", "warning", "error"]
    assert messages(collected.take("a")) == []
    assert messages(collected.take("b")) == ["another"]


def test_memory_is_bounded(collected: PassLog) -> None:
    """The latest 200 lines of the latest 8 passes, each of 2,000 characters."""
    for number in range(20):
        with in_pass(f"{number}"):
            log.info("x" * 5000)
            for line in range(300):
                log.info("line %d", line)
    assert [bool(collected.take(f"{number}")) for number in range(20)] == [False] * 12 + [True] * 8
    with in_pass("long"):
        log.info("x" * 5000)
    assert messages(collected.take("long")) == ["x" * 2000]


def test_nothing_is_collected_afterwards(collected: PassLog) -> None:
    """The handler goes with the block."""
    with collecting() as inner:
        pass
    with in_pass("a"):
        log.info("late")
    assert inner.take("a") == ()
    assert messages(collected.take("a")) == ["late"]


def test_a_sync_keeps_the_log_of_each_image(tmp_path: Path) -> None:
    """Quiet as it is on stderr: of what was published, of what shares its tree, and of what could not be resolved."""
    site = Site(tmp_path)
    layout = tmp_path / "layout"
    image = Image((layer(file("etc/name", "1")),))
    write_layout(layout, {"one": image, "same": image})
    site.wish(*(f"oci:{layout}:{tag}" for tag in ("one", "same", "missing")))
    report = site.run("sync", "--json", rc=1)
    assert "prepared" not in report.stderr
    by_tag = logs(site)
    for tag in ("one", "same"):
        (prepared, published) = by_tag[tag][0], by_tag[tag][-1]
        assert prepared.message.startswith("prepared image=")
        assert published.message.startswith(("published image=", "linked image="))
    (failed,) = by_tag["missing"]
    assert failed.message.startswith("failed image=")
    assert "missing" in failed.message
    # Nothing was worked on, so the last pass is still that one.
    site.run("sync", "--json", rc=1)
    assert logs(site)["one"] == by_tag["one"]


def logs(site: Site) -> dict[str, tuple[LogLine, ...]]:
    """The kept lines, by tag."""
    directory = site.home / "state"
    database = sqlite3.connect(f"{(directory / 'state.sqlite').as_uri()}?mode=ro", uri=True)
    links = [link for (link,) in database.execute("SELECT DISTINCT link FROM log_lines")]
    database.close()
    with State.snapshot(directory) as state:
        return {link.rpartition(":")[2]: state.log_of(link) for link in links}
