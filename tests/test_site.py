"""The static site: the pages that a server shows, as files; written where something has changed, and nowhere else."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect, sync_playwright

from cvmfs_sync.ownfiles import MANIFEST
from cvmfs_sync.pages.site import PER_PAGE, file_name
from cvmfs_sync.view.documents import Images
from tests.support.commands import require
from tests.support.documents import HOSTILE
from tests.support.harmless import Page, require_harmless, require_harmless_badge, require_harmless_feed
from tests.support.images import Image, file, layer, write_layout
from tests.support.retiring import fingerprints
from tests.support.shown import publish_some
from tests.support.site import Site
from tests.support.steps import Runs

ALL = os.environ.get("CI") == "true"
_BROWSER = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Something of everything, and its static site in `out`; no test changes it."""
    site = publish_some(tmp_path_factory.mktemp("site"))
    site.run("site", "--out", site.home / "out")
    return site


@pytest.fixture(scope="module")
def out(site: Site) -> Path:
    """Where the static site is."""
    return site.home / "out"


def write(site: Site, *more: str) -> tuple[int, int, int]:
    """Write the site; how many files were written, unchanged and removed."""
    told = site.run("site", "--out", site.home / "out", "--json", *more).json
    return told["written"], told["unchanged"], told["removed"]


def files(out: Path) -> dict[str, bytes]:
    """What is there, but for the manifest."""
    paths = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".cvmfs-sync"))
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """What kinds of files are others, or new, or gone."""
    paths = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return {re.sub(r"(images|badges|feeds)/(?!all).*-(\w+)-\w{16}\.", r"\1/\2.", path) for path in paths}


def targets(path: Path, out: Path) -> set[Path]:
    """Files of the site to which a page or a feed of it leads."""
    if path.suffix == ".html":
        page = Page(path.read_text())
        links = [each[name] for _, each in page.tags for name in ("href", "src") if name in each]
    elif path.suffix == ".atom":
        links = [
            each.attrib["href"] for each in require_harmless_feed(path.read_bytes()).iter() if "href" in each.attrib
        ]
    else:
        return set()
    here = [link for link in links if not link.startswith(("https://", "#"))]
    return {(path.parent / unquote(link)).resolve() for link in here}


def reached(out: Path) -> set[Path]:
    """Files to which links lead from the first page, all of which are there."""
    found, todo = set[Path](), {(out / "index.html").resolve()}
    while todo:
        found |= todo
        todo = {target for path in todo for target in targets(path, out)} - found
    for path in found:
        assert path.is_relative_to(out.resolve()), path
        assert path.is_file(), path
    return found


def require_whole(out: Path) -> None:
    """Every page and feed can be read, and leads to files that are there."""
    for path in out.rglob("*"):
        for target in targets(path, out):
            assert target.is_relative_to(out.resolve()), (path, target)
            assert target.is_file(), (path, target)


def test_every_link_leads_to_a_file(out: Path) -> None:
    """From the first page all images are reached, each with its page, feed and badge, and nothing else is there."""
    require_whole(out)
    names = {str(path.relative_to(out.resolve())) for path in reached(out)}
    never = files(out).keys() - names
    # No link leads to a list without images, or to what programs take.
    assert {path for path in never if not path.startswith("exports/")} == {
        "catalogue/blocked.html", "catalogue/unlisted.html"
    }  # fmt: skip
    assert len([path for path in names if path.startswith("images/")]) == 4


def test_it_says_what_the_server_says(out: Path) -> None:
    """The index for programs is the API's document, and the pages are the server's without what needs one."""
    index = Images.model_validate_json((out / "images.json").read_text())
    assert index.total == len(index.images) == 4
    assert index.states == {"published": 2, "failed": 1, "pending": 1}
    first = Page((out / "index.html").read_text())
    for image in index.images:
        assert image.name in first.words()
        page = Page((out / f"images/{file_name(image.link)}.html").read_text())
        assert image.name in page.words()
        assert image.path in page.words() or image.digest is None
    for path, content in files(out).items():
        if path.endswith(".html"):
            page = Page(content.decode())
            assert " ago" not in page.words()
            assert not list(page.all("form")) or path == "names.html"
    assert "Failed 1" in first.words()
    assert "1 image found" in Page((out / "catalogue/failed.html").read_text()).words()
    there = {image.link: image.path for image in index.images if image.digest}
    assert json.loads((out / "exports/htcondor.json").read_text()) == there


def test_nothing_has_changed(tmp_path: Path) -> None:
    """A second run, and one after a cycle that has found nothing new, write nothing at all, not even the manifest."""
    site = Site(tmp_path)
    layout = write_layout(tmp_path / "layout", {"a": Image((layer(file("a", "1")),))})
    site.wish(f"oci:{layout}:a")
    site.sync()
    assert write(site)[1:] == (0, 0)
    before = fingerprints(tmp_path / "out")
    assert write(site)[0] == 0
    site.sync()
    assert write(site)[0] == 0
    assert fingerprints(tmp_path / "out") == before


def test_one_image_has_moved(tmp_path: Path) -> None:
    """Its own files, the pages that show it, and the feed of all are written; when it is retired, its files go."""
    site = Site(tmp_path)
    base = layer(file("base", "1"))

    def publish(content: str, *tags: str) -> None:
        images = {tag: Image((base, layer(file("a", f"{tag}{content if tag == 'a' else ''}")))) for tag in "abcd"}
        layout = write_layout(tmp_path / "layout", images)
        site.wish(*(f"oci:{layout}:{tag}" for tag in tags))
        site.sync()

    publish("1", "a", "b", "c")
    write(site)
    publish("2", "a", "b", "c")
    before = files(tmp_path / "out")
    assert write(site)[2] == 0
    after = files(tmp_path / "out")
    about_all = {"images.json", "exports/images.json", "index.html", "feeds/all.atom"}
    others = {"images/b.html", "images/c.html"}  # which show other tags of theirs
    assert changed(before, after) == {"images/a.html", "feeds/a.atom", "badges/a.svg", *about_all, *others}
    assert "moved" in after["feeds/all.atom"].decode()
    publish("2", "a", "b")
    write(site)
    before, after = after, files(tmp_path / "out")
    assert "catalogue/unlisted.html" in changed(before, after)
    site.settings["retire"] = {"grace_period": "0s", "max_fraction": 1.0}
    site.run("gc")
    removed = write(site)[2]
    gone = {path for path in after if path not in files(tmp_path / "out")}
    assert removed == len(gone) == 3
    require_whole(tmp_path / "out")


def test_the_catalogue_has_pages(tmp_path: Path) -> None:
    """Each image is on one of them; those that are not needed any more go."""
    site = Site(tmp_path)
    number = 2 * PER_PAGE + 7
    site.wish(*(f"oci:nowhere:{each}" for each in range(number)))
    site.root.mkdir()
    write(site)
    out = tmp_path / "out"
    require_whole(out)
    for first, others in (("index.html", "catalogue/{}.html"), ("catalogue/pending.html", "catalogue/pending-{}.html")):
        pages = [Page((out / path).read_text()) for path in (first, others.format(2), others.format(3))]
        links = [each["href"] for page in pages for each in page.all("a") if "images/" in each["href"]]
        assert len(links) == len({link.rpartition("/")[2] for link in links}) == number
        assert "Page 2 of 3" in pages[1].words()
    site.wish(*(f"oci:nowhere:{each}" for each in range(PER_PAGE)))
    write(site)
    assert {path for path in files(out) if path.startswith("catalogue/") and path[-6].isdigit()} == set()
    require_whole(out)


@pytest.mark.parametrize(
    "link",
    [
        *HOSTILE, "x" * 1_000_000, "../../etc/passwd", ".hidden/a:1", "a/b:..", "CON:1", "a\u0130b:1", "-", "", ".",
        "a..b:1",
        "docker.io/library/debian:12", ".multiarch/linux-arm64/docker.io/library/debian:12",
    ],
    ids=lambda text: ascii(text[:24]),
)  # fmt: skip
def test_names_of_files(link: str) -> None:
    """Whatever an image is called, its file is within the site, not hidden, short, and of characters that all know."""
    name = file_name(link)
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,90}", name)
    assert ".." not in name
    assert name == file_name(link)


def test_names_that_differ_little() -> None:
    """Images have files of their own where names differ by case, or by what no file name can hold, alone."""
    links = ["a/b:Latest", "a/b:latest", "a/b-latest", "a:b/latest", "a/b:latest ", "a/b:l\u00e4test", "A/B:LATEST"]
    links += [f"{'x' * 500}{end}" for end in "ab"]
    assert len({file_name(link).casefold() for link in links}) == len(links)
    assert file_name("docker.io/library/debian:12") == "docker.io-library-debian-12-frqepi7fin7bbhqj"


def test_by_an_address(site: Site, tmp_path: Path) -> None:
    """With `--url`, feeds and the Markdown of badges lead there; all else stays relative."""
    site.run("site", "--out", tmp_path / "out", "--url", "https://images.example.org/x/")
    feed = (tmp_path / "out/feeds/all.atom").read_text()
    assert set(re.findall(r'href="([^"]*/)', feed)) == {
        "https://images.example.org/x/", "https://images.example.org/x/images/", "https://images.example.org/x/feeds/"
    }  # fmt: skip
    (page,) = (tmp_path / "out/images").glob("*-one-*.html")
    assert "](https://images.example.org/x/images/" in page.read_text()
    assert re.search(r'src="\.\./badges/[^"]+"', page.read_text())


@pytest.mark.parametrize("url", ["javascript:alert(1)", "images.example.org", "https://host/?a=b", "https://u:p@host/"])
def test_what_is_no_address(site: Site, tmp_path: Path, url: str) -> None:
    """Is refused before anything is written."""
    assert "no such address" in site.run("site", "--out", tmp_path / "out", "--url", url, rc=2).stderr
    assert not (tmp_path / "out").exists()


def break_the_list(site: Site) -> str:
    (site.home / "image-list.yaml").write_text("version: [")
    for copy in (site.home / "state").glob("image-list*"):
        copy.unlink()
    return "image-list.yaml"


def break_the_database(site: Site) -> str:
    (site.home / "state/state.sqlite").write_text("this is no database")
    return "state.sqlite"


def break_the_repository(site: Site) -> str:
    site.root.rename(site.home / "elsewhere")
    return "published"


@pytest.mark.parametrize("damage", [break_the_list, break_the_database, break_the_repository])
def test_what_cannot_be_read_is_not_taken_for_gone(site: Site, tmp_path: Path, damage: object) -> None:
    """Without list, database or repository nothing is written, and the reason is told."""
    shutil.copytree(site.home, tmp_path / "copy", symlinks=True)
    other = Site(tmp_path / "copy")
    write(other)
    before = files(tmp_path / "copy/out")
    assert callable(damage)
    named = damage(other)
    result = other.run("site", "--out", tmp_path / "copy/out", rc=2 if damage is break_the_list else 3)
    assert named in result.stderr
    assert files(tmp_path / "copy/out") == before


def test_places_where_no_site_can_be(site: Site, tmp_path: Path) -> None:
    """Others' directories, and our own: nothing is changed in them."""
    (tmp_path / "theirs").write_text("theirs")
    assert "is not empty" in site.run("site", "--out", tmp_path, rc=2).stderr
    for place in (site.root / "site", site.home / "state", site.home / "spool/x"):
        assert "no site can be in" in site.run("site", "--out", place, rc=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    assert not (site.root / "site").exists()


def test_a_site_that_is_killed_can_be_read(site: Site, tmp_path: Path) -> None:
    """Whatever was written when it was killed: no page leads nowhere, no file is half, and the next run goes on."""
    home = tmp_path / "copy"
    shutil.copytree(site.home, home, symlinks=True)
    other = Site(home)
    write(other)
    old = files(home / "out")
    other.wish(f"oci:{site.home}/layout:two", f"oci:{site.home}/layout:new")
    for name in (home / "out").rglob("style*"):
        name.write_text("of an older version")
    shutil.copytree(home / "out", home / "before", symlinks=True)
    write(other)
    new = files(home / "out")
    require_whole(home / "out")
    arguments = ("site", "--config", other.config, "--out", home / "out")

    def reset() -> None:
        shutil.rmtree(home / "out")
        shutil.copytree(home / "before", home / "out", symlinks=True)

    with Runs() as runs:
        reset()
        steps = runs.run(*arguments).steps
        assert sum("os.rename" in step for step in steps) > 10
        assert sum("os.remove" in step for step in steps) > 5
        for number in range(1, len(steps) + 1, 1 if ALL else 7):
            reset()
            assert runs.run(*arguments, kill_at=number).rc == -9
            for path, content in files(home / "out").items():
                assert content in (old.get(path), new.get(path), b"of an older version"), path
            reached(home / "out")
            runs.run(*arguments).cli.ok()
            assert files(home / "out") == new
            assert not (home / "out/.cvmfs-sync-site.new").exists()


def test_all_files_are_harmless(out: Path) -> None:
    """Of a site with a hostile image: pages, feeds and badges do what they are for, and nothing is hidden."""
    for path, content in files(out).items():
        if path.endswith(".html"):
            require_harmless(content.decode())
        elif path.endswith(".atom"):
            require_harmless_feed(content)
        elif path.startswith("badges/"):
            require_harmless_badge(content)
    assert str(out.parent / "state") not in (out / MANIFEST).read_text()


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    require("chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_BROWSER)
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_a_browser_reads_the_files(browser: Browser, out: Path, script: bool) -> None:
    """From a directory, without a server: first page, an image, back, a failing one, and its name is found."""
    context = browser.new_context(java_script_enabled=script)
    context.set_default_timeout(60_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.goto((out / "index.html").as_uri())
    expect(page.get_by_role("heading", name="4 images")).to_be_visible()
    page.get_by_role("heading", level=3).get_by_role("link", name="layout:one").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("layout:one")
    assert page.locator("img.badge").evaluate("image => image.complete && image.naturalWidth > 100") if script else True
    page.get_by_role("link", name="All images").click()
    page.get_by_role("navigation", name="States").get_by_role("link", name="Failed").click()
    page.get_by_role("heading", level=3).get_by_role("link").click()
    expect(page.get_by_role("heading", name="Why it is not there")).to_be_visible()
    page.get_by_role("link", name="Find").click()
    names = page.get_by_role("list", name="Images").get_by_role("listitem")
    expect(names).to_have_count(4)
    if script:
        page.get_by_label("Search names and descriptions").fill("FIRST one")
        expect(names.filter(visible=True)).to_have_count(1)
        expect(page.locator("#found")).to_have_text("1 image found")
        page.keyboard.press("Enter")
    else:
        expect(page.get_by_text("search it with your browser")).to_be_visible()
    page.get_by_role("link", name="layout:one").click()
    expect(page.get_by_role("heading", name="What the tag means")).to_be_visible()
    assert not wrong
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_files_are_accessible(browser: Browser, out: Path, width: int, scheme: str) -> None:
    """Axe finds nothing in any page, and none is wider than the screen."""
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    page = context.new_page()
    found: list[tuple[str, str, str]] = []
    for path in sorted(out.rglob("*.html")):
        page.goto(path.as_uri())
        violations = Axe().run(page).response["violations"]
        found += [(path.name, each["id"], each["nodes"][0]["html"]) for each in violations]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert not found
    context.close()
