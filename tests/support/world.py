"""A list of images and a repository to publish them to, for tests that kill cvmfs-sync and look at what is left.

A world is a directory, so that a copy of it is a snapshot. It knows what each image's tree looks like when nobody is
killed, and says of a repository whether clients see nothing but such trees, and whether anything is left over.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.commands import run
from tests.support.cvmfs import FakeCvmfs
from tests.support.images import Image, Layer, directory, file, hardlink, layer, symlink, write_layout
from tests.support.steps import Run, Runs
from tests.support.trees import Node, differences, tree_listing

__all__ = ["BASE", "Tree", "World", "version"]

Tree = Mapping[str, Node]
# On a CernVM-FS server a clone costs 0.7 s: an image that is worth one has to be large, or look so.
BASE = layer(
    directory("bin"), file("bin/sh", "#!", 0o755), hardlink("bin/bash", "bin/sh"),
    directory("etc"), file("etc/name", "0\n"), symlink("lib", "bin"), file("large", bytes(21 << 20)),
)  # fmt: skip
_OWN = ".cvmfs-sync"


def version(number: int, *more: Layer) -> Image:
    """One of any number of images, each nearest to any other."""
    return Image((BASE, *more, layer(file("etc/name", f"{number}\n"))), env=(f"NUMBER={number}",), cmd=("/bin/sh",))


class World:
    """Images in an OCI layout, a list of them, and a repository.

    Args:
        home: All is below it.
        backend: directory or cvmfs.
        trees: What each image's tree looks like, by digest, shared between worlds; `learn` adds to it.
    """

    def __init__(self, home: Path, backend: str, trees: dict[str, Tree] | None = None) -> None:
        self.home = home
        self.backend = backend
        self.layout = home / "layout"
        self.config = home / "cvmfs-sync.yaml"
        self.state = home / "state"
        self.fake = FakeCvmfs(home / "publisher", "unpacked.example.org")
        self.trees: dict[str, Tree] = {} if trees is None else trees
        home.mkdir()
        lines = [
            "state_dir: state", "spool_dir: spool", "repository:", f"  backend: {backend}", "  wait: 20s",
        ]  # fmt: skip
        if backend == "cvmfs":
            self.fake.make()
            lines += [f"  name: {self.fake.name}", f"  root: {self.fake.root}", f"  spool: {self.fake.spool}"]
        else:
            lines += ["  root: published"]
        lines += ["retire: {grace_period: 0s, max_fraction: 1, batch: 2}"]
        self.config.write_text("\n".join(lines))
        self.runs = Runs(self.fake.environment)

    def __enter__(self) -> Self:
        self.runs.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runs.__exit__(kind, error, trace)

    # --- what is asked for ---

    def tag(self, tags: Mapping[str, Image]) -> None:
        """Let the layout have these tags and no other."""
        write_layout(self.layout, tags)

    def name(self, tag: str) -> str:
        """How the list names a tag."""
        return f"oci:{self.layout}:{tag}"

    def link(self, tag: str) -> str:
        """Where clients find it."""
        return f"oci{self.layout}:{tag}"

    def ask_for(self, *tags: str, blocked: Collection[str] = ()) -> None:
        """Write the list: images by tag, and what is blocked by tag or digest."""
        lines = ["version: 1", "images:", *(f"  - {self.name(tag)}" for tag in tags)]
        if blocked:
            lines.append("blocked:")
            for each in blocked:
                what = f"digest: {each}" if each.startswith("sha256:") else f"image: {self.name(each)}"
                lines += [f"  - {what}", "    reason: malware"]
        (self.home / "image-list.yaml").write_text("\n".join(lines) + "\n")

    # --- runs ---

    def sync(self, **kill: Any) -> Run:
        """One `sync`; see `Runs.run`."""
        return self.runs.run("sync", "--json", "--config", self.config, **kill)

    def gc(self, **kill: Any) -> Run:
        """One `gc`."""
        return self.runs.run("gc", "--json", "--config", self.config, **kill)

    def save(self) -> None:
        """Make a snapshot."""
        run("cp", "-a", self.home, f"{self.home}.snapshot")

    def restore(self) -> None:
        """Go back to the snapshot."""
        shutil.rmtree(self.home)
        run("cp", "-a", f"{self.home}.snapshot", self.home)
        # The fake's index knows files by inode; without one it looks at everything.
        (self.fake.spool / "fake/index").unlink(missing_ok=True)

    # --- what is there ---

    @property
    def clients(self) -> Path:
        """What clients see at the repository's root."""
        return self.fake.published if self.backend == "cvmfs" else self.home / "published"

    def learn(self) -> None:
        """What is published now, by nobody who was killed, is what its images' trees look like."""
        for record in self.records().values():
            digest, path = record["digest"], record["path"]
            if digest not in self.trees:
                self.trees[digest] = tree_listing(self.clients / path)
        self.check()

    def records(self) -> dict[str, dict[str, Any]]:
        """All records by their paths, with the path of the tree added."""
        found: dict[str, dict[str, Any]] = {}
        root = self.clients  # a command of a killed run may publish meanwhile
        for path in sorted((root / _OWN / "images").glob("*/*.json")):
            record = json.loads(path.read_bytes())
            record["path"] = f".flat/{path.parent.name}/{path.stem}"
            found[path.relative_to(root).as_posix()] = record
        return found

    def links(self) -> dict[str, str]:
        """All links that lead to trees, with the trees' paths."""
        found: dict[str, str] = {}
        root = self.clients
        for top in root.glob("oci*"):
            for path in [top, *top.rglob("*")]:
                if path.is_symlink():
                    link = path.relative_to(root).as_posix()
                    found[link] = posixpath.normpath(posixpath.join(posixpath.dirname(link), os.readlink(path)))
        return found

    def digest_at(self, tag: str) -> str | None:
        """The digest of the image that a link leads to; None if there is no link."""
        tree = self.links().get(self.link(tag))
        return None if tree is None else f"sha256:{posixpath.basename(tree)}"

    def there(self) -> set[str]:
        """Digests of all directories where trees are, finished or not."""
        return {f"sha256:{path.name}" for path in (self.clients / ".flat").glob("??/*")}

    def catalogue(self) -> dict[str, dict[str, Any]]:
        """The catalogue's lines by link."""
        try:
            content = (self.clients / _OWN / "catalogue.json").read_bytes()
        except FileNotFoundError:
            return {}
        images: dict[str, dict[str, Any]] = json.loads(content)["images"]
        return images

    # --- what must hold ---

    def check(self, keep: Collection[str] = (), going: Collection[str] = ()) -> None:
        """What holds at any moment, whatever was killed.

        Every link leads to a tree with its record, every tree with a record is whole, the catalogue parses, and each of
        its lines has its link.

        Args:
            keep: Tags whose links must be there.
            going: Tags whose links may be gone while the catalogue still tells of them.
        """
        for _ in range(20):
            seen = self.clients
            try:
                self._check_now(keep, going)
            except (AssertionError, OSError, ValueError):
                # A command of a killed run may go on by itself, and replace what is being looked at.
                if self.clients == seen:
                    raise
            else:
                return
        raise AssertionError("the repository does not come to rest")

    def _check_now(self, keep: Collection[str], going: Collection[str]) -> None:
        links = self.links()
        catalogue = self.catalogue()
        records = {record["path"]: record for record in self.records().values()}
        for tag in keep:
            assert self.link(tag) in links, f"the link of {tag} is lost"
        for link in catalogue.keys() - links.keys():
            assert link in {self.link(tag) for tag in going}, f"{link} is in the catalogue only"
        for link, tree in links.items():
            assert (self.clients / tree).is_dir(), f"{link} leads to nothing: {tree}"
            assert tree in records, f"{link} leads to a tree without a record: {tree}"
        for path, record in records.items():
            if (self.clients / path).is_dir():
                found = differences(tree_listing(self.clients / path), self.trees[record["digest"]])
                assert not found, f"{path} is not whole: {found}"

    def check_finished(self, wanted: Mapping[str, Image], others: Collection[Image] = ()) -> None:
        """The job is done and nothing is left over.

        Args:
            wanted: The image of each tag that is linked, and of no other.
            others: Whose trees are there without a link.
        """
        self.check(wanted)
        assert {tag: self.digest_at(tag) for tag in wanted} == {tag: i.digest for tag, i in wanted.items()}
        links = {self.link(tag) for tag in wanted}
        assert set(self.links()) == set(self.catalogue()) == links
        for tag, image in wanted.items():
            assert self.catalogue()[self.link(tag)]["digest"] == image.digest
        digests = {image.digest for image in (*wanted.values(), *others)}
        assert self.there() == digests
        assert {record["digest"] for record in self.records().values()} == digests
        assert not (self.clients / _OWN / "staging").exists()
        left = {path.name for path in self.state.iterdir()}
        database = {"state.sqlite", "state.sqlite-wal", "state.sqlite-shm"}
        assert left <= {"lock", *database, "indexes", "image-list", "events.jsonl"}, left
        spool = self.home / "spool"
        assert not spool.exists() or not [path for path in spool.rglob("*") if path.is_file()]
        if self.backend == "cvmfs":
            assert not self.fake.in_transaction
            assert self.fake.run("fake-verify").returncode == 0
