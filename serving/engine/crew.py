"""The engine's threads, and their turns at the weights: several batches that read them, or one that changes them.

Batches that only read the weights may run at once, each on an equal share of the CPU threads: small batches do not keep
all of them busy. A batch that is to change the weights waits until the others have ended; until it has ended, too, no
other begins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numba
import torch


class Crew:
    """Threads numbered from 0, of which the first ones have work first: their CPU threads are warm.

    Args:
        size: number of threads, each of which runs a batch at a time.
        cpu_threads: CPU threads that all of them compute with.

    Attributes:
        lock: whoever calls a method or reads a property holds it. A thread may take it more than once.
    """

    def __init__(self, size: int, cpu_threads: int) -> None:
        if not 1 <= size <= cpu_threads:
            raise ValueError(f"{size} batches cannot run at once on {cpu_threads} CPU threads")
        self.lock = threading.RLock()
        self.size = size
        self._cpu_threads = cpu_threads
        self._at_work = 0
        self._owned = False
        self._want_to_own = 0
        self._asleep: set[int] = set()
        self._alarms = [threading.Condition(self.lock) for _ in range(size)]
        self._left = threading.Condition(self.lock)

    @property
    def free(self) -> int:
        """How many more batches may run at once."""
        return self.size - self._at_work

    @property
    def is_idle(self) -> bool:
        """Whether no turn is under way."""
        return not self._at_work and not self._want_to_own

    def may_begin(self, number: int) -> bool:
        """Whether a thread may begin a turn now, for which the threads before it have no time."""
        return not self._owned and not self._want_to_own and self._at_work >= number

    def begin(self) -> Turn:
        """A turn of the calling thread, on its share of the CPU threads."""
        self._at_work += 1
        return Turn(self, self._cpu_threads // self.size)

    def wait(self, number: int, has_work: Callable[[], bool], seconds: float | None) -> bool:
        """Let a thread sleep until it has work; False if so many seconds passed first."""
        self._asleep.add(number)
        try:
            return self._alarms[number].wait_for(has_work, seconds)
        finally:
            self._asleep.discard(number)

    def wake(self) -> None:
        """Let the first of the threads that sleep look for work."""
        if self._asleep:
            self._alarms[min(self._asleep)].notify()

    def wake_all(self) -> None:
        for alarm in self._alarms:
            alarm.notify()

    # For turns

    def _own(self) -> None:
        with self.lock:
            self._at_work -= 1
            self._want_to_own += 1
            self._left.notify_all()
            self._left.wait_for(lambda: not self._owned and not self._at_work)
            self._want_to_own -= 1
            self._at_work += 1
            self._owned = True

    def _end(self) -> None:
        with self.lock:
            self._at_work -= 1
            self._owned = self._owned and self._at_work > 0
            self._left.notify_all()
            self.wake()


class Turn:
    """The time that one thread has at the weights: for one batch, or for a call. It ends with its ``with`` block.

    Args:
        cpu_threads: that the calling thread computes with.
    """

    def __init__(self, crew: Crew, cpu_threads: int) -> None:
        self._crew = crew
        self._alone = False
        self._idle = 0.0
        self._compute_with(cpu_threads)

    @property
    def share(self) -> float:
        """The share of all CPU threads that it computes with."""
        return self._cpu_threads / self._crew._cpu_threads

    def own(self) -> None:
        """Have the weights and all CPU threads alone, as changing the weights needs.

        Waits until the other turns have ended. One of them may have changed the weights.
        """
        if not self._alone:
            started = time.perf_counter()
            self._crew._own()
            self._alone = True
            self._idle += (time.perf_counter() - started) * self.share
            self._compute_with(self._crew._cpu_threads)

    def idle_seconds(self) -> float:
        """Seconds of all CPU threads that waiting for other turns has cost since this was last asked."""
        idle, self._idle = self._idle, 0.0
        return idle

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_: object) -> None:
        self._crew._end()

    def _compute_with(self, cpu_threads: int) -> None:
        """The number of threads is a matter of the calling thread, to torch as well as to numba."""
        self._cpu_threads = cpu_threads
        most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set when numba is imported
        numba.set_num_threads(max(1, min(cpu_threads, most)))  # first, because starting numba's pool changes torch's
        if torch.get_num_threads() != cpu_threads:
            torch.set_num_threads(cpu_threads)
