"""The tests' own tools hold what they promise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cvmfs_sync import image as images
from cvmfs_sync.reference import Digest
from tests.support import (
    DebianImage,
    FakeCvmfs,
    Image,
    Index,
    RegistryServer,
    assert_same_tree,
    device,
    differences,
    digest_of,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    require,
    require_root,
    run,
    run_cli,
    start_docker_registry,
    symlink,
    tree_listing,
    umoci_unpack,
    whiteout,
    write_layout,
)
from tests.support.images import Compression, Kind

LONG = "/".join(["a-rather-long-directory-name"] * 8)

BASE = layer(
    directory("etc"),
    file("etc/motd", "hello\n"),
    file("etc/gone", "x"),
    directory("opt"),
    file("opt/below", "x"),
    symlink("etc/link", "../opt/below"),
    hardlink("etc/hard", "etc/motd"),
    file("bin/tool", b"\x00\x01", mode=0o4755, uid=1000, gid=1001, mtime=1_600_000_000.5),
    fifo("opt/pipe", mode=0o640),
    file(f"{LONG}/ünïcödé name", "deep"),
    file("bin/attributed", "x", xattrs={"user.test": b"value"}),
)
TOP = layer(whiteout("etc/gone"), opaque("opt"), file("opt/above", "y"), compression="none")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_layer_bytes_are_the_same_in_every_run(compression: Compression, tar_format: int) -> None:
    """Building a layer twice gives the same bytes, and its digests are of what it holds."""
    entries = (directory("etc"), file("etc/motd", "hello\n"), device("dev/null", 1, 3, 0o666), file("dev/" + "x" * 90))
    one, other = (layer(*entries, compression=compression, format=tar_format) for _ in range(2))
    assert one == other
    assert one.digest == digest_of(one.blob)
    assert one.diff_id == digest_of(one.tar)
    assert (one.digest == one.diff_id) == (compression == "none")


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_image_documents_are_what_cvmfs_sync_reads(kind: Kind) -> None:
    """Manifest, configuration and index parse to the values that the image was described with."""
    built = Image((BASE, TOP), env=("A=b c",), entrypoint=("/bin/tool",), labels={"x": "y"}, workdir="/opt", kind=kind)
    manifest = images.parse_document(built.manifest_bytes, Digest.parse(built.digest), built.media_type, "test")
    assert isinstance(manifest, images.Manifest)
    assert [str(each.digest) for each in manifest.layers] == [BASE.digest, TOP.digest]
    config = images.parse_config(built.config_bytes, manifest, "test")
    assert [str(each) for each in config.diff_ids] == [BASE.diff_id, TOP.diff_id]
    assert (config.environment, config.entrypoint, config.labels) == (("A=b c",), ("/bin/tool",), {"x": "y"})
    index = Index((built, built.but(architecture="arm64", variant="v8")), kind=kind, attestation=True)
    parsed = images.parse_document(index.document, Digest.parse(index.digest), index.media_type, "test")
    assert isinstance(parsed, images.Index)
    assert [entry.attestation for entry in parsed.entries] == [False, False, True]


def test_layout_is_accepted_by_skopeo_and_unpacked_by_umoci(tmp_path: Path) -> None:
    """Both tools find in a layout what the image was described with."""
    require("skopeo", "umoci")
    require_root()
    built = Image((BASE, TOP), env=("A=b",))
    layout = write_layout(tmp_path / "layout", {"1": built})
    found = json.loads(run("skopeo", "inspect", f"oci:{layout}:1"))
    assert found["Digest"] == built.digest
    assert found["Layers"] == [BASE.digest, TOP.digest]
    assert found["Env"] == ["A=b"]
    listing = tree_listing(umoci_unpack(layout, "1", tmp_path / "bundle"))
    assert {path for path, node in listing.items() if node.type != "directory"} == {
        "etc/motd",
        "etc/link",
        "etc/hard",
        "bin/tool",
        "bin/attributed",
        "opt/above",
        f"{LONG}/ünïcödé name",
    }
    tool = listing["bin/tool"]
    assert (tool.mode, tool.uid, tool.gid, tool.mtime_ns) == (0o4755, 1000, 1001, 1_600_000_000_500_000_000)
    assert listing["etc/motd"].links == ("etc/hard", "etc/motd")
    assert dict(listing["bin/attributed"].xattrs) == {"user.test": b"value"}


def test_layout_takes_more_tags_and_moves_them(tmp_path: Path) -> None:
    """A second write adds tags, moves those it names and leaves the others."""
    one, other = Image((BASE,)), Image((BASE, TOP))
    layout = write_layout(tmp_path, {"a": one, "b": one})
    write_layout(layout, {"b": other, "c": Index((one, other))})
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    tags = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in entries}
    assert tags == {"a": one.digest, "b": other.digest, "c": Index((one, other)).digest}


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_registry_gives_back_what_was_pushed(docker_registry: RegistryServer, kind: Kind) -> None:
    """Digests in a real registry are those of the builder, tags move, manifests can be deleted."""
    repository = f"support/{kind}"
    first, second = Image((BASE,), kind=kind), Image((BASE, TOP), kind=kind)
    index = Index((first, second.but(architecture="arm64")), kind=kind)
    assert docker_registry.push(repository, "1", first) == f"{docker_registry.host}/{repository}:1"
    docker_registry.push(repository, "2", second)
    docker_registry.push(repository, "all", index)
    assert docker_registry.manifest(repository, "1") == (first.media_type, first.manifest_bytes)
    assert docker_registry.digest(repository, "all") == index.digest
    docker_registry.retag(repository, "2", "1")
    assert docker_registry.digest(repository, "1") == second.digest
    assert docker_registry.blob_path(BASE.digest).read_bytes() == BASE.blob
    docker_registry.delete(repository, second.digest)
    assert docker_registry.request("HEAD", f"/v2/{repository}/manifests/1")[0] == 404


def test_registry_with_a_password_wants_it(tmp_path: Path) -> None:
    """A registry started with a password answers 401 without it."""
    with start_docker_registry(tmp_path / "registry", htpasswd=("someone", "secret")) as server:
        server.push("private/image", "1", Image((BASE,)))
        server.credentials = None
        assert server.request("GET", "/v2/private/image/manifests/1")[0] == 401


def test_comparison_names_what_differs(tmp_path: Path) -> None:
    """Equal trees pass; each difference is one line that names path and attribute."""
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/file").write_text("same")
        os.utime(tmp_path / name / "sub/file", ns=(0, 0))
    a, b = tmp_path / "a", tmp_path / "b"
    assert_same_tree(a, b, ignore={"mtime_ns"})
    (b / "sub/file").write_text("else")
    (b / "sub/file").chmod(0o600)
    (b / "more").symlink_to("sub")
    lines = differences(a, b, ignore={"mtime_ns", "digest"})
    assert lines == ["'more': symlink only in the second", "'sub/file': mode 0o644 != 0o600"]
    assert differences(a, b, ignore={"mtime_ns"}, ignore_paths=["more", "sub/*"]) == []
    with pytest.raises(AssertionError, match=r"1 paths differ:\s+'sub/file'"):
        assert_same_tree(a, b, ignore={"mtime_ns"}, ignore_paths=["more"])
    with pytest.raises(ValueError, match="mtime"):
        differences(a, b, ignore={"mtime"})


def test_missing_tool_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests without a tool gets a reason; CI gets a failure."""
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="no-such-tool"):
        require("no-such-tool", "sh")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool"):
        require("no-such-tool")


def test_run_cli_gives_exit_code_and_both_streams() -> None:
    """An option that does not exist is a usage error of cvmfs-sync, not of the tests."""
    result = run_cli("--no-such-option").ok(2)
    assert "no-such-option" in result.stderr
    assert result.stdout == ""


def test_run_cli_is_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directory, environment and signals are those of one run; several run at the same time, and none for ever."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.yaml").write_text(f"version: 1\nimages: [{name.upper()}]\n")
    with ThreadPoolExecutor(2) as executor:
        results = list(executor.map(lambda name: run_cli("check", "list.yaml", cwd=tmp_path / name), ("one", "two")))
    assert [result.rc for result in results] == [1, 1]
    assert ["ONE" in results[0].stdout + results[0].stderr, "ONE" in results[1].stdout + results[1].stderr] == [
        True,
        False,
    ]
    monkeypatch.setenv("CVMFS_SYNC_NONSENSE", "1")
    (tmp_path / "cvmfs-sync.yaml").touch()
    assert "CVMFS_SYNC_NONSENSE" in run_cli("status", cwd=tmp_path).ok(2).stderr
    monkeypatch.delenv("CVMFS_SYNC_NONSENSE")
    os.mkfifo(tmp_path / "list.yaml")
    assert run_cli("check", tmp_path / "list.yaml", timeout=1).rc == -signal.SIGKILL
    run_cli("--version").ok()


def test_fake_cvmfs_is_on_path_with_a_repository(fake_cvmfs: FakeCvmfs) -> None:
    """What is on PATH is the fake, and its repository takes a transaction."""
    assert subprocess.run(["cvmfs_server", "transaction", fake_cvmfs.name], check=False).returncode == 0
    assert fake_cvmfs.in_transaction
    before = fake_cvmfs.revision
    (fake_cvmfs.root / "new").write_text("content")
    assert fake_cvmfs.run("publish").returncode == 0
    assert fake_cvmfs.revision == before + 1
    assert (fake_cvmfs.published / "new").read_text() == "content"
    assert [each["argv"][0] for each in fake_cvmfs.commands()] == ["mkfs", "transaction", "publish"]


def test_debian_image_is_real_and_has_three_variants(
    debian_image: DebianImage, docker_registry: RegistryServer, tmp_path: Path
) -> None:
    """The Debian image holds what it should, its program runs, and its variants differ as they say."""

    def layers(tag: str) -> list[str]:
        document = json.loads(docker_registry.manifest(debian_image.repository, tag)[1])
        return [each["digest"] for each in document["layers"]]

    assert layers("env") == layers("1") == layers("2")[:-1]
    digests = {docker_registry.digest(debian_image.repository, tag) for tag in ("1", "2", "env")}
    assert len(digests) == 3
    root = umoci_unpack(debian_image.layout, "1", tmp_path / "bundle")
    share = root / "usr/local/share/test"
    assert os.listdir(root / "usr/share/common-licenses") == ["ONLY"]
    assert not (root / "usr/share/doc").exists()
    assert (share / "file-03/was-a-file").exists()
    assert (share / "sticky").is_symlink()
    assert (share / "file-10").stat().st_ino == (root / "srv/linked-10").stat().st_ino
    assert (share / "setgid").stat().st_mode & 0o7777 == 0o2755
    assert (share / "file-20").stat().st_uid == 1000
    assert run("chroot", root, "/usr/local/bin/hello", "test").startswith("hello test from Debian")
