"""How batches run: what an executor does, and what running a batch gives."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from serving.engine.batch import Batch
from serving.engine.crew import Turn
from serving.engine.line import Line, Row
from serving.pipelines.base import Raw
from serving.tiers.loaded import Loaded


class Asked(Protocol):
    """What a row in line carries: the task that it asks."""

    @property
    def task(self) -> Loaded: ...


T = TypeVar("T", bound=Asked)
Outcome = Sequence[Raw] | Exception
"""Of a group: one result a row, in the order of its rows; or why there is none."""


@dataclass(frozen=True)
class Ran:
    """What running a batch gave.

    Attributes:
        outcomes: one a group, in the order of the batch's groups.
        switching: seconds in which the weights changed task.
        computing: seconds in which backbone and heads ran.
        mixed: whether the weights were the base's, and each row was corrected beside it.
    """

    outcomes: Sequence[Outcome]
    switching: float
    computing: float
    mixed: bool = False


class Executor(Protocol):
    """A way to run batches. What a batch may consist of only its executor knows, which therefore chooses the rows too.

    The engine's threads call all of it, but only one at a time calls `choose`, `changes_weights` and `backlog_seconds`.
    """

    def choose(self, line: Line[T], now: float, free: int) -> list[Row[T]]:
        """The rows of the next batch. They stay in line; empty only when nothing waits.

        Args:
            now: on the clock of the rows' times, in seconds.
            free: how many batches can begin now; what waits is divided among them.
        """

    def changes_weights(self, rows: Sequence[Row[T]]) -> bool:
        """Whether rows that were chosen are known to change the weights: other batches have to end first."""

    def backlog_seconds(self, line: Line[T]) -> float:
        """How long running all that waits will take, by what batches have taken so far."""

    def activate(self, task: Loaded, key: Hashable, turn: Turn) -> float:
        """Put a task into the weights; the seconds that it took, 0 if it was there.

        Args:
            key: of its rows, as the line knows them.

        Raises:
            ExchangeError, PoisonedError: the task could not be put in.
        """

    def revert(self, turn: Turn) -> float:
        """Put the base back; the seconds that it took, 0 if it was there."""

    def run(self, batch: Batch, turn: Turn) -> Ran:
        """Run a batch. Raises nothing: a group that fails has its error as its outcome, and no other group's fails.

        Args:
            turn: at the weights. Other batches read them at the same time, unless the turn owns them.
        """
