"""The exchange in plain torch, for any device. The fast kernels are tested against it."""

from __future__ import annotations

import torch

from ken_core.kernels.packed import WORD_BITS, Packed


def exchange(weights: torch.Tensor, packed: Packed) -> None:
    """Trade `packed.values` with the elements of the flat `weights` at the mask's positions, in place."""
    positions = selected_positions(packed)
    held = weights[positions]
    weights[positions] = packed.values
    packed.values.copy_(held)


def selected_positions(packed: Packed) -> torch.Tensor:
    """The index in the arena of every set bit, in the order of the values; int64, shape (count,)."""
    bit = torch.arange(WORD_BITS, device=packed.words.device)
    parts = []
    for start, word, count, _ in packed.chunks.tolist():
        bits = (packed.words[word : word + count, None] >> bit) & 1
        parts.append(start + bits.reshape(-1).nonzero().reshape(-1))
    return torch.cat(parts)
