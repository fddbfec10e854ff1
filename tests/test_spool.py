"""The spool: what it trusts after a crash, what it shares between threads, and how it keeps its limit."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cvmfs_sync.errors import BlobChanged, BlobMismatch, LimitExceeded, NoSpace, RegistryUnavailable
from cvmfs_sync.image import Descriptor
from cvmfs_sync.ports import Silent
from cvmfs_sync.reference import Digest, parse_image
from cvmfs_sync.registry import LayoutSource
from cvmfs_sync.resolve import Sources
from cvmfs_sync.spool import Spool
from tests import support

NAME = parse_image("registry.invalid/x:1")
QUIET = Silent()


def descriptor_of(content: bytes) -> Descriptor:
    """What a manifest says of it."""
    return Descriptor("application/vnd.oci.image.layer.v1.tar", Digest.parse(support.digest_of(content)), len(content))


class Store:
    """A source that has some blobs, counts who asks, and does first what a test wants."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {descriptor_of(content).digest: content for content in contents}
        self.asked: list[Digest] = []
        self.first: list[Callable[[], Any]] = []

    def blob(self, _name: object, descriptor: Descriptor) -> Iterator[bytes]:
        """In two pieces, with what the test wants between."""
        self.asked.append(descriptor.digest)
        content = self.contents[descriptor.digest]
        yield content[:1]
        if self.first:
            self.first.pop(0)()
        yield content[1:]

    def local_blob(self, _name: object, _descriptor: Descriptor) -> None:
        """Nothing is on this machine."""

    @property
    def sources(self) -> Sources:
        """It, as the registry."""
        return Sources(self, LayoutSource())  # type: ignore[arg-type]


def there(spool: Path) -> dict[str, int]:
    """Sizes of the blobs on disk by their hex digest."""
    return {path.name: path.stat().st_size for path in spool.glob("blobs/*/*")}


def give(store: Store, spool: Spool, content: bytes) -> Path:
    """Get a blob."""
    return spool.get(NAME, descriptor_of(content), store.sources, QUIET)


def begin(begun: threading.Event, go: threading.Event) -> None:
    """Say that a download has begun, and let it go on when the test wants."""
    begun.set()
    assert go.wait(60)


# --- what an earlier process left -------------------------------------------------------------------------------------


def test_what_an_earlier_process_left_is_read_once(tmp_path: Path) -> None:
    """A whole blob is used without asking anybody; it is hashed the first time, and not again."""
    content = b"left by another" * 1000
    store = Store(content)
    path = give(store, Spool(tmp_path), content)
    spool = Spool(tmp_path)
    before = path.stat()
    assert give(store, spool, content) == path
    # The same size and times: only who reads the bytes again sees this change.
    path.write_bytes(content[:-1] + b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert give(store, spool, content) == path
    assert len(store.asked) == 1
    assert give(store, Spool(tmp_path), content).read_bytes() == content
    assert len(store.asked) == 2


def _zeros(path: Path, content: bytes) -> None:
    path.write_bytes(bytes(len(content)))


def _short(path: Path, content: bytes) -> None:
    path.write_bytes(content[:-1])


def _flipped(path: Path, content: bytes) -> None:
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def _link(path: Path, content: bytes) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    elsewhere.write_bytes(content)
    path.symlink_to(elsewhere)


def _directory(path: Path, content: bytes) -> None:
    path.mkdir()
    (path / "x").write_bytes(content)


def _fifo(path: Path, _content: bytes) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("leave", [_zeros, _short, _flipped, _link, _directory, _fifo])
def test_a_damaged_blob_is_fetched_again(tmp_path: Path, leave: Callable[[Path, bytes], None]) -> None:
    """Whatever a power cut left under a blob's name is removed, and nothing outside is touched."""
    content = b"right" * 100
    store = Store(content)
    path = tmp_path / "spool/blobs/sha256" / descriptor_of(content).digest.hex
    path.parent.mkdir(parents=True)
    leave(path, content)
    got = give(store, Spool(tmp_path / "spool"), content)
    assert got == path
    assert got.is_file()
    assert not got.is_symlink()
    assert got.read_bytes() == content
    assert len(store.asked) == 1
    if leave is _link:
        assert (tmp_path / "elsewhere").read_bytes() == content


def test_a_file_that_changes_behind_our_back_is_read_again(tmp_path: Path) -> None:
    """A blob that was replaced or removed while we run is not handed out as the one that was verified."""
    content = b"right" * 100
    store, spool = Store(content), Spool(tmp_path)
    path = give(store, spool, content)
    path.write_bytes(b"wrong" * 100)
    os.utime(path, ns=(1, 1))
    assert give(store, spool, content).read_bytes() == content
    path.unlink()
    assert give(store, spool, content).read_bytes() == content
    assert len(store.asked) == 3


def test_a_descriptor_that_lies_about_the_size_harms_nobody(tmp_path: Path) -> None:
    """A verified blob stays when another manifest names it with another size: that one is wrong."""
    content = b"right" * 100
    store, spool = Store(content), Spool(tmp_path)
    path = give(store, spool, content)
    good = descriptor_of(content)
    for size in (1, 501):
        with pytest.raises(BlobMismatch, match="found: 500 bytes"):
            spool.get(NAME, Descriptor(good.media_type, good.digest, size), store.sources, QUIET)
    assert path.read_bytes() == content
    assert len(store.asked) == 1


def test_partial_files_of_the_dead_go_and_of_the_living_stay(tmp_path: Path) -> None:
    """At the start, what a killed process left is removed, also when its number lives on; what is being written not."""
    partial = tmp_path / "partial"
    partial.mkdir()
    for name in (f"{os.getpid()}-{0:016x}", f"1-{0:016x}", "999999999-00", "junk"):
        (partial / name).write_bytes(b"half")
    (partial / "directory").mkdir()
    code = f"""
import sys; from cvmfs_sync.blobfile import new_partial; from pathlib import Path
opened, path = new_partial(Path({str(partial)!r})); print(path.name, flush=True); sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        living = other.stdout.readline().decode().strip()
        give(Store(b"content"), Spool(tmp_path), b"content")
        assert [path.name for path in partial.iterdir()] == [living]
        Spool(tmp_path).clear()
        assert [path.name for path in partial.iterdir()] == [living]
        other.kill()
    give(Store(b"other"), Spool(tmp_path), b"other")
    assert list(partial.iterdir()) == []


def test_clearing_spares_what_is_held(tmp_path: Path) -> None:
    """A blob that somebody works with stays, whoever clears or drops it."""
    store, spool = Store(b"held", b"free"), Spool(tmp_path)
    with spool.hold([descriptor_of(b"held")]):
        path = give(store, spool, b"held")
        give(store, spool, b"free")
        spool.drop(descriptor_of(b"held").digest)
        spool.clear()
        assert there(tmp_path) == {path.name: 4}
    spool.clear()
    assert list(tmp_path.iterdir()) == []


# --- shared by threads ------------------------------------------------------------------------------------------------


def test_threads_share_one_download(tmp_path: Path) -> None:
    """A blob that several images want at once is fetched once, and each is told of its bytes."""
    content = random.Random(1).randbytes(100_000)
    store, spool = Store(content), Spool(tmp_path)
    inside = threading.Event()
    store.first.append(lambda: inside.wait(0.3))
    told: list[int] = []

    class Count(Silent):
        def advance(self, amount: int) -> None:
            told.append(amount)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(spool.get, NAME, descriptor_of(content), store.sources, Count()) for _ in range(8)]
        assert {future.result().read_bytes() for future in futures} == {content}
    assert len(store.asked) == 1
    assert sum(told) == 8 * len(content)


class StopError(Exception):
    """What a stopped image's progress raises."""


@pytest.mark.parametrize("failure", [RegistryUnavailable("broken"), StopError("stopped"), KeyboardInterrupt()])
def test_a_failed_download_is_taken_over(tmp_path: Path, failure: BaseException) -> None:
    """Who waits for a blob whose download fails, or is stopped, for another image, fetches it himself."""
    store, spool = Store(b"content"), Spool(tmp_path)
    begun, waiting = threading.Event(), threading.Event()

    class Waiting(Silent):
        def advance(self, amount: int) -> None:
            if amount == 0:
                waiting.set()

    def fail() -> None:
        begun.set()
        assert waiting.wait(60)
        raise failure

    store.first.append(fail)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(give, store, spool, b"content")
        assert begun.wait(60)
        second = pool.submit(spool.get, NAME, descriptor_of(b"content"), store.sources, Waiting())
        with pytest.raises(type(failure)):
            first.result()
        assert second.result().read_bytes() == b"content"
    assert len(store.asked) == 2


def test_who_waits_can_be_stopped(tmp_path: Path) -> None:
    """An image that is stopped does not wait for the end of another's download."""
    store, spool = Store(b"content"), Spool(tmp_path)
    begun, stopped = threading.Event(), threading.Event()

    class Stopping(Silent):
        def advance(self, amount: int) -> None:
            raise StopError

    store.first.append(lambda: begin(begun, stopped))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(give, store, spool, b"content")
        assert begun.wait(60)
        with pytest.raises(StopError):
            spool.get(NAME, descriptor_of(b"content"), store.sources, Stopping())
        stopped.set()
        assert first.result().read_bytes() == b"content"


def test_a_source_that_changed_is_asked_again(tmp_path: Path) -> None:
    """What came so far is thrown away; after some starts in vain the error is the image's."""
    store, spool = Store(b"content", b"never"), Spool(tmp_path)

    def change() -> None:
        raise BlobChanged("another blob")

    store.first += [change] * 2
    assert give(store, spool, b"content").read_bytes() == b"content"
    assert len(store.asked) == 3
    store.first += [change] * 100
    with pytest.raises(BlobChanged):
        give(store, spool, b"never")
    assert len(store.asked) < 20
    assert list((tmp_path / "partial").iterdir()) == []


def test_an_error_that_is_kept_keeps_no_connection(tmp_path: Path) -> None:
    """The source's iterator is closed when a download fails, not when the last who knows the error forgets it."""
    closed: list[bool] = []

    class Slot(Store):
        def blob(self, _name: object, descriptor: Descriptor) -> Iterator[bytes]:
            try:
                yield bytes(descriptor.size + 1)
            finally:
                closed.append(True)

    with pytest.raises(BlobMismatch) as kept:
        give(Slot(), Spool(tmp_path), b"content")
    assert closed == [True]
    del kept


# --- room -------------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    """Room for a blob is made of those that nobody has wanted for longest, also after a restart."""
    contents = [bytes([n]) * 10 for n in range(5)]
    store = Store(*contents)
    spool = Spool(tmp_path, limit=30)
    for number in (0, 1, 2, 0, 3):
        give(store, spool, contents[number])
    names = [descriptor_of(content).digest.hex for content in contents]
    assert set(there(tmp_path)) == {names[2], names[0], names[3]}
    for age, name in enumerate((names[0], names[3], names[2])):
        os.utime(tmp_path / "blobs/sha256" / name, (1000 + age, 1000 + age))
    spool = Spool(tmp_path, limit=30)
    give(store, spool, contents[4])
    assert set(there(tmp_path)) == {names[3], names[2], names[4]}
    give(store, Spool(tmp_path, limit=10), contents[4])
    assert set(there(tmp_path)) == {names[4]}


def test_a_blob_that_never_fits(tmp_path: Path) -> None:
    """It is refused before anybody is asked; the message says what to set."""
    store, spool = Store(b"x" * 11, b"y"), Spool(tmp_path, limit=10)
    with pytest.raises(LimitExceeded, match=r"found: 11 bytes; expected: at most 10; to do: raise spool_limit"):
        give(store, spool, b"x" * 11)
    with (
        pytest.raises(LimitExceeded, match=r"^x:1: 2 layers together: larger than the spool may be; found: 12 bytes"),
        spool.hold([descriptor_of(b"x" * 11), descriptor_of(b"y"), descriptor_of(b"y")], "x:1"),
    ):
        pass
    assert store.asked == []


def test_a_thread_does_not_wait_for_itself(tmp_path: Path) -> None:
    """What it holds counts when it wants more: no wait would end."""
    spool = Spool(tmp_path, limit=10)
    six, five = descriptor_of(b"6" * 6), descriptor_of(b"5" * 5)
    with spool.hold([six]):
        with spool.hold([six]), spool.hold([descriptor_of(b"4444")]):
            pass
        with pytest.raises(LimitExceeded), spool.hold([five]):
            pass
    with spool.hold([five]):
        pass


def test_images_wait_for_each_others_room(tmp_path: Path) -> None:
    """Many images at once, each with layers for half of the limit and more: all get through with what they hold."""
    chance = random.Random(5)
    contents = [chance.randbytes(size) for size in (10, 20, 30, 40, 50, 60)]
    store, spool = Store(*contents), Spool(tmp_path, limit=100)
    held: list[bytes] = []
    lock = threading.Lock()

    def work(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(20):
            mine = own.sample(contents, 2)
            if sum(map(len, mine)) > 100:
                continue
            with spool.hold(descriptor_of(content) for content in mine):
                with lock:
                    held.extend(mine)
                    assert sum(map(len, set(held))) <= 100
                paths = [give(store, spool, content) for content in mine]
                assert [path.read_bytes() for path in paths] == mine
                with lock:
                    for content in mine:
                        held.remove(content)

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(work, seed) for seed in range(6)]:
            future.result(timeout=60)
    assert sum(there(tmp_path).values()) <= 100


def test_parallel_downloads_are_counted_before_another_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another download still has to write is not free; idle blobs make room for it, then it is an error."""
    idle, long, other, large = b"i" * 100, b"l" * 1000, b"o" * 1000, b"b" * 1052
    store, spool = Store(idle, long, other, large), Spool(tmp_path)
    give(store, spool, idle)
    reserve = 64 << 20

    def usage(_path: Path) -> Any:
        return shutil._ntuple_diskusage(0, 0, reserve + 2050 - sum(there(tmp_path).values()))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    begun, go = threading.Event(), threading.Event()
    store.first.append(lambda: begin(begun, go))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(give, store, spool, long)
        assert begun.wait(60)
        assert descriptor_of(idle).digest.hex in there(tmp_path)
        give(store, spool, other)
        assert descriptor_of(idle).digest.hex not in there(tmp_path)
        spool.drop(descriptor_of(other).digest)
        try:
            with spool.hold([descriptor_of(idle)]), pytest.raises(NoSpace, match=f"found: {reserve + 1051} bytes free"):
                give(store, spool, large)
        finally:
            go.set()
        assert first.result().read_bytes() == long


# --- any order of events ----------------------------------------------------------------------------------------------

BLOBS = [bytes([n]) * size for n, size in enumerate((1, 10, 20, 30, 40, 50, 60))]
LIMIT = 100


class SpoolMachine(RuleBasedStateMachine):
    """One thread that gets, holds, drops, damages and restarts in any order, and knows what may be there."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cvmfs-sync-spool-"))
        self.store = Store(*BLOBS)
        self.spool = Spool(self.directory, LIMIT)
        self.holds: list[tuple[ExitStack, set[int]]] = []
        self.given: set[int] = set()
        self.last = 0
        self.fresh = True

    def teardown(self) -> None:
        """Remove the directory."""
        for stack, _ in self.holds:
            stack.close()
        shutil.rmtree(self.directory)

    @property
    def held(self) -> set[int]:
        """Blobs that are held."""
        return {number for _, numbers in self.holds for number in numbers}

    @rule(number=st.integers(0, len(BLOBS) - 1))
    def get(self, number: int) -> None:
        """A blob that is handed out is the right one, and there."""
        assert give(self.store, self.spool, BLOBS[number]).read_bytes() == BLOBS[number]
        self.fresh = False
        self.last = 0 if number in self.held else len(BLOBS[number])
        if number in self.held:
            self.given.add(number)

    @rule(number=st.integers(0, len(BLOBS) - 1))
    def get_in_vain(self, number: int) -> None:
        """A failed download changes nothing for the others."""
        asked = len(self.store.asked)
        self.store.first.append(_break)
        try:
            give(self.store, self.spool, BLOBS[number])
        except RegistryUnavailable:
            assert len(self.store.asked) == asked + 1
            assert number not in self.given
        self.fresh = False
        self.store.first.clear()
        self.last = 0 if number in self.held else len(BLOBS[number])
        if number in self.held and len(self.store.asked) == asked:
            self.given.add(number)

    @rule(numbers=st.sets(st.integers(0, len(BLOBS) - 1), max_size=4))
    def hold(self, numbers: set[int]) -> None:
        """It succeeds if what this thread holds fits, and is an error if not."""
        fits = sum(len(BLOBS[number]) for number in numbers | self.held) <= LIMIT
        stack = ExitStack()
        try:
            stack.enter_context(self.spool.hold(descriptor_of(BLOBS[number]) for number in numbers))
        except LimitExceeded:
            assert not fits
        else:
            assert fits
            self.holds.append((stack, numbers))
            self.last = 0
        self.fresh = False

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """In any order."""
        stack, _ = self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))
        stack.close()
        self.given &= self.held
        self.last = 0

    @rule(number=st.integers(0, len(BLOBS) - 1))
    def drop(self, number: int) -> None:
        """It is gone, unless it is held."""
        self.spool.drop(descriptor_of(BLOBS[number]).digest)
        if number not in self.held:
            assert descriptor_of(BLOBS[number]).digest.hex not in there(self.directory)

    @rule()
    def clear(self) -> None:
        """Only what is held stays."""
        self.spool.clear()
        assert set(there(self.directory)) <= {descriptor_of(BLOBS[number]).digest.hex for number in self.held}
        self.fresh = False
        self.last = 0

    @precondition(lambda self: not self.holds)
    @rule(number=st.integers(0, len(BLOBS) - 1), damage=st.sampled_from([b"", b"wrong", None]))
    def crash(self, number: int, damage: bytes | None) -> None:
        """A power cut: another process starts, and one of the blobs is no longer what it was."""
        path = self.directory / "blobs/sha256" / descriptor_of(BLOBS[number]).digest.hex
        if path.exists():
            path.write_bytes(bytes(len(BLOBS[number])) if damage is None else damage)
        self.spool = Spool(self.directory, LIMIT)
        self.fresh = True

    @invariant()
    def what_is_held_stays(self) -> None:
        """Nothing that was handed out under a hold goes or changes before that ends."""
        for number in self.given:
            path = self.directory / "blobs/sha256" / descriptor_of(BLOBS[number]).digest.hex
            assert path.read_bytes() == BLOBS[number]

    @invariant()
    def the_limit_is_kept(self) -> None:
        """While it can be: only a blob that nobody has reserved room for may be on top of what is held."""
        held = sum(len(BLOBS[number]) for number in self.held)
        if not self.fresh:
            assert sum(there(self.directory).values()) <= max(LIMIT, held + self.last)
        assert not list(self.directory.glob("partial/*"))


def _break() -> None:
    raise RegistryUnavailable("broken")


SpoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSpool = SpoolMachine.TestCase
