"""Feeds, badges and dictionaries: what they say, and that hostile texts do no harm in them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from cvmfs_sync.errors import UsageError
from cvmfs_sync.exports import ExportFormat, export, parse_keys
from cvmfs_sync.pages.badges import badge, draw
from cvmfs_sync.pages.feeds import Feed, render
from cvmfs_sync.view.documents import ImageState
from cvmfs_sync.web.app import make_app
from cvmfs_sync.web.process import routers
from tests.support.documents import HOSTILE, NOW, failing, hostile_image, summary
from tests.support.harmless import require_harmless_badge, require_harmless_feed
from tests.support.shown import publish_some, view_of
from tests.support.site import Site

ATOM = "{http://www.w3.org/2005/Atom}"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Published once for all tests here."""
    return publish_some(tmp_path_factory.mktemp("feeds"))


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[TestClient]:
    """Of a server that the world reaches by a name."""
    with view_of(site) as view, TestClient(make_app(view, routers(), url="https://images.example.org")) as opened:
        yield opened


def link_of(client: TestClient, tag: str) -> str:
    images = client.get("/api/v1/images").json()["images"]
    (link,) = (image["link"] for image in images if image["tag"] == tag)
    assert isinstance(link, str)
    return link


def test_the_feed_of_all_has_what_the_format_wants(client: TestClient) -> None:
    """RFC 4287, section 4.1: id, title, updated, author, and of each entry id, title, updated; all ids differ."""
    answer = client.get("/feeds/all.atom")
    assert answer.headers["content-type"] == "application/atom+xml; charset=utf-8"
    root = ET.fromstring(answer.content)
    assert root.tag == f"{ATOM}feed"
    entries = root.findall(f"{ATOM}entry")
    assert len(entries) == len(client.get("/api/v1/events").json()["events"])
    for each in (root, *entries):
        for name in ("id", "title", "updated"):
            assert each.findtext(f"{ATOM}{name}")
    assert root.find(f"{ATOM}author/{ATOM}name") is not None
    ids = [each.findtext(f"{ATOM}id") for each in (root, *entries)]
    assert len(set(ids)) == len(ids)
    assert all(id_ and id_.startswith("tag:") for id_ in ids)
    links = [each.attrib["href"] for each in root.iter(f"{ATOM}link")]
    assert all(href.startswith("https://images.example.org/") for href in links)
    assert root.findtext(f"{ATOM}updated") == entries[0].findtext(f"{ATOM}updated")


def test_the_feed_of_an_image_has_its_events(client: TestClient) -> None:
    """And no others; of what nobody asks for there is none."""
    root = ET.fromstring(client.get(f"/feeds/images/{link_of(client, 'one')}").content)
    terms = [each.attrib["term"] for each in root.iter(f"{ATOM}category")]
    assert terms == ["moved", "published"]
    assert client.get("/feeds/images/nobody:1").status_code == 404


def test_feeds_stay_the_same_and_are_not_sent_again(client: TestClient) -> None:
    """The same bytes while nothing happens, and 304 for whoever has them; a forged host changes nothing."""
    first = client.get("/feeds/all.atom")
    again = client.get("/feeds/all.atom", headers={"If-None-Match": first.headers["etag"], "Host": "evil.example"})
    assert again.status_code == 304


def test_a_page_leads_to_feed_and_badge(client: TestClient) -> None:
    """With the Markdown that shows the badge elsewhere."""
    link = link_of(client, "one")
    page = client.get(f"/images/{link}").text
    assert f'href="/feeds/images/{link}"' in page
    assert f'src="/badges/{link}"' in page
    assert f"https://images.example.org/badges/{link}" in page


def test_badges(client: TestClient) -> None:
    """Of an image that is there, one that fails, and one that nobody asks for; other sites may show them."""
    for link, said in (
        (link_of(client, "one"), "published"),
        (link_of(client, "missing"), "failing"),
        ("x", "not asked"),
    ):
        answer = client.get(f"/badges/{link}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/svg+xml"
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert said in (ET.fromstring(answer.text).findtext(f"{SVG}title") or "")


@pytest.mark.parametrize(
    ("state", "digest", "said"),
    [
        ("published", "sha256:ab12cd34ef", "published 2 hours ago, sha256:ab12cd34"),
        ("failed", None, "failing since 2026-11-27 10:00Z"),
        ("failed", "sha256:ab12cd34ef", "update failing"),
        ("pending", None, "waiting to be published"),
        ("blocked", None, "blocked by the operators"),
        ("unlisted", "sha256:ab12cd34ef", "no longer asked for"),
    ],
)
def test_what_a_badge_says(state: ImageState, digest: str | None, said: str) -> None:
    """In a few words, for each state."""
    ago = NOW - timedelta(hours=2)
    told = badge(
        summary(
            state=state, digest=digest, published_at=ago, failure=failing(since=ago) if state == "failed" else None
        ),
        NOW,
    )
    assert said in told.text
    root = ET.fromstring(draw(told))
    assert root.findtext(f"{SVG}title") == f"cvmfs: {told.text}"
    assert "script" not in {element.tag.removeprefix(SVG) for element in root.iter()}


class _Urls:
    """Where the pages of a site of files are, whatever its images are called."""

    def catalogue(self, parameters: Mapping[str, str]) -> str:
        return "/"

    def image(self, link: str) -> str:
        return f"/images/{quote(link, errors='replace')}"

    def feed(self, link: str | None = None) -> str | None:
        return "/feed"


@pytest.mark.parametrize("text", [*HOSTILE, "x" * 1_000_000], ids=lambda text: ascii(text[:24]))
def test_hostile_texts_in_feeds_and_badges(text: str) -> None:
    """Whatever events, digests and names say: well-formed documents of bounded size that do nothing else."""
    image = hostile_image(text)
    feed = Feed(text[:100], _Urls(), image.link, image.name)  # type: ignore[arg-type]
    content = render(feed, [*image.events, *image.events])
    assert len(content) < 60_000
    require_harmless_feed(content)
    states: tuple[ImageState, ...] = get_args(ImageState)
    for state in states:
        drawn = draw(badge(image.model_copy(update={"state": state}), None)).encode()
        assert len(drawn) < 3000
        require_harmless_badge(drawn)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_left_out_of_the_dictionary(text: str) -> None:
    """GlideinWMS's syntax can't hold them; JSON can, and stays JSON."""
    image = summary(link=text, name=text, path=f"/cvmfs/x/{text}")
    told = export([image], "glideinwms")
    assert (told.text, told.images, len(told.left_out)) == ("\n", 0, 1)
    forms: tuple[ExportFormat, ...] = ("htcondor", "json")
    for form in forms:
        assert set(json.loads(export([image], form).text)) == {text}


def test_dictionaries() -> None:
    """Every image under its link, or those that are chosen under their keys; what is not published is left out."""
    one = summary(link="docker.io/a:1", name="docker.io/a:1", path="/cvmfs/x/docker.io/a:1")
    other = summary(link="docker.io/b:1", name="docker.io/b:1", path="/cvmfs/x/docker.io/b:1", digest=None)
    assert export([one, other], "glideinwms").text == "docker.io/a-1:/cvmfs/x/docker.io/a:1\n"
    assert json.loads(export([one, other], "htcondor").text) == {"docker.io/a:1": "/cvmfs/x/docker.io/a:1"}
    chosen = export([one, other], "glideinwms", parse_keys(["el9=docker.io/a:1", "el8=docker.io/b:1"]))
    assert chosen.text == "el9:/cvmfs/x/docker.io/a:1\n"
    assert [(each.image, each.asked) for each in chosen.left_out] == [("docker.io/b:1", True)]


@pytest.mark.parametrize(
    "name", ["debian:12", "library/debian:12", "docker.io/debian:12", "docker.io/library/debian:12"]
)
def test_keys_take_short_names(name: str) -> None:
    """As `where` takes them; the plain link is meant, whichever other platforms there are."""
    plain = summary("docker.io/library/debian:12")
    other = summary(plain.name, link=f".multiarch/linux-arm64/{plain.link}", path="/cvmfs/x/.multiarch/arm64")
    told = export([other, plain], "htcondor", parse_keys([f"d={name}", f"arm={other.link}"]))
    assert json.loads(told.text) == {"d": plain.path, "arm": other.path}
    assert told.left_out == ()


@pytest.mark.parametrize("text", ["", "x", "=x", "a b=x", "a,b=x", "a:b=x", "a="])
def test_keys_that_are_none(text: str) -> None:
    """Are refused before anything is read."""
    with pytest.raises(UsageError, match="not valid"):
        parse_keys([text])
    with pytest.raises(UsageError, match="twice"):
        parse_keys(["a=1", "a=2"])


def test_export_writes_a_file_at_once(site: Site, tmp_path: Path) -> None:
    """By the command, the same as by the API; a chosen image that is not there leaves the file as it was."""
    target = tmp_path / "images.dict"
    site.run("export", "--format", "htcondor", "-o", str(target))
    written = json.loads(target.read_text())
    assert {key.rpartition(":")[2] for key in written} == {"one", "two"}
    result = site.run("export", "--key", "el9=nobody:1", "-o", str(target), rc=1)
    assert "nobody:1 is left out: it is not published" in result.stderr
    assert json.loads(target.read_text()) == written
    assert [path.name for path in tmp_path.iterdir()] == ["images.dict"]
    assert "not valid" in site.run("export", "--key", "nonsense", rc=2).stderr


def test_no_dictionary_of_what_cannot_be_read(site: Site, tmp_path: Path) -> None:
    """A repository that is not mounted looks empty; a dictionary of nothing would end all jobs."""
    target = tmp_path / "images.dict"
    target.write_text("before")
    site.root.rename(site.home / "elsewhere")
    try:
        assert "cannot read" in site.run("export", "-o", str(target), rc=3).stderr
    finally:
        site.home.joinpath("elsewhere").rename(site.root)
    assert target.read_text() == "before"


def test_export_by_the_api(client: TestClient) -> None:
    """All forms, each as what it is."""
    for form, kind in (("glideinwms", "text/plain; charset=utf-8"), ("htcondor", "application/json")):
        answer = client.get(f"/api/v1/export?format={form}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert client.get("/api/v1/export?format=other").status_code == 422
