"""Where a window is cut: least time, little padding, and when padding does not matter."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from choosing import Choosing
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.line import Row
from serving.engine.window import Limits, batch_around

FOREVER = 1e9
CPU = (0.005, 0.00013)
"""Seconds of a batch's fixed part and of a token: MiniLM-L6 on 2 cores."""
GPU = (0.006, 0.000002)


def rows_of(lengths: list[int]) -> list[Row[None]]:
    rows = [Row("a", tokens, 0.0, FOREVER, None) for tokens in lengths]
    for number, row in enumerate(rows):
        row.number = number
    return rows


def every_cut(count: int) -> Iterator[list[tuple[int, int]]]:
    """All ways to cut a sequence into stretches."""
    for bits in range(1 << (count - 1)):
        ends = [0, *(i for i in range(1, count) if bits >> (i - 1) & 1), count]
        yield list(pairwise(ends))


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=8)
PRICES = st.sampled_from([CPU, GPU, (0.0001, 0.0002), (0.02, 0.0001)])


@given(LENGTHS, st.integers(0, 7), PRICES, st.integers(1, 5), st.integers(30, 200))
def test_the_batch_is_of_a_cut_that_takes_nearly_the_least_time_of_all(
    lengths: list[int], which: int, prices: tuple[float, float], most_rows: int, most_tokens: int
) -> None:
    start, token = prices
    rows = rows_of(lengths)
    batch = batch_around(rows[which % len(rows)], rows, start, token, Limits(most_rows, most_tokens))
    ordered = sorted(lengths)

    def allowed(begin: int, end: int) -> bool:
        return end - begin == 1 or (end - begin <= most_rows and (end - begin) * ordered[end - 1] <= most_tokens)

    seconds = {
        tuple(cut): sum(start + token * (end - begin) * ordered[end - 1] for begin, end in cut)
        for cut in every_cut(len(rows))
        if all(allowed(begin, end) for begin, end in cut)
    }
    tokens = [r.tokens for r in batch]
    with_it = [s for cut, s in seconds.items() if any(ordered[begin:end] == tokens for begin, end in cut)]
    assert min(with_it) <= min(seconds.values()) + 0.1 * start + 1e-12


def test_costs_decide_whether_a_short_and_a_long_row_run_together() -> None:
    rows = rows_of([10, 100])
    assert [r.tokens for r in batch_around(rows[0], rows, *CPU, Limits())] == [10]
    assert [r.tokens for r in batch_around(rows[0], rows, *GPU, Limits())] == [10, 100]


def mixed(count: int, seed: int) -> list[int]:
    """Lengths as texts have them: lognormal, of 6 to 128 tokens."""
    chance = random.Random(seed)
    return [min(128, max(6, round(math.exp(chance.gauss(3.2, 0.6))))) for _ in range(count)]


def padding_of(choosing: Choosing[None], coming: list[int]) -> float:
    """Share of padding over all batches until everything has run; a row comes for every one that runs."""
    tokens = padded = 0
    while batch := choosing.next_batch(0.0, "a"):
        tokens += sum(r.tokens for r in batch)
        padded += len(batch) * batch[-1].tokens
        for _ in batch:
            if coming:
                choosing.add(Row("a", coming.pop(), 0.0, FOREVER, None))
    return 1 - tokens / padded


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("coming", [0, 1000])
def test_with_64_mixed_lengths_in_line_padding_stays_under_a_tenth(seed: int, coming: int) -> None:
    choosing: Choosing[None] = Choosing(Limits())
    assert (choosing.cost.fixed, choosing.cost.token) == CPU
    for tokens in mixed(64, seed):
        choosing.add(Row("a", tokens, 0.0, FOREVER, None))
    assert padding_of(choosing, mixed(coming, seed + 100)) < 0.1


@given(st.lists(st.integers(1, 128), min_size=32, max_size=64), st.integers(0, 31))
def test_no_batch_of_half_a_window_or_more_has_more_than_a_tenth_of_padding_where_tokens_cost(
    lengths: list[int], which: int
) -> None:
    rows = rows_of(lengths)
    batch = batch_around(rows[which], rows, 0.9 * 0.0001 * sum(lengths), 0.0001, Limits())
    assert sum(r.tokens for r in batch) >= 0.9 * len(batch) * batch[-1].tokens


def test_where_a_batch_costs_more_than_its_tokens_a_full_window_runs_in_full_batches() -> None:
    rows = rows_of(mixed(64, seed=0))
    assert len(batch_around(rows[0], rows, *GPU, Limits())) == 32
