"""Values of hostile images, lists and registries, on their way to everybody who is told of them.

A repository is published, of which each image says something hostile wherever an image may say something; its
catalogue, the errors, the log and the events say it, too. Then all surfaces are looked at: documents, pages, feeds,
badges, dictionaries and static files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from cvmfs_sync.layout import CATALOGUE, RECORDS, Layout
from cvmfs_sync.reference import parse_image
from cvmfs_sync.remembered import LogLine
from cvmfs_sync.state import State
from cvmfs_sync.view.documents import Image as ImageDocument
from cvmfs_sync.view.documents import Images
from cvmfs_sync.view.queries import View
from cvmfs_sync.web.app import make_app
from cvmfs_sync.web.process import routers
from tests.support.documents import HOSTILE
from tests.support.harmless import require_harmless, require_harmless_badge, require_harmless_feed
from tests.support.images import Image, file, layer, write_layout
from tests.support.shown import view_of
from tests.support.site import Site

_LONG = "x" * 1_000_000
# Lone surrogates are refused where they would come in: no manifest, list or database holds one.
TEXTS = [*(text for text in HOSTILE if text.encode(errors="replace").decode() == text), _LONG]
# Of directories, which are in the names of OCI layouts.
NAMES = (
    "<img src=x onerror=alert(1)>", "&'\"%#?;", "{{7*7}}", "javascript:alert(1)", ",x:y", "\u00e4\u0627\u0644", "..a",
    "$(id)`id`",
)  # fmt: skip
NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
# The most that one image, or a page of the catalogue, may make us say.
_MOST = 600_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two images for each text: one that is published, and one that has failed; all records tell nonsense of layers.

    And one for each name, published as the list still asks for it.
    """
    site = Site(tmp_path_factory.mktemp("hostile"))
    images = {
        f"t{number}": Image(
            (layer(file("a", f"{number}")),), labels={text: text, "source": text}, env=(f"X={text}",),
            cmd=(text[:2000],), entrypoint=(text[:2000],), user=text[:2000], workdir=text[:2000],
        )
        for number, text in enumerate(TEXTS)
    }  # fmt: skip
    layout = write_layout(site.home / "layout", images)
    named = [
        f"oci:{write_layout(site.home / name / 'x', {'name': Image((layer(file('a', name)),))})}:name" for name in NAMES
    ]
    site.wish(*named, *(f"oci:{layout}:{tag}" for tag in images))
    site.run("sync", "--json")
    catalogue = site.root / CATALOGUE
    document = json.loads(catalogue.read_bytes())
    for line in document["images"].values():
        if line["image"].endswith(":name"):
            continue
        text = TEXTS[int(line["image"].rpartition(":t")[2])]
        line |= dict.fromkeys(("description", "contact", "definition", "list_commit", "requested_by"), text)
    catalogue.write_text(json.dumps(document))
    site.wish(*named, *(f"oci:{layout}:f{number}" for number in range(len(TEXTS))))
    for record in (site.root / RECORDS).rglob("*.json"):
        document = json.loads(record.read_bytes())
        document["layers"] += [{"digest": _LONG, "size": 1}, {"digest": [], "size": 1}, {"size": 1}]
        record.write_text(json.dumps(document))
    with State(site.home / "state") as state:
        for number, text in enumerate(TEXTS):
            for name in (f"oci:{layout}:f{number}", f"oci:{layout}:t{number}"):
                link = Layout().link(parse_image(name))
                if ":f" in name:
                    state.failed(link, name, text, temporary=False, at=NOW, kind="ImageError")
                state.record(link, name, "failed", None, text, NOW + timedelta(seconds=number))
                state.record(link, text, text[:50], None, text, NOW)
                state.keep_log(link, [LogLine(NOW, text[:50], text)] * 200)
    return site


@pytest.fixture(scope="module")
def view(site: Site) -> Iterator[View]:
    """What is shown of it."""
    with view_of(site) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(view: View) -> Iterator[TestClient]:
    """A client of the server."""
    with TestClient(make_app(view, routers(), url="https://images.example.org")) as opened:
        yield opened


def require_bounded(content: bytes, most: int = _MOST) -> None:
    """Whoever says very much is cut short."""
    assert len(content) < most
    assert b"x" * 5000 not in content


def test_texts_are_there(view: View) -> None:
    """Nothing was refused on its way: all that follows is about what the view tells of these texts."""
    images = view.every()
    assert [image.state for image in images].count("unlisted") == len(TEXTS)
    assert [image.state for image in images].count("failed") == len(TEXTS)
    assert [image.state for image in images].count("published") == len(NAMES)
    for image in images:
        if image.state == "published":
            continue
        text = TEXTS[int(re.split(r":[tf]", image.link)[-1])]
        found = view.image(image.link)
        assert found is not None
        assert found.log[0].message[:10] == text[:10]
        if image.state == "unlisted":
            assert image.description is not None
            assert image.description.startswith(text[:1000])
            assert found.configuration is not None
            assert text[:1000] in {value[:1000] for value in found.configuration.labels.values()}
        else:
            assert image.failure is not None
            assert image.failure.detail[:10] == text[:10]


def test_documents(client: TestClient, view: View) -> None:
    """Answers of the API are JSON of bounded size, and tell texts as they are."""
    for image in view.every():
        answer = client.get("/api/v1/image", params={"image": image.link})
        require_bounded(answer.content)
        assert ImageDocument.model_validate_json(answer.content).link == image.link
        assert client.get("/api/v1/where", params={"image": image.name}).status_code == 200
    for path in ("images?limit=500", "events?limit=500", "operations", "queue", "cycle"):
        answer = client.get(f"/api/v1/{path}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        require_bounded(answer.content)


def test_pages(client: TestClient, view: View) -> None:
    """No text becomes an element, an attribute, an address that runs, or a character that can't be seen."""
    paths = [
        "/",
        "/?limit=200",
        "/activity",
        "/operations",
        *(f"/images/{quote(image.link)}" for image in view.every()),
    ]
    for path in paths:
        answer = client.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 200
        require_bounded(answer.content)
        require_harmless(answer.text)


def test_links_lead_where_they_say(client: TestClient, view: View) -> None:
    """Whatever is in an image's name, the links of the catalogue lead to its page, and those of the page to its own."""
    catalogue = require_harmless(client.get("/?limit=200").text)
    links = {each["href"] for each in catalogue.all("a") if each["href"].startswith("/images/")}
    assert len(links) == len(view.every())
    named = [link for link in links if link.endswith(":name")]
    assert len(named) == len(NAMES)
    for link in named:
        answer = client.get(link)
        assert answer.status_code == 200, link
        page = require_harmless(answer.text)
        (badge,) = (each["src"] for each in page.all("img"))
        assert "published" in client.get(badge).text, link
        feeds = {each["href"] for each in page.all("link") if each["rel"] == "alternate"}
        assert [client.get(feed).status_code for feed in feeds] == [200, 200], link


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_pages_say_again_what_was_asked(client: TestClient, text: str) -> None:
    """Whatever a link to us has in it, the page that answers is harmless."""
    parameters = {
        name: text.encode(errors="replace").decode() for name in ("q", "registry", "contact", "limit", "sort")
    }
    for path in ("/", "/images/nosuch", "/activity"):
        answer = client.get(path, params=parameters, headers={"Accept": "text/html"})
        require_bounded(answer.content)
        require_harmless(answer.text)


def test_feeds_and_badges(client: TestClient, view: View) -> None:
    """Are well-formed, of their own elements alone, and lead to our pages."""
    for path in ("/feeds/all.atom", *(f"/feeds/images/{quote(image.link)}" for image in view.every())):
        content = client.get(path).content
        require_bounded(content)
        require_harmless_feed(content)
    for image in view.every():
        content = client.get(f"/badges/{quote(image.link)}").content
        require_bounded(content, 3000)
        require_harmless_badge(content)


def test_dictionaries(client: TestClient) -> None:
    """Are of the syntax that their readers take apart, and name nothing but keys and paths."""
    told: dict[str, Any] = {}
    for form in ("json", "htcondor"):
        answer = client.get(f"/api/v1/export?format={form}")
        require_bounded(answer.content)
        told[form] = answer.json()
    assert {link: image["path"] for link, image in told["json"].items()} == told["htcondor"]
    assert len(told["json"]) == len(TEXTS) + len(NAMES)
    dictionary = client.get("/api/v1/export?format=glideinwms").text
    assert re.fullmatch(r"[A-Za-z0-9._/@+=-]+:/[\w./:-]+(?:,[A-Za-z0-9._/@+=-]+:/[\w./:-]+)*\n", dictionary)
    plain = [name for name in NAMES if re.fullmatch(r"[a-z.]+", name)]
    assert dictionary.count(",") == len(TEXTS) + len(plain) - 1


def test_static_files(site: Site, tmp_path: Path) -> None:
    """The same of files, whose names are harmless as well."""
    site.run("site", "--out", tmp_path / "out")
    paths = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(paths) > 3 * (2 * len(TEXTS) + len(NAMES))
    for path in paths:
        assert re.fullmatch(r"(?:[a-z]+/)?\.?[a-z0-9][a-z0-9.-]*", str(path.relative_to(tmp_path / "out")))
        content = path.read_bytes()
        require_bounded(content)
        match path.suffix:
            case ".html":
                require_harmless(content.decode())
            case ".atom":
                require_harmless_feed(content)
            case ".svg" if path.parent.name == "badges":
                require_harmless_badge(content)
            case ".json":
                json.loads(content)
    assert Images.model_validate_json((tmp_path / "out/images.json").read_bytes()).total == len(NAMES) + 2 * len(TEXTS)


def test_commands_print_no_control_characters(site: Site) -> None:
    """What a terminal would take for a command, or that turns text around, is shown as something else."""
    told = site.run("status").stdout
    assert not set(re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066]", told))
