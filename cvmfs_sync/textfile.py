"""Metrics of runs that end: a file for node_exporter's textfile collector.

The metrics of one run go in, and are put together with those of the runs before it, which the file has: counters and
histograms go on, so that Prometheus sees the same as it would of a daemon. The file is replaced in one step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["add_to_textfile"]

log = logging.getLogger(__name__)
_LARGEST = 16 << 20
_Series = tuple[str, frozenset[tuple[str, str]]]


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        """What it was made of."""
        return self._families


def add_to_textfile(path: Path, registry: CollectorRegistry, unknown: Collection[str] = ()) -> None:
    """Write the file; one that can't be read begins anew.

    Args:
        path: Of the file; its directory is there.
        registry: The metrics of one run.
        unknown: Gauges that this run knows nothing of; they keep their values.

    Raises:
        OSError: It can't be written; it is as it was.
    """
    before = _read(path)
    together = CollectorRegistry()
    together.register(_Fixed(_joined(family, before, unknown) for family in registry.collect()))
    write_to_textfile(os.fspath(path), together)


def _joined(family: Metric, before: Mapping[_Series, float], unknown: Collection[str]) -> Metric:
    """A family with what it was before."""
    goes_on = family.type == "counter" or (family.type == "histogram" and _same_buckets(family, before))
    joined = Metric(family.name, family.documentation, family.type)
    for sample in family.samples:
        old = before.get(_series(sample))
        value = sample.value
        if old is not None and goes_on:
            value += old
        elif old is not None and sample.name.endswith("_timestamp_seconds"):
            value = max(value, old)
        elif old is not None and sample.name in unknown:
            value = old
        joined.samples.append(Sample(sample.name, sample.labels, value))
    there = {_series(sample) for sample in joined.samples}
    # A registry that was not asked by this run.
    names = {f"{family.name}_total"} if family.type == "counter" else {family.name}
    for name, labels in before.keys() - there:
        if name in names and "host" in dict(labels):
            joined.samples.append(Sample(name, dict(labels), before[name, labels]))
    return joined


def _same_buckets(family: Metric, before: Mapping[_Series, float]) -> bool:
    """Whether the counts of two histograms can be added: another version may have other buckets."""
    name = f"{family.name}_bucket"
    old = {series for series in before if series[0] == name}
    return old == {_series(sample) for sample in family.samples if sample.name == name}


def _series(sample: Sample) -> _Series:
    return sample.name, frozenset(sample.labels.items())


def _read(path: Path) -> dict[_Series, float]:
    """What an earlier run has written."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST)
        families = list(text_string_to_metric_families(text))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, IndexError) as error:
        log.warning("the metrics in %s cannot be read, and begin anew: %s", path, error)
        return {}
    return {_series(sample): sample.value for family in families for sample in family.samples}
