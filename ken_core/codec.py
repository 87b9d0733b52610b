"""Lossless encodings of masks and values.

``raw`` stores bits as they are. ``zstd`` stores values as their distance from the base's: bits are mapped to
integers in the floats' order (sign-magnitude to two's complement), the base's subtracted modulo 2**width,
signs folded into the lowest bit (zig-zag), bytes split into planes of equal significance, and each stream
compressed. Small shifts leave the high planes nearly empty.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import zstandard

from ken_core.bits import Bits
from ken_core.errors import DeltaFormatError

Codec = Literal["raw", "zstd"]
Bytes = npt.NDArray[np.uint8]
CODECS: tuple[Codec, ...] = ("raw", "zstd")

_LEVEL = 9


def encode_values(values: Bits, base: Bits, codec: Codec) -> Bytes:
    """Encode fine-tuned values, given the base's bits at the same positions; both shape (n,)."""
    if codec == "raw":
        return np.ascontiguousarray(values).view(np.uint8)
    steps = _zigzag(_ordered(values) - _ordered(base))
    planes = np.ascontiguousarray(steps.view(np.uint8).reshape(-1, steps.itemsize).T)
    return _compress(planes)


def decode_values(data: Bytes, base: Bits, codec: Codec) -> Bits:
    """The inverse of `encode_values`.

    Raises:
        DeltaFormatError: `data` does not hold exactly one value for each of the base's.
    """
    if codec == "raw":
        if data.size != base.nbytes:
            raise DeltaFormatError(f"values hold {data.size} bytes, expected {base.nbytes}")
        return np.ascontiguousarray(data).view(base.dtype)
    planes = _decompress(data, base.nbytes).reshape(base.itemsize, -1)
    steps = np.ascontiguousarray(planes.T).reshape(-1).view(base.dtype)
    return _unordered(_unzigzag(steps) + _ordered(base))


def encode_mask(packed: Bytes, codec: Codec) -> Bytes:
    """Encode a packed mask (`ken_core.bits.pack_mask`)."""
    return packed if codec == "raw" else _compress(packed)


def decode_mask(data: Bytes, size: int, codec: Codec) -> Bytes:
    """The inverse of `encode_mask`; `size` is the packed mask's number of bytes.

    Raises:
        DeltaFormatError: another size comes out.
    """
    if codec == "zstd":
        return _decompress(data, size)
    if data.size != size:
        raise DeltaFormatError(f"a mask holds {data.size} bytes, expected {size}")
    return data


def _ordered(bits: Bits) -> Bits:
    """Map float bits to unsigned integers in the floats' order: negatives flip all bits, others the sign."""
    sign = bits.dtype.type(1 << (bits.itemsize * 8 - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def _unordered(bits: Bits) -> Bits:
    sign = bits.dtype.type(1 << (bits.itemsize * 8 - 1))
    return np.where(bits & sign, bits ^ sign, ~bits)


def _zigzag(steps: Bits) -> Bits:
    one, top = steps.dtype.type(1), steps.dtype.type(steps.itemsize * 8 - 1)
    return (steps << one) ^ (steps.dtype.type(0) - (steps >> top))


def _unzigzag(steps: Bits) -> Bits:
    one = steps.dtype.type(1)
    return (steps >> one) ^ (steps.dtype.type(0) - (steps & one))


def _compress(data: Bytes) -> Bytes:
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(np.ascontiguousarray(data).data)
    return np.frombuffer(packed, np.uint8)


def _decompress(data: Bytes, size: int) -> Bytes:
    """Decompress to exactly `size` bytes; the frame's own claim is checked before anything is allocated."""
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
