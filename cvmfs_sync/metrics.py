"""Cycle reports as Prometheus metrics.

A report goes in after each cycle and each garbage collection; a page of numbers comes out. Names, units and labels are
documented in `docs/metrics.md`, which a test holds equal to this module. Label values are a closed set: no image is
ever one. What is known about registries, and what waits, is asked for whenever Prometheus asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import get_args
from wsgiref.types import WSGIApplication

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    make_wsgi_app,
)

from cvmfs_sync import __version__
from cvmfs_sync.collection import CollectionReport
from cvmfs_sync.collectors import HookEvents, RateLimit, Registries, Waiting
from cvmfs_sync.context import Asked
from cvmfs_sync.diskuse import size_below
from cvmfs_sync.outcome import RESULTS, CycleReport, Outcome
from cvmfs_sync.pushes import DELIVERY_RESULTS, SENDERS
from cvmfs_sync.retire import Retirement

__all__ = ["ASKED", "CYCLE_RESULTS", "GC_RESULTS", "HOWS", "KINDS", "TRANSACTION_RESULTS", "Metrics"]

CYCLE_RESULTS = ("ok", "image_failed", "stopped", "list_invalid")
GC_RESULTS = ("ok", "refused", "stopped", "list_invalid")
TRANSACTION_RESULTS = ("published", "aborted")
HOWS = ("whole", "difference")
KINDS = ("link", "tree")
ASKED: tuple[str, ...] = get_args(Asked)
# A gauge beside each counter with the time of its making, which nobody asks for, would double what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]
_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600)
_QUESTIONS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 180)
_SHORT = (0.1, 0.5, 1, 2, 5, 15, 60, 300, 900, 3600)
_DELAYS = (60, 300, 900, 1800, 3600, 2 * 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600)
_SIZES = tuple(1024.0**power * step for power in (1, 2, 3) for step in (1, 16, 256))


class Metrics:
    """The metrics of one daemon, or of one run."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._work()
        self._storage()
        self._retiring()
        self._build = Info("cvmfs_sync_build", "Version of cvmfs-sync", registry=self.registry)
        self._build.info({"version": __version__})
        self._images = Gauge(
            "cvmfs_sync_images", "Links of the image list by their result in the last cycle", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self._cycles = Counter("cvmfs_sync_cycles", "Cycles by result", ["result"], registry=self.registry)
        self._duration = Histogram(
            "cvmfs_sync_cycle_duration_seconds", "Duration of a cycle", buckets=_BUCKETS, registry=self.registry
        )
        self._publish = Histogram(
            "cvmfs_sync_publish_duration_seconds", "Duration of publishing one prepared image", buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self._published = Counter("cvmfs_sync_published_images", "Images published", registry=self.registry)
        self._bytes = Counter(
            "cvmfs_sync_published_compressed_bytes", "Compressed bytes of published images", registry=self.registry
        )
        self._success = Gauge(
            "cvmfs_sync_last_success_timestamp_seconds",
            "When a cycle last went through the whole list, whether or not images failed",
            registry=self.registry,
        )
        self._last = Gauge("cvmfs_sync_last_cycle_timestamp_seconds", "When a cycle last ended", registry=self.registry)
        self._list_valid = Gauge(
            "cvmfs_sync_list_valid", "1 if the image list was valid when it was last read", registry=self.registry
        )
        self._config_valid = Gauge(
            "cvmfs_sync_config_valid", "1 if the configuration was valid when it was last read", registry=self.registry
        )
        self._config_valid.set(1)
        self._deliveries = Counter(
            "cvmfs_sync_webhook_deliveries", "Deliveries to webhooks by sender and result", ["sender", "result"],
            registry=self.registry,
        )  # fmt: skip
        for sender in SENDERS:
            for result in DELIVERY_RESULTS:
                self._deliveries.labels(sender, result)
        for result in RESULTS:
            self._images.labels(result)
        for result in CYCLE_RESULTS:
            self._cycles.labels(result)

    def _work(self) -> None:
        """What publishing costs."""
        self._plan = Histogram(
            "cvmfs_sync_plan_duration_seconds", "Duration of asking the registries in a cycle", buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self._prepare = Histogram(
            "cvmfs_sync_prepare_duration_seconds", "Duration of fetching and comparing one image", buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self._asked = Histogram(
            "cvmfs_sync_resolve_duration_seconds", "Duration of asking for one name, by what was asked", ["what"],
            buckets=_QUESTIONS, registry=self.registry,
        )  # fmt: skip
        self._fetch = Histogram(
            "cvmfs_sync_fetch_duration_seconds", "Seconds in which layers of one published image were fetched",
            buckets=_SHORT, registry=self.registry,
        )  # fmt: skip
        self._fetched = Histogram(
            "cvmfs_sync_fetch_bytes", "Compressed bytes that were fetched to publish one image", buckets=_SIZES,
            registry=self.registry,
        )  # fmt: skip
        self._flatten = Histogram(
            "cvmfs_sync_flatten_duration_seconds", "Duration of reading and merging the layers of one published image",
            buckets=_SHORT, registry=self.registry,
        )  # fmt: skip
        self._flattened = Histogram(
            "cvmfs_sync_flatten_bytes", "Bytes of files in the layers that were read to publish one image",
            buckets=_SIZES, registry=self.registry,
        )  # fmt: skip
        self._unfetched = Counter(
            "cvmfs_sync_fetch_saved_bytes", "Compressed bytes of published images that were not fetched",
            registry=self.registry,
        )  # fmt: skip
        self._written = Histogram(
            "cvmfs_sync_publish_written_bytes", "Bytes of files that were written to publish one image",
            buckets=_SIZES, registry=self.registry,
        )  # fmt: skip
        self._files = Counter("cvmfs_sync_written_files", "Files written to publish images", registry=self.registry)
        self._saved = Counter(
            "cvmfs_sync_saved_bytes", "Bytes of files of published trees that did not have to be written",
            registry=self.registry,
        )  # fmt: skip
        self._trees = Counter(
            "cvmfs_sync_published_trees", "Trees published, by how they were made", ["how"], registry=self.registry
        )
        self._delay = Histogram(
            "cvmfs_sync_update_delay_seconds", "From a name first seen to mean something new to its publication",
            buckets=_DELAYS, registry=self.registry,
        )  # fmt: skip
        self._held = Histogram(
            "cvmfs_sync_transaction_held_seconds", "For how long a transaction was open, by what became of it",
            ["result"], buckets=_SHORT, registry=self.registry,
        )  # fmt: skip
        for how in HOWS:
            self._trees.labels(how)
        for what in ASKED:
            self._asked.labels(what)
        for result in TRANSACTION_RESULTS:
            self._held.labels(result)

    def _storage(self) -> None:
        """What is kept on this machine, and of the list."""
        self._spool = Gauge("cvmfs_sync_spool_bytes", "Bytes of files in the spool directory", registry=self.registry)
        self._state = Gauge("cvmfs_sync_state_bytes", "Bytes of files in the state directory", registry=self.registry)
        self._list_read = Gauge(
            "cvmfs_sync_list_last_valid_timestamp_seconds", "When a valid image list was last read",
            registry=self.registry,
        )  # fmt: skip

    def _retiring(self) -> None:
        """What goes."""
        self._collections = Counter(
            "cvmfs_sync_gc_runs", "Garbage collections by result", ["result"], registry=self.registry
        )
        self._collection = Histogram(
            "cvmfs_sync_gc_duration_seconds", "Duration of a garbage collection", buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self._collected = Gauge(
            "cvmfs_sync_gc_last_success_timestamp_seconds", "When a garbage collection last ended ok",
            registry=self.registry,
        )  # fmt: skip
        self._retired = Counter(
            "cvmfs_sync_retired", "Links and trees removed because nobody asked for them", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self._taken_down = Counter(
            "cvmfs_sync_taken_down", "Links and trees removed because the list blocks them", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self._orphans = Gauge(
            "cvmfs_sync_orphans", "Links and trees that nobody asks for, in their grace period", registry=self.registry
        )
        for result in GC_RESULTS:
            self._collections.labels(result)
        for kind in KINDS:
            self._retired.labels(kind)
            self._taken_down.labels(kind)

    def page(self) -> WSGIApplication:
        """The page for Prometheus."""
        return make_wsgi_app(self.registry)

    def held(self, seconds: float, published: bool) -> None:
        """A transaction is over."""
        self._held.labels(TRANSACTION_RESULTS[0 if published else 1]).observe(seconds)

    def asked(self, what: Asked, seconds: float) -> None:
        """A question was answered, or not; from any thread."""
        self._asked.labels(what).observe(seconds)

    def watch_backlog(self, waiting: Callable[[], Sequence[datetime]], clock: Callable[[], datetime]) -> None:
        """Show what waits when Prometheus asks.

        Args:
            waiting: Since when each of them does.
            clock: The time, UTC.
        """
        self.registry.register(Waiting(waiting, clock))

    def watch_hooks(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Show how many events were delivered when Prometheus asks."""
        self.registry.register(HookEvents(counts))

    def watch_spool(self, directory: Callable[[], Path]) -> None:
        """Show how large the spool is when Prometheus asks."""
        self._spool.set_function(lambda: float(size_below(directory())))

    def stored(self, state_directory: Path, orphans: int) -> None:
        """A cycle or a garbage collection has ended, and left this."""
        self._state.set(size_below(state_directory))
        self._orphans.set(orphans)

    def watch_registries(
        self,
        requests: Callable[[], Mapping[tuple[str, str], int]],
        rate_limits: Callable[[], Mapping[str, RateLimit]],
    ) -> None:
        """Show what these two functions tell when Prometheus asks.

        Args:
            requests: How many requests there were, by host and result.
            rate_limits: What each host said last.
        """
        self.registry.register(Registries(requests, rate_limits))

    def list_read(self, now: datetime, *, valid: bool) -> None:
        """The image list has been read."""
        self._list_valid.set(int(valid))
        if valid:
            self._list_read.set(now.timestamp())

    def config_read(self, *, valid: bool) -> None:
        """The configuration has been read again."""
        self._config_valid.set(int(valid))

    def cycle_failed(self, result: str, now: datetime) -> None:
        """A cycle ended before it had a report."""
        self._cycles.labels(result).inc()
        self._last.set(now.timestamp())

    def cycle_ended(self, report: CycleReport, now: datetime) -> None:
        """A cycle has its report."""
        for result, count in report.counts.items():
            self._images.labels(result).set(count)
        self.published(report)
        result = {0: "ok", 1: "image_failed"}.get(report.exit_code, "stopped")
        self._cycles.labels(result).inc()
        self._duration.observe(report.seconds)
        self._plan.observe(report.plan_seconds)
        _count(self._taken_down, report.taken_down)
        self._last.set(now.timestamp())
        if result != "stopped":
            # Of thousands of images one always fails, which is that image's failure: all others are up to date.
            self._success.set(now.timestamp())

    def published(self, report: CycleReport) -> None:
        """What was published, by a cycle or because somebody asked for it."""
        for outcome in report.outcomes:
            if outcome.result == "published":
                self._published_one(outcome)
            if outcome.waited is not None:
                self._delay.observe(outcome.waited)

    def delivered(self, sender: str, result: str, number: int) -> None:
        """Webhooks have got so many deliveries."""
        self._deliveries.labels(sender, result).inc(number)

    def collection_failed(self, result: str, _now: datetime) -> None:
        """A garbage collection ended before it had a report."""
        self._collections.labels(result).inc()

    def collection_ended(self, report: CollectionReport, now: datetime) -> None:
        """A garbage collection has its report."""
        result = {0: "ok", 1: "refused"}.get(report.exit_code, "stopped")
        self._collections.labels(result).inc()
        self._collection.observe(report.seconds)
        _count(self._retired, report.gone)
        if result == "ok":
            self._collected.set(now.timestamp())

    def _published_one(self, outcome: Outcome) -> None:
        self._published.inc()
        self._bytes.inc(outcome.size)
        self._publish.observe(outcome.seconds)
        self._prepare.observe(outcome.prepare_seconds)
        self._fetch.observe(outcome.fetched.seconds)
        self._fetched.observe(outcome.fetched.bytes)
        self._unfetched.inc(max(0, outcome.size - outcome.fetched.bytes))
        self._flatten.observe(outcome.flattened.seconds)
        self._flattened.observe(outcome.flattened.bytes)
        self._written.observe(outcome.written_bytes)
        self._files.inc(outcome.written_files)
        self._saved.inc(max(0, outcome.tree_bytes - outcome.written_bytes))
        self._trees.labels(HOWS[0 if outcome.made_of is None else 1]).inc()


def _count(counter: Counter, gone: Iterable[Retirement]) -> None:
    for each in gone:
        counter.labels(KINDS[0 if each.target is not None else 1]).inc()
