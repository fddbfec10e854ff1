"""The benchmark image, unpacked and squashed, against umoci's tree: path by path, all of what `lstat` and `read` say.

    python -m benchmarks.exact [LAYOUT [TAG ...]]

Without arguments, both tags of the image that `make bench` has kept. As root. Exit code 1 if a path differs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from cvmfs_sync.removal import remove_tree
from tests.support.trees import differences, tree_listing

COMMAND = (sys.executable, "-m", "cvmfs_sync")


def compare(layout: Path, tag: str, work: Path) -> int:
    """How many paths of `unpack` and of `squash | tar x` differ from umoci's."""
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:{tag}", work / "umoci"], check=True, capture_output=True)
    subprocess.run([*COMMAND, "unpack", f"oci:{layout}:{tag}", work / "unpack"], check=True)
    (work / "squash").mkdir()
    squash = shlex.join([*COMMAND, "squash", f"oci:{layout}:{tag}"])
    tar = "tar --extract --preserve-permissions --numeric-owner --xattrs --xattrs-include='*' --directory"
    subprocess.run(f"{squash} | {tar} {shlex.quote(str(work / 'squash'))}", shell=True, check=True)
    expected = tree_listing(work / "umoci/rootfs")
    total = 0
    for name in ("unpack", "squash"):
        different = differences(expected, tree_listing(work / name))
        print(f"{layout.name}:{tag} {name}: {len(expected)} paths, {len(different)} differ from umoci's")
        for line in different[:20]:
            print(f"  {line}")
        total += len(different)
    return total


def main() -> int:
    """Compare all tags that are asked for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvmfs-sync-bench"
    layouts = [Path(sys.argv[1])] if len(sys.argv) > 1 else sorted(cache.glob("debian-*"))
    if not layouts:
        print("found: no benchmark image; to do: 'make bench' once, or name an OCI layout", file=sys.stderr)
        return 2
    total = 0
    for tag in sys.argv[2:] or ["1", "2"]:
        work = Path(tempfile.mkdtemp(prefix="cvmfs-sync-exact-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        try:
            total += compare(layouts[-1].resolve(), tag, work)
        finally:
            remove_tree(work)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
