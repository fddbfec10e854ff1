"""What is in deploy/ works as it stands there: units, schedules, directories, rotation, manifest and image.

No test starts a service manager: one that runs as root changes the machine it runs on.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvmfs_sync import __version__, config, imagelist
from cvmfs_sync.units import parse_duration, parse_size
from tests.support import (
    Image,
    cli_command,
    directory,
    file,
    layer,
    missing,
    require,
    require_root,
    run,
    run_cli,
    write_layout,
)
from tests.support.debian import python_rootfs
from tests.support.waiting import wait_until

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SERVICES = sorted(DEPLOY.glob("*.service"))
UNITS = [*SERVICES, *sorted(DEPLOY.glob("*.timer"))]
PROGRAM = "/opt/cvmfs-sync/.venv/bin/cvmfs-sync"
CONFIGURATION = "/etc/cvmfs-sync/cvmfs-sync.yaml"


def settings(unit: Path) -> dict[str, list[str]]:
    """What a unit sets, by name."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"(?m)^(\w+)=(.*)$", unit.read_text()):
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*")), ids=lambda path: path.name)
def test_every_file_is_mentioned(path: Path) -> None:
    """README.md, docs/ or deploy/README.md names each file of deploy/, so that an operator knows what it is for."""
    pages = [ROOT / "README.md", DEPLOY / "README.md", *(ROOT / "docs").glob("*.md")]
    if path.is_file() and path.name != "README.md":
        assert any(path.name in page.read_text() for page in pages)


def test_every_configuration_is_valid() -> None:
    """Each configuration and image list of deploy/ is one that the program takes, without a warning."""
    configurations = sorted(DEPLOY.rglob("cvmfs-sync*.yaml"))
    assert configurations
    for path in configurations:
        config.load(path, {})
    for path in [ROOT / "image-list.yaml", *DEPLOY.rglob("image-list*.yaml")]:
        assert imagelist.load(path).problems == ()
        run_cli("check", path).ok()


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, the executable being one that is here."""
    require("systemd-analyze")
    for each in UNITS:  # a timer's service is looked for beside it
        (tmp_path / each.name).write_text(each.read_text().replace(PROGRAM, sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_service_lets_cvmfs_server_work(unit: Path) -> None:
    """No service hides mounts from the host, takes privileges from its setuid helper, or kills what it left."""
    found = settings(unit)
    assert found["PrivateTmp"] == found["NoNewPrivileges"] == ["no"]
    assert found["KillMode"] == ["process"]
    assert int(found["LimitNOFILE"][0]) >= 4096
    harmful = re.compile(
        r"(Private(?!Tmp)|Protect|Restrict(?!Prevent)|ReadOnly|ReadWrite|Inaccessible|Bind|Temporary|SystemCall|Dynamic"
        r"|LockPers|MemoryDeny|IPAddress|RootDir)"
    )
    assert [name for name in found if harmful.match(name) and name != "RestartPreventExitStatus"] == []


def test_services_are_hardened_alike() -> None:
    """What the daemon may not, the one-shot services may not, and they work in the same places."""
    different = {"Type", "ExecStart", "ExecReload", "WatchdogSec", "Restart", "RestartSec", "RestartPreventExitStatus"}
    different |= {"SuccessExitStatus", "Description", "After", "WantedBy"}
    found = [{name: value for name, value in settings(unit).items() if name not in different} for unit in SERVICES]
    assert len(found) == 3
    assert found[0] == found[1] == found[2]


def test_drop_in_takes_back_what_only_cvmfs_server_needs() -> None:
    """Each setting of the services that stands for the setuid helper is another one in the drop-in for directories."""
    service, drop_in = settings(DEPLOY / "cvmfs-sync.service"), settings(DEPLOY / "cvmfs-sync-directory.conf")
    for name in ("NoNewPrivileges", "PrivateTmp", "CapabilityBoundingSet", "KillMode"):
        assert drop_in[name] != service[name]


@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.name)
def test_exec_start_runs(unit: Path, tmp_path: Path) -> None:
    """The command of each service, with a configuration in its place, is one that works, and its --help, too."""
    (command,) = settings(unit)["ExecStart"]
    argv = shlex.split(command)
    assert argv[0] == PROGRAM
    home = tmp_path / "cvmfs-sync.yaml"
    home.write_text("metrics: {listen: null}\n")
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: ['oci:layout:1']\n")
    write_layout(tmp_path / "layout", {"1": Image((layer(file("hello", "1")),))})
    run_cli(*argv[1:], "--help").ok()
    arguments = [home if each == CONFIGURATION else each for each in argv[1:]]
    assert arguments != argv[1:]
    link = tmp_path / f"published/oci{tmp_path}/layout:1"
    if settings(unit)["Type"] == ["oneshot"]:
        if "sync" not in argv:
            run_cli("sync", "--config", home).ok()
        run_cli(*arguments).ok()
        assert link.exists()
        return
    with subprocess.Popen(cli_command(*arguments), stderr=subprocess.DEVNULL) as process:
        wait_until(link.exists, lambda: "the daemon publishes nothing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("name", ["cvmfs-sync.service", "cvmfs-sync-directory.conf"])
def test_page_tells_the_exposure(name: str, tmp_path: Path) -> None:
    """The page has what `systemd-analyze security` says, where it is of the version that the page names."""
    require("systemd-analyze")
    page = (ROOT / "docs/operations.md").read_text()
    told = re.search(rf"`{re.escape(name)}`[^|]*\|\s*([0-9.]+) [A-Z]+", page)
    version = re.search(r"systemd (\d+) calls", page)
    assert told
    assert version
    service = tmp_path / "cvmfs-sync.service"
    text = (DEPLOY / "cvmfs-sync.service").read_text()
    service.write_text(text if name == service.name else f"{text}\n{(DEPLOY / name).read_text()}")
    if run("systemctl", "--version").split()[1] != version[1]:
        pytest.skip(f"the page is about systemd {version[1]}")
    said = run("systemd-analyze", "security", "--offline=true", "--no-pager", service)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", said)
    assert found
    assert told[1] == found[1]


def test_cron_lines_do_their_work(tmp_path: Path) -> None:
    """Each line of the crontab, its places moved, ends with success and writes the log that is rotated."""
    (tmp_path / "cvmfs-sync.yaml").write_text("")
    (tmp_path / "image-list.yaml").write_text("version: 1\nimages: ['oci:layout:1']\n")
    write_layout(tmp_path / "layout", {"1": Image((layer(file("hello", "1")),))})
    text = (DEPLOY / "cvmfs-sync.cron").read_text()
    lines = re.findall(r"(?m)^((?:[\d*/,-]+ +){5})(\S+) +(.*)$", text)
    assert [user for _, user, _ in lines] == ["cvmfs-sync", "cvmfs-sync"]
    rotated = re.search(r"(?m)^(\S+)/\*\.log \{", (DEPLOY / "cvmfs-sync.logrotate").read_text())
    assert rotated
    environment = dict(re.findall(r'(?m)^([A-Z_]+)="?(.*?)"?$', text))
    environment["CVMFS_SYNC_CONFIG"] = str(tmp_path / "cvmfs-sync.yaml")
    for _, _, command in lines:
        assert "%" not in command  # cron's newline
        assert f">>{rotated[1]}/" in command
        moved = command.replace(PROGRAM, f"{sys.executable} -m cvmfs_sync").replace(rotated[1], str(tmp_path))
        run("env", "-i", *(f"{name}={value}" for name, value in environment.items()), "/bin/sh", "-c", moved, cwd=ROOT)
    assert (tmp_path / f"published/oci{tmp_path}/layout:1").is_symlink()
    assert "published" in (tmp_path / "sync.log").read_text()
    assert (tmp_path / "gc.log").exists()


def test_logs_are_rotated(tmp_path: Path) -> None:
    """The rotation takes the file as it is, its places moved, and a writer at work goes on in the emptied log."""
    require("logrotate")
    text = (DEPLOY / "cvmfs-sync.logrotate").read_text()
    text = text.replace("/var/log/cvmfs-sync", str(tmp_path)).replace("su cvmfs-sync cvmfs-sync", "su root root")
    rules = tmp_path / "rules"
    rules.write_text(text)
    log = tmp_path / "sync.log"
    with log.open("a") as writer:
        writer.write("before\n")
        writer.flush()
        run("logrotate", "--force", "--state", tmp_path / "state", rules)
        writer.write("after\n")
    assert (tmp_path / "sync.log.1").read_text() == "before\n"
    assert log.read_text() == "after\n"


def test_users_and_directories(tmp_path: Path) -> None:
    """Below a root of their own, sysusers.d makes the units' user, and tmpfiles.d its directories with their modes."""
    require("systemd-sysusers", "systemd-tmpfiles")
    require_root()
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", DEPLOY / "cvmfs-sync.sysusers")
    (user,) = (line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines() if "cvmfs-sync" in line)
    assert user[0] == settings(DEPLOY / "cvmfs-sync.service")["User"][0]
    (tmp_path / "etc/cvmfs-sync/docker").mkdir(parents=True)
    (tmp_path / "etc/cvmfs-sync/docker/config.json").write_text("{}")
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", DEPLOY / "cvmfs-sync.tmpfiles")
    for path, mode, owner in (
        ("etc/cvmfs-sync/docker/config.json", 0o640, 0),
        ("etc/cvmfs-sync/docker", 0o750, 0),
        ("var/lib/cvmfs-sync", 0o755, int(user[2])),
        ("var/cache/cvmfs-sync", 0o755, int(user[2])),
        ("var/log/cvmfs-sync", 0o755, int(user[2])),
    ):
        status = (tmp_path / path).stat()
        assert (path, status.st_mode & 0o7777, status.st_uid) == (path, mode, owner)


def manifests() -> dict[str, dict[str, Any]]:
    """The documents of the Kubernetes manifest by kind and name."""
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in documents}


def test_kubernetes_manifest_hangs_together(tmp_path: Path) -> None:
    """Names lead to what is there, one pod publishes at a time, without privileges; its configuration is valid."""
    documents = manifests()
    deployment = documents["Deployment/cvmfs-sync"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    template = deployment["template"]
    assert deployment["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert documents["Service/cvmfs-sync"]["spec"]["selector"] == template["metadata"]["labels"]
    pod = template["spec"]
    (container,) = pod["containers"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
    assert len(mounts) == len(volumes)
    for volume in volumes.values():
        for kind, key, field in (
            ("ConfigMap", "configMap", "name"),
            ("Secret", "secret", "secretName"),
            ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
        ):
            assert key not in volume or f"{kind}/{volume[key][field]}" in documents
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = re.search(r"(?m)^USER (\d+):", (ROOT / "Dockerfile").read_text())
    assert user
    assert pod["securityContext"]["runAsUser"] == int(user[1])
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # The configuration, where it will be.
    for name, text in documents["ConfigMap/cvmfs-sync"]["data"].items():
        (tmp_path / name).write_text(text)
    loaded = config.load(tmp_path / "cvmfs-sync.yaml", {})
    run_cli("check", tmp_path / "image-list.yaml").ok()
    assert container["args"][0] == "run"
    assert Path(container["args"][-1]).parent == Path("/etc/cvmfs-sync")
    for place in (loaded.repository.root, loaded.state_dir, loaded.spool_dir, Path("/etc/cvmfs-sync"), Path("/tmp")):
        assert str(place) in mounts
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    listening = {"metrics": loaded.metrics.listen, "web": loaded.web.listen}
    assert {name: (each.host, each.port) for name, each in listening.items() if each is not None} == {
        name: ("0.0.0.0", port) for name, port in ports.items()
    }
    served = documents["Service/cvmfs-sync"]["spec"]["ports"]
    assert {each["targetPort"]: each["port"] for each in served} == ports
    exposed = re.search(r"(?m)^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text())
    assert exposed
    assert set(map(int, exposed[1].split())) == set(ports.values())
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {each["port"] for each in probes.values()} == {"metrics"}
    assert [each["path"] for each in probes.values()] == ["/healthz", "/healthz", "/readyz"]
    (variable,) = container["env"]
    assert json.loads(documents["Secret/cvmfs-sync-registries"]["stringData"]["config.json"]) == {"auths": {}}
    assert mounts[variable["value"]]["secret"]["secretName"] == "cvmfs-sync-registries"
    assert loaded.spool_limit is not None
    assert loaded.spool_limit < parse_size(volumes["spool"]["emptyDir"]["sizeLimit"].removesuffix("i"))
    stop = settings(DEPLOY / "cvmfs-sync.service")["TimeoutStopSec"]
    assert parse_duration(stop[0].replace("min", "m")).total_seconds() == pod["terminationGracePeriodSeconds"]


@pytest.mark.slow
def test_image_is_built_from_a_local_base_and_publishes(tmp_path: Path) -> None:
    """Buildah builds the Dockerfile without a registry; the image tells its version and syncs, as an ordinary user."""
    require("buildah")
    require_root()
    base = python_rootfs()
    context = tmp_path / "context"
    context.mkdir()
    for name in ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, context)
    shutil.copytree(ROOT / "cvmfs_sync", context / "cvmfs_sync")
    wheels = context / "requirements/wheels"
    wheels.mkdir(parents=True)
    shutil.copy(ROOT / "requirements/run.txt", wheels.parent)
    version = run("tar", "--extract", "--to-stdout", "--file", base, "--wildcards", "./etc/debian_version").strip()
    python = {"12": "3.11", "13": "3.13"}.get(version.partition(".")[0])
    if python is None:
        missing(f"which Python Debian {version} has is not known here")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
    pip += ["--only-binary", ":all:", "--python-version", python, "-r", str(wheels.parent / "run.txt")]
    run(*pip, "-d", wheels, timeout=600)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "config.json").write_text("{}")
    private = ("--root", tmp_path / "root", "--runroot", tmp_path / "run", "--storage-driver", "vfs")

    def buildah(*arguments: str | Path) -> str:
        environment = {"TMPDIR": str(tmp_path), "BUILDAH_ISOLATION": "chroot", "DOCKER_CONFIG": str(credentials)}
        return run("buildah", *private, *arguments, env=environment, timeout=900).strip()

    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, base, "/")
    buildah("commit", "--quiet", "--rm", container, "local-base")
    build = ("build", "--quiet", "--pull-never", "--network", "none", "--build-arg", "BASE=localhost/local-base")
    buildah(*build, "--tag", "cvmfs-sync", context)
    container = buildah("from", "--pull-never", "localhost/cvmfs-sync")
    assert buildah("run", container, "--", "cvmfs-sync", "--version") == f"cvmfs-sync {__version__}"
    assert buildah("run", container, "--", "id", "-u") == "10001"
    work = tmp_path / "work"
    work.mkdir()
    (work / "cvmfs-sync.yaml").write_text("repository: {root: /srv/containers}\nstate_dir: /var/lib/cvmfs-sync\n")
    (work / "image-list.yaml").write_text("version: 1\nimages: ['oci:layout:1']\n")
    write_layout(work / "layout", {"1": Image((layer(directory("bin"), file("bin/hello", "hello\n")),))})
    buildah("copy", "--quiet", "--chown", "10001:10001", container, work, "/work")
    buildah("run", container, "--", "cvmfs-sync", "sync")
    assert buildah("run", container, "--", "cat", "/srv/containers/oci/work/layout:1/bin/hello") == "hello"
