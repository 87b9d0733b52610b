"""How many CPU cores this process was given."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores of the process's affinity, or of its control group's quota (a container's limit) where that is less."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        allowed = os.cpu_count() or 1
    limit = _quota_cores(quota)
    return allowed if limit is None else max(1, min(allowed, math.ceil(limit)))


def _quota_cores(file: Path) -> float | None:
    """Of a version 2 control group, whose file says ``<microseconds> <period>``, or ``max <period>`` for no limit."""
    try:
        share, period = file.read_text().split()
        return float(share) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
