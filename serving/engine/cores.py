"""The CPU cores that this process may use, and how batches divide them."""

from __future__ import annotations

import math
import os
from pathlib import Path

_MOST_AT_ONCE = 4
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """The cores in the process's affinity, or in its control group's quota (a container's limit) if those are fewer."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        allowed = os.cpu_count() or 1
    limit = _quota_cores(quota)
    return allowed if limit is None else max(1, min(allowed, math.ceil(limit)))


def concurrent_batches(asked: int, threads: int, device: str) -> int:
    """How many batches a replica runs at once.

    Args:
        asked: the setting; 0: one a thread, 4 at most.
        threads: CPU threads that the replica computes with.
        device: the type of the weights' device. On a GPU a batch has all of it.
    """
    if device != "cpu":
        return 1
    return min(asked or _MOST_AT_ONCE, threads)


def _quota_cores(file: Path) -> float | None:
    """The quota of a version 2 control group: ``<microseconds> <period>``, or ``max <period>`` without a limit."""
    try:
        share, period = file.read_text().split()
        return float(share) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
