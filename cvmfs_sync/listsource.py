"""The image list from where the configuration says: a file, a URL, or a git repository.

A source goes in; a valid `ImageList` comes out, with the reason why that is not the present one where it is not. The
last good copy of a list is kept in the state directory, and stays in force while the server is down or there is
something that is no valid list; a server is asked with the copy's ETag, so an unchanged list costs one short answer. Of
a file, only who asks for it gets the copy: a person who has broken one can mend it, and must notice; a daemon goes on.
A URL may hold a password or a token: messages and the state directory have it without user and query.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import requests

from cvmfs_sync import __version__
from cvmfs_sync.config import GitList
from cvmfs_sync.deadline import DeadlineAdapter
from cvmfs_sync.errors import ListError
from cvmfs_sync.gitlist import fetch_file, origins, shown
from cvmfs_sync.imagelist import ImageList, Origin, load, parse
from cvmfs_sync.layout import Layout
from cvmfs_sync.rootfs import os_errors
from cvmfs_sync.survey import require_distinct_links
from cvmfs_sync.yamlfile import MAX_BYTES

__all__ = ["ListSource", "Reading", "known_list", "name_of", "read_list"]

log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = (10, 60)
# For all of it: the daemon waits, and does nothing else meanwhile.
_WHOLE_SECONDS = 120.0

_LAYOUT = Layout("unpacked")

ListSource = Path | str | GitList


@dataclass(frozen=True, slots=True)
class Reading:
    """The list in force.

    Attributes:
        refused: Why what is at the source now is not in force; None if it is.
    """

    wishes: ImageList
    refused: ListError | None = None


def read_list(
    source: ListSource, state_dir: Path, *, today: date, layout: Layout = _LAYOUT, lenient: bool = False
) -> Reading:
    """The valid list at `source`, or its last good copy.

    Args:
        source: A path, an http(s) URL, or a file in a git repository.
        state_dir: Where copies are kept.
        today: For warnings about wishes that have expired.
        layout: In which no two images may claim one link: a list that has such would stop every cycle.
        lenient: Whether a file has a copy, too.

    Raises:
        ListError: There is no valid list, and no good copy.
    """
    if isinstance(source, Path) and not lenient:
        return Reading(_acceptable(load(source, today=today), layout, today))
    copy = _Copy(state_dir / "image-list", source)
    try:
        text = _fetch(source, state_dir, copy)
        wishes = _acceptable(_parse(text, source, state_dir, today, copy.fresh), layout, today)
    except ListError as error:
        kept = copy.parsed(state_dir, today)
        if kept is None:
            raise
        log.warning("the last good copy of the image list stays in force: %s", error)
        return Reading(replace(kept, stale=True), error)
    copy.keep(text)
    return Reading(wishes)


def known_list(source: ListSource, state_dir: Path, *, today: date, layout: Layout = _LAYOUT) -> Reading:
    """The list in force as far as this machine knows it, for those who only look: nothing is asked for or kept.

    Raises:
        ListError: A file is not valid, and there is no good copy of it; or nothing was ever read from elsewhere.
    """
    copy = _Copy(state_dir / "image-list", source)
    kept = copy.parsed(state_dir, today)
    if isinstance(source, Path):
        try:
            return Reading(_acceptable(load(source, today=today), layout, today))
        except ListError as error:
            if kept is None:
                raise
            return Reading(replace(kept, stale=True), error)
    if kept is None:
        raise ListError(
            f"{name_of(source)}: no image list has been read from there yet", todo="'cvmfs-sync sync' does it"
        )
    return Reading(kept)


def _acceptable(wishes: ImageList, layout: Layout, today: date) -> ImageList:
    """This list, if it may be acted upon.

    Raises:
        ListError: With what is wrong with it.
    """
    require_distinct_links(layout, wishes.require_valid().wished_on(today).wishes)
    return wishes


def name_of(source: ListSource) -> str:
    """The source for a person: no password or token is in it."""
    if isinstance(source, GitList):
        return shown(source)
    return str(source) if isinstance(source, Path) else _shown(source)


@dataclass(slots=True)
class _About:
    """What is known of a list's text.

    Attributes:
        etag: That its server gave it.
        commit: That it is from.
        lines: Where its lines come from.
    """

    etag: str | None = None
    commit: str | None = None
    lines: Mapping[int, Origin] | None = None


def _fetch(source: ListSource, state_dir: Path, copy: _Copy) -> bytes:
    """The text that is at the source now; `copy.fresh` tells about it.

    Raises:
        ListError: It can't be had.
    """
    if isinstance(source, str):
        return _download(source, copy)
    if isinstance(source, GitList):
        directory = state_dir / "image-list.git"
        file = fetch_file(source, directory)
        if file.commit == copy.about.commit and copy.text() == file.content:
            copy.fresh = copy.about
        else:
            copy.fresh = _About(commit=file.commit, lines=origins(source, directory, file.commit))
        return file.content
    try:
        with source.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError:
        load(source).require_valid()
        raise ListError(f"{source}: the image list could not be read; it can be now") from None


def _parse(text: bytes, source: ListSource, state_dir: Path, today: date, about: _About) -> ImageList:
    """The list that a text is.

    Raises:
        ListError: It is no valid one.
    """
    base = Path(os.path.abspath(source)).parent if isinstance(source, Path) else state_dir
    wishes = parse(text, base=base, today=today, file=name_of(source)).require_valid()
    if about.commit is None:
        return wishes
    unknown, lines = Origin(about.commit), about.lines or {}
    return replace(
        wishes,
        commit=about.commit,
        wishes=tuple(replace(wish, origin=lines.get(wish.line, unknown)) for wish in wishes.wishes),
    )


class _Copy:
    """The last good list of one source, with what is known of it.

    Attributes:
        about: The copy that is there.
        fresh: What has been fetched.
    """

    def __init__(self, path: Path, source: ListSource) -> None:
        self._text = path.with_suffix(".yaml")
        self._about = path.with_suffix(".json")
        self._source = source
        self._key = hashlib.sha256(str(source).encode()).hexdigest()
        self.about = _About()
        self.fresh = _About()
        self._usable = False
        try:
            about = json.loads(self._about.read_bytes())
            if about["url"] == self._key:
                if self._text.is_file():
                    self.about = _about(about)
                self._usable = True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass

    def text(self) -> bytes | None:
        """The copy, if it is one of this source."""
        try:
            return self._text.read_bytes() if self._usable else None
        except OSError:
            return None

    def parsed(self, state_dir: Path, today: date) -> ImageList | None:
        """The copy as a list; None if there is no good one."""
        text = self.text()
        try:
            return _parse(text, self._source, state_dir, today, self.about) if text is not None else None
        except ListError:
            return None

    def keep(self, text: bytes) -> None:
        """Make `text` the last good copy: first the text, then what says that it is one."""
        if text == self.text() and self.fresh == self.about:
            return
        with os_errors(f"to the copy of the image list {self._text}"):
            self._text.parent.mkdir(parents=True, exist_ok=True)
            if text != self.text():
                self._about.unlink(missing_ok=True)
                _replace(self._text, text)
            lines = {str(line): [origin.author, origin.at] for line, origin in (self.fresh.lines or {}).items()}
            about = {"url": self._key, "etag": self.fresh.etag, "commit": self.fresh.commit, "lines": lines}
            _replace(self._about, json.dumps(about).encode())
        self._usable = True


def _about(stored: Mapping[str, object]) -> _About:
    """What a file tells of the copy beside it."""
    etag, commit, lines = stored["etag"], stored.get("commit"), stored.get("lines")
    if not isinstance(commit, str) or not isinstance(lines, dict):
        return _About(etag if isinstance(etag, str) else None)
    return _About(None, commit, {int(line): Origin(commit, author, at) for line, (author, at) in lines.items()})


def _download(url: str, copy: _Copy) -> bytes:
    """The list's text, or the copy's if the server says that it is the same.

    Raises:
        ListError: With what the server or the network said.
    """
    headers = {"User-Agent": f"cvmfs-sync/{__version__}"}
    kept = copy.text()
    if copy.about.etag and kept is not None:
        headers["If-None-Match"] = copy.about.etag
    todo = "see that image_list is right and its server is up"
    try:
        with (
            _session() as session,
            session.get(url, headers=headers, timeout=_TIMEOUT_SECONDS, stream=True) as answer,
        ):
            if answer.status_code == requests.codes.not_modified and kept is not None:
                copy.fresh = copy.about
                return kept
            if answer.status_code != requests.codes.ok:
                found = f"HTTP status {answer.status_code}"
                raise ListError(
                    f"{_shown(url)}: the image list cannot be downloaded", found=found, expected="200", todo=todo
                )
            text = b""
            for piece in answer.iter_content(1 << 16):
                text += piece
                if len(text) > MAX_BYTES:
                    raise ListError(
                        f"{_shown(url)}: the image list is too large", expected=f"at most {MAX_BYTES} bytes"
                    )
            copy.fresh = _About(answer.headers.get("ETag"))
            return text
    except requests.RequestException as error:
        raise ListError(
            f"{_shown(url)}: the image list cannot be downloaded", found=_why(error, url), todo=todo
        ) from None


def _session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, DeadlineAdapter(_WHOLE_SECONDS, time.monotonic, whole=True))
    return session


def _shown(url: str) -> str:
    """The URL without user and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _why(error: requests.RequestException, url: str) -> str:
    text = str(error)
    for secret in (urlsplit(url).query, urlsplit(url).netloc.rpartition("@")[0]):
        text = text.replace(secret, "***") if secret else text
    return text[:500]


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    fresh.write_bytes(content)
    fresh.rename(path)
