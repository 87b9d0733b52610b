"""Corrections on CPU: numba, straight from mask words and values, parallel over (group, block of matrix rows).

Tokens stand in columns: `tokens` transposes a group's rows into tiles of 8, 16 or 32 tokens, so that one feature of all
tokens of a tile is one vector. For a block of matrix rows, the positions of the kept elements are written out first,
without a branch that depends on the mask where few bits of a word are set. Each row then multiplies its elements of D
with the features' vectors into accumulators that stay in registers. D (tuned minus base) is computed in the first
tile's pass, and kept where there are further tiles.

numba's own vectoriser makes nothing of such loops, so they are written as LLVM IR on vectors of the tile's width, which
LLVM cuts to what the processor has. The assembly, looked at: for AVX2 an element of a 16-token tile is eight
instructions (its position, value, less base's value, the position scaled, the store of D, its broadcast, two fused
multiplications from memory); for AVX-512 one multiplication less; for ARM (Neoverse N1) four `fmla`; x86-64 without FMA
multiplies and adds. None calls a function. A loop that takes bits and words in turn through selects, so as to have no
branch at all, is no way out: LLVM makes branches of the selects again.

The intrinsics stand in this file because numba's cache does not notice a change in another one. Nothing is shared
between calls; how many threads a call takes is `numba.set_num_threads`, which holds for the thread that calls it.

torch's wheel brings an OpenMP of its own, so a process has two, and the threads of one wait busily for their next work
while the other computes. Importing `numba.np.ufunc.omppool` before torch leaves one, but is no way out: torch's own
products then take twenty times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

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
from ken_core.kernels.cpu import threading_is_safe
from ken_core.kernels.packed import WORD_BITS, Segment, pack

_BITS = {torch.float32: np.uint32, torch.bfloat16: np.uint16, torch.float16: np.int16}
"""Integers that weights are viewed as. Their type tells the kernels the dtype, so float16 is the signed one."""
_SIGNED = {2: torch.int16, 4: torch.int32}

_WIDTHS = (8, 16, 32)
"""Tokens a tile. 64 would need more than a core's nearest cache for one tile of features."""
_ACCUMULATORS = {8: 4, 16: 2, 32: 1}
"""Vectors that a row's products are summed in, in turn: the latency of one multiplication hides behind the others."""
_WRITE, _READ, _NEITHER = 0, 1, 2
"""What a row's product does with its elements of D: a group's first tile, the others, the only one."""
_SQUARE = 8
_HIGHEST, _TURNS = 64, 4
"""Matrix rows of a block at most: fewer where that would leave a thread less than so many blocks."""
_FEW, _SOME = 32, 8
"""One element of so many kept, or fewer: positions are written 4 or 8 at a time."""


def groups(slices: Sequence[slice]) -> Groups:
    """Cut each group's token rows into tiles."""
    tiles: list[tuple[int, int, int, int]] = []
    first, end = [0], 0
    for rows in slices:
        for row, count, width in _tiling(rows.start, rows.stop):
            tiles.append((row, count, width, end))
            end += width
        first.append(len(tiles))
    return Groups(tuple(slices), np.array(tiles, np.int64).reshape(-1, 4), np.array(first, np.int64), end)


def tokens(x: torch.Tensor, groups: Groups) -> Tokens:
    """Transpose each group's rows of x, (tokens, features), into tiles; what pads a tile is 0."""
    wide = x.detach().to(torch.float32).contiguous()
    features = wide.shape[1]
    columns = torch.empty(groups.padded * features, dtype=torch.float32)
    if groups.padded:
        _transpose_kernel(wide.data_ptr(), features, groups.tiles, columns.data_ptr())
    return Tokens(x, groups, columns)


def linear(out: torch.Tensor, tokens: Tokens, weights: torch.Tensor, shifts: Sequence[Shift | None]) -> None:
    check(out, tokens.groups, weights, shifts, (out.shape[1], tokens.x.shape[1]))
    _run(_linear_kernel, out, tokens.columns.numpy(), tokens.groups, weights, shifts)


def conv1d(out: torch.Tensor, tokens: Tokens, weights: torch.Tensor, shifts: Sequence[Shift | None]) -> None:
    check(out, tokens.groups, weights, shifts, (tokens.x.shape[1], out.shape[1]))
    _run(_conv1d_kernel, out, tokens.columns.numpy(), tokens.groups, weights, shifts)


def embedding(
    out: torch.Tensor, ids: torch.Tensor, groups: Groups, weights: torch.Tensor, shifts: Sequence[Shift | None]
) -> None:
    check(out, groups, weights, shifts, (None, out.shape[1]))
    _run(_embedding_kernel, out, ids.contiguous().numpy(), groups, weights, shifts)


def warm(dtype: torch.dtype) -> None:
    """Compile (or load from numba's cache) the kernels for an arena's dtype, so that no request pays for it."""
    threads = torch.get_num_threads()
    segment = Segment(0, np.ones(1, np.uint8), np.zeros(1, _BITS[dtype]).view(f"u{dtype.itemsize}"))
    packed = pack([segment], dtype, torch.device("cpu"))
    weights, out, batch = torch.zeros(1, dtype=dtype), torch.zeros(1, 1), groups([slice(0, 1)])
    turned = tokens(torch.zeros(1, 1), batch)
    linear(out, turned, weights, [linear_shift(packed, 0, (1, 1))])
    conv1d(out, turned, weights, [conv1d_shift(packed, 0, (1, 1))])
    embedding(out, torch.zeros(1, dtype=torch.int64), batch, weights, [linear_shift(packed, 0, (1, 1))])
    torch.set_num_threads(threads)  # starting numba's OpenMP pool changes torch's


def _tiling(first: int, last: int) -> list[tuple[int, int, int]]:
    """Token rows from `first` to before `last`, cut into (first row, rows, width)."""
    widest = _WIDTHS[-1]
    tiles = [(row, widest, widest) for row in range(first, last - widest + 1, widest)]
    if rest := (last - first) % widest:
        width = next(w for w in _WIDTHS if w >= rest)
        tiles.append((last - rest, rest, width))
    return tiles


def _run(
    kernel: Callable[..., None],
    out: torch.Tensor,
    given: npt.NDArray[Any],
    groups: Groups,
    weights: torch.Tensor,
    shifts: Sequence[Shift | None],
) -> None:
    """Call a kernel for the groups that have a shift and tokens."""
    touched = [
        (number, shift)
        for number, (rows, shift) in enumerate(zip(groups.slices, shifts, strict=True))
        if shift is not None and rows.stop > rows.start
    ]
    if not touched:
        return
    wide = _float32(out)
    table = np.concatenate([shift.row for _, shift in touched]).reshape(len(touched), -1)
    numbers = np.array([number for number, _ in touched])
    threads = numba.get_num_threads()  # compiled code that asks for it itself cannot be cached
    kernel(
        wide.data_ptr(), wide.stride(0), given, groups.tiles, groups.first, numbers, table, _as_bits(weights), threads
    )
    if wide is not out:
        for number, _ in touched:
            out[groups.slices[number]] = wide[groups.slices[number]]


def _float32(out: torch.Tensor) -> torch.Tensor:
    """`out` itself, or a copy in float32."""
    return out if out.dtype == torch.float32 else out.float()


def _as_bits(weights: torch.Tensor) -> npt.NDArray[np.integer]:
    signed: npt.NDArray[np.integer] = weights.detach().view(_SIGNED[weights.element_size()]).numpy()
    return signed.view(_BITS[weights.dtype])


# LLVM IR, written out.

_intrinsic: Any = intrinsic
"""Untyped: mypy would count the typing context among the arguments of a call."""

_FLOAT, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_UNDEFINED = ir.Undefined


def _int64(number: int) -> ir.Constant:
    return ir.Constant(_I64, number)


def _vector(width: int) -> ir.VectorType:
    return ir.VectorType(_FLOAT, width)


def _pointer(builder: Any, address: Any, element: Any) -> Any:
    return builder.inttoptr(address, element.as_pointer())


def _splat(builder: Any, number: Any, width: int) -> Any:
    kind = _vector(width)
    one = builder.insert_element(ir.Constant(kind, _UNDEFINED), number, ir.Constant(_I32, 0))
    lanes = ir.Constant(ir.VectorType(_I32, width), [0] * width)
    return builder.shuffle_vector(one, ir.Constant(kind, _UNDEFINED), lanes)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, fused where the processor does that fast. Declared by hand: llvmlite names no vector intrinsics."""
    kind = a.type
    name = f"llvm.fmuladd.v{kind.count}f32"
    declare: Any = cgutils.get_or_insert_function
    return builder.call(declare(builder.module, ir.FunctionType(kind, [kind] * 3), name), [a, b, c])


def _number(builder: Any, pointer: Any, dtype: Any) -> Any:
    """The float32 value of the weight that `pointer` points to; dtype is numba's type of its bits."""
    bits = builder.load(pointer)
    if dtype == types.uint32:
        return builder.bitcast(bits, _FLOAT)
    wide = builder.zext(bits, _I32)
    if dtype == types.uint16:
        return builder.bitcast(builder.shl(wide, ir.Constant(_I32, 16)), _FLOAT)
    # float16 without an instruction that not every processor has: its exponent is 112 less; exact, denormals as well
    magnitude = builder.shl(builder.and_(wide, ir.Constant(_I32, 0x7FFF)), ir.Constant(_I32, 13))
    scaled = builder.fmul(builder.bitcast(magnitude, _FLOAT), ir.Constant(_FLOAT, 2.0**112))
    sign = builder.shl(builder.and_(wide, ir.Constant(_I32, 0x8000)), ir.Constant(_I32, 16))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, _I32), sign), _FLOAT)


def _words_of(builder: Any, first: Any, last: Any) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Of a mask's bits from `first` (below 64) to before `last`: the last word's index, and what takes a word and its
    index and clears the bits outside."""
    ones, final = _int64(-1), builder.sub(last, _int64(1))
    final_word = builder.lshr(final, _int64(6))
    from_first = builder.shl(ones, first)
    to_last = builder.lshr(ones, builder.sub(_int64(63), builder.and_(final, _int64(63))))

    def inside(word: Any, index: Any) -> Any:
        at_first = builder.icmp_signed("==", index, _int64(0))
        at_final = builder.icmp_signed("==", index, final_word)
        word = builder.and_(word, builder.select(at_first, from_first, ones))
        return builder.and_(word, builder.select(at_final, to_last, ones))

    return final_word, inside


def _lowest(builder: Any, word: Any) -> Any:
    return builder.cttz(word, ir.Constant(ir.IntType(1), 0))


def _without_lowest(builder: Any, word: Any) -> Any:
    return builder.and_(word, builder.sub(word, _int64(1)))


def _walk(builder: Any, words: Any, first: Any, last: Any, step: Callable[[Any, Any], None]) -> None:
    """A loop over the set bits of a mask from `first` (below 64) to before `last`.

    Args:
        words: pointer to the mask word that holds bit 0.
        step: emits the work for one bit, given its position and how many set bits came before it.
    """
    final_word, inside = _words_of(builder, first, last)
    word_block, bit_block, next_block, done = (builder.append_basic_block(n) for n in ("word", "bit", "next", "done"))
    entry = builder.block
    builder.branch(word_block)

    builder.position_at_end(word_block)
    index, found = builder.phi(_I64), builder.phi(_I64)
    word = inside(builder.load(builder.gep(words, [index])), index)
    builder.cbranch(builder.icmp_signed("==", word, _int64(0)), next_block, bit_block)

    builder.position_at_end(bit_block)
    left, rank = builder.phi(_I64), builder.phi(_I64)
    step(builder.add(builder.shl(index, _int64(6)), _lowest(builder, left)), rank)
    rest = _without_lowest(builder, left)
    _entering(builder, [left, rank], [(word, found, word_block), (rest, builder.add(rank, _int64(1)), bit_block)])
    builder.cbranch(builder.icmp_signed("==", rest, _int64(0)), next_block, bit_block)

    builder.position_at_end(next_block)
    onward, found_then = builder.add(index, _int64(1)), builder.add(found, builder.ctpop(word))
    _entering(builder, [index, found], [(_int64(0), _int64(0), entry), (onward, found_then, next_block)])
    builder.cbranch(builder.icmp_signed("<=", onward, final_word), word_block, done)
    builder.position_at_end(done)


def _entering(builder: Any, phis: Sequence[Any], ways: Sequence[Sequence[Any]]) -> None:
    """Give phis their values; a way is a value for each and the block it comes from."""
    for *values, block in ways:
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, block)


def _row_pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any, Any, Any]:
    """Of (weights, element, words, first, last, values, ...): words, first, last, and D at a bit.

    Positions are counted from bit 0 of the row's first word, so weights are pointed at from there.
    """
    weights, element, words, first, last, values = arguments[:6]
    dtype = signature.args[0].dtype
    bits = ir.IntType(dtype.bitwidth)
    data = context.make_array(signature.args[0])(context, builder, weights).data
    here = builder.gep(builder.bitcast(data, bits.as_pointer()), [builder.sub(element, first)])
    held = _pointer(builder, values, bits)

    def number(position: Any, rank: Any) -> Any:
        tuned = _number(builder, builder.gep(held, [rank]), dtype)
        return builder.fsub(tuned, _number(builder, builder.gep(here, [position]), dtype))

    return _pointer(builder, words, _I64), first, last, number


@_intrinsic(prefer_literal=True)
def _unpack(context, words, first, last, positions, step):  # type: ignore[no-untyped-def]
    """Write out the positions of a mask's set bits, counted from `first`, as int32.

    words: address of the mask word that holds bit 0; first: below 64; last: behind the last bit; positions: address
    of the result, with room for `step` more than there are; step: a literal, bits written a turn. Writing more than
    a word holds, and over that with the next word's, spares a branch that no processor can foresee.
    """
    written = step.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, first = _pointer(builder, arguments[0], _I64), arguments[1]
        target = _pointer(builder, arguments[3], _I32)
        final_word, inside = _words_of(builder, first, arguments[2])
        word_block, bits_block, next_block, done = (
            builder.append_basic_block(n) for n in ("word", "bits", "next", "done")
        )
        entry = builder.block
        builder.branch(word_block)

        builder.position_at_end(word_block)
        index, found = builder.phi(_I64), builder.phi(_I64)
        word = inside(builder.load(builder.gep(words, [index])), index)
        base = builder.sub(builder.shl(index, _int64(6)), first)
        builder.branch(bits_block)

        builder.position_at_end(bits_block)
        left, place = builder.phi(_I64), builder.phi(_I64)
        rest = left
        for turn in range(written):
            position = builder.trunc(builder.add(base, _lowest(builder, rest)), _I32)
            builder.store(position, builder.gep(target, [builder.add(place, _int64(turn))]))
            rest = _without_lowest(builder, rest)
        further = builder.add(place, _int64(written))
        _entering(builder, [left, place], [(word, found, word_block), (rest, further, bits_block)])
        builder.cbranch(builder.icmp_signed("!=", rest, _int64(0)), bits_block, next_block)

        builder.position_at_end(next_block)
        onward, found_then = builder.add(index, _int64(1)), builder.add(found, builder.ctpop(word))
        _entering(builder, [index, found], [(_int64(0), _int64(0), entry), (onward, found_then, next_block)])
        builder.cbranch(builder.icmp_signed("<=", onward, final_word), word_block, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    i = types.int64
    return types.void(i, i, i, i, step), generate


@_intrinsic(prefer_literal=True)
def _product(context, weights, element, positions, numbers, count, values, x, initial, out, width, use):  # type: ignore[no-untyped-def]
    """One matrix row times a tile: out[0:width] = initial + sum over the row's kept elements of D * x[column].

    Args (addresses where not said otherwise):
        weights: the arena, an array; element: the one in it from which positions are counted.
        positions: int32, the row's kept elements; count: how many.
        numbers: float32, the row's D: written where `use` is the literal _WRITE, read where it is _READ.
        values: of the row's first value.
        x: of the tile's vector for position 0, which may lie before the tile.
        initial: float32; out: of `width` float32; width: a literal.
    """
    tokens = width.literal_value
    use_of_numbers = use.literal_value
    unrolled = _ACCUMULATORS[tokens]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dtype = signature.args[0].dtype
        bits, kind = ir.IntType(dtype.bitwidth), _vector(tokens)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        here = builder.gep(builder.bitcast(data, bits.as_pointer()), [arguments[1]])
        positions, numbers = _pointer(builder, arguments[2], _I32), _pointer(builder, arguments[3], _FLOAT)
        count, values = arguments[4], _pointer(builder, arguments[5], bits)
        columns = _pointer(builder, arguments[6], kind)

        def step(place: Any, total: Any) -> Any:
            position = builder.sext(builder.load(builder.gep(positions, [place])), _I64)
            at = builder.gep(numbers, [place])
            if use_of_numbers == _READ:
                number = builder.load(at)
            else:
                tuned = _number(builder, builder.gep(values, [place]), dtype)
                number = builder.fsub(tuned, _number(builder, builder.gep(here, [position]), dtype))
                if use_of_numbers == _WRITE:
                    builder.store(number, at)
            vector = builder.load(builder.gep(columns, [position]), align=4)
            return _multiply_add(builder, vector, _splat(builder, number, tokens), total)

        names = ("head", "turn", "rest", "tail", "single", "done")
        head, turn_block, rest, tail, single, done = (builder.append_basic_block(n) for n in names)
        entry = builder.block
        whole = builder.and_(count, _int64(-unrolled))
        start = _splat(builder, arguments[7], tokens)
        builder.branch(head)

        builder.position_at_end(head)
        place = builder.phi(_I64)
        sums = [builder.phi(kind) for _ in range(unrolled)]
        zeros = ir.Constant(kind, [0.0] * tokens)
        for phi, value in zip([place, *sums], [_int64(0), start, *[zeros] * (unrolled - 1)], strict=True):
            phi.add_incoming(value, entry)
        builder.cbranch(builder.icmp_signed("<", place, whole), turn_block, rest)

        builder.position_at_end(turn_block)
        after = [step(builder.add(place, _int64(n)), sums[n]) for n in range(unrolled)]
        for phi, value in zip([place, *sums], [builder.add(place, _int64(unrolled)), *after], strict=True):
            phi.add_incoming(value, turn_block)
        builder.branch(head)

        builder.position_at_end(rest)
        total = sums[0]
        for other in sums[1:]:
            total = builder.fadd(total, other)
        builder.branch(tail)

        builder.position_at_end(tail)
        last, ended = builder.phi(_I64), builder.phi(kind)
        last.add_incoming(place, rest)
        ended.add_incoming(total, rest)
        builder.cbranch(builder.icmp_signed("<", last, count), single, done)

        builder.position_at_end(single)
        ended.add_incoming(step(last, ended), single)
        last.add_incoming(builder.add(last, _int64(1)), single)
        builder.branch(tail)

        builder.position_at_end(done)
        builder.store(ended, _pointer(builder, arguments[8], kind), align=4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(weights, i, i, i, i, i, i, types.float32, i, width, use), generate


@_intrinsic(prefer_literal=True)
def _outer(context, weights, element, words, first, last, values, x, out, width):  # type: ignore[no-untyped-def]
    """One feature's part of a transposed product: out[column] += D * x for the kept elements of a row's columns.

    Args (addresses where not said otherwise):
        weights: the arena, an array; element: the one in it where the row's columns begin.
        words: of the mask word that holds the first of them; first, last: bits of the columns, from that word on.
        values: of the first column's first value.
        x: of the feature's vector; out: of the vector for bit 0 of the first word; width: a literal.
    """
    tokens = width.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, first, last, number = _row_pointers(context, builder, signature, arguments)
        kind = _vector(tokens)
        vector = builder.load(_pointer(builder, arguments[6], kind), align=4)
        sums = _pointer(builder, arguments[7], kind)

        def step(position: Any, rank: Any) -> None:
            place = builder.gep(sums, [position])
            factor = _splat(builder, number(position, rank), tokens)
            builder.store(_multiply_add(builder, vector, factor, builder.load(place, align=4)), place, align=4)

        _walk(builder, words, first, last, step)
        return context.get_dummy_value()

    i = types.int64
    return types.void(weights, i, i, i, i, i, i, i, width), generate


@_intrinsic
def _add_row(context, weights, element, words, first, last, values, out):  # type: ignore[no-untyped-def]
    """out[column] += D for the kept elements of one row; out: address of the float32 for bit 0 of the first word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, first, last, number = _row_pointers(context, builder, signature, arguments)
        sums = _pointer(builder, arguments[6], _FLOAT)

        def step(position: Any, rank: Any) -> None:
            place = builder.gep(sums, [position])
            builder.store(builder.fadd(builder.load(place), number(position, rank)), place)

        _walk(builder, words, first, last, step)
        return context.get_dummy_value()

    i = types.int64
    return types.void(weights, i, i, i, i, i, i), generate


@_intrinsic(prefer_literal=True)
def _turn_square(context, source, source_stride, target, target_stride, add):  # type: ignore[no-untyped-def]
    """Transpose 8 x 8 float32 from one address to another, in place of or added to (literal 1) what is there.

    Strides in elements. Three rounds of shuffles of pairs, pairs of pairs and halves, as every such transposition.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = _vector(_SQUARE)
        origin, target = (_pointer(builder, arguments[n], _FLOAT) for n in (0, 2))

        def row(start: Any, stride: Any, number: int) -> Any:
            place = builder.gep(start, [builder.mul(stride, _int64(number))])
            return builder.bitcast(place, kind.as_pointer())

        def mixed(a: Any, b: Any, lanes: Sequence[int]) -> Any:
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, _SQUARE), list(lanes)))

        rows = [builder.load(row(origin, arguments[1], n), align=4) for n in range(_SQUARE)]
        pairs = [
            mixed(rows[n], rows[n + 1], lanes)
            for n in range(0, _SQUARE, 2)
            for lanes in ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
        ]
        fours = [
            mixed(pairs[n + odd], pairs[n + 2 + odd], lanes)
            for n in (0, 4)
            for odd in (0, 1)
            for lanes in ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
        ]
        for n in range(4):
            for half, lanes in enumerate(((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))):
                turned = mixed(fours[n], fours[n + 4], lanes)
                place = row(target, arguments[3], n + 4 * half)
                if add.literal_value:
                    turned = builder.fadd(turned, builder.load(place, align=4))
                builder.store(turned, place, align=4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(i, i, i, i, add), generate


def _loading(kind: Any, element: Any) -> Any:
    """Element `index` at an address, for compiled code."""

    def load(context, address, index):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.gep(_pointer(builder, arguments[0], element), [arguments[1]]))

        return kind(types.int64, types.int64), generate

    return _intrinsic(load)


def _setting(context, address, index, number):  # type: ignore[no-untyped-def]
    """Set float32 `index` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], builder.gep(_pointer(builder, arguments[0], _FLOAT), [arguments[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), generate


_int32_at: Any = _loading(types.int32, _I32)
_float_at: Any = _loading(types.float32, _FLOAT)
_set_at: Any = _intrinsic(_setting)


# Compiled code. Addresses are int64; a row of the table of shifts is `Shift.row`.


@numba.njit(nogil=True, cache=True)
def _transpose_rows(x, features, target, width):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Transpose 8 rows at an address into columns of `width` at another."""
    whole = features - features % _SQUARE
    for feature in range(0, whole, _SQUARE):
        _turn_square(x + 4 * feature, features, target + 4 * feature * width, width, 0)
    for feature in range(whole, features):
        for token in range(_SQUARE):
            _set_at(target, feature * width + token, _float_at(x, token * features + feature))


@numba.njit(nogil=True, cache=True)
def _transpose_tile(x, features, count, width, target):  # type: ignore[no-untyped-def]  # pragma: no cover
    whole = count - count % _SQUARE
    for token in range(0, whole, _SQUARE):
        _transpose_rows(x + 4 * token * features, features, target + 4 * token, width)
    if whole == width:
        return
    padded = np.empty(_SQUARE * features, np.float32)
    for token in range(whole, width, _SQUARE):
        present = max(0, min(_SQUARE, count - token)) * features
        for element in range(present):
            padded[element] = _float_at(x, token * features + element)
        padded[present:] = 0
        _transpose_rows(padded.ctypes.data, features, target + 4 * token, width)


def _transpose(x, features, tiles, columns):  # type: ignore[no-untyped-def]  # pragma: no cover
    for t in numba.prange(tiles.shape[0]):
        place = columns + 4 * features * tiles[t, 3]
        _transpose_tile(x + 4 * features * tiles[t, 0], features, tiles[t, 1], tiles[t, 2], place)


@numba.njit(nogil=True, cache=True)
def _add_turned(sums, width, rows, count, out, stride):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add sums at an address, (rows, width), rows at most 8, transposed to `count` rows of `out`."""
    whole = count - count % _SQUARE if rows == _SQUARE else 0
    for token in range(0, whole, _SQUARE):
        _turn_square(sums + 4 * token, width, out + 4 * token * stride, stride, 1)
    for token in range(whole, count):
        for row in range(rows):
            place = token * stride + row
            _set_at(out, place, _float_at(out, place) + _float_at(sums, row * width + token))


@numba.njit(nogil=True, cache=True)
def _unpack_rows(words, first_bit, last_bit, count, positions):  # type: ignore[no-untyped-def]  # pragma: no cover
    low = first_bit & (WORD_BITS - 1)
    words, last = words + 8 * (first_bit >> 6), low + last_bit - first_bit
    bits = last_bit - first_bit
    if count * _FEW <= bits:
        _unpack(words, low, last, positions, 4)
    elif count * _SOME <= bits:
        _unpack(words, low, last, positions, 8)
    else:
        _unpack(words, low, last, positions, 16)


# A turn is one block of one group. As a rule the turns of a group follow one another, so that its tokens stay in the
# nearest caches (8 groups of 256 tokens, 768 x 768: twice as fast as taking the groups by turns). Where no group has
# more than one tile, the groups take the same block of a Linear one after the other, so that the block of the base's
# weights stays there (16 groups of 16 tokens, 10 % kept: a tenth faster with BERT-base's matrices, as fast with 384 x
# 384). Threads take equal shares of the work, whatever the groups' lengths.


@numba.njit(nogil=True, cache=True)
def _ends(blocks, first, numbers):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Where each group's work ends, in tiles to multiply with; reading a block's elements counts as one more."""
    ends = np.empty(numbers.size + 1, np.int64)
    ends[0] = 0
    for turn in range(numbers.size):
        ends[turn + 1] = ends[turn] + blocks * (1 + first[numbers[turn] + 1] - first[numbers[turn]])
    return ends


@numba.njit(nogil=True, cache=True)
def _part(part, parts, blocks, ends):  # type: ignore[no-untyped-def]  # pragma: no cover
    """First turn, and the turn behind the last, of one of so many equal parts of the work."""
    return _turn_at(part, parts, blocks, ends), _turn_at(part + 1, parts, blocks, ends)


@numba.njit(nogil=True, cache=True)
def _turn_at(part, parts, blocks, ends):  # type: ignore[no-untyped-def]  # pragma: no cover
    work = ends[-1] * part // parts
    group = 0
    while group < ends.size - 2 and ends[group + 1] <= work:
        group += 1
    each = (ends[group + 1] - ends[group]) // blocks
    return group * blocks + (work - ends[group] + each - 1) // each


@numba.njit(nogil=True, cache=True)
def _linear_block(weights, shift, begin, end, tiles, first_tile, last_tile, columns, out, stride):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Matrix rows from `begin` to before `end`, a multiple of 8 but at the matrix's end."""
    words, values, offsets, bias, features = shift[0], shift[1], shift[2], shift[3], shift[6]
    value = np.int64(_int32_at(offsets, begin))
    count = _int32_at(offsets, end) - value
    if count == 0 and bias == 0:
        return
    bit = begin * features
    positions, numbers = np.empty(count + 16, np.int32), np.empty(count, np.float32)
    sums = np.empty(_SQUARE * _WIDEST, np.float32)
    if count != 0:
        _unpack_rows(words, bit, end * features, count, positions.ctypes.data)
    element, values = shift[4] + bit, values + weights.itemsize * value
    for tile in range(first_tile, last_tile):
        first_token, tokens, width = tiles[tile, 0], tiles[tile, 1], tiles[tile, 2]
        x = columns + 4 * features * tiles[tile, 3]
        for square in range(begin, end, _SQUARE):
            high = min(_SQUARE, end - square)
            for row in range(square, square + high):
                initial = _float_at(bias, row) if bias != 0 else np.float32(0)
                low = _int32_at(offsets, row) - value
                kept = _int32_at(offsets, row + 1) - value - low
                place, number = positions.ctypes.data + 4 * low, numbers.ctypes.data + 4 * low
                tuned = values + weights.itemsize * low
                origin = x - 4 * width * features * (row - begin)
                total = sums.ctypes.data + 4 * width * (row - square)
                if first_tile + 1 == last_tile:
                    if width == 8:
                        _product(weights, element, place, number, kept, tuned, origin, initial, total, 8, 2)
                    elif width == 16:
                        _product(weights, element, place, number, kept, tuned, origin, initial, total, 16, 2)
                    else:
                        _product(weights, element, place, number, kept, tuned, origin, initial, total, 32, 2)
                elif tile == first_tile:
                    if width == 8:
                        _product(weights, element, place, number, kept, tuned, origin, initial, total, 8, 0)
                    elif width == 16:
                        _product(weights, element, place, number, kept, tuned, origin, initial, total, 16, 0)
                    else:
                        _product(weights, element, place, number, kept, tuned, origin, initial, total, 32, 0)
                elif width == 8:
                    _product(weights, element, place, number, kept, tuned, origin, initial, total, 8, 1)
                elif width == 16:
                    _product(weights, element, place, number, kept, tuned, origin, initial, total, 16, 1)
                else:
                    _product(weights, element, place, number, kept, tuned, origin, initial, total, 32, 1)
            _add_turned(sums.ctypes.data, width, high, tokens, out + 4 * (first_token * stride + square), stride)


def _linear(out, stride, columns, tiles, first, numbers, shifts, weights, threads):  # type: ignore[no-untyped-def]  # pragma: no cover
    rows, x = shifts[0, 5], columns.ctypes.data
    height = _HIGHEST
    while height > _SQUARE and shifts.shape[0] * (rows // height) < _TURNS * threads:
        height //= 2
    blocks = (rows + height - 1) // height
    ends = _ends(blocks, first, numbers)
    count = numbers.size
    few = ends[count] == 2 * blocks * count
    for part in numba.prange(threads):
        for turn in range(*_part(part, threads, blocks, ends)):
            place, block = (turn % count, turn // count) if few else (turn // blocks, turn % blocks)
            begin = block * height
            end, group = min(rows, begin + height), numbers[place]
            _linear_block(weights, shifts[place], begin, end, tiles, first[group], first[group + 1], x, out, stride)


@numba.njit(nogil=True, cache=True)
def _conv1d_block(weights, shift, block, tiles, first_tile, last_tile, columns, out, stride):  # type: ignore[no-untyped-def]  # pragma: no cover
    words, values, offsets, bias, features, outputs = shift[0], shift[1], shift[2], shift[3], shift[5], shift[6]
    blocks = (outputs + COLUMN_BLOCK - 1) // COLUMN_BLOCK
    begin = block * COLUMN_BLOCK
    high = min(COLUMN_BLOCK, outputs - begin)
    sums = np.empty(COLUMN_BLOCK * _WIDEST, np.float32)
    total = sums.ctypes.data
    for tile in range(first_tile, last_tile):
        first_token, tokens, width = tiles[tile, 0], tiles[tile, 1], tiles[tile, 2]
        x = columns + 4 * features * tiles[tile, 3]
        for column in range(high):
            initial = _float_at(bias, begin + column) if bias != 0 else np.float32(0)
            for token in range(width):
                _set_at(total, column * width + token, initial)
        for feature in range(features):
            value = np.int64(_int32_at(offsets, feature * blocks + block))
            if value == _int32_at(offsets, feature * blocks + block + 1):
                continue
            bit = feature * outputs + begin
            low = bit & (WORD_BITS - 1)
            mask, tuned = words + 8 * (bit >> 6), values + weights.itemsize * value
            vector, target, element = x + 4 * feature * width, total - 4 * low * width, shift[4] + bit
            if width == 8:
                _outer(weights, element, mask, low, low + high, tuned, vector, target, 8)
            elif width == 16:
                _outer(weights, element, mask, low, low + high, tuned, vector, target, 16)
            else:
                _outer(weights, element, mask, low, low + high, tuned, vector, target, 32)
        place = out + 4 * (first_token * stride + begin)
        for column in range(0, high, _SQUARE):
            here = min(_SQUARE, high - column)
            _add_turned(total + 4 * column * width, width, here, tokens, place + 4 * column, stride)


def _conv1d(out, stride, columns, tiles, first, numbers, shifts, weights, threads):  # type: ignore[no-untyped-def]  # pragma: no cover
    x, blocks = columns.ctypes.data, (shifts[0, 6] + COLUMN_BLOCK - 1) // COLUMN_BLOCK
    ends = _ends(blocks, first, numbers)
    for part in numba.prange(threads):
        for turn in range(*_part(part, threads, blocks, ends)):
            group, shift, block = numbers[turn // blocks], shifts[turn // blocks], turn % blocks
            _conv1d_block(weights, shift, block, tiles, first[group], first[group + 1], x, out, stride)


@numba.njit(nogil=True, cache=True)
def _embedding_rows(weights, shift, ids, first, count, out, stride):  # type: ignore[no-untyped-def]  # pragma: no cover
    words, values, offsets, columns = shift[0], shift[1], shift[2], shift[6]
    for token in range(first, first + count):
        value = np.int64(_int32_at(offsets, ids[token]))
        if value == _int32_at(offsets, ids[token] + 1):
            continue
        bit = ids[token] * columns
        low = bit & (WORD_BITS - 1)
        mask, tuned = words + 8 * (bit >> 6), values + weights.itemsize * value
        _add_row(weights, shift[4] + bit, mask, low, low + columns, tuned, out + 4 * (token * stride - low))


def _embedding(out, stride, ids, tiles, first, numbers, shifts, weights, threads):  # type: ignore[no-untyped-def]  # pragma: no cover
    ends = _ends(1, first, numbers)
    for part in numba.prange(threads):
        for turn in range(*_part(part, threads, 1, ends)):
            for tile in range(first[numbers[turn]], first[numbers[turn] + 1]):
                _embedding_rows(weights, shifts[turn], ids, tiles[tile, 0], tiles[tile, 1], out, stride)


_WIDEST = _WIDTHS[-1]
_parallel = numba.njit(parallel=threading_is_safe(), nogil=True, cache=True)
_transpose_kernel = _parallel(_transpose)
_linear_kernel = _parallel(_linear)
_conv1d_kernel = _parallel(_conv1d)
_embedding_kernel = _parallel(_embedding)

CORRECTION = Correction(groups, tokens, linear, conv1d, embedding)
