"""The exchange on CUDA: Triton, one launch for all tensors of an arena.

Each program processes one chunk. A warp takes a half word, and each of its lanes takes one element. So only the 32-byte
sectors with a kept element are read and written. The population of the bits before an element gives the place of its
value. Elements move as integers, so no bit of a NaN or of -0.0 can change.

A launch is asynchronous, in order with the other work of the current stream. A forward pass that follows on the same
stream sees the exchanged weights. A host clock around the call does not measure the exchange.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from ken_core.kernels.packed import Packed, Segment, pack

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_TILE = 64
_WARPS = 8
"""Half words (32 elements each) per pass, and warps. 8 elements per thread take 80 registers on sm_90, 16 take 178."""


def exchange(weights: torch.Tensor, packed: Packed) -> None:
    """Trade `packed.values` with the elements of the flat `weights` at the mask's positions, on their device."""
    with torch.cuda.device_of(weights):
        _exchange_chunks[(packed.chunks.shape[0],)](
            _as_integers(weights),
            packed.words.view(torch.int32),
            _as_integers(packed.values),
            packed.chunks,
            TILE=_TILE,
            num_warps=_WARPS,
            enable_fp_fusion=False,  # there is nothing to fuse; leaving it open warns
        )


def warm(device: torch.device, dtype: torch.dtype) -> None:
    """Compile the kernel for `dtype`, or load it from Triton's cache, and wait, so that no request waits for that."""
    segment = Segment(0, np.ones(1, np.uint8), np.zeros(1, f"u{dtype.itemsize}"))
    weights = torch.zeros(64, dtype=dtype, device=device)
    exchange(weights, pack([segment], dtype, device))
    weights.cpu()


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(_INTEGER[tensor.element_size()])


# A variant per alignment is of no use: offsets come from the table, so no access is wider than an element.
@triton.jit(do_not_specialize_on_alignment=["weights", "words", "values", "chunks"])
def _exchange_chunks(weights, words, values, chunks, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = chunks + tl.program_id(0).to(tl.int64) * 4
    position, word, count, value = tl.load(row), tl.load(row + 1), tl.load(row + 2).to(tl.int32), tl.load(row + 3)
    element = tl.arange(0, TILE)[:, None] * 32 + tl.arange(0, 32)[None, :]
    for first in range(0, count * 2, TILE):
        half = first + tl.arange(0, TILE)
        bits = tl.load(words + word * 2 + half, mask=half < count * 2, other=0).to(tl.uint32, bitcast=True)
        population = _population(bits)
        kept = _kept(bits)
        place = weights + position + first * 32 + element
        held = values + value + (tl.cumsum(population, 0) - population)[:, None] + _rank(bits)
        leaving, entering = tl.load(place, mask=kept), tl.load(held, mask=kept)
        tl.store(place, entering, mask=kept)
        tl.store(held, leaving, mask=kept)
        value += tl.sum(population, 0)


@triton.jit
def _kept(bits):  # type: ignore[no-untyped-def]
    return ((bits[:, None] >> tl.arange(0, 32)[None, :].to(tl.uint32)) & 1) != 0


@triton.jit
def _rank(bits):  # type: ignore[no-untyped-def]
    below = (tl.full((32,), 1, tl.uint32) << tl.arange(0, 32).to(tl.uint32)) - 1
    return _population(bits[:, None] & below[None, :])


@triton.jit
def _population(x):  # type: ignore[no-untyped-def]
    # written out, because Triton's interpreter has no such operation; LLVM makes one instruction of it
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)
