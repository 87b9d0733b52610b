"""Measuring one mask: the kept fraction of blocks, and how many neighbours of an element are kept. And the mean of
blocks of any other plane.

A mask is seen as a plane of rows and columns. A 1-D tensor is one row; in tensors of higher rank the last axis is the
columns, and all other axes are the rows. Large planes are pooled: every element counts in the mean of its block, none
is left out. The functions work on bands of rows, so that besides the mask only small arrays are held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ken_core.bits import Mask

Plane = npt.NDArray[np.bool_]
Pooled = npt.NDArray[np.float32]
Counts = npt.NDArray[np.uint8]
Sizes = npt.NDArray[np.float32]
Rows = Callable[[int, int], "Plane | Counts | Sizes"]
"""``rows(top, bottom)``: the values of the rows from `top` to before `bottom`."""

_BAND_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Surroundings:
    """Kept neighbours of the kept elements: is what is kept scattered or does it cluster?"""

    mean: float
    """Mean number of kept neighbours of a kept element, 0 to 4; NaN where nothing is kept."""
    by_chance: float
    """The value of `mean` that is expected if as many elements were kept at random positions."""


def plane_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of the plane as which a tensor of this shape is seen."""
    return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def plane(mask: Mask, shape: tuple[int, ...]) -> Plane:
    """A flat mask as its plane; a view, no copy."""
    return mask.reshape(plane_shape(shape))


def block_shape(rows: int, columns: int, most: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) of blocks that divides a plane into at most `most` (rows, columns) of blocks."""
    return max(1, -(-rows // most[0])), max(1, -(-columns // most[1]))


def pool(kept: Plane, block: tuple[int, int]) -> Pooled:
    """The kept fraction of each block of (height, width) elements: float32, 0 to 1; the last blocks may be smaller."""
    return _pool(lambda top, bottom: kept[top:bottom], kept.shape, block)


def pool_rows(rows: Rows, shape: tuple[int, int], block: tuple[int, int]) -> Pooled:
    """The mean of each block of a plane that is never held as a whole: float32, blocks as in `pool`."""
    return _pool(rows, shape, block)


def pool_neighbours(kept: Plane, block: tuple[int, int]) -> Pooled:
    """The mean of `neighbour_counts` in each block: float32, 0 to 4; blocks as in `pool`."""
    return _pool(lambda top, bottom: neighbour_counts(kept, top, bottom), kept.shape, block)


def neighbour_counts(kept: Plane, top: int = 0, bottom: int | None = None) -> Counts:
    """For each element, whether kept or not, how many of the elements above, below, left and right of it are kept.

    Outside the matrix nothing is kept, so the count is at most 2 at a corner and at most 3 at an edge.

    Args:
        top: first row to count for.
        bottom: row to stop before; None: count to the last row.

    Returns:
        uint8, 0 to 4, shape (bottom - top, columns).
    """
    bottom = kept.shape[0] if bottom is None else bottom
    band = kept[top:bottom].view(np.uint8)
    counts = np.zeros(band.shape, np.uint8)
    counts[:, 1:] += band[:, :-1]
    counts[:, :-1] += band[:, 1:]
    above = kept[max(top - 1, 0) : bottom - 1].view(np.uint8)
    below = kept[top + 1 : bottom + 1].view(np.uint8)
    counts[len(counts) - len(above) :] += above
    counts[: len(below)] += below
    return counts


def surroundings(kept: Plane) -> Surroundings:
    """The mean number of kept neighbours of kept elements, as found and as expected at random positions."""
    rows, columns = kept.shape
    step = max(1, _BAND_ELEMENTS // max(1, columns))
    around = count = 0
    for top in range(0, rows, step):
        band = kept[top : top + step]
        around += int(neighbour_counts(kept, top, min(top + step, rows))[band].sum(dtype=np.int64))
        count += int(np.count_nonzero(band))
    if count == 0:
        return Surroundings(float("nan"), float("nan"))
    pairs = rows * (columns - 1) + (rows - 1) * columns
    others_kept = (count - 1) / max(1, kept.size - 1)
    return Surroundings(around / count, 2 * pairs / kept.size * others_kept)


def _pool(rows: Rows, shape: tuple[int, ...], block: tuple[int, int]) -> Pooled:
    height, width = block
    tops, lefts = range(0, shape[0], height), np.arange(0, shape[1], width)
    widths = np.diff(lefts, append=shape[1])
    pooled = np.empty((len(tops), lefts.size), np.float32)
    for i, top in enumerate(tops):
        band = rows(top, min(top + height, shape[0]))
        exact = np.float64 if band.dtype == np.float32 else np.int64
        pooled[i] = np.add.reduceat(band.sum(axis=0, dtype=exact), lefts) / (band.shape[0] * widths)
    return pooled
