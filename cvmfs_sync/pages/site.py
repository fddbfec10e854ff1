"""The static site: which files it is made of, and what is in each. Nothing is read or written here.

Documents of the view go in; for each group of files their paths, a text that tells what they are made of, and a
function that makes them come out. Pages, feeds, badges and dictionaries are made by the functions that a server uses.
What would be another thing at each look is left out: when registries were last asked, and what the daemon does now.

All links are relative, so that the site works under any address, and from a directory. Names of files are of lower
case letters, digits, dots and hyphens; each has a hash of the image's link, so that no two images share one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import get_args

from cvmfs_sync import __version__, exports
from cvmfs_sync.exports import ExportFormat
from cvmfs_sync.pages import badges, feeds
from cvmfs_sync.pages.rendering import Site, catalogue_page, image_page, names_page, static_files
from cvmfs_sync.view.documents import Document, Events, Image, Images, ImageState, Summary

__all__ = ["LISTS", "PER_PAGE", "Part", "StaticSite", "file_name"]

PER_PAGE = 50
# Which states have lists of their own: what is published is most of the list of all.
LISTS: tuple[ImageState, ...] = tuple(state for state in get_args(ImageState) if state != "published")
_EXPORTS: Mapping[ExportFormat, str] = {
    "glideinwms": "exports/glideinwms.txt", "htcondor": "exports/htcondor.json", "json": "exports/images.json",
}  # fmt: skip
_INDEX, _NAMES, _API, _FEED = "index.html", "names.html", "images.json", "feeds/all.atom"
_READABLE = 60
_HASH_BYTES = 10


@dataclass(frozen=True, slots=True)
class Part:
    """Files that are made together.

    Attributes:
        paths: Relative to the site.
        made_of: Another text whenever their contents may be others.
        make: Gives their contents, in the order of the paths.
    """

    paths: tuple[str, ...]
    made_of: str
    make: Callable[[], Iterator[bytes]]


def file_name(link: str) -> str:
    """What an image's files are called, but for what tells their kind: bounded, always the same, and no other's."""
    readable = re.sub(r"[^a-z0-9]+", lambda found: "." if found[0] == "." else "-", link.lower())
    digest = hashlib.sha256(link.encode("utf-8", "surrogatepass")).digest()[:_HASH_BYTES]
    return f"{readable[-_READABLE:].strip('.-')}-{base64.b32encode(digest).decode().lower()}".lstrip("-")


class StaticSite:
    """The files of a site.

    Args:
        repository: Its name.
        images: All that there are, by name.
        url: By which the world reaches the site; None if nobody knows, or if there are several.
    """

    def __init__(self, repository: str, images: Sequence[Summary], url: str | None = None) -> None:
        self._repository = repository
        self._names = {image.link: file_name(image.link) for image in images}
        self._sizes: dict[ImageState | None, int] = {None: len(images)}
        for state in LISTS:
            self._sizes[state] = sum(image.state == state for image in images)
        self._base = f"{url.rstrip('/')}/" if url else None
        self._stamp = "\n".join((_program(), repository, url or ""))

    @property
    def paths(self) -> frozenset[str]:
        """Of all files."""
        return frozenset(
            (
                *map(_static, static_files()),
                *(path for link in self._names for path in self._image_paths(link)),
                *(_catalogue(state, page) for state, page in self.pages()),
                *_EXPORTS.values(), _INDEX, _NAMES, _API, _FEED,
            )
        )  # fmt: skip

    def pages(self) -> Iterator[tuple[ImageState | None, int]]:
        """The catalogue's pages, first ones last: the state whose list it is, None for all, and the page's number."""
        for state, size in reversed(self._sizes.items()):
            for page in range(max(1, -(-size // PER_PAGE)), 0, -1):
                yield state, page

    def page_of(self, link: str) -> str:
        """The path of an image's page."""
        return self._image_paths(link)[-1]

    def static(self) -> Part:
        """What all pages need."""
        return self._part(map(_static, static_files()), (), lambda: iter(static_files().values()))

    def image(self, image: Image) -> Part:
        """One image's page, feed and badge."""
        kept = _kept_image(image)

        def make() -> Iterator[bytes]:
            yield badges.draw(badges.badge(kept, None)).encode(errors="replace")
            yield feeds.render(feeds.Feed(self._repository, self._elsewhere(), kept.link, kept.name), kept.events)
            yield _html(image_page(self._site("../"), kept))

        return self._part(self._image_paths(image.link), (kept,), make)

    def catalogue(self, state: ImageState | None, page: int, found: Images) -> Part:
        """One page of the catalogue, or of the list of a state."""
        # Of which states there are how many, the first page alone tells: it would change all others.
        counts = {"states": found.states if page == 1 else {}, "registries": {}, "platforms": {}}
        kept = found.model_copy(update={"images": list(map(_kept, found.images)), **counts})
        path = _catalogue(state, page)
        site = self._site("../" if "/" in path else "")
        parameters = {"state": state} if state else {}
        return self._part((path,), (kept,), lambda: iter([_html(catalogue_page(site, kept, parameters))]))

    def all_images(self, found: Images) -> Part:
        """What tells of all images at once: the page to search, the index for programs, and the dictionaries."""
        kept = found.model_copy(update={"images": list(map(_kept, found.images))})

        def make() -> Iterator[bytes]:
            yield _html(names_page(self._site(""), kept.images))
            yield kept.model_dump_json().encode()
            for form in _EXPORTS:
                yield exports.export(kept.images, form).text.encode()

        return self._part((_NAMES, _API, *_EXPORTS.values()), (kept,), make)

    def feed(self, events: Events) -> Part:
        """The feed of all images."""
        feed = feeds.Feed(self._repository, self._elsewhere())
        # What leads to an image's page today leads to the first one when the image has gone.
        there = ",".join(str(int(event.link in self._names)) for event in events.events)
        return self._part((_FEED,), (events,), lambda: iter([feeds.render(feed, events.events)]), there)

    def _image_paths(self, link: str) -> tuple[str, ...]:
        name = self._names[link]
        return f"badges/{name}.svg", f"feeds/{name}.atom", f"images/{name}.html"

    def _part(
        self, paths: Iterable[str], documents: Iterable[Document], make: Callable[[], Iterator[bytes]], more: str = ""
    ) -> Part:
        made_of = hashlib.sha256(f"{self._stamp}\n{more}\n".encode("utf-8", "surrogatepass"))
        for document in documents:
            made_of.update(document.model_dump_json().encode())
        return Part(tuple(paths), made_of.hexdigest()[:32], make)

    def _site(self, root: str) -> Site:
        return Site(_Urls(root, self._names, self._base), self._repository)

    def _elsewhere(self) -> _Urls:
        """Where things are for feeds, which other programs fetch and keep."""
        return _Urls(self._base or "../", self._names, self._base)


@dataclass(frozen=True, slots=True)
class _Urls:
    """See `rendering.Urls`.

    Attributes:
        root: Of the site, as seen from the file that is made.
        known: Names of images' files, by link.
        base: Of the site, as seen from elsewhere.
    """

    root: str
    known: Mapping[str, str]
    base: str | None
    queries: bool = False

    def catalogue(self, parameters: Mapping[str, str]) -> str:
        state = next((each for each in LISTS if each == parameters.get("state")), None)
        return self.root + _catalogue(state, int(parameters.get("offset", "0")) // PER_PAGE + 1)

    def names(self) -> str | None:
        return self.root + _NAMES

    def image(self, link: str) -> str:
        # What is gone has no page any more, but events that tell of it.
        name = self.known.get(link)
        return self.root + (_INDEX if name is None else f"images/{name}.html")

    def activity(self, before: int | None = None) -> str | None:  # noqa: ARG002 - nothing that was so a moment ago
        return None

    def live(self) -> str | None:
        return None

    def operations(self) -> str | None:
        return None

    def feed(self, link: str | None = None) -> str | None:
        return self.root + (_FEED if link is None else f"feeds/{self.known[link]}.atom")

    def badge(self, link: str) -> str | None:
        return f"{self.root}badges/{self.known[link]}.svg"

    def api(self) -> str | None:
        return self.root + _API

    def static(self, name: str) -> str:
        return self.root + _static(name)

    def absolute(self, url: str) -> str | None:
        return None if self.base is None else self.base + url.removeprefix(self.root)


def _catalogue(state: ImageState | None, page: int) -> str:
    if state is None:
        return _INDEX if page == 1 else f"catalogue/{page}.html"
    return f"catalogue/{state}.html" if page == 1 else f"catalogue/{state}-{page}.html"


@cache
def _static(name: str) -> str:
    """With a hash of its content: pages of an older version keep what they need until they are written anew."""
    stem, _, kind = name.rpartition(".")
    return f"static/{stem}-{hashlib.sha256(static_files()[name]).hexdigest()[:16]}.{kind}"


@cache
def _program() -> str:
    """Something else whenever the same documents may be told in another way."""
    found = hashlib.sha256(__version__.encode())
    directory = files("cvmfs_sync.pages")
    for place in (directory, directory / "templates", directory / "static"):
        for file in sorted(place.iterdir(), key=lambda each: each.name):
            if file.is_file():
                found.update(file.read_bytes())
    return found.hexdigest()


def _kept(image: Summary) -> Summary:
    return image.model_copy(update={"checked_at": None})


def _kept_image(image: Image) -> Image:
    """Of each layer only whether others have it: how many changes with every image that is made of the same base."""
    layers = [layer.model_copy(update={"images": min(2, layer.images)}) for layer in image.layers]
    others = {"platforms": list(map(_kept, image.platforms)), "tags": list(map(_kept, image.tags))}
    return image.model_copy(update={"checked_at": None, "layers": layers, **others})


def _html(page: str) -> bytes:
    return page.encode(errors="replace")
