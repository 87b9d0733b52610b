"""When the replica that computes placements makes a new one. Pure: time is passed in, in seconds of any one clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from serving.placement.demand import demand
from serving.placement.ledger import Room
from serving.placement.packing import place
from serving.placement.plan import Placement

SETTLED_SECONDS = 2.0
"""Replicas that are new get tasks once none was added for so long, so that ten that start at once are ten, not one."""
LOST_SECONDS = 15.0
"""A replica that was never seen since the watch began is taken for lost after so long."""
GAP_SECONDS = 3.0
"""After so long without a look, as while the store was down, the watch begins anew."""

Told = Mapping[str, tuple[float, int]]
"""Of tasks, what one replica was asked for, in work a second, and bytes; see `serving.placement.demand.demand`."""


class Leading:
    """Makes placements: every so often, at once when a replica is lost, and shortly after one is new.

    Args:
        seconds: from one placement to the next while the replicas are the same.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._names: frozenset[str] = frozenset()
        self._known: set[str] = set()
        self._looked = -math.inf
        self._watching = -math.inf
        self._added = -math.inf
        self._made = -math.inf
        self._latest: Placement | None = None

    def __call__(
        self,
        before: Placement | None,
        rooms: Mapping[str, Room],
        told: Callable[[], Mapping[str, Told]],
        tasks: Callable[[], list[str]],
        now: float,
    ) -> Placement | None:
        """The next placement, or None while it is not time for one or nothing is to change.

        Args:
            before: the placement in force.
            rooms: the replicas that are there.
            told: what each replica tells of tasks; called when it is time.
            tasks: names of all tasks; called when it is time.
        """
        names = frozenset(rooms)
        self._look(names, now)
        if not names or not self._is_time(before, names, now):
            return None
        measured = self._latest if self._latest and before and self._latest.epoch == before.epoch else before
        since = min(now - self._made, self._seconds)
        self._made = now
        made = place(measured, demand(tasks(), told().values(), measured, since), rooms)
        told_anew = _worth_telling(before, made)
        self._latest = told_anew or made
        return told_anew

    def _look(self, names: frozenset[str], now: float) -> None:
        if now - self._looked > GAP_SECONDS:
            self._watching, self._known = now, set()
        if names - self._names:
            self._added = now
        self._known |= names
        self._names, self._looked = names, now

    def _is_time(self, before: Placement | None, names: frozenset[str], now: float) -> bool:
        placed = frozenset(before.replicas if before else ())
        if missing := placed - names:
            # after the store was down, or all replicas were, they come back one after the other
            may_come = placed & names and missing - self._known and now - self._watching < LOST_SECONDS
            return not may_come
        if not placed:
            return True
        if names - placed:
            return now - self._added >= SETTLED_SECONDS
        return now - self._made >= self._seconds


def _worth_telling(before: Placement | None, made: Placement) -> Placement | None:
    """With a higher epoch also where tasks are asked for that were not: their homes load them then."""
    if before is None or made.epoch != before.epoch:
        return made
    if any(homes.rate and not before.tasks[task].rate for task, homes in made.tasks.items()):
        return replace(made, epoch=made.epoch + 1)
    return None
