"""Repositories to publish to: a new directory, a new fake server, or the real repository that the environment names."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Sample, run
from benchmarks.publications import Publication
from tests.support.cvmfs import FakeCvmfs
from tests.support.site import Site

__all__ = ["REAL", "Place", "directory_place", "fake_place", "real_place", "tree_of"]

REAL = os.environ.get("CVMFS_SYNC_TEST_REPOSITORY", "")
"""The real repository; empty if there is none to be used."""


@dataclass(frozen=True, slots=True)
class Place:
    """A site with a repository, empty at first but for what a real one has.

    Attributes:
        backend: As in `Publication`.
        base: The directory in which processes run.
    """

    backend: str
    base: Path
    site: Site

    def publish(self, case: str, how: str, images: Sequence[str], *options: str) -> Publication:
        """One process that publishes these images.

        Raises:
            Failed: It did not.
        """
        document, sample, commands = self.measured(images, *options)
        images_done = document["images"]
        turns = document["transactions"]
        publishes = [each for each in commands if each["argv"][0] == "publish"]
        return Publication(
            case, self.backend, how, sample,
            prepare=turns[0]["start"] if turns else document["seconds"],
            locked=sum(turn["seconds"] for turn in turns),
            transactions=len(turns),
            files=sum(each["files"] for each in images_done),
            written=sum(each["bytes"] for each in images_done),
            processed_files=sum(each["files"] for each in publishes),
            processed=sum(each["bytes"] for each in publishes),
            relative=next((each["made_of"] for each in images_done if each["made_of"]), ""),
        )  # fmt: skip

    def measured(self, images: Sequence[str], *options: str) -> tuple[dict[str, Any], Sample, list[Mapping[str, Any]]]:
        """What the process wrote down, what it took, and what it made the fake server do.

        Raises:
            Failed: It failed.
        """
        self.site.wish(*images)
        result = self.site.home / "result.json"
        before = len(self._commands())
        script = Path(__file__).with_name("publisher.py")
        command = shlex.join([sys.executable, str(script), str(self.site.config), str(result), *options])
        sample = run(f"exec {self._environment()}{command}", self.base)
        return json.loads(result.read_bytes()), sample, self._commands()[before:]

    def take_down(self, repositories: Sequence[str]) -> None:
        """Remove what was published of these.

        Raises:
            Failed: It could not be removed.
        """
        path = self.site.wish()
        blocked = [{"image": each, "reason": "it was published to be measured"} for each in repositories]
        path.write_text(json.dumps({"version": 1, "images": [], "blocked": blocked}))
        command = shlex.join([sys.executable, "-m", "cvmfs_sync", "sync", "--config", str(self.site.config)])
        run(f"{self._environment()}{command}", self.base)

    def _environment(self) -> str:
        fake = self.site.fake
        return "" if fake is None else shlex.join(["env", *(f"{k}={v}" for k, v in fake.environment.items())]) + " "

    def _commands(self) -> list[Mapping[str, Any]]:
        return [] if self.site.fake is None else list(self.site.fake.commands())


def directory_place(base: Path, host: str) -> Place:
    """A new directory to be published."""
    return Place("directory", base, Site(base / "home", insecure=(host,)))


def fake_place(base: Path, host: str) -> Place:
    """A new fake server."""
    fake = FakeCvmfs(base / "publisher", "bench.example.org")
    fake.make()
    return Place("fake", base, Site(base / "home", fake, insecure=(host,)))


def real_place(base: Path, host: str) -> Place:
    """The real repository, with a state of its own."""
    repository = {"backend": "cvmfs", "name": REAL, "wait": "5m"}
    return Place(REAL, base, Site(base / "home", insecure=(host,), settings={"repository": repository}))


def tree_of(site: Site, image: str) -> Path:
    """Where an image's tree is."""
    (line,) = (each for each in site.catalogue().values() if each["image"] == image)
    return site.root / str(line["path"])
