"""Quantised factors: how near they come, and what a hostile stream is refused for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ken_core.errors import DeltaFormatError
from ken_core.factor_codec import codes_of, decode_components, encode_components

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 40))
FACTORS = SHAPES.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))


@given(FACTORS, st.sampled_from([4, 8]))
def test_every_number_is_within_half_a_step_of_its_components_scale(components, bits):
    decoded = decode_components(encode_components(components, bits), *components.shape, bits)
    largest = np.abs(components).max(axis=1, keepdims=True)
    step = largest / ((1 << (bits - 1)) - 1)
    assert decoded.dtype == np.float32
    assert (np.abs(decoded - components) <= step * 0.5001 + 1e-30).all()
    assert np.abs(decoded).max(axis=1, keepdims=True) == pytest.approx(largest, rel=1e-6, abs=1e-37)


@given(FACTORS, st.sampled_from([4, 8]))
def test_decoded_components_have_the_codes_that_they_were_decoded_from(components, bits):
    first, _ = codes_of(torch.from_numpy(components), bits)
    decoded = torch.from_numpy(decode_components(encode_components(components, bits), *components.shape, bits))
    again, scales = codes_of(decoded, bits)
    assert torch.equal(first, again)
    assert again.dtype == torch.int8
    torch.testing.assert_close(again * scales[:, None], decoded, rtol=1e-6, atol=1e-40)


def test_small_components_last_beside_large_ones():
    components = np.array([[100.0, -50.0], [1e-4, 3e-5]], np.float32)
    assert decode_components(encode_components(components, 8), 2, 2, 8) == pytest.approx(components, rel=0.02)


def test_the_same_factors_give_the_same_bytes():
    components = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    assert encode_components(components, 4).tobytes() == encode_components(components.copy(), 4).tobytes()


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_scale_that_is_no_size_is_refused(scale):
    stream = encode_components(np.ones((2, 8), np.float32), 4)
    stream[:4] = np.array([scale], np.float32).view(np.uint8)
    with pytest.raises(DeltaFormatError, match="scale is negative, NaN or infinite"):
        decode_components(stream, 2, 8, 4)


def test_a_stream_of_another_length_is_refused():
    stream = encode_components(np.ones((2, 8), np.float32), 4)
    with pytest.raises(DeltaFormatError):
        decode_components(stream, 2, 9, 4)
    with pytest.raises(DeltaFormatError, match="need 80 bytes of scales"):
        decode_components(stream[:50], 20, 8, 4)
    with pytest.raises(DeltaFormatError):
        decode_components(stream[:-3], 2, 8, 4)
