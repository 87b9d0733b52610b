"""Adapters on the device as vLLM tells them, so that schedulers that read vLLM's metrics can read this server's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

NAME = "vllm:lora_requests_info"


@dataclass(frozen=True)
class Adapters:
    """What a replica has on the device.

    Attributes:
        most: how many adapters there is room for.
        waiting: names of those that requests wait for.
        running: names of those on the device.
    """

    most: int
    waiting: Sequence[str]
    running: Sequence[str]


class AdaptersGauge(Collector):
    """One sample: names with commas between them in its labels, and the unix time as its value. The names vLLM has."""

    def __init__(self, read: Callable[[], Adapters]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        found = self._read()
        labels = {
            "max_lora": str(found.most),
            "waiting_lora_adapters": ",".join(found.waiting),
            "running_lora_adapters": ",".join(found.running),
        }
        family = GaugeMetricFamily(NAME, "Tasks on the device, as vLLM tells adapters", labels=list(labels))
        family.add_metric(list(labels.values()), time.time())
        yield family
