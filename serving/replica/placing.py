"""A replica among others: it says what it is asked for, follows the placement of tasks, and may be who computes it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from serving.admission import Admission
from serving.errors import ForeignPlacementError, StoreError, UnavailableError
from serving.placement.demand import Rates, work_of
from serving.placement.leading import Leading
from serving.placement.ledger import Room
from serving.placement.plan import Placement
from serving.replica.placed_tasks import PlacedTasks
from serving.store import Store
from serving.store.placements import MOST_HELD, Asked, Load, Proxy
from serving.tasks import TaskTable
from serving.telemetry.metrics import Metrics
from serving.tiers.device import DeviceTiers
from serving.tiers.files import DeltaFiles

_log = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_STARTING_BEAT_SECONDS = 0.2
_REPORT_SECONDS = 2.0
_LEASE_SECONDS = 10.0
_APPEAR_SECONDS = 10.0
_LOAD_SECONDS = 60.0
_TELL_SECONDS = 10.0
_TROUBLE_SECONDS = 2.0
"""A start bears trouble with the store for so long."""
_POLL_SECONDS = 0.01

Where = Literal["home", "second", "elsewhere"]
_WHERE: Mapping[int | None, Where] = {0: "home", 1: "second", None: "elsewhere"}


class Placing:
    """A thread that takes part in the placement of tasks.

    Args:
        replica: the replica's name.
        serve: its id in Ray Serve; empty without Serve.
        room: bytes for tasks on the device.
        seconds: from one placement to the next, if this replica computes them.
        follows: False: it reports, but no placement is made, and the one that is there is taken back.

    Attributes:
        room, follows: as given.
        current: the placement by which tasks are loaded and counted; None: there is none.
        trouble: why the store's placement is not followed; None where it is.
    """

    def __init__(
        self,
        store: Store,
        table: TaskTable,
        tiers: DeviceTiers,
        files: DeltaFiles,
        admission: Admission,
        metrics: Metrics,
        replica: str,
        serve: str,
        room: int,
        seconds: float,
        follows: bool,
    ) -> None:
        self._store = store
        self._table = table
        self._tiers = tiers
        self._admission = admission
        self._metrics = metrics
        self._replica = replica
        self._serve = serve
        self.room = room
        self.follows = follows
        self._rates = Rates()
        self._leading = Leading(seconds)
        self._placed = PlacedTasks(replica, table, tiers, files, room)
        self._proxies: Mapping[str, Proxy] = {}
        self._sizes: dict[str, int] = {}
        self._told: tuple[object, float] = (None, float("-inf"))
        self._told_of: str | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._reporting = threading.Lock()  # no report may follow after this replica was taken off the list
        self._thread = threading.Thread(target=self._run, name="ken-placement", daemon=True)
        self.current: Placement | None = None
        self.trouble: str | None = None

    @property
    def seen(self) -> int:
        """The epoch of the placement up to which everything placed on this replica is loaded; 0: of none."""
        return self._placed.seen

    @property
    def enforced(self) -> bool:
        """Whether requests go by the placement: every proxy in touch routes by it, or there is only one replica."""
        return self.current is not None and self.not_enforced is None

    @property
    def not_enforced(self) -> str | None:
        """Why requests do not go by the placement; None where they do."""
        if not self.follows:
            return "placement is off"
        if self.current is None or not self.current.replicas:
            return self.trouble or "there is no placement yet"
        if len(self.current.replicas) == 1:
            return None
        troubles = [f"{name}: {_trouble(proxy)}" for name, proxy in sorted(self._proxies.items()) if _trouble(proxy)]
        if self._proxies:
            return "; ".join(troubles) or None
        return (
            "no proxy reports that it routes by the placement; where HAProxy runs, it needs KEN_REDIS_URL in its "
            "environment, and KEN_NAMESPACE unless it is `default`"
        )

    def where(self, task: str) -> Where | None:
        """What this replica is for a task; None while there is no placement."""
        placement = self.current
        if placement is None or not placement.replicas:
            return None
        return _WHERE[placement.rank(task, self._replica)]

    def count(self, task: str, tokens: int) -> None:
        """Count an answered request.

        Args:
            tokens: of all its inputs.
        """
        self._rates.note(task, work_of(tokens), time.monotonic())
        where = self.where(task)
        if where is not None:
            self._metrics.placed_requests.labels(where).inc()

    # Start and end

    def start(self) -> None:
        self._placed.start()
        self._thread.start()

    def wait_until_loaded(self) -> None:
        """Wait until what is placed on this replica is loaded: for a placement 10 s at most, for the loads 60 s.

        Does not wait where there is no placement to wait for, since it is off or the store does not answer.
        """
        if not self.follows:
            return
        if not self._wait(self._is_placed, _APPEAR_SECONDS, "for a placement of tasks that this replica is part of"):
            return
        if not self._wait(self._is_loaded, _LOAD_SECONDS, "until the tasks placed on this replica are loaded"):
            _log.warning("%d tasks placed on this replica are not loaded; it takes requests all the same", self.left)

    @property
    def left(self) -> int:
        """Placed tasks that are not loaded yet."""
        return self._placed.left

    def report_now(self) -> None:
        """Have the thread report at once, since something changed."""
        self._wake.set()

    def retire(self) -> None:
        """Take part no more: the others take over at once. May be called again."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake.set()
        self._placed.stop()
        with self._reporting:
            try:
                self._store.placements.retire(self._replica)
            except StoreError as error:
                _log.warning("the other replicas notice only by its silence that this one ends: %s", error)

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> bool:
        started = told = time.monotonic()
        while not condition():
            now = time.monotonic()
            hopeless = self.trouble is not None and now - started > _TROUBLE_SECONDS
            if now - started > seconds or hopeless or self._stopping.is_set():
                _log.warning(
                    "not waiting any longer %s: %s", what, self.trouble or f"{now - started:.0f} s have passed"
                )
                return False
            if now - told > _TELL_SECONDS:
                told = now
                _log.info("waiting %s; %d are left", what, self.left)
            time.sleep(_POLL_SECONDS)
        return True

    def _is_placed(self) -> bool:
        return self.current is not None and self._replica in self.current.replicas

    def _is_loaded(self) -> bool:
        return self.current is not None and self.seen == self.current.epoch

    # On the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._beat()
                self.trouble = None
            except StoreError as error:
                if self.trouble is None and not self._stopping.is_set():
                    _log.warning("the placement of tasks stays as it is: %s", error)
                self.trouble = str(error)
            except Exception as error:
                _log.exception("following the placement of tasks failed")
                self.trouble = f"following the placement failed: {error!r}"
            self._wake.wait(_BEAT_SECONDS if self._admission.ready else _STARTING_BEAT_SECONDS)
            self._wake.clear()

    def _beat(self) -> None:
        self._report()
        leads = self._leads()
        if not self.follows:
            if leads:
                self._store.placements.clear(self._replica)
            return
        if leads:
            self._lead()
        else:
            self._follow(self._store.placements.read(self._epoch))

    def _leads(self) -> bool:
        with self._reporting:
            return not self._stopping.is_set() and self._store.placements.lead(self._replica, _LEASE_SECONDS)

    def _lead(self) -> None:
        """Write a placement if it is time, and again what the store has lost."""
        stored = self._stored()
        if stored > self._epoch:
            self._follow(self._store.placements.read(self._epoch))
        rooms = {name: Room(presence.room) for name, presence in self._store.placements.present().items()}
        made = self._leading(self.current, rooms, self._told_by_all, self._tasks, time.monotonic())
        placement = made or (self.current if stored < self._epoch else None)
        if placement is not None and self._store.placements.write(placement, self._replica):
            self._follow(placement)

    def _stored(self) -> int:
        """The epoch of what the store holds, -1 if it holds nothing. What is no placement is overruled."""
        placements = self._store.placements
        try:
            epoch = placements.epoch()
            placements.read(self._epoch)
        except ForeignPlacementError as error:
            _log.warning("%s", error)
            placements.remove(self._replica)
            return -1
        return -1 if epoch is None else epoch

    def _follow(self, placement: Placement | None) -> None:
        if placement is not None:
            self.current = placement
            self._placed.take(placement)

    @property
    def _epoch(self) -> int:
        return -1 if self.current is None else self.current.epoch

    def _told_by_all(self) -> dict[str, dict[str, tuple[float, int]]]:
        """For each replica the rates and sizes of the tasks that it was asked for."""
        loads = self._store.placements.loads()
        return {
            name: {task: (asked.rate, asked.nbytes) for task, asked in load.tasks.items()}
            for name, load in loads.items()
        }

    def _tasks(self) -> list[str]:
        return list(self._table.live)

    def _report(self) -> None:
        """Say what there is to say, every two seconds, and at once where the others wait for it."""
        now = time.monotonic()
        urgent = (self._admission.is_open, self.seen)
        if urgent == self._told[0] and now - self._told[1] < _REPORT_SECONDS:
            return
        load = self._load(now)
        with self._reporting:
            if self._stopping.is_set():
                return
            self._store.placements.report(self._replica, load)
        self._told = urgent, now
        self._proxies = self._store.placements.proxies()
        self._tell()

    def _tell(self) -> None:
        """Log once why requests do not go by the placement, and once that they do again."""
        found = self.not_enforced if self.follows and self._admission.ready and self.current is not None else None
        if found != self._told_of and found is not None:
            _log.warning("requests do not all go by the placement of tasks: %s", found)
        elif found is None and self._told_of is not None:
            _log.info("requests go by the placement of tasks")
        self._told_of = found

    def _load(self, now: float) -> Load:
        try:
            live = self._table.live
        except UnavailableError:
            live = {}
        task_of = {digest: task for task, digest in live.items()}
        held = [(task_of[one.digest], one.nbytes) for one in self._tiers.by_use() if one.digest in task_of]
        rates = self._rates.rates(now)
        self._sizes = {task: self._sizes.get(task, 0) for task in rates} | dict(held)
        return Load(
            serve=self._serve,
            ready=self._admission.is_open,
            seen=self.seen,
            in_flight=self._admission.requests,
            room=self.room,
            tasks={task: Asked(rates.get(task, 0.0), nbytes) for task, nbytes in self._sizes.items()},
            held=tuple(task for task, _ in held[:MOST_HELD]),
        )


def _trouble(proxy: Proxy) -> str:
    return proxy.trouble or ("" if proxy.epoch else "it has read no placement yet")
