"""How much a placement may change at once, for a reason that can wait: balance, or room for bytes."""

from __future__ import annotations

import math

SHARE = 0.02
"""Of all tasks: as many get another home at most."""
FEWEST = 2
"""As many may get another home, however few tasks there are."""
GAIN = 0.35
"""Load that a replica gets at most, in shares of a replica, unless it is that of a single task."""


class Damping:
    """What is left of the changes that a placement may make.

    Args:
        tasks: how many there are.
        gain: the load that a replica may get, a second; if infinite, nothing is limited.
    """

    def __init__(self, tasks: int, gain: float) -> None:
        self._left = math.inf if gain == math.inf else max(FEWEST, int(SHARE * tasks))
        self._gain = gain
        self._got: dict[int, float] = {}

    def __bool__(self) -> bool:
        return self._left > 0

    def may_get(self, replica: int, load: float = 0.0) -> bool:
        """Whether a replica may get one more task of this load."""
        got = self._got.get(replica, 0.0)
        return got == 0.0 or got + load <= self._gain

    def note(self, replica: int, load: float) -> None:
        """A task of this load was moved to a replica."""
        self._left -= 1
        self._got[replica] = self._got.get(replica, 0.0) + load
