"""What registries say was pushed is checked by the daemon at once, and only what of it the list asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.checks import Checks
from cvmfs_sync.control import Request
from cvmfs_sync.errors import UsageError
from cvmfs_sync.render import report_document
from cvmfs_sync.service import load_config
from cvmfs_sync.serving import Daemon
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.site import Site

NOW = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.fixture
def registry() -> Iterator[ScriptableRegistry]:
    with ScriptableRegistry() as server:
        for name in ("one", "two"):
            push(server, name, name)
        yield server


@pytest.fixture
def site(tmp_path: Path, registry: ScriptableRegistry) -> Site:
    site = Site(tmp_path / "site", None, (registry.host,))
    site.wish(f"{registry.host}/org/one:1", f"{registry.host}/org/two:1")
    return site


@pytest.fixture
def daemon(site: Site) -> Daemon:
    """A daemon after its first cycle."""
    daemon = Daemon(lambda: load_config(site.config), report_document, clock=lambda: NOW)
    daemon.cycle()
    return daemon


def push(registry: ScriptableRegistry, name: str, text: str, tag: str = "1") -> None:
    registry.add_image(f"org/{name}", tag, [support.layer(support.file("a", text)).tar])
    registry.requests.clear()


def submit(daemon: Daemon, *names: str) -> Any:
    """What is answered, before anything is done."""
    request = Request({"check": list(names)})
    daemon.submit(request)
    return request.wait(0)


def asked(registry: ScriptableRegistry) -> set[str]:
    """The repositories that were asked about, with their tags."""
    return {path.removeprefix("/v2/org/") for path in registry.paths() if "sha256:" not in path and path != "/v2/"}


def test_a_moved_tag_is_published_and_nothing_else_asked_about(
    site: Site, registry: ScriptableRegistry, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer comes at once; a tag that moved without anybody saying so waits for the cycle."""
    caplog.set_level("INFO", "cvmfs_sync")
    push(registry, "one", "moved")
    push(registry, "two", "moved")
    assert submit(daemon, f"{registry.host}/org/one:1") == {"exit_code": 0}
    assert registry.paths() == []
    daemon.agenda.run_due()
    assert (site.root / registry.host / "org/one:1/a").read_text() == "moved"
    assert (site.root / registry.host / "org/two:1/a").read_text() == "two"
    assert asked(registry) == {"one/manifests/1"}
    assert "pushed: names=1 asked_for=1" in caplog.text
    assert daemon.metrics.registry.get_sample_value("cvmfs_sync_published_images_total") == 3


@pytest.mark.parametrize("name", ["org/nobody:1", "org/one:2", "org/one:2@", "other/**"])
def test_what_nobody_asks_for_is_answered_alike_and_asks_nobody(
    registry: ScriptableRegistry, daemon: Daemon, name: str
) -> None:
    """So that nothing can be learned of the list; and no registry can be made to be asked."""
    registry.requests.clear()
    names = [f"{registry.host}/{name.removesuffix('@')}", "evil.example.org/org/one:1"]
    assert submit(daemon, *names) == {"exit_code": 0}
    daemon.agenda.run_due()
    assert registry.paths() == []


def test_tags_of_a_filter_are_taken_by_it(site: Site, registry: ScriptableRegistry, daemon: Daemon) -> None:
    """A new tag gets its link at once; one that the filter takes, and `keep` does not, is no error."""
    site.wish({"image": f"{registry.host}/org/many", "tags": ["4.*"], "keep": 2})
    for tag in ("4.1", "4.2"):
        push(registry, "many", tag, tag)
    daemon.cycle()
    push(registry, "many", "4.3", "4.3")
    push(registry, "many", "4.0", "4.0")
    submit(daemon, f"{registry.host}/org/many:4.3")
    daemon.agenda.run_due()
    assert (site.root / registry.host / "org/many:4.3/a").read_text() == "4.3"
    submit(daemon, f"{registry.host}/org/many:4.0")
    daemon.agenda.run_due()
    assert not (site.root / registry.host / "org/many:4.0").exists()


@pytest.mark.parametrize("name", ["org/many", "org/**"])
def test_a_name_without_a_tag_is_all_of_its_repository(
    site: Site, registry: ScriptableRegistry, daemon: Daemon, name: str
) -> None:
    """For a sender that does not tell the tag, or not even the repository."""
    push(registry, "many", "4.1", "4.1")
    push(registry, "many", "old", "latest")
    site.wish({"image": f"{registry.host}/org/many", "tags": ["4.*"]}, f"{registry.host}/org/many:latest")
    daemon.cycle()
    push(registry, "many", "4.2", "4.2")
    push(registry, "many", "new", "latest")
    submit(daemon, f"{registry.host}/{name}")
    daemon.agenda.run_due()
    assert (site.root / registry.host / "org/many:4.2/a").read_text() == "4.2"
    assert (site.root / registry.host / "org/many:latest/a").read_text() == "new"


def test_what_has_failed_is_not_tried_again_for_it(site: Site, registry: ScriptableRegistry, daemon: Daemon) -> None:
    """Nobody who can call a webhook can have a failing image pulled again and again; a moved one is another story."""
    registry.corrupt(r"/org/one/blobs/")
    push(registry, "one", "broken")
    for _ in range(2):
        daemon.cycle()
    registry.requests.clear()
    submit(daemon, f"{registry.host}/org/one:1")
    daemon.agenda.run_due()
    assert asked(registry) == {"one/manifests/1"}
    registry.heal()
    push(registry, "one", "mended")
    submit(daemon, f"{registry.host}/org/one:1")
    daemon.agenda.run_due()
    assert (site.root / registry.host / "org/one:1/a").read_text() == "mended"


def test_in_a_cycle_it_comes_after_the_image_that_is_being_published(
    site: Site, registry: ScriptableRegistry, daemon: Daemon
) -> None:
    """A cycle that takes hours keeps nobody waiting who was told of a push."""
    names = [f"new{number}" for number in range(4)]
    for name in names:
        push(registry, name, name)
    site.wish(f"{registry.host}/org/one:1", *(f"{registry.host}/org/{name}:1" for name in names))
    order: list[str] = []

    def happened(event: Mapping[str, object]) -> None:
        if not order:
            push(registry, "one", "moved")
            submit(daemon, f"{registry.host}/org/one:1")
        order.append(str(event["image"]).rpartition("/")[2])

    daemon._hooks.tell = happened  # type: ignore[method-assign]
    daemon.cycle()
    assert list(dict.fromkeys(order)) == ["new0:1", "one:1", "new1:1", "new2:1", "new3:1"]
    assert (site.root / registry.host / "org/one:1/a").read_text() == "moved"


def test_without_a_list_nothing_is_done(site: Site, registry: ScriptableRegistry) -> None:
    """The first cycle does it, and everything else."""
    daemon = Daemon(lambda: load_config(site.config), report_document, clock=lambda: NOW)
    assert submit(daemon, f"{registry.host}/org/one:1") == {"exit_code": 0}
    daemon.agenda.run_due()
    assert registry.paths() == []


def test_a_repository_that_cannot_be_written_ends_the_check_only(
    site: Site, registry: ScriptableRegistry, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon goes on, and its next cycle does what could not be done."""
    push(registry, "one", "moved")
    state = site.home / "state"
    database = next(state.glob("*.sqlite*"))
    database.rename(state / "away")
    database.mkdir()
    submit(daemon, f"{registry.host}/org/one:1")
    daemon.agenda.run_due()
    assert "what was pushed could not be checked" in caplog.text
    database.rmdir()
    (state / "away").rename(database)
    daemon.cycle()
    assert (site.root / registry.host / "org/one:1/a").read_text() == "moved"


@pytest.mark.parametrize(
    "content",
    [
        {"check": None}, {"check": "quay.io/org/one:1"}, {"check": [1]}, {"check": ["A B"]}, {"check": ["x" * 9999]},
        {"check": [f"quay.io/org/one@sha256:{'0' * 64}"]}, {"check": ["quay.io/org/one"] * 1001},
        {"check": [], "sync": []}, {"check": {}}, {"check": [], "deliveries": None},
        {"check": [], "deliveries": [["github", "accepted"]]}, {"check": [], "deliveries": [["x", "accepted", 1]]},
        {"check": [], "deliveries": [["github", "x", 1]]}, {"check": [], "deliveries": [["github", "accepted", True]]},
        {"check": [], "deliveries": [["github", "accepted", -1]]}, {"check": [], "deliveries": [[[], {}, 1]]},
    ],
)  # fmt: skip
def test_a_request_of_another_form_is_refused(daemon: Daemon, content: dict[str, Any]) -> None:
    """With the reason, at once; a digest among them."""
    request = Request(content)
    daemon.submit(request)
    answer = request.wait(0)
    assert answer is not None
    assert answer["exit_code"] == 2
    with pytest.raises(UsageError):
        Checks(lambda: NOW, lambda *_: None).hear(content)


def test_deliveries_are_counted(daemon: Daemon) -> None:
    """As the process that gets them tells; there may be some that tell of no push."""
    name = "cvmfs_sync_webhook_deliveries_total"
    value = daemon.metrics.registry.get_sample_value
    assert value(name, {"sender": "github", "result": "accepted"}) == 0
    for _ in range(2):
        daemon.submit(Request({"check": [], "deliveries": [["github", "accepted", 2], ["unknown", "refused", 1]]}))
    assert value(name, {"sender": "github", "result": "accepted"}) == 4
    assert value(name, {"sender": "unknown", "result": "refused"}) == 2


def test_what_waits_has_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """More than that is left to the schedule; what waits already needs no room."""
    checks = Checks(lambda: NOW, lambda *_: None, most=3)
    assert not checks
    for _ in range(2):
        checks.hear({"check": [f"quay.io/org/tool:{tag}" for tag in range(3)]})
    assert checks
    assert not caplog.text
    checks.hear({"check": ["quay.io/org/tool:3", "quay.io/org/tool:0"]})
    assert "1 names are left to the schedule" in caplog.text
