"""A place where cvmfs-sync is installed: configuration, image list, and a repository of either backend."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.commands import CliResult, run_cli
from tests.support.cvmfs import FakeCvmfs

__all__ = ["Site"]


@dataclass
class Site:
    """One configuration below `home`.

    Attributes:
        fake: The publisher; None for the backend directory.
        insecure: Registries that speak plain HTTP.
        settings: Merged over the configuration.
    """

    home: Path
    fake: FakeCvmfs | None = None
    insecure: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """What clients see."""
        return self.fake.root if self.fake else self.home / "published"

    @property
    def config(self) -> Path:
        """The configuration file, written anew."""
        repository: dict[str, Any] = {"backend": "directory", "wait": "0s"}
        if self.fake:
            repository |= {"backend": "cvmfs", "name": self.fake.name}
            repository |= {"root": str(self.fake.root), "spool": str(self.fake.spool)}
        registries = {host: {"insecure": True, "requests_per_second": 1000} for host in self.insecure}
        path = self.home / "cvmfs-sync.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"repository": repository, "registries": registries, "web": {"listen": None}} | self.settings)
        )
        return path

    def wish(self, *entries: str | Mapping[str, Any]) -> Path:
        """Write the image list."""
        self.home.mkdir(parents=True, exist_ok=True)
        path = self.home / "image-list.yaml"
        path.write_text(json.dumps({"version": 1, "images": entries}, indent=1))
        return path

    def run(self, command: str, *args: str | os.PathLike[str], rc: int = 0) -> CliResult:
        """Run a command with the configuration; its exit code has to be `rc`, and there is never a traceback."""
        result = run_cli(command, "--config", self.config, *args).ok(rc)
        assert "Traceback" not in result.stderr + result.stdout
        return result

    def sync(self, *images: str, rc: int = 0) -> dict[str, str]:
        """One cycle; the results by image."""
        self.report = self.run("sync", "--json", *images, rc=rc).json
        assert self.report["exit_code"] == rc
        return {each["image"]: each["result"] for each in self.report["images"]}

    def error(self, image: str) -> dict[str, Any]:
        """Why an image failed in the latest `sync`."""
        (error,) = (each["error"] for each in self.report["images"] if each["image"] == image)
        assert isinstance(error, dict)
        return error

    def target(self, link: str) -> str:
        """The tree's digits that a link leads to."""
        path = os.readlink(self.root / link)
        assert not path.startswith("/")
        assert (self.root / link).resolve().is_dir()
        return path.rpartition("/")[2]

    def links(self) -> dict[str, str]:
        """All links that users see, with the trees' digits."""
        found = {}
        for directory, names, files in os.walk(self.root):
            names[:] = [name for name in names if name not in (".flat", ".images", ".cvmfs-sync")]
            for path in (Path(directory, name) for name in [*names, *files]):
                if path.is_symlink():
                    found[str(path.relative_to(self.root))] = os.readlink(path).rpartition("/")[2]
        return found

    def trees(self) -> set[str]:
        """All trees' digits."""
        return {path.name for path in self.root.glob(".flat/??/*") if path.name != ".cvmfscatalog"}

    def catalogue(self) -> dict[str, Any]:
        """The lines of `catalogue.json` by link."""
        document: dict[str, Any] = json.loads((self.root / ".cvmfs-sync/catalogue.json").read_bytes())
        assert document["version"] == 1
        images: dict[str, Any] = document["images"]
        return images

    def transactions(self) -> int:
        """How many transactions the fake has seen."""
        assert self.fake
        return sum(each["argv"][0] == "transaction" for each in self.fake.commands())

    def fingerprint(self) -> dict[str, tuple[int, ...]]:
        """What any write to the repository would change: mtimes, ctimes and inodes of all that is there."""
        found: dict[str, tuple[int, ...]] = {}
        for path in [self.root, *self.root.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        return found
