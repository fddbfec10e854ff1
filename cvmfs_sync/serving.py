"""The daemon put together: what one cycle of `run` does with a configuration, its list and its metrics.

A `Config` goes in; cycles happen until a signal handler raises. When they happen is `daemon`'s business.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

from cvmfs_sync.collection import collect
from cvmfs_sync.config import Config
from cvmfs_sync.cycle import RESULTS, sync
from cvmfs_sync.daemon import Job, run_daemon
from cvmfs_sync.errors import CvmfsSyncError, RepositoryError
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.locking import instance
from cvmfs_sync.metrics import Metrics
from cvmfs_sync.registry import RegistryMemory
from cvmfs_sync.service import make_context, make_rules, now, read_wishes

__all__ = ["serve"]

log = logging.getLogger(__name__)


def serve(config: Config) -> None:
    """Be the daemon: a cycle whenever the schedule says, until an exception from a signal handler."""
    metrics = Metrics()
    memory = RegistryMemory()
    metrics.watch_registries(memory.requests, memory.rate_limits)
    listen = config.metrics.listen
    with instance(config.state_dir):
        if listen is not None:
            metrics.serve(listen.host, listen.port)
            log.info("serving metrics on %s", listen)
        last_good: list[ImageList] = []
        run_daemon(
            Job("cycle", config.schedule.sync, lambda: _daemon_cycle(config, metrics, memory, last_good), at_once=True),
            Job("gc", config.schedule.gc, lambda: _daemon_collection(config, metrics, memory, last_good)),
        )


def _daemon_cycle(config: Config, metrics: Metrics, memory: RegistryMemory, last_good: list[ImageList]) -> None:
    """One cycle of the daemon: whatever goes wrong is logged and counted, and the next one comes.

    A list that is broken or not there keeps the last good one in force.
    """
    _read_list(config, metrics, last_good)
    if not last_good:
        metrics.cycle_failed("list_invalid", now())
        return
    try:
        with make_context(config, memory=memory) as context:
            report = sync(context, last_good[0])
    except CvmfsSyncError as error:
        log.error("the cycle ended: %s", error)
        metrics.cycle_failed("stopped" if isinstance(error, RepositoryError) else "list_invalid", now())
        return
    except Exception:
        # A defect of ours that one cycle meets: the transaction has been aborted, and the next cycle may not meet it.
        log.exception("the cycle ended by a defect of cvmfs-sync; please report this")
        metrics.cycle_failed("stopped", now())
        return
    metrics.cycle_ended(report, now())
    counts = Counter(outcome.result for outcome in report.outcomes)
    log.info(
        "cycle %s seconds=%.1f exit_code=%d",
        " ".join(f"{result}={counts[result]}" for result in RESULTS), report.seconds, report.exit_code,
    )  # fmt: skip
    if report.stopped is not None:
        log.error("the cycle was stopped: %s", report.stopped)


def _read_list(config: Config, metrics: Metrics, last_good: list[ImageList]) -> None:
    """Bring the list in force up to date, or note that it can't be."""
    try:
        last_good[:] = [read_wishes(config)]
    except CvmfsSyncError as error:
        metrics.list_read(valid=False)
        last_good[:] = [replace(each, stale=True) for each in last_good]
        log.error("the image list is not valid, %s: %s", "the last good one stays" if last_good else "waiting", error)
    else:
        metrics.list_read(valid=True)


def _daemon_collection(config: Config, metrics: Metrics, memory: RegistryMemory, last_good: list[ImageList]) -> None:
    """One garbage collection of the daemon; by a list of now, in which what was due may be wished for again."""
    _read_list(config, metrics, last_good)
    if not last_good:
        log.warning("no garbage collection: there has been no valid image list yet")
        return
    try:
        with make_context(config, memory=memory) as context:
            report = collect(context, last_good[0], make_rules(config))
    except CvmfsSyncError as error:
        log.error("the garbage collection ended: %s", error)
        return
    except Exception:
        log.exception("the garbage collection ended by a defect of cvmfs-sync; please report this")
        return
    if report.plan.refused is not None:
        log.error("nothing is retired: %s", report.plan.refused)
    if report.stopped is not None:
        log.error("the garbage collection was stopped: %s", report.stopped)
