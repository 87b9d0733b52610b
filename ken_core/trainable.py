"""A delta's own numbers as parameters of a training loop, in the form in which its file will hold them.

Each step works with the numbers as the file rounds them, and gradients pass the rounding as if there were none (the
straight-through estimator, Bengio et al. 2013, arXiv 1308.3432). A number is the one it started from plus a move in
units of its neighbours' size, so that one learning rate suits factors and single values alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from ken_core.bits import Bits, as_bits, from_bits
from ken_core.codings import CODE_BITS, Codec, FactorCodec
from ken_core.entries import LowRank, Sparse
from ken_core.factor_codec import rounded_components
from ken_core.quantise import quantise, restore


class _Numbers:
    """Numbers that are trained.

    Args:
        start: float32, of any shape.
        size: broadcastable to it; a move of 1 changes a number by so much.
        stored: what the file makes of such numbers.
    """

    def __init__(self, start: torch.Tensor, size: torch.Tensor, stored: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._start, self._size, self._stored = start, size, stored
        self.moves = torch.zeros_like(start).requires_grad_()

    def as_stored(self) -> torch.Tensor:
        exact = self._start + self._size * self.moves
        return exact + (self._stored(exact.detach()) - exact).detach()

    @torch.no_grad()
    def exact(self) -> torch.Tensor:
        return self._start + self._size * self.moves


class TrainableFactors:
    """A low-rank shift of a matrix; both factors are trained."""

    def __init__(self, base: torch.Tensor, entry: LowRank, codec: FactorCodec) -> None:
        self._base, self._entry = base.float(), entry
        a, b = entry.a.float(), entry.b.float()
        self._a = _Numbers(a, _size(a, 1), lambda a: _stored_components(a, entry.a.dtype, codec))
        self._b = _Numbers(b, _size(b, 0), lambda b: _stored_components(b.T, entry.b.dtype, codec).T)

    def parameters(self) -> Iterator[torch.Tensor]:
        """What an optimiser changes."""
        yield from (self._a.moves, self._b.moves)

    def weight(self) -> torch.Tensor:
        """The shifted matrix, float32."""
        return torch.addmm(self._base, self._b.as_stored(), self._a.as_stored(), alpha=self._entry.scale)

    def entry(self) -> LowRank:
        """The shift with its numbers as they are now, before the file rounds them."""
        dtype = self._entry.a.dtype
        return replace(self._entry, a=self._a.exact().to(dtype), b=self._b.exact().to(dtype))


class TrainableValues:
    """Kept elements of a tensor; their shifts from the base are trained."""

    def __init__(self, base: torch.Tensor, entry: Sparse, codec: Codec) -> None:
        self._base, self._entry, self._bits = base.float(), entry, CODE_BITS.get(codec)
        self._places = torch.from_numpy(np.flatnonzero(entry.mask))
        self._ours = base.reshape(-1)[self._places]
        shift = from_bits(entry.values, entry.dtype).float() - self._ours.float()
        self._shift = _Numbers(shift, _size(shift), self._stored)

    def parameters(self) -> Iterator[torch.Tensor]:
        """What an optimiser changes."""
        yield self._shift.moves

    def weight(self) -> torch.Tensor:
        """The tensor with its kept elements shifted, float32."""
        flat = self._base.reshape(-1).index_add(0, self._places, self._shift.as_stored())
        return flat.reshape(self._base.shape)

    def entry(self) -> Sparse:
        """The kept elements as they are now, before the file rounds them."""
        return replace(self._entry, values=self._values(self._shift.exact()))

    def _values(self, shift: torch.Tensor) -> Bits:
        return as_bits((self._ours.double() + shift.double()).to(self._entry.dtype))

    def _stored(self, shift: torch.Tensor) -> torch.Tensor:
        values, dtype = self._values(shift), self._entry.dtype
        if self._bits is not None:
            ours = as_bits(self._ours)
            values = restore(*quantise(values, ours, dtype, self._bits), ours, dtype)
        return from_bits(values, dtype).float() - self._ours.float()


def _size(numbers: torch.Tensor, along: int | None = None) -> torch.Tensor:
    """The root mean square of all numbers, or of each component along an axis."""
    return numbers.square().mean(dim=along, keepdim=along is not None).sqrt()


def _stored_components(components: torch.Tensor, dtype: torch.dtype, codec: FactorCodec) -> torch.Tensor:
    if codec not in CODE_BITS:
        return components.to(dtype).float()
    return torch.from_numpy(rounded_components(components.numpy(), CODE_BITS[codec]))
