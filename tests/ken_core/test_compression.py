from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ken_core.compression import compress, decompress, decompress_at_most
from ken_core.errors import DeltaFormatError


@given(data=hnp.arrays(np.uint8, st.integers(0, 300)))
def test_bytes_survive(data):
    assert np.array_equal(decompress(compress(data), data.size), data)
    assert np.array_equal(decompress_at_most(compress(data), data.size), data)


@given(data=st.binary(max_size=200), size=st.integers(0, 300))
def test_bytes_that_are_no_zstd_stream_are_refused(data, size):
    if data[:4] == zstandard.FRAME_HEADER:
        return
    with pytest.raises(DeltaFormatError):
        decompress(np.frombuffer(data, np.uint8), size)


@given(
    packed=hnp.arrays(np.uint8, st.integers(1, 300)),
    place=st.integers(0, 10_000),
    flip=st.integers(1, 255),
    cut=st.integers(0, 10_000),
)
def test_a_damaged_zstd_stream_is_refused_or_still_has_the_right_size(packed, place, flip, cut):
    stream = compress(packed).copy()
    stream[place % stream.size] ^= flip
    with suppress(DeltaFormatError):
        assert decompress(stream, packed.size).size == packed.size
    with pytest.raises(DeltaFormatError):
        decompress(compress(packed)[: cut % stream.size], packed.size)


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
        decompress(zeros(100_000_000), 8)


@pytest.mark.parametrize("claimed", [70_000, 1_000_000])
def test_a_stream_that_holds_more_or_less_than_it_claims_is_refused(claimed):
    with pytest.raises(DeltaFormatError, match="damaged"):
        decompress(claiming(claimed, zeros(100_000)), claimed)


def test_a_stream_that_does_not_say_its_size_is_refused():
    with pytest.raises(DeltaFormatError, match="claims -1 bytes, expected 100"):
        decompress(zeros(100, write_content_size=False), 100)


@pytest.mark.parametrize("tail", [b"junk", bytes(1), zeros(100).tobytes()])
def test_bytes_after_the_end_of_a_stream_are_refused(tail):
    stream = np.frombuffer(zeros(100).tobytes() + tail, np.uint8)
    with pytest.raises(DeltaFormatError):
        decompress(stream, 100)


def test_more_than_the_limit_is_refused_before_it_is_allocated():
    with pytest.raises(DeltaFormatError, match="claims 100000000 bytes, expected at most 1000"):
        decompress_at_most(zeros(100_000_000), 1000)
    with pytest.raises(DeltaFormatError, match="claims -1 bytes"):
        decompress_at_most(zeros(100, write_content_size=False), 1000)
    with pytest.raises(DeltaFormatError, match="damaged"):
        decompress_at_most(np.frombuffer(b"no frame", np.uint8), 1000)
