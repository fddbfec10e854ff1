"""Numbers that are looked up whenever Prometheus asks: of registries, of hooks, of what waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["HOOK_RESULTS", "HookEvents", "RateLimit", "Registries", "Waiting"]

HOOK_RESULTS = ("ok", "failed", "dropped")


class RateLimit(Protocol):
    """What a registry said about its limit on pulls."""

    @property
    def limit(self) -> int | None:
        """So many in all."""

    @property
    def remaining(self) -> int:
        """So many are left."""


class Registries(Collector):
    """Requests to registries, and what they say of their limits.

    Args:
        requests: So many by host and result.
        rate_limits: What each host said last.
    """

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


class HookEvents(Collector):
    """What became of events that hooks are told; `counts` by result."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """What is known now."""
        family = CounterMetricFamily("cvmfs_sync_hook_events", "Events for hooks by result", labels=["result"])
        counts = self._counts()
        for result in HOOK_RESULTS:
            family.add_metric([result], counts.get(result, 0))
        return (family,)


class Waiting(Collector):
    """How much waits, and for how long the oldest of it has.

    Args:
        waiting: Since when each has.
        clock: The time, UTC.
    """

    def __init__(self, waiting: Callable[[], Sequence[datetime]], clock: Callable[[], datetime]) -> None:
        self._waiting = waiting
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """What is waiting now."""
        since = self._waiting()
        age = max(0.0, (self._clock() - min(since)).total_seconds()) if since else 0.0
        count = GaugeMetricFamily("cvmfs_sync_waiting_images", "Links that wait to be made or moved", len(since))
        oldest = GaugeMetricFamily(
            "cvmfs_sync_oldest_waiting_age_seconds", "For how long the oldest of them has waited; 0 without any", age
        )
        return count, oldest
