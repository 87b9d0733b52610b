"""Work that comes in quanta: beside the batches of rows, and by turns with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from serving.engine.crew import Turn


class Quanta(Protocol):
    """Work that a thread of the engine does with the weights alone, some of it at a time."""

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do. Must be cheap: it is asked with the engine's lock held."""

    def run(self, turn: Turn, pressed: Callable[[], bool]) -> None:
        """Do one quantum. Raises nothing.

        Args:
            turn: at the weights, which it owns.
            pressed: whether others wait for the weights. Without that a quantum may last for as long as there is work.
        """

    def abort(self, error: Exception) -> None:
        """Give up all work, because of an error. May be called on any thread, also during a quantum."""
