"""The second home of each task: where its requests go when a home has too much to do or is lost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from serving.placement.ledger import Ledger, Replica

SPREAD = 4.0
"""How much more it counts that a lost replica's tasks spread over many than that loads are even."""


def second_homes(ledger: Ledger, before: Mapping[str, Replica], left: Mapping[str, Replica]) -> dict[str, Replica]:
    """A second home for each task, where there is more than one replica.

    A second home stays as long as it is no home and its bytes fit. The bytes of second homes get the room that homes
    leave, those of the tasks asked for most first. Where there is none, a task has a second home nevertheless: its
    replica loads the task when it is asked for it.

    Args:
        before: the second homes that tasks have had.
        left: homes that tasks leave. They are the second homes now, even where their bytes do not fit any more: they
            have the task, and answer until the new home has loaded it.
    """
    standby = _Standby(ledger)
    for task, home in left.items():
        standby.keep_home(task, home)
    without = [task for task in ledger.tasks if task not in left and not standby.keep(task, before.get(task))]
    for task in without:
        standby.choose(task, before.get(task))
    return standby.seconds


class _Standby:
    """The second homes so far, and what replicas would have to do and to hold because of them."""

    def __init__(self, ledger: Ledger) -> None:
        replicas = len(ledger.names)
        self.seconds: dict[str, Replica] = {}
        self._ledger = ledger
        self._free = ledger.free()
        self._load = ledger.load.copy()
        self._after_loss = np.zeros((replicas, replicas))
        """Load that the loss of the first replica adds to the second."""

    def keep_home(self, task: str, left: Replica) -> None:
        self._note(task, left)

    def keep(self, task: str, second: Replica | None) -> bool:
        if second is None or second in self._ledger.homes[task] or not self._fits(task)[second]:
            return False
        self._note(task, second)
        return True

    def choose(self, task: str, before: Replica | None) -> None:
        possible = np.ones(len(self._load), np.bool_)
        possible[list(self._ledger.homes[task])] = False
        if not possible.any():
            return
        fitting = possible & self._fits(task)
        if before is not None and possible[before] and not fitting.any():
            self._note(task, before)
        elif self._ledger.rate(task) == 0:
            among = fitting if fitting.any() else possible
            self._note(task, next(i for i in self._ledger.by_rendezvous(task) if among[i]))
        else:
            self._note(task, self._least(task, fitting if fitting.any() else possible))

    def _least(self, task: str, among: NDArray[np.bool_]) -> Replica:
        after_loss = self._after_loss[list(self._ledger.homes[task])].mean(axis=0)
        return int(np.where(among, self._load + SPREAD * after_loss, np.inf).argmin())

    def _fits(self, task: str) -> NDArray[np.bool_]:
        nbytes = self._ledger.nbytes(task)
        return self._free >= nbytes if nbytes else np.ones(len(self._free), np.bool_)

    def _note(self, task: str, second: Replica) -> None:
        self.seconds[task] = second
        self._free[second] -= self._ledger.nbytes(task)
        self._load[second] += self._ledger.part(task)
        for home in self._ledger.homes[task]:
            self._after_loss[home, second] += self._ledger.part(task)
