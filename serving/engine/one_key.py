"""Which rows run next where a batch has one key and another key costs a switch. Pure: no torch, no clock of its own.

This is the policy of the executor that exchanges deltas (`serving.engine.exchange`). A key is a (digest, kind), each
with a queue in line. The next batch is of

1. the queue whose head has waited longest, once that is more than `max_wait`: so a head older than that runs
   within (number of queues with an older head) + 1 batches;
2. else the queue with the row that is due first, if that row would miss its deadline by waiting and can still meet it;
3. else the queue whose head has waited longest, where a queue that gets more rows a second done counts as older; the
   active key costs no switch.

Order of arrival chooses the window, a queue's oldest rows; length orders them inside the window, and the batch around
the head runs (see `serving.engine.window`). So every batch but those for a deadline serves its queue's oldest row, and
a row with n older ones in its queue runs within n + 1 of the queue's batches.

Choosing takes time in the number of queues, not of rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from serving.engine.costs import BatchCost, SwitchCost
from serving.engine.line import Line, Queue, Row
from serving.engine.window import Limits, batch_around

T = TypeVar("T")
_SWAY = 1 / 12
"""Twice the rows a second count as 6 % older. Chosen by `benchmarks.simulate`: a greater sway lets rare tasks wait for
busy ones (p99), a smaller one breaks up batches that would grow."""


class OneKeyPolicy:
    """Chooses the rows of the next batch, all of one key.

    Args:
        limits: of a batch.
        cost: of a batch, as learned so far.
        switch: what a batch of another key than the active one costs beside that, as learned so far.
    """

    def __init__(self, limits: Limits, cost: BatchCost, switch: SwitchCost) -> None:
        self._limits = limits
        self._cost = cost
        self._switch = switch

    def choose(self, line: Line[T], now: float, active: Hashable, free: int = 1) -> list[Row[T]]:
        """The rows to run next, shortest first; they stay in line. Empty when nothing waits.

        Args:
            active: the key the weights answer for at present.
            free: how many batches of the active key can begin now; what waits of it is divided among them.
        """
        if not len(line):
            return []
        row, affordable = self._overdue(line, now) or self._due(line, now, active) or self._most_work(line, now, active)
        return self._batch(line.queues[row.key], row, affordable, free if row.key == active else 1)

    def backlog_seconds(self, queues: Iterable[Queue[T]]) -> float:
        """How long queues will take, by the learned costs: full batches, no padding, a switch a queue."""
        return sum(self._seconds(queue) + self._switch.seconds for queue in queues)

    # The three reasons to run a batch: each gives a row that it is to be around, and the padded tokens it may have

    def _overdue(self, line: Line[T], now: float) -> tuple[Row[T], int] | None:
        """Of the queue whose turn came first, if any turn has come.

        A queue's turn comes when its head is overdue; one that ran since goes to the end of the line.
        """
        wait = self._limits.max_wait
        overdue = [queue for queue in line.queues.values() if queue.head.arrived + wait <= now]
        if not overdue:
            return None
        first = min(overdue, key=lambda queue: (max(queue.head.arrived + wait, queue.ran), queue.head.number))
        return first.head, self._limits.tokens

    def _due(self, line: Line[T], now: float, active: Hashable) -> tuple[Row[T], int] | None:
        """Around the row with the first deadline, if it has to run now to meet it; no more than there is time for.

        A row that cannot meet its deadline any more is left to expire, which is soon.
        """
        row = line.first_due()
        left = row.deadline - now - (0.0 if row.key == active else self._switch.seconds)
        spare = left - self._cost.of(row.tokens)
        if not 0 <= spare < 2 * (self._cost.usual + self._switch.seconds):
            return None
        affordable = (left - self._cost.fixed) / max(self._cost.token, 1e-9)
        return row, min(int(affordable), self._limits.tokens)

    def _most_work(self, line: Line[T], now: float, active: Hashable) -> tuple[Row[T], int]:
        """Of the queue whose head waited longest, weighed by the rows a second that the queue would get done."""
        switch, usual = self._switch.seconds, self._cost.usual
        most = float("-inf")
        for key, queue in line.queues.items():
            seconds = self._seconds(queue) + (0.0 if key == active else switch)
            worth = (now - queue.head.arrived + usual) * (len(queue.rows) / seconds) ** _SWAY
            if worth > most:
                best, most = queue, worth
        return best.head, self._limits.tokens

    def _seconds(self, queue: Queue[T]) -> float:
        """Of the fewest batches that a queue's rows make."""
        return queue.tokens * self._cost.token + -(-len(queue.rows) // self._limits.rows) * self._cost.fixed

    def _batch(self, queue: Queue[T], row: Row[T], tokens: int, parts: int) -> list[Row[T]]:
        """Rows of a queue's window to run together with one of its rows.

        Args:
            tokens: at most, padding included.
            parts: how many batches the queue's rows are divided among.
        """
        window = list(islice(queue.rows.values(), self._limits.window))
        if row.number > window[-1].number:
            window.append(row)
        if len(window) == 1:
            return window
        again = self._cost.fixed + self._switch.a_batch
        limits = replace(self._limits.divided(len(queue), parts), tokens=tokens)
        return batch_around(row, window, again, self._cost.token, limits)
