"""What batches and switches cost, learned online from how long they took. Pure: seconds in, seconds out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_MEMORY = 0.05
"""Weight of a new batch: the last 20 count most."""
_SWITCH_MEMORY = 0.2
_RIDGE = 0.01
"""How soon sizes that hardly differ stop telling the fixed part from the part per token."""
_STALL = 4.0
"""A measurement counts as at most this many times the expected seconds: a stall is not what a batch costs."""
_PRODUCTS, _GROUPS, _TRUST = 1e8, 8.0, 4.0
"""A usual mixed batch, and how many of them what is assumed at the start counts for."""
_LEAST = 1e-6
"""Seconds; no cost is learned to be nothing, from which it could not grow again."""


@dataclass
class BatchCost:
    """Seconds of a batch: a fixed part, and a part for each of its tokens, padding included.

    A batch costs `fixed + token * padded tokens`, fitted by least squares over recent batches: running moments, a slope
    that stays what it was as far as sizes do not vary, and an intercept through the means. Both parts are never
    negative, and together they give the mean batch its mean time.
    """

    # What MiniLM-L6 takes on 2 cores.
    fixed: float = 0.005
    token: float = 0.00013

    def __post_init__(self) -> None:
        self._seen = 0
        self._size = 256.0
        self._seconds = self.of(self._size)
        self._variance = self._covariance = 0.0

    @property
    def usual(self) -> float:
        """Seconds of a recent batch, on average."""
        return self._seconds

    def of(self, padded: float) -> float:
        """Seconds that a batch of so many tokens is expected to take."""
        return self.fixed + self.token * padded

    def learn(self, padded: int, seconds: float) -> None:
        """Take in what a batch of so many tokens took."""
        padded = max(padded, 1)
        self._seen += 1
        weight = max(_MEMORY, 1 / (1 + self._seen))
        longer = min(seconds, _STALL * self.of(padded)) - self._seconds
        larger = padded - self._size
        self._size += weight * larger
        self._seconds += weight * longer
        self._variance = (1 - weight) * (self._variance + weight * larger * larger)
        self._covariance = (1 - weight) * (self._covariance + weight * larger * longer)
        ridge = _RIDGE * self._size * self._size
        slope = (self._covariance + ridge * self.token) / (self._variance + ridge)
        self.token = min(max(slope, 0.0), self._seconds / self._size)
        self.fixed = max(self._seconds - self.token * self._size, _LEAST)


@dataclass
class SwitchCost:
    """Seconds that the weights take to go from one task to another, and how many batches need that."""

    # What MiniLM-L6 takes on 2 cores.
    seconds: float = 0.005
    share: float = field(default=0.0, init=False)
    """Of recent batches: how many came with a switch."""

    @property
    def a_batch(self) -> float:
        """Seconds of switching that one more batch costs, on average."""
        return self.share * self.seconds

    def note(self, switched: bool) -> None:
        """Take in whether a batch came with a switch."""
        self.share += _MEMORY * (switched - self.share)

    def learn(self, seconds: float) -> None:
        """Take in what a switch took."""
        self.seconds += _SWITCH_MEMORY * (min(seconds, _STALL * self.seconds) - self.seconds)
        self.seconds = max(self.seconds, _LEAST)


@dataclass
class MixedCost:
    """Seconds that a mixed batch takes beside its base's pass: for each multiplication of a correction, and each group.

    Fitted by least squares over recent batches, whose weight fades, and never negative.
    """

    # What a packed delta takes on 2 cores.
    product: float = 6e-11
    group: float = 0.0005

    def __post_init__(self) -> None:
        self._squares = np.diag([_TRUST * _PRODUCTS**2, _TRUST * _GROUPS**2])
        self._sums = self._squares @ (self.product, self.group)

    def of(self, products: float, groups: int) -> float:
        """Seconds of so many multiplications and groups."""
        return self.product * products + self.group * groups

    def learn(self, products: float, groups: int, seconds: float) -> None:
        """Take in how much longer a mixed batch took than its base's pass alone."""
        seen = np.array([products, groups], float)
        seconds = min(max(seconds, 0.0), _STALL * max(self.of(products, groups), _LEAST))
        # what a batch has nothing of, it says nothing about: that is not forgotten
        kept = np.where(seen > 0, 1 - _MEMORY, 1.0)
        self._squares = self._squares * np.sqrt(np.outer(kept, kept)) + np.outer(seen, seen)
        self._sums = self._sums * kept + seen * seconds
        ridge = np.diag(np.diag(self._squares)) * _RIDGE
        known = np.array([self.product, self.group])
        self.product, self.group = np.maximum(
            np.linalg.solve(self._squares + ridge, self._sums + ridge @ known), 0.0
        ).tolist()
