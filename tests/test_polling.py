"""Cycles over many tags: what they ask, what they write, and how the rate is kept."""

from __future__ import annotations

import heapq
import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks import polling
from benchmarks.tagserver import TagServer, names, serving
from cvmfs_sync.reference import Digest, Reference
from cvmfs_sync.registry import RegistrySettings, RegistrySource, Timing
from cvmfs_sync.registry.politeness import Pace
from cvmfs_sync.state import State
from tests.support import run_cli
from tests.support.site import Site

REPOSITORIES, TAGS = 6, 10
NOW = datetime(2026, 1, 2, tzinfo=UTC)
RATE = 200.0


@dataclass
class Published:
    """An installation whose images are all published, and the registry that they are from."""

    home: Path
    server: TagServer
    wishes: Sequence[tuple[str, str]]
    configuration: Path = field(init=False)

    def __post_init__(self) -> None:
        polling.prefill(self.home, self.server, self.wishes)
        self.configuration = self.home / "cvmfs-sync.yaml"
        self.server.arrivals()

    def sync(self) -> dict[str, str]:
        """One cycle; the results by image."""
        report = run_cli("sync", "--json", "--config", self.configuration).ok().json
        return {each["image"]: each["result"] for each in report["images"]}

    def link(self, number: int) -> Path:
        """The link of a wish."""
        repository, tag = self.wishes[number]
        return self.home / "published" / f"{self.server.host}/{repository}:{tag}"


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    """Sixty tags over six repositories."""
    with serving(REPOSITORIES, TAGS) as server:
        yield Published(tmp_path / "site", server, list(names(REPOSITORIES, TAGS)))


def test_a_cycle_without_changes_costs_one_head_for_each_tag_and_no_write(published: Published) -> None:
    """The server counts: one HEAD for each tag, nothing else; the repository stays as it is to the last inode."""
    number = REPOSITORIES * TAGS
    before = Site(published.home).fingerprint()
    for _ in range(2):  # with nothing in the state database, and with what names meant in it
        assert list(published.sync().values()) == ["unchanged"] * number
        arrivals = published.server.arrivals()
        assert (arrivals.methods, arrivals.most, arrivals.paths) == ({"HEAD": number}, 1, number)
    assert before == Site(published.home).fingerprint()


def test_links_that_were_changed_by_hand_are_noticed_among_many(published: Published) -> None:
    """Led astray, removed, without a tree, without a record: each is mended, and nothing else is touched."""
    astray, removed, treeless, lost = map(published.link, (3, 17, 29, 45))
    good = {link: link.readlink() for link in (astray, removed, treeless, lost)}
    astray.unlink()
    astray.symlink_to(good[removed])
    removed.unlink()
    shutil.rmtree(treeless.resolve())
    key = lost.resolve().name
    (published.home / "published/.cvmfs-sync/images" / key[:2] / f"{key}.json").unlink()

    results = published.sync()
    changed = {image: result for image, result in results.items() if result != "unchanged"}
    expected = dict(zip(good, ("linked", "linked", "published", "published"), strict=True))
    root = published.home / "published"
    assert changed == {str(link.relative_to(root)): result for link, result in expected.items()}
    for link, target in good.items():
        assert link.readlink() == target
        assert link.resolve().is_dir()
    arrivals = published.server.arrivals()
    assert arrivals.methods["HEAD"] == len(published.wishes), "one each"
    assert set(published.sync().values()) == {"unchanged"}


def test_a_second_cycle_of_a_process_is_confirmed_by_etags(tmp_path: Path) -> None:
    """Where the registry has ETags, every HEAD of the daemon's next cycle is answered with 304."""
    number = REPOSITORIES * TAGS
    with serving(REPOSITORIES, TAGS, etags=True) as server:
        site = Published(tmp_path / "site", server, list(names(REPOSITORIES, TAGS)))
        _, found = polling.cycles(site.home, site.configuration, 2)
        assert [each["results"] for each in found] == [{"unchanged": number}] * 2
        arrivals = server.arrivals()
    assert (arrivals.methods, arrivals.most, arrivals.not_modified) == ({"HEAD": 2 * number}, 2, number)


def test_the_server_counts_what_it_should_not_be_asked(published: Published) -> None:
    """A GET, and a tag that was asked for twice, are seen: the other tests would fail by them."""
    settings = {published.server.host: RegistrySettings(insecure=True)}
    name = Reference.parse(str(published.link(0).relative_to(published.home / "published")))
    with closing(RegistrySource(settings)) as source:
        digest = source.head(name)
        assert source.head(name) == digest
        content, found, _ = source.manifest(name, digest)
    assert (found, json.loads(content)["schemaVersion"]) == (digest, 2)
    arrivals = published.server.arrivals()
    assert (arrivals.methods, arrivals.most, arrivals.paths) == ({"HEAD": 2, "GET": 1}, 2, 2)


def test_the_benchmark_measures_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both tables, by the command of the README at a small size; what the numbers are is no matter for a test."""
    result = tmp_path / "result.json"
    arguments = ["--runs", "1", "--repositories", "2", "--population", "20", "--json", str(result)]
    assert polling.main(arguments) == 0
    table = capsys.readouterr().out
    document = json.loads(result.read_text())
    assert [each["case"] for each in document["cycles"]] == [
        "cycle", "requests, 8 threads", "cycle, 200 a second allowed", "304 by ETag, second cycle",
    ]  # fmt: skip
    for each in document["cycles"]:
        assert each["case"] in table
        assert each["requests"] == {"HEAD": each["tags"]}
        assert each["most"] == 1
        assert each["rate"] > 0
    assert document["cycles"][-1]["not_modified"] == 40
    assert len(document["population"]["milliseconds"]) == 10


# --- the state --------------------------------------------------------------------------------------------------------


def _fail_in_the_middle(state: State, digest: Digest) -> None:
    with state.together():
        state.remember("name5", "linux/amd64", digest, digest, NOW)
        raise KeyError


def test_what_is_noted_together_is_there_together(tmp_path: Path) -> None:
    """Nobody sees a part of it; after an error there is nothing of it, and the next note is kept."""
    digest = Digest.parse(f"sha256:{'a' * 64}")

    def stored() -> int:
        with closing(sqlite3.connect(tmp_path / "state.sqlite")) as database:
            (count,) = database.execute("SELECT count(*) FROM seen").fetchone()
            return int(count)

    with State(tmp_path) as state:
        with state.together():
            for number in range(5):
                state.remember(f"name{number}", "linux/amd64", digest, digest, NOW)
                with state.together():
                    state.succeeded(f"link{number}", f"name{number}", NOW)
            assert stored() == 0
            assert state.recall("name4", "linux/amd64", digest) == digest
        assert stored() == 5
        with pytest.raises(KeyError):
            _fail_in_the_middle(state, digest)
        assert stored() == 5
        state.remember("name6", "linux/amd64", digest, digest, NOW)
        assert stored() == 6


# --- the rate ---------------------------------------------------------------------------------------------------------


def _starts(threads: int, answer: float, number: int) -> list[float]:
    """When so many requests start, each of which takes `answer` seconds, with a clock that stands still else."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(RATE, Timing(lambda: now, lambda: now, sleep, lambda: 0.5))
    free, starts = [0.0] * threads, []
    for _ in range(number):
        now = heapq.heappop(free)
        pace.wait()
        starts.append(now)
        heapq.heappush(free, now + answer)
    return sorted(starts)


@pytest.mark.parametrize(("threads", "answer"), [(1, 0.0), (1, 0.004), (4, 0.0), (4, 0.015), (8, 0.03)])
def test_the_rate_is_kept_whatever_answers_take(threads: int, answer: float) -> None:
    """Within 5 % over all, and in no second too many, while the threads can ask so often."""
    starts = _starts(threads, answer, 2000)
    assert (len(starts) - 1) / (starts[-1] - starts[0]) == pytest.approx(RATE, rel=0.05)
    for first, last in zip(starts, starts[int(RATE) :], strict=False):
        assert last - first >= 0.95


def test_requests_are_sent_at_the_rate(published: Published) -> None:
    """The client asks its clock, and sends nothing before its time: sixty HEADs take as long as they should."""
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    settings = {published.server.host: RegistrySettings(insecure=True, requests_per_second=RATE)}
    timing = Timing(lambda: now, lambda: 1_700_000_000.0 + now, sleep, lambda: 0.5)
    with closing(RegistrySource(settings, timing=timing)) as source:
        for repository, tag in published.wishes:
            source.head(Reference.parse(f"{published.server.host}/{repository}:{tag}"))
    assert published.server.arrivals().methods == {"HEAD": 60}
    assert now - 1000.0 == pytest.approx(59 / RATE, rel=0.05)
