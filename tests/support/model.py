"""What an image means, worked out the slow and simple way: the oracle of the property tests.

Layers are applied in place, one entry after another, to a dictionary of full paths, as if every step were a system call
below a root that nothing leads out of. It shares no code with what it judges but the values of `cvmfs_sync.tar`.

`entries_of` and `layers_of` give the layers of a test in both forms, `random_layers` makes them up.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hypothesis import strategies as st

from cvmfs_sync import flatten, tree
from cvmfs_sync.errors import InvalidImage
from cvmfs_sync.reference import Digest
from cvmfs_sync.tar import Entry, Kind, Limits
from tests.support import images
from tests.support.trees import Node

__all__ = [
    "FakeFile",
    "MemoryLayer",
    "Refused",
    "entries_of",
    "file_layers",
    "listing",
    "model",
    "random_layers",
    "short",
    "strict_untar",
    "valid_layers",
]

Listing = dict[str, "Shown"]
_MAX_LINKS = 40
_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.FIFO,
}


class Refused(Exception):
    """The model has no meaning for these layers."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One path of a result.

    Attributes:
        source: Layer and ordinal of the entry that made it; (-1, 0) for a directory that no layer names.
        names: All paths that are this very thing, if more than one.
    """

    kind: Kind
    source: tuple[int, int]
    names: tuple[str, ...] = ()


class FakeFile:
    """What stands at a path of the model: its identity is an inode's."""

    def __init__(self, kind: Kind, source: tuple[int, int] = (-1, 0), link: bytes = b"") -> None:
        self.kind = kind
        self.source = source
        self.link = link


def model(layers: Iterable[Sequence[Entry]]) -> Listing:
    """Apply layers bottom to top.

    Raises:
        Refused: With the reason.
    """
    there: dict[bytes, FakeFile] = {b"": FakeFile(Kind.DIRECTORY)}
    for number, entries in enumerate(layers):
        touched: set[bytes] = set()
        for ordinal, entry in enumerate(entries):
            _apply(there, touched, entry, (number, ordinal))
    names: dict[int, list[str]] = {}
    for path, thing in sorted(there.items()):
        if path:
            names.setdefault(id(thing), []).append(_text(path))
    return {
        _text(path): Shown(thing.kind, thing.source, tuple(group) if len(group := names.get(id(thing), [])) > 1 else ())
        for path, thing in there.items()
    }


def _apply(there: dict[bytes, FakeFile], touched: set[bytes], entry: Entry, source: tuple[int, int]) -> None:
    if not entry.path:
        if entry.kind is not Kind.DIRECTORY:
            raise Refused("the root is no directory")
        there[b""].source = source
        return
    above, _, name = entry.path.rpartition(b"/")
    whiteout = name.startswith(b".wh.")
    if whiteout and name != b".wh..wh..opq" and name[4:] in (b"", b".", b".."):
        raise Refused("a whiteout of nothing")
    parent = _resolve(there, above)
    if whiteout:
        victim = parent if name == b".wh..wh..opq" else _join(parent, name[4:])
        if parent not in there or there[parent].kind is not Kind.DIRECTORY:
            return
        for path in list(there):
            below = path.startswith(victim + b"/") if victim else path != b""
            if path not in touched and (below or (path == victim and name != b".wh..wh..opq")):
                del there[path]
        return
    for path in [*_ancestors(parent), parent]:
        if path not in there:
            if path.rpartition(b"/")[2].startswith(b".wh."):
                raise Refused("a directory with the name of a whiteout")
            there[path] = FakeFile(Kind.DIRECTORY)
        elif there[path].kind is not Kind.DIRECTORY:
            raise Refused("the parent is no directory")
    path = _join(parent, name)
    old = there.get(path)
    if old is not None and old.kind is Kind.DIRECTORY and entry.kind is Kind.DIRECTORY:
        old.source = source
    else:
        for each in [each for each in there if each == path or each.startswith(path + b"/")]:
            del there[each]
        if entry.kind is Kind.HARDLINK:
            target_above, _, target_name = entry.link.rpartition(b"/")
            target = there.get(_join(_resolve(there, target_above), target_name))
            if target is None or target.kind is Kind.DIRECTORY:
                raise Refused("a hard link to nothing")
            there[path] = target
        else:
            there[path] = FakeFile(entry.kind, source, entry.link)
    touched.update([*_ancestors(path), path])


def _resolve(there: Mapping[bytes, FakeFile], path: bytes) -> bytes:
    """Where this path is, all links followed; it need not exist."""
    todo = path.split(b"/")
    done: list[bytes] = []
    links = 0
    while todo:
        name = todo.pop(0)
        if name in (b"", b"."):
            continue
        if name == b"..":
            at = there.get(b"/".join(done))
            if at is None or at.kind is not Kind.DIRECTORY:
                raise Refused("'..' of what is no directory")
            done = done[:-1]
            continue
        at = there.get(b"/".join([*done, name]))
        if at is not None and at.kind is Kind.SYMLINK:
            links += 1
            if links > _MAX_LINKS:
                raise Refused("links in a circle")
            todo[:0] = at.link.split(b"/")
            if at.link.startswith(b"/"):
                done = []
        else:
            done.append(name)
    return b"/".join(done)


def _ancestors(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape") or "."


def listing(merged: tree.Tree) -> Listing:
    """A merged tree in the model's form."""
    names: dict[int, list[str]] = {}
    for path, inode in merged.walk():
        names.setdefault(id(inode), []).append(_text(path))
    return {
        _text(path): Shown(
            inode.entry.kind,
            (inode.layer, inode.ordinal),
            tuple(group) if len(group := names.get(id(inode), [])) > 1 else (),
        )
        for path, inode in [(b"", merged.root), *merged.walk()]
    }


def short(shown: Mapping[str, object]) -> list[str]:
    """The paths of a listing but the root's, sorted."""
    return sorted(path for path in shown if path != ".")


# --- layers in the forms that tests need ------------------------------------------------------------------------------


def entries_of(entries: Iterable[images.Entry]) -> list[Entry]:
    """What the tar reader makes of a layer of these entries, without any tar."""
    return [_entry(each, 512 * at) for at, each in enumerate(entries)]


def valid_layers(layers: Sequence[Sequence[images.Entry]]) -> list[list[images.Entry]]:
    """The layers without the entries that would have the image refused."""
    result: list[list[images.Entry]] = []
    for layer in layers:
        result.append([])
        for entry in layer:
            result[-1].append(entry)
            try:
                tree.merge([entries_of(each) for each in result])
            except InvalidImage:
                result[-1].pop()
    return result


def _entry(entry: images.Entry, offset: int) -> Entry:
    kind = _KINDS[entry.type]
    link = entry.link.encode("utf-8", "surrogateescape")
    parts = entry.path.encode("utf-8", "surrogateescape").split(b"/")
    return Entry(
        path=b"/".join(part for part in parts if part not in (b"", b".")),
        kind=kind,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=len(entry.content),
        mtime=int(entry.mtime * 10**9),
        link=b"/".join(part for part in link.split(b"/") if part) if kind is Kind.HARDLINK else link,
        device=entry.device,
        xattrs={name.encode(): value for name, value in entry.xattrs.items()},
        offset=offset,
        sparse=None,
    )


@dataclass(frozen=True, slots=True)
class MemoryLayer(flatten.Layer):
    """A layer that is read from memory, and counts how often."""

    chunks: tuple[bytes, ...] = ()
    openings: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, stream: bytes, openings: list[str] | None = None, name: str = "layer") -> MemoryLayer:
        """A layer with this tar stream; each opening adds `name` to `openings`."""

        def count() -> None:
            if openings is not None:
                openings.append(name)

        digest = Digest.parse(images.digest_of(stream))
        return cls(_no_blob, digest, len(stream), name, (stream,), count)

    def open(self, limits: Limits) -> AbstractContextManager[Iterator[bytes]]:
        """See `flatten.Layer`; limits of the compression do not apply."""
        self.openings()
        return nullcontext(iter(self.chunks))


def _no_blob() -> Path:
    raise AssertionError("a layer in memory has no file")


def file_layers(directory: Path, layers: Sequence[images.Layer]) -> list[flatten.Layer]:
    """Layers whose blobs are files in `directory`, as `fetch` leaves them."""
    result = []
    for number, layer in enumerate(layers):
        path = directory / layer.digest.removeprefix("sha256:")
        path.write_bytes(layer.blob)
        result.append(
            flatten.Layer(partial(Path, path), Digest.parse(layer.diff_id), len(layer.blob), f"layer {number}")
        )
    return result


def strict_untar(entries: Iterable[tuple[Entry, bytes]]) -> dict[str, Node]:
    """The tree that a tar without any cleverness extracts from a flat archive: links and types as in `tree_listing`.

    Raises:
        AssertionError: Where an extracting tar would have to write through a link, or replace a directory.
    """
    there: dict[bytes, tuple[Entry, bytes]] = {}
    made: set[bytes] = {b""}
    for entry, content in entries:
        path = entry.path
        for above in _ancestors(path):
            assert above not in there or there[above][0].kind is Kind.DIRECTORY, f"{path!r} is below no directory"
            made.add(above)
        if entry.kind is Kind.DIRECTORY:
            assert path not in there or there[path][0].kind is Kind.DIRECTORY, f"{path!r} replaces no directory"
            made.add(path)
        else:
            assert path not in made, f"{path!r} replaces a directory"
        if entry.kind is Kind.HARDLINK:
            assert entry.link in there, f"{path!r} links to nothing"
            there[path] = there[entry.link]
        else:
            there[path] = entry, content
    assert made <= there.keys(), f"directories without an entry: {made - there.keys()}"
    groups: dict[int, list[str]] = {}
    for path, pair in sorted(there.items()):
        groups.setdefault(id(pair), []).append(_text(path))
    return {_text(path): _node(pair, tuple(groups[id(pair)])) for path, pair in sorted(there.items())}


def _node(pair: tuple[Entry, bytes], names: tuple[str, ...]) -> Node:
    entry, content = pair
    types = {Kind.CHARACTER: "char", Kind.BLOCK: "block"}
    is_file = entry.kind is Kind.FILE
    return Node(
        type=types.get(entry.kind, entry.kind.name.lower()),
        mode=0o777 if entry.kind is Kind.SYMLINK else entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size,
        mtime_ns=entry.mtime,
        digest=images.digest_of(content).removeprefix("sha256:") if is_file else "",
        link=entry.link.decode("utf-8", "surrogateescape"),
        device=entry.device,
        xattrs=tuple(sorted((name.decode(), value) for name, value in entry.xattrs.items())),
        links=names if len(names) > 1 else (),
    )


# --- layers that nobody would think of --------------------------------------------------------------------------------

_NAMES = ("a", "b", "c")
_PATHS = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map("/".join)
_PARENTS = st.lists(st.sampled_from(_NAMES), max_size=2).map(lambda parts: "".join(f"{part}/" for part in parts))
_TARGETS = st.one_of(
    _PATHS,
    _PATHS.map(lambda path: f"/{path}"),
    _PATHS.map(lambda path: f"../{path}"),
    st.sampled_from([".", "..", "/", "../../..", "a/..", "b/../c", "./a//b"]),
)


def _made_up(kind: str, path: str, parent: str, target: str, other: str, number: int) -> images.Entry:
    time = 1_000 + number
    match kind:
        case "file":
            return images.file(path, f"{number}" * (number % 7), 0o600 + number % 0o177, mtime=time, uid=number)
        case "directory":
            return images.directory(path, 0o700 + number % 0o77, mtime=time)
        case "symlink":
            return images.symlink(path, target, mtime=time)
        case "hardlink":
            return images.hardlink(path, other)
        case "whiteout":
            return images.whiteout(path)
        case "opaque":
            return images.opaque(parent)
        case "root":
            return images.directory("./", 0o755, mtime=time)
        case _:
            return images.fifo(path, mtime=time)


_WEIGHTS = (*["file"] * 6, *["directory"] * 3, *["symlink"] * 3, *["hardlink"] * 2, *["whiteout"] * 3, "opaque")
_ENTRY = st.builds(
    _made_up,
    st.sampled_from((*_WEIGHTS, "fifo", "root")),
    _PATHS,
    _PARENTS,
    _TARGETS,
    _PATHS,
    st.integers(0, 10_000),
)


def random_layers(layers: int = 4, entries: int = 8) -> st.SearchStrategy[list[list[images.Entry]]]:
    """A few layers over three names, so that everything meets everything."""
    return st.lists(st.lists(_ENTRY, max_size=entries), min_size=1, max_size=layers)
