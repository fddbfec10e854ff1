"""What one writes first to ask for ten thousand tags: threads, a session, HEAD. A contender, no part of us.

Arguments: HOST REPOSITORIES TAGS THREADS. Prints how many tags have a digest.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import requests
from requests.adapters import HTTPAdapter

from benchmarks.tagserver import names
from cvmfs_sync.image import ACCEPT


def main(host: str, repositories: str, tags: str, threads: str) -> None:
    """Ask for the digest of every tag."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_maxsize=int(threads)))
    session.headers["Accept"] = ", ".join(ACCEPT)

    def head(name: tuple[str, str]) -> str:
        repository, tag = name
        response = session.head(f"http://{host}/v2/{repository}/manifests/{tag}", timeout=60)
        response.raise_for_status()
        return response.headers["Docker-Content-Digest"]

    with ThreadPoolExecutor(int(threads)) as executor:
        digests = set(executor.map(head, names(int(repositories), int(tags))))
    sys.stdout.write(f"{len(digests)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
