"""Commands for one image, without repository and configuration: `unpack`, `squash`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvmfs_sync.cli.app import app
from cvmfs_sync.cli.options import DEFAULT_PLATFORM, ImageArgument, InsecureOption, PlatformOption
from cvmfs_sync.reference import Platform, parse_image


@app.command("unpack")
def _unpack(
    image: ImageArgument,
    destination: Annotated[
        Path,
        typer.Argument(
            metavar="DEST",
            help="The directory to make; it may be there if it is empty. Of a SIF file, the file, which may not.",
        ),
    ],
    insecure: InsecureOption = False,
    platform: PlatformOption = DEFAULT_PLATFORM,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Add what Apptainer needs and make all readable, as sync does.")
    ] = False,
) -> int:
    """Unpack one image into a directory.

    Needs no repository and no configuration. DEST appears when it is whole; after an error nothing is there. Owners and
    devices are kept when root unpacks. A SIF file (oras://...) stays what it is: DEST becomes that file.
    """
    from cvmfs_sync.standalone import unpack

    unpack(parse_image(image), destination, Platform.parse(platform), insecure=insecure, sandbox=sandbox)
    return 0


@app.command("squash")
def _squash(
    image: ImageArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write this file; stdout by default.")
    ] = None,
    insecure: InsecureOption = False,
    platform: PlatformOption = DEFAULT_PLATFORM,
) -> int:
    """Write one image as one flat tar archive.

    Needs no repository and no configuration. FILE appears when it is whole. Layers wait in TMPDIR, /var/tmp by default.
    """
    from cvmfs_sync.standalone import squash

    squash(parse_image(image), output, Platform.parse(platform), insecure=insecure)
    return 0
