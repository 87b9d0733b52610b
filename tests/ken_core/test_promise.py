"""The bound against enumeration, and the whole decision simulated: how often a promise is broken."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, log

import numpy as np
import pytest

from ken_core.promise import Paired, examples_needed, holds, in_sequence, least_examples, upper_bound

CONFIDENCE, TOLERANCE, EXAMPLES, RESAMPLES = 0.9, 0.02, 400, 2000
SLACK = 3 * (0.9 * 0.1 / RESAMPLES) ** 0.5
"""Three standard deviations of a share of 0.1 among the resamples: 0.0201."""


def promised_share(examples: int, lost: float, won: float, tolerance: float, confidence: float) -> float:
    """The probability that a sample promises the tolerance, added up over all samples."""
    total = 0.0
    for more in range(examples + 1):
        for less in range(examples + 1 - more):
            if holds(Paired(more, less, examples), tolerance, confidence):
                ways = comb(examples, more) * comb(examples - more, less)
                total += ways * lost**more * won**less * (1 - lost - won) ** (examples - more - less)
    return total


@pytest.mark.parametrize(("tolerance", "confidence"), [(0.05, 0.9), (0.1, 0.9), (0.1, 0.6), (0.2, 0.99)])
@pytest.mark.parametrize("examples", [1, 12, 45])
def test_a_loss_above_the_tolerance_is_promised_no_more_often_than_allowed(examples, tolerance, confidence):
    loss = tolerance + 1e-9
    for won in (0.0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.35, (1 - loss) / 2):
        assert promised_share(examples, loss + won, won, tolerance, confidence) <= 1 - confidence


def test_the_promise_is_made_about_as_often_as_allowed_where_examples_are_many():
    rng = np.random.default_rng(0)
    lost, won = rng.multinomial(2000, [0.03, 0.01, 0.96], 4000)[:, :2].T
    made = [holds(Paired(int(a), int(b), 2000), 0.02, 0.9) for a, b in zip(lost, won, strict=True)]
    assert 0.08 < np.mean(made) <= 0.1 + 3 * (0.09 / 4000) ** 0.5


def test_the_bound_is_the_least_tolerance_that_can_be_promised():
    for found in (Paired(0, 0, 60), Paired(3, 1, 400), Paired(40, 20, 1000), Paired(2, 9, 150)):
        bound = upper_bound(found, 0.9)
        assert bound > found.loss
        if bound > 0:
            assert holds(found, bound + 1e-5, 0.9)
            assert not holds(found, bound - 1e-5, 0.9)


@pytest.mark.parametrize(("lost", "examples"), [(0, 100), (1, 388), (2, 531), (5, 1000)])
def test_where_nothing_was_won_the_bound_is_nearly_that_of_clopper_and_pearson(lost, examples):
    bound = upper_bound(Paired(lost, 0, examples), 0.9)
    up_to = sum(comb(examples, k) * bound**k * (1 - bound) ** (examples - k) for k in range(lost + 1))
    assert up_to == pytest.approx(0.1, rel=0.02)
    assert up_to <= 0.1


def test_more_lost_answers_raise_the_bound_and_more_won_ones_lower_it():
    by_lost = [upper_bound(Paired(lost, 3, 500), 0.9) for lost in (0, 3, 6, 12, 24)]
    by_won = [upper_bound(Paired(6, won, 500), 0.9) for won in (0, 3, 6, 12, 24)]
    assert by_lost == sorted(by_lost)
    assert by_won == sorted(by_won, reverse=True)
    assert by_won[-1] < 0


def test_extreme_samples_have_bounds():
    assert upper_bound(Paired(7, 0, 7), 0.9) == 1.0
    assert upper_bound(Paired(0, 1, 1), 0.9) == pytest.approx(0.8, abs=0.01)
    assert upper_bound(Paired(0, 100, 100), 0.9) < -0.9


@pytest.mark.parametrize(("tolerance", "confidence", "least"), [(0.005, 0.9, 460), (0.01, 0.9, 230), (0.01, 0.95, 299)])
def test_the_least_examples_are_those_by_which_identical_answers_are_enough(tolerance, confidence, least):
    assert least_examples(tolerance, confidence) == least == int(-(-log(1 - confidence) // log(1 - tolerance)))
    assert holds(Paired(0, 0, least), tolerance, confidence)
    assert not holds(Paired(0, 0, least - 1), tolerance, confidence)


@pytest.mark.parametrize("found", [Paired(1, 0, 230), Paired(3, 1, 400), Paired(2, 2, 300)])
def test_as_many_examples_as_needed_make_the_promise_four_times_in_five(found):
    needed = examples_needed(found, 0.01, 0.9)
    assert needed is not None
    rng = np.random.default_rng(1)
    shares = [found.lost / found.examples, found.won / found.examples]
    drawn = rng.multinomial(needed, [*shares, 1 - sum(shares)], 2000)
    made = [holds(Paired(int(a), int(b), needed), 0.01, 0.9) for a, b, _ in drawn]
    assert np.mean(made) == pytest.approx(0.82, abs=0.05)


def test_no_number_of_examples_helps_where_more_is_lost_than_the_tolerance():
    assert examples_needed(Paired(4, 0, 400), 0.01, 0.9) is None
    assert examples_needed(Paired(0, 0, 10), 0.01, 0.9) == 230
    assert (examples_needed(Paired(39, 0, 4000), 0.01, 0.9) or 0) > 100_000


def test_looks_end_with_the_first_that_fails():
    looks = iter([1, 2, 9, 3, 4])
    assert in_sequence(looks, lambda look: look < 5) == ([1, 2], 9)
    assert list(looks) == [3, 4]
    assert in_sequence([1, 2], lambda look: True) == ([1, 2], None)


# The decision, simulated. Candidates go from the largest to the smallest; each has the share of examples that it loses
# and the share that it wins. An example's outcomes are nested (what a larger delta loses, a smaller one loses too) or
# independent of each other.

JUST_ABOVE = TOLERANCE + 1e-6
POPULATIONS: dict[str, list[tuple[float, float]]] = {
    "all just above": [(JUST_ABOVE, 0.0)] * 6,
    "all just above, much won": [(JUST_ABOVE + 0.08, 0.08)] * 6,
    "the last just above": [(0.004 * k, 0.001 * k) for k in range(5)] + [(JUST_ABOVE + 0.01, 0.01)],
    "the third just above": [(0.0, 0.0), (0.01, 0.005), (JUST_ABOVE + 0.003, 0.003), (0.05, 0.01), (0.1, 0.03)],
    "a larger one worse than a smaller one": [(0.0, 0.0), (JUST_ABOVE + 0.01, 0.01), (0.01, 0.0), (JUST_ABOVE, 0.0)],
}


def outcomes(population: Sequence[tuple[float, float]], examples: int, nested: bool, seed: int) -> np.ndarray:
    """Counts of lost and won examples, shape (resamples, candidates, 2)."""
    rng = np.random.default_rng(seed)
    found = np.empty((RESAMPLES, len(population), 2), np.int64)
    for run in range(RESAMPLES):
        chance = rng.random((1 if nested else len(population), examples))
        for k, (lost, won) in enumerate(population):
            own = chance[0 if nested else k]
            found[run, k] = (own < lost).sum(), (own > 1 - won).sum()
    return found


def passed(counts: np.ndarray, examples: int = EXAMPLES) -> int:
    """How many candidates of one resample are promised, the largest first."""
    looks = [Paired(int(lost), int(won), examples) for lost, won in counts]
    return len(in_sequence(looks, lambda look: holds(look, TOLERANCE, CONFIDENCE))[0])


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_promise_is_broken_no_more_often_than_it_says(name, nested):
    population = POPULATIONS[name]
    broken = [
        any(lost - won > TOLERANCE for lost, won in population[: passed(counts)])
        for counts in outcomes(population, EXAMPLES, nested, seed=3)
    ]
    assert np.mean(broken) <= 1 - CONFIDENCE + SLACK


def test_candidates_that_lose_nothing_are_promised_down_to_the_smallest():
    assert all(passed(counts) == 6 for counts in outcomes([(0.0, 0.0)] * 6, EXAMPLES, True, seed=4)[:100])


def test_looking_upwards_until_something_passes_would_break_the_promise():
    """Shows that the simulation finds a procedure that errs: the same looks, the smallest first."""
    drawn = outcomes(POPULATIONS["all just above"], EXAMPLES, False, seed=3)
    broken = [any(holds(Paired(int(a), int(b), EXAMPLES), TOLERANCE, CONFIDENCE) for a, b in run) for run in drawn]
    assert np.mean(broken) > 0.2


@pytest.mark.parametrize("same_part", [False, True])
def test_choosing_on_other_examples_keeps_the_promise_and_choosing_on_the_same_breaks_it(same_part):
    population = POPULATIONS["all just above, much won"]
    judged = outcomes(population, EXAMPLES, False, seed=5)
    chosen_by = judged if same_part else outcomes(population, EXAMPLES // 4, False, seed=6)
    best = (chosen_by[..., 0] - chosen_by[..., 1]).argmin(axis=1)
    broken = np.mean([passed(counts[[k]]) == 1 for counts, k in zip(judged, best, strict=True)])
    assert (broken <= 1 - CONFIDENCE + SLACK) != same_part


def test_parts_with_equal_shares_of_each_label_keep_the_promise():
    """Labels differ in what is lost of them; a fifth of each is put aside, and the rest judges."""
    rng = np.random.default_rng(7)
    shares, losses = np.array([0.1, 0.3, 0.6]), np.array([0.12, 0.02, 0.00334])
    assert shares @ losses > TOLERANCE
    broken = []
    for sizes in rng.multinomial(500, shares, RESAMPLES):
        judging = sizes - np.round(sizes / 5).astype(int)
        lost = int(rng.binomial(judging, losses).sum())
        broken.append(holds(Paired(lost, 0, int(judging.sum())), TOLERANCE, CONFIDENCE))
    assert np.mean(broken) <= 1 - CONFIDENCE + SLACK
