"""What can be promised about a loss, from paired answers to a sample of examples. Pure.

Two models answer the same examples. An example is lost if only the first model answers it right, and won if only the
second does. The loss is the difference of the two shares in all text that the examples were drawn from. It is bounded
from above as Buehler (1957, JASA 52:482-493) does for any ordering of samples: a sample's bound is the largest loss
with which a sample at least as favourable still has the probability 1 - confidence. Lloyd and Moldovan (2007,
Statistics in Medicine 26:3369-3384) use it for paired answers. Nothing is approximated by a normal distribution, so the
bound holds for any number of examples and of lost ones. The examples must be drawn independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TypeVar

import numba
import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Look = TypeVar("Look")

_MANY = 5000
_GRID = 96
_SLACK = 1.001
"""Probabilities are multiplied by this. On grids ten times as fine their largest value was at most 0.0006 higher."""
_ENOUGH = 1e-6


@dataclass(frozen=True)
class Paired:
    """How many of `examples` only the first model answered right (`lost`), and only the second (`won`)."""

    lost: int
    won: int
    examples: int

    @property
    def loss(self) -> float:
        """The share of right answers that the second model has less in this sample."""
        return (self.lost - self.won) / self.examples

    @classmethod
    def of(cls, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Paired:
        """Counted from whether each model answered each example right, both of shape (examples,)."""
        return cls(int((first & ~second).sum()), int((second & ~first).sum()), first.size)


def holds(found: Paired, tolerance: float, confidence: float) -> bool:
    """Whether the loss can be promised to be at most `tolerance`.

    If the true loss is larger, this is true of at most a share 1 - confidence of all samples.

    Args:
        tolerance: above 0 and below 1.
        confidence: at least 0.5 and below 1.
    """
    return _order(found.lost, found.won, confidence) <= _last_that_holds(found.examples, tolerance, confidence)


def upper_bound(found: Paired, confidence: float) -> float:
    """The least loss that is not exceeded with this confidence, from -1 to 1. It is negative where much was won."""
    order = _order(found.lost, found.won, confidence)
    possible, excluded = -1.0, 1.0
    if found.lost == found.examples:
        return excluded
    while excluded - possible > _ENOUGH:
        middle = (possible + excluded) / 2
        if _most_likely(order, found.examples, middle, confidence) > 1 - confidence:
            possible = middle
        else:
            excluded = middle
    return excluded


@cache
def least_examples(tolerance: float, confidence: float) -> int:
    """How many examples it takes to promise `tolerance` if every one of them is answered alike."""
    count = math.ceil(math.log(1 - confidence) / math.log1p(-tolerance))
    while not holds(Paired(0, 0, count), tolerance, confidence):
        count += 1
    return count


def examples_needed(found: Paired, tolerance: float, confidence: float, power: float = 0.8) -> int | None:
    """About how many examples make the promise succeed with probability `power`, if the shares found are the true ones.

    Above 5,000 examples it is the number by the normal distribution, which then is near; up to there the exact test's.

    Returns:
        None: the loss found is not below the tolerance, so that no number of examples is likely to help.
    """
    if found.loss >= tolerance:
        return None
    differing = (found.lost + found.won) / found.examples
    deviations = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    count = math.ceil(differing * (deviations / (tolerance - found.loss)) ** 2)
    if count > _MANY:
        return count
    count = max(count, least_examples(tolerance, confidence))
    while count <= _MANY and _chance(found, count, tolerance, confidence) < power:
        count = math.ceil(1.05 * count)
    return count


def in_sequence(looks: Iterable[Look], passes: Callable[[Look], bool]) -> tuple[list[Look], Look | None]:
    """Test one look after another, and stop at the first that fails.

    This is the fixed-sequence procedure (Westfall and Krishen 2001, Journal of Statistical Planning and Inference
    99:25-40); its order must not depend on the examples that `passes` judges by. A broken promise among those that pass
    requires that the first look whose promise is untrue has passed; which look that is was settled before any example
    was seen, and its own test errs with at most 1 - confidence. So all promises together are kept with `confidence`,
    however many looks there are and however they depend on each other.

    Returns:
        The looks that passed, and the one that failed, if any. Looks after it are not taken from the iterable.
    """
    passed: list[Look] = []
    for look in looks:
        if not passes(look):
            return passed, look
        passed.append(look)
    return passed, None


def _order(lost: float, won: float, confidence: float) -> float:
    """A sample's place among all samples of a size; less is more favourable.

    It is the upper limit of the loss, as a count, by a score interval for rare events. It rises with `lost` and falls
    with `won`. So samples as favourable as a given one become less likely as the loss grows; bounds can be bisected.
    """
    z = NormalDist().inv_cdf(confidence)
    return lost - won + z * math.sqrt(lost + won + z * z / 4)


def _most_likely(order: float, examples: int, loss: float, confidence: float) -> float:
    """The highest probability of samples up to a place in the order, over all shares that differ by `loss`."""
    won = _shares_won(examples, loss)
    return _SLACK * float(_probabilities(order, examples, won + loss, won, confidence).max())


def _shares_won(examples: int, loss: float) -> Doubles:
    """Shares of won examples that can go with a loss: dense where few examples differ, and where few are alike."""
    near = np.geomspace(0.02 / examples, 0.5, _GRID)
    least, most = max(0.0, -loss), (1 - loss) / 2
    return least + (most - least) * np.concatenate([[0.0], near, 1 - near, [1.0]])


@cache
def _last_that_holds(examples: int, tolerance: float, confidence: float) -> float:
    """The least favourable place in the order, to a millionth, with which the tolerance can be promised."""
    promised, too_far = -float(examples), float(examples)
    while too_far - promised > _ENOUGH:
        middle = (promised + too_far) / 2
        if _most_likely(middle, examples, tolerance, confidence) <= 1 - confidence:
            promised = middle
        else:
            too_far = middle
    return promised


def _chance(found: Paired, examples: int, tolerance: float, confidence: float) -> float:
    """The probability that so many examples promise the tolerance, if the shares found are the true ones."""
    last = _last_that_holds(examples, tolerance, confidence)
    lost, won = (np.array([count / found.examples]) for count in (found.lost, found.won))
    return float(_probabilities(last, examples, lost, won, confidence)[0])


def _probabilities(order: float, examples: int, lost: Doubles, won: Doubles, confidence: float) -> Doubles:
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, examples + 1)))])
    return np.asarray(_up_to(order, NormalDist().inv_cdf(confidence), examples, np.abs(lost), won, logs))


@numba.njit(cache=True, nogil=True)
def _up_to(order, z, examples, lost, won, log_factorials):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Probability of all samples whose `_order` is at most this one, for each pair of shares; float64, shape (pairs,).

    Summed over the number m of examples that differ, ten standard deviations around its mean; the rest is counted as
    if it was favourable. Of m examples, as many as `most` may be lost; the probability of that is carried from m to
    m + 1, where `most` grows by 0 or 1.
    """
    found = np.empty(lost.size)
    for i in range(lost.size):
        differing = min(lost[i] + won[i], 1.0)
        among = lost[i] / differing if differing > 0 else 0.0
        around = 10 * math.sqrt(examples * differing * (1 - differing)) + 30
        start = max(0, int(examples * differing - around))
        most = _most_lost(order, start, z)
        at_most = _binomial_up_to(start, most, among, log_factorials)
        total, rest = 0.0, 1.0
        for m in range(start, min(examples, int(examples * differing + around)) + 1):
            if m > start:
                at_most -= among * _binomial(m - 1, most, among, log_factorials)
                grown = _most_lost(order, m, z)
                if grown > most:
                    at_most += _binomial(m, grown, among, log_factorials)
                most = grown
            weight = _binomial(examples, m, differing, log_factorials)
            total += weight * min(max(at_most, 0.0), 1.0)
            rest -= weight
        found[i] = total + max(rest, 0.0)
    return found


@numba.njit(cache=True, nogil=True)
def _most_lost(order, m, z):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """How many of m examples that differ may be lost; below 0 if not even none."""
    return math.floor((order + m - z * math.sqrt(m + z * z / 4)) / 2 + 1e-9)


@numba.njit(cache=True, nogil=True)
def _binomial_up_to(n, k, share, log_factorials):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The probability of at most k successes in n trials."""
    total = 0.0
    for successes in range(min(k, n) + 1):
        total += _binomial(n, successes, share, log_factorials)
    return total


@numba.njit(cache=True, nogil=True)
def _binomial(n, k, share, log_factorials):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The probability of exactly k successes in n trials."""
    if k < 0 or k > n:
        return 0.0
    if share <= 0.0 or share >= 1.0:
        return 1.0 if k == (0 if share <= 0.0 else n) else 0.0
    among = log_factorials[n] - log_factorials[k] - log_factorials[n - k]
    return math.exp(among + k * math.log(share) + (n - k) * math.log1p(-share))
