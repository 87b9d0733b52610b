"""Who waits: rows in line, by key, with their ages and deadlines. Pure: no torch, no threads, no clock of its own.

A key says which rows may share a forward pass of one task; which rows run next is for an executor to choose
(`serving.engine.executor`). No operation takes time in the number of rows in line, but for logarithms.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from types import MappingProxyType
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Row(Generic[T]):
    """One input in line. Times are the caller's clock, in seconds; `tokens` is the input's length."""

    key: Hashable
    tokens: int
    arrived: float
    deadline: float
    payload: T
    abandoned: bool = False
    """Nobody waits for the answer any more; set by `Line.abandon`."""
    number: int = field(default=-1, init=False)
    """Place in the order of arrival, given by the line."""


class Queue(Generic[T]):
    """The rows of one key, oldest first; never empty.

    Attributes:
        rows: by number.
        head: the oldest row.
        tokens: of all rows.
        ran: when rows of this queue were last taken to run; minus infinity if that was never.
    """

    def __init__(self, first: Row[T]) -> None:
        self.rows: OrderedDict[int, Row[T]] = OrderedDict({first.number: first})
        self.head = first
        self.tokens = first.tokens
        self.ran = float("-inf")

    def __len__(self) -> int:
        return len(self.rows)


class Line(Generic[T]):
    """Rows that wait, in one queue for each key."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, Queue[T]] = {}
        self._rows = 0
        self._numbers = count()
        # (deadline, number, key). It also has entries of rows that have left, and it holds no rows: a row that has run
        # must not be kept alive.
        self._deadlines: list[tuple[float, int, Hashable]] = []
        self._abandoned: list[Row[T]] = []

    def __len__(self) -> int:
        return self._rows

    @property
    def queues(self) -> Mapping[Hashable, Queue[T]]:
        """By key; no queue is empty."""
        return MappingProxyType(self._queues)

    @property
    def wanted(self) -> int:
        """Rows in line that somebody waits for; `drop` takes out the others."""
        return self._rows - len(self._abandoned)

    def add(self, row: Row[T]) -> None:
        row.number = next(self._numbers)
        queue = self._queues.get(row.key)
        if queue is None:
            self._queues[row.key] = Queue(row)
        else:
            queue.rows[row.number] = row
            queue.tokens += row.tokens
        self._rows += 1
        heappush(self._deadlines, (row.deadline, row.number, row.key))

    def abandon(self, rows: Iterable[Row[T]]) -> None:
        """Nobody waits for these rows any more: `drop` takes out those still in line. Other rows stay as they are."""
        for row in rows:
            if self._waits(row.key, row.number) and not row.abandoned:
                row.abandoned = True
                self._abandoned.append(row)

    def drop(self, now: float) -> list[Row[T]]:
        """Take out rows that are abandoned or past their deadline, before they cost anything."""
        dropped, self._abandoned = [r for r in self._abandoned if self._waits(r.key, r.number)], []
        self._remove(dropped)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number, key = heappop(self._deadlines)
            if self._waits(key, number):
                row = self._queues[key].rows[number]
                self._remove([row])
                dropped.append(row)
        return dropped

    def take(self, rows: Iterable[Row[T]], now: float) -> None:
        """Take out rows of any keys, all of them in line, that run now."""
        rows = list(rows)
        for row in rows:
            self._queues[row.key].ran = now
        self._remove(rows)

    def first_due(self) -> Row[T]:
        """The row with the first deadline; the line must not be empty."""
        while True:
            _, number, key = self._deadlines[0]
            if self._waits(key, number):
                return self._queues[key].rows[number]
            heappop(self._deadlines)

    def _waits(self, key: Hashable, number: int) -> bool:
        queue = self._queues.get(key)
        return queue is not None and number in queue.rows

    def _remove(self, rows: Iterable[Row[T]]) -> None:
        for row in rows:
            queue = self._queues[row.key]
            del queue.rows[row.number]
            queue.tokens -= row.tokens
            self._rows -= 1
        for key in {row.key for row in rows}:
            queue = self._queues[key]
            if queue.rows:
                queue.head = next(iter(queue.rows.values()))
            else:
                del self._queues[key]
        if len(self._deadlines) > 2 * self._rows + 64:
            self._deadlines = [entry for entry in self._deadlines if self._waits(entry[2], entry[1])]
            heapify(self._deadlines)
