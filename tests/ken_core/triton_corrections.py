"""The Triton corrections in Triton's interpreter, in the process of `triton_interpreter`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from triton_interpreter import _process

from ken_core.bits import Bits, as_bits, from_bits
from ken_core.kernels import Packed
from ken_core.kernels.correction import Correction, Groups, Shift, Tokens, _shift

Plain = tuple[Bits, torch.dtype, tuple[int, ...]]


def _groups(slices: Sequence[slice]) -> Groups:
    from ken_core.kernels import correction_reference

    return correction_reference.groups(slices)


def _tokens(x: torch.Tensor, groups: Groups) -> Tokens:
    return Tokens(x, groups, torch.empty(0))


def _linear(out: torch.Tensor, tokens: Tokens, weights: torch.Tensor, shifts: Sequence[Shift | None]) -> None:
    _submit("linear", out, tokens.x, tokens.groups, weights, shifts)


def _conv1d(out: torch.Tensor, tokens: Tokens, weights: torch.Tensor, shifts: Sequence[Shift | None]) -> None:
    _submit("conv1d", out, tokens.x, tokens.groups, weights, shifts)


def _embedding(
    out: torch.Tensor, ids: torch.Tensor, groups: Groups, weights: torch.Tensor, shifts: Sequence[Shift | None]
) -> None:
    _submit("embedding", out, ids, groups, weights, shifts)


CORRECTION = Correction(_groups, _tokens, _linear, _conv1d, _embedding)
"""`ken_core.kernels.correction_cuda` on CPU tensors."""


def _submit(
    name: str,
    out: torch.Tensor,
    given: torch.Tensor,
    groups: Groups,
    weights: torch.Tensor,
    shifts: Sequence[Shift | None],
) -> None:
    sent = [None if s is None else _sent(s) for s in shifts]
    tensors = [_plain(t) for t in (out, given, weights)]
    out.copy_(_tensor(_process().submit(_compute, name, tensors, groups.slices, sent).result()))


def _sent(shift: Shift) -> tuple[object, ...]:
    packed = shift.packed
    parts = [_plain(t) for t in (packed.words, packed.values, packed.chunks)]
    return parts, shift.start, shift.shape, shift.block, None if shift.bias is None else _plain(shift.bias)


def _plain(tensor: torch.Tensor) -> Plain:
    return as_bits(tensor), tensor.dtype, tuple(tensor.shape)


def _tensor(plain: Plain) -> torch.Tensor:
    bits, dtype, shape = plain
    return from_bits(bits.copy(), dtype).view(shape)


def _compute(name: str, tensors: list[Plain], slices: tuple[slice, ...], sent: list) -> Plain:
    from ken_core.kernels.correction_cuda import CORRECTION as interpreted

    out, given, weights = (_tensor(t) for t in tensors)
    shifts = [
        None
        if s is None
        else _shift(Packed(*(_tensor(t) for t in s[0])), *s[1:4], None if s[4] is None else _tensor(s[4]))
        for s in sent
    ]
    groups = interpreted.groups(slices)
    if name == "embedding":
        interpreted.embedding(out, given, groups, weights, shifts)
    else:
        getattr(interpreted, name)(out, interpreted.tokens(given, groups), weights, shifts)
    return _plain(out)
