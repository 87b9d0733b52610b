"""How many positions two deltas both keep, beside how many they would by chance.

By chance means: each delta keeps as many elements of every tensor as it does, at random positions in it. Preferences
for the same tensors, which deltas of one budget share anyway, are so part of what is expected; what lies above it is
agreement about positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Packed = npt.NDArray[np.uint8]
"""A mask as `ken_core.bits.pack_mask` packs it."""


@dataclass(frozen=True)
class Overlap:
    """Counts of elements, of one tensor or summed over several; overlaps of different tensors add up."""

    first: int = 0
    second: int = 0
    both: int = 0
    both_by_chance: float = 0.0

    @property
    def jaccard(self) -> float:
        """Kept in both / kept in either, 0 to 1; NaN where neither keeps anything."""
        return _share(self.both, self.first + self.second - self.both)

    @property
    def jaccard_by_chance(self) -> float:
        """Expected number kept in both / number then kept in either."""
        return _share(self.both_by_chance, self.first + self.second - self.both_by_chance)

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.first + other.first,
            self.second + other.second,
            self.both + other.both,
            self.both_by_chance + other.both_by_chance,
        )


def overlap(first: Packed | None, second: Packed | None, elements: int) -> Overlap:
    """The overlap of two packed masks of one tensor of so many elements; None: nothing of it is kept.

    k1 and k2 elements at random among n have k1 k2 / n in common on average (the mean of the hypergeometric
    distribution).
    """
    ours, theirs = _count(first), _count(second)
    both = 0 if first is None or second is None else _count(first & second)
    return Overlap(ours, theirs, both, ours * theirs / elements if elements else 0.0)


def _count(packed: Packed | None) -> int:
    return 0 if packed is None else int(np.bitwise_count(packed).sum(dtype=np.int64))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
