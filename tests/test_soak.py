"""Random kills, for as long as one likes: never half a tree, a lost link, an operator's transaction lost, or leftovers.

`make soak` runs it for SOAK_SECONDS on each backend; SOAK_SEED repeats one.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.images import Image
from tests.support.steps import Run
from tests.support.waiting import wait_until
from tests.support.world import World, version

SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))
TAGS = ("one", "two", "three", "four")
VERSIONS = [version(number) for number in range(1, 7)]
_COMMITTING = "start locked hashing before-sign signed remounted done"
STEPS = [
    f"{command}:{step}"
    for command, steps in {
        "transaction": "start before-lock after-lock before-clone cloned mounted done",
        "clone": "hashing",
        "publish": _COMMITTING,
        "ingest": f"opened {_COMMITTING}",
        "abort": "start before-discard after-discard done",
    }.items()
    for step in steps.split()
]


@dataclass
class Soak:
    """A world in which everything may die at any moment.

    Attributes:
        wanted: What the list asks for.
        kept: Tags with a link, which nobody has ceased to want since.
        meant: Digests that a tag has meant since all was in order.
        operator: What somebody else has written into a transaction that they hold.
        kills: How often anything was killed.
    """

    world: World
    random: random.Random
    wanted: dict[str, Image] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    meant: dict[str, set[str]] = field(default_factory=dict)
    operator: str | None = None
    kills: int = 0
    operators: int = 0
    reboots: int = 0

    def change_the_list(self) -> None:
        """Move a tag, want one more, or one less."""
        tag = self.random.choice(TAGS)
        if tag in self.wanted and len(self.wanted) > 1 and self.random.random() < 0.3:
            del self.wanted[tag]
            self.kept.discard(tag)
        else:
            self.wanted[tag] = self.random.choice(VERSIONS)
            self.meant.setdefault(tag, set()).add(self.wanted[tag].digest)
        self.world.tag(self.wanted)
        self.world.ask_for(*self.wanted)

    def run_and_kill(self) -> None:
        """One run that is killed from outside, or inside the server, or by a reboot, if it is not too quick."""
        world, run = self.world, self.world.gc if self.random.random() < 0.35 else self.world.sync
        kill_after = 0.0
        if world.backend == "directory" or self.random.random() < 0.4:
            kill_after = self.random.uniform(0.005, 0.5 if world.backend == "directory" else 1.2)
        else:
            who = self.random.choice(["self", "parent", "both", "both"])
            world.fake.switch("kill", f"{who}@{self.random.choice(STEPS)}")
        before = len(world.fake.commands()) if world.backend == "cvmfs" else 0
        result = run(kill_after=kill_after)
        world.fake.unswitch("kill")
        commands = world.fake.commands()[before:] if world.backend == "cvmfs" else []
        self.kills += result.rc == -9 or any("killed" in command for command in commands)
        assert result.rc in {-9, 0, 3}, result
        if world.backend == "cvmfs" and self.random.random() < 0.15:
            assert world.fake.run("fake-reboot").returncode == 0
            self.reboots += 1

    def be_the_operator(self) -> None:
        """Open a transaction and work in it; or publish what was written into one before, which must all be there."""
        fake = self.world.fake
        if self.operator is None:
            if self.random.random() < 0.2 and fake.run("transaction").returncode == 0:
                self.operators += 1
                self.operator = f"operator-{self.operators}"
                (fake.root / self.operator).write_text("hours of work")
        elif self.random.random() < 0.5:
            self.finish_as_operator()

    def finish_as_operator(self) -> None:
        fake = self.world.fake
        if self.operator is None:
            return
        assert fake.in_transaction, f"{self.operator} was aborted"
        assert fake.run("mount").returncode == 0
        published = fake.run("publish")
        assert published.returncode == 0, published
        assert (fake.published / self.operator).read_text() == "hours of work"
        self.operator = None

    def check(self) -> None:
        """What holds at any moment."""
        self.world.check(self.kept, set(TAGS) - self.kept)
        for tag in TAGS:
            digest = self.world.digest_at(tag)
            assert digest is None or digest in self.meant[tag], f"{tag} leads to what it never meant"
        if self.operator is not None:
            assert self.world.fake.in_transaction, f"{self.operator} was aborted"

    def come_to_an_end(self) -> None:
        """Undisturbed, one sync and one gc finish everything and leave nothing; a child of a killed run may be left."""
        self.finish_as_operator()
        results: list[Run] = []

        def undisturbed() -> bool:
            results[:] = [self.world.sync(), self.world.gc()]
            return [result.rc for result in results] == [0, 0]

        wait_until(undisturbed, lambda: results)
        self.world.check_finished(self.wanted)
        self.kept = set(self.wanted)
        self.meant = {tag: {image.digest} for tag, image in self.wanted.items()}
        if self.world.backend == "cvmfs":
            self.forget_revisions()

    def forget_revisions(self) -> None:
        """Keep this machine's memory free: nobody looks at old ones."""
        fake = self.world.fake
        (fake.home / "var/log/cvmfs_server.jsonl").write_text("")
        for path in (fake.home / "srv/cvmfs" / fake.name / "revisions").iterdir():
            if path.name.isdigit() and int(path.name) < fake.revision - 2:
                shutil.rmtree(path)


@pytest.mark.parametrize("backend", ["directory", "cvmfs"])
def test_random_kills(memory_path: Path, backend: str) -> None:
    """Whatever dies whenever, clients see whole trees only, and undisturbed the next runs finish the job."""
    seed = int(os.environ.get("SOAK_SEED", "20261120" if SECONDS < 60 else str(time.time_ns() % 10**9)))
    with World(memory_path / "world", backend) as world:
        for number, image in enumerate(VERSIONS):
            with World(memory_path / f"alone-{number}", backend, world.trees) as alone:
                alone.tag({"tag": image})
                alone.ask_for("tag")
                alone.sync().cli.ok()
                alone.learn()
            shutil.rmtree(alone.home)
        world.config.write_text(world.config.read_text().replace("wait: 20s", "wait: 1s"))
        soak = Soak(world, random.Random(seed))
        rounds = 0
        try:
            soak.change_the_list()
            soak.come_to_an_end()
            end = time.monotonic() + SECONDS
            # On a slow machine a few seconds may pass with hardly a kill: then it is the kills that count.
            while time.monotonic() < end or soak.kills < 3:
                rounds += 1
                soak.change_the_list()
                for _ in range(soak.random.randrange(1, 5)):
                    if backend == "cvmfs":
                        soak.be_the_operator()
                    soak.run_and_kill()
                    soak.check()
                if rounds % 3 == 0:
                    soak.come_to_an_end()
            soak.come_to_an_end()
        except AssertionError as error:
            error.add_note(f"SOAK_SEED={seed}, round {rounds}, {soak.kills} kills")
            raise
        finally:
            print(  # noqa: T201 -- for `make soak`
                f"{backend}: seed {seed}, {rounds} rounds, {soak.kills} kills, {soak.reboots} reboots,"
                f" {soak.operators} transactions of an operator"
            )
