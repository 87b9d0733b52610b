from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ken_core.bits import as_bits, from_bits, pack_mask, same_bits, unpack_mask

masks = hnp.arrays(np.bool_, st.integers(0, 300))
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(mask=masks)
def test_a_packed_mask_unpacks_to_itself(mask):
    packed = pack_mask(mask)
    assert packed.size == (mask.size + 7) // 8
    assert np.array_equal(unpack_mask(packed, mask.size), mask)


def test_the_first_element_of_a_mask_is_the_lowest_bit():
    mask = np.zeros(11, np.bool_)
    mask[[0, 3, 8]] = True
    assert pack_mask(mask).tolist() == [0b0000_1001, 0b0000_0001]


@given(mask=masks)
def test_bits_after_the_last_element_are_zero(mask):
    spare = -mask.size % 8
    if spare:
        assert pack_mask(mask)[-1] >> (8 - spare) == 0


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.binary(max_size=160))
def test_every_bit_pattern_survives_the_way_to_integers_and_back(dtype, data):
    data = data[: len(data) // dtype.itemsize * dtype.itemsize]
    tensor = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(dtype) if data else torch.zeros(0, dtype=dtype)
    bits = as_bits(tensor)
    assert bits.itemsize == dtype.itemsize
    assert bits.tobytes() == data
    assert same_bits(from_bits(bits, dtype), tensor)


def test_a_transposed_tensor_gives_the_bits_of_its_own_order():
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).T
    assert from_bits(as_bits(tensor), torch.float32).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("dtype", FLOATS)
def test_minus_zero_is_not_zero_and_a_nan_is_itself(dtype):
    zero, nan = torch.zeros(3, dtype=dtype), torch.full((3,), float("nan"), dtype=dtype)
    assert not same_bits(zero, -zero)
    assert same_bits(nan, nan.clone())


def test_tensors_of_other_shape_or_dtype_differ():
    zero = torch.zeros(4)
    assert not same_bits(zero, zero.reshape(2, 2))
    assert not same_bits(zero, zero.to(torch.float64))
    assert not same_bits(zero, zero.view(torch.int32))
