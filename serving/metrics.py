"""Prometheus metrics of one replica: prefix ``ken_``, base units, bounded task labels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, that no dashboard reads


class Metrics:
    """All metrics. Every sample carries a `replica` label, since a scrape through the proxy reaches any one."""

    def __init__(self, replica: str, most_tasks: int = 100) -> None:
        own = CollectorRegistry()
        self.requests = Counter("ken_requests", "Requests answered", ["task", "code"], registry=own)
        self.request_seconds = Histogram(
            "ken_request_seconds",
            "Time of a request by stage",
            ["task", "stage"],
            buckets=_SECONDS,
            registry=own,
        )
        self.batch_rows = Histogram("ken_batch_rows", "Inputs in a forward pass", buckets=_ROWS, registry=own)
        self.swaps = Counter("ken_swaps", "Times the weights changed task", registry=own)
        self.swap_seconds = Histogram("ken_swap_seconds", "Time of a change of task", buckets=_SECONDS, registry=own)
        self.load_seconds = Histogram(
            "ken_load_seconds", "Time to make a delta ready, by the tier it was found in", ["tier"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.load_stage_seconds = Histogram(
            "ken_load_stage_seconds", "Time to make a delta ready, by stage: fetch, decode, attach", ["stage"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.dropped = Counter("ken_dropped_rows", "Inputs dropped before their forward pass", ["reason"], registry=own)
        self.store_up = Gauge("ken_store_up", "Whether the store answers", registry=own)
        self.poisoned = Gauge("ken_poisoned", "Whether the resident weights are in an unknown state", registry=own)
        self.verified = Gauge(
            "ken_base_verified_timestamp_seconds", "When the base was last found bit-identical", registry=own
        )
        self.differing = Gauge(
            "ken_base_differing_tensors", "Tensors that differed from the base at the last look", registry=own
        )
        self.resident_bytes = Gauge("ken_resident_bytes", "Bytes of the resident weights", registry=own)
        self._tasks = _TaskLabels(most_tasks)
        self._own = own
        self._shown = CollectorRegistry()
        self._shown.register(_WithLabel(own, "replica", replica))

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge read at scrape time."""
        Gauge(name, text, registry=self._own).set_function(read)

    def gauge_by(self, name: str, text: str, label: str, read: Callable[[], dict[str, float]]) -> None:
        """Add a gauge with one label, read at scrape time."""
        self._own.register(_ByLabel(name, text, label, read))

    def task_label(self, task: str) -> str:
        """The task's own label for the first tasks seen, ``other`` for later ones."""
        return self._tasks(task)

    def exposition(self) -> bytes:
        """The text format Prometheus scrapes."""
        return generate_latest(self._shown)


class _TaskLabels:
    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, task: str) -> str:
        if task in self._known:
            return task
        with self._lock:
            if len(self._known) < self._most:
                self._known.add(task)
                return task
        return "other"


class _WithLabel(Collector):
    """Another registry's metrics with one label more on every sample."""

    def __init__(self, registry: CollectorRegistry, label: str, value: str) -> None:
        self._registry = registry
        self._extra = {label: value}

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s._replace(labels={**s.labels, **self._extra}) for s in metric.samples]
            yield metric


class _ByLabel(Collector):
    def __init__(self, name: str, text: str, label: str, read: Callable[[], dict[str, float]]) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for key, value in self._read().items():
            family.add_metric([key], value)
        yield family
