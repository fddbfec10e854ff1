"""`image-list.yaml`: what users ask for, as values.

The text of a list goes in; wishes come out, together with every mistake of the whole list, each with its line, so that
one pull request check tells its author everything at once. Nothing here resolves a tag, talks to a registry or knows
what is published. An image list that has errors must not be acted upon: `ImageList.require_valid` is the gate.
"""

from cvmfs_sync.imagelist.model import json_schema
from cvmfs_sync.imagelist.reading import load, parse
from cvmfs_sync.imagelist.values import ImageList, Origin, Wish

__all__ = ["ImageList", "Origin", "Wish", "json_schema", "load", "parse"]
