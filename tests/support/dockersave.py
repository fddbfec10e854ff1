"""Archives as `docker save` writes them, member by member.

`save_members` makes the members of one, in the old form (`<id>/layer.tar`) or the one of Docker 25 (`blobs/`); a test
changes what it likes, and `write_save` writes them. Real ones come from skopeo and podman.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support.images import MEDIA_TYPES, Image, digest_of

__all__ = ["Link", "Members", "save_members", "write_save"]

Form = Literal["legacy", "oci"]


@dataclass(frozen=True, slots=True)
class Link:
    """A link in place of a file."""

    target: str
    hard: bool = False


Members = dict[str, bytes | Link]


def save_members(*images: tuple[Image, Sequence[str]], form: Form = "legacy") -> Members:
    """The members of an archive with these images, each with its names (`repository:tag`)."""
    members: Members = {}
    items: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for image, names in images:
        config_name = digest_of(image.config_bytes).removeprefix("sha256:")
        config_path = f"blobs/sha256/{config_name}" if form == "oci" else f"{config_name}.json"
        members[config_path] = image.config_bytes
        layers: list[str] = []
        for number, layer in enumerate(image.layers):
            if form == "oci":
                path = f"blobs/sha256/{layer.digest.removeprefix('sha256:')}"
            else:
                directory = digest_of(f"{image.digest} {number}".encode()).removeprefix("sha256:")
                path = f"{directory}/layer.tar"
                members[f"{directory}/VERSION"] = b"1.0"
                members[f"{directory}/json"] = json.dumps({"id": directory}).encode()
            members[path] = layer.blob
            layers.append(path)
        items.append({"Config": config_path, "RepoTags": list(names) or None, "Layers": layers})
        if form == "oci":
            members[f"blobs/sha256/{image.digest.removeprefix('sha256:')}"] = image.manifest_bytes
            entries.append({"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest_bytes)})
    if form == "oci":
        index = {"schemaVersion": 2, "mediaType": MEDIA_TYPES["oci"]["index"], "manifests": entries}
        members["index.json"] = json.dumps(index).encode()
        members["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    members["manifest.json"] = json.dumps(items).encode()
    return members


def write_save(path: Path, members: Mapping[str, bytes | Link] | Iterable[tuple[str, bytes | Link]]) -> Path:
    """Write members into a tar file, in their order; a list may have one twice. Returns the path."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            if isinstance(content, Link):
                info.type = tarfile.LNKTYPE if content.hard else tarfile.SYMTYPE
                info.linkname = content.target
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path
