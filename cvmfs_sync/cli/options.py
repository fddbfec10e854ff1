"""Arguments and options that several commands take, as types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvmfs_sync.reference import Platform

__all__ = [
    "DEFAULT_CONFIG",
    "DEFAULT_PLATFORM",
    "ConfigOption",
    "ImageArgument",
    "ImagesArgument",
    "InsecureOption",
    "JsonOption",
    "PlatformOption",
]

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", metavar="FILE", envvar="CVMFS_SYNC_CONFIG", help="Read this configuration file."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout instead of text.")]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Talk plain HTTP to the image's registry, not HTTPS.")]
PlatformOption = Annotated[
    str,
    typer.Option(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="Choose this platform where an image is there for several."
    ),
]
ImagesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE", help="Restrict it to these images; all of the list by default."),
]
ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="An image reference such as alpine or ghcr.io/org/name:tag, or oci:DIR[:tag], docker-archive:FILE[:tag],"
        " docker-daemon:name[:tag], oras://registry/repository:tag.",
    ),
]
DEFAULT_CONFIG = Path("cvmfs-sync.yaml")
DEFAULT_PLATFORM = str(Platform())
