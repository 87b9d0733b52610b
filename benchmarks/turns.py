"""Ways of doing one thing, timed by turns, so that what else the machine does hits them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def taking_turns(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median seconds of each way, after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in times.items()}
