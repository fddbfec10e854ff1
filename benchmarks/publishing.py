"""Publishing whole against publishing the difference, on every backend that is there; README.md says what is measured.

    python -m benchmarks.publishing [--quick] [--runs N] [--entries N] [--json FILE]
    python -m benchmarks.publishing --fit          # the constants of the backend directory, `COSTS`
    python -m benchmarks.publishing --profile      # where both ways spend their time

`make bench` runs the first. Images in a registry on loopback go in, tables come out.
"""

from __future__ import annotations

import argparse
import filecmp
import io
import json
import os
import pstats
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import fitting, images, pipelining, publications, report
from benchmarks.measure import Failed, can_mount, fresh_directory, large_temporary, run
from benchmarks.places import REAL, Place, directory_place, fake_place, real_place, tree_of
from benchmarks.publications import DIFFERENCE, WHOLE, Publication
from benchmarks.successors import BASED, REBUILT, relatives, tree_images
from cvmfs_sync.repository.directory import COSTS
from tests.support.registry import RegistryServer, start_docker_registry

__all__ = ["Found", "compare", "document", "main", "measure", "profile", "tables"]

PEER = "skopeo, umoci, rsync"
_IMAGE = "bench/image"
_OTHER = "bench/tool"
_TAG = "latest"
_TOP = 30


@dataclass(frozen=True, slots=True)
class _Case:
    """One image that is published after another.

    Attributes:
        name: For tables.
        before: Layout and tag of what is published first.
        after: Of what is published then, and measured.
        repository: The name of the latter; what has the name of the former is a tag that has moved.
    """

    name: str
    before: tuple[Path, str]
    after: tuple[Path, str]
    repository: str = _IMAGE


def compare(subject: images.Subject, *, runs: int, mount: bool, entries: int = 0) -> list[Publication]:
    """Publish every case whole and as a difference, on all backends.

    Args:
        subject: The image, with a successor.
        runs: Rounds on the directory backend and on a real repository; the fake server counts once.
        mount: Whether each run has a file system of its own.
        entries: An image of so many small files is a case, too; on the directory backend alone.

    Raises:
        Failed: Something could not be published.
        Unavailable: There is no registry.
    """
    first = (subject.layout, subject.tags[0])
    near = relatives(subject)
    cases = [
        _Case("successor, top layer changed", first, (subject.layout, subject.tags[1])),
        _Case("rebuild, all layers changed", first, (near, REBUILT)),
        _Case("another image, base shared", first, (near, BASED), _OTHER),
    ]
    found: list[Publication] = []
    with _registry() as registry:
        for number in range(runs):
            for case in [*cases, *([_many(entries)] if entries else [])]:
                found += _told(_directory(registry, case, mount=mount), number)
            for case in cases if REAL else []:
                found += _told(_cvmfs(registry, case, real_place), number)
        for case in cases:
            found += _told(_cvmfs(registry, case, fake_place), 0)
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """What `measure` measured."""

    publications: list[Publication]
    lines: list[pipelining.Line]


def measure(subject: images.Subject, *, runs: int, quick: bool, mount: bool, entries: int = 0) -> Found:
    """Everything that `make bench` shows of publishing; for the arguments see `compare`.

    Raises:
        Failed: Something could not be published.
        Unavailable: There is no registry.
    """
    found = compare(subject, runs=runs, mount=mount, entries=entries)
    files, size = (200, 4_000_000) if quick else (10_000, 150_000_000)
    with _registry() as registry:
        return Found(found, pipelining.measure(registry, files=files, size=size, mount=mount))


def document(found: Found) -> dict[str, Any]:
    """All numbers, for programs."""
    return {"images": [asdict(each) for each in found.publications], "pipeline": [asdict(x) for x in found.lines]}


def profile(subject: images.Subject, *, mount: bool) -> str:
    """What cProfile says of publishing the image whole, and of its successor; calls cost twice as much under it."""
    parts = []
    with fresh_directory(mount=mount) as base:
        place = directory_place(base, "127.0.0.1")
        for tag, how in zip(subject.tags, (WHOLE, DIFFERENCE), strict=True):
            place.publish("profile", how, [f"oci:{subject.layout}:{tag}"], "--profile", str(base / how))
            out = io.StringIO()
            statistics = pstats.Stats(str(base / how), stream=out).strip_dirs()
            for order in ("tottime", "cumtime"):
                statistics.sort_stats(order).print_stats(_TOP)
            parts.append(f"===== {how}: cProfile, all threads, by own time, then with what is called\n{out.getvalue()}")
    return "\n".join(parts)


def tables(found: Found) -> str:
    """A table for each backend, and that of the pipeline."""
    parts = []
    for backend in dict.fromkeys(each.backend for each in found.publications):
        rows = [each for each in found.publications if each.backend == backend]
        title = {"directory": "the backend directory", "fake": "the fake server; its times mean nothing"}
        text = publications.counted(rows) if backend == "fake" else publications.timed(rows)
        parts.append(f"publishing to {title.get(backend, backend)}\n\n{text}")
    return "\n\n".join([*parts, pipelining.pipeline_table(found.lines)])


def _many(entries: int) -> _Case:
    base = {"data": (entries, 64)}
    layout = tree_images("entries", {"1": base, "2": {**base, "opt/top": (100, 1_000)}})
    return _Case(f"{entries:,} small files and 100 more", (layout, "1"), (layout, "2"))


def _directory(registry: RegistryServer, case: _Case, *, mount: bool) -> Iterator[Publication]:
    before, after = _IMAGE, case.repository
    with fresh_directory(mount=mount) as base:
        place = directory_place(base, registry.host)
        _move(registry, before, case.before)
        place.publish(case.name, "before", [registry.reference(before, _TAG)])
        old = tree_of(place.site, registry.reference(before, _TAG))
        _move(registry, after, case.after)
        wishes = list(dict.fromkeys(registry.reference(each, _TAG) for each in (before, after)))
        done = place.publish(case.name, DIFFERENCE, wishes, "--cloning")
        changed = _changed(old, tree_of(place.site, registry.reference(after, _TAG)))
    # Told last, that tables have it so.
    with fresh_directory(mount=mount) as base:
        whole = directory_place(base, registry.host).publish(
            case.name, WHOLE, [registry.reference(after, _TAG)], "--whole"
        )
    yield replace(whole, changed=changed)
    yield replace(done, changed=changed)
    missing = [tool for tool in ("skopeo", "umoci", "rsync") if shutil.which(tool) is None]
    if missing:
        _say(f"skipped: {PEER}: not on PATH: {', '.join(missing)}")
        return
    with fresh_directory(mount=mount) as base:
        _move(registry, before, case.before)
        run(_peer(registry.reference(before, _TAG), "1", None), base)
        _move(registry, after, case.after)
        sample = run(_peer(registry.reference(after, _TAG), "2", "1"), base)
    yield Publication(case.name, "directory", PEER, sample)


def _peer(reference: str, name: str, old: str | None) -> str:
    """What one would write without cvmfs-sync: the layout keeps its layers, rsync links files that are the same."""
    rootless = "" if os.geteuid() == 0 else "--rootless"
    link = f"--link-dest=$PWD/published/{old}" if old else ""
    return f"""
        mkdir -p published
        skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://{reference} oci:layout:{name}
        umoci unpack {rootless} --image layout:{name} bundle
        rsync --archive --hard-links --checksum {link} bundle/rootfs/ published/{name}
        chmod -R u+rwx bundle
        rm -rf bundle
    """


def _cvmfs(registry: RegistryServer, case: _Case, make: Callable[[Path, str], Place]) -> Iterator[Publication]:
    before, after = _IMAGE, case.repository
    repositories = [registry.reference(each, "").rstrip(":") for each in (before, after)]
    ways: list[tuple[str, tuple[str, ...]]] = [(WHOLE, ("--whole",)), (DIFFERENCE, ("--cloning",))]
    for how, options in ways:
        with fresh_directory(mount=False) as base:
            place = make(base, registry.host)
            wishes = [registry.reference(after, _TAG)]
            try:
                if how == DIFFERENCE:
                    _move(registry, before, case.before)
                    place.publish(case.name, "before", [registry.reference(before, _TAG)], "--whole")
                    wishes = list(dict.fromkeys([registry.reference(before, _TAG), *wishes]))
                _move(registry, after, case.after)
                yield place.publish(case.name, how, wishes, *options)
            finally:
                if make is real_place:
                    place.take_down(repositories)


def _move(registry: RegistryServer, repository: str, image: tuple[Path, str]) -> None:
    """Let the tag mean this image now."""
    registry.push_layout(*image, repository, _TAG)


def _changed(old: Path, new: Path) -> int:
    """Bytes of the files of a tree that another has not under the same name, several names of a file counted once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        directory = pending.pop()
        for entry in os.scandir(new / directory):
            path = os.path.join(directory, entry.name)
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            elif stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                if not _same(old / path, new / path, status):
                    total += status.st_size
    return total


def _same(old: Path, new: Path, status: os.stat_result) -> bool:
    try:
        before = old.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(before.st_mode) or before.st_size != status.st_size:
        return False
    return (before.st_dev, before.st_ino) == (status.st_dev, status.st_ino) or filecmp.cmp(old, new, shallow=False)


def _told(publications: Iterator[Publication], number: int) -> Iterator[Publication]:
    for each in publications:
        times = "" if each.backend == "fake" else f"{each.sample.wall:.2f} s, locked {each.locked:.2f} s, "
        _say(
            f"round {number + 1}: {each.backend}: {each.case}: {each.how}: {times}"
            f"{each.sample.memory / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}"
        )
        yield each


@contextmanager
def _registry() -> Iterator[RegistryServer]:
    if shutil.which("docker-registry") is None:
        raise images.Unavailable("not on PATH: docker-registry")
    with (
        tempfile.TemporaryDirectory(prefix="cvmfs-sync-registry-", dir=large_temporary()) as directory,
        start_docker_registry(Path(directory)) as registry,
    ):
        yield registry


def _say(message: str) -> None:
    sys.stderr.write(f"benchmarks: {message}\n")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.publishing", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="rounds; medians are shown (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a small image that needs neither root nor packages")
    parser.add_argument("--entries", type=int, default=0, metavar="N", help="an image of N small files, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all samples, and the machine")
    parser.add_argument("--fit", action="store_true", help="fit the cost model of the backend directory instead")
    parser.add_argument("--profile", action="store_true", help="show where publishing spends its time instead")
    parser.add_argument("--no-mount", action="store_true", help="do without a new file system for each run")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs: at least 1")
    reason = "--no-mount" if options.no_mount else can_mount()
    if reason:
        _say(f"warning: {reason}: runs share one file system, which makes later ones slower")
    mount = not reason
    result: dict[str, Any] = {"machine": report.machine(mounted=mount)}
    try:
        if options.fit:
            scale = 100 if options.quick else 1
            observations = []
            for each in fitting.observe(runs=options.runs, mount=mount, scale=scale):
                _say(f"{each.what}: {each.seconds:.3f} s, load {os.getloadavg()[0]:.1f}")
                observations.append(each)
            _print(fitting.fit_table(observations, fitting.fit(observations), COSTS))
            result["fit"] = [asdict(each) for each in observations]
        else:
            subject = images.synthetic() if options.quick else images.debian()
            if options.profile:
                _print(profile(subject, mount=mount))
            else:
                found = measure(subject, runs=options.runs, quick=options.quick, mount=mount, entries=options.entries)
                _print(tables(found))
                result["publishing"] = document(found)
    except (images.Unavailable, Failed) as problem:
        _say(str(problem))
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
