from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ken_core.bits import as_bits, from_bits
from ken_core.quantise import pack_codes, quantise, restore, unpack_codes

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def shifted(draw):
    """(base, tuned, dtype) as tensors: shifts spread like a tail, with a few far larger, tiny, equal or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype, n = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 300))
    base = torch.from_numpy(rng.standard_normal(n) * draw(st.sampled_from([1.0, 1e-3, 100.0]))).to(dtype)
    sizes = {
        "tail": rng.exponential(0.01, n) + 0.01,
        "outliers": np.where(rng.random(n) < 0.02, 30.0, rng.uniform(0.01, 0.02, n)),
        "equal": np.full(n, 0.125),
        "none": np.zeros(n),
        "wide": 10.0 ** rng.uniform(-6, 1, n),
    }[draw(st.sampled_from(["tail", "outliers", "equal", "none", "wide"]))]
    return base, (base.double() + torch.from_numpy(sizes * rng.choice([-1.0, 1.0], n))).to(dtype), dtype


@pytest.mark.parametrize("bits", [1, 4, 8])
@given(case=shifted())
def test_the_error_stays_within_its_documented_bound(bits, case):
    base, tuned, dtype = case
    codes, levels = quantise(as_bits(tuned), as_bits(base), dtype, bits)
    back = from_bits(restore(codes, levels, as_bits(base), dtype), dtype)
    shifts = (tuned.double() - base.double()).numpy()
    sizes = np.abs(shifts)
    top = levels.low + levels.step * (2 ** (bits - 1) - 1)
    bound = np.maximum(levels.step / 2, sizes - top)
    if bits == 1 and sizes.size:
        assert levels.low == pytest.approx(sizes.mean())
        bound = np.abs(sizes - levels.low)
    rounding = torch.finfo(dtype).eps * (base.double().abs().numpy() + sizes + top) + torch.finfo(dtype).tiny
    assert (np.abs(back.double().numpy() - tuned.double().numpy()) <= bound * (1 + 1e-9) + rounding).all()


def test_a_long_tail_is_cut_where_that_makes_the_squared_error_smaller():
    sizes = np.random.default_rng(1).exponential(0.02, 50_000) + 0.01
    base = torch.zeros(sizes.size, dtype=torch.float64)
    codes, levels = quantise(as_bits(torch.from_numpy(sizes)), as_bits(base), torch.float64, 4)
    chosen = ((levels.low + (codes >> 1) * levels.step - sizes) ** 2).sum()
    uncut_step = (sizes.max() - sizes.min()) / 7
    uncut = sizes.min() + uncut_step * np.rint((sizes - sizes.min()) / uncut_step)
    assert chosen < 0.8 * ((uncut - sizes) ** 2).sum()


def test_shifts_all_alike_are_kept_exactly_by_every_width():
    base = torch.arange(16, dtype=torch.float32)
    tuned = base + torch.tensor([0.5, -0.5]).repeat(8)
    for bits in (1, 4, 8):
        codes, levels = quantise(as_bits(tuned), as_bits(base), torch.float32, bits)
        assert np.array_equal(restore(codes, levels, as_bits(base), torch.float32), as_bits(tuned))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_at_the_end_of_the_range_stays_finite(dtype):
    largest = torch.finfo(dtype).max
    base = torch.tensor([0.0, largest, -largest], dtype=dtype)
    tuned = torch.tensor([largest, largest, -largest], dtype=dtype)
    for bits in (1, 4, 8):
        codes, levels = quantise(as_bits(tuned), as_bits(base), dtype, bits)
        assert torch.isfinite(from_bits(restore(codes, levels, as_bits(base), dtype), dtype)).all()


@pytest.mark.parametrize("bits", [1, 4, 8])
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 70))
def test_packed_codes_unpack_to_themselves(bits, seed, count):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.size == -(-count * bits // 8)
    assert np.array_equal(unpack_codes(packed, count, bits), codes)
