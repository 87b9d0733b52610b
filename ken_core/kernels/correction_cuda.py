"""Corrections on CUDA: Triton, one launch for all groups of a batch.

A program takes a tile of one group's tokens and a block of outputs. It builds D in registers tile by tile, as a dense
block: the mask's bits say which elements are kept, how many bits are set before an element in its row says which value
is the element's. The block then multiplies the tokens on the matrix unit. Programs of different groups that take the
same block of the arena are neighbours in the launch, so that the arena is read from memory about once.

Checked in Triton's interpreter and compiled for sm_80; never timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from ken_core.kernels.correction import (
    COLUMN_BLOCK,
    Correction,
    Groups,
    Shift,
    Tokens,
    check,
    conv1d_shift,
    linear_shift,
)
from ken_core.kernels.packed import Segment, pack

_INTEGER = {2: torch.int16, 4: torch.int32}
_TOKENS = 16
"""Token rows of a tile: the least that a matrix unit takes."""
_ROWS, _COLUMNS, _FEATURES = 64, 64, 16
"""Elements of D that are built at once: (_ROWS, _COLUMNS) of a Linear, (_FEATURES, COLUMN_BLOCK) of a Conv1D."""


def groups(slices: Sequence[slice]) -> Groups:
    """Cut each group's token rows into tiles."""
    tiles: list[tuple[int, int, int, int]] = []
    first = [0]
    for rows in slices:
        for row in range(rows.start, rows.stop, _TOKENS):
            tiles.append((row, min(_TOKENS, rows.stop - row), _TOKENS, len(tiles) * _TOKENS))
        first.append(len(tiles))
    table = np.array(tiles, np.int64).reshape(-1, 4)
    return Groups(tuple(slices), table, np.array(first, np.int64), len(tiles) * _TOKENS)


def tokens(x: torch.Tensor, groups: Groups) -> Tokens:
    """x as it is, rows of unit stride: programs gather their own tokens."""
    return Tokens(x if x.stride(1) == 1 else x.contiguous(), groups, torch.empty(0))


def linear(out: torch.Tensor, tokens: Tokens, weights: torch.Tensor, shifts: Sequence[Shift | None]) -> None:
    outputs, features = out.shape[1], tokens.x.shape[1]
    check(out, tokens.groups, weights, shifts, (outputs, features))
    sizes = {"ROWS": _ROWS, "COLUMNS": _COLUMNS}
    _run(_linear_tile, out, tokens.x, tokens.groups, weights, shifts, triton.cdiv(outputs, _ROWS), features, sizes)


def conv1d(out: torch.Tensor, tokens: Tokens, weights: torch.Tensor, shifts: Sequence[Shift | None]) -> None:
    outputs, features = out.shape[1], tokens.x.shape[1]
    check(out, tokens.groups, weights, shifts, (features, outputs))
    sizes = {"FEATURES": _FEATURES, "COLUMNS": COLUMN_BLOCK}
    blocks = triton.cdiv(outputs, COLUMN_BLOCK)
    _run(_conv1d_tile, out, tokens.x, tokens.groups, weights, shifts, blocks, features, sizes)


def embedding(
    out: torch.Tensor, ids: torch.Tensor, groups: Groups, weights: torch.Tensor, shifts: Sequence[Shift | None]
) -> None:
    check(out, groups, weights, shifts, (None, out.shape[1]))
    _run(_embedding_row, out, ids[:, None], groups, weights, shifts, _TOKENS, 1, {"COLUMNS": _COLUMNS})


def warm(device: torch.device, dtype: torch.dtype) -> None:
    """Compile (or load from Triton's cache) the kernels for an arena's dtype, with activations of that dtype, and wait
    for them, so that no request pays for it."""
    packed = pack([Segment(0, np.ones(1, np.uint8), np.zeros(1, f"u{dtype.itemsize}"))], dtype, device)
    weights, batch = torch.zeros(64, dtype=dtype, device=device), groups([slice(0, 1)])
    out, ids = torch.zeros(1, 1, dtype=dtype, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    given = tokens(torch.zeros(1, 1, dtype=dtype, device=device), batch)
    linear(out, given, weights, [linear_shift(packed, 0, (1, 1))])
    conv1d(out, given, weights, [conv1d_shift(packed, 0, (1, 1))])
    embedding(out, ids, batch, weights, [linear_shift(packed, 0, (1, 1))])
    out.cpu()


def _run(
    kernel: Any,
    out: torch.Tensor,
    given: torch.Tensor,
    groups: Groups,
    weights: torch.Tensor,
    shifts: Sequence[Shift | None],
    blocks: int,
    features: int,
    sizes: dict[str, int],
) -> None:
    """Launch (tiles of the groups that have a shift, blocks) programs."""
    rows = [
        (*groups.tiles[tile, :2], *shift.row[:5])
        for shift, begin, end in zip(shifts, groups.first[:-1], groups.first[1:], strict=True)
        if shift is not None
        for tile in range(begin, end)
    ]
    if not rows:
        return
    table = torch.from_numpy(np.array(rows, np.int64)).to(out.device, non_blocking=True)
    launch: Callable[..., Any] = kernel[(len(rows), blocks)]
    with torch.cuda.device_of(weights):
        launch(
            out,
            given,
            weights.detach().view(_INTEGER[weights.element_size()]),
            table,
            out.stride(0),
            given.stride(0),
            features,
            out.shape[1],
            HALF=weights.dtype == torch.float16,
            # activations of 16 bits have no more digits than tf32, so only D is rounded, finer than the result is
            PRECISION="ieee" if given.dtype == torch.float32 else "tf32",
            TOKENS=_TOKENS,
            **sizes,
            enable_fp_fusion=True,
        )


@triton.jit
def _number(bits, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 of weights given as integers: of 32 bits float32; of 16 float16 where HALF, else bfloat16."""
    if bits.dtype == tl.int32:
        return bits.to(tl.float32, bitcast=True)
    if HALF:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _shift(words, values, weights, rank, bit, inside, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """A dense block of D, and how many of its elements are kept in each row.

    weights: pointer to the matrix's first element; rank: values before each row's part of the block; bit, inside:
    each element's place in the matrix, and whether there is one.
    """
    half = tl.load(words + (bit >> 5), mask=inside, other=0)
    kept = (((half >> (bit & 31).to(tl.int32)) & 1) != 0) & inside
    one = kept.to(tl.int32)
    place = values + (rank[:, None] + tl.cumsum(one, 1) - one)
    tuned = _number(tl.load(place, mask=kept, other=0), HALF)
    return tuned - _number(tl.load(weights + bit, mask=kept, other=0), HALF), tl.sum(one, 1)


@triton.jit
def _row_of(table, tile, weights):  # type: ignore[no-untyped-def]
    """Of a row of the table: first token, tokens, whether the weight is touched, pointers to words, values and offsets,
    the bias's address, a pointer to the weight."""
    row = table + tile * 7
    words = tl.load(row + 2)
    values = tl.load(row + 3).to(weights.dtype)
    offsets = tl.load(row + 4).to(tl.pointer_type(tl.int32))
    bias, weights = tl.load(row + 5), weights + tl.load(row + 6)
    return (
        tl.load(row),
        tl.load(row + 1),
        words != 0,
        words.to(tl.pointer_type(tl.int32)),
        values,
        offsets,
        bias,
        weights,
    )


@triton.jit
def _add(out, stride, token, present, output, outputs, total, bias):  # type: ignore[no-untyped-def]
    """Add (tokens, outputs) and the bias's shift to `out`."""
    if bias != 0:
        total += tl.load(bias.to(tl.pointer_type(tl.float32)) + output, mask=output < outputs, other=0)[None, :]
    place = out + token[:, None] * stride + output[None, :]
    inside = present[:, None] & (output < outputs)[None, :]
    tl.store(place, (tl.load(place, mask=inside, other=0).to(tl.float32) + total).to(out.dtype.element_ty), mask=inside)


_MANY = ["out_stride", "x_stride", "features", "outputs"]


@triton.jit(do_not_specialize=_MANY)
def _linear_tile(  # type: ignore[no-untyped-def]
    out,
    x,
    weights,
    table,
    out_stride,
    x_stride,
    features,
    outputs,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first, count, touched, words, values, offsets, bias, weights = _row_of(table, tl.program_id(0), weights)
    token, present = first + tl.arange(0, TOKENS), tl.arange(0, TOKENS) < count
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    rank = tl.load(offsets + row, mask=row < outputs, other=0)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for begin in range(0, tl.where(touched, features, 0), COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        bit = row.to(tl.int64)[:, None] * features + column[None, :]
        inside = (row < outputs)[:, None] & (column < features)[None, :]
        shift, kept = _shift(words, values, weights, rank, bit, inside, HALF)
        rank += kept
        there = present[:, None] & (column < features)[None, :]
        vectors = tl.load(x + token[:, None] * x_stride + column[None, :], mask=there, other=0).to(tl.float32)
        total = tl.dot(vectors, tl.trans(shift), total, input_precision=PRECISION)
    _add(out, out_stride, token, present, row, outputs, total, bias)


@triton.jit(do_not_specialize=_MANY)
def _conv1d_tile(  # type: ignore[no-untyped-def]
    out,
    x,
    weights,
    table,
    out_stride,
    x_stride,
    features,
    outputs,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first, count, touched, words, values, offsets, bias, weights = _row_of(table, tl.program_id(0), weights)
    token, present = first + tl.arange(0, TOKENS), tl.arange(0, TOKENS) < count
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    blocks = tl.cdiv(outputs, COLUMNS)
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for begin in range(0, tl.where(touched, features, 0), FEATURES):
        row = begin + tl.arange(0, FEATURES)
        rank = tl.load(offsets + row * blocks + tl.program_id(1), mask=row < features, other=0)
        bit = row.to(tl.int64)[:, None] * outputs + column[None, :]
        inside = (row < features)[:, None] & (column < outputs)[None, :]
        shift, _ = _shift(words, values, weights, rank, bit, inside, HALF)
        there = present[:, None] & (row < features)[None, :]
        vectors = tl.load(x + token[:, None] * x_stride + row[None, :], mask=there, other=0).to(tl.float32)
        total = tl.dot(vectors, shift, total, input_precision=PRECISION)
    _add(out, out_stride, token, present, column, outputs, total, bias)


@triton.jit(do_not_specialize=_MANY)
def _embedding_row(  # type: ignore[no-untyped-def]
    out,
    x,
    weights,
    table,
    out_stride,
    x_stride,
    features,
    outputs,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first, count, _, words, values, offsets, _, weights = _row_of(table, tl.program_id(0), weights)
    if tl.program_id(1) < count:
        token = first + tl.program_id(1) + tl.arange(0, 1)
        row = tl.load(x + token * x_stride)
        rank = tl.load(offsets + row)
        for begin in range(0, outputs, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            inside = (column < outputs)[None, :]
            shift, kept = _shift(words, values, weights, rank, row[:, None] * outputs + column[None, :], inside, HALF)
            rank += kept
            _add(out, out_stride, token, token >= 0, column, outputs, shift, 0)


CORRECTION = Correction(groups, tokens, linear, conv1d, embedding)
