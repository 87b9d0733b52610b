"""Singular values of what fine-tuning added to a matrix, and the factors of its largest components.

A shift cut off after its r largest singular values is the nearest matrix of rank r (Eckart and Young 1936). Both
checkpoints are read in blocks. The values come from the Gram matrix of the shift's narrow side, in float64. Where that
side is long, only the largest values are sought, by subspace iteration (Halko et al. 2011, arXiv 0909.4061).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ken_core.blocks import BLOCK_ELEMENTS

Pair = tuple[torch.Tensor, torch.Tensor]
"""A base matrix and its fine-tuned counterpart: same dtype, same shape, floating point, CPU."""
Doubles = npt.NDArray[np.float64]

_LONG = 2048
"""A narrow side longer than this would take minutes and hundreds of megabytes to decompose whole."""
_SOUGHT = 512
"""Singular values sought of such a matrix."""
_ITERATIONS = 3


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a shift of shape (long, narrow), or of its transpose where rows are fewer than columns.

    Attributes:
        values: shape (n,), the largest first.
        vectors: shape (narrow, n), float32; the direction of each value on the narrow side.
        energies: shape (long,), the sum of squares of each row of the shift.
    """

    values: Doubles
    vectors: npt.NDArray[np.float32]
    energies: Doubles

    @property
    def energy(self) -> float:
        """The sum of squares of all elements of the shift, and so of all its singular values."""
        return float(self.energies.sum())


def spectrum(pair: Pair) -> Spectrum:
    """Decompose the shift of a matrix."""
    narrow = min(pair[0].shape)
    energies = np.concatenate([(block**2).sum(axis=1) for block in _blocks(pair)])
    if narrow <= _LONG:
        squares, vectors = np.linalg.eigh(sum(block.T @ block for block in _blocks(pair)))
    else:
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((narrow, _SOUGHT)))[0]
        for _ in range(_ITERATIONS):
            basis = np.linalg.qr(sum(block.T @ (block @ basis) for block in _blocks(pair)))[0]
        squares, inside = np.linalg.eigh(sum(seen.T @ seen for seen in (block @ basis for block in _blocks(pair))))
        vectors = basis @ inside
    return Spectrum(np.sqrt(np.maximum(squares[::-1], 0.0)), vectors[:, ::-1].astype(np.float32), energies)


def factors(pair: Pair, found: Spectrum, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `rank` largest components of a shift, as two float32 factors. A component is equally long in both.

    Returns:
        `a` (rank, columns) and `b` (rows, rank); the shift is nearly `b @ a`.
    """
    roots = np.sqrt(np.maximum(found.values[:rank], np.finfo(np.float32).tiny))
    directions = found.vectors[:, :rank].astype(np.float64)
    far = np.concatenate([block @ directions for block in _blocks(pair)]) / roots
    near = directions * roots
    rows, columns = pair[0].shape
    b, a = (far, near) if rows >= columns else (near, far)
    return _single(a.T), _single(b)


def _blocks(pair: Pair) -> Iterator[Doubles]:
    """The shift with its longer side first, in blocks of that side."""
    base, tuned = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T for matrix in pair)
    step = max(1, BLOCK_ELEMENTS // base.shape[1])
    for first in range(0, len(base), step):
        part = slice(first, first + step)
        yield (tuned[part].double() - base[part].double()).numpy()


def _single(matrix: Doubles) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix, np.float32))
