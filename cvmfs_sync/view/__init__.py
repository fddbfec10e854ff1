"""What people and programs may see of a repository: documents, and the queries that make them.

The repository, the image list and the state database are only read here. Pages, the API, feeds, badges, exports and the
static site all show these documents and nothing else, so that what one of them says every other one says, too.
"""

from __future__ import annotations
