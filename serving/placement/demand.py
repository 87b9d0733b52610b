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
QUICK_HALF_LIFE = 10.0
"""The same, for what has just become popular."""
NEGLIGIBLE = 0.001
"""Work a second; a task below it counts as not asked for. One short request is worth more for 3 minutes."""
_TOKENS = 64
_DEVIATIONS = 2.0
"""Of its own count, by which the quick rate must be above the slow one."""
_YOUNGEST = 5.0
"""Seconds; until then rates are those of a count that is so old, so that one request is no storm."""


def work_of(tokens: int) -> float:
    """The work of a request: 1 for what every request costs, and 1 for each 64 tokens of its inputs."""
    return 1 + tokens / _TOKENS


class Rates:
    """Faded rates of work by task. Threads may share them; times are passed in, in seconds of any one clock.

    A rate is that of a slow count, which is steady; or of a quick one, where that is surely higher. Otherwise a task
    that becomes popular would overload its home for minutes.

    Args:
        half_life: seconds after which work counts half in the slow count.
        quick: the same for the quick one.
    """

    def __init__(self, half_life: float = HALF_LIFE, quick: float = QUICK_HALF_LIFE) -> None:
        self._lock = threading.Lock()
        self._slow, self._quick = _Count(half_life), _Count(quick)

    def note(self, task: str, work: float, now: float) -> None:
        """Count the work of a request to a task."""
        with self._lock:
            self._slow.note(task, work, now)
            self._quick.note(task, work, now)

    def rates(self, now: float) -> dict[str, float]:
        """Work a second by task, without the negligible. A count that is young is not mistaken for a low rate."""
        with self._lock:
            found = {task: self._rate(task, now) for task in self._slow.tasks}
            gone = {task for task, rate in found.items() if rate < NEGLIGIBLE}
            self._slow.forget(gone)
            self._quick.forget(gone)
        return {task: rate for task, rate in found.items() if task not in gone}

    def _rate(self, task: str, now: float) -> float:
        slow, quick = self._slow.of(task, now), self._quick.of(task, now)
        surely = quick - _DEVIATIONS * math.sqrt(quick)
        return max(slow * self._slow.a_second(now), surely * self._quick.a_second(now))


class _Count:
    """Work by task that fades."""

    def __init__(self, half_life: float) -> None:
        self._fading = math.log(2) / half_life
        self._since: float | None = None
        self._work: dict[str, tuple[float, float]] = {}

    @property
    def tasks(self) -> list[str]:
        return list(self._work)

    def note(self, task: str, work: float, now: float) -> None:
        if self._since is None:
            self._since = now
        self._work[task] = (self.of(task, now) + work, now)

    def of(self, task: str, now: float) -> float:
        """Faded work."""
        work, when = self._work.get(task, (0.0, now))
        return work * math.exp(-self._fading * (now - when))

    def a_second(self, now: float) -> float:
        """What faded work is multiplied by to be work a second: less, the longer it has been counted."""
        age = max(_YOUNGEST, now - (now if self._since is None else self._since))
        return self._fading / -math.expm1(-self._fading * age)

    def forget(self, tasks: Iterable[str]) -> None:
        for task in tasks:
            self._work.pop(task, None)


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
