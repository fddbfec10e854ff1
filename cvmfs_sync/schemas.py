"""The JSON Schemas of image list and configuration as files, for editors.

`python -m cvmfs_sync.schemas DIRECTORY` writes them; a test holds the committed ones equal to the code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from cvmfs_sync import config, imagelist

__all__ = ["documents", "write"]


def documents() -> Mapping[str, str]:
    """The text of each file, by its name."""
    schemas = {"image-list": imagelist.json_schema(), "cvmfs-sync": config.json_schema()}
    return {f"{name}.schema.json": json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()}


def write(directory: Path) -> None:
    """Write all of them."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
