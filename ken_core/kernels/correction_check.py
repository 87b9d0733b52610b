"""Whether a device's corrections give what the reference gives, tried once on a small batch before they are used.

Fast kernels are compiled for the machine that they run on, which no test has seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ken_core.bits import as_bits, pack_mask
from ken_core.kernels.correction import Correction, Shift, conv1d_shift, embedding_shift, linear_shift
from ken_core.kernels.packed import Packed, Segment, pack

_SHAPE = (70, 130)
"""Of the matrix: neither side is a multiple of what kernels work on at once."""
_START = 64
_GROUPS = (slice(0, 1), slice(1, 9), slice(9, 50))
"""Rows of tokens; the second group is left alone."""
_TOKENS = _GROUPS[-1].stop
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 2e-3}
"""Allowed difference, as a share of the largest number."""


def agrees(correction: Correction, reference: Correction, device: torch.device, dtype: torch.dtype) -> bool:
    """Compare the corrections of all layers on one random matrix with a tenth of it kept.

    Args:
        dtype: of the arena.
    """
    rng = np.random.default_rng(0)
    rows, columns = _SHAPE
    arena = _random(rng, (_START + rows * columns + 64,)).to(device, dtype)
    packed = [_packed(rng, device, dtype) for _ in range(2)]
    bias = _random(rng, (rows,)).to(device)
    made: dict[str, Callable[[Packed], Shift | None]] = {
        "linear": lambda kept: linear_shift(kept, _START, _SHAPE, bias),
        "conv1d": lambda kept: conv1d_shift(kept, _START, _SHAPE),
        "embedding": lambda kept: embedding_shift(kept, _START, _SHAPE),
    }
    given = {
        "linear": _random(rng, (_TOKENS, columns)).to(device, dtype),
        "conv1d": _random(rng, (_TOKENS, rows)).to(device, dtype),
        "embedding": torch.from_numpy(rng.integers(0, rows, _TOKENS)).to(device),
    }
    for layer, shift_of in made.items():
        shifts = [shift_of(kept) for kept in packed]
        before = _random(rng, (_TOKENS, rows if layer == "linear" else columns)).to(device, dtype)
        ours, theirs = (_corrected(way, layer, before, given[layer], arena, shifts) for way in (correction, reference))
        difference = float((ours - theirs).abs().max())
        if not difference <= _ROUNDING[dtype] * float(theirs.abs().max()):  # NaN is not at most anything
            return False
    return True


def _corrected(
    way: Correction,
    layer: str,
    before: torch.Tensor,
    given: torch.Tensor,
    arena: torch.Tensor,
    shifts: list[Shift | None],
) -> torch.Tensor:
    out, groups = before.clone(), way.groups(_GROUPS)
    by_group = [shifts[0], None, shifts[1]]
    if layer == "embedding":
        way.embedding(out, given, groups, arena, by_group)
    elif layer == "linear":
        way.linear(out, way.tokens(given, groups), arena, by_group)
    else:
        way.conv1d(out, way.tokens(given, groups), arena, by_group)
    return out.float()


def _packed(rng: np.random.Generator, device: torch.device, dtype: torch.dtype) -> Packed:
    mask = rng.random(_SHAPE) < 0.1
    values = _random(rng, (int(mask.sum()),)).to(dtype)
    return pack([Segment(_START, pack_mask(mask), as_bits(values))], dtype, device)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
