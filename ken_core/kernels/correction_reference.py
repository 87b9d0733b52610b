"""Corrections in plain torch, on any device and in any floating dtype: what the fast kernels are tested against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ken_core.kernels.correction import Correction, Groups, Shift, Tokens
from ken_core.kernels.packed import WORD_BITS


def groups(slices: Sequence[slice]) -> Groups:
    """The slices alone."""
    return Groups(tuple(slices), np.empty((0, 4), np.int64), np.zeros(len(slices) + 1, np.int64), 0)


def tokens(x: torch.Tensor, groups: Groups) -> Tokens:
    """x as it is."""
    return Tokens(x, groups, torch.empty(0))


def linear(out: torch.Tensor, tokens: Tokens, weights: torch.Tensor, shifts: Sequence[Shift | None]) -> None:
    for rows, shift in _touched(tokens.groups, shifts):
        _add(out[rows], tokens.x[rows].float() @ dense(shift, weights).T, shift.bias)


def conv1d(out: torch.Tensor, tokens: Tokens, weights: torch.Tensor, shifts: Sequence[Shift | None]) -> None:
    for rows, shift in _touched(tokens.groups, shifts):
        _add(out[rows], tokens.x[rows].float() @ dense(shift, weights), shift.bias)


def embedding(
    out: torch.Tensor, ids: torch.Tensor, groups: Groups, weights: torch.Tensor, shifts: Sequence[Shift | None]
) -> None:
    for rows, shift in _touched(groups, shifts):
        _add(out[rows], dense(shift, weights)[ids[rows]], None)


def dense(shift: Shift, weights: torch.Tensor) -> torch.Tensor:
    """The shift D of a matrix in full: float32, of the weight's shape."""
    size = shift.shape[0] * shift.shape[1]
    found = torch.zeros(size, device=weights.device)
    if int(shift.offsets[-1]):
        words = shift.packed.words[shift.word : shift.word + -(-size // WORD_BITS)]
        bit = torch.arange(WORD_BITS, device=words.device)
        positions = ((words[:, None] >> bit) & 1).reshape(-1).nonzero().reshape(-1)
        values = shift.packed.values[shift.value : shift.value + positions.numel()]
        found[positions] = values.float() - weights[shift.start + positions].float()
    return found.view(shift.shape)


def _touched(groups: Groups, shifts: Sequence[Shift | None]) -> Iterator[tuple[slice, Shift]]:
    for rows, shift in zip(groups.slices, shifts, strict=True):
        if shift is not None:
            yield rows, shift


def _add(out: torch.Tensor, correction: torch.Tensor, bias: torch.Tensor | None) -> None:
    out.copy_(out.float() + (correction if bias is None else correction + bias))


CORRECTION = Correction(groups, tokens, linear, conv1d, embedding)
