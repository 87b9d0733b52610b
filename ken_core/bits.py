"""Bits: tensors viewed as the unsigned integers they are stored in, boolean masks packed as little-endian bits.

Two weights are equal here if their bits are: ``-0.0`` is not ``0.0``, and a NaN equals itself.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Bits = npt.NDArray[np.unsignedinteger]
Mask = npt.NDArray[np.bool_]

_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def as_bits(tensor: torch.Tensor) -> Bits:
    """View a CPU tensor as a flat unsigned integer array of the same item size (a copy only if strided)."""
    flat = tensor.detach().contiguous().view(-1)
    signed: npt.NDArray[np.signedinteger] = flat.view(_SIGNED[flat.element_size()]).numpy()
    return signed.view(_UNSIGNED[flat.element_size()])


def from_bits(bits: Bits, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `as_bits`: a flat tensor of `dtype` over the same memory."""
    signed = torch.from_numpy(bits.view(f"i{bits.itemsize}"))
    return signed.view(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(as_bits(a), as_bits(b))


def pack_mask(mask: Mask) -> npt.NDArray[np.uint8]:
    """Pack a boolean mask of n elements into ceil(n / 8) bytes, first element in the lowest bit."""
    return np.packbits(mask.reshape(-1), bitorder="little")


def unpack_mask(packed: npt.NDArray[np.uint8], numel: int) -> Mask:
    """The inverse of `pack_mask`, shape (numel,)."""
    return np.unpackbits(packed, count=numel, bitorder="little").view(np.bool_)


def take(bits: Bits, packed: npt.NDArray[np.uint8], count: int) -> Bits:
    """The `count` elements of `bits` at a packed mask's positions, in order; the mask is not unpacked."""
    taken = np.empty(count, bits.dtype)
    _take(bits, packed, taken)
    return taken


def _count_trailing_zeros(context: Any, word: Any) -> Any:
    """Index of the lowest set bit: LLVM's cttz, one instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


trailing_zeros: Any = intrinsic(_count_trailing_zeros)
"""In compiled code: index of the lowest set bit of a uint64 that is not 0."""


@numba.njit(cache=True, nogil=True)
def _take(bits, packed, taken):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    found = 0
    for b in range(packed.size):
        byte = np.uint64(packed[b])
        while byte:
            taken[found] = bits[8 * b + np.int64(trailing_zeros(byte))]
            found += 1
            byte &= byte - np.uint64(1)
