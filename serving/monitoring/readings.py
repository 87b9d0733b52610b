"""Readings of a replica's metrics, and what two of them say of the time between them. Pure."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]
"""A sample's name and its labels, without the label `replica`."""

_COUNTED = ("_total", "_count", "_sum", "_bucket")
_STARTED = "ken_started_timestamp_seconds"
_LABELS = {
    "ken_requests_total": {"task", "code"},
    "ken_request_seconds_bucket": {"task", "stage", "le"},
    "ken_generated_tokens_total": {"task"},
    "ken_cache_bytes": {"tier"},
}
_LARGEST = 2.0**53
"""Above it, not every whole number is a float."""


@dataclass(frozen=True)
class Reading:
    """One replica's metrics at one moment.

    Attributes:
        when: seconds on the reader's clock.
        values: by series.
    """

    when: float
    values: Mapping[Series, float]

    def value(self, name: str) -> float | None:
        """The value of a metric without labels; None if there is no such metric."""
        return self.values.get((name, frozenset()))

    def by(self, name: str, label: str) -> dict[str, float]:
        """The values of a metric by one of its labels."""
        return {dict(labels)[label]: value for (found, labels), value in self.values.items() if found == name}


def readings_of(text: str, when: float) -> dict[str, Reading]:
    """The readings in a text in Prometheus' format, by the replicas that its samples name. Only our metrics count.

    Raises:
        ValueError: the text has another format, or a metric has a value or a label that a replica does not give it.
    """
    from prometheus_client.parser import text_string_to_metric_families

    return readings_in(text_string_to_metric_families(text), when)


def readings_in(families: Iterable[Metric], when: float) -> dict[str, Reading]:
    """The readings in metrics, by the replicas that their samples name."""
    found: dict[str, dict[Series, float]] = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("ken_"):
                labels = dict(sample.labels)
                replica = labels.pop("replica", "")
                _check(sample.name, labels, sample.value)
                found.setdefault(replica, {})[sample.name, frozenset(labels.items())] = sample.value
    return {replica: Reading(when, values) for replica, values in found.items()}


def _check(name: str, labels: Mapping[str, str], value: float) -> None:
    """Raises `ValueError` if a sample is not one that a replica gives: another program may listen at its port."""
    missing = _LABELS.get(name, set()) - labels.keys()
    if missing or not abs(value) <= _LARGEST:  # nor is NaN
        raise ValueError(f"{name} has no label {missing} or the value {value}")
    if "code" in labels and not re.fullmatch("[1-5][0-9][0-9]", labels["code"]):
        raise ValueError(f"{name} has the code {labels['code']!r}")
    if "le" in labels:
        float(labels["le"])


@dataclass(frozen=True)
class Increase:
    """What one replica counted between two readings.

    Attributes:
        seconds: between the readings.
    """

    seconds: float
    counts: Mapping[Series, float] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series of a name that have these labels."""
        return sum(count for _, count in self._matching(name, labels))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The sums by one label."""
        found: defaultdict[str, float] = defaultdict(float)
        for its_labels, count in self._matching(name, labels):
            found[its_labels[label]] += count
        return dict(found)

    def split(self, label: str) -> dict[str, Increase]:
        """The series that have a label, by its values. One walk over them all, where each `by` is one, too."""
        found: defaultdict[str, dict[Series, float]] = defaultdict(dict)
        for series, count in self.counts.items():
            value = next((value for name, value in series[1] if name == label), None)
            if value is not None:
                found[value][series] = count
        return {value: Increase(self.seconds, counts) for value, counts in found.items()}

    def _matching(self, name: str, labels: Mapping[str, str]) -> Iterator[tuple[dict[str, str], float]]:
        for (found, its), count in self.counts.items():
            if found == name and labels.items() <= its:
                yield dict(its), count


def increase(before: Reading, now: Reading) -> Increase:
    """What was counted between two readings of a replica. A replica that started anew counted all that it shows now."""
    anew = before.value(_STARTED) != now.value(_STARTED)
    counts = {}
    for series, value in now.values.items():
        if series[0].endswith(_COUNTED):
            old = 0.0 if anew else before.values.get(series, 0.0)
            counts[series] = value - old if value >= old else value  # a series was removed, and came back
    return Increase(now.when - before.when, counts)


def quantile(share: float, buckets: Mapping[str, float]) -> float | None:
    """An estimate of a quantile from a histogram's buckets, as Prometheus' `histogram_quantile` makes it.

    Args:
        share: between 0 and 1.
        buckets: cumulated counts by upper bounds, of which ``+Inf`` is one.

    Returns:
        None if nothing was counted; the largest finite bound if the quantile is above it.
    """
    bounds = sorted((float(bound), count) for bound, count in buckets.items())
    if not bounds or bounds[-1][1] <= 0:
        return None
    wanted = share * bounds[-1][1]
    below, counted = 0.0, 0.0
    for bound, count in bounds:
        if count >= wanted and count > counted:
            return below if math.isinf(bound) else below + (bound - below) * (wanted - counted) / (count - counted)
        below, counted = bound, count
    return below
