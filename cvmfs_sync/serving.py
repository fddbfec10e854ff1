"""The daemon put together: what `run` does with a configuration, its list, and those who ask it for something.

A way to load the configuration goes in; cycles happen until a signal handler raises. When they happen is `daemon`'s
business, what a cycle does `cycle`'s. Whatever goes wrong in one of them is logged and counted, and the next one comes.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NoReturn
from wsgiref.types import WSGIApplication

from cvmfs_sync.backlog import Backlog
from cvmfs_sync.checks import Checks
from cvmfs_sync.collection import collect
from cvmfs_sync.config import Config, require_changeable
from cvmfs_sync.context import Context
from cvmfs_sync.control import Request, Server
from cvmfs_sync.cycle import sync
from cvmfs_sync.daemon import Agenda, Job
from cvmfs_sync.endpoint import Endpoint
from cvmfs_sync.errands import Errands, images_of, reply
from cvmfs_sync.errors import CvmfsSyncError, ListError, RepositoryError
from cvmfs_sync.eventlog import Document
from cvmfs_sync.frontdesk import FrontDesk
from cvmfs_sync.health import Health, page, readable
from cvmfs_sync.heartbeat import Heartbeat, Telling
from cvmfs_sync.hooks import Hooks
from cvmfs_sync.imagelist import ImageList
from cvmfs_sync.inforce import ListInForce
from cvmfs_sync.live import Live
from cvmfs_sync.locking import instance
from cvmfs_sync.metrics import Metrics
from cvmfs_sync.notify import Notifier, watchdog_seconds
from cvmfs_sync.outcome import CycleReport, PublishNow
from cvmfs_sync.reference import ImageName
from cvmfs_sync.registry import RegistryMemory
from cvmfs_sync.service import make_context, make_rules, now
from cvmfs_sync.stopping import Stopping
from cvmfs_sync.units import Crontab
from cvmfs_sync.view.activity import Activity

__all__ = ["Daemon"]

log = logging.getLogger(__name__)
_HOOK_SECONDS = 2.0


class Daemon:
    """One daemon: its jobs, each of which can be called by itself, and `run`, which calls them by the schedule.

    Args:
        load: Reads the configuration; called again for each reload.
        report: Makes a document of a cycle's report, for whoever has asked for it.
        stopping: How it ends.
        notifier: Whom to tell how it is.
        clock: The time, UTC.
        pages: The command that shows pages, where there are to be some; None for none.
    """

    def __init__(
        self,
        load: Callable[[], Config],
        report: Callable[[CycleReport], Mapping[str, Any]],
        *,
        stopping: Stopping | None = None,
        notifier: Notifier | None = None,
        clock: Callable[[], datetime] = now,
        pages: Sequence[str] | None = None,
    ) -> None:
        self.config = load()
        self.metrics = Metrics()
        self.heartbeat = Heartbeat()
        self.agenda = Agenda(
            self._jobs(), jitter=self.config.schedule.jitter, urgent=self._urgent, idle=lambda: self._doing("")
        )
        self._load = load
        self._report = report
        self._clock = clock
        self._memory = RegistryMemory()
        self._stopping = stopping or Stopping()
        self._stopping.within = self.config.stop_within
        self._notifier = notifier or Notifier(None)
        self._errands = Errands()
        self._list = ListInForce(self.metrics, self._tell, clock)
        self._checks = Checks(clock, self.metrics.delivered)
        self._reloads: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._retry = False
        self._backlog = Backlog()
        self._hooks = Hooks(self.config.hooks)
        self._last_cycle = "there was none yet"
        self._live = Live(self._clock)
        self._desk = FrontDesk(pages) if pages is not None else None
        self.metrics.watch_registries(self._memory.requests, self._memory.rate_limits)
        self.metrics.watch_backlog(self._backlog.waiting, clock)
        self.metrics.watch_hooks(lambda: self._hooks.counts)
        self.metrics.watch_spool(lambda: self.config.spool_dir)

    @property
    def wishes(self) -> ImageList | None:
        """The list in force; None before there was a valid one."""
        return self._list.wishes

    def run(self, environment: Mapping[str, str] = os.environ) -> NoReturn:
        """Work until an exception from a signal handler.

        Raises:
            RepositoryBusy: Another cvmfs-sync works with the state directory.
            UsageError: Metrics can't be served.
        """
        listen = self.config.metrics.listen
        with instance(self.config.state_dir):
            # Its usual effect is to end a process.
            signal.signal(signal.SIGHUP, lambda *_: self._reloads.put(None))
            server = Server(self.config.state_dir, self.submit)
            try:
                if listen is not None:
                    Endpoint(listen.host, listen.port, self._pages())
                    log.info("serving metrics on %s", listen)
                server.start()
                threading.Thread(target=self._reload_on_demand, name="reload", daemon=True).start()
                seconds = watchdog_seconds(environment)
                if seconds is not None:
                    self._notifier.watch(seconds, self.heartbeat.alive)
                self._open_desk()
                self._notifier.ready()
                self.agenda.run()
            finally:
                self._notifier.stopping()
                if self._desk is not None:
                    self._desk.close()
                server.close()
                self._hooks.close(_HOOK_SECONDS)

    def cycle(self) -> None:
        """One cycle over the list as it is now.

        A list that is broken or not there keeps the last good one in force.
        """
        retry, self._retry = self._retry, False
        self._cycle(retry=retry)

    def _cycle(self, *, retry: bool) -> CycleReport | CvmfsSyncError | None:
        """One cycle; its report, or why there is none."""
        with self._busy("a cycle"), self._live.cycle():
            refused = self._list.read(self.config)
            if self._list.wishes is None:
                self._cycle_failed("list_invalid")
                return refused
            try:
                with self._context() as context:
                    report = sync(context, self._list.wishes, retry=retry, gap=self)
                    self._stored(context)
            except CvmfsSyncError as error:
                log.error("the cycle ended: %s", error)
                kind = "stopped" if isinstance(error, RepositoryError) else "list_invalid"
                self._cycle_failed(kind)
                return error
            except Exception:
                # A defect of ours that one cycle meets: the transaction has been aborted, and the next may not meet it.
                log.exception("the cycle ended by a defect of cvmfs-sync; please report this")
                self._cycle_failed("stopped")
                return None
            self.metrics.cycle_ended(report, self._clock())
            self._live.ended("ok" if report.stopped is None else "stopped", report.seconds)
            self._last_cycle = "ok" if report.stopped is None else "it was stopped"
            log.info("cycle %s seconds=%.1f exit_code=%d", report.tally, report.seconds, report.exit_code)
            if report.stopped is not None:
                log.error("the cycle was stopped: %s", report.stopped)
            return report

    def collection(self) -> None:
        """One garbage collection; by a list of now, in which what was due may be wished for again."""
        with self._busy("a garbage collection"):
            self._list.read(self.config)
            if self._list.wishes is None:
                log.warning("no garbage collection: there has been no valid image list yet")
                self.metrics.collection_failed("list_invalid", self._clock())
                return
            try:
                with self._context() as context:
                    report = collect(context, self._list.wishes, make_rules(self.config))
                    self._stored(context)
            except CvmfsSyncError as error:
                log.error("the garbage collection ended: %s", error)
                kind = "stopped" if isinstance(error, RepositoryError) else "list_invalid"
                self.metrics.collection_failed(kind, self._clock())
                return
            except Exception:
                log.exception("the garbage collection ended by a defect of cvmfs-sync; please report this")
                self.metrics.collection_failed("stopped", self._clock())
                return
            self.metrics.collection_ended(report, self._clock())
            if report.plan.refused is not None:
                log.error("nothing is retired: %s", report.plan.refused)
            if report.stopped is not None:
                log.error("the garbage collection was stopped: %s", report.stopped)

    def read_list(self) -> None:
        """Read the list by itself; one that asks for something else than before begins a cycle."""
        with self._busy("reading the image list"):
            before = self._list.wishes
            self._list.read(self.config)
            new = self._list.wishes
            if new is not None and (before is None or (new.wishes, new.blocked) != (before.wishes, before.blocked)):
                log.info("the image list has changed")
                self.agenda.ring("cycle")

    def submit(self, request: Request) -> None:
        """Take a request from the control socket; from any thread. Who waits for nothing is answered at once."""
        if request.content == {"show": "activity"}:
            request.answer({"exit_code": 0, "activity": self.activity().model_dump(mode="json")})
            return
        if "check" in request.content:
            reply(request, lambda: self._checks.hear(request.content))
        else:
            self._errands.take(request)
        self.agenda.wake()

    def activity(self) -> Activity:
        """What the daemon does now; from any thread."""
        return self._live.activity(
            self._backlog, self._memory.requests(), self._memory.rate_limits(), self.config,
            next_at=self.agenda.next_at("cycle"),
        )  # fmt: skip

    def wanted(self) -> bool:
        """See `outcome.Gap`."""
        self._stopping.check()
        return bool(self._checks) or self._errands.pressing

    def serve(self, publish: PublishNow) -> None:
        """See `outcome.Gap`. Who asks for a whole cycle waits until this one ends."""
        while self._errands.pressing:
            request = self._errands.next_between()
            if request is None:
                self.agenda.wake()
            else:
                self._answer(request, publish)
        self._check(publish)

    def reload(self) -> None:
        """Read the configuration again: all of it holds from the next job on, or nothing of it if anything is wrong.

        Whatever it is, the list is read and what has failed is tried again: that is what an operator wants who asks.
        """
        self._notifier.reloading()
        try:
            fresh = self._load()
            require_changeable(self.config, fresh)
        except CvmfsSyncError as error:
            log.error("the new configuration is refused, the old one stays in force: %s", error)
            self.metrics.config_read(valid=False)
        else:
            if fresh.hooks != self.config.hooks:
                self._hooks.stop()
                self._hooks = Hooks(fresh.hooks, self._hooks.counts)
            web_changed = fresh.web != self.config.web
            self.config = fresh
            if web_changed:
                self._open_desk()
            self._stopping.within = fresh.stop_within
            self.agenda.reschedule(self._schedules(), fresh.schedule.jitter)
            self.metrics.config_read(valid=True)
            log.info("the configuration has been read again")
        self._retry = True
        self.agenda.ring("cycle")
        self._notifier.ready()

    def _open_desk(self) -> None:
        """Show pages as the configuration in force says."""
        if self._desk is not None:
            self._desk.open(wanted=self.config.web.listen is not None, told=self._note_process)

    def _note_process(self, process: int | None) -> None:
        self.heartbeat.others = frozenset() if process is None else frozenset({process})

    def _jobs(self) -> Sequence[Job]:
        schedules = self._schedules()
        return (
            Job("cycle", schedules["cycle"], self.cycle, at_once=True),
            Job("gc", schedules["gc"], self.collection),
            Job("list", schedules["list"], self.read_list),
        )

    def _schedules(self) -> Mapping[str, timedelta | Crontab]:
        schedule = self.config.schedule
        return {"cycle": schedule.sync, "gc": schedule.gc, "list": schedule.list}

    def _urgent(self) -> None:
        """Serve those who ask between two jobs."""
        self._stopping.check()
        while self._errands:
            request = self._errands.next()
            with self._busy("what was asked for"):
                self._answer(request, self._publish)
        if self._checks:
            with self._busy("what was pushed"):
                self._check(self._publish)

    def _publish(self, wishes: ImageList, only: Sequence[ImageName], *, insist: bool = True) -> CycleReport:
        with self._context() as context:
            return sync(context, wishes, only, insist=insist)

    def _check(self, publish: PublishNow) -> None:
        """Look at what was pushed. If that can't be done now, the schedule does it."""
        try:
            report = self._checks.carry_out(self._list.wishes, publish)
        except CvmfsSyncError as error:
            log.error("what was pushed could not be checked, the next cycle does it: %s", error)
        except Exception:
            log.exception("checking what was pushed ended by a defect of cvmfs-sync; please report this")
        else:
            if report is not None:
                self.metrics.published(report)
                if report.stopped is not None:
                    log.error("checking what was pushed was stopped: %s", report.stopped)

    def _answer(self, request: Request, publish: PublishNow) -> None:
        """Do what is asked, and tell what became of it."""
        if not request.gone:
            reply(request, lambda: self._done(request, publish))

    def _done(self, request: Request, publish: PublishNow) -> Mapping[str, Any]:
        only = images_of(request)
        report: CycleReport | CvmfsSyncError | None
        if only:
            log.info("asked for now: %s", " ".join(map(str, only)))
            refused = self._list.read(self.config)
            if self._list.wishes is None:
                raise refused or ListError("there has been no valid image list yet")
            report = publish(self._list.wishes, only)
            self.metrics.published(report)
        else:
            report = self._cycle(retry=True)
        if isinstance(report, CvmfsSyncError):
            raise report
        if report is None:
            raise RepositoryError("the cycle ended by a defect of cvmfs-sync", todo="see the daemon's log")
        return {"exit_code": report.exit_code, "report": self._report(report)}

    def _reload_on_demand(self) -> None:
        while True:
            self._reloads.get()
            try:
                self.reload()
            except Exception:
                log.exception("the reload ended by a defect of cvmfs-sync; please report this")

    def _pages(self) -> Mapping[str, WSGIApplication]:
        """What the endpoint shows."""

        def missing() -> bool:
            return self.config.repository.backend == "directory"

        health = Health(
            self.heartbeat.look(),
            {
                "list": lambda: "ok" if self._list.wishes is not None else "there was no valid one yet",
                "repository": readable(lambda: self.config.repository.root, may_be_missing=missing),
                "cycle": lambda: self._last_cycle,
            },
        )
        return {"/metrics": self.metrics.page(), "/healthz": page(health.alive), "/readyz": page(health.ready)}

    def _cycle_failed(self, result: str) -> None:
        self.metrics.cycle_failed(result, self._clock())
        self._live.ended(result, None)
        self._last_cycle = "there is no valid list" if result == "list_invalid" else "it was stopped"

    def _tell(self, event: Document) -> None:
        """Something has happened. A reload may change who is told, in the middle of a job."""
        self._hooks.tell(event)

    def _stored(self, context: Context) -> None:
        self.metrics.stored(self.config.state_dir, len(context.state.orphans()))

    @contextmanager
    def _busy(self, what: str) -> Iterator[None]:
        before = self.heartbeat.doing
        self._doing(what)
        try:
            yield
        finally:
            self._doing(before)

    def _doing(self, what: str) -> None:
        self.heartbeat.doing = what
        self._live.doing = what
        self.heartbeat.beat()
        self._notifier.status(what or "waiting for the next cycle")

    @contextmanager
    def _context(self) -> Iterator[Context]:
        with make_context(
            self.config, memory=self._memory, clock=self._clock, stopping=self._stopping,
            telling=lambda progress: self._live.watched(Telling(progress, self.heartbeat, self._notifier.status)),
            backlog=self._backlog, held=self.metrics.held, told=self._tell, asked=self.metrics.asked,
        ) as context:  # fmt: skip
            yield context
