"""The CVMFS backend against the fake server: every failure it can meet, whose transaction is whose, and recovery."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import (
    CvmfsSyncError,
    NoSpace,
    NotOwner,
    RepositoryBusy,
    RepositoryError,
    RepositoryUnavailable,
)
from cvmfs_sync.repository import CvmfsRepository
from cvmfs_sync.repository.commands import run as run_command
from cvmfs_sync.repository.commands import still_running
from tests.support.cvmfs import FakeCvmfs
from tests.support.places import Place, PublishingProcess, no_sleep, until


@pytest.fixture
def place(fake_cvmfs: FakeCvmfs, tmp_path: Path) -> Place:
    """A fake server."""
    return Place("fake", fake_cvmfs.root, tmp_path / "state", "", fake_cvmfs, fake_cvmfs.name)


@pytest.fixture
def repository(place: Place) -> CvmfsRepository:
    """Its repository; never waits."""
    return repository_of(place)


def repository_of(place: Place, **more: Any) -> CvmfsRepository:
    found = place.repository(**more)
    assert isinstance(found, CvmfsRepository)
    return found


def put(repository: CvmfsRepository, name: str = "file", content: str = "ours") -> None:
    """One transaction of ours."""
    with repository.transaction(f"put {name}") as transaction:
        transaction.write(name, content.encode())


def journal(place: Place) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(place.journal.read_text())
    return document


def open_foreign(fake: FakeCvmfs) -> None:
    """An operator's transaction, with work in it."""
    result = fake.run("transaction")
    assert result.returncode == 0, result
    (fake.root / "operator").write_text("hours of work")


def assert_foreign_is_intact(fake: FakeCvmfs) -> None:
    """The operator can publish it still."""
    assert fake.in_transaction
    assert (fake.root / "operator").read_text() == "hours of work"
    assert fake.run("publish").returncode == 0
    assert (fake.published / "operator").read_text() == "hours of work"


def ran(fake: FakeCvmfs, command: str) -> int:
    return sum(entry["argv"][0] == command for entry in fake.commands())


@contextmanager
def holding(path: Path, how: str) -> Iterator[None]:
    """Another process that has a file open for reading or writing, or stands in a directory."""
    programs = {
        "read": f"f = open({str(path)!r})",
        "write": f"f = open({str(path)!r}, 'a')",
        "cwd": f"import os; os.chdir({str(path)!r})",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; {programs[how]}; print('ready', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


# --- the facts page's table ---


@pytest.mark.parametrize(
    ("switch", "error", "words"),
    [
        ("webserver-down", RepositoryUnavailable, "web server"),
        ("whitelist-expired", RepositoryUnavailable, "resign"),
        ("not-owner", NotOwner, "owner"),
    ],
)
def test_a_transaction_that_is_refused(
    place: Place, repository: CvmfsRepository, switch: str, error: type[RepositoryError], words: str
) -> None:
    """What keeps a transaction from opening is named with what to do; nothing is open, and later it works."""
    fake = fake_of(place)
    fake.switch(switch)
    with pytest.raises(error, match=fake.name) as caught:
        put(repository)
    assert caught.value.exit_code == 3
    assert words in (caught.value.todo or "")
    assert not fake.in_transaction
    assert not place.journal.exists()
    assert ran(fake, "abort") == 0
    fake.unswitch(switch)
    put(repository)


def fake_of(place: Place) -> FakeCvmfs:
    assert place.fake
    return place.fake


@pytest.mark.parametrize("command", ["transaction", "publish"])
@pytest.mark.parametrize(
    ("rc", "out", "err", "error"),
    [
        (17, "", "CernVM-FS transaction error: another transaction is already open", RepositoryBusy),
        (17, "", "a text of another version", RepositoryBusy),
        (16, "", "a gateway has given the lease to another publisher", RepositoryBusy),
        (1, "", "The repository is currently publishing and should not be touched", RepositoryBusy),
        (1, "", "Unable to find the configuration file server.conf", RepositoryUnavailable),
        (1, "", "No write permission to repository", NotOwner),
        (5, "", "cannot load whitelist [failed to download whitelist]", RepositoryUnavailable),
        (5, "", "cannot load whitelist [expired whitelist]", RepositoryUnavailable),
        (1, "", "Another publish process is active for it", RepositoryBusy),
        (1, "Repository it is not in a transaction", "", RepositoryUnavailable),
        (1, "Open writable file descriptors on it", "", RepositoryBusy),
        (1, "There are open read-only file descriptors in it (y/N) aborted.", "", RepositoryBusy),
        (1, "Current working directory is in /cvmfs/it", "", RepositoryBusy),
        (1, "Repository unavailable under http", "", RepositoryUnavailable),
        (1, "", "bad whitelist\\nSynchronization failed", RepositoryUnavailable),
        (1, "", "failed to write (errno 28)", NoSpace),
        (1, "", "block upload failed (code; 28)".replace(";", "\x3a"), NoSpace),
        (1, "Permission denied; Repository it is owned by cvmfs", "", NotOwner),
        (1, "", "The repository it does not exist.", RepositoryUnavailable),
        (1, "", "it is in a transaction but /cvmfs/it is not mounted read/write", RepositoryUnavailable),
        (1, "", "is in a transaction and cannot be repaired", RepositoryUnavailable),
        (139, "", "Segmentation fault", RepositoryUnavailable),
    ],
)
def test_the_table_of_exit_codes(
    place: Place, repository: CvmfsRepository, command: str, rc: int, out: str, err: str, error: type[RepositoryError]
) -> None:
    """Each answer of the facts page, from either stream, is an error of its kind that names repository and remedy."""
    only_transaction = ("already open", "another version", "a gateway", "currently publishing", "cannot be repaired")
    only_publish = (
        "Another publish",
        "is not in a",
        "Open writable",
        "read-only file",
        "Permission denied",
        "not exist",
    )
    if any(text in out + err for text in (only_publish if command == "transaction" else only_transaction)):
        error = RepositoryUnavailable
    fake = fake_of(place)
    fake.switch("fail", f"{command}={rc}:{out}:{err}")
    with pytest.raises(RepositoryError, match=fake.name) as caught:
        put(repository)
    assert type(caught.value) is error
    assert caught.value.exit_code == 3
    assert caught.value.todo
    assert f"-> {rc}" in (caught.value.found or "")
    assert not fake.in_transaction
    assert not place.journal.exists()
    assert not (fake.published / "file").exists()
    fake.unswitch("fail")
    put(repository)


@pytest.mark.parametrize(
    ("how", "words"), [("read", "has files open"), ("write", "is writing below"), ("cwd", "has files open")]
)
def test_open_files_of_others(place: Place, repository: CvmfsRepository, how: str, words: str) -> None:
    """A reader, a writer or a shell inside keeps us from publishing; our transaction is aborted, and works later."""
    fake = fake_of(place)
    put(repository, "directory/there")
    with (
        pytest.raises(RepositoryBusy, match=words) as caught,
        holding(fake.root / ("directory" if how == "cwd" else "directory/there"), how),
    ):
        put(repository)
    assert "lsof" in (caught.value.todo or "")
    assert not fake.in_transaction
    put(repository)


def test_open_files_are_waited_for(place: Place) -> None:
    """A reader that goes while we wait stops nothing."""
    fake = fake_of(place)
    put(repository_of(place), "there")
    with holding(fake.root / "there", "read") as _:
        reader = next(int(p.name) for p in Path("/proc").glob("[0-9]*") if fake_reader(p, fake.root / "there"))
        put(repository_of(place, wait=60, sleep=lambda _: os.kill(reader, signal.SIGKILL)))
    assert (fake.published / "file").read_text() == "ours"


def fake_reader(process: Path, path: Path) -> bool:
    try:
        return any(os.readlink(fd) == str(path) for fd in (process / "fd").iterdir())
    except OSError:
        return False


@pytest.mark.parametrize("switch", ["whitelist-expired", "webserver-down"])
def test_what_breaks_while_writing(place: Place, repository: CvmfsRepository, switch: str) -> None:
    """Where publish and abort both fail, the error says that our transaction is open; later it is aborted."""
    fake = fake_of(place)
    still_open = pytest.raises(RepositoryUnavailable, match=r"still open; the next sync aborts it")
    with still_open as caught, repository.transaction("test") as transaction:
        transaction.write("file", b"")
        fake.switch(switch)
    assert caught.value.exit_code == 3
    assert fake.in_transaction
    with pytest.raises(RepositoryUnavailable):
        repository.recover()
    fake.unswitch(switch)
    assert repository.recover() == f"aborted our interrupted transaction on {fake.name}"
    put(repository)


def test_an_image_error_with_a_failing_abort_stops_the_cycle(place: Place, repository: CvmfsRepository) -> None:
    """An error of one image does not hide that the transaction could not be aborted: exit code 3."""
    fake = fake_of(place)
    with pytest.raises(RepositoryUnavailable, match="still open") as caught, repository.transaction("test"):  # noqa: PT012
        fake.switch("webserver-down")
        raise ValueError("the image's own failure")
    assert isinstance(caught.value.__cause__, ValueError)
    fake.unswitch("webserver-down")
    assert repository.recover()
    assert not fake.in_transaction


def test_an_interrupt_with_a_failing_abort_stays_an_interrupt(place: Place, repository: CvmfsRepository) -> None:
    """Ctrl-C ends the process as such; the journal remembers what is open."""
    fake = fake_of(place)
    with pytest.raises(KeyboardInterrupt), repository.transaction("test"):  # noqa: PT012
        fake.switch("webserver-down")
        raise KeyboardInterrupt
    fake.unswitch("webserver-down")
    assert repository.recover()
    put(repository)


def test_a_full_storage(place: Place, repository: CvmfsRepository) -> None:
    """A full storage is told as that, with the leftovers' place; the published revision stays."""
    fake = fake_of(place)
    put(repository, "before")
    fake.switch("storage-full")
    with pytest.raises(NoSpace, match=fake.name) as caught:
        put(repository)
    assert "data/txn" in (caught.value.todo or "")
    assert (fake.published / "before").exists()
    assert not (fake.published / "file").exists()
    assert not fake.in_transaction
    fake.unswitch("storage-full")
    put(repository)


def test_an_unknown_repository(place: Place, tmp_path: Path) -> None:
    """A name that the server does not know is named, with where to look."""
    stranger = CvmfsRepository("none.example.org", journal=tmp_path / "j", root=place.root, spool=tmp_path / "spool")
    with pytest.raises(RepositoryUnavailable, match=r"no repository none\.example\.org") as caught:
        put(stranger)
    assert "repository.name" in (caught.value.todo or "")


def test_no_server_on_this_machine(repository: CvmfsRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `cvmfs_server`, the error says that, and what else there is."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RepositoryUnavailable, match="cvmfs_server is not installed") as caught:
        put(repository)
    assert "backend: directory" in (caught.value.todo or "")


def test_an_idle_repository_that_was_unmounted_is_repaired(place: Place, repository: CvmfsRepository) -> None:
    """After a reboot outside a transaction the server mounts it again, and we publish."""
    assert fake_of(place).run("fake-reboot").returncode == 0
    put(repository)
    assert (fake_of(place).published / "file").exists()


def test_writing_below_the_mount_is_noticed(place: Place, tmp_path: Path) -> None:
    """A root that is not the writable mount is found before anything of an image is written; nothing stays there."""
    plain = tmp_path / "plain"
    plain.mkdir()
    wrong = CvmfsRepository(place.name, journal=place.journal, root=plain, spool=place.spool)
    with pytest.raises(RepositoryUnavailable, match="not the repository's writable mount"):
        put(wrong)
    assert list(plain.iterdir()) == []
    assert not fake_of(place).in_transaction


def test_an_unmount_while_writing_is_noticed(place: Place, repository: CvmfsRepository) -> None:
    """What was written into an unmounted repository is not published as if it were whole."""
    fake = fake_of(place)
    with pytest.raises(RepositoryUnavailable), repository.transaction("test") as transaction:  # noqa: PT012
        transaction.write("first", b"")
        assert fake.run("fake-reboot").returncode == 0
        transaction.write("second", b"")
    assert not (fake.published / "first").exists()
    assert not fake.in_transaction


def test_a_full_journal_opens_nothing(place: Place) -> None:
    """Where the journal can't be written no transaction is opened."""
    place.state.parent.mkdir(exist_ok=True)
    place.state.write_text("a file where the directory should be")
    with pytest.raises(RepositoryUnavailable, match="journal"):
        put(repository_of(place))
    assert ran(fake_of(place), "transaction") == 0


# --- whose transaction is whose ---


def test_a_foreign_transaction_is_reported_and_left(place: Place, repository: CvmfsRepository) -> None:
    """An operator's transaction ends ours with exit code 3, since when and whose it is, and is not touched."""
    fake = fake_of(place)
    put(repository, "before")
    open_foreign(fake)
    with pytest.raises(RepositoryBusy, match=rf"{fake.name}.*open since .*belongs to") as caught:
        put(repository)
    assert caught.value.exit_code == 3
    assert "put before" not in str(caught.value), "what our last transaction said is not the holder"
    assert repository.recover() is None
    assert ran(fake, "abort") == 0
    assert_foreign_is_intact(fake)


def test_another_cvmfs_sync_is_named(place: Place, repository: CvmfsRepository, tmp_path: Path) -> None:
    """Who holds a transaction is told in the words that it left in the scratch area."""
    other = Place("fake", place.root, tmp_path / "other", "", place.fake, place.name)
    with PublishingProcess(other) as process:
        assert process.enter() == "inside"
        with pytest.raises(RepositoryBusy, match=r"another process's work, opened by cvmfs-sync"):
            put(repository)
        assert process.leave() == "published"


def test_a_foreign_publish_is_waited_for(place: Place) -> None:
    """While somebody else publishes, we wait, and go on when it is done."""
    fake = fake_of(place)
    open_foreign(fake)
    fake.switch("sleep", "publish:locked:0.6")
    publishing = threading.Thread(target=lambda: fake.run("publish"))
    publishing.start()
    until((fake.spool / "is_publishing.lock").exists)
    with pytest.raises(RepositoryBusy):
        put(repository_of(place))
    put(repository_of(place, wait=60, sleep=publishing.join))
    assert (fake.published / "operator").exists()
    assert (fake.published / "file").exists()


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_foreign_transaction_that_a_crash_cut_off(place: Place, repository: CvmfsRepository, rebooted: bool) -> None:
    """An operator's transaction that a crash or reboot left stays, with advice."""
    fake = fake_of(place)
    open_foreign(fake)
    if rebooted:
        assert fake.run("fake-reboot").returncode == 0
    else:
        fake.switch("kill", "self@publish:hashing:1")
        assert fake.run("publish").returncode == -9
    with pytest.raises(RepositoryUnavailable, match="not provably ours") as caught:
        put(repository)
    assert "ask who opened it" in (caught.value.todo or "")
    assert repository.recover() is None
    assert ran(fake, "abort") == 0
    assert fake.run("mount").returncode == 0
    assert_foreign_is_intact(fake)


CRASHES = {
    "opening, nothing done": "both@transaction:start",
    "opening, done": "both@transaction:mounted",
    "open": "",
    "publishing, nothing done": "both@publish:start",
    "publishing, half": "both@publish:hashing",
    "published": "both@publish:done",
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_foreign_transaction_after_our_crash(place: Place, repository: CvmfsRepository, crash: str) -> None:
    """Whatever the journal says, an operator who cleaned up after us and began something is not disturbed."""
    fake = fake_of(place)
    crashed(place, CRASHES[crash])
    if fake.in_transaction:
        assert fake.run("abort", "-f").returncode == 0
    open_foreign(fake)
    aborts = ran(fake, "abort")
    found = repository.recover()
    assert found is not None
    assert "alone" in found or "had been published" in found
    with pytest.raises(RepositoryBusy):
        put(repository)
    assert ran(fake, "abort") == aborts
    assert_foreign_is_intact(fake)


def crashed(place: Place, kill: str) -> None:
    """A process of ours that was killed: inside the server, or, without a rule, while it wrote."""
    fake = fake_of(place)
    if kill:
        fake.switch("kill", f"{kill}:1")
    with PublishingProcess(place) as process:
        said = process.enter()
        if kill and said == "inside":
            process.leave()
            process.process.wait(20)
    fake.unswitch("kill")
    # The server kills us first, and then itself.
    until(lambda: still_running(journal(place)["identity"]) is None)


def test_a_foreign_transaction_that_we_waited_for_is_not_ours(place: Place) -> None:
    """Killed while we wait for somebody's fresh, untouched transaction, we do not take it for ours."""
    fake = fake_of(place)

    class Killed(BaseException):
        pass

    assert fake.run("transaction").returncode == 0
    saved: list[bytes] = []

    def note(_: float) -> None:
        saved.append(place.journal.read_bytes())
        raise Killed

    with pytest.raises(Killed):
        put(repository_of(place, wait=60, sleep=note))
    assert ran(fake, "abort") == 0
    place.journal.write_bytes(saved[0])
    assert repository_of(place).recover() == f"left a transaction on {fake.name} alone that is not ours"
    assert fake.in_transaction
    assert ran(fake, "abort") == 0


@pytest.mark.parametrize(("age", "ours"), [(-30, False), (1, True), (50, True), (70, False)])
@pytest.mark.parametrize("touched", [False, True])
def test_an_untouched_transaction_of_the_right_time_is_ours(
    place: Place, repository: CvmfsRepository, age: float, ours: bool, touched: bool
) -> None:
    """After a crash while opening, only a transaction that began right then, and is empty, is aborted."""
    fake = fake_of(place)
    put(repository, "before")
    crashed(place, "both@transaction:mounted")
    lock = fake.spool / "in_transaction.lock"
    os.utime(lock, (journal(place)["started"] + age,) * 2)
    if touched:
        (fake.root / "operator").write_text("hours of work")
    found = repository.recover()
    if ours and not touched:
        assert found == f"aborted our interrupted transaction on {fake.name}"
        assert not fake.in_transaction
    else:
        assert found == f"left a transaction on {fake.name} alone that is not ours"
        assert fake.in_transaction
        assert ran(fake, "abort") == 0


def test_somebody_aborts_ours_while_we_write(place: Place, repository: CvmfsRepository) -> None:
    """If our transaction is gone when we would publish, we say so, and publish nothing."""
    fake = fake_of(place)
    with pytest.raises(RepositoryUnavailable, match="ended by somebody else"), repository.transaction("test"):
        assert fake.run("abort", "-f").returncode == 0
    assert ran(fake, "publish") == 0
    assert ran(fake, "abort") == 1
    put(repository)


@pytest.mark.parametrize("error", [None, ValueError])
def test_somebody_replaces_ours_while_we_write(
    place: Place, repository: CvmfsRepository, error: type[Exception] | None
) -> None:
    """If somebody aborts ours and opens one, theirs is neither published nor aborted by us, whatever happens to us."""
    fake = fake_of(place)
    with pytest.raises(error or RepositoryUnavailable), repository.transaction("test"):  # noqa: PT012
        assert fake.run("abort", "-f").returncode == 0
        open_foreign(fake)
        if error:
            raise error
    assert ran(fake, "abort") == 1
    assert ran(fake, "publish") == 0
    assert not place.journal.exists()
    assert_foreign_is_intact(fake)


def test_somebody_publishes_ours_while_we_write(place: Place, repository: CvmfsRepository) -> None:
    """If somebody publishes our half transaction, we say that it was ended by somebody else."""
    fake = fake_of(place)
    with pytest.raises(RepositoryUnavailable, match="ended by somebody else"), repository.transaction("test"):
        assert fake.run("publish").returncode == 0
    assert ran(fake, "abort") == 0


# --- what a crash leaves ---


@pytest.mark.parametrize("how", ["lost", "lost state", "garbage", "truncated", "another version"])
@pytest.mark.parametrize("whose", ["ours", "foreign"])
def test_without_a_journal_nothing_is_ours(
    place: Place, repository: CvmfsRepository, how: str, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that is lost or damaged proves nothing: what is open is reported with its words, and left."""
    fake = fake_of(place)
    crashed(place, "")
    if whose == "foreign":
        assert fake.run("abort", "-f").returncode == 0
        open_foreign(fake)
    aborts = ran(fake, "abort")
    content = place.journal.read_bytes()
    match how:
        case "lost":
            place.journal.unlink()
        case "lost state":
            shutil.rmtree(place.state)
        case "garbage":
            place.journal.write_bytes(b"\0" * 100)
        case "truncated":
            place.journal.write_bytes(content[:40])
        case _:
            place.journal.write_bytes(content.replace(b'"version": 1', b'"version": 2'))
    assert repository.recover() is None
    assert bool(caplog.messages) == (not how.startswith("lost"))
    with pytest.raises(RepositoryBusy, match="open since") as caught:
        put(repository)
    assert ("another process's work" in str(caught.value)) == (whose == "ours")
    assert ran(fake, "abort") == aborts
    assert fake.in_transaction


def test_a_server_that_dies_after_opening(place: Place, repository: CvmfsRepository) -> None:
    """A `transaction` command that is killed leaves a lock; we put it right ourselves, with an error for this time."""
    fake = fake_of(place)
    for step in ("start", "before-lock", "after-lock", "mounted", "done"):
        fake.switch("kill", f"self@transaction:{step}:1")
        with pytest.raises(RepositoryUnavailable, match=r"-> -9"):
            put(repository)
        assert not fake.in_transaction
        assert not place.journal.exists()
    put(repository)


@pytest.mark.parametrize("step", ["signed", "remounted", "done"])
def test_a_publish_that_dies_after_the_signature_has_happened(
    place: Place, repository: CvmfsRepository, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients see the revision already: that is success, with a warning, and the repository is put right."""
    fake = fake_of(place)
    fake.switch("kill", f"self@publish:{step}:1")
    put(repository)
    assert (fake.published / "file").read_text() == "ours"
    assert not fake.in_transaction
    assert not place.journal.exists()
    assert any("all the same" in message for message in caplog.messages)
    put(repository, "next")


def test_a_terminated_publish_is_an_error(place: Place, repository: CvmfsRepository) -> None:
    """A publish that somebody ends with SIGTERM publishes nothing, and ours is aborted."""
    fake = fake_of(place)
    fake.switch("sleep", "publish:hashing:30")

    def terminate() -> None:
        until((fake.spool / "is_publishing.lock").exists)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (process / "cmdline").read_bytes().split(b"\0")
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            if b"publish" in arguments and str(fake.home).encode() in environment:
                os.kill(int(process.name), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(RepositoryUnavailable, match="Terminated"):
        put(repository)
    thread.join()
    assert not fake.in_transaction
    assert not (fake.published / "file").exists()


def test_an_orphaned_server_is_waited_for(place: Place) -> None:
    """A `transaction` that goes on after our end is not overtaken: what it opens is recognised and aborted."""
    fake = fake_of(place)
    fake.switch("kill", "parent@transaction:start:1")
    fake.switch("sleep", "transaction:before-lock:0.5")
    with PublishingProcess(place) as process:
        assert process.enter() == ""
    with pytest.raises(RepositoryBusy, match="still runs for an interrupted") as caught:
        repository_of(place).recover()
    assert caught.value.exit_code == 3
    assert re.search(r"process \d+, opening", caught.value.found or "")
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        threading.Event().wait(seconds)

    waiting = repository_of(place, wait=30, sleep=sleep)
    assert waiting.recover() == f"aborted our interrupted transaction on {fake.name}"
    assert pauses
    assert not fake.in_transaction


@pytest.mark.parametrize(
    ("kill", "outcome"),
    [
        ("both@transaction:done", None),
        ("", "aborted"),
        ("both@publish:start", "cannot be seen"),
        ("both@publish:done", "cannot be seen"),
    ],
)
def test_without_a_view_of_the_spool(place: Place, kill: str, outcome: str | None, tmp_path: Path) -> None:
    """Where the spool can't be seen, only an id at the root, before a publish, proves that a transaction is ours."""
    fake = fake_of(place)
    blind = CvmfsRepository(place.name, journal=place.journal, root=place.root, spool=tmp_path / "none", sleep=no_sleep)
    put(blind, "before")
    with pytest.raises(ZeroDivisionError), blind.transaction("fails"):
        raise ZeroDivisionError
    assert not fake.in_transaction
    crashed(place, kill)
    if outcome == "cannot be seen":
        with pytest.raises(RepositoryUnavailable, match=outcome) as caught:
            blind.recover()
        assert "repository.spool" in (caught.value.todo or "")
        assert place.journal.exists()
        repository_of(place).recover()
    elif outcome == "aborted":
        assert blind.recover() == f"aborted our interrupted transaction on {fake.name}"
    else:
        assert blind.recover() is None
        assert (fake.spool / "in_transaction.lock").exists(), "nothing proves that it is ours"
        assert fake.run("abort", "-f").returncode == 0
    assert not (fake.spool / "in_transaction.lock").exists()
    put(blind, "after")


def test_an_interrupt_while_opening(place: Place, repository: CvmfsRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the server opens a transaction ends the server, too, and leaves nothing open."""
    fake = fake_of(place)
    fake.switch("sleep", "transaction:mounted:30")
    main = threading.main_thread().ident
    assert main

    def interrupt() -> None:
        until(lambda: fake.in_transaction)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        put(repository)
    thread.join()
    assert not fake.in_transaction
    assert repository.recover() is None
    fake.unswitch("sleep")
    put(repository)


# --- running commands ---


def test_a_command_gets_no_input_and_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command runs in `/`, in a session of its own, with nothing to read; its streams and code come back."""
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; print(os.getcwd(), os.getsid(0) == os.getpid(), sys.stdin.read() == ''); sys.exit('no')"
    done = run_command([sys.executable, "-c", code])
    assert (done.out, done.err, done.code) == ("/ True True\n", "no\n", 1)
    assert "-> 1" in str(done)


def test_a_command_that_may_not_be_run(tmp_path: Path) -> None:
    """A command without execute permission is told as that."""
    (tmp_path / "tool").write_text("")
    with pytest.raises(RepositoryUnavailable, match="may not be run"):
        run_command([str(tmp_path / "tool")])


def test_every_error_of_the_backend_has_exit_code_3() -> None:
    """What stops the repository stops the cycle."""
    kinds: list[type[CvmfsSyncError]] = [NoSpace, NotOwner, RepositoryBusy, RepositoryUnavailable]
    assert {kind.exit_code for kind in kinds} == {3}
