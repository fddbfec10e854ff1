"""The image list from where the configuration says: a file, or a URL.

A path or URL goes in, a valid `ImageList` comes out. Of a list from a URL the last good copy is kept in the state
directory, and stays in force while the server is down or answers with something that is no valid list; the server is
asked with the copy's ETag, so an unchanged list costs one short answer. A file has no copy: whoever can break it can
mend it, and a broken one must not go unnoticed. A URL may hold a password or a token: messages and the state directory
have it without user and query.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from dataclasses import replace
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import requests

from cvmfs_sync import __version__
from cvmfs_sync.errors import ListError
from cvmfs_sync.imagelist import ImageList, load, parse
from cvmfs_sync.rootfs import os_errors
from cvmfs_sync.yamlfile import MAX_BYTES

__all__ = ["read_list"]

log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = (10, 60)


def read_list(source: Path | str, state_dir: Path, *, today: date) -> ImageList:
    """The valid list at `source`, or the last good copy of one from a URL.

    Args:
        source: A path, or an http(s) URL.
        state_dir: Where copies are kept.
        today: For warnings about wishes that have expired.

    Raises:
        ListError: The file is missing or invalid; or the URL gave no valid list and there is no good copy.
    """
    if isinstance(source, Path):
        return load(source, today=today).require_valid()
    copy = _Copy(state_dir / "image-list", source)
    try:
        text = _download(source, copy)
        wishes = parse(text, base=state_dir, today=today, file=_shown(source)).require_valid()
    except ListError as error:
        kept = copy.text()
        if kept is None:
            raise
        log.warning("the last good copy of the image list stays in force: %s", error)
        return replace(parse(kept, base=state_dir, today=today, file=_shown(source)).require_valid(), stale=True)
    copy.keep(text)
    return wishes


class _Copy:
    """The last good list of one URL, with the ETag that its server gave it."""

    def __init__(self, path: Path, url: str) -> None:
        self._text = path.with_suffix(".yaml")
        self._about = path.with_suffix(".json")
        self._url = hashlib.sha256(url.encode()).hexdigest()
        self.etag: str | None = None
        self.fresh_etag: str | None = None
        try:
            about = json.loads(self._about.read_bytes())
            if about["url"] == self._url and self._text.is_file():
                self.etag = about["etag"]
            self._usable = bool(about["url"] == self._url)
        except (OSError, ValueError, KeyError, TypeError):
            self._usable = False

    def text(self) -> bytes | None:
        """The copy, if it is one of this URL."""
        try:
            return self._text.read_bytes() if self._usable else None
        except OSError:
            return None

    def keep(self, text: bytes) -> None:
        """Make `text` the last good copy: first the text, then what says that it is one."""
        with os_errors(f"the copy of the image list {self._text}"):
            self._text.parent.mkdir(parents=True, exist_ok=True)
            if text != self.text():
                self._about.unlink(missing_ok=True)
                _replace(self._text, text)
            _replace(self._about, json.dumps({"url": self._url, "etag": self.fresh_etag}).encode())
        self._usable = True


def _download(url: str, copy: _Copy) -> bytes:
    """The list's text, or the copy's if the server says that it is the same.

    Raises:
        ListError: With what the server or the network said.
    """
    headers = {"User-Agent": f"cvmfs-sync/{__version__}"}
    kept = copy.text()
    if copy.etag and kept is not None:
        headers["If-None-Match"] = copy.etag
    todo = "see that image_list is right and its server is up"
    try:
        with requests.get(url, headers=headers, timeout=_TIMEOUT_SECONDS, stream=True) as answer:
            if answer.status_code == requests.codes.not_modified and kept is not None:
                copy.fresh_etag = copy.etag
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
            copy.fresh_etag = answer.headers.get("ETag")
            return text
    except requests.RequestException as error:
        raise ListError(
            f"{_shown(url)}: the image list cannot be downloaded", found=_why(error, url), todo=todo
        ) from None


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
