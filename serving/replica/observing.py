"""What the whole server did lately, as one replica sees it: from the metrics of all replicas, read when asked for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from serving.client import Replica
from serving.errors import StoreError
from serving.monitoring.activity import Activity, Look, activity
from serving.monitoring.readings import Reading, readings_in
from serving.monitoring.scraping import Scraper
from serving.store import Report, Store
from serving.store.placements import Load
from serving.tasks import TaskTable
from serving.telemetry.metrics import Metrics

WINDOW_SECONDS = 10.0
"""Rates are those of about so many seconds."""
FRESH_SECONDS = 1.0
"""A look counts for at least so long, however many ask."""
_REST = 10
"""After a look none is taken for so many times as long as it took: looks take at most a tenth of a core."""
_LONGEST_SECONDS = 120.0


@dataclass(frozen=True)
class Observation:
    """What the server did lately.

    Attributes:
        at: unix seconds.
        held: the tasks whose live version is on the device, by replica.
        unread: why the metrics of a replica are missing, by replica.
    """

    at: float
    activity: Activity
    held: Mapping[str, frozenset[str]]
    unread: Mapping[str, str]


class Observer:
    """Looks at the server when somebody asks, and compares with the look about ten seconds before.

    Nothing is read while nobody asks, so the first answer has no rates.
    """

    def __init__(self, store: Store, table: TaskTable, metrics: Metrics, replica: str) -> None:
        self._store = store
        self._table = table
        self._metrics = metrics
        self._replica = replica
        self._scraper = Scraper()
        self._lock = threading.Lock()
        self._looks: deque[tuple[float, Look]] = deque()
        self._latest: Observation | None = None
        self._next = 0.0

    def close(self) -> None:
        self._scraper.close()

    def observe(self) -> Observation:
        """What the server did lately. Callable from any thread; blocks while metrics are read."""
        with self._lock:
            now = time.monotonic()
            if self._latest is None or now >= self._next:
                self._latest = self._observed(now)
                self._next = now + max(FRESH_SECONDS, _REST * (time.monotonic() - now))
            return self._latest

    def _observed(self, now: float) -> Observation:
        loads, look = self._look()
        while self._looks and now - self._looks[0][0] > _LONGEST_SECONDS:
            self._looks.popleft()
        old_enough = [before for when, before in self._looks if now - when >= WINDOW_SECONDS]
        before = old_enough[-1] if old_enough else self._looks[0][1] if self._looks else None
        self._looks.append((now, look))
        at = time.time()
        held = {name: frozenset(load.held) for name, load in loads.items()}
        return Observation(at, activity(before, look, at), held, look.unread)

    def _look(self) -> tuple[Mapping[str, Load], Look]:
        try:
            reports, loads = self._store.replicas.reports(), self._store.placements.loads()
        except StoreError:  # nobody knows where the others are
            reports, loads = {}, {}
        replicas = {name: _replica(report, loads.get(name)) for name, report in reports.items()}
        alone = Replica.model_validate({"name": self._replica, "revision": self._table.current.revision})
        own = replicas.setdefault(self._replica, alone)
        readings, unread = self._scraper.read([one for one in replicas.values() if one is not own])
        readings |= self._own_reading()
        return loads, Look(list(replicas.values()), sorted(self._table.current.tasks), readings, unread)

    def _own_reading(self) -> dict[str, Reading]:
        return readings_in(self._metrics.registry.collect(), time.monotonic())


def _replica(report: Report, load: Load | None) -> Replica:
    return Replica(
        name=report.replica,
        revision=report.revision,
        metrics=report.address or None,
        silent_seconds=0.0 if report.in_touch else report.age,
        ready=None if load is None else load.ready,
        in_flight=None if load is None else load.in_flight,
        seen=None if load is None else load.seen,
        held_tasks=None if load is None else len(load.held),
    )
