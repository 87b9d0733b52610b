"""The table of all metrics, from the objects that a replica counts with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from docs.generators.tables import table
from serving.replica.gauges import add_gauges, add_generation_gauges, add_placement_gauges
from serving.telemetry.adapters import Adapters, AdaptersGauge
from serving.telemetry.metrics import Metrics

Row = tuple[str, str, str, str]


def metrics() -> str:
    """One row for each metric: its name as it is scraped, its type, its labels and its meaning."""
    return table(("metric", "type", "labels", "meaning"), sorted(rows()))


def rows() -> Iterator[Row]:
    """What `table` shows, in no order."""
    found = Metrics("replica")
    for owner in (found, found.requests):
        for metric in vars(owner).values():
            if isinstance(metric, MetricWrapperBase):
                yield _row(_name(metric), str(metric._type), metric._labelnames, metric._documentation)
    yield from _gauges()


def _name(metric: MetricWrapperBase) -> str:
    return f"{metric._name}_total" if isinstance(metric, Counter) else metric._name


def _row(name: str, kind: str, labels: tuple[str, ...], text: str) -> Row:
    return f"`{name}`", kind, ", ".join(f"`{label}`" for label in (*labels, "replica")), text


def _gauges() -> Iterator[Row]:
    """Gauges whose values a replica's parts give: they are added to a list instead of a registry, and not read."""
    noted = _Noted()
    nothing = cast(Any, noted)
    add_gauges(nothing, nothing, nothing, nothing, nothing, nothing)
    add_generation_gauges(nothing, nothing)
    add_placement_gauges(nothing, nothing, nothing, nothing, 0)
    return iter(noted.rows)


class _Noted:
    """Has the methods by which gauges are added, and notes what is given. It stands for the replica's parts as well,
    since only reading a gauge would ask them anything."""

    nbytes = 0

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.resident_bytes = self

    def set(self, value: float) -> None:
        """The size of the base; nothing is noted."""

    def gauge(self, name: str, text: str, read: object) -> None:
        self.rows.append(_row(name, "gauge", (), text))

    def gauge_by(self, name: str, text: str, label: str, read: object) -> None:
        self.rows.append(_row(name, "gauge", (label,), text))

    def adapters(self, read: object) -> None:
        for metric in AdaptersGauge(lambda: Adapters(1, [], [])).collect():
            labels = tuple(metric.samples[0].labels)
            self.rows.append(_row(metric.name, metric.type, labels, metric.documentation))
