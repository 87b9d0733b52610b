"""Compression with zstd of streams whose size the reader knows beforehand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import zstandard

from ken_core.errors import DeltaFormatError

Bytes = npt.NDArray[np.uint8]

_LEVEL = 9


def compress(data: Bytes) -> Bytes:
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(np.ascontiguousarray(data).data)
    return np.frombuffer(packed, np.uint8)


def decompress(data: Bytes, size: int) -> Bytes:
    """Decompress to exactly `size` bytes; the size that the frame claims is checked before anything is allocated.

    Raises:
        DeltaFormatError: the stream is damaged, or holds more or fewer bytes.
    """
    raw = data.tobytes()
    try:
        claimed = zstandard.frame_content_size(raw)
        if claimed != size:
            raise DeltaFormatError(f"a compressed stream claims {claimed} bytes, expected {size}")
        return np.frombuffer(
            zstandard.ZstdDecompressor().decompress(raw, max_output_size=size, allow_extra_data=False), np.uint8
        )
    except zstandard.ZstdError as error:
        raise DeltaFormatError(f"a compressed stream is damaged: {error}") from error


def decompress_at_most(data: Bytes, limit: int) -> Bytes:
    """Decompress a stream of at most `limit` bytes.

    Raises:
        DeltaFormatError: the stream is damaged, or claims more bytes.
    """
    try:
        claimed = zstandard.frame_content_size(data.tobytes()[:32])
    except zstandard.ZstdError as error:
        raise DeltaFormatError(f"a compressed stream is damaged: {error}") from error
    if not 0 <= claimed <= limit:
        raise DeltaFormatError(f"a compressed stream claims {claimed} bytes, expected at most {limit}")
    return decompress(data, claimed)
