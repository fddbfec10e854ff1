"""Runs one property under a coverage-guided fuzzer for a bounded time.

Needs atheris, which is libFuzzer for Python. Seeds go in; what libFuzzer found interesting stays in a corpus directory,
and what breaks the property is written below `tests/data/fuzz/`, where the tests run it from then on.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Property", "run"]

ROOT = Path(__file__).resolve().parent.parent
_CORPUS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvmfs-sync-fuzz"

Property = Callable[[bytes], bool]


def run(name: str, module: str, instrumented: tuple[str, ...]) -> None:
    """Fuzz until the time is over or something is found; does not return.

    Args:
        name: Of the target, its corpus and its cases.
        module: Has `check` and `seeds`, and may have `mutate`.
        instrumented: Modules whose branches guide the fuzzer; none of them may have been imported.
    """
    try:
        import atheris  # noqa: PLC0415 -- not installed everywhere
    except ImportError:
        print(f"fuzzing {name} needs atheris, which is not installed: left out", file=sys.stderr)
        sys.exit(0)
    assert not set(instrumented) & set(sys.modules), "imported before they were instrumented"
    with atheris.instrument_imports(include=list(instrumented), enable_loader_override=False):
        for each in instrumented:
            importlib.import_module(each)
    target: Any = importlib.import_module(module)
    corpus = _CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed, content in target.seeds():
        (corpus / f"seed-{seed}").write_bytes(content)
    cases = ROOT / "tests/data/fuzz" / name
    cases.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={os.environ.get('FUZZ_SECONDS', '120')}",
        "-timeout=10",  # seconds for one input
        "-rss_limit_mb=512",
        "-max_len=16384",
        "-print_final_stats=1",
        "-verbosity=0",
        f"-artifact_prefix={cases}/",
        *sys.argv[1:],
        str(corpus),
        str(cases),
    ]
    taken = executions = 0

    def one(data: bytes) -> None:
        nonlocal taken, executions
        executions += 1
        taken += target.check(data)
        if executions % 20_000 == 0:
            print(f"{name}: {executions} inputs, {taken} of them accepted", file=sys.stderr)

    mutator: dict[str, Any] = {}
    if hasattr(target, "mutate"):
        mutator["custom_mutator"] = lambda data, maximum, seed: target.mutate(data, maximum, seed, atheris.Mutate)
    atheris.Setup(arguments, one, **mutator)
    atheris.Fuzz()
