"""Bounds on means over texts are kept as often as they promise, and get nearer with more texts."""

from __future__ import annotations

import numpy as np
import pytest

from ken_core.text_bounds import (
    FEWEST_TEXTS,
    least_texts_for_mean,
    mean_at_most,
    ratio_at_most,
    texts_for_mean,
    texts_for_ratio,
)

DRAWS = 400


def shares_of_texts(rng: np.random.Generator, count: int, changed: float) -> np.ndarray:
    """Of each text the share of its 1 to 40 tokens that changed; texts differ in how much changes."""
    tokens = rng.integers(1, 41, count)
    return rng.binomial(tokens, np.minimum(1, changed * rng.gamma(0.5, 2.0, count))) / tokens


@pytest.mark.parametrize("changed", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("count", [30, 300])
def test_the_bound_of_a_mean_is_kept_with_its_confidence(changed: float, count: int) -> None:
    rng = np.random.default_rng(0)
    true = float(shares_of_texts(rng, 200_000, changed).mean())
    broken = sum(mean_at_most(shares_of_texts(rng, count, changed), 0.9) < true for _ in range(DRAWS))
    assert broken <= 0.1 * DRAWS


def test_the_bound_of_a_mean_does_not_depend_on_the_order_and_lies_above_the_mean() -> None:
    shares = shares_of_texts(np.random.default_rng(1), 200, 0.05)
    assert mean_at_most(shares, 0.9) == pytest.approx(mean_at_most(shares[::-1], 0.9), abs=1e-6)
    assert shares.mean() < mean_at_most(shares, 0.9) < mean_at_most(shares, 0.99) < 3 * shares.mean()


def test_more_texts_bring_the_bound_nearer_to_the_mean() -> None:
    shares = shares_of_texts(np.random.default_rng(2), 200, 0.05)
    bounds = [mean_at_most(np.tile(shares, times), 0.9) - shares.mean() for times in (1, 4, 16)]
    assert bounds[0] > bounds[1] > bounds[2] > 0


def test_nothing_is_promised_where_everything_changed_or_nothing_is_known() -> None:
    assert mean_at_most(np.ones(50), 0.9) == pytest.approx(1.0, abs=1e-5)
    assert mean_at_most(np.zeros(1), 0.9) > 0.9


@pytest.mark.parametrize("tolerance", [0.005, 0.02, 0.1])
def test_the_least_number_of_texts_is_what_it_takes(tolerance: float) -> None:
    least = least_texts_for_mean(tolerance, 0.9)
    assert mean_at_most(np.zeros(least), 0.9) <= tolerance + 2e-6
    assert mean_at_most(np.zeros(least - 1), 0.9) > tolerance


def losses_of_texts(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What the losses of each text's 1 to 40 tokens rise by together, skewed, and the number of tokens."""
    tokens = rng.integers(1, 41, count)
    return tokens * 0.02 * rng.gamma(0.7, 2.0, count) - 0.01 * tokens, tokens


@pytest.mark.parametrize("count", [FEWEST_TEXTS, 1000])
def test_the_bound_of_a_ratio_is_kept_about_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(3)
    amounts, tokens = losses_of_texts(rng, 500_000)
    true = amounts.sum() / tokens.sum()
    broken = sum(ratio_at_most(*losses_of_texts(rng, count), 0.9) < true for _ in range(DRAWS))
    assert 0.05 * DRAWS < broken < 0.15 * DRAWS


def test_about_so_many_texts_as_are_said_to_be_needed_are_enough() -> None:
    rng = np.random.default_rng(4)
    shares, (amounts, tokens) = shares_of_texts(rng, 1000, 0.05), losses_of_texts(rng, 1000)
    needed, of_losses = texts_for_mean(shares, 0.06, 0.9), texts_for_ratio(amounts, tokens, 0.025, 0.9)
    assert needed is not None
    assert of_losses is not None
    held = sum(mean_at_most(shares_of_texts(rng, needed, 0.05), 0.9) <= 0.06 for _ in range(DRAWS))
    kept = sum(ratio_at_most(*losses_of_texts(rng, of_losses), 0.9) <= 0.025 for _ in range(DRAWS))
    assert held > 0.5 * DRAWS
    assert kept > 0.6 * DRAWS


def test_no_number_of_texts_promises_less_than_what_was_lost() -> None:
    assert texts_for_mean(np.full(10, 0.2), 0.1, 0.9) is None
    assert texts_for_ratio(np.full(10, 2.0), np.full(10, 10), 0.1, 0.9) is None
