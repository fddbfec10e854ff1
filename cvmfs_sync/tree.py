"""One tree out of layer indexes: the pure half of flattening.

Entries of every layer go in, bottom to top, and the tree that the image means comes out, as values: nothing here knows
a file system. The rules are those of the OCI image-spec, layer.md: additions, changes, whiteouts, opaque whiteouts;
where the specification is silent (symlinked parents, missing parents) they are umoci's, which applies layers in place
and looks every parent up inside the image's own root.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cvmfs_sync.errors import InvalidImage, LimitExceeded
from cvmfs_sync.tar import Entry, Kind, Limits

__all__ = ["OPAQUE", "WHITEOUT", "Inode", "Tree", "directory", "file", "merge", "printable", "split", "symlink"]

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
SYNTHETIC = -1
"""The layer number of what no layer holds."""
# As many as Linux follows in path resolution before ELOOP would be certain for anybody (path_resolution(7) says 40).
_MAX_LINKS_FOLLOWED = 40
# In all paths of an image together. A Debian image takes some hundred; this many take a few seconds.
_MAX_LINK_STEPS = 10_000_000
# The kernel's dev_t has 12 and 20 bits; what is larger would be cut to another device's number.
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1
_NO_DEVICE = (0, 0)
_LEADING = (Kind.DIRECTORY, Kind.SYMLINK)


class Inode:
    """A file, directory, link or special file of a tree; hard links are several names of one.

    Attributes:
        entry: Its metadata, and for a layer's regular file where its content is.
        layer: Number of the layer that `entry` stands in, 0 at the bottom, or `SYNTHETIC`.
        ordinal: Position of `entry` in that layer.
        children: Names in a directory; None for all else.
        content: Bytes of a synthetic regular file.
        shared: Whether it may have more than one name.
    """

    __slots__ = ("children", "content", "entry", "layer", "ordinal", "shared")

    def __init__(self, entry: Entry, layer: int = SYNTHETIC, ordinal: int = 0, content: bytes | None = None) -> None:
        self.entry = entry
        self.layer = layer
        self.ordinal = ordinal
        self.content = content
        self.shared = False
        self.children: dict[bytes, Inode] | None = {} if entry.kind is Kind.DIRECTORY else None


class Tree:
    """A root directory, and the walk over it that everybody uses."""

    __slots__ = ("_link_steps", "limits", "root")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.root = directory()
        self._link_steps = 0

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every name but the root's with its inode: parents before children, siblings by their bytes."""
        stack: list[tuple[bytes, Inode]] = [(b"", self.root)]
        while stack:
            path, inode = stack.pop()
            if path:
                yield path, inode
            if inode.children:
                prefix = path + b"/" if path else b""
                stack.extend((prefix + name, child) for name, child in sorted(inode.children.items(), reverse=True))

    def find(self, path: bytes) -> Inode | None:
        """The inode at `path`, symbolic links on the way (not at its end) resolved inside the tree."""
        parent, name = split(path)
        if not name:
            return self.root
        chain = self._chain(parent, create=False)
        return chain[-1].children.get(name) if chain else None  # type: ignore[union-attr]

    def resolve(self, path: bytes) -> Inode | None:
        """The inode at `path`, symbolic links resolved inside the tree, also at its end."""
        chain = self._chain(path, create=False, leaf=True)
        return chain[-1] if chain else None

    def make_directory(self, path: bytes) -> Inode | None:
        """The directory at `path`, made with what is missing on the way; None where something else stands there."""
        try:
            chain = self._chain(path, create=True)
        except InvalidImage:
            return None
        return chain[-1]

    def _chain(self, path: bytes, *, create: bool, leaf: bool = False, strict: bool = False) -> list[Inode]:
        """The directories from the root to `path`, as a kernel confined to the root would find them.

        `..` in a link's target never leads above the root. With `leaf` the last element may be anything.

        Returns:
            Empty if it does not exist and `create` is false.

        Raises:
            InvalidImage: With `create`, if something other than a directory is in the way; with `create` or `strict`,
                for too many links, and for a `..` of what does not exist: umoci follows it, a kernel does not.
        """
        chain = [self.root]
        todo = path.split(b"/")[::-1] if path else []
        followed = 0
        while todo:
            name = todo.pop()
            if not name or name == b".":
                continue
            if name == b"..":
                if len(chain) > 1:
                    chain.pop()
                continue
            children = chain[-1].children
            assert children is not None  # noqa: S101 - the chain holds directories only until the last step
            child = children.get(name)
            if (create or strict) and (child is None or child.entry.kind not in _LEADING) and b".." in todo:
                raise InvalidImage(
                    f"{printable(path)}: a link on the way leads through what is not there",
                    found=f"'..' after {printable(name)}",
                    expected="a directory before '..'",
                )
            if child is None:
                if not create:
                    return []
                if name.startswith(WHITEOUT):
                    # Docker takes what is below some of these for its own; a whiteout is no directory.
                    raise InvalidImage(f"{printable(path)}: below a whiteout", found=printable(name))
                child = children[name] = directory()
            if child.children is not None:
                chain.append(child)
                if create and len(chain) > self.limits.depth + 1:
                    raise LimitExceeded(
                        f"{printable(path)}: too deep", found=f"more than {self.limits.depth} directories"
                    )
            elif child.entry.kind is Kind.SYMLINK:
                followed += 1
                if followed > _MAX_LINKS_FOLLOWED:
                    if not (create or strict):
                        return []
                    raise InvalidImage(f"{printable(path)}: symbolic links in a circle")
                target = child.entry.link
                if target.startswith(b"/"):
                    del chain[1:]
                steps = target.split(b"/")
                self._link_steps += len(steps)
                if self._link_steps > _MAX_LINK_STEPS:
                    raise LimitExceeded(
                        "the image's paths lead through symbolic links too often",
                        found=f"more than {_MAX_LINK_STEPS} components of links followed",
                    )
                todo.extend(steps[::-1])
            elif leaf and not todo:
                chain.append(child)
            elif create:
                raise InvalidImage(
                    f"{printable(path)}: cannot be there",
                    found=f"{printable(name)} is a {child.entry.kind.name.lower()}",
                    expected="a directory",
                )
            else:
                return []
        return chain


def merge(layers: Iterable[Sequence[Entry]], limits: Limits | None = None) -> Tree:
    """Apply layers bottom to top.

    Args:
        layers: The entries of each layer in the order of its archive.
        limits: Bounds for the depth that symbolic links can lead to.

    Raises:
        InvalidImage: A hard link without target, a whiteout of `.` or `..`, a root that is no directory, an entry
            below a file.
    """
    tree = Tree(limits or Limits())
    for number, entries in enumerate(layers):
        _Merge(tree, number, entries).apply()
    return tree


class _Merge:
    """Applying one layer to a tree."""

    def __init__(self, tree: Tree, number: int, entries: Sequence[Entry]) -> None:
        self.tree = tree
        self.number = number
        self.entries = entries
        # Names that this layer added, and the directories on their way: its own whiteouts leave these alone. Keys hold
        # id()s: an inode that another takes the id of in this layer's time makes way for one of this layer's.
        self.added: set[tuple[int, bytes]] = set()
        self.on_the_way: set[int] = set()
        # Directories that hold nothing of the layers below any more; what is made with such an id later never does.
        self.purged: set[int] = set()
        self.has_whiteouts = any(WHITEOUT in entry.path for entry in entries)
        self._last: tuple[bytes, list[Inode]] = (b"", [tree.root])

    def apply(self) -> None:
        for ordinal, entry in enumerate(self.entries):
            path = entry.path
            if not path:
                self._root(entry, ordinal)
                continue
            parent, name = split(path)
            if name.startswith(WHITEOUT):
                self._whiteout(parent, name)
            else:
                self._add(parent, name, entry, ordinal)

    def _root(self, entry: Entry, ordinal: int) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise InvalidImage(
                f"layer {self.number}: the root is not a directory", found=entry.kind.name.lower(), expected="directory"
            )
        self.tree.root.entry, self.tree.root.layer, self.tree.root.ordinal = entry, self.number, ordinal

    def _parent(self, path: bytes) -> list[Inode]:
        last_path, last = self._last
        if path == last_path:
            return last
        try:
            chain = self.tree._chain(path, create=True)
        except InvalidImage as error:
            error.what = f"layer {self.number}: {error.what}"
            raise
        self._last = (path, chain)
        if self.has_whiteouts:
            self.on_the_way.update(map(id, chain))
        return chain

    def _add(self, parent_path: bytes, name: bytes, entry: Entry, ordinal: int) -> None:
        parent = self._parent(parent_path)[-1]
        children = parent.children
        assert children is not None  # noqa: S101 - a chain made with create=True holds directories
        existing = children.get(name)
        if entry.kind is Kind.DIRECTORY and existing is not None and existing.children is not None:
            existing.entry, existing.layer, existing.ordinal = entry, self.number, ordinal
        else:
            if existing is not None:
                del children[name]
                if existing.children is not None or existing.entry.kind is Kind.SYMLINK:
                    self._last = (b"", [self.tree.root])
            if entry.device > _NO_DEVICE:
                self._check_device(entry)
            if entry.kind is Kind.HARDLINK:
                children[name] = self._target(entry)
            else:
                children[name] = Inode(entry, self.number, ordinal)
        if self.has_whiteouts:
            self.added.add((id(parent), name))

    def _check_device(self, entry: Entry) -> None:
        major, minor = entry.device
        if major > _MAX_MAJOR or minor > _MAX_MINOR:
            raise InvalidImage(
                f"layer {self.number}: {printable(entry.path)} has a device number that Linux cannot have",
                found=f"{major}, {minor}",
                expected=f"at most {_MAX_MAJOR}, {_MAX_MINOR}",
            )

    def _target(self, entry: Entry) -> Inode:
        target = self.tree.find(entry.link)
        if target is None:
            raise InvalidImage(
                f"layer {self.number}: {printable(entry.path)} is a hard link to nothing",
                found=f"no {printable(entry.link)} in this layer before it or in a layer below",
            )
        if target.children is not None:
            raise InvalidImage(
                f"layer {self.number}: {printable(entry.path)} is a hard link to a directory",
                found=printable(entry.link),
            )
        target.shared = True
        return target

    def _whiteout(self, parent_path: bytes, name: bytes) -> None:
        try:
            chain = self.tree._chain(parent_path, create=False, strict=True)
        except InvalidImage as error:
            error.what = f"layer {self.number}: {error.what}"
            raise
        if name == OPAQUE:
            if chain:
                self._purge_below(chain[-1])
            return
        victim = name[len(WHITEOUT) :]
        if victim in (b"", b".", b".."):
            raise InvalidImage(f"layer {self.number}: a whiteout of {printable(victim)!r}", expected="of a name")
        if chain:
            self._purge(chain[-1], victim)

    def _purge(self, parent: Inode, name: bytes) -> None:
        """Remove what lower layers put at `name`; what this layer added, there or below, stays."""
        children = parent.children
        child = children.get(name) if children else None
        if children is None or child is None:
            return
        if self._is_lower(parent, name, child):
            del children[name]
            self._last = (b"", [self.tree.root])
        else:
            self._purge_below(child)

    def _purge_below(self, top: Inode) -> None:
        """The same for all names in a directory. Once for each: whiteouts can be repeated by the million."""
        pending = [top]
        while pending:
            parent = pending.pop()
            if not parent.children or id(parent) in self.purged:
                continue
            self.purged.add(id(parent))
            for name, child in list(parent.children.items()):
                if self._is_lower(parent, name, child):
                    del parent.children[name]
                    self._last = (b"", [self.tree.root])
                else:
                    pending.append(child)

    def _is_lower(self, parent: Inode, name: bytes, child: Inode) -> bool:
        return (id(parent), name) not in self.added and id(child) not in self.on_the_way


def split(path: bytes) -> tuple[bytes, bytes]:
    """Parent and last component; the parent of a top-level name is empty."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def printable(path: bytes) -> str:
    """A name for a message: at most 200 characters, nothing that a terminal would act on."""
    text = path.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 200 else f"{text[:90]}...{text[-90:]}"


def directory(mode: int = 0o755) -> Inode:
    """A directory that no layer holds. Its time is the epoch, so that results are the same on every run."""
    return Inode(_entry(Kind.DIRECTORY, mode))


def file(content: bytes, mode: int = 0o644) -> Inode:
    """A regular file that no layer holds."""
    return Inode(_entry(Kind.FILE, mode, size=len(content)), content=content)


def symlink(target: bytes) -> Inode:
    """A symbolic link that no layer holds."""
    return Inode(_entry(Kind.SYMLINK, 0o777, link=target))


def _entry(kind: Kind, mode: int, *, size: int = 0, link: bytes = b"") -> Entry:
    return Entry(
        path=b"", kind=kind, mode=mode, uid=0, gid=0, size=size, mtime=0, link=link,
        device=(0, 0), xattrs={}, offset=0, sparse=None,
    )  # fmt: skip
