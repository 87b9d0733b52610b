"""Where requests found their delta, counted by digest: what `GET /v1/tasks/{task}` says about the tiers."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

TIERS = ("materialised", "packed", "host", "disk", "store")
"""From the nearest to the farthest; the store is where a delta is that no tier of the replica holds."""

_ON_DEVICE = TIERS[:2]


@dataclass(frozen=True)
class TaskTiers:
    """Where a task's versions lie on this replica, and where its requests found them."""

    tiers: dict[str, str]
    """Digest to the nearest tier that holds it now."""
    hits: dict[str, int]
    """Requests by the tier they found their delta in, since the replica started; every tier is there."""
    hit_rate: float | None
    """Share of requests that found it on the device; None before the first."""


class Hits:
    """Requests by digest and tier. Remembers the digests asked for last. Callable from any thread.

    Args:
        most: digests to remember.
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
        """Requests for any of these digests, by tier."""
        with self._lock:
            total = sum((self._counts.get(digest, Counter()) for digest in set(digests)), Counter[str]())
        return {tier: total[tier] for tier in TIERS}


def hit_rate(hits: dict[str, int]) -> float | None:
    """The share of requests that found their delta on the device; None where there were none."""
    asked = sum(hits.values())
    return sum(hits[tier] for tier in _ON_DEVICE) / asked if asked else None
