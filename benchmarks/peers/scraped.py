"""What the replicas of one server have counted, read from the metrics of each."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.peers.process import Server

_DEVICE = ("materialised", "packed")


@dataclass(frozen=True)
class Counts:
    """Counts of all replicas.

    Attributes:
        requests: answered, by task and replica.
        found: requests by the tier that had their delta.
        placed: requests by what the replica is to their task: home, second, elsewhere.
        swapped: how often weights changed task.
        packed_bytes: bytes of packed tasks, of each replica.
    """

    requests: Counter[tuple[str, str]]
    found: Counter[str]
    placed: Counter[str]
    swapped: float
    packed_bytes: tuple[float, ...]

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.requests - before.requests,
            self.found - before.found,
            self.placed - before.placed,
            self.swapped - before.swapped,
            self.packed_bytes,
        )

    @property
    def on_device(self) -> float:
        """The share of the requests that found their delta on the device."""
        return sum(self.found[tier] for tier in _DEVICE) / self.found.total()

    @property
    def at_home(self) -> float:
        """The share of the requests that a home of their task answered."""
        return self.placed["home"] / self.placed.total()

    @property
    def where_asked_most(self) -> float:
        """The share of the requests that the replica answered which answered their task most."""
        by_task: dict[str, list[float]] = {}
        for (task, _), count in self.requests.items():
            by_task.setdefault(task, []).append(count)
        return sum(map(max, by_task.values())) / self.requests.total()

    @property
    def swaps(self) -> float:
        """Swaps a request."""
        return self.swapped / self.requests.total()

    @property
    def balance(self) -> float:
        """Requests of the busiest replica over the mean of all replicas."""
        by_replica = Counter[str]()
        for (_, replica), count in self.requests.items():
            by_replica[replica] += count
        return max(by_replica.values()) * len(self.packed_bytes) / by_replica.total()

    @property
    def tasks_asked(self) -> int:
        return len({task for task, _ in self.requests})


def scraped(server: Server) -> Counts:
    """The counts of a server's replicas, each asked at the port of its own metrics."""
    requests, found, placed = Counter[tuple[str, str]](), Counter[str](), Counter[str]()
    swapped, packed = 0.0, []
    for target in json.loads(server.get("/metrics/targets")):
        text = httpx.get(f"http://{target['targets'][0]}/metrics", timeout=30).raise_for_status().text
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                if name == "ken_requests_total" and labels["code"] == "200":
                    requests[labels["task"], labels["replica"]] += value  # type: ignore[assignment]
                elif name == "ken_cache_hits_total":
                    found[labels["tier"]] += value  # type: ignore[assignment]
                elif name == "ken_cache_misses_total":
                    found["store"] += value  # type: ignore[assignment]
                elif name == "ken_placed_requests_total":
                    placed[labels["where"]] += value  # type: ignore[assignment]
                elif name == "ken_swaps_total":
                    swapped += value
                elif name == "ken_cache_bytes" and labels["tier"] == "packed":
                    packed.append(value)
    return Counts(requests, found, placed, swapped, tuple(packed))
