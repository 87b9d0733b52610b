"""Lossy values: a shift from the base is stored as a sign and one of a few evenly spaced sizes.

There are ``2**(bits - 1)`` sizes, and size ``j`` is ``low + j * step``. `low` and `step` are float64, one pair for each
tensor. `low` is the size of the tensor's smallest shift (selection by magnitude leaves none near zero). The largest
size is chosen so that the squared error is smallest; the few shifts that are far larger are cut down to it. With one
bit only the sign is stored, and the single size is the mean, which makes the squared error smallest (as in BitDelta,
Liu et al. 2024, arXiv 2402.10193).

The error of a shift, before its value is rounded to the weights' dtype, is at most ``step / 2``. For a shift larger
than the largest size it is the excess over that size; with one bit, the distance from the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ken_core.bits import Bits, as_bits, from_bits

Codes = npt.NDArray[np.uint8]
"""The sign in the lowest bit, the size's number above it."""

_TRIED_TOPS = (1.0, 0.8, 0.6, 0.45, 0.35, 0.25, 0.18, 0.12)
"""Candidates for the largest size, as its place between the smallest shift (0) and the largest (1)."""
_HISTOGRAM_BINS = 4096


@dataclass(frozen=True)
class Levels:
    """The sizes a tensor's shifts may have: `low`, and `step` between one and the next."""

    low: float
    step: float


def quantise(values: Bits, base: Bits, dtype: torch.dtype, bits: int) -> tuple[Codes, Levels]:
    """Codes of `bits` bits (1 to 8), and their levels, for fine-tuned values and the base's at the same positions."""
    shifts = _wide(values, dtype) - _wide(base, dtype)
    sizes = np.abs(shifts)
    levels = _levels(sizes, 1 << (bits - 1))
    numbers = np.zeros(sizes.size)
    if levels.step > 0:
        numbers = np.clip(np.rint((sizes - levels.low) / levels.step), 0, (1 << (bits - 1)) - 1)
    codes = (numbers.astype(np.uint8) << np.uint8(1)) | np.signbit(shifts).astype(np.uint8)
    return codes, levels


def restore(codes: Codes, levels: Levels, base: Bits, dtype: torch.dtype) -> Bits:
    """The bits of base plus shift, rounded once to `dtype` and kept finite."""
    sizes = levels.low + (codes >> 1) * levels.step
    limit = torch.finfo(dtype).max
    with np.errstate(over="ignore"):
        wide = _wide(base, dtype) + np.where(codes & 1, -sizes, sizes)
    return as_bits(torch.from_numpy(np.clip(wide, -limit, limit)).to(dtype))


def pack_codes(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 1, 4 or 8 bits side by side, the first in the lowest bits."""
    if bits == 8:
        return codes
    if bits == 1:
        return np.packbits(codes, bitorder="little")
    pairs = np.zeros(-(-codes.size // 2) * 2, np.uint8)
    pairs[: codes.size] = codes
    return pairs[0::2] | (pairs[1::2] << np.uint8(4))


def unpack_codes(packed: npt.NDArray[np.uint8], count: int, bits: int) -> Codes:
    """The inverse of `pack_codes`, shape (count,)."""
    if bits == 8:
        return packed
    if bits == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]


def _levels(sizes: npt.NDArray[np.float64], count: int) -> Levels:
    if sizes.size == 0:
        return Levels(0.0, 0.0)
    if count == 1:
        return Levels(float(sizes.mean()), 0.0)
    low, high = float(sizes.min()), float(sizes.max())
    if low == high:
        return Levels(low, 0.0)
    span = high - low
    occurrences, edges = np.histogram((sizes - low) / span, _HISTOGRAM_BINS, (0.0, 1.0))
    middles = (edges[:-1] + edges[1:]) / 2

    def squared_error(step: float) -> float:
        nearest = step * np.clip(np.rint(middles / step), 0, count - 1)
        return float(((middles - nearest) ** 2) @ occurrences)

    best = min((top / (count - 1) for top in _TRIED_TOPS), key=squared_error)
    return Levels(low, best * span)


def _wide(bits: Bits, dtype: torch.dtype) -> npt.NDArray[np.float64]:
    wide: npt.NDArray[np.float64] = from_bits(bits, dtype).double().numpy()
    return wide
