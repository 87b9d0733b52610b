"""The survey of one delta before anything is drawn: counts of all tensors, pooled views of some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from ken_core.bits import pack_mask
from ken_core.delta import Delta
from ken_core.entries import LowRank
from ken_core.viz.choice import Shapes
from ken_core.viz.measure import (
    Plane,
    Pooled,
    Sizes,
    Surroundings,
    block_shape,
    plane,
    pool,
    pool_neighbours,
    pool_rows,
    surroundings,
)
from ken_core.viz.overlap import Packed
from ken_core.viz.tally import Tally

SINGLE_MOST = 512
"""The most blocks on each side of a matrix that is drawn on its own: about what a screen shows at once."""
LAYER_MOST = 160
"""The most blocks on the longer side of a matrix drawn beside those of other layers: six fit a screen's width."""
STEEPEST = 2.0
"""The largest ratio of the longer to the shorter side of a drawn matrix; flatter matrices are stretched to it."""


@dataclass(frozen=True)
class View:
    """One matrix as it is drawn; `kept` and `neighbours` are pooled over the same blocks."""

    name: str
    rows: int
    columns: int
    block: tuple[int, int]
    """Rows and columns of elements that one value of `kept` and `neighbours` is the mean of."""
    kept: Pooled
    neighbours: Pooled
    tally: Tally

    @property
    def pooled(self) -> bool:
        """Whether a block holds more than one element."""
        return self.block != (1, 1)


@dataclass(frozen=True)
class Shift:
    """One matrix that a low-rank entry shifts, as it is drawn. The shift changes every element."""

    name: str
    rows: int
    columns: int
    block: tuple[int, int]
    """Rows and columns of elements that one value of `sizes` is the mean of."""
    sizes: Pooled
    """How far the entry shifts an element, without its sign."""
    rank: int

    @property
    def pooled(self) -> bool:
        """Whether a block holds more than one element."""
        return self.block != (1, 1)


@dataclass(frozen=True)
class Survey:
    """What was measured of a delta."""

    tallies: Mapping[str, Tally]
    """The counts of every tensor of the base; a tensor that changes without a mask counts as kept in full."""
    whole: tuple[str, ...]
    """Tensors of the base that change without a mask: a resized embedding, which no view shows, or a low-rank shift."""
    ranks: Mapping[str, int]
    """The ranks of all low-rank shifts, by tensor."""
    single: Mapping[str, View]
    surroundings: Mapping[str, Surroundings]
    """Kept neighbours in the tensors of `single`."""
    layered: Mapping[str, View]
    single_shifts: Mapping[str, Shift]
    """What `single` is for masks."""
    layered_shifts: Mapping[str, Shift]
    packed: Mapping[str, Packed]
    """Masks of the tensors of which anything is kept."""


def survey(delta: Delta, shapes: Shapes, single: list[str], layered: list[str]) -> Survey:
    """Measure a delta, one unpacked mask at a time.

    Args:
        shapes: the shape of every tensor of the base.
        single: names of the matrices that are drawn on their own.
        layered: names of the matrices that are drawn beside those of the same kind in other layers.
    """
    tallies = {name: _tally(delta, name, prod(shape)) for name, shape in shapes.items()}
    large, small, around, packed = {}, {}, {}, {}
    for name, shape in shapes.items():
        drawn, entry = name in single or name in layered, delta.sparse.get(name)
        if _changes_whole(delta, name) or not (drawn or entry):
            continue
        mask = entry.mask if entry else np.zeros(prod(shape), np.bool_)
        packed[name] = pack_mask(mask)
        if not drawn:
            continue
        kept = plane(mask, shape)
        if name in single:
            large[name] = _view(name, kept, (SINGLE_MOST, SINGLE_MOST), tallies[name])
            around[name] = surroundings(kept)
        if name in layered:
            small[name] = _view(name, kept, _small_sides(kept.shape), tallies[name])
    shifted = {name: delta.lowrank[name] for name in shapes if name in delta.lowrank}
    sides = (SINGLE_MOST, SINGLE_MOST)
    return Survey(
        tallies,
        whole=tuple(name for name in shapes if _changes_whole(delta, name)),
        ranks={name: entry.rank for name, entry in shifted.items()},
        single=large,
        surroundings=around,
        layered=small,
        single_shifts={name: _shift(name, entry, sides) for name, entry in shifted.items() if name in single},
        layered_shifts={
            name: _shift(name, entry, _small_sides(entry.shape)) for name, entry in shifted.items() if name in layered
        },
        packed=packed,
    )


def _changes_whole(delta: Delta, name: str) -> bool:
    return name in delta.dense or name in delta.lowrank


def _tally(delta: Delta, name: str, elements: int) -> Tally:
    if _changes_whole(delta, name):
        return Tally(elements, elements)
    entry = delta.sparse.get(name)
    return Tally(entry.values.size if entry else 0, elements)


def _view(name: str, kept: Plane, most: tuple[int, int], counts: Tally) -> View:
    rows, columns = kept.shape
    block = block_shape(rows, columns, most)
    return View(name, rows, columns, block, pool(kept, block), pool_neighbours(kept, block), counts)


def _shift(name: str, entry: LowRank, most: tuple[int, int]) -> Shift:
    rows, columns = entry.shape
    block = block_shape(rows, columns, most)
    a, b = entry.a.float().numpy(), entry.b.float().numpy()

    def sizes(top: int, bottom: int) -> Sizes:
        shifts: Sizes = np.float32(entry.scale) * (b[top:bottom] @ a)
        return np.abs(shifts)

    return Shift(name, rows, columns, block, pool_rows(sizes, (rows, columns), block), entry.rank)


def _small_sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The most blocks down and across, in the matrix's own proportions as far as `STEEPEST` allows."""
    rows, columns = shape
    steepness = min(STEEPEST, max(rows, columns) / max(1, min(rows, columns)))
    shorter = round(LAYER_MOST / steepness)
    return (LAYER_MOST, shorter) if rows >= columns else (shorter, LAYER_MOST)
