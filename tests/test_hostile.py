"""Hostile images: each attack is refused with its reason or flattened harmlessly, and the host stays as it was.

The corpus is a table of layers. `{host}` stands for a directory that the attacks name and nobody may touch.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from cvmfs_sync.cli import main
from cvmfs_sync.errors import InvalidImage, LimitExceeded
from cvmfs_sync.flatten import flatten
from cvmfs_sync.removal import remove_tree
from cvmfs_sync.rootfs import DirectorySink
from cvmfs_sync.squash import OutOfOrder, TarSink
from cvmfs_sync.tar import Kind, Limits, Reader
from cvmfs_sync.writing import EXACT_AS_USER, exact_policy
from tests.support import Image, images, missing, require, require_root, run, tree_listing, write_layout
from tests.support.images import device, fifo, layer, layer_of_tar, opaque, whiteout
from tests.support.images import directory as d
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import MemoryLayer, file_layers, strict_untar
from tests.support.trees import Node
from tests.test_tar import END, gnu_sparse, header, long, octal, pair, pax, raw_pax
from tests.test_tar import file as raw

Made = Sequence[images.Layer]
UP = "../" * 12
LONG = "/".join(["d" * 200] * 18)
SECRET = b"SECRET of the host"


def tars(*streams: bytes) -> list[images.Layer]:
    return [layer_of_tar(stream) for stream in streams]


def blob(stream: bytes, content: bytes) -> list[images.Layer]:
    """A layer whose blob is not what its tar stream compresses to."""
    return [images.Layer(stream, content, "gzip")]


def gzipped(stream: bytes) -> bytes:
    return layer_of_tar(stream).blob


GOOD = raw(b"good", b"good") + END

# What the attack tries: (layers, reason) with the text that the error must hold, or None where it comes to nothing.
Attacks = dict[str, tuple[Callable[[str], Made], str | None]]


def _links(entries: Sequence[images.Entry]) -> Callable[[str], Made]:
    """One layer; `{host}` in paths and targets is filled in."""
    return _layers(entries)


def _layers(*all_entries: Sequence[images.Entry]) -> Callable[[str], Made]:
    def fill(host: str) -> Made:
        return [
            layer(
                *(replace(e, path=e.path.replace("{host}", host), link=e.link.replace("{host}", host)) for e in entries)
            )
            for entries in all_entries
        ]

    return fill


def _raw(*streams: bytes) -> Callable[[str], Made]:
    return lambda _host: tars(*streams)


def _blob(content: bytes, stream: bytes = GOOD) -> Callable[[str], Made]:
    return lambda _host: blob(stream, content)


ATTACKS: Attacks = {
    # --- links on the way out
    "absolute name": (_links([f("{host}/new", "x")]), None),
    "absolute name of a file there": (_links([f("{host}/file", "x")]), None),
    "upward name": (_links([f("../new")]), "leads upwards"),
    "upward name in the middle": (_links([f("a/../../new")]), "leads upwards"),
    "upward name that stays inside": (_links([d("a"), f("a/../b")]), "leads upwards"),
    "upward name at the end": (_links([d("a/..")]), "leads upwards"),
    "only upward": (_links([d("..")]), "leads upwards"),
    "upward whiteout": (_links([f("../.wh.host")]), "leads upwards"),
    "link, then through it": (_links([s("a", "{host}"), f("a/new")]), None),
    "link, then over a file": (_links([s("a", "{host}"), f("a/file", "x")]), None),
    "link upwards, then through it": (_links([s("a", UP + "{host}"), f("a/file", "x")]), None),
    "link in a lower layer": (_layers([s("a", "{host}")], [f("a/file", "x")]), None),
    "link in a lower layer, directory again": (_layers([s("a", "{host}")], [d("a"), f("a/file", "x")]), None),
    "file in a lower layer, link in the upper": (_layers([f("a/file", "x")], [s("a", "{host}")]), None),
    "link between two files": (_links([f("a/one"), s("a", "{host}"), f("a/file", "x")]), None),
    "link swapped for a directory and back": (
        _layers([d("a"), f("a/file")], [s("a", "{host}")], [f("a/file", "x")], [d("a")], [f("a/file", "y")]),
        None,
    ),
    "two links": (_links([s("a", "b"), s("b", "{host}"), f("a/file", "x")]), None),
    "link below a link": (_links([s("a", "."), s("a/b", "{host}"), f("b/file", "x")]), None),
    "chain that climbs (CVE-2025-4517)": (
        _links([d("d" * 247), s("a", "d" * 247 + "/.." * 3 + "{host}"), f("a/file", "x")]),
        None,
    ),
    "long chain over PATH_MAX (CVE-2025-4330)": (
        _links([d(LONG), s("b", LONG), s("a", f"b/{UP}{UP}{{host}}"), f("a/file")]),
        None,
    ),
    "link as the last name": (_layers([s("file", "{host}/file")], [f("file", "x")]), None),
    "link as the last name, same layer": (_links([s("file", "{host}/file"), f("file", "x")]), None),
    "link as a directory's name": (_links([s("a", "{host}"), d("a", 0o777, uid=1)]), None),
    "mode through a link (CVE-2025-4138)": (_links([s("a", "{host}/file"), h("b", "a", mode=0o777)]), None),
    "fifo through a link": (_links([s("a", "{host}"), fifo("a/pipe")]), None),
    "device through a link": (_links([s("a", "{host}"), device("a/dev", 1, 3)]), None),
    "links in a circle": (_links([s("a", "b"), s("b", "a"), f("a/x")]), "in a circle"),
    "link to itself": (_links([s("a", "a/a/a/a"), f("a/x")]), "in a circle"),
    "link through what is missing": (_links([s("a", "no/../../..{host}"), f("a/file")]), "'..'"),
    "/proc/self/root": (_links([s("a", "/proc/self/root{host}"), f("a/file", "x")]), None),
    "/proc/self/cwd": (_links([s("a", "/proc/self/cwd"), f("a/file", "x")]), None),
    # --- the root
    "root as a link (CVE-2021-29136)": (_links([s(".", "{host}"), f("file")]), "root is not a directory"),
    "root as a link, other name": (_links([s("./", "{host}"), f("file")]), "root is not a directory"),
    "root as a link, slash": (_links([s("/", "{host}"), f("file")]), "root is not a directory"),
    "root as a hard link": (_links([h("./.", "{host}/file")]), "root is not a directory"),
    "root as a file": (_raw(raw(b"././", b"") + END), "ends in '/'"),
    "root as a device": (_links([device(".", 1, 3)]), "root is not a directory"),
    "root closed": (_links([d("./", 0o000), f("a")]), None),
    "root of another": (_links([d("./", 0o7777, uid=1, gid=1)]), None),
    # --- hard links
    "hard link to the host": (_links([h("a", "{host}/file")]), "hard link to nothing"),
    "hard link upwards": (_links([h("a", UP + "{host}/file")]), "leads upwards"),
    "hard link from the working directory": (_links([h("a", "file")]), "hard link to nothing"),
    "hard link through a link": (_links([s("l", "{host}"), h("a", "l/file")]), "hard link to nothing"),
    "hard link through a link of a lower layer": (
        _layers([s("l", "{host}")], [h("a", "l/file")]),
        "hard link to nothing",
    ),
    "hard link to a link, then written": (_links([s("l", "{host}/file"), h("a", "l"), f("a", "x")]), None),
    "hard link to a link, then its other name": (
        _layers([s("l", "{host}/file"), h("a", "l")], [f("l", "x", 0o777)]),
        None,
    ),
    "hard link to a directory": (_links([d("a"), h("b", "a")]), "hard link to a directory"),
    "hard link to the root": (_links([h("a", "./")]), "no target"),
    "hard link to itself": (_links([h("a", "a")]), "hard link to nothing"),
    "hard link with content": (
        _raw(header(b"a", type=b"1", link=b"b", size=octal(4)) + raw(b"b", b"x") + END),
        "has a size",
    ),
    # --- whiteouts
    "whiteout through a link": (_layers([s("a", "{host}")], [whiteout("a/file")]), None),
    "whiteout through a link upwards": (_layers([s("a", UP + "{host}")], [whiteout("a/file")]), None),
    "whiteout with an absolute name": (_links([f("{host}/.wh.file")]), None),
    "opaque through a link": (_layers([s("a", "{host}")], [opaque("a")]), None),
    "opaque root": (_layers([f("a")], [opaque("")]), None),
    "whiteout of .": (_layers([f("a/b")], [f("a/.wh..")]), "a whiteout of"),
    "whiteout of ..": (_layers([f("a/b")], [f("a/.wh...")]), "a whiteout of"),
    "whiteout of nothing": (_layers([f("a/b")], [f("a/.wh.")]), "a whiteout of"),
    "whiteout as a link": (_layers([f("a")], [s(".wh.a", "{host}")]), None),
    "whiteout as a directory with content": (_layers([f("a")], [d(".wh.a"), f(".wh.a/x")]), "below a whiteout"),
    "whiteout of the whole tree, then through it": (
        _layers([s("a", "{host}")], [whiteout("a"), f("a/file", "x")]),
        None,
    ),
    "files of AUFS": (_links([f(".wh..wh.plnk/1.2"), h("a", ".wh..wh.plnk/1.2")]), "below a whiteout"),
    "a link to a whiteout's name": (_links([s("a", ".wh.b"), f("a/x")]), "below a whiteout"),
    # --- names
    "name with a newline and escapes": (_links([f("a\nb\x1b[2J\x07")]), None),
    "name with NUL in pax": (_raw(pax((b"path", b"a\0b")) + raw(b"x", b"") + END), "NUL"),
    "link with NUL in pax": (_raw(pax((b"linkpath", b"a\0b")) + header(b"x", type=b"2", link=b"y") + END), "NUL"),
    "name of a megabyte, pax": (_raw(pax((b"path", b"x" * 1_000_000)) + raw(b"x", b"") + END), "limit 'path'"),
    "name of a megabyte, GNU": (_raw(long(b"L", b"x" * 1_000_000 + b"\0") + raw(b"x", b"") + END), "limit 'path'"),
    "pax header of two megabytes": (_raw(pax((b"comment", b"x" * 2_000_000)) + raw(b"x", b"") + END), "limit 'header'"),
    "name of 256 bytes": (_links([f("x" * 256)]), "limit 'name'"),
    "path of 5000 bytes": (_links([f("/".join(["x" * 99] * 50))]), "limit 'path'"),
    "a thousand levels": (_links([f("d/" * 1000 + "x")]), "limit 'depth'"),
    "link of 5000 bytes": (_links([s("a", "x" * 5000)]), "limit 'link'"),
    "empty name": (_raw(raw(b"", b"") + END), "no name"),
    "empty link": (_raw(header(b"a", type=b"2") + END), "no target"),
    "our own name for what waits": (_links([f(".cvmfs-sync-0123456789abcdef/0-0"), f("a", "1"), f("a", "2")]), None),
    "a file, then a directory of it": (_links([f("a"), f("a/b")]), "cannot be there"),
    # --- special files
    "devices": (_links([device("mem", 1, 1, 0o666), device("sda", 8, 0, 0o666, block=True)]), None),
    "device that Linux cannot have": (_links([device("a", 5000, 3)]), "device number"),
    "device in a v7 header": (_raw(header(b"a", type=b"3", magic=b"\0" * 8) + END), "v7"),
    "setuid root": (_links([f("su", "x", 0o4755)]), None),
    "unknown type": (_raw(header(b"a", type=b"Z") + END), "refused type"),
    "multi-volume": (_raw(header(b"a", type=b"M") + END), "refused type"),
    "trusted attributes": (_links([f("a", xattrs={"trusted.overlay.redirect": b"/", "security.selinux": b"x"})]), None),
    "attributes of a megabyte": (_links([f("a", xattrs={"user.a": b"x" * 900_000})]), "limit 'xattrs'"),
    # --- sizes and headers
    "size beyond the end": (_raw(header(b"a", size=octal(1 << 30)) + b"x" * 512), "cut off"),
    "negative size": (_raw(header(b"a", size=b"\xff" * 12) + END), "negative"),
    "size of exabytes": (_raw(header(b"a", size=b"\x80" + b"\x7f" * 11) + END), "limit 'bytes'"),
    "pax size against header size (CVE-2025-62518)": (
        _raw(pax((b"size", b"0")) + raw(b"a", raw(b"smuggled", b"x")) + END),
        "different sizes",
    ),
    "pax size larger": (_raw(pax((b"size", b"1024")) + header(b"a") + raw(b"smuggled", b"x") + END), "different sizes"),
    "pax record of length 0 (CVE-2025-8194)": (_raw(raw_pax(b"0 path=x\n") + raw(b"a", b"") + END), "malformed"),
    "pax record of negative length": (_raw(raw_pax(b"-9 path=x\n") + raw(b"a", b"") + END), "malformed"),
    "pax record beyond its header": (_raw(raw_pax(b"99 path=x\n") + raw(b"a", b"") + END), "malformed"),
    "pax path twice": (_raw(pax((b"path", b"a"), (b"path", b"b")) + raw(b"x", b"") + END), "two things"),
    "two pax headers": (_raw(pax((b"path", b"a")) + pax((b"path", b"b")) + raw(b"x", b"") + END), "two pax headers"),
    "pax and GNU names": (_raw(pax((b"path", b"a")) + long(b"L", b"b\0") + raw(b"x", b"") + END), "two long names"),
    "global path": (_raw(pax((b"path", b"../x"), kind=b"g") + raw(b"x", b"") + END), "global header"),
    "global size": (_raw(pax((b"size", b"0"), kind=b"g") + raw(b"x", b"y") + END), "global header"),
    "wrong checksum": (_raw(header(b"a", checksum=b"0000000\0") + END), "checksum"),
    "bytes after the end": (_raw(GOOD + raw(b"hidden", b"x") + END), "after the end"),
    "no tar at all": (_raw(b"<html>not a layer</html>".ljust(1024)), "checksum"),
    "cut in a file": (_raw(GOOD[:700]), "cut off"),
    # --- sparse
    "sparse of petabytes": (
        _raw(
            pax(
                (b"GNU.sparse.size", b"4611686018427387904"),
                (b"GNU.sparse.numblocks", b"1"),
                (b"GNU.sparse.map", b"0,0"),
            )
            + raw(b"a", b"")
            + END
        ),
        "limit 'bytes'",
    ),
    "sparse map without end (CVE-2025-58183)": (
        _raw(
            pax(
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", b"a"),
                (b"GNU.sparse.realsize", b"9"),
            )
            + raw(b"a", b"999999999\n".ljust(512, b"\0"))
            + END
        ),
        "limit 'sparse'",
    ),
    "sparse map that overlaps": (
        _raw(gnu_sparse(pair(0, 512) + pair(100, 0), real=512, stored=512) + bytes(512) + END),
        "inconsistent",
    ),
    "sparse name upwards": (
        _raw(
            pax(
                (b"GNU.sparse.size", b"9"),
                (b"GNU.sparse.numblocks", b"1"),
                (b"GNU.sparse.map", b"0,0"),
                (b"GNU.sparse.name", b"../a"),
            )
            + raw(b"a", b"")
            + END
        ),
        "leads upwards",
    ),
    # --- compression
    "gzip cut off": (_blob(gzipped(GOOD)[:-9]), "damaged"),
    "gzip cut in its checksum": (_blob(gzipped(GOOD)[:-4]), "damaged"),
    "gzip with garbage behind": (_blob(gzipped(GOOD) + b"garbage"), "damaged"),
    "gzip with zeros behind": (_blob(gzipped(GOOD) + bytes(512)), "damaged"),
    "gzip with a wrong checksum": (_blob(gzipped(GOOD)[:-8] + bytes(4) + gzipped(GOOD)[-4:]), "damaged"),
    "gzip of two members": (_blob(gzipped(GOOD[:700]) + gzipped(GOOD[700:])), None),
    "gzip of two archives": (
        _blob(gzipped(GOOD) + gzipped(raw(b"hidden", b"x") + END), GOOD + raw(b"hidden", b"x") + END),
        "after the end",
    ),
    "gzip of something else": (_blob(gzipped(GOOD[:512] + b"evil" + GOOD[516:])), "digest"),
    "zstd cut off": (_blob(zstandard.compress(GOOD)[:-3]), "damaged"),
    "zstd with garbage behind": (_blob(zstandard.compress(GOOD) + b"garb"), "damaged"),
    "bzip2": (_blob(b"BZh91AY&SY" + bytes(100)), "bzip2"),
    "nothing": (_blob(b""), "digest"),
    # --- what a sandbox is furnished with
    "metadata as a link": (_links([s(".singularity.d", "{host}")]), None),
    "metadata as a link, files through it": (
        _layers([s(".singularity.d", "{host}")], [f(".singularity.d/file", "x")]),
        None,
    ),
    "metadata in a link": (
        _links([s(".singularity.d/env", "{host}"), s(".singularity.d/labels.json", "{host}/file")]),
        None,
    ),
    "etc as a link": (_links([s("etc", "{host}")]), None),
    "etc as a link upwards": (_links([s("etc", UP + "{host}")]), None),
    "hosts as a link": (_links([s("etc/hosts", "{host}/file"), s("etc/resolv.conf", "{host}/new")]), None),
    "everything as links": (
        _links(
            [
                s(n, "{host}")
                for n in ("dev", "proc", "sys", "tmp", "var", "root", "home", "singularity", ".run", "environment")
            ]
        ),
        None,
    ),
    "everything as links to links": (
        _links([s("l", "{host}"), *(s(n, f"l/{n}") for n in ("dev", "proc", "sys", "tmp", "var", "root", "home"))]),
        None,
    ),
    "marker as a link": (_links([s(".cvmfscatalog", "{host}/file")]), None),
    "marker as a link into nowhere": (_links([s(".cvmfscatalog", "{host}/new")]), None),
    "marker as a directory": (_links([f(".cvmfscatalog/x")]), None),
    "marker as a hard link to a link": (_links([s("l", "{host}/file"), h(".cvmfscatalog", "l")]), None),
    # --- what is left behind for whoever removes it
    "closed directories": (_links([d("a", 0), d("a/b", 0o555), f("a/b/c", "x", 0), s("a/b/l", "{host}")]), None),
}

WAYS = ("unpack", "sandbox", "squash", "library")


def made(name: str, host: Path) -> Image:
    return Image(tuple(ATTACKS[name][0](str(host))))


def arguments(way: str, reference: str, target: Path) -> list[str]:
    if way == "squash":
        return ["squash", reference, "-o", str(target)]
    return ["unpack", reference, str(target), *(["--sandbox"] if way == "sandbox" else [])]


def host_tree(home: Path) -> Path:
    """What nobody may touch, with something to overwrite, chmod, remove and link to."""
    host = home / "host"
    (host / "dir").mkdir(parents=True)
    (host / "file").write_bytes(SECRET)
    (host / "file").chmod(0o600)
    (host / "dir/inner").write_bytes(SECRET)
    (host / "link").symlink_to("file")
    (host / "closed").mkdir(mode=0o000)
    return host


def watched(home: Path) -> dict[str, Node]:
    """All below `home` but where the result goes."""
    listing = tree_listing(home)
    return {path: node for path, node in listing.items() if not path.startswith("work/") and path not in {"work", "."}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ATTACKS)
def test_attack(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refused with its reason and nothing left, or flattened with nothing of the host in it; the host is as it was."""
    host = host_tree(tmp_path)
    monkeypatch.chdir(host)
    image, reason = made(name, host), ATTACKS[name][1]
    layout = write_layout(tmp_path / "layout", {"t": image})
    target = tmp_path / "work/below/out"
    target.parent.mkdir(parents=True)
    before = watched(tmp_path)
    links = (host / "file").stat().st_nlink
    if way == "library":
        error = _library(image, target)
    else:
        code = main(arguments(way, f"oci:{layout}:t", target))
        error = capfd.readouterr().err
        assert code == (0 if reason is None else 1), error
    assert watched(tmp_path) == before
    assert (host / "file").stat().st_nlink == links
    assert "Traceback" not in error
    assert "\x1b" not in error
    if reason is None:
        assert way != "library" or not error
        _check_harmless(target, way)
        assert os.listdir(target.parent) == ["out"]
    else:
        assert reason in error
        assert error
        assert len(error) < 2_000
        assert way == "library" or os.listdir(target.parent) == []
    remove_tree(target)
    assert watched(tmp_path) == before


def _library(image: Image, target: Path) -> str:
    target.mkdir()
    try:
        with tempfile.TemporaryDirectory() as name, DirectorySink(target, exact_policy()) as sink:
            flatten(file_layers(Path(name), image.layers), sink)
    except InvalidImage as error:
        return str(error)
    return ""


def _check_harmless(target: Path, way: str) -> None:
    if way == "squash":
        stream = target.read_bytes()
        reader = Reader([stream])
        found = [(entry, b"".join(reader.content())) for entry in reader]
        strict_untar(found)
        assert SECRET not in stream
        return
    for path, node in tree_listing(target).items():
        assert node.type != "file" or SECRET not in (target / path).read_bytes(), path
        assert not path.rpartition("/")[2].startswith((".wh.", ".cvmfs-sync-")) or "0123456789abcdef" in path, path
        if way == "sandbox":
            assert node.type not in {"char", "block"}
    if way == "sandbox":
        assert (target / ".cvmfscatalog").lstat().st_size == 0
        assert not (target / ".singularity.d").is_symlink()


def test_whole_corpus_on_a_read_only_host(tmp_path: Path) -> None:
    """With all of the host mounted read-only but the target, every attack has the same outcome: none needs more."""
    require_root()
    require("unshare", "mount")
    host = host_tree(tmp_path)
    layout = write_layout(tmp_path / "layout", {str(at): made(name, host) for at, name in enumerate(ATTACKS)})
    (tmp_path / "work").mkdir()
    jobs = [
        (0 if ATTACKS[name][1] is None else 1, arguments(way, f"oci:{layout}:{at}", tmp_path / f"work/{at}-{way}"))
        for at, name in enumerate(ATTACKS)
        for way in ("unpack", "sandbox", "squash")
    ]
    (tmp_path / "jobs").write_text(json.dumps(jobs))
    before = watched(tmp_path)
    script = f"""
mount --make-rprivate / && mount -t tmpfs tmpfs {tmp_path}/work || exit 77
mount -o remount,ro,bind / || exit 77
touch {tmp_path}/probe 2>/dev/null && exit 77
cd {host} && exec {sys.executable} -B -c '
import json, sys
sys.path.insert(0, sys.argv[2])
from cvmfs_sync.cli import main
wrong = [(command, code) for code, command in json.load(open(sys.argv[1])) if main(command) != code]
sys.exit(str(wrong) if wrong else 0)
' {tmp_path}/jobs {Path.cwd()}
"""
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path / "work")},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 77:
        missing(f"this machine does not let tests mount: {result.stderr[-200:]}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert watched(tmp_path) == before


# --- too much ---------------------------------------------------------------------------------------------------------


def unpack_limited(layers: Made, limits: Limits, target: Path) -> None:
    target.mkdir()
    with DirectorySink(target, EXACT_AS_USER) as sink:
        flatten([MemoryLayer.of(each.tar) for each in layers], sink, limits=limits)


@pytest.mark.parametrize(
    ("entries", "limits", "name"),
    [
        ([f(str(n)) for n in range(1001)], Limits(entries=1000), "entries"),
        ([f("same") for _ in range(1001)], Limits(entries=1000), "entries"),
        ([whiteout(str(n)) for n in range(1001)], Limits(entries=1000), "entries"),
        ([f("a"), *(h(str(n), "a") for n in range(101))], Limits(hardlinks=100), "hardlinks"),
        ([f("a", "x" * 10_000)], Limits(bytes=9_000), "bytes"),
        ([f("a/b/c/d")], Limits(depth=3), "depth"),
        ([s("a", "b/b/b"), d("b/b/b"), f("a/c")], Limits(depth=3), None),
        ([s("a", "b/b/b"), f("a/c/c")], Limits(depth=3), "depth"),
        ([f("abc")], Limits(name=2), "name"),
        ([f("a/b/c")], Limits(path=4), "path"),
        ([s("a", "12345")], Limits(link=4), "link"),
        ([f("a", xattrs={"user.a": b"x"})], Limits(xattrs=6), "xattrs"),
    ],
)
def test_limits(entries: list[images.Entry], limits: Limits, name: str | None, tmp_path: Path) -> None:
    """Each limit ends the image with its name, what was found and what is allowed."""
    if name is None:
        unpack_limited([layer(*entries)], limits, tmp_path / "out")
        return
    with pytest.raises(LimitExceeded) as caught:
        unpack_limited([layer(*entries)], limits, tmp_path / "out")
    assert name in caught.value.what or "deep" in caught.value.what
    assert caught.value.found


@pytest.mark.parametrize("kind", ["gzip", "zstd", "gzip of headers"])
def test_bombs(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A layer that inflates a thousandfold ends at the ratio, before it fills the disk, and leaves nothing."""
    size = 100 << 20
    stream = header(b"a", size=octal(size)) + bytes(size) + END
    if kind == "gzip of headers":
        stream = raw(b"a", b"") * (size // 512) + END
    if kind == "zstd":
        content = zstandard.compress(stream)
    else:
        compressor = zlib.compressobj(9, wbits=31)
        content = compressor.compress(stream) + compressor.flush()
    layout = write_layout(tmp_path / "layout", {"t": Image(tuple(blob(stream, content)))})
    if len(stream) <= 1000 * len(content):
        # zlib does not reach the ratio with these: then it is no bomb, and other limits hold.
        assert kind == "gzip of headers"
        return
    assert main(["unpack", f"oci:{layout}:t", str(tmp_path / "out")]) == 1
    assert "'ratio'" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["layout"]


def test_squash_does_not_emit_before_it_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file of `squash -o` appears only when it is whole."""
    image = Image((layer(h("a", "missing")), layer(f("b", "x" * 100_000))))
    layout = write_layout(tmp_path / "layout", {"t": image})
    assert main(["squash", f"oci:{layout}:t", "-o", str(tmp_path / "out.tar")]) == 1
    assert "hard link to nothing" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["layout"]


@pytest.mark.parametrize("name", [name for name, (_, reason) in ATTACKS.items() if reason is None])
def test_gnu_tar_extracts_the_squashed_attack_harmlessly(name: str, tmp_path: Path) -> None:
    """Nor is a squashed attack one on whoever extracts it with a plain tar."""
    require_root()
    host = host_tree(tmp_path)
    stream = io.BytesIO()
    layers = [MemoryLayer.of(each.tar) for each in made(name, host).layers]
    try:
        with tempfile.TemporaryFile() as aside:
            flatten(layers, TarSink(stream, aside))
    except OutOfOrder:
        return
    (tmp_path / "work").mkdir()
    before = watched(tmp_path)
    run("tar", "-xpf", "-", "-C", tmp_path / "work", input=stream.getvalue())
    assert watched(tmp_path) == before
    kinds = {entry.kind for entry in Reader([stream.getvalue()])}
    assert Kind.DIRECTORY in kinds
