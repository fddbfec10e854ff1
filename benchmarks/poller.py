"""Cycles one after the other in one process, as the daemon has them; what each took.

    python -m benchmarks.poller CONFIGURATION RESULT [--cycles N] [--profile FILE]

A configuration goes in; a JSON list comes out: of each cycle the seconds, those of the processor, and how many images
were published, unchanged, and so on. What registries said is remembered from cycle to cycle.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cvmfs_sync.config import Config
from cvmfs_sync.cycle import sync
from cvmfs_sync.registry import RegistryMemory
from cvmfs_sync.service import load_config, make_context, read_wishes

__all__ = ["main"]


def main() -> None:
    """Run cycles."""
    parser = argparse.ArgumentParser(prog="benchmarks.poller", description="Cycles in one process.")
    parser.add_argument("configuration", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--cycles", type=int, default=1)
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    config, memory = load_config(options.configuration), RegistryMemory()
    with profile or nullcontext():
        found = [_cycle(config, memory) for _ in range(options.cycles)]
    if profile is not None:
        profile.dump_stats(options.profile)
    options.result.write_text(json.dumps(found))


def _cycle(config: Config, memory: RegistryMemory) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    wishes = read_wishes(config)
    with make_context(config, memory=memory) as context:
        report = sync(context, wishes)
    results = Counter(outcome.result for outcome in report.outcomes)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "results": dict(results)}


if __name__ == "__main__":
    main()
