"""Encoding masks: as a bitmap, or as the gaps between its set bits, whichever is smaller.

A bitmap costs a bit for each element before compression, whatever it holds. Gaps (each a little-endian base-128
varint, as in protocol buffers: seven bits a byte, the eighth says that more bytes follow) cost about a byte for each
kept element, so they win where few elements are kept.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from ken_core.bits import pack_mask, unpack_mask
from ken_core.codings import Coding
from ken_core.compression import Bytes, compress, decompress, decompress_at_most
from ken_core.errors import DeltaFormatError

_GAPS_BELOW = 1 / 8
"""If a larger share is kept, gaps take more bytes than the bitmap even before compression."""
_LONGEST_VARINT = 9


def encode_positions(packed: Bytes, numel: int, *, compressed: bool) -> tuple[Bytes, Coding]:
    """Encode a packed mask (`ken_core.bits.pack_mask`) of `numel` elements.

    Returns:
        The stream and how it is coded; without compression it is always the bitmap itself.
    """
    if not compressed:
        return packed, "bitmap"
    bitmap = compress(packed)
    if int(np.bitwise_count(packed).sum()) > numel * _GAPS_BELOW:
        return bitmap, "bitmap"
    gaps = compress(_to_gaps(np.flatnonzero(unpack_mask(packed, numel))))
    return (gaps, "gaps") if gaps.size < bitmap.size else (bitmap, "bitmap")


def decode_positions(data: Bytes, numel: int, count: int, coding: Coding, *, compressed: bool) -> Bytes:
    """The inverse of `encode_positions`: the packed mask, ceil(numel / 8) bytes.

    Raises:
        DeltaFormatError: the stream is not a mask of `numel` elements of which `count` are set.
    """
    if coding == "gaps":
        packed = pack_mask(_mask_of_gaps(decompress_at_most(data, _most_bytes(numel, count)), numel, count))
    else:
        packed = decompress(data, -(-numel // 8)) if compressed else data
    if packed.size != -(-numel // 8):
        raise DeltaFormatError(f"a mask of {numel} elements holds {packed.size} bytes, expected {-(-numel // 8)}")
    found = int(np.bitwise_count(packed).sum())
    if found != count or (numel % 8 and packed[-1] >> (numel % 8)):
        raise DeltaFormatError(f"a mask has {found} bits set, expected {count} among {numel}")
    return packed


def _most_bytes(numel: int, count: int) -> int:
    """The most bytes that `count` gaps among `numel` elements take: a gap of several bytes is at least 128 wide."""
    return count + (_LONGEST_VARINT - 1) * min(count, numel // 128)


def _to_gaps(positions: npt.NDArray[np.int64]) -> Bytes:
    out = np.empty(positions.size * _LONGEST_VARINT, np.uint8)
    return out[: _write_varints(np.diff(positions, prepend=np.int64(-1)) - 1, out)]


def _mask_of_gaps(data: Bytes, numel: int, count: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(numel, np.bool_)
    if _set_from_varints(data, mask) != count:
        raise DeltaFormatError(f"a mask's gaps do not lead to {count} positions among {numel} elements")
    return mask


@numba.njit(cache=True, nogil=True)
def _write_varints(numbers, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    end = 0
    for number in numbers:
        while number > 127:
            out[end] = (number & 127) | 128
            number >>= 7
            end += 1
        out[end] = number
        end += 1
    return end


@numba.njit(cache=True, nogil=True)
def _set_from_varints(data, mask):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Set the positions that the gaps lead to, and count them; -1 if one lies outside or the last gap is cut off."""
    position, gap, shift, found = np.int64(-1), np.int64(0), 0, 0
    for byte in data:
        if shift > 56:
            return -1
        gap |= (np.int64(byte) & 127) << shift
        shift += 7
        if byte < 128:
            if gap >= mask.size - position - 1:
                return -1
            position += gap + 1
            mask[position] = True
            found, gap, shift = found + 1, np.int64(0), 0
    return found if shift == 0 else -1
