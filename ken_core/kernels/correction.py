"""Batches that mix tasks: the base's result for all rows, corrected for each task by its packed delta.

The arena holds the base's weights W. A Linear computes ``x W^T + b`` for every token row of a batch at once. For the
rows of one task a correction then adds ``x D^T``, where D is the task's *shift* of W: tuned value minus base value at
the kept elements, 0 elsewhere. D is never stored: its kept elements are taken from the packed delta and from the arena
while the product is computed. The difference is taken in float32, and so are the sums.

How hooks use this module. `shifts[i]` is what the delta of a batch's group i does to the module's weight, made once by
`linear_shift`, `conv1d_shift` or `embedding_shift` when the delta is attached; None where the delta leaves the module
alone. The groups are contiguous ranges of token rows (batch times sequence, flattened)::

    correction = correction_for(device, dtype)                # compiled when it is returned
    groups = correction.groups([slice(0, 40), slice(40, 56)])   # once a batch

    def after_linear(module, arguments, result):              # a forward hook
        tokens = correction.tokens(arguments[0].flatten(0, -2), groups)  # once an input: q, k and v share it
        correction.linear(result.flatten(0, -2), tokens, arena, shifts)

A bias is corrected by the same call: `linear_shift` takes the bias's shift.

Preconditions that nothing here can check: the arena holds the base, the packed delta holds tuned values (nothing is
exchanged in), neither changes during the call, slices are disjoint. Weights and values must be finite. Nothing is
written but the rows of `slices` whose shift is not None.

The functions keep no state, so several threads may call them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ken_core.kernels.packed import WORD_BITS, Packed

_ROW_BYTES = 7 * 8
"""Of `Shift.row`."""
COLUMN_BLOCK = 256
"""Columns of a Conv1D's weight that share an offset; kernels work on blocks of so many outputs."""


@dataclass(frozen=True)
class Shift:
    """Where one matrix's kept elements lie in a packed delta. The packed delta is referred to, not copied.

    start: the matrix's first element in the arena, a multiple of 64.
    shape: (rows, columns) as the weight is stored.
    block: columns that share an offset.
    word: the matrix's first mask word in `packed.words`; -1 where the delta touches the bias alone.
    value: the matrix's first value in `packed.values`.
    offsets: int32, (rows * blocks a row + 1,), on the arena's device: how many of the matrix's values come before each
        block of columns of each row; the last is how many there are.
    bias: float32, (outputs,), on the arena's device: the shift of the module's bias; None where the delta has none.
    """

    packed: Packed
    start: int
    shape: tuple[int, int]
    block: int
    word: int
    value: int
    offsets: torch.Tensor
    bias: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes beside the packed delta's own."""
        return self.offsets.nbytes + (0 if self.bias is None else self.bias.nbytes) + _ROW_BYTES

    @cached_property
    def kind(self) -> tuple[int, int, torch.dtype]:
        """Rows, columns and dtype of the weight that it shifts."""
        return (*self.shape, self.packed.values.dtype)

    @cached_property
    def row(self) -> npt.NDArray[np.int64]:
        """What a kernel is told: addresses of the matrix's first mask word, value and offset and of the bias (0 where
        there is none), start, rows, columns."""
        words, values = self.packed.words, self.packed.values
        addresses = (
            0 if self.word < 0 else words.data_ptr() + self.word * words.element_size(),
            values.data_ptr() + self.value * values.element_size(),
            self.offsets.data_ptr(),
            0 if self.bias is None else self.bias.data_ptr(),
        )
        return np.array([*addresses, self.start, *self.shape], np.int64)


@dataclass(frozen=True)
class Groups:
    """The groups of one batch; made by `Correction.groups`, once a batch.

    slices: each group's token rows.
    tiles: int64, (tiles, 4): first token row, tokens, width (tokens and padding), width of all tiles before. Empty on
        kernels that cut no tiles.
    first: int64, (groups + 1,): each group's first tile.
    padded: width of all tiles.
    """

    slices: tuple[slice, ...]
    tiles: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    padded: int

    @cached_property
    def end(self) -> int:
        """The row behind the last one of any group."""
        return max((rows.stop for rows in self.slices), default=0)


@dataclass(frozen=True)
class Tokens:
    """A module's input, laid out for corrections; made by `Correction.tokens`, once for all modules with that input.

    x: (tokens, features), the activations.
    columns: float32, (padded * features,), tile behind tile: x of the tile's tokens, transposed. Empty on kernels that
        cut no tiles.
    """

    x: torch.Tensor
    groups: Groups
    columns: torch.Tensor


@dataclass(frozen=True)
class Correction:
    """The corrections of one device and dtype.

    groups(slices): what a batch's groups are, for the other three.
    tokens(x, groups): x is (tokens, features), of a floating dtype.
    linear(out, tokens, weights, shifts): adds ``x D^T`` and the bias's shift to the groups' rows of `out`,
        (tokens, outputs), for weights stored (outputs, features). `weights` is the flat arena.
    conv1d(out, tokens, weights, shifts): adds ``x D``, for weights stored (features, outputs) as GPT-2 does.
    embedding(out, ids, groups, weights, shifts): adds ``D[ids[t]]`` to row t of `out`, (tokens, columns); ids is int64,
        (tokens,).

    `out` has rows of unit stride. Where its dtype is not float32, the sum with the correction is taken in float32 and
    rounded once.
    """

    groups: Callable[[Sequence[slice]], Groups]
    tokens: Callable[[torch.Tensor, Groups], Tokens]
    linear: Callable[[torch.Tensor, Tokens, torch.Tensor, Sequence[Shift | None]], None]
    conv1d: Callable[[torch.Tensor, Tokens, torch.Tensor, Sequence[Shift | None]], None]
    embedding: Callable[[torch.Tensor, torch.Tensor, Groups, torch.Tensor, Sequence[Shift | None]], None]


def linear_shift(packed: Packed, start: int, shape: tuple[int, int], bias: torch.Tensor | None = None) -> Shift | None:
    """What a packed delta does to a Linear's weight, stored (outputs, features) from `start` on in the arena.

    Args:
        bias: float32, (outputs,): the shift of the module's bias.

    Returns:
        None where the delta touches neither weight nor bias.
    """
    return _shift(packed, start, shape, shape[1], bias)


def conv1d_shift(packed: Packed, start: int, shape: tuple[int, int], bias: torch.Tensor | None = None) -> Shift | None:
    """The same for a Conv1D's weight, stored (features, outputs)."""
    return _shift(packed, start, shape, COLUMN_BLOCK, bias)


def embedding_shift(packed: Packed, start: int, shape: tuple[int, int]) -> Shift | None:
    """The same for an embedding's weight, stored (ids, columns). It serves a Linear tied to the embedding as well."""
    return _shift(packed, start, shape, shape[1], None)


def shift_nbytes(shape: Sequence[int], *, conv1d: bool) -> int:
    """Bytes of a matrix's `Shift`, its module's bias apart."""
    blocks = -(-shape[1] // COLUMN_BLOCK) if conv1d else 1
    return 4 * (shape[0] * blocks + 1) + _ROW_BYTES


def check(
    out: torch.Tensor,
    groups: Groups,
    weights: torch.Tensor,
    shifts: Sequence[Shift | None],
    shape: tuple[int | None, int],
) -> None:
    """Raise `ValueError` for what would have a kernel read or write outside of its tensors.

    Args:
        shape: of the module's weight; None where any number will do.
    """
    rows, columns = shape
    if out.stride(1) != 1 and out.shape[1] > 1 and out.shape[0] > 0:
        raise ValueError(f"elements of a row of the result are {out.stride(1)} apart; expected rows in one piece")
    if groups.end > out.shape[0]:
        raise ValueError(f"a group ends at row {groups.end} of {out.shape[0]}")
    for kind in {shift.kind for shift in shifts if shift is not None}:
        if kind[1] != columns or rows not in (None, kind[0]):
            raise ValueError(f"the shift is of a weight of shape {kind[:2]}; expected {shape}")
        if kind[2] != weights.dtype:
            raise ValueError(f"the shift's values are {kind[2]}, the arena is {weights.dtype}")


def _place(packed: Packed, start: int) -> tuple[int, int] | None:
    """First mask word and first value of the tensor that starts at `start` in the arena."""
    chunks = packed.chunks.cpu().numpy()
    rows = np.flatnonzero(chunks[:, 0] == start)
    return (int(chunks[rows[0], 1]), int(chunks[rows[0], 3])) if rows.size else None


def _shift(packed: Packed, start: int, shape: tuple[int, int], block: int, bias: torch.Tensor | None) -> Shift | None:
    device = packed.words.device
    rows, columns = shape
    found = _place(packed, start)
    if found is None and bias is None:
        return None
    word, value = found or (-1, 0)
    if found is None:
        offsets = np.zeros(rows * -(-columns // block) + 1, np.int32)
    else:
        words = packed.words[word : word + -(-rows * columns // WORD_BITS)].cpu().numpy().view(np.uint64)
        offsets = _offsets(words, rows, columns, block)
    return Shift(packed, start, shape, block, word, value, torch.from_numpy(offsets).to(device), bias)


def _offsets(words: np.ndarray, rows: int, columns: int, block: int) -> np.ndarray:
    """How many bits of a matrix's mask are set before each block of columns of each row, and in all of it."""
    before = np.zeros(words.size + 1, np.int64)
    np.cumsum(np.bitwise_count(words), out=before[1:])
    bits = (np.arange(rows)[:, None] * columns + np.arange(0, columns, block)[None, :]).reshape(-1)
    place, rest = bits // WORD_BITS, (bits % WORD_BITS).astype(np.uint64)
    inside = np.bitwise_count(words[place] & ((np.uint64(1) << rest) - np.uint64(1)))
    return np.append(before[place] + inside, before[-1]).astype(np.int32)
