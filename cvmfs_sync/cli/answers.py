"""Commands that tell what is published: `status`, `where`, `export`, `site`."""

from __future__ import annotations

import dataclasses
import enum
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cvmfs_sync.cli.app import app
from cvmfs_sync.cli.options import DEFAULT_CONFIG, ConfigOption, ImageArgument, ImagesArgument, JsonOption
from cvmfs_sync.console import print_json, printable
from cvmfs_sync.reference import parse_image


@app.command("status")
def _status(
    images: ImagesArgument = None, config: ConfigOption = DEFAULT_CONFIG, json_output: JsonOption = False
) -> int:
    """Show which images are published, and why others are not.

    Asks no registry: it tells what the last cycles found. With IMAGE, tells about images that nobody asked for, too.
    """
    from cvmfs_sync.render import print_status, status_document
    from cvmfs_sync.service import known_wishes, load_config, make_recipe, make_repository, now
    from cvmfs_sync.state import State
    from cvmfs_sync.status import image_status

    settings = load_config(config)
    only = [parse_image(image) for image in images or ()]
    repository = make_repository(settings)
    with State.snapshot(settings.state_dir) as state:
        known, about = known_wishes(settings, state)
        statuses = image_status(repository, make_recipe(settings).layout, state, known.wished_on(now().date()), only)
    if json_output:
        print_json({"list": about, "images": [status_document(repository.root, status) for status in statuses]})
    else:
        print_status(repository.root, statuses)
    if about["refused"] is not None:
        sys.stderr.write(
            printable(f"cvmfs-sync: the image list is not valid, an older one is in force: {about['refused']}\n")
        )
    return 0


@app.command("where")
def _where(
    image: ImageArgument,
    config: ConfigOption = DEFAULT_CONFIG,
) -> int:
    """Print the path to run an image from.

    If it is not published, print where else to get it: docker://..., which Apptainer takes as well.
    """
    from cvmfs_sync.inventory import published
    from cvmfs_sync.layout import runnable
    from cvmfs_sync.service import load_config, make_recipe, make_repository

    settings = load_config(config)
    name = parse_image(image)
    layout = make_recipe(settings).layout
    repository = make_repository(settings)
    link = layout.link(name)
    there = published(repository, layout, link) is not None
    sys.stdout.write(f"{repository.root / link if there else runnable(name)}\n")
    return 0


class ExportForm(enum.StrEnum):
    """For which program a dictionary is."""

    GLIDEINWMS = "glideinwms"
    HTCONDOR = "htcondor"
    JSON = "json"


@app.command("export")
def _export(
    config: ConfigOption = DEFAULT_CONFIG,
    form: Annotated[
        ExportForm, typer.Option("--format", help="GlideinWMS's SINGULARITY_IMAGES_DICT, or JSON for HTCondor.")
    ] = ExportForm.JSON,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY=IMAGE", help="Only this image, under this key; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write this file; stdout by default.")
    ] = None,
) -> int:
    """Print the published images as a dictionary for a batch system.

    What its syntax cannot hold is left out and told on stderr. Exit code 1 if that was an image that --key names; then
    FILE stays as it was.
    """
    from cvmfs_sync.exports import export, parse_keys
    from cvmfs_sync.service import load_config
    from cvmfs_sync.viewing import open_view

    chosen = parse_keys(keys or ())
    with open_view(load_config(config), watch=False) as view:
        view.require("repository")
        exported = export(view.every(), form.value, chosen)
    for each in exported.left_out:
        sys.stderr.write(printable(f"{each.image} is left out: {each.reason}\n"))
    if any(each.asked for each in exported.left_out):
        return 1
    if output is None:
        sys.stdout.write(exported.text)
        return 0
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        fresh.write_text(exported.text)
        fresh.replace(output)
    finally:
        fresh.unlink(missing_ok=True)
    return 0


@app.command("site")
def _site(
    output: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Write it there; what others have put there is left alone."),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="By which the world reaches DIR: for feeds, and for badges elsewhere."),
    ] = None,
    json_output: JsonOption = False,
) -> int:
    """Write the pages as files, for any web server.

    Only files that change are written, and of those that are there only its own are removed. After an error the site is
    whole, and the next run completes what is new.
    """
    from cvmfs_sync.service import load_config
    from cvmfs_sync.site import require_apart, write_site
    from cvmfs_sync.viewing import open_view

    settings = load_config(config)
    require_apart(output, settings)
    with open_view(settings, watch=False) as view:
        done = write_site(view, output, url)
    if json_output:
        print_json(dataclasses.asdict(done))
    else:
        sys.stdout.write(f"{done.written} files written, {done.unchanged} unchanged, {done.removed} removed\n")
    return 0
