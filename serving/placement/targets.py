"""From a placement to what a proxy needs: for each task the replicas to ask, in order, as far as they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.placement.choices import BUCKETS, Choices, bucket_key
from serving.placement.plan import Homes, Placement
from serving.placement.rendezvous import order


def targets(placement: Placement, seen: Mapping[str, int]) -> dict[str, Choices]:
    """Whom to ask for each task of a placement, and for each bucket of tasks that it does not know.

    A home that has not loaded the task yet comes behind the second home, which had the task before.

    Args:
        seen: for each replica that is there, the epoch up to which it has loaded what was placed on it.
    """
    there = sorted(seen)
    asked = {task: _choices(homes, seen) for task, homes in placement.tasks.items()}
    buckets = {bucket_key(i): (tuple(order(bucket_key(i), there)[:2]),) for i in range(BUCKETS) if there}
    return buckets | {task: choices for task, choices in asked.items() if choices}


def _choices(homes: Homes, seen: Mapping[str, int]) -> Choices:
    there = [home for home in homes.homes if home in seen]
    ready = [home for home in there if seen[home] >= homes.arrival(home)]
    others = [] if homes.second is None or homes.second not in seen else [homes.second]
    if not ready:
        alone = _distinct([*others, *there])[:2]
        return (tuple(alone),) if alone else ()
    return tuple(_distinct([home, *ready[i + 1 :], *ready[:i], *others, *there])[:2] for i, home in enumerate(ready))


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
