"""What a service manager is told: readiness, reloads, the end, and the watchdog."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cvmfs_sync.heartbeat import Heartbeat, Telling
from cvmfs_sync.notify import Notifier, watchdog_seconds
from cvmfs_sync.ports import Silent
from tests.support.notifysocket import listening


@pytest.mark.parametrize("abstract", [False, True])
def test_datagrams_come_to_a_real_socket(tmp_path: Path, *, abstract: bool) -> None:
    """Each message is one datagram, at a path and in the abstract namespace; a line break in a status is none."""
    with listening(None if abstract else tmp_path) as manager:
        notifier = Notifier(manager.address)
        notifier.ready()
        notifier.status("publishing\nREADY=0")
        notifier.reloading()
        notifier.stopping()
        notifier.close()
        heard = manager.listen()
    usec = int(heard[2].pop("MONOTONIC_USEC"))
    assert 0 <= time.monotonic() * 1e6 - usec < 600e6
    assert heard == [
        {"READY": "1"}, {"STATUS": "publishing READY=0"}, {"RELOADING": "1"}, {"STOPPING": "1", "STATUS": "stopping"},
    ]  # fmt: skip


def test_nobody_who_listens_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without an address nothing is sent; an address at which nobody is costs one warning."""
    Notifier(None).ready()
    assert not caplog.messages
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.ready()
    notifier.ready()
    notifier.close()
    assert len(caplog.messages) == 1


def test_a_manager_that_does_not_read_never_blocks(tmp_path: Path) -> None:
    """A full socket drops what is said; the daemon goes on."""
    with listening(tmp_path) as manager:
        notifier = Notifier(manager.address)
        for _ in range(5000):
            notifier.status("x" * 1000)
        notifier.close()
        assert len(manager.listen()) < 5000


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_period_is_ours_only(environment: dict[str, str], seconds: float | None) -> None:
    """A period is taken if it is a number and meant for this process."""
    assert watchdog_seconds(environment) == seconds


def _settled(heart: Heartbeat) -> bool:
    """Whether nothing moves; other work of this test process may, for a moment."""
    for _ in range(50):
        time.sleep(0.2)
        if not heart.alive():
            return True
    return False


def test_progress_is_work_and_waiting_is_none() -> None:
    """Idle is alive; what tells of progress is; the processor's use is; a thread that waits for ever is not."""
    heart = Heartbeat()
    assert heart.alive()
    assert heart.alive()
    heart.doing = "a cycle"
    assert _settled(heart)
    told: list[str] = []
    progress = Telling(Silent(), heart, told.append)
    progress.start("fetching", 10)
    assert heart.alive()
    progress.advance(1)
    assert heart.alive()
    assert told == ["fetching"]
    assert _settled(heart)
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass
    assert heart.alive(), "comparing a large tree tells nobody, and is progress"


def test_a_command_that_works_is_progress_and_one_that_hangs_is_none() -> None:
    """A publish may take hours; one that neither computes nor reads nor writes has stuck."""
    heart = Heartbeat()
    heart.doing = "publishing"
    program = "import sys, time\nfor line in sys.stdin:\n    end = time.process_time() + 0.1\n"
    program += "    while time.process_time() < end: pass\n    print(flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {program!r}])"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert _settled(heart)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        assert heart.alive()
        assert _settled(heart)
        process.stdin.close()


def test_the_watchdog_is_told_only_while_there_is_progress(tmp_path: Path) -> None:
    """WATCHDOG=1 comes again and again, and stops with the progress."""
    alive = threading.Event()
    alive.set()
    asked_in_vain = threading.Semaphore(0)

    def progress() -> bool:
        answer = alive.is_set()
        if not answer:
            asked_in_vain.release()
        return answer

    with listening(tmp_path) as manager:
        notifier = Notifier(manager.address)
        notifier.watch(0.1, progress)
        number = manager.wait_for(lambda said: said == {"WATCHDOG": "1"})
        manager.wait_for(lambda said: said == {"WATCHDOG": "1"}, number)
        alive.clear()
        assert asked_in_vain.acquire(timeout=60)
        count = len(manager.listen())
        for _ in range(3):
            assert asked_in_vain.acquire(timeout=60)
        assert len(manager.listen()) == count
        notifier.close()
