"""Running batches by exchange: one task's delta is put into the weights, then that task's rows run.

This module and its policy (`serving.engine.one_key`) are the only ones that know that the weights answer for one task
at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from ken_core import ExchangeError, ResidentModel
from ken_core.errors import WholeModelNeededError
from serving.engine.batch import Batch, Group
from serving.engine.costs import BatchCost, SwitchCost
from serving.engine.crew import Turn
from serving.engine.executor import Asked, Outcome, Ran
from serving.engine.line import Line, Queue, Row
from serving.engine.one_key import OneKeyPolicy
from serving.engine.window import Limits
from serving.pipelines.base import Raw
from serving.telemetry.metrics import Metrics
from serving.tiers.loaded import Loaded

_log = logging.getLogger(__name__)
T = TypeVar("T", bound=Asked)


class Exchange:
    """The executor that exchanges deltas. It chooses batches of one group; of several, it runs one after the other.

    Args:
        resident: the weights.
        renew: attaches a task again whose buffers a failed exchange has spoiled.
        cost: of a batch; learned from every group that runs.

    Attributes:
        learning: held while costs are learned, which batches that run at once share.
    """

    def __init__(
        self,
        resident: ResidentModel,
        renew: Callable[[Loaded], None],
        limits: Limits,
        cost: BatchCost,
        metrics: Metrics,
    ) -> None:
        self._resident = resident
        self._renew = renew
        self._cost = cost
        self._metrics = metrics
        self.learning = threading.Lock()
        self._switch = SwitchCost()
        self._policy = OneKeyPolicy(limits, cost, self._switch)
        self._active: Hashable = None
        self._digest: str | None = None  # of the delta in the weights

    def choose(self, line: Line[T], now: float, free: int) -> list[Row[T]]:
        active = None if self._resident.active is None else self._active
        return self._policy.choose(line, now, active, free)

    def changes_weights(self, rows: Sequence[Row[T]]) -> bool:
        return any(row.payload.task.attached is not self._resident.active for row in rows)

    def backlog_seconds(self, line: Line[T]) -> float:
        return self.seconds_of(line.queues.values())

    def seconds_of(self, queues: Iterable[Queue[T]]) -> float:
        """How long running some queues will take, one after another."""
        return self._policy.backlog_seconds(queues)

    def run(self, batch: Batch, turn: Turn) -> Ran:
        ran = [self._run(group, turn) for group in batch.groups]
        outcomes, switching, computing = zip(*ran, strict=True)
        return Ran(outcomes, sum(switching), sum(computing))

    @property
    def switch_seconds(self) -> float:
        """What putting a task into the weights takes, as learned so far."""
        return self._switch.seconds

    def revert(self, turn: Turn) -> float:
        """Put the base back; the seconds it took, 0 if it was there."""
        if self._resident.active is None:
            return 0.0
        turn.own()
        started = time.perf_counter()
        left, self._active, self._digest = self._digest, None, None
        try:
            self._resident.revert()
        except ExchangeError as error:
            _log.warning("%s", error)  # the base is restored, and the delta is attached again when it is needed
        return self._switched(started, turn, left)

    def _switched(self, started: float, turn: Turn, left: str | None) -> float:
        """Note a switch that has just ended; its seconds. CPU threads that stood idle for it are part of its cost."""
        seconds = time.perf_counter() - started
        with self.learning:
            self._switch.learn(seconds + turn.idle_seconds())
        self._metrics.swaps.inc()
        self._metrics.swap_seconds.observe(seconds)
        self._metrics.swap_log.note(left, self._digest, seconds)
        return seconds

    def _run(self, group: Group, turn: Turn) -> tuple[Outcome, float, float]:
        """A group's outcome, its seconds of switching, and its seconds of the model."""
        switching = 0.0
        try:
            switching = self.activate(group.task, group.key, turn)
            started = time.perf_counter()
            results = self._answer(group)
            computing = time.perf_counter() - started
            if len(results) != len(group.rows):
                raise ValueError(f"a model gave {len(results)} results for {len(group.rows)} rows")
        except Exception as error:
            return error, switching, 0.0
        with self.learning:
            self._cost.learn(group.padded, computing * turn.share)
        self._metrics.batch_rows.observe(len(group.rows))
        return results, switching, computing

    def activate(self, task: Loaded, key: Hashable, turn: Turn) -> float:
        resident = self._resident
        with self.learning:
            self._switch.note(key != self._active)
        if resident.active is not task.attached:
            turn.own()
        if resident.active is task.attached:
            self._active = key
            return 0.0
        started = time.perf_counter()
        left, self._active, self._digest = self._digest, None, None
        try:
            resident.activate(task.attached)
        except ExchangeError as error:
            _log.warning("%s; attaching %s again", error, task.digest)
            self._renew(task)
            resident.activate(task.attached)
        self._active, self._digest = key, task.digest
        return self._switched(started, turn, left)

    def _answer(self, group: Group) -> list[Raw]:
        """Results of a group's rows, with the weights as they are."""
        inputs, model = group.inputs(self._resident.device), group.task.model
        if model.splits:
            output = self._resident.backbone(**inputs, return_dict=True)
            try:
                return group.pipeline.run_head(model, output, inputs)
            except WholeModelNeededError as error:
                _log.info("the whole model of %s runs from now on: %s", group.task.digest, error)
        return group.pipeline.run_head(model, None, inputs)
