from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
import triton_corrections
from hypothesis import given, settings
from hypothesis import strategies as st

from ken_core.bits import as_bits, from_bits, pack_mask
from ken_core.kernels import Packed, Segment, correction_cpu, correction_for, correction_reference, pack
from ken_core.kernels.correction import (
    COLUMN_BLOCK,
    Correction,
    Shift,
    conv1d_shift,
    embedding_shift,
    linear_shift,
)
from ken_core.kernels.correction_check import agrees

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYERS = ["linear", "conv1d", "embedding"]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
FAST = [
    pytest.param(correction_cpu.CORRECTION, id="numba"),
    pytest.param(correction_reference.CORRECTION, id="reference"),
]
INTERPRETED = pytest.param(triton_corrections.CORRECTION, id="triton-interpreted", marks=needs_triton)
EVERY = [*FAST, INTERPRETED]

TINY, HUGE = (
    {torch.float32: 1e-42, torch.bfloat16: 1e-39, torch.float16: 6e-8},
    {torch.float32: 1e30, torch.bfloat16: 1e30},
)
"""Subnormal numbers, and larger ones than any trained weight; in float16 the sums would overflow with such."""


@pytest.fixture(autouse=True)
def _two_numba_threads(_single_threaded) -> None:
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))


@dataclass(frozen=True)
class Case:
    """A batch at one weight: what every kernel is given, and D by group in float64."""

    layer: str
    arena: torch.Tensor
    shape: tuple[int, int]
    shifts: list[Shift | None]
    shifts64: list[torch.Tensor]
    slices: list[slice]
    given: torch.Tensor
    """Activations, or ids where the layer is an embedding."""
    out: torch.Tensor

    def corrected_by(self, correction: Correction) -> torch.Tensor:
        out, groups = self.out.clone(), correction.groups(self.slices)
        if self.layer == "embedding":
            correction.embedding(out, self.given, groups, self.arena, self.shifts)
        else:
            run = correction.linear if self.layer == "linear" else correction.conv1d
            run(out, correction.tokens(self.given, groups), self.arena, self.shifts)
        return out


def numbers(rng: np.random.Generator, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Ordinary weights, and some that are 0, -0.0, subnormal or huge."""
    found = torch.from_numpy(rng.standard_normal(count))
    special = rng.integers(0, 60, count)
    for kind, number in enumerate(
        (0.0, -0.0, TINY[dtype], -TINY[dtype], HUGE.get(dtype, 50.0), -HUGE.get(dtype, 50.0))
    ):
        found[torch.from_numpy(special == kind)] = number
    return found.to(dtype)


def delta(
    rng: np.random.Generator, arena: torch.Tensor, start: int, size: int, kept: float
) -> tuple[Packed, torch.Tensor]:
    """A packed delta of one tensor, with empty and full stretches and some values that are the base's own; its D."""
    mask = rng.random(size) < kept
    stretches = np.repeat(rng.integers(0, 8, size // 50 + 1), 50)[:size]
    mask = (mask & (stretches != 0)) | (stretches == 1) & (kept > 0)
    positions = torch.from_numpy(np.flatnonzero(mask))
    values = numbers(rng, positions.numel(), arena.dtype)
    same = torch.from_numpy(rng.random(positions.numel()) < 0.1)
    values[same] = arena[start + positions][same]
    shift = torch.zeros(size, dtype=torch.float64)
    shift[positions] = values.double() - arena[start + positions].double()
    other = Segment(0, pack_mask(np.ones(3, np.bool_)), as_bits(torch.ones(3, dtype=arena.dtype)))
    segments = [Segment(start, pack_mask(mask), as_bits(values)), other]
    if rng.random() < 0.5:
        segments.reverse()
    return pack(segments, arena.dtype, CPU), shift


def case(
    seed: int,
    layer: str,
    dtype: torch.dtype,
    activations: torch.dtype,
    shape: tuple[int, int],
    lengths: Sequence[int],
    kept: Sequence[float],
) -> Case:
    rng = np.random.default_rng(seed)
    start, size = 64 * int(rng.integers(1, 3)), shape[0] * shape[1]
    arena = numbers(rng, start + -(-size // 64) * 64, dtype)
    shifts: list[Shift | None] = []
    shifts64, slices, end = [], [], 0
    outputs = shape[0] if layer == "linear" else shape[1]
    for length, share in zip(lengths, kept, strict=True):
        packed, shift64 = delta(rng, arena, start, size, share)
        bias = torch.from_numpy(rng.standard_normal(outputs)).float() if rng.random() < 0.3 else None
        shift: Shift | None = None
        if rng.random() < 0.85:
            if layer == "linear":
                shift = linear_shift(packed, start, shape, bias)
            elif layer == "conv1d":
                shift = conv1d_shift(packed, start, shape, bias)
            else:
                shift = embedding_shift(packed, start, shape)
        shifts.append(shift)
        shifts64.append(shift64.view(shape))
        end += int(rng.integers(0, 3))
        slices.append(slice(end, end + length))
        end += length
    count = end + int(rng.integers(0, 3))
    if layer == "embedding":
        given = torch.from_numpy(rng.integers(0, shape[0], count))
    else:
        given = torch.from_numpy(rng.standard_normal((count, shape[1] if layer == "linear" else shape[0]))).to(
            activations
        )
    out = torch.from_numpy(rng.standard_normal((count, outputs))).to(activations)
    return Case(layer, arena, shape, shifts, shifts64, slices, given, out)


sides = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 100, 127, 128, 130, 255, 256, 257, 300]))
shares = st.sampled_from([0.0, 0.02, 0.1, 0.4, 1.0])


@st.composite
def cases(draw, largest: int = 300, longest: int = 90):
    layer, dtype = draw(st.sampled_from(LAYERS)), draw(st.sampled_from(DTYPES))
    lengths = draw(
        st.lists(st.one_of(st.sampled_from([1, 7, 8, 9, 16, 32, 33]), st.integers(0, longest)), min_size=1, max_size=5)
    )
    lengths = [min(n, longest) for n in lengths]
    return case(
        draw(st.integers(0, 2**32 - 1)),
        layer,
        dtype,
        draw(st.sampled_from([torch.float32, dtype])),
        (min(draw(sides), largest), min(draw(sides), largest)),
        lengths,
        [draw(shares) for _ in lengths],
    )


def assert_near(found: torch.Tensor, case: Case) -> None:
    """Compare with float64; a float32 sum of n products is off by n + 2 roundings of the sum of absolute products."""
    rounding, last = 2.0**-24, float(torch.finfo(case.out.dtype).eps)
    for rows, shift, shift64 in zip(case.slices, case.shifts, case.shifts64, strict=True):
        if shift is None:
            continue
        change, size = shift64, shift64.abs()
        if case.layer == "embedding":
            exact, sizes, terms = change[case.given[rows]], size[case.given[rows]], 1
        else:
            x = case.given[rows].double()
            turned = (change.T, size.T) if case.layer == "linear" else (change, size)
            exact, sizes, terms = x @ turned[0], x.abs() @ turned[1], x.shape[1]
        if shift.bias is not None:
            exact, sizes = exact + shift.bias.double(), sizes + shift.bias.double().abs()
        exact = exact + case.out[rows].double()
        bound = (
            (terms + 4) * rounding * sizes * 1.01 + (last + 2 * rounding) * (exact.abs() + 1e-30) + terms * 2.0**-148
        )
        # interpreted, the last rounding to bfloat16 cuts off
        assert ((found[rows].double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("correction", FAST)
@settings(max_examples=150)
@given(case=cases())
def test_every_layer_is_corrected_as_the_dense_shift_would(correction: Correction, case):
    assert_near(case.corrected_by(correction), case)


@needs_triton
@settings(max_examples=6)
@given(case=cases(largest=70, longest=20))
def test_the_triton_kernels_correct_as_the_dense_shift_would(case):
    assert_near(case.corrected_by(triton_corrections.CORRECTION), case)


@pytest.mark.parametrize("correction", FAST)
@settings(max_examples=60)
@given(case=cases())
def test_rows_of_no_group_and_of_untouched_groups_keep_their_bits(correction: Correction, case):
    found = case.corrected_by(correction)
    corrected = torch.zeros(case.out.shape[0], dtype=torch.bool)
    for rows, shift in zip(case.slices, case.shifts, strict=True):
        corrected[rows] = shift is not None
    assert np.array_equal(as_bits(found[~corrected]), as_bits(case.out[~corrected]))


@pytest.mark.parametrize("correction", FAST)
@settings(max_examples=60)
@given(case=cases())
def test_nothing_but_the_result_is_written(correction: Correction, case):
    def everything() -> list[bytes]:
        packed = [s.packed for s in case.shifts if s is not None]
        tensors = [case.arena, case.given, *(t for p in packed for t in (p.words, p.values, p.chunks))]
        return [as_bits(t).tobytes() for t in tensors]

    before = everything()
    case.corrected_by(correction)
    assert everything() == before


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("correction", EVERY)
def test_values_that_are_the_bases_own_change_nothing(correction: Correction, layer):
    shape = (20, 70)
    arena = numbers(np.random.default_rng(0), 64 + 1408, torch.float32)
    values = as_bits(arena[64 : 64 + 1400])
    packed = pack([Segment(64, pack_mask(np.ones(1400, np.bool_)), values)], arena.dtype, CPU)
    shift = conv1d_shift(packed, 64, shape) if layer == "conv1d" else linear_shift(packed, 64, shape)
    given = torch.arange(3) if layer == "embedding" else torch.randn(3, 70 if layer == "linear" else 20)
    out = torch.randn(3, 20 if layer == "linear" else 70)
    case = Case(layer, arena, shape, [shift], [], [slice(0, 3)], given, out)
    assert torch.equal(case.corrected_by(correction), out)


@pytest.mark.parametrize("layer", ["linear", "conv1d"])
@pytest.mark.parametrize("correction", EVERY)
def test_a_bias_is_corrected_where_the_delta_leaves_the_weight_alone(correction: Correction, layer):
    other = Segment(0, pack_mask(np.ones(1, np.bool_)), np.zeros(1, np.uint32))
    packed = pack([other], torch.float32, CPU)
    bias = torch.randn(30)
    shift = conv1d_shift(packed, 64, (5, 30), bias) if layer == "conv1d" else linear_shift(packed, 64, (30, 5), bias)
    out = torch.randn(10, 30)
    case = Case(layer, torch.ones(64 + 192), (0, 0), [shift], [], [slice(1, 10)], torch.randn(10, 5), out)
    found = case.corrected_by(correction)
    assert torch.equal(found[1:], out[1:] + bias)
    assert torch.equal(found[0], out[0])


def test_a_delta_that_does_not_touch_a_module_has_no_shift_of_it():
    packed = pack([Segment(0, pack_mask(np.ones(1, np.bool_)), np.zeros(1, np.uint32))], torch.float32, CPU)
    assert linear_shift(packed, 64, (3, 3)) is None
    assert conv1d_shift(packed, 64, (3, 3)) is None
    assert embedding_shift(packed, 64, (3, 3)) is None


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(sides, sides),
    kept=shares,
    make=st.sampled_from([linear_shift, conv1d_shift]),
)
def test_offsets_count_the_values_before_every_block_of_every_row(seed, shape, kept, make):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < kept
    values = np.zeros(int(mask.sum()), np.uint32)
    shift = make(pack([Segment(64, pack_mask(mask), values)], torch.float32, CPU), 64, shape)
    block = COLUMN_BLOCK if make is conv1d_shift else shape[1]
    counts = [int(mask[r, c : c + block].sum()) for r in range(shape[0]) for c in range(0, shape[1], block)]
    assert shift.offsets.tolist() == [0, *np.cumsum(counts).tolist()]
    assert shift.nbytes == 4 * (len(counts) + 1) + shift.row.nbytes


@cache
def a_batch(layer: str = "linear", dtype: torch.dtype = torch.float32) -> Case:
    """Large enough for several blocks and every width of tile."""
    return case(3, layer, dtype, torch.float32, (200, 270), [70, 1, 17, 32, 5], [0.1, 0.3, 0.02, 0.1, 1.0])


@pytest.mark.parametrize("layer", LAYERS)
def test_neither_the_number_of_threads_nor_other_groups_change_a_bit(layer):
    case = a_batch(layer)
    found = case.corrected_by(correction_cpu.CORRECTION)
    numba.set_num_threads(1)
    assert torch.equal(case.corrected_by(correction_cpu.CORRECTION), found)
    for number, rows in enumerate(case.slices):
        alone = [s if n == number else None for n, s in enumerate(case.shifts)]
        single = Case(case.layer, case.arena, case.shape, alone, [], case.slices, case.given, case.out)
        assert torch.equal(single.corrected_by(correction_cpu.CORRECTION)[rows], found[rows])


def test_several_threads_may_correct_at_once():
    def work(layer: str) -> list[torch.Tensor]:
        numba.set_num_threads(1)
        return [a_batch(layer).corrected_by(correction_cpu.CORRECTION) for _ in range(20)]

    layers = [LAYERS[n % 3] for n in range(4)]
    expected = {layer: a_batch(layer).corrected_by(correction_cpu.CORRECTION) for layer in LAYERS}
    with ThreadPoolExecutor(4) as pool:
        for layer, found in zip(layers, pool.map(work, layers), strict=True):
            assert all(torch.equal(f, expected[layer]) for f in found)


def test_the_result_may_be_part_of_a_wider_tensor_but_its_rows_lie_in_one_piece():
    case = a_batch()
    wide = torch.randn(case.out.shape[0], 500)
    part = wide[:, 100:300]
    part.copy_(case.out)
    before = wide.clone()
    groups = correction_cpu.groups(case.slices)
    turned = correction_cpu.tokens(case.given, groups)
    correction_cpu.linear(part, turned, case.arena, case.shifts)
    assert torch.equal(part, case.corrected_by(correction_cpu.CORRECTION))
    assert torch.equal(wide[:, :100], before[:, :100])
    assert torch.equal(wide[:, 300:], before[:, 300:])
    with pytest.raises(ValueError, match="one piece"):
        correction_cpu.linear(torch.zeros(200, case.out.shape[0]).T, turned, case.arena, case.shifts)


@pytest.mark.parametrize("strides", [(0, 0), (5, 2)])
@pytest.mark.parametrize("correction", FAST)
def test_an_empty_result_is_taken_however_its_strides_are_told(correction: Correction, strides):
    """Numpy gives an empty array strides of 0, and torch keeps them."""
    packed = pack([Segment(64, pack_mask(np.ones(15, np.bool_)), np.zeros(15, np.uint32))], torch.float32, CPU)
    shifts = [linear_shift(packed, 64, (5, 3))]
    out = torch.empty(0).as_strided((0, 5), strides)
    correction.linear(
        out, correction.tokens(torch.empty(0, 3), correction.groups([slice(0, 0)])), torch.ones(128), shifts
    )
    assert out.shape == (0, 5)


def test_what_does_not_fit_together_is_refused():
    case = a_batch()
    groups = correction_cpu.groups(case.slices)
    turned = correction_cpu.tokens(case.given, groups)
    with pytest.raises(ValueError, match="expected"):
        correction_cpu.linear(torch.zeros(case.out.shape[0], 201), turned, case.arena, case.shifts)
    with pytest.raises(ValueError, match="expected"):
        correction_cpu.conv1d(case.out.clone(), turned, case.arena, case.shifts)
    with pytest.raises(ValueError, match="expected"):
        correction_cpu.embedding(case.out.clone(), torch.zeros(5), groups, case.arena, case.shifts)
    with pytest.raises(ValueError, match="the arena is"):
        correction_cpu.linear(case.out.clone(), turned, case.arena.half(), case.shifts)
    with pytest.raises(ValueError, match="a group ends at row"):
        correction_cpu.linear(case.out[:50].clone(), turned, case.arena, case.shifts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_for_the_cpu_are_compiled_before_they_are_given_out(dtype):
    kernels = [getattr(correction_cpu, f"_{n}_kernel") for n in ("transpose", "linear", "conv1d", "embedding")]
    assert correction_for(CPU, dtype) is correction_cpu.CORRECTION
    signatures = [len(k.signatures) for k in kernels]
    for layer in LAYERS:
        for activations in (torch.float32, dtype):
            with torch.inference_mode():
                case(1, layer, dtype, activations, (9, 70), [3, 1], [0.5, 0.5]).corrected_by(correction_cpu.CORRECTION)
    assert [len(k.signatures) for k in kernels] == signatures


def test_a_dtype_without_a_kernel_falls_back_to_torch():
    assert correction_for(CPU, torch.float64) is correction_reference.CORRECTION


def test_warming_leaves_torchs_number_of_threads_alone():
    """In a process of its own: it is the first start of numba's OpenMP threads that resets it."""
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "assert torch.get_num_threads() == 1\n"
        "from ken_core.kernels import correction_for\n"
        "correction_for(torch.device('cpu'), torch.float32)\n"
        "assert torch.get_num_threads() == 1, torch.get_num_threads()\n"
    )
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_every_number_of_16_bits_is_read_as_torch_reads_it():
    """One kept element in each row, x = 1: what is added is the value less a base of 0."""
    for dtype in (torch.bfloat16, torch.float16):
        bits = np.arange(1 << 16, dtype=np.uint16)
        values = from_bits(bits, dtype)
        bits = bits[torch.isfinite(values).numpy()]
        mask = np.ones(bits.size, np.bool_)
        packed = pack([Segment(0, pack_mask(mask), bits)], dtype, CPU)
        shift = linear_shift(packed, 0, (bits.size, 1))
        out, groups = torch.zeros(1, bits.size), correction_cpu.groups([slice(0, 1)])
        arena = torch.zeros(-(-bits.size // 64) * 64, dtype=dtype)
        correction_cpu.linear(out, correction_cpu.tokens(torch.ones(1, 1), groups), arena, [shift])
        assert torch.equal(out[0], from_bits(bits.copy(), dtype).float())


@needs_triton
@pytest.mark.parametrize("integer", ["i32", pytest.param("i16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", [*LAYERS[:1], *(pytest.param(n, marks=pytest.mark.slow) for n in LAYERS[1:])])
def test_the_triton_kernels_compile_for_a_gpu_and_keep_everything_in_registers(layer, integer, tmp_path, monkeypatch):
    """What the interpreter accepts, the compiler need not; that needs no GPU."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ken_core.kernels import correction_cuda as cuda

    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    number = "*fp32" if integer == "i32" else "*bf16"
    signature = {"out": number, "x": "*i64" if layer == "embedding" else number, "weights": f"*{integer}"}
    signature |= {"table": "*i64", "out_stride": "i64", "x_stride": "i64", "features": "i64", "outputs": "i64"}
    sizes = {
        "linear": {"ROWS": cuda._ROWS, "COLUMNS": cuda._COLUMNS},
        "conv1d": {"FEATURES": cuda._FEATURES, "COLUMNS": COLUMN_BLOCK},
        "embedding": {"COLUMNS": cuda._COLUMNS},
    }[layer]
    fixed = {"HALF": False, "PRECISION": "ieee" if integer == "i32" else "tf32", "TOKENS": cuda._TOKENS, **sizes}
    kernel = {"linear": cuda._linear_tile, "conv1d": cuda._conv1d_tile, "embedding": cuda._embedding_row}[layer]
    source = ASTSource(kernel, signature | dict.fromkeys(fixed, "constexpr"), fixed)
    compiled = compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True})
    assert "ld.local" not in compiled.asm["ptx"]
    assert ("mma" in compiled.asm["ptx"]) == (integer == "i16" and layer != "embedding")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fast_corrections_of_this_machine_are_used(dtype: torch.dtype) -> None:
    assert correction_for(CPU, dtype) is correction_cpu.CORRECTION


def wrong(layer: str) -> Correction:
    """The fast corrections, one of which forgets the last group."""

    right = correction_cpu.CORRECTION

    def forgetful(out: torch.Tensor, given: object, *rest: object) -> None:
        *rest, shifts = rest
        getattr(right, layer)(out, given, *rest, [*shifts[:-1], None])

    return dataclasses.replace(right, **{layer: forgetful})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
def test_corrections_that_differ_from_the_reference_are_not_used(
    layer: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(correction_cpu, "CORRECTION", wrong(layer))
    assert correction_for(CPU, dtype) is correction_reference.CORRECTION
    assert "do not give the reference's results" in caplog.text


def test_corrections_that_cannot_be_compiled_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warm(dtype: torch.dtype) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(correction_cpu, "warm", warm)
    assert correction_for(CPU, torch.float32) is correction_reference.CORRECTION
    assert "no such instruction" in caplog.text


# What is tried before corrections are used


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("correction", FAST)
def test_right_corrections_agree_with_the_reference(correction: Correction, dtype: torch.dtype) -> None:
    assert agrees(correction, correction_reference.CORRECTION, CPU, dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("layer", LAYERS)
def test_wrong_corrections_of_any_layer_are_found_out(layer: str, value: float) -> None:
    def wrong(out: torch.Tensor, *_: object) -> None:
        out[3] = value

    broken = dataclasses.replace(correction_reference.CORRECTION, **{layer: wrong})
    assert not agrees(broken, correction_reference.CORRECTION, CPU, torch.float32)
