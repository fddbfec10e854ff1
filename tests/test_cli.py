"""Every command as a user meets it: what it prints where, its exit codes, and what it says about mistakes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import ProgressColumn

from cvmfs_sync.console import Bars
from cvmfs_sync.ports import Unit
from tests import support
from tests.fakes.scriptable_registry import ScriptableRegistry
from tests.support.site import Site
from tests.support.waiting import wait_until

COMMANDS = {
    "check": {"--changed-since", "--config", "--format", "--json", "--online"},
    "plan": {"--config", "--json"},
    "sync": {"--config", "--json", "--now", "--patient"},
    "run": {"--config"},
    "serve": {"--config"},
    "gc": {"--config", "--dry-run", "--force", "--json"},
    "fsck": {"--config", "--content", "--json", "--repair"},
    "status": {"--config", "--json"},
    "where": {"--config"},
    "export": {"--config", "--format", "--key", "--output"},
    "site": {"--config", "--json", "--out", "--url"},
    "import": set(),
    "unpack": {"--insecure", "--platform", "--sandbox"},
    "squash": {"--insecure", "--platform", "--output"},
}
IMAGE = support.Image(
    (
        support.layer(support.directory("etc"), support.file("etc/motd", "hello\n"), support.symlink("m", "etc/motd")),
        support.layer(support.directory("closed", 0o700), support.file("secret", "s", 0o600), compression="zstd"),
    ),
    cmd=("/bin/sh",),
)


@pytest.fixture
def layout(tmp_path: Path) -> str:
    """An image on disk."""
    return f"oci:{support.write_layout(tmp_path / 'images', {'1': IMAGE})}:1"


@pytest.fixture
def site(tmp_path: Path, layout: str) -> Site:
    """An installation whose list asks for that image."""
    site = Site(tmp_path / "site")
    site.wish(layout)
    return site


def blob(content: str = "1") -> bytes:
    """A small layer."""
    return support.layer(support.file("a", content)).tar


# Help, usage, configuration


def test_help_names_every_command_and_option() -> None:
    """The overview has a whole sentence for each command, and each command's help has all its options."""
    overview = support.run_cli("--help", env={"COLUMNS": "80"}).ok().stdout
    assert "..." not in overview.replace("[ARGS]...", "")
    listed = re.findall(r"^  ([a-z]+)  +([A-Z].*)$", overview, re.MULTILINE)
    assert set(COMMANDS) == {name for name, _ in listed}
    for name, sentence in listed:
        assert sentence.endswith("."), name
    for command, options in COMMANDS.items():
        text = support.run_cli(command, "--help").ok().stdout
        found = set(re.findall(r"(--[a-z-]+)", text.partition("Options:")[2]))
        assert found - {"--help"} == options, command
    assert support.run_cli("--version").ok().stdout.startswith("cvmfs-sync ")
    assert support.run_cli().ok().stdout == support.run_cli("--help").stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["sync", "--bogus"], "No such option: --bogus"),
        (["where"], "Missing argument 'IMAGE'"),
        (["unpack", "alpine"], "Missing argument 'DEST'"),
        (["unpack", "alpine", "x", "y"], "unexpected extra argument"),
        (["unpack", "Not/An/Image", "x"], "'Not/An/Image' is not an image reference"),
        (["unpack", "alpine", "x", "--platform", "amd64"], "not a platform"),
        (["squash", "docker://alpine"], "without a scheme"),
        (["sync"], "there is no such configuration file"),
        (["status", "-c", "nowhere.yaml"], "nowhere.yaml: there is no such configuration file"),
        (["check", "nowhere.yaml"], "nowhere.yaml: the image list cannot be read"),
        (["check", "."], "Is a directory"),
        (["--config", "x", "sync"], "No such option: --config"),
    ],
)
def test_wrong_usage_is_exit_code_2(args: list[str], words: str, tmp_path: Path) -> None:
    """The message says what is wrong, stdout stays empty, and nothing is made."""
    result = support.run_cli(*args, cwd=tmp_path).ok(2)
    assert words in result.stderr
    assert result.stderr.startswith("cvmfs-sync: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_configuration_lists_its_mistakes(site: Site) -> None:
    """All at once, with file and line, exit code 2 from every command that reads it."""
    site.config.write_text("layout: fancy\nstate_dirs: x\nrepository:\n  backend: cvmfs\n")
    path = site.home / "cvmfs-sync.yaml"
    for command in ("sync", "plan", "status", "run"):
        result = support.run_cli(command, "-c", path).ok(2)
        for words in ("cvmfs-sync.yaml:1", "layout", "cvmfs-sync.yaml:2", "state_dirs", "name"):
            assert words in result.stderr, (command, words)
    assert (
        support.run_cli("sync", "-c", path, env={"CVMFS_SYNC_LAYOT": "osg"}).ok(2).stderr.count("CVMFS_SYNC_LAYOT") == 1
    )


def test_a_wrong_list_stops_everything(site: Site) -> None:
    """All its errors are told, exit code 2, and what is published stays as it is."""
    site.sync()
    before = site.fingerprint()
    (site.home / "image-list.yaml").write_text("version: 1\nimages:\n- Not/Good\n- alpine\n- image: x\n  tag: y\n")
    for command in ("sync", "plan", "status"):
        error = site.run(command, rc=2).stderr
        assert "image-list.yaml:3" in error
        assert "image-list.yaml:6" in error
    (site.home / "image-list.yaml").unlink()
    assert "image-list.yaml" in site.run("sync", rc=2).stderr
    assert site.fingerprint() == before


# check


def test_check_tells_all_errors_at_once(tmp_path: Path) -> None:
    """Text and JSON say the same; 0 is a valid list, warnings are no errors, 1 is an error."""
    path = tmp_path / "list.yaml"
    path.write_text("version: 1\nimages:\n- debian:12\n- alpine\n")
    good = support.run_cli("check", path).ok()
    assert f"{path}: valid, 2 images, 1 warning" in good.stdout
    document = support.run_cli("check", "--json", path).ok().json
    assert (document["valid"], document["images"]) == (True, 2)
    assert [(p["line"], p["severity"]) for p in document["problems"]] == [(4, "warning")]
    path.write_text(
        "version: 1\nimages:\n- debian:12\n- ghcr.io/Upper/x\n- image: a:1\n  platforms: [x]\n  nonsense: 1\n"
    )
    bad = support.run_cli("check", path).ok(1)
    document = support.run_cli("check", "--json", path).ok(1).json
    assert document["valid"] is False
    assert [p["line"] for p in document["problems"] if p["severity"] == "error"] == [4, 6, 7]
    for problem in document["problems"]:
        assert f"{path}:{problem['line']}" in bad.stdout
    assert "3 errors" in bad.stdout


# sync, status, where


def test_sync_prints_what_happened(site: Site, layout: str, registry: ScriptableRegistry) -> None:
    """A table of what changed, a line of counts, errors on stderr; -v adds a log line for each unit of work."""
    site.insecure = (registry.host,)
    site.wish(layout, f"{registry.host}/no/such:1")
    result = site.run("sync", rc=1)
    assert re.search(rf"^published +{re.escape(layout)} +{IMAGE.digest[7:19]}", result.stdout, re.MULTILINE)
    assert "1 published, 0 linked, 0 unchanged, 1 failed, 0 skipped" in result.stdout
    assert f"cvmfs-sync: {registry.host}/no/such:1: not found" in result.stderr
    assert "  to do:    " in result.stderr
    log = support.run_cli("-v", "sync", "-c", site.config).ok(1).stderr
    assert f"failed image={registry.host}/no/such:1" in log
    assert len(support.run_cli("-vv", "sync", "-c", site.config).ok(1).stderr) > len(log)


def test_sync_takes_the_names_of_images(site: Site, layout: str) -> None:
    """Only those are asked for; a name that the list does not have is a usage error."""
    other = layout.replace(":1", ":2")
    support.write_layout(Path(layout[4:-2]), {"2": IMAGE})
    site.wish(layout, other)
    assert site.sync(other) == {other: "published"}
    assert "alpine:latest is not in the image list" in site.run("sync", "alpine", rc=2).stderr
    assert site.sync() == {layout: "linked", other: "unchanged"}


def test_status_tells_every_state(site: Site, layout: str, registry: ScriptableRegistry) -> None:
    """published, failed, pending, unlisted; text and JSON; of images that nobody asked for, too."""
    site.insecure = (registry.host,)
    gone, late = f"{registry.host}/gone:1", f"{registry.host}/late:1"
    unlisted = layout.replace(":1", ":old")
    support.write_layout(Path(layout[4:-2]), {"old": IMAGE.but(user="x")})
    site.wish(unlisted)
    site.sync()
    site.wish(layout, gone)
    site.sync(rc=1)
    site.wish({"image": layout, "description": "what it is for"}, gone, late)
    images = site.run("status", "--json").json["images"]
    assert {each["image"]: each["state"] for each in images} == {
        layout: "published", gone: "failed", late: "pending", unlisted: "unlisted",
    }  # fmt: skip
    first = images[0]
    assert first["digest"] == IMAGE.digest
    assert first["path"] == f"{site.root}/oci{layout[4:]}"
    assert first["description"] == "what it is for"
    assert first["size"] == len("hello\n" + "s") + sum(
        path.stat().st_size for path in Path(first["path"]).glob(".singularity.d/**/*") if path.is_file()
    )
    assert images[1]["failure"]["reason"]
    text = site.run("status").stdout
    assert re.search(rf"^pending +{re.escape(late)} +- +- +-$", text, re.MULTILINE)
    assert f"{gone}: failed once, at" in text
    (only,) = site.run("status", "--json", "alpine").json["images"]
    assert (only["image"], only["state"], only["digest"]) == ("docker.io/library/alpine:latest", "unlisted", None)


def test_status_only_looks(site: Site, layout: str) -> None:
    """It makes no state directory, and works for a user who may not write one."""
    site.run("status")
    assert not (site.home / "state").exists()
    site.sync()
    before = sorted(path.name for path in (site.home / "state").iterdir())
    (site.home / "state/state.sqlite").write_bytes(b"damaged" * 1000)
    assert site.run("status", "--json").json["images"][0]["state"] == "published"
    assert before == sorted(path.name for path in (site.home / "state").iterdir())


def test_where_is_a_path_or_a_transport(site: Site, layout: str) -> None:
    """What is printed can be given to `apptainer run` in both cases."""
    assert site.run("where", layout).stdout == f"{layout}\n"
    site.sync()
    path = Path(site.run("where", layout).stdout.strip())
    assert (path / ".singularity.d/runscript").exists()
    assert site.run("where", "alpine").stdout == "docker://docker.io/library/alpine:latest\n"


# What stops a cycle


def test_the_state_directory_is_needed(site: Site, tmp_path: Path) -> None:
    """One that can't be made is exit code 3, and nothing is published."""
    (tmp_path / "file").write_text("")
    site.settings["state_dir"] = str(tmp_path / "file/state")
    error = site.run("sync", rc=3).stderr
    assert f"{tmp_path}/file/state" in error
    assert not site.root.exists()


def test_two_instances_do_not_work_at_once(site: Site) -> None:
    """The second is told the first one's process and ends with exit code 3."""
    (site.home / "state").mkdir()
    with (site.home / "state/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        error = site.run("sync", rc=3).stderr
    assert "another cvmfs-sync is at work" in error
    assert "4711" in error
    site.sync()


def test_somebody_elses_transaction_is_left_alone(fake_cvmfs: support.FakeCvmfs, tmp_path: Path, layout: str) -> None:
    """Exit code 3, the other images are not tried in vain, and the operator's work is still there."""
    site = Site(tmp_path / "site", fake_cvmfs)
    other = layout.replace(":1", ":2")
    support.write_layout(Path(layout[4:-2]), {"2": IMAGE.but(user="x")})
    site.wish(layout, other)
    assert fake_cvmfs.run("transaction").returncode == 0
    (fake_cvmfs.root / "operator").write_text("half done")
    assert site.sync(rc=3) == {layout: "failed", other: "skipped"}
    assert "somebody else has a transaction open" in site.report["stopped"]["what"]
    assert fake_cvmfs.in_transaction
    assert (fake_cvmfs.root / "operator").read_text() == "half done"
    assert "let its owner publish or abort it" in site.run("sync", rc=3).stderr
    assert fake_cvmfs.run("publish").returncode == 0
    assert set(site.sync().values()) == {"published"}
    assert (fake_cvmfs.root / "operator").read_text() == "half done"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    support.require_root()
    path = tmp_path / "small"
    path.mkdir()
    try:
        support.run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path)
    except AssertionError as error:
        support.missing(f"no tmpfs can be mounted: {error}")
    yield path
    support.run("umount", "-l", path)


def test_a_full_repository_keeps_what_it_has(site: Site, small: Path, layout: str) -> None:
    """Exit code 3 with the file system's name, the old image stays, the next sync with space goes on."""
    site.settings["repository"] = {"root": str(small / "published")}
    site.root.parent.mkdir(exist_ok=True)
    (site.home / "published").symlink_to(small / "published")
    site.sync()
    large = support.layer(support.file("large", os.urandom(3 << 20)))
    support.write_layout(Path(layout[4:-2]), {"1": IMAGE.but(layers=(*IMAGE.layers, large))})
    assert site.sync(rc=3) == {layout: "failed"}
    assert site.report["stopped"]["type"] == "NoSpace"
    assert str(small) in json.dumps(site.report["stopped"])
    assert site.target(f"oci{layout[4:]}") == IMAGE.digest[7:]
    assert not (small / "published/.cvmfs-sync/staging").exists()
    support.run("mount", "-o", "remount,size=20m", small)
    assert site.sync() == {layout: "published"}


def test_a_small_spool_fails_only_what_does_not_fit(
    site: Site, small: Path, layout: str, registry: ScriptableRegistry
) -> None:
    """An image that is too large for the spool is exit code 3, and others are published all the same."""
    site.insecure = (registry.host,)
    site.settings["spool_dir"] = str(small)
    registry.add_image("org/large", "1", [blob("x" * 100_000)])
    large = f"{registry.host}/org/large:1"
    site.wish(large, layout)
    assert site.sync(rc=3) == {large: "failed", layout: "published"}
    assert "spool_dir" in site.error(large)["todo"]
    assert site.report["stopped"] is None


def test_a_read_only_target_is_named(site: Site, small: Path, layout: str) -> None:
    """Exit code 3, with the path."""
    support.run("mount", "-o", "remount,ro", small)
    site.settings["repository"] = {"root": str(small / "published")}
    error = site.run("sync", rc=3).stderr
    assert str(small / "published") in error
    assert "Read-only file system" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sync_leaves_nothing_open(
    number: signal.Signals, fake_cvmfs: support.FakeCvmfs, tmp_path: Path, layout: str
) -> None:
    """Ctrl-C and SIGTERM in the middle of a transaction: exit code 130, aborted, and the next sync does it all."""
    site = Site(tmp_path / "site", fake_cvmfs)
    site.wish(layout)
    fake_cvmfs.switch("sleep", "publish:locked:30")
    command = support.cli_command("sync", "-c", site.config)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr
    spool = fake_cvmfs.spool / "is_publishing.lock"
    wait_until(lambda: fake_cvmfs.in_transaction and spool.exists())
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "interrupted" in error
    assert "Traceback" not in error
    fake_cvmfs.unswitch("sleep")
    assert not fake_cvmfs.in_transaction
    assert not (fake_cvmfs.root / f"oci{layout[4:]}").exists()
    assert site.sync() == {layout: "published"}


def test_an_interrupted_download_ends_at_once(site: Site, registry: ScriptableRegistry) -> None:
    """Ctrl-C does not wait for a large layer: exit code 130, and no half of it stays."""
    site.insecure = (registry.host,)
    registry.add_image("org/large", "1", [blob("x" * (8 << 20))])
    site.wish(f"{registry.host}/org/large:1")
    command = support.cli_command("sync", "-c", site.config)
    process: list[subprocess.Popen[bytes]] = []
    registry.before("/blobs/.*", lambda: process[0].send_signal(signal.SIGINT) if len(registry.requests) > 3 else None)
    process.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    _, error = process[0].communicate(timeout=60)
    assert (process[0].returncode, b"Traceback" in error) == (130, False), error
    assert not site.links()
    assert not list((site.home / "spool/partial").glob("*"))


# unpack


def test_unpack_makes_a_directory(layout: str, tmp_path: Path) -> None:
    """Also where its parents are missing, and where an empty one is there; modes are the image's."""
    for path in (tmp_path / "a/b/c", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        assert support.run_cli("unpack", layout, path).ok().stdout == ""
        assert (path / "etc/motd").read_text() == "hello\n"
        assert (path / "m").readlink() == Path("etc/motd")
        assert (path / "secret").stat().st_mode & 0o7777 == 0o600
        assert not (path / ".singularity.d").exists()
        assert sorted(each.name for each in path.parent.iterdir() if "cvmfs-sync" in each.name) == []
    support.run_cli("unpack", "--sandbox", layout, tmp_path / "sandbox").ok()
    assert (tmp_path / "sandbox/secret").stat().st_mode & 0o7777 == 0o604
    assert (tmp_path / "sandbox/.singularity.d/runscript").exists()


def test_unpack_takes_a_registry_and_a_platform(registry: ScriptableRegistry, tmp_path: Path) -> None:
    """--insecure talks plain HTTP, and without it the message says so; --platform chooses."""
    arm = registry.add_image("org/tool", None, [blob("arm")], platform="linux/arm64")
    registry.add_index("org/tool", "1", {"linux/arm64": arm})
    image = f"{registry.host}/org/tool:1"
    support.run_cli("unpack", "--insecure", "--platform", "linux/arm64", image, tmp_path / "arm").ok()
    assert (tmp_path / "arm/a").read_text() == "arm"
    error = support.run_cli("unpack", "--insecure", image, tmp_path / "amd").ok(1).stderr
    assert "not available for linux/amd64" in error
    assert "linux/arm64" in error
    assert "--insecure" in support.run_cli("unpack", image, tmp_path / "tls").ok(1).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["arm"]


@pytest.mark.parametrize("what", ["file", "full", "link", "cwd"])
def test_unpack_overwrites_nothing(what: str, layout: str, tmp_path: Path) -> None:
    """A file, a directory with something in it, a link, the working directory: exit code 2 and all stays."""
    work = tmp_path / "work"
    path = work / what
    path.mkdir(parents=True)
    if what == "full":
        (path / "precious").write_text("x")
    elif what in ("file", "link"):
        path.rmdir()
        path.write_text("precious") if what == "file" else path.symlink_to(work)
    result = support.run_cli("unpack", layout, "." if what == "cwd" else path, cwd=path if what == "cwd" else work).ok(
        2
    )
    assert str(path) in result.stderr
    assert [each.name for each in work.iterdir()] == [what]


def test_an_unpack_that_fails_leaves_nothing(layout: str, registry: ScriptableRegistry, tmp_path: Path) -> None:
    """Not even the parents that it made; exit codes tell the image's failures from the machine's."""
    work = tmp_path / "work"
    work.mkdir()
    assert "not found" in support.run_cli("unpack", "--insecure", f"{registry.host}/no:1", work / "a/b").ok(1).stderr
    registry.add_image("bad", "1", [blob(), b"no tar" * 300])
    support.run_cli("unpack", "--insecure", f"{registry.host}/bad:1", work / "a/b").ok(1)
    missing = support.run_cli("unpack", f"oci:{tmp_path}/nowhere:1", work / "a").ok(1).stderr
    assert "no such directory" in missing
    (work / "file").write_text("")
    assert f"{work}/file" in support.run_cli("unpack", layout, work / "file/below").ok(3).stderr
    assert [path.name for path in work.iterdir()] == ["file"]


def test_an_interrupted_unpack_leaves_nothing(registry: ScriptableRegistry, tmp_path: Path) -> None:
    """Ctrl-C while layers come: exit code 130, and the directory is as it was before."""
    registry.add_image("org/large", "1", [blob(), blob("x" * (8 << 20))])
    image, work = f"{registry.host}/org/large:1", tmp_path / "work"
    work.mkdir()
    process: list[subprocess.Popen[bytes]] = []
    registry.before("/blobs/.*", lambda: process[0].send_signal(signal.SIGINT) if len(registry.requests) > 3 else None)
    command = support.cli_command("unpack", "--insecure", image, work / "a/b")
    process.append(subprocess.Popen(command, stderr=subprocess.PIPE))
    _, error = process[0].communicate(timeout=60)
    assert (process[0].returncode, b"Traceback" in error) == (130, False), error
    assert list(work.iterdir()) == []


# squash


def test_squash_writes_a_tar(layout: str, tmp_path: Path) -> None:
    """To stdout or a file, the same bytes; a file that is there is replaced when the new one is whole."""
    path = tmp_path / "flat.tar"
    path.write_text("old")
    support.run_cli("squash", layout, "-o", path).ok()
    with tarfile.open(path) as tar:
        assert {"etc/motd", "m", "secret", "closed"} <= set(tar.getnames())
    result = subprocess.run(support.cli_command("squash", layout), capture_output=True, check=True)
    assert result.stdout == path.read_bytes()
    assert support.run_cli("squash", layout.replace(":1", ":2"), "-o", path).ok(1).stderr
    assert path.read_bytes() == result.stdout
    assert "is a directory" in support.run_cli("squash", layout, "-o", tmp_path).ok(2).stderr
    assert "nowhere" in support.run_cli("squash", layout, "-o", tmp_path / "nowhere/x").ok(3).stderr
    assert "temporary files" in support.run_cli("squash", layout, "-o", path, env={"TMPDIR": "/nowhere"}).ok(3).stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["flat.tar", "images"]


def test_squash_does_not_replace_devices_and_pipes(layout: str, tmp_path: Path) -> None:
    """A named pipe or a device is written to, a link is followed: `-o /dev/null` must not become a file."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    with subprocess.Popen(support.cli_command("squash", layout, "-o", pipe)) as process:
        content = pipe.read_bytes()
    assert process.returncode == 0
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert "etc/motd" in tar.getnames()
    assert pipe.is_fifo()
    (tmp_path / "real").write_text("")
    link.symlink_to("real")
    support.run_cli("squash", layout, "-o", link).ok()
    assert link.is_symlink()
    assert (tmp_path / "real").read_bytes() == content


def test_output_that_nobody_reads_is_no_traceback(layout: str, site: Site, tmp_path: Path) -> None:
    """A pipe that is closed early, and a full device: one line at most, and not exit code 0."""
    large = IMAGE.but(layers=(support.layer(support.file("large", os.urandom(4 << 20))),))
    support.write_layout(Path(layout[4:-2]), {"1": large})
    for command in (["squash", layout], ["status", "-c", str(site.config)], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        closed = subprocess.run(
            support.cli_command(*command), stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(writer)
        assert (closed.returncode, closed.stderr) == (1, ""), command
        with Path("/dev/full").open("wb") as full:
            error = subprocess.run(
                support.cli_command(*command), stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert error.returncode == 3, (command, error)
        assert error.stderr.count("\n") <= 3
        assert "No space left on device" in error.stderr


# Terminals, unexpected ends


def in_terminal(*args: str | os.PathLike[str], stdout: int | None = None) -> tuple[int, str]:
    """Run with stderr, and stdout if it is not given, on a terminal; exit code and what the terminal shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, 0x5414, b"\x32\x00\xc8\x00\x00\x00\x00\x00")  # TIOCSWINSZ: 50 lines, 200 columns
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        support.cli_command(*args), stdin=slave, stdout=slave if stdout is None else stdout, stderr=slave,
        env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the last one who could write has gone
        while piece := os.read(master, 65536):
            shown += piece
    os.close(master)
    return process.wait(60), shown.decode(errors="replace")


def test_progress_is_for_terminals_only(site: Site, registry: ScriptableRegistry, tmp_path: Path) -> None:
    """Bars are on stderr, and only if that is a terminal; stdout has the results and nothing else."""
    site.insecure = (registry.host,)
    registry.add_image("org/tool", "1", [blob("x" * 100_000)])
    registry.delay("/blobs/", 0.3)
    tool = f"{registry.host}/org/tool:1"
    site.wish(tool)
    with (tmp_path / "out").open("wb") as out:
        code, shown = in_terminal("sync", "--json", "-c", site.config, stdout=out.fileno())
    assert code == 0
    assert json.loads((tmp_path / "out").read_text())["images"][0]["result"] == "published"
    assert "fetching" in shown
    assert "\x1b[" in shown
    code, shown = in_terminal("status", "-c", site.config)
    assert f"{site.root}/{tool}" in shown
    assert in_terminal("squash", "--insecure", tool)[0] == 2
    result = support.run_cli("unpack", "--insecure", tool, tmp_path / "quiet").ok()
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize(("unit", "amount"), [("bytes", "2/3 bytes"), ("images", "2/3")])
def test_bars_count_bytes_or_images(unit: Unit, amount: str) -> None:
    """Three registries are not three bytes."""
    bars = Bars()
    bars.start("working", 3, unit)
    bars.advance(2)
    (task,) = bars._bars.tasks
    assert amount in [str(column(task)) for column in bars._bars.columns if isinstance(column, ProgressColumn)]


def test_words_of_others_do_nothing_to_a_terminal(site: Site, registry: ScriptableRegistry) -> None:
    """Escape sequences in what a registry answers are shown, not obeyed."""
    site.insecure = (registry.host,)
    document = {"schemaVersion": 2, "mediaType": "\x1b]0;owned\x07\u202e", "layers": []}
    registry.put_manifest("org/evil", "1", json.dumps(document).encode(), "text/plain")
    site.wish(f"{registry.host}/org/evil:1")
    for shown in (site.run("sync", rc=1), site.run("status"), site.run("plan", rc=1)):
        assert "owned" in shown.stdout + shown.stderr
        assert not set("\x1b\x07\u202e") & set(shown.stdout + shown.stderr)


def test_json_is_json_whatever_the_locale(site: Site, layout: str) -> None:
    """Texts beyond ASCII do not break a run whose output is ASCII."""
    site.wish({"image": layout, "description": "für Übungen"})
    site.sync()
    result = support.run_cli("status", "--json", "-c", site.config, env={"PYTHONIOENCODING": "ascii"}).ok()
    assert result.json["images"][0]["description"] == "für Übungen"


def test_a_defect_is_one_line_to_report(layout: str) -> None:
    """An exception that nobody expected: its type, what to do, exit code 70; the traceback with -vv only."""
    program = (
        "import sys\n"
        "from cvmfs_sync import cli\n"
        "def broken(*_): raise ZeroDivisionError('division by zero')\n"
        "cli.single.parse_image = broken\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    for options, traceback in (([], False), (["-vv"], True)):
        command = [sys.executable, "-c", program, *options, "unpack", layout, "x"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 70
        assert "ZeroDivisionError: division by zero" in result.stderr
        assert "report it" in result.stderr
        assert ("Traceback" in result.stderr) is traceback


def test_limits_of_the_machine_are_no_defects(site: Site) -> None:
    """A file size limit, as a batch system sets one: exit code 3 and the name of what could not be written."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    command = support.cli_command("sync", "-c", site.config)
    result = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert result.returncode == 3, result
    assert "Traceback" not in result.stderr
