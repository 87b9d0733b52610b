"""How much tasks are asked for: the work of requests, rates that fade, and what all replicas tell of a task. Pure."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping

from serving.placement.ledger import Demand
from serving.placement.plan import Placement

HALF_LIFE = 60.0
"""Seconds after which work counts half."""
NEGLIGIBLE = 0.001
"""Work a second; a task below it counts as not asked for. One short request is worth more for 3 minutes."""
_TOKENS = 64
_YOUNGEST = 5.0
"""Seconds; until then rates are those of a count that is so old, so that one request is no storm."""


def work_of(tokens: int) -> float:
    """The work of a request: 1 for what every request costs, and 1 for each 64 tokens of its inputs."""
    return 1 + tokens / _TOKENS


class Rates:
    """Faded rates of work by task. Threads may share them; times are passed in, in seconds of any one clock.

    Args:
        half_life: seconds after which work counts half.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self._fading = math.log(2) / half_life
        self._lock = threading.Lock()
        self._since: float | None = None
        self._work: dict[str, tuple[float, float]] = {}

    def note(self, task: str, work: float, now: float) -> None:
        """Count the work of a request to a task."""
        with self._lock:
            if self._since is None:
                self._since = now
            self._work[task] = (self._faded(task, now) + work, now)

    def rates(self, now: float) -> dict[str, float]:
        """Work a second by task, without the negligible. A count that is young is not mistaken for a low rate."""
        with self._lock:
            age = max(_YOUNGEST, now - (now if self._since is None else self._since))
            a_second = self._fading / -math.expm1(-self._fading * age)
            found = {task: self._faded(task, now) * a_second for task in self._work}
            self._work = {task: self._work[task] for task, rate in found.items() if rate >= NEGLIGIBLE}
        return {task: rate for task, rate in found.items() if rate >= NEGLIGIBLE}

    def _faded(self, task: str, now: float) -> float:
        work, when = self._work.get(task, (0.0, now))
        return work * math.exp(-self._fading * (now - when))


def demand(
    tasks: Iterable[str],
    told: Iterable[Mapping[str, tuple[float, int]]],
    before: Placement | None,
    seconds: float,
) -> dict[str, Demand]:
    """What all replicas together are asked for, as `serving.placement.packing.place` takes it.

    The rate of a task is what the replicas tell, all together. It falls no faster than a count fades, so what a replica
    that has just ended was asked for is not forgotten. The bytes are the most that a replica tells; where none tells
    them, the mean of those that are known.

    Args:
        tasks: all tasks to place.
        told: of each replica, the rate and the bytes of tasks; bytes 0: unknown.
        before: the placement in force.
        seconds: since its rates were measured.
    """
    rates: defaultdict[str, float] = defaultdict(float)
    sizes: defaultdict[str, int] = defaultdict(int)
    for one in told:
        for task, (rate, nbytes) in one.items():
            rates[task] += rate
            sizes[task] = max(sizes[task], nbytes)
    fading = 0.5 ** (seconds / HALF_LIFE)
    for task, homes in ({} if before is None else before.tasks).items():
        rates[task] = max(rates[task], homes.rate * fading)
    known = [nbytes for nbytes in sizes.values() if nbytes]
    mean = sum(known) // len(known) if known else 0
    return {task: Demand(rates[task] if rates[task] >= NEGLIGIBLE else 0.0, sizes[task] or mean) for task in tasks}
