"""Cycle reports as Prometheus metrics.

A report goes in after each cycle; numbers come out on an HTTP endpoint. Names, units and labels are documented in
`docs/metrics.md`, which a test holds equal to this module. Label values are a closed set: no image is ever one. What is
known about registries is asked for whenever Prometheus asks.
"""

from __future__ import annotations

import socket
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cvmfs_sync import __version__
from cvmfs_sync.cycle import RESULTS, CycleReport
from cvmfs_sync.errors import UsageError

__all__ = ["CYCLE_RESULTS", "Metrics"]

CYCLE_RESULTS = ("ok", "image_failed", "stopped", "list_invalid")
_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600)


class RateLimit(Protocol):
    """What a registry said about its limit on pulls."""

    @property
    def limit(self) -> int | None:
        """So many in all."""

    @property
    def remaining(self) -> int:
        """So many are left."""


class _Registries(Collector):
    def __init__(
        self,
        requests: Callable[[], Mapping[tuple[str, str], int]],
        rate_limits: Callable[[], Mapping[str, RateLimit]],
    ) -> None:
        self._requests = requests
        self._rate_limits = rate_limits

    def describe(self) -> Iterable[Metric]:
        """Nothing: there is none before a registry was asked."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What is known now."""
        count = CounterMetricFamily(
            "cvmfs_sync_registry_requests", "Requests to a registry or mirror by result", labels=["host", "result"]
        )
        for labels, number in self._requests().items():
            count.add_metric(labels, number)
        limit = GaugeMetricFamily(
            "cvmfs_sync_registry_ratelimit_limit", "Pulls that a registry allows in its window", labels=["host"]
        )
        remaining = GaugeMetricFamily(
            "cvmfs_sync_registry_ratelimit_remaining", "Pulls that a registry last said were left", labels=["host"]
        )
        for host, said in self._rate_limits().items():
            remaining.add_metric([host], said.remaining)
            if said.limit is not None:
                limit.add_metric([host], said.limit)
        return count, limit, remaining


class Metrics:
    """The metrics of one daemon."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
            "cvmfs_sync_publish_duration_seconds", "Duration of fetching and publishing one image", buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self._published = Counter("cvmfs_sync_published_images", "Images published", registry=self.registry)
        self._bytes = Counter(
            "cvmfs_sync_published_compressed_bytes", "Compressed bytes of published images", registry=self.registry
        )
        self._success = Gauge(
            "cvmfs_sync_last_success_timestamp_seconds",
            "When a cycle last ended ok",
            registry=self.registry,
        )
        self._last = Gauge("cvmfs_sync_last_cycle_timestamp_seconds", "When a cycle last ended", registry=self.registry)
        self._list_valid = Gauge(
            "cvmfs_sync_list_valid", "1 if the image list was valid when it was last read", registry=self.registry
        )
        for result in RESULTS:
            self._images.labels(result)
        for result in CYCLE_RESULTS:
            self._cycles.labels(result)

    def serve(self, host: str, port: int) -> tuple[WSGIServer, int]:
        """Answer Prometheus in a thread of its own; gives the server and the port it listens on.

        Raises:
            UsageError: The address can't be listened on.
        """
        try:
            server, _ = start_http_server(port, host, registry=self.registry)
        except (OSError, socket.gaierror) as error:
            raise UsageError(
                f"cannot serve metrics on {host}:{port}",
                found=str(error), todo="choose another address in metrics.listen, or null for none",
            ) from error  # fmt: skip
        return server, server.server_port

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
        self.registry.register(_Registries(requests, rate_limits))

    def list_read(self, *, valid: bool) -> None:
        """The image list has been read."""
        self._list_valid.set(int(valid))

    def cycle_failed(self, result: str, now: datetime) -> None:
        """A cycle ended before it had a report."""
        self._cycles.labels(result).inc()
        self._last.set(now.timestamp())

    def cycle_ended(self, report: CycleReport, now: datetime) -> None:
        """A cycle has its report."""
        tally = Tally(outcome.result for outcome in report.outcomes)
        for result in RESULTS:
            self._images.labels(result).set(tally[result])
        for outcome in report.outcomes:
            if outcome.result == "published":
                self._published.inc()
                self._bytes.inc(outcome.size)
                self._publish.observe(outcome.seconds)
        result = {0: "ok", 1: "image_failed"}.get(report.exit_code, "stopped")
        self._cycles.labels(result).inc()
        self._duration.observe(report.seconds)
        self._last.set(now.timestamp())
        if result == "ok":
            self._success.set(now.timestamp())
