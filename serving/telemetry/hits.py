"""Counts of the tiers in which requests found their delta, by digest, as `GET /v1/tasks/{task}` reports them."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

TIERS = ("materialised", "packed", "host", "disk", "store")
"""From the nearest to the farthest. ``store`` stands for a delta that no tier of the replica holds."""
MERGED = "merge"
"""In place of a tier: no tier held the delta, and it was merged of others for the request."""

_ON_DEVICE = TIERS[:2]


@dataclass(frozen=True)
class TaskTiers:
    """The tiers that hold a task's versions on this replica, and the tiers in which requests found them."""

    tiers: dict[str, str]
    """The nearest tier that holds each version now, by digest."""
    hits: dict[str, int]
    """Number of requests since the replica started, by the tier they found their delta in. Has every tier as a key."""
    hit_rate: float | None
    """Share of the requests that found their delta on the device; None before the first request."""
    unmixed: dict[str, str] = field(default_factory=dict)
    """Why a version on the device takes part in no mixed batches, by digest; a version that does is left out."""


class Hits:
    """Counts of requests by digest and tier, for the digests that were asked for last. Callable from any thread.

    Args:
        most: number of digests to remember.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._counts: OrderedDict[str, Counter[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, digest: str, tier: str) -> None:
        """Count a request that found its delta in `tier`."""
        with self._lock:
            counts = self._counts.get(digest)
            if counts is None:
                counts = self._counts[digest] = Counter()
                if len(self._counts) > self._most:
                    self._counts.popitem(last=False)
            self._counts.move_to_end(digest)
            counts[tier] += 1

    def of(self, digests: Iterable[str]) -> dict[str, int]:
        """The number of requests for any of these digests, by tier."""
        with self._lock:
            total = sum((self._counts.get(digest, Counter()) for digest in set(digests)), Counter[str]())
        return {tier: total[tier] for tier in TIERS}


def hit_rate(hits: dict[str, int]) -> float | None:
    """The share of the requests that found their delta on the device; None without requests."""
    asked = sum(hits.values())
    return sum(hits[tier] for tier in _ON_DEVICE) / asked if asked else None
