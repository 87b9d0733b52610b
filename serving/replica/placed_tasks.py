"""The tasks that are placed on a replica: loaded before they are asked for, and again when their version changes."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass

from serving.placement.plan import Placement
from serving.tasks import TaskTable
from serving.tiers.device import DeviceTiers
from serving.tiers.files import DeltaFiles

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""From one look for new versions of placed tasks to the next."""


@dataclass(frozen=True)
class _Wanted:
    task: str
    digest: str
    at_home: bool


class PlacedTasks:
    """A thread that loads what a placement puts on this replica: only tasks that are asked for, homes first.

    Tasks at home are loaded as far as they fit into the device's budget together. Those that this replica is the second
    home of are loaded while there is room that no task takes. What does not fit is fetched to the disk.

    Args:
        room: bytes for tasks on the device.

    Attributes:
        seen: the epoch of the placement up to which everything placed on this replica is loaded; 0: of none.
    """

    def __init__(self, replica: str, table: TaskTable, tiers: DeviceTiers, files: DeltaFiles, room: int) -> None:
        self._replica = replica
        self._table = table
        self._tiers = tiers
        self._files = files
        self._room = room
        self._placement: Placement | None = None
        self._tried: dict[str, str] = {}
        self._failed: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._left = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ken-placed", daemon=True)
        self.seen = 0

    @property
    def left(self) -> int:
        """Placed tasks that are not loaded yet."""
        return self._left

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Load nothing more. A load that has begun is not waited for."""
        self._stopping.set()
        self._wake.set()

    def take(self, placement: Placement) -> None:
        """Load by this placement from now on."""
        self._placement = placement
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            placement = self._placement
            if placement is not None:
                try:
                    self._load_all(placement)
                except Exception:
                    _log.exception("loading the placed tasks failed")

    def _load_all(self, placement: Placement) -> None:
        if placement.epoch != self.seen:
            self._tried.clear()
        wanted = self._wanted(placement)
        todo = [one for one in wanted if self._tried.get(one.task) != one.digest]
        self._left = len(todo)
        taken = sum(self._size(one) for one in wanted if one.at_home and one not in todo)
        for one in todo:
            if self._stopping.is_set() or self._placement is not placement:
                return
            taken += self._size(one) if one.at_home else 0
            self._load(one, taken if one.at_home else self._tiers.packed_nbytes + self._size(one))
            self._tried[one.task] = one.digest
            self._left -= 1
        self.seen = placement.epoch

    def _wanted(self, placement: Placement) -> list[_Wanted]:
        live = self._table.live
        return [
            _Wanted(task, live[task], placement.rank(task, self._replica) == 0)
            for task in placement.placed.get(self._replica, ())
            if task in live and placement.tasks[task].rate > 0
        ]

    def _load(self, one: _Wanted, taken: int) -> None:
        """Load a task onto the device, if not more than its room is taken then; else onto the disk."""
        try:
            if taken <= self._room or self._tiers.is_on_device(one.digest):
                self._sizes[one.digest] = asyncio.run(self._tiers.preload(one.digest))
            elif not self._files.holds(one.digest) and not self._files.trouble:
                with self._files.held(one.digest):
                    self._files.open(one.digest)
        except Exception as error:  # whatever it is, the other tasks are loaded, and requests get to see it
            if one.digest not in self._failed and not self._stopping.is_set():
                _log.warning("task %s, placed on this replica, is not loaded: %s", one.task, error)
            self._failed.add(one.digest)

    def _size(self, one: _Wanted) -> int:
        """Bytes that a task takes on the device; of one that was never there, what others take in the mean."""
        known = self._sizes.get(one.digest)
        return sum(self._sizes.values()) // max(1, len(self._sizes)) if known is None else known
