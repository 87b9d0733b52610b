"""Cache policies of the device tier, compared on a trace of tasks by hit rate and seconds of loading.

This is part of `benchmarks.simulate`. The server's own policy is simulated by the code that the server runs.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.table import Table

from benchmarks.report import Row as Figure
from benchmarks.report import plain_table
from serving.popularity import Popularity
from serving.tiers.budget import ByteBudget


@dataclass(frozen=True)
class Keep:
    """How a cache values the tasks it holds: the least valued task leaves first."""

    name: str
    value: Callable[[float, int, float, float, int], float]
    """(clock, uses since the task came, seconds to load it again, bytes, time of this use) -> the task's value.

    `clock` is the value of the task that left last.
    """


KEEPS = [
    Keep("LRU", lambda clock, uses, seconds, size, use: use),
    Keep("LFU with aging", lambda clock, uses, seconds, size, use: clock + uses),
    Keep("GreedyDual", lambda clock, uses, seconds, size, use: clock + seconds / size),
    Keep("GreedyDual-Size-Frequency", lambda clock, uses, seconds, size, use: clock + uses * seconds / size),
]


def cached(tasks: Sequence[str], sizes: dict[str, float], share: float, keep: Keep) -> tuple[float, float]:
    """Hit rate and seconds of loading of a cache that has room for `share` of all tasks' bytes."""
    room = share * sum(sizes.values())
    values: dict[str, float] = {}
    uses: Counter[str] = Counter()
    heap: list[tuple[float, str]] = []
    clock = held = seconds = 0.0
    hits = 0
    for time, task in enumerate(tasks):
        if task in values:
            hits += 1
        else:
            seconds += load_seconds(sizes[task])
            held += sizes[task]
            uses[task] = 0
        uses[task] += 1
        while held > room and len(values) > (task in values):
            value, name = heapq.heappop(heap)
            if name != task and values.get(name) == value:
                clock = value
                held -= sizes[name]
                del values[name]
        values[task] = keep.value(clock, uses[task], load_seconds(sizes[task]), sizes[task], time)
        heapq.heappush(heap, (values[task], task))
    return hits / len(tasks), seconds


def faded(tasks: Sequence[str], sizes: dict[str, float], share: float) -> tuple[float, float]:
    """As `cached`, for the server's own device tier: use counts that fade, and that outlive the tasks in the tier."""
    uses = Popularity()
    held: ByteBudget[str] = ByteBudget(int(share * sum(sizes.values())), worth=uses)
    hits, seconds = 0, 0.0
    for task in tasks:
        uses.note(task)
        if held.get(task) is not None:
            hits += 1
        else:
            seconds += load_seconds(sizes[task])
            held.put(task, task, int(sizes[task]))
    return hits / len(tasks), seconds


def load_seconds(size: float) -> float:
    """Seconds to load a task from the host's memory or disk to the device: a fixed part and a part for each byte."""
    return 0.015 + size / 300e6


def compare_retention(name: str, tasks: Sequence[str]) -> tuple[list[Figure], Table]:
    """Hit rates and seconds of loading by policy; sizes vary as those of tasks that keep 3 to 30 % of the weights."""
    chance = random.Random(1)
    sizes = {task: 11e6 * math.exp(chance.gauss(0, 0.6)) for task in sorted(set(tasks))}
    figures = []
    table = plain_table(f"cache, {name}: hit rate and seconds of loading", ["policy", "10 %", "", "25 %", "", "vs LRU"])
    lru = 0.0
    policies = {keep.name: partial(cached, keep=keep) for keep in KEEPS} | {"faded counts (ours)": faded}
    for policy, run in policies.items():
        cells, total = [], 0.0
        for share in (0.1, 0.25):
            hits, seconds = run(tasks, sizes, share)
            total += seconds
            cells += [f"{hits:.1%}", f"{seconds:.1f} s"]
            figures.append(Figure(f"cache {name}, {policy}, room for {share:.0%}: hits", hits, "share"))
            figures.append(Figure(f"cache {name}, {policy}, room for {share:.0%}: loading", seconds, "s"))
        lru = lru or total
        table.add_row(policy, *cells, f"{total / lru:.2f}")
    return figures, table
