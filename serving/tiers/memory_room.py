"""The bytes that files in memory may take together."""

from __future__ import annotations

import threading


class MemoryRoom:
    """Bytes of memory within a budget. Threads may share it.

    A file that is larger than the budget gets room while no other one has any, as in the tiers.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        """Bytes that are taken."""
        self._changed = (
            threading.Condition()
        )  # its lock is reentrant: a file may be collected while its thread holds it

    def take(self, nbytes: int, seconds: float) -> bool:
        """Take bytes, until `give_back`; wait for others to give theirs back. False: not in that many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.nbytes or self.nbytes + nbytes <= self.budget, seconds):
                return False
            self.nbytes += nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        with self._changed:
            self.nbytes -= nbytes
            self._changed.notify_all()
