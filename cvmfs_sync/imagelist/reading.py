"""Reading a list: its text in, wishes and all that is wrong out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from cvmfs_sync.blocklist import Blocked, read_blocked
from cvmfs_sync.errors import InvalidReference
from cvmfs_sync.imagelist.model import Defaults, Entry, Outline
from cvmfs_sync.imagelist.values import ImageList, Wish
from cvmfs_sync.reference import ArtifactReference, ImageName, Platform, Reference, parse_image, without_tag
from cvmfs_sync.schema import validate
from cvmfs_sync.tags import Globs, Regex, Semver, TagFilter, is_pattern
from cvmfs_sync.yamlfile import Document, KeyPath, Problem, describe, did_you_mean, dotted, line_of, read
from cvmfs_sync.yamlfile import parse as parse_yaml

__all__ = ["load", "parse"]

_TAG_FORMS = '["4.*", "!*-rc*"], {semver: ">=4.2"} or {regex: "..."}'
Raw = TypeVar("Raw")
Value = TypeVar("Value")


def load(source: Path, *, today: date | None = None) -> ImageList:
    """Read a list from a file; relative paths in names start from the file's.

    Args:
        source: The file. One that can't be read is a problem of the list, like one that is no YAML.
        today: See `parse`.
    """
    try:
        document = read(source)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; name an existing image list"
        return ImageList((), (Problem(str(source), None, "", reason),))
    return _Reader(document, str(source), Path(os.path.abspath(source)).parent, today).result()


def parse(text: str | bytes, *, base: Path, today: date | None = None, file: str = "image-list.yaml") -> ImageList:
    """Read a list; nothing is raised.

    Args:
        text: The list.
        base: Directory that relative paths in names start from.
        today: Wishes that expired before this day get a warning; None to leave that to others.
        file: The list's name in messages.
    """
    return _Reader(parse_yaml(text, file), file, base, today).result()


@dataclass
class _Reader:
    """Collects wishes and problems of one document."""

    document: Document
    file: str
    base: Path
    today: date | None
    problems: list[Problem] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    defaults: Defaults = field(default_factory=Defaults)
    platforms: tuple[Platform, ...] = (Platform(),)

    def result(self) -> ImageList:
        self.problems.extend(self.document.problems)
        data, lines = self.document.data, self.document.lines
        if data is None:
            if not self.problems:
                self._report((), "the list is empty; it begins with 'version: 1' and 'images:'")
            return ImageList((), tuple(self.problems))
        checked = validate(Outline, data, lines, self.file)
        if isinstance(checked, tuple):
            self.problems.extend(checked)
        if isinstance(data, dict) and data.get("defaults") is not None:
            self._defaults(data["defaults"], ("defaults",))
        images = data.get("images") if isinstance(data, dict) else None
        if images == []:
            self._report(("images",), "asks for no image; by such a list nothing is retired", warning=True)
        for index, entry in enumerate(images if isinstance(images, list) else []):
            self._entry(entry, ("images", index))
        self._overlaps(self._duplicates())
        blocked: tuple[Blocked, ...] = ()
        if isinstance(data, dict) and data.get("blocked") is not None:
            blocked, problems = read_blocked(data["blocked"], lines, self.file, self.base)
            self.problems.extend(problems)
            self._blocked_wishes(blocked)
        problems = tuple(sorted(self.problems, key=lambda problem: problem.line or 0))
        return ImageList(tuple(self.wishes), problems, blocked)

    def _defaults(self, raw: object, path: KeyPath) -> None:
        """Read what holds for all entries that do not say it."""
        model = validate(Defaults, raw, self.document.lines, self.file, at=path)
        if isinstance(model, tuple):
            self.problems.extend(model)
        else:
            self.defaults = model
            self.platforms = self._platforms(model.platforms, (*path, "platforms"))

    def _entry(self, entry: object, path: KeyPath) -> None:
        """Add one entry's wish, or its problems."""
        if not isinstance(entry, str | dict):
            expected = "expected an image reference or a mapping with the key 'image'"
            self._report(path, f"{expected}, found {describe(entry)}")
            return
        raw: dict[str, Any] = {"image": entry} if isinstance(entry, str) else entry
        before = len(self.problems)
        model = validate(Entry, raw, self.document.lines, self.file, at=path)
        if isinstance(model, tuple):
            self.problems.extend(model)
        filtered = raw.get("tags") is not None
        tags = self._tags(raw["tags"], (*path, "tags")) if filtered else None
        name: ImageName | None = None
        if isinstance(image := raw.get("image"), str):
            name, tags = self._name(image, path if raw is not entry else (*path, "image"), tags, filtered)
        # A key that is there, and says nothing, takes back what holds for the others.
        own = "platforms" in raw
        platforms = self._platforms(raw.get("platforms"), (*path, "platforms")) if own else self.platforms
        if raw.get("keep") is not None and name is not None and tags is None and not filtered:
            self._report((*path, "keep"), "chooses among tags, but the image names one; add 'tags', or remove 'keep'")
        wrong = any(problem.severity == "error" for problem in self.problems[before:])
        if isinstance(model, tuple) or name is None or wrong:
            return
        if self.today is not None and model.expires is not None and model.expires < self.today:
            message = f"the wish ended on {model.expires}; remove the image, or set a later date"
            self._report((*path, "expires"), message, warning=True)
        keep = self.defaults.keep if tags is not None and "keep" not in raw else model.keep
        contact = model.contact if "contact" in raw else self.defaults.contact
        line = line_of(self.document.lines, path) or 1
        wish = Wish(name, tags, keep, platforms, model.description, contact, model.definition, model.expires, line)
        self.wishes.append(wish)

    def _name(
        self, text: str, path: KeyPath, tags: TagFilter | None, filtered: bool
    ) -> tuple[ImageName | None, TagFilter | None]:
        """The image's name and filter.

        Args:
            text: As the list has it.
            path: Where it stands.
            tags: What `tags` says.
            filtered: Whether there is a `tags`, right or wrong.
        """
        bare, tag, digest = _split(text)
        pattern = tag is not None and is_pattern(tag) and not digest
        try:
            name = parse_image(bare if pattern else text, base=self.base)
        except InvalidReference as error:
            self._report(path, str(error))
            return None, None
        if isinstance(name, ArtifactReference):
            message = "names a SIF file, which can be fetched ('unpack') but not be published yet: it will fail"
            self._report(path, message, warning=True)
        if filtered and (tag is not None or digest):
            what = f"the tag {tag!r}" if tag is not None else "a digest"
            self._report(path, f"names {what}, and 'tags' chooses tags: remove one of the two")
            return None, None
        if pattern and tag is not None:
            tags = self._try(Globs.parse, [tag], path)
            if tags is None:
                return None, None
        if pattern or filtered:
            return without_tag(name), tags
        if isinstance(name, Reference | ArtifactReference) and name.tag == "latest" and not digest:
            what = "'latest'" if tag else "no tag means 'latest', which"
            message = f"{what} moves without notice: what runs today may not run tomorrow; "
            message += f"name a version ({bare}:<version>), or pin it ({bare}@sha256:<digest>)"
            self._report(path, message, warning=True)
        return name, None

    def _tags(self, value: object, path: KeyPath) -> TagFilter | None:
        """The filter that `tags` describes; problems name the item that is wrong."""
        if isinstance(value, list):
            return self._globs(value, path)
        if not isinstance(value, dict) or len(value) != 1:
            self._report(path, f"expected one of {_TAG_FORMS}, found {describe(value)}")
            return None
        ((key, text),) = value.items()
        if key not in ("semver", "regex"):
            close = did_you_mean(key, ["semver", "regex"])
            self._report((*path, key), f"unknown key; expected one of semver, regex{close}")
            return None
        if not isinstance(text, str):
            self._report((*path, key), f"expected text, found {describe(text)}; put it in quotes")
            return None
        if key == "semver":
            return self._try(Semver.parse, text, (*path, key))
        return self._try(Regex.parse, text, (*path, key))

    def _globs(self, items: list[object], path: KeyPath) -> Globs | None:
        good: list[str] = []
        for index, item in enumerate(items):
            if not isinstance(item, str):
                self._report((*path, index), f"expected text, found {describe(item)}; put it in quotes")
            elif self._try(Globs.check, item, (*path, index)):
                good.append(item)
        return self._try(Globs.parse, good, path) if len(good) == len(items) else None

    def _platforms(self, value: object, path: KeyPath) -> tuple[Platform, ...]:
        if not isinstance(value, list):
            return (Platform(),)
        platforms: list[Platform] = []
        for index, text in enumerate(value):
            if not isinstance(text, str):
                continue  # the model has said it
            try:
                platform = Platform.parse(text)
            except InvalidReference as error:
                self._report((*path, index), str(error))
                continue
            if platform in platforms:
                self._report((*path, index), f"{platform} stands twice; remove one")
            platforms.append(platform)
        return tuple(platforms)

    def _duplicates(self) -> list[Wish]:
        """Report images that stand twice, in whatever form (`debian` is `docker.io/library/debian:latest`).

        Returns:
            Each image once.
        """
        seen: dict[tuple[ImageName, TagFilter | None], Wish] = {}
        for wish in self.wishes:
            first = seen.setdefault((wish.name, wish.tags), wish)
            if first is not wish:
                message = f"{wish} stands twice, on lines {first.line} and {wish.line}; remove one"
                self.problems.append(Problem(self.file, wish.line, "images", message))
        return list(seen.values())

    def _overlaps(self, wishes: Sequence[Wish]) -> None:
        """Tell of images that a filter selects as well, if their own entries say nothing that the filter's does not.

        One that a filter's `keep` may leave out, or that has a description of its own, stands there on purpose.
        """
        filters: dict[ImageName, list[Wish]] = {}
        for wish in wishes:
            if wish.tags is not None and wish.keep is None:
                filters.setdefault(wish.name, []).append(wish)
        for wish in wishes:
            tag = getattr(wish.name, "tag", None)
            if wish.tags is not None or not isinstance(tag, str) or getattr(wish.name, "digest", None):
                continue
            for other in filters.get(without_tag(wish.name), ()):
                if other.tags is not None and other.tags.matches(tag) and _says_no_more(wish, other):
                    message = f"{wish} is selected by {other} on line {other.line} as well; remove this one"
                    self.problems.append(Problem(self.file, wish.line, "images", message, "warning"))
                    break

    def _blocked_wishes(self, blocked: tuple[Blocked, ...]) -> None:
        """Tell whoever asks for what is blocked by its name."""
        for wish in self.wishes:
            entry = next((each for each in blocked if each.blocks(wish.name)), None)
            if entry is not None:
                message = f"{wish} is blocked, on line {entry.line}: {entry.reason}"
                self.problems.append(Problem(self.file, wish.line, "images", message, "warning"))

    def _try(self, read: Callable[[Raw], Value], raw: Raw, path: KeyPath) -> Value | None:
        """`read(raw)`, or None with a problem for its ValueError."""
        try:
            return read(raw)
        except ValueError as error:
            self._report(path, str(error))
            return None

    def _report(self, path: KeyPath, message: str, *, warning: bool = False) -> None:
        line = line_of(self.document.lines, path)
        self.problems.append(Problem(self.file, line, dotted(path), message, "warning" if warning else "error"))


def _split(text: str) -> tuple[str, str | None, bool]:
    """A name without tag and digest, its tag, and whether it has a digest; a port is no tag."""
    kinds = ("oci:", "docker-archive:", "docker-daemon:", "oras://")
    kind = next((kind for kind in kinds if text.startswith(kind)), "")
    on_disk = kind in ("oci:", "docker-archive:")
    bare, at, _ = (text, "", "") if on_disk else text.partition("@")
    head, colon, tag = bare.rpartition(":")
    if not colon or "/" in tag or len(head) < len(kind):
        return bare, None, bool(at)
    return head, tag, bool(at)


def _says_no_more(wish: Wish, other: Wish) -> bool:
    """Whether all that an entry says holds by another one, too."""
    texts = ((wish.description, other.description), (wish.contact, other.contact), (wish.definition, other.definition))
    longer = other.expires is None or (wish.expires is not None and wish.expires <= other.expires)
    return longer and set(wish.platforms) <= set(other.platforms) and all(one in (None, two) for one, two in texts)
