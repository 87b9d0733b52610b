"""Running batches that mix tasks, and choosing between that and exchanging.

The backbone runs once for the rows of all tasks, with the base in the arena; each module adds what a row's own task
changes in it (`ken_core.mixing`). Each group's head then runs on its rows of the output.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from typing import TypeVar

from transformers.utils.generic import ModelOutput

from ken_core import ResidentModel
from ken_core.mixing.model import MixedModel
from ken_core.stand_in import Inputs, cut
from ken_core.tokenization import collate
from serving.engine.all_keys import AllKeysPolicy
from serving.engine.batch import Batch, Group
from serving.engine.costs import BatchCost, MixedCost
from serving.engine.crew import Turn
from serving.engine.exchange import Exchange
from serving.engine.executor import Asked, Outcome, Ran
from serving.engine.line import Line, Row
from serving.engine.window import Limits
from serving.telemetry.metrics import Metrics
from serving.tiers.loaded import Loaded

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=Asked)
_WAYS = 4
"""A task that runs alone is put into the weights once its corrections have cost as much as so many switches: that is
the way there and back twice, since a task that is alone for a few batches only soon has neighbours again."""


class Mixed:
    """The executor that mixes tasks where that gets more rows a second done, and exchanges elsewhere.

    Args:
        pad_id: of the base's tokenizer. Backbones that count positions by it know no other.
        exchange: runs tasks that do not mix, and one task's rows where that is faster.
        cost: of a batch's pass through the base.
    """

    def __init__(
        self,
        resident: ResidentModel,
        mixed: MixedModel,
        pad_id: int,
        exchange: Exchange,
        limits: Limits,
        cost: BatchCost,
        metrics: Metrics,
    ) -> None:
        self._resident = resident
        self._mixed = mixed
        self._pad_id = pad_id
        self._exchange = exchange
        self._cost = cost
        self._extra = MixedCost()
        self._metrics = metrics
        self._policy = AllKeysPolicy(limits, cost)
        self._sole: tuple[Hashable, float] = (None, 0.0)
        """The key that ran alone in the last mixed batches, and the seconds that corrections took in them."""

    def choose(self, line: Line[T], now: float, free: int) -> list[Row[T]]:
        exchanged = self._exchange.choose(line, now, free)
        if len(line.queues) == 1:
            return exchanged
        mixed = self._policy.choose(line, lambda row: row.payload.task.mixes, free)
        if not (mixed and exchanged and exchanged[0].payload.task.attached.expanded):
            return mixed or exchanged
        if {row.key for row in mixed} == {exchanged[0].key}:
            return exchanged  # the same task either way: its policy knows deadlines, too
        return exchanged if self._rate_exchanged(exchanged) >= self._rate_mixed(mixed) else mixed

    def changes_weights(self, rows: Sequence[Row[T]]) -> bool:
        if all(row.payload.task.mixes for row in rows):
            active = self._resident.active
            return active is not None and any(row.payload.task.attached is not active for row in rows)
        return self._exchange.changes_weights(rows)

    def backlog_seconds(self, line: Line[T]) -> float:
        mixing = [queue for queue in line.queues.values() if queue.head.payload.task.mixes]
        others = (queue for queue in line.queues.values() if not queue.head.payload.task.mixes)
        products = sum(queue.tokens * queue.head.payload.task.attached.products for queue in mixing)
        extra = self._extra.of(products, len(mixing))
        return self._policy.backlog_seconds(mixing) + extra + self._exchange.seconds_of(others)

    def activate(self, task: Loaded, key: Hashable, turn: Turn) -> float:
        return self._exchange.activate(task, key, turn)

    def revert(self, turn: Turn) -> float:
        return self._exchange.revert(turn)

    def run(self, batch: Batch, turn: Turn) -> Ran:
        if not all(group.task.mixes for group in batch.groups):
            return self._one_after_another(batch, turn)
        if self._is_for_exchange(batch):
            return self._exchange.run(batch, turn)
        try:
            return self._run(batch, turn)
        except Exception as error:
            _log.warning("a mixed batch of %d tasks failed; they run one after another: %s", len(batch.groups), error)
            return self._one_after_another(batch, turn)

    # Which way is faster

    def _is_for_exchange(self, batch: Batch) -> bool:
        """Whether a batch is to run by exchange. One task alone is put into the weights once that has paid off."""
        (first, *others) = batch.groups
        if others or not first.task.attached.expanded:
            return False
        if self._resident.active is first.task.attached:
            return True
        extra = self._extra.of(first.padded * first.task.attached.products, 1)
        with self._exchange.learning:
            key, paid = self._sole
            paid = paid if key == first.key else 0.0
            self._sole = first.key, paid + extra
        return paid + extra >= _WAYS * self._exchange.switch_seconds

    def _rate_mixed(self, rows: Sequence[Row[T]]) -> float:
        """Rows a second."""
        longest = max(row.tokens for row in rows)
        products = sum(longest * row.payload.task.attached.products for row in rows)
        extra = self._extra.of(products, len({row.key for row in rows}))
        return len(rows) / (self._seconds_to_the_base() + self._cost.of(len(rows) * longest) + extra)

    def _rate_exchanged(self, rows: Sequence[Row[T]]) -> float:
        """Rows a second. Whoever leaves the base pays for the way back, too: mixing goes on from there."""
        padded = len(rows) * max(row.tokens for row in rows)
        active = self._resident.active
        switches = 0 if rows[0].payload.task.attached is active else 1 if active is not None else 2
        return len(rows) / (self._cost.of(padded) + switches * self._exchange.switch_seconds)

    def _seconds_to_the_base(self) -> float:
        return 0.0 if self._resident.active is None else self._exchange.switch_seconds

    # Running a batch

    def _run(self, batch: Batch, turn: Turn) -> Ran:
        switching = self._exchange.revert(turn)
        started = time.perf_counter()
        inputs = collate(batch.rows, self._pad_id, self._resident.device)
        output = self._mixed.run([(group.task.attached, len(group.rows)) for group in batch.groups], inputs)
        through = time.perf_counter() - started
        outcomes, at = [], 0
        for group in batch.groups:
            rows = slice(at, at + len(group.rows))
            outcomes.append(self._head(group, output, {name: tensor[rows] for name, tensor in inputs.items()}, rows))
            at = rows.stop
        computing = time.perf_counter() - started
        self._learn(batch, through, turn.share)
        return Ran(outcomes, switching, computing, mixed=True)

    def _one_after_another(self, batch: Batch, turn: Turn) -> Ran:
        """Each group by exchange; those that have no values to exchange in a batch of their own."""
        ran = [self._alone_again(Batch([group]), turn) for group in batch.groups]
        outcomes = [outcome for part in ran for outcome in part.outcomes]
        return Ran(outcomes, sum(r.switching for r in ran), sum(r.computing for r in ran), any(r.mixed for r in ran))

    def _alone_again(self, batch: Batch, turn: Turn) -> Ran:
        if batch.groups[0].task.attached.expanded:
            return self._exchange.run(batch, turn)
        try:
            return self._run(batch, turn)
        except Exception as error:
            return Ran([error], 0.0, 0.0, mixed=True)

    def _head(self, group: Group, output: ModelOutput, inputs: Inputs, rows: slice) -> Outcome:
        try:
            own = cut(output, rows, inputs["attention_mask"].shape[1])
            results = group.pipeline.run_head(group.task.model, own, inputs)
            if len(results) != len(group.rows):
                raise ValueError(f"a model gave {len(results)} results for {len(group.rows)} rows")
        except Exception as error:
            return error
        return results

    def _learn(self, batch: Batch, seconds: float, share: float) -> None:
        """From how long the backbone took, on a share of the CPU threads; costs are those of all of them."""
        rows, groups, padded = len(batch.rows), batch.groups, batch.padded
        products = sum(len(group.rows) * (padded // rows) * group.task.attached.products for group in groups)
        with self._exchange.learning:
            extra = self._extra.of(products, len(groups))
            self._extra.learn(products, len(groups), seconds * share - self._cost.of(padded))
            self._cost.learn(padded, max(seconds * share - extra, 0.0))
            if len(groups) > 1:
                self._sole = (None, 0.0)
        self._metrics.observe_mixed(rows, len(groups), min(extra / share, seconds))
