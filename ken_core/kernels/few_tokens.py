"""Linear layers for the few tokens of a decode step, each token with its own task's weights: float32, AVX-512.

A matrix row is read from memory once for all tasks. For the tokens of one task, 16 columns of the row become 16 columns
of the task's row in a register: where the mask has a bit, the next of the packed delta's values takes the base's place
(``vexpandps``). So the product is that of the tuned weights themselves, and costs no second pass over the base's as a
correction does (`ken_core.kernels.correction`). Tokens without a delta take the row as it is.

MKL takes the product of a few tokens for one of large matrices and packs the weights first; this kernel reads them as
fast as memory gives them, for which it asks some lines ahead. A fifth of SmolLM2's layers on one core of an
AMD EPYC, 8 tokens, in two hours of one machine: MKL 16 and 18 ms, this kernel 7 and 12, with four tasks of two tokens
each 15 and 19 (10 % kept). One token, and from 16 on, MKL is as fast or faster there. On an Intel Xeon with AMX MKL has
no such fault, and which is faster depends on how threads wait: `ken_core.decoding.few_rows` has the figures.

The intrinsic stands in this file because numba's cache does not notice a change in another one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ken_core.bits import as_bits, pack_mask
from ken_core.kernels.correction import Shift, linear_shift
from ken_core.kernels.cpu import threading_is_safe
from ken_core.kernels.packed import WORD_BITS, Segment, pack

_log = logging.getLogger(__name__)

MOST = 12
"""Tokens up to which it is faster than MKL's product of large matrices, where MKL takes that for few tokens."""
MOST_MIXED = 32
"""Tokens up to which it is faster than correcting such a product for each task."""
_ALONE = 400_000
"""Weights of a matrix up to which one thread multiplies it, without shifts: waking the others takes as long."""
_WIDEST = 8
"""Tokens of a tile: their sums stay in registers."""
_LANES = 16
_LINE, _AHEAD = 64, 4096
"""Bytes of a cache line, and how far ahead of their use weights are asked for."""


@dataclass(frozen=True)
class Tiles:
    """Tokens in tiles, each with a task's shift of one matrix.

    Attributes:
        table: (tiles, 5): first token, tokens, and of the shift the addresses of its first mask word, value and offset;
            or 0.
        tokens: of all tiles, one behind the other.
        plain: whether none of them has a shift.
    """

    table: npt.NDArray[np.int64]
    tokens: int
    plain: bool


@cache
def is_usable() -> bool:
    """Whether this processor has the instructions, threads may run the kernel, and it gives what torch gives."""
    if not llvmlite.binding.get_host_cpu_features().get("avx512f") or not threading_is_safe():
        return False
    threads = torch.get_num_threads()
    try:
        usable = _agrees()
    finally:
        torch.set_num_threads(threads)  # starting numba's OpenMP pool changes torch's number
    if not usable:
        _log.warning("the kernel for few tokens is not used, since it does not give what torch gives here")
    return usable


def takes(weight: torch.Tensor) -> bool:
    """Whether the kernel multiplies with a matrix: float32 on the CPU, in one piece, rows of whole mask words."""
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.float32
        and weight.is_contiguous()
        and weight.shape[1] % WORD_BITS == 0
    )


def tiles_of(groups: Sequence[tuple[slice, Shift | None]]) -> Tiles:
    """Cut groups of tokens into tiles.

    Args:
        groups: each group's tokens, and the shift of the matrix that is theirs (`linear_shift` or `embedding_shift`);
            None: the base's own. The shifts must outlive the tiles.

    Raises:
        ValueError: the groups do not stand one behind the other, from the first token on.
    """
    found: list[tuple[int, ...]] = []
    end = 0
    for tokens, shift in groups:
        if tokens.start != end:
            raise ValueError(f"a group begins with token {tokens.start}; expected {end}, the one behind the last group")
        end = tokens.stop
        kept = (0, 0, 0) if shift is None or shift.word < 0 else shift.row[:3].tolist()
        firsts = range(tokens.start, tokens.stop, _WIDEST)
        found += [(first, min(_WIDEST, tokens.stop - first), *kept) for first in firsts]
    table = np.array(found, np.int64).reshape(-1, 5)
    return Tiles(table, end, plain=not table[:, 2].any())


@cache
def plain_tiles(tokens: int) -> Tiles:
    """Of so many tokens without a shift."""
    return tiles_of([(slice(0, tokens), None)])


def product(x: torch.Tensor, weight: torch.Tensor, tiles: Tiles) -> torch.Tensor:
    """``x W^T``, where each tile's tokens have a W of their own.

    Args:
        x: float32, (tokens, features), on the CPU.
        weight: the base's, (outputs, features), which the kernel takes.
        tiles: of all tokens.

    Returns:
        float32, (tokens, outputs).

    Raises:
        ValueError: x is no such tensor, or has another number of tokens than the tiles.
    """
    rows, columns = weight.shape
    if x.dim() != 2 or x.shape[1] != columns or x.dtype is not torch.float32:
        raise ValueError(f"found {x.dtype} {list(x.shape)}; expected float32 [tokens, {columns}]")
    if tiles.tokens != x.shape[0]:
        raise ValueError(f"the tiles are of other than {x.shape[0]} tokens")
    given = x.contiguous()
    out = torch.empty(tiles.tokens, rows, dtype=torch.float32)
    where = weight.data_ptr(), rows, columns, given.data_ptr(), tiles.table, out.data_ptr()
    if tiles.plain and weight.numel() <= _ALONE:
        _one_thread(*where)
    else:  # a part for each of torch's threads: numba has as many, and asking it takes 10 us
        _all_threads(*where, torch.get_num_threads())
    return out


def _agrees() -> bool:
    """Compare with torch on one random matrix, for tokens of a task that keeps half of it, and of the base, and for the
    base's alone."""
    rng = np.random.default_rng(0)
    mask = rng.random((9, 2 * WORD_BITS)) < 0.5
    x, weight, tuned = (torch.from_numpy(rng.standard_normal((9, 2 * WORD_BITS), np.float32)) for _ in range(3))
    values = as_bits(tuned[torch.from_numpy(mask)])
    packed = pack([Segment(0, pack_mask(mask), values)], torch.float32, torch.device("cpu"))
    shift = linear_shift(packed, 0, (9, 2 * WORD_BITS))
    found = product(x, weight, tiles_of([(slice(0, 5), shift), (slice(5, 9), None)]))
    own = torch.where(torch.from_numpy(mask), tuned, weight)
    expected = torch.cat([x[:5] @ own.T, x[5:] @ weight.T])
    plain = product(x, weight, plain_tiles(9)) - x @ weight.T
    return bool((found - expected).abs().max() < 1e-4 and plain.abs().max() < 1e-4)


# LLVM IR, written out.

_intrinsic: Any = intrinsic
"""Untyped: mypy would count the typing context among the arguments of a call."""
_FLOAT, _BYTE, _I32, _I64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_VECTOR, _MASK = ir.VectorType(_FLOAT, _LANES), ir.VectorType(ir.IntType(1), _LANES)


def _int64(number: int) -> ir.Constant:
    return ir.Constant(_I64, number)


def _pointer(builder: Any, address: Any, element: Any) -> Any:
    return builder.inttoptr(address, element.as_pointer())


def _call(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    """Call an intrinsic of LLVM. Declared by hand: llvmlite names none of them."""
    declare: Any = cgutils.get_or_insert_function
    return builder.call(declare(builder.module, ir.FunctionType(result, [a.type for a in arguments]), name), arguments)


def _ask_for(builder: Any, address: Any) -> None:
    """Have the processor fetch a word's weights; an address that is not ours does no harm."""
    for line in range(WORD_BITS * 4 // _LINE):
        place = _pointer(builder, builder.add(address, _int64(_LINE * line)), _BYTE)
        told = [ir.Constant(_I32, number) for number in (0, 3, 1)]  # to be read, kept, data
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, *told])


def _own(builder: Any, weights: Any, word: Any, values: Any, quarter: int) -> Any:
    """16 of the base's weights, with a task's own values where its mask word has a bit."""
    part = builder.trunc(builder.lshr(word, _int64(_LANES * quarter)), ir.IntType(_LANES))
    before = builder.ctpop(builder.and_(word, _int64((1 << _LANES * quarter) - 1)))
    first = _pointer(builder, builder.add(values, builder.shl(before, _int64(2))), _FLOAT)
    return _call(
        builder, f"llvm.masked.expandload.v{_LANES}f32", _VECTOR, [first, builder.bitcast(part, _MASK), weights]
    )


def _sum(builder: Any, vector: Any) -> Any:
    """Of a vector's elements, by halves."""
    size = _LANES
    while size > 1:
        size //= 2
        nothing = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(vector, nothing, ir.Constant(ir.VectorType(_I32, size), list(lanes)))
            for lanes in (range(size), range(size, 2 * size))
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def _loop(builder: Any, tile: Sequence[Any], tokens: int, is_sparse: bool) -> None:
    """One matrix row times a tile of so many tokens; `tile` as the arguments of `_row_times_tile`."""
    row, mask, values, x, stride, words, ahead, out = tile
    chains = 4 if tokens <= 2 else 2 if tokens <= 4 else 1  # sums a token: additions wait for one another
    entry, loop, done = builder.block, builder.append_basic_block("word"), builder.append_basic_block("done")
    builder.branch(loop)

    builder.position_at_end(loop)
    index, value = builder.phi(_I64), builder.phi(_I64)
    sums = [builder.phi(_VECTOR) for _ in range(tokens * chains)]
    place = builder.shl(index, _int64(8))
    weights, given = builder.add(row, place), builder.add(x, place)
    word = builder.load(builder.gep(_pointer(builder, mask, _I64), [index])) if is_sparse else None
    _ask_for(builder, builder.add(weights, ahead))
    after = list(sums)
    for quarter in range(WORD_BITS // _LANES):
        offset = _int64(4 * _LANES * quarter)
        own = builder.load(_pointer(builder, builder.add(weights, offset), _VECTOR), align=4)
        if is_sparse:
            own = _own(builder, own, word, value, quarter)
        for token in range(tokens):
            start = builder.add(given, builder.mul(stride, _int64(token)))
            there = builder.load(_pointer(builder, builder.add(start, offset), _VECTOR), align=4)
            chain = token * chains + quarter % chains
            after[chain] = _call(builder, f"llvm.fmuladd.v{_LANES}f32", _VECTOR, [own, there, after[chain]])
    onward = builder.add(index, _int64(1))
    further = builder.add(value, builder.shl(builder.ctpop(word), _int64(2))) if is_sparse else value
    zeros = ir.Constant(_VECTOR, [0.0] * _LANES)
    phis = [(index, _int64(0), onward), (value, values, further)]
    for phi, first, then in [*phis, *((s, zeros, a) for s, a in zip(sums, after, strict=True))]:
        phi.add_incoming(first, entry)
        phi.add_incoming(then, loop)
    builder.cbranch(builder.icmp_signed("<", onward, words), loop, done)

    builder.position_at_end(done)
    for token in range(tokens):
        total = after[token * chains]
        for chain in range(1, chains):
            total = builder.fadd(total, after[token * chains + chain])
        builder.store(_sum(builder, total), builder.gep(_pointer(builder, out, _FLOAT), [_int64(token)]))


@_intrinsic
def _row_times_tile(context, row, mask, values, x, stride, words, ahead, out, tokens):  # type: ignore[no-untyped-def]
    """One matrix row times the tokens of a tile: `tokens` float32 at `out`.

    Args (addresses where not said otherwise):
        row: of the base's row; mask, values: of the task's first mask word and first value in it; mask 0: there are
            none.
        x: of the tile's first token; stride: bytes from a token to the next.
        words: of 64 columns each; ahead: bytes from the weights in use to those to ask for; tokens: 1 to 8.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *tile, tokens = arguments
        is_sparse = builder.icmp_signed("!=", tile[1], _int64(0))
        kind = builder.or_(builder.shl(tokens, _int64(1)), builder.zext(is_sparse, _I64))
        end = builder.append_basic_block("end")
        switch = builder.switch(kind, end)
        for count in range(1, _WIDEST + 1):
            for sparse in (False, True):
                block = builder.append_basic_block(f"tokens.{count}")
                switch.add_case(_int64(2 * count + sparse), block)
                builder.position_at_end(block)
                _loop(builder, tile, count, sparse)
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


def _loading(context, address, index):  # type: ignore[no-untyped-def]
    """int32 `index` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(_pointer(builder, arguments[0], _I32), [arguments[1]]))

    return types.int32(types.int64, types.int64), generate


def _setting(context, address, index, number):  # type: ignore[no-untyped-def]
    """Set float32 `index` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], builder.gep(_pointer(builder, arguments[0], _FLOAT), [arguments[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), generate


_int32_at: Any = _intrinsic(_loading)
_set_at: Any = _intrinsic(_setting)


# Compiled code. Addresses are int64.


def _product_by_one_thread(weights, rows, columns, x, tiles, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    _times_rows(weights, rows, columns, x, tiles, out, 0, rows)


def _product_by_all_threads(weights, rows, columns, x, tiles, out, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
    for part in numba.prange(parts):
        first, end = rows * part // parts, rows * (part + 1) // parts
        _times_rows(weights, rows, columns, x, tiles, out, first, end)


def _multiplied_rows(weights, rows, columns, x, tiles, out, first_row, end_row):  # type: ignore[no-untyped-def]  # pragma: no cover
    """All tiles take a matrix row one after another, so that it is read from memory once."""
    words = columns // WORD_BITS
    sums = np.empty(_WIDEST, np.float32)
    for row in range(first_row, end_row):
        for tile in range(tiles.shape[0]):
            first, tokens, mask, value, offsets = tiles[tile]
            if mask != 0:
                mask += 8 * words * row
                value += 4 * np.int64(_int32_at(offsets, row))
            given, ahead = x + 4 * columns * first, _AHEAD if tile == 0 else 0
            start = weights + 4 * columns * row
            _row_times_tile(start, mask, value, given, 4 * columns, words, ahead, sums.ctypes.data, tokens)
            for token in range(tokens):
                _set_at(out, (first + token) * rows + row, sums[token])


# One function each: numba's cache takes one that is compiled with other options for the same.
_times_rows = numba.njit(nogil=True)(_multiplied_rows)
_one_thread = numba.njit(nogil=True, cache=True)(_product_by_one_thread)
_all_threads = numba.njit(parallel=threading_is_safe(), nogil=True, cache=True)(_product_by_all_threads)
