"""When to run and when to stop: the scheduled life of `cvmfs-sync run`.

Jobs with their schedules go in; they happen, one at a time, until a signal says stop. APScheduler tells when a job is
due, and the job itself runs here in the main thread, so that a signal interrupts it like any `sync`: its transaction is
aborted and nothing is left. Due times of a job that pass while any runs are one run of it, not many. What a job does is
not known here.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from cvmfs_sync.units import Crontab

__all__ = ["Job", "run_daemon", "trigger"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Something that is done again and again.

    Attributes:
        schedule: An interval between beginnings, or a crontab line in local time.
        run: Does it once; deals with its own errors.
        at_once: Whether the first time is now.
    """

    name: str
    schedule: timedelta | Crontab
    run: Callable[[], None]
    at_once: bool = False


def run_daemon(*jobs: Job) -> None:
    """Run each job whenever its schedule says; returns never, ends by an exception from a signal handler.

    Jobs that are due at the same time run in the order in which they fell due.
    """
    due: queue.Queue[Job] = queue.Queue()
    waiting: set[str] = set()

    def ring(job: Job) -> None:
        if job.name in waiting:
            log.info("a %s is due while one is waiting: they become one", job.name)
            return
        waiting.add(job.name)
        due.put(job)

    scheduler = BackgroundScheduler(timezone="UTC" if all(isinstance(j.schedule, timedelta) for j in jobs) else None)
    for job in jobs:
        # A machine that slept through some due times has one to catch up with, however late.
        scheduler.add_job(ring, trigger(job.schedule), [job], coalesce=True, max_instances=1, misfire_grace_time=None)
    scheduler.start()
    for job in jobs:
        if job.at_once:
            ring(job)
    try:
        while True:
            job = due.get()
            waiting.discard(job.name)
            job.run()
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
