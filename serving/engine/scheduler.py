"""Which batch runs next. Pure: no torch, no threads, no clock of its own.

There is one queue per key, a (digest, kind); batches never mix keys. The next queue is

1. the one whose head has waited longest, once that is more than `max_wait`: so a head older than that runs
   within (number of queues with an older head) + 1 batches;
2. else the one with the row that is due first, if that row would miss its deadline by waiting and can still meet it;
3. else the one whose head has waited longest, where one that gets more rows a second done counts as older; what is
   active costs no switch.

FIFO chooses the window, a queue's oldest rows; length orders them inside it, and the batch around the head runs (see
`serving.engine.window`). So every batch but those for a deadline serves its queue's oldest row, and a row with n older
ones in its queue runs within n + 1 of the queue's batches.

Costs are learned from what batches and switches took. A step takes time in the number of queues, not of rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import Generic, TypeVar

from serving.engine.costs import Costs
from serving.engine.window import Limits, batch_around

__all__ = ["Costs", "Limits", "Row", "Scheduler"]

T = TypeVar("T")
_MEMORY = 0.05
_SWAY = 1 / 12
"""Twice the rows a second count as 6 % older. Chosen by `benchmarks.simulate`: a greater sway lets rare tasks wait for
busy ones (p99), a smaller one breaks up batches that would grow."""


@dataclass(eq=False)
class Row(Generic[T]):
    """One input in line. Times are the caller's clock, in seconds; tokens its length."""

    key: Hashable
    tokens: int
    arrived: float
    deadline: float
    payload: T
    abandoned: bool = False
    """Nobody waits for the answer any more; set by `Scheduler.abandon`."""
    number: int = field(default=-1, init=False)
    """Place in the order of arrival, given by the scheduler."""


class _Queue(Generic[T]):
    """One key's rows, oldest first, by number."""

    def __init__(self) -> None:
        self.rows: OrderedDict[int, Row[T]] = OrderedDict()
        self.tokens = 0
        self.ran = float("-inf")
        self.turn = (0.0, -1)
        self.arrived = 0.0

    @property
    def head(self) -> Row[T]:
        return next(iter(self.rows.values()))


class Scheduler(Generic[T]):
    """Queues of rows and the choice among them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queues: dict[Hashable, _Queue[T]] = {}
        self._numbers = count()
        # Both heaps hold entries that no longer hold true, and no rows: what has run must not be kept alive.
        self._line: list[tuple[float, int, Hashable]] = []
        self._deadlines: list[tuple[float, int, Hashable]] = []
        self._abandoned: list[Row[T]] = []
        self._switching = 0.0
        self.costs = Costs()
        self.rows = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self.rows

    def add(self, row: Row[T]) -> None:
        row.number = next(self._numbers)
        queue = self._queues.get(row.key)
        if queue is None:
            queue = self._queues[row.key] = _Queue()
        queue.rows[row.number] = row
        queue.tokens += row.tokens
        self.rows += 1
        self.tokens += row.tokens
        heappush(self._deadlines, (row.deadline, row.number, row.key))
        if len(queue.rows) == 1:
            self._line_up(row.key, queue)

    @property
    def wanted(self) -> int:
        """Rows in line that somebody waits for; `drop` takes out the others."""
        return self.rows - len(self._abandoned)

    def abandon(self, rows: Iterable[Row[T]]) -> None:
        """Nobody waits for these rows any more: those still in line are dropped. Others are left as they are."""
        for row in rows:
            if self._waits(row.key, row.number) and not row.abandoned:
                row.abandoned = True
                self._abandoned.append(row)

    def drop(self, now: float) -> list[Row[T]]:
        """Take out rows that are abandoned or past their deadline, before they cost anything."""
        dropped, self._abandoned = [r for r in self._abandoned if self._waits(r.key, r.number)], []
        self._take(dropped)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number, key = heappop(self._deadlines)
            if self._waits(key, number):
                row = self._queues[key].rows[number]
                self._take([row])
                dropped.append(row)
        return dropped

    def next_batch(self, now: float, active: Hashable) -> list[Row[T]]:
        """Take out the rows to run next, shortest first; empty when nothing waits.

        Args:
            active: the key the weights answer for at present.
        """
        if not self._queues:
            return []
        batch = self._overdue(now) or self._due(now, active) or self._most_work(now, active)
        key = batch[0].key
        self._switching += _MEMORY * ((key != active) - self._switching)
        self._queues[key].ran = now
        self._take(batch)
        return batch

    def backlog_seconds(self) -> float:
        """How long what is queued will take, by the learned costs: full batches, no padding, a switch a queue."""
        return sum(self._seconds(queue) + self.costs.switch for queue in self._queues.values())

    # The three reasons to run a batch

    def _overdue(self, now: float) -> list[Row[T]]:
        """Of the queue that is first in line, if its turn has come."""
        while True:
            since, number, key = self._line[0]
            queue = self._queues.get(key)
            if queue is not None and queue.turn == (since, number):
                return self._batch(queue, queue.head) if since <= now else []
            heappop(self._line)

    def _due(self, now: float, active: Hashable) -> list[Row[T]]:
        """Around the row with the first deadline, if it has to run now to meet it; no more than there is time for.

        One that cannot meet it any more is left to expire, which is soon.
        """
        while not self._waits(*self._deadlines[0][:0:-1]):
            heappop(self._deadlines)
        deadline, number, key = self._deadlines[0]
        queue = self._queues[key]
        row = queue.rows[number]
        left = deadline - now - (0.0 if key == active else self.costs.switch)
        spare = left - self.costs.batch(row.tokens)
        if not 0 <= spare < 2 * (self.costs.usual + self.costs.switch):
            return []
        affordable = (left - self.costs.fixed) / max(self.costs.token, 1e-9)
        return self._batch(queue, row, int(affordable))

    def _most_work(self, now: float, active: Hashable) -> list[Row[T]]:
        """Of the queue whose head waited longest, weighed by the rows a second that the queue would get done."""
        switch, usual = self.costs.switch, self.costs.usual
        most = float("-inf")
        for key, queue in self._queues.items():
            seconds = self._seconds(queue) + (0.0 if key == active else switch)
            worth = (now - queue.arrived + usual) * (len(queue.rows) / seconds) ** _SWAY
            if worth > most:
                best, most = queue, worth
        return self._batch(best, best.head)

    def _seconds(self, queue: _Queue[T]) -> float:
        """Of the fewest batches that a queue's rows make."""
        return queue.tokens * self.costs.token + -(-len(queue.rows) // self._limits.rows) * self.costs.fixed

    def _batch(self, queue: _Queue[T], row: Row[T], most: int | None = None) -> list[Row[T]]:
        """Rows of a queue's window to run together with one of its rows, of at most so many padded tokens."""
        window = list(islice(queue.rows.values(), self._limits.window))
        if row.number > window[-1].number:
            window.append(row)
        if len(window) == 1:
            return window
        again = self.costs.fixed + self._switching * self.costs.switch
        limits = self._limits if most is None else replace(self._limits, tokens=min(most, self._limits.tokens))
        return batch_around(row, window, again, self.costs.token, limits)

    # Bookkeeping

    def _waits(self, key: Hashable, number: int) -> bool:
        queue = self._queues.get(key)
        return queue is not None and number in queue.rows

    def _take(self, rows: Iterable[Row[T]]) -> None:
        for row in rows:
            queue = self._queues[row.key]
            del queue.rows[row.number]
            queue.tokens -= row.tokens
            self.rows -= 1
            self.tokens -= row.tokens
        for key in {row.key for row in rows}:
            self._line_up(key, self._queues[key])
        if len(self._deadlines) > 2 * self.rows + 64:
            self._deadlines = [entry for entry in self._deadlines if self._waits(entry[2], entry[1])]
            heapify(self._deadlines)

    def _line_up(self, key: Hashable, queue: _Queue[T]) -> None:
        """Note when a queue's turn comes; one that ran since its head was overdue goes to the end of the line."""
        if not queue.rows:
            del self._queues[key]
            return
        head = queue.head
        queue.arrived = head.arrived
        queue.turn = (max(head.arrived + self._limits.max_wait, queue.ran), head.number)
        heappush(self._line, (*queue.turn, key))
