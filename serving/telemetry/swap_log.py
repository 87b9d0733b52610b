"""The latest changes of task in the weights, kept until somebody fetches them. Pure."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Swap:
    """One change of task in the weights.

    Attributes:
        left, entered: digests of the tasks' deltas; None stands for the base.
        seconds: that it took.
        at: unix seconds at its end.
    """

    left: str | None
    entered: str | None
    seconds: float
    at: float


class SwapLog:
    """Keeps the first few changes since the last fetch, and counts the others. Callable from any thread.

    Args:
        most: changes to keep.
    """

    def __init__(self, most: int = 10) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: list[Swap] = []
        self._skipped = 0

    def note(self, left: str | None, entered: str | None, seconds: float) -> None:
        with self._lock:
            if len(self._kept) < self._most:
                self._kept.append(Swap(left, entered, seconds, time.time()))
            else:
                self._skipped += 1

    def fetch(self) -> tuple[list[Swap], int]:
        """The changes that were kept since the last fetch, oldest first, and how many others there were."""
        with self._lock:
            kept, skipped = self._kept, self._skipped
            self._kept, self._skipped = [], 0
            return kept, skipped
