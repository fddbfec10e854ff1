"""A killed run leaves the old or the new for clients, never half of anything; the next run finishes the job.

Every job of cvmfs-sync that changes a repository is killed before each of its writing steps, and inside the server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import run_cli
from tests.support.images import Image, file, layer, whiteout
from tests.support.steps import Run
from tests.support.trees import Node
from tests.support.waiting import wait_until
from tests.support.world import World, version

Tree = dict[str, Node]
V1 = version(1)
V2 = version(2, layer(file("etc/new", "new"), whiteout("lib")))
V3 = version(3)
ALL = os.environ.get("CI") == "true"
BACKENDS = ["directory", "cvmfs"]
_FOR_GOOD = ("os.rename", "os.remove", "os.rmdir", "subprocess", "renameat2", "sqlite commit")


@dataclass(frozen=True, slots=True)
class Job:
    """Something that is killed.

    Attributes:
        prepare: Makes the world in which it begins.
        run: The job: `World.sync` or `World.gc`.
        wanted: The image of each tag when it is done.
        others: Whose trees are there without a link then.
        keep: Tags whose links must be there at every moment.
        going: Tags whose links go.
        before: Images that `keep` may lead to until it is done, by tag.
        swept: Whether what has lost its record or its link, but not all, waits for the next `gc`.
    """

    prepare: Callable[[World], None]
    run: Callable[..., Run]
    wanted: Mapping[str, Image]
    others: tuple[Image, ...] = ()
    keep: tuple[str, ...] = ()
    going: tuple[str, ...] = ()
    before: tuple[Image, ...] = ()
    swept: bool = False

    def finish(self, world: World) -> None:
        """Run it again, after a kill."""
        self.run(world).cli.ok()
        if self.swept:
            world.check(self.wanted, self.going)
            assert not any(world.digest_at(tag) for tag in self.going)
            world.gc().cli.ok()
        world.check_finished(self.wanted, self.others)


def published(world: World, **tags: Image) -> None:
    """Ask for these tags, and have them published."""
    world.tag(tags)
    world.ask_for(*tags)
    world.sync().cli.ok()
    world.learn()


def moved_tag(world: World) -> None:
    """The tag means another image, to be made of the present one."""
    published(world, tag=V1)
    world.tag({"tag": V2})


def first(world: World) -> None:
    """Nothing is there."""
    world.tag({"tag": V1})
    world.ask_for("tag")


def more_links(world: World) -> None:
    """Two more tags mean what is published, and one moves back to what is still there."""
    published(world, tag=V1, other=V2)
    world.tag({"tag": V1, "second": V1, "third": V1, "other": V1})
    world.ask_for("tag", "second", "third", "other")


def unwanted(world: World) -> None:
    """Nobody asks for three tags any more, and one tree has no link."""
    published(world, tag=V2)
    world.tag({"tag": V1, "old": V2, "older": V2, "oldest": V3})
    published(world, tag=V1, old=V2, older=V2, oldest=V3)
    world.tag({"tag": V1})
    world.ask_for("tag")


def blocked_by_name(world: World) -> None:
    """One of two tags is blocked."""
    published(world, tag=V1, bad=V2)
    world.ask_for("tag", blocked=["bad"])


def blocked_by_digest(world: World) -> None:
    """What one of two tags means is blocked."""
    published(world, tag=V1, bad=V2)
    world.ask_for("tag", blocked=[V2.digest])


JOBS = {
    "difference": Job(moved_tag, World.sync, {"tag": V2}, (V1,), keep=("tag",), before=(V1,)),
    "first": Job(first, World.sync, {"tag": V1}),
    "links": Job(
        more_links, World.sync, {"tag": V1, "second": V1, "third": V1, "other": V1}, (V2,), keep=("tag", "other"),
        before=(V2,),
    ),
    "gc": Job(unwanted, World.gc, {"tag": V1}, keep=("tag",), going=("old", "older", "oldest")),
    "takedown by name": Job(blocked_by_name, World.sync, {"tag": V1}, keep=("tag",), going=("bad",), swept=True),
    "takedown by digest": Job(blocked_by_digest, World.sync, {"tag": V1}, keep=("tag",), going=("bad",), swept=True),
}  # fmt: skip


def learn_all(world: World) -> None:
    """Know what every image's tree looks like when it is published whole, by nobody who is killed."""
    for name, image in {"v1": V1, "v2": V2, "v3": V3}.items():
        home = world.home.with_name(f"{world.home.name}-{name}")
        with World(home, world.backend, world.trees) as other:
            published(other, tag=image)


@pytest.fixture(scope="session", params=BACKENDS)
def trees(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Mapping[str, Node]]]:
    """A backend, and what the images' trees look like there."""
    backend: str = request.param
    with World(tmp_path_factory.mktemp(f"trees-{backend}") / "world", backend) as world:
        learn_all(world)
    return backend, dict(world.trees)


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest) -> Job:
    """One of them."""
    return JOBS[request.param]


@pytest.fixture
def worlds(trees: tuple[str, dict[str, Mapping[str, Node]]], job: Job, memory_path: Path) -> Iterator[list[World]]:
    """Worlds to work in side by side, with the job to be done."""
    backend, known = trees
    with ExitStack() as stack:
        found = []
        for number in range(2):
            world = stack.enter_context(World(memory_path / f"world-{number}", backend, dict(known)))
            job.prepare(world)
            world.save()
            found.append(world)
        yield found


def side_by_side(worlds: list[World], todo: list[int], work: Callable[[World, int], None]) -> None:
    """Do each piece of work, in whichever world is free."""

    def each(number: int) -> None:
        for piece in todo[number :: len(worlds)]:
            work(worlds[number], piece)

    with ThreadPoolExecutor(len(worlds)) as executor:
        list(executor.map(each, range(len(worlds))))


def chosen(steps: tuple[str, ...], *, every: int, lasting: int) -> list[int]:
    """The steps to be killed at: every n-th of a run, and more of those that give or take a name for good.

    Of what is the same again and again, such as 256 directories that are made, few.
    """
    kinds = [re.sub(r"[0-9a-f]{2,}|[0-9]+", "#", step) for step in steps]
    found = []
    for number, (step, kind) in enumerate(zip(steps, kinds, strict=True), 1):
        if kinds[max(0, number - 25) : number + 24].count(kind) >= 8 and number % 50:
            continue
        if number % every == 0 or (step.startswith(_FOR_GOOD) and "(b'" not in step and (number % lasting == 0)):
            found.append(number)
    return found


def test_a_job_killed_at_any_step_is_finished_by_the_next(worlds: list[World], job: Job) -> None:
    """Killed before each of its writing steps: what holds at any moment holds, and running it again finishes it.

    With CI=true at all steps of the difference, and at many of the others'; else at as many as there is time for.
    """
    finished = [job.run(world) for world in worlds][-1]
    finished.cli.ok()
    for world in worlds:
        world.check_finished(job.wanted, job.others)
    seen: dict[int, bool] = {}

    def work(world: World, step: int) -> None:
        world.restore()
        killed = job.run(world, kill_at=step)
        try:
            if killed.rc == 0 and len(killed.steps) < step:
                # Threads take turns: a run may have a few steps fewer than the one that was counted.
                world.check_finished(job.wanted, job.others)
                return
            assert killed.rc == -9, killed
            after_a_kill(world, job)
            seen[step] = all(world.digest_at(tag) == image.digest for tag, image in job.wanted.items())
            job.finish(world)
        except AssertionError as error:
            error.add_note(f"killed before step {step}: {killed.steps[-1]}")
            raise

    every, lasting = (13, 3) if not ALL else (1, 1) if job is JOBS["difference"] else (5, 2)
    steps = chosen(finished.steps, every=every, lasting=lasting)
    assert len(steps) > 5
    side_by_side(worlds, steps, work)
    # Once clients have seen all of the new, no later kill brings the old back.
    assert [seen[step] for step in steps] == sorted(seen.values())


def after_a_kill(world: World, job: Job) -> None:
    """What holds at any moment; and no link leads to anything but what it did before or shall do."""
    world.check(job.keep, job.going)
    for tag in job.keep:
        images = (job.wanted[tag], *job.before)
        assert world.digest_at(tag) in {image.digest for image in images}
    assert {link for tag in (*job.wanted, *job.going) for link in [world.link(tag)]} >= set(world.links())


@pytest.mark.parametrize("trees", ["cvmfs"], indirect=True)
@pytest.mark.parametrize("job", ["difference", "gc"], indirect=True)
@pytest.mark.parametrize("what", ["killed", "rebooted"])
def test_a_kill_inside_the_server_is_finished_by_the_next_run(worlds: list[World], job: Job, what: str) -> None:
    """cvmfs_server, cvmfs-sync or both are killed at each step of each command, or all by a reboot."""
    steps = []
    for world in worlds:
        # The fake tells its steps by sleeping at them, which it says nowhere: the list of its documentation.
        before = len(world.fake.commands())
        job.run(world).cli.ok()
        steps = [step for entry in numbered(world.fake.commands()[before:]) for step in entry]
    kills = [(who, step) for step in steps for who in (("self", "parent", "both") if what == "killed" else ("both",))]
    every = 1 if ALL and job is JOBS["difference"] else 3
    todo = [number for number in range(len(kills)) if number % every == len(kills[number][1]) % every]

    def work(world: World, number: int) -> None:
        who, step = kills[number]
        world.restore()
        world.fake.switch("kill", f"{who}@{step}")
        if who == "parent":  # the orphan that goes on without us is not done when the next run starts
            world.fake.switch("sleep", f"{step.rpartition(':')[0]}:0.1")
        killed = job.run(world)
        world.fake.unswitch("sleep")
        try:
            assert killed.rc in ({0, 3} if who == "self" else {-9}), killed
            after_a_kill(world, job)
            if what == "rebooted":
                assert world.fake.run("fake-reboot").returncode == 0
            job.finish(world)
        except AssertionError as error:
            error.add_note(f"{who} killed at {step}: {killed}")
            raise

    side_by_side(worlds, todo, work)


OPENING = ("before-lock", "after-lock")
CLONING = ("before-clone", "cloned")
COMMITTING = ("locked", "hashing", "before-sign", "signed", "remounted")


def numbered(commands: list[dict[str, object]]) -> Iterator[list[str]]:
    """The steps of these commands, each with how often it has been made by then: `publish:signed:2`."""
    counts: dict[str, int] = {}
    for entry in commands:
        argv = entry["argv"]
        assert isinstance(argv, list)
        command = argv[0]
        steps = [f"{command}:start"]
        if command in ("transaction", "ingest"):
            steps += [f"transaction:{step}" for step in OPENING]
            if "-T" in argv:
                steps += ["transaction:before-clone", "clone:hashing", "transaction:cloned"]
            steps.append("transaction:mounted")
        if command == "ingest":
            steps.append("ingest:opened")
        if command in ("publish", "ingest"):
            steps += [f"{command}:{step}" for step in COMMITTING]
        found = []
        for step in [*steps, f"{command}:done"]:
            counts[step] = counts.get(step, 0) + 1
            found.append(f"{step}:{counts[step]}")
        yield found


@pytest.mark.parametrize("trees", ["cvmfs"], indirect=True)
@pytest.mark.parametrize("job", ["difference", "gc"], indirect=True)
def test_a_kill_while_recovering_is_finished_by_the_next_run(worlds: list[World], job: Job) -> None:
    """The abort of an interrupted transaction or removal is itself interrupted at each of its steps."""
    at = "ingest:hashing:1" if job.run is World.gc else "publish:hashing:1"
    kills = [
        (who, step)
        for step in ("start", "before-discard", "after-discard", "done")
        for who in ("self", "parent", "both")
    ]

    def work(world: World, number: int) -> None:
        who, step = kills[number]
        world.restore()
        world.fake.switch("kill", f"both@{at}\n{who}@abort:{step}:1")
        try:
            assert job.run(world).rc == -9
            job.run(world)
            if who == "parent":
                # The abort goes on without us: while it drops a revision, nobody can look at that.
                wait_until(lambda: not world.fake.in_transaction)
            after_a_kill(world, job)
            job.finish(world)
        except AssertionError as error:
            error.add_note(f"{who} killed at abort:{step}")
            raise

    side_by_side(worlds, [n for n in range(len(kills)) if ALL or n % 2], work)


@pytest.mark.parametrize("trees", ["cvmfs"], indirect=True)
@pytest.mark.parametrize("job", ["difference"], indirect=True)
def test_the_real_command_line_survives_its_kill(worlds: list[World], job: Job) -> None:
    """The same with a process of its own, killed from inside the server in the middle of publishing."""
    world = worlds[0]
    world.fake.switch("kill", "both@publish:before-sign:1")
    assert run_cli("sync", "--config", world.config, env=world.fake.environment).rc == -9
    after_a_kill(world, job)
    assert world.digest_at("tag") == V1.digest
    run_cli("sync", "--config", world.config, env=world.fake.environment).ok()
    world.check_finished(job.wanted, job.others)


@pytest.mark.parametrize("trees", ["cvmfs"], indirect=True)
@pytest.mark.parametrize("job", ["difference"], indirect=True)
@pytest.mark.parametrize("step", ["transaction:cloned", "transaction:mounted", "publish:hashing"])
def test_a_clone_that_was_left_is_replaced(worlds: list[World], job: Job, step: str) -> None:
    """If the journal is lost, too, and somebody publishes what was open, the next publish removes the half tree."""
    world = worlds[0]
    world.fake.switch("kill", f"both@{step}:1")
    assert world.sync().rc == -9
    for journal in world.state.glob("transaction-*"):
        journal.unlink()
    assert world.fake.run("mount").returncode == 0
    assert world.fake.run("publish").returncode == 0
    assert world.there() == {V1.digest, V2.digest}
    half = [record["digest"] for record in world.records().values()]
    world.check(["tag"])
    world.sync().cli.ok()
    world.check_finished(job.wanted, job.others)
    assert half == [V1.digest] or step == "publish:hashing"
