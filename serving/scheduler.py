"""Which batch runs next. Pure: no torch, no threads, no clock of its own.

There is one queue per key, a (digest, kind); batches never mix keys. FIFO chooses which rows a batch holds,
length orders them inside it. The next queue is

1. the one whose head has waited longest, once that is more than `max_wait`: so a head older than that runs
   within (number of queues with an older head) + 1 batches;
2. else, among rows whose deadline would pass within `max_wait`, the one that is due first;
3. else the one that does most work for its time: rows of its next batch over (switching + running them),
   where what is active costs no switch. The costs are learned from what batches took.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
_LEARNING_RATE = 0.2


@dataclass
class Row(Generic[T]):
    """One input in line. Times are the caller's clock, in seconds; tokens its length."""

    key: Hashable
    tokens: int
    arrived: float
    deadline: float
    payload: T
    abandoned: bool = field(default=False)
    """Set by whoever asked when nobody waits for the answer any more."""


@dataclass(frozen=True)
class Limits:
    """Most rows and most tokens (padding included) of a batch; the age from which a head comes next."""

    rows: int = 32
    tokens: int = 4096
    max_wait: float = 0.2


@dataclass
class Costs:
    """Seconds, learned online by exponential smoothing: a switch, a batch's fixed part, a token's part."""

    switch: float = 0.005
    token: float = 0.0002

    def learn_switch(self, seconds: float) -> None:
        self.switch += _LEARNING_RATE * (seconds - self.switch)

    def learn_batch(self, tokens: int, seconds: float) -> None:
        self.token += _LEARNING_RATE * (seconds / max(1, tokens) - self.token)


class Scheduler(Generic[T]):
    """Queues of rows and the choice among them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queues: dict[Hashable, deque[Row[T]]] = {}
        self._ran: dict[Hashable, float] = {}
        self.costs = Costs()
        self.rows = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self.rows

    def add(self, row: Row[T]) -> None:
        self._queues.setdefault(row.key, deque()).append(row)
        self.rows += 1
        self.tokens += row.tokens

    def drop(self, now: float) -> list[Row[T]]:
        """Take out rows that are abandoned or past their deadline, before they cost anything."""
        dropped: list[Row[T]] = []
        for key in list(self._queues):
            kept: deque[Row[T]] = deque()
            for row in self._queues[key]:
                (dropped if row.abandoned or row.deadline <= now else kept).append(row)
            self._keep(key, kept)
        for row in dropped:
            self.rows -= 1
            self.tokens -= row.tokens
        return dropped

    def next_batch(self, now: float, active: Hashable) -> list[Row[T]]:
        """Take out the rows to run next, shortest first; empty when nothing waits.

        Args:
            active: the key the weights answer for at present.
        """
        if not self._queues:
            return []
        key = self._choose(now, active)
        queue = self._queues[key]
        batch = [queue.popleft() for _ in range(self._prefix(queue))]
        self._ran[key] = now
        self._keep(key, queue)
        for row in batch:
            self.rows -= 1
            self.tokens -= row.tokens
        return sorted(batch, key=lambda row: row.tokens)

    def backlog_seconds(self) -> float:
        """How long what is queued will take, by the learned costs."""
        return self.tokens * self.costs.token + len(self._queues) * self.costs.switch

    def _choose(self, now: float, active: Hashable) -> Hashable:
        overdue = [k for k, q in self._queues.items() if now - q[0].arrived > self._limits.max_wait]
        if overdue:
            return min(overdue, key=self._in_line_since)
        due = {k: min(row.deadline for row in q) for k, q in self._queues.items()}
        first = min(due, key=lambda k: due[k])
        if due[first] - now < self._limits.max_wait:
            return first
        return max(self._queues, key=lambda k: (self._work_rate(k, active), -self._queues[k][0].arrived))

    def _in_line_since(self, key: Hashable) -> float:
        """When an overdue queue's turn was due; one that ran since then goes to the end of the line."""
        return max(self._queues[key][0].arrived + self._limits.max_wait, self._ran.get(key, 0.0))

    def _work_rate(self, key: Hashable, active: Hashable) -> float:
        queue = self._queues[key]
        rows = self._prefix(queue)
        tokens = sum(queue[i].tokens for i in range(rows))
        seconds = tokens * self.costs.token + (0.0 if key == active else self.costs.switch)
        return tokens / max(seconds, 1e-9)

    def _prefix(self, queue: deque[Row[T]]) -> int:
        """How many rows from the front fit one batch: always at least one."""
        longest = count = 0
        for row in queue:
            longest = max(longest, row.tokens)
            if count and (count == self._limits.rows or longest * (count + 1) > self._limits.tokens):
                break
            count += 1
        return count

    def _keep(self, key: Hashable, queue: deque[Row[T]]) -> None:
        if queue:
            self._queues[key] = queue
        else:
            self._queues.pop(key, None)
            self._ran.pop(key, None)
