"""The shifts of several deltas in one tensor, merged in blocks of elements.

Sums are made in float64 and rounded once to the base's dtype. Where one part alone takes part, with a factor of 1, the
merge has that part's own bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ken_core import scores
from ken_core.bits import Bits, Mask, as_bits, from_bits, pack_mask, unpack_mask
from ken_core.blocks import BLOCK_ELEMENTS, Workers, is_finite
from ken_core.consensus import Doubles, coefficients
from ken_core.entries import Sparse
from ken_core.errors import MergeError
from ken_core.fingerprint import dtype_name
from ken_core.merge_recipe import MergeRecipe

_BLOCK_BYTES = BLOCK_ELEMENTS // 8
"""Of a packed mask, for one block."""


@dataclass(frozen=True)
class Shift:
    """What one part changes in a tensor.

    stream: names the random numbers by which elements are dropped; another part or tensor has others.
    """

    entry: Sparse
    weight: float
    stream: str


def merge_shifts(
    name: str, ours: torch.Tensor, shifts: Sequence[Shift], recipe: MergeRecipe, in_order: Workers
) -> Sparse:
    """The merge of shifts in one tensor.

    Args:
        name: the tensor's name, for messages.
        ours: the base's tensor, of a floating dtype.
        in_order: blocks are merged on its threads.

    Raises:
        MergeError: an element of the merge is no finite number of the tensor's dtype.
    """
    blocks = _Blocks(as_bits(ours), ours.dtype, shifts, recipe)
    made = list(in_order(blocks.merged, range(blocks.count)))
    values = np.concatenate([block.values for block in made])
    check_finite(name, from_bits(values, ours.dtype))
    positions = np.concatenate([block.positions for block in made])
    return Sparse(tuple(ours.shape), ours.dtype, sum(block.selected for block in made), positions, values)


def check_finite(name: str, values: torch.Tensor) -> None:
    """Raise `MergeError` if merged values of a tensor are not finite."""
    if not is_finite(values):
        raise MergeError(
            f"the merged values of {name!r} are too large for {dtype_name(values.dtype)}; give smaller weights, or a "
            "density nearer to 1"
        )


@dataclass(frozen=True)
class _Block:
    """A block of a `Sparse`."""

    positions: npt.NDArray[np.uint8]
    values: Bits
    selected: int


class _Blocks:
    """A tensor and the shifts in it, seen as flat blocks of `BLOCK_ELEMENTS`."""

    def __init__(self, ours: Bits, dtype: torch.dtype, shifts: Sequence[Shift], recipe: MergeRecipe) -> None:
        self._ours, self._dtype, self._shifts, self._recipe = ours, dtype, shifts, recipe
        self._weights = np.array([shift.weight for shift in shifts])
        self._starts = [_starts(shift.entry) for shift in shifts]
        self.count = -(-ours.size // BLOCK_ELEMENTS)

    def merged(self, number: int) -> _Block:
        ours = self._ours[number * BLOCK_ELEMENTS :][:BLOCK_ELEMENTS]
        found = [self._changes(i, number, ours.size) for i in range(len(self._shifts))]
        places = np.flatnonzero(np.logical_or.reduce([mask for mask, _ in found]))
        base = ours[places]
        changed = np.stack([mask[places] for mask, _ in found])
        tuned = np.tile(base, (len(found), 1))
        for row, mask, (_, values) in zip(tuned, changed, found, strict=True):
            row[mask] = values
        bits, chosen = self._sum(base, tuned, changed)
        differing = chosen & (bits != base)
        mask = np.zeros(ours.size, np.bool_)
        mask[places[differing]] = True
        return _Block(pack_mask(mask), bits[differing], int(np.count_nonzero(chosen)))

    def _changes(self, part: int, number: int, size: int) -> tuple[Mask, Bits]:
        """The elements of a block that a part changes, and their bits in its model."""
        shift, starts = self._shifts[part], self._starts[part]
        mask = unpack_mask(shift.entry.positions[number * _BLOCK_BYTES :][:_BLOCK_BYTES], size)
        values = shift.entry.values[starts[number] : starts[number + 1]]
        if not self._recipe.drops:
            return mask, values
        kept = _kept(shift.stream, self._recipe, number * BLOCK_ELEMENTS, size)
        return mask & kept, values[kept[mask]]

    def _sum(self, base: Bits, tuned: Bits, changed: Mask) -> tuple[Bits, Mask]:
        """The merge's bits at some elements, and at which of them any part takes part.

        Args:
            base: shape (elements,).
            tuned: each part's own bits, shape (parts, elements).
            changed: where they are not the base's.
        """
        wide = _wide(base, self._dtype)
        shifts = _wide(tuned, self._dtype) - wide
        factors = coefficients(shifts, changed, self._weights, self._recipe)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = wide + (factors * shifts).sum(axis=0)
        bits = as_bits(torch.from_numpy(sums).to(self._dtype))
        taking = factors != 0
        alone = np.count_nonzero(taking, axis=0) == 1
        for row, factor in zip(tuned, factors, strict=True):
            np.copyto(bits, row, where=alone & (factor == 1))
        return bits, taking.any(axis=0)


def _starts(entry: Sparse) -> npt.NDArray[np.int64]:
    """The place among the values of each block's first, and the number of values at the end."""
    ends = np.add.reduceat(
        np.bitwise_count(entry.positions), np.arange(0, entry.positions.size, _BLOCK_BYTES), dtype=np.int64
    )
    return np.concatenate([[0], np.cumsum(ends)])


def _kept(stream: str, recipe: MergeRecipe, start: int, size: int) -> Mask:
    """The elements that are not dropped: each with the density's probability, whatever the others are."""
    keys = scores.random(stream, recipe.seed, start, (1, size))[0]
    kept: Mask = keys < np.uint64(recipe.density * 2.0**scores.KEY_BITS)
    return kept


def _wide(bits: Bits, dtype: torch.dtype) -> Doubles:
    """Exactly, as float64."""
    wide: Doubles = from_bits(bits.reshape(-1), dtype).double().numpy().reshape(bits.shape)
    return wide
