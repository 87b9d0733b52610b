"""What happens in the whole server, as the store tells it: changes of tasks, swaps, replicas, placements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serving.store import Event, Report, Store
from serving.store.placements import Load
from serving.store.swaps import SwapsOfReplica

Kind = Literal["change", "swap", "replica", "placement"]
State = Literal["joined", "ready", "silent"]
_REPLICAS_SECONDS = 2.0
_FACTS = ("action", "alias", "digest", "who", "when")


@dataclass(frozen=True)
class Happening:
    """One thing that happened.

    Attributes:
        told: its facts, fit for JSON.
        id: of a change: its place among all changes.
    """

    kind: Kind
    told: Mapping[str, Any]
    id: str | None = None


class Happenings:
    """Reads the store again and again, and tells what is new. To be called by one thread at a time.

    Args:
        epoch: that of the placement which is followed.
    """

    def __init__(self, store: Store, epoch: Callable[[], int | None]) -> None:
        self._store = store
        self._epoch_now = epoch
        self._changes = self._swaps = "0-0"
        self._states: Mapping[str, State] = {}
        self._epoch: int | None = None
        self._replicas_read = 0.0

    def begin(self) -> list[Happening]:
        """To be called first. What was before this is not told."""
        self._changes, self._swaps = self._store.events.last_id(), self._store.swaps.last_id()
        self._states, self._epoch = self._read_states(), self._epoch_now()
        return []

    def new(self) -> list[Happening]:
        """What happened since the last call, or since `begin`. Raises `StoreError`; nothing is lost by that."""
        changes = changes_after(self._store, self._changes)
        if changes:
            self._changes = changes[-1].id or self._changes
        swaps = self._store.swaps.after(self._swaps)
        if swaps:
            self._swaps = swaps[-1].id
        return [*changes, *(told for one in swaps for told in _swaps(one)), *self._replicas(), *self._placement()]

    def _replicas(self) -> list[Happening]:
        if time.monotonic() - self._replicas_read < _REPLICAS_SECONDS:
            return []
        before, self._states = self._states, self._read_states()
        return list(movements(before, self._states))

    def _read_states(self) -> Mapping[str, State]:
        self._replicas_read = time.monotonic()
        return states(self._store.replicas.reports(), self._store.placements.loads())

    def _placement(self) -> list[Happening]:
        before, self._epoch = self._epoch, self._epoch_now()
        return [] if self._epoch in (None, before) else [Happening("placement", {"epoch": self._epoch})]


def changes_after(store: Store, id: str) -> list[Happening]:
    """The changes after the one with this id, at most 100."""
    return [_change(store, event) for event in store.events.since(id)]


def _change(store: Store, event: Event) -> Happening:
    row = store.history.at(event.task, event.revision) or {}
    facts = {name: row.get(name) or None for name in _FACTS}
    return Happening("change", {"task": event.task, "revision": event.revision, **facts}, event.id)


def _swaps(told: SwapsOfReplica) -> Iterator[Happening]:
    for one in told.swaps:
        facts = {"from": one.left, "to": one.entered, "seconds": one.seconds, "at": one.at}
        yield Happening("swap", {"replica": told.replica, **facts})
    if told.skipped:
        yield Happening("swap", {"replica": told.replica, "skipped": told.skipped})


def states(reports: Mapping[str, Report], loads: Mapping[str, Load]) -> dict[str, State]:
    """How each replica is. Pure."""
    return {name: _state(report, loads.get(name)) for name, report in reports.items()}


def _state(report: Report, load: Load | None) -> State:
    if not report.in_touch:
        return "silent"
    return "ready" if load is not None and load.ready else "joined"


def movements(before: Mapping[str, State], now: Mapping[str, State]) -> Iterator[Happening]:
    """What changed between two looks at the replicas. Pure."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield Happening("replica", {"replica": name, "state": now.get(name, "gone")})
