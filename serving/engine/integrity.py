"""Comparing the resident base, and the file it came from, with their hashes while nothing else is to be done."""

from __future__ import annotations

import logging
import time

from ken_core import ExchangeError, PoisonedError, ResidentModel
from serving.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)
_QUIET_SECONDS = 1.0


class IntegrityCheck:
    """A pass over the base's tensors from time to time, one tensor a step: a request waits for one tensor at most.

    All steps run on a thread that has the weights alone. A resident tensor that differs condemns the model: the health
    check fails and the replica is replaced. A tensor of the file that differs does not: the loaded weights stay right,
    and no further delta is decoded against that file.

    Args:
        every: seconds from the end of a pass to the next.
    """

    def __init__(self, resident: ResidentModel, metrics: Metrics, every: float) -> None:
        self._resident = resident
        self._metrics = metrics
        self._every = every
        self._left: list[str] = []
        self._left_in_file: list[str] = []
        self._due = 0.0

    def disturb(self, now: float) -> None:
        """A batch ran: the pass goes on once no batch has run for a while."""
        self._due = max(self._due, now + _QUIET_SECONDS)

    def seconds_until_due(self, now: float) -> float:
        return self._every if self._resident.poisoned else max(0.0, self._due - now)

    def step(self, now: float) -> None:
        """Compare the next tensor, if the pass is due."""
        if self.seconds_until_due(now) > 0:
            return
        if self._left_in_file:
            self._resident.checkpoint.differing([self._left_in_file.pop()])
            if not self._left_in_file:
                self._resident.checkpoint.let_go()
        else:
            self._left = self._left or self._resident.names
            if not self._reverted():
                return
            name = self._left.pop()
            if not self._resident.is_the_base(name):
                self._condemn([name])
                return
            if not self._left:
                self._left_in_file = list(self._resident.checkpoint.backbone_tensors)
        if not (self._left or self._left_in_file):
            self._passed()

    def _reverted(self) -> bool:
        try:
            self._resident.revert()
        except PoisonedError as error:
            self._metrics.poisoned.set(1)
            _log.error("%s", error)
            return False
        except ExchangeError as error:
            _log.warning("%s", error)  # the base is restored, and the delta is attached again when it is needed
        return True

    def verify(self) -> list[str]:
        """Compare all resident tensors at once; the names of those that differ."""
        differing = self._resident.verify()
        if differing:
            self._condemn(differing)
        else:
            self._passed()
        return differing

    def _passed(self) -> None:
        self._left, self._left_in_file = [], []
        self._due = time.monotonic() + self._every
        self._metrics.differing.set(0)
        self._metrics.verified.set_to_current_time()

    def _condemn(self, names: list[str]) -> None:
        self._left = []
        self._metrics.differing.set(len(names))
        self._metrics.poisoned.set(1)
        self._resident.condemn(f"tensors of the idle base differ from the checkpoint: {', '.join(names)}")
        _log.error("%s", self._resident.poisoned)
