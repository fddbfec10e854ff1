"""Images that fail again and again are tried less and less often, and at once when anything has changed."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_sync.backoff import Backoff
from cvmfs_sync.cycle import sync
from cvmfs_sync.errors import RepositoryError
from cvmfs_sync.outcome import Outcome
from cvmfs_sync.service import load_config, make_context, read_wishes
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.commands import require, run
from tests.support.retiring import Clock
from tests.support.site import Site


def _layer(text: str) -> bytes:
    return support.layer(support.file("a", text)).tar


@pytest.fixture
def clock(tmp_path: Path, registry: ScriptableRegistry) -> Clock:
    return Clock(Site(tmp_path / "site", None, (registry.host,)))


def _cycle(clock: Clock, *, retry: bool = False) -> Outcome:
    """One cycle over a list of one image, by the longest waits that chance can choose."""
    config = load_config(clock.site.config)
    with make_context(config, clock=lambda: clock.now) as context:
        patient = replace(context, backoff=Backoff(chance=lambda: 1.0))
        (outcome,) = sync(patient, read_wishes(config), retry=retry).outcomes
    return outcome


def _failing(clock: Clock, registry: ScriptableRegistry, times: int = 2) -> str:
    """An image whose configuration can't be fetched, after so many tries."""
    image = f"{registry.host}/org/tool:1"
    registry.add_image("org/tool", "1", [_layer("1")])
    registry.fail("/blobs/", status=404)
    clock.site.wish(image)
    for _ in range(times):
        outcome = _cycle(clock)
        assert (outcome.result, outcome.waits) == ("failed", False)
    registry.requests.clear()
    return image


def test_while_it_waits_one_head_is_all_that_is_asked(clock: Clock, registry: ScriptableRegistry) -> None:
    """It is reported as failed with its old reason and its next try, across restarts; then it is tried again."""
    image = _failing(clock, registry)
    clock.pass_by(minutes=29)
    outcome = _cycle(clock)
    assert (outcome.result, outcome.waits) == ("failed", True)
    assert "tried again after 2026-11-20 12:30Z" in str(outcome.error)
    assert [request.method for request in registry.requests] == ["HEAD"]
    (status,) = clock.site.run("status", "--json").json["images"]
    assert status["state"] == "failed"
    assert status["failure"]["count"] == 2, "waiting is no failure"
    assert status["failure"]["next_try"] == "2026-11-20T12:30:00+00:00"
    assert status["failure"]["reason"] in str(outcome.error)
    assert "tried again after 2026-11-20 12:30Z" in clock.site.run("status").stdout
    clock.pass_by(minutes=1)
    assert not _cycle(clock).waits
    assert "/blobs/" in str(registry.paths("GET"))
    registry.faults.clear()
    clock.pass_by(minutes=59)
    assert _cycle(clock).waits, "nobody knows that it would work now"
    clock.pass_by(minutes=1)
    assert _cycle(clock).result == "published"
    history = clock.site.run("status", "--json", image).json["images"][0]
    assert [event["event"] for event in history["history"]] == ["published", "recovered", "failed"]
    assert history["failure"] is None


def test_a_moved_tag_is_tried_at_once(clock: Clock, registry: ScriptableRegistry) -> None:
    """Another digest may be another story."""
    _failing(clock, registry)
    registry.faults.clear()
    registry.add_image("org/tool", "1", [_layer("2")])
    assert _cycle(clock).result == "published"


def test_a_changed_entry_is_tried_at_once(clock: Clock, registry: ScriptableRegistry) -> None:
    """Whoever edits his line wants to know; a line that only stands elsewhere now is the same."""
    image = _failing(clock, registry)
    registry.faults.clear()
    text = clock.site.wish(image).read_text()
    clock.site.wish().write_text("# a comment\n" + text)
    assert _cycle(clock).waits
    clock.site.wish({"image": image, "description": "a tool"})
    assert _cycle(clock).result == "published"


def test_an_image_that_appears_is_published_at_once(clock: Clock, registry: ScriptableRegistry) -> None:
    """What was not there has no digest; as soon as it has one, nobody waits."""
    image = f"{registry.host}/org/tool:1"
    clock.site.wish(image)
    for _ in range(3):
        _cycle(clock, retry=True)
    assert _cycle(clock).waits
    registry.add_image("org/tool", "1", [_layer("1")])
    assert _cycle(clock).result == "published"


def test_an_image_that_goes_while_it_waits_says_so(clock: Clock, registry: ScriptableRegistry) -> None:
    """The old reason is not repeated when the registry says something else."""
    _failing(clock, registry)
    registry.delete("org/tool", "1")
    outcome = _cycle(clock)
    assert not outcome.waits
    assert type(outcome.error).__name__ == "ImageNotFound"
    assert _cycle(clock).waits


def test_who_asks_is_not_kept_waiting(clock: Clock, registry: ScriptableRegistry) -> None:
    """`sync` tries all, `sync IMAGE` this one; `sync --patient`, from cron, waits like the daemon."""
    from cvmfs_sync.state import State

    image = _failing(clock, registry)
    with State(clock.site.home / "state") as state, state._writing() as database:
        database.execute("UPDATE failures SET next_try = '2999-01-01T00:00:00+00:00'")
    waiting = clock.site.run("sync", "--json", "--patient", rc=1).json["images"]
    assert [each["error"]["type"] for each in waiting] == ["TriedLater"]
    assert registry.paths("GET") == []
    assert clock.site.sync(rc=1) == {image: "failed"}
    assert clock.site.error(image)["type"] == "ImageError"
    with State(clock.site.home / "state") as state, state._writing() as database:
        database.execute("UPDATE failures SET next_try = '2999-01-01T00:00:00+00:00'")
    registry.faults.clear()
    assert clock.site.run("sync", "--json", "--patient", rc=1).json["images"][0]["result"] == "failed"
    assert clock.site.run("sync", "--json", "--patient", image).json["images"][0]["result"] == "published"


def test_what_stops_all_makes_no_image_wait(clock: Clock, registry: ScriptableRegistry) -> None:
    """A repository that can't be written is no fault of the image that was the next."""
    registry.add_image("org/tool", "1", [_layer("1")])
    clock.site.wish(f"{registry.host}/org/tool:1")
    clock.site.root.parent.mkdir(parents=True, exist_ok=True)
    clock.site.root.write_text("no directory")
    for _ in range(3):
        with suppress(RepositoryError):
            assert not _cycle(clock).waits
    clock.site.root.unlink()
    assert _cycle(clock).result == "published"


def test_the_list_is_part_of_the_status(clock: Clock, registry: ScriptableRegistry) -> None:
    """A list that was refused is told beside the images of the one in force, with its reason and since when."""
    image = f"{registry.host}/org/tool:1"
    registry.add_image("org/tool", "1", [_layer("1")])
    clock.site.wish(image)
    from cvmfs_sync.render import report_document
    from cvmfs_sync.serving import Daemon

    daemon = Daemon(lambda: load_config(clock.site.config), report_document, clock=lambda: clock.now)
    daemon.cycle()
    clock.site.wish().write_text("version: 1\nimages: [NO]\n")
    clock.pass_by(minutes=5)
    daemon.read_list()
    clock.pass_by(minutes=5)
    daemon.read_list()
    result = clock.site.run("status", "--json")
    assert "the image list is not valid" in result.stderr
    listed = json.loads(result.stdout)["list"]
    assert listed["since"] == "2026-11-20T12:05:00+00:00"
    assert listed["read_at"] == "2026-11-20T12:10:00+00:00"
    assert "image-list.yaml:2" in listed["refused"]
    assert [each["state"] for each in result.json["images"]] == ["published"]
    again = Daemon(lambda: load_config(clock.site.config), report_document, clock=lambda: clock.now + timedelta(days=1))
    again.cycle()
    assert again.wishes is not None
    assert again.wishes.stale
    clock.site.wish(image)
    again.read_list()
    assert clock.site.run("status", "--json").json["list"]["refused"] is None


def test_record_and_catalogue_tell_by_which_commit_and_for_whom(
    clock: Clock, registry: ScriptableRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They keep what published the image: a later commit that changes nothing about it costs no transaction."""
    require("git")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    site, lists = clock.site, clock.site.home / "lists"
    image = f"{registry.host}/org/tool:1"
    registry.add_image("org/tool", "1", [_layer("1")])
    run("git", "init", "--quiet", "--initial-branch=images", lists)

    def commit(author: str, *names: str) -> str:
        (lists / "image-list.yaml").write_text("version: 1\nimages:\n" + "".join(f"- {name}\n" for name in names))
        run("git", "-C", lists, "add", "-A")
        run("git", "-C", lists, "-c", f"user.name={author}", "-c", "user.email=a@example.org", "commit", "-qm", "list")
        return run("git", "-C", lists, "rev-parse", "HEAD").strip()

    site.settings["image_list"] = {"git": "lists", "branch": "images"}
    first = commit("Ann Other", image)
    assert site.sync() == {image: "published"}
    (record,) = (json.loads(path.read_bytes()) for path in site.root.glob(".cvmfs-sync/images/*/*.json"))
    for told in (record, site.catalogue()[image]):
        assert (told["list_commit"], told["requested_by"]) == (first, "Ann Other")
        assert told["requested_at"].startswith("20")
    registry.add_image("org/more", "1", [_layer("2")])
    second = commit("Bea Sides", image, f"{registry.host}/org/more:1")
    assert set(site.sync().values()) == {"unchanged", "published"}
    lines = site.catalogue()
    assert lines[image]["list_commit"] == first
    assert lines[f"{registry.host}/org/more:1"]["list_commit"] == second
    assert lines[f"{registry.host}/org/more:1"]["requested_by"] == "Bea Sides"
    assert site.run("status", "--json").json["list"]["commit"] == second
    (site.root / ".cvmfs-sync/catalogue.json").unlink()
    site.sync()
    assert site.catalogue()[image]["requested_by"] == "Ann Other"
