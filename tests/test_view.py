"""What people and programs may see: the same as `status` says, and nothing that is nobody's business."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync import errors
from cvmfs_sync.state import State
from cvmfs_sync.view.documents import Summary
from cvmfs_sync.view.queries import View
from cvmfs_sync.view.reasons import REASONS, reason_of
from cvmfs_sync.view.redaction import Redaction
from cvmfs_sync.view.snapshot import SORTS, Query, Snapshot
from tests.support.shown import HOSTILE, publish_some, view_of
from tests.support.site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Published once for all tests here, none of which changes it."""
    return publish_some(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="module")
def view(site: Site) -> Iterator[View]:
    """What there is to see."""
    with view_of(site) as opened:
        yield opened


def by_tag(view: View) -> dict[str, Summary]:
    return {image.tag or "": image for image in view.every()}


def test_it_says_what_status_says(site: Site, view: View) -> None:
    """State, digest, size and times of every image agree with those of the command."""
    told = {each["link"]: each for each in site.run("status", "--json").json["images"]}
    assert len(told) == 4
    for image in view.every():
        each = told.pop(image.link)
        assert (image.state, image.digest, image.size) == (each["state"], each["digest"], each["size"])
        assert (image.published_at.isoformat() if image.published_at else None) == each["published_at"]
        assert (image.checked_at.isoformat() if image.checked_at else None) == each["checked_at"]
    assert told == {}


def test_states(view: View) -> None:
    """Published, failed, and not tried yet, each with what belongs to it."""
    images = by_tag(view)
    assert {tag: image.state for tag, image in images.items()} == {
        "one": "published", "two": "published", "missing": "failed", "later": "pending",
    }  # fmt: skip
    one, missing = images["one"], images["missing"]
    assert (one.description, one.contact, one.definition) == (
        "The first one", "someone@example.org", "https://git.example.org/one",
    )  # fmt: skip
    assert one.path.endswith(one.link)
    assert one.command == f"apptainer exec {one.path} sh"
    assert one.failure is None
    assert missing.failure is not None
    assert missing.failure.reason == REASONS["ImageNotFound"].text
    assert missing.failure.count == 2
    assert missing.command is None


def test_an_image_in_full(view: View) -> None:
    """What its tag meant and means, its layers and what others have of them, how it runs, its events."""
    image = view.image(by_tag(view)["one"].link)
    assert image is not None
    assert [meaning.until is None for meaning in image.meanings] == [True, False]
    assert image.meanings[0].digest == image.digest != image.meanings[1].digest
    assert image.meanings[1].until == image.meanings[0].since
    assert [layer.images for layer in image.layers] == [3, 1], "the older tree of this tag is there, too"
    assert image.shared_size == image.layers[0].size
    assert image.compressed_size == sum(layer.size for layer in image.layers)
    assert image.configuration is not None
    assert image.configuration.labels["org.example.title"] == "an example"
    assert image.list_line is not None
    assert {each.tag for each in image.tags} == {"two", "missing", "later"}
    assert [event.event for event in image.events] == ["moved", "published"]
    assert image.events[0].before == image.meanings[1].digest


def test_an_image_is_found_by_its_name_too(view: View) -> None:
    """And what is no name, or nobody's, is not there."""
    name = by_tag(view)["one"].name
    assert view.find(name) == by_tag(view)["one"]
    for key in ("no such image", "docker.io/library/other:1", "", "../../etc/passwd", "\x00"):
        assert view.image(key) is None


def test_queries(view: View) -> None:
    """Words, filters, order and pages; what the other choices would give is counted."""
    every = view.images(Query())
    assert every.total == 4
    assert every.states == {"published": 2, "failed": 1, "pending": 1}
    failed = view.images(Query(state="failed"))
    assert [image.tag for image in failed.images] == ["missing"]
    assert failed.states == every.states
    assert [image.tag for image in view.images(Query(q="FIRST one")).images] == ["one"]
    assert view.images(Query(q="first nowhere")).total == 0
    assert [image.tag for image in view.images(Query(contact="someone@example.org")).images] == ["one"]
    pages = [view.images(Query(offset=offset, limit=3)).images for offset in (0, 3, 6)]
    assert [len(page) for page in pages] == [3, 1, 0]
    assert [image for page in pages for image in page] == list(view.every())
    for sort in SORTS:
        assert view.images(Query(sort=sort)).total == 4
    assert view.images(Query(sort="state")).images[0].tag == "missing"


def test_where(site: Site, view: View) -> None:
    """The same path as the command's, for what is published and for what is not."""
    for image in view.every():
        found = view.where(image.name)
        assert found.path == site.run("where", image.name).stdout.strip()
        assert found.published is (image.digest is not None)


def test_events_come_in_pages(view: View) -> None:
    """Latest first, each once, by link and by name."""
    pages, before = [], None
    while True:
        page = view.events(before, 2)
        pages.append(page.events)
        before = page.next_before
        if before is None:
            break
    events = [event for page in pages for event in page]
    assert [event.id for event in events] == sorted({event.id for event in events}, reverse=True)
    assert {event.event for event in events} == {"published", "moved", "failed"}
    assert [event.event for event in view.events(event="moved").events] == ["moved"]
    assert {event.event for event in view.events(event="failed").events} == {"failed"}


def test_without_a_daemon(view: View) -> None:
    """Nothing runs and nothing waits; the rest is known."""
    assert not view.cycle().running
    assert view.queue().total == 0
    operations = view.operations()
    assert operations.published == 2
    assert operations.image_list.refused is None
    assert operations.image_list.images == 4
    assert [event.event for event in operations.errors] == ["failed"]


def test_what_changes_is_seen(tmp_path: Path) -> None:
    """A change of the list, and of what is published, gives another version and other documents."""
    site = Site(tmp_path)
    site.wish("oci:nowhere:a")
    with view_of(site) as view:
        first = view.version
        assert [image.state for image in view.every()] == ["pending"]
        view.refresh()
        assert view.version == first
        site.run("sync", "--json", rc=1)
        view.refresh()
        assert view.version != first
        assert [image.state for image in view.every()] == ["failed"]
        site.wish("oci:nowhere:a", "oci:nowhere:b")
        view.refresh()
        assert [image.state for image in view.every()] == ["failed", "pending"]
        site.home.joinpath("image-list.yaml").write_text("version: [")
        view.refresh()
        assert len(view.every()) == 2, "a broken list leaves what was known"


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """No list, a database that is none, no repository: there is an answer all the same."""
    site = Site(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/state.sqlite").write_text("this is no database")
    with view_of(site) as view:
        assert view.every() == ()
        assert view.events().events == []
        assert "image-list.yaml" in (view.operations().image_list.refused or "") or view.operations().image_list.refused


def test_nothing_of_this_machine_is_told(site: Site, view: View) -> None:
    """No path of state, spool or list is in any document; the repository's is, for that is what clients run from."""
    link = by_tag(view)["missing"].link
    with State(site.home / "state") as state:
        detail = f"{site.home}/spool/x and https://user:pw@host/?token=t"
        state.record(link, "x", "failed", None, detail, datetime.now(UTC))
    view.refresh()
    texts = [view.operations().model_dump_json(), view.events().model_dump_json()]
    texts += [found.model_dump_json() for image in view.every() if (found := view.image(image.link))]
    for text in texts:
        for secret in (str(site.home / "spool"), str(site.home / "state"), "user:pw", "token=t", "Traceback"):
            assert secret not in text


def test_hostile_values_are_bounded(view: View) -> None:
    """What an image says of itself is told as it is, and not without end."""
    image = view.image(by_tag(view)["one"].link)
    assert image is not None
    assert image.configuration is not None
    label = image.configuration.labels["hostile"]
    assert label.startswith(HOSTILE[:100])
    assert label.endswith(f"({len(HOSTILE)} characters)")
    assert len(label) < 2100
    json.loads(image.model_dump_json())


def test_every_error_has_words() -> None:
    """Whatever ends an image, there are a reason and some advice for it; unknown classes have general ones."""
    classes = {
        name for name, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.CvmfsSyncError)
    }
    assert set(REASONS) == classes
    assert reason_of(None) == reason_of("NoSuchClass") == REASONS["CvmfsSyncError"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /srv/state/x.json", "cannot read <state_dir>/x.json"),
        ("/srv/state", "<state_dir>"),
        ("/srv/statement", "<path>"),
        ("/var/srv/state/x", "<path>"),
        ("open '/home/me/.docker/config.json'", "open '<path>'"),
        ("run /srv/images/docker.io/a:1 now", "run /srv/images/docker.io/a:1 now"),
        ("https://me:secret@host/list?token=abc", "https://host/list"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ..."),
        ("password=hunter2&x", "password=...&x"),
        ("https://user:p@ss@host/x", "https://host/x"),
        ("https://user:p/q@host/x", "https://host/x"),
        ("docker://docker.io/a@sha256:ab", "docker://docker.io/a@sha256:ab"),
        ("Cookie: sid=abc", "Cookie: ..."),
        ("X-Auth: abcdefghij", "X-Auth: ..."),
        ("with ghp_abcdefghij and glpat-abc", "with ... and ..."),
        ("path:/home/me/x", "path:<path>"),
        ("file:///home/me/list", "<path>"),
        ("cwd-/home/me", "cwd-<path>"),
        ("registry.example.org:5000/home/tool:1", "registry.example.org:5000/home/tool:1"),
        ("what\nTraceback (most recent call last):\n  File x", "what\n"),
        ("etc/passwd is a hard link to nothing", "etc/passwd is a hard link to nothing"),
        ("docker.io/library/debian:12", "docker.io/library/debian:12"),
        ("a" * 3000, "a" * 2000 + "... (3000 characters)"),
    ],
)
def test_redaction(text: str, shown: str) -> None:
    """Paths, users and tokens go; names of images, paths in them and in the repository stay."""
    redact = Redaction([Path("/srv/images")], {"state_dir": Path("/srv/state")})
    assert redact(text) == shown


def test_thousands_of_images_are_queried_at_once() -> None:
    """A filter, a word, a page: of ten thousand, the right ones."""
    fields: dict[str, Any] = dict.fromkeys(Summary.model_fields)
    images = tuple(
        Summary(
            **fields | {
                "name": f"host/name:{number}", "platform": "linux/amd64", "link": f"host/name:{number}",
                "registry": "host", "repository": "name", "tag": str(number), "path": "/x", "size": number,
                "state": "published" if number % 2 else "pending",
            }
        )
        for number in range(10_000)
    )  # fmt: skip
    found = Snapshot("1", images).query(Query(q="999", state="published", sort="-size", limit=3))
    assert found.total == 14
    assert [image.size for image in found.images] == [9999, 9997, 9995]
