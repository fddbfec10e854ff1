"""`make demo`: cvmfs-sync from an image list to a running container, in a temporary directory.

Two images are made out of files of this machine, published, followed when a tag moves, and run. Each step prints the
command as you would type it and what it says, and then checks what it has promised. Exit code 0 if all of it holds, 1
if something does not. Nothing is installed, nobody has to be root, and no network is used.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confined import RUN, find_ways
from contents import FIRST_GREETING, SECOND_GREETING, Images, build_images
from images import ARCHITECTURE, Image, tag
from terminal import command, headline, output, say

HELLO, NOTES = "oci:images:hello-1", "oci:images:notes-1"
_CVMFS_SYNC = str(Path(sys.executable).with_name("cvmfs-sync"))  # where `make install` puts it
_CONFIGURATION = """\
image_list: image-list.yaml
repository:
  backend: directory      # a directory that is published as it is; for a CernVM-FS stratum 0: cvmfs
  root: published
"""
_IMAGE_LIST = f"""\
version: 1
images:
  - image: {HELLO}
    platforms: [linux/{ARCHITECTURE}]
    description: says which Python it has
  - image: {NOTES}
    platforms: [linux/{ARCHITECTURE}]
    description: was changed by each of its layers
"""
_SECONDS = 120


class BrokenPromise(Exception):
    """A step did not do what it promised."""


def expect(holds: bool, promise: str) -> None:
    """End the demo unless the promise holds."""
    if not holds:
        raise BrokenPromise(promise)


@dataclass
class Demo:
    """What the steps share.

    Attributes:
        home: The working directory: images, list, configuration, and what is published.
        images: Set by the first step.
        first_tree: Where `hello` led before its tag moved; set by `update`.
    """

    home: Path
    images: Images = field(init=False)
    first_tree: Path = field(init=False)

    @property
    def published(self) -> Path:
        """The repository."""
        return self.home / "published"

    def cvmfs_sync(self, *arguments: str) -> str:
        """Show and run a command line; returns its output, which is shown, too."""
        command(["cvmfs-sync", *arguments])
        # Settings of the user's own must not change what is shown here.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CVMFS_SYNC_")}
        return run([_CVMFS_SYNC, *arguments], self.home, environment)

    def link(self, image: str) -> Path:
        """The path that users type for an image."""
        return self.published / f"oci{self.home}" / image.removeprefix("oci:")

    def tree(self, image: str) -> Path:
        """The sandbox that its link leads to now."""
        return self.link(image).resolve(strict=True)


def run(arguments: list[str], directory: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command and show its output, of both streams; it must succeed."""
    result = subprocess.run(
        arguments,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_SECONDS,
        check=False,
    )
    output(result.stdout)
    expect(result.returncode == 0, f"the command succeeds; its exit code was {result.returncode}")
    return result.stdout


def build(demo: Demo) -> str:
    """Make two images out of files of this machine."""
    demo.images = build_images()
    layout = demo.home / "images"
    for name, image in (("hello-1", demo.images.hello), ("notes-1", demo.images.notes)):
        tag(layout, name, image)
        size = sum(len(layer.tar) for layer in image.layers) / 1e6
        output(f"{name}: {len(image.layers)} layers, {size:.1f} MB unpacked, {image.digest[:19]}")
    expect(demo.images.hello.layers[0] == demo.images.notes.layers[0], "the images share their base layer")
    for name, content in (("cvmfs-sync.yaml", _CONFIGURATION), ("image-list.yaml", _IMAGE_LIST)):
        (demo.home / name).write_text(content)
        command(["cat", name])
        output(content)
    return "images built"


def check(demo: Demo) -> str:
    """Check the image list, as a pull request's check does."""
    answer = demo.cvmfs_sync("check", "image-list.yaml")
    expect("valid, 2 images" in answer, "the list is valid")
    return "list checked"


def plan(demo: Demo) -> str:
    """Ask what a cycle would do."""
    answer = demo.cvmfs_sync("plan")
    expect("2 to publish" in answer, "both images are to be published")
    expect(not demo.published.exists(), "a plan changes nothing")
    return "planned"


def publish(demo: Demo) -> str:
    """Do it: publish both images."""
    answer = demo.cvmfs_sync("sync")
    expect("2 published" in answer, "both images are published")
    return "2 images published"


def publish_again(demo: Demo) -> str:
    """Do it again: nothing has changed, so nothing is written."""
    before = fingerprint(demo.published)
    answer = demo.cvmfs_sync("sync")
    expect("0 published, 0 linked, 2 unchanged" in answer, "the second cycle publishes nothing")
    expect(fingerprint(demo.published) == before, "the second cycle touches no published file")
    return "unchanged images left alone"


def look_at_changes(demo: Demo) -> str:
    """Look at a published image: each layer's changes have been applied."""
    say("The upper layer of notes removes draft.txt, clears attic/ by an opaque marker, and replaces report.txt.")
    say(f"Of {demo.link(NOTES)} this is below opt/notes:")
    tree = demo.tree(NOTES)
    notes = tree / "opt/notes"
    names = sorted(str(path.relative_to(tree)) for path in notes.rglob("*"))
    output("\n".join(describe(tree / name, name) for name in names))
    expect(not (notes / "draft.txt").exists(), "a file that a layer removes is not published")
    expect(os.listdir(notes / "attic") == ["index.txt"], "an opaque directory hides what was below")
    expect((notes / "report.txt").read_text() == "The final report.\n", "the upper layer's file is published")
    expect((notes / "copy.txt").samefile(notes / "report.txt"), "a hard link is one file with two names")
    expect(os.readlink(notes / "latest") == "report.txt", "a symbolic link stays one")
    expect("on top" in (tree / "etc/motd").read_text(), "a file of the shared base layer can be replaced")
    expect(not list(tree.rglob(".wh.*")), "no marker of a layer is published")
    return "layers applied"


def update(demo: Demo) -> str:
    """Move a tag: hello-1 means another image now, and a cycle follows."""
    demo.first_tree = demo.tree(HELLO)
    tag(demo.home / "images", "hello-1", demo.images.updated)
    say(f"Only the top layer and GREETING differ: {FIRST_GREETING!r} becomes {SECOND_GREETING!r}.")
    demo.cvmfs_sync("plan")
    answer = demo.cvmfs_sync("sync")
    expect("1 published, 0 linked, 1 unchanged" in answer, "only the image that moved is published")
    expect(demo.tree(HELLO).name == hexadecimal(demo.images.updated), "the link leads to the new image")
    expect(demo.first_tree.name == hexadecimal(demo.images.hello), "the old tree is the old image's")
    expect((demo.first_tree / "opt/hello/hello.py").exists(), "jobs that run from the old tree still find it")
    return "moved tag followed"


def ask(demo: Demo) -> str:
    """Ask for the state of all images, and where to run one from."""
    answer = demo.cvmfs_sync("status")
    expect(hexadecimal(demo.images.updated)[:12] in answer, "the new digest is shown")
    expect(answer.count("published  ") >= 2, "both images are shown as published")
    path = demo.cvmfs_sync("where", HELLO).strip()
    expect(path == str(demo.link(HELLO)), "the answer is the path of the link")
    say("An image that is not published comes from its registry:")
    answer = demo.cvmfs_sync("where", "debian:12")
    expect(answer.strip() == "docker://docker.io/library/debian:12", "Apptainer is told where else to get it")
    return "status shown"


def look_at_repository(demo: Demo) -> str:
    """Look at the repository: links that users type, trees by digest, and a record of each."""
    say("All of it, but what is in the trees:")
    output("\n".join(list_repository(demo.published)))
    key = hexadecimal(demo.images.notes)
    record = demo.published / f".cvmfs-sync/images/{key[:2]}/{key}.json"
    command(["cat", str(record.relative_to(demo.home))])
    output(record.read_text())
    expect(json.loads(record.read_text())["digest"] == demo.images.notes.digest, "the record names the digest")
    return "repository listed"


def run_image(demo: Demo) -> str:
    """Run an image out of its published sandbox."""
    tree = demo.tree(HELLO)
    ways = find_ways(tree)
    for refusal in ways.refusals:
        say(f"Not possible here: {refusal}")
    if not ways.allowed:
        say(f"So {RUN} is not run here; where the kernel allows user namespaces, everybody may. That fails nothing.")
        return "image NOT run, which this machine forbids"
    confined = ways.command(demo.link(HELLO))
    command(confined)
    answer = run(confined, demo.home)
    expect(f"Python {sys.version.split()[0]} " in answer, "the image's Python runs")
    expect(f"GREETING={SECOND_GREETING}\n" in answer, "the environment is the updated image's")
    files = sum(len(files) for _, _, files in os.walk(tree))
    expect(f"\n{files} files are visible" in answer, f"it sees the {files} published files and no others")
    return "image run"


# A step's docstring is its headline; it returns what it has shown, for the last line.
STEPS: tuple[Callable[[Demo], str], ...] = (
    build,
    check,
    plan,
    publish,
    publish_again,
    look_at_changes,
    update,
    ask,
    look_at_repository,
    run_image,
)


def hexadecimal(image: Image) -> str:
    """The digits of an image's digest, after which its tree is named."""
    return image.digest.removeprefix("sha256:")


def describe(path: Path, name: str) -> str:
    """One line for a file: what a symbolic link holds, how many names a file has, if several."""
    if path.is_symlink():
        return f"{name} -> {os.readlink(path)}"
    if path.is_dir():
        return f"{name}/"
    links = path.stat().st_nlink
    return f"{name}  ({links} names)" if links > 1 else name


def list_repository(root: Path) -> Iterator[str]:
    """A line for each link and file, and one for each published tree."""
    for directory, names, files in os.walk(root):
        here = Path(directory).relative_to(root.parent)
        links = [name for name in names if (Path(directory) / name).is_symlink()]
        for name in sorted([*links, *files]):
            yield describe(Path(directory) / name, str(here / name))
        if len(here.parts) == 3 and here.parts[1] == ".flat":
            for name in sorted(names):
                count = sum(len(files) for _, _, files in os.walk(Path(directory) / name))
                yield f"{here / name}/  ({count} files)"
            names.clear()
        names.sort()


def fingerprint(root: Path) -> dict[str, tuple[int, int, int]]:
    """Inode and times of everything below a directory: the same as before if nobody has written there."""
    paths = [root, *root.rglob("*")]
    found = ((str(path), path.lstat()) for path in paths)
    return {name: (status.st_ino, status.st_mtime_ns, status.st_ctime_ns) for name, status in found}


@contextmanager
def working_directory(keep: Path | None) -> Iterator[Path]:
    """A directory to work in: the given one, which stays, or a temporary one, which goes."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    home = Path(tempfile.mkdtemp(prefix="cvmfs-sync-demo-")).resolve()
    try:
        yield home
    finally:
        remove(home)


def remove(home: Path) -> None:
    """Remove a directory with all that is in it, be it without write permission as images may have it."""
    for directory, names, _ in os.walk(home):
        for name in names:
            path = Path(directory) / name
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(home)


def walk_through(demo: Demo) -> None:
    """Take all steps."""
    started = time.monotonic()
    shown: list[str] = []
    for number, step in enumerate(STEPS, 1):
        begun = time.monotonic()
        headline(f"{number} of {len(STEPS)}: {(step.__doc__ or '').rstrip('.')}")
        shown.append(f"{step(demo)} {time.monotonic() - begun:.1f} s")
    headline(f"All {len(STEPS)} steps held what they promise, in {time.monotonic() - started:.1f} s")
    say("; ".join(shown))


def arguments() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="make demo ARGS=...", description="Publish, update and run real images.")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR, an empty directory, and leave it there")
    given = parser.parse_args()
    if given.keep and given.keep.exists() and not (given.keep.is_dir() and not any(given.keep.iterdir())):
        parser.error(f"--keep {given.keep}: name an empty directory, or one that is not there")
    return given


def main() -> int:
    """Run the demo; returns the exit code."""
    keep: Path | None = arguments().keep
    try:
        with working_directory(keep) as home:
            walk_through(Demo(home))
    except BrokenPromise as broken:
        return failed(f"this does not hold: {broken}")
    except (OSError, subprocess.SubprocessError) as error:
        return failed(str(error))
    except KeyboardInterrupt:
        return 130
    if keep:
        say(f"Go on with it: cd {shlex.quote(str(keep))} && {shlex.quote(_CVMFS_SYNC)} status")
    return 0


def failed(reason: str) -> int:
    """Say why the demo ends early; returns the exit code."""
    print(f"\ndemo failed: {reason}\nTo look at what is there: make demo ARGS='--keep DIR'", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
