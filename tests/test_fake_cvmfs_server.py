"""The fake `cvmfs_server` keeps the observed behaviour of the real one: states, exit codes, texts, streams, crashes."""

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until

FAKE = Path(__file__).parent / "fakes" / "cvmfs_server"
NAME = "test.example.org"


class Server:
    """One fake root with one repository, and what a test holds open in it."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self.union = root / "cvmfs" / NAME
        self.spool = root / "var/spool/cvmfs" / NAME
        self.storage = root / "srv/cvmfs" / NAME
        self.scratch = self.spool / "scratch/current"
        self.rdonly = self.spool / "rdonly"
        self.cleanup: list[Callable[[], object]] = []
        self.ok("mkfs", "-o", "root", *options)

    def run(
        self, *arguments: str, repo: str = NAME, stdin: str = "", cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(FAKE), *arguments, repo],
            input=stdin,
            cwd=cwd or self.root,
            env={"PATH": os.environ["PATH"], "FAKE_CVMFS_ROOT": str(self.root), **env},
            capture_output=True,
            text=True,
            check=False,
        )

    def ok(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        result = self.run(*arguments, **more)
        assert result.returncode == 0, result
        return result

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(FAKE), *arguments, NAME],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.root,
            env={"PATH": os.environ["PATH"], "FAKE_CVMFS_ROOT": str(self.root), **env},
            text=True,
        )
        self.cleanup += [process.communicate, process.kill]
        return process

    def publish_slowly(self, until: Path | float = 20, command: str = "publish") -> subprocess.Popen[str]:
        """Start a publication that stops under its lock, for so long or until a file is there; return when it does."""
        process = self.start(command, FAKE_CVMFS_SLEEP=f"{command}:locked:{until}")
        wait_until(lambda: (self.spool / "is_publishing.lock").exists() and self.mounted_as == "ro")
        return process

    def hold(self, name: str, mode: str) -> None:
        file = (self.union / name).open(mode)
        self.cleanup.append(file.close)

    def stand_in(self, directory: Path) -> None:
        """Have another process with its working directory there."""
        process = subprocess.Popen(["sleep", "60"], cwd=directory)
        self.cleanup += [process.wait, process.kill]

    def switch(self, name: str, content: str = "") -> None:
        (self.root / "switches").mkdir(exist_ok=True)
        (self.root / "switches" / name).write_text(content)

    def set_config(self, key: str, value: str) -> None:
        path = self.root / "etc/cvmfs/repositories.d" / NAME / "server.conf"
        path.write_text(path.read_text() + f"{key}={value}\n")

    def release(self) -> None:
        while self.cleanup:
            self.cleanup.pop()()

    @property
    def mounted_as(self) -> str:
        return (self.spool / "fake/mount").read_text()

    @property
    def revision(self) -> int:
        lines = (self.storage / ".cvmfspublished").read_text().splitlines()
        return int(next(line[1:] for line in lines if line.startswith("S")))

    @property
    def in_transaction(self) -> bool:
        return (self.spool / "in_transaction.lock").exists()

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "var/log/cvmfs_server.jsonl").read_text().splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, "-z")
    yield made
    made.release()


def open_with(server: Server, *names: str) -> None:
    """Open a transaction and write these files."""
    server.ok("transaction")
    for name in names:
        (server.union / name).parent.mkdir(parents=True, exist_ok=True)
        (server.union / name).write_text(f"content of {name}")


def add(server: Server, *names: str) -> None:
    open_with(server, *names)
    server.ok("publish")


def snapshot(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen of a tree, but inodes and change times."""
    found: dict[str, tuple[object, ...]] = {}
    top = top.resolve()  # `rdonly` is a link
    for path in [top, *top.rglob("*")]:
        st = path.lstat()
        content: object = os.readlink(path) if path.is_symlink() else None
        if stat.S_ISREG(st.st_mode):
            content = path.read_bytes()
        found[str(path.relative_to(top))] = (st.st_mode, st.st_mtime_ns, st.st_uid, content)
    return found


def killed_in_publish(server: Server, step: str = "hashing") -> None:
    open_with(server, "new")
    assert server.run("publish", FAKE_CVMFS_KILL=f"publish:{step}").returncode == -signal.SIGKILL


def rebooted_in_transaction(server: Server) -> None:
    open_with(server, "new")
    server.ok("fake-reboot")


def without_gc(server: Server) -> None:
    server.set_config("CVMFS_GARBAGE_COLLECTION", "false")


OPEN = "another transaction is already open"
CRASHED = "is in a transaction and cannot be repaired"
READERS = "There are open read-only file descriptors"
Arrange = Callable[[Server], object]


def both(*steps: Arrange) -> Arrange:
    return lambda server: [step(server) for step in steps]


def nothing(server: Server) -> None:
    pass


def write_new(server: Server) -> None:
    open_with(server, "new")


def add_tree(server: Server) -> None:
    add(server, "d/f")


def transact(server: Server) -> None:
    server.ok("transaction")


# id: (what happened before, arguments, exit code, stream of the text, text)
TABLE: dict[str, tuple[Arrange, list[str], int, str, str]] = {
    "transaction": (nothing, ["transaction"], 0, "out", ""),
    "transaction when open": (transact, ["transaction"], 17, "err", OPEN),
    "transaction retrying": (transact, ["transaction", "-t", "1"], 17, "out", "repository busy, retrying"),
    "transaction retried": (transact, ["transaction", "-t", "1"], 17, "err", OPEN),
    "transaction while publishing": (
        both(write_new, lambda s: s.publish_slowly()),
        ["transaction"],
        1,
        "err",
        "currently publishing and should not be touched",
    ),
    "transaction after a crash": (killed_in_publish, ["transaction"], 1, "err", CRASHED),
    "transaction after a crash, mount": (
        killed_in_publish,
        ["transaction"],
        1,
        "err",
        f"is in a transaction but /cvmfs/{NAME} is not mounted read/write",
    ),
    "transaction after a reboot inside one": (rebooted_in_transaction, ["transaction"], 1, "err", CRASHED),
    "transaction after a reboot while idle": (lambda s: s.ok("fake-reboot"), ["transaction"], 0, "out", "success"),
    "transaction, not the owner": (
        lambda s: s.switch("not-owner"),
        ["transaction"],
        1,
        "err",
        "No write permission to repository",
    ),
    "transaction, web server down": (
        lambda s: s.switch("webserver-down"),
        ["transaction"],
        5,
        "err",
        "cannot load whitelist [failed to download whitelist]",
    ),
    "transaction, whitelist expired": (
        lambda s: s.switch("whitelist-expired"),
        ["transaction"],
        5,
        "err",
        "[expired whitelist]",
    ),
    "template": (add_tree, ["transaction", "-T", "d=e"], 0, "out", "New revision: 3\n[done]"),
    "template text": (add_tree, ["transaction", "-T", "d=e"], 0, "out", "cloning template d --> e ..."),
    "template, destination exists": (
        add_tree,
        ["transaction", "-T", "d=d"],
        22,
        "err",
        "cannot clone directory tree. PANIC: destination 'd' exists",
    ),
    "template, no source": (add_tree, ["transaction", "-T", "x=e"], 22, "err", "path 'x' cannot be found"),
    "template of a file": (add_tree, ["transaction", "-T", "d/f=e"], 22, "err", "source 'd/f' not a directory"),
    "template to nowhere": (add_tree, ["transaction", "-T", "d=x/e"], 22, "err", "'x/e' not on a known path"),
    "publish": (write_new, ["publish"], 0, "out", "Signing new manifest"),
    "publish nothing": (transact, ["publish"], 0, "out", "Signing new manifest"),
    "publish without a transaction": (nothing, ["publish"], 1, "out", f"Repository {NAME} is not in a transaction"),
    "publish with a writer": (
        both(write_new, lambda s: s.hold("new", "a")),
        ["publish"],
        1,
        "out",
        f"Open writable file descriptors on {NAME}",
    ),
    "forced publish with a writer": (
        both(write_new, lambda s: s.hold("new", "a")),
        ["publish", "-f"],
        1,
        "out",
        "Open writable file descriptors",
    ),
    "publish with a reader": (both(write_new, lambda s: s.hold("new", "r")), ["publish"], 1, "out", READERS),
    "publish with a reader, end": (
        both(write_new, lambda s: s.hold("new", "r")),
        ["publish"],
        1,
        "out",
        "(y/N) aborted.",
    ),
    "publish with a cwd inside": (both(write_new, lambda s: s.stand_in(s.union)), ["publish"], 1, "out", READERS),
    "forced publish with a reader": (
        both(write_new, lambda s: s.hold("new", "r")),
        ["publish", "-f"],
        0,
        "out",
        "WARNING: Open file descriptors",
    ),
    "publish while another publishes": (
        both(write_new, lambda s: s.publish_slowly()),
        ["publish"],
        1,
        "err",
        f"Another publish process is active for {NAME}",
    ),
    "publish, web server down": (
        both(write_new, lambda s: s.switch("webserver-down")),
        ["publish"],
        1,
        "out",
        "Repository unavailable under http://localhost",
    ),
    "publish, whitelist expired": (
        both(write_new, lambda s: s.switch("whitelist-expired")),
        ["publish"],
        1,
        "err",
        "bad whitelist",
    ),
    "publish, storage full": (
        both(write_new, lambda s: s.switch("storage-full")),
        ["publish"],
        1,
        "err",
        "block upload failed (code: 28)",
    ),
    "publish after a crash": (killed_in_publish, ["publish"], 1, "err", CRASHED),
    "publish with a known tag": (
        both(lambda s: s.ok("tag", "-a", "v1"), transact),
        ["publish", "-a", "v1"],
        1,
        "err",
        "Tag name 'v1' is already in use.",
    ),
    "abort": (write_new, ["abort", "-f"], 0, "out", ""),
    "abort without a transaction": (nothing, ["abort", "-f"], 22, "err", "is not in a transaction"),
    "abort, no answer": (write_new, ["abort"], 0, "out", "DISCARD ALL CHANGES"),
    "abort while publishing": (
        both(write_new, lambda s: s.publish_slowly()),
        ["abort", "-f"],
        22,
        "err",
        "Could not acquire lock",
    ),
    "abort, web server down": (
        both(write_new, lambda s: s.switch("webserver-down")),
        ["abort", "-f"],
        1,
        "err",
        "cannot load whitelist",
    ),
    "ingest in a transaction": (transact, ["ingest", "-d", "x"], 1, "err", "Impossible to start a transaction"),
    "ingest after a crash": (killed_in_publish, ["ingest", "-d", "x"], 1, "err", CRASHED),
    "ingest of nothing there": (nothing, ["ingest", "-t", "/none", "-b", "x"], 1, "err", "Synchronization failed"),
    "ingest with a reader": (lambda s: s.hold("new_repository", "r"), ["ingest", "-d", "x"], 1, "out", "aborted."),
    "gc, no answer": (nothing, ["gc"], 1, "out", "YOU ARE ABOUT TO DELETE DATA"),
    "gc, not enabled": (without_gc, ["gc", "-f"], 1, "err", f"Garbage Collection is not enabled for {NAME}"),
    "gc in a transaction": (transact, ["gc", "-f"], 1, "err", "while in a transaction"),
    "tag in a transaction": (transact, ["tag", "-a", "x"], 1, "err", "while in a transaction"),
    "rollback in a transaction": (transact, ["rollback", "-t", "x"], 1, "err", "while in a transaction"),
    "tag is there": (
        lambda s: s.ok("tag", "-a", "v1"),
        ["tag", "-a", "v1"],
        1,
        "err",
        "Tag name 'v1' is already in use.",
    ),
    "check": (nothing, ["check"], 0, "out", "no problems found"),
    "check, dirty": (
        lambda s: s.switch("check-dirty"),
        ["check"],
        1,
        "err",
        "CATALOG PROBLEMS OR OTHER ERRORS FOUND",
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_exit_code_and_text_are_those_observed(server: Server, row: str) -> None:
    """Each situation has its exit code, and its text on its stream and not on the other."""
    arrange, arguments, rc, stream, text = TABLE[row]
    arrange(server)
    result = server.run(*arguments)
    assert result.returncode == rc, result
    here, there = (result.stdout, result.stderr) if stream == "out" else (result.stderr, result.stdout)
    assert text in here
    assert not text or text not in there


STAYS_OPEN = [
    "publish with a writer",
    "publish with a reader",
    "publish with a cwd inside",
    "publish, web server down",
    "publish, whitelist expired",
    "publish, storage full",
    "abort, web server down",
]


@pytest.mark.parametrize("row", STAYS_OPEN)
def test_a_refused_publish_keeps_the_transaction_and_can_be_repeated(server: Server, row: str) -> None:
    """When the reason has gone, the same transaction publishes all it wrote."""
    arrange, arguments, _, _, _ = TABLE[row]
    arrange(server)
    server.run(*arguments)
    assert server.in_transaction
    assert server.mounted_as == "rw"
    server.release()
    for name in ("webserver-down", "whitelist-expired", "storage-full"):
        (server.root / "switches" / name).unlink(missing_ok=True)
    server.ok("publish")
    assert (server.rdonly / "new").read_text() == "content of new"


def test_transaction_is_silent(server: Server) -> None:
    """A transaction that opens says nothing on either stream."""
    result = server.ok("transaction")
    assert (result.stdout, result.stderr) == ("", "")


def test_unknown_repository(server: Server) -> None:
    """A repository without configuration cannot be opened."""
    result = server.run("transaction", repo="other.example.org")
    assert result.returncode == 1
    assert "Unable to find the configuration file" in result.stderr


def test_root_directory_has_to_be_given(tmp_path: Path) -> None:
    """Without FAKE_CVMFS_ROOT nothing is touched and the message says why."""
    env = {"PATH": os.environ["PATH"]}
    result = subprocess.run([sys.executable, FAKE, "list"], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 99
    assert "FAKE_CVMFS_ROOT" in result.stderr


@pytest.mark.parametrize(("path", "rc"), [("missing/path", 2), ("new_repository/x", 20), ("fresh", 0)])
def test_transaction_on_a_path_needs_its_parent(server: Server, path: str, rc: int) -> None:
    """A lease path needs an existing parent directory; a refusal leaves the repository clean."""
    result = server.run("transaction", repo=f"{NAME}/{path}")
    assert result.returncode == rc
    assert ("cannot open transaction on" in result.stderr) == (rc != 0)
    assert server.in_transaction == (rc == 0)


@pytest.mark.parametrize("command", ["publish", "abort"])
def test_own_working_directory_inside(server: Server, command: str) -> None:
    """Neither publish nor abort goes on while called from inside the repository."""
    open_with(server, "new")
    result = server.run(command, "-f", cwd=server.union)
    assert result.returncode == 1
    assert f"Current working directory is in /cvmfs/{NAME}" in result.stdout
    assert server.in_transaction


def test_transaction_waits_for_the_other_to_end(server: Server) -> None:
    """With -t a transaction opens as soon as the other has ended."""
    server.ok("transaction")
    waiting = server.start("transaction", "-t", "120")
    time.sleep(0.3)
    server.ok("abort", "-f")
    assert waiting.wait(100) == 0
    assert server.in_transaction


def test_scratch_shows_what_is_written_and_rdonly_what_is_published(server: Server) -> None:
    """Within a transaction a new file is in scratch and not in rdonly; after publishing the other way round."""
    open_with(server, ".marker")
    assert (server.scratch / ".marker").exists()
    assert not (server.rdonly / ".marker").exists()
    server.ok("publish")
    assert not (server.scratch / ".marker").exists()
    assert (server.rdonly / ".marker").exists()
    assert (server.union / ".marker").exists()


def test_publish_without_changes_makes_a_revision(server: Server) -> None:
    """Nothing changed is a revision all the same."""
    server.ok("transaction")
    server.ok("publish")
    assert server.revision == 2
    assert not server.in_transaction


def test_abort_puts_everything_back(server: Server) -> None:
    """After an abort the union is what it was: content, modes, times, deleted and replaced entries."""
    add(server, "d/a", "d/b", "e/f/g", "h")
    before = snapshot(server.union)
    server.ok("transaction")
    (server.union / "d/a").write_text("in place")
    (server.union / "d/b").chmod(0o4711)
    (server.union / "e/f/g").unlink()
    (server.union / "e/f").rmdir()
    (server.union / "e/f").write_text("now a file")
    (server.union / "h").unlink()
    (server.union / "h").mkdir()
    (server.union / "h/x").mkdir()
    (server.union / "h/x/y").symlink_to("nowhere")
    os.utime(server.union, (1, 1))
    server.ok("abort", "-f")
    assert snapshot(server.union) == before == snapshot(server.rdonly)
    assert server.run("fake-verify").returncode == 0


def test_writing_in_place_does_not_reach_a_published_revision(server: Server) -> None:
    """A revision is immutable whatever the next transaction does to the same file."""
    add(server, "a")
    server.ok("transaction")
    with (server.union / "a").open("r+") as file:
        file.write("CONTENT")
    assert (server.storage / "revisions/2/a").read_text() == "content of a"
    server.ok("publish")
    assert (server.storage / "revisions/2/a").read_text() == "content of a"
    assert (server.rdonly / "a").read_text() == "CONTENT of a"


def test_a_write_outside_a_transaction_is_found(server: Server) -> None:
    """What would have been EROFS makes the next transaction fail with the fake's own code."""
    (server.union / "stray").write_text("x")
    result = server.run("transaction")
    assert result.returncode == 99
    assert f"/cvmfs/{NAME}/stray" in result.stderr
    assert not server.in_transaction


def test_what_publish_keeps(server: Server) -> None:
    """Modes with setuid and 0000, fifos, links, odd names and whole-second mtimes survive."""
    server.ok("transaction")
    top = server.union / "t"
    top.mkdir()
    for name, mode in {"suid": 0o4755, "none": 0o000, "new\nline": 0o640, "-x": 0o644, "é\udcff": 0o600}.items():
        (top / name).write_text(name.encode(errors="surrogateescape").hex())
        (top / name).chmod(mode)
        os.utime(top / name, ns=(0, 1_234_567_890_000_000_000))
    os.mkfifo(top / "fifo")
    (top / "link").symlink_to("../gone")
    (top / "sticky").mkdir(mode=0o700)
    (top / "sticky").chmod(0o1777)
    for path in [*top.iterdir(), top, server.union]:
        os.utime(path, ns=(0, path.lstat().st_mtime_ns // 10**9 * 10**9), follow_symlinks=False)
    before = snapshot(server.union)
    server.ok("publish")
    assert snapshot(server.rdonly) == before
    assert snapshot(server.union) == before


def test_sparse_files_stay_sparse(server: Server) -> None:
    """A file of one gibibyte of holes costs nothing."""
    server.ok("transaction")
    with (server.union / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.write(b"start")
    server.ok("publish")
    published = server.rdonly / "sparse"
    assert (published.stat().st_size, published.stat().st_blocks < 100) == (1 << 30, True)
    with published.open("rb") as file:
        assert file.read(6) == b"start\0"


def test_fractions_of_a_second_are_dropped(server: Server) -> None:
    """Catalogs hold seconds, unless CVMFS_ENABLE_MTIME_NS says otherwise."""
    open_with(server, "a")
    os.utime(server.union / "a", ns=(0, 5_000_000_123))
    server.ok("publish")
    assert (server.union / "a").stat().st_mtime_ns == 5_000_000_000
    server.set_config("CVMFS_ENABLE_MTIME_NS", "true")
    server.ok("transaction")
    os.utime(server.union / "a", ns=(0, 5_000_000_123))
    server.ok("publish")
    assert (server.rdonly / "a").stat().st_mtime_ns == 5_000_000_123


def test_hard_links_are_broken_up_with_a_warning_each(server: Server) -> None:
    """Names of one inode become files of their own, in the union as well."""
    open_with(server, "a")
    os.link(server.union / "a", server.union / "b")
    result = server.ok("publish")
    assert result.stderr.count("hard link") == 2
    for view in (server.union, server.rdonly):
        assert (view / "a").stat().st_ino != (view / "b").stat().st_ino
        assert (view / "b").read_text() == "content of a"


@pytest.mark.parametrize("kept", [True, False])
def test_extended_attributes_need_the_configuration(server: Server, kept: bool) -> None:
    """They are dropped without CVMFS_INCLUDE_XATTRS=true."""
    server.set_config("CVMFS_INCLUDE_XATTRS", "true" if kept else "false")
    open_with(server, "a")
    try:
        os.setxattr(server.union / "a", "user.x", b"1")
    except OSError:
        pytest.skip("no user attributes on this file system")
    server.ok("publish")
    for view in (server.union, server.rdonly):
        assert os.listxattr(view / "a") == (["user.x"] if kept else [])


def test_whiteout_names_delete(server: Server) -> None:
    """A file `.wh.X` removes X and is not published itself."""
    add(server, "d/a/b", "d/c")
    open_with(server, "d/.wh.a", "d/.wh.none")
    server.ok("publish")
    for view in (server.union, server.rdonly):
        assert [path.name for path in (view / "d").iterdir()] == ["c"]


def test_template_is_a_revision_of_its_own(server: Server) -> None:
    """The clone is visible at once, reads no content, and the publish adds the difference."""
    add(server, "d/a", "d/b/c")
    server.ok("transaction", "-T", "d=e")
    assert server.revision == 3
    assert (server.rdonly / "e/b/c").read_text() == "content of d/b/c"
    assert (server.log[-1]["files"], server.log[-1]["bytes"], server.log[-1]["entries"]) == (0, 0, 4)
    (server.union / "e/a").write_text("other")
    (server.union / "e/b/c").unlink()
    server.ok("publish")
    assert server.revision == 4
    assert (server.rdonly / "d/a").read_text() == "content of d/a"
    assert (server.rdonly / "e/a").read_text() == "other"
    assert list((server.rdonly / "e/b").iterdir()) == []


def test_abort_drops_a_clone(server: Server) -> None:
    """After `abort -f` neither the clone nor its revision is left."""
    add(server, "d/a")
    before = snapshot(server.union)
    server.ok("transaction", "-T", "d=e")
    server.ok("abort", "-f")
    assert server.revision == 2
    assert snapshot(server.union) == before == snapshot(server.rdonly)
    add(server, "x")
    assert server.revision == 3


def test_a_clone_outlives_a_crash(server: Server) -> None:
    """Killed after cloning, the new path shows the old tree to clients until someone aborts."""
    add(server, "d/a")
    killed = server.run("transaction", "-T", "d=e", FAKE_CVMFS_KILL="transaction:cloned")
    assert killed.returncode == -signal.SIGKILL
    assert (server.revision, (server.rdonly / "e/a").exists()) == (3, True)
    assert server.run("transaction").returncode == 1
    server.ok("abort", "-f")
    assert (server.revision, (server.rdonly / "e").exists(), (server.union / "e").exists()) == (2, False, False)


def test_a_refused_template_leaves_the_repository_clean(server: Server) -> None:
    """After rc 22 the next transaction opens."""
    assert server.run("transaction", "-T", "x=y").returncode == 22
    server.ok("transaction")


PUBLISH_STEPS = ["start", "locked", "hashing", "before-sign", "signed", "remounted", "done"]


@pytest.mark.parametrize("step", PUBLISH_STEPS)
@pytest.mark.parametrize("way_out", ["abort", "mount"])
def test_killed_publish_has_two_ways_out(server: Server, step: str, way_out: str) -> None:
    """At any step, `abort -f` leads back and `mount` with `publish` forward, both to a consistent repository."""
    add(server, "old")
    old = snapshot(server.rdonly)
    killed_in_publish(server, step)
    new = snapshot(server.union)
    stuck = step not in ("start", "done")
    committed = step in ("signed", "remounted", "done")
    assert server.revision == (3 if committed else 2)
    assert server.run("transaction").returncode == (1 if stuck else 17 if step == "start" else 0)
    if stuck:
        assert (server.spool / "is_publishing.lock").exists()
        assert server.run("publish").returncode == server.run("ingest", "-d", "x").returncode == 1
    if way_out == "abort":
        server.ok("abort", "-f")
    else:
        server.ok("mount")
        server.ok("publish")
    assert server.run("fake-verify").returncode == 0
    assert (server.union / "new").exists() == (committed or way_out == "mount")
    assert snapshot(server.union) == snapshot(server.rdonly)
    if not committed and way_out == "abort":
        assert snapshot(server.union) == old
    assert set(snapshot(server.rdonly)) <= set(new)
    add(server, "after")


def test_killed_after_signing(server: Server) -> None:
    """Clients see the new revision while the local state is still the old transaction."""
    killed_in_publish(server, "signed")
    assert server.revision == 2
    assert not (server.rdonly / "new").exists()
    assert (server.storage / "revisions/2/new").exists()


@pytest.mark.parametrize("step", ["before-lock", "after-lock", "mounted"])
def test_killed_transaction(server: Server, step: str) -> None:
    """Before the lock nothing happened; between lock and mount only an abort helps."""
    assert server.run("transaction", FAKE_CVMFS_KILL=f"transaction:{step}").returncode == -signal.SIGKILL
    assert server.run("transaction").returncode == {"before-lock": 0, "after-lock": 1, "mounted": 17}[step]
    server.ok("abort", "-f")
    add(server, "x")


@pytest.mark.parametrize("step", ["start", "before-discard", "after-discard"])
def test_killed_abort_can_be_repeated(server: Server, step: str) -> None:
    """An abort that was killed leaves the transaction; a second one ends it."""
    open_with(server, "new")
    assert server.run("abort", "-f", FAKE_CVMFS_KILL=f"abort:{step}").returncode == -signal.SIGKILL
    assert server.in_transaction
    server.ok("abort", "-f")
    assert not (server.union / "new").exists()
    add(server, "x")


def test_reboot_inside_a_transaction(server: Server) -> None:
    """Everything is unmounted, scratch is on disk, and `mount` with `publish` keeps what was written."""
    rebooted_in_transaction(server)
    assert list(server.union.iterdir()) == list(server.rdonly.iterdir()) == []
    assert (server.scratch / "new").exists()
    (server.union / "silently").write_text("lands below the mount")
    server.ok("mount")
    server.ok("publish")
    assert sorted(path.name for path in server.rdonly.iterdir()) == ["new", "new_repository"]


def test_terminated_publish_stays_in_the_transaction(server: Server) -> None:
    """SIGTERM: rc 1, no lock left, and a second publish succeeds."""
    open_with(server, "new")
    process = server.publish_slowly()
    process.terminate()
    assert process.wait(10) == 1
    assert server.in_transaction
    server.ok("publish")
    assert (server.rdonly / "new").exists()


def test_terminated_ingest_is_aborted(server: Server) -> None:
    """SIGTERM during ingest leaves no transaction."""
    add(server, "d/a")
    process = server.start("ingest", "-d", "d", FAKE_CVMFS_SLEEP="ingest:hashing:20")
    wait_until(lambda: (server.spool / "is_publishing.lock").exists() and not (server.union / "d").exists())
    process.terminate()
    assert process.wait(10) == 1
    assert not server.in_transaction
    assert (server.union / "d/a").exists()


def test_a_live_publish_is_not_disturbed_by_an_abort(server: Server) -> None:
    """The abort is refused and the publish goes on and succeeds."""
    open_with(server, "new")
    go_on = server.root / "go-on"
    process = server.publish_slowly(go_on)
    assert server.run("abort", "-f").returncode == 22
    go_on.touch()
    assert process.wait(60) == 0
    assert (server.rdonly / "new").exists()


def test_stale_publishing_lock_is_ignored(server: Server) -> None:
    """Only a lock that is held counts."""
    open_with(server, "new")
    (server.spool / "is_publishing.lock").touch()
    server.ok("publish")


def test_kill_the_parent_only(server: Server) -> None:
    """`parent@` kills the caller at that step; the command itself goes on to its end."""
    open_with(server, "new")
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    env = {"PATH": os.environ["PATH"], "FAKE_CVMFS_ROOT": str(server.root)}
    env["FAKE_CVMFS_KILL"] = "parent@publish:signed"
    caller = subprocess.run([sys.executable, "-c", code, sys.executable, FAKE, "publish", NAME], env=env, check=False)
    assert caller.returncode == -signal.SIGKILL
    wait_until(lambda: not server.in_transaction)
    assert (server.rdonly / "new").exists()


def test_kill_the_second_time(server: Server) -> None:
    """A count holds over several processes, and by file as well as by environment."""
    server.switch("kill", "publish:signed:2\n")
    add(server, "one")
    open_with(server, "two")
    assert server.run("publish").returncode == -signal.SIGKILL
    server.ok("abort", "-f")
    add(server, "three")


def test_fail_on_demand(server: Server) -> None:
    """A command ends as told and does nothing, here only the first time."""
    rule = "transaction#1=7:to stdout:to stderr"
    result = server.run("transaction", FAKE_CVMFS_FAIL=rule)
    assert (result.returncode, result.stdout, result.stderr) == (7, "to stdout\n", "to stderr\n")
    server.ok("transaction", FAKE_CVMFS_FAIL=rule)


def test_full_storage_stays_full_until_the_orphans_go(server: Server) -> None:
    """A failed upload leaves a chunk that uses the space; the published revision stays valid."""
    server.switch("storage-full", "100")
    server.ok("transaction")
    (server.union / "big").write_bytes(b"x" * 150)
    assert server.run("publish").returncode == 1
    (server.union / "big").write_bytes(b"x" * 50)
    assert server.run("publish").returncode == 1
    orphans = list((server.storage / "data/txn").glob("chunk.*"))
    assert orphans
    assert server.revision == 1
    for orphan in orphans:
        orphan.unlink()
    server.ok("publish")


def test_ingest_deletes_whole_trees(server: Server) -> None:
    """Several paths, separated by colons, go in one revision, and the rest is untouched."""
    add(server, "a/b/c", "a/d", "e/f", "g")
    server.ok("ingest", "-d", "a/b:e")
    assert server.revision == 3
    for view in (server.union, server.rdonly):
        assert sorted(path.name for path in view.iterdir()) == ["a", "g", "new_repository"]
        assert [path.name for path in (view / "a").iterdir()] == ["d"]
    assert (server.log[-1]["removed"], server.log[-1]["files"]) == (4, 0)


def test_ingest_of_a_missing_path_is_an_empty_revision(server: Server) -> None:
    """Nothing to delete is only a warning."""
    before = snapshot(server.union)
    result = server.ok("ingest", "-d", "none")
    assert "Warning" in result.stderr
    assert server.revision == 2
    assert snapshot(server.union) == before == snapshot(server.rdonly)


def test_ingest_of_the_root_empties_the_repository(server: Server) -> None:
    """`-d /` deletes everything, without a question."""
    add(server, "a/b")
    server.ok("ingest", "-d", "/")
    assert list(server.union.iterdir()) == list(server.rdonly.iterdir()) == []


def test_ingest_paths_go_through_a_shell(server: Server) -> None:
    """A space cuts a path; metacharacters, which would be executed, are refused by the fake."""
    add(server, "a b/c", "a/c")
    server.ok("ingest", "-d", "a b/c")
    assert sorted(path.name for path in server.rdonly.iterdir()) == ["a b", "new_repository"]
    assert server.run("ingest", "-d", "$(reboot)").returncode == 99


def test_ingest_with_a_reader_stays_in_the_transaction(server: Server) -> None:
    """Refused for a reader, ingest leaves its transaction behind, unlike its other failures."""
    server.hold("new_repository", "r")
    assert server.run("ingest", "-d", "x").returncode == 1
    assert server.in_transaction
    server.release()
    server.ok("abort", "-f")
    assert server.run("ingest", "-t", "/none", "-b", "x").returncode == 1
    assert not server.in_transaction


def test_ingest_of_a_tar(server: Server) -> None:
    """Members land below the base; whiteouts are plain files; a cut archive passes for a complete one."""
    archive = server.root / "layer.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("d/f", "d/.wh.x"):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = 3, 1_000_000_000, 0o640
            tar.addfile(member, io.BytesIO(b"abc"))
    server.ok("ingest", "-t", str(archive), "-b", "base/dir")
    assert (server.rdonly / "base/dir/d/f").read_text() == "abc"
    assert (server.rdonly / "base/dir/d/f").stat().st_mtime == 1_000_000_000
    assert (server.rdonly / "base/dir/d/.wh.x").exists()
    archive.write_bytes(archive.read_bytes()[:1024])
    server.ok("ingest", "-t", str(archive), "-b", "cut")
    assert [path.name for path in (server.rdonly / "cut/d").iterdir()] == ["f"]
    assert server.run("ingest", "-t", str(archive), "-b", "cut", "-d", "cut").returncode == 1


def test_tags(server: Server) -> None:
    """Tags are added, listed with their revision and removed; publishing tags by itself unless told not to."""
    server.ok("tag", "-a", "v1", "-m", "the first")
    add(server, "x")
    lines = [line.split() for line in server.ok("tag", "-l", "-x").stdout.splitlines()]
    assert [(line[0].split("-")[0], line[3]) for line in lines] == [("trunk", "2"), ("generic", "2"), ("v1", "1")]
    assert server.run("tag", "-r", "v1").returncode == 1
    server.ok("tag", "-f", "-r", "v1")
    assert server.run("tag", "-f", "-r", "v1").returncode == 1
    server.set_config("CVMFS_AUTO_TAG", "false")
    add(server, "y")
    assert len(server.ok("tag", "-l", "-x").stdout.splitlines()) == 2


def test_auto_tags_pin_revisions_until_they_expire(server: Server) -> None:
    """Garbage collection frees nothing while every revision is tagged."""
    for name in "abc":
        add(server, name)
    server.ok("gc", "-f", "-r", "0")
    assert len(list((server.storage / "revisions").glob("*.json"))) == 3  # revision 1 has no tag
    server.set_config("CVMFS_AUTO_TAG_TIMESPAN", "1 hour")  # in an hour: all tags are older
    server.set_config("CVMFS_AUTO_TAG", "false")
    add(server, "d")
    server.ok("gc", "-f", "-r", "0")
    assert sorted(path.name for path in (server.storage / "revisions").iterdir()) == ["4", "4.json", "5", "5.json"]
    assert sorted(path.name for path in server.rdonly.iterdir()) == ["a", "b", "c", "d", "new_repository"]


def test_rollback_makes_a_new_revision_of_the_old_content(server: Server) -> None:
    """The content of the tag comes back as the newest revision."""
    server.ok("tag", "-a", "v1")
    add(server, "x")
    server.ok("rollback", "-f", "-t", "v1")
    assert server.revision == 3
    assert not (server.union / "x").exists()
    assert server.run("fake-verify").returncode == 0


def test_counters_say_what_was_written_and_processed(server: Server) -> None:
    """The log and the revision's record count new content, not what was there already."""
    add(server, "a", "c/.cvmfscatalog")
    open_with(server, "b")
    (server.union / "a").chmod(0o600)  # copies the file up: its content is paid for again
    (server.union / "c/.cvmfscatalog").unlink()
    server.ok("publish", "-m", "why")
    line = server.log[-1]
    assert (line["argv"], line["rc"], line["revision"]) == (["publish", "-m", "why", NAME], 0, 3)
    assert (line["files"], line["bytes"], line["removed"]) == (2, len("content of a" + "content of b"), 1)
    record = json.loads((server.storage / "revisions/3.json").read_text())
    assert record["kind"] == "publish"
    assert (record["files"], record["catalogs"], record["total_entries"]) == (2, 0, 4)


def test_list_and_info(server: Server) -> None:
    """The repository is listed with its state, and described."""
    server.ok("transaction")
    env = {"PATH": os.environ["PATH"], "FAKE_CVMFS_ROOT": str(server.root)}
    listed = subprocess.run([sys.executable, FAKE, "list"], env=env, capture_output=True, text=True, check=True)
    assert listed.stdout == f"{NAME} (stratum0 / local - in transaction)\n"
    assert f"Repository name: {NAME}" in server.ok("info").stdout
