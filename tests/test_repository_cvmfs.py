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
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_sync.errors import (
    CvmfsSyncError,
    LimitExceeded,
    NoSpace,
    NotOwner,
    RepositoryBusy,
    RepositoryError,
    RepositoryUnavailable,
)
from cvmfs_sync.ports import Clone
from cvmfs_sync.repository import CvmfsRepository, evidence
from cvmfs_sync.repository.commands import run as run_command
from cvmfs_sync.repository.commands import still_running
from cvmfs_sync.repository.surroundings import private_directory
from tests.support.commands import missing, require, run, run_cli
from tests.support.cvmfs import FakeCvmfs
from tests.support.images import Image, file, layer, write_layout
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


def test_an_unmounted_repository_is_not_taken_for_an_empty_one(place: Place, repository: CvmfsRepository) -> None:
    """After a reboot it is mounted before anybody looks at it; in somebody else's transaction that is theirs to do."""
    fake = fake_of(place)
    with repository.transaction("before") as transaction:
        transaction.create_tree("trees/one")
    assert fake.run("fake-reboot").returncode == 0
    assert not (place.root / "trees").exists()
    assert repository.recover() is None
    assert (place.root / "trees/one").exists()
    assert fake.run("fake-reboot").returncode == 0
    repository.remove_trees(["trees/one"])
    assert not (fake.published / "trees/one").exists()
    open_foreign(fake)
    assert fake.run("fake-reboot").returncode == 0
    assert repository.recover() is None
    assert ran(fake, "mount") == 2
    assert fake.run("mount").returncode == 0
    assert_foreign_is_intact(fake)


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


@pytest.mark.parametrize(
    "text",
    [
        "FATAL: catalog at / has more than 200000 entries (200001). Please split it into nested catalogs",
        "FATAL: file at /large is larger than 1024 megabytes (2098). Please remove the file or increase the limit.",
    ],
)
def test_limits_that_are_enforced(place: Place, repository: CvmfsRepository, text: str) -> None:
    """What the server does not take is the image's failure, not the repository's: the others go on."""
    fake = fake_of(place)
    fake.switch("fail", f"publish=1::{text.replace(':', chr(58))}")
    with pytest.raises(LimitExceeded, match=fake.name) as caught:
        put(repository)
    assert caught.value.exit_code == 1
    assert "CVMFS_ENFORCE_LIMITS" in (caught.value.todo or "")
    assert not fake.in_transaction
    fake.switch("fail", f"publish=1::{text.replace('FATAL', 'WARNING')} errno 28")
    with pytest.raises(NoSpace):
        put(repository)


def test_a_full_storage_stops_a_cycle_and_not_the_next(place: Place, tmp_path: Path) -> None:
    """Publishing stops, with what to remove and where; what was published stays; when there is space it goes on."""
    fake = fake_of(place)
    write_layout(tmp_path / "layout", {tag: Image((layer(file("name", tag)),)) for tag in ("one", "two", "three")})
    tags = "".join(f"  - oci:{tmp_path}/layout:{tag}\n" for tag in ("one", "two", "three"))
    (tmp_path / "image-list.yaml").write_text(f"version: 1\nimages:\n{tags}")
    config = tmp_path / "cvmfs-sync.yaml"
    config.write_text(
        f"state_dir: state\nrepository: {{backend: cvmfs, name: {fake.name}, root: {fake.root}, spool: {fake.spool}}}\n"
    )
    run_cli("sync", "--config", config, f"oci:{tmp_path}/layout:one").ok()
    fake.switch("storage-full")
    for _ in range(2):
        stopped = run_cli("sync", "--json", "--config", config).ok(3)
        assert sorted(each["result"] for each in stopped.json["images"]) == ["failed", "skipped", "unchanged"]
        assert "no space left to publish" in stopped.stdout
        assert f"data/txn/chunk.* in the storage (/srv/cvmfs/{fake.name} by default)" in stopped.stdout
        assert not fake.in_transaction
    chunks = list((fake.home / "srv/cvmfs" / fake.name / "data/txn").glob("chunk.*"))
    assert chunks
    for chunk in chunks:
        chunk.unlink()
    fake.unswitch("storage-full")
    done = run_cli("sync", "--json", "--config", config).ok()
    assert sorted(each["result"] for each in done.json["images"]) == ["published", "published", "unchanged"]


@pytest.mark.parametrize("what", ["transaction", "clone", "remove"])
def test_nothing_is_opened_from_inside(
    place: Place, repository: CvmfsRepository, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started below the repository we would keep ourselves from publishing: that is said at once."""
    fake = fake_of(place)
    with repository.transaction("before") as transaction:
        transaction.create_tree("trees/one").chmod(0o755)
    before = len(fake.commands())
    monkeypatch.chdir(fake.root / "trees/one")
    with pytest.raises(RepositoryBusy, match="started inside the repository") as caught:
        do(repository, what)
    assert "cd" in (caught.value.todo or "")
    assert len(fake.commands()) == before
    monkeypatch.chdir("/")
    do(repository, what)


def do(repository: CvmfsRepository, what: str) -> None:
    """Something that takes the server's lock."""
    match what:
        case "remove":
            repository.remove_trees(["trees/one"])
        case "clone":
            with repository.transaction("clone", Clone("trees/one", "trees/two")) as transaction:
                (transaction.clone() / "added").write_text("")
        case _:
            put(repository)


MOUNTS = {
    "of the machine": ("25 1 8:1 / /tmp rw - ext4 /dev/sda1 rw", None),
    "a tmpfs": ("25 1 0:30 / /tmp rw shared:1 - tmpfs tmpfs rw", None),
    "private": (
        "25 1 8:1 /tmp/systemd-private-0a1b-cvmfs-sync.service-Ab12Cd/tmp /tmp rw - ext4 /dev/sda1 rw",
        ("/tmp", "cvmfs-sync.service"),
    ),
    "private, on a tmpfs": (
        "25 1 8:1 /systemd-private-0a1b-cvmfs-sync@x.service-Ab12Cd/tmp /var/tmp rw - tmpfs tmpfs rw",
        ("/var/tmp", "cvmfs-sync@x.service"),
    ),
    "elsewhere": ("25 1 8:1 /tmp/systemd-private-0a1b-a.service-Ab12Cd/tmp /mnt/tmp rw - ext4 /dev/sda1 rw", None),
    "a container's": ("25 1 8:1 /var/lib/containers/1/tmp /tmp rw - ext4 /dev/sda1 rw", None),
    "nonsense": ("25\n\n1 2 3", None),
}  # fmt: skip


@pytest.mark.parametrize("mounts", MOUNTS)
def test_private_mounts_are_told_by_their_name(mounts: str) -> None:
    """What systemd mounts for PrivateTmp= is told from any other /tmp, with the unit that wants it."""
    text, found = MOUNTS[mounts]
    assert private_directory(f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n{text}") == found


def test_a_private_tmp_is_refused(place: Place, tmp_path: Path) -> None:
    """In a mount namespace such as PrivateTmp=yes makes, nothing is opened, and the error says what to set."""
    require("unshare")
    fake = fake_of(place)
    private = tmp_path / "systemd-private-0a1b-cvmfs-sync.service-Ab12Cd/tmp"
    private.mkdir(parents=True)
    put(repository_of(place))
    config = tmp_path / "cvmfs-sync.yaml"
    write_layout(tmp_path / "layout", {"one": Image((layer(file("name", "x")),))})
    (tmp_path / "image-list.yaml").write_text(f"version: 1\nimages: ['oci:{tmp_path}/layout:one']\n")
    config.write_text(
        f"state_dir: state\nrepository: {{backend: cvmfs, name: {fake.name}, root: {fake.root}, spool: {fake.spool}}}\n"
    )
    try:
        run("unshare", "-m", "true")
    except AssertionError as error:
        missing(f"no mount namespaces here: {error}")
    # The same directory over itself: only what it is called tells, and the test's own files stay where they are.
    script = f"mount --bind {private} /var/tmp && exec {sys.executable} -m cvmfs_sync sync --config {config}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 3, done
    assert "mount namespace of its own" in done.stderr
    assert "set PrivateTmp=no" in done.stderr
    assert ran(fake, "transaction") == 1


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


# --- clones and removals ---


def with_tree(repository: CvmfsRepository, *names: str) -> None:
    """Trees with a file each, published."""
    with repository.transaction("trees") as transaction:
        for name in names or ("one",):
            tree = transaction.create_tree(f"trees/{name}")
            (tree / "file").write_text("x")
            tree.chmod(0o755)


_CLONING = """
import sys
from pathlib import Path
from cvmfs_sync.ports import Clone
from cvmfs_sync.repository import CvmfsRepository
name, root, spool, journal, what = sys.argv[1:]
repository = CvmfsRepository(name, root=Path(root), spool=Path(spool), journal=Path(journal))
if what == "remove":
    repository.remove_trees(["trees/one"])
else:
    with repository.transaction("clone", Clone("trees/one", "trees/two")) as transaction:
        (transaction.clone() / "added").write_text("")
"""


def killed_while(place: Place, what: str, kill: str) -> None:
    """A process of ours that was killed with the server at a step of a clone or a removal."""
    fake = fake_of(place)
    fake.switch("kill", f"{kill}:1")
    arguments = [place.name, place.root, fake.spool, place.journal, what]
    done = subprocess.run(
        [sys.executable, "-c", _CLONING, *map(str, arguments)], check=False, cwd=Path(__file__).parent.parent
    )
    fake.unswitch("kill")
    assert done.returncode == -signal.SIGKILL
    until(lambda: still_running(journal(place)["identity"]) is None)


CLONE_STEPS = [
    "transaction:start", "transaction:before-lock", "transaction:after-lock", "transaction:before-clone",
    "clone:hashing", "transaction:cloned", "transaction:mounted", "transaction:done", "publish:start", "publish:locked",
    "publish:hashing", "publish:before-sign", "publish:signed", "publish:remounted", "publish:done",
]  # fmt: skip
REMOVAL_STEPS = [
    "ingest:start", "transaction:before-lock", "transaction:after-lock", "transaction:mounted", "ingest:opened",
    "ingest:locked", "ingest:hashing", "ingest:before-sign", "ingest:signed", "ingest:remounted", "ingest:done",
]  # fmt: skip


@pytest.mark.parametrize("rebooted", [False, True])
@pytest.mark.parametrize("step", CLONE_STEPS)
def test_a_crash_while_cloning(place: Place, repository: CvmfsRepository, step: str, rebooted: bool) -> None:
    """After a kill or a reboot, the next start leaves the clone with its change or none at all, and nothing open."""
    fake = fake_of(place)
    with_tree(repository)
    killed_while(place, "clone", f"both@{step}")
    if rebooted:
        assert fake.run("fake-reboot").returncode == 0
    repository.recover()
    assert not fake.in_transaction
    assert not place.journal.exists()
    done = step in {"publish:signed", "publish:remounted", "publish:done"}
    assert (fake.published / "trees/two").exists() == (place.root / "trees/two/added").exists() == done
    assert (place.root / "trees/one/file").exists(), "mounted again"
    put(repository)
    assert (fake.published / "trees/two/added").exists() == done
    if not done:
        do(repository, "clone")


@pytest.mark.parametrize("rebooted", [False, True])
@pytest.mark.parametrize("step", REMOVAL_STEPS)
def test_a_crash_while_removing(place: Place, repository: CvmfsRepository, step: str, rebooted: bool) -> None:
    """After a kill or a reboot the tree is there whole or gone, nothing is open, and removing it again does it."""
    fake = fake_of(place)
    with_tree(repository, "one", "stays")
    killed_while(place, "remove", f"both@{step}")
    if rebooted:
        assert fake.run("fake-reboot").returncode == 0
    repository.recover()
    assert not fake.in_transaction
    assert not place.journal.exists()
    done = step in {"ingest:signed", "ingest:remounted", "ingest:done"}
    assert (fake.published / "trees/one/file").exists() == (not done)
    repository.remove_trees(["trees/one"])
    assert [path.name for path in (fake.published / "trees").iterdir()] == ["stays"]
    put(repository)


@pytest.mark.parametrize(("what", "step"), [("clone", s) for s in CLONE_STEPS] + [("remove", s) for s in REMOVAL_STEPS])
def test_a_foreign_transaction_after_a_crash_of_a_clone_or_removal(
    place: Place, repository: CvmfsRepository, what: str, step: str
) -> None:
    """An operator who cleaned up after us and began something is not disturbed, at whatever step we were."""
    fake = fake_of(place)
    with_tree(repository)
    killed_while(place, what, f"both@{step}")
    if fake.in_transaction:
        assert fake.run("abort", "-f").returncode == 0
    open_foreign(fake)
    aborts = ran(fake, "abort")
    repository.recover()
    for again in ("clone", "remove"):
        if (place.root / "trees/one").exists() and not (place.root / "trees/two").exists():
            with pytest.raises(RepositoryBusy):
                do(repository, again)
    assert ran(fake, "abort") == aborts
    assert_foreign_is_intact(fake)


@pytest.mark.parametrize("how", ["another user", "before the machine was started"])
def test_an_untouched_transaction_that_can_not_be_ours(
    place: Place, repository: CvmfsRepository, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another user has opened is not ours, nor what was opened after a reboot that ended us."""
    fake = fake_of(place)
    crashed(place, "both@transaction:mounted")
    lock = fake.spool / "in_transaction.lock"
    if how == "another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(lock, 4711, -1)
    else:
        monkeypatch.setattr(evidence, "_booted", lambda: (journal(place)["started"] + lock.stat().st_mtime) / 2)
        os.utime(lock, (journal(place)["started"] + 1,) * 2)
    assert repository.recover() == f"left a transaction on {fake.name} alone that is not ours"
    assert fake.in_transaction
    assert ran(fake, "abort") == 0


@pytest.mark.parametrize("how", ["read", "cwd", "write"])
@pytest.mark.parametrize("blind", [False, True])
def test_a_removal_with_a_reader_leaves_no_transaction(place: Place, how: str, blind: bool, tmp_path: Path) -> None:
    """`ingest` leaves the repository in a transaction when it meets a reader; that one is ours, and is aborted."""
    fake = fake_of(place)
    with_tree(repository_of(place), "one", "other")
    spool = tmp_path / "none" if blind else place.spool
    repository = CvmfsRepository(place.name, journal=place.journal, root=place.root, spool=spool, wait=timedelta(0))
    held = fake.root / ("trees/other" if how == "cwd" else "trees/other/file")
    with holding(held, how), pytest.raises(RepositoryBusy, match="below the repository"):
        repository.remove_trees(["trees/one"])
    assert not fake.in_transaction
    assert not place.journal.exists()
    assert (fake.published / "trees/one/file").exists()
    repository.remove_trees(["trees/one"])
    assert not (fake.published / "trees/one").exists()


def test_a_removal_waits_for_a_reader(place: Place) -> None:
    """When the reader has gone the trees go: what the first attempt had left open does not stop the second."""
    fake = fake_of(place)
    with_tree(repository_of(place), "one", "other")
    with holding(fake.root / "trees/other/file", "read"):
        reader = next(
            int(p.name) for p in Path("/proc").glob("[0-9]*") if fake_reader(p, fake.root / "trees/other/file")
        )
        seen: list[bool] = []

        def sleep(_: float) -> None:
            seen.append(fake.in_transaction)
            os.kill(reader, signal.SIGKILL)

        repository_of(place, wait=60, sleep=sleep).remove_trees(["trees/one"])
    assert seen == [False]
    assert not (fake.published / "trees/one").exists()
    assert not place.journal.exists()


def test_a_removal_whose_transaction_can_not_be_aborted(place: Place, repository: CvmfsRepository) -> None:
    """Where the abort fails, too, the error says that the transaction is open, and the next start knows it."""
    fake = fake_of(place)
    with_tree(repository, "one", "other")
    fake.switch("fail", "abort=1::cannot load whitelist [failed to download whitelist]")
    with holding(fake.root / "trees/other/file", "read"), pytest.raises(RepositoryError, match="still open"):
        repository.remove_trees(["trees/one"])
    assert fake.in_transaction
    fake.unswitch("fail")
    assert repository.recover() == f"aborted our interrupted transaction on {fake.name}"
    assert not fake.in_transaction


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_removal(place: Place, repository: CvmfsRepository, number: signal.Signals) -> None:
    """A signal ends the server first, which aborts; nothing is open, and the tree is there."""
    fake = fake_of(place)
    with_tree(repository)
    fake.switch("sleep", "ingest:hashing:30")
    arguments = [place.name, place.root, fake.spool, place.journal, "remove"]
    handler = "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", handler + _CLONING, *map(str, arguments)],
        cwd=Path(__file__).parent.parent, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until((fake.spool / "is_publishing.lock").exists)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert not fake.in_transaction
    assert not place.journal.exists()
    assert (fake.published / "trees/one/file").exists()
    fake.unswitch("sleep")
    repository.remove_trees(["trees/one"])
    assert not (fake.published / "trees/one").exists()


@pytest.mark.parametrize("what", ["clone", "remove"])
@pytest.mark.parametrize(
    ("switch", "error"),
    [
        ("webserver-down", RepositoryUnavailable),
        ("whitelist-expired", RepositoryUnavailable),
        ("not-owner", NotOwner),
        ("storage-full", NoSpace),
    ],
)
def test_a_clone_or_removal_that_is_refused(
    place: Place, repository: CvmfsRepository, what: str, switch: str, error: type[RepositoryError]
) -> None:
    """The server's troubles end these like any transaction: nothing is open or changed, and later it works."""
    fake = fake_of(place)
    with_tree(repository)
    fake.switch(switch)
    with pytest.raises(error, match=fake.name) as caught:
        do(repository, what)
    assert caught.value.todo
    assert not fake.in_transaction
    assert not place.journal.exists()
    assert [path.name for path in (fake.published / "trees").iterdir()] == ["one"]
    fake.unswitch(switch)
    do(repository, what)


def test_removing_what_stays_is_noticed(place: Place, repository: CvmfsRepository) -> None:
    """A server that says it has removed a tree, and has not, is not believed."""
    fake = fake_of(place)
    with_tree(repository)
    fake.switch("fail", "ingest=0::")
    with pytest.raises(RepositoryUnavailable, match="were not removed"):
        do(repository, "remove")
    assert not place.journal.exists()


@pytest.mark.parametrize("open_", [True, False])
def test_garbage_is_collected_outside_of_transactions(place: Place, repository: CvmfsRepository, open_: bool) -> None:
    """Somebody else's transaction is waited for; then revisions that nothing names go, without a question."""
    fake = fake_of(place)
    text = fake.server_conf.read_text()
    fake.server_conf.write_text(text.replace("GARBAGE_COLLECTION=false", "GARBAGE_COLLECTION=true"))
    if open_:
        open_foreign(fake)
        with pytest.raises(RepositoryBusy, match="has a transaction open"):
            repository.collect_garbage()
        assert_foreign_is_intact(fake)
    repository.collect_garbage()
    assert fake.commands()[-1]["argv"] == ["gc", "-f", fake.name]


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
