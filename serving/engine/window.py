"""Which of a queue's oldest rows run together: cut in order of length where all of them take the least time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, TypeVar

_NEARLY = 0.1
"""A cut is as good as the best one if it takes longer by at most this share of one more batch."""


class Sized(Protocol):
    """What is put into batches: it has so many tokens, and a place in the order of arrival."""

    @property
    def tokens(self) -> int: ...

    @property
    def number(self) -> int: ...


S = TypeVar("S", bound=Sized)


@dataclass(frozen=True)
class Limits:
    """Bounds of a batch.

    Attributes:
        rows: most rows.
        tokens: most tokens, padding included.
        max_wait: seconds; a queue whose oldest row has waited that long comes next.
        window: how many of a queue's oldest rows are ordered by length together.
        padding: largest share of padding of a batch, where at least half a window waits; but see `batch_around`.
    """

    rows: int = 32
    tokens: int = 4096
    max_wait: float = 10.0
    window: int = 64
    padding: float = 0.1

    def divided(self, waiting: int, parts: int) -> Limits:
        """For one of so many batches that begin together, where so many rows wait: each may have its part of them."""
        return replace(self, rows=min(self.rows, -(-waiting // parts)))


def batch_around(row: S, window: Sequence[S], start: float, token: float, limits: Limits) -> list[S]:
    """The rows of a window to run with one of them, shortest first.

    The window is cut into batches so that all of them together take the least time; of cuts nearly as good, the one
    where the row's batch is largest is taken. This is the dynamic programme over rows in order of length of
    TurboTransformers (Fang et al., PPoPP 2021, algorithm 3), from both ends. Rows of one length are ordered so that the
    older is nearer to `row`.

    The bound on padding does not hold where one more batch costs as much as all tokens of the window: there (on a GPU)
    the bound would save little, and halve what a busy task gets done.

    Args:
        start: seconds that one more batch costs.
        token: seconds that one more token costs, padding included.
    """
    rows = sorted(window, key=lambda r: (r.tokens, r.number if r.tokens >= row.tokens else -r.number))
    lengths = [r.tokens for r in rows]
    bounded = 2 * len(rows) >= limits.window and start < token * sum(lengths)
    most = _most_ending(lengths, limits, limits.padding if bounded else 1.0)
    at = next(i for i, r in enumerate(rows) if r is row)
    steps = [token * length for length in lengths]
    before = _before(at, start, steps, most)
    after = _after(at, start, steps, most)
    ways = [
        (before[begin] + start + (end - begin) * steps[end - 1] + after[end], begin, end)
        for end in range(at + 1, min(at + limits.rows, len(rows)) + 1)
        for begin in range(max(0, end - most[end - 1]), at + 1)
    ]
    least = min(ways)[0] + _NEARLY * start
    nearly = [way for way in ways if way[0] <= least]
    _, begin, end = max(nearly, key=lambda way: (way[2] - way[1], -way[0]))
    return rows[begin:end]


def _most_ending(lengths: list[int], limits: Limits, padding: float) -> list[int]:
    """For each position, how many rows a batch that ends there may have."""
    sums = list(accumulate(lengths, initial=0))
    most = []
    for end, longest in enumerate(lengths, 1):
        count = max(1, min(end, limits.rows, limits.tokens // max(1, longest)))
        while sums[end] - sums[end - count] < (1 - padding) * count * longest:
            count -= 1
        most.append(count)
    return most


def _before(at: int, start: float, steps: list[float], most: list[int]) -> list[float]:
    """Least seconds of the rows before each position up to `at`."""
    least = [0.0]
    for end in range(1, at + 1):
        step = steps[end - 1]
        least.append(start + min([least[end - count] + count * step for count in range(1, most[end - 1] + 1)]))
    return least


def _after(at: int, start: float, steps: list[float], most: list[int]) -> list[float]:
    """Least seconds of the rows from each position on, after `at`."""
    total = len(steps)
    widest = max(most)
    least = [0.0] * (total + 1)
    for begin in range(total - 1, at, -1):
        ends = range(begin + 1, min(begin + widest, total) + 1)
        least[begin] = start + min(
            [least[end] + (end - begin) * steps[end - 1] for end in ends if end - begin <= most[end - 1]]
        )
    return least
