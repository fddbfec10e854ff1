"""When to run and when to stop: the scheduled life of `cvmfs-sync run`.

Jobs with their schedules go in; they happen, one at a time, until a signal says stop. APScheduler tells when a job is
due, and the job itself runs here in the main thread, so that a signal interrupts it like any `sync`: its transaction is
aborted and nothing is left. Due times of a job that pass while any runs are one run of it, not many. What a job does is
not known here.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from cvmfs_sync.units import Crontab

__all__ = ["Agenda", "Job", "run_daemon", "trigger"]

log = logging.getLogger(__name__)
# Of an interval, at most: what shall happen every second shall not wait for ten.
_JITTER_SHARE = 10


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


class Agenda:
    """What is due, one at a time; jobs that fall due at the same time run in the order in which they did.

    Args:
        jobs: Each with a name of its own.
        jitter: How much later than its schedule says a job falls due, at random.
        urgent: Done before each job, and when `wake` is called: what can't wait for its turn.
        idle: Told when there is nothing to do.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        jitter: timedelta = timedelta(0),
        urgent: Callable[[], None] = lambda: None,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._jitter = jitter
        self._urgent = urgent
        self._idle = idle
        # Unlike `Queue`, it may be put into by a signal handler that interrupts itself.
        self._due: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        crontabs = any(isinstance(job.schedule, Crontab) for job in jobs)
        self._scheduler = BackgroundScheduler(timezone=None if crontabs else "UTC")

    def ring(self, name: str) -> None:
        """A job is due; from any thread."""
        if name in self._waiting:
            log.info("a %s is due while one is waiting: they become one", name)
            return
        self._waiting.add(name)
        self._due.put(name)

    def wake(self) -> None:
        """Something urgent has come; from any thread, or a signal handler."""
        self._due.put(None)

    def reschedule(self, schedules: Mapping[str, timedelta | Crontab], jitter: timedelta) -> None:
        """Go by these schedules from now on; from any thread."""
        changed = {name for name, each in schedules.items() if each != self._jobs[name].schedule}
        if jitter != self._jitter:
            changed = set(schedules)
        self._jitter = jitter
        for name in changed:
            self._jobs[name] = replace(self._jobs[name], schedule=schedules[name])
            if self._scheduler.get_job(name) is not None:
                self._scheduler.reschedule_job(name, trigger=trigger(schedules[name], jitter))

    def next_at(self, name: str) -> datetime | None:
        """When a job is due next by its schedule; from any thread."""
        job = self._scheduler.get_job(name)
        at = getattr(job, "next_run_time", None)
        return at if isinstance(at, datetime) else None

    def run(self) -> NoReturn:
        """Run each job whenever its schedule says; ends by an exception."""
        for job in self._jobs.values():
            # A machine that slept through some due times has one to catch up with, however late.
            self._scheduler.add_job(
                self.ring, trigger(job.schedule, self._jitter), [job.name],
                id=job.name, coalesce=True, max_instances=1, misfire_grace_time=None,
            )  # fmt: skip
        self._scheduler.start()
        for job in self._jobs.values():
            if job.at_once:
                self.ring(job.name)
        try:
            while True:
                self.run_due()
                self._idle()
                self._turn(self._due.get())
        finally:
            self._scheduler.shutdown(wait=False)

    def run_due(self) -> None:
        """Run what is due already, without waiting for anything."""
        while not self._due.empty():
            self._turn(self._due.get())

    def _turn(self, name: str | None) -> None:
        self._urgent()
        if name is not None:
            self._waiting.discard(name)
            self._jobs[name].run()


def run_daemon(*jobs: Job) -> NoReturn:
    """Run jobs by their schedules and nothing else; ends by an exception from one of them or a signal handler."""
    Agenda(jobs).run()


def trigger(schedule: timedelta | Crontab, jitter: timedelta = timedelta(0)) -> BaseTrigger:
    """The schedule as APScheduler knows it."""
    if isinstance(schedule, timedelta):
        late = min(jitter, schedule / _JITTER_SHARE).total_seconds() or None
        return IntervalTrigger(seconds=schedule.total_seconds(), start_date=datetime.now(UTC) + schedule, jitter=late)
    late = jitter.total_seconds() or None
    fields = {"minute": schedule.minute, "hour": schedule.hour, "month": schedule.month}
    if schedule.day != "*" and schedule.day_of_week != "*":
        # crontab(5): where both are restricted, either will do; APScheduler wants both.
        return OrTrigger(
            [CronTrigger(**fields, day=schedule.day), CronTrigger(**fields, day_of_week=schedule.day_of_week)],
            jitter=late,
        )
    return CronTrigger(**fields, day=schedule.day, day_of_week=schedule.day_of_week, jitter=late)
