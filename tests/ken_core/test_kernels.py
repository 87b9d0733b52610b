from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from math import ceil
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
import triton_interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from ken_core.bits import Bits, Mask, as_bits, from_bits, pack_mask, unpack_mask
from ken_core.kernels import (
    Exchange,
    Packed,
    Segment,
    cast_values,
    cpu,
    exchange_for,
    pack,
    packed_nbytes,
    reference,
    switch_for,
)

CPU = torch.device("cpu")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def triton_on_a_gpu(weights: torch.Tensor, packed: Packed) -> None:
    from ken_core.kernels import cuda

    there = [t.cuda() for t in (weights, packed.words, packed.values, packed.chunks)]
    cuda.exchange(there[0], Packed(*there[1:]))
    weights.copy_(there[0])
    packed.values.copy_(there[2])


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
KERNELS = [
    pytest.param(cpu.exchange, id="numba"),
    pytest.param(reference.exchange, id="reference"),
    pytest.param(triton_interpreter.exchange, id="triton-interpreted", marks=needs_triton),
    pytest.param(triton_on_a_gpu, id="triton", marks=[needs_triton, needs_a_gpu]),
]

SLOW_IN_THE_INTERPRETER = [
    pytest.param(*kernel.values, id=kernel.id, marks=[*kernel.marks, pytest.mark.slow])
    if kernel.id == "triton-interpreted"
    else kernel
    for kernel in KERNELS
]
"""Kernels, of which the interpreted one takes a minute for as many examples as the others; so there it is slow."""

sizes = st.one_of(
    st.integers(1, 200),
    st.sampled_from([63, 64, 65, 127, 128, 129, 1000, 65_535, 65_536, 65_537, 140_001]),
)
densities = st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.99, 1.0])


@pytest.fixture(autouse=True)
def _two_numba_threads(_single_threaded) -> None:
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))


def random_bits(rng: np.random.Generator, count: int, dtype: torch.dtype) -> Bits:
    """Any bits, including every kind of NaN, infinities and denormals."""
    return np.frombuffer(rng.bytes(count * dtype.itemsize), f"u{dtype.itemsize}")


def mask_of(rng: np.random.Generator, size: int, density: float) -> np.ndarray:
    return rng.random(size) < density


@st.composite
def arenas_with(draw, deltas: int):
    """(weights as bits, segments of each delta, dtype): one to five tensors, each from a multiple of 64 on."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(DTYPES))
    places, end = [], 0
    for size in draw(st.lists(sizes, min_size=1, max_size=5)):
        start = end + 64 * draw(st.integers(0, 2))
        end = start + -(-size // 64) * 64
        places.append((start, size))

    def delta() -> list[Segment]:
        touched = [draw(st.booleans()) for _ in places]
        touched[draw(st.integers(0, len(places) - 1))] = True
        order = draw(st.permutations([place for place, is_touched in zip(places, touched, strict=True) if is_touched]))
        masks = [(start, mask_of(rng, size, draw(densities))) for start, size in order]
        return [Segment(s, pack_mask(m), random_bits(rng, int(m.sum()), dtype)) for s, m in masks]

    return random_bits(rng, end, dtype), [delta() for _ in range(deltas)], dtype


def arenas():
    return arenas_with(1).map(lambda arena: (arena[0], arena[1][0], arena[2]))


def unpacked(segment: Segment) -> Mask:
    return unpack_mask(segment.positions, segment.positions.size * 8)


def expected_exchange(weights: Bits, segments: list[Segment]) -> tuple[Bits, Bits]:
    """The weights and the delta's buffer after one exchange, computed with numpy."""
    after, held = weights.copy(), []
    for segment in segments:
        positions = segment.start + np.flatnonzero(unpacked(segment))
        held.append(weights[positions])
        after[positions] = segment.values
    return after, np.concatenate(held)


def arena_of(bits: Bits, dtype: torch.dtype) -> torch.Tensor:
    return from_bits(bits.copy(), dtype)


def assert_exchanged(exchange: Exchange, bits: Bits, segments: list[Segment], dtype: torch.dtype) -> None:
    weights, packed = arena_of(bits, dtype), pack(segments, dtype, CPU)
    exchange(weights, packed)
    after, held = expected_exchange(bits, segments)
    assert np.array_equal(as_bits(weights), after)
    assert np.array_equal(as_bits(packed.values), held)


@pytest.mark.parametrize("exchange", SLOW_IN_THE_INTERPRETER)
@settings(max_examples=50)
@given(arena=arenas())
def test_an_exchange_trades_exactly_the_masked_elements(exchange: Exchange, arena):
    assert_exchanged(exchange, *arena)


@needs_triton
@settings(max_examples=10)
@given(arena=arenas())
def test_the_triton_kernel_trades_exactly_the_masked_elements(arena):
    """In the interpreter, as above, with fewer examples."""
    assert_exchanged(triton_interpreter.exchange, *arena)


@pytest.mark.parametrize("exchange", SLOW_IN_THE_INTERPRETER)
@settings(max_examples=40)
@given(arena=arenas())
def test_a_second_exchange_restores_the_weights_and_the_values(exchange: Exchange, arena):
    bits, segments, dtype = arena
    weights, packed = arena_of(bits, dtype), pack(segments, dtype, CPU)
    for _ in range(2):
        exchange(weights, packed)
    assert np.array_equal(as_bits(weights), bits)
    assert np.array_equal(as_bits(packed.values), np.concatenate([s.values for s in segments]))


@settings(max_examples=40)
@given(arena=arenas())
def test_numba_and_the_reference_undo_each_other(arena):
    bits, segments, dtype = arena
    weights, packed = arena_of(bits, dtype), pack(segments, dtype, CPU)
    cpu.exchange(weights, packed)
    reference.exchange(weights, packed)
    assert np.array_equal(as_bits(weights), bits)


@settings(max_examples=60)
@given(arena=arenas_with(2))
def test_a_switch_leaves_what_two_exchanges_leave(arena):
    bits, (first, second), dtype = arena
    weights, expected = arena_of(bits, dtype), arena_of(bits, dtype)
    leaving, entering = (pack(s, dtype, CPU) for s in (first, second))
    leaving2, entering2 = (pack(s, dtype, CPU) for s in (first, second))
    for packed in (leaving2, leaving2, entering2):
        reference.exchange(expected, packed)
    cpu.exchange(weights, leaving)
    cpu.switch(weights, leaving, entering)
    for found, wanted in ((weights, expected), (leaving.values, leaving2.values), (entering.values, entering2.values)):
        assert np.array_equal(as_bits(found), as_bits(wanted))


@settings(max_examples=40)
@given(arena=arenas_with(3), turns=st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_the_base_is_back_after_any_switches(arena, turns):
    bits, deltas, dtype = arena
    weights, packed = arena_of(bits, dtype), [pack(s, dtype, CPU) for s in deltas]
    cpu.exchange(weights, packed[turns[0]])
    for leaving, entering in pairwise(turns):
        if leaving != entering:
            cpu.switch(weights, packed[leaving], packed[entering])
    cpu.exchange(weights, packed[turns[-1]])
    assert np.array_equal(as_bits(weights), bits)
    for delta, segments in zip(packed, deltas, strict=True):
        assert np.array_equal(as_bits(delta.values), np.concatenate([s.values for s in segments]))


def test_where_no_kernel_switches_in_one_pass_two_exchanges_do():
    switch = switch_for(CPU, torch.float8_e4m3fn)
    weights = torch.arange(4, dtype=torch.uint8).view(torch.float8_e4m3fn)
    first, second = (
        pack([Segment(0, pack_mask(np.arange(4) < 2), np.full(2, 7 * n, np.uint8))], weights.dtype, CPU) for n in (1, 2)
    )
    reference.exchange(weights, first)
    switch(weights, first, second)
    assert weights.view(torch.uint8).tolist() == [14, 14, 2, 3]
    assert first.values.view(torch.uint8).tolist() == [7, 7]


@pytest.mark.parametrize("exchange", KERNELS)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 70_000])
def test_empty_and_full_masks_trade_nothing_and_everything(exchange, full, size):
    weights = torch.arange(size, dtype=torch.float32)
    values = np.arange(size if full else 0, dtype=np.float32) + 0.5
    packed = pack([Segment(0, pack_mask(np.full(size, full)), values.view(np.uint32))], torch.float32, CPU)
    exchange(weights, packed)
    assert torch.equal(weights, torch.arange(size) + (0.5 if full else 0.0))
    assert packed.values.tolist() == (list(range(size)) if full else [])


@pytest.mark.parametrize("exchange", KERNELS)
def test_the_padding_after_a_tensor_and_its_neighbours_are_not_touched(exchange):
    weights = torch.full((256,), 7.0)
    packed = pack([Segment(64, pack_mask(np.ones(65, np.bool_)), np.zeros(65, np.uint32))], torch.float32, CPU)
    exchange(weights, packed)
    assert (weights[:64] == 7).all()
    assert (weights[64:129] == 0).all()
    assert (weights[129:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(threads, dtype):
    rng = np.random.default_rng(5)
    bits = random_bits(rng, 1 << 19, dtype)
    mask = mask_of(rng, 1 << 19, 0.3)
    segments = [Segment(0, pack_mask(mask), random_bits(rng, int(mask.sum()), dtype))]
    weights, packed = arena_of(bits, dtype), pack(segments, dtype, CPU)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    cpu.exchange(weights, packed)
    after, held = expected_exchange(bits, segments)
    assert np.array_equal(as_bits(weights), after)
    assert np.array_equal(as_bits(packed.values), held)


def test_warming_a_kernel_leaves_torchs_number_of_threads_alone():
    """The test runs in a process of its own: only the first start of numba's OpenMP threads resets the number."""
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "assert torch.get_num_threads() == 1  # torch's own threads are set up here\n"
        "from ken_core.kernels import exchange_for\n"
        "exchange_for(torch.device('cpu'), torch.float32)\n"
        "assert torch.get_num_threads() == 1, torch.get_num_threads()\n"
    )
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("serving", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
@given(numbers=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=70))
def test_packing_casts_the_values_once_from_the_stored_to_the_serving_dtype(stored, serving, numbers):
    values = torch.tensor(numbers, dtype=torch.float64).to(stored)
    mask = np.ones(values.numel(), np.bool_)
    segment = Segment(0, pack_mask(mask), cast_values(as_bits(values), stored, serving))
    packed = pack([segment], serving, CPU)
    assert packed.values.dtype == serving
    assert np.array_equal(as_bits(packed.values), as_bits(values.to(serving)))


@given(arena=arenas())
def test_packing_leaves_the_deltas_own_values_as_they_were(arena):
    bits, segments, dtype = arena
    before = [s.values.copy() for s in segments]
    packed = pack(segments, dtype, CPU)
    cpu.exchange(arena_of(bits, dtype), packed)
    assert all(np.array_equal(s.values, b) for s, b in zip(segments, before, strict=True))


@given(arena=arenas())
def test_a_packed_delta_takes_its_values_one_bit_per_weight_and_a_small_table(arena):
    _, segments, dtype = arena
    packed = pack(segments, dtype, CPU)
    words = [ceil(s.positions.size / 8) for s in segments]
    assert packed.values.numel() == sum(int(unpacked(s).sum()) for s in segments)
    assert packed.words.numel() == sum(words)
    assert packed.chunks.shape == (sum(ceil(w / 1024) for w in words), 4)
    assert packed.nbytes == packed.values.numel() * dtype.itemsize + sum(words) * 8 + packed.chunks.numel() * 8


@given(arena=arenas())
def test_what_packing_takes_is_known_before(arena):
    _, segments, dtype = arena
    sizes = [(s.positions.size * 8, s.values.size) for s in segments]
    expected = sum(packed_nbytes(numel, kept, dtype, CPU) for numel, kept in sizes)
    assert pack(segments, dtype, CPU).nbytes == expected


@given(arena=arenas())
def test_the_chunks_cover_every_word_and_every_value_once(arena):
    _, segments, dtype = arena
    packed = pack(segments, dtype, CPU)
    words, values = 0, 0
    for _, first, count, value in packed.chunks.tolist():
        assert (first, value) == (words, values)
        words += count
        values += int(np.bitwise_count(packed.words[first : first + count].numpy().view(np.uint64)).sum())
    assert (words, values) == (packed.words.numel(), packed.values.numel())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_for_the_cpu_are_compiled_before_they_are_given_out(dtype):
    exchange, switch = exchange_for(CPU, dtype), switch_for(CPU, dtype)
    assert exchange is cpu.exchange
    assert switch is cpu.switch
    signatures = len(cpu._kernel.signatures), len(cpu._switch_kernel.signatures)
    segments = [Segment(0, pack_mask(np.ones(3, np.bool_)), np.zeros(3, f"u{dtype.itemsize}"))]
    leaving, entering = (pack(segments, dtype, CPU) for _ in range(2))
    weights = torch.ones(3, dtype=dtype)
    exchange(weights, leaving)
    switch(weights, leaving, entering)
    assert (len(cpu._kernel.signatures), len(cpu._switch_kernel.signatures)) == signatures


@needs_triton
@needs_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_for_a_gpu_is_tritons_and_compiled(dtype):
    from ken_core.kernels import cuda

    assert exchange_for(torch.device("cuda"), dtype) is cuda.exchange


@needs_triton
@pytest.mark.parametrize("integer", ["i16", "i32", "i64"])
def test_the_triton_kernel_compiles_for_a_gpu_and_keeps_everything_in_registers(integer, tmp_path, monkeypatch):
    """The compiler may refuse what the interpreter accepts; compiling needs no GPU."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ken_core.kernels import cuda

    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    signature = {"weights": f"*{integer}", "words": "*i32", "values": f"*{integer}", "chunks": "*i64"}
    source = ASTSource(cuda._exchange_chunks, signature | {"TILE": "constexpr"}, {"TILE": cuda._TILE})
    compiled = compile(
        source, target=GPUTarget("cuda", 80, 32), options={"num_warps": cuda._WARPS, "enable_fp_fusion": False}
    )
    assert "popc.b32" in compiled.asm["ptx"]
    assert "ld.local" not in compiled.asm["ptx"]


def test_a_dtype_numba_has_no_kernel_for_falls_back_to_torch():
    assert exchange_for(CPU, torch.float8_e4m3fn) is reference.exchange


def test_positions_are_those_of_the_masks_in_the_order_of_the_values():
    masks = [np.zeros(70, np.bool_), np.zeros(5, np.bool_)]
    masks[0][[0, 63, 64, 69]] = True
    masks[1][4] = True
    segments = [
        Segment(128, pack_mask(masks[0]), np.zeros(4, np.uint32)),
        Segment(0, pack_mask(masks[1]), np.zeros(1, np.uint32)),
    ]
    packed: Packed = pack(segments, torch.float32, CPU)
    assert reference.selected_positions(packed).tolist() == [128, 191, 192, 197, 4]
