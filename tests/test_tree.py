"""Merging layers into one tree: the rules one by one, and arbitrary layers against a naive model."""

from __future__ import annotations

import copy

import pytest
from hypothesis import event, given, settings

from cvmfs_sync.errors import InvalidImage, LimitExceeded
from cvmfs_sync.tar import Kind, Limits
from cvmfs_sync.tree import SYNTHETIC, Tree, directory, file, merge, printable, split, symlink
from tests.support import images
from tests.support.images import device as dev
from tests.support.images import directory as d
from tests.support.images import fifo, opaque, whiteout
from tests.support.images import file as f
from tests.support.images import hardlink as h
from tests.support.images import symlink as s
from tests.support.model import Refused, entries_of, listing, model, random_layers, short

Layers = list[list[images.Entry]]


def merged(layers: Layers, limits: Limits | None = None) -> Tree:
    return merge([entries_of(each) for each in layers], limits)


def text(tree: Tree) -> list[str]:
    """One line a path: a directory with a slash, a link with its target, a file with its content's layer and ordinal.

    Hard links show the same pair.
    """
    lines = []
    for path, inode in tree.walk():
        name = path.decode()
        match inode.entry.kind:
            case Kind.DIRECTORY:
                lines.append(f"{name}/")
            case Kind.SYMLINK:
                lines.append(f"{name} -> {inode.entry.link.decode()}")
            case Kind.FILE:
                lines.append(f"{name}={inode.layer}.{inode.ordinal}")
            case kind:
                lines.append(f"{name} {kind.name.lower()}")
    return lines


# Name, layers bottom to top, what the tree holds. All but the marked ones are umoci's, too: see test_umoci.py.
RULES: dict[str, tuple[Layers, list[str]]] = {
    "no layers": ([], []),
    "an empty layer": ([[]], []),
    "layers add up": ([[f("a")], [f("b")]], ["a=0.0", "b=1.0"]),
    "a file replaces a file": ([[f("a")], [f("a")]], ["a=1.0"]),
    "the last of duplicates wins": ([[f("a"), f("b"), f("a")]], ["a=0.2", "b=0.1"]),
    "missing parents are made": ([[f("a/b/c")]], ["a/", "a/b/", "a/b/c=0.0"]),
    "paths have one form": (
        [[f("./a"), f("/b"), f("c//d"), f("./e/./f")]],
        ["a=0.0", "b=0.1", "c/", "c/d=0.2", "e/", "e/f=0.3"],
    ),
    "a directory over a directory keeps what is in it": ([[d("a"), f("a/x")], [d("a", 0o700)]], ["a/", "a/x=0.1"]),
    "a file over a directory removes the tree": ([[f("a/x/y"), f("b")], [f("a")]], ["a=1.0", "b=0.1"]),
    "a directory over a file": ([[f("a")], [d("a"), f("a/x")]], ["a/", "a/x=1.1"]),
    "a directory over a link replaces the link": (
        [[f("b/x"), s("a", "b")], [d("a"), f("a/y")]],
        ["a/", "a/y=1.1", "b/", "b/x=0.0"],
    ),
    "a link over a directory removes the tree": ([[f("a/x"), d("b")], [s("a", "b")]], ["a -> b", "b/"]),
    "a fifo over a directory": ([[f("a/x")], [fifo("a")]], ["a fifo"]),
    "a device over a link": ([[s("a", "b")], [dev("a", 1, 3)]], ["a character"]),
    "a file over a link replaces the link": ([[f("b"), s("a", "b")], [f("a")]], ["a=1.0", "b=0.0"]),
    "same layer: directory, file, directory": ([[f("a/x"), f("a"), d("a"), f("a/y")]], ["a/", "a/y=0.3"]),
    "same layer: directory, link, through it": (
        [[d("z"), f("a/b"), s("a", "z"), f("a/c")]],
        ["a -> z", "z/", "z/c=0.3"],
    ),
    # whiteouts
    "a whiteout removes": ([[f("a"), f("b")], [whiteout("a")]], ["b=0.1"]),
    "a whiteout removes a tree": ([[f("a/x/y"), f("b")], [whiteout("a")]], ["b=0.1"]),
    "a whiteout removes a link, not its target": ([[f("d/x"), s("a", "d")], [whiteout("a")]], ["d/", "d/x=0.0"]),
    "a whiteout of nothing": ([[f("a")], [whiteout("b"), whiteout("c/d"), whiteout("a/x")]], ["a=0.0"]),
    "a whiteout makes no parents": ([[f("a")], [whiteout("x/y/z")]], ["a=0.0"]),
    "a whiteout in the bottom layer": ([[f("a"), whiteout("a")]], ["a=0.0"]),
    "a whiteout, then its own layer's file": ([[f("a")], [whiteout("a"), f("a")]], ["a=1.1"]),
    "its own layer's file, then a whiteout": ([[f("a")], [f("a"), whiteout("a")]], ["a=1.0"]),
    "a whiteout leaves its own layer's tree": ([[f("a/x")], [f("a/y"), whiteout("a")]], ["a/", "a/y=1.0"]),
    "a whiteout before its own layer's tree": ([[f("a/x")], [whiteout("a"), f("a/y")]], ["a/", "a/y=1.1"]),
    "a whiteout and its own layer's directory": ([[f("a/x")], [d("a"), whiteout("a")]], ["a/"]),
    "a whiteout two layers up": ([[f("a")], [f("b")], [whiteout("a")]], ["b=1.0"]),
    "removed and made again": ([[f("a")], [whiteout("a")], [f("a")]], ["a=2.0"]),
    "a whiteout through a link": ([[f("d/x"), f("d/y"), s("a", "d")], [whiteout("a/x")]], ["a -> d", "d/", "d/y=0.1"]),
    "a whiteout through a link spares its own layer's": (
        [[f("d/x"), s("a", "d")], [f("d/x"), whiteout("a/x")]],
        ["a -> d", "d/", "d/x=1.0"],
    ),
    "a whiteout of a whiteout's name": ([[f("a")], [f(".wh..wh.a")]], ["a=0.0"]),
    "a whiteout of a name with dots": ([[f("..."), f("a")], [f(".wh....")]], ["a=0.1"]),
    "a whiteout may be of any type": ([[f("a"), f("b")], [d(".wh.a"), s(".wh.b", "x")]], []),
    # opaque
    "opaque hides what is below": ([[f("a/x"), f("b")], [opaque("a")]], ["a/", "b=0.1"]),
    "opaque first": ([[f("a/x")], [opaque("a"), f("a/y")]], ["a/", "a/y=1.1"]),
    "opaque last": (
        [[f("a/x"), f("a/s/o")], [f("a/y"), f("a/s/n"), opaque("a")]],
        ["a/", "a/s/", "a/s/n=1.1", "a/y=1.0"],
    ),
    "opaque twice": ([[f("a/x")], [opaque("a"), f("a/y"), opaque("a"), f("a/z")]], ["a/", "a/y=1.1", "a/z=1.3"]),
    "opaque root": ([[f("a"), f("b/c")], [opaque(""), f("d")]], ["d=1.1"]),
    "opaque of nothing makes nothing": ([[f("a")], [opaque("b")]], ["a=0.0"]),
    "opaque of a file": ([[f("a")], [opaque("a")]], ["a=0.0"]),
    "opaque through a link": ([[f("d/x"), s("a", "d")], [opaque("a"), f("a/y")]], ["a -> d", "d/", "d/y=1.1"]),
    "opaque only for layers below": ([[f("a/x")], [opaque("a")], [f("a/x")]], ["a/", "a/x=2.0"]),
    # hard links
    "a hard link": ([[f("a"), h("b", "a")]], ["a=0.0", "b=0.0"]),
    "a hard link's own metadata is nothing": ([[f("a"), h("b", "a", mode=0o600, uid=7)]], ["a=0.0", "b=0.0"]),
    "a hard link to a lower layer": ([[f("a")], [h("b", "a")]], ["a=0.0", "b=0.0"]),
    "the other name keeps the content, target removed": ([[f("a"), h("b", "a")], [whiteout("a")]], ["b=0.0"]),
    "the other name keeps the content, target replaced": ([[f("a"), h("b", "a")], [f("a")]], ["a=1.0", "b=0.0"]),
    "in the same layer, too": ([[f("a"), h("b", "a"), f("a")]], ["a=0.2", "b=0.0"]),
    "a hard link to a replaced file is to the new one": ([[f("a")], [f("a"), h("b", "a")]], ["a=1.0", "b=1.0"]),
    "renamed by a hard link": ([[f("a")], [h("b", "a"), whiteout("a")]], ["b=0.0"]),
    "a chain of hard links": (
        [[f("a"), h("b", "a")], [h("c", "b")], [whiteout("a"), h("d", "c")]],
        ["b=0.0", "c=0.0", "d=0.0"],
    ),
    "a hard link to a symbolic link": ([[s("a", "nowhere"), h("b", "a")]], ["a -> nowhere", "b -> nowhere"]),
    "a hard link to a fifo": ([[fifo("a"), h("b", "a")]], ["a fifo", "b fifo"]),
    "a hard link through a linked parent": (
        [[f("d/x"), s("a", "d")], [h("k", "a/x")]],
        ["a -> d", "d/", "d/x=0.0", "k=0.0"],
    ),
    "a hard link below a linked parent": (
        [[f("d/x"), s("a", "d")], [h("a/k", "d/x")]],
        ["a -> d", "d/", "d/k=0.0", "d/x=0.0"],
    ),
    "a hard link over its own other name": ([[f("a"), h("b", "a")], [h("b", "a")]], ["a=0.0", "b=0.0"]),
    # links on the way
    "through a relative link": ([[d("d"), s("a", "d")], [f("a/x")]], ["a -> d", "d/", "d/x=1.0"]),
    "through an absolute link": ([[d("d/e"), s("a", "/d/e")], [f("a/x")]], ["a -> /d/e", "d/", "d/e/", "d/e/x=1.0"]),
    "through a link to the root": ([[s("a", "/")], [f("a/x")]], ["a -> /", "x=1.0"]),
    "through a link beyond the root": (
        [[d("x"), s("etc", "../../../x")], [f("etc/f")]],
        ["etc -> ../../../x", "x/", "x/f=1.0"],
    ),
    "through two links": ([[d("d"), s("a", "b"), s("b", "d")], [f("a/x")]], ["a -> b", "b -> d", "d/", "d/x=1.0"]),
    "through a link into nowhere": (
        [[s("a", "no/where")], [f("a/x")]],
        ["a -> no/where", "no/", "no/where/", "no/where/x=1.0"],
    ),
    "a link in the middle": (
        [[f("d/e/x"), s("a", "d")], [f("a/e/x"), f("a/n/y")]],
        ["a -> d", "d/", "d/e/", "d/e/x=1.0", "d/n/", "d/n/y=1.1"],
    ),
    "a directory at a link's end": (
        [[f("d/e/x"), s("a", "d")], [d("a/e", 0o700)]],
        ["a -> d", "d/", "d/e/", "d/e/x=0.0"],
    ),
    "up and down again": ([[d("d"), d("e"), s("d/up", "..")], [f("d/up/e/x")]], ["d/", "d/up -> ..", "e/", "e/x=1.0"]),
}
WRONG: dict[str, tuple[Layers, str]] = {
    "hard link to nothing": ([[h("a", "no")]], "a hard link to nothing"),
    "hard link to what comes later": ([[h("a", "b"), f("b")]], "a hard link to nothing"),
    "hard link to itself": ([[f("a"), h("a", "a")]], "a hard link to nothing"),
    "hard link to what was removed below": ([[f("a")], [whiteout("a")], [h("b", "a")]], "a hard link to nothing"),
    "hard link over its own directory": ([[f("d/x")], [h("d", "d/x")]], "a hard link to nothing"),
    "hard link to a directory": ([[d("d"), h("a", "d")]], "a hard link to a directory"),
    "hard link below a file": ([[f("a"), h("b", "a/x")]], "a hard link to nothing"),
    "whiteout of .": ([[f("d/x")], [f("d/.wh..")]], "a whiteout of '.'"),
    "whiteout of ..": ([[f("d/x")], [f("d/.wh...")]], "a whiteout of '..'"),
    "whiteout of no name": ([[f("d/x")], [f("d/.wh.")]], "a whiteout of ''"),
    "below a file of the layer below": ([[f("a")], [f("a/b")]], "cannot be there"),
    "below a file of the same layer": ([[f("a"), f("a/b")]], "cannot be there"),
    "below a fifo": ([[fifo("a"), f("a/b")]], "cannot be there"),
    "below a link to a file": ([[f("f"), s("a", "f")], [f("a/b")]], "cannot be there"),
    "below links in a circle": ([[s("a", "b"), s("b", "a")], [f("a/x")]], "in a circle"),
    "below a link to itself": ([[s("a", "a")], [f("a/x")]], "in a circle"),
    "a root that is a link": ([[s(".", "/tmp")]], "the root is not a directory"),
    "a root that is a file": ([[f("./")]], "the root is not a directory"),
    # Docker takes what is below .wh..wh.plnk for sources of hard links; umoci makes a directory of that name.
    "below a whiteout": ([[f(".wh.a/x")]], "a whiteout"),
    "below AUFS's directory": ([[f(".wh..wh.plnk/1.2")]], "a whiteout"),
    "through a link below a whiteout": ([[s("a", ".wh.b")], [f("a/x")]], "a whiteout"),
    # The kernel finds nothing there, umoci goes up all the same.
    "up from nowhere": ([[s("a", "no/../b")], [f("a/x")]], "'..'"),
    "a whiteout up from nowhere": ([[s("a", "no/../b"), f("b/x")], [whiteout("a/x")]], "'..'"),
    "a whiteout through a circle": ([[s("a", "b"), s("b", "a")], [whiteout("a/x")]], "in a circle"),
    "a hard link up from nowhere": ([[s("a", "no/../b"), f("b/x")], [h("c", "a/x")]], ""),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule(name: str) -> None:
    """The tree is what the OCI image-spec and, where it is silent, umoci say; the naive model agrees."""
    layers, expected = RULES[name]
    tree = merged(layers)
    assert text(tree) == expected
    assert listing(tree) == model([entries_of(each) for each in layers])


@pytest.mark.parametrize("name", WRONG)
def test_layers_without_a_meaning_are_refused(name: str) -> None:
    """What is impossible, or means different things to well-known readers, is an error that says why."""
    layers, reason = WRONG[name]
    with pytest.raises(InvalidImage) as caught:
        merged(layers)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("layer ")
    with pytest.raises(Refused):
        model([entries_of(each) for each in layers])


def test_metadata_is_that_of_the_last_entry() -> None:
    """A directory named again has the metadata of the upper layer; one that no layer names is 0755 at the epoch."""
    tree = merged([[d("a", 0o700, mtime=5), f("a/x")], [d("a", 0o750, mtime=6, uid=7)], [f("a/y"), f("b/z")]])
    a, b = tree.find(b"a"), tree.find(b"b")
    assert a is not None
    assert b is not None
    assert (a.entry.mode, a.entry.mtime, a.entry.uid, a.layer, a.ordinal) == (0o750, 6 * 10**9, 7, 1, 0)
    assert (b.entry.mode, b.entry.mtime, b.entry.uid, b.layer) == (0o755, 0, 0, SYNTHETIC)


def test_an_entry_for_the_root_sets_its_metadata() -> None:
    """`./` is the root's own entry and removes nothing."""
    tree = merged([[f("a")], [d("./", 0o711, mtime=9)]])
    assert (tree.root.entry.mode, tree.root.entry.mtime, tree.root.layer) == (0o711, 9 * 10**9, 1)
    assert text(tree) == ["a=0.0"]


def test_merge_is_pure() -> None:
    """The entries stay as they were, and merging them again gives the same tree."""
    layers = [entries_of(each) for each in RULES["opaque last"][0]]
    before = copy.deepcopy(layers)
    first = listing(merge(layers))
    assert layers == before
    assert listing(merge(iter(layers))) == first


def test_walk_is_ordered() -> None:
    """Parents come before children and siblings in the order of their bytes, whatever the layers' order."""
    one = merged([[f("b/y"), f("a"), f("b/x"), f("b-c"), f("c")]])
    other = merged([[f("c"), f("b-c"), f("b/x")], [f("a"), f("b/y")]])
    assert [path for path, _ in one.walk()] == [path for path, _ in other.walk()]
    assert [path for path, _ in one.walk()] == [b"a", b"b", b"b/x", b"b/y", b"b-c", b"c"]


@pytest.mark.parametrize(
    ("path", "found", "resolved"),
    [
        (b"", "", ""),
        (b"f", "f", "f"),
        (b"d", "d", "d"),
        (b"d/x", "d/x", "d/x"),
        (b"rel", "rel", "d"),
        (b"rel/x", "d/x", "d/x"),
        (b"abs/x", "d/x", "d/x"),
        (b"up/d/x", "d/x", "d/x"),
        (b"far/x", "d/x", "d/x"),
        (b"tofile", "tofile", "f"),
        (b"two/x", "d/x", "d/x"),
        (b"d/back", "d/back", ""),
        (b"d/back/f", "f", "f"),
        (b"dangling", "dangling", None),
        (b"dangling/x", None, None),
        (b"circle", "circle", None),
        (b"circle/x", None, None),
        (b"f/x", None, None),
        (b"tofile/x", None, None),
        (b"missing", None, None),
        (b"missing/x", None, None),
        (b"gone/x", None, None),
    ],
)
def test_find_and_resolve(path: bytes, found: str | None, resolved: str | None) -> None:
    """Links on the way are followed inside the root; at the end by `resolve` alone; nothing is made."""
    tree = merged(
        [
            [
                f("f"),
                f("d/x"),
                s("rel", "d"),
                s("abs", "/d"),
                s("up", ".."),
                s("far", "../../../../d/."),
                s("two", "rel"),
            ],
            [
                s("tofile", "f"),
                s("d/back", "/"),
                s("dangling", "no/where"),
                s("circle", "elcric"),
                s("elcric", "circle"),
            ],
            [s("gone", "nowhere/../d")],
        ]
    )
    before = listing(tree)
    names = {id(inode): path.decode() for path, inode in tree.walk()} | {id(tree.root): ""}
    for method, expected in ((tree.find, found), (tree.resolve, resolved)):
        inode = method(path)
        assert (None if inode is None else names[id(inode)]) == expected
    assert listing(tree) == before


def test_links_followed_have_the_kernels_bound() -> None:
    """Forty links in a row are followed, forty-one are too many, as for Linux."""
    chain = [s(f"l{number}", f"l{number + 1}") for number in range(41)]
    assert merged([[d("l41"), *chain], [f("l1/x")]]).find(b"l41/x") is not None
    with pytest.raises(InvalidImage, match="circle"):
        merged([[d("l41"), *chain], [f("l0/x")]])
    tree = merged([[d("l41"), *chain]])
    assert tree.resolve(b"l1") is not None
    assert tree.resolve(b"l0") is None


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        (b"n/m", ["n", "n/m"]),
        (b"d/n", ["d/n"]),
        (b"rel/n", ["d/n"]),
        (b"abs/n", ["d/n"]),
        (b"up/n", ["n"]),
        (b"dangling/n", ["no", "no/where", "no/where/n"]),
        (b"dangling", ["no", "no/where"]),
        (b"d", []),
        (b"", []),
        (b"f", None),
        (b"f/n", None),
        (b"circle/n", None),
        (b"gone/n", None),
    ],
)
def test_make_directory(path: bytes, paths: list[str] | None) -> None:
    """What is missing is made where the links lead; None, and nothing made, where something else stands."""
    layers: Layers = [
        [f("f"), d("d"), s("rel", "d"), s("abs", "/d"), s("up", "../.."), s("dangling", "no/where")],
        [s("circle", "circle"), s("gone", "no/../d")],
    ]
    tree = merged(layers)
    before = short(listing(tree))
    made = tree.make_directory(path)
    assert (made is None) == (paths is None)
    assert sorted(set(short(listing(tree))) - set(before)) == (paths or [])
    if made is not None:
        assert made.entry.kind is Kind.DIRECTORY


def test_links_cannot_lead_deeper_than_the_limit() -> None:
    """Links that multiply a path's depth end at the limit, not at the end of memory."""
    limits = Limits(depth=20)
    layers = [[s("a", "b/" * 9 + "c"), d("b/" * 9 + "c")], [s("b/" * 9 + "c/a", "x/" * 9 + "y")]]
    merged([*layers], limits)
    with pytest.raises(LimitExceeded, match="too deep"):
        merged([*layers, [f("a/a/z/z/z/f")]], limits)


def test_many_opaque_whiteouts_of_one_directory_do_its_work_once() -> None:
    """Whiteouts repeated by the thousand cost no more than their number, whatever the directory holds."""
    many = [f(f"d/{number}") for number in range(3_000)]
    layers = [many, [*many, *[opaque("d"), whiteout("d")] * 10_000]]
    assert len(short(listing(merged(layers)))) == 3_001


def test_inodes_that_no_layer_holds() -> None:
    """The makers of synthetic inodes give root's files of the epoch, the same in every run."""
    for inode, kind, mode in (
        (directory(), Kind.DIRECTORY, 0o755),
        (file(b"abc"), Kind.FILE, 0o644),
        (symlink(b"x"), Kind.SYMLINK, 0o777),
    ):
        entry = inode.entry
        assert (entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime) == (kind, mode, 0, 0, 0)
        assert inode.layer == SYNTHETIC
    assert file(b"abc").entry.size == 3


@pytest.mark.parametrize(
    ("path", "expected"), [(b"", (b"", b"")), (b"a", (b"", b"a")), (b"a/b", (b"a", b"b")), (b"a/b/c", (b"a/b", b"c"))]
)
def test_split(path: bytes, expected: tuple[bytes, bytes]) -> None:
    """A path falls into its parent, empty for the root, and its name."""
    assert split(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"a/b", "a/b"),
        ("ü".encode(), "ü"),
        (b"\xff", "\\xff"),
        (b"a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("\u202e".encode(), "\\u202e"),
    ],
)
def test_printable(path: bytes, expected: str) -> None:
    """A message never holds what a terminal acts on."""
    assert printable(path) == expected


def test_printable_is_short() -> None:
    """A name of a megabyte takes two hundred characters."""
    assert len(printable(b"x" * 1_000_000)) < 200


@settings(max_examples=1_000)
@given(random_layers())
def test_any_layers_merge_to_what_the_model_says(layers: Layers) -> None:
    """Arbitrary layers give the model's tree, inode for inode, or both refuse them."""
    entries = [entries_of(each) for each in layers]
    try:
        expected = model(entries)
    except Refused as refused:
        event(f"refused: {refused}")
        with pytest.raises(InvalidImage):
            merge(entries)
        return
    assert listing(merge(entries)) == expected


@settings(max_examples=150)
@given(random_layers(layers=2, entries=30))
def test_long_layers_merge_to_what_the_model_says(layers: Layers) -> None:
    """Where a layer contradicts itself many times over, too."""
    entries = [[each for each in entries_of(layer) if each.kind is not Kind.HARDLINK] for layer in layers]
    try:
        expected = model(entries)
    except Refused:
        with pytest.raises(InvalidImage):
            merge(entries)
        return
    assert listing(merge(entries)) == expected


def test_links_that_only_make_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths through long chains of links, again and again, end in a limit and not in hours."""
    monkeypatch.setattr("cvmfs_sync.tree._MAX_LINK_STEPS", 1000)
    entries = [
        *(s(f"l{number}", "./" * 50 + f"l{number + 1}") for number in range(10)),
        d("l10"),
        *(f(f"l0/f{number}") if number % 2 else f(f"l10/g{number}") for number in range(20)),
    ]
    with pytest.raises(LimitExceeded, match="symbolic links too often"):
        merged([entries])
