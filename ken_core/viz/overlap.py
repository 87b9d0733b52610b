"""The overlap of two deltas: how many positions both keep, beside how many both would keep by chance.

By chance means that each delta keeps as many elements of every tensor as it does now, but at random positions. So the
expected number includes preferences for the same tensors, which deltas of one budget share anyway. What exceeds the
expected number is agreement about positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        """Elements kept in both / elements kept in either, 0 to 1; NaN where neither keeps anything."""
        return _share(self.both, self.first + self.second - self.both)

    @property
    def jaccard_by_chance(self) -> float:
        """Elements expected to be kept in both / elements then kept in either; NaN as for `jaccard`."""
        return _share(self.both_by_chance, self.first + self.second - self.both_by_chance)

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.first + other.first,
            self.second + other.second,
            self.both + other.both,
            self.both_by_chance + other.both_by_chance,
        )


def overlap(first: Packed | None, second: Packed | None, elements: int) -> Overlap:
    """The overlap of two packed masks of one tensor with `elements` elements; None is a mask that keeps nothing.

    k1 and k2 random elements among n have k1 k2 / n in common on average (the mean of the hypergeometric
    distribution).
    """
    return _overlap((first, _count(first)), (second, _count(second)), elements)


def overlaps(masks: Sequence[Packed | None], elements: int) -> Iterator[tuple[int, int, Overlap]]:
    """The overlap of every two of several masks of one tensor, as `overlap`; with their places, the lower one first."""
    counted = [(mask, _count(mask)) for mask in masks]
    for i, first in enumerate(counted):
        for j, second in enumerate(counted[i + 1 :], i + 1):
            yield i, j, _overlap(first, second, elements)


def _overlap(first: tuple[Packed | None, int], second: tuple[Packed | None, int], elements: int) -> Overlap:
    (one, ours), (other, theirs) = first, second
    both = 0 if one is None or other is None else _count(one & other)
    return Overlap(ours, theirs, both, ours * theirs / elements if elements else 0.0)


def _count(packed: Packed | None) -> int:
    return 0 if packed is None else int(np.bitwise_count(packed).sum(dtype=np.int64))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
