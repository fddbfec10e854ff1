"""The HTML pages: documents of the view go in, HTML text comes out.

Nothing is read, asked or decided here, and no request is known: what a page links to is a value that is passed in, so
that the server and the static site show the same pages. All texts may come from hostile images: templates escape
everything, and `texts` makes visible what would be invisible.
"""

from __future__ import annotations

from cvmfs_sync.pages.rendering import (
    Site,
    Urls,
    activity_page,
    catalogue_page,
    error_page,
    image_page,
    operations_page,
    static_files,
)

__all__ = [
    "Site",
    "Urls",
    "activity_page",
    "catalogue_page",
    "error_page",
    "image_page",
    "operations_page",
    "static_files",
]
