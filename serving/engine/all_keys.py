"""Which rows run next where a batch may hold rows of any tasks. Pure: no torch, no clock of its own.

This is the policy of the executor that mixes tasks (`serving.engine.mixed`). The oldest rows of all keys are the
window; length orders them inside it, and the batch around the oldest row runs (`serving.engine.window`). So every batch
serves the oldest row that waits, and a row with n older ones runs within n + 1 batches, whatever tasks they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import TypeVar

from serving.engine.costs import BatchCost
from serving.engine.line import Line, Queue, Row
from serving.engine.window import Limits, batch_around

T = TypeVar("T")


class AllKeysPolicy:
    """Chooses the rows of the next batch among all keys.

    Args:
        limits: of a batch.
        cost: of a batch, as learned so far.
    """

    def __init__(self, limits: Limits, cost: BatchCost) -> None:
        self._limits = limits
        self._cost = cost

    def choose(self, line: Line[T], mixes: Callable[[Row[T]], bool], free: int = 1) -> list[Row[T]]:
        """The rows to run next; they stay in line. Empty when no row waits that mixes.

        Args:
            mixes: whether rows such as this one, of its key, can run in a mixed batch.
            free: how many batches can begin now; what waits is divided among them.
        """
        queues = [queue for queue in line.queues.values() if mixes(queue.head)]
        window = list(islice(merge(*map(_by_age, queues), key=lambda row: row.number), self._limits.window))
        if len(window) < 2:
            return window
        limits = self._limits.divided(sum(map(len, queues)), free)
        return batch_around(window[0], window, self._cost.fixed, self._cost.token, limits)

    def backlog_seconds(self, queues: Sequence[Queue[T]]) -> float:
        """How long the base's passes over queues will take, by the learned costs: full batches, no padding."""
        batches = -(-sum(map(len, queues)) // self._limits.rows)
        return batches * self._cost.fixed + sum(queue.tokens for queue in queues) * self._cost.token


def _by_age(queue: Queue[T]) -> Iterator[Row[T]]:
    return iter(queue.rows.values())
