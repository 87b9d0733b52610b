"""A line and the policy that takes batches of one key from it, as the engine and its executor put them together."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from serving.engine.costs import BatchCost, SwitchCost
from serving.engine.line import Line, Row
from serving.engine.one_key import OneKeyPolicy
from serving.engine.window import Limits

T = TypeVar("T")


class Choosing(Generic[T]):
    def __init__(self, limits: Limits) -> None:
        self.line: Line[T] = Line()
        self.cost, self.switch = BatchCost(), SwitchCost()
        self.policy = OneKeyPolicy(limits, self.cost, self.switch)

    def add(self, row: Row[T]) -> None:
        self.line.add(row)

    def next_batch(self, now: float, active: Hashable) -> list[Row[T]]:
        """Take out the rows to run next."""
        rows = self.policy.choose(self.line, now, active)
        self.line.take(rows, now)
        if rows:
            self.switch.note(rows[0].key != active)
        return rows

    def backlog_seconds(self) -> float:
        return self.policy.backlog_seconds(self.line.queues.values())
