from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ken_core.bits import as_bits
from ken_core.codec import CODECS, decode_mask, decode_values, encode_mask, encode_values
from ken_core.errors import DeltaFormatError

WIDTHS = [np.uint16, np.uint32, np.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def values_and_base(draw, dtype=None):
    dtype = np.dtype(dtype or draw(st.sampled_from(WIDTHS)))
    top = np.iinfo(dtype).max
    sign = 1 << (8 * dtype.itemsize - 1)
    extremes = st.sampled_from([0, 1, sign - 1, sign, sign + 1, top - 1, top])
    pattern = st.one_of(extremes, st.integers(0, int(top)))
    n = draw(st.integers(0, 60))
    return tuple(draw(hnp.arrays(dtype, n, elements=pattern)) for _ in range(2))


@pytest.mark.parametrize("codec", CODECS)
@given(pair=values_and_base())
def test_values_of_any_bits_decode_to_themselves(codec, pair):
    values, base = pair
    decoded = decode_values(encode_values(values, base, codec), base, codec)
    assert decoded.dtype == values.dtype
    assert np.array_equal(decoded, values)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_extreme_floats_decode_to_the_same_bits(codec, dtype):
    info = torch.finfo(dtype)
    denormal = info.tiny * info.eps
    numbers = [0.0, info.max, info.tiny, denormal, 1.0, info.eps, float("inf"), float("nan")]
    values = as_bits(torch.tensor([*numbers, *(-n for n in numbers)], dtype=torch.float64).to(dtype))
    assert len(set(values.tolist())) >= len(numbers) * 2 - 1
    for base in (values[::-1].copy(), np.zeros_like(values), values.copy()):
        assert np.array_equal(decode_values(encode_values(values, base, codec), base, codec), values)


@given(bits=hnp.arrays(np.uint32, 4000, elements=st.integers(0, 2**32 - 1), fill=st.integers(0, 2**32 - 1)))
def test_values_near_the_bases_compress_better_than_their_own_bytes(bits):
    near = bits ^ np.uint32(1)
    assert encode_values(near, bits, "zstd").size < near.nbytes / 2


@pytest.mark.parametrize("codec", CODECS)
@given(packed=hnp.arrays(np.uint8, st.integers(0, 200)))
def test_a_mask_decodes_to_itself(codec, packed):
    assert np.array_equal(decode_mask(encode_mask(packed, codec), packed.size, codec), packed)


@pytest.mark.parametrize("codec", CODECS)
@given(pair=values_and_base(), change=st.integers(-3, 3).filter(bool))
def test_values_for_another_number_of_positions_are_refused(codec, pair, change):
    values, base = pair
    other = np.resize(base, max(0, base.size + change)) if base.size else np.zeros(abs(change), base.dtype)
    with pytest.raises(DeltaFormatError, match=r"expected \d+"):
        decode_values(encode_values(values, base, codec), other, codec)


@pytest.mark.parametrize("codec", CODECS)
@given(packed=hnp.arrays(np.uint8, st.integers(0, 50)), change=st.integers(1, 9))
def test_a_mask_of_another_size_is_refused(codec, packed, change):
    with pytest.raises(DeltaFormatError, match=r"expected \d+"):
        decode_mask(encode_mask(packed, codec), packed.size + change, codec)


@given(data=st.binary(max_size=200), size=st.integers(0, 300))
def test_bytes_that_are_no_zstd_stream_are_refused(data, size):
    if data[:4] == zstandard.FRAME_HEADER:
        return
    with pytest.raises(DeltaFormatError):
        decode_mask(np.frombuffer(data, np.uint8), size, "zstd")


@given(
    packed=hnp.arrays(np.uint8, st.integers(1, 300)),
    place=st.integers(0, 10_000),
    flip=st.integers(1, 255),
    cut=st.integers(0, 10_000),
)
def test_a_damaged_zstd_stream_is_refused_or_still_has_the_right_size(packed, place, flip, cut):
    stream = encode_mask(packed, "zstd").copy()
    stream[place % stream.size] ^= flip
    with suppress(DeltaFormatError):
        assert decode_mask(stream, packed.size, "zstd").size == packed.size
    with pytest.raises(DeltaFormatError):
        decode_mask(encode_mask(packed, "zstd")[: cut % stream.size], packed.size, "zstd")


def zeros(count: int, **options) -> np.ndarray:
    return np.frombuffer(zstandard.ZstdCompressor(**options).compress(bytes(count)), np.uint8)


def claiming(size: int, stream: np.ndarray) -> np.ndarray:
    """The stream with the four bytes of its frame header that hold the content size overwritten."""
    assert zstandard.get_frame_parameters(stream.tobytes()).content_size > 65_791  # so that the field has 4 bytes
    changed = stream.copy()
    changed[5:9] = np.frombuffer(size.to_bytes(4, "little"), np.uint8)
    assert zstandard.frame_content_size(changed.tobytes()) == size
    return changed


def test_a_bomb_is_refused_by_the_size_it_claims():
    with pytest.raises(DeltaFormatError, match="claims 100000000 bytes, expected 8"):
        decode_mask(zeros(100_000_000), 8, "zstd")


@pytest.mark.parametrize("claimed", [70_000, 1_000_000])
def test_a_stream_that_holds_more_or_less_than_it_claims_is_refused(claimed):
    with pytest.raises(DeltaFormatError, match="damaged"):
        decode_mask(claiming(claimed, zeros(100_000)), claimed, "zstd")


def test_a_stream_that_does_not_say_its_size_is_refused():
    with pytest.raises(DeltaFormatError, match="claims -1 bytes, expected 100"):
        decode_mask(zeros(100, write_content_size=False), 100, "zstd")


@pytest.mark.parametrize("tail", [b"junk", bytes(1), zeros(100).tobytes()])
def test_bytes_after_the_end_of_a_stream_are_refused(tail):
    stream = np.frombuffer(zeros(100).tobytes() + tail, np.uint8)
    with pytest.raises(DeltaFormatError):
        decode_mask(stream, 100, "zstd")
