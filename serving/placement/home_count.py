"""How many homes a task has: one, unless its load is more than a replica's share."""

from __future__ import annotations

import math

MOST, AIM, LEAST = 1.15, 0.75, 0.3
"""Load of one home in shares of a replica: above the first a task gets more homes, so many that each has the second at
most. It has fewer homes again when each of those would have the third at most."""


def home_count(rate: float, share: float, now: int, replicas: int) -> int:
    """Homes that a task should have.

    Args:
        rate: load of the task, a second.
        share: load of a replica if all had the same, a second; not 0.
        now: homes that it has; 0 for a new task.
        replicas: how many there are.
    """
    now = min(now, replicas)
    if rate > MOST * share * max(now, 1):
        return min(replicas, math.ceil(rate / (AIM * share)))
    if now > 1 and rate <= LEAST * share * (now - 1):
        return max(1, math.ceil(rate / (AIM * share)))
    return max(now, 1)
