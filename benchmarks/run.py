"""`make bench`: measure cvmfs-sync beside other tools, and print a table. README.md says what the numbers mean."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import images, pages, polling, publishing, report, scaling, site, visitors
from benchmarks.contenders import CONTENDERS, OURS, Contender, Target
from benchmarks.measure import Failed, can_mount, count_entries, fresh_directory, large_temporary, run
from benchmarks.profiles import profile
from benchmarks.report import Row
from tests.support.registry import RegistryServer, start_docker_registry

_REPOSITORY = "bench/image"
_PUBLISHING = "publishing"
_POLLING = "polling"
_PAGES = "pages"
_LOAD = "pages-load"
_SITE = "site"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit code, 1 if a contender failed."""
    options = _parse(arguments)
    reason = "--no-mount" if options.no_mount else can_mount()
    if reason:
        _say(f"warning: {reason}: runs share one file system, which makes later ones slower")
    result: dict[str, Any] = {"machine": report.machine(mounted=not reason)}
    failed = False
    try:
        if options.scale:
            rows = list(_scale(options, mount=not reason))
            _print(scaling.scale_table(rows))
            result["scaling"] = [
                {"command": r.command, r.series: r.amount, "wall": r.sample.wall, "cpu": r.sample.cpu,
                 "memory": r.sample.memory} for r in rows
            ]  # fmt: skip
        elif _chosen(options.only) or _is_chosen(_PUBLISHING, options.only):
            subject = images.synthetic() if options.quick else images.debian()
            result |= {"image": _describe(subject), "runs": options.runs}
            chosen = _chosen(options.only)
            if chosen:
                with _served(subject, options) as target:
                    _say(
                        f"{subject.name}: {subject.layers} layers, {subject.entries:,} entries, "
                        f"{subject.content / 1e6:.0f} MB, {subject.compressed / 1e6:.0f} MB compressed"
                    )
                    if options.profile:
                        _print(profile(target, mount=not reason))
                    else:
                        table = _compare(target, chosen, options.runs, mount=not reason)
                        result["results"] = report.document(table)
                        _print(report.comparison(table))
                        failed = any(row.skipped.startswith("failed") for row in table)
            if _is_chosen(_PUBLISHING, options.only) and options.profile:
                _print(publishing.profile(subject, mount=not reason))
            elif _is_chosen(_PUBLISHING, options.only):
                found = publishing.measure(subject, runs=options.runs, quick=options.quick, mount=not reason)
                _print(f"\n{publishing.tables(found)}")
                result["publishing"] = publishing.document(found)
        if _is_chosen(_POLLING, options.only) and not (options.scale or options.profile):
            repositories, population = polling.QUICK if options.quick else polling.FULL
            polled = polling.measure_all(runs=options.runs, repositories=repositories, population=population)
            _print(f"\n{polling.tables(*polled)}")
            result["polling"] = polling.document(*polled)
        if _is_chosen(_PAGES, options.only) and not (options.scale or options.profile):
            served = pages.measure(*(pages.QUICK if options.quick else pages.FULL))
            _print(f"\n{pages.tables(served)}")
            result["pages"] = pages.document(served)
        if _is_chosen(_LOAD, options.only) and not (options.scale or options.profile):
            _load(options, result, mount=not reason)
        if _is_chosen(_SITE, options.only) and not (options.scale or options.profile):
            runs = site.measure(*(pages.QUICK if options.quick else pages.FULL))
            _print(f"\n{site.tables(runs)}")
            result["site"] = site.document(runs)
    except (images.Unavailable, Failed) as problem:
        _say(str(problem))
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="rounds; medians are shown (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a small image that needs neither root nor packages")
    parser.add_argument(
        "--only", default="", metavar="PART,...",
        help="contenders with one of these in their name, 'publishing', 'polling', 'pages', 'pages-load' and 'site'",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="all samples, and the machine")
    parser.add_argument("--profile", action="store_true", help="show where unpack and squash spend their time instead")
    parser.add_argument("--scale", action="store_true", help="measure growth with entries and with bytes instead")
    parser.add_argument("--no-mount", action="store_true", help="do without a new file system for each run")
    parser.add_argument("--command", default="", help="another cvmfs-sync to measure, such as another checkout's")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs: at least 1")
    others = [_PUBLISHING, _POLLING, _PAGES, _LOAD, _SITE]
    if not _chosen(options.only) and not any(_is_chosen(each, options.only) for each in others):
        parser.error(f"--only: no contender; there are {', '.join([*(each.name for each in CONTENDERS), *others])}")
    return options


def _load(options: argparse.Namespace, result: dict[str, Any], *, mount: bool) -> None:
    if missing := visitors.missing():
        _say(f"pages under load are left out: {missing}")
        return
    visited = visitors.measure(visitors.subject(quick=options.quick), runs=options.runs, mount=mount)
    _print(f"\n{visitors.tables(visited)}")
    result["visitors"] = visitors.document(visited)


def _chosen(only: str) -> list[Contender]:
    parts = _parts(only)
    return [each for each in CONTENDERS if not parts or any(part in each.name for part in parts)]


def _is_chosen(what: str, only: str) -> bool:
    parts = _parts(only)
    return not parts or any(part in what for part in parts)


def _parts(only: str) -> list[str]:
    return [part.strip() for part in only.split(",") if part.strip()]


def _compare(target: Target, contenders: Sequence[Contender], runs: int, *, mount: bool) -> list[Row]:
    """Rounds in which each contender runs once, so that all see the same weather; every other one backwards."""
    rows = {each.name: Row(each.name, skipped=each.missing()) for each in contenders}
    for number in range(runs):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            row = rows[contender.name]
            if row.skipped:
                continue
            with fresh_directory(mount=mount) as directory:
                try:
                    sample = run(contender.script(target), directory)
                    row.entries = _entries(directory, contender)
                except Failed as problem:
                    row.skipped = f"failed: {problem}"
                    row.samples.clear()
                    continue
            row.samples.append(sample)
            _say(
                f"round {number + 1}: {row.name}: {sample.wall:.2f} s, CPU {sample.cpu:.2f} s, "
                f"{sample.memory / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}"
            )
    return list(rows.values())


def _entries(directory: Path, contender: Contender) -> int:
    """What it left.

    Raises:
        Failed: If that is nothing.
    """
    if not contender.result:
        return 0
    path = directory / contender.result
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        raise Failed(f"it made no {contender.result}")
    count = count_entries(path) if path.is_dir() else 1
    if not count:
        raise Failed(f"{contender.result} is empty")
    return count


def _scale(options: argparse.Namespace, *, mount: bool) -> Iterator[scaling.ScaleRow]:
    factor = 100 if options.quick else 1
    series = [("entries", amount // factor, 16 * amount // factor) for amount in scaling.ENTRIES]
    series += [("bytes", 400, size // factor) for size in scaling.SIZES]
    for name, entries, size in series:
        amount = entries if name == "entries" else size
        with _served(images.scaled(entries, size), options) as target:
            for row in scaling.measure(target, name, amount, mount=mount):
                _say(f"{row.command}: {amount:,} {name}: {row.sample.wall:.2f} s, {row.sample.memory / 1e6:.0f} MB")
                yield row


@contextmanager
def _served(subject: images.Subject, options: argparse.Namespace) -> Iterator[Target]:
    """The image in a registry of its own, which has just read it all."""
    if shutil.which("docker-registry") is None:
        raise images.Unavailable("not on PATH: docker-registry")
    with (
        tempfile.TemporaryDirectory(prefix="cvmfs-sync-registry-", dir=large_temporary()) as directory,
        start_docker_registry(Path(directory)) as registry,
    ):
        for tag in subject.tags:
            registry.push_layout(subject.layout, tag, _REPOSITORY, tag)
        tag = subject.tags[0]
        command = tuple(shlex.split(options.command)) or OURS
        target = Target(registry.host, _REPOSITORY, tag, _layers(registry, tag), command)
        run(target.ours("--version"), Path(directory))  # makes its bytecode
        yield target


def _layers(registry: RegistryServer, tag: str) -> tuple[str, ...]:
    manifest = json.loads(registry.manifest(_REPOSITORY, tag)[1])
    return tuple(layer["digest"] for layer in manifest["layers"])


def _describe(subject: images.Subject) -> dict[str, Any]:
    return {
        "name": subject.name, "layers": subject.layers, "entries": subject.entries,
        "content": subject.content, "compressed": subject.compressed,
    }  # fmt: skip


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(message: str) -> None:
    sys.stderr.write(f"benchmarks: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
