"""A killed `sync` leaves the old or the new tree for clients, never half a one; the next `sync` finishes the job."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.commands import run, run_cli
from tests.support.cvmfs import FakeCvmfs
from tests.support.images import Image, directory, file, hardlink, layer, symlink, whiteout, write_layout
from tests.support.steps import Run, Runs
from tests.support.trees import Node, differences, tree_listing

BASE = layer(
    directory("bin"), file("bin/sh", "#!", 0o755), hardlink("bin/bash", "bin/sh"),
    directory("etc"), file("etc/name", "1\n"), symlink("lib", "bin"),
)  # fmt: skip
V1 = Image((BASE,), cmd=("/bin/sh",))
V2 = Image((BASE, layer(file("etc/name", "2\n"), file("etc/new", "new"), whiteout("lib"))), cmd=("/bin/sh",))
Tree = dict[str, Node]


def version(number: int) -> Image:
    """One of any number of images."""
    return Image((BASE, layer(file("etc/name", f"{number}\n"))), env=(f"NUMBER={number}",))


class World:
    """A list of one image, `layout:tag`, and a repository to publish it to.

    Args:
        home: All is below it, so a copy of it is a snapshot.
        backend: directory or cvmfs.
    """

    def __init__(self, home: Path, backend: str) -> None:
        self.home = home
        self.backend = backend
        self.layout = home / "layout"
        self.link = f"oci{self.layout}:tag"
        self.config = home / "cvmfs-sync.yaml"
        self.state = home / "state"
        self.fake = FakeCvmfs(home / "publisher", "unpacked.example.org")
        home.mkdir()
        (home / "image-list.yaml").write_text(f"version: 1\nimages:\n  - oci:{self.layout}:tag\n")
        lines = ["state_dir: state", "spool_dir: spool", "repository:", f"  backend: {backend}", "  wait: 20s"]
        if backend == "cvmfs":
            self.fake.make()
            lines += [f"  name: {self.fake.name}", f"  root: {self.fake.root}", f"  spool: {self.fake.spool}"]
        else:
            lines += ["  root: published"]
        self.config.write_text("\n".join(lines))
        self.runs = Runs(self.fake.environment)

    def tag(self, image: Image) -> None:
        """Let the tag mean this image."""
        write_layout(self.layout, {"tag": image})

    @property
    def clients(self) -> Path:
        """What clients see at the repository's root."""
        return self.fake.published if self.backend == "cvmfs" else self.home / "published"

    def visible(self) -> Tree:
        """The tree at the link, as a client has it."""
        link = self.clients / self.link
        assert link.is_symlink(), "the link is gone"
        assert link.is_dir(), f"the link leads to nothing: {os.readlink(link)}"
        return tree_listing(link.resolve())

    def sync(self, *, kill_at: int = 0, kill_after: float = 0) -> Run:
        """One `sync`."""
        return self.runs.run("sync", "--json", "--config", self.config, kill_at=kill_at, kill_after=kill_after)

    def transactions(self) -> int:
        """How many commands the server has seen; for a directory, the changes of the root as a number."""
        return len(self.fake.commands()) if self.backend == "cvmfs" else 0

    def save(self) -> None:
        """Make a snapshot."""
        run("cp", "-a", self.home, f"{self.home}.snapshot")

    def restore(self) -> None:
        """Go back to the snapshot."""
        shutil.rmtree(self.home)
        run("cp", "-a", f"{self.home}.snapshot", self.home)
        # The fake's index knows files by inode; without one it looks at everything.
        (self.fake.spool / "fake/index").unlink(missing_ok=True)

    def check_whole(self, *trees: Tree) -> int:
        """Clients see one of these trees, and a catalogue that parses; returns which."""
        visible = self.visible()
        catalogue = json.loads((self.clients / ".cvmfs-sync/catalogue.json").read_bytes())
        assert list(catalogue["images"]) == [self.link]
        for number, tree in enumerate(trees):
            if visible == tree:
                return number
        raise AssertionError(f"neither the old nor the new tree: {differences(visible, trees[-1])}")

    def check_finished(self, image: Image, tree: Tree | None = None) -> None:
        """The job is done, nothing is left over, and another sync finds nothing to do."""
        if tree is not None:
            self.check_whole(tree)
        before = self.transactions()
        again = self.sync().cli.ok().json
        assert [outcome["result"] for outcome in again["images"]] == ["unchanged"], again
        assert self.transactions() == before
        (status,) = self.runs.run("status", "--json", "--config", self.config).cli.ok().json["images"]
        assert (status["state"], status["digest"], status["failure"]) == ("published", image.digest, None)
        catalogue = json.loads((self.clients / ".cvmfs-sync/catalogue.json").read_bytes())
        assert catalogue["images"][self.link]["digest"] == image.digest
        assert not (self.clients / ".cvmfs-sync/staging").exists()
        left = {path.name for path in self.state.iterdir()}
        assert left <= {"lock", "state.sqlite", "state.sqlite-wal", "state.sqlite-shm"}
        spool = self.home / "spool"
        assert not spool.exists() or not [path for path in spool.rglob("*") if path.is_file()]
        if self.backend == "cvmfs":
            assert not self.fake.in_transaction
            assert self.fake.run("fake-verify").returncode == 0
            (self.home / "publisher/var/log/cvmfs_server.jsonl").write_text("")


@pytest.fixture(params=["directory", "cvmfs"])
def worlds(request: pytest.FixtureRequest, memory_path: Path) -> Iterator[list[World]]:
    """Worlds to work in side by side: version 1 is published in each, and the tag means version 2."""
    with ExitStack() as stack:
        found = []
        for number in range(2):
            world = World(memory_path / f"world-{number}", request.param)
            stack.enter_context(world.runs)
            world.tag(V1)
            world.sync().cli.ok()
            world.tag(V2)
            world.save()
            found.append(world)
        yield found


@pytest.fixture
def world(worlds: list[World]) -> World:
    """One of them."""
    return worlds[0]


def test_a_sync_killed_at_any_step_is_finished_by_the_next(worlds: list[World]) -> None:
    """Killed before each of its writing steps, one after the other; only CI has the time for all that fill the tree."""
    kill_at_steps(worlds, every=1 if os.environ.get("CI") == "true" else 9)


def kill_at_steps(worlds: list[World], every: int) -> None:
    """Publish version 2 over version 1 and kill it, at each step, but inside the new tree only at every n-th."""
    trees = []
    steps: tuple[str, ...] = ()
    for world in worlds:
        old = world.visible()
        finished = world.sync()
        finished.cli.ok()
        trees.append((old, world.visible()))
        assert old != trees[-1][1]
        steps = finished.steps
    # Inside the tree, names are relative to a directory's descriptor: bytes.
    inside = next(number for number, step in enumerate(steps, 1) if step.startswith("os.mkdir (b'"))
    until = next(n for n, step in enumerate(steps, 1) if n > inside and step.startswith(("open '", "os.mkdir ('/")))
    chosen = [n for n in range(1, len(steps) + 1) if not inside < n < until or n % every == 0]
    assert until - inside > 100
    assert len(chosen) > 60
    assert len(chosen) == len(steps) or every > 1

    def work(number: int) -> dict[int, int]:
        world = worlds[number]
        seen = {}
        for kill_at in chosen[number :: len(worlds)]:
            world.restore()
            killed = world.sync(kill_at=kill_at)
            try:
                assert killed.rc == -9, killed
                seen[kill_at] = world.check_whole(*trees[number])
                world.sync().cli.ok()
                world.check_finished(V2, trees[number][1])
            except AssertionError as error:
                error.add_note(f"killed before step {kill_at}: {killed.steps[-1]}")
                raise
        return seen

    with ThreadPoolExecutor(len(worlds)) as executor:
        seen = dict(sorted(pair for found in executor.map(work, range(len(worlds))) for pair in found.items()))
    assert list(seen) == chosen
    # Once clients have seen the new tree, no later kill brings the old one back.
    assert list(seen.values()) == sorted(seen.values())
    assert set(seen.values()) == {0, 1}


def test_a_first_sync_killed_at_any_step_shows_nothing_or_all(memory_path: Path) -> None:
    """In an empty repository, too, there is no link before its tree is whole."""
    world = World(memory_path / "world", "directory")
    with world.runs:
        world.tag(V1)
        world.save()
        steps = world.sync()
        steps.cli.ok()
        tree = world.visible()
        writes = [n for n, step in enumerate(steps.steps, 1) if n % 20 == 0 or step.startswith("os.rename")]
        for kill_at in writes:
            world.restore()
            assert world.sync(kill_at=kill_at).rc == -9
            if (world.clients / world.link).is_symlink():
                assert world.visible() == tree
            world.sync().cli.ok()
            world.check_finished(V1, tree)


STEPS = [
    *(f"transaction:{step}" for step in ("start", "before-lock", "after-lock", "mounted", "done")),
    *(f"publish:{step}" for step in ("start", "locked", "hashing", "before-sign", "signed", "remounted", "done")),
]


@pytest.fixture
def publisher(memory_path: Path) -> Iterator[World]:
    """A world on the fake server, as in `worlds`."""
    world = World(memory_path / "world", "cvmfs")
    with world.runs:
        world.tag(V1)
        world.sync().cli.ok()
        world.tag(V2)
        yield world


@pytest.mark.parametrize("who", ["self", "parent", "both"])
def test_a_kill_inside_the_server_is_finished_by_the_next_sync(publisher: World, who: str) -> None:
    """cvmfs_server, cvmfs-sync or both are killed at each step of transaction and publish; the other goes on."""
    publisher.save()
    old = publisher.visible()
    publisher.sync().cli.ok()
    new = publisher.visible()
    for step in STEPS:
        publisher.restore()
        publisher.fake.switch("kill", f"{who}@{step}:1")
        # The orphan that goes on without us is not done when the next sync starts.
        publisher.fake.switch("sleep", f"{step}:0.1" if who == "parent" else "")
        killed = publisher.sync()
        try:
            assert killed.rc in ({0, 3} if who == "self" else {-9}), killed
            publisher.check_whole(old, new)
            publisher.sync().cli.ok()
            publisher.check_finished(V2, new)
        except AssertionError as error:
            error.add_note(f"{who} killed at {step}: {killed}")
            raise


@pytest.mark.parametrize("who", ["self", "parent", "both"])
@pytest.mark.parametrize("step", ["start", "before-discard", "after-discard", "done"])
def test_a_kill_while_recovering_is_finished_by_the_next_sync(publisher: World, who: str, step: str) -> None:
    """The abort of an interrupted transaction is itself interrupted at each of its steps."""
    old = publisher.visible()
    publisher.fake.switch("kill", f"both@publish:hashing:1\n{who}@abort:{step}:1")
    assert publisher.sync().rc == -9
    publisher.sync()
    publisher.check_whole(old)
    publisher.sync().cli.ok()
    publisher.check_finished(V2)


@pytest.mark.parametrize("step", ["publish:start", "publish:hashing", "publish:signed", "publish:remounted"])
def test_a_reboot_in_a_transaction_is_finished_by_the_next_sync(publisher: World, step: str) -> None:
    """The locks of our own transaction outlive a reboot, and are recognised."""
    publisher.fake.switch("kill", f"both@{step}:1")
    assert publisher.sync().rc == -9
    assert publisher.fake.run("fake-reboot").returncode == 0
    publisher.sync().cli.ok()
    publisher.check_finished(V2)


def test_the_real_command_line_survives_its_kill(publisher: World) -> None:
    """The same with a process of its own, killed from inside the server in the middle of publishing."""
    old = publisher.visible()
    publisher.fake.switch("kill", "both@publish:before-sign:1")
    assert run_cli("sync", "--config", publisher.config, env=publisher.fake.environment).rc == -9
    assert publisher.visible() == old
    run_cli("sync", "--config", publisher.config, env=publisher.fake.environment).ok()
    publisher.check_finished(V2)


@pytest.mark.parametrize("backend", ["directory", "cvmfs"])
def test_random_kills(memory_path: Path, backend: str) -> None:
    """Killed at any moment, again and again while the tag moves, clients see a tree that was asked for, whole."""
    world = World(memory_path / "world", backend)
    generator = random.Random(20261120)
    with world.runs:
        trees: dict[int, Tree] = {}
        current = 1
        world.tag(version(current))
        world.sync().cli.ok()
        trees[current] = world.visible()
        end = time.monotonic() + 6
        kills = 0
        while time.monotonic() < end:
            current += 1
            world.tag(version(current))
            for _ in range(generator.randrange(1, 5)):
                kills += (
                    world.sync(kill_after=generator.uniform(0.001, 0.06 if backend == "directory" else 0.15)).rc == -9
                )
                name = (world.clients / world.link / "etc/name").read_text().strip()
                assert name in {str(current - 1), str(current)}
                if name == str(current - 1):
                    world.check_whole(trees[current - 1])
            world.sync().cli.ok()
            trees[current] = world.visible()
            assert (world.clients / world.link / "etc/name").read_text() == f"{current}\n"
            assert trees[current].keys() == trees[1].keys()
            world.check_finished(version(current))
        assert kills > 5
