"""What replicas would have to do and to hold by the homes that tasks have so far, while a placement is being made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.placement.choices import bucket_key, bucket_of
from serving.placement.rendezvous import Weights

HOT_SHARE = 0.7
"""Of the bytes that all replicas have room for: as many belong to the tasks asked for most. Those get their room first
and move without regard to the others, which then leave for where there is room. So loads become even on full replicas
too."""
NOISE = 0.5
"""Load a second. No smaller difference between two replicas is a reason to move a task."""

Replica = int
"""The position of a replica among the sorted names."""


@dataclass(frozen=True)
class Demand:
    """What a task asks of replicas.

    Attributes:
        rate: load a second, as `serving.placement.demand` measures it.
        nbytes: of its delta on the device; 0 if unknown.
    """

    rate: float
    nbytes: int


@dataclass(frozen=True)
class Room:
    """What a replica has room for.

    Attributes:
        nbytes: of deltas on its device.
    """

    nbytes: int


class Ledger:
    """The homes of tasks, and the load and the bytes of each replica that follow from them.

    A task's homes share its load equally. A task that no replica has room for takes none: it is never held for long.

    Attributes:
        names: of the replicas, sorted.
        tasks: names of all tasks, those asked for most first.
        mean: load of a replica if all had the same.
        load: of each replica, a second.
        homes: of each task, in the order in which they came.
    """

    def __init__(self, demands: Mapping[str, Demand], rooms: Mapping[str, Room]) -> None:
        self.names = tuple(sorted(rooms))
        self.position: Mapping[str, Replica] = {name: i for i, name in enumerate(self.names)}
        self._room = np.array([float(rooms[name].nbytes) for name in self.names])
        self._rates = {task: _rate(demand) for task, demand in demands.items()}
        largest = float(self._room.max())
        self._nbytes = {task: d.nbytes if d.nbytes <= largest else 0 for task, d in demands.items()}
        self.tasks = sorted(demands, key=lambda task: (-self._rates[task], task))
        self._hot = self._hot_tasks()
        self.mean = sum(self._rates.values()) / len(self.names)
        self.load = np.zeros(len(self.names))
        self._bytes, self._hot_bytes = np.zeros(len(self.names)), np.zeros(len(self.names))
        self.homes: dict[str, tuple[Replica, ...]] = dict.fromkeys(demands, ())
        self._at: list[dict[str, None]] = [{} for _ in self.names]
        self._weights = Weights(self.names)

    def _hot_tasks(self) -> frozenset[str]:
        most = HOT_SHARE * float(self._room.sum())
        sums = np.cumsum([self._nbytes[task] for task in self.tasks])
        return frozenset(self.tasks[: int(np.searchsorted(sums, most, side="right"))])

    def rate(self, task: str) -> float:
        """Load of a task, a second."""
        return self._rates[task]

    def nbytes(self, task: str) -> int:
        """Bytes of a task's delta on the device, 0 if no replica has room for it."""
        return self._nbytes[task]

    def part(self, task: str) -> float:
        """Load of each home of a task, a second."""
        return self._rates[task] / max(len(self.homes[task]), 1)

    def at(self, replica: Replica) -> Iterable[str]:
        """The tasks that are at home at a replica."""
        return self._at[replica]

    def above(self, times: float) -> float:
        """A multiple of the mean load that differs from it by more than noise; `times` is above 1."""
        return max(times * self.mean, self.mean + NOISE)

    def below(self, times: float) -> float:
        """As `above`, for less than the mean; `times` is below 1."""
        return min(times * self.mean, self.mean - NOISE)

    def settle(self, task: str, homes: Sequence[Replica]) -> None:
        """Give a task these homes instead of those that it has."""
        self._count(task, -1)
        self.homes[task] = tuple(homes)
        self._count(task, 1)

    def _count(self, task: str, sign: int) -> None:
        part, nbytes = sign * self.part(task), sign * self._nbytes[task]
        for home in self.homes[task]:
            self.load[home] += part
            self._bytes[home] += nbytes
            if task in self._hot:
                self._hot_bytes[home] += nbytes
            if sign > 0:
                self._at[home][task] = None
            else:
                del self._at[home][task]

    def free(self) -> NDArray[np.float64]:
        """Bytes of each replica that no home takes; below 0 where homes take more than there is."""
        return self._room - self._bytes

    def has_room(self, task: str) -> NDArray[np.bool_]:
        """Which replicas have room for one more task: for one of the tasks asked for most, beside others of those."""
        nbytes = self._nbytes[task]
        if nbytes == 0:
            return np.ones(len(self.names), np.bool_)
        taken = self._hot_bytes if task in self._hot else self._bytes
        return taken + nbytes <= self._room

    def fits(self, task: str, replica: Replica) -> bool:
        """As `has_room`, for one replica."""
        nbytes = self._nbytes[task]
        taken = self._hot_bytes if task in self._hot else self._bytes
        return nbytes == 0 or bool(taken[replica] + nbytes <= self._room[replica])

    def lacks_room(self, task: str, home: Replica) -> bool:
        """Whether the tasks at a home of this task, of its sort, take more than the home has room for."""
        taken = self._hot_bytes if task in self._hot else self._bytes
        return bool(taken[home] > self._room[home])

    def full(self) -> Sequence[Replica]:
        """The replicas whose homes take more bytes than there are."""
        full: list[Replica] = np.flatnonzero(self._bytes > self._room).tolist()
        return full

    def possible(self, task: str) -> NDArray[np.bool_]:
        """Which replicas have room for one more task and are not its home."""
        possible = self.has_room(task)
        possible[list(self.homes[task])] = False
        return possible

    def by_rendezvous(self, task: str) -> list[Replica]:
        """All replicas in the order of the task's bucket, in which proxies ask for a task that they do not know."""
        return self._weights.order(bucket_key(bucket_of(task)))

    def least_loaded(self, among: NDArray[np.bool_]) -> Replica | None:
        """Of some replicas the one with the least load; None if there are none."""
        return int(np.where(among, self.load, math.inf).argmin()) if among.any() else None


def _rate(demand: Demand) -> float:
    return demand.rate if 0.0 < demand.rate < math.inf else 0.0
