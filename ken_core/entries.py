"""What a delta changes in one tensor of its base: kept elements, or a shift of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from ken_core.bits import Bits, Mask, as_bits, from_bits, pack_mask, unpack_mask

_ROUNDING = 1.01
"""A factor that is larger than what rounding can add to a product in float32."""


@dataclass(frozen=True)
class Sparse:
    """Kept elements of one tensor.

    positions: the packed mask (`ken_core.bits.pack_mask`), uint8, one bit per element.
    values: the kept elements' bits, in row order.
    selected: the number of elements that the method chose. Chosen elements that equal the base's are not stored.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    selected: int
    positions: npt.NDArray[np.uint8]
    values: Bits

    @property
    def mask(self) -> Mask:
        """The flat boolean mask over all elements, unpacked at each call."""
        return unpack_mask(self.positions, prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.positions.nbytes + self.values.nbytes


@dataclass(frozen=True)
class LowRank:
    """A shift of a whole matrix, `scale * b @ a`, as an adapter stores it (Hu et al. 2021, LoRA).

    a: shape (rank, columns), on the CPU, of any floating dtype.
    b: shape (rows, rank), of the same dtype.
    bits: of each number in the file, where factors are quantised (`ken_core.factor_codec`); None: they are not.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    bits: int | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix that is shifted."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


def kept(base: torch.Tensor, tuned: torch.Tensor, selected: Mask) -> Sparse:
    """The selected elements of a fine-tuned tensor, without those that equal the base's. Changes `selected`."""
    ours, theirs = as_bits(base), as_bits(tuned)
    count = int(np.count_nonzero(selected))
    np.logical_and(selected, ours != theirs, out=selected)  # in place, because a large tensor's mask is large too
    return Sparse(tuple(base.shape), base.dtype, count, pack_mask(selected), theirs[selected])


def patched(tensor: torch.Tensor, entry: Sparse) -> torch.Tensor:
    """A copy of a base tensor (CPU, stored dtype) with the kept values in place."""
    bits = as_bits(tensor).copy()
    bits[entry.mask] = entry.values
    return from_bits(bits, tensor.dtype).reshape(tensor.shape)


def expanded(tensor: torch.Tensor, entry: LowRank) -> torch.Tensor:
    """A copy of a base matrix (CPU, stored dtype) with the low-rank shift added.

    This is how peft merges an adapter: product and sum in float32 at least, rounded once to the base's dtype.
    """
    wide = torch.promote_types(tensor.dtype, torch.float32)
    shift = (entry.b.to(wide) @ entry.a.to(wide)).mul_(entry.scale)
    return shift.add_(tensor).to(tensor.dtype)


def overflows(tensor: torch.Tensor, entry: LowRank) -> bool:
    """Whether `expanded` could reach infinity, by the norms of the factors and without expanding them.

    No element of a product is larger than the product of the norms of its row and its column (Cauchy-Schwarz).
    """
    wide = torch.promote_types(tensor.dtype, torch.float32)
    rows, columns = (torch.linalg.vector_norm(f.double(), dim=d).max() for f, d in ((entry.b, 1), (entry.a, 0)))
    largest = _ROUNDING * float(rows * columns)
    top = max(abs(float(end)) for end in torch.aminmax(tensor))
    product, total = torch.finfo(wide).max, torch.finfo(tensor.dtype).max
    scale = abs(entry.scale)
    return not (max(largest, scale) < product and largest * scale + top < total)
