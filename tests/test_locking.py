"""Being the only one: who holds a lock, who is told so, and when it goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from cvmfs_sync.errors import RepositoryBusy, RepositoryError
from cvmfs_sync.locking import exclusive_lock, instance, locked_directory
from tests.support import FakeCvmfs
from tests.support.site import Site

Lock = Callable[[Path], AbstractContextManager[None]]
LOCKS: dict[str, Lock] = {
    "instance": instance,
    "file": lambda directory: exclusive_lock(directory / "file"),
    "directory": locked_directory,
}


@contextmanager
def held_elsewhere(name: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock until the block ends."""
    code = (
        "import sys; from pathlib import Path; from tests.test_locking import LOCKS\n"
        "with LOCKS[sys.argv[1]](Path(sys.argv[2])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, name, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("name", LOCKS)
def test_only_one_holds_it(name: str, tmp_path: Path) -> None:
    """The second one is told what is going on, and can have it when the first one is done."""
    with held_elsewhere(name, tmp_path) as holder:
        with pytest.raises(RepositoryBusy, match="another cvmfs-sync is at work") as raised, LOCKS[name](tmp_path):
            raise AssertionError("both hold it")
        assert raised.value.exit_code == 3
        assert raised.value.todo
        if name != "directory":
            assert f"process {holder.pid} holds {tmp_path}" in str(raised.value.found)
    with LOCKS[name](tmp_path):
        pass
    with LOCKS[name](tmp_path):
        pass


@pytest.mark.parametrize("name", LOCKS)
def test_it_goes_with_its_process(name: str, tmp_path: Path) -> None:
    """SIGKILL leaves nothing that anybody would have to remove."""
    with held_elsewhere(name, tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with LOCKS[name](tmp_path):
            pass


@pytest.mark.parametrize("name", LOCKS)
def test_an_error_inside_releases_it(name: str, tmp_path: Path) -> None:
    """And arrives as it is."""
    with pytest.raises(KeyError, match="inside"), LOCKS[name](tmp_path):
        raise KeyError("inside")
    with LOCKS[name](tmp_path):
        pass


def test_commands_that_it_starts_do_not_keep_it(tmp_path: Path) -> None:
    """What outlives us, such as a publish, does not hold our lock."""
    with instance(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with instance(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_locked_directory_is_not_changed(tmp_path: Path) -> None:
    """It is a repository's root."""
    before = tmp_path.stat()
    with locked_directory(tmp_path):
        assert list(tmp_path.iterdir()) == []
    after = tmp_path.stat()
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


def test_what_cannot_be_locked_is_told(tmp_path: Path) -> None:
    """A file where a directory should be, or a directory that is not there: an error for a person."""
    (tmp_path / "file").write_text("")
    for lock in (
        instance(tmp_path / "file"),
        exclusive_lock(tmp_path / "none/lock"),
        locked_directory(tmp_path / "no"),
    ):
        with pytest.raises(RepositoryError), lock:
            raise AssertionError("nothing is locked")


def test_the_directory_for_the_lock_is_made(tmp_path: Path) -> None:
    """A state directory need not be there."""
    with instance(tmp_path / "a/b"):
        assert (tmp_path / "a/b/lock").read_text() == str(os.getpid())


def test_a_repositorys_lock_is_in_its_spool(fake_cvmfs: FakeCvmfs, tmp_path: Path) -> None:
    """Whoever publishes to the same one, by whatever configuration, finds it there."""
    site = Site(tmp_path / "site", fake_cvmfs)
    site.wish()
    site.run("sync")
    assert (fake_cvmfs.spool / "cvmfs-sync.lock").is_file()
    with exclusive_lock(fake_cvmfs.spool / "cvmfs-sync.lock"):
        assert "another cvmfs-sync is at work" in site.run("sync", rc=3).stderr
