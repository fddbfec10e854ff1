"""Where the time goes: one command under cProfile, and under py-spy and perf where they are.

cProfile sees the main thread alone, and doubles the cost of a call: compare its numbers with one another only. py-spy
sees all threads, perf the kernel and libraries, too.
"""

from __future__ import annotations

import io
import pstats
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.contenders import Target
from benchmarks.measure import Failed, fresh_directory, run

__all__ = ["profile"]

_TOP = 30


def profile(target: Target, *, mount: bool) -> str:
    """The reports for `unpack` and `squash`."""
    commands = {
        "unpack": ("unpack", "--insecure", target.reference, "tree"),
        "squash": ("squash", "--insecure", target.reference),
    }
    parts = []
    for name, arguments in commands.items():
        parts.append(f"===== {name}: cProfile, main thread, by own time\n{_cprofile(arguments, mount=mount)}")
        if _pyspy() is not None:
            parts.append(f"===== {name}: py-spy, all threads\n{_sampled(target, arguments, mount=mount)}")
        if shutil.which("perf") is not None:
            parts.append(f"===== {name}: perf, all threads, with kernel\n{_perf(target, arguments, mount=mount)}")
    return "\n".join(parts)


def _cprofile(arguments: tuple[str, ...], *, mount: bool) -> str:
    with fresh_directory(mount=mount) as directory:
        command = shlex.join([sys.executable, "-m", "cProfile", "-o", "profile", "-m", "cvmfs_sync", *arguments])
        run(f"{command} | cat >/dev/null", directory)
        out = io.StringIO()
        statistics = pstats.Stats(str(directory / "profile"), stream=out)
    statistics.strip_dirs().sort_stats("tottime").print_stats(_TOP)
    return out.getvalue().strip() + "\n"


def _sampled(target: Target, arguments: tuple[str, ...], *, mount: bool) -> str:
    """Functions by the samples in which they were on top, of all threads that were not waiting."""
    with fresh_directory(mount=mount) as directory:
        spy = shlex.join([_pyspy() or "py-spy", "record", "--rate", "200", "--threads", "--format", "raw"])
        try:
            run(f"{spy} --output samples -- {target.ours(*arguments)} | cat >/dev/null", directory)
        except Failed as problem:
            return f"failed: {problem}\n"
        counts: dict[str, int] = {}
        for line in (directory / "samples").read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            frames = stack.split(";")
            name = f"{frames[0].split(':')[-1].strip():24.24} {frames[-1]}"
            counts[name] = counts.get(name, 0) + int(count)
    whole = sum(counts.values()) or 1
    top = sorted(counts.items(), key=lambda item: -item[1])[:_TOP]
    return "\n".join(f"{100 * count / whole:5.1f} %  {name}" for name, count in top) + "\n"


def _perf(target: Target, arguments: tuple[str, ...], *, mount: bool) -> str:
    with fresh_directory(mount=mount) as directory:
        try:
            run(f"perf record -q -F 499 -o perf.data -- {target.ours(*arguments)} | cat >/dev/null", directory)
        except Failed as problem:
            return f"failed: {problem}\n"
        parts = [_symbols(directory, keys, top) for keys, top in (("dso", 8), ("dso,symbol", _TOP))]
    return "\n\n".join(parts) + "\n"


def _symbols(directory: Path, keys: str, top: int) -> str:
    """The largest shares of a recording; what has no symbol is one symbol."""
    command = ["perf", "report", "--stdio", "--quiet", "--sort", keys, "-i", str(directory / "perf.data")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    shares: dict[str, float] = {}
    for line in result.stdout.splitlines():
        share, _, name = line.strip().partition("%")
        if name and not share.startswith("#"):
            name = " ".join("?" if part.startswith("0x") else part for part in name.split() if part != "-")
            shares[name] = shares.get(name, 0) + float(share)
    return "\n".join(
        f"{share:5.1f} %  {name}" for name, share in sorted(shares.items(), key=lambda item: -item[1])[:top]
    )


def _pyspy() -> str | None:
    return shutil.which("py-spy") or shutil.which(Path(sys.executable).with_name("py-spy"))
