"""Prometheus metrics of one replica: with the prefix ``ken_``, in base units, with a bounded number of task labels."""

from __future__ import annotations

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

from serving.telemetry.adapters import Adapters, AdaptersGauge
from serving.telemetry.hits import MERGED, TIERS
from serving.telemetry.request_metrics import SECONDS, RequestMetrics
from serving.telemetry.swap_log import SwapLog

PLACES = ("home", "second", "elsewhere")
"""What a replica is for a task: its home, its second home, or neither."""
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series, and no dashboard reads them


class Metrics:
    """All metrics. Every sample has a label `replica`, since a scrape through the proxy may reach any replica.

    Args:
        most_tasks: number of tasks with a label of their own, see `serving.telemetry.label_budget`.

    Attributes:
        registry: the registry to scrape, with all metrics.
        swap_log: changes of task one by one, which `swaps` counts.
    """

    def __init__(self, replica: str, most_tasks: int = 100) -> None:
        own = CollectorRegistry()
        self.requests = RequestMetrics(own, most_tasks)
        self.batch_rows = Histogram("ken_batch_rows", "Inputs in a forward pass", buckets=_ROWS, registry=own)
        self.batch_groups = Histogram(
            "ken_batch_groups", "Tasks and kinds in a mixed forward pass", buckets=_ROWS, registry=own
        )
        self.step_tasks = Histogram(
            "ken_step_tasks", "Tasks whose texts share a decode step", buckets=_ROWS, registry=own
        )
        self.correction_seconds = Counter(
            "ken_correction_seconds", "Time of mixed forward passes and steps that corrections took, by learned costs",
            registry=own,
        )  # fmt: skip
        self.swaps = Counter("ken_swaps", "Times the weights changed task", registry=own)
        self.swap_log = SwapLog()
        self.swap_seconds = Histogram("ken_swap_seconds", "Time of a change of task", buckets=SECONDS, registry=own)
        self.load_seconds = Histogram(
            "ken_load_seconds", "Time to make a delta ready, by the tier it was found in", ["tier"],
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self.load_stage_seconds = Histogram(
            "ken_load_stage_seconds", "Time to make a delta ready, by stage: fetch, decode, merge, attach", ["stage"],
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self.dropped = Counter("ken_dropped_rows", "Inputs dropped before their forward pass", ["reason"], registry=own)
        self.refused_deltas = Counter(
            "ken_refused_deltas", "Loads refused because no trusted key signed the delta", registry=own
        )
        self.preempted = Counter(
            "ken_preempted_texts", "Times a text gave up its keys and values, to be computed again", registry=own
        )
        self.copied_tokens = Counter(
            "ken_copied_tokens", "Tokens whose keys and values were copied from a text that begins alike", registry=own
        )
        self.started = Gauge("ken_started_timestamp_seconds", "When the replica's metrics began", registry=own)
        self.started.set_to_current_time()
        self.store_up = Gauge("ken_store_up", "Whether the store answers", registry=own)
        self.poisoned = Gauge("ken_poisoned", "Whether the resident weights are in an unknown state", registry=own)
        self.verified = Gauge(
            "ken_base_verified_timestamp_seconds", "When the base was last found bit-identical", registry=own
        )
        self.differing = Gauge(
            "ken_base_differing_tensors", "Tensors that differed from the base at the last look", registry=own
        )
        self.resident_bytes = Gauge("ken_resident_bytes", "Bytes of the resident weights", registry=own)
        self._cache_hits = Counter(
            "ken_cache_hits", "Requests whose delta a tier of this replica held", ["tier"], registry=own
        )
        for tier in TIERS[:-1]:
            self._cache_hits.labels(tier)  # creates the series at 0: shares of a sum need every part of it
        self._cache_misses = Counter(
            "ken_cache_misses", "Requests whose delta came from the store, or was merged for them", registry=own
        )
        self.placed_requests = Counter(
            "ken_placed_requests", "Requests answered, by what this replica is for their task", ["where"], registry=own
        )
        for where in PLACES:
            self.placed_requests.labels(where)
        self._own = own
        self.registry = CollectorRegistry()
        self.registry.register(_WithLabel(own, "replica", replica))

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read at each scrape."""
        Gauge(name, text, registry=self._own).set_function(read)

    def adapters(self, read: Callable[[], Adapters]) -> None:
        """Add vLLM's gauge of adapters, whose labels are read at each scrape."""
        self._own.register(AdaptersGauge(read))

    def gauge_by(self, name: str, text: str, label: str, read: Callable[[], dict[str, float]]) -> None:
        """Add a gauge with one label, whose values are read at each scrape."""
        self._own.register(_ByLabel(name, text, label, read))

    def observe_lookup(self, tier: str) -> None:
        """Count a request that found its delta in one of `serving.telemetry.hits.TIERS`, or had it `MERGED`."""
        if tier in (TIERS[-1], MERGED):
            self._cache_misses.inc()
        else:
            self._cache_hits.labels(tier).inc()

    def observe_mixed(self, rows: int, groups: int, seconds: float) -> None:
        """Count a forward pass that mixed tasks, and how much of it corrections took."""
        self.batch_rows.observe(rows)
        self.batch_groups.observe(groups)
        self.correction_seconds.inc(seconds)

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class _WithLabel(Collector):
    """The metrics of another registry, with one more label on every sample."""

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
