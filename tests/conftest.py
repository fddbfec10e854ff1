"""Fixtures that all tests may use; what they give is described in `tests.support`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.support")

# After the assertions in them are rewritten.
from cvmfs_sync.repository import DirectoryRepository  # noqa: E402
from tests.fakes.scriptable_registry import ScriptableRegistry  # noqa: E402
from tests.support import cvmfs, debian  # noqa: E402
from tests.support.registry import RegistryServer, start_docker_registry  # noqa: E402
from tests.support.site import Site  # noqa: E402
from tests.support.workshop import Workshop  # noqa: E402

# A slow machine is no failure. CI tries the same examples in every run, `make fuzz` many others.
settings.register_profile("default", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.register_profile(
    "fuzz", deadline=None, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def _umask() -> Iterator[None]:
    """Give every test, and all that it starts, the umask of a daemon."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's settings, proxies and credentials for registries out of the tests."""
    for name in list(os.environ):
        if name.upper().startswith(("CVMFS_", "FAKE_CVMFS_")) and name != "CVMFS_SYNC_TEST_REPOSITORY":
            monkeypatch.delenv(name)
        if name.lower() in {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "registry_auth_file"}:
            monkeypatch.delenv(name)
    # docker-py and oras read it; nothing is there.
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path_factory.getbasetemp() / "no-docker-config"))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A real registry for the whole session: let each test use a repository name of its own.

    For one with a password, or one that a test damages or stops, use `start_docker_registry(tmp_path, ...)`.
    """
    with start_docker_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="session")
def debian_rootfs() -> Path:
    """A tar file with Debian's essential packages; read-only."""
    return debian.debian_rootfs()


@pytest.fixture(scope="session")
def debian_layout(debian_rootfs: Path) -> Path:
    """An OCI layout with the tags "1", "2" and "env" of a real Debian image; read-only."""
    return debian.debian_layout(debian_rootfs)


@pytest.fixture(scope="session")
def debian_image(docker_registry: RegistryServer, debian_layout: Path) -> debian.DebianImage:
    """The images of `debian_layout` in the registry, too: `debian/test`, tags "1", "2", "env"."""
    repository = "debian/test"
    first, moved, env = (docker_registry.push_layout(debian_layout, tag, repository, tag) for tag in debian.TAGS)
    return debian.DebianImage(docker_registry.host, repository, debian_layout, first, moved, env)


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory like `tmp_path`, in memory where this machine has a place: hundreds of fsyncs cost nothing there."""
    try:
        directory = Path(tempfile.mkdtemp(prefix="cvmfs-sync-test-", dir="/dev/shm"))
    except OSError:
        yield tmp_path
        return
    try:
        try:
            os.setxattr(directory, "user.test", b"")  # the fake server needs them; tmpfs has them since Linux 6.6
        except OSError:
            yield tmp_path
        else:
            yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def fake_cvmfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cvmfs.FakeCvmfs:
    """A fake publisher with the repository unpacked.example.org, first on PATH."""
    fake = cvmfs.FakeCvmfs(tmp_path / "publisher", "unpacked.example.org")
    fake.make()
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    return fake


@pytest.fixture
def registry() -> Iterator[ScriptableRegistry]:
    """An empty registry whose requests are recorded and whose faults are scripted."""
    with ScriptableRegistry() as server:
        yield server


@pytest.fixture(params=["directory", "cvmfs"])
def site(request: pytest.FixtureRequest, tmp_path: Path, registry: ScriptableRegistry) -> Site:
    """An installation with either backend."""
    fake = request.getfixturevalue("fake_cvmfs") if request.param == "cvmfs" else None
    return Site(tmp_path / "site", fake, (registry.host, registry.alias))


@pytest.fixture
def plain(tmp_path: Path, registry: ScriptableRegistry) -> Site:
    """An installation with backend directory, for what does not depend on the backend."""
    return Site(tmp_path / "site", None, (registry.host, registry.alias))


@pytest.fixture
def shop(tmp_path: Path, registry: ScriptableRegistry) -> Iterator[Workshop]:
    """Something that publishes into a directory, without list and memory."""
    made = Workshop(tmp_path, DirectoryRepository(tmp_path / "published"), insecure=(registry.host,))
    yield made
    made.close()
