from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ken_core.bits import pack_mask, unpack_mask
from ken_core.compression import compress
from ken_core.errors import DeltaFormatError
from ken_core.positions import decode_positions, encode_positions


@st.composite
def masks(draw, smallest: int = 0):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numel = draw(st.integers(smallest, 40_000))
    mask = rng.random(numel) < draw(st.sampled_from([0.0, 1e-4, 0.003, 0.05, 0.2, 0.9, 1.0]))
    if draw(st.booleans()):
        mask[draw(st.integers(0, numel)) :] = False  # a long gap at the end
    return mask


@given(mask=masks(), compressed=st.booleans())
def test_a_mask_decodes_to_itself(mask, compressed):
    packed = pack_mask(mask)
    stream, coding = encode_positions(packed, mask.size, compressed=compressed)
    decoded = decode_positions(stream, mask.size, int(mask.sum()), coding, compressed=compressed)
    assert np.array_equal(decoded, packed)
    assert np.array_equal(unpack_mask(decoded, mask.size), mask)


@given(mask=masks())
def test_the_smaller_of_both_codings_is_chosen(mask):
    packed = pack_mask(mask)
    stream, coding = encode_positions(packed, mask.size, compressed=True)
    assert stream.size <= compress(packed).size
    assert (coding == "gaps") == (stream.size < compress(packed).size)


def test_scattered_positions_are_coded_as_gaps_and_dense_ones_as_a_bitmap():
    rng = np.random.default_rng(0)
    for kept, expected in ((0.002, "gaps"), (0.4, "bitmap")):
        packed = pack_mask(rng.random(100_000) < kept)
        assert encode_positions(packed, 100_000, compressed=True)[1] == expected


def test_gaps_of_any_length_survive():
    for gap in (0, 1, 126, 127, 128, 16_382, 16_383, 16_384, 2_097_151, 2_097_152):
        mask = np.zeros(gap + 3, np.bool_)
        mask[[gap, gap + 2]] = True
        stream = compress(varints([gap, 1]))
        assert np.array_equal(decode_positions(stream, mask.size, 2, "gaps", compressed=True), pack_mask(mask))


def varints(numbers: list[int]) -> np.ndarray:
    """LEB128, written out: seven bits a byte, lowest first, the top bit set on all but the last."""
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number % 128 + 128)
            number //= 128
        out.append(number)
    return np.frombuffer(bytes(out), np.uint8)


@pytest.mark.parametrize(
    ("gaps", "numel", "count"),
    [
        ([3, 4], 9, 1),  # more positions than the manifest says
        ([3], 9, 2),  # fewer
        ([3, 5], 9, 2),  # the last lies one past the end
        ([10**15], 9, 1),
        ([2**62], 9, 1),
    ],
)
def test_gaps_that_do_not_lead_to_the_claimed_positions_are_refused(gaps, numel, count):
    with pytest.raises(DeltaFormatError):
        decode_positions(compress(varints(gaps)), numel, count, "gaps", compressed=True)


@pytest.mark.parametrize("data", [b"\x80", b"\x03\xff", b"\x80" * 9, b"\xff" * 12, b"\x80" * 8 + b"\x80\x01"])
def test_varints_that_end_too_early_or_never_are_refused(data):
    with pytest.raises(DeltaFormatError):
        decode_positions(compress(np.frombuffer(data, np.uint8)), 2**20, 2, "gaps", compressed=True)


def test_gaps_that_decompress_to_more_than_the_positions_could_take_are_refused():
    with pytest.raises(DeltaFormatError, match="at most 18"):
        decode_positions(compress(np.zeros(10**7, np.uint8)), 2**20, 2, "gaps", compressed=True)


@given(mask=masks(smallest=1), wrong=st.sampled_from([-1, 1]), compressed=st.booleans())
def test_another_number_of_bits_than_claimed_is_refused(mask, wrong, compressed):
    stream, coding = encode_positions(pack_mask(mask), mask.size, compressed=compressed)
    if int(mask.sum()) + wrong < 0:
        return
    with pytest.raises(DeltaFormatError):
        decode_positions(stream, mask.size, int(mask.sum()) + wrong, coding, compressed=compressed)


def test_a_bit_behind_the_last_element_is_refused():
    with pytest.raises(DeltaFormatError, match="expected 1 among 9"):
        decode_positions(np.array([0, 4], np.uint8), 9, 1, "bitmap", compressed=False)
