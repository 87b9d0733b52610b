"""How kept values are stored.

``raw`` stores bits as they are. ``zstd`` is lossless and stores each value's distance from the base's value: both
values' bits are mapped to integers in the order of the floats (sign-magnitude to two's complement), subtracted modulo
2**width, and the sign is folded into the lowest bit (zig-zag). The bytes are split into planes of equal significance
and compressed. Small shifts leave the high planes nearly empty.

``int8``, ``int4`` and ``sign`` are lossy: shifts are quantised to 8, 4 or 1 bits (`ken_core.quantise`) and compressed.
"""

from __future__ import annotations

import struct

import numba
import numpy as np
import torch

from ken_core.bits import Bits
from ken_core.codings import CODE_BITS, Codec
from ken_core.compression import Bytes, compress, decompress
from ken_core.errors import DeltaFormatError
from ken_core.quantise import Levels, pack_codes, quantise, restore, unpack_codes

_BLOCK = 1 << 18
_LEVELS = struct.Struct("<dd")
"""The first bytes of a lossy stream: the smallest size and the step between sizes."""


def encode_values(values: Bits, base: Bits, dtype: torch.dtype, codec: Codec) -> Bytes:
    """Encode fine-tuned values, given the base's values at the same positions; both as bits of shape (n,)."""
    if codec == "raw":
        return np.ascontiguousarray(values).view(np.uint8)
    if codec == "zstd":
        return compress(_distance_planes(values, base))
    codes, levels = quantise(values, base, dtype, CODE_BITS[codec])
    head = np.frombuffer(_LEVELS.pack(levels.low, levels.step), np.uint8)
    return np.concatenate([head, compress(pack_codes(codes, CODE_BITS[codec]))])


def decode_values(data: Bytes, base: Bits, dtype: torch.dtype, codec: Codec) -> Bits:
    """Decode what `encode_values` made; shape (n,). A lossy codec gives the nearest values it can store.

    Raises:
        DeltaFormatError: `data` does not hold exactly one value for each of the base's values.
    """
    if codec == "raw":
        if data.size != base.nbytes:
            raise DeltaFormatError(f"values hold {data.size} bytes, expected {base.nbytes}")
        return np.ascontiguousarray(data).view(base.dtype)
    if codec == "zstd":
        values = np.empty_like(base)
        _add_distances(decompress(data, base.nbytes), base, values)
        return values
    bits = CODE_BITS[codec]
    packed = decompress(data[_LEVELS.size :], -(-base.size * bits // 8))
    return restore(unpack_codes(packed, base.size, bits), _levels(data), base, dtype)


def _levels(data: Bytes) -> Levels:
    low, step = _LEVELS.unpack(data[: _LEVELS.size].tobytes())
    if not (0 <= low < np.inf and 0 <= step < np.inf):
        raise DeltaFormatError(f"quantised values claim a smallest size of {low} and steps of {step}")
    return Levels(low, step)


def encode_whole(bits: Bits, codec: Codec) -> Bytes:
    """Encode all of a tensor, always losslessly; its bits have shape (n,)."""
    return np.ascontiguousarray(bits).view(np.uint8) if codec == "raw" else compress(_planes(bits))


def decode_whole(data: Bytes, nbytes: int, itemsize: int, codec: Codec) -> Bytes:
    """Decode what `encode_whole` made: the bytes of the tensor.

    Args:
        nbytes: the tensor's bytes.
        itemsize: bytes per element.

    Raises:
        DeltaFormatError: `data` holds another number of bytes.
    """
    if codec == "raw":
        if data.size != nbytes:
            raise DeltaFormatError(f"a tensor holds {data.size} bytes, expected {nbytes}")
        return data
    return _from_planes(decompress(data, nbytes), np.dtype(f"u{itemsize}")).view(np.uint8)


def _distance_planes(values: Bits, base: Bits) -> Bytes:
    """`_planes` of the folded distances, in blocks: whole arrays of temporaries would be larger than the delta."""
    planes = np.empty((values.itemsize, values.size), np.uint8)
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        steps = _zigzag(_ordered(values[block]) - _ordered(base[block]))
        planes[:, block] = steps.view(np.uint8).reshape(-1, values.itemsize).T
    return planes.reshape(-1)


def _planes(integers: Bits) -> Bytes:
    """Put bytes of equal significance side by side, because they resemble each other."""
    return np.ascontiguousarray(integers.view(np.uint8).reshape(-1, integers.itemsize).T).reshape(-1)


def _from_planes(planes: Bytes, dtype: np.dtype[np.unsignedinteger]) -> Bits:
    return np.ascontiguousarray(planes.reshape(dtype.itemsize, -1).T).reshape(-1).view(dtype)


def _ordered(bits: Bits) -> Bits:
    """Map float bits to unsigned integers in the floats' order: negatives flip all bits, others only the sign bit."""
    sign = bits.dtype.type(1 << (bits.itemsize * 8 - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def _zigzag(steps: Bits) -> Bits:
    one, top = steps.dtype.type(1), steps.dtype.type(steps.itemsize * 8 - 1)
    return (steps << one) ^ (steps.dtype.type(0) - (steps >> top))


@numba.njit(cache=True, nogil=True)
def _add_distances(planes, base, values):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Invert `_distance_planes` in one pass: gather a distance's bytes, unfold it, add it to the base's value."""
    itemsize, n = base.itemsize, base.size
    width = np.uint64(8 * itemsize)
    ones = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - width)
    sign = np.uint64(1) << (width - np.uint64(1))
    for i in range(n):
        folded = np.uint64(0)
        for plane in range(itemsize):
            folded |= np.uint64(planes[plane * n + i]) << np.uint64(8 * plane)
        distance = folded >> np.uint64(1)
        if folded & np.uint64(1):
            distance = ~distance
        bits = np.uint64(base[i])
        ordered = (~bits if bits & sign else bits | sign) + distance & ones
        values[i] = ordered ^ sign if ordered & sign else ~ordered & ones
