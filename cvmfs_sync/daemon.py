"""When to run and when to stop: the scheduled life of `cvmfs-sync run`.

A schedule and a function that does one cycle go in; cycles happen, one at a time, until a signal says stop. APScheduler
tells when a cycle is due, and the cycle itself runs here in the main thread, so that a signal interrupts it like any
`sync`: its transaction is aborted and nothing is left. Due times that pass while a cycle runs are one cycle, not many.
What a cycle does is not known here.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from cvmfs_sync.units import Crontab

__all__ = ["run_daemon", "trigger"]

log = logging.getLogger(__name__)


def run_daemon(schedule: timedelta | Crontab, cycle: Callable[[], None]) -> None:
    """Run a cycle now and whenever the schedule says; returns never, ends by an exception from a signal handler.

    Args:
        schedule: An interval between beginnings, or a crontab line in local time.
        cycle: Does one cycle; deals with its own errors.
    """
    due: queue.Queue[None] = queue.Queue(maxsize=1)

    def ring() -> None:
        if due.full():
            log.info("a cycle is due while one is waiting: they become one")
            return
        due.put_nowait(None)

    scheduler = BackgroundScheduler(timezone="UTC" if isinstance(schedule, timedelta) else None)
    # A machine that slept through some due times has one cycle to catch up with, however late.
    scheduler.add_job(ring, trigger(schedule), coalesce=True, max_instances=1, misfire_grace_time=None)
    scheduler.start()
    ring()
    try:
        while True:
            due.get()
            cycle()
    finally:
        scheduler.shutdown(wait=False)


def trigger(schedule: timedelta | Crontab) -> BaseTrigger:
    """The schedule as APScheduler knows it."""
    if isinstance(schedule, timedelta):
        return IntervalTrigger(seconds=schedule.total_seconds(), start_date=datetime.now(UTC) + schedule)
    fields = {"minute": schedule.minute, "hour": schedule.hour, "month": schedule.month}
    if schedule.day != "*" and schedule.day_of_week != "*":
        # crontab(5): where both are restricted, either will do; APScheduler wants both.
        return OrTrigger(
            [CronTrigger(**fields, day=schedule.day), CronTrigger(**fields, day_of_week=schedule.day_of_week)]
        )
    return CronTrigger(**fields, day=schedule.day, day_of_week=schedule.day_of_week)
