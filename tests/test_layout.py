"""Every path in the repository: links for people, trees by digest, and back."""

from __future__ import annotations

import pytest

from cvmfs_sync.layout import Layout, LayoutName, record_path, relative_target, runnable, tree_key
from cvmfs_sync.reference import Digest, Platform, parse_image

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)
ARM = Platform("linux", "arm64", "v8")


@pytest.mark.parametrize(
    ("image", "unpacked", "osg"),
    [
        ("alpine", "docker.io/library/alpine:latest", "library/alpine:latest"),
        ("ghcr.io/org/a/b:1", "ghcr.io/org/a/b:1", "org/a/b:1"),
        ("host:5000/x:y", "host:5000/x:y", "x:y"),
        (f"ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST}", f"a/b@{DIGEST}"),
        (f"ghcr.io/a/b:1@{DIGEST}", f"ghcr.io/a/b:1@{DIGEST}", f"a/b:1@{DIGEST}"),
        ("oci:/srv/images:1", "oci/srv/images:1", "oci/srv/images:1"),
        ("oci:/srv/images", "oci/srv/images", "oci/srv/images"),
        ("docker-archive:/srv/x.tar:1", "docker-archive/srv/x.tar:1", "docker-archive/srv/x.tar:1"),
        ("docker-archive:/srv/x.tar", "docker-archive/srv/x.tar", "docker-archive/srv/x.tar"),
        ("docker-daemon:x", "docker-daemon/x:latest", "docker-daemon/x:latest"),
        ("docker-daemon:localhost/x:1", "docker-daemon/localhost/x:1", "docker-daemon/localhost/x:1"),
        ("oras://ghcr.io/a/b:1", "oras/ghcr.io/a/b:1", "oras/ghcr.io/a/b:1"),
        (f"oras://ghcr.io/a/b@{DIGEST}", f"oras/ghcr.io/a/b@{DIGEST}", f"oras/ghcr.io/a/b@{DIGEST}"),
    ],
)
def test_links_are_what_users_type(image: str, unpacked: str, osg: str) -> None:
    """Layout unpacked has the registry in the link, layout osg has not; a digest is part of the name."""
    name = parse_image(image)
    assert Layout("unpacked").link(name) == unpacked
    assert Layout("osg").link(name) == osg
    assert Layout("unpacked").link(name, ARM) == f".multiarch/linux-arm64-v8/{unpacked}"
    assert Layout("osg").link(name, ARM) == f".multiarch/linux-arm64-v8/{osg}"


@pytest.mark.parametrize(
    "image",
    [
        "docker.io/library/a:1", f"ghcr.io/a/b:1@{DIGEST}", "oci:/srv/x:1", "oci:/srv/x", "docker-archive:/srv/x.tar:1",
        "docker-archive:/srv/x.tar", "docker-daemon:x:1", "docker-daemon:localhost:5000/x:1", "oras://host:5000/x:1",
        "localhost/oci/x:1",
    ],
)  # fmt: skip
def test_links_of_layout_unpacked_tell_their_image(image: str) -> None:
    """A catalogue that was lost can be made from the links; layout osg has no registry in them."""
    name = parse_image(image)
    for platform in (None, ARM):
        assert Layout("unpacked").image(Layout("unpacked").link(name, platform)) == image
        assert Layout("osg").image(Layout("osg").link(name, platform)) is None


@pytest.mark.parametrize(("layout", "tree"), [("unpacked", f".flat/01/{HEX}"), ("osg", f".images/01/{HEX[2:]}")])
def test_trees_are_found_by_their_digest_and_back(layout: LayoutName, tree: str) -> None:
    """A tree's path holds the manifest's digest, and the recipe's generation where it is not the first."""
    assert Layout(layout).tree(DIGEST, 1) == tree
    assert Layout(layout).tree(DIGEST, 3) == f"{tree}-3"
    assert Layout(layout).digest_of_tree(tree) == HEX
    assert Layout(layout).digest_of_tree(f"{tree}-3") == f"{HEX}-3"


@pytest.mark.parametrize(
    "path", ["", "x", ".flat/01", f".flat/02/{HEX}", f".flat/01/{HEX}/bin", f".images/01/{HEX}", f"../.flat/01/{HEX}"]
)
def test_other_paths_are_no_trees(path: str) -> None:
    """A link to anywhere else is nobody's image."""
    assert Layout().digest_of_tree(path) is None


def test_algorithms_never_share_a_tree() -> None:
    """A sha512 digest has its algorithm in its key, so that it can't be taken for another's."""
    long = Digest("sha512", HEX * 2)
    assert tree_key(long, 1) == f"{HEX * 2}-sha512"
    assert record_path(tree_key(DIGEST, 1)) == f".cvmfs-sync/images/01/{HEX}.json"


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("docker.io/library/a:1", "../../.flat/01/x"),
        ("a:1", ".flat/01/x"),
        (".multiarch/linux-arm64/docker.io/a:1", "../../../.flat/01/x"),
    ],
)
def test_targets_are_relative(link: str, target: str) -> None:
    """A link leads to its tree wherever the repository is mounted."""
    assert relative_target(link, ".flat/01/x") == target


@pytest.mark.parametrize(
    ("image", "where"),
    [
        ("alpine", "docker://docker.io/library/alpine:latest"),
        (f"ghcr.io/a/b:1@{DIGEST}", f"docker://ghcr.io/a/b@{DIGEST}"),
        ("oci:/srv/x:1", "oci:/srv/x:1"),
        ("docker-archive:/srv/x.tar", "docker-archive:/srv/x.tar"),
        ("docker-archive:/srv/x.tar:1", "docker-archive:/srv/x.tar"),
        ("docker-daemon:x", "docker-daemon:x:latest"),
        ("oras://ghcr.io/x:1", "oras://ghcr.io/x:1"),
    ],
)
def test_images_that_are_not_published_run_from_where_they_are(image: str, where: str) -> None:
    """Apptainer takes the text as it is: it refuses a tag and a digest together, and a tag alone behind a file."""
    assert runnable(parse_image(image)) == where
