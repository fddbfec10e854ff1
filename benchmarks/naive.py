"""What one writes first: download each layer, extract it with tarfile, apply the whiteouts. A contender, no part of us.

Arguments: http://HOST/v2/REPOSITORY TAG DIRECTORY.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import requests

_ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def main(base: str, tag: str, destination: str) -> None:
    """Unpack an image with tarfile, layer by layer."""
    root = Path(destination)
    root.mkdir()
    manifest = requests.get(f"{base}/manifests/{tag}", headers={"Accept": _ACCEPT}, timeout=60).json()
    for layer in manifest["layers"]:
        with tempfile.TemporaryFile() as blob:
            with requests.get(f"{base}/blobs/{layer['digest']}", stream=True, timeout=60) as response:
                shutil.copyfileobj(response.raw, blob, 1 << 20)
            blob.seek(0)
            with tarfile.open(fileobj=blob, mode="r:gz") as tar:
                for member in tar:
                    _extract(tar, member, root)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    parent, name = os.path.split(member.name)
    if name == ".wh..wh..opq":
        for child in (root / parent).iterdir():
            _remove(child)
    elif name.startswith(".wh."):
        _remove(root / parent / name.removeprefix(".wh."))
    else:
        path = root / member.name
        if path.is_symlink() or (path.exists() and not member.isdir()):
            _remove(path)
        tar.extract(member, root, numeric_owner=True, filter="fully_trusted")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
